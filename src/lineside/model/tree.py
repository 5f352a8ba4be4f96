"""The unit of work: a tree of tokens, packed flat, each token attending to its ancestors and itself.

A picture stands once at the root, its questions hang below it, answers or the G rollouts of a question below those.
Whole trees lie one after another in one flat sequence without any padding; position ids restart at every fork; a
branch's first token is predicted from the last token of its prefix, so targets are gathered, never shifted.

Shapes: N tokens of a pack, M targets, I images, P tokens an image."""

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
class Pack:
    """Whole trees, flat. Which token looks at which is said by `end` alone; how that is computed is a plan's business
    (attention.py)."""

    size: int  # tokens of the trees; N is a little more: a round number of rows, so that kernels for it are at hand
    tokens: Tensor  # (N,) token ids, 0 beyond `size`
    positions: Tensor  # (N,) distance from the root along the token's own path
    end: Tensor  # (N,) flat index of the last token of the token's subtree: i looks at j where j <= i <= end[j]
    image_slots: Tensor  # (I * P,) flat index of every image token, in the order of `images`
    images: tuple[int, ...]  # (I,) which picture each run of P slots shows
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
        return Pack(**{**self.__dict__, **move})


@dataclass
class _Flat:
    """What one walk over the trees collects."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    leaf: list[int] = field(default_factory=list)
    responses: int = 0

    def add(self, node: Node, depth: int = 0, last: int = -1) -> None:
        """Append `node` and its subtree, `depth` tokens below the root; `last` is the index of the token above it.

        Raises ValueError where a target has no token before it."""
        start, length = len(self.tokens), len(node.tokens)
        self.tokens += node.tokens
        self.positions += range(depth, depth + length)
        self.end += [0] * length
        self.images += node.images
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
            self.add(child, depth + length, start + length - 1 if length else last)
        self.end[start : start + length] = [len(self.tokens) - 1] * length


def pack(trees: Sequence[Node], *, image_token: int) -> Pack:
    """Lay whole trees out flat. Image tokens are told by their id."""
    flat = _Flat()
    for tree in trees:
        flat.add(tree)
    tokens = torch.tensor(flat.tokens, dtype=torch.long)
    extra = rounded(len(tokens), 64) - len(tokens)
    as_long = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    return Pack(
        size=len(tokens),
        tokens=as_long(flat.tokens + [0] * extra),
        positions=as_long(flat.positions + [0] * extra),
        end=as_long([*flat.end, *range(len(tokens), len(tokens) + extra)]),  # padding looks at itself
        image_slots=(tokens == image_token).nonzero().flatten(),
        images=tuple(flat.images),
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
    cost less than the padding (25% of a step here, docs/experiments.md).
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
