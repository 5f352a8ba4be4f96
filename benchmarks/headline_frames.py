"""The same held-out frame answered by the teacher, by sft and by rlvr, for the page of the headline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from arms import Job
from headline_table import Results
from lineside.data.job import SIM_TASKS, task_file
from lineside.data.plan import question_id
from lineside.data.taskfile import merge
from lineside.data.tasks import survey
from lineside.data.teacher import SimTeacher
from lineside.hashing import stable_hash
from lineside.images import thumbnail
from lineside.judgement.schema import Row
from lineside.types import Frame
from lineside.verify.verifiers import verify

SPLIT, MODE = "heldout", "think"


@dataclass(frozen=True)
class Example:
    """A question about a frame, and what each answered."""

    family: str
    question: str
    truth: str
    teacher: str
    sft: str
    rlvr: str
    picture: bytes  # JPEG


def examples(results: Results) -> list[Example]:
    """One of each family, of the first seed that has sft, rlvr and its frames: of the questions that exactly one of the
    two answers rightly and the teacher does not, the one of the lowest hash."""
    seeds = [s for s in results.seeds("rlvr", SPLIT, MODE) if s in results.seeds("sft", SPLIT, MODE)]
    if not seeds:
        return []
    job = results.seeds("rlvr", SPLIT, MODE)[seeds[0]]
    if not frames_of(job).is_dir():
        return []
    sft, rlvr = ({row.id: row for row in results.rows(arm, SPLIT, MODE, seeds[:1]).values()} for arm in ("sft", "rlvr"))
    differ = {i: row for i, row in sft.items() if i in rlvr and row.exact != rlvr[i].exact}
    found: dict[str, tuple[Row, str, Frame]] = {}
    for row, said, frame in teacher_answers(job, differ):
        if row.family not in found or place(row) < place(found[row.family][0]):
            found[row.family] = row, said, frame
    return [
        Example(
            family, row.question, row.reference, said, answer(sft[row.id]), answer(rlvr[row.id]),
            thumbnail(frame.image.bytes, name=row.id),
        )
        for family, (row, said, frame) in sorted(found.items())
    ]  # fmt: skip


def frames_of(job: Job) -> Path:
    """The folder of the run's frames."""
    return job.recipe.data.frames or job.folder / "frames"


def place(row: Row) -> int:
    """By what the first of several questions is chosen: chance, not a person."""
    return stable_hash("example", row.id)


def answer(row: Row) -> str:
    """What the model said, and whether it is right."""
    trace = f" ({row.trace})" if row.trace else ""
    return f"{'right' if row.exact else 'wrong'}: {row.answer or 'nothing'}{trace}"


def teacher_answers(job: Job, rows: Mapping[str, Row]) -> Iterator[tuple[Row, str, Frame]]:
    """The questions that the run's teacher answers wrongly where it sees these held-out frames as it sees training
    frames, with what it says and the frame."""
    teacher = SimTeacher(frames_of(job), job.recipe.data.label.acuity)
    tasks = merge([task_file(Path(name)) for name in SIM_TASKS]).tasks
    for frame in teacher.frames():
        if not isinstance(frame, Frame) or frame.split != SPLIT:
            continue
        for task in tasks:
            for candidate in survey(task, frame).candidates:
                row = rows.get(question_id(frame, task, candidate.key))
                said = teacher.answered(frame, task, candidate) if row is not None else None
                if row is not None and said is not None and not verify(said.answer, candidate.target).exact:
                    yield row, f"wrong: {said.answer}", frame
