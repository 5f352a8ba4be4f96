"""The answers of records, one by one: from frames with a task file, or from samples.

An audit asks which of them are wrong, so each knows where it comes from: its column, and the cell, camera, week or any
other column of its frame. A point has no answer that could be compared, and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lineside.data.columns import columns_of_frame, columns_of_sample
from lineside.data.folders import Rejected
from lineside.data.plan import question_id
from lineside.data.sources import FrameSource
from lineside.data.store import read_samples, sample_shards
from lineside.data.taskfile import TaskFile
from lineside.data.tasks import survey, with_teacher_answer
from lineside.data.teacher import SimTeacher
from lineside.errors import LinesideError
from lineside.images import image_key, undecodable
from lineside.strict import nearest
from lineside.types import Frame, Image, Sample, Target
from lineside.verify.members import members_text
from lineside.verify.quantity import number_text

PLACES: tuple[str, ...] = (
    "cell",
    "camera",
    "sku",
    "week",
    "day",
    "hour",
    "split",
)  # columns that every frame has, known or not
USUAL = ("cell", "camera")  # sources that are told apart without being asked for
QUESTIONS = ("qa", "prompt")  # kinds of samples
LEFT_OUT_POINT = "a point is not compared"


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of a record: the question, and what the record says.

    `key` names the element of a task with `each`. `picture` is the key of the frame's picture. `said` is a teacher's
    answer to the same question. `sources` maps each way to tell records apart (column, cell, ...) to this one's value.
    """

    id: str
    frame: str
    picture: str
    scene: str
    family: str
    name: str
    key: str
    question: str
    answer: str
    target: Target
    said: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """`family/task`."""
        return f"{self.family}/{self.name}"


@dataclass
class Recorded:
    """Records that can be streamed more than once, each with its picture. `left_out` counts what is none, by reason."""

    total: int  # items that `read` gives, as far as it is known before
    read: Callable[[], Iterator[tuple[Image, tuple[Record, ...]]]]
    left_out: Counter[str] = field(default_factory=Counter)


def recorded_in_frames(source: FrameSource | SimTeacher, file: TaskFile, *, by: Sequence[str] = ()) -> Recorded:
    """The records of frames, as the tasks of a file ask for them. `by`: more columns of the frames' records.

    Raises LinesideError for a column in `by` that no frame has; reading raises it for a column that a task lacks.
    """
    check_columns(by, columns_carried(source, by), "--by")

    def read() -> Iterator[tuple[Image, tuple[Record, ...]]]:
        found.left_out.clear()
        for item in source.frames():
            if isinstance(item, Rejected):
                found.left_out["an input that cannot be read"] += 1
                continue
            if undecodable(item.image.bytes):
                found.left_out["a picture that cannot be read"] += 1
                continue
            yield item.image, tuple(_of_frame(item, file, by, found.left_out))

    found = Recorded(source.total, read)
    return found


def _of_frame(frame: Frame, file: TaskFile, by: Sequence[str], left_out: Counter[str]) -> Iterator[Record]:
    sources = _sources(columns_of_frame(frame), by)
    picture = image_key(frame.image.bytes)
    for task in file.tasks:
        asked = survey(task, frame)
        left_out.update(asked.skipped)
        for candidate in asked.candidates:
            if candidate.target.kind == "point":
                left_out[LEFT_OUT_POINT] += 1
                continue
            told = with_teacher_answer(task, frame, candidate) if task.answer.teacher_column else None
            yield Record(
                question_id(frame, task, candidate.key),
                frame.id,
                picture,
                frame.meta.scene or picture,
                task.family,
                task.name,
                candidate.key,
                candidate.question,
                answer_text(candidate.target),
                candidate.target,
                told.answer if told is not None else None,
                {"column": f"{task.answer.column} ({task.family}/{task.name})", **sources},
            )


def recorded_in_samples(folder: Path, *, by: Sequence[str] = ()) -> Recorded:
    """The records of a folder of samples: each question once. A teacher's answer to the same question becomes `said`.

    Raises LinesideError if the folder has no samples with questions, and for a column in `by` that none of them has.
    """
    if not any(sample_shards(folder, kind=kind) for kind in QUESTIONS):
        raise LinesideError(f"{folder}: no questions here (qa-*.parquet, prompt-*.parquet); make them with label")
    told: dict[tuple[str, ...], str] = {}
    carried: dict[str, None] = dict.fromkeys(PLACES)
    for sample in _questions(folder):
        carried |= dict.fromkeys(columns_of_sample(sample))
        if sample.target is not None and sample.target.provenance == "teacher" and sample.answer is not None:
            told[_key(sample)] = sample.answer
    check_columns(by, carried, "--by")

    def read() -> Iterator[tuple[Image, tuple[Record, ...]]]:
        found.left_out.clear()
        met: set[tuple[str, ...]] = set()
        for sample in _questions(folder):
            key = _key(sample)
            if key in met or sample.target is None:
                continue
            if sample.target.provenance == "teacher":
                found.left_out["only a teacher vouches for it"] += 1
                continue
            if sample.target.kind == "not":
                found.left_out["an outcome only says what is wrong"] += 1
                continue
            met.add(key)
            if sample.target.kind == "point":
                found.left_out[LEFT_OUT_POINT] += 1
                continue
            yield sample.images[0], (_of_sample(sample, key[0], by, told.get(key)),)

    found = Recorded(0, read)
    return found


def _questions(folder: Path) -> Iterator[Sample]:
    for kind in QUESTIONS:
        yield from read_samples(folder, kind=kind)


def _key(sample: Sample) -> tuple[str, ...]:
    return image_key(sample.images[0].bytes), sample.family, sample.task, sample.question


def _of_sample(sample: Sample, picture: str, by: Sequence[str], said: str | None) -> Record:
    assert sample.target is not None
    frame, _, key = sample.id.rpartition(f"/{sample.task}")  # as `question_id` makes it
    return Record(
        sample.id,
        frame or sample.id,
        picture,
        sample.meta.scene or picture,
        sample.family,
        sample.task,
        key.removeprefix("/") if frame else "",
        sample.question,
        answer_text(sample.target),
        sample.target,
        said,
        {
            "column": sample.key,
            **_sources(columns_of_sample(sample), by),
        },
    )


def answer_text(target: Target) -> str:
    """What a target says, as text: equal for equal answers. "" for a point."""
    if target.kind == "number":
        return f"{number_text(target.value, target.resolution, target.period)} {target.unit}".rstrip()
    if target.kind == "set":
        return members_text(target.accepted) if target.counted else ", ".join(sorted(target.accepted)) or "none"
    return target.accepted[0] if target.accepted else ""


def _sources(columns: Mapping[str, list[str]], by: Sequence[str]) -> dict[str, str]:
    wanted = [*(place for place in USUAL if columns.get(place)), *by]
    return {column: ", ".join(columns.get(column, ())) or "unknown" for column in wanted}


def columns_carried(source: FrameSource | SimTeacher, wanted: Collection[str]) -> dict[str, None]:
    """The names of the columns that frames carry; reading ends where all `wanted` ones are met."""
    carried: dict[str, None] = dict.fromkeys(PLACES)
    for record in source.records() if not carried.keys() >= set(wanted) else ():
        carried |= dict.fromkeys(record)
        if carried.keys() >= set(wanted):
            break
    return carried


def check_columns(wanted: Collection[str], carried: Collection[str], option: str) -> None:
    """Raises LinesideError that names `option`, for a wanted column that nothing carries."""
    for column in wanted:
        if column not in carried:
            has = ", ".join(carried)
            raise LinesideError(
                f"{option} {column}: no frame has such a column{nearest(column, carried)}; there is {has}"
            )
