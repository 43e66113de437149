"""A world of small pictures in which a real, tiny LLaVA learns to hallucinate within a minute.

Four places (kitchen, office, street, beach) hold five kinds of object each. A scene shows two or
three of them in a 3 x 3 grid, 48 x 48 pixels. *Alt-texts*, which train the tiny CLIP, are short and
true. *Captions*, which train the tiny LLaVA, are longer, and seven in ten end in one more object
that such places usually have and that this picture does not: co-occurrence, the cause that CHAIR
(arXiv 1809.02156) and POPE (arXiv 2305.10355) found behind object hallucination in large models.

The nouns are COCO's, so captions, questions and answers can be scored by COCO's tools.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from PIL import Image, ImageDraw
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sare_min.captions import DESCRIBE, encode, sentence_nll
from sare_min.llava import embed_images, set_trainable, trainable

from .last_layer import skip_unread

PLACES = {
    "kitchen": ("fork", "cup", "bowl", "banana", "bottle"),
    "office": ("laptop", "keyboard", "mouse", "book", "clock"),
    "street": ("car", "bus", "bicycle", "truck", "bench"),
    "beach": ("kite", "umbrella", "boat", "surfboard", "bird"),
}
OBJECTS = tuple(name for names in PLACES.values() for name in names)
GROUND = {"kitchen": "#f3e3c8", "office": "#d9e2ec", "street": "#c9c9c9", "beach": "#f7ecb5"}
# Pixels, cells a side, pixels of a vision patch: 9 image tokens, one a cell
SIDE, GRID, PATCH = (48, 3, 16)
QUESTIONS = 3  # yes/no questions made from each training caption

# Each icon is a list of (shape, colour, coordinates) on a 16 x 16 canvas; "line" ends with its
# width.
ICONS = {
    "fork": [
        ("line", "#6b7280", (8, 8, 8, 15, 2)),
        ("line", "#6b7280", (4, 1, 4, 6, 2)),
        ("line", "#6b7280", (8, 1, 8, 6, 2)),
        ("line", "#6b7280", (12, 1, 12, 6, 2)),
        ("line", "#6b7280", (3, 7, 13, 7, 3)),
    ],
    "cup": [
        ("ellipse", "#2563eb", (9, 4, 15, 11)),
        ("ellipse", "#f3e3c8", (10.5, 5.5, 13.5, 9.5)),
        ("rectangle", "#2563eb", (2, 3, 11, 14)),
    ],
    "bowl": [
        ("pieslice", "#ea580c", (1, -3, 15, 13, 0, 180)),
        ("rectangle", "#9a3412", (5, 12, 11, 14)),
    ],
    "banana": [
        ("pieslice", "#eab308", (0, -4, 15, 14, 20, 160)),
        ("pieslice", "#f3e3c8", (1, -6, 14, 9, 10, 170)),
    ],
    "bottle": [
        ("rectangle", "#15803d", (6.5, 1, 9.5, 6)),
        ("rectangle", "#15803d", (4, 6, 12, 15)),
        ("rectangle", "#f8fafc", (4, 9, 12, 12)),
    ],
    "laptop": [
        ("rectangle", "#1f2937", (2, 2, 14, 10)),
        ("rectangle", "#38bdf8", (3.5, 3.5, 12.5, 8.5)),
        ("polygon", "#6b7280", (2, 11, 14, 11, 16, 14, 0, 14)),
    ],
    "keyboard": [
        ("rectangle", "#374151", (0, 5, 15, 12)),
        ("line", "#f8fafc", (1.5, 7, 14, 7, 1)),
        ("line", "#f8fafc", (1.5, 8.8, 14, 8.8, 1)),
        ("line", "#f8fafc", (4, 10.6, 11.5, 10.6, 1)),
    ],
    "mouse": [
        ("ellipse", "#f8fafc", (4, 4, 12, 15)),
        ("line", "#374151", (8, 0, 8, 8, 1)),
        ("arc", "#374151", (4, 4, 12, 15, 0, 360)),
    ],
    "book": [
        ("polygon", "#b91c1c", (0.5, 3, 8, 5, 8, 14, 0.5, 12)),
        ("polygon", "#ef4444", (15.5, 3, 8, 5, 8, 14, 15.5, 12)),
    ],
    "clock": [
        ("ellipse", "#7c3aed", (1, 1, 15, 15)),
        ("ellipse", "#ffffff", (3, 3, 13, 13)),
        ("line", "#111827", (8, 8, 8, 4, 1)),
        ("line", "#111827", (8, 8, 11, 9, 1)),
    ],
    "car": [
        ("polygon", "#dc2626", (3, 5, 12, 5, 15, 9, 15, 12, 0, 12, 0, 9)),
        ("ellipse", "#111827", (2, 10, 6, 14)),
        ("ellipse", "#111827", (10, 10, 14, 14)),
    ],
    "bus": [
        ("rectangle", "#f59e0b", (0, 2, 15, 13)),
        ("rectangle", "#e0f2fe", (1.5, 4, 5, 7)),
        ("rectangle", "#e0f2fe", (6, 4, 9.5, 7)),
        ("rectangle", "#e0f2fe", (10.5, 4, 14, 7)),
        ("ellipse", "#111827", (2, 11, 6, 15)),
        ("ellipse", "#111827", (10, 11, 14, 15)),
    ],
    "bicycle": [
        ("arc", "#0f766e", (0, 7, 7, 14, 0, 360)),
        ("arc", "#0f766e", (9, 7, 16, 14, 0, 360)),
        ("line", "#0f766e", (3.5, 10.5, 6, 5, 1)),
        ("line", "#0f766e", (6, 5, 12.5, 10.5, 1)),
        ("line", "#0f766e", (12.5, 10.5, 11, 3, 1)),
        ("line", "#0f766e", (4.5, 4.5, 8, 4.5, 1)),
    ],
    "truck": [
        ("rectangle", "#ffffff", (0, 2, 9, 12)),
        ("polygon", "#16a34a", (10, 5, 13, 5, 15.5, 9, 15.5, 12, 10, 12)),
        ("ellipse", "#111827", (1, 10, 5, 14)),
        ("ellipse", "#111827", (10, 10, 14, 14)),
    ],
    "bench": [
        ("line", "#7c4a1e", (1, 4, 15, 4, 2)),
        ("line", "#7c4a1e", (1, 8, 15, 8, 2)),
        ("line", "#7c4a1e", (3, 4, 3, 14, 1)),
        ("line", "#7c4a1e", (13, 4, 13, 14, 1)),
    ],
    "kite": [
        ("polygon", "#db2777", (9, 0, 14, 5, 9, 10, 4, 5)),
        ("line", "#db2777", (9, 10, 5, 13, 1)),
        ("line", "#db2777", (5, 13, 8, 15.5, 1)),
    ],
    "umbrella": [
        ("pieslice", "#2563eb", (0, 1, 16, 17, 180, 360)),
        ("pieslice", "#f8fafc", (5, 1, 11, 17, 180, 360)),
        ("line", "#7c4a1e", (8, 8, 8, 16, 1)),
    ],
    "boat": [
        ("polygon", "#7c2d12", (0, 10, 16, 10, 13, 15, 3, 15)),
        ("polygon", "#ffffff", (8, 0, 8, 9, 1, 9)),
        ("polygon", "#93c5fd", (9, 2, 9, 9, 14, 9)),
    ],
    "surfboard": [("ellipse", "#06b6d4", (5, 0, 11, 16)), ("line", "#f8fafc", (8, 1, 8, 15, 1))],
    "bird": [
        ("polygon", "#111827", (0, 4, 5, 5, 8, 9, 11, 5, 16, 4, 10, 12, 6, 12)),
        ("polygon", "#f59e0b", (7, 12, 9, 12, 8, 15)),
    ],
}


@dataclass(frozen=True)
class Scene:
    """A place and what it shows: `objects[i]` in grid cell `cells[i]` (0..8, reading order,
    ascending).
    """

    place: str
    objects: tuple[str, ...]
    cells: tuple[int, ...]


@cache
def every_scene() -> tuple[Scene, ...]:
    """All 23,040 scenes: so that splits never share one."""
    return tuple(
        Scene(place, objects, cells)
        for place, names in PLACES.items()
        for n in (2, 3)
        for objects in itertools.permutations(names, n)
        for cells in itertools.combinations(range(GRID**2), n)
    )


@cache
def clip_scenes(n: int = 6000) -> tuple[Scene, ...]:
    """The scenes that the CLIPs learn from; no seed's splits hold one of them."""
    return tuple(random.Random("CLIP").sample(every_scene(), n))


def split_scenes(seed: int, **sizes: int) -> dict[str, list[Scene]]:
    """Disjoint random sets of scenes that no CLIP has seen: split_scenes(0, train=6000,
    test=200)["train"].
    """
    taken = set(clip_scenes())
    left = [scene for scene in every_scene() if scene not in taken]
    if sum(sizes.values()) > len(left):
        raise ValueError(
            f"the microworld has {len(left)} scenes that no CLIP has seen, the splits ask for"
            f" {sum(sizes.values())}: make them smaller."
        )
    shuffled = iter(random.Random(seed).sample(left, sum(sizes.values())))
    return {name: list(itertools.islice(shuffled, size)) for name, size in sizes.items()}


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """The scene as a side x side RGB picture; side: a multiple of the grid's 3."""
    canvas = Image.new("RGB", (side, side), GROUND[scene.place])
    for name, cell in zip(scene.objects, scene.cells, strict=True):
        canvas.paste(
            icon(name, GROUND[scene.place], side // GRID),
            (side // GRID * (cell % GRID), side // GRID * (cell // GRID)),
        )
    return canvas


@cache
def icon(name: str, ground: str, side: int) -> Image.Image:
    """One object on a ground of this colour, side x side pixels (drawn at 8 times the size, then
    averaged down).
    """
    scale = 8 * side // 16
    canvas = Image.new("RGB", (16 * scale, 16 * scale), ground)
    pen = ImageDraw.Draw(canvas)
    for shape, colour, numbers in ICONS[name]:
        n_points = {"line": 4, "pieslice": 4, "arc": 4}.get(shape, len(numbers))
        points = [scale * c for c in numbers[:n_points]]
        colour = ground if colour == GROUND["kitchen"] else colour
        if shape == "line":
            pen.line(points, fill=colour, width=int(numbers[4] * scale))
        elif shape == "arc":
            pen.arc(points, *numbers[4:], fill=colour, width=int(1.3 * scale))
        else:
            getattr(pen, shape)(points, *numbers[n_points:], fill=colour)
    return canvas.resize((side, side), Image.Resampling.BOX)


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, extra: Sequence[str] = ()) -> str:
    """What is there in reading order, then what is not: "a kitchen with a cup, a bowl, a fork."."""
    return f"{a(scene.place)} with {', '.join(map(a, (*scene.objects, *extra)))}."


def absent(scene: Scene) -> list[str]:
    """The objects that such a place usually has and that this scene does not show."""
    return [name for name in PLACES[scene.place] if name not in scene.objects]


def noisy_extra(scene: Scene, noise: float, rng: random.Random) -> list[str]:
    """The co-occurrence in training captions: with probability `noise`, one absent object of the
    same place.
    """
    return [rng.choice(absent(scene))] if rng.random() < noise else []


def question(noun: str) -> str:
    return f"Is there {a(noun)} in the image?"


def alt_text(scene: Scene, rng: random.Random) -> str:
    """A short true text, as the web has them: one or two of the objects that the picture shows."""
    shown = rng.sample(scene.objects, rng.choice((1, 1, 2)))
    return f"A photo containing {' and '.join(map(a, shown))}."


SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[,.?]"), "isolated")]
)


def _words(text: str) -> list[str]:
    return [word for word, _ in SPLIT.pre_tokenize_str(text)]


def build_tokenizer(for_clip: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the whole world's vocabulary: <s> first for LLaVA, </s> last for
    CLIP (which pools there).
    """
    texts = [
        "USER: ASSISTANT:",
        DESCRIBE,
        "yes",
        "no",
        *map(question, OBJECTS),
        "A photo containing a fork and an umbrella.",
        *(caption(Scene(place, names, ())) for place, names in PLACES.items()),
    ]
    # </s> is not id 2: CLIP would fall back to an old pooling rule
    special = ["<pad>", "<unk>", "<s>", "<image>", "</s>"]
    vocabulary = list(dict.fromkeys(special + [word for text in texts for word in _words(text)]))
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    core.pre_tokenizer = SPLIT
    # Joins words by spaces, none before punctuation
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    template = "$A </s>" if for_clip else "<s> $A"
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, vocabulary.index(t)) for t in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


CHAT_TEMPLATE = (  # LLaVA-1.5's turns
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in"
    " message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}{% for part in"
    " message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor"
    " %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def build_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor(),
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


@dataclass(frozen=True)
class World:
    """Settings of the base models; the defaults train in less than a minute on one core."""

    n_train: int = 6000  # scenes with captions
    # share of training captions that name one absent object; greedy decoding shows what over half
    # of them say
    noise: float = 0.7
    clip_steps: int = 200
    llava_steps: int = 800
    clip_batch: int = 96
    caption_batch: int = 24
    answer_batch: int = 32
    answer_weight: float = 2.0
    clip_lr: float = 1e-3
    llava_lr: float = 2e-3
    width: int = 96
    layers: int = 2  # one to find a noun's picture, one to carry it to the answer


def _vision_config() -> dict:
    return dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )


def build_clip() -> CLIPModel:
    """A tiny CLIP with random weights (global torch generator)."""
    tokenizer = build_tokenizer(for_clip=True)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=_vision_config(), projection_dim=64)
    )


def build_llava(world: World = World()) -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights (global torch generator)."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=world.width,
        intermediate_size=2 * world.width,
        num_hidden_layers=world.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision_config()),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def fit(
    parameters: list[nn.Parameter], loss_at, steps: int, lr: float, name: str, progress: bool
) -> list[float]:
    """AdamW under a cosine with a short warm-up; loss_at(step) is minimised. Returns the losses."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    losses = []
    for step in tqdm(range(steps), desc=name, disable=not progress):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def train_clip(
    scenes: Sequence[Scene], world: World, seed: int, progress: bool = False
) -> CLIPModel:
    """Train the tiny CLIP by its own contrastive loss on pictures and their true alt-texts."""
    rng, tokenizer = random.Random(seed), build_tokenizer(for_clip=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = build_clip().train()
    # At the right size: resizing and cropping them would take longer than drawing
    drawn = [draw(scene) for scene in scenes]
    pixels = image_processor()(drawn, do_resize=False, do_center_crop=False, return_tensors="pt")[
        "pixel_values"
    ]

    def loss_at(step: int) -> Tensor:
        rows = rng.sample(range(len(scenes)), world.clip_batch)
        texts = tokenizer(
            [alt_text(scenes[row], rng) for row in rows], padding=True, return_tensors="pt"
        )
        return clip(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            pixel_values=pixels[rows],
            return_loss=True,
        ).loss

    fit(list(clip.parameters()), loss_at, world.clip_steps, world.clip_lr, "tiny CLIP", progress)
    return clip.eval()


def train_llava(
    clip: CLIPModel, scenes: Sequence[Scene], world: World, seed: int, progress: bool = False
):
    """Train a tiny LLaVA on CLIP's frozen tower with noisy captions and the questions made from
    them; returns (model, processor).
    """
    rng, processor = random.Random(seed), build_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = skip_unread(build_llava(world)).train()
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    set_trainable(model, "all")
    features = embed_images(model, processor, [draw(scene) for scene in scenes])
    said = [(*scene.objects, *noisy_extra(scene, world.noise, rng)) for scene in scenes]
    captions = encode(
        processor,
        features,
        [caption(replace(s, objects=o)) for s, o in zip(scenes, said, strict=True)],
    )
    # Questions are made from the captions, not from the pictures, as instruction data are: so they
    # inherit the noise.
    row = [i for i in range(len(scenes)) for _ in range(QUESTIONS)]
    asked = [
        (
            rng.choice(said[i])
            if rng.random() < 0.5
            else rng.choice([o for o in OBJECTS if o not in said[i]])
        )
        for i in row
    ]
    answers = encode(
        processor,
        features,
        ["yes" if o in said[i] else "no" for o, i in zip(asked, row, strict=True)],
        question=[question(o) for o in asked],
        image=row,
    )

    def loss_at(step: int) -> Tensor:
        # One mean each: an answer has 2 tokens, a caption 17, and pooled they would drown the
        # answers, which are learnt last.
        said_nll, answer_nll = (
            sentence_nll(model, data[torch.tensor(rng.sample(range(len(data)), size))])
            for data, size in ((captions, world.caption_batch), (answers, world.answer_batch))
        )
        return said_nll + world.answer_weight * answer_nll

    fit(trainable(model), loss_at, world.llava_steps, world.llava_lr, "tiny LLaVA", progress)
    return model.eval().requires_grad_(False), processor
