"""The model as three plain modules that OpenVINO and ONNX exporters can trace: pictures, token embeddings, decoder.

They hold the checkpoint's own layers and compute the same. The decoder takes embeddings and the keys and values of
earlier tokens, so that a runtime decodes one token at a time. Left out: trees, because a runtime has one row a
question.

Shapes: B rows, T new tokens, L tokens so far with the new ones, D width of the LM, H heads, K heads of keys and
values, d width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.model.vlm import VLM

INPUTS = ("inputs_embeds", "attention_mask", "position_ids")


class Vision(nn.Module):
    """Pixels (B, 3, S, S) -> (B, P, D): frozen encoder and projector."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        config = vlm.model.config
        self.tower, self.projector = vlm.tower, vlm.projector
        self.layer = int(config.vision_feature_layer)
        self.skip = 1 if config.vision_feature_select_strategy == "default" else 0  # the class token

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer]
        return self.projector(hidden[:, self.skip :])


class Embedding(nn.Module):
    """Token ids (B, T) -> (B, T, D)."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.table: Any = vlm.model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


class Decoder(nn.Module):
    """Embeddings (B, T, D), mask (B, L), positions (B, T) and the past keys and values -> logits (B, 1, V) of the last
    token, and all keys and values. `past` are keys and values (B, K, L - T, d) of each layer in turn.

    With `reorder`, an argument `beam_idx` (B,) after the positions says which row of the past each row continues. So a
    shared prefix is computed for one row and continued by many.
    """

    def __init__(self, vlm: VLM, *, reorder: bool) -> None:
        super().__init__()
        lm: Any = vlm.language_model
        self.frequencies: Tensor
        self.layers, self.norm, self.head = lm.layers, lm.norm, vlm.model.lm_head
        self.register_buffer("frequencies", lm.rotary_emb.inv_freq.float())
        self.scale = float(lm.rotary_emb.attention_scaling)
        self.reorder = reorder

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        past = list(rest[1:] if self.reorder else rest)
        if self.reorder:
            past = [kept.index_select(0, rest[0]) for kept in past]
        angles = position_ids[:, None, :, None].float() * self.frequencies  # (B, 1, T, d / 2)
        angles = torch.cat([angles, angles], dim=-1)
        cosine, sine = angles.cos() * self.scale, angles.sin() * self.scale
        mask = _causal(attention_mask, inputs_embeds.shape[1])
        x, present = inputs_embeds, []
        for index, layer in enumerate(self.layers):
            mixed, keys, values = _attend(
                layer.self_attn, layer.input_layernorm(x), cosine, sine, mask, past[2 * index], past[2 * index + 1]
            )
            x = x + mixed
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            present += [keys, values]
        return self.head(self.norm(x[:, -1:])), *present

    def empty(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Zeros of the shape of `past`, `length` tokens long: examples for a tracer."""
        attention: Any = self.layers[0].self_attn
        heads, width = attention.config.num_key_value_heads, attention.head_dim
        return tuple(torch.zeros(rows, heads, length, width) for _ in range(2 * len(self.layers)))


def past_names(count: int) -> tuple[list[str], list[str]]:
    """Names of `count` keys and values in a graph: of those that go in, and of those that come out."""
    kept = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(count)]
    return kept, [name.replace("past_key_values", "present") for name in kept]


def _causal(attention_mask: Tensor, new: int) -> Tensor:
    """(B, L) -> (B, 1, T, L): 0 where a new token may attend, the smallest number elsewhere."""
    length = attention_mask.shape[1]
    ahead = torch.arange(length)[None, :] > (torch.arange(new) + (length - new))[:, None]
    blocked = ahead[None] | (attention_mask[:, None, :] == 0)
    return torch.zeros_like(blocked, dtype=torch.float32).masked_fill(blocked, torch.finfo(torch.float32).min)[:, None]


def _attend(
    attention: Any, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor, past_keys: Tensor, past_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's attention over past and new tokens: its output (B, T, D), and all keys and values (B, K, L, d)."""
    rows, new, _ = x.shape
    width = attention.head_dim

    def heads(projected: Tensor, norm: str) -> Tensor:
        split = projected.view(rows, new, -1, width)
        if hasattr(attention, norm):  # Qwen3 norms each head of queries and keys
            split = getattr(attention, norm)(split)
        return split.transpose(1, 2)

    def turned(states: Tensor) -> Tensor:
        left, right = states[..., : width // 2], states[..., width // 2 :]
        return states * cosine + torch.cat([-right, left], dim=-1) * sine

    queries = turned(heads(attention.q_proj(x), "q_norm"))
    keys = torch.cat([past_keys, turned(heads(attention.k_proj(x), "k_norm"))], dim=2)
    values = torch.cat([past_values, heads(attention.v_proj(x), "")], dim=2)
    groups = attention.num_key_value_groups
    mixed = F.scaled_dot_product_attention(
        queries, _repeated(keys, groups), _repeated(values, groups), attn_mask=mask, scale=attention.scaling
    )
    return attention.o_proj(mixed.transpose(1, 2).reshape(rows, new, -1)), keys, values


def _repeated(states: Tensor, groups: int) -> Tensor:
    """(B, K, L, d) -> (B, H, L, d): each head of keys or values for all queries of its group."""
    if groups == 1:
        return states
    rows, heads, length, width = states.shape
    return states[:, :, None].expand(rows, heads, groups, length, width).reshape(rows, heads * groups, length, width)
