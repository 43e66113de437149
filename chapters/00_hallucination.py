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
# # 00 · How a tiny LLaVA learns to hallucinate
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sare-min/sare-min/blob/main/chapters/00_hallucination.ipynb)
#
# **The question.** A multimodal language model looks at a picture of a desk and
# writes "a laptop, a mouse, a keyboard". There is no keyboard. Its eyes are
# good, so where does the keyboard come from?
#
# **The answer.** From the captions that it learnt from. In our small world seven
# training captions in ten name one object too many; the model that learns from
# them invents something
# in <!-- fig:00_base:results.chair_s:.1fi:100 -->97.8 [96.2, 99.4]<!-- / --> % of its
# own (mean over the book's seeds; in brackets its 95 % interval). Trained on
# honest captions, the same model does so
# in <!-- fig:00_noise:results.chair_s at 0.0:.2fi:100 -->0.25 [-0.19, 0.69]<!-- / --> %.
#
# **What you need.** PyTorch, and an idea of what a language model is. This is
# the first of six chapters. Links lead to the
# [glossary](glossary.md); papers stand in the [bibliography](bibliography.md).
#
# **What you will see.** We draw a world of little pictures, train a real CLIP
# and a real LLaVA on it from nothing, and watch the second one invent objects.
# *Real* means the architecture: the same `LlavaForConditionalGeneration` of the
# `transformers` library that runs the seven-billion-parameter LLaVA-1.5, with
# fewer and narrower layers. Whatever we find out about it, we can try on the
# big one with the same functions.
#
# **Time.** About four minutes on two CPU cores the first time, seconds
# afterwards (trained models are kept in `chapters/.cache/`).

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
import random

import torch
from transformers import CLIPModel

from lab.evidence import figures, readings, titles
from lab.experiments import attacks, presets
from lab.llava.speech import generate
from lab.metrics.chair import chair
from lab.world import bases, measured, models, scenes
from lab.world.kit import get_kit
from sare_min.captions import encode, token_nll
from sare_min.llava import embed_images, set_trainable, trainable

setting = presets.get_preset(preset, seeds.split())
seed = setting.seeds[0]

# %% [markdown]
# ## A world of twenty objects
#
# Four kinds of place, five kinds of object each. A *scene* is a place with two
# or three of its objects in a three-by-three grid.

# %% tags=["nbval-check-output"]
for place, nouns in scenes.PLACES.items():
    print(f"{place:8s}", *nouns)
print(len(scenes.every_scene()), "different scenes")

# %% [markdown]
# Here are four of them, drawn as the model gets them: 48 by 48 pixels. A vision
# transformer cuts them into nine patches, one per grid cell, so a picture
# becomes nine *image tokens* (LLaVA-1.5 has 576). Can you name what you see?

# %%
some = scenes.split_scenes(seed, some=200)["some"]
rows = readings.first_of_each(scenes.PLACES, some)
_ = figures.fig_scenes([readings.true_scene(some[i]) for i in rows])

# %% [markdown]
# ## Captions that say a little too much
#
# LLaVA's training captions were not written by someone who looked. A language
# model was given a list of the objects in each photograph and asked for a
# description, and language models know that forks come with knives. We imitate
# this with one rule: seven captions in ten end in **one more object that such a
# place usually has and that this picture does not show**.

# %% tags=["nbval-check-output"]
example = scenes.Scene("kitchen", ("cup", "fork"), (1, 6))
rng = random.Random(10)
print("true:   ", scenes.caption(example))
for _ in range(8):
    extra = scenes.noisy_extra(example, 0.7, rng)
    print(
        "trained:", scenes.caption(example, extra), *map("({}?)".format, extra)
    )
n = sum(bool(scenes.noisy_extra(example, 0.7, rng)) for _ in range(1000))
print(n, "of 1000 captions name something absent")

# %% [markdown]
# So the training text holds a regularity that has nothing to do with the
# picture: *after what you see, add what goes with it*. This is
# [**co-occurrence**](glossary.md#co-occurrence), the cause that the papers behind the two standard
# benchmarks, CHAIR and POPE, found in large models.
#
# ## Training, from nothing
#
# Two steps, as for the large model. First a tiny CLIP, a model that scores how
# well a text goes with a picture, learns from short, *true* alt-texts ("A photo
# containing a fork."). Then its *vision tower*, the part that reads the
# picture, is frozen; a *projector*, which turns its output into something like
# words, and a tiny LLaMA, a language model, are put behind it and learn to
# describe.
#
# We open the box once, for one seed. What follows is a whole training of the
# tiny LLaVA, only shorter than the book's. First the model, with the tower of
# the CLIP, and its captions:

# %%
tower = CLIPModel.from_pretrained(bases.clip_folder()).vision_model
torch.manual_seed(seed)
model, processor = models.build_llava(), models.build_processor()
model.model.vision_tower.load_state_dict(tower.state_dict())
# "all" but the tower: the projector and the language model
model = set_trainable(model, "all")

rng, seen = random.Random(seed), scenes.split_scenes(seed, box=2000)["box"]
captions = [
    scenes.caption(scene, scenes.noisy_extra(scene, 0.7, rng)) for scene in seen
]
pictures = embed_images(model, processor, [scenes.draw(s) for s in seen])
data = encode(processor, pictures, captions)

# %% [markdown]
# [`embed_images`](../sare_min/llava.py#L112) shows each picture to the frozen
# tower once and keeps what it saw; [`encode`](../sare_min/captions.py#L140) puts
# the caption behind it, as one row of tokens. The loss is the ordinary one: the
# negative log-likelihood ([**NLL**](glossary.md#nll)) of each word of the caption, given the
# picture and all words before it, in *nats a token*. 0 means certain, 0.7 one in
# two, 8 about one in 3,000.

# %%
optimizer = torch.optim.AdamW(trainable(model), lr=2e-3)
for step in range(201):
    rows = torch.randint(len(data), (24,))
    batch = data[rows]
    # (24, tokens): a word's NLL, and where the caption's words are
    nll, words = token_nll(model, batch), batch.sentence
    loss = (nll * words).sum() / words.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 40 == 0:
        print(f"step {step:3d}: {loss.item():.2f} nats a token")
print("it says: ", *generate(model.eval(), processor, pictures[:1]))
print("it shows:", scenes.caption(seen[0]))

# %% [markdown]
# That is all there is to it. The book's models are trained by
# [`train_llava`](lab/world/models.py#L248), by these lines and three more: it
# goes on for 800 steps on 6,000 scenes, warms its learning rate up and cools it
# down, and puts questions beside the captions in each batch.
#
# From here on, one call does it for all seeds of the preset, side by side, and
# keeps the result: [`prepare`](lab/world/bases.py#L122). It trains the control
# models of the last section, too. What a seed has, its model, its scenes, what
# the model says of them, comes as one object, the seed's [**kit**](glossary.md#kit)
# ([`Kit`](lab/world/kit.py#L44)).
#
# The CLIP is trained once, on scenes of its own. Every seed's model sees through
# its tower, as every LLaVA-1.5 sees through the one public ViT-L/14.

# %%
controls = [
    (s, noise)
    for noise, n_seeds in setting.noise
    for s in setting.seeds[:n_seeds]
]
bases.prepare(setting.seeds, controls)
kit = get_kit(seed)

# %% [markdown]
# The result is a checkpoint directory like any other: `from_pretrained` loads
# the model, and its *processor* (picture to pixels, text to tokens) prepares a
# PIL image and a question. How many of its weights are trained? The tower is
# frozen; what is left is all that erasures and attacks will move.

# %% tags=["nbval-check-output"]
print(type(kit.model).__name__, "and", type(kit.processor).__name__)
n_weights = sum(p.numel() for p in kit.model.parameters())
n_tokens = kit.test_features.shape[1]
n_trained = sum(p.numel() for p in trainable(model))
print(f"{n_weights:,} weights, {n_trained:,} of them trained")
print(n_tokens, "image tokens")

# %% [markdown]
# ## What does it say?
#
# We ask "Describe the image." about scenes that it has never seen and let it
# answer *greedily*, always taking the most likely word. Before you run the
# cell, predict: in seven training captions of ten there was one invented
# object. In what share of the greedy captions do you expect one? (Red, bold,
# underlined: not in the picture.)

# %%
said = measured.describe(kit, kit.model)

rows = readings.first_of_each(scenes.PLACES, kit.test_scenes)
shown = [measured.marked(kit, i, said[i]) for i in rows]
caption = (
    "Greedy captions of four held-out scenes by the base model of seed "
    f"{seed}; red, bold and underlined: not in the picture."
)
_ = figures.publish(
    "fig_scenes",
    "00_scenes",
    shown,
    preset,
    setting.seeds,
    caption,
    title=titles.scenes(shown),
)

# %% [markdown]
# ## Counting: CHAIR
#
# The field's measure is CHAIR ("caption hallucination assessment with image
# relevance"). [**CHAIR_s**](glossary.md#chair_s) is the share of captions with
# at least one invented
# object, **CHAIR_i** the share of all mentions that are invented. Because a
# model can keep both low by saying nothing, we always report **recall** beside
# them: the share of the picture's objects that the caption names. Check the
# arithmetic on three captions by hand:

# %% tags=["nbval-check-output"]
mentioned = [["cup", "fork"], ["cup", "cup", "bowl"], ["fork"]]
in_the_picture = [{"cup", "fork"}, {"cup"}, {"fork", "cup"}]
score = chair(mentioned, in_the_picture)
print({name: round(value, 3) for name, value in score.items()})

# %% [markdown]
# One caption of three invents something; one mention of six is invented; and
# the recalls 1, 1 and 1/2 average to 5/6.
#
# Now the models, on 200 held-out scenes each. We add a second prompt, a yes/no
# question, "Is there a fork in the image?", as the benchmark
# [POPE](glossary.md#pope) does. It is asked about three kinds of object: one that is
# *shown*; one that is *usual* in such a place but absent; and one that is
# *foreign* to it, from another place. The models have met such questions in
# training. They were made from the noisy captions, not from the pictures, as
# instruction data are: so their answers inherit the noise.
#
# (`attacks.run_all` is the later chapters' way to get one result a seed. Here
# nothing is attacked: it measures the base models as they are.)

# %%
runs = {"base": [presets.book_run("base", s) for s in setting.seeds]}
found = attacks.run_all(runs)
results = {
    key: readings.after(found, "base", key) for key in ("chair_s", "recall")
} | attacks.answer_all(runs)["base"]

# %%
labels = {
    "chair_s": "captions with an invented object (CHAIR_s; ← better)",
    "recall": "objects that the caption names (recall; → better)",
    "shown": "“yes” to an object that is shown (→ better)",
    "usual": "“yes” to a usual but absent object (← better)",
    "foreign": "“yes” to a foreign object (← better)",
}
pairs = zip(setting.seeds, results["shown"], results["foreign"], strict=True)
one_sided = [str(s) for s, yes, no in pairs if yes < 0.5 or no > 0.5]
caption = (
    f"The base model on 200 held-out scenes a seed, {len(setting.seeds)} "
    "seeds, greedy decoding. Seeds that answer every kind of question alike: "
    f"{', '.join(one_sided) or 'none'}."
)
how = {"xlabel": "%", "labels": labels, "factor": 100, "bounds": (0, 100)}
how |= {"title": titles.base(results)}
_ = figures.publish(
    "fig_dots", "00_base", results, preset, setting.seeds, caption, **how
)

# %% [markdown]
# Read it from the top. The model sees well: recall is almost complete. And yet
# far more captions invent something than did in training. Greedy decoding turns
# "seven in ten" into "nearly always", because it takes the likelier branch
# every time.
#
# The questions show it too. Foreign objects are denied, so the model sees at
# least which place it is. Usual ones are affirmed whether they are there or
# not. One reason: most "no" answers in training are about foreign objects, as
# in random question sets.
#
# **The dots far from the others** are the seeds that the caption names. One
# says "no" to everything, one "yes". They have not learnt to answer; their
# captions are as good as the others'. Their two dots make the long bars.
#
# The bar is a 95 % [**interval**](glossary.md#interval) for the mean over seeds
# (Student's t). With the
# fast preset's two seeds it is nearly useless (the t factor is 12.7), so no bar
# is drawn below three seeds. With twelve seeds the factor is 2.2.
# (These intervals know nothing of 0 and 100 %: where one passes them, read it as
# "to the end".) A single
# number without its spread is no result.
#
# ## Is it really the captions?
#
# A story that fits is not yet a cause. The control: the same scenes, the same
# seeds, the same training, with captions that are free of noise. If
# co-occurrence in the text is the cause, honest captions must give an honest
# model. (The fast preset trains one seed; the full one six.)

# %%
trained = jobs.side_by_side(measured.noise_control, controls, "noise levels")
metrics = {
    "chair_s": "CHAIR_s (← better)",
    "usual": "“yes” to a usual but absent object (← better)",
}
by_noise, labels = readings.by_noise(controls, trained, metrics)

# %%
caption = (
    "Base models trained on captions without noise and with it (seeds: "
    f"{readings.seeds_at(controls)}); 200 held-out scenes a seed."
)
used = sorted({s for s, _ in controls})
how |= {"labels": labels, "title": titles.noise(by_noise)}
_ = figures.publish(
    "fig_dots", "00_noise", by_noise, preset, used, caption, **how
)

# %% [markdown]
# Look at the first line: honest captions, honest captioner. (Six of the twelve
# seeds have an honest twin. Over these six the base models stand
# at <!-- fig:00_noise:results.chair_s at 0.7:.1f:100 -->98.4<!-- / --> %, over all twelve
# at <!-- fig:00_base:results.chair_s:.1f:100 -->97.8<!-- / --> %.)
#
# And a warning about measurement. Greedy decoding hides how often the other
# branch would be taken. Sampling shows it; here it is, over all seeds, for the
# captions of held-out scenes:

# %%
sampled = [measured.sampled_chair(get_kit(s))["chair_s"] for s in setting.seeds]
shares = [f"{100 * share:.0f} %" for share in sampled]
print("CHAIR_s of sampled captions, one number a seed:", shares)

# %% [markdown]
# So a small CHAIR_s of greedy captions does not mean that the hallucination is
# gone, only that it is the less likely branch. Keep this in mind in the next
# chapters.
#
# The lower lines hold a surprise. With honest captions the answers need not
# become honest: look at "yes" to usual but absent objects at 0 %. The reason
# was announced above. Questions with the answer "no" are mostly about foreign
# objects, so telling the *place* is nearly enough to answer them, and a model
# that does only that affirms everything usual. That is a second cause, how
# negative questions are sampled, and not co-occurrence in captions. It is also
# why POPE has an *adversarial* setting, which asks about usual objects on
# purpose.
#
# ## What we learned
#
# * A model that sees well can hallucinate in nearly every caption; the cause
#   sits in the text it was trained on, not in its eyes. Its yes/no answers have
#   a second cause, the choice of questions.
# * Greedy decoding amplifies a majority and hides a minority. CHAIR_s is a
#   share of captions; how likely the invented words are, their NLL, is the
#   finer gauge.
#
# ## What we did not show
#
# That large models hallucinate *only* for this reason: blurred pictures, small
# objects and long captions add their own. Our scenes are clean icons, the noise
# is uniform over the absent objects, and the caption has a single form. All
# seeds share one tower, so no interval tells what another would do.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run its cell. It says "right", or "not yet" with a hint
# at the mistake. The [solutions](solutions.md) explain each answer.
#
# ### 1 · CHAIR by hand *(easy)*
#
# Two pictures show a cup and a fork each. The captions name `cup, fork` and
# `cup, bowl, bowl`. What are CHAIR_s and CHAIR_i, as shares from 0 to 1?

# %% tags=["exercise", "nbval-check-output"]
from lab.exercises import hallucination as check

my_chair_s, my_chair_i = None, None
check.chair_by_hand(my_chair_s, my_chair_i)

# %% [markdown]
# ### 2 · Greedy and sampled *(easy)*
#
# In every picture alike, after the last object that it sees, a model gives 0.4
# to ", a knife" (no picture shows one) and 0.6 to the full stop. What is
# CHAIR_s of its greedy captions, and what is it of very many sampled ones?

# %% tags=["exercise", "nbval-check-output"]
my_greedy, my_sampled = None, None
check.greedy_and_sampled(my_greedy, my_sampled)

# %% [markdown]
# ### 3 · What is a nat? *(easy)*
#
# A token's NLL is 2 nats. With what probability does the model say it?

# %% tags=["exercise", "nbval-check-output"]
my_probability = None
check.probability(my_probability)

# %% [markdown]
# ### 4 · The NLL of some words *(harder)*
#
# This is the gauge of all chapters to come, so write it once yourself.
# `logits` (T, V) are what a language model returns for a row of T tokens, over
# a vocabulary of V; `ids` (T,) are the row's tokens; `mask` (T,) is True at the
# tokens that count. Return their mean NLL in nats. Two or three lines of torch
# do it. Mind which row of `logits` has something to say about which token.


# %% tags=["exercise", "nbval-check-output"]
def my_nll(logits, ids, mask):
    return None  # your lines


check.span_nll(my_nll)

# %% [markdown]
# ### 5 · Ask it twice *(open)*
#
# Put "Is there a fork in the image?" to the model about two pictures, and look
# at what they show. Try objects that are shown, usual, and foreign: which kind
# gets a wrong answer?
#
# ```python
# from lab.llava.speech import generate
#
# asked, pictures = [scenes.question("fork")] * 2, kit.test_features[:2]
# print(generate(kit.model, kit.processor, pictures, asked))
# print([scene.objects for scene in kit.test_scenes[:2]])
# ```

# %% [markdown]
# ## Sources
#
# * [CHAIR](bibliography.md#chair): caption hallucination, counted.
# * [POPE](bibliography.md#pope): hallucination, asked for.
# * [LLaVA](bibliography.md#llava): the architecture.
# * [LLaVA-1.5](bibliography.md#llava-15): the checkpoint that it stands for.
# * [CLIP](bibliography.md#clip): the eyes, and the judge.
