"""Several folders of samples as one stream, each as often as its weight says: deterministic, resumable, streamed.

Each folder is read in epochs of its own (`store.stream_groups`), shuffled anew in each; one that is short is met more
often than one that is long. The folder whose next group is due first gives it, so that the shares hold at every moment
and not only in the long run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lineside.data import store
from lineside.data.splits import hash_uniform, stable_hash
from lineside.errors import LinesideError
from lineside.recipe import UNALTERED, Augment
from lineside.types import Sample, Target


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of samples and its weight: groups (the samples of a frame) of it beside those of the others."""

    folder: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a stage trains on: folders of samples. A pass meets the first that has samples of its kind once.

    Each pass over a folder shows the next of the variants of its pictures that `augment` asks for. `vouched`: leave out
    samples whose target only a teacher vouches for; a frame of which nothing is left is an empty group.
    """

    parts: tuple[Part, ...]
    augment: Augment = UNALTERED
    vouched: bool = False

    @staticmethod
    def of(samples: Path | Mixture) -> Mixture:
        """One folder is a mixture too."""
        return samples if isinstance(samples, Mixture) else Mixture((Part(samples),))

    def having(self, kind: str, split: str) -> tuple[list[Part], list[int]]:
        """The folders that have such samples, and how many groups each has.

        Raises LinesideError when a weight is not positive, or none has any.
        """
        for part in self.parts:
            if not 0 < part.weight < float("inf"):
                raise LinesideError(
                    f"{part.folder}: weight {part.weight}: expected a number above 0, or no such folder"
                )
        sizes = [store.count_groups(part.folder, kind=kind, split=split) for part in self.parts]
        if not any(sizes):
            folders = ", ".join(str(part.folder) for part in self.parts) or "a mixture of nothing"
            raise LinesideError(f"{folders}: no {kind} samples of split {split}")
        return [part for part, size in zip(self.parts, sizes) if size], [size for size in sizes if size]

    def groups(self, kind: str, split: str = "train") -> int:
        """Number of groups in a pass."""
        parts, sizes = self.having(kind, split)
        return round(sizes[0] * sum(part.weight for part in parts) / parts[0].weight)

    def stream(
        self, kind: str, split: str = "train", *, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[tuple[Sample, ...]]:
        """The groups of pass `epoch` from the `skip`-th on; those passed over cost no picture."""
        size = self.groups(kind, split)
        yield from islice(self.endless(kind, split, seed=seed, skip=epoch * size + skip), max(0, size - skip))

    def endless(self, kind: str, split: str, *, seed: int, skip: int = 0) -> Iterator[tuple[Sample, ...]]:
        """Groups without end. With `skip=n` it is the unbroken stream from its n-th group on."""
        parts, sizes = self.having(kind, split)
        order = turns([part.weight for part in parts], seed)
        passed = [0] * len(parts)
        for _ in range(skip):
            passed[next(order)] += 1
        streams = [
            _for_ever(part.folder, size, kind, split, seed + place, gone, self.augment)
            for place, (part, size, gone) in enumerate(zip(parts, sizes, passed))
        ]
        for place in order:
            group = next(streams[place])
            yield tuple(sample for sample in group if by_record(sample.target)) if self.vouched else group

    def teachers(self, kind: str, split: str = "train") -> tuple[int, int]:
        """(samples whose target only a teacher vouches for, all samples). No picture is read."""
        alone = total = 0
        for part in self.parts:
            for path in store.sample_shards(part.folder, kind=kind, split=split):
                for row in store.read_columns(path, ("target",)):
                    total += 1
                    alone += '"teacher"' in (row["target"] or "") and not by_record(
                        Target.from_json(json.loads(row["target"]))
                    )
        return alone, total


def by_record(target: Target | None) -> bool:
    """Whether a record, a simulator or an outcome says what is right, and not only a teacher."""
    return target is None or target.provenance != "teacher"


def turns(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Which part is next, for ever. The k-th group of a part of share w is due at (k + u) / w, u a draw of the part.

    After n groups a part has given n w to within half the number of parts; equal dues go to the first part.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    starts = [hash_uniform("mixture", seed, place) for place in range(len(shares))]
    given = [0] * len(shares)
    while True:
        place = min(range(len(shares)), key=lambda p: (given[p] + starts[p]) / shares[p])
        given[place] += 1
        yield place


def _for_ever(
    folder: Path, size: int, kind: str, split: str, seed: int, skip: int, augment: Augment
) -> Iterator[tuple[Sample, ...]]:
    epoch, skip = divmod(skip, size)
    while True:
        for group in store.stream_groups(folder, kind=kind, split=split, seed=seed, epoch=epoch, skip=skip):
            yield varied(group, epoch, augment)
        epoch, skip = epoch + 1, 0


def varied(group: tuple[Sample, ...], epoch: int, augment: Augment) -> tuple[Sample, ...]:
    """The samples of a frame with that variant of its pictures whose turn it is in a pass; frames begin with different
    ones.

    Raises LinesideError for a target that lies elsewhere in a variant.
    """
    if augment.variants == 1:
        return group
    for sample in group if augment.moves else ():
        if sample.target is not None and sample.target.kind == "point":
            raise LinesideError(
                f"sample {sample.id} asks for a point, and data.augment.mirror and data.augment.crop move what it "
                "shows: set data.augment.light alone, or leave such tasks out"
            )
    variant = (stable_hash("variant", group[0].id) + epoch) % augment.variants
    images = tuple(replace(image, variant=variant) for image in group[0].images)
    return tuple(replace(sample, images=images) for sample in group)
