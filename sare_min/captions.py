"""Captions as rows of tokens with masks, and the NLL of each token under a LLaVA.

Prompt, image placeholder and EOS come from the checkpoint's own processor. Image features are the
frozen tower's output, so every forward starts at the projector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

DESCRIBE = "Describe the image."  # the default question
ANSWER = "\ue000"  # one that no chat template holds
# Fields of Captions of shape (n, T)
TOKENS = ("input_ids", "attention_mask", "forget", "retain", "sentence")


@dataclass(frozen=True)
class Captions:
    """n captions under teacher forcing: rows of T tokens (image tokens, prompt, caption, EOS),
    right-padded.

    input_ids, attention_mask: (n, T) int64. forget, retain, sentence: (n, T) bool, True where a
    token's NLL is counted. features: (n_images, N, D), the frozen tower's output. image: (n,)
    int64, each row's index into features.
    reference: (n,) or None, the base model's summed NLL of each row's forget tokens (NPO needs it).
    """

    input_ids: Tensor
    attention_mask: Tensor
    forget: Tensor
    retain: Tensor
    sentence: Tensor
    image: Tensor
    features: Tensor
    reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Tensor | slice) -> Captions:
        """The given rows, cut to their longest one, with only their images' features, each once."""
        kept, image = self.image[rows].unique(return_inverse=True)
        reference = None if self.reference is None else self.reference[rows]
        tokens = {name: getattr(self, name)[rows] for name in TOKENS}
        width = int(tokens["attention_mask"].sum(1).max()) if len(image) else 0
        found = Captions(**tokens, image=image, features=self.features[kept], reference=reference)
        return found.cut(width)

    def split(self, n: int) -> list[Captions]:
        """The rows in parts of n, the last one with what is left."""
        return [self[rows] for rows in torch.arange(len(self)).split(n) if len(rows)]

    def cut(self, width: int) -> Captions:
        """All rows, their first `width` tokens."""
        return replace(self, **{name: getattr(self, name)[:, :width] for name in TOKENS})

    def split_forget(self) -> tuple[Captions, Captions]:
        """(rows with forget tokens, rows without)."""
        has_forget = self.forget.any(1)
        return self[has_forget], self[~has_forget]

    def until_forget(self) -> Captions:
        """The rows cut after the batch's last forget token: in a causal model nothing later can
        change L_neg. There must be one.
        """
        return self.cut(int(self.forget.any(0).nonzero().max()) + 1)

    def to(self, device: torch.device) -> Captions:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if v is not None})


def base(model: nn.Module) -> LlavaForConditionalGeneration:
    """The LLaVA itself, without peft's wrapper (LoRA layers stay in place). ValueError for a prompt
    adapter: it would be left out, because embeddings are put in here.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError("the adapter is a prompt, not in the layers: train one by LoRA instead.")
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore


def render(processor, question: str, *, opened: bool = False) -> str:
    """The chat template's text of the question about an image, or all that stands before an answer
    (some open it with a space). Raises ValueError if the template leaves an answer out.
    """
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    head, found, _ = processor.apply_chat_template([*chat, answer]).partition(ANSWER)
    if opened and not found:
        raise ValueError(f"the chat template leaves the answer out: {head[-80:]!r}. Mend it.")
    return head if opened else prompt


def special_tokens(tokenizer) -> set[str]:
    """Texts that the tokenizer reads as tokens of their own: BOS, EOS, turns, placeholders."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def refuse_special(processor, **texts: Sequence[str]) -> None:
    """Raise ValueError naming the first row of a kind that holds a special token: inside a text it
    would end the caption, or stand for an image that is not there.
    """
    special = sorted({processor.image_token, *special_tokens(processor.tokenizer)})
    for kind, rows in texts.items():
        for row, text in enumerate(rows):
            if found := [token for token in special if token in text]:
                raise ValueError(
                    f"{kind} {row} holds the special token {found[0]!r}. Take it out: {text!r:.80}"
                )


def tokenize(processor, texts: Sequence[str], n_image_tokens: int, side: str) -> list[Tensor]:
    """[token ids, attention mask, where each token ends, counted from its text's end], each (n, T),
    with the image placeholder repeated once per image feature, padded on `side`.
    """
    order = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # once each: questions repeat
    rows = torch.tensor([order[text] for text in texts], dtype=torch.long)
    image, bos = processor.image_token, processor.tokenizer.bos_token
    texts = [text.replace(image, image * n_image_tokens, 1) for text in order]
    tokens = processor.tokenizer(
        texts,
        padding=True,
        padding_side=side,
        add_special_tokens=not (bos and any(text.startswith(bos) for text in texts)),
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    from_end = tokens["offset_mapping"][..., 1] - torch.tensor([*map(len, texts)])[:, None]
    return [found[rows] for found in (tokens["input_ids"], tokens["attention_mask"], from_end)]


def encode(
    processor,
    features: Tensor,
    captions: Sequence[str],
    spans: Sequence[dict[str, list[tuple[int, int]]]] | None = None,
    question: str | Sequence[str] = DESCRIBE,
    image: Sequence[int] | None = None,
) -> Captions:
    """Turn captions into rows of tokens with masks.

    captions: n strings. spans: per caption {"forget" | "retain" | "sentence": [(start, end) in
    characters]}; None counts every caption whole as its sentence. A span that reaches the caption's
    end under "sentence" takes the EOS with it. question: one, or n. image: the row of `features`
    that each caption belongs to (default 0..n-1). Raises ValueError if counts differ, or naming the
    row of a span that does not fit and of a text that holds a special token.
    """
    n = len(captions)
    spans = [{"sentence": [(0, len(caption))]} for caption in captions] if spans is None else spans
    questions = [question] * n if isinstance(question, str) else question
    places = torch.arange(n) if image is None else torch.as_tensor(image)
    is_each = len({n, len(spans), len(questions), len(places)}) == 1
    is_each &= image is not None or n == len(features)
    if not is_each or not all(place in range(len(features)) for place in places.tolist()):
        raise ValueError(
            f"encode: {n} captions, {len(spans)} spans, {len(questions)} questions, {len(features)}"
            " features: give one each."
        )
    refuse_special(processor, caption=captions, question=questions)
    heads = {q: render(processor, q, opened=True) for q in set(questions)}  # once each: it is slow
    eos = processor.tokenizer.eos_token
    texts = [heads[q] + caption + eos for q, caption in zip(questions, captions, strict=True)]
    ids, attention, from_end = tokenize(processor, texts, features.shape[1], side="right")
    masks = {kind: torch.zeros_like(ids, dtype=torch.bool) for kind in TOKENS[2:]}
    for row, caption in enumerate(captions):
        # A token belongs to the span that holds its last character: a leading space never moves a
        # token out of its word.
        last = from_end[row] + len(eos) + len(caption) - 1
        for kind, pieces in spans[row].items():
            for start, end in pieces:
                if kind not in masks or not 0 <= start < end <= len(caption):
                    raise ValueError(
                        f"caption {row}: {kind} span ({start}, {end}) does not fit {caption!r}."
                        f" Kinds are {', '.join(masks)}."
                    )
                end += len(eos) if kind == "sentence" and end == len(caption) else 0
                masks[kind][row] |= (start <= last) & (last < end) & attention[row].bool()
    return Captions(ids, attention, **masks, image=places, features=features)


def embed(model: LlavaForConditionalGeneration, input_ids: Tensor, features: Tensor) -> Tensor:
    """Input embeddings (B, T, H) with the projected image features (B, N, D) in place of the image
    tokens.
    """
    is_image = input_ids == model.config.image_token_id
    n_tokens, n_features = is_image.sum(1).tolist(), features.shape[1]
    if bad := [row for row, n in enumerate(n_tokens) if n != n_features]:
        which = f"row {bad[0]} has {n_tokens[bad[0]]} image tokens, its image {n_features} features"
        raise ValueError(f"{which}: encode it by its processor.")
    projector = model.model.multi_modal_projector
    image = projector(features.to(next(projector.parameters()).dtype))
    tokens = model.get_input_embeddings()(input_ids)
    return tokens.masked_scatter(is_image[..., None], image.to(tokens.dtype))


def token_nll(model: nn.Module, batch: Captions) -> Tensor:
    """NLL in nats of each token given all before it, (B, T); 0 up to the first token that any row
    counts. The first token has none.
    """
    model = base(model)
    counted = (batch.forget | batch.retain | batch.sentence).any(0).nonzero()
    if not len(counted):  # curation leaves captions between the thresholds without any
        return torch.zeros(batch.input_ids.shape, device=batch.input_ids.device)
    first = max(1, int(counted.min()))
    logits = model(
        inputs_embeds=embed(model, batch.input_ids, batch.features[batch.image]),
        attention_mask=batch.attention_mask,
        logits_to_keep=batch.input_ids.shape[1] - first + 1,
        use_cache=False,
    ).logits
    said = batch.input_ids[:, first:]
    nll = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), said, reduction="none")
    return F.pad(nll, (first, 0))


def sentence_nll(model: nn.Module, batch: Captions) -> Tensor:
    """Mean NLL per sentence token: plain fine-tuning, the loss of pre-training and of the
    relearning attack.

    Raises ValueError if no token is marked: curated captions that hallucinate have forget masks and
    no sentence.
    """
    if not batch.sentence.any():
        raise ValueError(f"no sentence token in {len(batch)} captions: encode without spans.")
    return (token_nll(model, batch) * batch.sentence).sum() / batch.sentence.sum()
