"""The speed benchmark's own constructions and bookkeeping, on tiny sizes; nothing here looks at a
clock.
"""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from lab.field import score
from lab.llava.speech import generate
from lab.tools import bench
from lab.tools.bench import (
    Size,
    both_layouts,
    build,
    compare,
    four_copies,
    on_weights,
    peak_memory,
    wrapped_sam,
)
from sare_min.attack import relearn
from sare_min.captions import encode
from sare_min.llava import embed_images, trainable
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, gradient

TINY = Size(
    side=56,
    patch=14,
    width=64,
    layers=1,
    sub_sentences=(8,),
    captions=8,
    micro_batch=3,
    pictures=2,
    new_tokens=3,
    scored=20,
    rounds=2,
)


@pytest.fixture(scope="module")
def tiny():
    return build(TINY)


@pytest.fixture(scope="module")
def packed(tiny):
    return both_layouts(tiny, *bench.sampled(tiny.scenes))[0]


def left(model, step):
    """The gradient that a step leaves, as one vector."""
    step()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainable(model)]
    )


def assert_same(one, other, tolerance=1e-5):
    assert float(one.abs().max()) > 0
    assert float((one - other).abs().max()) <= tolerance * float(one.abs().max())


@pytest.mark.parametrize("n_sub_sentences", [4, 8, 12])
def test_both_layouts_give_the_same_gradient(tiny, n_sub_sentences):
    """Fails if what is timed as one row per sub-sentence is another loss than the packed one, or
    has not a row for each.
    """
    one, each = both_layouts(tiny, *bench.alternating(n_sub_sentences))
    assert (len(one), len(each)) == (1, n_sub_sentences) and each.forget.any(
        1
    ).sum() == n_sub_sentences // 2
    assert len(set(each.attention_mask.sum(1).tolist())) == n_sub_sentences, (
        "each row ends with its sub-sentence"
    )
    assert_same(
        *(
            left(tiny.model, lambda b=b: gradient(tiny.model, b, METHODS["EFUF"], len(b)))
            for b in (one, each)
        )
    )


def test_sampled_captions_have_the_microworlds_shape_in_both_layouts(tiny):
    """Fails if the batch of the methods loses its share of hallucinated captions, or its layouts
    differ in their gradient.
    """
    one, each = both_layouts(tiny, *bench.sampled(tiny.scenes))
    assert int(one.forget.any(1).sum()) == round(0.66 * len(one)) and int(
        one.sentence.any(1).sum()
    ) == len(one) - round(0.66 * len(one))
    assert len(set(one.attention_mask[:4].sum(1).tolist())) > 1, (
        "captions of one length need no padding, whose mask costs memory"
    )
    assert 3.4 < len(each) / len(one) < 4
    assert_same(
        *(
            left(tiny.model, lambda b=b: gradient(tiny.model, b, METHODS["EFUF"], 3))
            for b in (one, each)
        )
    )


@pytest.mark.parametrize("peer, method", [(four_copies, "SARE"), (wrapped_sam, "EFUF+SAM")])
@pytest.mark.parametrize("micro_batch", [3, 8])
def test_peers_compute_our_gradient(tiny, packed, peer, method, micro_batch):
    """Fails if a peer is timed on another step than ours: the four copies must be Targeted-SAM, the
    wrapper SAM on the whole loss.
    """
    ours = left(tiny.model, lambda: gradient(tiny.model, packed, METHODS[method], micro_batch))
    plain = left(tiny.model, lambda: gradient(tiny.model, packed, METHODS["EFUF"], micro_batch))
    assert float((ours - plain).abs().max()) > 1e-3 * float(ours.abs().max()), (
        "the ascent step must change something"
    )
    assert_same(
        ours, left(tiny.model, lambda: peer(tiny.model, packed, METHODS[method], micro_batch)), 1e-4
    )


def test_weights_lost_and_copies_held_are_counted(tiny, packed):
    """Fails if a copy of the weights or a weight that does not come back goes unseen, or one is
    seen where there is none.
    """

    def careless():
        copies = [[p.detach().clone() for p in trainable(tiny.model)] for _ in range(2)]
        gradient(tiny.model, packed, METHODS["EFUF"], 8)
        with torch.no_grad():
            trainable(tiny.model)[0].flatten()[0] += 0.25
        return copies

    plain = on_weights(tiny.model, lambda: gradient(tiny.model, packed, METHODS["EFUF"], 8))
    assert plain == {"restore_error": 0.0, "extra_copies": 0.0}
    found = on_weights(tiny.model, careless)
    with torch.no_grad():
        trainable(tiny.model)[0].flatten()[0] -= 0.25
    assert found["restore_error"] == pytest.approx(0.25, abs=1e-6) and found[
        "extra_copies"
    ] == pytest.approx(2.0)
    sare = on_weights(tiny.model, lambda: gradient(tiny.model, packed, METHODS["SARE"], 8))
    assert sare["restore_error"] == 0.0 and sare["extra_copies"] == pytest.approx(1.0, abs=0.02)
    assert on_weights(tiny.model, lambda: four_copies(tiny.model, packed, METHODS["SARE"], 8))[
        "extra_copies"
    ] == pytest.approx(3.0)


def test_peak_memory_is_what_was_alive_at_once(tiny):
    """Fails if the peak adds up what was never alive together, misses a release, or differs from
    run to run.
    """

    def step():
        first = torch.zeros(1_000_000)  # 4 MB
        del first
        kept = torch.zeros(500_000)  # 2 MB
        return kept, torch.zeros(750_000)  # 3 MB

    assert [peak_memory(tiny.model, step) for _ in range(2)] == [pytest.approx(5.0, rel=1e-3)] * 2


def test_compare_takes_turns_and_the_median_of_each_rounds_ratio():
    """Fails if a case is run in a block of its own, or if medians are divided where ratios should
    be taken round by round.
    """
    order, now = [], 0.0
    seconds = {"a": iter([8.0, 4.0, 10.0]), "b": iter([2.0, 4.0, 1.0])}

    def case(name):
        def step():
            nonlocal now
            order.append(name)
            now += next(seconds[name])

        return step

    times, ratios = compare(
        {"a": case("a"), "b": case("b")},
        3,
        {"a_over_b": ("a", "b"), "absent": ("a", "c")},
        clock=lambda: now,
    )
    assert "".join(order) == "ababab"
    assert times == {
        "a": {"median": 8.0, "spread": [6.0, 9.0]},
        "b": {"median": 2.0, "spread": [1.5, 3.0]},
    }
    assert ratios == {"a_over_b": {"median": 4.0, "spread": [2.5, 7.0]}}, "ratios are 4, 1, 10"


def test_generation_says_the_same_batched_and_one_by_one():
    """Fails if batched generation is compared with another task: same pictures, prompt and length,
    hence the same words.
    """
    loud = build(replace(TINY, pictures=8))
    with torch.no_grad():
        for p in loud.model.parameters():
            p.mul_(4)  # with small random weights, what is said does not depend on the picture
    batched, one_by_one = (step() for step in bench.generation_cases(loud).values())
    assert len(batched) == 8 and len(set(batched)) > 3 and batched == one_by_one


def test_the_vision_tower_runs_for_features_and_never_again(tiny, packed):
    """Fails if an erasure step, the relearning attack or the evaluation computes image features
    anew.
    """
    calls, whole = [], encode(tiny.processor, tiny.features, bench.sampled(tiny.scenes)[0])
    hook = tiny.model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        gradient(tiny.model, packed, METHODS["SARE"], 3)
        list(relearn(tiny.model, whole, [4], lr=0.0, batch_size=2, progress=False))
        span_nll(tiny.model, packed)
        generate(tiny.model, tiny.processor, tiny.features, max_new_tokens=2)
        assert not calls
        embed_images(tiny.model, tiny.processor, tiny.pictures[:2])
        assert calls
    finally:
        hook.remove()


def test_what_is_scored_is_whole(tmp_path):
    """Fails if the scoring that is timed breaks off, or finds nothing to name."""
    steps = bench.scoring_cases(tmp_path, 7)
    assert list(steps) == ["answers", "captions"]
    rows = {"captions": tmp_path / "captions", "human": [tmp_path / "human"]}
    found = score.score_chair(**rows, instances=[tmp_path / "instances"], name="efuf")
    assert found["n"] == 7 and found["recall"] > 0 and 0 < found["chair_i"] < 1
    told = json.loads((tmp_path / "human").read_text())["annotations"]
    assert len(told) == 35 and 9 < len(told[0]["caption"].split()) < 13


def test_what_is_written_has_all_its_keys(tmp_path):
    """Fails if bench.json loses a case, a ratio that the README quotes, or its place; or if the
    figure is not drawn from it.
    """
    bench.main(TINY, tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {"cases", "ratio", "ratio_spread", "where", "gpu", "size"} <= set(found)
    assert found["gpu"] == "not measured" or {"name", "cases", "ratio"} <= set(found["gpu"])
    named = {
        name: pair
        for name, pair in bench.RATIOS.items()
        if name not in ("rows_over_packed_4", "rows_over_packed_12")
    }
    assert {case for pair in named.values() for case in pair} == set(found["cases"])
    assert all({"seconds", "spread", "memory_mb"} <= set(case) for case in found["cases"].values())
    assert all(
        found["cases"][f"generate, {how}"]["captions_per_second"] > 0
        for how in ("batched", "one by one")
    )
    assert {"features_share", *named, *(f"memory_{name}" for name in named), *bench.AIMS} == set(
        found["ratio"]
    )
    assert all(isinstance(value, float) and value > 0 for value in found["ratio"].values())
    assert {name: row["n"] for name, row in found["scoring"].items()} == {
        "answers": 20,
        "captions": 20,
    }
    assert all(len(row["spread"]) == 2 and row["seconds"] > 0 for row in found["scoring"].values())
    assert {"torch", "threads", "processor"} <= set(found["where"])
    assert (tmp_path / "bench.png").stat().st_size > 1000
    plt.close(bench.fig_bench(found))
    plt.close("all")
