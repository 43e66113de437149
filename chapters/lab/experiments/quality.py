"""What else an erasure does to the text, beyond the hallucinations it removes: CHAIR, recall, POPE,
BLEU, diversity, perplexity.

Everything is measured on the held-out scenes, and CHAIR and recall also for each place: a run that
forgot nothing about beaches says there whether the erasure generalises or harms. A place's objects
stand in no other place, so places split the object categories too.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import torch
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torch import Tensor, nn

from sare_min.captions import encode
from sare_min.metrics import span_nll

from .. import files, jobs
from ..llava.speech import generate
from ..metrics import pope as counting
from ..metrics.chair import chair
from ..metrics.pope import says_no
from ..world import measured
from ..world.kit import Kit, get_kit, named
from ..world.scenes import OBJECTS, PLACES, Scene, caption, question
from .erasures import RUN_SOURCES, Run, erased

SOURCES = (*RUN_SOURCES, "chapters/lab/metrics/pope", "chapters/lab/experiments/quality")
jobs.remember(SOURCES)
POPE_KINDS = ("random", "popular", "adversarial")
PER_IMAGE = 2  # POPE asks for 3 shown objects; some scenes have only 2
TOKENIZER = Tokenizer13a()  # BLEU's own default, used for every count here


@dataclass(frozen=True)
class Quality:
    """What to measure: a run's erased model; Run(seed, "base") is the base model."""

    run: Run


def measure(spec: Quality) -> dict:
    """`quality` of a run's erased model, or what the cache holds of it."""
    path = jobs.folder("quality", spec, SOURCES, lambda path: _measure(path, spec))
    return json.loads((path / "quality.json").read_text())


def _measure(path: Path, spec: Quality) -> None:
    files.write_json(path / "quality.json", quality(erased(spec.run), get_kit(spec.run.seed)))


def quality(model: nn.Module, world: Kit) -> dict:
    """All of this file, on the model's greedy captions of the held-out scenes.

    The entries of chair and text_quality; "ppl_base", the base model's perplexity of these captions
    (is it still such text as the base model would write?); "ppl_true", the model's perplexity of
    the scenes' true captions (has it kept what it knew?); "pope", {kind: what pope returns};
    "places", what by_place returns.
    """
    captions, scenes = measured.describe(world, model), world.test_scenes
    true, shown = [caption(scene) for scene in scenes], [scene.objects for scene in scenes]
    asked = {kind: pope_questions(shown, OBJECTS, kind, seed=world.seed) for kind in POPE_KINDS}
    return {
        **chair([named(text) for text in captions], shown),
        **text_quality(captions, [[text] for text in true]),
        "ppl_base": perplexity(world.model, world.processor, world.test_features, captions),
        "ppl_true": perplexity(model, world.processor, world.test_features, true),
        "pope": {kind: pope(model, world, questions) for kind, questions in asked.items()},
        "places": by_place(captions, scenes),
    }


def by_place(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """{place: chair's entries} of the captions of that place's scenes; a place without a scene is
    left out.
    """
    if len(captions) != len(scenes):
        raise ValueError(
            f"by_place: {len(captions)} captions of {len(scenes)} scenes: give one caption per"
            " scene."
        )
    rows = {
        place: [i for i, scene in enumerate(scenes) if scene.place == place] for place in PLACES
    }
    said = [named(text) for text in captions]
    return {
        place: chair([said[i] for i in chosen], [scenes[i].objects for i in chosen])
        for place, chosen in rows.items()
        if chosen
    }


def pope_questions(
    objects_per_image: Sequence[Sequence[str]],
    vocabulary: Sequence[str],
    kind: str,
    n_per_image: int = PER_IMAGE,
    seed: int = 0,
) -> list[dict]:
    """POPE's questions, [{"question_id": from 1, "image": index, "text", "label": "yes" or "no"}],
    yes and no in turn.

    objects_per_image: what each image shows, in a fixed order; any nouns (COCO's instances, sorted,
    will do). vocabulary: what may be asked for. kind: which absent object follows each of an
    image's first `n_per_image` objects: "random", the "popular" one that most images show, or the
    "adversarial" one that most often stands beside the object just asked for; ties go to the object
    met first, and where no such object is left, chance decides. None is asked for twice about an
    image. Images that show fewer are left out. Raises ValueError naming the image if its objects
    have no order or are not in the vocabulary, or if the vocabulary runs out. Source: RUCAIBox/POPE
    main.py and utils.py (arXiv 2305.10355), which fix no seed and spell questions with "an"
    wrongly.
    """
    if kind not in POPE_KINDS:
        raise ValueError(f"kind={kind!r}: POPE's kinds are {', '.join(POPE_KINDS)}.")
    images = {
        i: _checked(i, objects, vocabulary, n_per_image)
        for i, objects in enumerate(objects_per_image)
    }
    images = {i: objects for i, objects in images.items() if len(objects) >= n_per_image}
    if not images:
        raise ValueError(
            f"none of {len(objects_per_image)} images shows {n_per_image} objects: lower"
            " n_per_image."
        )
    popular = Counter(noun for objects in images.values() for noun in objects)
    beside = {
        noun: Counter(other for objects in images.values() if noun in objects for other in objects)
        for noun in popular
    }
    rng, asked = random.Random(seed), []
    for image, objects in images.items():
        closed = set(objects)  # what no further "no" question may ask for
        for shown in objects[:n_per_image]:
            best = {"random": Counter(), "popular": popular, "adversarial": beside[shown]}[
                kind
            ].most_common()
            ranked = [noun for noun, _ in best if noun not in closed]
            absent = (
                ranked[0]
                if ranked
                else rng.choice([noun for noun in dict.fromkeys(vocabulary) if noun not in closed])
            )
            closed.add(absent)
            asked += [(image, shown, "yes"), (image, absent, "no")]
    return [
        {"question_id": number, "image": image, "text": question(noun), "label": label}
        for number, (image, noun, label) in enumerate(asked, 1)
    ]


def _checked(
    image: int, objects: Sequence[str], vocabulary: Sequence[str], n_per_image: int
) -> list[str]:
    """The image's objects, each once: two cups are no reason to ask for a cup twice."""
    if isinstance(objects, (set, frozenset)):
        raise ValueError(
            f"image {image}: its objects are a set, whose order changes from run to run: give a"
            " list, for instance sorted."
        )
    if unknown := [noun for noun in objects if noun not in vocabulary]:
        raise ValueError(
            f"image {image} shows {unknown[0]!r}, which is not in the vocabulary: add it, or drop"
            " it from the image."
        )
    n_absent = len(set(vocabulary) - set(objects))
    if n_absent < n_per_image <= len(set(objects)):
        raise ValueError(
            f"image {image}: {n_per_image} absent objects are to be asked for, but the vocabulary"
            f" has only {n_absent} that it does not show: enlarge the vocabulary or lower"
            " n_per_image."
        )
    return list(dict.fromkeys(objects))


def pope(model: nn.Module, world: Kit, questions: Sequence[dict]) -> dict[str, float | None]:
    """The model's answers to pope_questions about the held-out scenes, scored as POPE does:
    accuracy, precision, recall, f1, yes_ratio, n.

    Yes is positive; a ratio without a base is None. The official parser takes all that is no "no"
    for a yes, so "neither" adds the share of answers whose first word is neither: where it is high,
    the other numbers speak of a model that no longer answers.
    """
    features = world.test_features[torch.tensor([row["image"] for row in questions])]
    answers = generate(
        model, world.processor, features, [row["text"] for row in questions], max_new_tokens=2
    )
    said_yes = [not says_no(answer) for answer in answers]
    neither = sum(answer.lower().split()[:1] not in (["yes"], ["no"]) for answer in answers)
    counts = {"n": len(answers), "neither": neither / len(answers)}
    return counting.pope(said_yes, [row["label"] == "yes" for row in questions]) | counts


def text_quality(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Length, BLEU and diversity of n captions; a token is a lower-case word or a punctuation mark,
    cut as BLEU's default cuts them.

    references: each picture's true captions, one or more. length: words a caption, punctuation not
    counted. bleu: corpus BLEU-4 of sacrebleu, 0..100. Against one true caption whose objects stand
    in reading order, it tells how far the text is, word for word, what should have been said: an
    invented object costs precision, a missed one brevity, a changed order the longer n-grams.
    distinct_1, distinct_2: different tokens, or pairs of neighbours, / all of them, pooled over the
    captions (arXiv 1510.03055; nan if there are none). They fall as n grows: compare equal n.
    Raises ValueError if there is no caption, or a caption without a reference.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"text_quality: {len(captions)} captions, references for {sum(map(bool, references))}:"
            " give each one or more."
        )
    split = [TOKENIZER(text.lower()).split() for text in captions]
    words = sum(any(map(str.isalnum, token)) for row in split for token in row)
    grams = {
        1: [token for row in split for token in row],
        2: [pair for row in split for pair in pairwise(row)],
    }
    # Sacrebleu wants all first references, then all second ones, None where there is none
    streams = list(zip_longest(*references))
    return {
        "length": words / len(captions),
        "bleu": BLEU(lowercase=True).corpus_score(list(captions), streams).score,
        **{
            f"distinct_{n}": len(set(found)) / len(found) if found else math.nan
            for n, found in grams.items()
        },
    }


def perplexity(model: nn.Module, processor, features: Tensor, captions: Sequence[str]) -> float:
    """exp of the mean NLL (nats) of the captions' tokens and their EOS under the model, pooled over
    all captions.

    features: (n, N, D) of the captions' pictures. Empty captions have no token and are left out;
    nan if all are empty.
    """
    spans = [{"sentence": [(0, len(text))]} if text else {} for text in captions]
    return math.exp(span_nll(model, encode(processor, features, captions, spans))["sentence"])
