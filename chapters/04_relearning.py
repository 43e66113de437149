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
# # 04 · The relearning attack
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/04_relearning.ipynb)
#
# **The question.** How many samples of fine-tuning bring the hallucinations
# back, and does Targeted-SAM make it more?
#
# **What you will see.** The book's headline figure: CHAIR_s against the number
# of relearning samples, for the base model, EFUF and SARE, at a matched forget
# level, every seed shown; the paired difference in samples until relapse; what
# other causes could explain it, each with a control; whether the answer depends
# on the attacker; and two ways of measuring that could have told another story.
#
# **Time.** About two minutes on two CPU cores after chapters 02 and 03.

# %% tags=["parameters"]
preset = "fast"  # or "full": eight seeds, as in the book's figures
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
from lab.evidence import figures, ledger, readings, stats, tables
from lab.experiments import attacks, cheaper, erasures, presets
from lab.world import encoded
from lab.world.kit import get_kit
from sare_min.attack import relearn
from sare_min.metrics import span_nll

setting = presets.get_preset(preset, seeds.split())
kit = get_kit(setting.seeds[0])

# %% [markdown]
# ## The attacker
#
# The attacker has the erased weights and captions that hallucinate, about
# pictures that the erasure never saw. He fine-tunes by plain cross-entropy, in
# one pass, eight captions a step, and needs no knowledge of how the erasure was
# done. In the code he is a generator: he stops after the sample counts we name,
# so that we can measure in between.

# %%
# Erases and attacks all of them; what the cache has is only read
specs = presets.book_attacks(setting, "base", "EFUF", "SARE")
results = attacks.attack_all(specs)

# %%
model, nll = erasures.erased(specs["EFUF"][0].run), {}
captions, at = encoded.attack(kit), (0, 8, 16)
for n in relearn(model, captions, at, seed=kit.seed, progress=False):
    nll[n] = span_nll(model, encoded.test(kit))["forget"]
print({n: round(value, 3) for n, value in nll.items()})

# %% tags=["nbval-check-output"]
print(
    f"measured after {list(nll)} samples;"
    f" the forgotten words become likelier: {nll[16] < nll[0]}"
)

# %% [markdown]
# ## The headline
#
# Both erasures were to stop at the same held-out forget NLL before the attack
# begins (`erasures.STOP_NLL`): a method that simply forgets *more* would
# relapse later for that reason. They meet the same captions in the same order.
# A run that did not get there, or fell back while it cooled down, shows in the
# print below; it starts the attack closer to relapse, and counts as it is.
# (SARE has had more steps, see chapter 03; matching the level does not match
# the compute.) Predict before you look: where is the base model's line, and
# where would SARE's be if Targeted-SAM did nothing?

# %%
curves = readings.curves(results, "base", "EFUF", "SARE")
for name in ("EFUF", "SARE"):
    stopped = readings.after(results, name, "stop_level")
    levels = [round(level, 1) for level in stopped]
    print(f"{name}: forget NLL where it stopped, one number a seed: {levels}")

# %%
caption = (
    "Relearning on hallucinated captions (AdamW 2e-4, batches of 8, one pass)"
    f" after erasure to a held-out forget NLL of {erasures.STOP_NLL} nats;"
    f" masks by CLIP; 200 held-out scenes a seed; {len(setting.seeds)} seeds"
    " (faint), mean, 95 % interval of the mean."
)
_ = figures.publish(
    "fig_relapse", "04_relearning", curves, preset, setting.seeds, caption
)

# %% [markdown]
# Left, what users see; right, what happens underneath. The base model has
# nothing to relearn, its line stays where it is; a Targeted-SAM that did
# nothing would lie on EFUF's. The faint lines matter: *when* the relapse comes
# differs from seed to seed, also within one method. So we pair: each seed has
# one base model, one data set, one attack, and two erasures. The differences
# are printed with their interval, and with the number of seeds that share the
# mean's sign.

# %%
relapse, area = readings.relapses(curves), readings.areas(curves)
for name in ("EFUF", "SARE"):
    mean, each = stats.spell(relapse[name]), [round(x) for x in relapse[name]]
    until = f"samples until CHAIR_s passes 50 %: {mean}"
    print(f"{name}: {until}; each seed: {each}")
gain = stats.spell_paired(relapse["SARE"], relapse["EFUF"])
print("difference, SARE - EFUF:", gain)
gain = stats.spell_paired(area["SARE"], area["EFUF"])
print("mean CHAIR_s over the whole attack, points, SARE - EFUF:", gain)

# %%
rows = {"samples until relapse": stats.paired(relapse["SARE"], relapse["EFUF"])}
how = {
    "xlabel": "SARE - EFUF, relearning samples, higher is better"
    " (dot: a seed; bar: 95 % interval)"
}
caption = (
    "Samples until CHAIR_s passes 50 %, paired by seed,"
    f" {len(setting.seeds)} seeds; no relapse counts as the last sample count."
)
_ = figures.publish(
    "fig_paired", "04_paired", rows, preset, setting.seeds, caption, **how
)

# %% [markdown]
# Claim C6 says that suppression *persists* under relearning. We ask two
# questions here, because the curve answers them differently, and more below:
# (a) does it persist *longer* than EFUF's; (b) does it *persist*, in the sense
# that the whole attack raises CHAIR_s by less than ten points; and, from (c)
# on, whether (a) holds for other attackers.

# %%
end, last = curves["at"][-1], tables.at_the_end(results, "EFUF", "SARE")
erased = readings.after(results, "SARE", "chair_s", 100)
longer = "relearning samples until CHAIR_s passes 50 %"
persists = (
    f"CHAIR_s of SARE, %, right after erasure and after {end} more samples"
)
rises = "(persists: rises by less than 10)"
questions = {
    longer: (relapse["EFUF"], relapse["SARE"], 1),
    persists: (erased, last["SARE"], -1, 10, rises),
}
claims = tables.ask("C6", "ab", "ch. 04", questions)
for row in claims:
    print(row["id"], row["metric"], "->", row["verdict"])
efuf, sare = (stats.spell(last[name]) for name in ("EFUF", "SARE"))
print(f"CHAIR_s after {end} samples: EFUF {efuf} %, SARE {sare} %")

# %% [markdown]
# ## A trap: one seed
#
# Had we run a single seed, we would have published one of these sentences. Each
# is a true report of its seed.

# %%
pairs = zip(relapse["EFUF"], relapse["SARE"], strict=True)
for seed, (before, then) in zip(setting.seeds, pairs, strict=True):
    times = f"{then / max(before, 1):.1f} times"
    says = f"SARE resists {times} as many relearning samples as EFUF"
    print(f"seed {seed}: “{says}”")

# %% [markdown]
# ## The other methods
#
# The same attack on every row of `METHODS`: among them untargeted SAM, which
# disturbs everything instead of the hallucinations alone, and NPO, with and
# without Targeted-SAM. Is it the *targeted* step that counts, and does it help
# another forget loss as well? (The fast preset runs only EFUF and SARE here,
# and few of the controls and attacks below; the book's figures show all.) From
# here on CHAIR_s is measured at six sample counts, not at eleven, to save time.
# A curve that rises, falls and rises again is then seen to pass 50 % later:
# compare SARE here with SARE above, and within a figure only rows that were
# measured alike.

# %%
few = setting.few()
names = setting.attacked
everyone = attacks.attack_all(presets.book_attacks(few, *names, at=few.coarse))
late = readings.relapses(readings.curves(everyone, *names))
caption = (
    f"All methods under the same attack, {len(few.seeds)} seeds;"
    " 0 means that CHAIR_s was above 50 % before it."
)
how = {"last": few.coarse[-1]}
facts = {"relapse": late}
_ = figures.publish(
    "fig_late", "04_methods", facts, preset, few.seeds, caption, **how
)

# %%
pairs = [("SARE", "EFUF"), ("SARE", "EFUF+SAM")]
pairs += [("NPO+Targeted-SAM", "NPO"), ("SARE", "NPO")]
print(tables.later(late, pairs))

# %% [markdown]
# ## What else could it be? (claim C8)
#
# Where SARE does relapse later, is *flatness* the cause? SARE also takes more
# steps, each with more work, and may end at a slightly other forget level. And
# perhaps any disturbance of the weights during training would do. One control
# for each rival cause:
#
# * **EFUF, SARE's level**: stopped, seed by seed, at the very forget level at
#   which SARE ended.
# * **EFUF, SARE's level and compute**: trained for as much work as SARE was;
#   the forget term is on only while the level is below SARE's. (A row without
#   forget tokens costs one forward and one backward pass, one with them two
#   forwards and three backwards; a backward counts as two forwards.)
# * **EFUF, from above**: pushed 1.5 nats past that level, then trained on
#   retain and sentence pieces alone until it comes down to it.
# * **SARE, random step**: the ascent step has the same length and a random
#   direction, drawn anew each time.
# * **SARE, wrong sign**: the step leads *away* from the relapse; the trap of
#   chapter 03, trained to its end.
# * **SARE, step on retain**: the step raises the losses of what is to be
#   *kept*, and these are descended there.
#
# If flatness around the hallucination is the cause, SARE must beat all of them.
# Predict which is hardest to beat.

# %%
controls = presets.controls(few, results["SARE"][: len(few.seeds)])
chosen = {name: controls[name] for name in setting.controls}
rivals = attacks.attack_all(
    presets.book_attacks(few, "EFUF", "SARE", at=few.coarse)
    | presets.attacks_on(chosen, few)
)
late = readings.relapses(readings.curves(rivals, *rivals))

# %%
print(tables.trained(rivals))

# %%
facts = tables.facts(late, rivals)
caption = f"Controls under the same attack, {len(few.seeds)} seeds."
how = {"last": few.coarse[-1]}
_ = figures.publish(
    "fig_late", "04_controls", facts, preset, few.seeds, caption, **how
)
rows = tables.ask("C8", "abcdef", "ch. 04", tables.rivals(late, chosen))
for name, row in zip(chosen, rows, strict=True):
    print(f"SARE - “{name}”: {tables.answer(row, 0)}")
claims += rows

# %% [markdown]
# The distance from the base model is printed because a model that has moved
# further may simply be further to bring back. Read the verdicts together: C8
# says *flatness is the cause*, and every rival that SARE does not beat is a
# cause that is not ruled out. An "undecided" is not a defeat of the rival.
#
# ## Cheaper, and approximate
#
# Exact Targeted-SAM pays twice for rows with forget tokens: once for eps\*,
# once for the gradient at theta + eps\*. The second is the method; the first
# only says where to look, and a rough answer may do. Three approximations, each
# a step function of `lab/experiments/cheaper.py` in the same table row: eps\*
# kept for four steps (in the spirit of LookSAM); eps\* from a quarter of the
# forget rows; eps\* over the projector's weights alone, so that the first
# backward pass computes no other weight's gradient. (With LoRA, eps\* and the
# step cover the adapter alone anyway: `set_trainable(model, "lora")`.)
#
# The cost of a run is counted, not clocked: passes over a batch, a forward
# being 1 and a backward 2, times the steps until the forget level is reached.
# `make bench` clocks a step. Predict first: which is the worst place to save?

# %%
rough = presets.rough_steps(few)
found = attacks.attack_all(
    presets.book_attacks(few, "EFUF", "SARE", at=few.coarse)
    | presets.attacks_on(rough, few)
)
late = readings.relapses(readings.curves(found, *found))
bill = tables.bill(found, late, cheaper.COST)
caption = (
    "What an erasure costs and how long it lasts, exact and approximate ascent"
    f" steps, {len(few.seeds)} seeds."
)
_ = figures.publish("fig_cost", "04_cost", bill, preset, few.seeds, caption)

# %%
print(tables.costs(bill, found))
for name in rough:
    longer = stats.spell_paired(late[name], late["SARE"], 0)
    print(f"samples until relapse, “{name}” - SARE: {longer}")

# %% [markdown]
# ## Another attacker, the same question
#
# The order of two methods is not worth much if it holds for one attacker. Here
# all of them meet other learning rates and batch sizes. The attacker's work is
# counted in samples all the same, so a larger batch means fewer steps.

# %%
# The attacker we know, and the others
grid = {"lr 0.0002, batch 8": readings.curves(everyone, *names)}
for lr, batch, last in setting.attackers:
    at = tuple(n for n in few.coarse if n <= last)
    met = presets.book_attacks(few, *names, lr=lr, batch=batch, at=at)
    found = attacks.attack_all(met)
    grid[f"lr {lr:g}, batch {batch}"] = readings.curves(found, *names)
caption = (
    "CHAIR_s against relearning samples under attackers of other learning rates"
    f" and batch sizes, mean of {len(few.seeds)} seeds, 95 % interval."
)
how = {"keys": dict.fromkeys(grid, "chair_s"), "units": {}}
_ = figures.publish(
    "fig_attacks", "04_attackers", grid, preset, few.seeds, caption, **how
)

# %%
sooner = {name: readings.relapses(drawn) for name, drawn in grid.items()}
print(tables.attackers(sooner))

# %%
others = {name: sooner[name] for name in list(grid)[1:]}
pairs = {k: stats.paired(row["SARE"], row["EFUF"]) for k, row in others.items()}
how = {
    "xlabel": "SARE - EFUF, relearning samples until CHAIR_s passes 50 %"
    " (dot: a seed; bar: 95 % interval)"
}
caption = (
    "Attackers with other learning rates and batch sizes,"
    f" {len(few.seeds)} seeds; no relapse counts as the last count."
)
name = "04_attackers_paired"
_ = figures.publish(
    "fig_paired", name, pairs, preset, few.seeds, caption, **how
)
rows = tables.ask("C6", "cdefgh", "ch. 04", tables.under(others))
for name, row in zip(others, rows, strict=True):
    print(row["id"], name, "->", row["verdict"])
claims += rows

# %% [markdown]
# ## Other updates, other prompts (claim C7)
#
# Fine-tuning on hallucinated captions is the most direct attack. Deployed
# weights also meet others, mostly without malice:
#
# * fine-tuning by **LoRA**, or of the **projector** alone, on the same
#   captions; on captions of **one place** only, measured in the three others:
#   does the relapse spread?
# * *benign* fine-tuning, on **clean captions**, or on another task, true
#   **answers** about shown and foreign objects;
# * Gaussian **noise** on every weight matrix, in units of its own standard
#   deviation; **rounding** to fewer bits; **pruning** of the smallest weights;
# * prompts: the true caption **prefilled** into the model's mouth (1), with a
#   comma after it (2), with ", a" (3), an opened clause that *some* noun must
#   close; and **leading** questions about an absent object, once and twice,
#   before the description is asked for.

# %%
found = attacks.attack_all(presets.other_attacks(few))
drawn, key = {}, dict.fromkeys(setting.kinds, "chair_s")
for kind in setting.kinds:
    rows = {name: found[kind, name] for name in names}
    drawn[kind] = readings.curves(rows, *names)
if "one place" in key:
    key["one place"] = "chair_s elsewhere"

# %%
caption = (
    "CHAIR_s against the strength of other updates and prompts, mean of"
    f" {len(few.seeds)} seeds, 95 % interval. “one place” is measured in the"
    " places that were not attacked."
)
how = {"keys": key, "units": presets.UNITS}
_ = figures.publish(
    "fig_attacks", "04_attacks", drawn, preset, few.seeds, caption, **how
)

# %%
asked = tables.attacked(drawn, key)
rows = tables.ask("C7", "abcdefghijkl", "ch. 04", asked)
print(tables.verdicts(rows, drawn, key))
_ = ledger.record(claims + rows, preset, setting.seeds)

# %% [markdown]
# C7 is asked against EFUF: does SARE hallucinate less over the whole range of
# the attack? Where both stay near zero there was no danger to begin with, and
# the verdict says "undecided" for lack of one; where both rise to the top,
# neither holds. And where recall has gone, as after leading questions, the
# model answers "yes" instead of describing: it invents little because it says
# little. Look at the panels, not only at the verdicts.
#
# ## A trap: unequal forget levels
#
# Here is EFUF against itself. The only difference is the level at which it was
# told to stop. A comparison of two methods that stop at different levels
# measures this as well, whatever it says it measures. (In the book's run 4
# against 12 nats makes 231 samples, more than SARE gains over EFUF.)

# %%
levels = presets.attacks_on(presets.unequal_levels(few), few)
found = attacks.attack_all(levels)
itself = readings.relapses(readings.curves(found, *levels))
caption = (
    "One method, unequal forget levels, the same attack,"
    f" {len(few.seeds)} seeds."
)
how = {"last": few.coarse[-1]}
facts = {"relapse": itself}
_ = figures.publish(
    "fig_late", "04_levels", facts, preset, few.seeds, caption, **how
)

# %% [markdown]
# ## What we learned
#
# * Relapse begins in the likelihoods, then shows in the captions; single seeds
#   mislead; pairing by seed and matching the forget level remove two unfair
#   advantages, and a control for the third, compute, costs no more than a run.
# * In the book's run SARE relapses later in seven of eight seeds, 1.9 times as
#   late on average, and the headline (C6a) is supported. But on two other sets
#   of seeds the same claim is undecided, +87 and +44 samples with intervals
#   that span zero, and on one of them only two of five seeds have the mean's
#   sign (the README lists all runs). The mean's sign is the same each time, the
#   verdict is not: do not quote the one that fits.
# * Of the controls, SARE clearly beats EFUF with its compute, EFUF from above
#   and the step with the wrong sign. At its own level, against a random step
#   and a step on the retain loss, three or four seeds of five point its way and
#   the interval still reaches zero (on seeds 101 to 108 and 11 to 15 only from
#   above and the wrong sign are beaten); and against untargeted SAM nothing is
#   won at all, -25 samples [-124, 74]: whether *targeted* counts stays open. So
#   flatness as *the cause* is not shown.
# * Added to NPO, Targeted-SAM delays the relapse in five of five seeds, and the
#   interval just spans zero.
# * Under each of the five attackers NPO with Targeted-SAM holds longest on
#   average (under one, SARE and untargeted SAM as long, to the end of the
#   attack), and SimNPO or GradDiff falls first; in between, the order changes
#   with the attacker. GA and GradDiff hallucinate *before* the attack, which
#   repairs their broken text before it breaks it again: a curve that falls is
#   no cure.
# * A rough direction does as well, as far as five seeds tell: eps\* kept for
#   four steps or from a quarter of the rows saves a quarter of the work, over
#   the projector alone nearly two fifths, and no interval of the difference in
#   delay excludes zero.
# * A cause is what is left when its rivals have had their turn. Name them, run
#   them, and count "undecided" as such.
# * Delay is not persistence: look at the end of every curve before you call a
#   method robust.
#
# ## What we did not show
#
# That anything here carries over to seven billion weights; what an attacker
# with other data or far more of it can do; that the settings of the baselines
# are their best (all were run at the book's learning rate). Absence of a
# difference at five or eight seeds is not equality.
#
# ## Exercises
#
# 1. *(easy)* A curve reads 0 % at 0 samples, 20 % at 64 and 80 % at 128. At how
#    many samples does it pass 50 %, by linear interpolation? Put the number
#    into the next cell.
# 2. *(easy)* Draw the recall along the attack (`keys=("recall",)` of
#    `figures.fig_relapse`). Does the attacker pay for what he gets?
# 3. *(harder)* Let the attacker train the projector alone:
#    `set_trainable(erasures.erased(specs["EFUF"][0].run), "projector")`, from
#    `sare_min.llava`, goes to `relearn`. Is he slower?

# %% tags=["exercise", "nbval-check-output"]
my_samples = None  # your number
passed = stats.relapse_samples([0, 64, 128], [0.0, 0.2, 0.8])
is_right = my_samples is not None and abs(my_samples - passed) < 1
print("right" if is_right else "not yet")

# %% tags=["solution", "nbval-check-output"]
my_samples = 96
print("right" if abs(my_samples - passed) < 1 else "not yet")

# %% [markdown]
# ## Sources
#
# * Relearning attacks: Fan et al., arXiv 2502.05374; Hu et al., *Jogging the
#   Memory of Unlearned LLMs Through Targeted Relearning Attacks*, arXiv
#   2406.13356.
# * SARE: arXiv 2601.16527. EFUF: arXiv 2402.09801. CHAIR: arXiv 1809.02156.
