"""Where an erasure ends: landing on a level, when to cool down, and the controls' ways there, on
made-up levels.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lab.experiments.levels import NEAR, Held, Watch, at_speed
from sare_min import unlearn as loop
from sare_min.unlearn import METHODS, Training, get_method

HERE, THERE = ([1.0, -2.0], [[0.5]]), ([3.0, 4.0], [[-1.0]])  # the level: 1 and 9 nats


def watched(asked, *places):
    """A Watch that has looked at each of the places and stands at the last; the level is the square
    of the first weight.
    """
    params = [torch.zeros(2, dtype=torch.double), torch.zeros(1, 1, dtype=torch.double)]
    watch = Watch(params, lambda: float(params[0][0] ** 2), asked)
    for place in places:
        put(params, place)
        watch.look()
    return watch


def put(params, place):
    for parameter, values in zip(params, place, strict=True):
        parameter.copy_(torch.tensor(values))


def flat(tensors):
    return torch.cat([torch.as_tensor(t, dtype=torch.double).flatten() for t in tensors])


@pytest.mark.parametrize("path", [(HERE, THERE), (THERE, HERE)], ids=["from above", "from below"])
def test_a_landing_is_on_the_level_and_on_the_line(path):
    """Fails if a run lands beside its level, off the line between its last looks, or says it went
    another way than it did.
    """
    watch = watched(4.0, ([2.5, 9.0], [[9.0]]), ([1.5, 9.0], [[9.0]]), *path)
    found = watch.land()
    start, end = map(flat, path)
    assert found["reached"] and abs(watch.level() - 4.0) <= NEAR
    assert found["level"] == watch.level()
    torch.testing.assert_close(flat(watch.params), end + found["share"] * (start - end))
    assert 0.4 < found["share"] < 0.6
    assert found["distance"] == pytest.approx(found["share"] * float((start - end).norm()))


def test_a_run_that_is_there_stays():
    """Fails if weights at the level are moved, though some were seen on its other side."""
    watch = watched(4.0, HERE, ([2.001, 4.0], [[-1.0]]))
    before = flat(watch.params)
    found = watch.land()
    assert torch.equal(flat(watch.params), before)
    assert found == {"level": before[0] ** 2, "reached": True, "share": 0.0, "distance": 0.0}


@pytest.mark.parametrize("asked", [0.5, 12.0], ids=["all above", "all below"])
def test_a_level_that_was_never_crossed_is_not_reached(asked):
    """Fails if a run lands on a line to nowhere, or claims a level that it did not come to."""
    watch = watched(asked, HERE, THERE)
    found = watch.land()
    assert torch.equal(flat(watch.params), flat(THERE))
    assert found == {"level": 9.0, "reached": False, "share": 0.0, "distance": 0.0}


def test_a_level_that_jumps_is_not_reached():
    """Fails if bisecting a jump never ends, or ends with a claim."""
    watch = watched(4.0, HERE, THERE)
    watch.level = lambda: 9.0 if watch.params[0][0] > 2 else 1.0
    found = watch.land()
    assert not found["reached"] and found["level"] in (1.0, 9.0)
    assert float(watch.params[0][0]) == pytest.approx(2, abs=1e-5)


class Rows:
    """As much of Captions as the loop needs."""

    forget = torch.ones(4, 1, dtype=torch.bool)

    def __getitem__(self, rows):
        return self

    def to(self, device):
        return self


class Walk(nn.Module):
    """One weight, which counts the steps taken: one a step at full speed, less in a cool-down."""

    def __init__(self):
        super().__init__()
        self.gone = nn.Parameter(torch.zeros(1, dtype=torch.double))


def erase(monkeypatch, level, asked, cooldown, n_steps=300):
    """Walk by sare_min.unlearn's own loop until at_speed says stop; level(steps gone): nats.
    Returns (the log, where it ended, the answers: (step, stop?), the number of looks).
    """

    def gradient(model, batch, method, micro_batch):
        model.gone.grad = torch.full((1,), -1.0, dtype=torch.double)
        return {}

    monkeypatch.setattr(loop, "gradient", gradient)
    model, looks, answers = Walk(), [], []

    def look():
        looks.append(float(model.gone.detach()))
        return level(looks[-1])

    stop = at_speed(Watch([model.gone], look, asked), cooldown)
    training = Training(steps=n_steps, batch_size=2, lr=1.0, cooldown=cooldown)
    log = loop.unlearn(
        model,
        Rows(),
        METHODS["EFUF"],
        training,
        stop=lambda step: answers.append((step, stop(step))) or answers[-1][1],
        progress=False,
    )
    return log, level(float(model.gone.detach())), answers, len(looks)


@pytest.mark.parametrize("cooldown", [0, 10])
@pytest.mark.parametrize(
    "level, most",
    [
        (lambda gone: 0.5 + 0.13 * gone, 0.14),
        (lambda gone: 0.5 + 0.7 * gone, 0.71),
        (lambda gone: 0.5 + 0.003 * gone**2, 1.5),  # ever faster
    ],
    ids=["slow", "fast", "faster"],
)
def test_a_cool_down_ends_at_the_level_or_just_above(monkeypatch, level, most, cooldown):
    """Fails if the cool-down begins too early, so that there is nothing to land between, or so late
    that the run ends far above.
    """
    log, end, answers, looks = erase(monkeypatch, level, 8.0, cooldown)
    assert 8.0 <= end < 8.0 + most and len(log) < 300
    (first, _), *_ = [answer for answer in answers if answer[1]]
    assert len(log) == first + 1 + cooldown  # one cool-down did
    assert looks < len(log) / 1.5 or len(log) < 20


def test_a_run_that_fell_short_goes_on(monkeypatch):
    """Fails if a cool-down that ends below the level ends the run, or if the slower pace is not
    seen and it falls short again and again.
    """

    def level(gone):
        return 0.3 * min(gone, 24) + 0.12 * max(0, gone - 24)

    log, end, answers, _ = erase(monkeypatch, level, 8.0, 10)
    said = [step for step, is_end in answers if is_end]
    assert (said[0] + 10, False) in answers  # asked at its end, and sent on
    # What a cool-down gained looks like a slower pace, so it may end a little higher
    assert 8.0 <= end < 8.4 and len(log) == said[-1] + 1 and len(said) <= 3


PRICES = {True: 5.5, False: 3.0}  # passes of a step that forgets, and of one that does not


def hold(monkeypatch, method=METHODS["SARE"], cooldown=3, steps=200, **settings):
    """A control in sare_min.unlearn's own loop: forgetting lifts the level by one nat a step, the
    rest lowers it by half a nat; asked: 4 nats. Returns [(did the step forget?, the level after)].
    """
    path = []

    def gradient(model, batch, method, micro_batch):
        model.gone.grad = torch.zeros(1, dtype=torch.double)
        before = path[-1][1] if path else 0.0
        forgets = bool(method.lambda_neg)
        path.append((forgets, before + (1.0 if forgets else -0.5)))
        return {}

    monkeypatch.setattr(loop, "gradient", gradient)
    model = Walk()
    held = Held(
        Watch([model.gone], lambda: path[-1][1], 4.0), PRICES.get, cooldown=cooldown, **settings
    )
    loop.unlearn(
        model,
        Rows(),
        replace(method, schedule=lambda _: held.weights(method)),
        Training(steps=steps, batch_size=2, cooldown=cooldown),
        stop=held.stop,
        progress=False,
    )
    return path


def test_held_spends_its_work_and_keeps_the_level(monkeypatch):
    """Fails if the control for work stops early or late, or forgets on at the level."""
    path = hold(monkeypatch, work=200.0)
    spent = sum(PRICES[forgets] for forgets, _ in path)
    # Whether its last steps forget is not known when the cool-down begins
    assert 200 - 3 * (PRICES[True] - PRICES[False]) <= spent < 200 + PRICES[True]
    for (_, level), (forgets, _) in zip(path[:-4], path[1:-3]):
        assert forgets == (level < 4)
    assert {forgets for forgets, _ in path[5:]} == {True, False}


def test_held_comes_down_from_its_peak(monkeypatch):
    """Fails if the control from above forgets again below its peak, or stops above the level."""
    path = hold(monkeypatch, peak=6.0, cooldown=0)
    assert path == [(True, n) for n in (1, 2, 3, 4, 5, 6)] + [
        (False, n) for n in (5.5, 5.0, 4.5, 4.0)
    ]


@pytest.mark.parametrize(
    "method, off",
    [
        (METHODS["SARE"], {"lambda_neg": 0.0, "rho": 0.0}),
        (METHODS["EFUF+SAM"], {"lambda_neg": 0.0}),
        (get_method("SARE", perturb=("pos", "sent")), {"lambda_neg": 0.0}),
    ],
    ids=["targeted", "all", "retain"],
)
def test_a_step_that_does_not_forget(method, off):
    """Fails if an ascent step on a loss that is off is taken, or one on the others is not."""
    held = Held(watched(4.0), PRICES.get, cooldown=3, work=100.0)
    assert held.weights(method) == {}
    held.forgets = False
    assert held.weights(method) == off
