"""Attention over a packed tree, registered with transformers so that no model code changes.

`tree_attention` reads the plan from the keyword `tree`, which transformers hands through every layer. Without one it is plain
causal attention. A plan is a `Pack` (training, prefill) or a `Decoding` (one new token a row; see generate.py).

Shapes: H query heads, K key heads, E head width; the rest as in tree.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from lineside.model.tree import Pack

NAME = "lineside_tree"


class Plan(Protocol):
    """Anything that can attend for a layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, N, E), (1, K, N, E) twice -> (N, H, E)."""
        ...


class TreePlan:
    """Attention of a pack: for each bucket, own tokens against their gathered ancestors and themselves."""

    def __init__(self, pack: Pack, keep: bool = False) -> None:
        self.pack = pack
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None  # per layer (N, K, E) keys and values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Exactly causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (N, heads, E), contiguous rows of one token
        if self.kept is not None:
            self.kept.append((k, v))
        parts = []
        for bucket in self.pack.buckets:
            out = _masked(q[bucket.query], k[bucket.key], v[bucket.key], bucket.mask, scale)  # (S, L, H, E)
            parts.append(out.flatten(0, 1)[bucket.valid])
        return torch.cat(parts)[self.pack.order]


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """(S, L, H, E), (S, T, K, E) -> (S, L, H, E)."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


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
    """The function transformers calls in every layer. Returns ((B, N, H, E), None)."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if tree is not None:
        return tree.attend(int(module.layer_idx), query, key, value, scale)[None], None  # pyright: ignore[reportArgumentType]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mask = attention_mask[..., : key.shape[-2]] if attention_mask is not None else None
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1, scale=scale
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention)
