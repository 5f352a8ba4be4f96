"""Samples to trees, and trees to packs and steps.

A frame's pictures are the root of a tree, its prompts are below, and responses are the leaves. Several responses to the
same prompt share it: traces of one question, or captions of one frame. Prompts with the same references share them.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import PIL.Image
import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.model.branches import Branch, branches, frame_tree
from lineside.model.render import CAPTION_PROMPT, Renderer, Segment
from lineside.model.tree import ANSWER, TRACE, Node, Pack, share_prefixes
from lineside.model.vlm import VLM, Features
from lineside.types import Image, Sample
from lineside.verify.traces import problem_of_trace

P = TypeVar("P")
SMALL = 64  # side in pixels of a blank picture


@dataclass(frozen=True, slots=True)
class ImageTree(Generic[P]):
    """A tree and its pictures, in the order in which `pack` lays them out: images, or the sketches that pretraining
    uses in their place."""

    tree: Node
    images: tuple[P, ...]


def prompt_and_response(
    render: Renderer, sample: Sample, *, every_trace: bool = False
) -> tuple[tuple[int, ...], Segment]:
    """Tokens of the prompt after the pictures, and the response with its roles.

    A caption is a response to a fixed prompt with thinking off. A qa sample is rendered with thinking on only if its
    trace is valid, so no signal teaches the model to skip the trace (DESIGN 4). `every_trace` (for ablations): with
    thinking on always, and an empty trace where there is none. Raises LinesideError for a sample without an answer.
    """
    if sample.answer is None:
        raise LinesideError(
            f"sample {sample.id} has no answer: a {sample.kind} sample cannot be trained on in align or sft"
        )
    if sample.kind == "caption":
        return render.question(CAPTION_PROMPT, thinking=False), render.response(None, sample.answer)
    trace = (sample.trace or "") if every_trace else None if problem_of_trace(sample) else sample.trace
    return render.question(sample.question, thinking=trace is not None), render.response(trace, sample.answer)


def image_tree(
    vlm: VLM, samples: Sequence[Sample], first_leaf: int = 0, *, every_trace: bool = False
) -> ImageTree[Image]:
    """All samples of one frame as one tree. Leaf numbers count up from `first_leaf` in the order of `samples`.
    `every_trace`: as in `prompt_and_response`.

    If there are questions too, the words of captions get the role of a trace, and so its lower weight. Samples without
    pictures, if others have some, get a root of their own; both roots are then children of an empty node. Raises
    LinesideError for a sample that exceeds the model's context.
    """
    images = samples[0].frame_images
    light = any(sample.kind != "caption" for sample in samples)
    numbered = dict(enumerate(samples, start=first_leaf))
    seen = {n: s for n, s in numbered.items() if s.images or not images}
    found = _tree(vlm, seen, images, light, every_trace)
    if unseen := {n: s for n, s in numbered.items() if n not in seen}:
        alone = _tree(vlm, unseen, (), light, every_trace)
        return ImageTree(Node((), children=(found.tree, alone.tree)), found.images)
    return found


def _tree(
    vlm: VLM, samples: Mapping[int, Sample], images: tuple[Image, ...], light: bool, every_trace: bool
) -> ImageTree[Image]:
    """`samples`: by the number of the leaf. `images`: of their frame."""
    prefix, context = len(vlm.render.prefix(images)), vlm.context
    below: list[tuple[Branch, tuple[Node, ...]]] = []
    for branch in branches(vlm.render, ((number, sample.images) for number, sample in samples.items())):
        prompts: dict[tuple[int, ...], list[Node]] = {}
        for number in branch.numbers:
            sample = samples[number]
            prompt, response = prompt_and_response(vlm.render, sample, every_trace=every_trace)
            length = prefix + len(branch.tokens) + len(prompt) + len(response.tokens)
            if length > context:
                raise LinesideError(
                    f"sample {sample.id} takes {length} tokens and the model's context is {context}: shorten it "
                    "(`lineside validate` finds all such rows)"
                )
            roles = response.roles
            if light and sample.kind == "caption":
                roles = (*(TRACE if role == ANSWER else role for role in roles[:-1]), roles[-1])  # eos keeps its weight
            leaf = Node(response.tokens, roles=roles, leaf=number, name=sample.id)
            prompts.setdefault(prompt, []).append(leaf)
        below.append((branch, share_prefixes({prompt: tuple(leaves) for prompt, leaves in prompts.items()})))
    return ImageTree(*frame_tree(vlm.render, images, below))


def split(vlm: VLM, pack: Pack, features: Features) -> list[tuple[Pack, Features]]:
    """Two packs, each with the features of its pictures, that have the responses of `pack` in order: half of its trees,
    or half of the branches of its only tree. [] if there is only one response."""
    numbers = itertools.count()
    trees = [_numbered(tree, numbers) for tree in pack.trees]
    cut = (trees[: len(trees) // 2], trees[len(trees) // 2 :]) if len(trees) > 1 else _halves(trees[0])
    packs = [vlm.pack(list(half)) for half in cut]
    of = lambda half: [features[i] for i in half.images] if features is not None and half.images else None  # noqa: E731
    return [(half, of(half)) for half in packs]


def _numbered(node: Node, numbers: Iterator[int]) -> Node:
    """The tree with its pictures numbered in the order of a pack's features."""
    images = tuple(next(numbers) for _ in node.images)
    return replace(node, images=images, children=tuple(_numbered(child, numbers) for child in node.children))


def _halves(node: Node) -> tuple[tuple[Node], ...]:
    """Half of the branches at the first fork, and the others; both with the tokens above it. () without a fork."""
    if len(node.children) > 1:
        below = (node.children[: len(node.children) // 2], node.children[len(node.children) // 2 :])
    else:
        below = _halves(node.children[0]) if node.children else ()
    # A target above the fork is counted once.
    return tuple((replace(node, roles=node.roles if i == 0 else (), children=half),) for i, half in enumerate(below))


@dataclass(frozen=True)
class Counts:
    """Numbers of supervised tokens in a whole optimiser step: the divisors of its losses. And that of its pictures."""

    answer: int
    trace: int
    pictures: int = 0

    @classmethod
    def of(cls, packs: Iterable[Pack]) -> Counts:
        """Over all packs of the step."""
        packs = list(packs)
        answer, trace = (sum(int((pack.role == role).sum()) for pack in packs) for role in (ANSWER, TRACE))
        return cls(answer, trace, sum(len(pack.images) for pack in packs))


def numbered(trees: Sequence[ImageTree[P]]) -> list[ImageTree[P]]:
    """The trees of a step with their pictures numbered from first to last, so that a pack knows which of the step's
    pictures it has, however the trees are shared out (`Pack.images`)."""
    numbers = itertools.count()
    return [renumbered(tree, numbers) for tree in trees]


def renumbered(tree: ImageTree[P], numbers: Iterator[int]) -> ImageTree[P]:
    """The tree with these numbers for its pictures."""
    return replace(tree, tree=_numbered(tree.tree, numbers))


def deal(sizes: Sequence[float], hands: int, held: Sequence[float] = ()) -> list[list[int]]:
    """Numbers of things of these sizes, dealt to `hands` so that each gets about the same in all: the largest first, to
    the one that has least. A hand keeps their order. `held`: what each has before."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    least = list(map(float, held)) or [0.0] * hands
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        hand = least.index(min(least))
        dealt[hand].append(number)
        least[hand] += sizes[number]
    return [sorted(numbers) for numbers in dealt]


def packs_of(vlm: VLM, trees: Sequence[ImageTree[P]], pack_tokens: int) -> list[tuple[Pack, tuple[P, ...]]]:
    """Cut the trees of a step into packs of at most `pack_tokens` tokens, each with its pictures in order. A larger
    tree is a pack of its own."""
    out: list[tuple[Pack, tuple[P, ...]]] = []
    held: list[ImageTree[P]] = []

    def flush() -> None:
        if held:
            out.append((vlm.pack([t.tree for t in held]), tuple(image for t in held for image in t.images)))
            held.clear()

    size = 0
    for tree in trees:
        tokens = tree.tree.size()
        if held and size + tokens > pack_tokens:
            flush()
            size = 0
        held.append(tree)
        size += tokens
    flush()
    return out


def blank_pack(vlm: VLM, pictures: int, length: int) -> tuple[Pack, list[Tensor]]:
    """A pack of small blank pictures with two answers of `length` tokens each, and the features (R, D_e) of each. For
    measuring and warming up, where the content does not matter."""
    leaf = Node(vlm.render.prefix([])[:1] * length, roles=(ANSWER,) * length, leaf=0)
    drawn, file = PIL.Image.new("RGB", (SMALL, SMALL)), io.BytesIO()
    drawn.save(file, "PNG")
    blank = Image(file.getvalue())
    tree = Node(vlm.render.prefix([blank]), images=(0,), children=(leaf, leaf), shapes=(vlm.render.shape(blank),))
    return vlm.pack([tree] * pictures), vlm.features(vlm.pixels([drawn])) * pictures


def kept_channels(pictures: int, width: int, share: float) -> Tensor | None:
    """(I, 1, D_e) which channels of each picture of a step are kept; each is dropped with probability `share`. None if
    all are kept.

    SpatialDropout (arXiv 1411.4280): neighbouring tokens are similar, so a channel is dropped in all tokens of a
    picture. The numbers are drawn for the whole step, on every rank: no result depends on how a step is cut into packs
    and shared out.
    """
    return torch.rand(pictures, 1, width) >= share if share else None


def drop_channels(
    features: Sequence[Tensor] | None, kept: Tensor | None, numbers: Sequence[int], share: float
) -> Sequence[Tensor] | None:
    """(P, D_e) of the pictures `numbers` of a step, with dropped channels set to 0 and the others multiplied by
    1/(1 - share). `kept`: see `kept_channels`."""
    if features is None or kept is None:
        return features
    return [row * keep.to(row) / (1 - share) for row, keep in zip(features, kept[list(numbers)])]


def steps_of(
    trees: Iterable[tuple[ImageTree[P], dict[str, int]]], tokens: int
) -> Iterator[tuple[list[ImageTree[P]], dict[str, int]]]:
    """Collect the trees of one optimiser step: the fewest that have `tokens` tokens. Yields them with the cursor after
    the last one."""
    held: list[ImageTree[P]] = []
    size = 0
    cursor: dict[str, int] = {}
    for tree, cursor in trees:
        held.append(tree)
        size += tree.tree.size()
        if size >= tokens:
            yield held, cursor
            held, size = [], 0
    if held:
        yield held, cursor
