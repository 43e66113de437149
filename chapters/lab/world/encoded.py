"""A seed's captions encoded: what erasures train on and stop by, what attacks and tests use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sare_min.captions import Captions, encode

from ..metrics.chair import Span
from .kit import Kit

# Captions of the attack scenes that say when an erasure stops.
N_STOP = 64


def rows(
    kit: Kit,
    split: str,
    chosen: Sequence[int],
    spans: Sequence[dict[str, list[Span]]] | None = None,
) -> Captions:
    """Some of the split's sampled captions; spans: of all its captions, or None: each whole."""
    return encode(
        kit.processor,
        kit.features[split],
        [kit.said[split][i] for i in chosen],
        spans and [spans[i] for i in chosen],
        image=chosen,
    )


def masked(kit: Kit, split: str, masks: str = "oracle") -> Captions:
    """The split's sampled captions with masks by "oracle" or (erasure captions) by "clip"."""
    return rows(kit, split, range(len(kit.said[split])), kit.spans(split, masks))


@lru_cache(maxsize=8)
def test(kit: Kit) -> Captions:
    """The held-out captions with the oracle's masks."""
    return masked(kit, "test")


@lru_cache(maxsize=8)
def attack_rows(kit: Kit) -> dict[str, list[int]]:
    """Captions of scenes that no erasure saw: "stop" and "hallucinated" hold an object that is not
    there, "clean" none.

    "stop": N_STOP of them, kept from the attacker and CHAIR; they say when to stop erasing, and
    the gauges of flatness use them.
    """
    spans = kit.spans("attack")
    wrong = [i for i, kinds in enumerate(spans) if kinds["forget"]]
    return {
        "stop": wrong[:N_STOP],
        "hallucinated": wrong[N_STOP:],
        "clean": [i for i, kinds in enumerate(spans) if kinds["sentence"]],
    }


@lru_cache(maxsize=8)
def stop(kit: Kit) -> Captions:
    """The captions that say when an erasure stops."""
    return rows(kit, "attack", attack_rows(kit)["stop"], kit.spans("attack"))


@lru_cache(maxsize=8)
def attack(kit: Kit) -> Captions:
    """The attacker's hallucinated captions, whole: what he fine-tunes on."""
    return rows(kit, "attack", attack_rows(kit)["hallucinated"])
