"""Suites: the questions of a split on which a model is judged, each once, with what tells them apart."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lineside.images import image_key
from lineside.types import Sample, Target
from lineside.verify.verifiers import answer_to

HELD_OUT = ("heldout", "shifted")


@dataclass(frozen=True, slots=True)
class Suite:
    """The questions of a split, each once, and how many were left out because their target is a teacher's alone."""

    questions: tuple[Sample, ...]
    left_out: int


def suite(samples: Iterable[Sample], *, split: str, limit: int | None = None) -> Suite:
    """Takes each question once, because several traces of it are several samples. The order is of first appearance.

    Held-out suites take no target from a teacher alone. A caption, or a sample without a target, is not a question.
    `limit`: at most this many questions, spread evenly over tasks.
    """
    unique: dict[tuple[object, ...], Sample] = {}
    for sample in samples:
        if sample.split == split and is_question(sample):
            key = (*(image_key(image.bytes) for image in sample.images), sample.family, sample.task, sample.question)
            if key not in unique or target_of(unique[key]).provenance == "teacher":
                unique[key] = sample
    vouched = [s for s in unique.values() if split not in HELD_OUT or target_of(s).provenance != "teacher"]
    return Suite(tuple(_spread(vouched, limit)), len(unique) - len(vouched))


def is_question(sample: Sample) -> bool:
    """Whether a right answer to a sample is known."""
    return sample.target is not None and sample.kind != "caption" and sample.target.kind != "not"


def _spread(questions: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` questions, evenly over tasks, in their order; scenes are taken in the order of their hashes.

    All tasks start with the same scenes, so that their questions share pictures.
    """
    if limit is None or len(questions) <= limit:
        return questions
    order = {scene_of(s): hashlib.sha256(scene_of(s).encode()).digest() for s in questions}
    turn: dict[tuple[str, str], int] = defaultdict(int)
    places: list[tuple[int, int]] = []
    for index in sorted(range(len(questions)), key=lambda i: (order[scene_of(questions[i])], i)):
        task = questions[index].family, questions[index].task
        places.append((turn[task], index))
        turn[task] += 1
    return [questions[index] for index in sorted(index for _, index in sorted(places)[:limit])]


def target_of(sample: Sample) -> Target:
    """The target of a question of a suite, which always has one."""
    assert sample.target is not None, f"{sample.id}: a question of a suite has a target"
    return sample.target


def scene_of(sample: Sample) -> str:
    """The scene; without one the picture, because questions about one picture are never independent."""
    if sample.meta.scene:
        return sample.meta.scene
    return image_key(sample.images[0].bytes) if sample.images else sample.id


def reference_of(sample: Sample) -> str:
    """A right answer as a person would write it: the teacher's, else one derived from the target."""
    if sample.answer is not None:
        return sample.answer
    return answer_to(target_of(sample))


def suite_digest(questions: Sequence[Sample]) -> str:
    """SHA-256 over questions and right answers in any order: equal digests mean the same suite. References do not
    count, so that a model with them can be compared with one without."""
    lines = sorted(
        json.dumps(
            [
                sample.id,
                sample.question,
                target_of(sample).to_json(),
                [image_key(image.bytes) for image in sample.frame_images],
            ],
            sort_keys=True,
        )
        for sample in questions
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
