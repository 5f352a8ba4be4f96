"""Decoding steps of a Llama- or Qwen-type decoder on a CPU.

A decoding step in PyTorch is thousands of small operations, and calling them takes longer than computing them. Here a
layer is four matrix products with packed weights (packed_linear.py) and five calls of our own C++ (cpu_ops.py). A row
gets the same numbers whatever the number of rows, so no answer depends on the questions decoded beside it.

Shapes: G prefixes of P tokens, R rows with T own tokens each, N = R and padding, H query and K key heads, E head width,
D width of the LM.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.backends import cpu_ops
from lineside.backends.lm import LanguageModel
from lineside.backends.packed_linear import PackedLinear, pack_linears, product
from lineside.backends.reference import Cache
from lineside.backends.shapes import rounded

ROUND = 16  # rows are padded to a multiple of (the next power of two) / ROUND: at most an eighth more
ROOM = 64  # new tokens that the buffers can hold before they grow: most answers are shorter, and buffers are large


class CpuDecoding:
    """The KV cache of our own decoding steps (see reference.Cache).

    Keys and values are in the LM's number format, lengths take the place of masks, and a row's own tokens are
    left-aligned. Keys are stored in tiles of 16 tokens, as decoding.cpp reads them. A row names its prefix and its
    buffer, so a row that ends costs nothing from then on. Its buffer is let go when the others grow.
    """

    def __init__(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> None:
        """See reference.Steps."""
        flat = [row for rows in tails for row in rows]
        self.prefix_length, self.own_length = _lengths(shared), _lengths(flat)
        self._group = torch.tensor([g for g, rows in enumerate(tails) for _ in rows])  # the prefix of each row
        self._slot = torch.arange(len(flat))  # the buffer of each row
        self._room, self._more = min(new, ROOM), max(new - ROOM, 0)
        prefix, own = _indices(shared), _indices(flat)
        tiles = _tiles(int(self.own_length.max()) + self._room)
        self.prefix = [_tiled(key, value, prefix) for key, value in kept]
        self.own = [_with_room(*_tiled(key, value, own), tiles) for key, value in kept]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(N, H, E), (N, K, E), (N, K, E) -> (N, H, E), where the rows behind those that are kept are padding. Raises
        ValueError if the buffers are full."""
        if not self._room:
            raise ValueError("the buffers are full: no room is left for a new token")
        prefix, own = (*self.prefix[layer], self.prefix_length), (*self.own[layer], self.own_length)
        return cpu_ops.attend_one(query, key, value, scale, prefix, own, self._group, self._slot)

    def advance(self) -> None:
        """Count the new token of each row. If the buffers are now full and tokens are still to come, enlarge those that
        are still used."""
        self.own_length += 1
        self._room -= 1
        if self._room or not self._more:
            return
        self._room = min(self._more, ROOM)
        self._more -= self._room
        self.own_length = self.own_length[self._slot]
        tiles = _tiles(int(self.own_length.max()) + self._room)
        for layer, (keys, values) in enumerate(self.own):
            self.own[layer] = _with_room(keys[self._slot], values[self._slot], tiles)
        self._slot = torch.arange(len(self._slot))

    def keep(self, rows: Tensor) -> None:
        """See Cache."""
        self._group, self._slot = self._group[rows], self._slot[rows]


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


class Weights:
    """The LM's weights as a decoding step reads them: packed copies (packed_linear.py). If the model's weights change,
    make new ones (`Cpu` does)."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm, head = lm.decoder, cast(nn.Linear, lm.head)
        decoder = lm.decoder
        self._heads, self._kv_heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
        self._scale, self._eps = decoder.layers[0].self_attn.scaling, decoder.norm.variance_epsilon
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._head, self._banned = pack_linears([head]), lm.banned

    def hidden(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """(R, D) embeddings at (R,) positions -> (R, D) hidden states after the final norm."""
        rows, embeds, positions = len(embeds), _round(embeds), _round(positions)
        cos, sin = (table[0] for table in self._lm.rotary_emb(embeds[None], positions[None]))
        heads, kv_heads, x, delta = self._heads, self._kv_heads, embeds, None
        for index, layer in enumerate(self._layers):
            mixed = product(cpu_ops.norm(x, layer.before, self._eps, delta), layer.qkv)
            mixed = mixed.unflatten(1, (heads + 2 * kv_heads, -1))
            query_key, value = mixed.split([heads + kv_heads, kv_heads], 1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = query_key.split([heads, kv_heads], 1)
                query_key = torch.cat([self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)], dim=1)
            query, key = cpu_ops.rotate(query_key, cos, sin).split([heads, kv_heads], 1)
            delta = product(cache.attend(index, query, key, value, self._scale).flatten(1), layer.out)
            gate, up = product(cpu_ops.norm(x, layer.between, self._eps, delta), layer.gate_up).chunk(2, dim=1)
            delta = product(cpu_ops.gate(gate, up), layer.down)
        return cpu_ops.norm(x, self._lm.norm.weight, self._eps, delta)[:rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (R, V) in the LM's format."""
        logits = product(_round(hidden), self._head)[: len(hidden)]
        logits[:, self._banned] = float("-inf")
        return logits

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each head of (R, heads, E)."""
        return cpu_ops.norm(x.reshape(-1, x.shape[-1]), weight, self._eps).view(x.shape)


def _round(rows: Tensor) -> Tensor:
    """A copy of (R, ...) with zeros behind it up to a round number of rows. The matrix library builds a kernel for each
    new number of rows, and rows end at every step."""
    return F.pad(rows, (*(0, 0) * (rows.ndim - 1), 0, rounded(len(rows), ROUND) - len(rows)))


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


def _indices(lists: list[list[int]]) -> Tensor:
    """Index lists -> (n, width), padded with 0 to a multiple of TILE."""
    width = _tiles(max(map(len, lists))) * cpu_ops.TILE
    return torch.tensor([row + [0] * (width - len(row)) for row in lists], dtype=torch.long).view(len(lists), width)


def _tiles(tokens: int) -> int:
    return -(-tokens // cpu_ops.TILE)


def _tiled(key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, E), (N, K, E), (n, T) -> keys (n, K, T / 16, E, 16) and values (n, K, T, E), with E padded to a multiple
    of 16."""
    padding = (0, -key.shape[-1] % cpu_ops.TILE)
    keys, values = (F.pad(t[index], padding).transpose(1, 2) for t in (key, value))  # (n, K, T, E)
    tiles = index.shape[1] // cpu_ops.TILE
    return keys.unflatten(2, (tiles, cpu_ops.TILE)).transpose(-1, -2).contiguous(), values.contiguous()


def _with_room(keys: Tensor, values: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Keys and values as of `_tiled`, enlarged to `tiles` tiles if they have fewer."""
    added = max(tiles - keys.shape[2], 0)
    return F.pad(keys, (0, 0, 0, 0, 0, added)), F.pad(values, (0, 0, 0, added * cpu_ops.TILE))
