"""Curation: cut captions into sub-sentences, let CLIP say which of their objects are in the
picture, and mark what to forget.

EFUF's rule (arXiv 2402.09801, section 3), which SARE takes over: a sub-sentence is *forget* if one
of its objects has S(o) < T1, and *retain* if all have S(o) > T0; a caption whose mean score is
above T2 and that has nothing to forget is kept whole (*sentence*).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..metrics.chair import Span


@dataclass(frozen=True)
class Thresholds:
    """CLIP scores (logits_per_image: the cosine times CLIP's learnt scale). EFUF's values for its
    sliding-window scores: 23, 32, 27.5.
    """

    forget_below: float
    retain_above: float
    sentence_above: float


def sub_sentences(caption: str) -> list[Span]:
    """(start, end) of each clause with the separator that leads it in: "a cup, a fork." -> "a cup",
    ", a fork", ".".

    The separator belongs to the clause it opens: else the model learns to open a clause and stall.
    One between two digits separates nothing: "a 3.5 m boat at 10:30".
    """
    separators = re.finditer(r"(?<!\d)[,.;!?:]|[,.;!?:](?!\d)", caption)
    cuts = [0, *(m.start() for m in separators if m.start()), len(caption)]
    return [(start, end) for start, end in zip(cuts, cuts[1:]) if start < end]


@torch.no_grad()
def clip_scores(
    clip,
    image_processor,
    tokenizer,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """CLIP's logits of each image with each text, (n images, n texts); whole image, no window."""
    tokens, rows = (
        tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False).to(
            clip.device
        ),
        [],
    )
    for start in tqdm(range(0, len(images), batch_size), desc="CLIP scores", disable=not progress):
        pixels = image_processor(list(images[start : start + batch_size]), return_tensors="pt")[
            "pixel_values"
        ].to(clip.device)
        rows.append(clip(**tokens, pixel_values=pixels).logits_per_image.cpu())
    return torch.cat(rows)


def curate(
    captions: Sequence[str],
    scores: Sequence[Mapping[str, float]],
    find: Callable[[str], list[tuple[str, Span]]],
    thresholds: Thresholds,
) -> list[dict[str, list[Span]]]:
    """The spans of each caption to forget, to retain, and (whole) to keep as a sentence; what lies
    between the thresholds is left out.

    scores: per caption, object -> S(o) with its picture. find: the objects that a caption names,
    with their places (Convention.find); a mention belongs to the clause in which it starts. Raises
    ValueError naming the row of a caption that mentions no known object.
    """
    curated = []
    for row, (caption, score) in enumerate(zip(captions, scores, strict=True)):
        found = find(caption)
        if not found:
            raise ValueError(
                f"caption {row} names no known object: {caption!r}. Drop it, or add its words to"
                " the synonyms."
            )
        nouns = [noun for noun, _ in found]
        if bad := [noun for noun in nouns if not math.isfinite(score.get(noun, math.nan))]:
            raise ValueError(
                f"caption {row} names {bad[0]!r}, which has no CLIP score: score every object of"
                " the synonyms."
            )
        spans: dict[str, list[Span]] = {"forget": [], "retain": [], "sentence": []}
        for start, end in sub_sentences(caption):
            inside = [score[noun] for noun, (at, _) in found if start <= at < end]
            if inside and min(inside) < thresholds.forget_below:
                spans["forget"].append((start, end))
            elif inside and min(inside) > thresholds.retain_above:
                spans["retain"].append((start, end))
        if (
            not spans["forget"]
            and sum(score[noun] for noun, _ in found) / len(found) > thresholds.sentence_above
        ):
            spans["sentence"].append((0, len(caption)))
        curated.append(spans)
    return curated
