"""A frame's questions as one tree: the frame's pictures at the root, below them the questions and their references.

Questions with the same references share one node with these pictures, so the frame's other questions do not pay for
them. All that lays out questions uses this: training, stage 3, generation and scoring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lineside.images import seen_key
from lineside.model.render import Renderer
from lineside.model.tree import Node
from lineside.types import Image, frame_images, references


@dataclass(frozen=True, slots=True)
class Branch:
    """The numbers of the caller's questions that have the same references. `tokens` are those of the references."""

    images: tuple[Image, ...]
    tokens: tuple[int, ...]
    numbers: list[int]


def by_frame(questions: Sequence[Sequence[Image]]) -> list[list[int]]:
    """The numbers of the questions of each frame. `questions`: the pictures of each; variants are different frames."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, images in enumerate(questions):
        key = tuple((image.label, seen_key(image)) for image in frame_images(images))
        found.setdefault(key, []).append(number)
    return list(found.values())


def branches(render: Renderer, questions: Iterable[tuple[int, Sequence[Image]]]) -> list[Branch]:
    """The questions (number, pictures) of one frame by their references, in order; first those without any."""
    found: dict[tuple[tuple[str, str], ...], Branch] = {(): Branch((), (), [])}
    for number, images in questions:
        beside = references(images)
        key = tuple((image.label, seen_key(image)) for image in beside)
        if key not in found:
            found[key] = Branch(beside, render.references(beside), [])
        found[key].numbers.append(number)
    return [branch for branch in found.values() if branch.numbers]


def frame_tree(
    render: Renderer, images: Sequence[Image], below: Iterable[tuple[Branch, Sequence[Node]]]
) -> tuple[Node, tuple[Image, ...]]:
    """The tree of one frame, and its pictures in the order in which `pack` lays them out. `below`: the nodes of each
    branch."""
    shown, children = tuple(images), []
    for branch, nodes in below:
        if not branch.images:
            children += nodes
            continue
        numbers = tuple(range(len(shown), len(shown) + len(branch.images)))
        shapes = tuple(map(render.shape, branch.images))
        children.append(Node(branch.tokens, images=numbers, children=tuple(nodes), shapes=shapes))
        shown += branch.images
    numbers, shapes = tuple(range(len(images))), tuple(map(render.shape, images))
    return Node(render.prefix(images), images=numbers, children=tuple(children), shapes=shapes), shown
