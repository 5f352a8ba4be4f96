"""Attention over a packed tree, registered with transformers so that no model code changes.

`tree_attention` reads the plan from the keyword `tree`, which transformers hands through every layer. Without one it
is plain causal attention. A plan is that of a pack (training, prefill: `plan_of`) or a `Decoding` (one new token a row;
see decoding.py).

Shapes: H query heads, K key heads, E head width; the rest as in tree.py.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from lineside.model.cpu_ops import attend
from lineside.model.fused_ops import can_fuse, compiled
from lineside.model.padded_attention import PaddedPlan
from lineside.model.tree import Pack

NAME = "lineside_tree"


class Plan(Protocol):
    """Anything that can attend for a layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, N, E), (1, K, N, E) twice -> (N, H, E)."""
        ...


class CpuPlan:
    """Attention of a pack by our own kernel, on a CPU (cpu_ops.py)."""

    def __init__(self, pack: Pack) -> None:
        self._end = pack.end

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Exactly causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        return attend(q, k, v, self._end, scale)


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


class KVCapture:
    """A plan that keeps the keys and values it is given, which decoding begins from."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kept: list[tuple[Tensor, Tensor]] = []  # per layer (N, K, E) keys and values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As the plan does (see Plan for shapes)."""
        self.kept.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        return self.plan.attend(layer, query, key, value, scale)


def plan_of(pack: Pack) -> Plan:
    """How a pack attends, whatever its size: on a CPU by the kernel where it can be compiled; on a CUDA device by
    FlexAttention where LINESIDE_FLEX=1 asks for it (not yet tried on one); else by buckets."""
    if pack.tokens.is_cuda:
        return FlexPlan(pack) if os.environ.get("LINESIDE_FLEX", "0") == "1" else PaddedPlan(pack)
    return CpuPlan(pack) if use_cpu_ops(pack) else PaddedPlan(pack)


def use_cpu_ops(pack: Pack) -> bool:
    """Whether our own C++ (cpu_ops.py) computes a pack: on a CPU with a compiler."""
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
