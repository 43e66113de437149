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
# # 05 · The real thing
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/05_real_thing.ipynb)
#
# **The question.** Chapters 00 to 04 held the world in memory and trained every
# weight. What does the same erasure look like where it is meant for: a
# checkpoint on disk, COCO's annotation files, image files, an adapter that
# somebody else loads?
#
# **The answer.** The same functions are meant to do it, with two strings changed:
# by default they run on the microworld, exported in COCO's, POPE's and EFUF's formats; with
# `checkpoint = "llava-hf/llava-1.5-7b-hf"` and `data = "path/to/coco"` on the real
# files. Here CHAIR_s falls
# from <!-- fig:05_real_thing:results.scores.base.chair_s:.0f:100 -->100<!-- / --> %
# to <!-- fig:05_real_thing:results.lines.EFUF.chair_s.*.0:.0f:100 -->5<!-- / --> % by EFUF
# and <!-- fig:05_real_thing:results.lines.SARE.chair_s.*.0:.0f:100 -->0<!-- / --> % by SARE; one
# seed, in which SARE relapses no later, so it shows that the road goes through,
# not which method is better. **We have not run a 7B model**: see *What we did not
# show*.
#
# **What you need.** Chapters [02](02_fragile_erasure.ipynb) to
# [04](04_relearning.ipynb); what an adapter is (LoRA).
#
# **What you will see.** The whole road, from files to figure: curation by CLIP,
# erasure by LoRA, the adapter saved and loaded back by stock `peft` in a new
# process, CHAIR and POPE from files by the field's scorers, the relearning
# attack on what was loaded. Then, as appendices, what breaks: bad files, EFUF's
# own formats, more than one GPU.
#
# **Time.** About a minute on two CPU cores after chapter 00, which trains the
# world.

# %% tags=["parameters"]
preset = "fast"  # "fast": a coarse attack; "full": a finer one
seeds = ""  # a seed of the book's worlds, e.g. "23"; empty: the preset's first
checkpoint = ""  # a LLaVA on disk or on the hub; empty: the microworld's
data = (
    ""  # a folder of COCO's, POPE's and EFUF's files; empty: the exported one
)
bits = 16  # of the language model's weights: 4 (bitsandbytes) for a 16 GB GPU
images = 2224  # training images: the first of them, for erasure and attack
tested = 0  # of POPE's images: the first of them; 0: all
rows_at_once = 0  # captions in a forward; 0: estimated from the model's size
probed = False  # True: rho, learning rate and level from the first steps
into = ""  # a folder for all that a run keeps; empty: build/05_real_thing

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

# %%
from dataclasses import replace

import torch
from peft import PeftModel

from lab.audit import attacks, measures
from lab.evidence import figures, readings, titles
from lab.experiments import presets
from lab.field import coco, devices, export, judge, photos, probe, ranks, score
from lab.field.fewer import fewer_questions
from lab.llava.checkpoints import load, save
from lab.llava.remembering import remembered
from lab.llava.resuming import Checkpoint
from lab.llava.speech import generate
from lab.metrics import chair
from lab.world.curate import curate
from sare_min import metrics
from sare_min.captions import encode
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.unlearn import METHODS, Training, unlearn

setting = presets.get_preset(preset, seeds.split())
seed = setting.seeds[0]
# 0 and 1, unless torchrun started several of these
rank, n_ranks = ranks.join()
own = f"{preset}-{seed}" + (f"-rank{rank}" if rank else "")
if checkpoint:
    own += f"-{Path(checkpoint).name}-{bits}-{images}-{devices.name()}"
# adapters, captions, answers, scores
out = Path(into or root / "build/05_real_thing").resolve() / own

# %% [markdown]
# ## The files
#
# `data` is one folder. COCO's archives unpack into it as they are
# (`annotations/`, `train2014/`, `val2014/`); POPE's three files and EFUF's two
# lie anywhere below; a `clip/` of its own is optional. Nothing is copied or
# converted. The exported microworld looks the same from outside, and that is
# its point: continuous integration walks the very road that a reader with a GPU
# takes.

# %%
folder = Path(data) if data else export.book(seed)
checkpoint = checkpoint or folder / "llava"
KINDS = ("random", "popular", "adversarial")
patterns = {
    "train": "instances_train*.json",
    "val": "instances_val*.json",
    "human train": "captions_train*.json",
    "human val": "captions_val*.json",
    "pos_neg": "pos_neg.json",
    "sentences": "sentences.json",
} | {kind: f"coco_pope_{kind}.json" for kind in KINDS}
files = {name: photos.find(folder, like) for name, like in patterns.items()}

# %% tags=["nbval-check-output"]
for name, path in files.items():
    print(f"{name:12s} {path.relative_to(folder)}")

# %% [markdown]
# POPE says which validation images are asked about; those are our test images
# (or the first of them, where `tested` says so). Of the training images we take
# the first two thousand or so: the erasure sees
# one part, the attacker the other. Every row of an annotation file is checked
# while it is read, yet only the images that we use need be on disk, and a
# picture is opened only when a batch asks for it.

# %%
homes = {
    split: photos.images_folder(files[split]) for split in ("val", "train")
}
if tested:
    pope = {kind: files[kind] for kind in KINDS}
    files |= fewer_questions(pope, tested, out / "pope")
questions = [coco.read_questions(files[kind]) for kind in KINDS]
wanted = {question["image"] for row in questions for question in row}
val = photos.read_images(files["val"], homes["val"], names=wanted)
train = photos.read_images(files["train"], homes["train"], limit=images)
cut = len(train) * 1024 // 2224
parts = {"erase": train[:cut], "attack": train[cut:], "val": val}
asked = {kind: photos.read_pope(files[kind], val) for kind in KINDS}

# %% tags=["nbval-check-output"]
n_images = {part: len(row) for part, row in parts.items()}
print(n_images, {kind: len(rows) for kind, (rows, _) in asked.items()})
print(val[0].path.name, val[0].objects, photos.Pictures(val)[0].size)

# %% [markdown]
# ## What does it say?
#
# The checkpoint is loaded as it is, frozen; on a GPU in bf16, or in fp16 where
# there is no bf16 (a T4). What trains later is fp32 anywhere: 16 bits would
# round the ascent step away (chapter 03). Then it captions the test images and
# answers POPE's questions; what it says is written to files, and the field's
# scorers read those files (`python -m lab.score` is the same code). We score
# CHAIR by EFUF's convention, because the official script cannot see a bus: its
# singular of *bus* is *bu*. And we count the answers that are neither yes nor
# no: POPE's official parser takes all of them for a yes.
#
# (A run on files of one's own takes hours, and may be killed. It remembers each
# batch that a model has answered, by the model's weights and the batch: started
# again, it asks for the rest alone.)

# %%
dtype = devices.compute_dtype()
stored = devices.four_bit(dtype) if bits == 4 else {}
model, processor = load(checkpoint, dtype=dtype, **stored)
n_weights = sum(p.numel() for p in model.parameters())
fits = rows_at_once or max(2, min(64, int(3e10 / n_weights)))  # 4 at 7B
features = {
    part: embed_images(model, processor, photos.Pictures(row), batch_size=fits)
    for part, row in parts.items()
}
memory = out / "said.db" if data else None  # None: nothing is remembered


def speak(model, name: str, asked=asked) -> None:
    """What a model says of the test images, written under a name."""
    here = features["val"], val, asked, out / name
    with remembered(model, memory):
        photos.speak(model, processor, *here, batch_size=fits)


speak(model, "base")

# %% [markdown]
# Now the scorers. They read what was written under a name, and nothing else.
# Look at recall beside CHAIR, and at the answers that are neither yes nor no:


# %%
def measure(name: str, kinds=KINDS) -> dict:
    """CHAIR and POPE of what was written under a name."""
    said, truth = out / name / "captions.jsonl", [files["val"]]
    found = score.score_chair(said, truth, [files["human val"]], name="efuf")
    return {"chair": found} | {
        kind: score.score_pope(files[kind], out / name / f"{kind}.jsonl")
        for kind in kinds
    }


base = measure("base")
print("base:", readings.spell_scores(base))

# %% [markdown]
# ## Curation on files
#
# As in chapter 02: sample captions from the model itself, find the objects that
# they name, let CLIP score each object with its picture, and mark sub-sentences by
# thresholds. What counts as naming an object, one rule decides for all: EFUF's
# convention finds the objects here, says what people saw in a picture, and will
# score what is left. The scores are kept on disk by the image's *content*, the
# text and CLIP's weights, so a second run computes nothing, and a replaced
# image is scored anew.
#
# What should the thresholds be? EFUF's (23, 32, 27.5) belong to ViT-B/32 and
# its sliding window. Any other CLIP has another scale. We ask for a *share*
# instead: if one mention in five is wrong, forget the fifth that scores lowest.
# What that share is, annotations of *other* images tell us (the attacker's
# part, which the erasure never sees): how many mentions are wrong, not which.

# %%
rules = chair.convention("efuf")
objects = sorted(set(rules.node.values()))
said, named, true, rows, heard = {}, {}, {}, {}, {}
sampling = {"temperature": 1.0, "seed": seed, "batch_size": fits}
for part in ("erase", "attack"):
    with remembered(model, memory):
        texts = generate(model, processor, features[part], **sampling)
    # without an object there is nothing to curate
    rows[part] = [i for i, text in enumerate(texts) if rules.find(text)]
    said[part] = [texts[i] for i in rows[part]]
    # each mention: each is curated
    found = [rules.find(text) for text in said[part]]
    named[part] = [[noun for noun, _ in mentions] for mentions in found]
    truths = photos.truths(parts[part], files["human train"], rules)
    true[part] = [truths[i] for i in rows[part]]
    heard[part] = texts, truths
print(said["erase"][0], "|", sorted(true["erase"][0]))

# %%
clip = judge.load_clip(judge.clip_path(folder))  # the model, its processor
texts = [judge.prompt(noun) for noun in objects]
kept = out / "clip_scores.db"
scores = judge.scores(*clip, parts["erase"], texts, kept)
scored = [
    dict(zip(objects, scores[i].tolist(), strict=True)) for i in rows["erase"]
]
mentioned = readings.mentions(scored, named["erase"])
share = chair.chair(named["attack"], true["attack"])["chair_i"]
limits = judge.thresholds(mentioned, (share, 2 * share, 2 * share))
spans = curate(said["erase"], scored, rules.find, limits)
print(f"wrong mentions elsewhere: {100 * share:.0f} %; thresholds {limits}")

# %% [markdown]
# Annotations of the erasure's own images were not used. Now they may judge the
# judge. Predict first: which is worse for the erasure, a true sub-sentence that is
# forgotten, or a wrong one that is kept?

# %%
count = readings.judged(
    scored, named["erase"], true["erase"], limits.forget_below
)
right = count["both"] / count["forget"]
found = count["both"] / count["wrong"]
print(
    f"of {count['forget']} mentions to forget, {100 * right:.0f} % are wrong; "
    f"of {count['wrong']} wrong ones, {100 * found:.0f} % are found"
)

# %% [markdown]
# ## Erasure by LoRA
#
# At 7B nobody trains all weights to forget a few objects. An adapter of rank 16
# on the language model is a fraction of them, and leaves the checkpoint alone.
# Nothing else changes: `set_trainable(model, "lora")`, and the ascent step is
# taken in the adapter's weights. (Their start is random; it comes from torch's
# global generator, so we seed that.) Where a forward holds few rows,
# `devices.recompute` saves memory: the backward pass computes the activations
# anew instead of keeping them all. The gradient is the same, to the bit.
#
# Both methods are told to stop at the same forget level, measured on captions of the
# attacker's part that he will not use; annotations mark their wrong
# sub-sentences. (`measures.attackers` is what `sare-min audit` takes them by.)
# We stop at four nats, not at the eight of the other chapters; *Too far*, below,
# says why.
#
# In fp16 a loss must be scaled, or small gradients become zero on their way
# (`devices.scaled`; in any other dtype it changes nothing).

# %%
chosen = said["erase"], spans
erase_data = encode(processor, features["erase"], *chosen, image=rows["erase"])
stop_data, attack_data = measures.attackers(
    processor, features["attack"], *heard["attack"], rules
)
stop_data = stop_data.to(model.device)
print(
    len(erase_data),
    "captions to erase with,",
    len(attack_data),
    "hallucinated ones to attack with",
)

# %%
names = ("EFUF", "SARE")
methods = {name: devices.scaled(METHODS[name], dtype) for name in names}
stop_nll = 4.0  # nats a token
micro_batch = min(fits, max(1, 32 // n_ranks))
training = Training(steps=240, batch_size=32, micro_batch=micro_batch, lr=1e-3)


def level(model) -> float:
    """The NLL of the wrong sub-sentences that say when to stop."""
    return metrics.span_nll(model, stop_data, fits)["forget"]


# %% [markdown]
# Another model has other lengths: a `rho` and a learning rate are distances in
# weights. Where `probed` says so, both are read off the first steps, by what
# they do to the forget level; `lab/field/probe.py` states the rule and its
# limits.

# %%
if probed:
    stop_nll = level(model) + probe.FURTHER
    torch.manual_seed(seed)
    new = set_trainable(model, "lora")
    new = devices.recompute(new) if fits < 64 else new
    keep = out / "probe.json"  # for a run that goes on
    found = probe.probe(new, erase_data, micro_batch=fits, keep=keep)
    model = new.eval().unload()
    training = replace(training, lr=found.lr)
    methods["SARE"] = replace(methods["SARE"], rho=found.rho)
    print(f"{found}; to stop at {stop_nll:.1f} nats")


# %% [markdown]
# Then both methods, from the same start. What each ends at is saved, and speaks
# for itself in files like the base model's. (A run of hours keeps its state
# beside them: started again, it goes on from there to the bytes that it would
# have had. The microworld's, of seconds, has no use for it.)


# %%
def erase(method: str, stop_at: float, name: str) -> float:
    """Erase by an adapter; save it; let it speak. Returns its forget level."""
    torch.manual_seed(seed)
    model = set_trainable(load(checkpoint, dtype=dtype, **stored)[0], "lora")
    model = devices.recompute(model) if fits < 64 else model
    given = trainable(model), erase_data, methods[method], training
    is_long = bool(data) and n_ranks == 1
    state = Checkpoint(out / name / "state", 10) if is_long else None
    with ranks.shared(*given) as (shared, part):
        log = unlearn(
            model,
            erase_data,
            shared,
            part,
            seed,
            progress=False,
            stop=lambda _: ranks.agreed(level(model) >= stop_at),
            checkpoint=state,
        )
    reached = level(model.eval())
    save(model, processor, out / name / "adapter")
    speak(model, name)
    print(f"{name}: {len(log)} steps, forget level {reached:.1f} nats")
    return reached


# %%
reached = {}
for name in names:
    reached[name] = erase(name, stop_nll, name)
    print(f"{name}:", readings.spell_scores(measure(name)))

# %% [markdown]
# ## Somebody else loads it
#
# An adapter is worth something if it works without us: in a new process, by
# stock `transformers` and `peft`, from the two folders. That process captions
# and answers again. A model that was saved in a wrong dtype, without its
# scaling or with a layer left out would still speak, a little differently; so
# we ask for *equal* CHAIR and POPE, on equal words.

# %%
loads = """
import os, sys
checkpoint, folder, db, instances, dtype, bits, fits, *rest = sys.argv[1:]
*pope, chapters = rest
sys.path[:0] = [chapters, chapters + "/.."]
import torch
from peft import PeftModel
from transformers import AutoProcessor, LlavaForConditionalGeneration as Llava
from lab.field import coco, devices, photos
from lab.llava.remembering import remembered
from sare_min.llava import embed_images
dtype = getattr(torch, dtype)
how = devices.four_bit(dtype) if bits == "4" else {}
model = Llava.from_pretrained(checkpoint, dtype=dtype, **how)
gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
model = model.to(gpu if torch.cuda.is_available() else "cpu").eval()
processor = AutoProcessor.from_pretrained(checkpoint)
"""

# %% [markdown]
# That much is the base model. The same script then reads the test images and
# the questions, and puts on one adapter after the other:

# %%
speaks = """
names = {q["image"] for path in pope for q in coco.read_questions(path)}
home = photos.images_folder(instances)
val = photos.read_images(instances, home, names=names)
kinds = [path.split("_")[-1].removesuffix(".json") for path in pope]
asked = {kind: photos.read_pope(path, val) for kind, path in zip(kinds, pope)}
fits, pictures = int(fits), photos.Pictures(val)
features = embed_images(model, processor, pictures, batch_size=fits)
for name in ("EFUF", "SARE"):
    own = f"{folder}/{name}"
    erased = PeftModel.from_pretrained(model, f"{own}/adapter").eval()
    given = features, val, asked, f"{own} again", fits
    with remembered(erased, db or None):
        photos.speak(erased, processor, *given)
    model = erased.unload()
"""
kind = str(dtype).removeprefix("torch.")
# A memory of its own: it must not be told what this process heard
db = out / "again.db" if memory else ""
given = [checkpoint, out, db, files["val"], kind, bits, fits]
given += [*(files[kind] for kind in KINDS), root / "chapters"]
command = [sys.executable, "-c", loads + speaks, *map(str, given)]
_ = subprocess.run(command, check=True)

# %% [markdown]
# Compare what was written in this process with what was written there, byte by
# byte and score by score:


# %% tags=["nbval-check-output"]
def written(name: str) -> list[bytes]:
    files = [out / name / f"{what}.jsonl" for what in ("captions", *KINDS)]
    return [file.read_bytes() for file in files]


for name in names:
    again = f"{name} again"
    print(
        f"{name}: same words {written(name) == written(again)};",
        f"same CHAIR and POPE {measure(name) == measure(again)};",
        f"and not the base model's {measure(name) != base}",
    )

# %% [markdown]
# ## Too far
#
# Why four nats, and not the eight of the other chapters? An adapter that is
# pushed further can keep CHAIR and recall, and lose what nobody trained: the
# answers to questions. Here EFUF goes three nats further, and beyond, since
# nothing lands a run here. Compare the last number; POPE's official parser takes each
# answer that is neither yes nor no for a yes.

# %%
_ = erase("EFUF", stop_nll + 3.0, "EFUF, further")
three = {name: measure(name) for name in ("base", "EFUF", "EFUF, further")}
for name, found in three.items():
    print(f"{name}:", readings.spell_scores(found))

# %% [markdown]
# ## The attack
#
# The attacker takes what he would get: the checkpoint and the adapter from
# disk, merged. (Into weights of 4 bits the merge is rounded; the curve's first
# point shows what that costs.) He trains an adapter of his own on hallucinated
# captions of images that the erasure never saw. Left, CHAIR_s; right, recall,
# which says whether the model still describes what *is* there. (`attacks.tuned` is
# the attack of `sare-min audit`: [the relearning attack](../sare_min/attack.py),
# with what a large model in 16 bits needs.)

# %%
most = len(attack_data) // 8 * 8  # in batches of 8
at = setting.coarse if most >= setting.coarse[1] else (0, most)
results, how = {}, {"lr": training.lr, "at": at, "seed": seed}
for name in names:

    def overheard(model, name=f"{name} attacked") -> dict:
        speak(model, name, {})
        found = measure(name, ())["chair"]
        return {metric: found[metric] for metric in ("chair_s", "recall")}

    whole = load(checkpoint, dtype=dtype, **stored)[0]
    erased = PeftModel.from_pretrained(whole, out / name / "adapter")
    given = devices.merged(erased), attack_data, overheard, "lora"
    curve = attacks.tuned(*given, **how)
    results[name] = [{"curve": curve}]
    shares = {p["at"]: f"{100 * p['chair_s']:.0f} %" for p in curve}
    print(name, shares)

# %%
curves = readings.curves(results, *names)
curves["scores"] = {name: readings.shares(row) for name, row in three.items()}
ends = ", ".join(f"{name} {nats:.1f} nats" for name, nats in reached.items())
if max(reached.values()) - min(reached.values()) > 0.1:
    ends += ": not one level, so not compared"
caption = (
    f"From files: LoRA erasure (rank 16, AdamW {training.lr:.2g}; {ends}),"
    " adapter loaded by peft and merged, LoRA relearning (the same rate,"
    " batches of 8, one pass); CHAIR by EFUF's convention;"
    f" {len(val)} test images; one seed."
)
if rank == 0:
    how = {"keys": ("chair_s", "recall"), "title": titles.halves_of(curves)}
    figures.publish(
        "fig_relapse", "05_real_thing", curves, preset, [seed], caption, **how
    )

# %% [markdown]
# One seed, two lines: this figure shows that the road goes through, not which
# method is better. Chapter 04 says how many seeds such a sentence takes; and the
# two do not even stand at one level, see the prints of the erasure. The
# adapter's space is not the space of all weights: the same `rho` is another
# step in it, and so is the attacker's learning rate.
#
# ## Appendix: files that break
#
# Files from elsewhere break, and some are made to. A reader that skips what it
# cannot read turns a truncated download into a smaller data set and a better
# score; one that trusts a file name reads what it should not. So every bad row
# stops the run and is named. Here are two: a file cut in the middle, and an
# image that is listed outside its folder.

# %% tags=["nbval-check-output"]
bad = out / "instances_bad.json"
bad.parent.mkdir(parents=True, exist_ok=True)
outside = (
    '{"images": [{"id": 1, "file_name": "../../secret.png"}], '
    '"annotations": [], "categories": []}'
)
for text in (files["val"].read_text()[:200], outside):
    bad.write_text(text)
    try:
        photos.read_images(bad, homes["val"])
    except ValueError as error:
        print(str(error).removeprefix(f"{out}/")[:80], "...")

# %% [markdown]
# ## Appendix: EFUF's own files
#
# **EFUF's sliding window.** EFUF scores patches of 48 pixels, not the whole
# image: a window of 4 x 4 patches slides over the image, a patch's score is the
# mean over the windows that cover it, an object's the mean of its four best
# patches. The pictures of the microworld are smaller than one window, so here
# it must give the whole image's score; on COCO it does not.

# %% tags=["nbval-check-output"]
some, window = parts["erase"][:32], judge.Window()
by_window = judge.scores(*clip, some, texts, kept, window=window)
largest = (by_window - scores[:32]).abs().max()
print(f"largest difference from the whole image's score: {largest:.2f}")

# %% [markdown]
# **EFUF's files.** The released `pos_neg.json` has one entry an object: the
# caption up to the *end* of its sub-sentence, and the position where that
# starts. Several entries share a caption; `read_efuf` packs them back into one
# row a caption, for one forward each (chapter 02). They carry scores, so the
# thresholds are ours to choose; the released ones, put to the microworld's
# little CLIP, show what "absolute" means.

# %%
for name, chosen in (("EFUF's thresholds", photos.EFUF), ("ours", limits)):
    curated = photos.read_efuf(files["pos_neg"], files["sentences"], chosen)
    count = {
        kind: sum(bool(row.spans[kind]) for row in curated)
        for kind in ("forget", "retain", "sentence")
    }
    print(
        f"{name:18s} {len(curated)} captions, of which with parts to forget, "
        f"to retain, kept whole: {count}"
    )

# %% [markdown]
# ## Appendix: more than one GPU
#
# The chapter is a script, too. From `chapters/`,
#
#     torchrun --standalone --nproc_per_node 2 05_real_thing.py
#
# starts it twice. Both draw the same batches, each takes every second
# *micro-batch*, and the gradients are summed: once before the ascent step, so
# that eps comes from the whole batch, and once before the optimiser's.
# `ranks.shared` sees to both, and in a notebook does nothing. (A test holds two
# processes to the steps of one, to six digits, for SARE, EFUF, NPO and SAM.
# Only the erasure is divided: each process captions and answers by itself, and
# holds all weights.)
#
# Where they do not fit one device they must be *sharded*.
# [`ranks.shard`](lab/field/ranks.py) does that, by FSDP2 or tensor parallel, and a
# test holds the steps of two CPU processes to those of one. This chapter does not
# call it: captions, saved adapters and the attack are not sharded here, and no
# GPU has run it.
#
# ## What we learned
#
# * The microworld's erasure needs nothing that COCO's files and a LLaVA
#   checkpoint do not give: images, annotations, a CLIP. Two strings change.
# * CHAIR and recall can look well where the model stops answering questions.
#   Pushed further, EFUF keeps a recall
#   of <!-- fig:05_real_thing:results.scores.EFUF, further.recall:.1f:100 -->98.8<!-- / --> %
#   and CHAIR_s
#   at <!-- fig:05_real_thing:results.scores.EFUF, further.chair_s:.1f:100 -->5.5<!-- / --> %,
#   and <!-- fig:05_real_thing:results.scores.EFUF, further.neither yes nor no:.1f:100 -->13.0<!-- / -->
#   %
#   of its answers are neither yes nor no. Score what was *not* trained, too.
# * Thresholds do not travel from CLIP to CLIP, shares do. The share must come
#   from somewhere: here, from annotations of other images.
# * An adapter that is saved, loaded by others and scored from files is the only
#   result that somebody else can check.
#
# ## What we did not show
#
# **A 7B model.** Neither the weights of LLaVA-1.5 nor COCO's images were at
# hand: what was run at full size is nothing, what was run from the same formats
# is the microworld. Learning rates, `rho` and the stop level of four nats are
# the microworld's; `probed = True` chooses them again, by a rule that was only
# tried there (`make real` takes it). Rows a forward at 7B were
# estimated, not measured; the attacker's batch of eight is one forward. The
# synonyms table is a compact one: give CHAIR's own list for published numbers
# (`lab.score --synonyms`). Curation judges whether an object is there, never
# how many, what colour, or what it does.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run its cell. It says "right", or "not yet" with a hint
# at the mistake. The [solutions](solutions.md) explain each answer.
#
# ### 1 · EFUF's entry *(easy)*
#
# An entry of EFUF's file reads `{"sentence": "a kitchen with a cup, a fork",
# "position": 21, ...}`. Which text is to be forgotten if its score is low, as
# EFUF cuts it?

# %% tags=["exercise", "nbval-check-output"]
from lab.exercises import real_thing as check

my_target = None  # a string
check.efuf_target(my_target)

# %% [markdown]
# ### 2 · What POPE hears *(easy)*
#
# Asked "Is there a bottle in the image?", a model says "Yes, there is.", "No.",
# "bottle bottle bottle" and "I do not see one." about four pictures. Which does
# POPE's official parser take for a yes?

# %% tags=["exercise", "nbval-check-output"]
my_yes = [None, None, None, None]  # True or False each
check.pope_reading(my_yes)

# %% [markdown]
# ### 3 · A threshold from a share *(easy)*
#
# Some CLIP scores ten mentions 17, 31, 14, 26, 22, 28, 12, 25, 20 and 30.
# Elsewhere one mention in five is wrong. Below which threshold would you
# forget? (Any number that does it is right.)

# %% tags=["exercise", "nbval-check-output"]
my_threshold = None
check.threshold(my_threshold)

# %% [markdown]
# ### 4 · A judge that errs *(open)*
#
# Take half of `share` for the thresholds, in the cell that prints them, and run
# it again with all that follows; then take twice. The one judge misses wrong
# sub-sentences, the other has true ones forgotten. Which error costs more, by
# CHAIR and by recall?

# %% [markdown]
# ### 5 · One step, two processes *(harder)*
#
# Two processes share a batch. On its part one finds $(3, 0)$ for the gradient
# of $L_{neg}$, the other $(0, 4)$; each is already divided by the whole batch's
# counts. `rho` is 0.1. What is eps\*, for both?

# %% tags=["exercise", "nbval-check-output"]
my_eps = [None, None]
check.shared_step(my_eps)

# %% [markdown]
# ## Sources
#
# * [COCO](bibliography.md#coco): pictures and their objects.
# * [POPE](bibliography.md#pope): hallucination, asked for.
# * [CHAIR](bibliography.md#chair): caption hallucination, counted.
# * [EFUF](bibliography.md#efuf): the standard erasure.
# * [LoRA](bibliography.md#lora): adapters.
# * [LLaVA-1.5](bibliography.md#llava-15): the checkpoint that it stands for.
# * [SARE](bibliography.md#sare): the paper that this book tests.
