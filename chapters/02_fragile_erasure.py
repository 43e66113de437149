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
# # 02 · Standard erasure works, and is fragile
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/02_fragile_erasure.ipynb)
#
# **The question.** A model hallucinates. We train it a little to stop, and it
# stops. Is the hallucination gone?
#
# **The answer.** It is gone from the captions:
# from <!-- fig:00_base:results.chair_s:.0f:100 -->98<!-- / --> %
# to <!-- C1a.baseline -->2.3<!-- / --> % of them invent something. After 128 relearning
# samples it is <!-- C1a.sare -->27.8<!-- / --> %: a change
# of <!-- C1a.diff -->+25.4 [13.9, 37.0]<!-- / --> points (claim C1: light relearning brings them
# back, *<!-- C1a.verdict -->supported<!-- / -->*). And is the place where
# it ends *sharp*? Moved by 0.5 in the worst way it
# loses <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> nats more
# than a model does that learnt from honest captions (claim C2:
# *<!-- C2a.verdict -->supported<!-- / -->*); but on six other
# seeds <!-- C2a.diff@1101 -->+0.01 [-0.83, 0.85]<!-- / -->, and other
# gauges do not agree: not settled.
#
# **What you need.** [Chapter 00](00_hallucination.ipynb) for the model and for
# CHAIR, [chapter 01](01_sharp_and_flat.ipynb) for what sharp means.
#
# **What you will see.** How captions are cut into *sub-sentences* to forget and
# to keep, by CLIP alone; an erasure, line by line, and what it damages; a
# relearning attack, line by line; and what the landscape around an erased model
# looks like. The method is EFUF's, the baseline of this book.
#
# **Time.** About two minutes on two CPU cores if chapter 00 has trained the
# base models.

# %% tags=["parameters"]
preset = "fast"  # or "full": twelve seeds, as in the book's figures
seeds = ""  # other seeds, e.g. "11 12 13"; empty: the preset's own

# %% [markdown]
# The preset above is what *you* run: two seeds. The outputs stored below are the
# book's own, of the full preset; hence their "n = 12".
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
from itertools import compress

import torch

from lab.evidence import figures, ledger, readings, stats, tables, titles
from lab.experiments import (
    attacks,
    erasures,
    gauges,
    landscape,
    presets,
    traps,
)
from lab.world import curate, encoded, measured
from lab.world.kit import RULES, get_kit
from sare_min.captions import sentence_nll, token_nll
from sare_min.llava import trainable
from sare_min.unlearn import METHODS, Training, draw_batches, unlearn

setting = presets.get_preset(preset, seeds.split())
kit = get_kit(setting.seeds[0])

# %% [markdown]
# ## What to forget: CLIP decides
#
# Nobody hands us a list of a model's hallucinations. EFUF's idea: let the
# model describe pictures, cut each caption into
# [**sub-sentences**](glossary.md#sub-sentence), and ask
# another model, a CLIP, how well the object in each goes with the picture: its
# [**CLIP score**](glossary.md#clip-score). (Not the CLIP in LLaVA's own tower, but a second one, as
# EFUF asks ViT-B/32 about what LLaVA saw through ViT-L/14.) A low score marks
# the sub-sentence *forget*, a high one *retain*; what lies between
# is left alone. Where a sub-sentence names several objects, the lowest score
# decides. The cut comes *before* the separator (one of `, . ; : ! ?`), so that a
# sub-sentence opens with its own comma:

# %% tags=["nbval-check-output"]
text = "a kitchen with a cup, a bowl, a fork."
print([text[start:end] for start, end in curate.sub_sentences(text)])

# %% [markdown]
# Why does the comma belong to the sub-sentence that it opens? After "a cup, a bowl" the
# model has two ways on: "." and ",". If we punished only the words *after* the
# comma, the model would learn to write the comma and then stall. The decision
# to go on is part of the hallucination.
#
# An example with made-up scores (every CLIP has a scale of its own): 30 for the
# cup, 15 for the bowl and 5 for the fork. The thresholds are 10 (forget below),
# 20 (retain above) and 25 (keep the whole sentence if the mean is above and
# nothing is to be forgotten). `find` tells which objects a caption names, and
# where:

# %% tags=["nbval-check-output"]
find = RULES.find
scores = {"cup": 30.0, "bowl": 15.0, "fork": 5.0}
limits = curate.Thresholds(10, 20, 25)
spans = curate.curate([text], [scores], find, limits)[0]
print({kind: [text[a:b] for a, b in pieces] for kind, pieces in spans.items()})

# %% [markdown]
# Now the real thing. Each base model has described 1,536 pictures, sampling at
# temperature 1. Here is what the second tiny CLIP thinks of the objects named.
# It is one for all seeds; so no interval below tells what another judge would
# do. The hatching shows the truth, which the curation *never* sees; we use it
# only to judge the judge.

# %%
judged = [measured.judge_curation(get_kit(s)) for s in setting.seeds]
caption = (
    "Scores of the objects mentioned in sampled captions, seed "
    f"{setting.seeds[0]}. Dashed: the two thresholds."
)
_ = figures.publish(
    "fig_scores",
    "02_scores",
    judged[0],
    preset,
    setting.seeds,
    caption,
    title=titles.scores(judged[0]),
)

# %%
names = "precision", "recall", "retain_precision", "retain_recall"
rates = {name: [j[name] for j in judged] for name in names}
caption = (
    f"Curation by the tiny CLIP against the truth, {len(setting.seeds)} seeds."
)
_ = figures.numbers("02_curation", rates, preset, setting.seeds, caption)
lowest = 100 * min(min(row) for row in rates.values())
print(f"the lowest of the four shares in any seed: {lowest:.1f} %")

# %% [markdown]
# The thresholds are read off the scores alone: they fall into two clusters,
# *forget* lies below the middle between the clusters' centres, *retain* above
# the middle of what is left. In this clean world the tiny CLIP makes next to no
# mistake: <!-- fig:02_curation:results.precision:.1f:100 -->100.0<!-- / --> %
# of what it marks to forget is
# hallucinated (precision), <!-- fig:02_curation:results.recall:.1f:100 -->100.0<!-- / -->
# % of what is hallucinated
# is marked (recall); the same two shares of *retain* are no lower. On photographs
# no CLIP comes near that; what its mistakes cost we shall see below.
#
# ## One caption, one row, three masks
#
# EFUF's loss adds three parts. *Forget*: make the marked sub-sentences unlikely,
# by **minus** their cross-entropy. *Retain*: keep the grounded ones likely.
# *Sentence*: keep whole clean captions likely, so that the model does not
# forget how to talk and how to end. All three are masks over one row of tokens.
# They have three sets of names:
#
# | mask | its loss | in code and logs | for chapter 03's step |
# |---|---|---|---|
# | *forget* | L_neg | `neg` | `target` |
# | *retain* | L_pos | `pos` | `rest` |
# | *sentence* | L_sent | `sent` | `rest` |
#
# Here is a row with something to forget, and a clean one:

# %%
data = encoded.masked(kit, "erase", "clip")
with_forget = int(data.forget.any(1).nonzero()[0])
clean = int(data.sentence.any(1).nonzero()[0])
for row in (with_forget, clean):
    words = kit.processor.tokenizer.convert_ids_to_tokens(data.input_ids[row])
    for kind in ("forget", "retain", "sentence"):
        mask = getattr(data, kind)[row].tolist()
        print(f"row {row} {kind:9s}", list(compress(words, mask)))

# %% [markdown]
# **A trap: one row per sub-sentence.** EFUF's released code makes each
# sub-sentence a row of its own. The losses and the gradients are the same (a test
# proves it): in a causal model a word's likelihood does not depend on what
# follows. What differs is how often the picture is read. Tokens in one forward
# over the same 256 captions:

# %% tags=["nbval-check-output"]
tokens = traps.repeated_tokens(kit)
print({layout: f"{n / tokens['packed']:.1f}x" for layout, n in tokens.items()})

# %% [markdown]
# With LLaVA-1.5's 576 image tokens a row, instead of nine, the ratio tends to
# the number of sub-sentences.
#
# ## Erase, line by line
#
# We open the box once. Here is EFUF, whole, for one seed: forty steps on batches
# of 24 captions. Read the sign. `forget` is *minus* the likelihood loss of what
# is to go: it falls without bound as it becomes unlikely, which is why we shall
# have to say when to stop. The other two are the ordinary loss, on what is to
# stay. The weights are [`Method`](../sare_min/losses.py#L51)'s: `lambda_neg` is 0.1,
# the others 1.

# %%
model, captions = kit.fresh(), data
optimizer = torch.optim.AdamW(trainable(model), lr=6e-4, weight_decay=0.0)
batches = draw_batches(captions.forget.any(1), 24, kit.seed)


def mean_over(nll, mask):
    return (nll * mask).sum() / mask.sum().clamp_min(1)


for step in range(40):
    batch = captions[next(batches)]
    nll = token_nll(model, batch)  # (24, tokens)
    forget = -mean_over(nll, batch.forget)
    retain = mean_over(nll, batch.retain)
    sentence = mean_over(nll, batch.sentence)
    optimizer.zero_grad()
    (0.1 * forget + retain + sentence).backward()
    optimizer.step()
    if step % 10 == 0:
        kept = f"{retain.item():.2f}, {sentence.item():.2f}"
        print(f"step {step:2d}: forget {forget.item():6.2f}   kept {kept}")

# %% [markdown]
# [`draw_batches`](../sare_min/unlearn.py#L62) sees to it that each batch has its
# share of captions with something to forget. The rest you have read. The book's
# loop is [`unlearn`](../sare_min/unlearn.py#L130): it takes any method of
# [`METHODS`](../sare_min/unlearn.py#L25), splits batches that do not fit, and asks
# after each step whether to stop. Is it the same?

# %% tags=["nbval-check-output"]
again = kit.fresh()
how = Training(steps=40, batch_size=24, lr=6e-4, cooldown=0)
efuf = METHODS["EFUF"]
unlearn(again, captions, efuf, how, kit.seed, progress=False)
pairs = zip(trainable(model), trainable(again), strict=True)
print(
    "the same weights after 40 steps:",
    all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs),
)

# %% [markdown]
# ## When to stop: one forget level
#
# A method that forgets more would look more robust for that reason alone. So all
# that we compare stands at one [**forget level**](glossary.md#forget-level): 8
# nats a token, the mean
# over the forget tokens of 64 *stop captions*, whose scenes no erasure sees.
# (Only that mean is equal. The comma that opens a sub-sentence and the words
# after it may differ, and on held-out scenes the same weights stand
# at <!-- fig:02_relapse:results.lines.EFUF.nll_forget.*.0:.1f -->7.7<!-- / -->.)
#
# An erasure gets there in three moves:
#
# 1. *Train* until ten more steps, at a falling learning rate, should reach the
#    level.
# 2. *Cool down*: take those ten steps. If the level is not reached, go back to 1.
# 3. [*Land*](glossary.md#landing). One step moves the NLL by some tenths of a nat, so the run ends
#    beside the level. The straight line between its last weights below and its
#    last weights above is halved, again and again, until it stands within 0.01
#    nats.
#
# [`attack_all`](lab/experiments/attacks.py#L262) does this for every seed and then
# attacks; [`book_attacks`](lab/experiments/presets.py#L235) says what the book
# compares. In the full preset each seed is erased twice, with its captions in
# another *order*, and each erasure is attacked twice, with the attack's captions
# in another order (`shuffles`). A seed counts once, by the mean of its runs.

# %%
many = {"orders": setting.orders, "shuffles": setting.shuffles}
specs = presets.book_attacks(setting, "base", "EFUF", **many)
results = attacks.attack_all(specs)
once = {name: readings.first_of(row) for name, row in results.items()}
n_steps = [len(r["log"]) for r in once["EFUF"]]
print(f"{len(n_steps)} erasures: {min(n_steps)} to {max(n_steps)} steps")
print(tables.landed(results, "EFUF"))

# %%
shown = {"EFUF": [r for r in once["EFUF"] if not r["spec"]["order"]]}
training = readings.training(shown, "EFUF")
caption = (
    "EFUF, on training batches of 24 captions; the level itself is measured on "
    f"the stop captions. {len(setting.seeds)} seeds (faint, each to its end), "
    "one order; mean and 95 % interval up to the shortest run."
)
_ = figures.publish(
    "fig_training",
    "02_training",
    training,
    preset,
    setting.seeds,
    caption,
    title=titles.training(training),
)

# %% [markdown]
# It must rise, and it does. Does it show in what the models say? Before and
# after, on held-out scenes:

# %%
pair = ("base", "EFUF")
for metric in ("chair_s", "chair_i", "recall"):
    change = [
        [100 * x for x in readings.of_seeds(results[name], metric)]
        for name in pair
    ]
    print(readings.spell_change(metric, *change))

# %% [markdown]
# And what they answer: "yes" to an object that is shown, to a usual but absent
# one, to a foreign one. The last line is the NLL of the sub-sentences to retain:

# %%
runs = {
    name: [presets.book_run(name, s) for s in setting.seeds] for name in pair
}
answers = attacks.answer_all(runs)
for kind in ("shown", "usual", "foreign"):
    change = [[100 * share for share in answers[name][kind]] for name in pair]
    print(readings.spell_change(f"yes {kind}", *change))
before, after = (
    stats.spell(readings.of_seeds(results[name], "nll_retain"), 3)
    for name in pair
)
print(f"nll_retain  before {before}   after {after} nats a token")

# %% [markdown]
# By the usual measures of captions this is a success. Read the last lines, too:
# the NLL of grounded text has risen, and in some seeds the *answers* suffer,
# although no question was trained on. Erasure is not free, and CHAIR with
# recall does not show its whole price.
#
# ## Relearn, line by line
#
# Now the attack. Somebody takes the erased model and fine-tunes it gently, by
# plain cross-entropy and with a third of the learning rate, on captions that
# hallucinate, about pictures that the erasure never saw. He needs no knowledge
# of how it was done. Here is the first seed's erased model under 256 such
# captions, eight a step:

# %%
victim = erasures.erased(presets.book_run("EFUF", kit.seed))
hallucinated = encoded.attack(kit)
optimizer = torch.optim.AdamW(trainable(victim), lr=2e-4, weight_decay=0.0)
order = torch.randperm(
    len(hallucinated), generator=torch.Generator().manual_seed(kit.seed)
)
for n in range(0, 257, 8):
    if n % 64 == 0:
        found = measured.held_out(kit, victim)
        shares = f"CHAIR_s {100 * found['chair_s']:3.0f} %"
        print(f"{n:3d} samples: {shares}   NLL {found['nll_forget']:.1f} nats")
    optimizer.zero_grad()
    sentence_nll(victim, hallucinated[order[n : n + 8]]).backward()
    optimizer.step()

# %% [markdown]
# This is [`relearn`](../sare_min/attack.py#L13), line by line. The two numbers do
# not move together: the NLL of the forgotten words falls from the first samples
# on; CHAIR_s waits, and then greedy decoding flips in many scenes at once.
#
# ### Five numbers, and how they are counted
#
# | number | counted how | printed as |
# |---|---|---|
# | forget level | NLL of what is forgotten on the stop captions, nats a token | `stop_level` |
# | mean CHAIR_s | area under CHAIR_s over the attack, by its length, % | `mean_chair_s` |
# | samples to half | until CHAIR_s passes 50 %; the last count if it never does | `relapse` |
# | NLL half-life | samples until the hallucinated words' NLL has halved | `half_life` |
# | passes | work: a forward over a batch is one, a backward two | `passes` |
#
# (`chair_end` is CHAIR_s where the attack ends.) Two *arms* are compared seed by
# seed, the second that is named minus the first. "Sign in 6 of 6 seeds" counts
# the seeds whose difference has the sign of the mean.
#
# Now all seeds. After every few captions we ask the model to describe the
# held-out scenes. Predict: how many captions until every other description
# invents something again? The base model was trained on 6,000 scenes.

# %%
curves = readings.curves(results, "base", "EFUF")
caption = (
    "Relearning on hallucinated captions (AdamW 2e-4, batches of 8, one "
    f"pass), {len(setting.seeds)} seeds (faint), mean, 95 % interval. "
    + tables.caption(results, "EFUF")
)
_ = figures.publish(
    "fig_relapse",
    "02_relapse",
    curves,
    preset,
    setting.seeds,
    caption,
    title=titles.lasting(curves),
)

# %%
relapse = readings.by_seed(results["EFUF"], readings.READ["relapse"])
print("samples until CHAIR_s passes 50 %:", stats.spell(relapse))
print("never within the attack:")
print(tables.never(results, "EFUF"))

# %% [markdown]
# (The title reads the mean curve, the print takes the mean over seeds.)
#
# The paper's first claim, C1: *standard erasure is superficial*. Its difference
# is CHAIR_s after 128 relearning samples, a *light* attack, minus right after
# erasure. The verdict is computed, by rules that stood before the run. They
# stand at the end of this chapter, under *How a claim is judged*.

# %%
claims = {"C1a": tables.rises(results["EFUF"], 128)}
(row,) = ledger.record(claims, preset, setting.seeds)
print(tables.spell(row, 1))

# %% [markdown]
# A rise alone does not show that the erasure was superficial. Captions that
# hallucinate would teach any model to hallucinate. So: is the relapse a
# *return*?
#
# The control is a model that never learnt it: the same pictures, the same
# training, with honest captions (chapter 00's "0 %"). It meets the same attack.
# Its hallucinated words stand at another NLL than an erased model's, so the
# erasures that it is compared with are landed there, seed by seed: one forget
# level again, another one. **The test that decides is C1d**: if the erased model
# needs far fewer samples to half than the honest one, something was left to
# come back to. C1b, C1c and C1e ask the same by the other numbers.

# %%
some = setting.with_honest()
pair = ("honest", "EFUF, honest level")
later = "SARE, honest level"  # chapter 03's method: only for the ledger, as C1f
found = attacks.attack_all(presets.book_attacks(some, *pair, later))
both = readings.curves(found, *pair)
caption = (
    "The same attack on a model that never saw a hallucinated caption, and on"
    f" erasures at its level; {len(some.seeds)} seeds (faint), mean, 95 %"
    " interval. " + tables.caption(found, *pair)
)
_ = figures.publish(
    "fig_relapse",
    "02_honest",
    both,
    preset,
    some.seeds,
    caption,
    title=titles.where_it_ends(both),
)

# %%
asked = {"C1b": (*pair, "mean_chair_s"), "C1c": (*pair, "half_life")}
asked |= {"C1d": (*pair, "relapse"), "C1e": (*pair, readings.last_chair_s)}
asked |= {"C1f": (pair[1], later, "mean_chair_s")}
questions = tables.ask(found, asked)
for row in ledger.record(questions, preset, setting.seeds):
    if row["id"] != "C1f":
        print(row["endpoint"], tables.spell(row, 1))

# %% [markdown]
# C1d is <!-- C1d.diff -->-100.0 [-274.6, 74.6]<!-- / --> samples:
# *<!-- C1d.verdict -->open<!-- / -->*. The seeds agree on its sign,
# not on its size: the test that decides has not decided, nor has the half-life.
# What the erased model does is go *further*: it
# hallucinates more over the attack (C1b) and at its end (C1e). (C1b is not quite
# fair: the erased model starts
# at <!-- fig:02_honest:results.lines.EFUF, honest level.chair_s.*.0:.1f:100 -->3.5<!-- / -->
# %, the honest
# one at <!-- fig:02_honest:results.lines.honest.chair_s.*.0:.1f:100 -->0.2<!-- / -->
# %.) That a relapse
# is a return is not shown.
#
# ## Is standard erasure sharp? (claim C2)
#
# Chapter 01 named three things: a point, a direction and a distance. The point
# is now EFUF's erased model, and high is good: the words are forgotten. We walk
# from it in three directions:
#
# * **random**: Gaussian noise;
# * **relapse**: the steepest way back at the start, the negative gradient of
#   the forgotten words' NLL;
# * **attack**: the straight line to where 256 relearning samples lead.
#
# Predict: which one undoes the forgetting first?

# %%
erasures_once = [presets.book_run("EFUF", s) for s in setting.seeds]
wanted = [landscape.Slices(run) for run in erasures_once]
slices = jobs.side_by_side(landscape.slices, wanted, "slices")

# %%
drawn = readings.slices_drawn(
    slices, landscape.DISTANCES, ("random", "relapse", "attack")
)
caption = (
    "NLL of the hallucinated words on held-out scenes, from the weights that "
    "EFUF ends at, in three directions. "
    f"{len(setting.seeds)} seeds (faint), mean, 95 % interval. "
    + tables.caption(once, "EFUF")
)
_ = figures.publish(
    "fig_slices",
    "02_slices",
    drawn,
    preset,
    setting.seeds,
    caption,
    title=titles.steps(drawn),
)

# %% [markdown]
# The random line hardly moves, as in chapter 01. The relapse line drops from the
# first step on, then flattens or turns: the steepest way at the start is not the
# best way for long. The attack's line starts more gently and, in most seeds,
# goes further down.

# %%
travelled = stats.spell([m["attack_distance"] for m in slices], 2)
print("L2 distance that 256 samples of relearning travel:", travelled)
print("L2 distance at which half of the captions hallucinate again, by seed:")
for way in landscape.DIRECTIONS:
    curves = readings.slice_lines(slices, way, "chair_s")
    print(f"{way:8s}", readings.first_past(landscape.DISTANCES, curves, 0.5))

# %% [markdown]
# The last lines ask the question in the unit that users feel: at which distance
# does every other caption invent something again? (`None`: at none of those
# measured.) We call it the [**relapse radius**](glossary.md#relapse-radius) in a given direction.
# By the steepest way it lies about as far away as the attacker travels with 256
# samples.
#
# ### A map
#
# A line shows one direction at a time. Here is a plane: to the right the
# steepest way back, upwards the part of the attacker's way that is at right
# angles to it. The square is the erased model, the cross is where 256 samples
# lead; dark is where the hallucination is back.

# %%
side = setting.map_points
wanted = [gauges.Plane(run, n_points=side) for run in erasures_once[:2]]
maps = jobs.side_by_side(gauges.measure_plane, wanted, "maps")
axes = ["steepest way back", "rest of the attacker's way"]
planes = readings.planes(setting.seeds[:2], maps, axes)
caption = (
    "NLL of the hallucinated words of 64 held-out captions in a plane through "
    "the weights that EFUF ends at (square), and the straight way to where "
    "256 relearning samples lead (cross)."
)
_ = figures.publish(
    "fig_plane",
    "02_planes",
    planes,
    preset,
    setting.seeds[:2],
    caption,
    title=titles.plane(planes),
)

# %% [markdown]
# The square does not sit in a bowl. For the *forgotten* words an erased model
# stands on a hillside, with the relapse downhill. So when we say that an
# erasure is *sharp*, we mean that this hillside is steep, or that its edge is
# near.
#
# ### Sharp compared with what?
#
# With the *honest* model, whose hallucinated words are unlikely as well, but
# nobody had to push them down. A model at a higher NLL can lose more of it. So
# the erasure is landed, seed by seed, on the honest model's own forget level, as
# above. If erasure ends in a sharp place, the erased model must lose more of its
# NLL than the honest one, when both are moved by the same distance in the worst
# way. Three gauges of that kind:
#
# * the NLL lost at the *worst* point within an L2 distance of 0.5, found by
#   following the gradient and projecting back into the ball (C2a, which the plan
#   chose as the primary one);
# * the slope of the forgotten words' NLL: its fall for the first small step in
#   the steepest direction;
# * the *curvature*: the largest eigenvalue of the NLL's matrix of second
#   derivatives (the [*Hessian*](glossary.md#hessian)), by Lanczos' method.

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
# A line a gauge, honest against erased; the claim predicts the larger number for
# EFUF. The fourth is the share of the NLL that is lost at the worst point.

# %%
asked = {"C2a": "worst_ball_0.5", "C2b": "gradient_norm"}
asked |= {"C2c": "top_eigenvalue", "C2d": "share lost"}
questions = {
    id: tuple(
        readings.zipped(ends[name], readings.gauge(found[name], gauge))
        for name in pair
    )
    for id, gauge in asked.items()
}
claims = ledger.record(questions, preset, setting.seeds)
for row in claims:
    levels = f"honest {row['baseline']:.2f}   EFUF {row['sare']:.2f}"
    print(row["endpoint"], "  ", levels, "  ", tables.spell(row))

# %% [markdown]
# The gauges do not agree. At the worst point nearby EFUF loses more (C2a:
# *<!-- C2a.verdict -->supported<!-- / -->*, <!-- C2a.n -->6<!-- / --> seeds
# have an honest model), and a larger share of its
# NLL (C2d, exploratory: *<!-- C2d.verdict -->for<!-- / -->*). Its slope (C2b:
# *<!-- C2b.verdict -->open<!-- / -->*) and its
# curvature (C2c: *<!-- C2c.verdict -->open<!-- / -->*) lean the other way and
# decide nothing here. The mean
# of C2c is mostly one seed, whose honest model is bent several times as much as
# any other. On six other seeds C2a is *<!-- C2a.verdict@1101 -->undecided<!-- / -->*, and C2c
# reads *<!-- C2c.verdict@1101 -->against<!-- / -->*. Take C2 as not settled.
# And whatever the gauges say,
# steepness is not yet the reason for anything that follows.
#
# ## Other ways to erase
#
# EFUF is one method of several. The others differ in the loss on the forget
# sub-sentences, or in what is kept beside it:
#
# * **GA**, gradient ascent: the forget loss alone, nothing kept. **GradDiff**
#   keeps the retain sub-sentences, but no whole captions.
# * **NPO**, negative preference optimisation, weighs each caption by how near it
#   still is to the base model: once one is unlikely it is left in peace.
#   **SimNPO** does the same without a base model, by the NLL a token, with its
#   published settings.
# * **EFUF released** is EFUF with the loss weights of the released code, which
#   shrink during the run. It has its own end, two passes over the captions, and
#   stops where it stops.
#
# Same data, same order, same optimiser, same attack, and the same level for all
# who reach it. A method that does not is drawn grey: it stands elsewhere, so it
# is not compared.

# %%
few, names = setting.few(), ("EFUF", *setting.rivals)
how = {"at": few.coarse, "nll": False}
others = attacks.attack_all(presets.book_attacks(few, *names, **how))

# %%
words = "mean CHAIR_s over the attack, %, lower is better"
drawn = tables.arms(others, names, words, readings.mean_chair_s, (0, 100))
caption = (
    f"Baselines under the same attack, {len(few.seeds)} seeds. Grey: did not"
    " reach the forget level, or names too little, so it is not compared."
)
how = {"title": titles.least(drawn)}
_ = figures.publish(
    "fig_arms", "02_methods", drawn, preset, few.seeds, caption, **how
)

# %% [markdown]
# None of them holds: GradDiff hallucinates
# in <!-- fig:02_methods:results.arms.GradDiff.values:.0f -->76<!-- / --> % over the attack, NPO
# in <!-- fig:02_methods:results.arms.NPO.values:.0f -->71<!-- / --> %, EFUF
# in <!-- fig:02_methods:results.arms.EFUF.values:.0f -->68<!-- / --> %. GA
# (<!-- fig:02_methods:results.arms.GA.values:.0f -->66<!-- / --> %) names
# only <!-- fig:02_methods:results.arms.GA.recall:.0f:100 -->4<!-- / --> % of
# the objects: it has not erased
# hallucinations but captions. SimNPO never brings CHAIR_s down. (Five seeds and
# one order here, so EFUF's number differs from the one above.)
#
# ## What does the curation cost?
#
# In this clean world next to nothing: the judge makes hardly a mistake. So we
# make mistakes on purpose. The masks come from the truth (an *oracle*, which no
# real data has), and a share of the hallucinated sub-sentences is *missed*: kept
# as if it were true, as a lenient judge would do.

# %%
runs = {
    str(share): [
        presets.book_run("EFUF oracle", s, missed=share) for s in few.seeds
    ]
    for share in setting.missed
}
found = attacks.run_all(runs)
lenient = {share: readings.after(found, share, "chair_s") for share in runs}
labels = {s: f"{100 * float(s):.0f} % missed" for s in lenient}
caption = (
    f"CHAIR_s after erasure on held-out scenes, {len(few.seeds)} seeds, by the "
    "share of hallucinated sub-sentences that the judge misses."
)
how = {"xlabel": "CHAIR_s, %, lower is better", "labels": labels}
how |= {"factor": 100, "bounds": (0, 100), "title": titles.lenient(lenient)}
_ = figures.publish(
    "fig_dots", "02_lenient", lenient, preset, few.seeds, caption, **how
)

# %% [markdown]
# What is missed can stay, and seeds differ widely in how much of it does: look at
# the dots, not at the mean alone.
#
# ## How a claim is judged
#
# The book keeps a ledger of the paper's claims, C1 to C8. An entry is a
# difference between two arms, taken seed by seed, with a 95 % interval. What is
# asked stood in a [plan](glossary.md#plan)
# ([`claims.toml`](lab/evidence/claims.toml)) before the run.
# The rules, in the order in which they are applied:
#
# 1. *not comparable*, if the arms do not stand at one forget level, or some run
#    does not reach it. (C8k, chapter 04: *<!-- C8k.verdict -->not comparable<!-- / -->*.)
# 2. *supported*, if the claim is a bound ("not less") that is kept: a test shuts
#    out a loss as large as the *margin*, how much the plan says would matter.
#    (C5a, recall: <!-- C5a.diff -->-0.5 [-0.6, -0.3]<!-- / --> points, the margin is one point:
#    *<!-- C5a.verdict -->supported<!-- / -->*.)
# 3. *no difference larger than the margin*, if two tests shut out any effect
#    that would matter, up or down. (C7e: <!-- C7e.diff -->-0.6 [-1.2, -0.0]<!-- / -->
#    leaves zero out,
#    but the margin is five points: *<!-- C7e.verdict -->too small to matter<!-- / -->*.)
# 4. *supported* or *refuted*, if a test finds a difference, on the claim's side
#    or on the other. (C1a: <!-- C1a.diff -->+25.4 [13.9, 37.0]<!-- / -->:
#    *<!-- C1a.verdict -->supported<!-- / -->*.)
# 5. *undecided*, if none of these. (C1d: *<!-- C1d.verdict -->open<!-- / -->*.)
#
# Each claim has one *primary* comparison (C8 has two). Only these get a verdict,
# after [Holm's correction](glossary.md#holm) for all nine. One that has not run yet counts against
# the others, so verdicts are final when the last chapter is through. All other
# comparisons are *exploratory*. They are read by the same rules without the
# correction, as *for*, *against*, *too small to matter* (rule 3) or *open*; some
# are chance.
#
# (Rule 3 looks at the 90 % interval. It is narrower than the printed one, which
# may reach a little past the margin.)

# %% [markdown]
# ## What we learned
#
# * Erasure needs no human labels: CLIP's scores give sub-sentences to forget
#   and to retain, with measurable precision and recall.
# * Standard erasure removes most hallucinations from the captions, at a price
#   that captions alone do not show. After 128 relearning samples many are back
#   (C1a: *<!-- C1a.verdict -->supported<!-- / -->*).
# * Whether they *come back* or are learnt anew: the comparison that decides, C1d,
#   reads *<!-- C1d.verdict -->open<!-- / -->*. The erased model goes further than one that never
#   hallucinated (C1b, exploratory: *<!-- C1b.verdict -->for<!-- / -->*; on six other
#   seeds *<!-- C1b.verdict@1101 -->for<!-- / -->*). "Superficial" has more than
#   one reading; say which
#   one you mean.
# * Is standard erasure sharp (C2)? By the plan's gauge
#   *<!-- C2a.verdict -->supported<!-- / -->*, on six
#   other seeds *<!-- C2a.verdict@1101 -->undecided<!-- / -->*: not settled.
# * The NLL of the forgotten words is a finer gauge than CHAIR_s.
#
# ## What we did not show
#
# That *sharpness* is why it breaks: that needs several methods whose sharpness
# differs (chapters [03](03_targeted_sam.ipynb) and [04](04_relearning.ipynb)).
# Nor that every attack works so well: ours knows the domain. The released EFUF
# code differs from ours in more than its weights: it trains the projector alone,
# and keeps human captions whole.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run its cell. It says "right", or "not yet" with a hint
# at the mistake. The [solutions](solutions.md) explain each answer.
#
# ### 1 · Cut a caption *(easy)*
#
# Cut "a street with a car; a bus, a truck!" into its sub-sentences, as this
# chapter cuts them: a list of texts, spaces and marks included.

# %% tags=["exercise", "nbval-check-output"]
from lab.exercises import erasure as check

my_sub_sentences = None
check.cut(my_sub_sentences)

# %% [markdown]
# ### 2 · Forget, retain, or neither *(easy)*
#
# "an office with a laptop and a mouse, a book, a clock." CLIP gives the laptop
# 30, the mouse 8, the book 22 and the clock 15. What scores below 10 is to be
# forgotten, what scores above 20 retained. Name the objects in the
# sub-sentences that are forgotten, and in those that are retained.

# %% tags=["exercise", "nbval-check-output"]
my_forget, my_retain = None, None  # two lists of objects
check.marks(my_forget, my_retain)

# %% [markdown]
# ### 3 · The loss of one batch *(easy)*
#
# The cross-entropy is 2.0 on the tokens to forget, 0.3 on those to retain, 0.4
# on whole sentences. The forget part has the weight `lambda_neg` = 0.1, the
# other two have 1. What is EFUF's loss, which the optimiser minimises?

# %% tags=["exercise", "nbval-check-output"]
my_loss = None
check.loss_by_hand(my_loss)

# %% [markdown]
# ### 4 · A benign user *(open)*
#
# Somebody fine-tunes the erased model on *clean* captions, without malice. Does
# it relapse? Predict, then compare with the attack of this chapter at the same
# sample counts.
#
# ```python
# from lab.experiments import attacks, erasures, presets
# from lab.world import encoded, measured
# from sare_min.attack import relearn
#
# run = presets.book_run("EFUF", kit.seed)
# attacks.run_all({"EFUF": [run]})  # from the cache
# model, clean = erasures.erased(run), encoded.masked(kit, "attack")
# clean = clean[clean.sentence.any(1)]
# at, how = (0, 64, 128, 256), {"seed": kit.seed, "progress": False}
# for n in relearn(model, clean, at, **how):
#     print(n, measured.held_out(kit, model))
# ```
#
# ### 5 · Forget without the price? *(open)*
#
# The relapse direction, turned round, is the steepest way to forget; in chapter
# 01 it took the grounded words with it. Take out of it what lies along the
# gradient of *their* NLL, so that to first order they do not move, and walk
# again from the base model. Predict: is the price gone at 0.2, and at 1.0? Then
# look at the length of `kept`.
#
# ```python
# model, data = kit.fresh(), encoded.masked(kit, "erase")
# forget = [-v for v in landscape.relapse_direction(model, data)]
# some = data[:256]
# loss = token_nll(model, some)[some.retain].mean()
# kept = torch.autograd.grad(loss, trainable(model))
# along = sum((f * k).sum() for f, k in zip(forget, kept))
# along = along / sum((k * k).sum() for k in kept)
# apart = [f - along * k for f, k in zip(forget, kept)]
# distances = (0.0, 0.2, 0.5, 1.0)
# for way in (forget, apart):
#     for nll in landscape.along(
#         trainable(model), way, distances, lambda: measured.nll(kit, model)
#     ):
#         print(nll)
# ```

# %% [markdown]
# ## Sources
#
# * [EFUF](bibliography.md#efuf): the standard erasure.
# * [Unlearn-Smooth](bibliography.md#unlearn-smooth): SAM for unlearning, and the relearning attack.
# * [NPO](bibliography.md#npo): a gentler forget loss.
# * [SimNPO](bibliography.md#simnpo): the same without a base model.
# * [PyHessian](bibliography.md#pyhessian): curvature by products with vectors.
# * [PGD](bibliography.md#pgd): the worst point by projected steps.
# * [SARE](bibliography.md#sare): the paper that this book tests.
