"""The answers of people as records: the table of the frames again, with the column `lineside_reviewed`.

`lineside label` reads this table with the task file that read the first one. A question is settled by what more than
half of the people who answered it say. Where they say nothing in common, and where they cannot tell, the truth is
unknown, and the question is not asked. An answer that agrees with the record leaves its value as it is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineside.data.readers import FolderReader, TableReader
from lineside.data.review_list import Form, ReviewQuestion
from lineside.data.reviewed import COLUMN, Reviewed, cell_text, read_cell
from lineside.data.sources import open_frames
from lineside.data.table import TableFrames
from lineside.data.tabular import Form as TableForm
from lineside.data.tabular import delimiter_of, is_json
from lineside.data.taskfile import Distractors, Task, TaskFile
from lineside.data.tasks import ask_again, unanswered
from lineside.data.template import column, slots
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.progress import track
from lineside.reviewing.log import Entry
from lineside.reviewing.sources import Review, with_answer_columns
from lineside.types import Frame, Target
from lineside.verify.verifiers import verify

MOST = 1_000_000  # questions of a frame: all


@dataclass(frozen=True, slots=True)
class Settled:
    """What people say to a question: `answer` None where they cannot tell or `contested`."""

    answer: str | None
    contested: bool
    by: str
    at: str


@dataclass
class Account:
    """What became of the settled questions."""

    confirmed: int = 0
    corrected: int = 0
    new: int = 0  # the record had no answer
    untold: int = 0  # cannot tell
    contested: int = 0
    unplaced: int = 0  # their frame is not in the table, or their question not in the task file (any more)
    unread: int = 0  # rows of the table that cannot be read; they are left out


def settle(questions: Sequence[ReviewQuestion], people: Mapping[str, Mapping[str, Entry]]) -> dict[str, Settled]:
    """The settled answer of every question that anybody answered, by its id.

    Answers that are not of the question's form any more, since its task has changed, do not count.
    """
    found: dict[str, Settled] = {}
    for question in questions:
        told = {name: answers[question.id] for name, answers in people.items() if question.id in answers}
        entries = {name: e for name, e in told.items() if e.action == "cannot tell" or question.form.takes(e.answer)}
        if entries:
            found[question.id] = _settled(question.form, entries)
    return found


def _settled(form: Form, entries: Mapping[str, Entry]) -> Settled:
    def same(one: Entry, two: Entry) -> bool:
        return one.action == two.action and (one.action == "cannot tell" or form.same(one.answer, two.answer))

    for entry in entries.values():
        agree = {name: other for name, other in entries.items() if same(other, entry)}
        if 2 * len(agree) > len(entries):
            answer = entry.answer if entry.action == "answer" else None
            return Settled(answer, False, ", ".join(agree), max(e.at for e in agree.values()))
    return Settled(None, True, ", ".join(entries), max(e.at for e in entries.values()))


def write_records(review: Review, people: Mapping[str, Mapping[str, Entry]]) -> tuple[Path, Account]:
    """Write the records of a review into its folder; returns the file and what it holds.

    Raises LinesideError when nobody has answered, when task file or frames are not known, when the frames are not
    described by a table beside their pictures, or when the file cannot be written.
    """
    settled = settle(review.every, people)
    if not settled:
        raise LinesideError(f"{review.folder}: nobody has answered yet, so there are no records to write")
    if review.tasks is None or review.tasks.table is None or review.frames is None:
        raise LinesideError(
            f"{review.path}: records belong to a folder of pictures: name it with --frames, and the task file that "
            "reads it with --tasks"
        )
    asked: dict[str, list[ReviewQuestion]] = {}
    for question in review.every:
        if question.id in settled:
            asked.setdefault(question.frame, []).append(question)
    table = review.tasks.table
    points = {q.task_name for told in asked.values() for q in told if q.form.kind == "point"}
    if table.roi is not None and points and not review.whole:
        raise LinesideError(
            f"{review.path}: {', '.join(sorted(points))}: these points were given in pictures cut to their roi, and "
            "records hold points of whole pictures. Review the folder of the frames instead; the answers are kept"
        )
    frames = open_frames(review.frames, table.uncut)
    if not isinstance(frames, TableFrames) or not isinstance(frames.reader, TableReader | FolderReader):
        raise LinesideError(
            f"{review.frames}: records are written for pictures in a folder, with or without a table (CSV or JSON "
            "lines); these frames lie in other files. The answers are kept, and can be exported"
        )
    account, rows = Account(), []
    read = track(frames.frames(), total=frames.total, unit="frames", label="review: records")
    for raw, item in zip(frames.raw_rows(), read, strict=True):
        if raw is None:
            account.unread += 1
            continue
        told = asked.pop(item.id, []) if isinstance(item, Frame) else []
        found = _corrections(review.tasks, item, told, settled, account) if isinstance(item, Frame) else {}
        rows.append((raw, {**read_cell(raw.get(COLUMN)), **found}))
    account.unplaced += sum(map(len, asked.values()))
    lines = isinstance(frames.reader, FolderReader) or is_json(frames.reader.path)  # which have nulls and types
    path = review.folder / ("records.jsonl" if lines else "records.csv")
    more = _unlisted(review.tasks)
    if lines:
        plain = (
            {**dict.fromkeys(more), **raw, COLUMN: {n: r.model_dump() for n, r in found.items()}} for raw, found in rows
        )
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in plain))
    else:
        _write_csv(path, rows, frames, more)
    return path, account


def _unlisted(file: TaskFile) -> list[str]:
    """The answers' columns that a table without a mapping must have, if only as empty ones."""
    if file.table is None or file.table.columns:
        return []
    named = [task.answer.column for task in file.tasks if task.each is None]
    return [name for name in named if name and "." not in name]


def _write_csv(
    path: Path, rows: Sequence[tuple[dict[str, Any], dict[str, Reviewed]]], frames: TableFrames, more: Sequence[str]
) -> None:
    """The rows in the form of the first table, so that the same task file reads them."""
    form = frames.table.form
    delimiter = delimiter_of(frames.reader.path, form)
    names = list(dict.fromkeys([*(name for raw, _ in rows[:1] for name in raw), *more]))
    names = [name for name in names if name != COLUMN] + [COLUMN]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    for raw, found in rows:
        writer.writerow([raw.get(name, "") for name in names[:-1]] + [cell_text(found)])
    write_atomic(path, out.getvalue().encode(form.encoding or "utf-8"))
    if not _reads_as(path, form, delimiter):
        write_atomic(path, f"sep={delimiter}\n{out.getvalue()}".encode(form.encoding or "utf-8"))


def _reads_as(path: Path, form: TableForm, delimiter: str) -> bool:
    try:
        return delimiter_of(path, form) == delimiter
    except LinesideError:
        return False


def _corrections(
    file: TaskFile, frame: Frame, asked: Sequence[ReviewQuestion], settled: Mapping[str, Settled], account: Account
) -> dict[str, Reviewed]:
    """The values of a frame's record that people fixed, beside those fixed before."""
    fixed: dict[str, list[tuple[Any, Settled]]] = {}
    tasks = {f"{task.family}/{task.name}": task for task in file.tasks}
    for question in asked:
        task = tasks.get(question.task_name)
        if task is None or task.answer.column is None or not _still_asked(task, frame, question):
            account.unplaced += 1
            continue
        own = next((d for d in file.table.distractors if d.name == task.each), None) if file.table else None
        fix = _of_column if own is None else _of_distractor
        says = settled[question.id]
        for name, value in fix(task, own, with_answer_columns(task, frame), question, says, account):
            fixed.setdefault(name, []).append((value, says))
    return {name: _merged(values, _value_at(frame.record, name), account) for name, values in fixed.items()}


def _still_asked(task: Task, frame: Frame, question: ReviewQuestion) -> bool:
    """Whether the record still asks this question. One that names a value is another once that value has changed."""
    if task.each is None and not any(map(slots, task.phrasings)):
        return True
    blank = task.answer.model_copy(update={"column": None})
    asked = unanswered(task.model_copy(update={"answer": blank, "per_frame": MOST}), frame)
    return (question.key, question.question) in asked


def _merged(values: Sequence[tuple[Any, Settled]], was: Any, account: Account) -> Reviewed:
    """What several questions say about one value: what is known wins over what is not; different ones are contested."""
    known = [(value, says) for value, says in values if value is not None] or list(values)
    clash = any(value != known[0][0] for value, _ in known)
    account.contested += clash
    people = dict.fromkeys(name for _, says in known for name in says.by.split(", "))
    at = max(says.at for _, says in known)
    return Reviewed(value=None if clash else known[0][0], was=was, by=", ".join(people), at=at)


Fixed = list[tuple[str, Any]]  # (column of the record, or path into it; its value)


def _of_column(
    task: Task, _: Distractors | None, frame: Frame, question: ReviewQuestion, settled: Settled, account: Account
) -> Fixed:
    """The column of the answer, and those that belong to it."""
    answer = task.answer
    truth = _place(task, frame, question.key, answer.column or "")
    if settled.answer is None:
        account.contested += settled.contested
        account.untold += not settled.contested
        return [(truth, None)]
    told, target = question.form.read(settled.answer)
    candidate = ask_again(task, frame, question.key, provenance="record")
    sure = [(_place(task, frame, question.key, answer.margin_column), True)] if answer.margin_column else []
    if candidate is not None and verify(told, candidate.target).exact:
        account.confirmed += 1
        return [(truth, _value_at(frame.record, truth)), *sure]
    account.corrected += candidate is not None
    account.new += candidate is None
    fixed = [(truth, _value(told, target)), *sure]
    if answer.accepted_column:
        fixed.append((_place(task, frame, question.key, answer.accepted_column), [told]))
    if answer.mask_column and target.mask is not None:
        mask = {"height": target.mask.height, "width": target.mask.width, "runs": list(target.mask.runs)}
        fixed.append((_place(task, frame, question.key, answer.mask_column), mask))
    return fixed


def _of_distractor(
    task: Task, own: Distractors | None, frame: Frame, question: ReviewQuestion, settled: Settled, account: Account
) -> Fixed:
    """ "Is this X?" says something about the frame's own value: yes, it is X; no, where it was X, it is unknown."""
    assert own is not None
    elements = frame.record.get(own.name) or []
    place = int(question.key) if question.key.isdecimal() else len(elements)
    if place >= len(elements):
        account.unplaced += 1
        return []
    item, same = elements[place]["item"], elements[place]["same"]
    if settled.answer is None:
        account.contested += settled.contested
        account.untold += not settled.contested
        return [(own.column, None)] if same else []
    yes = question.form.read(settled.answer)[0] == "yes"
    account.confirmed += yes == same
    account.corrected += same is not None and yes != same
    account.new += same is None
    return [(own.column, item)] if yes else [(own.column, None)] if same else []


def _place(task: Task, frame: Frame, key: str, name: str) -> str:
    """The path of a column: within the element of a task with `each`, if the element has it."""
    elements = column(frame.record, task.each, "") if task.each else None
    if not isinstance(elements, list) or not key.isdecimal() or int(key) >= len(elements):
        return name
    return f"{task.each}.{key}.{name}" if name in elements[int(key)] else name


def _value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a path; None where there is none."""
    if path in record:
        return record[path]
    here: Any = record
    for part in path.split("."):
        if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, Mapping) and part in here:
            here = here[part]
        else:
            return None
    return here


def _value(answer: str, target: Target) -> Any:
    """An answer as a value of the record."""
    if target.kind == "number":
        return int(target.value) if target.value.is_integer() else target.value
    if target.kind == "point":
        return [target.x, target.y]
    if target.kind == "set":
        return list(target.accepted)
    return answer == "yes" if answer in ("yes", "no") and {"yes", "no"} <= set(target.options) else answer
