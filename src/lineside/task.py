"""task: list the keys of a task file (`keys`), and find its errors before anything is labelled (`check`).

`check` asks every task of frames drawn by hash from all of them. It reports a missing column with the nearest name, and
a value of the wrong type with the value. Then it prints a few questions with their answers, the balance of each task's
answers, and what would make the data set bad. Left out: whether a phrasing is good English, and whether the picture
shows the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside.data.references import WITHOUT, open_references
from lineside.data.sources import Rejected, open_frames, own_shards
from lineside.data.splits import SuitePictures
from lineside.data.table import TableFrames
from lineside.data.taskcheck import Check, TaskFindings, drawn, judge, look, look_at_values
from lineside.data.taskfile import merge
from lineside.data.taskkeys import about, keys
from lineside.data.teacher import SimTeacher
from lineside.errors import LinesideError
from lineside.progress import track
from lineside.recipe import Family

SHOWN = 10  # questions
ANSWERS = 6  # answers of a task that are listed one by one
FRAMES = 1000
PROBLEMS = 20


def check(
    files: Sequence[Path],
    frames: Path,
    *,
    teacher: Literal["table", "sim"] | None = None,
    limit: int = FRAMES,
    show: int = SHOWN,
    as_json: bool = False,
) -> Check:
    """Check task files with `limit` inputs of `frames`, print the result, and print `show` questions.

    `teacher` "sim" adds the simulator's own tasks to its records. None takes "sim" for the simulator's frames, if the
    tasks belong to its families and the file has no table. Raises LinesideError, after printing, when a task cannot be
    asked; at once, when a file or the frames cannot be read.
    """
    file = merge(files)
    if teacher is None:
        simulated = {task.family for task in file.tasks} <= set(get_args(Family)) and own_shards(frames)
        teacher = "sim" if simulated and file.table is None else "table"
    source = SimTeacher(frames) if teacher == "sim" else open_frames(frames, file.table)
    pictures = None if isinstance(source, SimTeacher) else open_references(source, file.table)
    suites = SuitePictures()
    found = Check(total=source.total, joins=source.joins, asked=[TaskFindings(task) for task in file.tasks])
    chosen = drawn(source.total, limit)
    for item in track(source.frames(chosen), total=len(chosen), unit="frames", label="task check"):
        found.read += 1
        suites.meet(item)
        if isinstance(item, Rejected):
            found.rejected.append(item)
        else:
            look(item, file, found, pictures)
    if pictures is not None:
        try:
            pictures.check(suites)
        except LinesideError as error:
            found.problems.append(str(error))
        found.warnings += [line for line in source.remarks.lines() if WITHOUT in line]
    if isinstance(source, TableFrames):  # for other sources a second reading is as slow as the first
        look_at_values(source.records(), found)
        found.own_split = source.unused_split()
    judge(file, found, source.unmapped, records=teacher == "table")
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


def lines(found: Check, show: int) -> Iterator[Text | Table]:
    """The result of a check for a terminal."""
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
    how = "all" if found.read == found.total else "drawn by hash"
    splits = ", ".join(f"{name} {count:,}" for name, count in sorted(found.splits.items()))
    yield Text(f"{found.read:,} of {found.total:,} frames checked ({how}): {splits or 'none can be used'}")
    for join in found.joins:
        for line in join.lines():
            yield Text(line)
    for warning in found.warnings:
        yield Text(f"look at: {warning}", style="yellow")


def list_keys(words: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print every key of a task file, or those named by `words` (a key, or a section such as "answer").

    Raises LinesideError for a word that is neither.
    """
    found = keys(tuple(words))
    if as_json:
        plain = [{k: v for k, v in asdict(key).items() if k != "model"} for key in found]
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    for section, members in groupby(found, key=lambda key: key.model):
        listed = list(members)
        console.print(Text.assemble((listed[0].section or "a task file", "bold"), "  ", about(section)))
        for key in listed:
            default = key.default if key.default in ("required", "") else f"default {key.default}"
            console.print(
                Text.assemble("  ", (key.name, "bold green"), "  ", (f"{key.type}; {default}".strip("; "), "dim"))
            )
            console.print(Text(f"      {key.text}"))
            console.print(Text(f"      {key.example}", style="cyan"))
        console.print()
