"""How likely a model finds what was marked: the NLL of spans."""

import torch
from torch import nn

from .captions import Captions, token_nll


@torch.no_grad()
def span_nll(model: nn.Module, data: Captions, batch_size: int = 128) -> dict[str, float]:
    """Mean NLL in nats per forget, retain and sentence token (nan where a mask is empty)."""
    device = next(model.parameters()).device
    totals = {kind: torch.zeros(2).double() for kind in ("forget", "retain", "sentence")}
    for part in data.split(batch_size):
        batch = part.to(device)
        nll = token_nll(model, batch)
        for kind, total in totals.items():
            mask = getattr(batch, kind)
            total += torch.stack([(nll * mask).sum(), mask.sum()]).double().cpu()
    return {kind: float(total / n) for kind, (total, n) in totals.items()}  # 0 / 0 is nan
