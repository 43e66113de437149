"""What a model says, in numbers: CHAIR of its captions and the NLL of spans."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from .captions import Captions, token_nll


def chair(mentions: Sequence[Sequence[str]], truths: Sequence[Collection[str]]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i and recall, as shares in 0..1.

    mentions: the objects that each caption names, repeats kept (curate.mentions). truths: the
    objects in each picture. chair_s: captions with at least one hallucinated object / captions.
    chair_i: hallucinated mentions / mentions, pooled over all captions (nan when nothing is
    mentioned). recall: mean share of the picture's objects that its caption names. Raises
    ValueError if the lists differ in length or are empty. Source: arXiv 1809.02156,
    LisaAnne/Hallucination utils/chair.py.
    """
    if len(mentions) != len(truths) or not mentions:
        raise ValueError(
            f"chair: {len(mentions)} captions and {len(truths)} pictures: give one set of true"
            " objects per caption."
        )
    wrong = [
        [noun for noun in said if noun not in there]
        for said, there in zip(mentions, truths, strict=True)
    ]
    n_said = sum(map(len, mentions))
    found = [
        len(set(said) & set(there)) / len(set(there))
        for said, there in zip(mentions, truths, strict=True)
        if there
    ]
    return {
        "chair_s": sum(map(bool, wrong)) / len(wrong),
        "chair_i": sum(map(len, wrong)) / n_said if n_said else float("nan"),
        "recall": sum(found) / len(found) if found else float("nan"),
        "n": len(wrong),
    }


@torch.no_grad()
def span_nll(model: nn.Module, data: Captions, batch_size: int = 128) -> dict[str, float]:
    """Mean NLL in nats per forget, retain and sentence token (nan where a mask is empty)."""
    device, totals = (
        next(model.parameters()).device,
        {kind: torch.zeros(2).double() for kind in ("forget", "retain", "sentence")},
    )
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data[rows].to(device)
        nll = token_nll(model, batch)
        for kind, total in totals.items():
            mask = getattr(batch, kind)
            total += torch.stack([(nll * mask).sum(), mask.sum()]).double().cpu()
    return {kind: float(total / n) for kind, (total, n) in totals.items()}  # 0 / 0 is nan
