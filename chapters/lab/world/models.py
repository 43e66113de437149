"""The microworld's models: a tokenizer, a processor, a tiny CLIP and a tiny LLaVA, and how they are
trained from nothing, within a minute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
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

from .scenes import (
    OBJECTS,
    PATCH,
    PLACES,
    SIDE,
    Scene,
    alt_text,
    caption,
    draw,
    noisy_extra,
    question,
)

QUESTIONS = 3  # yes/no questions made from each training caption


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
        model = build_llava(world).train()
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
