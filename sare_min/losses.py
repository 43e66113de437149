"""Losses on the tokens of one forward: erasure (EFUF, SARE), NPO; and their weighted sums for one
method.

A caption is one row and its sub-sentences are masks over the same tokens (*packing*). In a causal
model the NLL of a token does not depend on what follows, so this equals one row per sub-sentence,
without repeating the image tokens for each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .captions import Captions, token_nll
from .sam import targeted_sam


def erasure(nll: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
    """-NLL summed over each row's forget tokens, (B,): gradient ascent on the hallucination;
    unbounded below.

    nll: (B, T) nats. mask: (B, T) bool. Source: EFUF (arXiv 2402.09801), its negative term; SARE's
    L_neg.
    """
    return -(nll * mask).sum(1)


def npo(nll: Tensor, mask: Tensor, reference: Tensor | None, beta: float = 0.1) -> Tensor:
    """-(2 / beta) log sigmoid(beta * (NLL - NLL_ref)) of each row's forget tokens taken as one
    sequence, (B,).

    reference: (B,) summed NLL under the base model. Source: NPO (arXiv 2404.05868, eq. 3);
    open-unlearning's per-sequence sum.
    """
    if reference is None:
        raise ValueError("NPO compares with the base model: give a reference, by with_reference.")
    return -(2 / beta) * F.logsigmoid(beta * ((nll * mask).sum(1) - reference))


def simnpo(nll: Tensor, mask: Tensor, reference: Tensor | None = None, beta: float = 4.5) -> Tensor:
    """-(2 / beta) log sigmoid(beta * NLL / number of forget tokens), (B,): NPO by the token,
    without a reference.

    Source: SimNPO (arXiv 2410.07163); open-unlearning's simnpo.py, delta 0.
    """
    return -(2 / beta) * F.logsigmoid(beta * (nll * mask).sum(1) / mask.sum(1).clamp_min(1))


@dataclass(frozen=True)
class Method:
    """One row of METHODS. A loss is minimised: L = lambda_neg * L_neg + lambda_pos * L_pos +
    lambda_sent * L_sent.
    """

    forget_loss: Callable[..., Tensor] = erasure  # (nll, mask, reference) -> one term a row
    per: str = "token"  # L_neg is a mean per forget "token" or per "row" that has some
    # Ours; EFUF's released 0.3 soon breaks the grammar of a model this small.
    lambda_neg: float = 0.1
    lambda_pos: float = 1.0
    lambda_sent: float = 1.0
    rho: float = 0.0  # L2 length of the ascent step, in weight units
    # Whose loss the ascent step raises: ("neg",) is Targeted-SAM, all three are SAM.
    perturb: tuple[str, ...] = ("neg",)
    # How the two losses become one gradient; controls and approximations bring their own.
    step: Callable[..., float] = targeted_sam
    # Share of the run done -> settings that change on the way.
    schedule: Callable[[float], dict] | None = None


def counts(batch: Captions, per: str) -> dict[str, int]:
    """What a loss is a mean over in the whole batch; ValueError if there is nothing to forget."""
    n_forget = int((batch.forget if per == "token" else batch.forget.any(1)).sum())
    if not n_forget:
        raise ValueError(f"no forget token in a batch of {len(batch)}: raise the forget threshold.")
    kept = {"pos": batch.retain, "sent": batch.sentence}
    return {"neg": n_forget} | {name: max(1, int(mask.sum())) for name, mask in kept.items()}


def method_losses(
    model: nn.Module, batch: Captions, method: Method, n: dict[str, int]
) -> dict[str, Tensor]:
    """This micro-batch's share of each mean: scalars "neg", "pos", "sent", not yet weighted; one
    whose mask is empty is left out.
    """
    nll = token_nll(model, batch)
    kept = {"pos": batch.retain, "sent": batch.sentence}
    found = {name: (nll * mask).sum() / n[name] for name, mask in kept.items() if mask.any()}
    if batch.forget.any():
        found["neg"] = method.forget_loss(nll, batch.forget, batch.reference).sum() / n["neg"]
    return found
