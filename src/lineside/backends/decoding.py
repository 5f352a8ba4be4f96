"""The KV cache of decoding: the prefix of each group once, and static buffers for each row's own keys and values.

All rows of a group attend to the prefix in one matrix product (after Hydragen, arXiv 2402.05099). This is the
reference; cpu_decoder.py computes the same faster on a CPU with a C++ compiler.

Shapes: A rows that are alive; G groups, each with a shared prefix of at most P tokens and m row slots; R = G * m slots,
of which A are used; T columns for a row's own tokens (the rest of its prompt, right-aligned, then its response); H
query and K key heads, E head width.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

COMPACT_AT = 0.6  # rebuild the buffers when less than this share of the slots is alive


class Decoding:
    """Plan for one new token a row: one product with the shared prefix for each group, one with the row's own tokens
    for each row."""

    def __init__(
        self,
        kept: list[tuple[Tensor, Tensor]],
        shared: list[list[int]],
        tails: list[list[list[int]]],
        new: int,
    ) -> None:
        """`kept`: for each layer the keys and values (N, K, E) of the prefilled pack. `shared[g]`: flat indices of the
        prefix of group g. `tails[g]`: for each of its rows, the flat indices of the prompt tokens that only this row
        has. `new`: number of columns for the response. Rows are numbered group by group."""
        device = kept[0][0].device
        width = _width([len(rows) for rows in tails])
        shared = [prefix for prefix, rows in zip(shared, tails) for _ in range(0, len(rows), width)]
        tails = _cut(tails, width)
        self.groups, self.rows = len(shared), max(len(rows) for rows in tails)
        self.place = _places(tails, self.rows, device)  # (A,) the slot of each row that is alive
        self.prefix, self.prefix_bias = _padded(shared, left=False, device=device)  # (G, P)
        flat = [row for rows in tails for row in rows + [[]] * (self.rows - len(rows))]
        tail, tail_bias = _padded(flat, left=True, device=device)  # (R, tail)
        self.start = tail.shape[1]
        self.own_bias = torch.cat([tail_bias, torch.zeros(len(flat), new, device=device)], dim=1)  # (R, T)
        self.column = self.start  # the first not yet written
        self.keys, self.values, self.own_keys, self.own_values = [], [], [], []
        # On a CPU, products of a few queries with a few keys are 2 to 4 times as fast in float32 as in bf16.
        wide = torch.float32 if device.type == "cpu" else kept[0][0].dtype
        for key, value in kept:
            self.keys.append(key[self.prefix].permute(0, 2, 3, 1).to(wide).contiguous())  # (G, K, E, P)
            self.values.append(value[self.prefix].permute(0, 2, 1, 3).to(wide).contiguous())  # (G, K, P, E)
            for store, source in ((self.own_keys, key), (self.own_values, value)):
                shape = len(flat), source.shape[1], self.start + new, source.shape[2]
                buffer = source.new_zeros(shape, dtype=wide)  # (R, K, T, E)
                buffer[:, :, : self.start] = source[tail].transpose(1, 2)
                store.append(buffer)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, A, E), (1, K, A, E), (1, K, A, E) -> (A, H, E)."""
        slots = self.groups * self.rows
        query, key, value = (
            t.new_zeros(*t.shape[:2], slots, t.shape[3]).index_copy(2, self.place, t) for t in (query, key, value)
        )
        _, heads, _, width = query.shape
        kv_heads, stop = key.shape[1], self.column + 1
        self.own_keys[layer][:, :, self.column] = key[0].transpose(0, 1)
        self.own_values[layer][:, :, self.column] = value[0].transpose(0, 1)
        q = query[0].transpose(0, 1).reshape(self.groups, self.rows, kv_heads, heads // kv_heads, width) * scale
        by_group = q.transpose(1, 2).reshape(self.groups, kv_heads, -1, width)  # (G, K, m * H/K, E)
        prefix = by_group.to(self.keys[layer].dtype) @ self.keys[layer] + self.prefix_bias[:, None, None]
        prefix = prefix.view(self.groups, kv_heads, self.rows, -1, self.prefix.shape[1])
        prefix = prefix.transpose(1, 2).flatten(0, 1)  # (R, K, H/K, P)
        own_keys, own_values = self.own_keys[layer][:, :, :stop], self.own_values[layer][:, :, :stop]
        by_row = q.flatten(0, 1).to(own_keys.dtype)  # (R, K, H/K, E)
        own = (by_row @ own_keys.transpose(-1, -2)).float() + self.own_bias[:, None, None, :stop]
        weights = torch.softmax(torch.cat([prefix.float(), own], dim=-1), dim=-1)
        shared, mine = weights.split([prefix.shape[-1], stop], dim=-1)
        shared = shared.to(self.values[layer].dtype).reshape(self.groups, self.rows, kv_heads, -1, prefix.shape[-1])
        out = shared.transpose(1, 2).flatten(2, 3) @ self.values[layer]  # (G, K, m * H/K, E)
        out = out.view(self.groups, kv_heads, self.rows, -1, width).transpose(1, 2).flatten(0, 1)
        out = (out + mine.to(own_values.dtype) @ own_values).reshape(slots, heads, width)
        return out[self.place].to(value.dtype)

    def advance(self) -> None:
        """Count the new token of each row."""
        self.column += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only: (A',) ascending indices of the A rows, at least one. When few slots are still
        used, the buffers are rebuilt without the others."""
        self.place = self.place[rows.to(self.place.device)]
        if len(self.place) < COMPACT_AT * self.groups * self.rows:
            self._compact()

    def _compact(self) -> None:
        by_group: dict[int, list[int]] = {}
        for slot in self.place.tolist():
            by_group.setdefault(slot // self.rows, []).append(slot)
        kept = _cut(list(by_group.values()), _width([len(slots) for slots in by_group.values()]))
        width, device = max(map(len, kept)), self.place.device
        groups = torch.tensor([slots[0] // self.rows for slots in kept], device=device)
        padded = [slot for slots in kept for slot in slots + slots[:1] * (width - len(slots))]
        index = torch.tensor(padded, device=device)
        self.prefix, self.prefix_bias = self.prefix[groups], self.prefix_bias[groups]
        self.own_bias = self.own_bias[index]
        self.keys, self.values = [k[groups] for k in self.keys], [v[groups] for v in self.values]
        for buffers in (self.own_keys, self.own_values):
            for layer, old in enumerate(buffers):
                new = old.new_empty(len(index), *old.shape[1:])
                new[:, :, : self.column] = old[:, :, : self.column].index_select(0, index)
                buffers[layer] = new
        self.groups, self.rows, self.place = len(kept), width, _places(kept, width, device)


def _places(groups: list[list[Item]], width: int, device: torch.device) -> Tensor:
    """The slot of each row, with `width` slots for each group. Those at the end of a short group are never read."""
    slots = [g * width + j for g, rows in enumerate(groups) for j in range(len(rows))]
    return torch.tensor(slots, device=device)


def _width(sizes: list[int]) -> int:
    """The number of row slots a group should have, for groups of these sizes.

    All groups get the same number of slots; larger groups are cut. With too many slots, most are padding. With too few,
    a cut group holds its prefix several times, and a prefix costs about as much as a row. This returns the cheapest.
    """
    return min(range(1, max(sizes) + 1), key=lambda width: sum(-(-size // width) for size in sizes) * (width + 1))


def _cut(groups: list[list[Item]], width: int) -> list[list[Item]]:
    """The groups, cut into pieces of at most `width`."""
    return [group[i : i + width] for group in groups for i in range(0, len(group), width)]


def _padded(lists: list[list[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index lists -> (n, width), padded with 0 on the left or right, and a float bias that is -inf on the padding."""
    width = max(map(len, lists))
    index = torch.zeros(len(lists), width, dtype=torch.long)
    bias = torch.full((len(lists), width), float("-inf"))
    for i, row in enumerate(lists):
        if row:
            place = slice(width - len(row), width) if left else slice(0, len(row))
            index[i, place] = torch.tensor(row)
            bias[i, place] = 0.0
    return index.to(device), bias.to(device)
