"""The same held-out frame answered by the teacher, by sft and by rlvr, for the page of the headline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arms import Job
from headline_table import FAMILIES, Results
from lineside.data.job import task_file
from lineside.data.plan import question_id
from lineside.data.splits import stable_hash
from lineside.data.taskfile import merge
from lineside.data.tasks import survey
from lineside.data.teacher import SimTeacher
from lineside.judgement.files import thumbnail
from lineside.judgement.schema import Row
from lineside.label import SIM_TASKS
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
    """One of each family, of the first seed that has sft and rlvr; none if no seed has."""
    seeds = [s for s in results.seeds("rlvr", SPLIT, MODE) if s in results.seeds("sft", SPLIT, MODE)]
    if not seeds:
        return []
    job = results.seeds("rlvr", SPLIT, MODE)[seeds[0]]
    sft, rlvr = ({row.id: row for row in results.rows(arm, SPLIT, MODE, seeds[:1]).values()} for arm in ("sft", "rlvr"))
    chosen = {family: row for family in FAMILIES if (row := first_difference(family, sft, rlvr)) is not None}
    taught = {row.id: (said, frame) for row, said, frame in teacher_answers(job, list(chosen.values()))}
    return [
        Example(
            family, row.question, row.reference, taught[row.id][0], answer(sft[row.id]), answer(rlvr[row.id]),
            thumbnail(taught[row.id][1].image.bytes, name=row.id),
        )
        for family, row in chosen.items() if row.id in taught
    ]  # fmt: skip


def first_difference(family: str, sft: Mapping[str, Row], rlvr: Mapping[str, Row]) -> Row | None:
    """The question of the lowest hash that exactly one of the two answers rightly."""
    differ = [sft[i] for i in sft.keys() & rlvr.keys() if sft[i].family == family and sft[i].exact != rlvr[i].exact]
    return min(differ, key=lambda row: stable_hash("example", row.id), default=None)


def answer(row: Row) -> str:
    """What the model said, and whether it is right."""
    trace = f" ({row.trace})" if row.trace else ""
    return f"{'right' if row.exact else 'wrong'}: {row.answer or 'nothing'}{trace}"


def teacher_answers(job: Job, rows: Sequence[Row]) -> Iterator[tuple[Row, str, Frame]]:
    """What the run's teacher would answer if it saw these held-out frames as it sees training frames."""
    recipe = job.recipe
    folder: Path = recipe.data.frames or job.folder / "frames"
    teacher = SimTeacher(folder, recipe.data.label.acuity)
    tasks = merge([task_file(Path(name)) for name in SIM_TASKS]).tasks
    wanted = {row.id: row for row in rows}
    for frame in teacher.frames():
        if not isinstance(frame, Frame) or not any(id.startswith(f"{frame.id}/") for id in wanted):
            continue
        for task in tasks:
            for candidate in survey(task, frame).candidates:
                row = wanted.get(question_id(frame, task, candidate.key))
                if row is not None:
                    said = teacher.answered(frame, task, candidate)
                    right = said is not None and verify(said.answer, candidate.target).exact
                    yield row, f"{'right' if right else 'wrong'}: {said.answer if said else 'nothing'}", frame
