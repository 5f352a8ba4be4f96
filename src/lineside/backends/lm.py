"""A decoder LM, run through its own modules: forward hooks fire on every layer, linear map and norm.

FSDP2, adapters and compilers hang on these hooks. The layers are those of transformers; their attention comes here,
where a plan computes it.

Shapes: N tokens, H query heads, K key heads, E head width, D width, R rows that are asked for, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "lineside_tree"
# Layers: norm, attention, norm, gated MLP, each of the last two added.
PLAIN_LMS = ("llama", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text")


class Plan(Protocol):
    """Computes the attention of a layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, N, E), (1, K, N, E), (1, K, N, E) -> (N, H, E)."""
        ...


class KVCapture:
    """A plan that also records the keys and values of every layer. Decoding starts from this KV cache."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kept: list[tuple[Tensor, Tensor]] = []  # per layer (N, K, E) keys and values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The same as the plan it wraps (see Plan for shapes)."""
        self.kept.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        return self.plan.attend(layer, query, key, value, scale)


@dataclass(frozen=True)
class LanguageModel:
    """The parts of an LM that a backend computes with."""

    decoder: Any  # layers and final norm
    embed: nn.Module
    head: nn.Module
    banned: int  # the token that is never predicted: that of pictures

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        plan: Plan,
        rows: Tensor | None = None,
        *,
        added: Sequence[tuple[Tensor, Tensor]] = (),
        recompute: bool = False,
    ) -> Tensor:
        """(N, D) embeddings at (N,) or (3, N) positions -> hidden states after the final norm, (N, D), or (R, D) of the
        tokens `rows` alone. The last layer then computes what follows its attention for these tokens only.

        `added`: for each of the first layers, (slots, what is added there to its output). `recompute`: gradient
        checkpointing, so backward computes each layer again."""
        x, at = embeds[None], positions[None] if positions.ndim == 1 else positions[:, None]
        rotary, layers = self.decoder.rotary_emb(x, position_ids=at), list(self.decoder.layers)
        # A forward that something else has wrapped knows no rows; and what is added needs all tokens.
        ours = getattr(layers[-1].forward, "func", None) is _forward and len(added) < len(layers)
        narrow = rows is not None and ours
        for number, layer in enumerate(layers):
            given: dict[str, Any] = {"position_embeddings": rotary, "position_ids": at, "tree": plan}
            if narrow and layer is layers[-1]:
                x = layer(x, rows=rows, **given)
            elif recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False, **given)
            else:
                x = layer(x, **given)
            if number < len(added):
                slots, values = added[number]
                x = x.index_add(1, slots, values[None].to(x.dtype))
        x = self.decoder.norm(x)[0]
        return x if rows is None or narrow else x[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (R, V) in the LM's number format, with -inf for the banned token."""
        logits = self.head(hidden)
        logits[:, self.banned] = float("-inf")
        return logits


def skip_in_last_layer(decoder: Any) -> None:
    """Let the last layer of a plain LM take `rows`: it computes what follows its attention for these tokens only,
    (1, N, D) -> (1, R, D). It is still called as a module, and calls its own modules."""
    if decoder.config.model_type in PLAIN_LMS:
        layer = decoder.layers[-1]
        layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: Any, whole: Callable[..., Tensor], x: Tensor, rows: Tensor | None = None, **given: Any) -> Tensor:
    if rows is None:
        return whole(x, **given)
    with layer.self_attn.o_proj.register_forward_pre_hook(lambda _, heads: (heads[0][:, rows],)):
        mixed, _ = layer.self_attn(layer.input_layernorm(x), attention_mask=None, **given)
    x = x[:, rows] + mixed
    return x + layer.mlp(layer.post_attention_layernorm(x))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    tree: Plan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention that transformers calls in every layer: a plan's, or its own. Returns ((B, N, H, E), None)."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if tree is not None:
        return tree.attend(int(module.layer_idx), query, key, value, scale)[None], None  # pyright: ignore[reportArgumentType]
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale)


AttentionInterface.register(NAME, tree_attention)
