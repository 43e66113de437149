"""The attacks, the controls and what they are made from, on a kit of random weights and eight
captions.
"""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llava

from lab import engine, files, jobs
from lab.experiments import attacks, erasures, presets
from lab.experiments.attacks import Attack
from lab.experiments.erasures import STOP_NLL, TRAINING, Run
from lab.experiments.levels import NEAR
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

    def in_turn(work, rows, label, **_):
        return [done.append(job) or job for job in rows]

    for place in (engine, jobs):  # where rows_side_by_side and the base models ask for it
        monkeypatch.setattr(place, "side_by_side", in_turn)
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
        engine,
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


def erase(data, method="EFUF", lr=1e-3, **settings):
    """(the log, where it landed, the level then) of an erasure of random weights."""
    spec = Run(
        0,
        method,
        changes=(("lambda_neg", 1.0),),
        training=Training(steps=60, batch_size=4, lr=lr, cooldown=3),
        **settings,
    )
    model = tiny_llava()
    stop = data[torch.arange(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "stop", lambda world: stop)
        patch.setattr(measured, "held_out", lambda *_: {"recall": 0.5, "nll_retain": 0.25})
        log, landing = erasures._erase(model, SimpleNamespace(model=model), spec, data)
    return log, landing, span_nll(model, stop)["forget"]


def test_a_run_lands_on_its_level(data):
    """Fails if a run ends where its last step left it, or does not say what the landing changed; or
    if a run without a level is landed.
    """
    log, landing, level = erase(data, stop_nll=5.0)
    free, nowhere, far = erase(data, stop_nll=None)
    assert len(log) < len(free) == 60 and far > 6 and nowhere == {}
    assert abs(level - 5.0) <= NEAR and landing["level"] == pytest.approx(level)
    assert landing["reached"] and landing["level before"] >= 5.0
    assert (landing["recall before"], landing["nll_retain before"]) == (0.5, 0.25)


def test_work_is_spent_and_the_level_kept(data):
    """Fails if the control for work stops early, or forgets on past the level that it is to be
    compared at.
    """
    log, landing, level = erase(data, stop_nll=5.0, work=150.0)
    assert len(log) == 50  # of 3 passes each
    assert landing["reached"] and abs(level - 5.0) <= NEAR
    assert len(erase(data, stop_nll=5.0)[0]) < 50


def test_a_step_that_only_retains_costs_less():
    """Fails if a step whose ascent was off is billed with it, or is not taken."""
    plain, ascent = {"norm": float("nan")}, {"norm": 0.5}
    for method, off, on in (("SARE", 3, 3 + 5 * 0.6), ("EFUF+SAM", 6, 6), ("EFUF", 3, 3)):
        spec = Run(0, method)
        assert erasures.cost_without(spec, 0.6) == off and erasures.cost(spec, 0.6) == on
        assert erasures._price(spec, 0.6, plain) == off
        assert erasures._price(spec, 0.6, ascent) == on
    assert erasures.cost(Run(0, "SARE", step="kept"), 1.0) == 3 + 3.5


def test_sare_holds_the_level_without_its_ascent(data):
    """Fails if a step that only retains still climbs, on a loss that is off."""
    log, landing, _ = erase(data, "SARE", lr=3e-3, stop_nll=5.0, work=300.0)
    climbs = [not math.isnan(row["norm"]) for row in log]
    assert any(climbs) and not all(climbs) and landing["reached"]


def test_peak_comes_to_the_level_from_above(data):
    """Fails if the control from the other side never goes above, or stops there."""
    log, landing, level = erase(data, stop_nll=4.6, peak=5.0)
    assert max(-row["neg"] for row in log) > 5.0 and len(log) < 60
    assert landing["reached"] and abs(level - 4.6) <= NEAR


def test_a_run_says_what_it_took(world, monkeypatch, tmp_path):
    """Fails if the result's passes, level or landing are another's, or weights are not the landed
    ones.
    """
    weight = "model.multi_modal_projector.linear_1.bias"

    def stand_in(model, world, spec, data):
        model.get_parameter(weight).data.add_(1.0)
        return [{"norm": 0.5}, {"norm": float("nan")}], {"reached": True, "level": 8.0}

    world.fresh = tiny_llava
    monkeypatch.setattr(erasures, "get_kit", lambda seed: world)
    monkeypatch.setattr(erasures, "_erase", stand_in)
    spec = Run(0, "SARE", masks="oracle", order=1)
    erasures._do_run(tmp_path, spec)
    found = json.loads((tmp_path / "run.json").read_text())
    share = erasures.forget_share(erasures.erasure_data(world, spec))
    assert found["spec"]["order"] == 1 and found["erased"]["reached"] is True
    assert found["erased"]["passes"] == pytest.approx(3 + 5 * share + 3)
    assert found["erased"]["landing"] == {"reached": True, "level": 8.0}
    n_moved = tiny_llava().get_parameter(weight).numel()
    assert found["erased"]["distance"] == pytest.approx(n_moved**0.5, rel=1e-4)
    monkeypatch.setattr(erasures, "_run_folder", lambda spec: tmp_path)
    moved = erasures.erased(spec).get_parameter(weight) - tiny_llava().get_parameter(weight)
    torch.testing.assert_close(moved.detach(), torch.ones(n_moved))


def test_what_is_not_erased_reaches_no_level(world, monkeypatch, tmp_path):
    """Fails if the base model is trained, or passes for one that came to its level."""
    world.fresh = tiny_llava
    monkeypatch.setattr(erasures, "get_kit", lambda seed: world)
    erasures._do_run(tmp_path, Run(0, "base", masks="oracle"))
    erased = json.loads((tmp_path / "run.json").read_text())["erased"]
    assert (erased["reached"], erased["landing"], erased["passes"]) == (False, {}, 0)
    assert erased["distance"] == 0


def test_each_order_is_another_shuffle(world, monkeypatch):
    """Fails if two orders of erasure or attack train in the same order, or share one with another
    seed.
    """
    seeds = [erasures.shuffle(Run(seed, "EFUF", order=n)) for seed in (21, 22) for n in (0, 1)]
    assert seeds[0] == 21 and len(set(seeds)) == 4
    drawn = []
    monkeypatch.setattr(
        attacks, "relearn", lambda model, data, at, lr, batch, seed, **_: drawn.append(seed) or []
    )
    for order in (0, 1):
        list(attacks.tune(world, tiny_llava(), replace(SPEC, order=order), encoded.attack(world)))
    assert drawn == [0, erasures.ORDERS_APART]


def test_an_attack_says_its_shuffle(monkeypatch, tmp_path):
    """Fails if a result does not say which shuffle of the attack it is of."""
    (tmp_path / "curve.json").write_text('[{"at": 0}]')
    monkeypatch.setattr(jobs, "folder", lambda *_: tmp_path)
    monkeypatch.setattr(attacks, "run", lambda spec: {"erased": {"recall": 1.0}})
    found = attacks.attack(replace(SPEC, order=2))
    assert found == {"erased": {"recall": 1.0}, "shuffle": 2, "curve": [{"at": 0}]}


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
        len(front) == 2 * 4  # lambdas, rhos
        and front[0.1, 0.0] == [presets.book_run("EFUF", 5)]
        and front[0.1, 0.2] == [presets.book_run("SARE", 5)]
    )
    assert dict(front[0.2, 0.3][0].changes) == {"lambda_neg": 0.2, "rho": 0.3}


def test_the_longest_erasures_are_done_first():
    """Fails if a row's last job may be a long one: SARE, then a baseline with more steps than
    others, then a run without a step.
    """
    more = Run(1, "EFUF", work=9e9, training=replace(TRAINING, steps=2 * TRAINING.steps))
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


PASSES = {"SARE": 1200.0, "EFUF+SAM": 900.0, "EFUF": 300.0, "honest": 0.0}


@pytest.fixture
def ran(monkeypatch):
    """What others take their level or work from has run; a list of the runs asked for."""
    asked = []

    def run(spec):
        asked.append(spec)
        passes = PASSES[spec.method] + 10 * spec.seed + spec.order
        return {"erased": {"stop_level": 7.25 + spec.seed, "passes": passes}}

    monkeypatch.setattr(presets, "run", run)
    monkeypatch.setattr(presets, "run_all", lambda rows: asked.append(rows))
    return asked


def test_equal_work_is_the_dearer_partners(ran):
    """Fails if an arm gets less work than the one that it is compared with, another order's, or a
    second run of what has run.
    """
    for order in (0, 1):
        work = 1200.0 + 50 + order
        sam = presets.book_run("EFUF+SAM, equal work", 5, order)
        efuf = presets.book_run("EFUF, SARE's work", 5, order)
        assert (sam.work, efuf.work) == (work, work)
        assert (sam.method, efuf.method) == ("EFUF+SAM", "EFUF")
        assert sam.order == efuf.order == order and sam.stop_nll == STOP_NLL
        assert sam.training == replace(TRAINING, steps=presets.LONG)
        # SARE itself had the most
        assert presets.book_run("SARE, equal work", 5, order) == presets.book_run("SARE", 5, order)


def test_equal_work_falls_to_the_cheaper_arm(ran, monkeypatch):
    """Fails if the work is always SARE's."""
    monkeypatch.setitem(PASSES, "EFUF+SAM", 2000.0)
    assert presets.book_run("EFUF+SAM, equal work", 5) == presets.book_run("EFUF+SAM", 5)
    assert presets.book_run("SARE, equal work", 5).work == 2050.0


def test_the_honest_level_is_that_seeds_own(ran):
    """Fails if all seeds land on one honest level, or an honest model gets orders."""
    for name, method in (("EFUF, honest level", "EFUF"), ("SARE, honest level", "SARE")):
        runs = [presets.book_run(name, seed, order=1) for seed in (1, 2)]
        assert [run.stop_nll for run in runs] == [8.25, 9.25]
        assert {(run.method, run.order, run.work) for run in runs} == {(method, 1, 0.0)}
    assert {spec.order for spec in ran} == {0}


def test_rival_causes_differ_in_what_they_say():
    """Fails if a control changes more than its rival cause, or less."""
    sare, efuf = presets.book_run("SARE", 5), presets.book_run("EFUF", 5)
    expected = {
        "SARE, random step": replace(sare, step="random"),
        "SARE, wrong sign": replace(sare, step="wrong sign"),
        "SARE, step on retain": replace(sare, changes=(("perturb", ("pos", "sent")),)),
        "EFUF, from above": replace(
            efuf, peak=STOP_NLL + 1.5, training=replace(TRAINING, cooldown=0)
        ),
        "SARE, eps kept 4 steps": replace(sare, step="kept"),
        "SARE, eps from a quarter": replace(sare, step="sampled"),
        "SARE, eps of the projector": replace(sare, step="projector"),
    }
    assert {name: presets.book_run(name, 5) for name in presets.CONTROLS} == expected
    assert presets.book_run("SARE oracle", 5) == replace(sare, masks="oracle")
    released = presets.book_run("EFUF released", 5)
    assert released.stop_nll is None and released.training.steps == 128


def test_orders_and_shuffles_of_the_book(ran):
    """Fails if a run or an attack is lost or done twice, the base model is erased in orders, or
    what a partner needs is not erased first.
    """
    preset = presets.get_preset("full", ["3", "4"])
    runs = presets.book_runs(preset, "base", "SARE, equal work", orders=2)
    assert [(run.seed, run.order) for run in runs["base"]] == [(3, 0), (4, 0)]
    assert [(run.seed, run.order) for run in runs["SARE, equal work"]] == [
        (seed, order) for seed in (3, 4) for order in (0, 1)
    ]
    first = ran[0]
    assert set(first) == {"SARE", "EFUF+SAM"} and [run.order for run in first["SARE"]] == [0, 1] * 2
    attacked = presets.book_attacks(preset, "base", "SARE", orders=2, shuffles=3, lr=1e-3)
    found = [(spec.run.seed, spec.run.order, spec.order) for spec in attacked["SARE"]]
    assert found == [(s, n, m) for s in (3, 4) for n in (0, 1) for m in (0, 1, 2)]
    assert len(attacked["base"]) == 2 * 3
    assert {(spec.lr, spec.nll, spec.at) for spec in attacked["SARE"]} == {(1e-3, True, preset.at)}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_rows_of_runs_are_paired_by_seed(name):
    """Fails if a comparison of a chapter lacks a seed, or its runs differ in more than is said."""
    preset = presets.get_preset(name)
    others = presets.other_attacks(preset, "EFUF", "SARE")
    assert set(others) == {(kind, m) for kind in preset.kinds for m in ("EFUF", "SARE")}
    assert [spec.run for spec in others[preset.kinds[0], "SARE"]] == [
        presets.book_run("SARE", seed) for seed in preset.seeds
    ]
    assert {spec.order for row in others.values() for spec in row} == {0}
    rates = presets.sweep(preset, "SARE")
    assert list(rates) == sorted(rates) and {*preset.lrs, Attack.lr} == set(rates)
    for lr, row in rates.items():
        assert {spec.lr for spec in row["SARE"]} == {lr}
    levels = presets.unequal_levels(preset)
    assert [row[0].stop_nll for row in levels.values()] == 2 * list(preset.levels)
    named = {name for row in presets.by_level(preset).values() for name in row.values()}
    assert named == set(levels)
    attacked = [row["SARE"] for row in rates.values()] + list(others.values())
    for row in (*levels.values(), *([spec.run for spec in found] for found in attacked)):
        assert [run.seed for run in row] == list(preset.seeds)
    assert set(preset.controls) <= {*presets.CONTROLS, *presets.PARTNERS}
    assert set(preset.cheaper) <= set(presets.CONTROLS)
    assert preset.few().seeds == preset.seeds[: preset.n_side_seeds]


def test_pruning_takes_its_share_of_equal_weights(model):
    """Fails if all weights that equal the last one to go are pruned with it."""
    (weight,) = (p for p in attacks.matrices(model)[:1])
    with torch.no_grad():
        weight.copy_(torch.where(torch.arange(weight.numel()).view_as(weight) % 2 == 0, 1.0, 2.0))
    attacks.prune(model, 0.1)
    assert int((weight == 0).sum()) == int(0.1 * weight.numel()) and weight.max() == 2


def test_a_run_with_a_function_has_no_name():
    """Fails if a result is kept under a memory address, where nothing finds it again."""
    with pytest.raises(ValueError, match="changes: forget_loss is a function"):
        Run(1, "SARE", changes=(("forget_loss", len),))
