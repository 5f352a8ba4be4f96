"""Reading requests: their pictures, questions and choices in one forward. What was read before is not read again.

A *head* is what the questions about a frame share: its pictures and their references. The keys and values of heads are
kept in memory, so a further question about a frame is read alone.

A *draft* is an answer that the task allows, such as "yes". It is read as a branch below its question. As long as the
model writes what a draft says, its tokens are taken from there, and no decoding step is needed: an answer of a closed
set comes with the reading. The tokens are those that decoding gives (speculative decoding, arXiv 2211.17192).

Shapes: N tokens of a pack, K key heads, E head width, P tokens of a head, n tokens that are computed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lineside.backends.lm import KVCapture, Plan
from lineside.backends.shapes import rounded
from lineside.images import seen_key
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, timed_features
from lineside.model.render import Renderer
from lineside.model.tree import Node, Pack
from lineside.model.vlm import VLM
from lineside.runtime import upload
from lineside.types import Image, frame_images, references

KV = list[tuple[Tensor, Tensor]]  # for each layer (P, K, E) keys and values


class Heads:
    """The keys and values of heads, the least used ones let go first when they take more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[str, KV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> KV | None:
        """Those of a head, which is now the last used; None if they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def longest(self, shown: Pictures) -> tuple[int, KV]:
        """What is known of a head: the number of its first pictures (all, or the frame's), and their keys and values;
        (0, []) if nothing is."""
        for some in (shown, shown.frame):
            if (found := self.get(some.head)) is not None:
                return len(some.images), found
        return 0, []

    def put(self, key: str, kept: KV) -> None:
        """Keep those of a head, if there is room for it at all."""
        if key in self._kept or _bytes(kept) > self.max_bytes:
            return
        self._kept[key] = [(keys.clone(), values.clone()) for keys, values in kept]  # not views of the whole pack
        self.bytes += _bytes(kept)
        while self.bytes > self.max_bytes:
            self.bytes -= _bytes(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Let all go."""
        self._kept.clear()
        self.bytes = 0


def _bytes(kept: KV) -> int:
    return sum(t.numel() * t.element_size() for layer in kept for t in layer)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a request in the order of its prompt: those of the frame, then the references. `keys`: what each
    is known by, a hash of its bytes, which is computed once."""

    images: tuple[Image, ...] = ()
    keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Sequence[Image]) -> Pictures:
        """These pictures with their keys."""
        ordered = (*frame_images(images), *references(images))
        return cls(ordered, tuple(map(seen_key, ordered)))

    @property
    def frame(self) -> Pictures:
        """Those of the frame alone."""
        count = len(frame_images(self.images))
        return Pictures(self.images[:count], self.keys[:count])

    @property
    def head(self) -> str:
        """What their head is known by: the pictures in order, with their labels."""
        return repr([(key, image.label) for key, image in zip(self.keys, self.images)])


@dataclass(frozen=True, slots=True)
class DraftedPrompt:
    """A prompt and its drafts: the tokens of each, without the end token."""

    prompt: Prompt
    drafts: tuple[tuple[int, ...], ...] = ()


Asking = tuple[Pictures, Sequence[DraftedPrompt]]  # a request: its pictures, and its prompts


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt stands in the pack, by flat indices. `after`: the token that follows so many tokens of a draft is
    predicted there; after none of them, at the end of the question."""

    question: list[int]
    after: dict[tuple[int, ...], int]


@dataclass(slots=True)
class _Layout:
    """Trees, one for each head, and where everything stands in their pack. The first three lists are by request."""

    heads: list[list[int]]
    places: list[list[Place]]
    known: list[int]  # tokens of each head that are known
    trees: list[Node] = field(default_factory=list)
    pictures: list[Image] = field(default_factory=list)  # those whose tokens are not known
    given: list[tuple[int, KV]] = field(default_factory=list)  # what is known, with the index of its first token
    fresh: list[int] = field(default_factory=list)  # tokens that are not known
    new: list[tuple[str, int, int]] = field(default_factory=list)  # heads to keep: key, first token, tokens
    size: int = 0

    def add(self, render: Renderer, known: Heads, requests: Sequence[Asking], numbers: Sequence[int]) -> None:
        """Add the tree of the requests with these numbers, which have the same head."""
        start, shown = self.size, requests[numbers[0]][0]
        images, frame, tokens = shown.images, shown.frame, render.head(shown.images)
        seen, kept = known.longest(shown)
        if kept:
            self.given.append((start, kept))
        count = len(kept[0][0]) if kept else 0
        self.pictures += images[seen:]
        self.fresh += range(start + count, start + len(tokens))
        if count < len(tokens):
            self.new.append((shown.head, start, len(tokens)))
        if not count and 0 < len(frame.images) < len(images):
            self.new.append((frame.head, start, len(render.prefix(frame.images))))
        self.size += len(tokens)
        children: list[Node] = []
        for number in numbers:
            self.heads[number], self.known[number] = list(range(start, start + len(tokens))), count
            for asked in requests[number][1]:
                children.append(self._branch(render, asked, self.places[number]))
        shapes = tuple(map(render.shape, images))
        self.trees.append(Node(tokens, images=tuple(range(len(images))), children=tuple(children), shapes=shapes))

    def _branch(self, render: Renderer, asked: DraftedPrompt, places: list[Place]) -> Node:
        question, start = render.question(asked.prompt.question, thinking=asked.prompt.thinking), self.size
        at = start + len(question)
        after: dict[tuple[int, ...], int] = {(): at - 1}
        for draft in asked.drafts:
            for length in range(1, len(draft) + 1):
                after.setdefault(draft[:length], at + length - 1)
            at += len(draft)
        places.append(Place(list(range(start, start + len(question))), after))
        self.fresh += range(start, at)
        self.size = at
        return Node(question, children=tuple(map(Node, asked.drafts)))


@dataclass(frozen=True, slots=True)
class Reading:
    """Requests that have been read. `heads`, `places` and `known` are by request."""

    kept: KV  # (N, K, E) of the whole pack
    positions: Tensor  # (N,) or (3, N)
    hidden: Tensor  # (R, D) where something is predicted
    row_of: dict[int, int]  # flat index -> row of `hidden`
    heads: list[list[int]]
    places: list[list[Place]]
    known: list[int]  # tokens of each head that were not read, since they were known


class Continued:
    """A plan of a pack of which only the tokens `fresh` (n,) are computed. `known`: the keys and values of the others,
    each with the index of its first token."""

    def __init__(self, plan: Plan, size: int, fresh: Tensor, known: Sequence[tuple[int, KV]]) -> None:
        self.plan, self._size, self._fresh, self._known = plan, size, fresh, known

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As of a plan, for the computed tokens; those behind them are padding."""
        whole = [self._whole(query), self._whole(key), self._whole(value)]
        for first, kept in self._known:
            for full, part in zip(whole[1:], kept[layer]):
                full[0, :, first : first + len(part)] = part.transpose(0, 1)
        out = self.plan.attend(layer, whole[0], whole[1], whole[2], scale)[self._fresh]
        return F.pad(out, (0, 0, 0, 0, 0, query.shape[2] - len(out)))

    def _whole(self, part: Tensor) -> Tensor:
        full = part.new_zeros(1, part.shape[1], self._size, part.shape[3])
        full[:, :, self._fresh] = part[:, :, : len(self._fresh)]
        return full


@torch.no_grad()
def read(vlm: VLM, store: FeatureStore, known: Heads, requests: Sequence[Asking], timing: Timing) -> Reading:
    """One forward of all prompts of the requests. The prompts of a request have the same pictures.

    Raises LinesideError for a picture that cannot be decoded."""
    layout = _Layout([[] for _ in requests], [[] for _ in requests], [0] * len(requests))
    by_head: dict[str, list[int]] = {}
    for number, (shown, _) in enumerate(requests):
        by_head.setdefault(shown.head, []).append(number)
    for numbers in by_head.values():
        layout.add(vlm.render, known, requests, numbers)
    features = timed_features(store, layout.pictures, timing)
    clock = time.perf_counter()
    packed, fresh = vlm.pack(layout.trees), torch.tensor(layout.fresh)
    size, captured = len(packed.tokens), []

    def capture(plan: Plan) -> Plan:
        captured.append(KVCapture(plan))
        there = upload(fresh, vlm.device)
        return Continued(captured[0], size, there, layout.given) if layout.given else captured[0]

    number = torch.full((size,), -1).index_copy(0, fresh, torch.arange(len(fresh)))
    wanted = [at for places in layout.places for place in places for at in place.after.values()]
    part = _only(packed, fresh, number) if layout.given else packed
    hidden = vlm(part, features, rows=number[wanted], capture=capture).hidden
    kept = captured[0].kept
    for key, first, count in layout.new:
        known.put(key, [(keys[first : first + count], values[first : first + count]) for keys, values in kept])
    store.runtime.synchronise()  # else its time would be counted as that of decoding
    timing.prefill += time.perf_counter() - clock
    timing.prefill_tokens += len(fresh)
    row_of = {at: row for row, at in enumerate(wanted)}
    return Reading(kept, packed.positions, hidden, row_of, layout.heads, layout.places, layout.known)


def _only(packed: Pack, fresh: Tensor, number: Tensor) -> Pack:
    """The tokens `fresh` of a pack, which keeps its plan. `number`: flat index -> place among them, or -1."""
    more = rounded(len(fresh), 16) - len(fresh)  # to round sizes, whose kernels are there already
    slots = number[packed.image_slots]
    return replace(
        packed,
        tokens=F.pad(packed.tokens[fresh], (0, more)),
        positions=F.pad(packed.positions[..., fresh], (0, more)),
        image_slots=slots[slots >= 0],
    )
