"""What a model says and how likely it finds what it should have forgotten: functions of (model,
processor, data) for any LLaVA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sare_min.captions import Captions, encode
from sare_min.metrics import span_nll

from ..field.photos import ANSWER_TOKENS
from ..llava.speech import generate
from ..metrics.chair import Convention, chair
from ..metrics.pope import pope, says_neither, says_no
from ..world.curate import Thresholds, curate
from .settings import BATCH

ORACLE = Thresholds(0.5, 0.5, 0.99)  # annotations as scores: 1 for what is shown, 0 for the rest


def rows_that_fit(model: nn.Module) -> int:
    """Rows in one forward: 64 of a small model, 4 at 7B. Estimated, as in chapter 05."""
    n_weights = sum(p.numel() for p in model.parameters())
    return max(2, min(64, int(3e10 / n_weights)))


def number(value: float) -> float | None:
    """None for nan and infinity, which JSON does not have: a ratio without a base, a likelihood of
    zero.
    """
    return value if math.isfinite(value) else None


def scored(
    texts: Sequence[str], truth: Sequence[set[str]], rules: Convention
) -> dict[str, float | None]:
    """CHAIR and recall (shares) of a caption an image, and what tells a model that fell silent:
    words a caption and the share of captions that name no object.
    """
    mentions = [rules.mentions(text) for text in texts]
    found = {key: number(value) for key, value in chair(mentions, truth).items()}
    found["words"] = sum(len(text.split()) for text in texts) / len(texts)
    return found | {"objectless": sum(not named for named in mentions) / len(texts)}


def described(
    model: nn.Module,
    processor,
    features: Tensor,
    truth: Sequence[set[str]],
    rules: Convention,
    prefix: str | Sequence[str] = "",
    **how,
) -> dict[str, float | None]:
    """`scored` of greedy captions; words put into the model's mouth (prefix) count as its own.

    features: (n, N, D) of embed_images. how: generate's max_new_tokens, batch_size.
    """
    said = generate(model, processor, features, prefix=prefix, **how)
    starts = [prefix] * len(said) if isinstance(prefix, str) else prefix
    return scored(
        [f"{start} {text}" for start, text in zip(starts, said, strict=True)], truth, rules
    )


def answered(
    model: nn.Module,
    processor,
    features: Tensor,
    asked: Mapping[str, tuple[list[dict], list[int]]],
    batch_size: int = 64,
) -> dict[str, float]:
    """POPE by its official parser: the accuracy of each kind, all kinds' share of "yes" and of
    answers that are neither yes nor no (which that parser takes for a yes).

    asked: kind -> (questions, each one's row of `features`).
    """
    found, n, n_yes, n_neither = {}, 0, 0.0, 0
    for kind, (questions, at) in asked.items():
        said = []
        for start in range(0, len(questions), batch_size):  # a copy of the features each
            rows = slice(start, start + batch_size)
            texts = [question["text"] for question in questions[rows]]
            how = {"max_new_tokens": ANSWER_TOKENS, "batch_size": batch_size}
            said += generate(model, processor, features[at[rows]], texts, **how)
        truth = [question["label"] == "yes" for question in questions]
        score = pope([not says_no(answer) for answer in said], truth)
        found[f"POPE {kind}"] = score["accuracy"]
        n, n_yes = n + len(said), n_yes + score["yes_ratio"] * len(said)
        n_neither += sum(map(says_neither, said))
    return found | {"yes": n_yes / n, "neither": n_neither / n}


def levels(model: nn.Module, data: Captions, batch_size: int = 64) -> dict[str, float | None]:
    """The forget level and the NLL of what is kept (nats a token) on captions with masks."""
    found = span_nll(model, data, batch_size)
    return {f"nll_{kind}": number(found[kind]) for kind in ("forget", "retain")}


def judged(
    said: Sequence[str], truth: Sequence[set[str]], rules: Convention
) -> tuple[list[int], list[dict]]:
    """(rows, spans) of the captions that hallucinate: their sub-sentences to forget and to retain,
    by the annotations.
    """
    named = [row for row, text in enumerate(said) if rules.find(text)]
    scores = [{noun: float(noun in truth[row]) for noun in {*rules.node.values()}} for row in named]
    spans = curate([said[row] for row in named], scores, rules.find, ORACLE)
    wrong = [(row, kinds) for row, kinds in zip(named, spans, strict=True) if kinds["forget"]]
    return [row for row, _ in wrong], [kinds for _, kinds in wrong]


def attackers(
    processor,
    features: Tensor,
    said: Sequence[str],
    truth: Sequence[set[str]],
    rules: Convention,
    n_level: int = 32,
) -> tuple[Captions, Captions]:
    """(captions with masks that measure the forget level, whole captions that the attacker trains
    on): those of `said` that hallucinate, the first n_level for the level.

    features: of all images of `said`, in order. Raises ValueError if too few captions hallucinate
    for one step of the attack.
    """
    rows, spans = judged(said, truth, rules)
    if len(rows) < n_level + BATCH:
        raise ValueError(
            f"{len(rows)} of {len(said)} captions of the base model hallucinate, and"
            f" {n_level + BATCH} are needed: give more training images (--train-images)."
        )
    parts = [(rows[:n_level], spans[:n_level]), (rows[n_level:], None)]
    level, attack = (
        encode(processor, features, [said[row] for row in chosen], marks, image=chosen)
        for chosen, marks in parts
    )
    return level, attack
