"""The unit of work: a tree of tokens, packed flat, each token attending to its ancestors and itself.

A picture stands once at the root, its questions hang below it, answers or the G rollouts of a question below those.
Whole trees lie one after another in one flat sequence without any padding; position ids restart at every fork; a
branch's first token is predicted from the last token of its prefix, so targets are gathered, never shifted.

Shapes: N tokens of a pack, M targets, S segments of a bucket, A ancestor tokens, L own tokens, I images, P tokens an
image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NONE, ANSWER, TRACE = (
    0,
    1,
    2,
)  # role of a token as a target: not predicted; answer, tags and eos; words of a valid trace


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that all of `children` share. `roles[i]` says what token i counts for as a target (0: nothing).

    `images` are indices into the pack's list of pictures, in the order of the image tokens in `tokens`. `leaf` is the
    caller's number of the response that ends here (-1 on inner nodes): losses and rewards find their tokens by it.
    """

    tokens: tuple[int, ...]
    roles: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    children: tuple[Node, ...] = ()
    leaf: int = -1

    def size(self) -> int:
        """Tokens of the whole tree."""
        return len(self.tokens) + sum(child.size() for child in self.children)

    def paths(self, above: tuple[Node, ...] = ()) -> Iterator[tuple[Node, ...]]:
        """Every root-to-leaf path, as the nodes along it."""
        here = (*above, self)
        if not self.children:
            yield here
        for child in self.children:
            yield from child.paths(here)


@dataclass(frozen=True)
class Bucket:
    """Segments of similar shape that attend together: a slice of the pack's `query` and `key` indices."""

    segments: int  # S
    own: int  # L
    keys: int  # A + L
    mask: Tensor  # (S, 1, L, A + L) True where a query may look


@dataclass(frozen=True)
class Pack:
    """Whole trees, flat. For attention, segments of similar shape are gathered into padded buckets, all by one index.

    `query` and `key` are those indices, bucket after bucket (padding points at token 0 and is masked or never read);
    `order` finds each token's output again among the buckets' padded queries.
    """

    size: int  # tokens of the trees; N is a little more: a round number of rows, so that kernels for it are at hand
    tokens: Tensor  # (N,) token ids, 0 beyond `size`
    positions: Tensor  # (N,) distance from the root along the token's own path
    end: Tensor  # (N,) flat index of the last token of the token's subtree: i looks at j where j <= i <= end[j]
    image_slots: Tensor  # (I * P,) flat index of every image token, in the order of `images`
    images: tuple[int, ...]  # (I,) which picture each run of P slots shows
    buckets: tuple[Bucket, ...]
    query: Tensor  # (sum of S * L,)
    key: Tensor  # (sum of S * (A + L),)
    order: Tensor  # (N,)
    source: Tensor  # (M,) flat index of the token whose hidden state predicts the target
    target: Tensor  # (M,) token id
    role: Tensor  # (M,) ANSWER or TRACE
    leaf: Tensor  # (M,) leaf number of the target's node
    responses: int = 0  # nodes with targets: captions, answers, rollouts
    dense_tokens: int = 0  # what a framework without the tree computes: every path in full, padded to the longest

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on another device."""
        move = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        buckets = tuple(Bucket(b.segments, b.own, b.keys, b.mask.to(device)) for b in self.buckets)
        return Pack(**{**self.__dict__, **move, "buckets": buckets})


@dataclass
class _Flat:
    """What one walk over the trees collects."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    segments: list[tuple[list[int], list[int]]] = field(default_factory=list)  # (ancestor indices, own indices)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    leaf: list[int] = field(default_factory=list)
    responses: int = 0

    def add(self, node: Node, ancestors: list[int]) -> None:
        """Append `node` and its subtree. Raises ValueError where a target has no token before it."""
        start = len(self.tokens)
        own = list(range(start, start + len(node.tokens)))
        self.tokens += node.tokens
        self.positions += range(len(ancestors), len(ancestors) + len(own))
        self.end += [0] * len(own)
        self.images += node.images
        if own:
            self.segments.append((ancestors, own))
        self.responses += any(role != NONE for role in node.roles)
        for index, role in enumerate(node.roles):
            if role == NONE:
                continue
            if index == 0 and not ancestors:
                raise ValueError("the first token of a tree cannot be a target: nothing stands before it")
            self.source.append(own[index - 1] if index else ancestors[-1])
            self.target.append(node.tokens[index])
            self.role.append(role)
            self.leaf.append(node.leaf)
        below = ancestors + own
        for child in node.children:
            self.add(child, below)
        self.end[start : start + len(own)] = [len(self.tokens) - 1] * len(own)


def pack(trees: Sequence[Node], *, image_token: int) -> Pack:
    """Lay whole trees out flat. Image tokens are told by their id."""
    flat = _Flat()
    for tree in trees:
        flat.add(tree, [])
    tokens = torch.tensor(flat.tokens, dtype=torch.long)
    buckets, queries, keys, places = [], [], [], []
    for group in _by_shape(flat.segments):
        bucket, query, key = _bucket(group)
        buckets.append(bucket)
        places.append(query.flatten())
        queries.append(query.clamp(min=0).flatten())
        keys.append(key.clamp(min=0).flatten())
    place = torch.cat(places) if places else tokens[:0]
    extra = rounded(len(tokens), 64) - len(tokens)
    order = torch.zeros(len(tokens) + extra, dtype=torch.long)
    order[place[place >= 0]] = (place >= 0).nonzero().flatten()
    as_long = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    return Pack(
        size=len(tokens),
        tokens=as_long(flat.tokens + [0] * extra),
        positions=as_long(flat.positions + [0] * extra),
        end=as_long([*flat.end, *range(len(tokens), len(tokens) + extra)]),  # padding looks at itself
        image_slots=(tokens == image_token).nonzero().flatten(),
        images=tuple(flat.images),
        buckets=tuple(buckets),
        query=torch.cat(queries) if queries else tokens[:0],
        key=torch.cat(keys) if keys else tokens[:0],
        order=order,
        source=as_long(flat.source),
        target=as_long(flat.target),
        role=as_long(flat.role),
        leaf=as_long(flat.leaf),
        responses=flat.responses,
        dense_tokens=dense_tokens(trees),
    )


def rounded(count: int, parts: int) -> int:
    """`count` rounded up to a multiple of the next power of two's `parts`-th part.

    A CPU's matrix library builds a kernel for every new shape, which takes longer than running it: a few round shapes
    cost less than the padding (25% of a step here, LOG.md).
    """
    step = max(1, (1 << (count - 1).bit_length()) // parts) if count else 1
    return -(-count // step) * step


def dense_tokens(trees: Sequence[Node]) -> int:
    """Tokens that one padded row per path would cost."""
    lengths = [sum(len(node.tokens) for node in path) for tree in trees for path in tree.paths()]
    return max(lengths) * len(lengths) if lengths else 0


def share_prefixes(branches: Mapping[tuple[int, ...], tuple[Node, ...]], least: int = 6) -> tuple[Node, ...]:
    """Prompts and what hangs below each -> nodes in which a common beginning of at least `least` tokens stands once.

    A bill of materials asked about three times is computed once. Changes no number, only the count of tokens.
    """
    groups: dict[int, dict[tuple[int, ...], tuple[Node, ...]]] = {}
    for tokens, below in branches.items():
        groups.setdefault(tokens[0] if tokens else -1, {})[tokens] = below
    nodes: list[Node] = []
    for group in groups.values():
        common = next((i for i, column in enumerate(zip(*group)) if len(set(column)) > 1), min(map(len, group)))
        if len(group) == 1 or common < least:
            nodes += [Node(tokens, children=below) for tokens, below in group.items()]
            continue
        head = next(iter(group))[:common]
        ended = group.pop(head, ())
        rest = {tokens[common:]: below for tokens, below in group.items()}
        nodes.append(Node(head, children=ended + share_prefixes(rest, least)))
    return tuple(nodes)


def fill(trees: Iterable[Node], budget: int) -> Iterator[list[Node]]:
    """Cut a stream of trees into packs of at most `budget` tokens, in order. A tree larger than that stands alone."""
    held: list[Node] = []
    size = 0
    for tree in trees:
        if held and size + tree.size() > budget:
            yield held
            held, size = [], 0
        held.append(tree)
        size += tree.size()
    if held:
        yield held


def _by_shape(segments: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Group segments so that padding inside a bucket stays small: same coarse number of ancestors, near lengths."""
    ordered = sorted(segments, key=lambda s: (_coarse(len(s[0])), len(s[1])))
    held: list[tuple[list[int], list[int]]] = []
    for segment in ordered:
        if held and (
            _coarse(len(segment[0])) != _coarse(len(held[0][0]))
            or len(segment[1]) > 1.5 * len(held[0][1]) + 6
            or len(held) >= 256
        ):
            yield held
            held = []
        held.append(segment)
    if held:
        yield held


def _coarse(length: int) -> int:
    """Lengths that may share a bucket: none at all, else steps of a quarter of the next power of two."""
    if length == 0:
        return 0
    step = max(16, (1 << length.bit_length()) // 4)
    return -(-length // step) * step


def _bucket(segments: Sequence[tuple[list[int], list[int]]]) -> tuple[Bucket, Tensor, Tensor]:
    """The bucket of a few segments with its query (S, L) and key (S, A + L) indices, -1 where padded.

    The mask: all valid ancestors, and self-causal among own tokens.
    """
    wide = rounded(max(len(above) for above, _ in segments), 16)
    long = rounded(max(len(own) for _, own in segments), 8)
    count = rounded(len(segments), 8)
    segments = [*segments, *[([], [])] * (count - len(segments))]
    padded = [above + [-1] * (wide - len(above)) for above, _ in segments]
    ancestors = torch.tensor(padded, dtype=torch.long).view(count, wide)
    own = torch.tensor([mine + [-1] * (long - len(mine)) for _, mine in segments], dtype=torch.long)
    causal = torch.ones(long, long, dtype=torch.bool).tril()
    mask = torch.cat([(ancestors >= 0)[:, None, :].expand(-1, long, -1), causal.expand(count, -1, -1)], dim=-1)
    return Bucket(count, long, wide + long, mask[:, None].contiguous()), own, torch.cat([ancestors, own], dim=1)
