"""An audit as one HTML page: the answer and what it cannot say first, then figures with their
numbers. No script, nothing fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .drawing import Line, ceiling, chart, key
from .readings import BREAKS, HOLDS, KEPT, NAMES, STRENGTHS, mean_curve, percent, place
from .settings import TUNED

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Does this erasure last?</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --soft: #5b6472;
  --rule: #d5d9e0; --good: #0f6b3a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --paper: #16181d; --soft: #a3acb9;
  --rule: #3a404a; --good: #6fd39b; --bad: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 980px; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 1.4rem 0 .3rem; }
.answer { font-size: 1.1rem; font-weight: 600; border-left: 4px solid var(--soft);
  padding-left: .7rem; } .lasts { border-color: var(--good); } .fails { border-color: var(--bad); }
.first { break-after: page; } ul { margin: .3rem 0; padding-left: 1.2rem; }
.wide, .where { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .7rem .2rem 0;
  border-bottom: 1px solid var(--rule); }
td + td { white-space: nowrap; }
.where td + td { white-space: normal; overflow-wrap: anywhere; }
small, .key { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.charts { display: flex; flex-wrap: wrap; gap: .5rem; }
.key span { margin-right: 1rem; display: inline-block; }
svg { max-width: 100%; height: auto; } .key svg { vertical-align: middle; }
svg path { fill: none; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .title { font-weight: 600; } svg .tick { fill: var(--soft); font-size: 11px; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
.axis { stroke: var(--soft); } .grid { stroke: var(--rule); stroke-width: .6; }
.level { stroke: var(--soft); stroke-dasharray: 2 4; } .strong { stroke-width: 2.2; }
.faint { stroke-width: .8; opacity: .45; }
path.c0 { stroke: #0173b2; } path.c1 { stroke: #de8f05; } path.c2 { stroke: #029e73; }
path.c3 { stroke: #d55e00; } path.c4 { stroke: #cc78bc; } path.c5 { stroke: #ca9161; }
circle.c0 { fill: #0173b2; } circle.c1 { fill: #de8f05; } circle.c2 { fill: #029e73; }
circle.c3 { fill: #d55e00; } circle.c4 { fill: #cc78bc; } circle.c5 { fill: #ca9161; }
</style></head><body><main>
BODY
</main></body></html>
"""
N_STYLES = 6
BEFORE = {  # measurement -> (its name, percent or a number)
    "nll_forget": ("forget level, nats a token", False),
    "chair_s": ("CHAIR_s: captions that hallucinate", True),
    "chair_i": ("CHAIR_i: mentions that are not there", True),
    "recall": ("recall: objects shown that are named", True),
    "POPE random": ("POPE, random: accuracy", True),
    "POPE popular": ("POPE, popular: accuracy", True),
    "POPE adversarial": ("POPE, adversarial: accuracy", True),
    "yes": ("answers that say yes", True),
    "neither": ("answers neither yes nor no", True),
    "nll_retain": ("NLL of grounded text, nats a token", False),
    "words": ("words a caption", False),
    "objectless": ("captions that name no object", True),
}


def decimal(value: float | None) -> str:
    """ "1.23"; "none" for None."""
    return "none" if value is None else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "wide") -> str:
    """Cells are text. kind: "wide" scrolls where it does not fit, "where" breaks long paths."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<div class="{kind}" tabindex="0"><table><tr>{top}</tr>\n{body}</table></div>'


def html(audit: Mapping) -> str:
    """The page of an audit's JSON (readings.whole)."""
    parts = ['<section class="first">', *_first(audit), "</section>"]
    for name, attack in audit["attacks"].items():
        parts += _attack(name, attack, audit["before"])
    if audit["slices"]:
        parts += _slices(audit["slices"])
    return PAGE.replace("\nBODY\n", "\n" + "\n".join(parts + _about(audit)) + "\n")


def _first(audit: Mapping) -> list[str]:
    """The answer, what it cannot say, both models before any attack, the attacks in a line each."""
    kind = {True: "lasts", False: "fails", None: ""}[audit["answer"]["lasts"]]
    parts = ["<h1>Does this erasure last?</h1>"]
    parts.append(f'<p class="answer {kind}">{escape(audit["answer"]["says"])}</p>')
    parts.append("<h2>What this report cannot say</h2><ul>")
    parts += [f"<li>{escape(limit)}</li>" for limit in audit["limits"]]
    parts.append("</ul>")
    if audit["dropped"]:
        told = "; ".join(f"{row['part']} ({row['why']})" for row in audit["dropped"])
        parts.append(f"<p><b>Not measured:</b> {escape(told)}.</p>")
    parts += ["<h2>Before any attack, and what is kept</h2>", _before(audit["before"])]
    if audit["attacks"]:
        parts += ["<h2>The attacks</h2>", _verdicts(audit["attacks"])]
    return parts


def _before(before: Mapping) -> str:
    rows = []
    for name, (label, is_share) in BEFORE.items():
        spell = percent if is_share else decimal
        rows.append((label, *(spell(before[model][name]) for model in ("base", "erased"))))
    return table(("measured", "base", "erased"), rows)


def _verdicts(attacks: Mapping) -> str:
    rows = []
    for name, attack in attacks.items():
        peak = attack["peak"]
        rows.append(
            (
                NAMES[name],
                f"{ {HOLDS: '✓', BREAKS: '✗'}.get(attack['verdict'], '~') } {attack['verdict']}",
                percent(peak["chair_s"]) if peak else "none",
                percent(peak["recall"]) if peak else "none",
                place(name, peak) if peak else "",
            )
        )
    head = ("attack", "the hallucinations", "highest CHAIR_s with recall kept", "recall there")
    return table((*head, "at"), rows)


def _attack(name: str, attack: Mapping, before: Mapping) -> list[str]:
    """Figure and numbers of one attack."""
    lines = {key: _lines(name, attack, before, key) for key in ("chair_s", "recall")}
    if name in TUNED:
        at = lines["chair_s"][0].x
        marks = [(x, f"{x:g}") for x in at if x == 0 or x >= at[-1] / 8]
    else:
        strengths = [point["at"] for point in attack["rows"][0]["curve"]]
        marks = list(enumerate(["none", *(f"{x:g}" for x in strengths)]))
    drawn = [
        chart(title, lines[metric], STRENGTHS[name], f"{label}, %", marks, 100, levels)
        for metric, title, label, levels in (
            (
                "chair_s",
                "Captions that hallucinate: lower is better",
                "CHAIR_s",
                [(100 * before["base"]["chair_s"], "base model")],
            ),
            (
                "recall",
                "Objects shown that are named: higher is better",
                "recall",
                [(100 * KEPT * (before["erased"]["recall"] or 0), "95 % kept")],
            ),
        )
    ]
    title = NAMES[name][0].upper() + NAMES[name][1:]
    parts = [f"<h2>{escape(title)}</h2>", sentence(name, attack)]
    parts += [key(lines["chair_s"])] * (len(lines["chair_s"]) > 1)
    parts += [f'<div class="charts">{"".join(drawn)}</div>', _numbers(name, attack)]
    return [*parts, _rates(attack)] if name in TUNED else parts


def _groups(attack: Mapping) -> list[tuple[float | None, list[Mapping]]]:
    """(learning rate, its rows), in the order of the rates."""
    rates = [rate["lr"] for rate in attack["rates"]]
    return [(lr, [row for row in attack["rows"] if row["lr"] == lr]) for lr in rates]


def _label(lr: float | None, attack: Mapping) -> str:
    if lr is None:
        return "erased"
    return f"learning rate {lr:g}" + (" (the worst)" if lr == attack["worst"] else "")


def _lines(name: str, attack: Mapping, before: Mapping, metric: str) -> list[Line]:
    """In percent; an attack without samples starts at the model before it."""
    found = []
    for style, (lr, rows) in enumerate(_groups(attack)):
        mean, first = mean_curve(rows), [] if name in TUNED else [before["erased"][metric]]
        curves = [[*first, *(point[metric] for point in row["curve"])] for row in rows]
        whole = [*first, *(point[metric] for point in mean)]
        seeds = [_percents(curve) for curve in curves] if len(rows) > 1 else []
        x = [p["at"] for p in mean] if name in TUNED else list(range(len(whole)))
        found.append(Line(_label(lr, attack), x, _percents(whole), seeds, style % N_STYLES))
    return found


def _percents(curve: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in curve]


def sentence(name: str, attack: Mapping) -> str:
    """What stands above an attack's figure: its seeds, the worst learning rate."""
    n = len({row["seed"] for row in attack["rows"]})
    said = f"{n} seeds, faint, and their mean." if n > 1 else "One seed: no spread is known."
    if name in ("rounding", "prefill"):
        said = "Without chance: one run."
    if name == "prefill":
        said += (
            " Put in are 1: a true caption without its full stop; 2: a comma behind it; 3: “, a”."
            " They name objects that are shown, so recall says little here."
        )
    if name in TUNED:
        worst, highest = attack["worst"], attack["rates"][-1]["lr"]
        said += (
            f" The worst learning rate that keeps {100 * KEPT:.0f} % of recall: {worst:g}."
            + " It is the highest tried: a higher one may be worse." * (worst == highest)
            if worst
            else f" No learning rate keeps {100 * KEPT:.0f} % of recall at every point."
        )
    return f"<p>{escape(said)}</p>"


def _numbers(name: str, attack: Mapping) -> str:
    """CHAIR_s and recall of each row at each strength."""
    strengths = [point["at"] for point in attack["rows"][0]["curve"]]
    head, rows = ["CHAIR_s / recall, % at", *(f"{x:g}" for x in strengths)], []
    for lr, group in _groups(attack):
        for row in group:
            label = [f"lr {lr:g}"] if lr else []
            label += [f"seed {row['seed']}"] if row["seed"] is not None else []
            cells = [_pair(point) for point in row["curve"]]
            rows.append((", ".join(label) or "one run", *cells))
    return table(head, rows)


def _pair(point: Mapping) -> str:
    return " / ".join(percent(point[key]).removesuffix(" %") for key in ("chair_s", "recall"))


def _rates(attack: Mapping) -> str:
    rows = [
        (
            f"{rate['lr']:g}",
            str(rate["n"]),
            percent(rate["mean_chair_s"]),
            "never" if rate["halfway"] is None else f"{rate['halfway']:.0f}",
            percent(rate["lowest_recall"]),
            "yes" if rate["keeps_recall"] else "no",
        )
        for rate in attack["rates"]
    ]
    head = ("learning rate", "seeds", "mean CHAIR_s over the attack", "samples until halfway back")
    return table((*head, "lowest recall, of that before", "recall kept"), rows)


def _slices(found: Mapping) -> list[str]:
    """The loss around the erased weights."""
    ways = {"random": "a random direction", "relapse": "the relapse direction"}
    ways |= {"worst": "the worst point found within the radius"}
    lines = [
        Line(label, found["distances"], found[way], style=style)
        for style, (way, label) in enumerate(ways.items())
    ]
    top = ceiling([value for way in ways for value in found[way]])
    marks = [
        (x, decimal(x)) for x in found["distances"] if x == 0 or x >= found["distances"][-1] / 8
    ]
    said = (
        f"The forget level of {found['n']} hallucinated captions at distances from the erased"
        f" weights: how near is a model that says them again? The erasure moved the weights by"
        f" {decimal(found['moved'])}, the base model's have a length of {decimal(found['length'])}"
        " (L2, without the vision tower). Two reports on one base model share these distances."
    )
    drawn = chart(
        "Around the erased weights", lines, "distance, L2", "forget level, nats", marks, top
    )
    rows = [(label, *map(decimal, found[way])) for way, label in ways.items()]
    head = ("forget level at L2", *map(decimal, found["distances"]))
    return [
        "<h2>The loss around the erased weights</h2>",
        f"<p>{escape(said)}</p>",
        key(lines),
        f'<div class="charts">{drawn}</div>',
        table(head, rows),
    ]


def _about(audit: Mapping) -> list[str]:
    """How it was judged, and what was audited."""
    data, settings = audit["data"], audit["settings"]
    kind = "adapter, merged" if audit["erased"]["is_adapter"] else "checkpoint"
    rows = [
        ("base", audit["base"]["path"], audit["base"]["print"]),
        (f"erased ({kind})", audit["erased"]["path"], audit["erased"]["print"]),
        ("data", data["path"], data["print"]),
    ]
    counts = (
        f"{data['test']} test images, {data['questions']} questions; of {data['train']} captions"
        f" that the base model sampled of training images {data['hallucinated']} hallucinate:"
        f" {settings['level']} measure the forget level, the others are the attacker's."
    )
    versions = ", ".join(f"{name} {version}" for name, version in audit["versions"].items())
    return [
        "<h2>How it is judged</h2>",
        f"<p>{escape(audit['rule'])}</p>",
        "<h2>What was audited</h2>",
        table(("what", "where", "fingerprint"), rows, "where"),
        f"<p>{escape(counts)}</p>",
        f"<p><small>{escape(audit['device'])}; {escape(versions)}.</small></p>",
    ]
