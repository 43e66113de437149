"""Intervals with known coverage; a cache that trusts nothing half written."""

import json
import math
import threading
import time
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from test_house import imported

from lab import files, jobs
from lab.evidence import stats
from lab.experiments import attacks, erasures, gauges, landscape, quality
from lab.field import export
from lab.world import bases


def test_interval_covers_as_promised():
    """Fails if the interval uses normal quantiles or the wrong spread: 95 % of 2000 intervals must
    hold the true mean.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for values in rng.normal(3.0, 2.0, (2000, 5)):
        _, low, high = stats.interval(values)
        hits += low <= 3.0 <= high
    assert 0.938 < hits / 2000 < 0.962


def test_pairing_removes_what_seeds_share():
    """Fails if the difference is not taken seed by seed."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 100, 8)
    one, other = seeds + 1 + rng.normal(0, 0.1, 8), seeds
    found = stats.paired(one, other)
    assert (
        found["ci95"][0] > 0.8
        and found["ci95"][1] < 1.2
        and found["seeds_agreeing"] == found["n_seeds"] == 8
    )


def test_bad_values_are_not_averaged_away():
    with pytest.raises(ValueError, match="one finite value per seed"):
        stats.interval([1.0, math.nan])
    with pytest.raises(ValueError, match="3 and 2 values"):
        stats.paired([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    "chair_s, expected",
    [
        ([0.0, 0.2, 0.8], 96.0),
        ([0.6, 0.9, 0.9], 0.0),
        ([0.0, 0.1, 0.2], 128.0),  # never: censored at the last sample count
        ([0.0, 0.5, 0.5], 128.0),  # 50 % is not passed
    ],
)
def test_relapse_samples_by_hand(chair_s, expected):
    assert stats.relapse_samples([0, 64, 128], chair_s) == pytest.approx(expected)


def test_area_by_hand():
    assert stats.area([0, 64, 128], [0.0, 0.5, 1.0]) == pytest.approx(0.5)


def test_band_is_clipped_to_the_metric():
    mean, low, high = stats.band([[0.0], [1.0], [0.5]], (0, 1))
    assert (mean, low, high) == ([0.5], [0], [1])


def test_a_build_that_dies_leaves_nothing(tmp_path, monkeypatch):
    """Fails if a later run would trust a half-written folder, or a finished one is built twice."""
    monkeypatch.setattr(jobs, "CACHE", tmp_path)
    built = []

    def build(path, fail):
        (path / "file").write_text("half")
        if fail:
            raise RuntimeError("disk full")
        built.append(path)

    with pytest.raises(RuntimeError):
        jobs.folder("thing", 1, (), lambda path: build(path, True))
    for _ in range(2):
        path = jobs.folder("thing", 1, (), lambda path: build(path, False))
    assert len(built) == 1 and (path / "file").exists()
    assert jobs.folder("thing", 2, (), lambda path: build(path, False)) != path


def test_the_profile_counts_no_second_twice(tmp_path, monkeypatch):
    """Fails if a build's time holds that of the builds inside it, or if what an earlier run built
    is counted again.
    """
    now = [0.0]
    monkeypatch.setattr(jobs, "CACHE", tmp_path)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def inner(path):
        now[0] += 5

    def outer(path):
        now[0] += 1
        for _ in range(2):  # the second time it is there already
            jobs.folder("inner", "settings", (), inner)
        now[0] += 2

    jobs.folder("outer", "settings", (), outer)
    assert jobs.profile() == {
        "inner": {"jobs": 1, "seconds": 5.0},
        "outer": {"jobs": 1, "seconds": 3.0},
    }
    assert (
        jobs.profile(since=max(file.stat().st_mtime for file in tmp_path.glob("*/*/seconds")) + 1)
        == {}
    )
    assert jobs.seconds("inner", "settings", ()) == 5.0
    assert jobs.seconds("outer", "settings", ()) == 3.0
    with pytest.raises(FileNotFoundError):  # of settings that have not run
        jobs.seconds("inner", "others", ())


def test_key_sees_settings_and_code_but_not_comments(tmp_path, monkeypatch):
    """Fails if an edit to the method would leave an old result in place, or a comment retrains
    every model.
    """
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    keys = []
    for source in ("x = 1\n", "x = 1  # a reason\n", '"""About."""\nx = 1\n', "x = 2\n"):
        (tmp_path / "module.py").write_text(source)
        jobs._code.cache_clear()
        keys.append(jobs.key("settings", ("module",)))
    jobs._code.cache_clear()
    assert keys[0] == keys[1] == keys[2] and keys[3] != keys[0]
    assert jobs.key("a", ()) != jobs.key("b", ())


def test_rank_correlation_is_taken_within_seeds():
    """Fails if seeds are pooled: here each seed orders its runs perfectly, and the seeds' own
    levels hide it.
    """
    gauge, outcome, seeds = [1, 2, 3, 11, 12, 13], [30, 20, 10, 90, 80, 70], [1, 1, 1, 2, 2, 2]
    found = stats.rank_correlation(gauge, outcome, seeds)
    assert (
        found["within"] == [pytest.approx(-1)] * 2
        and found["mean"] == pytest.approx(-1)
        and found["all"] > 0.4
    )
    # A gauge that never moves predicts nothing
    assert stats.rank_correlation([5, 5, 5], [1, 2, 3], [1, 1, 1])["within"] == [0.0]
    assert stats.rank_correlation([1, 2], [1, 2], [1, 2])["within"] == []
    with pytest.raises(ValueError, match="2, 2 and 1 values"):
        stats.rank_correlation([1, 2], [1, 2], [1])


def test_a_lenient_judge_misses_its_share():
    """Fails if missed pieces vanish instead of being kept, or a caption with nothing left to forget
    is not kept whole.
    """
    spans = [{"forget": [(5, 9)], "retain": [(0, 5)], "sentence": []} for _ in range(400)]
    found = erasures.missed(spans, ["a cup, fork"] * 400, 0.25, seed=0)
    kept = [kinds for kinds in found if not kinds["forget"]]
    assert 70 < len(kept) < 130
    assert all(
        kinds == {"forget": [], "retain": [(0, 5), (5, 9)], "sentence": [(0, 11)]} for kinds in kept
    )
    assert erasures.missed(spans, ["a cup, fork"] * 400, 0.0, seed=0) == spans


def test_json_is_rounded_and_whole(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [1 / 3, {"b": 2}], "n": 7})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [0.333333, {"b": 2}], "n": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "sources",
    [
        bases.BASE_SOURCES,
        erasures.RUN_SOURCES,
        attacks.ATTACK_SOURCES,
        quality.SOURCES,
        export.SOURCES,
        gauges.SOURCES,
        landscape.SOURCES,
    ],
)
def test_a_result_depends_on_all_code_behind_it(sources):
    """Fails if a module moves, or one that a result is made by is missing: its edits would leave
    old results in the cache.
    """
    spared = {f"chapters/lab/{name}" for name in ("jobs", "files", "engine")}  # the store itself
    behind = set().union(*map(imported, sources)) - spared
    assert behind and behind <= set(sources), sorted(behind - set(sources))


def test_results_of_other_libraries_are_not_these(monkeypatch):
    """Fails if an update of torch or transformers reads what the older one left in the cache."""
    before = jobs.key("settings", ())
    assert jobs.key("settings", ()) == before and version("torch") in jobs._versions()
    monkeypatch.setattr(jobs, "_versions", lambda: ["0.0", "0.0", "0.0", "0.0"])
    assert jobs.key("settings", ()) != before


def test_what_another_is_building_is_waited_for(tmp_path, monkeypatch):
    """Fails if two that need one folder at once both build it, each over the other's half."""
    monkeypatch.setattr(jobs, "CACHE", tmp_path)
    built, begun = [], threading.Event()

    def build(path):
        begun.set()
        built.append(path)
        time.sleep(0.5)
        (path / "file").write_text("whole")

    def first():
        jobs.folder("thing", 1, (), build)

    other = threading.Thread(target=first)
    other.start()
    assert begun.wait(30)
    found = jobs.folder("thing", 1, (), build)
    other.join()
    assert len(built) == 1 and (found / "file").read_text() == "whole"
