"""Steps of several ranks: every frame is laid out as a tree by one rank, and all ranks know the sizes of all trees.

Turning a frame's texts into tokens takes milliseconds: ranks that each did so for all frames would wait for their CPUs.
So the next frames are dealt by what they should take: the tokens of their pictures, which a header tells, and those of
their texts by the number of characters. A rank lays out its own, and tells the others how large they are. A step then
ends where it ends for one process (`packing.steps_of`). All ranks read all rows. Who gets what depends on the frames of
the step alone, so a run that is stopped and goes on deals them as an unbroken one."""

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
Shown = Callable[[Image], Sequence[int]]  # the tokens that stand for a picture, by its header
# Tokens of a character, until the first frames of a step have told it: about the most. So these are too few for the
# step, and those that are still missing even out what was dealt by a wrong guess.
DENSITY = 1.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What a rank knows of a frame."""

    owner: int
    size: int  # tokens
    pictures: int
    cursor: dict[str, int]
    tree: ImageTree[Image] | None  # its own


class _Length(NamedTuple):
    """What tells a frame's size before it is laid out."""

    pictures: int  # tokens
    texts: int  # characters

    def size(self, density: float) -> float:
        """Tokens, with so many for a character."""
        return self.pictures + density * self.texts


class SharedStep(NamedTuple):
    """This rank's trees of a step, whose pictures are numbered over the whole step; and the cursor after it."""

    trees: list[ImageTree[Image]]
    cursor: dict[str, int]


def shared_steps(
    frames: Iterable[Frame],
    lay: Lay,
    shown: Shown,
    tokens: int,
    runtime: Runtime,
    *,
    begun: Callable[[], int] = lambda: 0,
) -> Iterator[SharedStep]:
    """The steps of a stream: the fewest frames that have `tokens` tokens over all ranks. All ranks must go on together.
    Raises the errors of `shown` and `lay`.

    `begun` tells how often the stream has begun anew; what was read before is then dropped."""
    stream, era = iter(frames), begun()
    waiting: list[Frame] = []  # read, but not of the step before
    while True:
        density, more = DENSITY, True
        read: list[Frame] = []
        known: list[_Known] = []
        while more and (left := tokens - sum(frame.size for frame in known)) > 0:
            batch: list[Frame] = []
            lengths: list[_Length] = []
            while left > 0:
                if (frame := waiting.pop(0) if waiting else next(stream, None)) is None:
                    more = False
                    break
                if begun() != era:
                    era, left = begun(), tokens
                    for held in (read, known, batch, lengths):
                        held.clear()
                length = _length(frame, shown)
                if batch and length.size(density) > left:  # whether it is needed is known once the others are laid
                    waiting.insert(0, frame)
                    break
                batch.append(frame)
                lengths.append(length)
                left -= length.size(density)
            laid = _laid(batch, [length.size(density) for length in lengths], known, lay, runtime)
            read += batch
            known += laid
            if characters := sum(length.texts for length in lengths):
                words = sum(frame.size for frame in laid) - sum(length.pictures for length in lengths)
                density = max(words, 1) / characters
        step = known[: _needed([frame.size for frame in known], tokens)]
        if not step:
            return
        waiting = read[len(step) :] + waiting
        yield SharedStep(_own(step), step[-1].cursor)


def _length(frame: Frame, shown: Shown) -> _Length:
    """References count once for all questions that show the same ones."""
    samples, _ = frame
    pictures = [samples[0].frame_images, *{sample.references for sample in samples}]
    return _Length(
        sum(len(shown(image)) for images in pictures for image in images),
        sum(len(s.question) + len(s.trace or "") + len(s.answer or "") for s in samples),
    )


def _laid(
    batch: Sequence[Frame],
    sizes: Sequence[float],
    before: Sequence[_Known],
    lay: Lay,
    runtime: Runtime,
) -> list[_Known]:
    """The frames of a batch, dealt by their `sizes` so that each rank has about as much as the others, with what it has
    from before."""
    held = [sum(frame.size for frame in before if frame.owner == rank) for rank in range(runtime.world_size)]
    dealt = deal(sizes, runtime.world_size, held)
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
