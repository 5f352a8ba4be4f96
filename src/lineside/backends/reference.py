"""The reference backend: attention, log-probabilities and decoding in plain PyTorch, on any device.

It is the definition of what the other backends compute, and runs where there is no other.

Shapes: N tokens, n tokens of a tree, H query heads, K key heads, E head width, M targets, V vocabulary; A rows that are
decoded, m of them in a group, P tokens of a group's prefix, T own tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.backends.choosing import chosen
from lineside.backends.lm import LanguageModel, Plan
from lineside.errors import LinesideError
from lineside.runtime import upload
from lineside.types import EngineName, Weights

Chosen = tuple[NDArray[np.int64], NDArray[np.float32]]  # a token for each row, and its log-probability


class Reference:
    """The methods of a backend. The others derive from it, and leave to it what they cannot compute."""

    name = "reference"
    compiles = False  # whether the first steps compile something
    is_proven = True  # whether tests compare it with the reference on its device; otherwise each stage does
    engine: EngineName = "local"  # what decodes
    weights: Weights = "full"  # as decoding reads them
    rows = 512  # most rows that are decoded together

    def fallback(self) -> Reference:
        """What computes where this one is found wrong, or cannot be built."""
        return Reference()

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
        """How this LM decodes. Raises LinesideError for weights that this backend does not know."""
        self.only_full("the language model runs through its own modules here")
        return Steps(lm)

    def close(self) -> None:
        """End what decodes, if it is another process."""

    def only_full(self, why: str) -> None:
        """Raises LinesideError, with the reason, if decoding is to read other weights than those of the model."""
        if self.weights != "full":
            raise LinesideError(
                f"{self.weights} weights: {why}; they need a CPU (--device cpu), a C++ compiler and a plain Llama- or "
                "Qwen-type language model. Use --weights full"
            )


class Elsewhere(Reference):
    """The backend `reading` reads prompts and computes log-probabilities, and something else decodes."""

    def __init__(self, reading: Reference, weights: Weights = "full") -> None:
        """`weights`: as what decodes reads them."""
        self._reading, self.compiles, self.weights = reading, reading.compiles, weights

    def prepare(self, decoder: nn.Module) -> None:
        """As the backend that reads."""
        self._reading.prepare(decoder)

    def plan(self, end: Tensor, size: int, device: torch.device, windows: Sequence[int | None] = ()) -> Plan:
        """As the backend that reads."""
        return self._reading.plan(end, size, device, windows)

    def logprobs(
        self, head: nn.Module, hidden: Tensor, target: Tensor, banned: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As the backend that reads."""
        return self._reading.logprobs(head, hidden, target, banned, temperature)


class Cache(Protocol):
    """The keys and values of rows that are decoded: a plan for one new token a row."""

    def __len__(self) -> int:
        """The number of rows that go on."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, H, A, E), (1, K, A, E), (1, K, A, E) -> (A, H, E)."""
        ...

    def advance(self) -> None:
        """Count the new token of each row."""
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows only: ascending places among the A rows, at least one."""
        ...


class Joined:
    """The caches of several trees as one plan: the rows of the first, then those of the second, and so on."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self._caches = caches

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of each tree's rows to its own cache (see Cache for shapes)."""
        queries, keys, values = (t.split(list(map(len, self._caches)), dim=2) for t in (query, key, value))
        parts = zip(self._caches, queries, keys, values)
        return torch.cat([cache.attend(layer, q, k, v, scale) for cache, q, k, v in parts])


class Written:
    """The tokens that a step has chosen, and the logits that they were chosen by."""

    def __init__(self, chosen: Chosen, logits: Tensor) -> None:
        self.chosen, self._logits = chosen, logits

    @property
    def logits(self) -> Tensor:
        """(A, V), -inf for the banned token. The next step writes into the same memory."""
        rows = len(self.chosen[0])  # those behind are padding
        return self._logits if rows == len(self._logits) else self._logits[:rows]


class Steps:
    """How an LM decodes: a token a row, of one or several trees. Arrays lie on the CPU, tensors on the LM's device."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def cache(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> Cache:
        """What prefill left of a tree. `kept`: for each layer the keys and values (N, K, E) of the pack. `shared[g]`:
        flat indices of the prefix of group g. `tails[g]`: for each of its rows, flat indices of the prompt tokens that
        only this row has. `new`: most tokens of a response. Rows are numbered group by group."""
        return Decoding(kept, shared, tails, new)

    def head(self, hidden: Tensor) -> Tensor:
        """(A, D) hidden states -> (A, V) logits, -inf for the banned token."""
        return self.lm.logits(hidden)

    def next(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        caches: Sequence[Any],
        uniform: NDArray[np.float32],
        temperature: NDArray[np.float32],
    ) -> Written:
        """The last tokens (A,) at (A,) or (3, A) positions -> the next ones (see `choose`). The rows are those of the
        caches, one after another. Keys and values are added to the caches."""
        device = next(self.lm.embed.parameters()).device
        given = upload(torch.from_numpy(np.vstack([tokens, positions])), device)  # in one copy
        places = given[1] if positions.ndim == 1 else given[1:]
        logits = self.head(self.forward(self.lm.embed(given[0]), places, caches))
        for cache in caches:
            cache.advance()
        return Written(self.choose(logits, uniform, temperature), logits)

    def forward(self, embeds: Tensor, positions: Tensor, caches: Sequence[Any]) -> Tensor:
        """(A, D) embeddings -> (A, D) hidden states after the final norm."""
        return self.lm.hidden(embeds, positions, caches[0] if len(caches) == 1 else Joined(caches))

    def choose(self, logits: Tensor, uniform: NDArray[np.float32], temperature: NDArray[np.float32]) -> Chosen:
        """See `choose`."""
        return choose(logits, uniform, temperature)


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
        """See Steps.cache."""
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

    def __len__(self) -> int:
        """See Cache."""
        return sum(map(len, self.groups))

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

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See Cache."""
        first, kept = 0, []
        for group in self.groups:
            mine = rows[(rows >= first) & (rows < first + len(group))] - first
            first += len(group)
            if len(mine):
                kept.append(group.keep(upload(torch.from_numpy(mine), group.sees.device)))
        self.groups = kept


def choose(logits: Tensor, uniform: NDArray[np.float32], temperature: NDArray[np.float32]) -> Chosen:
    """(A, V) logits, (A,), (A,) -> a token for each row and its float32 log-probability. See `chosen`."""
    heat, draw = upload(torch.from_numpy(np.stack([temperature, uniform])), logits.device)[..., None]
    written = chosen(logits, heat, draw, temperature).cpu().numpy()  # one wait for the device
    return written[:, 0].astype(np.int64), written[:, 1].astype(np.float32)


@torch.no_grad()
def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of (M, V) logits: (M,) float32. A banned token (logit -inf) adds 0."""
    return torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)
