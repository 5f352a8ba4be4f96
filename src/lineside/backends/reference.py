"""The reference backend: attention, log-probabilities and decoding in plain PyTorch, on any device.

It is the definition of what the other backends compute, and runs where there is no other.

Shapes: N tokens, n tokens of a tree, H query heads, K key heads, E head width, M targets, V vocabulary; A rows that are
decoded, m of them in a group, P tokens of a group's prefix, T own tokens of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.backends.lm import LanguageModel, Plan
from lineside.runtime import upload
from lineside.types import EngineName, Weights


class Reference:
    """The methods of a backend. The others derive from it, and leave to it what they cannot compute."""

    name = "reference"
    compiles = False  # whether the first steps compile something
    is_proven = True  # whether tests compare it with the reference on its device; otherwise each stage does
    engine: EngineName = "local"  # what decodes
    weights: Weights = "full"  # as decoding reads them
    rows = 512  # most rows that are decoded together

    def prepare(self, decoder: nn.Module) -> None:
        """Replace operations of an LM by faster ones, on its own modules; here none."""

    def plan(self, end: Tensor, size: int, device: torch.device, windows: Sequence[int | None] = ()) -> Plan:
        """Attention on `device` of a pack with the subtree ends `end` (N,), of which `size` belong to trees
        (model/tree.py). `end` should lie on the CPU: nothing then waits for the device.
        `windows`: for each layer the number of tokens back that it sees, itself included; None: all."""
        return TreePlan(end, size, device, windows)

    def logprobs(
        self, head: nn.Module, hidden: Tensor, target: Tensor, banned: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(M, D) hidden states, (M,) targets -> log-probability of each target and entropy in nats of the distribution
        that predicts it, (M,) float32 each, without the token `banned`. Only the first is differentiable."""
        logits = head(hidden).float()
        ban = torch.zeros(logits.shape[-1], device=logits.device)
        ban[banned] = float("-inf")
        logits = (logits + ban) / temperature
        return -F.cross_entropy(logits, target, reduction="none"), entropy_of(logits)

    def steps(self, lm: LanguageModel) -> Steps:
        """How this LM decodes."""
        return Steps(Decoding, lm.hidden, lm.logits, choose)


class Cache(Protocol):
    """The keys and values of rows that are decoded: a plan for one new token a row."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of the rows that go on; the shapes are those of the backend."""
        ...

    def advance(self) -> None:
        """Count the new token of each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only: (A',) ascending places among the A rows, at least one."""
        ...


class Steps(NamedTuple):
    """How an LM decodes one token a row.

    `cache` takes what prefill left. `kept`: for each layer the keys and values (N, K, E) of the pack. `shared[g]`: flat
    indices of the prefix of group g. `tails[g]`: for each of its rows, flat indices of the prompt tokens that only this
    row has. `new`: most tokens of a response. Rows are numbered group by group.
    """

    cache: Callable[[list[tuple[Tensor, Tensor]], list[list[int]], list[list[list[int]]], int], Cache]
    forward: Callable[..., Tensor]  # (A, D) embeddings, (A,) positions, cache -> (A, D) hidden states
    head: Callable[[Tensor], Tensor]  # (A, D) -> (A, V) logits, -inf for the banned token
    choose: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]  # see `choose`


class TreePlan:
    """Attention of a pack, tree by tree, as one masked product. Token i sees token j where j <= i <= end[j]."""

    def __init__(self, end: Tensor, size: int, device: torch.device, windows: Sequence[int | None] = ()) -> None:
        end = end.cpu()
        ends, start, masks = end.tolist(), 0, []
        self.trees: list[slice] = []
        self.windows = windows
        while start < len(ends):
            stop = ends[start] + 1 if start < size else len(ends)  # the padding is computed together
            token = torch.arange(start, stop)
            self.trees.append(slice(start, stop))
            masks.append((token <= token[:, None]) & (token[:, None] <= end[start:stop]))
            start = stop
        sizes = [mask.numel() for mask in masks]
        there = upload(torch.cat([mask.flatten() for mask in masks]), device).split(sizes)  # in one copy
        # for each window, for each tree (n, n): whether a query (row) sees a key (column)
        whole = [part.view(mask.shape) for part, mask in zip(there, masks)]
        narrow = {window: [within(window, sees) for sees in whole] for window in windows if window is not None}
        self.sees: dict[int | None, list[Tensor]] = {None: whole, **narrow}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes)."""
        parts = []
        for tree, sees in zip(self.trees, self.sees[self.windows[layer] if self.windows else None]):
            q, k, v = (t[:, :, tree] for t in (query, key, value))
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale, enable_gqa=True))
        return torch.cat(parts, dim=2)[0].transpose(0, 1)


def within(window: int, sees: Tensor) -> Tensor:
    """(n, n) what each token of a tree sees -> without what lies `window` tokens or more back on its path."""
    depth = sees.sum(1)
    return sees & (depth[:, None] - depth < window)


@dataclass
class Group:
    """Rows with the same prefix, and the KV cache of each layer: the prefix once, each row's own tokens."""

    prefix: list[tuple[Tensor, ...]]  # (1, K, P, E) keys and values
    own: list[tuple[Tensor, ...]]  # (m, K, T, E)
    sees: Tensor  # (m, 1, 1, P + T + 1): False for the padding between prefix and own tokens

    def __len__(self) -> int:
        return len(self.sees)

    def keep(self, rows: Tensor) -> Group:
        """The group with these rows only."""
        return Group(self.prefix, [(key[rows], value[rows]) for key, value in self.own], self.sees[rows])


class Decoding:
    """The KV cache of decoding: a new token attends to the prefix of its group, to its row's tokens and to itself."""

    def __init__(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> None:
        """See Steps."""
        device, self.groups = kept[0][0].device, []
        for prefix, rows in zip(shared, tails):
            width = max(map(len, rows))
            padded = [[0] * (width - len(row)) + row for row in rows]
            tail = torch.tensor(padded, dtype=torch.long).view(len(rows), width)
            sees = [[True] * len(prefix) + [False] * (width - len(row)) + [True] * (len(row) + 1) for row in rows]
            take = lambda index: [tuple(t[index].transpose(1, 2) for t in layer) for layer in kept]  # noqa: E731
            seen = upload(torch.tensor(sees), device)[:, None, None]
            before, own = (take(upload(index, device)) for index in (torch.tensor([prefix]), tail))
            self.groups.append(Group(before, own, seen))

    def advance(self) -> None:
        """See Cache."""
        for group in self.groups:
            group.sees = F.pad(group.sees, (0, 1), value=True)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, A, E), (1, K, A, E), (1, K, A, E) -> (A, H, E)."""
        sizes, out = [len(group) for group in self.groups], []
        split = ((t[0].transpose(0, 1)[:, :, None]).split(sizes) for t in (query, key, value))  # (m, heads, 1, E)
        for group, q, *new in zip(self.groups, *split):
            group.own[layer] = tuple(torch.cat(pair, dim=2) for pair in zip(group.own[layer], new))
            k, v = (
                torch.cat([prefix.expand(len(group), -1, -1, -1), own], dim=2)
                for prefix, own in zip(group.prefix[layer], group.own[layer])
            )
            out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=group.sees, scale=scale, enable_gqa=True))
        return torch.cat(out)[:, :, 0]

    def keep(self, rows: Tensor) -> None:
        """See Cache."""
        first, kept = 0, []
        for group in self.groups:
            mine = rows[(rows >= first) & (rows < first + len(group))] - first
            first += len(group)
            if len(mine):
                kept.append(group.keep(mine))
        self.groups = kept


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(A, V), (A,) -> token (A,) and its float32 log-probability (A,).

    At temperature 0 it is the most likely token, the first if several are equal. Otherwise it is sampled: the inverse
    of the cumulative distribution at `uniform`, which lies in [0, 1).
    """
    if temperature == 0:
        shares = logits.float().log_softmax(-1)
        chosen = shares.argmax(-1, keepdim=True)
        return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1)
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    total = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1).log()


@torch.no_grad()
def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of (M, V) logits: (M,) float32. A banned token (logit -inf) adds 0."""
    return torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)
