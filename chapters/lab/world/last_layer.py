"""An exact saving for a model of two layers: the last one works only where its output is read.

A loss reads the logits of the caption or the answer, generation those of the last token. Pictures
and questions, more than half of all positions, reach them through the last layer's keys and values
alone; its queries and its feed-forward part there are computed by stock transformers and dropped.
That is next to nothing of 7B's 32 layers, and an eighth of a fine-tuning step's time here (`make
bench`). Weights, their names and the checkpoint on disk stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half


class LastLayer(LlamaDecoderLayer):
    """Llama's decoder layer; of T positions it returns the last `kept` ones, (B, kept, H), computed
    as stock transformers does.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings=None,
        past_key_values=None,
        kept: int = 0,
        **kwargs,
    ) -> Tensor:
        length = hidden_states.shape[1]
        if not 0 < kept < length:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        attention, seen = self.self_attn, self.input_layernorm(hidden_states)
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        q, k, v = (
            heads(attention.q_proj(seen[:, -kept:])),
            heads(attention.k_proj(seen)),
            heads(attention.v_proj(seen)),
        )
        q = q * cos[..., -kept:, :] + rotate_half(q) * sin[..., -kept:, :]
        k = k * cos + rotate_half(k) * sin
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, attention.layer_idx)
        if (
            attention_mask is None
            # no padding: stock attention is told that it is causal, which only holds for as many
            # queries as keys
        ):
            mask = torch.ones(kept, k.shape[2], dtype=torch.bool, device=k.device).tril(
                k.shape[2] - kept
            )
        else:
            mask = attention_mask[..., -kept:, :]
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=attention.scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        hidden_states = hidden_states[:, -kept:] + attention.o_proj(
            mixed.transpose(1, 2).flatten(2)
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def skip_unread(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Let the model's last layer skip what no logit needs, in place; return the model. Once is
    enough, a copy keeps it.

    Whoever asks for fewer logits (`logits_to_keep`, a number) gets them for less. Raises ValueError
    if the language model is no Llama with PyTorch's attention.
    """
    last, how = model.model.language_model.layers[-1], model.config.text_config._attn_implementation
    if not isinstance(last, LlamaDecoderLayer) or how != "sdpa":
        raise ValueError(
            f"skip_unread: the last layer is a {type(last).__name__} with {how} attention: it needs"
            " Llama's, with sdpa."
        )
    if not isinstance(last, LastLayer):
        last.__class__ = LastLayer
        model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"kept": kwargs.get("logits_to_keep", 0)}),
            with_kwargs=True,
        )
    return model
