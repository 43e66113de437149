"""What is told under attack, word by word, and the landscape around a base model, on a kit of
random weights and eight scenes.
"""

import json

import pytest
import torch
from conftest import tiny_llava

from lab.experiments import attacks, surroundings, told
from lab.experiments.erasures import Run
from lab.world import encoded, measured
from lab.world.kit import Kit
from lab.world.scenes import PLACES, Scene
from sare_min.captions import encode, token_nll
from sare_min.llava import trainable


@pytest.fixture
def kit(monkeypatch, processor, scenes, texts, features):
    monkeypatch.setattr(encoded, "N_STOP", 2)
    found = Kit.__new__(Kit)
    found.seed, found.processor = 0, processor
    found.model, found.test_features = tiny_llava(), features
    found.features = {split: features for split in ("erase", "attack", "test")}
    found.said = {split: texts for split in ("erase", "attack", "test")}
    found.scenes = {split: scenes for split in ("erase", "attack", "test")}
    found.test_scenes = scenes
    found.fresh = lambda part="all": tiny_llava(part)
    return found


def test_the_first_scenes_of_each_place_are_shown():
    """Fails if scenes are chosen by anything but their order."""
    kit = Kit.__new__(Kit)
    kit.test_scenes = [Scene(place, (), ()) for place in [*PLACES] * 5]
    n = len(PLACES)
    assert told.shown(kit) == [p + n * i for p in range(n) for i in range(told.PER_PLACE)]


def test_words_are_the_caption_with_the_truth_and_its_likelihood(kit, texts, scenes):
    """Fails if a word is lost, an invented object passes for true, or a probability is not the
    model's own.
    """
    rows, model = [0, 7], tiny_llava()
    found = told.words(kit, model, texts, rows)
    for row, words in zip(rows, found, strict=True):
        assert "".join(text for text, _, _ in words) == texts[row]
        kinds = {text.strip(): kind for text, _, kind in words}
        named = {noun: kind for noun, kind in kinds.items() if kind != "plain"}
        shown = set(scenes[row].objects)
        assert {noun for noun, kind in named.items() if kind == "true"} == shown
        assert sum(kind == "invented" for kind in named.values()) == (1 if row == 0 else 0)
    for row, words in zip(rows, found, strict=True):
        alone = encode(kit.processor, kit.test_features, [texts[row]], image=[row])
        with torch.no_grad():
            nll = token_nll(model, alone)[0][alone.sentence[0]][:-1]  # without the EOS
        assert [p for _, p, _ in words] == pytest.approx(torch.exp(-nll).tolist(), rel=1e-4)


def test_what_is_told_is_the_books_attack(kit, monkeypatch, tmp_path):
    """Fails if the strip shows another attack than the curves: other captions, order or rate."""
    for module in (told, attacks):
        monkeypatch.setattr(module, "get_kit", lambda seed: kit)
        monkeypatch.setattr(module, "erased", lambda run: tiny_llava())
    assert len(encoded.attack(kit)) == 4
    data = encode(  # eight a step: two steps, whose captions are another in another order
        kit.processor,
        kit.features["attack"],
        [kit.said["attack"][i] for i in (2, 3, 4, 5)] * 4,
        image=[2, 3, 4, 5] * 4,
    )
    monkeypatch.setattr(encoded, "attack", lambda kit: data)
    told._listen(told.Told(Run(0, "EFUF"), (0, 8, 16)), tmp_path)
    found = json.loads((tmp_path / "told.json").read_text())
    spec, model = attacks.Attack(Run(0, "EFUF"), at=(0, 8, 16)), tiny_llava()
    steps = zip(attacks.tune(kit, model, spec, data), found["chair_s"], found["says"], strict=True)
    for (_, curve), chair_s, says in steps:
        assert chair_s == curve["chair_s"] and len(says) == len(told.shown(kit))
        right = told.words(kit, model, measured.describe(kit, model), told.shown(kit))
        sure = [p for words in right for _, p, _ in words]
        assert [p for words in says for _, p, _ in words] == pytest.approx(sure, rel=1e-4)


def test_forget_and_remember_are_opposite_ways(kit, monkeypatch, tmp_path, data):
    """Fails if "forget" makes the hallucinated words likelier, if the ways do not start at one
    place, or if the weights do not come back.
    """
    model = tiny_llava()
    kit.fresh = lambda part="all": model
    before = [p.detach().clone() for p in trainable(model)]
    monkeypatch.setattr(surroundings, "get_kit", lambda seed: kit)
    monkeypatch.setattr(encoded, "masked", lambda *_: data)
    monkeypatch.setattr(encoded, "test", lambda _: data)
    surroundings._measure(0, tmp_path)
    found = json.loads((tmp_path / "around.json").read_text())
    nll = {way: [point["nll_forget"] for point in row] for way, row in found.items()}
    home = measured.nll(kit, model)["nll_forget"]
    assert [row[0] for row in nll.values()] == [pytest.approx(home)] * 3
    assert nll["forget"][1] > home > nll["remember"][1]
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))
