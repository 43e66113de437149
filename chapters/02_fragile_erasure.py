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
# it ends *sharp*? Moved by 0.5 in the worst way it loses <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> nats more
# than a model does that learnt from honest captions (claim C2:
# *<!-- C2a.verdict -->supported<!-- / -->*); but on six other seeds <!-- C2a.diff@1101 -->+0.01 [-0.83, 0.85]<!-- / -->, and other
# gauges say the opposite: not settled.
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
    told,
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
# Nobody hands us a list of a real model's hallucinations. EFUF's idea: let the
# model describe pictures, cut each caption into [**sub-sentences**](glossary.md#sub-sentence), and ask
# another model, a CLIP, how well the object in each goes with the picture. (Not
# the CLIP in LLaVA's own tower: EFUF asks ViT-B/32 about what LLaVA saw through
# ViT-L/14, and we ask a second tiny CLIP.) A low score marks the sub-sentence
# *forget*, a high one *retain*; what lies between is left alone. The cut comes
# *before* the separator, so that a sub-sentence opens with its own comma:

# %% tags=["nbval-check-output"]
text = "a kitchen with a cup, a bowl, a fork."
print([text[start:end] for start, end in curate.sub_sentences(text)])

# %% [markdown]
# Why does the comma belong to the sub-sentence that it opens? After "a cup, a bowl" the
# model has two ways on: "." and ",". If we punished only the words *after* the
# comma, the model would learn to write the comma and then stall. The decision
# to go on is part of the hallucination.
#
# With scores of 30 for the cup, 15 for the bowl and 5 for the fork, and
# thresholds of 10 (forget below), 20 (retain above) and 25 (keep the whole
# sentence if the mean is above and nothing is to be forgotten):

# %% tags=["nbval-check-output"]
find = (
    RULES.find
)  # the objects that a caption of the microworld names, and where
scores = {"cup": 30.0, "bowl": 15.0, "fork": 5.0}
limits = curate.Thresholds(10, 20, 25)
spans = curate.curate([text], [scores], find, limits)[0]
print({kind: [text[a:b] for a, b in pieces] for kind, pieces in spans.items()})

# %% [markdown]
# Now the real thing. Each base model has described 1,536 pictures, sampling at
# temperature 1. Here is what a tiny CLIP thinks of the objects named. It is not
# the one through which the models see, and it is one for all seeds, as EFUF
# lets the one public ViT-B/32 judge; so no interval below tells what another
# judge would do. The colours show the truth, which the curation *never* sees;
# we use it only to judge the judge.

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
labels = {
    "precision": "forget: marked sub-sentences that are hallucinated",
    "recall": "forget: hallucinated mentions that are marked",
    "retain_precision": "retain: marked mentions that are shown",
    "retain_recall": "retain: shown mentions that are marked",
}
rates = {key: [j[key] for j in judged] for key in labels}
caption = (
    f"Curation by the tiny CLIP against the truth, {len(setting.seeds)} seeds."
)
_ = figures.numbers("02_curation", rates, preset, setting.seeds, caption)
for key, label in labels.items():
    print(f"{label:50s}", stats.spell([100 * x for x in rates[key]]), "%")

# %% [markdown]
# The thresholds are read off the scores alone: they fall into two clusters,
# *forget* lies below the middle between the clusters' centres, *retain* above
# the middle of what is left. In this clean world the tiny CLIP makes next to no
# mistake: <!-- fig:02_curation:results.precision:.1f:100 -->100.0<!-- / --> % of what it marks to forget is
# hallucinated (precision), <!-- fig:02_curation:results.recall:.1f:100 -->100.0<!-- / --> % of what is hallucinated
# is marked (recall). On photographs no CLIP comes near that; what its mistakes
# cost we shall see below.
#
# ## One caption, one row, three masks
#
# EFUF's loss adds three parts. *Forget*: make the marked sub-sentences unlikely,
# by **minus** their cross-entropy. *Retain*: keep the grounded ones likely.
# *Sentence*: keep whole clean captions likely, so that the model does not
# forget how to talk and how to end. All three are masks over the tokens of one
# row. Here is a row with something to forget, and a clean one:

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
# **A trap: one row per sub-sentence.** EFUF's released code cuts a caption at
# each sub-sentence's end and makes every one a row of its own. In a causal model a
# word's likelihood does not depend on what follows, so the losses are the same,
# and so are the gradients (a test proves it). What differs is how often the
# picture is read. Tokens in one forward over the same 256 captions:

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
# stay. The weights are [`Method`](../sare_min/losses.py#L51)'s, which is a row of
# settings: `lambda_neg` is 0.1, the others 1.

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
# [`draw_batches`](../sare_min/unlearn.py#L61) sees to it that each batch has its
# share of captions with something to forget. The rest you have read. The book's
# loop is [`unlearn`](../sare_min/unlearn.py#L128): it takes any row of
# [`METHODS`](../sare_min/unlearn.py#L24), splits batches that do not fit, and asks
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
# From here on [`attack_all`](lab/experiments/attacks.py#L261) erases and attacks
# for every seed, in several orders of the same captions, and keeps what it
# found; [`book_attacks`](lab/experiments/presets.py#L233) says what the book
# compares. Each run goes on until a cool-down, ten steps with a falling learning
# rate, should end at a set NLL of the forget sub-sentences of 64 *stop
# captions*, whose scenes no erasure sees. If it then stands short, it goes on
# and cools down once more. Steps are too coarse for a comparison, so the run is
# [**landed**](glossary.md#landing): the weights between its last look below the level and its last look
# above are bisected until the NLL is right to within 0.01 nats.
#
# So all runs that get there stand at one [**forget level**](glossary.md#forget-level). From here on we
# compare methods, and a method that forgets more would look more robust for that
# reason alone. (Neither the attack nor CHAIR uses the stop captions; the gauges
# of sharpness do.) What the landing changes is printed, too.

# %%
print(f"the held-out forget NLL to reach: {erasures.STOP_NLL} nats a token")
many = {"orders": setting.orders, "shuffles": setting.shuffles}
specs = presets.book_attacks(setting, "base", "EFUF", **many)
results = attacks.attack_all(specs)
once = {name: readings.first_of(row) for name, row in results.items()}
print("steps that took:", [len(r["log"]) for r in once["EFUF"]])
print(tables.landed(results, "EFUF"))

# %%
shown = {"EFUF": [r for r in once["EFUF"] if not r["spec"]["order"]]}
training = readings.training(shown, "EFUF")
caption = (
    "EFUF, training batches of 24 captions, "
    f"{len(setting.seeds)} seeds (faint), one order, mean, 95 % interval, "
    "up to the shortest run."
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
# The left curve must rise, the right one stay low. Does it show in what the
# models say? Before and after, on held-out scenes:

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
# one, to a foreign one. The last row is the NLL of the sub-sentences to retain:

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
# By the usual measures of captions this is a success. Read the other rows too:
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
# What does it say meanwhile? Four held-out scenes, the first of each place, by
# the base model and by the erased one, under more and more of the attack. No
# scene was picked by what is said of it.

# %%
at, first = presets.PRESETS["fast"].coarse, setting.seeds[0]
heard = {
    name: told.listen(told.Told(presets.book_run(name, first), counts))
    for name, counts in (("base", at[:1]), ("EFUF", at))
}
says = told.strip(first, heard, at)
caption = (
    "Greedy captions of the first held-out scene of each place, seed"
    f" {first}. Red, bold, underlined: not in the picture. Right: CHAIR_s on"
    " all 200 held-out scenes of this seed. " + tables.caption(results, "EFUF")
)
how = {"at": at, "title": titles.strip(says, at)}
_ = figures.publish(
    "fig_strip", "02_strip", says, preset, [first], caption, **how
)

# %% [markdown]
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
# The book keeps a ledger of the paper's claims, C1 to C8. Each row of it is a
# difference, taken seed by seed, with a 95 % interval. Its verdict is computed,
# by rules that stood in a [plan](glossary.md#plan) ([`claims.toml`](lab/evidence/claims.toml)) before
# the run:
#
# * *supported* or *refuted*, if a test says so;
# * *no difference larger than the margin*, if two tests shut out any effect that
#   would matter (the plan says for each row how much matters: its *margin*);
# * *undecided*, if neither;
# * *not comparable*, if the two arms do not stand at one forget level.
#
# Each claim has one *primary* row (C8 has two), and only these get a verdict,
# after [Holm's correction](glossary.md#holm) for all nine. (What has not run yet counts against it,
# so a verdict can change from *undecided* to *supported* until the last chapter
# is through.) All other rows are *exploratory*: they are read, as *for*,
# *against*, *no difference* or *open*, by the same rules without the correction,
# so that some are chance.
#
# (The two tests look at the 90 % interval, at 5 % each: it is narrower than the
# printed one, so a printed interval may reach a little past the margin.)
#
# Here is the first. C1: *standard erasure is superficial*. The difference is
# CHAIR_s after 128 relearning samples, a *light* attack, minus right after
# erasure.

# %%
claims = {"C1a": tables.rises(results["EFUF"], 128)}
(row,) = ledger.record(claims, preset, setting.seeds)
print(tables.spell(row, 1))

# %% [markdown]
# Is a relapse a *return*, though? Captions that hallucinate would teach any
# model to hallucinate. The control is a model that never learnt it: the same
# pictures, the same training, with honest captions (chapter 00's "0 %"). It
# meets the same attack. Its hallucinated words stand at another NLL than an
# erased model's, so the erasures that it is compared with are landed there,
# seed by seed: one forget level again, another one. If an erased model needs far
# fewer samples than this *honest* one, something was left to come back to.
# (SARE, [chapter 03](03_targeted_sam.ipynb)'s method, is drawn for later; C1f
# compares it with EFUF here.) C1a alone does not show a return: after the same
# 128 samples the honest model, too, invents more. C1b to C1e ask that.

# %%
some = setting.with_honest()
trio = ("honest", "EFUF, honest level", "SARE, honest level")
found = attacks.attack_all(presets.book_attacks(some, *trio))
both = readings.curves(found, *trio)
caption = (
    "The same attack on a model that never saw a hallucinated caption, and on"
    f" erasures at its level; {len(some.seeds)} seeds (faint), mean, 95 %"
    " interval. " + tables.caption(found, *trio)
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
pair = trio[:2]
asked = {"C1b": (*pair, "mean_chair_s"), "C1c": (*pair, "half_life")}
asked |= {"C1d": (*pair, "relapse"), "C1e": (*pair, readings.last_chair_s)}
asked |= {"C1f": (trio[1], trio[2], "mean_chair_s")}
questions = tables.ask(found, asked)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], tables.spell(row, 1))

# %% [markdown]
# ## Is standard erasure sharp? (claim C2)
#
# Chapter 01 named three things: a point, a direction and a distance. The point
# is now EFUF's erased model. We measure how likely the *forgotten* words are at
# increasing distance from it, in three directions:
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
# At the left edge the three meet: the erased model, to which the hallucinated
# words are very unlikely. The lower a line goes, the more they are back.
#
# The random line hardly moves, as in chapter 01. The relapse line drops from the
# first step on, then flattens or turns: the steepest way at the start is not the
# best way for long. The attack's line starts more gently and, in most seeds,
# goes further down.

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
# purpose, and we shall call it the [**relapse radius**](glossary.md#relapse-radius) in a given direction.
# By the steepest way it lies about as far away as the attacker travels with 256
# samples: he needs no straight line, and goes no farther than it would be.
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
# nobody had to push them down. Whoever is higher up has more to lose, so the
# erasure is landed, seed by seed, on the honest model's own forget level, as
# above. (*Passes*, in the print, count work: chapter 03.) If erasure
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
#   derivatives (the [*Hessian*](glossary.md#hessian)), found by Lanczos' method, which needs only
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
# The gauges contradict one another. At the worst point nearby EFUF loses more,
# by <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> (C2a: *<!-- C2a.verdict -->supported<!-- / -->*, <!-- C2a.n -->6<!-- / --> seeds have an honest
# model), and a larger share of its NLL, by <!-- C2d.diff -->+0.13 [0.05, 0.21]<!-- / --> (C2d, exploratory:
# *<!-- C2d.verdict -->for<!-- / -->*). Its slope and its curvature are *smaller* than the honest
# model's: by <!-- C2b.diff -->-9.1 [-21.9, 3.8]<!-- / --> (C2b: *<!-- C2b.verdict -->open<!-- / -->*) and <!-- C2c.diff -->-705.6 [-2087.3, 676.1]<!-- / --> (C2c:
# *<!-- C2c.verdict -->open<!-- / -->*). The plan had chosen the first. On six other seeds that
# is <!-- C2a.diff@1101 -->+0.01 [-0.83, 0.85]<!-- / --> (*<!-- C2a.verdict@1101 -->undecided<!-- / -->*), and the curvature reads
# *<!-- C2c.verdict@1101 -->against<!-- / -->*. Take C2 as not settled. And whatever the rows say,
# steepness is not yet the reason for anything that follows.
#
# ## Other ways to erase
#
# EFUF is one row of a table. The others differ in the loss on the forget
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
print(tables.beside(others, *names))

# %%
words = "mean CHAIR_s over the attack, %, lower is better"
drawn = tables.arms(
    others, names, words, readings.READ["mean_chair_s"], (0, 100)
)
caption = (
    f"Baselines under the same attack, {len(few.seeds)} seeds. Grey: did not"
    " reach the forget level, so it is not compared."
)
how = {"title": titles.least(drawn)}
_ = figures.publish(
    "fig_arms", "02_methods", drawn, preset, few.seeds, caption, **how
)

# %% [markdown]
# None of them holds: GradDiff hallucinates
# in <!-- fig:02_methods:results.arms.GradDiff.values:.0f -->76<!-- / --> % over the attack, NPO
# in <!-- fig:02_methods:results.arms.NPO.values:.0f -->71<!-- / --> %, EFUF in <!-- fig:02_methods:results.arms.EFUF.values:.0f -->68<!-- / --> %. GA
# (<!-- fig:02_methods:results.arms.GA.values:.0f -->66<!-- / --> %) names
# only <!-- fig:02_methods:results.arms.GA.recall:.0f:100 -->4<!-- / --> % of the objects: it has not erased
# hallucinations but captions. SimNPO never brings CHAIR_s down. (Five seeds and
# one order here, so a row differs from the headline's.)
#
# ## What does the curation cost?
#
# The same erasure with masks from the truth (an *oracle*, which no real data
# has), stopped at the same level, under the same attack:

# %%
pair = ("EFUF", "EFUF oracle")
paired = attacks.attack_all(presets.book_attacks(few, *pair, at=few.coarse))
both = tables.compared(paired, pair)
caption = (
    f"EFUF with masks from CLIP and from the truth, {len(few.seeds)} paired "
    "seeds. " + tables.caption(paired, *pair)
)
_ = figures.numbers("02_oracle", both, preset, few.seeds, caption)
for endpoint, row in both.items():
    difference = stats.spell_paired(*(row[name] for name in pair))
    print(f"{endpoint:12s} CLIP - oracle: {difference}")
print(tables.beside(paired, *pair))

# %% [markdown]
# Where the judge made no mistake at all, the two rows are the *same* run, and the
# differences are exactly zero. So we make mistakes on purpose. A share of the hallucinated sub-sentences is *missed*, and kept as if it
# were true, as a lenient judge would do:

# %%
shares = setting.missed
runs = {
    share: [presets.book_run("EFUF oracle", s, missed=share) for s in few.seeds]
    for share in shares
}
found = attacks.run_all({str(share): row for share, row in runs.items()})
lenient = readings.lenient(found, shares)

# %%
caption = (
    f"CHAIR_s after erasure on held-out scenes, {len(few.seeds)} seeds "
    "(faint), mean, 95 % interval."
)
xlabel = "hallucinated sub-sentences that the judge misses, %"
how = {"key": "chair_s", "xlabel": xlabel, "title": titles.lenient(lenient)}
_ = figures.publish(
    "fig_slices", "02_lenient", lenient, preset, few.seeds, caption, **how
)
for share in shares:
    chair = stats.spell(readings.after(found, str(share), "chair_s", 100))
    print(f"{100 * share:.0f} % missed: CHAIR_s {chair} %")

# %% [markdown]
# ## What we learned
#
# * Erasure needs no human labels: CLIP's scores give sub-sentences to forget
#   and to retain, with measurable precision and recall.
# * Standard erasure removes most hallucinations from the captions, at a price
#   that captions alone do not show. After 128 relearning samples CHAIR_s differs
#   by <!-- C1a.diff -->+25.4 [13.9, 37.0]<!-- / --> points from right after erasure (C1a:
#   *<!-- C1a.verdict -->supported<!-- / -->*).
# * Something was left to come back. At one forget level EFUF hallucinates more
#   over the attack than a model that never did, by <!-- C1b.diff -->+31.8 [20.4, 43.3]<!-- / --> points (C1b,
#   exploratory: *<!-- C1b.verdict -->for<!-- / -->*), and at its end by <!-- C1e.diff -->+27.2 [16.4, 38.1]<!-- / --> (C1e:
#   *<!-- C1e.verdict -->for<!-- / -->*); both read so on six other seeds, too. The NLL of the
#   hallucinated words halves no sooner, by <!-- C1c.diff -->+7.6 [-60.9, 76.2]<!-- / --> samples (C1c:
#   *<!-- C1c.verdict -->open<!-- / -->*). "Superficial" has more than one reading; say which one
#   you mean.
# * Is standard erasure sharp (C2)? By the plan's gauge, the NLL lost at the
#   worst point
#   nearby: <!-- C2a.verdict -->supported<!-- / -->, <!-- C2a.diff -->+0.67 [0.28, 1.06]<!-- / --> nats; on six other
#   seeds <!-- C2a.diff@1101 -->+0.01 [-0.83, 0.85]<!-- / -->.
# * The NLL of the forgotten words is a finer gauge than CHAIR_s.
#
# ## What we did not show
#
# That *sharpness* is why it breaks: that needs several methods whose sharpness
# differs (chapters [03](03_targeted_sam.ipynb) and [04](04_relearning.ipynb)).
# Nor that every attack works so well: ours knows the domain. The released EFUF code differs from ours in more than its
# weights: it trains the projector alone, and keeps human captions whole.

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
# ### 4 · When to stop *(easy)*
#
# `nll` is the NLL of the forgotten words at one look, in nats a token. Return
# whether an erasure whose forget level is 8 is to stop now.


# %% tags=["exercise", "nbval-check-output"]
def my_stop(nll):
    return None  # your line


check.stop(my_stop)

# %% [markdown]
# ### 5 · A benign user *(open)*
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
