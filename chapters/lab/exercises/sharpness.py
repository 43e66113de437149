"""Chapter 01: lengths of perturbations, a step of SAM by hand, and what random directions see."""

from __future__ import annotations

import math

from .verdict import compare, exercise, filled

N_WEIGHTS, ADDED = 216_000, 0.001
N_DIMENSIONS, CURVATURE = 10_000, 100.0


@exercise
def length(my_length: float | None) -> str:
    """The L2 length of a perturbation that adds ADDED to each of N_WEIGHTS weights."""
    filled(my_length=my_length)
    mistakes = {
        "that is the sum of all changes, the L1 length.": ADDED * N_WEIGHTS,
        "that is the largest change of a single weight, the L-infinity length.": ADDED,
        "that is the *squared* length: take the root.": ADDED**2 * N_WEIGHTS,
    }
    otherwise = "the L2 length is the root of the sum of the squared changes."
    right = ADDED * math.sqrt(N_WEIGHTS)
    compare("my_length", my_length, right, mistakes, otherwise, within=0.0005)
    return "over many weights a step of length 0.5 changes each by very little."


@exercise
def flips_at(my_rho: float | None) -> str:
    """The rho at which 4 w^2 and 0.12 + (w - 3)^2 have equal worst cases at their bottoms."""
    filled(my_rho=my_rho)
    mistakes = {
        "that is rho squared.": 0.04,
        "that compares the losses at the bottoms: compare the worst ones within rho.": 0.0,
        "that is the difference in depth. How far does each valley rise within rho?": 0.12,
        "you let the narrow valley rise by 4 rho^2. The wide one rises, too.": math.sqrt(0.12 / 4),
    }
    otherwise = "write down the worst loss within rho of each bottom, and set the two equal."
    compare("my_rho", my_rho, math.sqrt(0.12 / (4 - 1)), mistakes, otherwise)
    return "which minimum is the better place depends on how far the weights may be moved."


@exercise
def sam_step(my_weight: float | None) -> str:
    """Where one step of SAM on w^2 leads from w = 1, with rho 0.5 and learning rate 0.1."""
    filled(my_weight=my_weight)
    mistakes = {
        "that is the plain step, by the slope at 1. SAM takes the slope at the point where its"
        " step up leads.": 0.8,
        "you went down from the point at 1.5. The slope found there is used at home.": 1.2,
        "that is only the step up; the step down is missing.": 1.5,
        "your first step goes *down*. It must go up the slope, to the worst nearby place.": 0.9,
        "your step up has the length rho times the slope. It is normalised: its length is rho"
        " itself.": 0.6,
        "the last step goes up. With the slope found, descend.": 1.3,
    }
    otherwise = "three steps: up by rho along the slope's sign; the slope there; down from w = 1."
    compare("my_weight", my_weight, 0.7, mistakes, otherwise)
    return "SAM looks at the slope where it would hurt most, and goes down from where it stands."


@exercise
def sharp_and_random(my_sharp: float | None, my_random: float | None) -> str:
    """How much a loss with one sharp direction rises: along it, and in a random direction."""
    filled(my_sharp=my_sharp, my_random=my_random)
    right = CURVATURE / 2
    mistakes = {
        "my_sharp lacks the half: a quadratic rises by curvature / 2 * length^2.": CURVATURE,
    }
    otherwise = "my_sharp: a quadratic rises by curvature / 2 * length^2."
    compare("my_sharp", my_sharp, right, mistakes, otherwise)
    mistakes = {
        "my_sharp is right. A random direction is not the sharp one: what share of its squared"
        " length lies along it?": right,
        "my_sharp is right. That is the share of the *length* along the sharp direction; the loss"
        " rises with its square.": right / math.sqrt(N_DIMENSIONS),
        "my_sharp is right. my_random lacks the half again.": CURVATURE / N_DIMENSIONS,
        "my_sharp is right. Not quite zero: each of the 10,000 directions gets its share.": 0.0,
    }
    otherwise = "my_sharp is right. my_random: the squared length 1 is spread over 10,000 weights."
    compare("my_random", my_random, right / N_DIMENSIONS, mistakes, otherwise, within=1e-4)
    return "random noise hardly meets a sharp direction, so it says nothing of the worst one."
