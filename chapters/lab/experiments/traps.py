"""What silently goes wrong in a re-implementation, measured: weights too coarse for the step, not
given back, rows repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sare_min.captions import encode
from sare_min.sam import perturbed

from ..world.kit import Kit


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def step_cosines(
    params: Sequence[Tensor], direction: Sequence[Tensor], rhos: Sequence[float], dtype: torch.dtype
) -> list[float]:
    """Cosine of the step that weights of this dtype really take and the one intended, at each rho;
    0 where nothing moves at all.

    bf16 keeps 8 bits of a weight: an entry of eps below a 512th of it rounds away.
    """
    weights, found = [p.detach().to(dtype) for p in params], []
    start, wanted = _flat(weights), _flat(direction)
    for rho in rhos:
        with perturbed(weights, tuple(direction), rho):
            moved = _flat(weights) - start
        found.append(float(torch.cosine_similarity(moved, wanted, 0)) if moved.any() else 0.0)
    return found


def not_given_back(
    params: Sequence[Tensor], direction: Sequence[Tensor], rho: float, dtype: torch.dtype
) -> dict[str, float]:
    """Share of weights that differ after one step there and back: {"subtracted": by p + eps - eps,
    "copied": by sam.perturbed}.
    """
    weights, before = [p.detach().to(dtype) for p in params], [p.detach().to(dtype) for p in params]
    with perturbed(weights, tuple(direction), rho):
        pass
    copied = float((_flat(weights) != _flat(before)).double().mean())
    scale = rho / float(_flat(direction).norm())
    for p, g in zip(weights, direction, strict=True):
        eps = (scale * g).to(dtype)
        p.add_(eps).sub_(eps)
    return {
        "subtracted": float((_flat(weights) != _flat(before)).double().mean()),
        "copied": copied,
    }


def repeated_tokens(world: Kit, rows: int = 256) -> dict[str, int]:
    """Tokens that a forward runs over for the same losses: captions packed, or one row a
    sub-sentence as in EFUF's released layout.
    """
    spans, texts = world.spans("erase")[:rows], world.said["erase"][:rows]
    pieces = [
        (i, text[:end], {kind: [(start, end)]})
        for i, (text, kinds) in enumerate(zip(texts, spans, strict=True))
        for kind, found in kinds.items()
        for start, end in found
    ]
    features = world.features["erase"][:rows]
    packed = encode(world.processor, features, texts, spans)
    repeated = encode(
        world.processor,
        features,
        [text for _, text, _ in pieces],
        [kinds for *_, kinds in pieces],
        image=[i for i, *_ in pieces],
    )
    return {
        "packed": int(packed.attention_mask.sum()),
        "a row a sub-sentence": int(repeated.attention_mask.sum()),
    }
