"""Curation and CHAIR by cases a reader can check by hand."""

import math

import pytest
import torch

from lab.metrics.chair import chair, exact
from lab.world.curate import Thresholds, clip_scores, curate, sub_sentences
from lab.world.models import build_clip, build_tokenizer, image_processor
from lab.world.scenes import draw

RULES = exact(["cup", "fork", "car"])


def clauses(text):
    return [text[a:b] for a, b in sub_sentences(text)]


def test_sub_sentences_start_at_their_separator():
    """Fails if a separator stays with the clause before it: the model would learn to open a clause
    and stall.
    """
    text = "a kitchen with a cup, a fork; a car."
    assert clauses(text) == [
        "a kitchen with a cup",
        ", a fork",
        "; a car",
        ".",
    ]
    assert sub_sentences("") == [] and sub_sentences(", a") == [(0, 3)]


def test_a_number_is_not_cut():
    """Fails if a decimal point, a thousands' comma or a time of day ends a clause, or if a full
    stop after a number does not.
    """
    text = "1,000 birds by a 3.5 m boat at 10:30, 4 dogs. 2 cups, 3."
    assert clauses(text) == [
        "1,000 birds by a 3.5 m boat at 10:30",
        ", 4 dogs",
        ". 2 cups",
        ", 3",
        ".",
    ]


@pytest.mark.parametrize(
    "text, found",
    [
        ("A Cup and a cup", ["cup", "cup"]),
        ("two cups on a carpet", []),  # whole words: "car" is not in "carpet"
        ("a car-fork,cup", ["car", "fork", "cup"]),
    ],
)
def test_the_exact_convention_names_whole_words(text, found):
    """Fails on substrings, on repeats, on words that punctuation joins."""
    assert RULES.mentions(text) == found
    assert [text[a:b].lower() for _, (a, b) in RULES.find(text)] == found


def test_curation_by_hand():
    """Fails if a threshold is compared the wrong way round, or a clean sentence is lost."""
    text, thresholds = "a kitchen with a cup, a fork, a car.", Thresholds(10, 20, 25)
    spans = curate([text], [{"cup": 30.0, "fork": 15.0, "car": 5.0}], RULES.find, thresholds)[0]
    assert [text[a:b] for a, b in spans["forget"]] == [", a car"]
    # The fork lies between: left out
    assert [text[a:b] for a, b in spans["retain"]] == ["a kitchen with a cup"]
    assert spans["sentence"] == []
    clean = curate([text], [{"cup": 30.0, "fork": 26.0, "car": 28.0}], RULES.find, thresholds)[0]
    assert clean["sentence"] == [(0, len(text))] and not clean["forget"]


def test_a_sub_sentence_of_two_objects():
    """Fails if min and max are mixed up: one bad object is enough to forget, all must be good to
    retain.
    """
    text, thresholds = "a room, a cup and a fork.", Thresholds(10, 20, 25)
    forget, neither, retain = (
        curate([text], [{"cup": 30.0, "fork": s}], RULES.find, thresholds)[0]
        for s in (5.0, 15.0, 21.0)
    )
    assert forget["forget"] and not forget["retain"]
    assert not neither["forget"] and not neither["retain"]
    assert retain["retain"] and not retain["forget"]


def test_an_unscored_object_is_named():
    with pytest.raises(ValueError, match="caption 0 names 'fork', which has no CLIP score"):
        curate(["a fork"], [{"cup": 1.0}], RULES.find, Thresholds(0, 1, 1))


def test_a_caption_without_known_object_is_named():
    with pytest.raises(ValueError, match="caption 1 names no known object: 'a dream'"):
        curate(["a cup", "a dream"], [{"cup": 1.0}, {}], RULES.find, Thresholds(0, 1, 1))


@pytest.mark.parametrize(
    "said, there, expected",
    [
        ([["cup", "fork"]], [{"cup"}], (1.0, 0.5, 1.0)),
        (
            [["cup"], ["fork", "fork", "cup"]],
            [{"cup"}, {"cup", "car"}],
            (0.5, 0.5, 0.75),
        ),  # mentions are pooled, repeats counted
        (
            [[]],
            [{"cup"}],
            (0.0, math.nan, 0.0),
        ),  # nothing said: no hallucinated caption, no share of mentions
    ],
)
def test_chair_by_hand(said, there, expected):
    """Fails if CHAIR_i is a mean of per-caption ratios, or an empty caption divides by zero."""
    score = chair(said, there)
    assert [score[k] for k in ("chair_s", "chair_i", "recall")] == pytest.approx(
        list(expected), nan_ok=True
    )


def test_chair_needs_one_truth_per_caption():
    with pytest.raises(ValueError, match="2 captions and 1 pictures"):
        chair([[], []], [set()])


def test_clip_scores_are_clips_own(scenes):
    """Fails if batching or text order mixes rows or columns: the reference is one image and one
    text at a time.
    """
    torch.manual_seed(0)
    clip, tokenizer, processor = (
        build_clip().eval(),
        build_tokenizer(for_clip=True),
        image_processor(),
    )
    images, texts = (
        [draw(s) for s in scenes[:3]],
        ["A photo containing a fork.", "A photo containing an umbrella and a cup."],
    )
    table = clip_scores(clip, processor, tokenizer, images, texts, batch_size=2)
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            pixels = processor(image, return_tensors="pt")["pixel_values"]
            one = clip(
                **tokenizer([text], return_tensors="pt"), pixel_values=pixels
            ).logits_per_image
            assert float(table[i, j]) == pytest.approx(one.item(), abs=1e-4)
