"""POPE's questions, BLEU, diversity and perplexity, against cases worked by hand and references
from elsewhere.
"""

import math
import random
from collections import Counter

import pytest
import torch
from conftest import tiny_llava

from lab.experiments.quality import (
    POPE_KINDS,
    by_place,
    perplexity,
    pope,
    pope_questions,
    quality,
    text_quality,
)
from lab.world.kit import Kit
from lab.world.models import fit
from lab.world.scenes import OBJECTS, PLACES, Scene, caption, draw, split_scenes
from sare_min.captions import encode, sentence_nll
from sare_min.llava import embed_images, trainable

IMAGES = [["cup", "fork"], ["fork", "bowl"], ["car"], ["fork", "cup", "car"]]
VOCABULARY = ["fork", "cup", "bowl", "car", "umbrella"]


def nouns(questions):
    """(image, noun, label) of each question."""
    return [
        (q["image"], q["text"].removesuffix(" in the image?").split()[-1], q["label"])
        for q in questions
    ]


@pytest.mark.parametrize(
    "kind, absent",
    [
        # Of the three images with two objects: fork in 3, cup in 2, bowl and car in 1 each, bowl
        # first. The last cup finds all of them used.
        ("popular", ["bowl", "car", "cup", "car", "bowl", "umbrella"]),
        # Beside a cup: fork twice, car once. Beside a fork: cup twice, bowl, car. Beside a bowl:
        # only the fork, so chance decides.
        ("adversarial", ["car", "bowl", "cup", ("car", "umbrella"), "bowl", "umbrella"]),
    ],
)
def test_pope_by_hand(kind, absent):
    """Fails if candidates are ranked otherwise, ties broken otherwise, an object asked for twice,
    or the image with one object counted.
    """
    found = nouns(pope_questions(IMAGES, VOCABULARY, kind, n_per_image=2, seed=0))
    shown = [(0, "cup"), (0, "fork"), (1, "fork"), (1, "bowl"), (3, "fork"), (3, "cup")]
    assert [row for row in found if row[2] == "yes"] == [(*row, "yes") for row in shown]
    assert [row[2] for row in found] == ["yes", "no"] * 6
    assert [row[0] for row in found[1::2]] == [image for image, _ in shown]
    assert all(
        noun in expected if isinstance(expected, tuple) else noun == expected
        for (_, noun, _), expected in zip(found[1::2], absent, strict=True)
    )
    assert pope_questions(IMAGES, VOCABULARY, kind, 2, 0)[-1] == {
        "question_id": 12,
        "image": 3,
        "text": "Is there an umbrella in the image?",
        "label": "no",
    }


def test_random_negatives_are_uniform_and_follow_the_seed():
    """Fails if frequent objects are drawn more often, or if chance comes from elsewhere than the
    seed.
    """
    images = [["cup", "fork"], *[["cup", "bowl"]] * 899]
    drawn = Counter(
        noun
        for _, noun, label in nouns(pope_questions(images, VOCABULARY, "random", 1, 0))
        if label == "no"
    )
    assert set(drawn) <= {"fork", "car", "umbrella", "bowl"} and all(
        240 < drawn[noun] < 360 for noun in ("fork", "car", "umbrella")
    )
    random.seed(1)
    one, again, other = (
        pope_questions(images, VOCABULARY, "random", 1, seed) for seed in (5, 5, 6)
    )
    assert one == again != other


@pytest.mark.parametrize("kind", POPE_KINDS)
def test_pope_of_the_microworld(kind):
    """Fails if a label is not the truth, an object is asked for twice, or the kinds do not differ
    in what they are for.
    """
    scenes = split_scenes(0, some=100)["some"]
    found = pope_questions([scene.objects for scene in scenes], OBJECTS, kind)
    assert [q["question_id"] for q in found] == list(range(1, 401))
    assert max(Counter(row[:2] for row in nouns(found)).values()) == 1
    assert all(
        (noun in scenes[image].objects) == (label == "yes") for image, noun, label in nouns(found)
    )
    usual = [
        noun in PLACES[scenes[image].place] for image, noun, label in nouns(found) if label == "no"
    ]
    assert all(usual) if kind == "adversarial" else sum(usual) < 80


@pytest.mark.parametrize(
    "images, vocabulary, kind, message",
    [
        (
            [["cup", "fork"]],
            ["cup", "fork", "car"],
            "popular",
            "image 0: 2 absent objects are to be asked for, but the vocabulary has only 1",
        ),
        (
            [["cup", "fork"], ["cup", "dog"]],
            VOCABULARY,
            "random",
            "image 1 shows 'dog', which is not in the vocabulary",
        ),
        ([{"cup", "fork"}], VOCABULARY, "random", "image 0: its objects are a set"),
        ([["cup"], ["car", "car"]], VOCABULARY, "random", "none of 2 images shows 2 objects"),
        (IMAGES, VOCABULARY, "hard", "kind='hard': POPE's kinds are random, popular, adversarial"),
    ],
)
def test_pope_says_what_it_cannot_ask(images, vocabulary, kind, message):
    with pytest.raises(ValueError, match=message):
        pope_questions(images, vocabulary, kind, 2, 0)


def test_text_quality_by_hand():
    """Fails if characters are counted, if pairs reach across captions, or if upper case makes
    another word.
    """
    found = text_quality(["a cup, a cup.", "A fork."], [["a cup, a cup."], ["a fork."]])
    assert found == pytest.approx(
        {"length": 3, "bleu": 100, "distinct_1": 5 / 9, "distinct_2": 6 / 7}
    )
    empty = text_quality(["", ""], [["a cup."], ["a fork."]])
    assert (
        empty["length"] == empty["bleu"] == 0
        and math.isnan(empty["distinct_1"])
        and math.isnan(empty["distinct_2"])
    )
    for captions, references in (([], []), (["a cup."], []), (["a cup."], [[]])):
        with pytest.raises(ValueError, match="give each one or more"):
            text_quality(captions, references)


def test_bleu_by_hand():
    """Fails if BLEU is not over tokens, or if references are paired with the wrong captions: one
    has two, the other one.
    """
    said, true = "a kitchen with a cup, a bowl, a fork.", "a kitchen with a cup, a bowl."
    # Of 1- to 4-grams: "a" counts 3 times and "," once, as in the true caption
    precisions = 9 / 12 * 7 / 11 * 6 / 10 * 5 / 9
    assert text_quality([said], [[true]])["bleu"] == pytest.approx(100 * precisions**0.25)
    office = "an office with a book."
    assert text_quality([true, office], [[said, true], [office]])["bleu"] == pytest.approx(100)
    # Nothing wrong but too short: 5 tokens for 9
    cut = text_quality(["a kitchen with a cup"], [[true]])["bleu"]
    assert cut == pytest.approx(100 * math.exp(1 - 9 / 5))


def test_a_uniform_model_has_the_vocabulary_as_perplexity(model, processor, features, texts):
    """Fails if sums are taken for means, or bits for nats."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert perplexity(model, processor, features, texts) == pytest.approx(
        model.config.text_config.vocab_size, rel=1e-5
    )


def test_perplexity_is_the_models_own(model, processor, features, texts, scenes):
    """Fails if prompt or padding are counted, the EOS is not, or a caption meets another's picture:
    transformers' loss is the reference.
    """
    total = count = 0
    for scene, text in zip(scenes, texts, strict=True):
        prompt = "USER: <image>\nDescribe the image. ASSISTANT:"
        start = processor(text=prompt, images=draw(scene), return_tensors="pt")["input_ids"].shape[
            1
        ]
        whole = processor(text=f"{prompt} {text}</s>", images=draw(scene), return_tensors="pt")
        labels = whole["input_ids"].clone()
        labels[:, :start] = -100
        n = whole["input_ids"].shape[1] - start
        with torch.no_grad():
            total, count = total + n * model(**whole, labels=labels).loss.item(), count + n
    assert perplexity(model, processor, features, texts) == pytest.approx(
        math.exp(total / count), rel=1e-4
    )
    with_empty = perplexity(model, processor, features, ["", *texts[1:]])
    assert with_empty == pytest.approx(
        perplexity(model, processor, features[1:], texts[1:]), rel=1e-4
    )
    assert math.isnan(perplexity(model, processor, features[:1], [""]))


def test_by_place_keeps_the_places_apart():
    """Fails if a caption is counted for another place, or if places are averaged."""
    kitchen, beach = (
        Scene("kitchen", ("cup", "fork"), (0, 1)),
        Scene("beach", ("kite", "boat"), (0, 1)),
    )
    captions = [
        "a kitchen with a cup, a fork.",
        "a beach with a kite, a bird.",
        "a kitchen with a cup, a bowl, a bowl.",
    ]
    found = by_place(captions, [kitchen, beach, kitchen])
    assert found == {
        "kitchen": {"chair_s": 0.5, "chair_i": 0.4, "recall": 0.75, "n": 2},
        "beach": {"chair_s": 1.0, "chair_i": 0.5, "recall": 0.5, "n": 1},
    }
    with pytest.raises(ValueError, match="1 captions of 2 scenes"):
        by_place(captions[:1], [kitchen, beach])


@pytest.fixture(scope="module")
def world(processor):
    """A kit whose model has learnt by heart what its two pictures show. The popular questions about
    both name the same four objects.
    """
    kit, model = Kit.__new__(Kit), tiny_llava()  # without the base model that a whole kit trains
    scenes = [
        Scene("kitchen", ("cup", "fork"), (1, 4)),
        Scene("kitchen", ("bowl", "bottle"), (3, 8)),
    ]
    kit.seed, kit.model, kit.processor, kit.test_scenes = 0, model, processor, scenes
    kit.test_features = embed_images(kit.model, kit.processor, [draw(scene) for scene in scenes])
    asked = [
        q for kind in POPE_KINDS for q in pope_questions([s.objects for s in scenes], OBJECTS, kind)
    ]
    captions = encode(processor, kit.test_features, [caption(scene) for scene in scenes])
    answers = encode(
        processor,
        kit.test_features,
        [q["label"] for q in asked],
        question=[q["text"] for q in asked],
        image=[q["image"] for q in asked],
    )
    fit(
        trainable(model),
        lambda _: sentence_nll(model, captions) + sentence_nll(model, answers),
        150,
        5e-3,
        "",
        False,
    )
    return kit


def test_a_model_that_knows_its_pictures_is_perfect(world):
    """Fails if captions, questions or answers are put to the wrong pictures, or if an answer is
    scored against another's label.
    """
    found = quality(world.model, world)
    perfect = {
        "accuracy": 1,
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "yes_ratio": 0.5,
        "n": 8,
        "neither": 0,
    }
    assert found["pope"] == dict.fromkeys(POPE_KINDS, perfect)
    assert (found["chair_s"], found["chair_i"], found["recall"]) == (0, 0, 1) and found[
        "bleu"
    ] == pytest.approx(100)
    assert found["ppl_base"] == found["ppl_true"] < 1.5
    questions = pope_questions([scene.objects for scene in world.test_scenes], OBJECTS, "popular")
    assert (
        pope(world.model, world, [q | {"image": 1 - q["image"]} for q in questions])["accuracy"]
        == 0
    )


def test_the_base_model_judges_the_captions(world, model, monkeypatch):
    """Fails if the two perplexities change places, or if a model judges its own captions."""
    taught, size = world.model, model.config.text_config.vocab_size
    with torch.no_grad():
        model.lm_head.weight.zero_()
    monkeypatch.setattr(world, "model", model)
    found = quality(taught, world)
    assert found["ppl_base"] == pytest.approx(size, rel=1e-5) and found["ppl_true"] < 1.5


def test_a_model_that_says_nothing_is_seen(world, model):
    """Fails if silence passes for knowledge: the official parser hears a yes."""
    with torch.no_grad():
        # all tokens alike: greedy decoding takes the first, which is padding
        model.lm_head.weight.zero_()
    found = quality(model, world)
    silent = {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 1,
        "f1": 2 / 3,
        "yes_ratio": 1,
        "n": 8,
        "neither": 1,
    }
    assert found["pope"] == dict.fromkeys(POPE_KINDS, silent)
    assert found["length"] == found["recall"] == 0 and math.isnan(found["ppl_base"])
    assert found["ppl_true"] == pytest.approx(model.config.text_config.vocab_size, rel=1e-5)
