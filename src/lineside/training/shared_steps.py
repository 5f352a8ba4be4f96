"""Steps of several ranks: every frame is laid out as a tree by one rank, and all ranks know the sizes of all trees.

Turning a frame's texts into tokens takes milliseconds: ranks that each did so for all frames would wait for their CPUs.
So the next frames are dealt by the lengths of their texts, a rank lays out its own, and tells the others how large they
are. A step then ends where it ends for one process (`packing.steps_of`). All ranks read all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from lineside.runtime import Runtime
from lineside.training.packing import ImageTree, deal, renumbered
from lineside.types import Image, Sample

Frame = tuple[tuple[Sample, ...], dict[str, int]]  # the samples of a frame, and the cursor after it
Lay = Callable[[Sequence[Sample]], ImageTree[Image]]
PICTURE = 200  # characters that a picture counts as, where frames are dealt


@dataclass(frozen=True, slots=True)
class _Known:
    """What a rank knows of a frame."""

    owner: int
    size: int  # tokens
    pictures: int
    cursor: dict[str, int]
    tree: ImageTree[Image] | None  # its own


class SharedStep(NamedTuple):
    """This rank's trees of a step, whose pictures are numbered over the whole step; and the cursor after it."""

    trees: list[ImageTree[Image]]
    cursor: dict[str, int]


def shared_steps(
    frames: Iterable[Frame],
    lay: Lay,
    tokens: int,
    runtime: Runtime,
    *,
    begun: Callable[[], int] = lambda: 0,
) -> Iterator[SharedStep]:
    """The steps of a stream: the fewest frames that have `tokens` tokens over all ranks. All ranks must go on together.

    `begun` tells how often the stream has begun anew; what was read before is then dropped."""
    known: list[_Known] = []
    stream, scale, era, more = iter(frames), 1.0, begun(), True  # `scale`: tokens for a character
    while more or known:
        while more and (left := tokens - sum(frame.size for frame in known)) > 0:
            batch: list[Frame] = []
            length = 0
            while scale * length < left:
                if (frame := next(stream, None)) is None:
                    more = False
                    break
                if begun() != era:
                    era, left, length = begun(), tokens, 0
                    known.clear()
                    batch.clear()
                batch.append(frame)
                length += _length(frame)
            laid = _laid(batch, known, lay, runtime)
            known += laid
            if laid:
                scale = max(1, sum(frame.size for frame in laid)) / max(1, length)
        step = known[: _needed([frame.size for frame in known], tokens)]
        del known[: len(step)]
        if step:
            yield SharedStep(_own(step), step[-1].cursor)


def _length(frame: Frame) -> int:
    """About how much a frame takes: the characters of its texts."""
    samples, _ = frame
    return PICTURE * len(samples[0].images) + sum(
        len(s.question) + len(s.trace or "") + len(s.answer or "") for s in samples
    )


def _laid(
    batch: Sequence[Frame],
    before: Sequence[_Known],
    lay: Lay,
    runtime: Runtime,
) -> list[_Known]:
    """The frames of a batch, dealt so that each rank has about as much as the others, with what it has from before."""
    held = [sum(frame.size for frame in before if frame.owner == rank) for rank in range(runtime.world_size)]
    dealt = deal([_length(frame) for frame in batch], runtime.world_size, held)
    own = {number: lay(batch[number][0]) for number in dealt[runtime.rank]}
    told = runtime.exchange([[number, tree.tree.size(), len(tree.images)] for number, tree in own.items()])
    found = {
        number: _Known(rank, size, pictures, batch[number][1], own.get(number))
        for rank, theirs in enumerate(told) for number, size, pictures in theirs
    }  # fmt: skip
    return [found[number] for number in range(len(batch))]


def _needed(sizes: Sequence[int], tokens: int) -> int:
    """How many of the first things have `tokens` tokens in all; all if they have fewer."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total >= tokens:
            return number + 1
    return len(sizes)


def _own(step: Sequence[_Known]) -> list[ImageTree[Image]]:
    """This rank's trees of a step."""
    trees, first = [], 0
    for frame in step:
        if frame.tree is not None:
            trees.append(renumbered(frame.tree, count(first)))
        first += frame.pictures
    return trees
