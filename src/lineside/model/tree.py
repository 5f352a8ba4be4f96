"""The unit of work: a tree of tokens, packed flat, each token attending to its ancestors and itself.

A picture is at the root, its questions are below it, and answers, or the G rollouts of a question, are below the
question. Whole trees follow one another in one flat sequence, with no padding between them. Position ids restart at
every fork. The first token of a branch is predicted from the last token of its prefix, so predictions are found by a
gather and not by a label shift.

Shapes: N tokens of a pack, M targets, I images, T image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lineside.backends.shapes import rounded
from lineside.runtime import upload

# Role of a token as a target: none (it is not predicted); answer, tags and eos; words of a valid trace.
NONE, ANSWER, TRACE = 0, 1, 2
# Tokens of a node, position of the first, shapes of its pictures -> their positions, and the position after them.
Positions = Callable[[Sequence[int], int, Sequence[tuple[int, int]]], tuple[list[Any], int]]


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that all of `children` share. `roles[i]` is the role of token i as a target (empty: all NONE).

    `images` says which of the caller's pictures its image tokens stand for, in the order of the image tokens. `leaf` is
    the caller's number of the response that ends here (-1 on inner nodes); by it, losses and rewards find their tokens.
    `name` is the id of the response's sample, for messages.
    """

    tokens: tuple[int, ...]
    roles: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    children: tuple[Node, ...] = ()
    leaf: int = -1
    shapes: tuple[tuple[int, int], ...] = ()  # of each picture, where its place depends on them (families/)
    name: str = ""

    def size(self) -> int:
        """Number of tokens of the whole tree."""
        return len(self.tokens) + sum(child.size() for child in self.children)

    def nodes(self) -> Iterator[Node]:
        """Every node, in the order in which `pack` lays them out."""
        yield self
        for child in self.children:
            yield from child.nodes()

    def paths(self, above: tuple[Node, ...] = ()) -> Iterator[tuple[Node, ...]]:
        """Every root-to-leaf path, as a tuple of nodes."""
        here = (*above, self)
        if not self.children:
            yield here
        for child in self.children:
            yield from child.paths(here)


@dataclass(frozen=True)
class Pack:
    """Whole trees as one flat sequence. `end` alone defines which token sees which; a plan (backends/lm.py) computes
    the attention."""

    size: int  # tokens of the trees; N is this, rounded up with padding: kernels for round sizes are already compiled
    tokens: Tensor  # (N,) token ids, 0 beyond `size`
    positions: Tensor  # (N,) distance from the root along the token's own path, or (3, N) triples (families/)
    end: Tensor  # (N,) flat index of the last token of the token's subtree: i sees j where j <= i <= end[j]
    image_slots: Tensor  # (T,) flat index of every image token, in the order of `images`
    images: tuple[int, ...]  # (I,) the pictures, in the order of their image tokens
    source: Tensor  # (M,) flat index of the token whose hidden state predicts the target
    target: Tensor  # (M,) token id
    rows: Tensor  # (R,) the tokens of `source`, each once: sibling branches are predicted from the same token
    place: Tensor  # (M,) which of `rows` predicts the target
    role: Tensor  # (M,) ANSWER or TRACE
    leaf: Tensor  # (M,) leaf number of the target's node
    responses: int = 0  # nodes with targets: captions, answers, rollouts
    trees: tuple[Node, ...] = ()  # what the pack was made of
    shapes: tuple[tuple[int, int], ...] = ()  # (I,) as in Node
    dense_tokens: int = 0  # tokens that a framework without trees computes: every path in full, padded to the longest

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device) -> Pack:
        """The same pack on another device, by one copy that the CPU does not wait for."""
        if self.tokens.device == device:
            return self
        fields = {k: v for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        flat = upload(torch.cat([v.flatten() for v in fields.values()]), device)
        parts = flat.split([v.numel() for v in fields.values()])
        return Pack(**{**self.__dict__, **{k: p.view(v.shape) for (k, v), p in zip(fields.items(), parts)}})


@dataclass
class _Flat:
    """The lists of a pack, filled by one walk over the trees."""

    place: Positions
    tokens: list[int] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    leaf: list[int] = field(default_factory=list)
    responses: int = 0

    def add(self, node: Node, position: int = 0, last: int = -1) -> None:
        """Append `node` and its subtree. `position` is that of its first token, `last` the index of the token above it.

        Raises ValueError if a target has no token before it."""
        start, length = len(self.tokens), len(node.tokens)
        self.tokens += node.tokens
        positions, after = self.place(node.tokens, position, node.shapes)
        self.positions += positions
        self.end += [0] * length
        self.images += node.images
        self.shapes += node.shapes
        self.responses += any(role != NONE for role in node.roles)
        for index, role in enumerate(node.roles):
            if role == NONE:
                continue
            if index == 0 and last < 0:
                raise ValueError("the first token of a tree cannot be a target: nothing stands before it")
            self.source.append(start + index - 1 if index else last)
            self.target.append(node.tokens[index])
            self.role.append(role)
            self.leaf.append(node.leaf)
        for child in node.children:
            self.add(child, after, start + length - 1 if length else last)
        self.end[start : start + length] = [len(self.tokens) - 1] * length


def count_up(tokens: Sequence[int], start: int, shapes: Sequence[tuple[int, int]]) -> tuple[list[Any], int]:
    """1-D positions of a run of tokens, and the position after it."""
    return list(range(start, start + len(tokens))), start + len(tokens)


def pack(trees: Sequence[Node], *, image_token: int, positions: Positions = count_up) -> Pack:
    """Flatten whole trees into one pack. `image_token` is the id of image tokens, `positions` gives those of a run."""
    flat = _Flat(positions)
    for tree in trees:
        flat.add(tree)
    tokens = torch.tensor(flat.tokens, dtype=torch.long)
    extra = rounded(len(tokens), 64) - len(tokens)
    as_long = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    placed = as_long(flat.positions)  # (N,) or (N, 3)
    placed = torch.cat([placed, placed.new_zeros(extra, *placed.shape[1:])])
    rows, place = as_long(flat.source).unique(return_inverse=True)
    return Pack(
        size=len(tokens),
        tokens=as_long(flat.tokens + [0] * extra),
        positions=placed.mT.contiguous() if placed.ndim == 2 else placed,
        end=as_long([*flat.end, *range(len(tokens), len(tokens) + extra)]),  # a padding token sees only itself
        image_slots=(tokens == image_token).nonzero().flatten(),
        images=tuple(flat.images),
        source=as_long(flat.source),
        target=as_long(flat.target),
        rows=rows,
        place=place,
        role=as_long(flat.role),
        leaf=as_long(flat.leaf),
        responses=flat.responses,
        trees=tuple(trees),
        shapes=tuple(flat.shapes),
        dense_tokens=dense_tokens(trees),
    )


def dense_tokens(trees: Sequence[Node]) -> int:
    """Number of tokens if every root-to-leaf path were a row, padded to the longest."""
    lengths = [sum(len(node.tokens) for node in path) for tree in trees for path in tree.paths()]
    return max(lengths) * len(lengths) if lengths else 0


def share_prefixes(branches: Mapping[tuple[int, ...], tuple[Node, ...]], least: int = 6) -> tuple[Node, ...]:
    """Prompts, each with the nodes below it -> nodes in which prompts share a common prefix of `least` tokens or more.

    So a bill of materials that three questions contain is computed once. No result changes, only the number of tokens.
    """
    by_first_token: dict[int, dict[tuple[int, ...], tuple[Node, ...]]] = {}
    for tokens, below in branches.items():
        by_first_token.setdefault(tokens[0] if tokens else -1, {})[tokens] = below
    nodes: list[Node] = []
    for prompts in by_first_token.values():
        common = next((i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1), min(map(len, prompts)))
        if len(prompts) == 1 or common < least:
            nodes += [Node(tokens, children=below) for tokens, below in prompts.items()]
            continue
        head = next(iter(prompts))[:common]
        ended = prompts.pop(head, ())
        rest = {tokens[common:]: below for tokens, below in prompts.items()}
        nodes.append(Node(head, children=ended + share_prefixes(rest, least)))
    return tuple(nodes)


def fill(trees: Iterable[Node], budget: int) -> Iterator[list[Node]]:
    """Cut a stream of trees into lists of at most `budget` tokens, in order. A larger tree is a list of its own."""
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
