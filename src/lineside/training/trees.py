"""Samples to trees: one frame at the root, its prompts below it, their responses as leaves.

The same question with the same think switch stands once, however many traces or captions answer it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.model.features import FeatureStore
from lineside.model.render import CAPTION_PROMPT, Renderer, Segment
from lineside.model.tree import ANSWER, TRACE, Node, Pack, share_prefixes
from lineside.model.vlm import VLM
from lineside.types import Image, Sample
from lineside.verify.traces import trace_problem

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Frame(Generic[P]):
    """A tree and the pictures at its root, in order: images, or what stands for them before there are any."""

    tree: Node
    images: tuple[P, ...]


def prompt_and_response(render: Renderer, sample: Sample) -> tuple[tuple[int, ...], Segment]:
    """Tokens of the prompt below the pictures, and the response with its roles.

    A caption is a response to a fixed prompt with thinking off. A qa sample thinks only if its trace is valid: no
    training signal ever teaches skipping (DESIGN 4). Raises LinesideError for a sample without an answer to supervise.
    """
    if sample.answer is None:
        raise LinesideError(
            f"sample {sample.id} has no answer: a {sample.kind} sample cannot be trained on in align or sft"
        )
    if sample.kind == "caption":
        return render.question(CAPTION_PROMPT, thinking=False), render.response(None, sample.answer)
    trace = sample.trace if thinks(sample) else None
    return render.question(sample.question, thinking=trace is not None), render.response(trace, sample.answer)


def thinks(sample: Sample) -> bool:
    """Whether a qa sample has a valid trace, and so is rendered with thinking on."""
    if sample.trace is None:
        return False
    options = sample.target.options if sample.target and sample.target.kind in ("choice", "exact") else ()
    return _valid(sample.trace, sample.question, sample.answer, tuple(options))


@functools.lru_cache(maxsize=1 << 15)  # every pass asks again, and twice where a question is answered at once as well
def _valid(trace: str, question: str, answer: str | None, options: tuple[str, ...]) -> bool:
    return not trace_problem(trace, question=question, answer=answer, options=options)


def frame_tree(vlm: VLM, group: Sequence[Sample], first_leaf: int = 0) -> Frame[Image]:
    """All samples of one frame as one tree; leaf numbers count up from `first_leaf` in the order of `group`.

    Captions beside questions weigh as traces do: they say at length what is seen. Samples without pictures beside ones
    that have some stand below a root of their own, both roots below an empty node. Raises LinesideError for a sample
    that does not fit the model's context.
    """
    images = group[0].images
    light = any(sample.kind != "caption" for sample in group)
    numbered = list(enumerate(group, start=first_leaf))
    tree = _tree(vlm, [(n, s) for n, s in numbered if s.images or not images], len(images), light)
    if unseen := [(n, s) for n, s in numbered if images and not s.images]:
        tree = Node((), children=(tree, _tree(vlm, unseen, 0, light)))
    return Frame(tree, images)


def _tree(vlm: VLM, numbered: Sequence[tuple[int, Sample]], pictures: int, light: bool) -> Node:
    prefix, context = vlm.render.prefix(pictures), vlm.context
    below: dict[tuple[int, ...], list[Node]] = {}
    for number, sample in numbered:
        prompt, response = prompt_and_response(vlm.render, sample)
        length = len(prefix) + len(prompt) + len(response.tokens)
        if length > context:
            raise LinesideError(
                f"sample {sample.id} takes {length} tokens and the model's context is {context}: shorten it "
                "(`lineside validate` finds all such rows)"
            )
        roles = response.roles
        if light and sample.kind == "caption":
            roles = (*(TRACE if role == ANSWER else role for role in roles[:-1]), roles[-1])  # its end is structure
        below.setdefault(prompt, []).append(Node(response.tokens, roles=roles, leaf=number))
    children = share_prefixes({prompt: tuple(leaves) for prompt, leaves in below.items()})
    return Node(prefix, images=tuple(range(pictures)), children=children)


@dataclass(frozen=True)
class Counts:
    """Supervised tokens of a whole optimiser step, the divisors of its losses."""

    answer: int
    trace: int

    @classmethod
    def of(cls, packs: Iterable[Pack]) -> Counts:
        """Over all packs of the step."""
        packs = list(packs)
        return cls(sum(int((p.role == ANSWER).sum()) for p in packs), sum(int((p.role == TRACE).sum()) for p in packs))


def packs_of(vlm: VLM, frames: Sequence[Frame[P]], pack_tokens: int) -> list[tuple[Pack, tuple[P, ...]]]:
    """Cut a step's frames into packs of at most `pack_tokens` tokens, each with its pictures in order."""
    out: list[tuple[Pack, tuple[P, ...]]] = []
    held: list[Frame[P]] = []

    def flush() -> None:
        if held:
            out.append((vlm.pack([f.tree for f in held]), tuple(image for f in held for image in f.images)))
            held.clear()

    size = 0
    for frame in frames:
        tokens = frame.tree.size()
        if held and size + tokens > pack_tokens:
            flush()
            size = 0
        held.append(frame)
        size += tokens
    flush()
    return out


def blank(vlm: VLM, pictures: int, length: int) -> tuple[Pack, Tensor]:
    """A pack of blank pictures with two answers of `length` tokens each, and its features (I, P, D_e): work whose
    content does not matter."""
    leaf = Node(vlm.render.prefix(0)[:1] * length, roles=(ANSWER,) * length, leaf=0)
    tree = Node(vlm.render.prefix(1), images=(0,), children=(leaf, leaf))
    width = vlm.projector.get_parameter("linear_1.weight").shape[1]
    features = torch.zeros(1, vlm.render.image_tokens, width, device=vlm.device)
    return vlm.pack([tree] * pictures), features.expand(pictures, -1, -1)


def features_of(store: FeatureStore, images: Sequence[Image]) -> Tensor | None:
    """(I, P, D_e) in order, None without pictures."""
    return store.get(images) if images else None


def drop_channels(features: Tensor | None, share: float) -> Tensor | None:
    """(I, P, D_e) with each channel of each picture 0 at probability `share`, else larger by 1 / (1 - share).

    SpatialDropout (arXiv 1411.4280): neighbouring tokens say much the same, so a channel goes from all of a picture's.
    The draws come picture by picture, so that cutting a step into other packs changes none.
    """
    if features is None or share == 0:
        return features
    kept = torch.rand(len(features), 1, features.shape[2]) >= share
    return features * kept.to(features) / (1 - share)


def steps_of(
    frames: Iterable[tuple[Frame[P], dict[str, int]]], tokens: int
) -> Iterator[tuple[list[Frame[P]], dict[str, int]]]:
    """Gather frames until an optimiser step holds `tokens` tokens. Yields them with the cursor after the last one."""
    held: list[Frame[P]] = []
    size = 0
    cursor: dict[str, int] = {}
    for frame, cursor in frames:
        held.append(frame)
        size += frame.tree.size()
        if size >= tokens:
            yield held, cursor
            held, size = [], 0
    if held:
        yield held, cursor
