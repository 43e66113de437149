"""Tables, questions and figures' facts of the chapters, from small made-up results."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from lab import files
from lab.evidence import figures, plan, stats, tables
from lab.evidence.observations import Observation

SEEDS, ORDERS, SHUFFLES = 3, 2, 2
# EFUF passes 50 % half way between 64 and 128 samples, SARE never, the base model before the first
CHAIR = {"base": (1.0, 1.0, 1.0), "EFUF": (0.0, 0.25, 0.75), "SARE": (0.0, 0.0, 0.25)}
NLL = {"base": (0.5, 0.5, 0.5), "EFUF": (8.0, 4.0, 2.0), "SARE": (8.0, 6.0, 4.0)}
AT = (0, 64, 128)


def result(name: str, seed: int, order: int = 0, shuffle: int = 0) -> dict:
    """As attacks.attack gives it: the fields that the tables read, and each seed's its own."""
    method = name if name in CHAIR else "EFUF"
    curve = [
        {"at": n, "chair_s": c, "recall": 0.9 - c / 10, "nll_forget": nll}
        for n, c, nll in zip(AT, CHAIR[method], NLL[method])
    ]
    erased = {
        "chair_s": CHAIR[method][0] + seed / 100,
        "recall": 0.9,
        "stop_level": 8.0 + order / 1000,
        "nll_retain": 0.25,
        "distance": 2.0,
        "passes": {"base": 0, "EFUF": 300, "SARE": 900}[method] + seed + 10 * order,
        "reached": method != "base",
        "landing": {"level before": 8.4, "recall before": 0.8, "nll_retain before": 0.5},
    }
    if method == "base":
        erased["stop_level"], erased["landing"] = 0.5, {}
    n_steps = {"base": 0, "EFUF": 10, "SARE": 20}[method] + seed
    spec = {"seed": seed, "method": method, "order": order, "stop_nll": 8.0}
    found = {"spec": spec, "shuffle": shuffle, "curve": curve, "erased": erased}
    return found | {"log": [{}] * n_steps}


RESULTS = {  # the first attack of each erasure, then the second
    name: [
        result(name, seed, order, shuffle)
        for seed in range(SEEDS)
        for order in range(1 if name == "base" else ORDERS)
        for shuffle in range(SHUFFLES)
    ]
    for name in CHAIR
}
ONCE = {name: [result(name, seed) for seed in range(SEEDS)] for name in CHAIR}
KINDS = {"shown": [1.0] * SEEDS, "usual": [0.25] * SEEDS, "foreign": [0.0] * SEEDS}


def lost_run(row):
    """The row, its last run short of its level by half a nat."""
    erased = row[-1]["erased"] | {"reached": False, "stop_level": 7.5}
    return [*row[:-1], row[-1] | {"erased": erased}]


def test_tables_need_no_torch():
    """Fails if what is read off stored results can no longer be printed without torch."""
    heavy = "{'torch', 'transformers'} & sys.modules.keys()"
    code = f"import sys, lab.evidence.tables; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=files.CHAPTERS).returncode == 0


def test_level_recall_and_work_stand_beside():
    """Fails if a run counts once an attack, or the base model is held to a level."""
    base, efuf = tables.beside(RESULTS, "base", "EFUF").splitlines()
    assert base == f"{'base':22s} level 0.50 nats, recall 90.0 %, 1 passes, 2.00 from the base"
    words = "level 8.00 nats (within 0.00), recall 90.0 %, 306 passes"
    assert efuf == f"{'EFUF':22s} {words}, 2.00 from the base"
    assert tables.caption(RESULTS, "EFUF") == (
        "EFUF: level 8.00 nats (within 0.00), recall 90.0 %, 306 passes."
    )


def test_a_level_that_was_missed_is_said():
    """Fails if a row with a run that fell short passes for one that came to its level."""
    short = {"EFUF": lost_run(ONCE["EFUF"])}
    assert "level 7.83 nats (1 of 3 runs do not reach it)" in tables.beside(short, "EFUF")
    arms = tables.arms(ONCE | short, ("base", "EFUF", "SARE"), "%", lambda r: 1.0)["arms"]
    assert arms["EFUF"]["note"] == "does not reach the level in 1 of 3 runs"
    assert "note" not in arms["SARE"] and "note" not in arms["base"]


def test_arms_are_means_over_a_seeds_runs():
    """Fails if a seed counts once a run, or an arm's work is counted once an attack."""
    drawn = tables.arms(
        RESULTS, ("EFUF", "SARE"), "%", lambda r: 10 * r["shuffle"] + r["spec"]["seed"], (0, 100)
    )
    arm = drawn["arms"]["SARE"]
    assert arm["values"] == [5.0, 6.0, 7.0]
    assert arm["passes"] == [900, 910, 901, 911, 902, 912] and len(arm["level"]) == 6
    figures.fig_arms(drawn)
    plt.close("all")


def test_survival_knows_who_never_relapsed():
    """Fails if the end of an attack counts as a relapse, or runs as seeds."""
    drawn = tables.survival(RESULTS, "EFUF", "SARE")
    assert drawn["end"] == 128 and drawn["arms"]["EFUF"]["samples"] == [96.0] * 12
    assert drawn["arms"]["EFUF"]["censored"] == [False] * 12
    assert drawn["arms"]["SARE"] == {
        "samples": [128.0] * 12,
        "censored": [True] * 12,
        "n_seeds": SEEDS,
    }
    figures.fig_survival(drawn)
    plt.close("all")
    assert [line.split() for line in tables.never(RESULTS, "EFUF", "SARE").splitlines()] == [
        ["EFUF", "0", "%"],
        ["SARE", "100", "%"],
    ]


def test_landed_says_what_the_landing_changed():
    """Fails if before and after change places, or a share is not in percent."""
    line = tables.landed(RESULTS, "EFUF").splitlines()[1]
    assert line == f"{'EFUF':22s} 8.40 -> 8.00   80.00 -> 90.00   0.50 -> 0.25"


def test_questions_hold_every_run_of_both_arms():
    """Fails if baseline and SARE change places, or a run loses its seed, orders or level."""
    asked = {"C6a": ("EFUF", "SARE", "mean_chair_s"), "C6x": ("base", "SARE", lambda r: 7)}
    questions = tables.ask(RESULTS, asked)
    baseline, sare = questions["C6a"]
    assert (len(baseline), len(sare)) == (12, 12)
    assert baseline[-1] == Observation(2, 1, 1, 31.25, 8.001, True)
    assert sare[0] == Observation(0, 0, 0, 6.25, 8.0, True)
    base, _ = questions["C6x"]
    assert base[1] == Observation(0, 0, 1, 7.0, None, True)  # nothing was asked of it


def test_the_honest_model_stands_where_it_stands():
    """Fails if a row against the honest model is never comparable, as it reached no level."""
    honest = result("EFUF", 0)
    honest["spec"]["method"] = "honest"
    honest["erased"] |= {"reached": False, "stop_level": 6.5}
    short = lost_run(ONCE["SARE"])
    found = tables.ask({"honest": [honest], "SARE": short}, {"C8b": ("honest", "SARE", "relapse")})
    assert found["C8b"][0] == [Observation(0, 0, 0, 96.0, 6.5, True)]
    assert [o.reached for o in found["C8b"][1]] == [True, True, False]


def test_a_rise_is_asked_of_one_row():
    """Fails if before and after change places, or another number of samples is read."""
    before, later = tables.rises(RESULTS["EFUF"], 96)
    assert {o.value for o in before} == {0.0} and {o.value for o in later} == {50.0}
    assert [o[:3] for o in before] == [o[:3] for o in later]
    with pytest.raises(ValueError, match="at_sample"):
        tables.rises(RESULTS["EFUF"], 640)


def test_what_was_measured_beside_the_runs():
    """Fails if a value stands under another run or key, or loses its factor."""
    rows = (ONCE["EFUF"], ONCE["SARE"])
    values = tuple([{"yes": (arm + seed) / 10} for seed in range(SEEDS)] for arm in (0, 5))
    baseline, sare = tables.measured(rows, values, {"C5b": ("yes", 100)})["C5b"]
    assert [o.value for o in baseline] == pytest.approx([0, 10, 20])
    assert sare[2] == Observation(2, 0, 0, pytest.approx(70), 8.0, True)
    with pytest.raises(ValueError):
        tables.measured(rows, (values[0][:2], values[1]), {"C5b": ("yes", 100)})


def test_a_row_of_the_ledger_is_spelled():
    """Fails if an exploratory reading is told as a verdict, or the difference otherwise than it
    was found.
    """
    found = stats.paired([1.0, 2.0, 4.0], [2.0, 5.0, 6.0])
    row = found | {"id": "C6a", "primary": True, "verdict": "supported", "reading": None}
    row |= {"margin": 12.0}
    words = stats.spell_paired([1.0, 2.0, 4.0], [2.0, 5.0, 6.0], 1)
    assert tables.spell(row, 1) == f"C6a {words}, matters from 12 -> supported"
    row |= {"primary": False, "verdict": "exploratory", "reading": "for"}
    assert tables.spell(row, 1) == f"C6a {words}, matters from 12 -> exploratory: for"


def test_erasures_a_line_a_metric():
    """Fails if a metric loses its factor, or a method its name."""
    text = tables.erasures(ONCE, {"recall": 100, "nll_retain": 1}, "EFUF", "SARE")
    assert text.splitlines() == [
        "recall     EFUF 90.00 [90.00, 90.00] (n = 3)   SARE 90.00 [90.00, 90.00] (n = 3)",
        "nll_retain EFUF 0.25 [0.25, 0.25] (n = 3)   SARE 0.25 [0.25, 0.25] (n = 3)",
    ]


def test_yes_by_kind_of_object():
    """Fails if shares are not in percent, or a kind stands under another's name."""
    line = "SARE  shown 100.0 [100.0, 100.0] (n = 3) %  usual 25.0 [25.0, 25.0] (n = 3) %"
    assert tables.yes({"SARE": KINDS}, "SARE") == f"{line}  foreign 0.0 [0.0, 0.0] (n = 3) %"


def told(x: float) -> dict:
    """As quality.measure gives it."""
    keys = "chair_s chair_i recall length bleu distinct_2 ppl_base ppl_true".split()
    pope = {"random": {"accuracy": x, "yes": 0.5}, "popular": {"accuracy": x / 2, "yes": 0.5}}
    places = {"beach": {"chair_s": x, "recall": 0.5}, "kitchen": {"chair_s": 0.0, "recall": 1.0}}
    return dict.fromkeys(keys, x) | {"pope": pope, "places": places}


def test_quality_in_columns():
    """Fails if a mean stands in another method's column, or a kind of POPE is lost."""
    table = tables.quality({"base": [told(0.5), told(0.7)], "SARE": [told(0.2), told(0.4)]})
    assert table["base"]["bleu"] == [0.5, 0.7] and table["SARE"]["POPE popular"] == [0.1, 0.2]
    lines = [line.split() for line in tables.means(table).splitlines()]
    assert lines[0] == "mean over seeds base SARE".split() and len(lines) == 1 + 8 + 2
    assert lines[1] == ["chair_s", "0.600", "0.300"]
    assert lines[-1] == ["POPE", "popular", "0.300", "0.150"]


def test_places_apart():
    """Fails if the beaches' values are read in a kitchen."""
    assert tables.places({"SARE": [told(0.5)]}, "beach", "kitchen").splitlines() == [
        "SARE, beaches never seen: beach    CHAIR_s 50.0 (one seed) %   recall 50.0 (one seed) %",
        "SARE, beaches never seen: kitchen  CHAIR_s 0.0 (one seed) %   recall 100.0 (one seed) %",
    ]


def test_quality_of_each_run():
    """Fails if a kind of POPE is lost, or its share of "yes" is read as accuracy."""
    assert tables.quality_rows([told(0.6), told(0.2)]) == [
        {"bleu": x, "ppl_true": x, "POPE random": x, "POPE popular": x / 2} for x in (0.6, 0.2)
    ]


def test_lost_at_the_distance_that_is_named():
    """Fails if the NLL is read at another distance or direction than the key says."""
    line = [{"nll_forget": nll} for nll in (6.0, 5.0, 1.0)]
    slices = [
        {"attack_distance": 2.0, "relapse": line, "attack": line[:1] * 3},
        {"attack_distance": 3.0, "relapse": line[:1] * 2 + line[1:2], "attack": line},
    ]
    one, other = tables.lost(slices, (0.0, 0.1, 0.2))
    assert (one["relapse", 0.1], one["relapse", 0.2], one["attack", 0.2]) == (1.0, 5.0, 0.0)
    assert (other["relapse", 0.2], other["attack", 0.1]) == (1.0, 1.0) and len(other) == 6
    with pytest.raises(ValueError):
        tables.lost(slices, (0.0, 0.1))


GRID = {(0.1, 0.0): ONCE["EFUF"], (0.1, 0.2): ONCE["SARE"]}


def test_front_keeps_settings_and_values_together():
    """Fails if a point of the front carries another setting's values, or is not drawn."""
    front = tables.front(GRID | {(0.3, 0.2): lost_run(ONCE["SARE"])})
    assert [(point["lambda_neg"], point["rho"]) for point in front[:2]] == list(GRID)
    assert [point["relapse"] for point in front[:2]] == [[96.0] * 3, [128.0] * 3]
    assert [point["area"] for point in front[:2]] == [[31.25] * 3, [6.25] * 3]
    assert front[0]["half_life"] == [64.0] * 3 and front[2]["reached"] == [True, True, False]
    first = "lambda_neg 0.1  rho 0    mean CHAIR_s 31.2 [31.2, 31.2] (n = 3) %   half-life 64  "
    first += " level 8.00 (3 of 3 reach it), recall 90.0 %, 301 passes"
    assert tables.points(front).splitlines()[0] == first
    figures.fig_front(front)
    plt.close("all")


def test_gauges_rank_and_are_drawn():
    """Fails if a gauge's values leave their runs, or the trace's error counts as a gauge."""
    runs = [result for row in GRID.values() for result in row]
    measured = [{"ce": 1.0, "slope": float(i), "trace_se": 0.1} for i in range(len(runs))]
    columns = tables.gauges(measured, runs)
    assert list(columns) == ["slope", "stop_level", "distance", "steps"]
    assert columns["steps"] == [10, 11, 12, 20, 21, 22]
    ranks = {
        "up": {"mean": 0.5, "ci95": [-0.1, 1.1], "all": 0.25},
        "slope": {"mean": -0.5, "ci95": [-1.1, 0.1], "all": -0.25},
    }
    first = tables.ranking(ranks).splitlines()[0]
    line = "slope                    within seeds -0.50 [-1.10, +0.10]   over all runs -0.25"
    assert first == line
    figures.fig_ranks({name: row | {"within": [row["mean"]] * 3} for name, row in ranks.items()})
    plt.close("all")


def test_lines_are_drawn_under_their_own_style():
    """Fails if figures.fig_slices cannot draw them."""
    drawn = tables.lines((0.1, 0.2), {"fp32": [[1.0, 1.0]], "bf16": [[0.5, 0.9]]})
    assert drawn["lines"]["bf16"] == {"method": "bf16", "curves": [[0.5, 0.9]]}
    figures.fig_slices(drawn, "cosine")
    plt.close("all")


def swept(recall):
    """attacks at two learning rates, SARE the weaker at the second; recall: at the end, by rate."""

    def attacked(name, seed, lr):
        found = result(name, seed)
        strong = "EFUF" if (name == "EFUF") == (lr == 1e-4) else "SARE"
        curve = result(strong, seed)["curve"]
        curve[-1]["recall"] = recall[lr]
        return found | {"curve": curve}

    return {
        lr: {name: [attacked(name, seed, lr) for seed in range(SEEDS)] for name in ("EFUF", "SARE")}
        for lr in recall
    }


def test_the_sweep_keeps_rates_and_seeds_apart():
    """Fails if a curve runs over seeds instead of over learning rates, or cannot be drawn."""
    drawn = tables.sweep(swept({1e-4: 0.99, 6e-4: 0.96}), ("EFUF", "SARE"))
    assert drawn["lr"] == [1e-4, 6e-4] and drawn["recall_bound"] == 0.95
    assert drawn["arms"]["EFUF"]["chair"] == [[31.25, 6.25]] * SEEDS
    assert drawn["arms"]["SARE"]["chair"] == [[6.25, 31.25]] * SEEDS
    assert drawn["arms"]["SARE"]["recall"] == [[0.99, 0.96]] * SEEDS
    figures.fig_sweep(drawn)
    plt.close("all")


def test_the_worst_rate_keeps_the_model_whole():
    """Fails if an attacker wins by ruining the model, or one rate is taken for both methods."""
    both = ("EFUF", "SARE")
    whole = tables.sweep(swept({1e-4: 0.99, 6e-4: 0.95}), both)
    assert tables.worst_rates(whole) == {"EFUF": 1e-4, "SARE": 6e-4}
    ruined = tables.sweep(swept({1e-4: 0.99, 6e-4: 0.9}), both)
    assert tables.worst_rates(ruined) == {"EFUF": 1e-4, "SARE": 1e-4}
    gone = tables.sweep(swept({1e-4: 0.9, 6e-4: 0.9}), both)
    with pytest.raises(ValueError, match="EFUF: recall falls below 0.95.*add a smaller one"):
        tables.worst_rates(gone)


def test_attacks_are_judged_by_the_share_that_counts():
    """Fails if an attack on one place is judged there instead of elsewhere, or C7a is not the mean
    over the attacks.
    """
    met = {}
    for kind in ("one place", "noise"):
        for name in ("EFUF", "SARE"):
            row = [result(name, seed) for seed in range(SEEDS)]
            for found in row:
                for point in found["curve"]:
                    point["chair_s elsewhere"] = 0.5 if name == "EFUF" else 0.25
            met[kind, name] = row
    keys = {"one place": "chair_s elsewhere", "noise": "chair_s"}
    found = tables.other_attacks(met, ("EFUF", "SARE"), keys)
    values = {id: [[o.value for o in arm] for arm in pair] for id, pair in found.items()}
    assert values == {
        "C7a": [[40.625] * 3, [15.625] * 3],
        "C7d": [[50.0] * 3, [25.0] * 3],
        "C7g": [[31.25] * 3, [6.25] * 3],
    }


def test_every_attack_has_its_row():
    """Fails if an attack has no row of the plan, or that of another attack."""
    planned = plan.load().rows
    assert tuple(tables.ATTACK_IDS) == plan.ATTACKS
    for kind, id in tables.ATTACK_IDS.items():
        assert planned[id].endpoint == f"mean_chair_s, {kind}"


def test_work_and_way_are_read_seed_by_seed():
    """Fails if an arm loses its work, or a gain is set beside another seed's way."""
    drawn = tables.work(ONCE, lambda r: 1.0, {"EFUF": {"8": "EFUF"}})
    assert drawn["joined"] == {"EFUF": {"8": "EFUF"}} and drawn["arms"]["EFUF"]["passes"]
    moved = [
        r | {"erased": r["erased"] | {"distance": 3.0 + n}} for n, r in enumerate(ONCE["SARE"])
    ]
    found = tables.along({"a": (ONCE["EFUF"], moved)}, lambda r: -2.0 * r["erased"]["distance"])
    assert found["pairs"]["a"]["x"] == [1.0, 2.0, 3.0]
    assert found["pairs"]["a"]["y"] == [-2.0, -4.0, -6.0]
    assert tables.left(found).startswith("r -1.00; at equal distance ")


def test_the_rate_that_makes_two_arms_equal():
    """Fails if the factor is not that of the rate at which the other arm is where the first was."""
    drawn = {
        "lr": [1e-4, 2e-4, 4e-4],
        "arms": {
            "EFUF": {"chair": [[10, 40, 80], [10, 60, 90]]},
            "SARE": {"chair": [[0, 20, 60], [0, 20, 50]]},
        },
    }
    found = tables.rate_factor(drawn, "EFUF", "SARE")
    assert found == pytest.approx([2**0.5, 2.0])  # half way in log; never reached: the last one
