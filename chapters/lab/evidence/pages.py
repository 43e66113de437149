"""The ledger as Markdown: the page figures/claims.md, and the README's table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import files
from . import stats
from .plan import Plan

MARK = "<!-- claims: written by `make evidence` from figures/rows.csv -->"
SAME = "no difference larger than the margin"
# What a primary asks of its claim, where that is less than the claim says: the plan's words stay
ASKED = {
    "C5a": "of recall",
    "C7a": "is it less than EFUF's, on average over ten?",
    "C8a": "does the step's direction matter?",
    "C8b": "does its target?",
}
ORDER = ("refuted", "not comparable", "undecided", SAME, "supported", "not tested")
RULES = """# The claims ledger

Written by `make evidence` from rows*.csv; do not edit. What is compared, on which seeds and with
which margin stands in [the plan](../chapters/lab/evidence/claims.toml). Its endpoints, arms, seeds,
margins and levels were committed before the run (plan 788f4c02). **The words of C6 and one reason
were changed while the run went on**, before a result was looked at; only our word stands for that.
So the rows carry the later plan's hash.

A value is first averaged over orders of erasure and of attack within a seed. The difference is
taken seed by seed, with a 95 % t interval. The rules, in this order:

- *not comparable*: the arms' mean levels lie more than 0.1 nats apart where the plan asks for one,
  or some run did not reach its level.
- *no difference larger than the margin*: two one-sided t tests. What differs and is too small to
  matter comes here too. A bound that is kept (not less, not more) stays *supported*.
- *supported*: a two-sided t test against no difference (less, more) or against the margin (not
  less, not more), and the difference lies on the claim's side. *refuted*: on the other side.
- *undecided*: none of these.

Each of the two tests is at level {alpha} over all {n} primaries, by Holm. A primary that is missing
or not comparable counts as p = 1. All other rows are exploratory: their reading follows the same
rules without Holm, so that some of them are chance.
"""


class Spelled(float):
    """A number that a sentence shows with one decimal unless it asks for others."""

    def __format__(self, spec: str) -> str:
        return super().__format__(spec or ".1f")


def digits(row: Mapping) -> int:
    """Decimals that a row of the ledger is shown with: its margin says what matters."""
    return 1 if row["margin"] >= 1 else 2


def difference(row: Mapping) -> str:
    """ "-14.4 [-20.1, -8.7]", "-14.4 (one seed)", or "not tested"."""
    if row["diff"] is None:
        return "not tested"
    n, (low, high) = digits(row), row["ci95"]
    if row["n_seeds"] == 1:
        return f"{row['diff']:+.{n}f} (one seed)"
    return f"{row['diff']:+.{n}f} [{low:.{n}f}, {high:.{n}f}]"


def p_value(p: float | None) -> str:
    """ "0.012", "< 0.001", or nothing."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def levels(row: Mapping) -> str:
    """Where the arms ended, in words, for a row that is not comparable."""
    ends = []
    for arm, share in zip(("baseline", "sare"), row["reached"], strict=True):
        level = row[f"level_{arm}"]
        ended = f"{arm} at {level['mean']:.2f} nats" if level else f"{arm} without a level"
        ends.append(ended + ("" if share == 1 else f", {100 * share:.0f} % of runs reached it"))
    return "; ".join(ends)


def summary(rows: Sequence[Mapping], plan: Plan, again: Sequence[Mapping] = ()) -> str:
    """The README's table: the primaries in the plan's order, in the plan's words.

    rows: the ledger's, as `ledger.judge` returns them; again: those of other seeds, which get a
    column of their own.
    """
    found, others = ({row["id"]: row for row in block} for block in (rows, again))
    lines = ["| the paper's claim | what was found | verdict |", "|---|---|---|"]
    if again:
        most = max(row["n_seeds"] or 0 for row in again)
        lines = [f"{lines[0]} on {most} other seeds |", f"{lines[1]}---|"]
    for id in plan.primaries:
        row, text = found[id], ""
        if row["diff"] is not None and row["verdict"] != "not comparable":
            values = dict(zip(("low", "high"), row["ci95"], strict=True))
            values |= {key: row[key] for key in ("diff", "baseline", "sare")}
            spelled = {key: Spelled(value) for key, value in values.items()}
            text = plan.rows[id].sentence.format(**spelled, n=row["n_seeds"])
        claim = re.split(r"[:,] (?![^(]*\))", row["claim"])[
            0
        ]  # its first words: claims.md has the whole
        claim += f" (asked: {ASKED[id]})" if id in ASKED else ""
        cells = [f"**{id}** {claim}", text, verdict(row)]
        cells += [_again(others[id])] if again else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _again(row: Mapping) -> str:
    """What other seeds say of a primary, in a cell."""
    return row["verdict"] if row["diff"] is None else f"{difference(row)}: {row['verdict']}"


def table(rows: Sequence[Mapping]) -> str:
    """Rows of the ledger as Markdown, those that fail on top."""
    lines = [
        "| row | measured (chapter) | baseline | compared | difference, 95 % interval | expected,"
        " margin | seeds with that sign; erasures, attacks | p, by Holm; p of equivalence, by Holm"
        " | verdict |",
        "|---" * 9 + "|",
    ]
    for row in sorted(rows, key=_failures_first):
        cells = [f"**{row['id']}**", f"{row['metric']} ({row['chapter']})"]
        cells += _numbers(row) if row["verdict"] != "not tested" else [""] * 6
        lines.append(f"| {' | '.join([*cells, verdict(row)])} |")
    return "\n".join(lines)


def _failures_first(row: Mapping) -> tuple[int, str]:
    known = row["verdict"] in ORDER
    return (ORDER.index(row["verdict"]) if known else len(ORDER), row["id"])


def _numbers(row: Mapping) -> list[str]:
    """The middle cells of a row that was tested."""
    tests = [
        p_value(row[key]) + (f", {p_value(row[f'{key}_holm'])}" if row["primary"] else "")
        for key in ("p", "p_same")
    ]
    agree = f"{row['seeds_agreeing']} of {row['n_seeds']}"
    return [
        *(f"{row[arm]:.{digits(row)}f}" for arm in ("baseline", "sare")),
        difference(row),
        f"{row['expect']}, {row['margin']:g}",
        f"{agree}; {row['n_orders']}, {row['n_attacks']}",
        "; ".join(tests),
    ]


def verdict(row: Mapping) -> str:
    """A row's last cell: verdict, or reading of an exploratory row; levels where they differ."""
    if row["verdict"] == "not comparable":
        return f"**not comparable**: {levels(row)}"
    if row["verdict"] == "exploratory":
        return f"exploratory: {row['reading']}"
    if row["primary"]:
        is_small = row["verdict"] in ("supported", "refuted") and abs(row["diff"]) < row["margin"]
        is_small = is_small and not row["expect"].startswith("not")
        return f"**{row['verdict']}**" + f", less than the {row['margin']:g} that matter" * is_small
    return row["verdict"]


def blocks_table(blocks: Mapping[str, Sequence[Mapping]]) -> str:
    """Each row that more than one set of seeds tested: its estimates, whether the verdicts agree,
    and the estimate over all seeds. blocks: {name: rows}.
    """
    found = {name: {row["id"]: row for row in rows} for name, rows in blocks.items()}
    names = [
        f"{name} ({max(row['n_seeds'] or 0 for row in rows)} seeds at most)"
        for name, rows in blocks.items()
    ]
    lines = [f"| row | {' | '.join(names)} | agree | all seeds |", "|---" * (3 + len(names)) + "|"]
    for id in next(iter(found.values())):
        rows = [block[id] for block in found.values()]
        if sum(row["verdict"] != "not tested" for row in rows) < 2:
            continue
        cells = [
            "not tested" if row["diff"] is None else f"{difference(row)} {verdict(row)}"
            for row in rows
        ]
        agree = len({(row["verdict"], row["reading"]) for row in rows}) == 1
        lines.append(
            f"| **{id}** | {' | '.join(cells)} | {'yes' if agree else 'no'} |{_pool(rows)}|"
        )
    return "\n".join(lines)


def _pool(rows: Sequence[Mapping]) -> str:
    """All seeds of rows that were compared as one sample; nothing where fewer than two can be."""
    usable = [r for r in rows if r["se"] and r["verdict"] != "not comparable"]
    if len(usable) < 2:
        return " "
    columns = ([r[key] for r in usable] for key in ("diff", "se", "n_seeds"))
    mean, low, high, p = stats.of_all(*columns)
    n = digits(rows[0])
    return f" {mean:+.{n}f} [{low:.{n}f}, {high:.{n}f}], p of one mean {p_value(p)} "


def page(blocks: Mapping[str, Sequence[Mapping]], plan: Plan) -> str:
    """The whole ledger as a Markdown page. blocks: {name of a set of seeds: its rows}, the book's
    first.
    """
    rows = next(iter(blocks.values()))
    parts = [
        RULES.format(alpha=plan.alpha, n=len(plan.primaries)),
        f"Plan `{plan.hash}`.\n",
        "## The primaries\n",
        table([row for row in rows if row["primary"]]),
        "\n## Exploratory rows\n",
        table([row for row in rows if not row["primary"]]),
        "\n## On other seeds\n",
    ]
    if len(blocks) > 1:
        parts.append(
            "Last column: all seeds as one sample, with a 95 % t interval, without Holm; and the p"
            " of *the sets have one mean* (Cochran's Q). It was not planned: the verdict stays the"
            f" first set's.\n\n{blocks_table(blocks)}"
        )
    else:
        parts.append("Not run so far.")
    return "\n".join(parts) + "\n"


def put_table(readme: Path, text: str) -> None:
    """Write the table between the README's two marks; ValueError without them."""
    parts = files.read_text(readme).split(MARK)
    if len(parts) != 3:
        raise ValueError(f"{readme}: this mark must stand there twice, around the table: {MARK}")
    files.write_text(readme, f"{parts[0]}{MARK}\n{text}\n{MARK}{parts[2]}")
