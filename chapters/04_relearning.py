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
# **The answer.** It delays the relapse, and does not prevent it. Over the attack
# SARE's captions hallucinate in <!-- C6a.sare -->47.0<!-- / --> %, EFUF's
# in <!-- C6a.baseline -->65.5<!-- / --> %: a difference
# of <!-- C6a.diff -->-18.5 [-25.6, -11.4]<!-- / --> points (claim C6, it lasts longer:
# *<!-- C6a.verdict -->supported<!-- / -->*; on six other
# seeds <!-- C6a.diff@1101 -->-12.5 [-22.5, -2.6]<!-- / -->, *<!-- C6a.verdict@1101 -->undecided<!-- / -->*). But after 640
# samples SARE's CHAIR_s, too, has changed
# by <!-- C6b.diff -->+80.3 [72.1, 88.4]<!-- / --> points (C6b, it persists, exploratory:
# *<!-- C6b.verdict -->against<!-- / -->*).
#
# Why? The *direction* of the step
# matters: <!-- C8a.diff -->-17.3 [-24.2, -10.4]<!-- / --> points against a random one (C8a:
# *<!-- C8a.verdict -->supported<!-- / -->*; on other seeds
# *<!-- C8a.verdict@1101 -->supported<!-- / -->*). Its *target* does, by this measure: at equal
# work <!-- C8b.diff -->-8.2 [-12.8, -3.5]<!-- / --> points against untargeted SAM (C8b:
# *<!-- C8b.verdict -->supported<!-- / -->*; on other seeds
# *<!-- C8b.verdict@1101 -->undecided<!-- / -->*).
#
# **What you need.** [Chapter 02](02_fragile_erasure.ipynb) for the attack and the
# forget level, [chapter 03](03_targeted_sam.ipynb) for SARE.
#
# **What you will see.** The book's headline figure: CHAIR_s against the number
# of relearning samples, for the base model, EFUF and SARE, at a matched forget
# level, every seed shown; what the models say meanwhile; what other causes could
# explain it, each with a control; whether the answer depends on the attacker;
# and two ways of measuring that could have told another story.
#
# **Time.** About two minutes on two CPU cores after chapters 02 and 03.

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
from lab.evidence import (
    figures,
    ledger,
    readings,
    slider,
    stats,
    tables,
    titles,
)
from lab.experiments import attacks, erasures, presets, told
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
# done (chapter 02 shows it line by line). In the code he is a generator,
# [`relearn`](../sare_min/attack.py#L13): he stops after the sample counts we name,
# so that we can measure in between.

# %%
# Erases and attacks all of them; what the cache has is only read
many = {"orders": setting.orders, "shuffles": setting.shuffles}
both = ("EFUF", "SARE")
specs = presets.book_attacks(setting, *both, **many)
results = attacks.attack_all(specs | presets.book_attacks(setting, "base"))

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
# ## What they say meanwhile
#
# Before the curves, the captions. Four held-out scenes, the first of each place,
# and what the models of the book's first seed say of them: the base model, both
# erasures, and both again after more and more relearning samples. No scene and no seed
# was picked by what is said; beside each row stands CHAIR_s over all 200
# held-out scenes of this seed.

# %%
first, at = setting.seeds[0], setting.at
heard = {
    name: told.Told(
        presets.book_run(name, first), at if name != "base" else at[:1]
    )
    for name in ("base", *both)
}
heard = jobs.rows_side_by_side(
    told.listen, {name: [spec] for name, spec in heard.items()}, "listen"
)
says = told.strip(first, {name: row[0] for name, row in heard.items()}, at)
caption = (
    "Greedy captions of the first held-out scene of each place, seed"
    f" {first}. Red, bold, underlined: not in the picture. Right: CHAIR_s on"
    " all 200 held-out scenes of this seed. Of all seeds: "
    + tables.caption(results, *both)
)
how = {"at": presets.PRESETS["fast"].coarse}  # as the fast preset measures
how |= {"title": titles.strip(says, how["at"])}
_ = figures.publish(
    "fig_strip", "04_strip", says, preset, [first], caption, **how
)

# %% [markdown]
# A slider shows more: twelve scenes, every sample count, and how sure the model
# is of each word.

# %% tags=["remove-output"]
slider.widget(says)

# %% [markdown]
# ## The headline
#
# Both erasures stand at the same forget level before the attack begins. They
# meet the same captions in the same orders. (SARE has had more work, see
# chapter 03; matching the level does not match the work.) Predict before you
# look: where is the base model's line, and where would SARE's be if
# Targeted-SAM did nothing?

# %%
print(tables.beside(results, *both))
curves = readings.curves(results, "base", *both)
curves |= tables.pairs(results, both[::-1])
caption = (
    "Relearning on hallucinated captions (AdamW 2e-4, batches of 8, one pass);"
    f" 200 held-out scenes a seed; {len(setting.seeds)} seeds (faint, mean of"
    f" {setting.orders} erasures and {setting.shuffles} attacks each), mean,"
    " 95 % interval. Right: differences paired by seed. "
    + tables.caption(results, *both)
)
_ = figures.publish(
    "fig_relearning",
    "04_relearning",
    curves,
    preset,
    setting.seeds,
    caption,
    title=titles.lasting(curves),
)

# %% [markdown]
# Left, what users see; in the middle, what happens underneath; right, SARE minus
# EFUF, seed by seed. The base model has
# nothing to relearn, its line stays where it is; a Targeted-SAM that did
# nothing would lie on EFUF's. The faint lines matter: *when* the relapse comes
# differs from seed to seed, also within one method. *The* picture of a time
# until something happens is the survival curve, which also knows what to do
# with runs that did not relapse within the attack (they are [*censored*](glossary.md#censored); here none is: all got through):

# %%
lasting = tables.survival(results, *both)
caption = (
    "Share of attacks after which fewer than half of the captions hallucinate"
    f" (Kaplan-Meier), {len(results['SARE'])} attacks on"
    f" {len(setting.seeds)} seeds. " + tables.caption(results, *both)
)
_ = figures.publish(
    "fig_survival",
    "04_survival",
    lasting,
    preset,
    setting.seeds,
    caption,
    title=titles.survival(lasting),
)
print("never relapsed within the attack:")
print(tables.never(results, *both))

# %% [markdown]
# Each seed has one base model, one data set and the same attacks, so the
# difference is taken seed by seed. Several endpoints are reported, and the plan
# says which one decides: mean CHAIR_s over the whole attack (C6a), which is what
# users see. The others are exploratory: the samples until CHAIR_s passes 50 %
# (C6c, a *restricted* mean: the last sample count stands for "never"); the
# samples until the NLL of the forgotten words is half of what it was (C6d);
# CHAIR_s after 128 samples (C6e). C6a asks for a *delay*. Whether suppression
# *persists*, a rise of ten points at most after 640 samples, is asked by C6b.

# %%
asked = {"C6a": (*both, "mean_chair_s"), "C6c": (*both, "relapse")}
asked |= {"C6d": (*both, "half_life"), "C6e": (*both, "chair_128")}
questions = tables.ask(results, asked)
questions["C6b"] = tables.rises(results["SARE"], 640)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# ## A trap: one seed
#
# Had we run a single seed, we would have published one of these sentences. Each
# is a true report of its seed.

# %%
first = {
    name: readings.by_seed(
        [r for r in results[name] if not r["spec"]["order"] + r["shuffle"]],
        readings.READ["relapse"],
    )
    for name in both
}
pairs = zip(first["EFUF"], first["SARE"], strict=True)
for seed, (before, then) in zip(setting.seeds, pairs, strict=True):
    times = f"{then / max(before, 1):.1f} times"
    says = f"SARE resists {times} as many relearning samples as EFUF"
    print(f"seed {seed}: “{says}”")

# %% [markdown]
# ## Where does the spread come from?
#
# A study on other seeds
# (1 to 8, on which settings may be tried) took several orders of erasure for
# each base model and several orders of attack for each erasure, and ran them
# once more on other paths through the processor, which only round differently.
# It takes half an hour (`python -m lab.experiments.variance`), so here its
# stored figure is drawn:

# %%
_ = figures.again("04_variance")

# %% [markdown]
# Left: of one paired difference, the order in which the captions came for the
# erasure
# makes <!-- fig:04_variance:results.components.mean CHAIR_s over the relearning attack.erasure:.0f -->120<!-- / -->
# of the variance in mean CHAIR_s (squared points), the base model
# only <!-- fig:04_variance:results.components.mean CHAIR_s over the relearning attack.seed:.0f -->35<!-- / -->,
# the order of the
# attack <!-- fig:04_variance:results.components.mean CHAIR_s over the relearning attack.attack:.0f -->34<!-- / -->,
# and another path through the
# processor <!-- fig:04_variance:results.components.mean CHAIR_s over the relearning attack.kernels:.0f -->12<!-- / -->:
# rounding alone draws anew. Right: what a narrow interval costs. The samples
# until 50 % are the noisiest way to ask, the NLL's half-life the cheapest. A
# further order of both erasures costs about as much as a further base model. So
# each seed has two orders of erasure and two of attack here.
#
# ## The other methods
#
# The same attack on every row of [`METHODS`](../sare_min/unlearn.py#L24): among
# them [untargeted SAM](glossary.md#untargeted-sam) (the row `EFUF+SAM`), which disturbs everything instead of the hallucinations alone, and NPO, with and
# without Targeted-SAM. (The fast preset runs only EFUF and SARE here, and few of
# the controls and attacks below; the book's figures show all. Rows of five
# seeds, one order and fewer points differ from the headline's.)

# %%
few = setting.few()
names = setting.methods
everyone = attacks.attack_all(presets.book_attacks(few, *names, at=few.coarse))
words = "mean CHAIR_s over the attack, %, lower is better"
mean_chair_s = readings.READ["mean_chair_s"]
drawn = tables.arms(everyone, names, words, mean_chair_s, (0, 100))
caption = (
    f"All methods under the same attack, {len(few.seeds)} seeds, one order."
    " Grey: did not reach the forget level, so it is not compared."
)
how = {"title": titles.least(drawn)}
_ = figures.publish(
    "fig_arms", "04_methods", drawn, preset, few.seeds, caption, **how
)

# %% [markdown]
# Look at the levels and the recall beside the rows before you look at the bars.
# **GA** reaches the level by ruining the model: it
# names <!-- fig:04_methods:results.arms.GA.recall:.0f:100 -->4<!-- / --> % of the objects. **SimNPO** and the released
# schedule stand at other levels, grey. Of what is left, **untargeted SAM**
# (<!-- fig:04_methods:results.arms.EFUF+SAM.values:.0f -->58<!-- / --> %) lies between EFUF
# (<!-- fig:04_methods:results.arms.EFUF.values:.0f -->68<!-- / --> %) and SARE
# (<!-- fig:04_methods:results.arms.SARE.values:.0f -->44<!-- / --> %), and needs more passes than
# either: <!-- fig:04_methods:results.arms.EFUF+SAM.passes:.0f -->838<!-- / -->
# against <!-- fig:04_methods:results.arms.EFUF.passes:.0f -->155<!-- / --> and <!-- fig:04_methods:results.arms.SARE.passes:.0f -->585<!-- / -->.
#
# Does Targeted-SAM help another loss, too? NPO with it reached the level in four
# of five runs, so the ledger does not compare it:

# %%
npo = ("NPO", "NPO+Targeted-SAM")
if set(npo) <= set(names):
    asked = {"C8k": (*npo, "half_life"), "C8l": (*npo, "mean_chair_s")}
    questions = tables.ask(everyone, asked)
    for row in ledger.record(questions, preset, setting.seeds):
        print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# ## What else could it be? (claim C8)
#
# Where SARE does relapse later, is *flatness* the cause? SARE also takes more
# steps, each with more work. And perhaps any disturbance of the weights during
# training would do. The plan asks two questions first:
#
# * **SARE, random step** (C8a): the ascent step has the same length and a
#   random direction, drawn anew each time. Does the *direction* matter?
# * **equal work** (C8b): untargeted SAM, which disturbs everything, against
#   SARE; whichever needed fewer passes goes on for as many as the other, and
#   forgets only while below the level. (So one of the two rows is, in each
#   seed, the plain run.) Does the *target* matter? (Not in the fast preset: it is
#   the dearest comparison of the book.)

# %%
causes = ("EFUF", "SARE", *setting.causes)
found = attacks.attack_all(presets.book_attacks(setting, *causes, **many))
print(tables.beside(found, *causes))

# %%
drawn = tables.arms(found, causes, words, mean_chair_s, (0, 100))
caption = (
    f"Two rival causes, {len(setting.seeds)} seeds, {setting.orders} erasures"
    f" and {setting.shuffles} attacks each."
)
_ = figures.publish(
    "fig_arms",
    "04_causes",
    drawn,
    preset,
    setting.seeds,
    caption,
    title=titles.least(drawn),
)
step = ("SARE, random step", "SARE")
target = ("EFUF+SAM, equal work", "SARE, equal work")
asked = {"C8a": (*step, "mean_chair_s"), "C8b": (*target, "mean_chair_s")}
asked |= {"C8g": (*step, "half_life"), "C8h": (*step, "relapse")}
asked |= {"C8i": (*target, "half_life"), "C8j": (*target, "relapse")}
asked |= {"C8m": ("EFUF+SAM", "SARE", "mean_chair_s")}
asked |= {"C8n": ("EFUF+SAM", "SARE", "half_life")}
asked = {id: row for id, row in asked.items() if {*row[:2]} <= {*found}}
questions = tables.ask(found, asked)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# The random step gives nearly what EFUF gives
# (<!-- fig:04_causes:results.arms.SARE, random step.values:.0f -->64<!-- / --> and <!-- fig:04_causes:results.arms.EFUF.values:.0f -->66<!-- / --> %): the
# direction matters. More work at one level does not help
# SARE, <!-- fig:04_causes:results.arms.SARE.values:.0f -->47<!-- / --> % becomes <!-- fig:04_causes:results.arms.SARE, equal work.values:.0f -->51<!-- / --> %; so equal
# work handicaps it, and C8b is the harder question. Its
# difference, <!-- C8b.diff -->-8.2 [-12.8, -3.5]<!-- / --> points, is tested against none; it is smaller than the 12 that the
# plan calls one that matters.
#
# More rivals, on fewer seeds, as exploration:
#
# * **EFUF, SARE's work**: trained for as much work as SARE was; the forget term
#   is on only while the level is below.
# * **EFUF, from above**: pushed 1.5 nats past the level, then trained on what is
#   kept alone until it comes down to it.
# * **SARE, step on retain**: the step raises the losses of what is to be
#   *kept*, and these are descended there.
# * **SARE, wrong sign**: the step leads *away* from the relapse; the trap of
#   chapter 03, trained to its end.

# %%
rivals = ("SARE", *setting.controls)
found = attacks.attack_all(presets.book_attacks(few, *rivals, at=few.coarse))
drawn = tables.arms(found, rivals, words, mean_chair_s, (0, 100))
caption = (
    f"Controls under the same attack, {len(few.seeds)} seeds. Grey: did not"
    " reach the forget level, so it is not compared."
)
_ = figures.publish(
    "fig_arms",
    "04_controls",
    drawn,
    preset,
    few.seeds,
    caption,
    title=titles.least(drawn),
)
ids = zip(("C8c", "C8d", "C8e", "C8f"), setting.controls, strict=False)
asked = {id: (name, "SARE", "mean_chair_s") for id, name in ids}
questions = tables.ask(found, asked)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["metric"], "  ", tables.spell(row, 1))

# %% [markdown]
# None of the four does what SARE does
# (<!-- fig:04_controls:results.arms.SARE.values:.0f -->44<!-- / --> %): with its work EFUF hallucinates
# in <!-- fig:04_controls:results.arms.EFUF, SARE's work.values:.0f -->65<!-- / --> %, coming from above
# in <!-- fig:04_controls:results.arms.EFUF, from above.values:.0f -->67<!-- / --> %; a step on what is kept
# gives <!-- fig:04_controls:results.arms.SARE, step on retain.values:.0f -->63<!-- / --> %, and the wrong
# sign <!-- fig:04_controls:results.arms.SARE, wrong sign.values:.0f -->75<!-- / --> %,
# for <!-- fig:04_controls:results.arms.SARE, wrong sign.passes:.0f -->2295<!-- / --> passes instead
# of <!-- fig:04_controls:results.arms.SARE.passes:.0f -->585<!-- / -->. C8 says *flatness is the cause*, and every rival
# that SARE does not beat is a cause that is not ruled out; one that it does beat
# is only *that* rival. No row here moves flatness alone.
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
rough = ("EFUF", "SARE", *setting.cheaper)
found = attacks.attack_all(presets.book_attacks(few, *rough, at=few.coarse))
drawn = tables.arms(found, rough, words, mean_chair_s, (0, 100))
caption = (
    "What an erasure costs (passes) and mean CHAIR_s over the attack, exact"
    f" and approximate ascent steps, {len(few.seeds)} seeds."
)
how = {"title": titles.cost(drawn)}
_ = figures.publish(
    "fig_arms", "04_cost", drawn, preset, few.seeds, caption, **how
)
for name in setting.cheaper:
    later = [
        readings.by_seed(found[n], readings.READ["half_life"])
        for n in (name, "SARE")
    ]
    print(f"NLL half-life, “{name}” - SARE: {stats.spell_paired(*later, 0)}")

# %% [markdown]
# Each approximation saves work and gives some of the delay back. SARE stands
# at <!-- fig:04_cost:results.arms.SARE.values:.0f -->44<!-- / --> % for <!-- fig:04_cost:results.arms.SARE.passes:.0f -->585<!-- / --> passes,
# EFUF at <!-- fig:04_cost:results.arms.EFUF.values:.0f -->68<!-- / --> % for <!-- fig:04_cost:results.arms.EFUF.passes:.0f -->155<!-- / -->. Between
# them: eps\* from a quarter of the
# rows, <!-- fig:04_cost:results.arms.SARE, eps from a quarter.values:.0f -->53<!-- / --> %
# for <!-- fig:04_cost:results.arms.SARE, eps from a quarter.passes:.0f -->392<!-- / -->; kept for four
# steps, <!-- fig:04_cost:results.arms.SARE, eps kept 4 steps.values:.0f -->54<!-- / --> %
# for <!-- fig:04_cost:results.arms.SARE, eps kept 4 steps.passes:.0f -->434<!-- / -->; over the
# projector, <!-- fig:04_cost:results.arms.SARE, eps of the projector.values:.0f -->56<!-- / --> %
# for <!-- fig:04_cost:results.arms.SARE, eps of the projector.passes:.0f -->396<!-- / -->.
#
# ## A stronger attacker
#
# The order of two methods is not worth much if it holds for one attacker. Here
# the same attack runs at several learning rates, from one that hardly moves the
# weights to one that breaks them. An attacker who ruins the model has won
# nothing, so a rate counts only where recall stays at 95 % or above; the
# *worst* of these, for each method, is what it must be judged by (C6f).

# %%
attacked = {
    lr: attacks.attack_all(row) for lr, row in presets.sweep(few, *both).items()
}
drawn = tables.sweep(attacked, both)
caption = (
    "Mean CHAIR_s over the attack by the attacker's learning rate,"
    f" {len(few.seeds)} seeds (faint), mean, 95 % interval. Hollow: recall"
    " below 95 % at the end. Ringed: the worst allowed. "
    + tables.caption(results, *both)
)
how = {"title": titles.sweep(drawn)}
_ = figures.publish(
    "fig_sweep", "04_sweep", drawn, preset, few.seeds, caption, **how
)
worst = tables.worst_rates(drawn)
print("the worst learning rate:", worst)

# %%
row = {name: attacked[worst[name]][name] for name in both}
questions = tables.ask(row, {"C6f": (*both, "mean_chair_s")})
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

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
#   comma after it (2), with ", a" (3), an opened sub-sentence that *some* noun
#   must close; and **leading** questions about an absent object, once and twice,
#   before the description is asked for.

# %%
met = attacks.attack_all(presets.other_attacks(setting, *both))
drawn, key = {}, dict.fromkeys(setting.kinds, "chair_s")
if "one place" in key:
    key["one place"] = "chair_s elsewhere"
for kind in setting.kinds:
    rows = {name: met[kind, name] for name in both}
    drawn[kind] = readings.curves(rows, *both)

# %%
how = {"keys": key, "units": presets.UNITS}
how |= {"title": titles.others(drawn, key)}
caption = (
    "Ten other updates and prompts: mean CHAIR_s over the strengths given"
    f" beside each name, {len(setting.seeds)} seeds, 95 % interval; paired"
    " difference; recall at the strongest, EFUF's and SARE's. “one place” is"
    " measured in the places that were not attacked. "
    + tables.caption(results, *both)
)
_ = figures.publish(
    "fig_attacks", "04_attacks", drawn, preset, setting.seeds, caption, **how
)

# %%
questions = tables.other_attacks(met, both, key)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# C7 is asked against EFUF: does SARE hallucinate less over the whole range of
# the attacks? Over all ten it does, by <!-- C7a.diff -->-4.0 [-6.0, -1.9]<!-- / --> points (C7a:
# *<!-- C7a.verdict -->supported<!-- / -->*; on six other seeds <!-- C7a.diff@1101 -->-0.1 [-7.4, 7.2]<!-- / -->,
# *<!-- C7a.verdict@1101 -->undecided<!-- / -->*). Most of it comes from those that are
# relearning in other clothes: LoRA (<!-- C7b.diff -->-16.3 [-21.7, -11.0]<!-- / -->) and the projector
# (<!-- C7c.diff -->-11.8 [-16.7, -6.9]<!-- / -->). Where both stay near zero there was no danger to
# begin with, and the row reads "no difference"; where both rise to the top,
# neither holds. Under *leading* questions recall falls to a quarter and below
# with both, so a small CHAIR_s says nothing there; it is in C7a's mean all the
# same, as the plan has it.
#
# ## A trap: unequal forget levels
#
# Here is EFUF against itself. The only difference is the level at which it was
# told to stop. A comparison of two methods that stop at different levels
# measures this as well, whatever it says it measures.

# %%
levels = presets.attacks_on(presets.unequal_levels(few), few)
found = attacks.attack_all(levels)
drawn = tables.arms(found, list(levels), words, mean_chair_s, (0, 100))
caption = (
    "One method, unequal forget levels, the same attack,"
    f" {len(few.seeds)} seeds."
)
how = {"title": titles.levels(drawn)}
_ = figures.publish(
    "fig_arms", "04_levels", drawn, preset, few.seeds, caption, **how
)

# %% [markdown]
# The longer it pushes, the longer it seems to
# last: <!-- fig:04_levels:results.arms.EFUF, stopped at 4 nats.values:.0f -->89<!-- / --> % over the attack when stopped at four
# nats, <!-- fig:04_levels:results.arms.EFUF, stopped at 8 nats.values:.0f -->68<!-- / --> % at
# eight, <!-- fig:04_levels:results.arms.EFUF, stopped at 12 nats.values:.0f -->54<!-- / --> % at twelve. Nothing was made more robust;
# there was only more to undo.
#
# ## What we learned
#
# * Relapse begins in the likelihoods, then shows in the captions; single seeds
#   mislead; pairing by seed and landing on one forget level remove two unfair
#   advantages; a third, unequal work, takes one more run to control.
# * Is the relapse delayed? SARE minus EFUF: <!-- C6a.diff -->-18.5 [-25.6, -11.4]<!-- / --> points of
#   captions over the attack (C6a:
#   *<!-- C6a.verdict -->supported<!-- / -->*), <!-- C6c.diff -->+142.0 [82.1, 202.0]<!-- / --> samples until every other caption hallucinates
#   (C6c, exploratory:
#   *<!-- C6c.verdict -->for<!-- / -->*), <!-- C6d.diff -->+109.4 [77.6, 141.1]<!-- / --> until the forgotten words' NLL has halved (C6d,
#   exploratory: *<!-- C6d.verdict -->for<!-- / -->*). Under each method's worst
#   learning rate: <!-- C6f.diff -->-6.5 [-13.2, 0.3]<!-- / --> points (C6f, exploratory:
#   *<!-- C6f.verdict -->too small to matter<!-- / -->*).
# * Ten other attacks together: <!-- C7a.diff -->-4.0 [-6.0, -1.9]<!-- / --> points (C7a:
#   *<!-- C7a.verdict -->supported<!-- / -->*).
# * Does the direction of the step matter? Against a random step of the same
#   length <!-- C8a.diff -->-17.3 [-24.2, -10.4]<!-- / --> points (C8a: *<!-- C8a.verdict -->supported<!-- / -->*).
# * Must it be targeted? At equal work <!-- C8b.diff -->-8.2 [-12.8, -3.5]<!-- / --> points against
#   untargeted SAM (C8b: *<!-- C8b.verdict -->supported<!-- / -->*). Two other endpoints of
#   the same runs: half-life <!-- C8i.diff -->+15.3 [-21.4, 52.0]<!-- / --> samples (C8i, exploratory:
#   *<!-- C8i.verdict -->open<!-- / -->*), samples until every other caption
#   hallucinates <!-- C8j.diff -->+42.2 [-17.8, 102.3]<!-- / --> (C8j, exploratory:
#   *<!-- C8j.verdict -->too small to matter<!-- / -->*). As each stops, SARE
#   takes <!-- fig:04_causes:results.arms.SARE.passes:.0f -->664<!-- / --> passes, untargeted
#   SAM <!-- fig:04_causes:results.arms.EFUF+SAM.passes:.0f -->824<!-- / -->,
#   EFUF <!-- fig:04_causes:results.arms.EFUF.passes:.0f -->177<!-- / -->; then SARE minus
#   untargeted SAM is <!-- C8m.diff -->-11.9 [-15.2, -8.5]<!-- / --> points (C8m, exploratory:
#   *<!-- C8m.verdict -->for<!-- / -->*).
# * Does the step help another loss? C8k and C8l ask it of NPO
#   (*<!-- C8k.verdict -->not comparable<!-- / -->*, *<!-- C8l.verdict -->not comparable<!-- / -->*).
# * Is work alone the cause? SARE minus EFUF with SARE's
#   work: <!-- C8c.diff -->-21.1 [-31.6, -10.7]<!-- / --> points (C8c, exploratory:
#   *<!-- C8c.verdict -->for<!-- / -->*).
# * A cause is what is left when its rivals have had their turn. Name them, run
#   them, and count "undecided" as such.
# * Delay is not persistence: look at the end of every curve before you call a
#   method robust.
#
# ## What we did not show
#
# That flatness is *the* cause: C8's rows rule out rivals one by one, and no row
# moves flatness alone. That anything here carries over to seven billion weights;
# what a faster attacker than the fastest of the sweep can do, or one
# with other data or far more of it can do; that the settings of the baselines
# are their best (all were run at the book's learning rate). An interval that
# spans zero is not equality; *no difference larger than the margin* is a test
# of its own.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run its cell. It says "right", or "not yet" with a hint
# at the mistake. The [solutions](solutions.md) explain each answer.
#
# ### 1 · Read a relapse curve *(easy)*
#
# CHAIR_s is 0 % at 0 relearning samples, 20 % at 64 and 80 % at 128. At how
# many samples does the curve pass 50 %, by linear interpolation?

# %% tags=["exercise", "nbval-check-output"]
from lab.exercises import relearning as check

my_samples = None
check.passes_half(my_samples)

# %% [markdown]
# ### 2 · Runs that never relapsed *(easy)*
#
# Five attacks of 640 samples each: three erasures relapse after 96, 160 and 224
# samples, two never do. What is the *restricted* mean of the samples that it
# takes?

# %% tags=["exercise", "nbval-check-output"]
my_mean = None
check.restricted_mean(my_mean)

# %% [markdown]
# ### 3 · Four verdicts *(easy)*
#
# A claim says that a difference is *below* zero; differences of up to 5 points
# do not matter (the margin). Four experiments end with the 95 % intervals [-8,
# -1], [-3, 2], [-9, 4] and [1, 9]. Give each its verdict: `"supported"`, `"no
# difference"`, `"undecided"` or `"refuted"`.

# %% tags=["exercise", "nbval-check-output"]
my_verdicts = [None, None, None, None]
check.verdicts(my_verdicts)

# %% [markdown]
# ### 4 · A paired interval by hand *(harder)*
#
# Mean CHAIR_s over the attack on five seeds, in %: EFUF 60, 70, 40, 80, 50;
# SARE, in the same order of seeds, 50, 55, 38, 60, 47. What is the 95 %
# interval of SARE - EFUF, paired by seed? (For four degrees of freedom
# Student's t is 2.776. Numpy may do the sums.)

# %% tags=["exercise", "nbval-check-output"]
my_low, my_high = None, None
check.paired_interval(my_low, my_high)

# %% [markdown]
# ### 5 · A smaller attacker *(open)*
#
# Let the attacker train the projector alone, and leave the language model as it
# is. Is he slower than the headline's? Does he pay in recall?
#
# ```python
# from lab.world import measured
# from sare_min.llava import set_trainable
#
# run = presets.book_run("EFUF", kit.seed)
# attacks.run_all({"EFUF": [run]})  # from the cache
# model = set_trainable(erasures.erased(run), "projector")
# captions, at = encoded.attack(kit), (0, 64, 128, 256)
# for n in relearn(model, captions, at, seed=kit.seed, progress=False):
#     print(n, measured.held_out(kit, model))
# ```

# %% [markdown]
# ## Sources
#
# * [Unlearn-Smooth](bibliography.md#unlearn-smooth): SAM for unlearning, and the relearning attack.
# * [Jogging](bibliography.md#jogging): relearning from little.
# * [Kaplan-Meier](bibliography.md#kaplan-meier): the survival curve.
# * [LookSAM](bibliography.md#looksam): a step kept for several steps.
# * [SARE](bibliography.md#sare): the paper that this book tests.
# * [EFUF](bibliography.md#efuf): the standard erasure.
# * [CHAIR](bibliography.md#chair): caption hallucination, counted.
