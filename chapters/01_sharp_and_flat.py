# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Sharp and flat minima
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/01_sharp_and_flat.ipynb)
#
# **The question.** Two trainings end with nearly the same loss. One of them is
# undone by a nudge to the weights, the other is not. How can that be, and can
# you tell them apart before the nudge comes?
#
# Erasing a hallucination is training too: it ends somewhere in weight space,
# and someone may nudge the weights afterwards, by fine-tuning or by rounding
# them. The claim that this book tests says that ordinary erasure ends in a
# *sharp* place. Before we can test it we need to know what sharp means. It
# turns out to mean several things.
#
# **The answer.** Sharp means nothing until a direction and a distance are named.
# At the worst point within an L2 distance of 0.5, an erased model loses
# <!-- C2a.sare -->4.78<!-- / --> nats of its forgetting, and a model that never
# hallucinated, at the same level,
# <!-- C2a.baseline -->4.11<!-- / -->. The difference is
# <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> nats (claim C2:
# *<!-- C2a.verdict -->supported<!-- / -->*).
#
# **What you will see.** A loss whose lowest point and whose lowest *worst case*
# lie in different places, which is what *sharpness-aware minimisation* (SAM) is
# about; then a real LLaVA that has been made to forget, and how its forgetting
# holds when its weights are moved a given distance: along random directions,
# along the steepest way back, along the straight line to where a fine-tuning
# attacker ends, and in the worst way we can find.
#
# **Time.** About two minutes on two CPU cores if chapter 00 has trained the
# base models, else about four.

# %% tags=["parameters"]
preset = "fast"  # or "full": twelve seeds, as in the book's figures
seeds = ""  # other seeds, e.g. "11 12 13"; empty: the preset's own

# %% [markdown]
# The setup cell finds the book's modules. On Colab it first fetches the
# repository; elsewhere it installs nothing.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("sare-min").exists():
    clone = "git clone -q https://github.com/sare-min/sare-min"
    install = f"{sys.executable} -m pip install -q -e sare-min torchao>=0.16"
    for command in (clone, install):
        subprocess.run(command.split(), check=True)
places = [Path("sare-min").resolve(), Path.cwd(), *Path.cwd().parents]
root = next(p for p in places if (p / "chapters" / "lab").is_dir())
sys.path[:0] = [str(root), str(root / "chapters")]
from lab import jobs

jobs.warm_up()  # workers load the libraries while the next cell does

# %%
import numpy as np
import torch

from lab.evidence import figures, ledger, readings, tables
from lab.experiments import attacks, gauges, landscape, presets
from sare_min.sam import perturbed

setting = presets.get_preset(preset, seeds.split())

# %% [markdown]
# ## One weight, two minima
#
# The black curve is a loss over a single weight. Its left minimum is deeper and
# narrow; its right one is a little shallower and wide. Now suppose that after
# training somebody may move the weight by up to `rho`. The dashed curve gives,
# for each weight, the *worst* loss within that reach. Before you run the cell:
# where is the lowest point of the dashed curve?

# %%
rho = 0.25


def toy_loss(w):
    narrow = 1.0 * np.exp(-(((w + 1.0) / 0.12) ** 2))
    wide = 0.85 * np.exp(-(((w - 0.9) / 0.6) ** 2))
    return 1 - narrow - wide


def toy_worst(w):
    return max(toy_loss(np.linspace(w - rho, w + rho, 51)))


# %% [markdown]
# The first function is the black curve, the second tries 51 points within
# reach. Here are both, with their lowest points marked:

# %%
x = np.linspace(-2, 2.4, 441)
toy = {
    "x": x.tolist(),
    "loss": toy_loss(x).tolist(),
    "worst": [toy_worst(w) for w in x],
    "rho": rho,
}
caption = (
    "A loss over one weight and its worst value within reach of each point."
)
_ = figures.publish(
    "fig_two_minima", "01_two_minima", toy, preset, setting.seeds, caption
)

# %% [markdown]
# The deepest minimum is a bad place to stand: a nudge of 0.25 climbs out of it,
# nearly up to the plateau. The wide one loses little. *Sharp* and *flat* are
# names for this difference, and **sharpness-aware minimisation** is the obvious
# remedy: do not minimise the loss, minimise the dashed curve (its argument is a
# small step $\epsilon$ of length at most $\rho$),
#
# $$\min_w \; \max_{\|\epsilon\| \le \rho} L(w + \epsilon).$$
#
# The inner maximum is not computed by trying 51 points. SAM takes a single step
# of length `rho` up the slope, and uses the gradient found *there* to go down
# from where it came. In `sare_min` the step up is a `with` block: it moves the
# weights, and gives them back bit for bit when the block ends.

# %% tags=["nbval-check-output"]
w = torch.nn.Parameter(torch.tensor([-0.98]))
slope = torch.tensor([2.0])
with perturbed([w], [slope], rho=0.25) as norm:
    lengths = f"(the slope's length was {norm:.0f}, the step's is 0.25)"
    print(f"inside:  w = {w.item():.2f}  ", lengths)
print(f"outside: w = {w.item():.2f}")

# %% [markdown]
# How good is the one-step guess? At a point a little beside each minimum,
# compare the loss, the true worst case within 0.25, and the loss where SAM's
# single step leads.

# %% tags=["nbval-check-output"]
for name, at in (("narrow", -0.98), ("wide", 0.95)):
    uphill = np.sign(toy_loss(at + 1e-4) - toy_loss(at - 1e-4))
    print(
        f"{name:6s}  loss {toy_loss(at):.2f}  ",
        f"worst within 0.25: {toy_worst(at):.2f}  ",
        f"after SAM's step: {toy_loss(at + rho * uphill):.2f}",
    )

# %% [markdown]
# The guess is close here. It need not be: a single step follows the slope at
# its start and knows nothing of what lies behind a ridge, and descent by such
# guesses need not even leave the narrow hole. SAM is a heuristic with a min-max
# formula on its label, and the difference will matter when we look at real
# weights.
#
# ## Two hundred thousand weights
#
# A language model has no single axis to walk along. In which direction should
# we nudge? We take real models: for each seed the base model of chapter 00,
# made to forget its hallucinations by the standard method (EFUF, chapter 02
# explains it), and measure how likely the *forgotten* words are at increasing
# distance from its weights, in three directions:
#
# * **random**: every weight gets Gaussian noise;
# * **relapse**: the steepest way back at the start, the negative gradient of
#   the forgotten words' NLL;
# * **attack**: the straight line to where 256 samples of fine-tuning on
#   hallucinated captions lead.
#
# Distances are L2 lengths over all trained weights together, so that the three
# can be compared. Predict: which one undoes the forgetting first?

# %%
runs = [presets.book_run("EFUF", s) for s in setting.seeds]
_ = attacks.run_all({"EFUF": runs})
wanted = [landscape.Slices(run) for run in runs]
slices = jobs.side_by_side(landscape.slices, wanted, "slices")

# %%
drawn = readings.slices_drawn(
    slices, landscape.DISTANCES, ("random", "relapse", "attack")
)
caption = (
    "NLL of the forgotten spans on held-out scenes, from the weights that "
    "EFUF ends at, in three directions. "
    f"{len(setting.seeds)} seeds (faint), mean, 95 % interval."
)
_ = figures.publish(
    "fig_slices", "01_slices", drawn, preset, setting.seeds, caption
)

# %% [markdown]
# At the left edge the three meet: the erased model, to which the hallucinated
# words are very unlikely (an NLL, the negative log-likelihood, of 8 nats a
# token is one in 3,000). The lower a line goes, the more they are back.
#
# The random line hardly moves at any distance shown. In so many dimensions a
# random vector is almost perpendicular to everything that matters. Whoever
# tests "robustness" by adding noise of this size to the weights measures this
# line. The relapse line drops from the first step on, then flattens or turns:
# the steepest way at the start is not the best way for long. The attack's line
# starts more gently and, in most seeds, goes further down. So the same point is
# flat and steep, depending on where you look. *Sharp* means nothing until
# direction and distance are named.

# %%
travelled = [round(m["attack_distance"], 2) for m in slices]
print(
    "L2 distance that 256 samples of relearning travel, one number a seed:",
    travelled,
)
for way in landscape.DIRECTIONS:
    curves = readings.slice_lines(slices, way, "chair_s")
    crossed = readings.first_past(landscape.DISTANCES, curves, 0.5)
    print(
        f"{way:8s} first distance at which half of the captions "
        f"hallucinate again: {crossed}"
    )

# %% [markdown]
# The second print asks the question in the unit that users feel: at which
# distance does every other caption invent something again? (`None`: at none of
# those measured.) This smallest distance is a fair notion of sharpness for our
# purpose, and we shall call it the **relapse radius** in a given direction.
# Compare it with how far the attacker travels.
#
# ## A map
#
# A line shows one direction at a time. Here is a plane: to the right the
# steepest way back, upwards the part of the attacker's way that is at right
# angles to it. The dot is the erased model; dark is where the hallucination is
# back.

# %%
side = setting.map_points
wanted = [gauges.Plane(run, n_points=side) for run in runs[:2]]
maps = jobs.side_by_side(gauges.measure_plane, wanted, "maps")
axes = ["steepest way back", "rest of the attacker's way"]
planes = readings.planes(setting.seeds[:2], maps, axes)
caption = (
    "NLL of the forgotten spans of 64 held-out captions in a plane through "
    "the weights that EFUF ends at."
)
_ = figures.publish(
    "fig_plane", "01_planes", planes, preset, setting.seeds[:2], caption
)

# %% [markdown]
# The dot does not sit in a bowl. For the *forgotten* words an erased model
# stands on a hillside, with the relapse downhill. So when we say that an
# erasure is *sharp*, we mean that this hillside is steep, or that its edge is
# near.
#
# ## Is standard erasure sharp? (claim C2)
#
# Sharp compared with what? With a model that never learnt to hallucinate: same
# pictures, same training, honest captions (chapter 00's control, here called
# *honest*). Its hallucinated words are unlikely as well, but nobody had to push
# them down. Whoever is higher up has more to lose, so the erasure is *landed*,
# seed by seed, on the very NLL at which the honest model stands, its *forget
# level* (chapter 02 shows how; *passes*, in the print, count work, chapter 03). If erasure
# ends in a sharp place, the erased model must lose more of its forgetting than
# the honest one, when both are moved by the same distance in the worst way.
# Three gauges of that kind:
#
# * the NLL lost at the *worst* point within an L2 distance of 0.5, found by
#   following the gradient and projecting back into the ball (the plan's primary
#   row, C2a);
# * the slope of the forgotten words' NLL, which is its fall for the first small
#   step in the steepest direction;
# * the *curvature*: the largest eigenvalue of the NLL's matrix of second
#   derivatives (the *Hessian*), found by Lanczos' method, which needs only
#   products of that matrix with vectors.

# %%
few = setting.with_honest()
pair = ("honest", "EFUF, honest level")
both = presets.book_runs(few, *pair)
ends = attacks.run_all(both)
wanted = {
    name: [gauges.Gauges(run) for run in row] for name, row in both.items()
}
found = jobs.rows_side_by_side(gauges.measure, wanted, "gauges")
print(tables.beside(ends, *pair))

# %% [markdown]
# A row a gauge, honest against erased; the claim predicts the larger number for
# EFUF. The fourth is the share of the NLL that is lost at the worst point.

# %%
keys = {"C2a": ("worst_ball_0.5", 1), "C2b": ("gradient_norm", 1)}
keys |= {"C2c": ("top_eigenvalue", 1), "C2d": ("share lost", 1)}
values = [
    [
        row | {"share lost": row["worst_ball_0.5"] / row["ce"]}
        for row in found[n]
    ]
    for n in pair
]
questions = tables.measured([ends[n] for n in pair], values, keys)
claims = ledger.record(questions, preset, setting.seeds)
for row in claims:
    levels = f"honest {row['baseline']:.2f}   EFUF {row['sare']:.2f}"
    print(row["endpoint"], "  ", levels, "  ", tables.spell(row))

# %% [markdown]
# A verdict is computed, by rules that stood in a plan
# ([`claims.toml`](lab/evidence/claims.toml)) before the run: *supported* or
# *refuted* if a test says so after Holm's correction for all primary rows, *no
# difference larger than the margin* if two tests shut out any effect that would
# matter, *undecided* if neither, *not comparable* if the two arms do not stand
# at one forget level. Each claim has one primary row (C8 has two). All others
# are *exploratory*: read for, against, no difference or open by the same rules,
# without the correction, so that some are chance.
#
# In the book's run (<!-- C2a.n -->6<!-- / --> seeds have an honest model) the nats
# lost at the worst point differ by <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> (C2a:
# *<!-- C2a.verdict -->supported<!-- / -->*), the slope by
# <!-- C2b.diff -->-9.1 [-21.9, 3.8]<!-- / --> (C2b, exploratory: *<!-- C2b.verdict -->open<!-- / -->*),
# the curvature by <!-- C2c.diff -->-705.6 [-2087.3, 676.1]<!-- / --> (C2c, exploratory:
# *<!-- C2c.verdict -->open<!-- / -->*), the share lost by
# <!-- C2d.diff -->+0.13 [0.05, 0.21]<!-- / --> (C2d, exploratory: *<!-- C2d.verdict -->for<!-- / -->*).
# Where they disagree, the gauge decides; the plan chose C2a beforehand. And
# whatever the rows say, steepness is not yet the reason for anything that
# follows.
#
# ## What we learned
#
# * Two minima of equal loss can differ in what a nudge does to them; SAM looks
#   for the ones that bear it, by one step up before each step down.
# * For a large model, sharpness is a property of a point, *a direction and a
#   distance*. Random noise sees a plain where the relapse direction sees a
#   slope.
# * Is standard erasure sharp (C2)? By the plan's gauge, the NLL lost at the
#   worst point nearby: <!-- C2a.verdict -->supported<!-- / -->,
#   <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> nats.
# * SAM's step up is a normalised gradient step. Taken on the erasure loss of
#   the hallucinations alone, it is the *relapse direction*: one step of
#   relearning. That is chapter 03.
#
# ## What we did not show
#
# That sharpness *predicts* relapse: that needs several methods whose sharpness
# differs (chapters 03 and 04). And L2 is not the only ruler: the attacker's
# optimiser, AdamW, moves every weight by about the same amount, which a ruler
# of largest change (L-infinity) would suit better.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run its cell. It says "right", or "not yet" with a hint
# at the mistake. The [solutions](solutions.md) explain each answer.
#
# ### 1 · How long is a small change? *(easy)*
#
# A perturbation adds 0.001 to each of 216,000 weights. What is its L2 length?

# %% tags=["exercise", "nbval-check-output"]
from lab.exercises import sharpness as check

my_length = None
check.length(my_length)

# %% [markdown]
# ### 2 · Where the choice flips *(easy)*
#
# A narrow valley has the loss $4w^2$, a wide one far away $0.12 + (w - 3)^2$.
# Somebody may move the weight by up to `rho`. For a small `rho` the bottom of
# the narrow valley has the lower *worst* loss. At which `rho` are both bottoms
# equally good?

# %% tags=["exercise", "nbval-check-output"]
my_rho = None
check.flips_at(my_rho)

# %% [markdown]
# ### 3 · One step of SAM by hand *(easy)*
#
# The loss is $w^2$, the weight stands at 1, `rho` is 0.5 and the learning rate
# 0.1 (plain gradient descent). Where is the weight after one step of SAM?

# %% tags=["exercise", "nbval-check-output"]
my_weight = None
check.sam_step(my_weight)

# %% [markdown]
# ### 4 · What a random direction sees *(harder)*
#
# A loss over 10,000 weights stands at its minimum. Along one direction its
# curvature (the second derivative) is 100, along all others it is 0. By how
# much does the loss rise at distance 1 along the sharp direction? And along a
# random one, on average?

# %% tags=["exercise", "nbval-check-output"]
my_sharp, my_random = None, None
check.sharp_and_random(my_sharp, my_random)

# %% [markdown]
# ### 5 · A slice of your own *(open)*
#
# Walk from the base model along the gradient of the hallucinated words' NLL,
# then along a random direction. Predict both rows first. How far must you go
# until the words have become unlikely, and what has happened to the NLL of the
# words to retain by then?
#
# ```python
# from lab.experiments import landscape
# from lab.world import encoded, measured
# from lab.world.kit import get_kit
# from sare_min.llava import trainable
#
# kit = get_kit(setting.seeds[0])
# model, data = kit.fresh(), encoded.masked(kit, "erase")
# back = landscape.relapse_direction(model, data)
# ways = {
#     "away": [-v for v in back],
#     "random": landscape.random_direction(model, seed=0),
# }
# for name, way in ways.items():
#     for nll in landscape.along(
#         trainable(model), way, (0, 0.5, 1, 2), lambda: measured.nll(kit, model)
#     ):
#         print(name, nll)
# ```

# %% [markdown]
# ## Sources
#
# * SAM: Foret et al., *Sharpness-Aware Minimization for Efficiently Improving
#   Generalization*, arXiv 2010.01412.
# * Flat minima: Hochreiter and Schmidhuber, *Flat Minima*, Neural Computation
#   9(1), 1997. That sharpness depends on the ruler: Dinh et al., *Sharp Minima
#   Can Generalize for Deep Nets*, arXiv 1703.04933.
# * SARE: *Sharpness-Aware Robust Erasure of Hallucinations in Multimodal LLMs*,
#   arXiv 2601.16527.
