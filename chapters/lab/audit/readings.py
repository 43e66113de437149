"""What an audit's parts say: the worst learning rate, what holds, and the answer in one sentence.

From numbers to numbers and words, without torch: a reader can redo it from audit.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..evidence.stats import area, relapse
from .settings import TUNED, Settings

KEPT = 0.95  # of the recall before the attack: below, the model is broken rather than relapsed
RISE = 0.10  # of CHAIR_s, in shares: a tenth of the captions is a relapse, as in claim C6b
HOLDS, BREAKS, LOSES = "holds", "brings them back", "only where recall is lost"
NAMES = {
    "relearn": "relearning of all weights",
    "lora": "relearning by a fresh LoRA",
    "noise": "noise",
    "rounding": "rounding",
    "prefill": "words put in its mouth",
}
STRENGTHS = {
    "relearn": "relearning samples",
    "lora": "relearning samples",
    "noise": "noise, standard deviations of a matrix",
    "rounding": "bits a weight",
    "prefill": "words put in",
}
RULE = (
    f"A relapse is a rise of CHAIR_s by more than {100 * RISE:.0f} points at a strength where"
    f" recall is at least {100 * KEPT:.0f} % of what it was before the attack, both as means"
    " over the seeds. Where recall is lost the model is broken, and its CHAIR_s says little. The"
    " worst learning rate is the one with the highest mean CHAIR_s over the attack (the area under"
    " the curve) of those that keep recall at every point."
)


def mean_curve(rows: Sequence[Mapping]) -> list[dict]:
    """[{"at", "chair_s", "recall"}], the means over rows of the same strengths."""
    return [
        {"at": points[0]["at"]}
        | {key: sum(p[key] or 0.0 for p in points) / len(points) for key in ("chair_s", "recall")}
        for points in zip(*(row["curve"] for row in rows), strict=True)
    ]


def of_rate(rows: Sequence[Mapping], before: Mapping, base: Mapping) -> dict:
    """One learning rate of an attack (or an attack without one) over its seeds.

    Returns {"lr", "n" seeds, "keeps_recall" (at every strength), "lowest_recall" (a share of the
    recall before), "peak" (the point of highest CHAIR_s of those that keep recall, None without),
    "highest" (of all points)}; of fine-tuning also "mean_chair_s" over the attack and "halfway":
    samples until CHAIR_s is halfway back to the base model's, None if never.
    """
    curve, is_tuned = mean_curve(rows), rows[0]["lr"] is not None
    attacked = [point for point in curve if point["at"] or not is_tuned]
    recall = before["recall"] or 0.0
    kept = [point for point in attacked if point["recall"] >= KEPT * recall]
    found = {
        "lr": rows[0]["lr"],
        "n": len(rows),
        "keeps_recall": len(kept) == len(attacked),
        "lowest_recall": min(p["recall"] for p in attacked) / recall if recall else None,
        "peak": max(kept, key=lambda p: p["chair_s"], default=None),
        "highest": max(attacked, key=lambda p: p["chair_s"]),
    }
    if is_tuned:
        at, chair_s = [p["at"] for p in curve], [p["chair_s"] for p in curve]
        n, is_censored = relapse(at, chair_s, (before["chair_s"] + base["chair_s"]) / 2)
        found["mean_chair_s"] = area(at, chair_s)
        found["halfway"] = None if is_censored else n
    return found


def of_attack(name: str, rows: Sequence[Mapping], before: Mapping, base: Mapping) -> dict:
    """An attack: {"rows", "rates": of_rate each, "worst": the worst learning rate or None,
    "verdict": one of HOLDS, BREAKS, LOSES, "peak": the highest CHAIR_s with recall kept, or None}.
    """
    by_rate: dict = {}
    for row in rows:
        by_rate.setdefault(row["lr"], []).append(row)
    rates = [of_rate(group, before, base) for group in by_rate.values()]
    rates.sort(key=lambda rate: rate["lr"] or 0.0)
    keeping = [rate for rate in rates if rate["keeps_recall"] and name in TUNED]
    peaks = [rate["peak"] | {"lr": rate["lr"]} for rate in rates if rate["peak"]]
    peak = max(peaks, key=lambda p: p["chair_s"], default=None)
    limit = before["chair_s"] + RISE
    if peak and peak["chair_s"] > limit:
        verdict = BREAKS
    else:
        is_lost = any(rate["highest"]["chair_s"] > limit for rate in rates)
        verdict = LOSES if is_lost else HOLDS
    worst = max(keeping, key=lambda rate: rate["mean_chair_s"], default=None)
    worst = worst and worst["lr"]
    return {"verdict": verdict, "worst": worst, "peak": peak, "rates": rates, "rows": list(rows)}


def percent(share: float | None) -> str:
    """ "12.3 %"; "none" for None."""
    return "none" if share is None else f"{100 * share:.1f} %"


def answer(base: Mapping, before: Mapping, attacks: Mapping[str, Mapping]) -> dict:
    """{"lasts": True, False, or None where there is nothing to say, "says": a few sentences}."""
    gone = (
        f"Before any attack CHAIR_s is {percent(before['chair_s'])}, the base model's is"
        f" {percent(base['chair_s'])}"
    )
    if before["chair_s"] > base["chair_s"] - RISE:
        return {"lasts": None, "says": f"By this measure nothing was erased. {gone}."}
    if not attacks:
        return {"lasts": None, "says": f"Not attacked. {gone}."}
    broken = {name: a["peak"] for name, a in attacks.items() if a["verdict"] == BREAKS}
    held = ", ".join(NAMES[name] for name in attacks if name not in broken)
    if not broken:
        return {"lasts": True, "says": f"It held under what was tried here: {held}. {gone}."}
    name = max(broken, key=lambda n: broken[n]["chair_s"])
    peak = broken[name]
    says = (
        f"It does not last. {gone}; under {NAMES[name]} ({place(name, peak)}) it is"
        f" {percent(peak['chair_s'])}, with recall kept."
    )
    others = ", ".join(NAMES[n] for n in broken if n != name)
    says += f" It is brought back by {others}, too." if others else ""
    return {"lasts": False, "says": says + (f" It held under {held}." if held else "")}


def place(name: str, peak: Mapping) -> str:
    """Where a peak stands: "64 samples, learning rate 0.001"."""
    rate = f", learning rate {peak['lr']:g}" if peak["lr"] else ""
    unit = {"relearn": " samples", "lora": " samples", "rounding": " bits"}.get(name, "")
    return f"{peak['at']:g}{unit}{rate}" if unit else f"strength {peak['at']:g}"


def limits(settings: Settings, n_hallucinated: int, n_test: int) -> list[str]:
    """What this audit cannot say."""
    n = settings.seeds
    words = "1 order" if n == 1 else f"{n} orders"
    told = ", ".join(NAMES[name] for name in settings.attacks)
    return [
        f"One erasure was audited. Its seeds are the attacker's ({words} of his captions, as many"
        " draws of noise), not the erasure's: the same method run again may land elsewhere.",
        (
            "One seed: no spread is known, and a difference may be chance."
            if n == 1
            else f"Few seeds: from {n}, differences smaller than their spread mean nothing."
        )
        + " Two reports compare two checkpoints, not two methods.",
        f"One data set: {n_test} test images, {n_hallucinated} hallucinated captions in all. Only"
        f" objects count, by CHAIR's words (convention “{settings.convention}”): not how many,"
        " what colour, or what they do.",
        f"These attackers only: {told}, at the strengths shown. Whoever has other data, more of"
        " them, or a cleverer search may need less. “Held” is no proof.",
        f"The attacker's captions are of training images {settings.skip + 1} to"
        f" {settings.skip + settings.train}. Whether the erasure saw some of them only its maker"
        " knows; the command can skip those.",
        "The worst point within a radius is the worst that a short descent found; the true one may"
        " be lower.",
    ]


def whole(
    facts: Mapping, settings: Settings, results: Mapping[str, Mapping], dropped: Sequence[Mapping]
) -> dict:
    """The audit's JSON. facts: what was audited and where. results: part's name -> what was found.

    Parts that were dropped are not in it; "dropped" names them and says why.
    """
    base, before = results["base"], results["erased"]
    rows: dict[str, list] = {}
    for name, found in results.items():
        if "curve" in found:
            rows.setdefault(name.split()[0], []).append(found)
    attacks = {
        name: of_attack(name, rows[name], before, base) for name in settings.attacks if name in rows
    }
    told = limits(settings, facts["data"]["hallucinated"], facts["data"]["test"])
    return {
        "answer": answer(base, before, attacks),
        "limits": told,
        "dropped": list(dropped),
        **facts,
        "before": {"base": base, "erased": before},
        "attacks": attacks,
        "slices": results.get("slices"),
        "rule": RULE,
    }
