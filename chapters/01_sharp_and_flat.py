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
# **The answer.** By the worst that a nudge of a given length can do. For a large
# model that needs a *direction*, too. From the base models of
# chapter 00, a step of length 0.5 in the steepest direction takes the
# hallucinated words
# from <!-- fig:01_slices:results.hallucinated words.lines.forget.curves.*.0:.1f -->0.5<!-- / -->
# nats a token
# to <!-- fig:01_slices:results.hallucinated words.lines.forget.curves.*.5:.1fi -->4.1 [3.9, 4.3]<!-- / -->,
# a random step of that length
# to <!-- fig:01_slices:results.hallucinated words.lines.random.curves.*.5:.1f -->0.5<!-- / -->
# (mean over the book's seeds; in brackets its 95 % interval). We borrow the
# direction only to see steepness: nothing here is a harm yet. Unlikely
# hallucinations are what we shall want; in chapter 02 the same axis is harm
# where it *falls*.
#
# **What you need.** Gradients, and [chapter 00](00_hallucination.ipynb) for
# what the base model is. Nothing is erased yet: that is
# [chapter 02](02_fragile_erasure.ipynb), where we ask whether an *erasure* is
# sharp.
#
# **What you will see.** One weight with two minima; the remedy, SAM, and how
# good its guess is; the landscape of a real LLaVA around its weights, flat and
# steep at once.
#
# **Time.** About a minute on two CPU cores if chapter 00 has trained the base
# models, else about four.

# %% tags=["parameters"]
preset = "fast"  # or "full": twelve seeds, as in the book's figures
seeds = ""  # other seeds, e.g. "11 12 13"; empty: the preset's own

# %% [markdown]
# The preset above is what *you* run: two seeds. The outputs stored below are the
# book's own, of the full preset.
#
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

from lab.evidence import figures, readings, tables, titles
from lab.experiments import presets, surroundings
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
    "fig_two_minima",
    "01_two_minima",
    toy,
    preset,
    setting.seeds,
    caption,
    title=titles.minima(toy),
)

# %% [markdown]
# The deepest minimum is a bad place to stand: a nudge of 0.25 climbs out of it,
# nearly up to the plateau. The wide one loses little. *Sharp* and *flat* are
# names for this difference, and [**sharpness-aware minimisation**](glossary.md#sam) is the obvious
# remedy: do not minimise the loss, minimise the dashed curve,
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
def slope_at(w):
    return (toy_loss(w + 1e-4) - toy_loss(w - 1e-4)) / 2e-4


for name, at in (("narrow", -0.98), ("wide", 0.95)):
    uphill = np.sign(slope_at(at))
    print(
        f"{name:6s}  loss {toy_loss(at):.2f}  ",
        f"worst within 0.25: {toy_worst(at):.2f}  ",
        f"after SAM's step: {toy_loss(at + rho * uphill):.2f}",
    )

# %% [markdown]
# The guess is close here. It need not be: a single step follows the slope at
# its start and knows nothing of what lies behind a ridge. Nor does a good guess
# lead out of the hole. Here are 200 steps of SAM from beside the narrow minimum:

# %% tags=["nbval-check-output"]
w = -0.98
for _ in range(200):
    there = w + rho * np.sign(slope_at(w))
    w = w - 0.01 * slope_at(there)
print(f"SAM ends at {w:.1f}; worst within 0.25 there: {toy_worst(w):.2f}")

# %% [markdown]
# It goes down the slope found outside of the hole, and that slope leads back in.
# SAM is a heuristic with a min-max formula on its label. The difference will
# matter when we look at real weights.
#
# ## Two hundred thousand weights
#
# A language model has no single axis to walk along. In which direction should
# we nudge? We take the base models of chapter 00, from which nothing has been
# erased, and ask how likely two kinds of text are at increasing distance from
# their weights: the *hallucinated* words of held-out captions, and the
# *grounded* ones, about what the picture shows. Likely is told as **NLL**, the
# negative log-likelihood, in nats a token: 0 is certain, 0.7 is one in two, 8
# is one in 3,000. We walk in three directions:
#
# * **random**: every weight gets Gaussian noise;
# * **forget**: the steepest way to make the hallucinated words *unlikely*, the
#   gradient of their NLL;
# * **remember**: the opposite, the steepest way to make them likelier still.
#
# (*Forget* is a direction in this chapter. From the next one on the word names
# the text that is to be erased, its mask and its loss.)
#
# Distances are L2 lengths over all trained weights together, so that the three
# can be compared. Predict: does a walk in the forget direction leave the
# grounded words alone?

# %%
around = jobs.side_by_side(surroundings.around, setting.seeds, "landscape")

# %%
panels = {"hallucinated words": "nll_forget", "grounded words": "nll_retain"}
drawn = {
    title: tables.lines(
        surroundings.DISTANCES,
        {
            way: readings.slice_lines(around, way, key)
            for way in surroundings.DIRECTIONS
        },
    )
    for title, key in panels.items()
}

# %%
caption = (
    "NLL on held-out scenes at a distance from the base models' weights, in"
    f" three directions. {len(setting.seeds)} seeds (faint), mean, 95 %"
    " interval."
)
_ = figures.publish(
    "fig_slices_panels",
    "01_slices",
    drawn,
    preset,
    setting.seeds,
    caption,
    title=titles.around(drawn),
    keys=panels,
    xlabel="L2 distance from the base model's weights",
)

# %% [markdown]
# Three things are in this picture.
#
# **The same point is flat and steep.** The random line does not move at any
# distance shown. In so many dimensions a random vector is almost perpendicular
# to everything that matters. Whoever tests "robustness" by adding noise of this
# size to the weights measures this line. So *sharp* means nothing until a
# direction and a distance are named.
#
# **The steepest way is steep for a while.** The first 0.2 of the forget
# direction bring the hallucinated words
# to <!-- fig:01_slices:results.hallucinated words.lines.forget.curves.*.3:.1f -->2.2<!-- / -->
# nats, the whole way to 1.0 only
# to <!-- fig:01_slices:results.hallucinated words.lines.forget.curves.*.7:.1f -->5.9<!-- / -->.
# A gradient knows the slope where it was taken, and nothing of what comes. (The
# remember line dips a little, then rises: these words are near certain already,
# and a long straight step breaks the model instead.)
#
# **Forgetting is easy; forgetting *alone* is not.** The right panel is the
# price: at 1.0 the grounded words stand
# at <!-- fig:01_slices:results.grounded words.lines.forget.curves.*.7:.1f -->3.8<!-- / -->
# nats. The two kinds of text share their weights. That is why an erasure is
# more than a step, and why it
# must hold on to something while it pushes: chapter 02.
#
# ## What we learned
#
# * Two minima of equal loss can differ in what a nudge does to them; SAM looks
#   for the ones that bear it, by one step up before each step down.
# * For a large model, sharpness is a property of a point, *a direction and a
#   distance*. Random noise sees a plain where the gradient's direction sees a
#   slope.
# * SAM's step up is a normalised gradient step, whatever loss it is taken on.
#   [Chapter 03](03_targeted_sam.ipynb) chooses one.
#
# ## What we did not show
#
# That an erased model is sharp, or that sharpness *predicts* relapse: the one
# needs an erasure (chapter 02), the other several methods whose sharpness
# differs (chapters 03 and 04). And L2 is not the only ruler: an optimiser like
# AdamW moves every weight by about the same amount, which a ruler of largest
# change (L-infinity) would suit better.

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
# random one, on average? (A random direction $u$ of length 1 in $n$ dimensions
# has $E[u_i^2] = 1/n$ along each of them.)

# %% tags=["exercise", "nbval-check-output"]
my_sharp, my_random = None, None
check.sharp_and_random(my_sharp, my_random)

# %% [markdown]
# ## Sources
#
# * [SAM](bibliography.md#sam): the step up before the step down.
# * [Flat minima](bibliography.md#flat-minima): where the idea comes from.
# * [Sharp minima](bibliography.md#sharp-minima): that sharpness depends on the ruler.
# * [Loss landscape](bibliography.md#loss-landscape): drawing a loss around weights.
# * [SARE](bibliography.md#sare): the paper that this book tests.
