"""The training loop and the attack."""

import copy
import json
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from conftest import tiny_llava

from lab.experiments import landscape
from lab.experiments.attacks import add_noise, matrices, prune, quantize
from lab.experiments.erasures import Run
from lab.experiments.landscape import along
from lab.world import encoded, measured
from sare_min.attack import relearn
from sare_min.captions import token_nll
from sare_min.llava import trainable
from sare_min.metrics import span_nll
from sare_min.sam import targeted_sam
from sare_min.unlearn import (
    METHODS,
    Training,
    draw_batches,
    efuf_released,
    get_method,
    gradient,
    unlearn,
)

SHORT = Training(steps=30, batch_size=4, lr=1e-3)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_forgets_and_keeps(data, name):
    """Fails if a method's loss has the wrong sign: the forget NLL must move away from the retain
    NLL (most tokens are shared).
    """
    model = tiny_llava()
    whole = replace(data, sentence=data.forget | data.retain | data.sentence)
    for epoch in range(
        12
    ):  # it must know the captions first: SimNPO lets go of what is unlikely already
        list(relearn(model, whole, at=(8,), lr=3e-3, batch_size=4, seed=epoch, progress=False))
    before = span_nll(model, data)
    log = unlearn(model, data, get_method(name, lambda_neg=1.0), SHORT, progress=False)
    after = span_nll(model, data)
    assert len(log) == SHORT.steps
    assert (
        after["forget"] - after["retain"] > before["forget"] - before["retain"] + 0.25
        and after["forget"] > before["forget"]
    )


def test_relearning_brings_it_back(data):
    """Fails if the attack does not train, or trains on the wrong tokens."""
    model = tiny_llava()
    unlearn(model, data, get_method("EFUF", lambda_neg=1.0), SHORT, progress=False)
    hallucinated = data[torch.arange(6)]
    hallucinated.sentence[:] = hallucinated.forget | hallucinated.retain
    nll = {
        n: span_nll(model, data)["forget"]
        for n in relearn(model, hallucinated, at=(0, 2, 6), lr=3e-3, batch_size=2, progress=False)
    }
    assert nll[0] > 1 + max(nll[2], nll[6])


@pytest.mark.parametrize("at", [(0, 3), (0, 100)])
def test_attack_sizes_are_checked(model, data, at):
    with pytest.raises(ValueError, match="multiples of batch_size=2 up to 8 rows"):
        list(relearn(model, data, at=at, batch_size=2, progress=False))


def test_nothing_to_train_is_named(data):
    model = tiny_llava().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains.*set_trainable"):
        unlearn(model, data, METHODS["EFUF"], SHORT, progress=False)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_loss_that_is_not_finite_takes_no_step(model, data, name):
    """Fails if one broken image turns every weight into NaN in silence."""
    before = [p.detach().clone() for p in trainable(model)]
    broken = replace(data, features=data.features.clone())
    broken.features[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        unlearn(model, broken, METHODS[name], replace(SHORT, batch_size=8), progress=False)
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))


@pytest.mark.parametrize("name", ["EFUF", "SARE", "EFUF+SAM", "NPO"])
@pytest.mark.parametrize("which", ["the first pass", "the last pass"])
def test_a_gradient_that_is_not_finite_takes_no_step(model, data, name, which):
    """Fails if a finite loss whose gradient overflows, at theta or at theta + eps, turns every
    weight into NaN before anything is said.
    """
    before = [p.detach().clone() for p in trainable(model)]
    norm = next(m for n, m in model.named_modules() if n.endswith("language_model.norm"))
    n_passes = 0

    def overflow(_module, grads, _outward):
        nonlocal n_passes
        n_passes += 1
        is_hit = last and n_passes == (1 if which == "the first pass" else last)
        return (grads[0] * float("inf"),) if is_hit else None

    hook, last = norm.register_full_backward_hook(overflow), 0
    gradient(model, data, METHODS[name])  # counts the backward passes of a step
    n_passes, last = 0, n_passes
    with pytest.raises(ValueError, match="is not finite in parameter .* no step taken"):
        unlearn(model, data, METHODS[name], replace(SHORT, batch_size=8), progress=False)
    hook.remove()
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))


def test_the_log_is_of_theta(model, data):
    """Fails if untargeted SAM logs its losses at theta + eps."""
    plain = gradient(model, data, METHODS["EFUF"])
    for name in ("EFUF+SAM", "SARE"):
        there = gradient(model, data, METHODS[name])
        assert {k: there[k] for k in ("neg", "pos", "sent")} == pytest.approx(
            {k: plain[k] for k in ("neg", "pos", "sent")}, rel=1e-5
        )


@pytest.mark.parametrize("at", [(), (-8,), (0, 3)])
def test_the_attack_is_measured_where_it_comes(model, data, at):
    """Fails if sample counts that it never sees end it without a word."""
    with pytest.raises(ValueError, match="give multiples of batch_size=2"):
        list(relearn(model, data, at=at, batch_size=2, progress=False))


def test_the_attack_needs_captions_to_train_on(model, data):
    """Fails if curated captions, which have no sentence mask, turn the weights into NaN."""
    with pytest.raises(ValueError, match="no sentence token in 2 captions"):
        list(relearn(model, data[torch.arange(6)], at=(0, 2), batch_size=2, progress=False))


@pytest.mark.parametrize("cooldown, steps", [(0, 5), (3, 8)])
def test_stop_starts_the_cool_down_that_ends_the_run(model, data, cooldown, steps):
    """Fails if a run goes on after its stop, or cools down for another number of steps."""
    training = replace(SHORT, cooldown=cooldown)
    assert (
        len(
            unlearn(
                model, data, METHODS["EFUF"], training, stop=lambda step: step >= 4, progress=False
            )
        )
        == steps
    )


def test_a_run_that_falls_back_in_its_cool_down_goes_on(model, data):
    """Fails if the forget level need only be met for one step: then runs end at levels that were
    said to be matched and are not.
    """
    # Reached, lost in the cool-down, reached again, held
    answers = iter([False, True, False, False, True, True])
    asked = []

    def stop(step):
        asked.append(step)
        return next(answers)

    log = unlearn(
        model, data, METHODS["EFUF"], replace(SHORT, cooldown=3), stop=stop, progress=False
    )
    assert asked == [0, 1, 4, 5, 6, 9] and len(log) == 10


def test_a_schedule_changes_the_weights_on_the_way(data):
    """Fails if the released EFUF's annealing is not applied, or counts the run's share wrongly."""
    assert efuf_released(0.0) == {"lambda_neg": 0.3, "lambda_pos": 1.0}
    assert efuf_released(0.4)["lambda_neg"] == pytest.approx(0.3) and efuf_released(0.7)[
        "lambda_neg"
    ] == pytest.approx(0.15)
    assert efuf_released(1.0) == {"lambda_neg": 0.0, "lambda_pos": 0.5}
    shares, ends = [], []
    for schedule in (
        lambda done: shares.append(done) or {"lambda_neg": 1.0 if done < 0.5 else 0.0},
        lambda done: {"lambda_neg": 1.0},
    ):
        model = tiny_llava()
        unlearn(
            model,
            data,
            get_method("EFUF", schedule=schedule),
            replace(SHORT, steps=20),
            progress=False,
        )
        ends.append(span_nll(model, data)["forget"])
    assert shares == [i / 20 for i in range(20)] and ends[0] < ends[1] - 0.5


def test_the_learning_rate_falls_at_the_end(data):
    """Fails if the cool-down does not shrink the last steps."""
    moved = []
    for cooldown in (0, 20):
        model, path = tiny_llava(), []
        unlearn(
            model,
            data,
            METHODS["EFUF"],
            replace(SHORT, cooldown=cooldown),
            progress=False,
            stop=lambda step, model=model, path=path: path.append(
                torch.cat([p.detach().reshape(-1) for p in trainable(model)])
            ),
        )
        moved.append(float((path[-1] - path[-2]).norm()))
    assert moved[1] < 0.2 * moved[0]


def test_batches_hold_their_share_of_forget_rows():
    """Fails if a batch may miss forget rows, or a pass repeats a row before all were seen."""
    has_forget = torch.tensor([True] * 6 + [False] * 3)
    batches = list(islice(draw_batches(has_forget, 3, seed=0), 6))
    assert all(int(has_forget[rows].sum()) == 2 for rows in batches)
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(9))
    assert torch.equal(next(draw_batches(has_forget, 3, seed=0)), batches[0])
    with pytest.raises(ValueError, match="no forget token in 4 captions"):
        next(draw_batches(torch.zeros(4, dtype=torch.bool), 2, seed=0))


def test_a_small_pool_is_drawn_too():
    """Fails if rounding leaves out the few rows without forget tokens, or the few with: then no
    step ever sees them.
    """
    for n_forget, n_other in ((99, 1), (1, 99)):
        has_forget = torch.tensor([True] * n_forget + [False] * n_other)
        rows = next(draw_batches(has_forget, 8, seed=0))
        assert len(rows) == 8 and 0 < int(has_forget[rows].sum()) < 8
    assert len(next(draw_batches(torch.tensor([True, False]), 1, seed=0))) >= 1


def test_a_turned_step_erases_elsewhere(data):
    """Fails if a control's direction is ignored, or reaches the outer gradient of a plain step."""

    def neg_gradient(**changes):
        model = tiny_llava()
        gradient(
            model,
            data,
            get_method("SARE", lambda_pos=0.0, lambda_sent=0.0, lambda_neg=1.0, **changes),
        )
        return torch.cat([p.grad.reshape(-1) for p in trainable(model) if p.grad is not None])

    def back(direction):
        return [g if g is None else -g for g in direction]

    plain, there, away = (
        neg_gradient(rho=0.0),
        neg_gradient(rho=0.005),
        neg_gradient(rho=0.005, step=partial(targeted_sam, turn=back)),
    )
    assert float((there - away).norm()) > 0.01 * float(plain.norm())
    # Opposite, to first order
    assert float(((there + away) / 2 - plain).norm()) < 0.1 * float((there - away).norm())


def test_noise_has_its_scale_and_its_seed(data):
    """Fails if noise is not relative to each matrix, touches vectors, or cannot be repeated."""
    model, other, start = tiny_llava(), tiny_llava(), tiny_llava()
    add_noise(model, 0.1, seed=3)
    add_noise(other, 0.1, seed=3)
    for p, q, r in zip(trainable(model), trainable(other), trainable(start), strict=True):
        assert torch.equal(p, q) and torch.equal(p, r) == (p.ndim < 2)
        if p.numel() > 4000 and p.ndim == 2:
            assert float((p - r).detach().std() / r.detach().std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_leaves_that_many_levels_a_row(bits):
    """Fails if the scale is not per row, or the range is not symmetric: the largest weight of each
    row must stay.
    """
    model, start = tiny_llava(), tiny_llava()
    quantize(model, bits)
    for p, q in zip(matrices(model), matrices(start), strict=True):
        torch.testing.assert_close(p.abs().amax(1), q.abs().amax(1))
        step = q.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert float(((p - q).abs() / step.clamp_min(1e-30)).max().detach()) <= 0.5001
        assert max(len(row.unique()) for row in p) <= 2**bits - 1
    with pytest.raises(ValueError, match="bits=1: give 2 to 16"):
        quantize(model, 1)


def test_pruning_takes_the_smallest():
    """Fails if it prunes another share, or the largest weights."""
    model, start = tiny_llava(), tiny_llava()
    prune(model, 0.3)
    for p, q in zip(matrices(model), matrices(start), strict=True):
        gone = p == 0
        assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.02) or (q == 0).any()
        assert q[gone].abs().max() <= q[~gone].abs().min() and torch.equal(p[~gone], q[~gone])
    with pytest.raises(ValueError, match="share=1"):
        prune(model, 1)


def test_span_nll_pools_tokens_over_batches(model, data):
    """Fails if it keeps the last batch only, or averages batch means."""
    assert span_nll(model, data, batch_size=3) == pytest.approx(
        span_nll(model, data, batch_size=8), rel=1e-5
    )


def test_the_attack_follows_its_seed(data):
    """Fails if the order of the attacker's captions ignores the seed."""
    ends = []
    for seed in (0, 0, 1):
        model = tiny_llava()
        whole = replace(data, sentence=data.forget | data.retain | data.sentence)
        assert list(relearn(model, whole, at=(0, 4), batch_size=2, seed=seed, progress=False)) == [
            0,
            4,
        ]
        ends.append(torch.cat([p.detach().reshape(-1) for p in trainable(model)]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_reference_is_the_base_models_forget_nll(data):
    """Fails if NPO would compare with zeros."""
    from sare_min.captions import token_nll

    expected = (token_nll(tiny_llava(), data) * data.forget).sum(1)
    torch.testing.assert_close(data.reference, expected.detach())
    assert data.reference[0] > 1


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match=f"unknown method 'SAIR'.*{list(METHODS)[0]}"):
        get_method("SAIR")


def test_slices_give_the_weights_back(model, data):
    """Fails if measuring along a direction leaves a trace, or measures the wrong distance."""
    params = trainable(model)
    before = copy.deepcopy(model)
    v = [torch.randn_like(p) for p in params]
    start = [p.detach().clone() for p in params]

    def moved():
        return float(
            torch.cat(
                [(p.detach() - s).reshape(-1) for p, s in zip(params, start, strict=True)]
            ).norm()
        )

    far = along(params, v, [0.0, 2.5], moved)
    assert far == pytest.approx([0.0, 2.5], rel=1e-4)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_slices_know_home_from_the_run(model, data, tmp_path, monkeypatch):
    """Fails if distance 0 is not the run's own measurement, if `chair` is ignored, or if distances
    without 0 are taken for some.
    """
    seen = []
    stand_ins = {
        "held_out": lambda world, m: seen.append("measure") or {"chair_s": 0.5},
        "nll": lambda world, m: seen.append("nll") or {"nll_forget": 1.0},
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(measured, name, stand_in)
    monkeypatch.setattr(encoded, "masked", lambda *_: data)
    known = {
        "chair_s": 0.1,
        "chair_i": 0.2,
        "recall": 1.0,
        "n": 9,
        "nll_forget": 8.0,
        "nll_retain": 0.5,
        "distance": 3.0,
    }
    for name, stand_in in (("get_kit", None), ("erased", model), ("run", {"erased": known})):
        monkeypatch.setattr(landscape, name, lambda _, stand_in=stand_in: stand_in)
    monkeypatch.setattr(
        landscape, "attack_path", lambda run, samples: landscape.random_direction(model, 1)
    )
    for chair, what in ((True, "measure"), (False, "nll")):
        seen.clear()
        landscape._measure_slices(
            tmp_path, landscape.Slices(Run(0, "EFUF"), (0.0, 0.1, 0.3), chair=chair)
        )
        found = json.loads((tmp_path / "slices.json").read_text())
        assert seen == [what] * 6 and all(len(found[way]) == 3 for way in landscape.DIRECTIONS)
        home = {
            key: value
            for key, value in known.items()
            if key != "distance" and (chair or "nll" in key)
        }
        assert all(found[way][0] == home for way in landscape.DIRECTIONS)
    with pytest.raises(ValueError, match="begin with 0"):
        landscape._measure_slices(tmp_path, landscape.Slices(Run(0, "EFUF"), (0.1, 0.3)))


def test_an_erasure_follows_its_seed():
    """Fails if two seeds draw the same batches, so that orders of erasure are one, or a seed draws
    others the second time.
    """
    has_forget = torch.arange(64) % 2 == 0
    drawn = [
        [rows.tolist() for rows in islice(draw_batches(has_forget, 8, seed), 4)]
        for seed in (0, 1, 0)
    ]
    assert drawn[0] == drawn[2] != drawn[1]


def test_rows_without_forget_tokens_take_no_ascent_step(model, data, monkeypatch):
    """Fails if Targeted-SAM's second pass reads rows or tokens that cannot change L_neg: the result
    would be the same, and a step cost twice EFUF's.
    """
    seen = []

    def counted(model, batch):
        seen.append((len(batch), batch.input_ids.shape[1]))
        return token_nll(model, batch)

    monkeypatch.setattr("sare_min.losses.token_nll", counted)
    gradient(model, data, METHODS["SARE"])
    n_forget, whole = int(data.forget.any(1).sum()), data.input_ids.shape[1]
    assert 0 < n_forget < len(data)
    assert [rows for rows, _ in seen] == [n_forget, len(data) - n_forget, n_forget]
    assert seen[2][1] == int(data.forget.any(0).nonzero().max()) + 1 <= whole
