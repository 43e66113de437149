"""The attacks, the controls and what they are made from, on a kit of random weights and eight
captions.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llava

from lab import files, jobs
from lab.experiments import attacks, erasures, presets
from lab.experiments.attacks import Attack
from lab.experiments.erasures import TRAINING, Run
from lab.world import encoded, measured
from lab.world.kit import Kit
from lab.world.scenes import OBJECTS, PLACES, Scene, absent
from sare_min.captions import DESCRIBE
from sare_min.llava import trainable
from sare_min.metrics import span_nll
from sare_min.unlearn import Training

SPEC = Attack(Run(0, "EFUF"), at=(0, 2), batch=2, lr=1e-2)


@pytest.fixture
def world(monkeypatch, processor, scenes, texts, features):
    monkeypatch.setattr(encoded, "N_STOP", 2)
    found = Kit.__new__(Kit)
    found.seed, found.model, found.processor, found.test_features = (
        0,
        tiny_llava(),
        processor,
        features,
    )
    found.features = dict.fromkeys(("erase", "attack", "test"), features)
    found.said, found.scenes = (
        {split: rows for split in ("erase", "attack", "test")} for rows in (texts, scenes)
    )
    found.test_scenes = scenes
    return found


def test_stop_captions_are_kept_from_the_attacker(world):
    """Fails if the captions that say when to stop are also attacked with, or a clean one passes for
    hallucinated.
    """
    assert encoded.attack_rows(world) == {
        "stop": [0, 1],
        "hallucinated": [2, 3, 4, 5],
        "clean": [6, 7],
    }
    assert (
        len(encoded.attack(world)) == 4
        and not encoded.attack(world).forget.any()
        and encoded.stop(world).forget.any(1).all()
    )


def test_captions_of_one_place_are_of_that_place(world, scenes):
    place = scenes[3].place
    assert len(attacks.hallucinated(world, place)) == sum(
        scenes[i].place == place for i in (2, 3, 4, 5)
    )
    assert len(attacks.hallucinated(world)) == 4


def test_honest_answers_are_true(world, scenes):
    """Fails if the benign task lies, or asks about usual absent objects, which would be a cure and
    not another task.
    """
    data = attacks.honest_answers(world)
    # Each answer looks at its own picture
    assert torch.equal(data.features, world.features["attack"])
    words = world.processor.tokenizer.convert_ids_to_tokens
    for row in range(len(data)):
        text = words(data.input_ids[row])
        noun = next(word for word in text if word in OBJECTS)
        scene = scenes[int(data.image[row])]
        answer = [
            word for word, counted in zip(text, data.sentence[row].tolist(), strict=True) if counted
        ][0]
        assert answer == ("yes" if noun in scene.objects else "no") and noun not in absent(scene)


@pytest.mark.parametrize(
    "kind, moves",
    [("relearn", "language_model"), ("projector", "multi_modal_projector"), ("LoRA", "lora_")],
)
def test_fine_tuning_moves_only_its_part(world, kind, moves):
    """Fails if an attack trains other weights than it says, or does not train."""
    model = tiny_llava()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    curve = list(attacks.KINDS[kind](world, model, replace(SPEC, kind=kind, at=(0, 4), nll=True)))
    assert [at for at, _ in curve] == [0, 4] and curve[0][1] != curve[1][1]
    moved = [
        name
        for name, p in model.named_parameters()
        if name not in before or not torch.equal(p, before[name])
    ]
    if kind == "LoRA":  # the adapter is new, the weights under it stay
        assert all("lora_" in name or "base_layer" in name for name in moved)
        changed = {
            name.replace(".base_layer", ""): p
            for name, p in model.named_parameters()
            if "lora_" not in name
        }
        assert all(torch.equal(p, before[name]) for name, p in changed.items())
    else:
        assert any(moves in name for name in moved) and not any(
            "vision_tower" in name for name in moved
        )
        assert kind == "relearn" or all(moves in name for name in moved)


def test_elsewhere_leaves_out_the_attacked_place(world, scenes):
    """Fails if the relapse is counted in the place that was attacked."""
    place = scenes[2].place
    (_, found), *_ = attacks.tune(
        world, tiny_llava(), replace(SPEC, place=place, at=(0,)), encoded.attack(world)
    )
    others = [p for p in PLACES if p != place]
    expected = measured.said_chair(world, measured.describe(world, tiny_llava()), others)
    assert found["chair_s elsewhere"] == expected["chair_s"] and expected["n"] == sum(
        scene.place != place for scene in scenes
    )


@pytest.mark.parametrize("nll", [True, False])
def test_strength_zero_is_what_the_run_has_measured(world, monkeypatch, tmp_path, nll):
    """Fails if the attacked model is measured again before the attack, differently from its run, or
    a later strength is not measured.
    """
    spec, erased = replace(SPEC, nll=nll), measured.held_out(world, tiny_llava())
    monkeypatch.setattr(attacks, "get_kit", lambda seed: world)
    monkeypatch.setattr(attacks, "erased", lambda run: tiny_llava())
    monkeypatch.setattr(attacks, "run", lambda run: {"erased": erased | {"distance": 1.0}})
    whole = [
        {"at": at} | found for at, found in attacks.KINDS["relearn"](world, tiny_llava(), spec)
    ]
    looks, held_out = [], measured.held_out
    monkeypatch.setattr(measured, "held_out", lambda *a, **k: looks.append(1) or held_out(*a, **k))
    attacks._do_attack(tmp_path, spec)
    # Nan, too
    assert (
        repr(json.loads((tmp_path / "curve.json").read_text())) == repr(files.rounded(whole))
        and len(looks) == 1
    )
    assert ("nll_forget" in whole[0]) == nll


@pytest.mark.parametrize(
    "kind, strengths", [("noise", (0.0, 5.0)), ("rounding", (16, 2)), ("pruning", (0.0, 0.9))]
)
def test_hurting_weights_hurts_a_copy(world, kind, strengths):
    """Fails if one strength is added to the last, or the erased model itself is hurt."""
    model = tiny_llava()
    before = [p.detach().clone() for p in trainable(model)]
    (_, mild), (_, strong) = attacks.KINDS[kind](
        world, model, replace(SPEC, kind=kind, at=strengths, nll=True)
    )
    assert mild["nll_forget"] == pytest.approx(
        measured.held_out(world, model)["nll_forget"], rel=1e-3
    )
    assert abs(strong["nll_forget"] - mild["nll_forget"]) > 0.01
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))


def test_prefilled_words_count_and_are_the_truth(world):
    """Fails if the words put in are not scored with what follows, or name something that is not
    there.
    """
    curve = dict(attacks.prefilled(world, tiny_llava(), replace(SPEC, at=(0, 1, 3))))
    assert curve[0] == measured.said_chair(world, measured.describe(world, tiny_llava()))
    assert curve[1]["recall"] == curve[3]["recall"] == 1


def test_leading_questions_name_an_absent_object(world, monkeypatch, scenes):
    asked = []
    monkeypatch.setattr(
        measured,
        "describe",
        lambda world, model, question: asked.append(question) or [""] * len(scenes),
    )
    list(attacks.leading(world, None, replace(SPEC, at=(0, 2))))
    assert asked[0] == [DESCRIBE] * len(scenes)
    for scene, text in zip(scenes, asked[1], strict=True):
        assert (
            text.endswith(DESCRIBE) and sum(text.count(f" {noun} ") for noun in absent(scene)) == 2
        )


def test_an_unknown_attack_is_named():
    with pytest.raises(ValueError, match="unknown attack 'charm'.*relearn"):
        attacks.attack(replace(SPEC, kind="charm"))


def test_results_come_back_under_their_names(monkeypatch):
    """Fails if sorting the jobs, or doing a shared run once, mixes up whose result is whose."""
    done = []
    monkeypatch.setattr(
        jobs,
        "side_by_side",
        lambda work, rows, label, **_: [done.append(job) or job for job in rows],
    )
    rows = {
        name: [Attack(Run(seed, name), at=(0,)) for seed in (7, 3)] for name in ("SARE", "EFUF")
    } | {"again": [SPEC, SPEC]}
    assert attacks.attack_all(rows, progress=False) == rows
    # The judge, the seeds
    assert done.count(SPEC) == 1 and done.count(SPEC.run) == 1 and done[:4] == [None, 0, 3, 7]
    runs = [(job.method, job.seed) for job in done if isinstance(job, Run)]
    # The longest first
    assert runs == [("SARE", 3), ("SARE", 7), ("EFUF", 0), ("EFUF", 3), ("EFUF", 7)]
    seeds = [job.run.seed for job in done if isinstance(job, Attack)]
    assert seeds == sorted(seeds)  # a worker keeps the kit of a seed


def test_answers_come_back_under_their_names(monkeypatch):
    """Fails if the rates of one run, or of one kind of object, are shown as another's."""
    rates = {
        (name, seed): {
            kind: float(f"{seed}.{i}{len(name)}")
            for i, kind in enumerate(("shown", "usual", "foreign"))
        }
        for name in ("base", "SARE+")
        for seed in (7, 3)
    }
    monkeypatch.setattr(
        jobs,
        "side_by_side",
        lambda work, rows, label, **_: [rates[job.method, job.seed] for job in rows],
    )
    found = attacks.answer_all(
        {name: [Run(seed, name) for seed in (7, 3)] for name in ("SARE+", "base")}
    )
    assert found == {
        "SARE+": {"shown": [7.05, 3.05], "usual": [7.15, 3.15], "foreign": [7.25, 3.25]},
        "base": {"shown": [7.04, 3.04], "usual": [7.14, 3.14], "foreign": [7.24, 3.24]},
    }


def erase(data, **settings):
    spec = Run(
        0,
        "EFUF",
        changes=(("lambda_neg", 1.0),),
        training=Training(steps=60, batch_size=4, lr=1e-3, cooldown=3),
        **settings,
    )
    model = tiny_llava()
    stop = data[torch.arange(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "stop", lambda world: stop)
        log = erasures._erase(model, SimpleNamespace(model=model), spec, data)
    return log, span_nll(model, stop)["forget"]


def test_a_run_ends_at_its_level(data):
    """Fails if looking less often at the level passes it by far, or never looks."""
    log, level = erase(data, stop_nll=5.0)
    free, far = erase(data, stop_nll=None)
    assert len(log) < len(free) == 60 and 4.75 <= level < 6.0 < far


def looked_at(monkeypatch, level, n_steps=200):
    """The steps after which a run that cools down for ten steps looks at its level, level(step),
    and what it then says; its end is 8.
    """
    steps, said = [], []

    def unlearn(model, data, method, *_, stop, **__):
        cooling = None
        for step in range(n_steps):
            steps.append(step)
            if cooling in (None, step):
                before = len(asked)
                answer = stop(step)
                cooling = step + 10 if answer and cooling is None else step if answer else None
                said.extend([answer] * (len(asked) - before))
                if cooling == step:
                    break

    asked = []
    monkeypatch.setattr(
        erasures, "_level", lambda model, world: asked.append(steps[-1]) or level(steps[-1])
    )
    monkeypatch.setattr(erasures, "unlearn", unlearn)
    erasures._erase(None, None, Run(0, "EFUF", stop_nll=8.0), None)
    return asked, said


def test_the_level_is_asked_for_more_often_as_it_nears(monkeypatch):
    """Fails if a run looks at every step, or strides on past its level."""
    asked, said = looked_at(monkeypatch, lambda step: 0.5 + 0.1 * min(step, 75))
    gaps = [b - a for a, b in zip(asked, asked[1:])]
    assert (
        asked[0] == 0
        and len(asked) < 15
        and gaps[1] > 10
        and gaps[1:-1] == sorted(gaps[1:-1], reverse=True)
    )
    # Ten steps at a falling rate go as far as five: half a nat
    assert 70 <= asked[-2] <= 72 and said[-2:] == [True, True]


def test_a_run_that_falls_short_goes_on(monkeypatch):
    """Fails if a cool-down that ends half a nat below the level counts, or if one that ends a tenth
    below does not.
    """
    short, said = looked_at(
        monkeypatch, lambda step: 0.5 + 0.1 * min(step, 70) if step < 90 else 8.0
    )
    first = said.index(True)
    assert said[first : first + 2] == [True, False] and said[-1] and short[-1] > 90
    near, said = looked_at(monkeypatch, lambda step: min(0.5 + 0.1 * step, 7.9))
    assert said.count(True) == 2 and said[-2:] == [True, True]


def test_hold_spends_the_steps_and_keeps_the_level(data):
    """Fails if the compute control stops early, or forgets on past the level that it is to be
    compared at.
    """
    log, level = erase(data, stop_nll=6.0, hold=True)
    assert len(log) == 60 and 5.0 < level < 7.5


def test_peak_comes_to_the_level_from_above(data):
    """Fails if the control from the other side never goes above, or stops there."""
    log, level = erase(data, stop_nll=4.6, peak=5.0)
    assert max(-row["neg"] for row in log) > 5.0 and level <= 4.6 and len(log) < 60


@pytest.mark.parametrize("name", ["random", "wrong sign"])
def test_turned_steps_lose_their_way(name):
    """Fails if "random" is the gradient, if "wrong sign" is not its negative, or if a missing
    gradient gets a step.
    """
    gradient = [torch.ones(50, 50), None]
    turned, nothing = erasures.STEPS[name](tiny_llava(), 0).keywords["turn"](gradient)
    cosine = float(torch.cosine_similarity(turned.reshape(-1), gradient[0].reshape(-1), 0))
    assert nothing is None and (
        cosine == pytest.approx(-1) if name == "wrong sign" else abs(cosine) < 0.1
    )


def test_sampled_captions_are_scored_with_their_own_scenes():
    """Fails if captions without an object, which a kit leaves out, shift the scenes of those after
    them.
    """
    cup, bus = Scene("kitchen", ("cup", "bowl"), (0, 1)), Scene("street", ("bus", "car"), (2, 3))
    world = SimpleNamespace(
        said={"test": ["a street with a bus, a car, a bench.", "a kitchen with a cup."]},
        scenes={"test": [bus, cup]},
        test_scenes=[cup, cup, bus],
    )
    assert measured.sampled_chair(world) == {
        "chair_s": 0.5,
        "chair_i": 0.25,
        "recall": 0.75,
        "n": 2,
    }


def test_erasure_without_a_place_never_sees_it(world, scenes):
    data = erasures.erasure_data(world, Run(0, "EFUF", masks="oracle", without=scenes[0].place))
    assert len(data) == sum(scene.place != scenes[0].place for scene in scenes) < len(scenes)


def test_the_front_holds_the_books_own_settings():
    """Fails if the front runs EFUF and SARE a second time under another name."""
    front = presets.front(presets.get_preset("full", ["5"]))
    assert (
        len(front) == 15
        and front[0.1, 0.0] == [presets.book_run("EFUF", 5)]
        and front[0.1, 0.2] == [presets.book_run("SARE", 5)]
    )
    assert dict(front[0.3, 0.05][0].changes) == {"lambda_neg": 0.3, "rho": 0.05}


def test_the_longest_erasures_are_done_first():
    """Fails if a row's last job may be a long one: SARE, then a baseline with more steps than
    others, then a run without a step.
    """
    more = Run(1, "EFUF", hold=True, training=replace(TRAINING, steps=2 * TRAINING.steps))
    still = Run(1, "SARE", changes=(("rho", 0.0),), training=replace(TRAINING, steps=1))
    row = [
        Run(2, "SARE"),
        Run(3, "SARE"),
        Run(3, "NPO+Targeted-SAM"),
        more,
        Run(1, "EFUF"),
        Run(2, "EFUF"),
        still,
    ]
    assert sorted(row, key=attacks.longest_first) == [row[0], row[2], row[1], *row[3:]]
    assert (
        attacks.longest_first(Run(1, "base"))
        == attacks.longest_first(Run(1, "base"))
        < attacks.longest_first(Run(2, "base"))
    )


def test_controls_get_sares_level_and_compute():
    """Fails if the compute control gets fewer passes than SARE had."""
    result = {"erased": {"stop_level": 7.2, "forget_share": 0.6}, "log": [{}] * 100}
    rows = presets.controls(presets.get_preset("full", ["5"]), [result])
    assert tuple(rows) == presets.CONTROLS
    level, compute, above, random, wrong, retain = (row[0] for row in rows.values())
    assert level.stop_nll == compute.stop_nll == above.stop_nll == 7.2 and above.peak > 7.2
    assert compute.hold and compute.training.steps == 200  # (3 + 5 * .6) / 3 = twice as many
    assert (random.step, wrong.step, retain.changes) == (
        "random",
        "wrong sign",
        (("perturb", ("pos", "sent")),),
    )


@pytest.mark.parametrize(
    "settings, expected",
    [({"peak": 8.0}, [1.0, 0.0, 0.0, 0.0]), ({"hold": True}, [1.0, 0.0, 0.0, 1.0])],
)
def test_the_forget_loss_is_switched_as_the_control_says(monkeypatch, data, settings, expected):
    """Fails if a run past its peak forgets on, or a held one does not take up forgetting again
    below its level.
    """
    levels = iter([5.0, 9.0, 7.0, 5.0])

    def unlearn(model, data, method, *_, stop, **__):
        return [(method.schedule(0)["lambda_neg"], stop(step)) for step in range(4)] + [
            (method.schedule(0)["lambda_neg"], None)
        ]

    monkeypatch.setattr(erasures, "_level", lambda model, world: next(levels))
    monkeypatch.setattr(erasures, "unlearn", unlearn)
    spec = Run(0, "EFUF", changes=(("lambda_neg", 1.0),), stop_nll=6.0, **settings)
    weights, ends = zip(*erasures._erase(None, None, spec, data))
    assert (
        list(weights[1:]) == expected
        and weights[0] == 1.0
        and ends[:4] == (False, False, False, "peak" in settings)
    )
