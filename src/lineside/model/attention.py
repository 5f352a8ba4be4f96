"""Attention over a packed tree, registered with transformers so that no model code changes.

`tree_attention` reads the plan from the keyword `tree`, which transformers hands through every layer. Without one it
is plain causal attention. A plan is a `Pack` (training, prefill) or a `Decoding` (one new token a row; see
decoding.py).

Shapes: H query heads, K key heads, E head width; the rest as in tree.py.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from lineside.model.fuse import compiled
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
        self._biases: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Exactly causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (N, heads, E), contiguous rows of one token
        if self.kept is not None:
            self.kept.append((k, v))
        if not self._biases:  # the same for every layer
            self._biases = [q.new_zeros(b.mask.shape).masked_fill_(~b.mask, float("-inf")) for b in self.pack.buckets]
        # One gather and one split for all buckets: each of many would fill and add a whole gradient in backward.
        packed = self.pack
        q_of = q.index_select(0, packed.query).split([b.segments * b.own for b in packed.buckets])
        kv_of = (
            torch.cat([k, v], dim=-1).index_select(0, packed.key).split([b.segments * b.keys for b in packed.buckets])
        )
        parts = []
        for b, bias, q_b, kv_b in zip(packed.buckets, self._biases, q_of, kv_of):
            k_b, v_b = kv_b.unflatten(0, (b.segments, b.keys)).chunk(2, dim=-1)
            parts.append(_biased(q_b.unflatten(0, (b.segments, b.own)), k_b, v_b, bias, scale).flatten(0, 1))
        return torch.cat(parts).index_select(0, packed.order)


class FlexPlan:
    """The same attention as one block-sparse product (FlexAttention, arXiv 2412.05496): nothing is gathered, and blocks
    in which no token looks at another are passed over. For a CUDA device; a CPU has its forward only, for the tests."""

    def __init__(self, pack: Pack) -> None:
        end, size = pack.end, len(pack.tokens)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query <= end[key])

        self._mask = create_block_mask(sees, None, None, size, size, device=str(end.device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Exactly causal attention along every root-to-leaf path (see Plan for shapes)."""
        flex = compiled(flex_attention) if query.is_cuda else flex_attention
        out = flex(query, key, value, block_mask=self._mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)


def plan_of(pack: Pack) -> Plan:
    """How a pack attends: by buckets, or on a CUDA device by FlexAttention where LINESIDE_FLEX=1 asks for it (not yet
    tried on one)."""
    flex = pack.tokens.is_cuda and os.environ.get("LINESIDE_FLEX", "0") == "1"
    return FlexPlan(pack) if flex else TreePlan(pack)


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(S, L, H, E), (S, T, K, E) twice, (S, 1, L, T) -> (S, L, H, E).

    On a CPU the segments are short and many, and plain batched products beat the flash kernel, its backward above all.
    """
    segments, own, heads, width = q.shape
    kv_heads = k.shape[2]
    each = heads // kv_heads
    if q.is_cuda:
        k, v = (t.repeat_interleave(each, dim=2) if each > 1 else t for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
    # Query heads of one key head lie beside each other as further rows of its product, so that no key is copied.
    q = (q * scale).unflatten(2, (kv_heads, each)).permute(0, 2, 3, 1, 4).reshape(segments * kv_heads, -1, width)
    k = k.permute(0, 2, 3, 1).reshape(segments * kv_heads, width, -1)
    v = v.transpose(1, 2).reshape(segments * kv_heads, -1, width)
    shared = bias[:, None].expand(-1, kv_heads, each, -1, -1).reshape(segments * kv_heads, each * own, -1)
    out = torch.bmm(torch.softmax(torch.baddbmm(shared, q, k), dim=-1), v)
    return out.view(segments, kv_heads, each, own, width).permute(0, 3, 1, 2, 4).flatten(2, 3)


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
