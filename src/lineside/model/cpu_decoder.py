"""Decoding steps of a Llama- or Qwen-type decoder on a CPU.

A decoding step in PyTorch is thousands of small operations, and calling them takes longer than computing them. Here a
layer is four matrix products with packed weights (packed_linear.py) and five calls of our own C++ (cpu_ops.py). The
reference is transformers' layers with `Decoding.attend`, which also decode on a GPU and where there is no compiler. A
row gets the same numbers whatever the number of rows, so no answer depends on the questions decoded beside it.

Shapes as in decoding.py: G groups of m rows, R = G * m, P prefix tokens, T own tokens, H query and K key heads, E head
width; D width of the LM.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lineside.model import cpu_ops
from lineside.model.decoding import kept_of
from lineside.model.fused_ops import can_fuse
from lineside.model.packed_linear import PackedLinear, pack_linears, product
from lineside.model.vlm import VLM

ROOM = 64  # new tokens that the buffers can hold before they grow: most answers are shorter, and buffers are large


def use_cpu_decoder(vlm: VLM) -> bool:
    """Whether a model is decoded here: on a CPU with a C++ compiler, without gradients, with a SiLU gate in its
    layers."""
    gated = getattr(vlm.language_model.config, "hidden_act", "") == "silu"
    return gated and cpu_ops.can_run_inference(vlm.model.lm_head.weight) and can_fuse(vlm.device)


def cpu_decoder_of(vlm: VLM) -> CpuDecoder:
    """The decoder of a model. It is kept until a weight changes. If any weight trains, a new one is built each time."""
    weights = [*vlm.language_model.parameters(), *vlm.model.lm_head.parameters()]
    if any(weight.requires_grad for weight in weights):
        return CpuDecoder(vlm)
    state = tuple((weight.data_ptr(), weight._version) for weight in weights)
    if vlm.held_decoder is None or vlm.held_decoder[0] != state:
        vlm.held_decoder = state, CpuDecoder(vlm)
    return vlm.held_decoder[1]


class CpuDecoding:
    """The KV cache of `CpuDecoder`, with the methods of `Decoding`.

    Unlike there, keys and values are in the LM's number format, lengths take the place of masks, and a row's own tokens
    are left-aligned. Keys are stored in tiles of 16 tokens, as decoding.cpp reads them.
    """

    def __init__(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> None:
        """The arguments are those of `Decoding`."""
        self.groups, self.rows = len(shared), max(len(rows) for rows in tails)
        flat = [row for rows in tails for row in rows + [[]] * (self.rows - len(rows))]
        self.prefix_length, self.own_length = _lengths(shared), _lengths(flat)
        self._room, self._more = min(new, ROOM), max(new - ROOM, 0)
        prefix, own = _indices(shared, 0), _indices(flat, self._room)
        self.prefix = [_tiled(key, value, prefix) for key, value in kept]
        self.own = [_tiled(key, value, own) for key, value in kept]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(R, H, E), (R, K, E), (R, K, E) -> (R, H, E). Raises ValueError if the buffers are full."""
        if not self._room:
            raise ValueError("the buffers are full: no room is left for a new token")
        prefix, own = (*self.prefix[layer], self.prefix_length), (*self.own[layer], self.own_length)
        return cpu_ops.attend_one(query, key, value, scale, prefix, own)

    def advance(self) -> None:
        """Count the new token of each row. If the buffers are now full and tokens are still to come, enlarge them."""
        self.own_length += 1
        self._room -= 1
        if not self._room and self._more:
            self._room = min(self._more, ROOM)
            self._more -= self._room
            tiles = _tiles(int(self.own_length.max()) + self._room)
            for layer, (keys, values) in enumerate(self.own):
                added = max(tiles - keys.shape[2], 0)
                self.own[layer] = F.pad(keys, (0, 0, 0, 0, 0, added)), F.pad(values, (0, 0, 0, added * cpu_ops.TILE))

    def select(self, slots: list[list[int]]) -> None:
        """The same as `Decoding.select`."""
        groups, index = kept_of(slots, self.rows, self.own_length.device)
        self.prefix_length, self.own_length = self.prefix_length[groups], self.own_length[index]
        self.prefix = [(keys[groups], values[groups]) for keys, values in self.prefix]
        for layer, (keys, values) in enumerate(self.own):
            self.own[layer] = keys[index], values[index]
        self.groups, self.rows = len(slots), len(index) // len(slots)


class Layer(NamedTuple):
    """Weights of a decoder layer in the order of their use. Only Qwen3 has `q_norm` and `k_norm`."""

    before: Tensor
    qkv: PackedLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: PackedLinear
    between: Tensor
    gate_up: PackedLinear
    down: PackedLinear


class CpuDecoder:
    """`VLM.decode` and `VLM.narrow_logits` for one new token a row.

    It holds packed copies of the weights: if the model's weights change, make a new one (`cpu_decoder_of` does).
    """

    def __init__(self, vlm: VLM) -> None:
        self._lm: Any = vlm.language_model
        self._heads, self._kv_heads = self._lm.config.num_attention_heads, self._lm.config.num_key_value_heads
        self._scale, self._eps = self._lm.layers[0].self_attn.scaling, self._lm.norm.variance_epsilon
        self._layers = [_layer(layer) for layer in self._lm.layers]
        self._head, self._banned = pack_linears([vlm.model.lm_head]), vlm.render.image_id

    def __call__(self, embeds: Tensor, positions: Tensor, plan: CpuDecoding) -> Tensor:
        """(R, D) embeddings at (R,) positions -> (R, D) hidden states after the final norm."""
        cos, sin = (table[0] for table in self._lm.rotary_emb(embeds[None], positions[None]))
        heads, kv_heads, x, delta = self._heads, self._kv_heads, embeds.clone(), None
        for index, layer in enumerate(self._layers):
            mixed = product(cpu_ops.norm(x, layer.before, self._eps, delta), layer.qkv)
            mixed = mixed.unflatten(1, (heads + 2 * kv_heads, -1))
            query_key, value = mixed.split([heads + kv_heads, kv_heads], 1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = query_key.split([heads, kv_heads], 1)
                query_key = torch.cat([self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)], dim=1)
            query, key = cpu_ops.rotate(query_key, cos, sin).split([heads, kv_heads], 1)
            delta = product(plan.attend(index, query, key, value, self._scale).flatten(1), layer.out)
            gate, up = product(cpu_ops.norm(x, layer.between, self._eps, delta), layer.gate_up).chunk(2, dim=1)
            delta = product(cpu_ops.gate(gate, up), layer.down)
        return cpu_ops.norm(x, self._lm.norm.weight, self._eps, delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (R, V) in the LM's format."""
        logits = product(hidden, self._head)
        logits[:, self._banned] = float("-inf")
        return logits

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each head of (R, heads, E)."""
        return cpu_ops.norm(x.reshape(-1, x.shape[-1]), weight, self._eps).view(x.shape)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if module is None else module.weight for module in norms)
    return Layer(
        before=layer.input_layernorm.weight,
        qkv=pack_linears([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=q_norm,
        k_norm=k_norm,
        out=pack_linears([attention.o_proj]),
        between=layer.post_attention_layernorm.weight,
        gate_up=pack_linears([mlp.gate_proj, mlp.up_proj]),
        down=pack_linears([mlp.down_proj]),
    )


def _lengths(lists: list[list[int]]) -> Tensor:
    return torch.tensor([len(row) for row in lists])


def _indices(lists: list[list[int]], new: int) -> Tensor:
    """Index lists -> (n, width), padded with 0. The width is a multiple of TILE with room for `new` more tokens."""
    width = _tiles(max(map(len, lists)) + new) * cpu_ops.TILE
    return torch.tensor([row + [0] * (width - len(row)) for row in lists])


def _tiles(tokens: int) -> int:
    return -(-tokens // cpu_ops.TILE)


def _tiled(key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, E), (N, K, E), (n, T) -> keys (n, K, T / 16, E, 16) and values (n, K, T, E), with E padded to a multiple
    of 16."""
    padding = (0, -key.shape[-1] % cpu_ops.TILE)
    keys, values = (F.pad(t[index], padding).transpose(1, 2) for t in (key, value))  # (n, K, T, E)
    return keys.unflatten(2, (-1, cpu_ops.TILE)).transpose(-1, -2).contiguous(), values.contiguous()
