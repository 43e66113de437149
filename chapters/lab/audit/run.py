"""One audit from checkpoints and files to a report, resumable part by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import jobs
from ..files import named, read_text
from . import material, page, pair, readings
from .bench import SOURCES, Bench
from .measures import judged
from .pace import probe
from .settings import FOR, Part, Settings, choose, parts, spell_time
from .shelf import Shelf, plain, seal, write

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What an audit is asked for. budget: seconds, None for as long as it takes."""

    base: str
    erased: str
    data: str
    out: Path
    settings: Settings = Settings()
    budget: float | None = None


def audit(asked: Asked, say: Say = print, progress: bool | None = None) -> dict:
    """Measure what is missing in OUT/parts, then write OUT/audit.json and OUT/report.html; returns
    the JSON.

    say: takes a line before the work starts (an estimate) and for each part that is not trusted.
    progress: False for no bar, None for one on a terminal. Raises ValueError naming argument or
    file before any long work.
    """
    checkpoints = pair.check(asked.base, asked.erased)
    found = material.read(asked.data, asked.settings)
    planned = parts(asked.settings, found.n_questions)
    stamps = stamps_of(planned, checkpoints, found, asked.settings)
    shelf, results = Shelf(_made(asked.out) / "parts"), {}
    for part in planned:
        kept, why = shelf.read(part.name, stamps[part.name])
        if kept is not None:
            results[part.name] = kept
        elif why:
            say(f"{why}: {part.name!r} is measured anew.")
    bench = Bench(checkpoints, found, asked.settings)
    kept, dropped = _plan(asked, bench, planned, stamps, results, say)
    left = [part for part in kept if part.name not in results]
    bar = tqdm(left, disable=None if progress is None else not progress, unit="part")
    for part in bar:
        bar.set_description(part.name)
        bench.said = results.get("said", {}).get("captions", [])
        results[part.name] = shelf.write(part.name, stamps[part.name], bench.do(part))
    facts = _facts(asked, checkpoints, found, results)
    ordered = {part.name: results[part.name] for part in kept}
    whole = plain(readings.whole(facts, asked.settings, ordered, dropped))
    write(asked.out / "audit.json", json.dumps(whole, indent=1) + "\n")
    write(asked.out / "report.html", page.html(whole))
    return whole


def _made(out: Path) -> Path:
    """The folder, there and writable before the work begins."""
    try:
        with named(out):
            out.mkdir(parents=True, exist_ok=True)
            (out / ".writable").touch()
            (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out {error}") from error
    return out


def stamps_of(
    planned: Sequence[Part],
    checkpoints: pair.Pair,
    found: material.Material,
    settings: Settings,
) -> dict[str, dict]:
    """Part's name -> what it is measured for: the checkpoints it depends on, the data, its own
    settings and those of all, the device, the code and its libraries' versions.
    """
    common = {key: getattr(settings, key) for key in ("test", "train", "skip", "level", "tokens")}
    common |= {
        "convention": settings.convention,
        "synonyms": seal("", read_text(settings.synonyms)),
    }
    return {
        part.name: {
            **{
                which: checkpoints.prints[which] for which in FOR.get(part.kind, checkpoints.prints)
            },
            "data": found.fingerprint,
            "settings": common | part.own,
            "device": pair.device_name(),
            "code": jobs.key("", SOURCES),
        }
        for part in planned
    }


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on most."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def _plan(
    asked: Asked, bench: Bench, planned: Sequence[Part], stamps: dict, done: dict, say: Say
) -> tuple[list[Part], list[dict]]:
    """(parts to have, [{"part", "why"} of those that are left out]); decided once, so that a run
    that was stopped goes on with the same parts.
    """
    shelf, stamp = Shelf(asked.out), {"budget": asked.budget, "parts": seal("", plain(stamps))}
    known, why = shelf.read("plan", stamp)
    if why.endswith("broken"):
        say(f"{why}: it is made anew.")
    is_new = known is None
    dropped = _too_large(planned, done, bench) if is_new else known["dropped"]
    kept = _without(planned, dropped)
    if any(part.name not in done for part in kept):
        pace = probe(bench, {part.kind for part in kept if part.name not in done})
        if is_new:
            over = choose(kept, pace, asked.budget, done)[1]
            dropped += [{"part": part.name, "why": "beyond the budget"} for part in over]
            kept = _without(planned, dropped)
        left = [part for part in kept if part.name not in done]
        total = spell_time(sum(pace.seconds(part) for part in left))
        say(f"About {total} for {len(left)} of {len(planned)} parts, as a probe has it.")
    for row in dropped:
        say(f"Left out: {row['part']} ({row['why']}).")
    shelf.write("plan", stamp, {"dropped": dropped})
    return kept, dropped


def _without(planned: Sequence[Part], dropped: Sequence[dict]) -> list[Part]:
    names = {row["part"] for row in dropped}
    return [part for part in planned if part.name not in names]


def _too_large(planned: Sequence[Part], done: dict, bench: Bench) -> list[dict]:
    """Parts that a GPU's memory cannot hold, in fp32 where weights train."""
    heavy = [part for part in planned if part.work.copies and part.name not in done]
    if not heavy or not torch.cuda.is_available():
        return []
    there, n = torch.cuda.mem_get_info()[1], bench.n_weights()
    needs = {part.name: 4 * n * (1 + part.work.copies) for part in heavy}
    return [
        {"part": name, "why": f"needs about {need / 2**30:.0f} GiB of GPU memory"}
        for name, need in needs.items()
        if need > there
    ]


def _facts(asked: Asked, checkpoints: pair.Pair, found: material.Material, results: dict) -> dict:
    """What was audited, on what, where."""
    rows, _ = judged(results["said"]["captions"], found.train_truth, found.rules)
    return {
        "base": {"path": asked.base, "print": checkpoints.prints["base"]},
        "erased": {
            "path": asked.erased,
            "print": checkpoints.prints["erased"],
            "is_adapter": checkpoints.is_adapter,
        },
        "data": {
            "path": asked.data,
            "print": found.fingerprint,
            "test": len(found.test),
            "train": len(found.train),
            "questions": found.n_questions,
            "hallucinated": len(rows),
        },
        "settings": asdict(asked.settings) | {"synonyms": Path(asked.settings.synonyms).name},
        "device": pair.device_name(),
        "versions": versions(),
    }
