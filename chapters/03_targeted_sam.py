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
# # 03 · Targeted-SAM
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/03_targeted_sam.ipynb)
#
# **The question.** Chapter 02 erased hallucinations and saw them come back. Can we erase them at the place where they
# *would* come back, before anyone attacks?
#
# That is the idea of SARE. Its inner step moves the weights to the worst nearby place, worst *for the hallucinations
# only*; its outer step suppresses them there; grounded text keeps its ordinary gradient.
#
# **What you will see.** The step, line by line, with the sign trap that catches most first implementations; that it
# does what it claims on a real LLaVA; an erasure by it, against EFUF's at the same forget level; and whether the
# landscape around the erased weights is flatter.
#
# **Time.** About two minutes on two CPU cores after chapter 02.

# %% tags=["parameters"]
preset = "fast"  # "fast": two seeds, minutes; "full": eight seeds, as in the book's figures
seeds = ""  # other seeds, separated by spaces, e.g. "11 12 13"; empty: the preset's own

# %% [markdown]
# The setup cell finds the book's modules. On Colab it first fetches the repository; elsewhere it installs nothing.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("sare-min").exists():
    subprocess.run(["git", "clone", "-q", "https://github.com/sare-min/sare-min"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "sare-min", "torchao>=0.16"], check=True)
root = next(p for p in [Path("sare-min").resolve(), Path.cwd(), *Path.cwd().parents] if (p / "chapters" / "lab").is_dir())
sys.path[:0] = [str(root), str(root / "chapters")]

# %%
import inspect

import numpy as np
import torch

from lab import cache, experiments, figures, landscape, ledger, presets, readings, stats
from sare_min import sam
from sare_min.llava import trainable
from sare_min.losses import counts, method_losses
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, get_method, gradient

setting = presets.get_preset(preset, seeds.split())
kit = experiments.kit(setting.seeds[0])

# %% [markdown]
# ## Which way is up?
#
# Everything hangs on a sign. Let CE be the ordinary likelihood loss of the hallucinated words: *small* when the model
# likes to say them. To erase, we *minimise*
#
# $$L_{neg} = -\,\mathrm{CE}(\text{hallucinated words}),$$
#
# so $L_{neg}$ falls as they become unlikely. The worst nearby place is where $L_{neg}$ is *largest*, that is where
# the words are most likely again:
#
# $$\epsilon^* = \rho\,\frac{\nabla L_{neg}(\theta)}{\lVert\nabla L_{neg}(\theta)\rVert}.$$
#
# This is one normalised step of *relearning*. Then the step that is really taken uses the gradient found at that
# place, and grounded text's gradient from home:
#
# $$g = \lambda_{neg}\,\nabla L_{neg}(\theta+\epsilon^*) + \nabla L_{pos}(\theta) + \lambda_{sent}\,\nabla L_{sent}(\theta).$$
#
# The trap: write the loss as +CE, perturb along *its* gradient, and then ascend. The code runs, the losses move, and
# the perturbation goes the wrong way, to where the words are even less likely. So we look. Predict the three numbers'
# order: the words' NLL at home, at the perturbed place, and at home again.

# %%
model, data = kit.fresh(), kit.data("erase", "oracle")[:64]
loss = method_losses(model, data, METHODS["SARE"], counts(data, "token"))["neg"]
direction = torch.autograd.grad(loss, trainable(model), allow_unused=True)
home = span_nll(model, data)["forget"]
with sam.perturbed(trainable(model), direction, rho=0.2) as norm:
    away = span_nll(model, data)["forget"]
back = span_nll(model, data)["forget"]
print(f"NLL of the hallucinated words: {home:.3f} at home, {away:.3f} at theta + eps*, {back:.3f} at home again")

# %% tags=["nbval-check-output"]
print("more likely at the perturbed place:", away < home)
print("home again, bit for bit:", back == home)

# %% [markdown]
# Bit for bit matters. Subtracting eps again would leave rounding errors in every weight at every step; the `with`
# block keeps a copy instead, and it gives the weights back also when the code inside fails.
#
# ## Two weights, one step
#
# Here is why the perturbed place gives another gradient at all. A loss over two weights; dark blue is where the
# hallucination is likely. At the black point the plain erasure step (orange) goes straight down the local slope. The
# relapse step (red) leads up into the blue, and the gradient found *there* (blue arrow) points elsewhere: it pays
# more heed to the weight along which the relapse steepens.

# %%
theta, rho = torch.tensor([0.1, 0.35], requires_grad=True), 0.5


def toy_neg(w):
    likely = 2 * w[..., 0] + 2.2 * w[..., 1] ** 2 - 1
    return torch.nn.functional.logsigmoid(likely)


(plain,) = torch.autograd.grad(toy_neg(theta), theta)
eps = rho * plain / plain.norm()
with sam.perturbed([theta], [plain.clone()], rho):
    (there,) = torch.autograd.grad(toy_neg(theta), theta)
axis = np.linspace(-0.9, 1.1, 81)
surface = toy_neg(torch.tensor(np.stack(np.meshgrid(axis, axis), -1), dtype=torch.float32)).tolist()
toy = {"x": axis.tolist(), "y": axis.tolist(), "neg": surface, "theta": theta.tolist(), "eps": eps.tolist(),
       "gradients": {"plain step": (plain / plain.norm() * 0.6).tolist(), "Targeted-SAM step": (there / there.norm() * 0.6).tolist()}}
_ = figures.save(figures.fig_geometry(toy), "03_geometry", toy, preset, setting.seeds,
                 "Directions of one erasure step on two weights; both arrows drawn at the same length.")

# %% tags=["nbval-check-output"]
print("length of eps:", round(eps.norm().item(), 4))
angle = torch.rad2deg(torch.arccos(torch.cosine_similarity(plain, there, 0)))
print(f"the two steps differ in direction by {angle.item():.0f} degrees")

# %% [markdown]
# ## The step, as the code has it
#
# This is all of it. Read it next to the equations: the first loop collects the gradient of `target` ($\lambda_{neg}
# L_{neg}$) and adds that of `rest` to `.grad`, at home; the `with` block adds the target's gradient at the perturbed
# place.

# %%
print(inspect.getsource(sam.targeted_sam))

# %% [markdown]
# Two checks that cost nothing. With `rho = 0` there is nothing left but EFUF's step, to the last bit. And a step
# moves no frozen weight: the vision tower keeps its eyes.

# %% tags=["nbval-check-output"]
def gradient_of(name, **changes):
    model = kit.fresh()
    gradient(model, data, get_method(name, **changes))
    return [p.grad.clone() for p in trainable(model)]


same = all(torch.equal(x, y) for x, y in zip(gradient_of("SARE", rho=0.0), gradient_of("EFUF"), strict=True))
print("rho = 0 is EFUF, bit for bit:", same)
print("vision weights that train:", sum("vision_tower" in name for name, p in kit.fresh().named_parameters() if p.requires_grad))

# %% [markdown]
# ## Erase with both
#
# Same data, same order, same optimiser, same seeds, and both stop at the same forget level. `rho` was chosen on other
# seeds (1 to 4) than those shown here.

# %%
print({name: f"rho = {METHODS[name].rho}" for name in ("EFUF", "SARE")})
attacks = presets.book_attacks(setting, "EFUF", "SARE")
results = experiments.attack_all(attacks)


# %%
for metric, factor in (("chair_s", 100), ("chair_i", 100), ("recall", 100), ("nll_forget", 1), ("nll_retain", 1)):
    efuf, sare = (stats.spell(readings.after(results, name, metric, factor), 2) for name in ("EFUF", "SARE"))
    print(f"{metric:10s} EFUF {efuf}   SARE {sare}")
print("steps     ", *(f"{name} {stats.spell([len(r['log']) for r in results[name]])}  " for name in ("EFUF", "SARE")))

# %% [markdown]
# Differences, paired by seed, say more than two columns of means. Points right of zero: SARE's value is higher.

# %%
metrics = {"CHAIR_s, points": "chair_s", "recall, points": "recall", "NLL of grounded text, 0.01 nats": "nll_retain"}
rows = {}
for label, metric in metrics.items():
    rows[label] = stats.paired(*(readings.after(results, name, metric, 100) for name in ("SARE", "EFUF")))
for label, row in rows.items():
    print(f"{label:32s} SARE - EFUF: {row['diff']:+.2f}, 95 % interval {np.round(row['ci95'], 2)}")
figure = figures.fig_paired(rows, "SARE - EFUF after erasure (dot: a seed; diamond: mean; bar: 95 % interval)")
_ = figures.save(figure, "03_erasure", rows, preset, setting.seeds,
                 f"Both stopped at a held-out forget NLL of {experiments.STOP_NLL} nats; {len(setting.seeds)} seeds.")

# %% [markdown]
# Claim C4 says that SARE *erases better*, C5 that quality is *kept*. The verdict is computed from the intervals:
# "undecided" means that the interval spans zero.

# %%
measured = {"C4": ("chair_s", 100, "CHAIR_s after erasure, %", -1), "C5a": ("recall", 100, "recall after erasure, %", 1),
            "C5b": ("nll_retain", 1, "NLL of grounded text after erasure, nats a token", -1)}
claims = [ledger.row(id, "ch. 03", metric, *(readings.after(results, name, key, factor) for name in ("EFUF", "SARE")), want=want)
          for id, (key, factor, metric, want) in measured.items()]
for row in claims:
    print(row["id"], row["metric"], "->", row["verdict"])

# %% [markdown]
# At an equal forget level there is little room for C4: both erase nearly everything. What differs must show under
# stress.
#
# One more thing is worth knowing before we celebrate either method. We erased from *captions*. Does it carry over to
# the *questions*? The share of "yes" to a usual but absent object:

# %%
for name in ("EFUF", "SARE"):
    print(f"{name}: {stats.spell([100 * result['erased']['yes']['usual'] for result in results[name]])} %")

# %% [markdown]
# Captions that no longer mention the fork do not stop the model from affirming it when asked. Neither method unlearns
# the belief; both unlearn saying it unasked.
#
# ## Is it flatter?
#
# Chapter 01's slices, for both methods: along each one's own relapse direction, and along the path on which its
# attacker travels.

# %%
slices = {name: cache.side_by_side(landscape.slices, [landscape.Slices(attack.run) for attack in row], f"slices {name}")
          for name, row in attacks.items()}
axes = figures.plt.subplots(1, 2, figsize=(10, 3.9), sharey=True, gridspec_kw={"wspace": 0.25})[1]
drawn = {}
for ax, way in zip(axes, ("relapse", "attack"), strict=True):
    lines = {name: {"method": name, "curves": [[point["nll_forget"] for point in m[way]] for m in row]} for name, row in slices.items()}
    drawn[way] = {"distances": landscape.DISTANCES, "lines": lines}
    figures.fig_slices(drawn[way], ax=ax)
    ax.set_title(f"along the {way} direction")
_ = figures.save(axes[0].figure, "03_slices", drawn, preset, setting.seeds,
                 f"NLL of the forgotten spans on held-out scenes, {len(setting.seeds)} seeds (faint), mean, "
                 "95 % interval. Higher for longer is flatter.")

# %%
for letter, way, distance in (("a", "relapse", 0.1), ("b", "relapse", 0.2), ("c", "attack", 0.2), ("d", "attack", 0.5)):
    i = landscape.DISTANCES.index(distance)
    lost = [[m[way][0]["nll_forget"] - m[way][i]["nll_forget"] for m in slices[name]] for name in ("EFUF", "SARE")]
    claims.append(ledger.row(f"C3{letter}", "ch. 03", f"NLL lost at distance {distance} along the {way} direction, nats", *lost, want=-1))
    print(claims[-1]["metric"], f"SARE - EFUF {stats.spell_paired(*lost[::-1])} ->", claims[-1]["verdict"])
_ = ledger.record(claims, preset, setting.seeds)

# %% [markdown]
# Claim C3, *Targeted-SAM flattens the landscape around the hallucinated concepts*, has thus an answer per direction
# and distance, not a single one. Note the distances: SARE trained against a step of length 0.2, and that is where to
# look first.
#
# ## What it costs
#
# A row with forget tokens needs a second forward and two more backward passes; a row without needs nothing more, and
# is treated so. No other weights are kept than one copy of the trained ones, in the storage of a gradient that is
# needed anyway. A benchmark measures it (see the README).
#
# ## What we learned
#
# * Targeted-SAM is a dozen lines; its sign is the whole story, and a look at three numbers checks it.
# * It differs from SAM in *whose* loss is perturbed: only that of the hallucinations. The same loop with
#   `perturb=("neg", "pos", "sent")` is SAM.
# * Targeted SAM on the forget loss is not new with SARE: Fan et al. (2025) do the same with two loss terms for text.
#   SARE adds the CLIP-curated sub-sentences and a third term.
#
# ## What we did not show
#
# Whether flatness *is the reason* for anything: chapter 04 measures the relapse, and causation needs controls beyond
# it. One `rho`, one `lambda_neg`; small weights, small radius. The paper's own settings are not public, so ours are
# our own.
#
# ## Exercises
#
# 1. *(easy)* Which sign would the difference "away minus home" in the first experiment have, had we perturbed along
#    the gradient of +CE? Put `"+"` or `"-"` into the next cell.
# 2. *(easy)* Run one erasure with `get_method("SARE", rho=2.0)` for ten steps. What happens to the loss, and why?
# 3. *(harder)* Train with `perturb=("neg", "pos", "sent")`, untargeted SAM, and draw its slices.

# %% tags=["exercise"]
my_sign = None  # "+" or "-"

# %% tags=["solution"]
my_sign = "+"

# %% tags=["nbval-check-output"]
loss = -method_losses(model, data, METHODS["SARE"], counts(data, "token"))["neg"]  # +CE
direction = torch.autograd.grad(loss, trainable(model), allow_unused=True)
with sam.perturbed(trainable(model), direction, rho=0.2):
    wrong_way = span_nll(model, data)["forget"]
print("right" if my_sign == ("+" if wrong_way > home else "-") else "not yet")

# %% [markdown]
# ## Sources
#
# * SARE: *Sharpness-Aware Robust Erasure of Hallucinations in Multimodal LLMs*, arXiv 2601.16527.
# * SAM: Foret et al., arXiv 2010.01412. SAM for unlearning: Fan et al., arXiv 2502.05374.
# * EFUF: Xing et al., arXiv 2402.09801.
