"""The plan: which comparisons are made, on which seeds, and what would count as an answer.

It stands in claims.toml and is committed before the run that it judges. Results carry its hash, so
that a plan changed afterwards is seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from .. import files

try:
    import tomllib
except ModuleNotFoundError:  # it came with Python 3.11
    import tomli as tomllib

PATH = Path(__file__).parent / "claims.toml"
CLAIMS = tuple(f"C{n}" for n in range(1, 9))
EXPECT = ("less", "more", "not less", "not more")
HONEST = "honest"  # as a level: where that seed's honest model stands
SPELLED = ("diff", "low", "high", "baseline", "sare", "n")  # what a sentence may hold
ATTACKS = (  # other than relearning
    "LoRA",
    "projector",
    "one place",
    "clean captions",
    "answers",
    "noise",
    "rounding",
    "pruning",
    "prefilled",
    "leading",
)
ENDPOINTS = {  # key -> (words, unit)
    "chair_s": ("CHAIR_s right after erasure", "%"),
    "chair_128": ("CHAIR_s after 128 relearning samples", "%"),
    "chair_end": ("CHAIR_s where the relearning attack ends", "%"),
    "chair_rise_128": ("CHAIR_s before and after 128 relearning samples", "%"),
    "chair_rise_640": ("CHAIR_s before and after 640 relearning samples", "%"),
    "mean_chair_s": ("mean CHAIR_s over the relearning attack", "%"),
    "mean_chair_s_attacks": ("mean CHAIR_s over all other attacks", "%"),
    "mean_chair_s_worst_lr": ("mean CHAIR_s at the worst learning rate of each method", "%"),
    "half_life": ("relearning samples until the NLL of the forgotten words has halved", "samples"),
    "relapse": ("relearning samples until CHAIR_s passes 50 %", "samples"),
    "worst_ball_0.5": ("NLL lost at the worst point within L2 0.5", "nats"),
    "gradient_norm": ("norm of the forget loss's gradient", "nats a unit of weight"),
    "top_eigenvalue": ("top eigenvalue of the forget loss", "nats a squared unit of weight"),
    "share_lost": ("share of the NLL lost at the worst point within L2 0.5", "share"),
    "relapse_radius": ("L2 distance to relapse along the worst direction", "L2"),
    "recall": ("recall", "%"),
    "yes_shown": ("“yes” about objects that are there", "%"),
    "nll_retain": ("NLL of grounded text", "nats"),
    "bleu": ("BLEU", "points"),
    "ppl_true": ("perplexity of true captions", "perplexity"),
    "pope_random": ("accuracy on POPE's random questions", "%"),
    "pope_adversarial": ("accuracy on POPE's adversarial questions", "%"),
}
for _way, _distances in {"relapse": ("0.1", "0.2", "0.5"), "attack": ("0.2", "0.5")}.items():
    for _distance in _distances:
        _words = f"NLL lost at distance {_distance} along the {_way} direction"
        ENDPOINTS[f"nll_lost_{_way}_{_distance}"] = (_words, "nats")
for _attack in ATTACKS:
    ENDPOINTS[f"mean_chair_s, {_attack}"] = (f"mean CHAIR_s over the attack “{_attack}”", "%")
# Claims whose section moved after the run: the plan's own text stays as it was committed
MOVED = {"C2": "02"}


@dataclass(frozen=True)
class Row:
    """One comparison, planned: arm `sare` against arm `baseline`, paired by seed.

    expect: of sare's value against the baseline's, one of EXPECT. margin: the smallest effect that
    would matter, in the endpoint's unit. level: nats a token asked of both arms, HONEST, or None
    where levels are not compared. sentence: the README's words, of primaries alone.
    """

    id: str
    primary: bool
    chapter: str
    endpoint: str
    baseline: str
    sare: str
    expect: str
    margin: float
    level: float | str | None
    why: str
    sentence: str


@dataclass(frozen=True)
class Plan:
    """What claims.toml says. rows: {id: Row}; claims: {id: text}; hash: of the parsed content."""

    seeds: tuple[int, ...]
    second: tuple[int, ...]
    tuning: tuple[int, ...]
    orders: int
    attacks: int
    level: float
    alpha: float
    claims: Mapping[str, str]
    rows: Mapping[str, Row]
    hash: str

    @property
    def primaries(self) -> tuple[str, ...]:
        """The ids of the rows that get a verdict, in the plan's order."""
        return tuple(id for id, row in self.rows.items() if row.primary)


def load(path: str | Path = PATH) -> Plan:
    """Read a plan; raises ValueError naming file, key and mend for anything that is not one."""
    text = files.read_text(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: no TOML ({error}). Mend that line.") from error
    _only(path, "the top", content, ("run", "claim", "row"))
    claims = content["claim"]
    _only(path, "claim", claims, CLAIMS)
    if not isinstance(content["row"], dict):
        raise _wrong(path, "row", "no table", "Write each row as [row.ID].")
    rows = {id: _row(path, id, given) for id, given in content["row"].items()}
    for claim in CLAIMS:
        n_primaries = sum(row.primary for id, row in rows.items() if id[:2] == claim)
        if not 1 <= n_primaries <= (2 if claim == "C8" else 1):
            allowed = "one or two" if claim == "C8" else "exactly one"
            raise _wrong(
                path,
                f"claim.{claim}",
                f"{n_primaries} of its rows are primary",
                f"Set primary = true in {allowed}.",
            )
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return Plan(**_run(path, content["run"]), claims=claims, rows=rows, hash=digest)


def _wrong(path: str | Path, key: str, what: str, mend: str) -> ValueError:
    return ValueError(f"{path}: {key}: {what}. {mend}")


def _only(path: str | Path, where: str, given: object, keys: Sequence[str]) -> None:
    """Raise ValueError unless `given` is a table of exactly these keys."""
    if not isinstance(given, dict):
        raise _wrong(path, where, "no table", f"Write it as [{where}].")
    for key in given:
        if key not in keys:
            raise _wrong(path, f"{where}.{key}", "unknown key", f"There are {', '.join(keys)}.")
    for key in keys:
        if key not in given:
            raise _wrong(path, f"{where}.{key}", "missing", "Add it.")


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _run(path: str | Path, given: dict) -> dict:
    """The [run] table, checked: no seed may serve twice."""
    blocks, numbers = ("seeds", "second", "tuning"), ("orders", "attacks", "level", "alpha")
    _only(path, "run", given, (*blocks, *numbers))
    owner: dict[int, str] = {}
    for block in blocks:
        seeds = given[block]
        if not isinstance(seeds, list) or not seeds or any(type(s) is not int for s in seeds):
            raise _wrong(path, f"run.{block}", "no list of seeds", "Give whole numbers.")
        for seed in seeds:
            if seed in owner:
                what = f"seed {seed} stands in {owner[seed]} too"
                raise _wrong(path, f"run.{block}", what, "Give each seed one use.")
            owner[seed] = block
    for key in numbers:
        whole = key in ("orders", "attacks")
        if not _is_positive(given[key]) or (whole and type(given[key]) is not int):
            mend = f"Give a positive {'whole ' if whole else ''}number."
            raise _wrong(path, f"run.{key}", f"{given[key]!r}", mend)
    if given["alpha"] >= 1:
        raise _wrong(path, "run.alpha", f"{given['alpha']!r}", "Give a share below 1.")
    return given | {block: tuple(given[block]) for block in blocks}


def _row(path: str | Path, id: str, given: object) -> Row:
    """A [row.ID] table, checked."""
    where, texts = f"row.{id}", ("chapter", "endpoint", "baseline", "sare", "expect")
    if not re.fullmatch("C[1-8][a-z]+", id):
        raise _wrong(path, where, "no claim's row", "Name it by claim and letter, as C6a.")
    free = {"primary": False, "level": None, "why": "", "sentence": ""}
    known = free | given if isinstance(given, dict) else given
    _only(path, where, known, (*free, *texts, "margin"))
    for key in (*texts, "why", "sentence"):
        if not isinstance(known[key], str) or (key in texts and not known[key]):
            raise _wrong(path, f"{where}.{key}", f"{known[key]!r}", "Give a text.")
    if not isinstance(known["primary"], bool):
        raise _wrong(path, f"{where}.primary", f"{known['primary']!r}", "Give true or false.")
    if known["endpoint"] not in ENDPOINTS:
        mend = f"There are {'; '.join(ENDPOINTS)}."
        raise _wrong(
            path, f"{where}.endpoint", f"{known['endpoint']!r} is no endpoint of plan.py", mend
        )
    if known["expect"] not in EXPECT:
        mend = f"There are {', '.join(EXPECT)}."
        raise _wrong(path, f"{where}.expect", f"{known['expect']!r} is unknown", mend)
    if not _is_positive(known["margin"]):
        mend = "Give the smallest effect that would matter, a positive number."
        raise _wrong(path, f"{where}.margin", f"{known['margin']!r}", mend)
    _check_level(path, where, known)
    _check_sentence(path, where, known)
    return Row(id=id, **known | {"chapter": MOVED.get(id[:2], known["chapter"])})


def _check_level(path: str | Path, where: str, known: dict) -> None:
    level = known["level"]
    if level is None and not known["why"]:
        mend = "Say in `why` why levels are not compared, or give a level."
        raise _wrong(path, f"{where}.level", "missing", mend)
    if not (level is None or level == HONEST or _is_positive(level)):
        raise _wrong(path, f"{where}.level", f"{level!r}", f'Give nats a token or "{HONEST}".')


def _check_sentence(path: str | Path, where: str, known: dict) -> None:
    """The README's words must be there for a primary, and hold only what can be filled in."""
    where = f"{where}.sentence"
    if known["primary"] and not known["sentence"]:
        raise _wrong(path, where, "missing", "Give a primary row the README's words.")
    try:
        fields = {name for _, name, _, _ in Formatter().parse(known["sentence"])} - {None}
        if odd := sorted(fields - set(SPELLED)):  # {diff.__class__} would look into the program
            raise KeyError(odd[0])
        known["sentence"].format(**dict.fromkeys(SPELLED, 1.0) | {"n": 2})
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        mend = f"It may hold {', '.join(f'{{{name}}}' for name in SPELLED)}."
        raise _wrong(path, where, f"it cannot be filled in ({error})", mend) from error
