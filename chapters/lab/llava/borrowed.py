"""Weights that are moved for a look, and come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def borrowed(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield copies of the tensors as they are; they come back bit for bit, and their .grad as it
    was (not what was written into it), also when the body raises.
    """
    theta, gradients = [p.detach().clone() for p in params], [p.grad for p in params]
    try:
        yield theta
    finally:
        with torch.no_grad():
            for parameter, start, gradient in zip(params, theta, gradients, strict=True):
                parameter.copy_(start)
                parameter.grad = gradient
