"""Decoding steps of a Llama- or Qwen-type decoder on a CPU.

A decoding step in PyTorch is thousands of small operations, and calling them takes longer than computing them. Each of
them also gives the interpreter's lock away, and waits for it beside a busy thread. Here a step is one call of our own
C++ (step.cpp): embeddings, layers, head, choice of the tokens. It reads weights that are laid out once
(packed_linear.py). A row gets the same numbers whatever the number of rows, so no answer depends on the questions
decoded beside it.

Shapes: G prefixes of P tokens, R rows with T own tokens each, K key heads, E head width, D width of the LM.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.backends import cpu_ops
from lineside.backends.adapters import is_lora, table_of
from lineside.backends.lm import LanguageModel
from lineside.backends.packed_linear import pack_linears, quantise_linears
from lineside.backends.reference import Chosen, Steps, Written
from lineside.backends.shapes import rounded
from lineside.types import Weights

ROUND = 16  # rows are padded to a multiple of (the next power of two) / ROUND: at most an eighth more
ROOM = 64  # new tokens that the buffers can hold before they grow: most answers are shorter, and buffers are large
POSITIONS = 1024  # positions whose rotations are laid out at first


_COUNT, _NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _all(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# The structures of step.cpp: their members in the same order.


class _Linear(ctypes.Structure):
    _fields_ = [
        *_all(_COUNT, "inputs outputs"),
        *_all(_ADDRESS, "blocks int8 scale sums added weight bias"),
        ("packed", _COUNT),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [*_all(_ADDRESS, "before q_norm k_norm between"), *_all(_Linear, "qkv out gate_up down")]


class _Model(ctypes.Structure):
    _fields_ = [
        *_all(_COUNT, "layers D H K E padded F V banned"),
        *_all(_NUMBER, "scale eps"),
        *_all(_ADDRESS, "layer norm"),
        ("head", _Linear),
        *_all(_ADDRESS, "embeddings cosine sine wrap address_of free packed product product_added"),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *_all(_COUNT, "rows P T"),
        *_all(_ADDRESS, "prefix_length own_length group slot prefix_keys prefix_values own_keys own_values"),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *_all(_COUNT, "rows padded caches"),
        *_all(_ADDRESS, "cache tokens positions hidden temperature uniform chosen logprob logits"),
    ]


class CpuDecoding:
    """The KV cache of our own decoding steps: that of one tree.

    Keys and values are in the LM's number format, lengths take the place of masks, and a row's own tokens are
    left-aligned. Keys are stored in tiles of 16 tokens, as decoding.h reads them. A row names its prefix and its
    buffer, so a row that ends costs nothing from then on. Its buffer is let go when the others grow.
    """

    def __init__(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> None:
        """See reference.Steps.cache."""
        flat = [row for rows in tails for row in rows]
        self.prefix_length, self.own_length = _lengths(shared), _lengths(flat)
        self._group = np.array([g for g, rows in enumerate(tails) for _ in rows])  # the prefix of each row
        self._slot = np.arange(len(flat))  # the buffer of each row
        self._room, self._more = min(new, ROOM), max(new - ROOM, 0)
        prefix, own = _indices(shared), _indices(flat)
        tiles = _tiles(int(self.own_length.max()) + self._room)
        self.prefix = [_tiled(key, value, prefix) for key, value in kept]
        self.own = [_with_room(*_tiled(key, value, own), tiles) for key, value in kept]

    def __len__(self) -> int:
        """See Cache."""
        return len(self._slot)

    @functools.cached_property
    def structure(self) -> _Cache:
        """Where all of it lies, as step.cpp reads it. Raises ValueError if the buffers are full."""
        if not self._room:
            raise ValueError("the buffers are full: no room is left for a new token")
        (_, prefix_values), (_, own_values) = self.prefix[0], self.own[0]
        arrays = self.prefix_length, self.own_length, self._group, self._slot
        layers = [_addresses(t) for buffers in (self.prefix, self.own) for t in zip(*buffers)]
        found = _Cache(
            len(self), prefix_values.shape[2], own_values.shape[2], *(a.ctypes.data for a in arrays),
            *(ctypes.addressof(layer) for layer in layers),
        )  # fmt: skip
        found.held = layers
        return found

    def advance(self) -> None:
        """Count the new token of each row. If the buffers are now full and tokens are still to come, enlarge those that
        are still used."""
        self.own_length[self._slot] += 1
        self._room -= 1
        if self._room:
            return
        del self.structure
        if not self._more:
            return
        self._room = min(self._more, ROOM)
        self._more -= self._room
        self.own_length = self.own_length[self._slot]
        tiles, used = _tiles(int(self.own_length.max()) + self._room), torch.from_numpy(self._slot)
        for layer, (keys, values) in enumerate(self.own):
            self.own[layer] = _with_room(keys[used], values[used], tiles)
        self._slot = np.arange(len(self._slot))

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See Cache."""
        self._group, self._slot = self._group[rows], self._slot[rows]
        vars(self).pop("structure", None)


class CpuSteps(Steps):
    """Steps of an LM whose layers are linear maps, by one call each. Its weights are laid out here: if they change,
    make new ones (`Cpu` does). With a LoRA they are float32, and so is the computation: see `weight_of`."""

    def __init__(self, lm: LanguageModel, weights: Weights = "full") -> None:
        super().__init__(lm)
        decoder, config, head = lm.decoder, lm.decoder.config, cast(nn.Linear, lm.head)
        self.quantised = weights == "int8"
        self._stored = decoder.norm.weight.dtype  # of embeddings and KV cache
        adapted = any(map(is_lora, decoder.modules()))
        self._dtype = torch.float32 if self.quantised or adapted else self._stored
        self._held: list[Any] = []  # what the structures point to
        self._handles: list[int] = []
        attention = decoder.layers[0].self_attn
        width = attention.head_dim
        table, last = table_of(lm.embed), self._linear([head])
        layers = (_Layer * len(decoder.layers))(*map(self._layer, decoder.layers))
        self._model = _Model(
            len(layers), config.hidden_size, config.num_attention_heads, config.num_key_value_heads, width,
            width + -width % cpu_ops.TILE, config.intermediate_size, last.outputs, lm.banned,
            attention.scaling, decoder.norm.variance_epsilon, ctypes.addressof(layers),
            self._numbers(decoder.norm.weight), last, self._keep(table),
        )  # fmt: skip
        self._held.append(layers)
        self._tokens = len(table)
        for name, function in torch_functions().items():
            setattr(self._model, name, ctypes.cast(function, ctypes.c_void_p).value)
        self._positions = 0
        self._logits = self._room_for(0)  # of the last step
        weakref.finalize(self, _let_go, self._handles)

    def cache(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> CpuDecoding:
        """See Steps."""
        return CpuDecoding(kept, shared, tails, new)

    def head(self, hidden: Tensor) -> Tensor:
        """See Steps."""
        hidden = hidden.to(self._dtype).contiguous()
        logits = self._room_for(len(hidden))
        self._run(_Step(len(hidden), len(logits), hidden=hidden.data_ptr(), logits=logits.data_ptr()))
        return logits[: len(hidden)]

    def next(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        caches: Sequence[CpuDecoding],
        uniform: NDArray[np.float32],
        temperature: NDArray[np.float32],
    ) -> Written:
        """See Steps. Raises ValueError for a token outside the vocabulary, and for a cache that is full."""
        if positions.ndim == 2:  # triples (mRoPE): those of text are three times the same, and new tokens are text
            positions = positions[0]
        tokens, positions = np.ascontiguousarray(tokens), np.ascontiguousarray(positions)
        rows, last = sum(map(len, caches)), int(positions.max())
        if not tokens.shape == positions.shape == (rows,) or {tokens.dtype, positions.dtype} != {np.dtype(np.int64)}:
            raise ValueError(f"{tokens.shape} tokens at {positions.shape} positions for {rows} rows")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self._tokens or int(positions.min()) < 0:
            raise ValueError(f"a token outside the {self._tokens} of the vocabulary, or a position below 0")
        asked = [np.ascontiguousarray(array, np.float32) for array in (temperature, uniform)]
        if any(array.shape != (rows,) for array in asked):
            raise ValueError(f"{rows} rows, temperatures {asked[0].shape}, uniforms {asked[1].shape}")
        if last >= self._positions:
            self._rotations(last)
        if len(self._logits) != self._padded(rows):
            self._logits = self._room_for(rows)
        joined = (_Cache * len(caches))(*(cache.structure for cache in caches))
        given = _Step(rows, len(self._logits), len(caches), ctypes.addressof(joined), logits=self._logits.data_ptr())
        given.tokens, given.positions = tokens.ctypes.data, positions.ctypes.data
        given.temperature, given.uniform = (array.ctypes.data for array in asked)
        chosen = np.empty(rows, np.int64), np.empty(rows, np.float32)
        given.chosen, given.logprob = (array.ctypes.data for array in chosen)
        self._run(given)
        for cache in caches:
            cache.advance()
        return Written(chosen, self._logits)

    def choose(self, logits: Tensor, uniform: NDArray[np.float32], temperature: NDArray[np.float32]) -> Chosen:
        """See Steps."""
        return cpu_ops.choose(logits, uniform, temperature)

    def _run(self, given: _Step) -> None:
        cpu_ops.step(self._model, given, self._stored, self._dtype)

    def _padded(self, rows: int) -> int:
        return rows if self._dtype == torch.float32 else rounded(rows, ROUND)

    def _room_for(self, rows: int) -> Tensor:
        return torch.empty(self._padded(rows), self._model.V, dtype=self._dtype)

    def _rotations(self, last: int) -> None:
        """Lay out the rotations of positions up to `last`, and of some more."""
        self._positions = max(POSITIONS, 1 << last.bit_length())
        at = torch.arange(self._positions)[None]
        tables = self.lm.decoder.rotary_emb(torch.empty(0, dtype=self._dtype), at)
        self._tables = [table[0].contiguous() for table in tables]
        self._model.cosine, self._model.sine = (table.data_ptr() for table in self._tables)

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]  # only Qwen3 has them
        return _Layer(
            self._numbers(layer.input_layernorm.weight),
            *(None if module is None else self._numbers(module.weight) for module in norms),
            self._numbers(layer.post_attention_layernorm.weight),
            self._linear([attention.q_proj, attention.k_proj, attention.v_proj]),
            self._linear([attention.o_proj]),
            self._linear([mlp.gate_proj, mlp.up_proj]),
            self._linear([mlp.down_proj]),
        )

    def _linear(self, linears: list[nn.Linear]) -> _Linear:
        if self.quantised:
            laid_out = quantise_linears(linears)
            made = _Linear(laid_out.inputs, laid_out.outputs)
            made.int8, made.scale, made.sums = (self._keep(t) for t in laid_out[:3])
        else:
            laid_out = pack_linears(linears, self._dtype)
            made = _Linear(laid_out.inputs, laid_out.outputs, packed=laid_out.packed)
            if self._dtype == torch.bfloat16:
                made.weight = self._handle(laid_out.weight)
                made.bias = None if laid_out.bias is None else self._handle(laid_out.bias)
                return made
            made.blocks = self._keep(laid_out.weight)
        made.added = None if laid_out.bias is None else self._keep(laid_out.bias)
        return made

    def _numbers(self, weight: Tensor) -> int:
        return self._keep(weight.detach().to(self._dtype).contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._held.append(tensor)
        return tensor.data_ptr()

    def _handle(self, tensor: Tensor) -> int:
        aoti: Any = getattr(torch._C, "_aoti")  # noqa: B009 # it has no types
        (capsule,) = aoti.unsafe_alloc_void_ptrs_from_tensors([tensor])
        self._handles.append(_pointer(capsule, None))
        return self._handles[-1]


FUNCTIONS = {  # of PyTorch's C interface, by their names in step.cpp
    "wrap": "aoti_torch_create_tensor_from_blob",
    "address_of": "aoti_torch_get_data_ptr",
    "free": "aoti_torch_delete_tensor_object",
    "packed": "aoti_torch_cpu__linear_pointwise",
    "product": "aoti_torch_cpu_mm_out",
    "product_added": "aoti_torch_cpu_addmm_out",
}
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@functools.cache
def torch_functions() -> dict[str, Any]:
    """The functions of FUNCTIONS. A build of PyTorch without one of them lacks the name."""
    files = Path(torch.__path__[0], "lib").glob("*torch_cpu.*")
    library = next((ctypes.CDLL(str(file)) for file in files if file.suffix in (".so", ".dylib", ".dll")), None)
    return {name: getattr(library, symbol) for name, symbol in FUNCTIONS.items() if hasattr(library, symbol)}


def _let_go(handles: list[int]) -> None:
    for handle in handles:
        torch_functions()["free"](ctypes.c_void_p(handle))


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _lengths(lists: list[list[int]]) -> NDArray[np.int64]:
    return np.array([len(row) for row in lists])


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
