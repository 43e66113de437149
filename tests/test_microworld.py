"""The microworld: pictures a person and a model can tell apart, captions that hallucinate for the
stated reason.
"""

import random

import numpy as np
import pytest

from lab.world.models import build_tokenizer
from lab.world.scenes import (
    GRID,
    OBJECTS,
    PATCH,
    PLACES,
    Scene,
    absent,
    alt_text,
    caption,
    clip_scenes,
    draw,
    every_scene,
    noisy_extra,
    question,
    split_scenes,
)


def test_splits_never_share_a_scene():
    splits = split_scenes(3, train=6000, erase=1024, attack=1200, test=200)
    everything = [scene for scenes in splits.values() for scene in scenes]
    assert len(everything) == len(set(everything)) == 8424
    assert len(every_scene()) == 23040
    with pytest.raises(ValueError, match="17040 scenes"):
        split_scenes(0, train=20000)


def test_the_clips_never_saw_a_scene_of_a_split():
    """Fails if the shared tower or the judge is trained on pictures that a model is tested or an
    erasure curated on.
    """
    seen = set(clip_scenes())
    assert len(seen) == 6000
    for seed in (0, 21):
        assert not seen & {
            scene
            for scenes in split_scenes(seed, train=6000, erase=1536, attack=1400, test=200).values()
            for scene in scenes
        }


def test_icons_can_be_told_apart():
    """Fails if two objects of one place look alike: no model learns what a person cannot see."""
    for place, names in PLACES.items():
        pictures = [
            np.asarray(draw(Scene(place, (name,), (4,))), dtype=float)[16:32, 16:32]
            for name in names
        ]
        for i, one in enumerate(pictures):
            for other in pictures[i + 1 :]:
                assert np.abs(one - other).mean() > 15


@pytest.mark.parametrize("cell", [0, 5, 7])
def test_an_object_stands_in_its_cell(cell):
    """Fails if rows and columns are swapped, or a cell's side is not a patch's: an image token
    would see parts of two objects.
    """
    picture, empty = (
        np.asarray(draw(Scene("street", *what)), dtype=int)
        for what in ((("bus",), (cell,)), ((), ()))
    )
    changed = np.abs(picture - empty).sum(-1) > 30
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    assert {*rows // PATCH} == {cell // GRID} and {*columns // PATCH} == {cell % GRID}
    assert draw(Scene("street", ("bus",), (cell,)), side=336).size == (336, 336)


def test_captions_are_true_or_noisy_as_said():
    """Fails if the co-occurrence that the whole book rests on is not in the training captions."""
    rng, scenes = random.Random(0), split_scenes(0, some=2000)["some"]
    extras = [noisy_extra(scene, 0.65, rng) for scene in scenes]
    assert abs(sum(map(len, extras)) / len(scenes) - 0.65) < 0.03
    for scene, extra in zip(scenes, extras, strict=True):
        assert all(noun in PLACES[scene.place] and noun not in scene.objects for noun in extra)
    assert (
        caption(Scene("office", ("book", "clock"), (0, 5)), ["umbrella"])
        == "an office with a book, a clock, an umbrella."
    )


def test_alt_texts_are_true():
    rng = random.Random(0)
    for scene in split_scenes(1, some=300)["some"]:
        words = alt_text(scene, rng).strip(".").split()
        assert {w for w in words if w in OBJECTS} <= set(scene.objects)


def test_tokenizer_knows_every_word_and_gives_text_back():
    tokenizer = build_tokenizer()
    for scene in split_scenes(2, some=200)["some"]:
        text = caption(scene, absent(scene))
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for noun in OBJECTS:
        assert tokenizer.unk_token_id not in tokenizer(question(noun))["input_ids"]
