"""task check: what is wrong with a task file, held against the records it is meant for, before anything is labelled.

Every task is asked of the first records: a column that is not there is named with its nearest, a value of another type
than its use with the value. Then ten questions as they will be asked, with their answers, and how the answers of each
task balance. Left out: whether a phrasing is good English, and whether the picture shows the answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside.data.plan import most_of_each
from lineside.data.sources import Rejected, open_frames
from lineside.data.splits import stable_hash
from lineside.data.taskfile import Captions, Task, TaskFile, merge
from lineside.data.tasks import Candidate, survey
from lineside.data.teacher import SimTeacher
from lineside.data.template import fill
from lineside.errors import LinesideError
from lineside.progress import track
from lineside.types import Frame
from lineside.verify.traces import trace_problem

SHOWN = 10  # questions
ANSWERS = 6  # of a task that are told one by one
FRAMES = 1000
PROBLEMS = 20


@dataclass
class Asked:
    """What came of one task."""

    task: Task
    frames: int = 0  # of its family
    questions: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)  # why they are not valid
    examples: list[tuple[str, Candidate]] = field(default_factory=list)  # (frame id, question)
    problem: str = ""  # the first, which stops the task

    @property
    def name(self) -> str:
        """family/name."""
        return f"{self.task.family}/{self.task.name}"


@dataclass
class Check:
    """What `check` found. `problems` make the file unusable, `warnings` do not."""

    read: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def examples(self, count: int) -> list[tuple[Asked, str, Candidate]]:
        """(task, frame id, question), the tasks in turn, so that each is shown before one is shown twice."""
        turns = [
            (turn, number, asked, frame, candidate)
            for number, asked in enumerate(self.asked)
            for turn, (frame, candidate) in enumerate(asked.examples)
        ]
        return [(asked, frame, candidate) for _, _, asked, frame, candidate in sorted(turns, key=lambda t: t[:2])][
            :count
        ]

    def to_json(self, count: int) -> dict[str, Any]:
        """As plain data."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "warnings": self.warnings,
            "read": self.read,
            "rejected": [{"name": r.name, "reason": r.reason} for r in self.rejected],
            "tasks": {
                a.name: {"questions": a.questions, "answers": dict(a.answers), "skipped": dict(a.skipped)}
                for a in self.asked
            },
            "examples": [
                {"task": a.name, "frame": frame, "question": c.question, "answer": c.answer}
                for a, frame, c in self.examples(count)
            ],
        }


def check(
    files: Sequence[Path],
    frames: Path,
    *,
    teacher: Literal["table", "sim"] = "table",
    limit: int = FRAMES,
    show: int = SHOWN,
    as_json: bool = False,
) -> Check:
    """Hold task files against the first `limit` inputs of `frames`, print what came of it, and `show` questions.

    `teacher` "sim" adds to a simulator's records what its own tasks ask. Raises LinesideError, after printing, when a
    task cannot be asked; at once, when a file or the frames cannot be read.
    """
    file = merge(files)
    source = SimTeacher(frames) if teacher == "sim" else open_frames(frames, file.table)
    found = Check(asked=[Asked(task) for task in file.tasks])
    total = min(limit, source.total)
    for item in track(islice(source.frames(), limit), total=total, unit="frames", label="task check"):
        found.read += 1
        if isinstance(item, Rejected):
            found.rejected.append(item)
        else:
            _look(item, file, found)
    _judge(file, found)
    if as_json:
        print(json.dumps(found.to_json(show), indent=2, ensure_ascii=False))
    else:
        console = Console(soft_wrap=True)
        for line in lines(found, show):
            console.print(line)
    if found.problems:
        more = f"\n... and {len(found.problems) - PROBLEMS} more" if len(found.problems) > PROBLEMS else ""
        raise LinesideError(
            f"{', '.join(map(str, files))}: {_things(len(found.problems))} wrong:\n"
            + "\n".join(found.problems[:PROBLEMS])
            + more
        )
    return found


def _things(count: int) -> str:
    return "one thing is" if count == 1 else f"{count} things are"


def _look(frame: Frame, file: TaskFile, found: Check) -> None:
    """Ask every task of one frame, and fill the captions of its family."""
    for asked in found.asked:
        task = asked.task
        if task.family != frame.family or asked.problem:
            continue
        asked.frames += 1
        try:
            made = survey(task, frame)
            for candidate in made.candidates:
                _note(asked, frame, candidate)
            asked.skipped.update(made.skipped)
        except LinesideError as error:
            asked.problem = str(error)
            found.problems.append(str(error))
    for captions in file.captions:
        if captions.family == frame.family:
            found.problems += [p for p in _of_captions(captions, frame) if p not in found.problems]


def _note(asked: Asked, frame: Frame, candidate: Candidate) -> None:
    task = asked.task
    if task.trace is not None:
        trace = fill(task.trace, {**frame.record, **candidate.element}, f"trace of task {asked.name}, frame {frame.id}")
        options = candidate.target.options
        if reason := trace_problem(trace or "", question=candidate.question, answer=candidate.answer, options=options):
            asked.traces[reason] += 1
    asked.questions += 1
    asked.answers[candidate.answer] += 1
    # The shown ones are the first, and then those whose hash says so: the beginning of a data set is seldom typical.
    if len(asked.examples) < SHOWN:
        asked.examples.append((frame.id, candidate))
    elif (place := stable_hash("shown", frame.id, candidate.key) % asked.questions) < SHOWN:
        asked.examples[place] = (frame.id, candidate)


def _of_captions(captions: Captions, frame: Frame) -> Iterator[str]:
    where = f"captions of family {captions.family}"
    for template in captions.templates:
        try:
            fill(template, frame.record, where)
        except LinesideError as error:
            yield str(error)
    for name in captions.wrong:
        if not any("{" + name + "}" in t or "{a " + name + "}" in t for t in captions.templates):
            yield f"{where}: wrong: no template has the column {name!r}, so exchanging it changes nothing"


def _judge(file: TaskFile, found: Check) -> None:
    """Whether what came of it can be trained on."""
    if found.rejected:
        first = found.rejected[0]
        found.warnings.append(f"{len(found.rejected)} of {found.read} inputs are refused: {first.name}: {first.reason}")
    families = sorted({a.task.family for a in found.asked if a.frames})
    for asked in found.asked:
        if asked.problem:
            continue
        if not asked.frames:
            found.problems.append(
                f"task {asked.name}: no frame is of the family {asked.task.family!r}"
                + (f"; there are frames of {', '.join(families)}" if families else "")
            )
        elif not asked.questions:
            why = (
                ", ".join(f"{count} {reason}" for reason, count in asked.skipped.most_common())
                or "`when` is never true"
            )
            found.warnings.append(f"task {asked.name} asked nothing: {why}")
        elif len(asked.answers) == 1 and asked.questions > SHOWN:
            found.warnings.append(
                f"task {asked.name}: every answer is {next(iter(asked.answers))!r}; nothing can be learnt"
            )
        elif asked.task.max_share is not None:
            kept = min(most_of_each(asked.answers, asked.task.max_share), max(asked.answers.values()))
            left = sum(min(kept, count) for count in asked.answers.values())
            if left < asked.questions / 2:
                share = f"max_share {asked.task.max_share:g}"
                found.warnings.append(f"task {asked.name}: {share} leaves {left} of {asked.questions} questions")
        for reason, count in asked.traces.items():
            found.warnings.append(f"task {asked.name}: {count} of {asked.questions} traces are not valid: {reason}")
    captioned = {captions.family for captions in file.captions}
    for family in sorted(set(families) - captioned):
        if file.table is not None:
            found.warnings.append(f"family {family} has no captions: stage 1 learns from them")


def lines(found: Check, show: int) -> Iterator[Text | Table]:
    """The check for a terminal."""
    for asked, frame, candidate in found.examples(show):
        yield Text.assemble((f"{asked.name}  {frame}", "dim"))
        yield Text.assemble("  ", candidate.question, "  ", (candidate.answer, "bold green"))
    table = Table("task", "questions", "answers", "not asked", box=None, pad_edge=False)
    for asked in found.asked:
        common = asked.answers.most_common(ANSWERS)
        told = ", ".join(f"{answer} {count / asked.questions:.0%}" for answer, count in common)
        rest = f", {len(asked.answers) - ANSWERS} others" if len(asked.answers) > ANSWERS else ""
        skipped = ", ".join(f"{count} {reason}" for reason, count in asked.skipped.most_common())
        table.add_row(Text(asked.name), f"{asked.questions:,}", Text(told + rest), Text(skipped, style="dim"))
    yield table
    for warning in found.warnings:
        yield Text(f"look at: {warning}", style="yellow")
