"""What a LLaVA says: greedy or sampled answers to questions about images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GenerationConfig

from sare_min.captions import (
    DESCRIBE,
    base,
    embed,
    refuse_special,
    render,
    special_tokens,
    tokenize,
)

logger = logging.getLogger(__name__)
# Generation settings of which nothing is said: ours replace them, or they choose no token.
SILENT = {"transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"}
SILENT |= {
    "_from_model_config",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
}


@torch.no_grad()
def generate(
    model: nn.Module,
    processor,
    features: Tensor,
    question: str | Sequence[str] = DESCRIBE,
    prefix: str | Sequence[str] = "",
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> list[str]:
    """Answer a question about each image: the likeliest next token at temperature 0, else one drawn
    at that temperature under `seed` (the global generator is given back).

    features: (n, N, D) from embed_images. question and prefix (words put into the model's mouth, an
    attack): one for all images, or n. The checkpoint's own generation settings (penalties, beams,
    forced tokens) do not take part; a log line says once which were set aside.
    Raises ValueError if counts differ or a text holds a special token, naming its row.
    """
    model, answers = base(model), {}
    questions, prefixes = (
        [text] * len(features) if isinstance(text, str) else list(text)
        for text in (question, prefix)
    )
    if not len(questions) == len(prefixes) == len(features):
        raise ValueError(
            f"generate: {len(questions)} questions and {len(prefixes)} prefixes for"
            f" {len(features)} images: one, or one each."
        )
    refuse_special(processor, question=questions, prefix=prefixes)
    heads = {q: render(processor, q) for q in set(questions)}
    prompts = [heads[q] + p for q, p in zip(questions, prefixes)]
    # Prompts of like length share a batch: little padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    settings = decoding(model, processor, max_new_tokens, temperature)
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        only(model, settings),
        in_eval(model),
    ):
        torch.manual_seed(seed)
        for rows in tqdm(batches, desc="generate", disable=not progress):
            texts = [prompts[i] for i in rows]
            ids, attention, _ = tokenize(processor, texts, features.shape[1], side="left")
            embeds = embed(model, ids.to(model.device), features[rows].to(model.device))
            out = model.generate(inputs_embeds=embeds, attention_mask=attention.to(model.device))
            answers |= zip(rows, processor.batch_decode(out, skip_special_tokens=True))
    return [answers[row].strip() for row in range(len(prompts))]


def decoding(
    model: nn.Module, processor, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Plain greedy decoding, or plain sampling. It ends at the tokenizer's EOS and at those of the
    checkpoint's that are special tokens (a chat's end of turn), never at a word.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: 0 is greedy, more is sampling; not less.")
    tokenizer, special = processor.tokenizer, special_tokens(processor.tokenizer)
    ends = [i for i in _ends(model) if tokenizer.convert_ids_to_tokens(i) in special]
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted({tokenizer.eos_token_id, *ends}),
        pad_token_id=tokenizer.pad_token_id,
        # A sampled image placeholder would poison every later forward of the text.
        suppress_tokens=[model.config.image_token_id],
        **sampling,
    )


def _ends(model: nn.Module) -> list[int]:
    """The ids at which the checkpoint's own settings end an answer."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else ends or []


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """No dropout and no recomputing, which drops what generation keeps; then back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def only(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Let the model generate by these settings alone, then give it its own back. (transformers
    fills what a call leaves unsaid from the model's.) A log line tells once what is set aside.
    """
    theirs = model.generation_config
    odd = {
        name: value
        for name, value in theirs.to_diff_dict().items()
        if name not in SILENT and (value is True or value not in (None, 0, 1, []))
    }
    if words := [i for i in _ends(model) if i not in settings.eos_token_id]:
        odd["eos_token_id"] = words
    if odd and not hasattr(model, "told"):
        logger.warning("%s: generation settings set aside: %s", model.name_or_path, odd)
        model.told = True
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = theirs
