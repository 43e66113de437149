"""A run that diverges ends, and the model is what it was when it last stood within bounds.

An erasure's loss falls without bound, and so may the model: a `stop` at a forget level is asked
whether enough is forgotten, not whether anything is left. This asks the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Bounds = Mapping[str, tuple[float, float]]


@contextmanager
def last_good(
    params: Sequence[Tensor],
    measure: Callable[[], Mapping[str, float]],
    bounds: Bounds,
    every: int = 8,
    stop: Callable[[int], bool] | None = None,
) -> Iterator[Callable[[int], bool]]:
    """Yield a `stop` for sare_min.unlearn that also looks every few steps whether what `measure`
    finds stands within bounds, and keeps the weights if so.

    params: the trainable tensors; one copy of them is kept. measure(): {"nll_retain": nats a token,
    "recall": share, ...}. bounds: name -> (lowest, highest) that is still a model. stop: asked as
    well, for a forget level. Any error in the body, a loss that is not finite among them, gives
    back the last good weights. Raises ValueError naming the step, the measure, its value and the
    step whose weights are back, if one leaves its bounds: in the run, or where it ends.

    with last_good(trainable(model), held_out, {"nll_retain": (0, 3)}, stop=enough) as watched:
        unlearn(model, data, METHODS["SARE"], Training(), stop=watched)
    """
    good, kept = [], "the beginning"

    def look(now: str) -> None:
        nonlocal kept
        found = measure()
        for name, (low, high) in bounds.items():
            if not low <= found[name] <= high:  # not a number is not within bounds either
                raise ValueError(
                    f"{now}: {name} is {found[name]:.4g}, outside {low:g} to {high:g}; the weights"
                    f" are those of {kept} again: lower the learning rate, or stop earlier."
                )
        good[:] = [parameter.detach().clone() for parameter in params]
        kept = now

    def asked(step: int) -> bool:
        if step % every == every - 1:
            look(f"step {step}")
        return bool(stop and stop(step))

    look("the beginning")
    try:
        yield asked
        look("the end")
    except Exception:
        with torch.no_grad():
            for parameter, weights in zip(params, good, strict=True):
                parameter.copy_(weights)
        raise
