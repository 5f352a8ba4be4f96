"""One decoding step of a Llama- or Qwen-type decoder on a CPU, compiled a layer at a time.

With few rows a step is thousands of small operations whose calls cost more than their arithmetic. Here all of a layer
but its products is compiled into a handful of loops, and the products read weights laid out once (prepack.py). The
arithmetic is that of transformers' layers with `Decoding.attend`, which stay the reference and take what does not pay,
a few rows.

Shapes as in decoding.py: G groups of m rows, R = G * m, P prefix tokens, T own tokens, H query and K key heads, E head
width; D width of the LM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lineside.model.decoding import Decoding
from lineside.model.fuse import allow_recompiling, can_fuse, norm, rotate
from lineside.model.prepack import Packed, laid_out, product
from lineside.model.vlm import VLM
from lineside.progress import say

MANY = 32  # rows from which compiling pays; fewer are answered before the compiler is done
FEWEST = 8  # rows down to which the compiled step goes on once it is there


def can_compile(vlm: VLM, rows: int) -> bool:
    """Whether decoding so many rows is worth the compiler's seconds: on a CPU, nothing to differentiate, and layers as
    `layer_step` has them."""
    gated = getattr(vlm.language_model.config, "hidden_act", "") == "silu"
    return rows >= MANY and gated and vlm.device.type == "cpu" and not torch.is_grad_enabled() and can_fuse()


class Layer(NamedTuple):
    """Weights of a decoder layer in the order of their use; `q_norm` and `k_norm` are Qwen3's."""

    before: Tensor
    qkv: Packed
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Packed
    between: Tensor
    gate_up: Packed
    down: Packed


class Sizes(NamedTuple):
    """What all layers of an LM share."""

    heads: int
    kv_heads: int
    scale: float
    eps: float


class CompiledStep:
    """`VLM.decode` for one new token a row. Holds laid-out copies of the weights, which must not change meanwhile."""

    def __init__(self, vlm: VLM, rows: int) -> None:
        self._vlm, self._lm = vlm, vlm.language_model
        config: Any = self._lm.config
        layers: Any = self._lm.layers
        scale, eps = layers[0].self_attn.scaling, layers[0].input_layernorm.variance_epsilon
        self._sizes = Sizes(config.num_attention_heads, config.num_key_value_heads, scale, eps)
        self._layers = [_layer(layer, rows) for layer in layers]

    def __call__(self, embeds: Tensor, positions: Tensor, plan: Decoding) -> Tensor:
        """(R, D) embeddings at (R,) positions -> (R, D) hidden states after the final norm."""
        if not _pays(plan):
            return self._vlm.decode(embeds, positions, plan)
        rotary: Any = self._lm.rotary_emb
        # Groups and rows as dimensions of their own: compiled loops would else divide one by the other at each turn.
        by_group = partial(torch.unflatten, dim=0, sizes=(plan.groups, plan.rows))
        x, (cos, sin) = by_group(embeds), (by_group(table[0]) for table in rotary(embeds[None], positions[None]))
        column, own_bias = plan.column, by_group(plan.own_bias)[..., : plan.column]
        for index, layer in enumerate(self._layers):
            prefix = plan.keys[index], plan.values[index], plan.prefix_bias
            own_keys, own_values = by_group(plan.own_keys[index]), by_group(plan.own_values[index])
            own = own_keys[..., :column, :], own_values[..., :column, :], own_bias
            if index == 0:
                _vary(x, cos, sin, *prefix, *own)
            x, key, value = _compiled()(x, cos, sin, layer, self._sizes, *prefix, *own)
            plan.write(index, key.flatten(0, 1), value.flatten(0, 1))
        final: Any = self._lm.norm
        return final(x.flatten(0, 1))


def _pays(plan: Decoding) -> bool:
    """Whether a step is one that the compiled layer is for; sizes of 1 are compiled apart, which few rows must not
    cause."""
    rows = plan.groups * plan.rows
    wide = plan.groups > 1 and plan.rows > 1
    return rows >= (FEWEST if wide else MANY) and plan.prefix.shape[1] > 1


def layer_step(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layer: Layer,
    sizes: Sizes,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    prefix_bias: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(G, m, D) -> (G, m, D) and the token's key and value, (G, m, K, E) each.

    `cos`, `sin` (G, m, E); of the prefix (G, K, E, P), (G, K, P, E) and (G, P); of the row's earlier tokens
    (G, m, K, T, E) twice and (G, m, T). One softmax runs over the prefix, the earlier tokens and the token itself. A
    row's own keys are summed over and not multiplied as matrices: one query a key leaves a product nothing to reuse.
    """
    heads, kv_heads, scale, eps = sizes
    each = heads // kv_heads
    q, k, v = (
        product(norm(x, layer.before, eps), layer.qkv)
        .unflatten(-1, (heads + 2 * kv_heads, -1))
        .split([heads, kv_heads, kv_heads], 2)
    )
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = norm(q, layer.q_norm, eps), norm(k, layer.k_norm, eps)
    q, k = rotate(q, cos[:, :, None], sin[:, :, None]), rotate(k, cos[:, :, None], sin[:, :, None])
    q = (q * scale).float().unflatten(2, (kv_heads, each)).transpose(1, 2).flatten(2, 3)  # (G, K, m * H/K, E)
    key, value, own_keys, own_values = (t.float().transpose(1, 2) for t in (k, v, own_keys, own_values))  # K before m

    # The product comes first: its input is then a tensor in memory, where the sums would else rotate it for each key.
    prefix = (q @ prefix_keys.float() + prefix_bias[:, None, None]).unflatten(2, (-1, each))  # (G, K, m, H/K, P)
    q = q.unflatten(2, (-1, each))
    own = (q[..., None, :] * own_keys[:, :, :, None]).sum(-1) + own_bias[:, None, :, None]  # (G, K, m, H/K, T)
    this = (q * key[:, :, :, None]).sum(-1, keepdim=True)  # (G, K, m, H/K, 1)
    top = torch.maximum(torch.maximum(prefix.amax(-1, keepdim=True), own.amax(-1, keepdim=True)), this)
    prefix, own, this = torch.exp(prefix - top), torch.exp(own - top), torch.exp(this - top)
    total = prefix.sum(-1, keepdim=True) + own.sum(-1, keepdim=True) + this
    mixed = (own[..., None] * own_values[:, :, :, None]).sum(4) + this * value[:, :, :, None]
    mixed = mixed + (prefix.flatten(2, 3) @ prefix_values.float()).unflatten(2, (-1, each))
    mixed = (mixed / total).transpose(1, 2).flatten(2)  # (G, m, H * E)

    x = x + product(mixed.to(x.dtype), layer.out)
    gate, up = product(norm(x, layer.between, eps), layer.gate_up).chunk(2, dim=-1)
    return x + product(F.silu(gate) * up, layer.down), k, v


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    say("compiling the decoding step: some 15 s, less where it has been done before")
    allow_recompiling()
    return torch.compile(layer_step)


def _vary(x: Tensor, cos: Tensor, sin: Tensor, *held: Tensor) -> None:
    """Tell the compiler which sizes change from step to step: rows, groups, tokens. All others it may build on."""
    changing = ((0, 3), (0, 2), (0, 1), (0, 1, 3), (0, 1, 3), (0, 1, 2))
    lengths = (x, (0, 1)), (cos, (0, 1)), (sin, (0, 1)), *zip(held, changing)
    for tensor, sizes in lengths:
        for size in sizes:
            torch._dynamo.maybe_mark_dynamic(tensor, size)


def _layer(layer: Any, rows: int) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if module is None else module.weight for module in norms)
    return Layer(
        before=layer.input_layernorm.weight,
        qkv=laid_out([attention.q_proj, attention.k_proj, attention.v_proj], rows),
        q_norm=q_norm,
        k_norm=k_norm,
        out=laid_out([attention.o_proj], rows),
        between=layer.post_attention_layernorm.weight,
        gate_up=laid_out([mlp.gate_proj, mlp.up_proj], rows),
        down=laid_out([mlp.down_proj], rows),
    )
