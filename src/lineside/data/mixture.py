"""Several folders of samples as one stream, mixed by weight: deterministic, resumable, streamed.

Each folder has its own epochs (`store.stream_frame_samples`) and is shuffled again in each, so a small folder is read
more often than a large one. The next frame always comes from the folder that is farthest behind its share. So the
shares are right at any time, not only in the long run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.data import store
from lineside.data.evenly import how_often, whole_times
from lineside.errors import LinesideError
from lineside.hashing import hash_uniform, stable_hash
from lineside.settings import UNALTERED, Augment
from lineside.types import Sample, Target

OUTCOME_ONLY = "outcomes are targets of stage 3, and never become answers of stage 2"
ONLY_FAILURES = (
    "all prompts only say that an answer was wrong. From these alone a model learns to avoid its answers, the right "
    "ones too. Add answers that succeeded, truths, or old samples whose truth is known"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of samples and its weight: the number of its frames relative to those of the other folders. `even`: in a
    pass all its tasks have like shares, as far as they can (evenly.py)."""

    folder: Path
    weight: float = 1.0
    even: bool = False


@dataclass(frozen=True, slots=True)
class Mixture:
    """The folders of samples that a stage trains on. A pass reads the first folder with samples of the stage's kind
    once.

    Each pass over a folder shows the next variant of its pictures (`augment`). `vouched` leaves out samples whose
    target only a teacher vouches for, `leave_out` those of these tasks (family/task), `without` those of these ids,
    `outcomes: False` those whose target comes from an outcome; a frame that then has no samples is an empty tuple.
    """

    parts: tuple[Part, ...]
    augment: Augment = UNALTERED
    vouched: bool = False
    leave_out: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    outcomes: bool = True

    @staticmethod
    def of(samples: Path | Mixture) -> Mixture:
        """The mixture of one folder; a mixture is returned as it is."""
        return samples if isinstance(samples, Mixture) else Mixture((Part(samples),))

    def having(self, kind: str, split: str) -> tuple[list[Part], list[int]]:
        """The folders that have such samples, and the number of frames with such samples in each.

        Raises LinesideError if a weight is not positive, or if no folder has such samples.
        """
        for part in self.parts:
            if not 0 < part.weight < float("inf"):
                raise LinesideError(
                    f"{part.folder}: weight {part.weight}: expected a number above 0; else remove the folder"
                )
        sizes = [store.count_frames_with(part.folder, kind=kind, split=split) for part in self.parts]
        if not any(sizes):
            folders = ", ".join(str(part.folder) for part in self.parts) or "a mixture without folders"
            raise LinesideError(f"{folders}: no {kind} samples of split {split}")
        return [part for part, size in zip(self.parts, sizes) if size], [size for size in sizes if size]

    def frame_count(self, kind: str, split: str = "train") -> int:
        """Number of frames in a pass."""
        parts, sizes = self.having(kind, split)
        return round(sizes[0] * sum(part.weight for part in parts) / parts[0].weight)

    def stream(
        self, kind: str, split: str = "train", *, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[tuple[Sample, ...]]:
        """The samples of each frame of pass `epoch`, from frame `skip` on. For skipped frames no picture is read."""
        size = self.frame_count(kind, split)
        yield from islice(self.endless(kind, split, seed=seed, skip=epoch * size + skip), max(0, size - skip))

    def endless(self, kind: str, split: str, *, seed: int, skip: int = 0) -> Iterator[tuple[Sample, ...]]:
        """The samples of each frame, without end. `skip=n` gives the same stream from its n-th frame on."""
        parts, sizes = self.having(kind, split)
        order = turns([part.weight for part in parts], seed)
        passed = [0] * len(parts)
        for _ in range(skip):
            passed[next(order)] += 1
        streams = [
            _for_ever(part, size, kind, split, seed + place, gone, self.augment)
            for place, (part, size, gone) in enumerate(zip(parts, sizes, passed))
        ]
        for place in order:
            yield tuple(s for s in next(streams[place]) if self._takes(s))

    def _takes(self, sample: Sample) -> bool:
        named_out = self.leaves_out(sample.id, sample.family, sample.task)
        unvouched = self.vouched and not by_record(sample.target)
        return not (named_out or unvouched or (not self.outcomes and _by_outcome(sample.target)))

    def leaves_out(self, id: str, family: str, task: str) -> bool:
        """Whether a sample is left out by its id or its task."""
        return id in self.without or f"{family}/{task}" in self.leave_out

    def teachers(self, kind: str, split: str = "train") -> tuple[int, int]:
        """(samples whose target comes from a teacher alone, all samples), as `provenances`."""
        found = self.provenances(kind, split)
        return found["teacher"], found.total()

    def provenances(self, kind: str, split: str = "train") -> Counter[str]:
        """Samples by the provenance of their target ("" without one), without those left out by id or task. No picture
        is read. A mixture without `outcomes` has none from these."""
        found = Counter(target.get("provenance", "") for target in self._targets(kind, split))
        if not self.outcomes:
            del found["outcome"]
        return found

    def only_failures(self, kind: str, split: str = "train") -> bool:
        """Whether there are samples of which a wrong answer is known, and none of which more is."""
        known = False
        for target in self._targets(kind, split):
            if target.get("kind") == "not":
                known = True
            elif not self.vouched or target.get("provenance") != "teacher":
                return False
        return known

    def _targets(self, kind: str, split: str) -> Iterator[dict[str, Any]]:
        """The targets of samples, as stored, without those left out by id or task. No picture is read."""
        for part in self.parts:
            for path in store.sample_shards(part.folder, kind=kind, split=split):
                for row in store.read_columns(path, ("target", "id", "family", "task")):
                    if not self.leaves_out(row["id"], row["family"], row["task"]):
                        yield json.loads(row["target"] or "{}")

    def refuse_outcomes(self) -> None:
        """Raises LinesideError if an outcome vouches for an answer to train on."""
        for part in self.parts:
            for path in store.sample_shards(part.folder, kind="qa", split="train"):
                for row in store.read_columns(path, ("id", "target")):
                    if json.loads(row["target"] or "{}").get("provenance") == "outcome":
                        raise LinesideError(f"{path}: the target of {row['id']} comes from an outcome: {OUTCOME_ONLY}")


def by_record(target: Target | None) -> bool:
    """Whether a record, a simulator or an outcome vouches for a target, and not only a teacher."""
    return target is None or target.provenance != "teacher"


def _by_outcome(target: Target | None) -> bool:
    return target is not None and target.provenance == "outcome"


def turns(weights: Sequence[float], seed: int) -> Iterator[int]:
    """The part that gives the next frame, without end. Frame k of a part with share w is due at (k + u) / w, where u is
    a random number of the part.

    After n frames, a part has given n w of them, with an error of at most half the number of parts. If two frames are
    due at the same time, the first part gives the next one.
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
    part: Part, size: int, kind: str, split: str, seed: int, skip: int, augment: Augment
) -> Iterator[tuple[Sample, ...]]:
    epoch, skip = divmod(skip, size)
    often = how_often(store.tasks_of_frames(part.folder, kind=kind, split=split)) if part.even else None
    while True:
        times = None if often is None else whole_times(often, hash_uniform("even", seed, epoch))
        stream = store.stream_frame_samples(
            part.folder, kind=kind, split=split, seed=seed, epoch=epoch, skip=skip, times=times
        )
        yield from (varied(frame_samples, epoch, augment) for frame_samples in stream)
        epoch, skip = epoch + 1, 0


def varied(frame_samples: tuple[Sample, ...], epoch: int, augment: Augment) -> tuple[Sample, ...]:
    """The samples of a frame with the variant of its pictures for this pass. The first pass shows different variants of
    different frames. References stay as they are.

    Raises LinesideError for a point target if variants move what a picture shows.
    """
    if augment.variants == 1:
        return frame_samples
    for sample in frame_samples if augment.moves else ():
        if sample.target is not None and sample.target.kind == "point":
            raise LinesideError(
                f"sample {sample.id} asks for a point, and data.augment.mirror and data.augment.crop move it: set "
                "data.augment.light alone, or leave such tasks out"
            )
    variant = (stable_hash("variant", frame_samples[0].id) + epoch) % augment.variants
    images = tuple(replace(image, variant=variant) for image in frame_samples[0].frame_images)
    return tuple(replace(sample, images=images + sample.references) for sample in frame_samples)
