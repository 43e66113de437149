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
# seeds <!-- C6a.diff@1101 -->-12.5 [-22.5, -2.6]<!-- / -->,
# *<!-- C6a.verdict@1101 -->undecided<!-- / -->*). But after 640
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
# is of each word. (It needs a live notebook; `make book` has it as a page.)

# %% tags=["remove-output"]
slider.widget(says)

# %% [markdown]
# ## The headline
#
# Both erasures stand at the same forget level before the attack begins (in the
# mean over tokens; one token may be likelier in one than in the other). They
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
# with runs that did not relapse within the attack (they are
# [*censored*](glossary.md#censored); here none is: all got through):

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
# (Three ways to say when half of the captions hallucinate: the headline's title
# reads the *mean curve*, this figure's the *median attack*, and C6c below is the
# *mean over seeds*. They lie a few samples apart.)
#
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
# The same attack on every row of [`METHODS`](../sare_min/unlearn.py#L25): among
# them [untargeted SAM](glossary.md#untargeted-sam) (the row `EFUF+SAM`), which
# disturbs everything instead of the hallucinations alone, and NPO, with and
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
    " Grey: did not reach the forget level, or names too little, so it is not"
    " compared."
)
how = {"title": titles.least(drawn)}
_ = figures.publish(
    "fig_arms", "04_methods", drawn, preset, few.seeds, caption, **how
)

# %% [markdown]
# Look at the levels and the recall beside the rows before you look at the bars.
# **GA** reaches the level by ruining the model: it
# names <!-- fig:04_methods:results.arms.GA.recall:.0f:100 -->4<!-- / --> % of
# the objects. **SimNPO** and the released
# schedule stand at other levels, grey. Of what is left, **untargeted SAM**
# (<!-- fig:04_methods:results.arms.EFUF+SAM.values:.0f -->58<!-- / --> %) lies between EFUF
# (<!-- fig:04_methods:results.arms.EFUF.values:.0f -->68<!-- / --> %) and SARE
# (<!-- fig:04_methods:results.arms.SARE.values:.0f -->44<!-- / --> %), and needs more passes than
# either: <!-- fig:04_methods:results.arms.EFUF+SAM.passes:.0f -->838<!-- / -->
# against <!-- fig:04_methods:results.arms.EFUF.passes:.0f -->155<!-- / -->
# and <!-- fig:04_methods:results.arms.SARE.passes:.0f -->585<!-- / -->.
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
# The random step gives what EFUF gives
# (<!-- fig:04_causes:results.arms.SARE, random step.values:.0f -->64<!-- / -->
# and <!-- fig:04_causes:results.arms.EFUF.values:.0f -->66<!-- / --> %): it is
# a
# placebo. So C8a is C6a with a placebo in EFUF's place, and the two
# differences go together seed by seed
# (r <!-- fig:after:results.C8a and C6a.the book.r:.2f -->0.95<!-- / -->): the
# *direction* matters, and no more is learnt. Nor is it at equal work: the random
# step came to its level
# in <!-- fig:04_causes:results.arms.SARE, random step.passes:.0f -->380<!-- / -->
# passes,
# SARE's in <!-- fig:04_causes:results.arms.SARE.passes:.0f -->664<!-- / -->.
#
# C8b is at equal work. **Its difference is less than what matters**, by
# the plan: <!-- C8b.diff -->-8.2 [-12.8, -3.5]<!-- / --> points, where it asks
# for twelve. And untargeted SAM
# has SARE's rho, untuned: its step goes along the whole gradient, so along
# the forget loss it is shorter.
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
# (<!-- fig:04_controls:results.arms.SARE.values:.0f -->44<!-- / --> %): with
# its work EFUF hallucinates
# in <!-- fig:04_controls:results.arms.EFUF, SARE's work.values:.0f -->65<!-- / -->
# %, coming from above
# in <!-- fig:04_controls:results.arms.EFUF, from above.values:.0f -->67<!-- / -->
# %; a step on what is kept
# gives <!-- fig:04_controls:results.arms.SARE, step on retain.values:.0f -->63<!-- / -->
# %, and the wrong
# sign <!-- fig:04_controls:results.arms.SARE, wrong sign.values:.0f -->75<!-- / --> %,
# for <!-- fig:04_controls:results.arms.SARE, wrong sign.passes:.0f -->2295<!-- / --> passes instead
# of <!-- fig:04_controls:results.arms.SARE.passes:.0f -->585<!-- / -->. C8 says
# *flatness is the cause*, and every rival
# that SARE does not beat is a cause that is not ruled out; one that it does beat
# is only *that* rival. No row here moves flatness alone.
#
# One rival goes along with the gain: **the way travelled**. SARE's weights end
# farther from the base model's than EFUF's. Does a seed in which they go much
# farther gain more?

# %%
ways = {"SARE - EFUF": (results["EFUF"], results["SARE"])}
longer = "EFUF, SARE's work"
if longer in found:
    ways[f"{longer} - EFUF"] = everyone["EFUF"], found[longer]
drawn = tables.along(ways, mean_chair_s)
caption = (
    "Difference in mean CHAIR_s over the attack against the difference in L2"
    f" distance from the base model, a mark a seed, {len(setting.seeds)} seeds;"
    " dashed: least squares. Hollow: EFUF trained for SARE's work, on"
    f" {len(few.seeds)} seeds."
)
_ = figures.publish(
    "fig_along",
    "04_distance",
    drawn,
    preset,
    setting.seeds,
    caption,
    title=titles.along(drawn),
)
print(tables.left(drawn))

# %% [markdown]
# It does, and strongly: from the line alone one would say that at no longer way
# there is no gain. But the way alone does not do it. With SARE's work EFUF
# (hollow) goes as far and gains nothing, and untargeted SAM goes about as far as
# SARE and gains less: <!-- C8m.diff -->-11.9 [-15.2, -8.5]<!-- / --> points (C8m, exploratory). So
# either a longer way *to a flatter place* is what lasts, or both have one cause
# that no row here moves. (Looked at after the results were known.)
#
# ## Cheaper, or further: what robustness costs
#
# SARE's price is work. A user has two cheaper things to try.
#
# **An approximate step.** Exact Targeted-SAM pays twice for rows with forget
# tokens: once for eps\*, once for the gradient at theta + eps\*. The second is
# the method; the first only says where to look, and a rough answer may do.
# Three approximations, each a step function of `lab/experiments/cheaper.py`:
# eps\* kept for four steps (in the spirit of LookSAM); eps\* from a quarter of
# the forget rows; eps\* over the projector's weights alone.
#
# **A further level.** Why not simply erase further? Nothing becomes more robust
# by it; there is more to undo. That makes unequal levels a trap: a comparison
# of two methods that stop at different levels measures this as well, whatever it
# says it measures. But it makes them a rival, too, so here both methods land at
# four, eight and twelve nats.
#
# The cost of a run is counted, not clocked: passes over a batch, a forward
# being 1 and a backward 2, times the steps. `make bench` clocks a step. Predict
# first: which is the better buy, SARE at eight nats or EFUF at twelve?

# %%
levels = presets.unequal_levels(few)
how = {"at": few.coarse}
found = attacks.attack_all(
    presets.attacks_on(levels, few)
    | presets.book_attacks(few, *setting.cheaper, **how)
)
print(tables.beside(found, *found))
bought = tables.work(found, mean_chair_s, presets.by_level(few))
caption = (
    "The same attack on erasures of unequal work and unequal forget levels,"
    f" {len(few.seeds)} seeds, mean, 95 % interval. Lines join one method's"
    " levels. Hollow: recall under 95 %, or the level was not reached."
)
how = {"title": titles.work(bought)}
_ = figures.publish(
    "fig_work", "04_work", bought, preset, few.seeds, caption, **how
)

# %% [markdown]
# CHAIR_s and recall are not all that an erasure touches. How often do these
# models still say "yes" when asked about an object that *is* shown, a usual one
# that is not, a foreign one?

# %%
print(tables.yes(attacks.answer_all(levels), *levels))

# %% [markdown]
# Read the figure from left to right. Erased to four, eight and twelve nats, EFUF
# hallucinates in <!-- fig:04_work:results.arms.EFUF, 4 nats.values:.0f -->89<!-- / --> %, then
# in <!-- fig:04_work:results.arms.EFUF, 8 nats.values:.0f -->68<!-- / -->
# and <!-- fig:04_work:results.arms.EFUF, 12 nats.values:.0f -->54<!-- / --> %
# over the attack, for <!-- fig:04_work:results.arms.EFUF, 12 nats.passes:.0f -->244<!-- / -->
# passes at the
# end. SARE at eight nats stands
# at <!-- fig:04_work:results.arms.SARE, 8 nats.values:.0f -->44<!-- / --> %
# for <!-- fig:04_work:results.arms.SARE, 8 nats.passes:.0f -->585<!-- / -->; at
# twelve
# at <!-- fig:04_work:results.arms.SARE, 12 nats.values:.0f -->38<!-- / --> %
# for <!-- fig:04_work:results.arms.SARE, 12 nats.passes:.0f -->996<!-- / -->.
# The approximations lie between: eps\* from a quarter of the
# rows, <!-- fig:04_work:results.arms.SARE, eps from a quarter.values:.0f -->53<!-- / --> %
# for <!-- fig:04_work:results.arms.SARE, eps from a quarter.passes:.0f -->392<!-- / -->;
# kept for four
# steps, <!-- fig:04_work:results.arms.SARE, eps kept 4 steps.values:.0f -->54<!-- / --> %
# for <!-- fig:04_work:results.arms.SARE, eps kept 4 steps.passes:.0f -->434<!-- / -->; over the
# projector, <!-- fig:04_work:results.arms.SARE, eps of the projector.values:.0f -->56<!-- / --> %
# for <!-- fig:04_work:results.arms.SARE, eps of the projector.passes:.0f -->396<!-- / -->.
#
# So **erasing further is the better first buy**. EFUF at twelve nats lasts as
# long as the approximations at eight, for less work; and SARE at four, for
# about the work of EFUF at twelve, lasts less. SARE at eight nats lasts longer
# than any EFUF here, for more than twice the work. How EFUF would do still
# further up was not tried, nor what is lost there.
# (This section was added after the run that the ledger judges, on five of its
# seeds: exploration.)
#
# ## A stronger attacker
#
# The order of two methods is not worth much if it holds for one attacker. Here
# the same attack runs at several learning rates, from one that hardly moves the
# weights upwards. An attacker who ruins the model has won nothing, so a rate
# counts only where recall stays at 95 % or above; the *worst* of these, for each
# method, is what it must be judged by (C6f).

# %%
attacked = {
    lr: attacks.attack_all(row) for lr, row in presets.sweep(few, *both).items()
}
drawn = tables.sweep(attacked, both)
caption = (
    "Mean CHAIR_s over the attack by the attacker's learning rate,"
    f" {len(few.seeds)} seeds (faint), mean, 95 % interval. Hollow: recall"
    " below 95 % at the end. Ringed: the worst allowed. "
    + tables.caption(attacked[attacks.Attack.lr], *both)
)
how = {"title": titles.sweep(drawn)}
_ = figures.publish(
    "fig_sweep", "04_sweep", drawn, preset, few.seeds, caption, **how
)
worst = tables.worst_rates(drawn)
print("the worst learning rate:", worst)
factors = tables.rate_factor(drawn, *both)
_ = figures.numbers("04_rate", factors, preset, few.seeds, caption)
print("SARE at so many times 2e-4 is EFUF at 2e-4:", stats.spell(factors))

# %%
row = {name: attacked[worst[name]][name] for name in both}
questions = tables.ask(row, {"C6f": (*both, "mean_chair_s")})
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# The book's rate, 2e-4, is near the one at which the two differ most. An
# attacker who takes <!-- fig:04_rate:results:.1fi -->2.3 [1.6, 3.0]<!-- / -->
# times that rate does to SARE what
# 2e-4 does to EFUF. No rate tried broke recall, and the worst is the last:
# a faster one may be worse, for both.
#
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
    + tables.caption(
        {name: met[setting.kinds[0], name] for name in both}, *both
    )
)
_ = figures.publish(
    "fig_attacks", "04_attacks", drawn, preset, setting.seeds, caption, **how
)

# %%
questions = tables.other_attacks(met, both, key)
for row in ledger.record(questions, preset, setting.seeds):
    print(row["endpoint"], "  ", tables.spell(row, 1))

# %% [markdown]
# C7 is asked against EFUF: does SARE hallucinate less on average over ten
# attacks? It does, by <!-- C7a.diff -->-4.0 [-6.0, -1.9]<!-- / --> points (C7a:
# *<!-- C7a.verdict -->supported<!-- / -->*), less than the five that the plan says matter; on six
# other seeds <!-- C7a.diff@1101 -->-0.1 [-7.4, 7.2]<!-- / -->
# (*<!-- C7a.verdict@1101 -->undecided<!-- / -->*).
#
# All of it comes from the three that are relearning in other clothes, LoRA, the
# projector and one
# place: <!-- fig:after:results.C7.relearning.the book:+.1fi -->-10.6 [-13.6, -7.6]<!-- / -->
# points together. Over the seven others no difference was
# found: <!-- fig:after:results.C7.the others.the book:+.1fi -->-1.1 [-3.6, 1.4]<!-- / -->;
# the prompts
# alone, <!-- fig:after:results.C7.prompts.the book:+.1fi -->-3.4 [-11.1, 4.3]<!-- / -->.
# (That split was
# made after the results were known.) Where both stay near zero there was no
# danger to begin with. With words put into its mouth SARE hallucinates in every
# other caption, too; and under *leading* questions recall falls so low that
# a small CHAIR_s says nothing, which is in C7a's mean all the same. That mean
# has another weakness: it takes the area over each attack's own scale, the
# unharmed model at strength 0 included, and sixteen bits weigh more than three.
#
# ## What we learned
#
# * **The relapse is delayed** (C6a: *<!-- C6a.verdict -->supported<!-- / -->*): SARE minus EFUF
#   is <!-- C6a.diff -->-18.5 [-25.6, -11.4]<!-- / --> points of captions over
#   the attack. On six other seeds the
#   same sign, *<!-- C6a.verdict@1101 -->undecided<!-- / -->*; over all
#   eighteen <!-- fig:after:results.primaries.C6a:+.1fi -->-16.5 [-21.9, -11.1]<!-- / -->.
# * **It is not prevented.** After 640 samples SARE's captions hallucinate as
#   often as not. An attacker who takes <!-- fig:04_rate:results:.1f -->2.3<!-- / -->
#   times the learning
#   rate has undone the delay; under each method's worst rate it
#   is <!-- C6f.diff -->-6.5 [-13.2, 0.3]<!-- / --> points (C6f, exploratory:
#   *<!-- C6f.verdict -->too small to matter<!-- / -->*).
# * **Against other attacks it shows where they are relearning**: ten
#   together <!-- C7a.diff -->-4.0 [-6.0, -1.9]<!-- / --> points (C7a:
#   *<!-- C7a.verdict -->supported<!-- / -->*, less than
#   matters), seven of
#   them <!-- fig:after:results.C7.the others.the book:+.1fi -->-1.1 [-3.6, 1.4]<!-- / -->.
# * **The step's direction matters** (C8a: *<!-- C8a.verdict -->supported<!-- / -->*); a random step
#   is a placebo. **Its target does, a little**: <!-- C8b.diff -->-8.2 [-12.8, -3.5]<!-- / -->
#   points at
#   equal work (C8b: *<!-- C8b.verdict -->supported<!-- / -->*, less than matters). The same
#   runs' half-life (C8i: *<!-- C8i.verdict -->open<!-- / -->*) and samples to half (C8j:
#   *<!-- C8j.verdict -->too small to matter<!-- / -->*) do not show it.
# * **More work alone does not do it**: EFUF with SARE's work
#   is <!-- C8c.diff -->-21.1 [-31.6, -10.7]<!-- / --> points away (C8c,
#   exploratory: *<!-- C8c.verdict -->for<!-- / -->*).
#   But the gain goes along with the way travelled, and no row moves flatness
#   alone.
# * Whether the step helps NPO, the ledger does not say (C8k, C8l:
#   *<!-- C8k.verdict -->not comparable<!-- / -->*).
# * Single seeds mislead. Pair by seed, land on one forget level, count the work,
#   and look at the end of every curve before you call a method robust.
#
# ## What we did not show
#
# That flatness is *the* cause: C8's rows rule out rivals one by one. Seeds in
# which SARE's weights lie flatter (C3a) gain no more for
# certain: r <!-- fig:after:results.C3a and C6a.both blocks.r:.2f -->0.40<!-- / --> over all
# seeds, p <!-- fig:after:results.C3a and C6a.both blocks.p:.2f -->0.10<!-- / -->.
# That anything here carries over to seven billion weights;
# what a faster attacker than the fastest of the sweep can do, or one
# with other data or far more of it can do; whether EFUF, erased beyond twelve nats,
# would last as long as SARE; that the settings of the baselines
# are their best (all were run at the book's learning rate, untargeted SAM at
# SARE's rho). An interval that
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
