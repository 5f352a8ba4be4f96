"""Attention over a packed tree, registered with transformers so that no model code changes.

`tree_attention` takes a plan from the keyword `tree`, which transformers passes through every layer. Without a plan it
is plain causal attention. There are plans for a pack (training and prefill: `plan_of`) and for decoding one new token a
row (`Decoding` in decoding.py).

Shapes: H query heads, K key heads, E head width; the rest as in tree.py.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from lineside.backends.cpu_ops import attend
from lineside.backends.fused_ops import can_fuse, compiled
from lineside.backends.padded_attention import PaddedPlan
from lineside.model.tree import Pack

NAME = "lineside_tree"


class Plan(Protocol):
    """Computes attention for a layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, N, E), (1, K, N, E), (1, K, N, E) -> (N, H, E)."""
        ...


class CpuPlan:
    """Attention of a pack by our own C++ kernel on a CPU (cpu_ops.py)."""

    def __init__(self, pack: Pack) -> None:
        self._end = pack.end

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        return attend(q, k, v, self._end, scale)


class FlexPlan:
    """The same attention with a block mask (FlexAttention, arXiv 2412.05496): nothing is gathered, and blocks in which
    no token sees another are skipped. For a CUDA device. On a CPU only its forward works, which the tests use."""

    def __init__(self, pack: Pack) -> None:
        end, size = pack.end, len(pack.tokens)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query <= end[key])

        self._mask = create_block_mask(sees, None, None, size, size, device=str(end.device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes)."""
        flex = compiled(flex_attention) if query.is_cuda else flex_attention
        out = flex(query, key, value, block_mask=self._mask, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)


class KVCapture:
    """A plan that also records the keys and values of every layer. Decoding starts from this KV cache."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kept: list[tuple[Tensor, Tensor]] = []  # per layer (N, K, E) keys and values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The same as the plan it wraps (see Plan for shapes)."""
        self.kept.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        return self.plan.attend(layer, query, key, value, scale)


def plan_of(pack: Pack) -> Plan:
    """The plan for a pack of any size. On a CPU: our own kernel, if it can be compiled. On a CUDA device:
    FlexAttention, if LINESIDE_FLEX=1 (not yet tried on one). Otherwise: padded attention."""
    if pack.tokens.is_cuda:
        return FlexPlan(pack) if os.environ.get("LINESIDE_FLEX", "0") == "1" else PaddedPlan(pack)
    return CpuPlan(pack) if use_cpu_ops(pack) else PaddedPlan(pack)


def use_cpu_ops(pack: Pack) -> bool:
    """Whether our own C++ (cpu_ops.py) computes a pack: on a CPU with a C++ compiler."""
    device = pack.tokens.device
    return device.type == "cpu" and can_fuse(device)


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
    """The attention function that transformers calls in every layer. Returns ((B, N, H, E), None)."""
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
