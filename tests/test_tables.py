"""Tables, questions and figures' facts of chapters 03 and 04, from small made-up results."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from lab import files
from lab.evidence import figures, ledger, stats, tables
from lab.experiments import presets
from lab.experiments.cheaper import COST

SEEDS = 3
# EFUF passes 50 % half way between 64 and 128 samples, SARE never, the base model before the first
CHAIR = {"base": (1.0, 1.0, 1.0), "EFUF": (0.0, 0.25, 0.75), "SARE": (0.0, 0.0, 0.25)}
AT = (0, 64, 128)


def result(name: str, seed: int) -> dict:
    """As attacks.attack gives it: the fields that the tables read, and each seed's its own."""
    curve = [{"at": n, "chair_s": c, "recall": 0.9 - c / 10} for n, c in zip(AT, CHAIR[name])]
    erased = {
        "chair_s": CHAIR[name][0] + seed / 100,
        "chair_i": 0.01,
        "recall": 0.9,
        "stop_level": 6.5 + seed,
        "nll_forget": 6.0,
        "nll_retain": 0.25,
        "distance": 2.0,
        "forget_share": 0.5,
    }
    n_steps = {"base": 0, "EFUF": 10, "SARE": 20}[name] + seed
    return {"curve": curve, "erased": erased, "log": [{}] * n_steps}


RESULTS = {name: [result(name, seed) for seed in range(SEEDS)] for name in CHAIR}
LATE = {"EFUF": [96.0, 90.0, 100.0], "SARE": [128.0, 128.0, 120.0]}
KINDS = {"shown": [1.0] * SEEDS, "usual": [0.25] * SEEDS, "foreign": [0.0] * SEEDS}


def test_tables_need_no_torch():
    """Fails if what is read off stored results can no longer be printed without torch."""
    heavy = "{'torch', 'transformers'} & sys.modules.keys()"
    code = f"import sys, lab.evidence.tables; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=files.CHAPTERS).returncode == 0


def test_asked_rows_are_the_ledgers():
    """Fails if baseline and SARE change places, or a margin, a note or a letter goes astray."""
    questions = {"x": (LATE["EFUF"], LATE["SARE"], 1), "y": ([1.0] * 3, [0.9] * 3, 1, 0.2, "kept")}
    assert tables.ask("C6", "cdef", "ch. 04", questions) == [
        ledger.row("C6c", "ch. 04", "x", LATE["EFUF"], LATE["SARE"], want=1),
        ledger.row("C6d", "ch. 04", "y", [1.0] * 3, [0.9] * 3, want=1, margin=0.2, note="kept"),
    ]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("digits", [0, 2])
def test_an_answer_is_spelled_like_the_values(n, digits):
    """Fails if a row of the ledger is spelled otherwise than the values that it was made of."""
    efuf, sare = LATE["EFUF"][:n], LATE["SARE"][:n]
    row = ledger.row("C6a", "ch. 04", "x", efuf, sare, want=1)
    spelled = stats.spell_paired(sare, efuf, digits)
    assert tables.answer(row, digits) == f"{spelled} -> {row['verdict']}"


def test_erasures_a_line_a_metric():
    """Fails if a metric loses its factor, or a method its name."""
    text = tables.erasures(RESULTS, {"recall": 100, "nll_retain": 1}, "EFUF", "SARE")
    assert text.splitlines() == [
        "recall     EFUF 90.00 [90.00, 90.00] (n = 3)   SARE 90.00 [90.00, 90.00] (n = 3)",
        "nll_retain EFUF 0.25 [0.25, 0.25] (n = 3)   SARE 0.25 [0.25, 0.25] (n = 3)",
    ]
    assert tables.steps(RESULTS["SARE"]) == [20, 21, 22]


def test_what_is_kept_is_asked_against_the_base_model():
    """Fails if a loss within the margin counts as one, or "yes" is read of absent objects."""
    base = tables.erased(RESULTS, {"base": KINDS}, "base")
    assert base == {
        "chair_s": [1.0, 1.01, 1.02],
        "recall": [0.9] * 3,
        "nll_retain": [0.25] * 3,
        "yes shown": KINDS["shown"],
    }
    later = base | {"recall": [0.89, 0.88, 0.885], "nll_retain": [0.5, 0.51, 0.5]}
    asked = tables.kept(base, later, {"recall": (1, 0.05), "nll_retain": (-1, 0.1)})
    recall, nll = tables.ask("C5", "ac", "ch. 03", asked)
    assert (recall["verdict"], nll["verdict"]) == ("supported", "not supported")
    assert recall["metric"] == "recall, base against SARE"
    assert recall["note"] == "(kept: within 0.05)" and recall["diff"] < 0 < nll["diff"]


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


def test_lost_at_the_distance_that_is_named():
    """Fails if the NLL is read at another distance or direction than the question says."""
    line = [{"nll_forget": nll} for nll in (6.0, 5.0, 1.0)]
    slices = {
        "EFUF": [{"relapse": line, "attack": line[:1] * 3}],
        "SARE": [{"relapse": [line[0], line[0], line[1]], "attack": line}],
    }
    asked = tables.lost(slices, (0.0, 0.1, 0.2), [("relapse", 0.2), ("attack", 0.1)])
    assert asked == {
        "NLL lost at distance 0.2 along the relapse direction, nats, EFUF against SARE": (
            [5.0],
            [1.0],
            -1,
        ),
        "NLL lost at distance 0.1 along the attack direction, nats, EFUF against SARE": (
            [0.0],
            [1.0],
            -1,
        ),
    }
    with pytest.raises(ValueError):
        tables.lost(slices, (0.0, 0.1), [("relapse", 0.2)])


GRID = {(0.1, 0.0): RESULTS["EFUF"], (0.1, 0.2): RESULTS["SARE"]}


def test_front_keeps_settings_and_values_together():
    """Fails if a point of the front carries another setting's values, or is not drawn."""
    front = tables.front(GRID)
    assert [(point["lambda_neg"], point["rho"]) for point in front] == list(GRID)
    assert [point["relapse"] for point in front] == [[96.0] * 3, [128.0] * 3]
    assert front[0]["stop_level"] == [6.5, 7.5, 8.5] and front[1]["area"][0] < front[0]["area"][0]
    first = "lambda_neg 0.1  rho 0    relapse 96 [96, 96] (n = 3)   recall 90.0 %"
    first += "   NLL of grounded text 0.250   level 7.5"
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
    rhos = [rho for _, rho in GRID for _ in range(SEEDS)]
    drawn = tables.dots(columns, ranks, LATE["EFUF"] + LATE["SARE"], rhos, ["slope"])
    assert drawn["group"] == ["rho 0"] * 3 + ["rho 0.2"] * 3
    assert drawn["gauges"]["slope"]["values"] == columns["slope"]
    figures.fig_gauges(drawn)
    plt.close("all")


def test_flatter_at_the_books_own_settings():
    """Fails if another setting of the front is taken for EFUF or SARE."""
    keys = [(0.1, 0.0), (0.1, 0.2), (0.3, 0.0), (0.1, 0.0), (0.1, 0.2)]
    found = tables.flatter({"slope": [1, 2, 3, 4, 5]}, keys, {"slope": -1})
    assert found == {"slope, EFUF against SARE": ([1, 4], [2, 5], -1)}


def test_lines_are_drawn_under_their_own_style():
    """Fails if figures.fig_slices cannot draw them."""
    drawn = tables.lines((0.1, 0.2), {"fp32": [[1.0, 1.0]], "bf16": [[0.5, 0.9]]})
    assert drawn["lines"]["bf16"] == {"method": "bf16", "curves": [[0.5, 0.9]]}
    figures.fig_slices(drawn, "cosine")
    plt.close("all")


def test_only_pairs_that_were_attacked_are_compared():
    """Fails if the fast preset, with two methods, is asked for more."""
    text = tables.later(LATE, [("SARE", "EFUF"), ("SARE", "NPO")])
    gain = stats.spell_paired(LATE["SARE"], LATE["EFUF"], 0)
    assert text == f"samples until relapse, SARE - EFUF: {gain}"
    assert tables.at_the_end(RESULTS, "SARE") == {"SARE": [25.0] * 3}


def test_controls_carry_their_level_and_distance():
    """Fails if level, distance and steps change places, or a control is asked the wrong way."""
    few = {name: RESULTS[name][:1] for name in ("EFUF", "SARE")}
    assert tables.trained(few).splitlines()[1] == (
        f"{'SARE':30s} level 6.5 (one seed)   from the base model 2.0 (one seed)"
        "   steps 20.0 (one seed)"
    )
    facts = tables.facts(LATE, few)
    assert list(facts) == ["relapse", "stop_level", "distance"]
    assert facts["stop_level"] == {"EFUF": [6.5], "SARE": [6.5]}
    asked = tables.rivals(LATE, ["EFUF"])
    (row,) = tables.ask("C8", "a", "ch. 04", asked)
    assert row["diff"] > 0 and "“EFUF” against SARE" in row["metric"]


def test_the_bill_counts_passes():
    """Fails if a step is billed at another method's cost, or without its share of forget rows."""
    few = {name: RESULTS[name] for name in ("EFUF", "SARE")}
    bill = tables.bill(few, LATE, COST)
    assert bill["EFUF"]["cost"] == [30, 33, 36] and bill["SARE"]["cost"] == [110, 115.5, 121]
    last = tables.costs(bill, few).splitlines()[1]
    assert last.startswith(f"{'SARE':28s} work 116 [102, 129] (n = 3) forward passes   relapse 125")
    assert last.endswith("CHAIR_s right after 1.0 [-1.5, 3.5] (n = 3) %")
    figures.fig_cost(bill)
    plt.close("all")


def test_attackers_in_columns():
    """Fails if a mean stands under another attacker, or the question names the wrong one."""
    slow = {"EFUF": [640.0] * 3, "SARE": [640.0] * 3}
    lines = tables.attackers({"slow": slow, "fast": LATE}).splitlines()
    assert lines[0] == "samples until CHAIR_s passes 50 %, mean over seeds:   slow   fast"
    assert [line.split() for line in lines[1:]] == [["EFUF", "640", "95"], ["SARE", "640", "125"]]
    (metric, asked), *others = tables.under({"fast": LATE}).items()
    assert metric.endswith("50 %, attack at fast") and asked == (LATE["EFUF"], LATE["SARE"], 1)
    assert not others


def test_attacks_are_judged_by_the_share_that_counts():
    """Fails if an attack on one place is judged there instead of elsewhere."""
    line = {"chair_s": [[1.0, 1.0]] * 2, "elsewhere": [[0.0, 0.5]] * 2, "recall": [[0.9, 0.6]] * 2}
    drawn = {"one place": {"at": [0, 1], "lines": {"EFUF": line, "SARE": line}}}
    (asked,) = tables.attacked(drawn, {"one place": "elsewhere"}).values()
    assert asked == ([25.0, 25.0], [25.0, 25.0], -1)
    rows = tables.ask("C7", "ab", "ch. 04", tables.attacked(drawn, {"one place": "elsewhere"}))
    assert tables.verdicts(rows, drawn, {"one place": "elsewhere"}) == (
        "C7a one place       EFUF 25.0 [25.0, 25.0] (n = 2)   SARE 25.0 [25.0, 25.0] (n = 2)"
        "   -> undecided   (SARE's recall at the strongest: 60 %)"
    )


@pytest.mark.parametrize("name", presets.PRESETS)
def test_rows_of_runs_are_paired_by_seed(name):
    """Fails if a comparison of a chapter lacks a seed, or its runs differ in more than is said."""
    preset = presets.get_preset(name)
    runs = presets.book_runs(preset, "EFUF", "SARE", without="beach")
    attacks = presets.other_attacks(preset)
    assert {key[0] for key in attacks} == set(preset.kinds)
    assert [spec.run for spec in attacks[preset.kinds[0], "SARE"]] == [
        presets.book_run("SARE", seed) for seed in preset.seeds
    ]
    levels, rough = presets.unequal_levels(preset), presets.rough_steps(preset)
    assert [row[0].stop_nll for row in levels.values()] == list(preset.levels)
    assert [row[0].step for row in rough.values()] == [presets.CHEAPER[n] for n in preset.cheaper]
    for row in (*runs.values(), *levels.values(), *rough.values()):
        assert [run.seed for run in row] == list(preset.seeds)
    assert {run.without for row in runs.values() for run in row} == {"beach"}


def test_a_question_without_a_letter_is_named():
    """Fails if a claim drops out of the ledger because nobody gave it an id."""
    asked = {"x": ([1.0, 2.0], [2.0, 3.0], 1), "y": ([1.0, 2.0], [2.0, 3.0], 1)}
    with pytest.raises(ValueError, match="C6: 2 questions, letters 'a'"):
        tables.ask("C6", "a", "ch. 04", asked)
