"""Chapter 00: counting inventions, what decoding hides, and the NLL of words from logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..metrics.chair import chair
from .verdict import NotYet, compare, exercise, filled, number

SAID = (("cup", "fork"), ("cup", "bowl", "bowl"))
SHOWN = ({"cup", "fork"}, {"cup", "fork"})  # what the two pictures show
GOES_ON = 0.4  # the probability of the comma that leads an invented object in


@exercise
def chair_by_hand(my_chair_s: float | None, my_chair_i: float | None) -> str:
    """CHAIR_s and CHAIR_i of SAID against SHOWN, as shares from 0 to 1."""
    filled(my_chair_s=my_chair_s, my_chair_i=my_chair_i)
    right = chair(SAID, SHOWN)
    s, i = right["chair_s"], right["chair_i"]
    mistakes = {
        "my_chair_s is CHAIR_i, the share of mentions. CHAIR_s is a share of captions.": i,
        "CHAIR_s counts a caption once, however many inventions it holds.": 1.0,
        "CHAIR_s is a share from 0 to 1, not a percentage.": 100 * s,
    }
    compare("my_chair_s", my_chair_s, s, mistakes, "CHAIR_s: in how many of all captions is one?")
    mistakes = {
        "CHAIR_s is right. my_chair_i is CHAIR_s again: count mentions, not captions.": s,
        "CHAIR_s is right. CHAIR_i counts every mention: the bowl is named twice.": 1 / 4,
        "CHAIR_s is right. CHAIR_i pools the mentions of all captions before it divides; yours is"
        " a mean of shares.": 1 / 3,
        "CHAIR_s is right. Divide by the mentions, not by the captions.": 1.0,
        "CHAIR_s is right. CHAIR_i is a share from 0 to 1, not a percentage.": 100 * i,
    }
    otherwise = "CHAIR_s is right. CHAIR_i: invented mentions, divided by all mentions."
    compare("my_chair_i", my_chair_i, i, mistakes, otherwise)
    return "a caption counts once in CHAIR_s, and each of its mentions in CHAIR_i."


@exercise
def greedy_and_sampled(my_greedy: float | None, my_sampled: float | None) -> str:
    """CHAIR_s of a model that goes on to an invented object with probability GOES_ON."""
    filled(my_greedy=my_greedy, my_sampled=my_sampled)
    mistakes = {
        "my_greedy is the share itself. Greedy decoding does not draw: what does it do every time,"
        " when the comma has 0.4 and the full stop 0.6?": GOES_ON,
        "my_greedy would be so if the comma were the likelier of the two.": 1.0,
        "my_greedy is the full stop's probability; greedy decoding does not draw.": 1 - GOES_ON,
    }
    otherwise = "my_greedy: every picture gives the same two probabilities, so every caption ends"
    compare("my_greedy", my_greedy, 0.0, mistakes, f"{otherwise} in the same way.")
    mistakes = {
        "my_greedy is right. my_sampled is the share of captions that stop in time.": 1 - GOES_ON,
        "my_greedy is right. Sampling does take the less likely branch, now and then.": 0.0,
    }
    otherwise = "my_greedy is right. my_sampled: sampling draws the comma as often as it is likely."
    compare("my_sampled", my_sampled, GOES_ON, mistakes, otherwise)
    return "greedy captions can look clean while four sampled ones in ten invent something."


@exercise
def probability(my_probability: float | None) -> str:
    """How likely a token is whose NLL is 2 nats."""
    filled(my_probability=my_probability)
    mistakes = {
        "that is for 2 bits. A nat is the unit of the natural logarithm.": 2**-2.0,
        "that is for the logarithm to base 10. Nats use the natural logarithm.": 10**-2.0,
        "a probability is at most 1. NLL is *minus* the logarithm.": math.exp(2),
        "that is the logarithm of 2; the other way round is asked for.": math.log(2),
    }
    otherwise = "NLL = -log p, so p is ... of minus the NLL."
    compare("my_probability", my_probability, math.exp(-2), mistakes, otherwise)
    return "each nat more makes a token e times less likely; 2 nats are about one in seven."


def _toy_row() -> tuple[Tensor, Tensor, Tensor]:
    """logits (T, V), token ids (T,), and a mask (T,) that marks some tokens in the middle."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 5, generator=generator)
    ids = torch.tensor([0, 3, 1, 4, 2, 4, 1])
    return logits, ids, torch.tensor([0, 0, 0, 1, 1, 0, 0]).bool()


def _misread(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
    """(the mean NLL of the marked tokens, {hint: what a mistake makes of it})."""
    logp, places = torch.log_softmax(logits, 1), mask.nonzero()[:, 0]

    def mean(at: Tensor, said: Tensor) -> float:
        return float(-logp[at, ids[said]].mean())

    right, everywhere = mean(places - 1, places), torch.arange(1, len(ids))
    return right, {
        "off by one: logits[t] say what comes *after* token t, so they do not judge token t"
        " itself.": mean(places, places),
        "shifted the wrong way: you judge token t by the logits of t + 1, which have read it"
        " already.": mean(places + 1, places),
        "logits and ids are shifted, the mask is not: you score the neighbours of the marked"
        " tokens.": mean(places, places + 1),
        "that is the sum over the marked tokens, and the mean is asked for.": right * len(places),
        "that is the mean over all tokens: use the mask.": mean(everywhere - 1, everywhere),
        "the sign is turned round: NLL is *minus* the log-likelihood.": -right,
        "that is a likelihood, without a logarithm.": float(
            logp[places - 1, ids[places]].exp().mean()
        ),
        "these logits are no log-probabilities yet: they need a log_softmax.": float(
            -logits[places - 1, ids[places]].mean()
        ),
    }


@exercise
def span_nll(my_nll: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """my_nll(logits (T, V), ids (T,), mask (T,) bool): the mean NLL in nats of marked tokens."""
    row = _toy_row()
    found = my_nll(*(tensor.clone() for tensor in row))
    if found is None:
        raise NotYet("my_nll returns nothing yet.")
    if isinstance(found, Tensor) and found.numel() != 1:
        raise NotYet(f"my_nll returns {found.numel()} numbers: one mean is asked for.")
    if not math.isfinite(number("what my_nll returns", found)):
        raise NotYet(f"my_nll returns {float(found)}.")
    right, mistakes = _misread(*row)
    otherwise = "it returns another number. Which row of logits predicts token t?"
    compare("what my_nll returns", found, right, mistakes, otherwise, within=1e-4)
    return "the logits at t - 1 predict token t; that shift by one is in every language model."
