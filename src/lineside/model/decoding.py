"""The KV cache of decoding: the prefix of each group once, and static buffers for each row's own keys and values.

All rows of a group attend to the prefix in one matrix product (after Hydragen, arXiv 2402.05099). This is the
reference; cpu_decoder.py computes the same faster on a CPU with a C++ compiler.

Shapes: G groups, each with a shared prefix of at most P tokens and m rows; R = G * m row slots; T columns for a row's
own tokens (the rest of its prompt, right-aligned, then its response); H query and K key heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        has. `new`: number of columns for the response."""
        device = kept[0][0].device
        self.groups, self.rows = len(shared), max(len(rows) for rows in tails)
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
        """(1, H, R, E), (1, K, R, E), (1, K, R, E) -> (R, H, E)."""
        _, heads, slots, width = query.shape
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
        return (out + mine.to(own_values.dtype) @ own_values).reshape(slots, heads, width).to(value.dtype)

    def advance(self) -> None:
        """Count the new token of each row."""
        self.column += 1

    def select(self, slots: list[list[int]]) -> None:
        """Keep only these row slots. `slots` lists them by new group: no group is empty, and all slots of a new group
        come from one old group. Shorter groups are padded with a repeat of their first row."""
        groups, index = kept_of(slots, self.rows, self.prefix.device)
        self.prefix, self.prefix_bias = self.prefix[groups], self.prefix_bias[groups]
        self.own_bias = self.own_bias[index]
        self.keys, self.values = [k[groups] for k in self.keys], [v[groups] for v in self.values]
        for buffers in (self.own_keys, self.own_values):
            for layer, old in enumerate(buffers):
                new = old.new_empty(len(index), *old.shape[1:])
                new[:, :, : self.column] = old[:, :, : self.column].index_select(0, index)
                buffers[layer] = new
        self.groups, self.rows = len(slots), len(index) // len(slots)


def kept_of(slots: list[list[int]], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`slots` as in `select`, where each old group has `rows` slots -> the old group of each new group (G,), and the
    slots that remain, flat, with all groups padded to one width."""
    width = max(map(len, slots))
    groups = torch.tensor([group[0] // rows for group in slots], device=device)
    index = torch.tensor([slot for group in slots for slot in group + group[:1] * (width - len(group))], device=device)
    return groups, index


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
