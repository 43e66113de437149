"""Chapter 04: reading a relapse curve, paired intervals, censored runs, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, ttest_ind

from ..evidence import stats
from .verdict import NotYet, compare, exercise, filled, listed, number

SAMPLES, CHAIR_S = (0, 64, 128), (0.0, 0.2, 0.8)
EFUF, SARE = (60.0, 70.0, 40.0, 80.0, 50.0), (50.0, 55.0, 38.0, 60.0, 47.0)
LASTED, LAST = (96, 160, 224, None, None), 640  # samples until 50 %; None: never in the attack
INTERVALS, MARGIN = ((-8.0, -1.0), (-3.0, 2.0), (-9.0, 4.0), (1.0, 9.0)), 5.0
VERDICTS = ("supported", "no difference", "undecided", "refuted")  # of INTERVALS; "less" is claimed


@exercise
def passes_half(my_samples: float | None) -> str:
    """Where the curve CHAIR_S over SAMPLES passes 50 %, by linear interpolation."""
    filled(my_samples=my_samples)
    mistakes = {
        "that is the first *measured* count above 50 %; the curve passes earlier.": 128,
        "that is the last measured count below 50 %; the curve passes later.": 64,
        "you drew the line from 0 samples; it starts at the last point below 50 %.": 80,
        "half of the way to 128 is not where the curve reads half.": 64 + 0.2 * 64,
    }
    right = stats.relapse_samples(SAMPLES, CHAIR_S)
    otherwise = "between 64 and 128 the line rises from 20 % to 80 %: where on its way is 50 %?"
    compare("my_samples", my_samples, right, mistakes, otherwise, within=0.5)
    return "a relapse lies between two measurements, so its time is read off a line."


def _half_widths() -> dict[str, float]:
    """{hint: the half width that a mistake gives}."""
    d, n = np.subtract(SARE, EFUF), len(EFUF)
    t = (stats.interval(d.tolist())[2] - d.mean()) / (d.std(ddof=1) / math.sqrt(n))
    apart = [
        ttest_ind(SARE, EFUF, equal_var=equal).confidence_interval() for equal in (True, False)
    ]
    hint = "takes the two lists apart. Each seed has one pair: take differences first."
    unpaired = (f"your interval {hint}", f"your interval, Welch's, {hint}")
    return {
        **{hint: (ci.high - ci.low) / 2 for hint, ci in zip(unpaired, apart, strict=True)},
        "the normal distribution's 1.96 is for known spreads. Five seeds need Student's t.": (
            norm.ppf(0.975) * d.std(ddof=1) / math.sqrt(n)
        ),
        "the spread is divided by n: divide by n - 1, since the mean is from the same numbers.": (
            t * d.std() / math.sqrt(n)
        ),
        "that is the spread of one seed. The mean's is smaller by the root of n.": (
            t * d.std(ddof=1)
        ),
        "that is the standard error alone: times t.": d.std(ddof=1) / math.sqrt(n),
    }


@exercise
def paired_interval(my_low: float | None, my_high: float | None) -> str:
    """The 95 % interval of the mean of SARE - EFUF, five seeds, paired."""
    filled(my_low=my_low, my_high=my_high)
    low, high = sorted((number("my_low", my_low), number("my_high", my_high)))
    differences = [sare - efuf for sare, efuf in zip(SARE, EFUF, strict=True)]
    mean, right, _ = stats.interval(differences)
    if abs((low + high) / 2 + mean) < 0.1:
        raise NotYet("that is EFUF - SARE: the sign is turned round.")
    otherwise = "the middle of your interval is not the mean of the five differences SARE - EFUF."
    compare("the middle", (low + high) / 2, mean, {}, otherwise, within=0.1)
    otherwise = "the middle is right. The half width is t * sd / sqrt(n), of the differences."
    mistakes = {f"the middle is right. {hint}": value for hint, value in _half_widths().items()}
    compare("the width", (high - low) / 2, mean - right, mistakes, otherwise, within=0.1)
    return "what the seeds share drops out of the differences, and t pays for having only five."


@exercise
def restricted_mean(my_mean: float | None) -> str:
    """The restricted mean of LASTED, whose attacks end at LAST samples."""
    filled(my_mean=my_mean)
    seen = [n for n in LASTED if n is not None]
    mistakes = {
        "you left the two censored runs out, and they are the ones that lasted longest.": (
            sum(seen) / len(seen)
        ),
        "you counted the censored runs as 0: as if they had relapsed at once.": (
            sum(seen) / len(LASTED)
        ),
        "that is the median; the mean is asked for.": 224,
        "that is the end of the attack.": LAST,
    }
    right = sum(LAST if n is None else n for n in LASTED) / len(LASTED)
    otherwise = "five numbers; for a run that never relapsed the attack's end stands."
    compare("my_mean", my_mean, right, mistakes, otherwise, within=0.5)
    return "a censored run lasted *at least* so long, so a restricted mean is a lower bound."


@exercise
def verdicts(my_verdicts: Sequence[str | None] | None) -> str:
    """A verdict for each of INTERVALS, of a difference that is claimed to be below 0."""
    filled(my_verdicts=my_verdicts)
    given = listed("my_verdicts", my_verdicts, len(VERDICTS))
    if None in given:
        raise NotYet(f"put your answer in place of None in my_verdicts[{given.index(None)}].")
    for i, (answer, right, (low, high)) in enumerate(zip(given, VERDICTS, INTERVALS, strict=True)):
        where = f"my_verdicts[{i}], [{low:g}, {high:g}]:"
        if answer not in VERDICTS:
            raise NotYet(f"{where} {answer!r:.40} is no verdict; {', '.join(VERDICTS)} are.")
        if answer != right:
            raise NotYet(f"{where} {_why_not(answer, low, high)}")
    return "an interval over zero is *no difference* only if it is narrow enough for the margin."


def _why_not(answer: str, low: float, high: float) -> str:
    """What speaks against a verdict."""
    spans_zero, is_inside = low < 0 < high, low > -MARGIN and high < MARGIN
    if answer == "no difference":
        side = low if low <= -MARGIN else high
        return f"a difference of {side:g} is not shut out, and it is larger than the margin."
    if answer == "undecided":
        return "it is decided: look where the interval lies, beside zero and inside the margin."
    if spans_zero:
        return "it spans zero: neither side is shut out."
    return "it lies on the other side of zero." if not is_inside else "it is inside the margin."
