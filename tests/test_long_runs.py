"""A long run grows no memory; one that diverges ends with the last good weights."""

import gc
import math

import pytest
import torch
from conftest import tiny_llava

from lab.experiments.guard import last_good
from lab.world.models import World, build_llava
from sare_min.captions import Captions
from sare_min.llava import set_trainable, trainable
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, Training, unlearn

psutil = pytest.importorskip("psutil")  # ipykernel brings it


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return psutil.Process().memory_info().rss


def test_memory_does_not_grow(data: Captions):
    """Fails if a step keeps its graph, its direction or a log of tensors: 2000 steps of SARE may
    hold no more objects than 200, and hardly more memory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_llava(World(width=16, layers=1)).eval()
    set_trainable(model, "projector")
    held = {}

    def stop(step: int) -> bool:
        if step in (199, 1999):
            gc.collect()
            tensors = sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
            held[step] = tensors, resident()
        return False

    training = Training(steps=2000, batch_size=1, lr=1e-6)
    log = unlearn(model, data, METHODS["SARE"], training, stop=stop, progress=False)
    assert len(log) == 2000 and all(math.isfinite(row["neg"]) for row in log)
    (n_before, before), (n_after, after) = held[199], held[1999]
    assert n_after <= n_before, f"{n_after - n_before} tensors more after 2000 steps than after 200"
    assert after - before < 24 * 2**20, f"{(after - before) / 2**20:.0f} MiB more"


def run(model, data, lr, **how):
    return unlearn(
        model, data, METHODS["SARE"], Training(steps=40, batch_size=4, lr=lr), progress=False, **how
    )


def test_a_divergence_ends_with_the_last_good_weights(data):
    """Fails if a run that leaves its bounds goes on, or hands back the weights that left them."""
    model = tiny_llava()
    params, seen = trainable(model), []

    def measure():
        seen.append(([p.detach().clone() for p in params], span_nll(model, data)["forget"]))
        return {"nll_forget": seen[-1][1]}

    worst = span_nll(model, data)["forget"] + 1
    with (
        pytest.raises(ValueError, match=r"step \d+: nll_forget is .*, outside 0 to .*weights are"),
        last_good(params, measure, {"nll_forget": (0, worst)}, every=2) as watched,
    ):
        run(model, data, 0.01, stop=watched)
    assert len(seen) >= 2 and seen[-1][1] > worst >= seen[-2][1]
    assert all(torch.equal(p, kept) for p, kept in zip(params, seen[-2][0]))
    assert not all(torch.equal(p, bad) for p, bad in zip(params, seen[-1][0]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_out_of_bounds(model, value):
    """Fails if NaN, which is neither above nor below, counts as within bounds."""
    with (
        pytest.raises(ValueError, match="the beginning: recall is (nan|inf), outside 0.5 to 1"),
        last_good(trainable(model), lambda: {"recall": value}, {"recall": (0.5, 1)}),
    ):
        raise AssertionError("it begins")


def test_an_error_in_the_run_gives_the_last_good_weights_back(data):
    """Fails if a loss that is not finite leaves the weights that made it so."""
    model = set_trainable(tiny_llava(), "projector")
    params = trainable(model)
    before = [p.detach().clone() for p in params]
    with (
        pytest.raises(ValueError, match="not finite"),
        last_good(params, lambda: {"x": 0.0}, {"x": (0, 1)}, every=99) as watched,
    ):
        run(model, data, math.inf, stop=watched)
    assert all(torch.equal(p, kept) for p, kept in zip(params, before))


def test_a_run_within_bounds_is_the_run_alone(data):
    """Fails if the guard changes a run that needs none, or its stop is not asked."""
    one, other = tiny_llava(), tiny_llava()
    alone = run(one, data, 2e-4, stop=lambda step: step >= 3)
    with last_good(
        trainable(other),
        lambda: {"nll": span_nll(other, data)["retain"]},
        {"nll": (0, 99)},
        every=2,
        stop=lambda step: step >= 3,
    ) as watched:
        guarded = run(other, data, 2e-4, stop=watched)
    assert [row["neg"] for row in alone] == [row["neg"] for row in guarded] and len(alone) < 40
    assert all(torch.equal(p, q) for p, q in zip(trainable(one), trainable(other)))
