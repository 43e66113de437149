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
# **The question.** How many samples of fine-tuning bring the hallucinations back, and does Targeted-SAM make it more?
#
# **What you will see.** The book's headline figure: CHAIR_s against the number of relearning samples, for the base
# model, EFUF and SARE, at a matched forget level, every seed shown; the paired difference in samples until relapse;
# and whether the answer depends on how hard the attacker pushes.
#
# **Time.** About two minutes on two CPU cores after chapters 02 and 03.

# %% tags=["parameters"]
preset = "fast"  # "fast": two seeds, minutes; "full": six seeds (five in side comparisons), as in the book's figures
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

from lab import experiments, figures, ledger, presets, readings, stats
from sare_min.attack import relearn
from sare_min.metrics import span_nll

setting = presets.get_preset(preset, seeds.split())
kit = experiments.kit(setting.seeds[0])

# %% [markdown]
# ## The attacker
#
# The attacker has the erased weights and captions that hallucinate, about pictures that the erasure never saw. He
# fine-tunes by plain cross-entropy, in one pass, eight captions a step, and needs no knowledge of how the erasure was
# done. In the code he is a generator: he stops after the sample counts we name, so that we can measure in between.

# %%
attacks = presets.book_attacks(setting, "base", "EFUF", "SARE")
results = experiments.attack_all(attacks)  # erases and attacks all of them; what the cache has is only read

# %%
model, nll = experiments.erased(attacks["EFUF"][0].run), {}
for n in relearn(model, kit.attack_data, at=(0, 8, 16), seed=kit.seed, progress=False):
    nll[n] = span_nll(model, kit.test_data)["forget"]
print({n: round(value, 3) for n, value in nll.items()})

# %% tags=["nbval-check-output"]
print("measured after", list(nll), "samples; the forgotten words become likelier:", nll[16] < nll[0])

# %% [markdown]
# ## The headline
#
# Both erasures were stopped at the same held-out forget NLL before the attack begins (`experiments.STOP_NLL`): a
# method that simply forgets *more* would relapse later for that reason. They meet the same captions in the same
# order. A run that did not get there, or fell back while it cooled down, shows in the print below; it starts the
# attack closer to relapse, and counts as it is. (SARE has had more steps, see chapter 03; matching the level does not
# match the compute.) Predict before you look: where is the base model's line, and where would SARE's be if
# Targeted-SAM did nothing?

# %%
curves = readings.curves(results, "base", "EFUF", "SARE")
for name in ("EFUF", "SARE"):
    levels = [round(level, 1) for level in readings.after(results, name, "stop_level")]
    print(f"{name}: forget NLL where it stopped, one number a seed: {levels}")

# %%
figure = figures.fig_relapse(curves)
_ = figures.save(figure, "04_relearning", curves, preset, setting.seeds,
                 "Relearning on hallucinated captions (AdamW 1e-4, batches of 8, one pass) after erasure to a held-out forget NLL of "
                 f"{experiments.STOP_NLL} nats; masks by CLIP; 200 held-out scenes a seed; {len(setting.seeds)} seeds (faint), "
                 "mean, 95 % interval of the mean.")

# %% [markdown]
# Left, what users see; right, what happens underneath. The base model has nothing to relearn, its line stays where it
# is; a Targeted-SAM that did nothing would lie on EFUF's. The faint lines matter: *when* the relapse comes differs
# from seed to seed, also within one method. So we pair: each seed has one base model, one data set, one attack, and
# two erasures. The differences are printed with their interval, and with the number of seeds that share the mean's
# sign.

# %%
relapse, area = readings.relapses(curves), readings.areas(curves)
for name in ("EFUF", "SARE"):
    print(f"{name}: samples until CHAIR_s passes 50 %: {stats.spell(relapse[name])}; each seed: {[round(x) for x in relapse[name]]}")
print("difference, SARE - EFUF:", stats.spell_paired(relapse["SARE"], relapse["EFUF"]))
print("mean CHAIR_s over the whole attack, points, SARE - EFUF:", stats.spell_paired(area["SARE"], area["EFUF"]))

# %%
rows = {"samples until relapse": stats.paired(relapse["SARE"], relapse["EFUF"])}
figure = figures.fig_paired(rows, "SARE - EFUF, relearning samples, higher is better (dot: a seed; bar: 95 % interval)")
_ = figures.save(figure, "04_paired", rows, preset, setting.seeds,
                 f"Samples until CHAIR_s passes 50 %, paired by seed, {len(setting.seeds)} seeds; no relapse counts as the "
                 "last sample count.")

# %% [markdown]
# Claim C6 says that suppression *persists* under relearning. We ask two questions here, because the curve answers
# them differently, and a third below: (a) does it persist *longer* than EFUF's; (b) does it *persist*, in the sense
# that the whole attack raises CHAIR_s by less than ten points; (c) does (a) hold under a harder attack?

# %%
erased = readings.after(results, "SARE", "chair_s", 100)
last = {name: [100 * r["curve"][-1]["chair_s"] for r in results[name]] for name in ("EFUF", "SARE")}
end = curves["samples"][-1]
claims = [ledger.row("C6a", "ch. 04", "relearning samples until CHAIR_s passes 50 %", relapse["EFUF"], relapse["SARE"], want=1),
          ledger.row("C6b", "ch. 04", f"CHAIR_s of SARE, %, right after erasure and after {end} more samples",
                     erased, last["SARE"], want=-1, margin=10, note="(persists: rises by less than 10)")]
for row in claims:
    print(row["id"], row["metric"], "->", row["verdict"])
print(f"CHAIR_s after {end} samples: EFUF {stats.spell(last['EFUF'])} %, SARE {stats.spell(last['SARE'])} %")

# %% [markdown]
# ## With masks from the truth
#
# Where the judge of chapter 02 makes mistakes, do they change the comparison? (Where it makes none, these are the
# same runs over again.)

# %%
few = setting.few()
oracle = experiments.attack_all(presets.book_attacks(few, "EFUF oracle", "SARE oracle"))
with_truth = readings.curves(oracle, "EFUF oracle", "SARE oracle")
_ = figures.save(figures.fig_relapse(with_truth), "04_oracle", with_truth, preset, few.seeds,
                 f"The same attack after erasures with masks from the truth; {len(few.seeds)} seeds.")
late = readings.relapses(with_truth)
print("samples until relapse, SARE - EFUF, oracle masks:", stats.spell_paired(late["SARE oracle"], late["EFUF oracle"]))

# %% [markdown]
# ## A harder attacker
#
# Three times the learning rate. If the order of the methods only holds for one attacker it is not worth much.

# %%
hard = experiments.attack_all(presets.book_attacks(few, "EFUF", "SARE", lr=3e-4))
harder = readings.curves(hard, "EFUF", "SARE")
_ = figures.save(figures.fig_relapse(harder), "04_harder", harder, preset, few.seeds,
                 f"The same attack with AdamW 3e-4; {len(few.seeds)} seeds.")
sooner = readings.relapses(harder)
print("EFUF", stats.spell(sooner["EFUF"]), "  SARE", stats.spell(sooner["SARE"]))
print("samples until relapse, SARE - EFUF:", stats.spell_paired(sooner["SARE"], sooner["EFUF"]))
metric = "relearning samples until CHAIR_s passes 50 %, attack at lr 3e-4"
claims.append(ledger.row("C6c", "ch. 04", metric, sooner["EFUF"], sooner["SARE"], want=1))
_ = ledger.record(claims, preset, setting.seeds)
print("C6c, SARE relapses later under the harder attack ->", claims[-1]["verdict"])

# %% [markdown]
# ## What we learned
#
# * Relapse begins in the likelihoods, then shows in the captions; single seeds mislead; pairing by seed and matching
#   the forget level remove two unfair advantages, not the third, compute.
# * Delay is not persistence: look at the end of every curve before you call a method robust.
#
# ## What we did not show
#
# Other attackers (LoRA, other data, weight noise, quantisation), other methods (untargeted SAM, NPO), the whole front
# of `lambda_neg` and `rho`, or a control that gives EFUF the compute of SARE. A microworld of half a million trained
# weights says nothing certain about seven billion.
#
# ## Exercises
#
# 1. *(easy)* A curve reads 0 % at 0 samples, 20 % at 64 and 80 % at 128. At how many samples does it pass 50 %, by
#    linear interpolation? Put the number into the next cell.
# 2. *(easy)* Draw the recall along the attack (`keys=("recall",)` of `figures.fig_relapse`). Does the attacker pay
#    for what he gets?
# 3. *(harder)* Let the attacker train the projector alone: `set_trainable(experiments.erased(run), "projector")`,
#    from `sare_min.llava`, goes to `relearn`. Is he slower?

# %% tags=["exercise", "nbval-check-output"]
my_samples = None  # your number
print("right" if my_samples is not None and abs(my_samples - stats.relapse_samples([0, 64, 128], [0.0, 0.2, 0.8])) < 1 else "not yet")

# %% tags=["solution", "nbval-check-output"]
my_samples = 96
print("right" if my_samples is not None and abs(my_samples - stats.relapse_samples([0, 64, 128], [0.0, 0.2, 0.8])) < 1 else "not yet")

# %% [markdown]
# ## Sources
#
# * Relearning attacks: Fan et al., arXiv 2502.05374; Hu et al., *Jogging the Memory of Unlearned LLMs Through
#   Targeted Relearning Attacks*, arXiv 2406.13356.
# * SARE: arXiv 2601.16527. EFUF: arXiv 2402.09801. CHAIR: arXiv 1809.02156.
