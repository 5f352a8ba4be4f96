"""The backend of a CUDA device: FlexAttention, log-probabilities in chunks, decoding as a CUDA graph.

No part of it was tried on a GPU yet, so each stage first compares the gradients of a small made-up pack with the
reference (`is_proven`). If they differ or a kernel cannot be built, it goes on with the reference's attention
(`PlainCuda`), and with the reference alone if those differ too. The parts run on a CPU too, uncompiled and without a
graph, and tests compare them there.

Shapes: N tokens of a pack, M targets, V vocabulary; G groups with a prefix of at most P tokens and m row slots each,
R = G * m slots, T columns for a row's own tokens; H query and K key heads, E head width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from lineside import runtime
from lineside.backends.fused_ops import compiled, fuse
from lineside.backends.lm import LanguageModel, Plan
from lineside.backends.reference import Reference, Steps
from lineside.runtime import upload

BLOCK = 128  # tokens of a block of FlexAttention
WIDTH = 16  # least head width of its kernel
CHUNK = 1024  # targets whose logits are in memory together: (M, V) in float32 would be gigabytes


class Cuda(Reference):
    """See Reference for the methods."""

    name = "cuda"
    compiles = True
    is_proven = False

    def fallback(self) -> Reference:
        """The same with the reference's attention."""
        return PlainCuda()

    def prepare(self, decoder: nn.Module) -> None:
        """Fuse norms, gates and rotations, by torch's compiler."""
        fuse(decoder)

    def plan(self, end: Tensor, size: int, device: torch.device, windows: Sequence[int | None] = ()) -> Plan:
        """FlexAttention; it knows no windows here, so the reference computes all layers of a model that has some."""
        return super().plan(end, size, device, windows) if any(windows) else FlexPlan(end, device)

    def logprobs(
        self, head: nn.Module, hidden: Tensor, target: Tensor, banned: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The reference's, chunk by chunk; backward computes the logits of a chunk again."""
        some = super().logprobs
        parts = [
            checkpoint(some, head, h, t, banned, temperature, use_reentrant=False)
            for h, t in zip(hidden.split(CHUNK), target.split(CHUNK))
        ]
        logprobs, entropy = (torch.cat(values) for values in zip(*parts))
        return logprobs, entropy

    def steps(self, lm: LanguageModel) -> Steps:
        """See Reference."""
        self.only_full("they are decoded on a CPU")
        return CudaSteps(lm)


class PlainCuda(Cuda):
    """What torch does not compile: attention and the operations of a layer are the reference's, while log-probabilities
    come in chunks and decoding has static buffers and a graph."""

    name = "cuda without FlexAttention"
    compiles = False
    prepare = Reference.prepare
    plan = Reference.plan

    def fallback(self) -> Reference:
        """The reference alone."""
        return Reference()


class CudaSteps(Steps):
    """Decoding with a graph. A step whose rows lie in several caches (serving) runs without one."""

    def cache(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> StaticDecoding:
        """See Steps."""
        return StaticDecoding(kept, shared, tails, new)

    def forward(self, embeds: Tensor, positions: Tensor, caches: Sequence[Any]) -> Tensor:
        """See Steps."""
        alone = len(caches) == 1
        return caches[0].run(self.lm, embeds, positions) if alone else super().forward(embeds, positions, caches)


class FlexPlan:
    """Attention of a pack with a block mask (FlexAttention, arXiv 2412.05496): blocks in which no token sees another
    are skipped."""

    def __init__(self, end: Tensor, device: torch.device) -> None:
        length = padded_length(len(end))
        self._padding = length - len(end)
        ends = torch.cat([end.cpu(), torch.arange(len(end), length)])  # a padding token sees only itself
        self._mask = tree_block_mask(ends, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes). Padding makes key and value contiguous,
        which the kernel needs. A narrow head is padded too: zeros add nothing to a product."""
        flex = compiled(flex_attention, dynamic=False) if query.device.type == "cuda" else flex_attention
        tokens, width = query.shape[2:]
        q, k, v = (F.pad(t, (0, max(0, WIDTH - width), 0, self._padding)).contiguous() for t in (query, key, value))
        out = flex(q, k, v, block_mask=self._mask, scale=scale, enable_gqa=True)
        return out[0, :, :tokens, :width].transpose(0, 1)


def padded_length(count: int) -> int:
    """A length of blocks that few packs differ in, so that few graphs are compiled: a multiple of a quarter of the next
    power of two. Padding blocks see only themselves and cost little."""
    step = max(BLOCK, (1 << max(count - 1, 1).bit_length()) // 4)
    return -(-count // step) * step


def tree_block_mask(end: Tensor, device: torch.device) -> BlockMask:
    """(N,) subtree ends on the CPU, N a multiple of BLOCK -> the block mask, by minima and maxima of blocks: without a
    mask of N x N, and equal to that of `create_block_mask`.

    A token i sees j where j <= i <= end[j]. A query block sees some of a key block if its last token is not before the
    first key, and the largest end is not before its first token; it sees all of it if its first token is not before the
    last key, and the smallest end is not before its last token. Subtrees nest, so no block is kept in vain."""
    blocks = end.view(-1, BLOCK)
    first = torch.arange(len(blocks)) * BLOCK
    last = first + BLOCK - 1
    largest, smallest = blocks.amax(1), blocks.amin(1)
    some = (first <= last[:, None]) & (largest >= first[:, None])
    whole = (last <= first[:, None]) & (smallest >= last[:, None])
    ends = upload(end, device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query <= ends[key])

    def ordered(mask: Tensor) -> tuple[Tensor, Tensor]:
        """For each query block the number of its key blocks, and all key blocks with its own first."""
        counts, order = mask.sum(1), mask.int().argsort(dim=1, descending=True, stable=True)
        return upload(counts.int()[None, None], device), upload(order.int()[None, None], device)

    part, full = ordered(some & ~whole), ordered(whole)
    return BlockMask.from_kv_blocks(*part, *full, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(len(end), len(end)))


class StaticDecoding:
    """A KV cache in buffers that never move (see reference.Cache), so that a step is one CUDA graph.

    A group's prefix is attended to in one product (after Hydragen, arXiv 2402.05099). A row that ends keeps its slot.
    When the others fit into half as many slots, they move to smaller buffers, and the graph is made anew: so at most
    log2(R) times, since that takes longer than a step."""

    def __init__(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> None:
        """See Steps.cache."""
        device = kept[0][0].device
        self.slots = max(map(len, tails))
        prefix, self.prefix_bias = _padded(shared, left=False, device=device)  # (G, P)
        flat = [row for rows in tails for row in rows + [[]] * (self.slots - len(rows))]
        own, bias = _padded(flat, left=True, device=device)  # (R, tail)
        self.own_bias = F.pad(bias, (0, new), value=float("-inf"))  # (R, T)
        self.column = torch.full((1,), own.shape[1], device=device)  # where the next token is written
        self.prefixes = [tuple(t[prefix].transpose(1, 2).contiguous() for t in layer) for layer in kept]  # (G, K, P, E)
        self.own = [tuple(F.pad(t[own].transpose(1, 2), (0, 0, 0, new)) for t in layer) for layer in kept]
        places = [g * self.slots + i for g, rows in enumerate(tails) for i in range(len(rows))]
        self._places = np.array(places)  # (A,) the slot of each row that goes on
        self.place = upload(torch.from_numpy(self._places), device)  # the same on the device
        self._graph: tuple[Tensor, Tensor, Callable[[], Tensor]] | None = None  # what a step reads, and the step

    def run(self, lm: LanguageModel, embeds: Tensor, positions: Tensor) -> Tensor:
        """(A, D) embeddings at (A,) or (3, A) positions -> (A, D) hidden states after the final norm."""
        slots = len(self.own_bias)
        if self._graph is None:
            x, at = embeds.new_zeros(slots, embeds.shape[1]), positions.new_zeros(*positions.shape[:-1], slots)
            self._graph = x, at, runtime.graphed(lambda: lm.hidden(x, at, self), embeds.device)
        x, at, step = self._graph
        x.index_copy_(0, self.place, embeds)
        at.index_copy_(-1, self.place, positions)
        return step()[self.place]

    def advance(self) -> None:
        """See Cache."""
        self.column += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, A, E), (1, K, A, E), (1, K, A, E) -> (A, H, E), of the rows that go on or of all R slots."""
        slots = len(self.own_bias)
        if query.shape[2] < slots:
            place = lambda t: t.new_zeros(*t.shape[:2], slots, t.shape[3]).index_copy(2, self.place, t)  # noqa: E731
            return self.attend(layer, place(query), place(key), place(value), scale)[self.place]
        keys, values = self.prefixes[layer]
        own_keys, own_values = self.own[layer]
        self.own_bias.index_fill_(1, self.column, 0.0)
        for buffer, new in ((own_keys, key), (own_values, value)):
            buffer.index_copy_(2, self.column, new[0].transpose(0, 1)[:, :, None])
        groups, kv_heads, prefix, _ = keys.shape
        q = (query[0].transpose(0, 1) * scale).unflatten(1, (kv_heads, -1))  # (R, K, H/K, E)
        together = q.unflatten(0, (groups, self.slots)).transpose(1, 2).flatten(2, 3)  # (G, K, m * H/K, E)
        shared = (together @ keys.transpose(-1, -2)).float() + self.prefix_bias[:, None, None]
        shared = shared.unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)  # (R, K, H/K, P)
        mine = (q @ own_keys.transpose(-1, -2)).float() + self.own_bias[:, None, None]
        weights = torch.cat([shared, mine], dim=-1).softmax(-1).to(values.dtype)
        shared, mine = weights.split([prefix, own_keys.shape[2]], dim=-1)
        shared = shared.unflatten(0, (groups, self.slots)).transpose(1, 2).flatten(2, 3)  # (G, K, m * H/K, P)
        out = (shared @ values).unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)  # (R, K, H/K, E)
        return (out + mine @ own_values).flatten(1, 2)

    def __len__(self) -> int:
        """See Cache."""
        return len(self.place)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See Cache. Nothing waits for the device: it is known here which slots go on."""
        self._places, device = self._places[rows], self.place.device
        by_group: dict[int, list[int]] = {}
        for slot in self._places.tolist():
            by_group.setdefault(slot // self.slots, []).append(slot)
        width = max(map(len, by_group.values()))
        if 2 * len(by_group) * width > len(self.own_bias):
            self.place = upload(torch.from_numpy(self._places), device)
            return
        groups = upload(torch.tensor(list(by_group)), device)
        padded = [slot for rows in by_group.values() for slot in rows + rows[:1] * (width - len(rows))]
        index = upload(torch.tensor(padded), device)
        self.prefix_bias, self.own_bias = self.prefix_bias[groups], self.own_bias[index]
        self.prefixes = [tuple(t[groups] for t in layer) for layer in self.prefixes]
        self.own = [tuple(t[index] for t in layer) for layer in self.own]
        places = [g * width + i for g, rows in enumerate(by_group.values()) for i in range(len(rows))]
        self.slots, self._places, self._graph = width, np.array(places), None
        self.place = upload(torch.from_numpy(self._places), device)


def _padded(lists: list[list[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index lists -> (n, width), padded with 0 on the left or right, and a float bias that is -inf on the padding."""
    width = max(map(len, lists))
    index, bias = torch.zeros(len(lists), width, dtype=torch.long), torch.full((len(lists), width), float("-inf"))
    for i, row in enumerate(lists):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        index[i, place], bias[i, place] = torch.tensor(row, dtype=torch.long), 0.0
    return upload(index, device), upload(bias, device)
