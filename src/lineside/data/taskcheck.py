"""Checks a task file with frames: which tasks cannot be asked, and which would make bad data.

Every task is asked of frames drawn by hash from all of them, so a sorted table shows all of its parts. Values that the
task file does not know are counted over every row.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lineside.data.job import kind_of
from lineside.data.joinreport import JoinReport
from lineside.data.plan import most_of_each
from lineside.data.references import ReferencePictures, named_by
from lineside.data.sources import Rejected
from lineside.data.table import SPLIT_NAMES
from lineside.data.taskfile import NO_TRACE, Captions, Task, TaskFile
from lineside.data.tasks import Candidate, phrasing_of, survey
from lineside.data.template import column, fill, known, slots, value_text
from lineside.errors import LinesideError
from lineside.hashing import stable_hash
from lineside.strict import closest
from lineside.types import Frame
from lineside.verify.text import normalise
from lineside.verify.traces import trace_problem

KEPT = 10  # questions of a task kept as examples
FEW = 10  # questions: too few to judge their answers
LOPSIDED = 0.9  # share of one answer
FEW_JUDGED = 100  # frames of a suite: an accuracy is then known to about ten points
VALUES = 5  # values that are listed
MOST_QUESTIONS = 8  # of a frame: `label`'s default


@dataclass
class TaskFindings:
    """Results of one task."""

    task: Task
    frames: int = 0  # frames of its family
    questions: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    traces: Counter[tuple[str, str]] = field(default_factory=Counter)  # invalid traces by reason and phrasing
    bad_trace: dict[tuple[str, str], str] = field(default_factory=dict)  # an example of each
    phrased: Counter[str] = field(default_factory=Counter)  # questions by phrasing
    told: Counter[tuple[str, str]] = field(default_factory=Counter)  # (phrasing, slot) equal to the answer
    by_slot: dict[tuple[str, str], dict[str, set[str]]] = field(default_factory=dict)  # ... the answers by its value
    spelt: dict[str, str] = field(default_factory=dict)  # normalised answer -> as it was read first
    outside: Counter[str] = field(default_factory=Counter)  # truths outside the options
    said: dict[str, tuple[str, str]] = field(default_factory=dict)  # frame -> (question, answer), without `each`
    given_away: int = 0  # questions whose only reference is called as the answer
    examples: list[tuple[str, Candidate]] = field(default_factory=list)  # (frame id, question)
    problem: str = ""  # the first problem; it stops the task

    @property
    def name(self) -> str:
        """family/name."""
        return f"{self.task.family}/{self.task.name}"


@dataclass
class Check:
    """Results of a check. `problems` make the file unusable, `warnings` do not."""

    total: int = 0  # inputs
    read: int = 0  # inputs that were checked
    splits: Counter[str] = field(default_factory=Counter)  # checked frames by split
    rejected: list[Rejected] = field(default_factory=list)
    own_split: tuple[str, list[str]] | None = None  # a column and its values that looks like an unused split
    joins: Sequence[JoinReport] = ()
    asked: list[TaskFindings] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def examples(self, count: int) -> list[tuple[TaskFindings, str, Candidate]]:
        """(task, frame id, question), one of each task before a second of any."""
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
            "total": self.total,
            "read": self.read,
            "splits": dict(self.splits),
            "joins": [join.to_json() for join in self.joins],
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


def drawn(total: int, limit: int) -> set[int]:
    """Positions of `limit` of `total` inputs, chosen by hash."""
    if limit >= total:
        return set(range(total))
    return set(heapq.nsmallest(limit, range(total), key=lambda position: stable_hash("looked at", position)))


def look(frame: Frame, file: TaskFile, found: Check, pictures: ReferencePictures | None = None) -> None:
    """Ask every task of one frame, look up its references, and fill the captions of its family."""
    found.splits[frame.split] += 1
    for asked in found.asked:
        task = asked.task
        if task.family != frame.family or asked.problem:
            continue
        asked.frames += 1
        try:
            made = survey(task, frame)
            for candidate in made.candidates:
                _note(asked, frame, candidate)
                names = named_by(task, frame, candidate.element)
                asked.given_away += [*map(normalise, names)] == [normalise(candidate.answer)]
                if pictures is not None:
                    pictures.of(names)
            asked.skipped.update(made.skipped)
        except LinesideError as error:
            asked.problem = str(error)
            found.problems.append(str(error))
    for captions in file.captions:
        if captions.family == frame.family:
            found.problems += [p for p in _of_captions(captions, frame) if p not in found.problems]


def _note(asked: TaskFindings, frame: Frame, candidate: Candidate) -> None:
    task, values = asked.task, {**frame.record, **candidate.element}
    phrasing = phrasing_of(task, frame, candidate.key)
    asked.questions += 1
    # "Open" and "open" are one answer to the verifier.
    asked.answers[asked.spelt.setdefault(normalise(candidate.answer), candidate.answer)] += 1
    asked.phrased[phrasing] += 1
    if task.each is None:
        asked.said[frame.id] = candidate.question, candidate.answer
    for name, value in known(values, slots(phrasing)).items():
        said, answer = normalise(value_text(value) or ""), normalise(candidate.answer)
        asked.told[phrasing, name] += said == answer
        if task.each is None:
            asked.by_slot.setdefault((phrasing, name), {}).setdefault(said, set()).add(answer)
    if task.trace is not None:
        trace = fill(task.trace, values, f"trace of task {asked.name}, frame {frame.id}") or ""
        options = candidate.target.options
        if reason := trace_problem(trace, question=candidate.question, answer=candidate.answer, options=options):
            asked.traces[reason, phrasing] += 1
            asked.bad_trace.setdefault((reason, phrasing), f"{candidate.question} [{trace}] {candidate.answer}")
    # The first ones are kept, then those chosen by hash: the start of a data set is seldom typical.
    if len(asked.examples) < KEPT:
        asked.examples.append((frame.id, candidate))
    elif (place := stable_hash("shown", frame.id, candidate.key) % asked.questions) < KEPT:
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
            yield f"{where}: wrong: no template has the column {name!r}, so changing it changes nothing"


def look_at_values(records: Iterable[Mapping[str, Any]], found: Check) -> None:
    """Count the truths outside a task's options, over every record."""
    tasks = [a for a in found.asked if a.task.answer.options and a.task.each is None and not a.problem]
    for record in records if tasks else ():
        for asked in tasks:
            answer = asked.task.answer
            truth = column(record, answer.column or "", asked.name) if answer.column else None
            for value in truth if isinstance(truth, list | tuple) else (truth,):
                if value is not None and not isinstance(value, bool) and str(value) not in answer.options:
                    asked.outside[str(value)] += 1


def judge(file: TaskFile, found: Check, unmapped: Mapping[str, Counter[str]], *, records: bool) -> None:
    """Whether the data can be trained on. `records`: whether a table is the teacher, and not a simulator."""
    if found.read and len(found.rejected) == found.read:
        found.problems.append(f"all {found.read:,} checked inputs are rejected: {_reasons(found.rejected)}")
        return
    if found.rejected:
        found.warnings.append(f"{len(found.rejected)} of {found.read} inputs are rejected: {_reasons(found.rejected)}")
    families = sorted({a.task.family for a in found.asked if a.frames})
    for asked in found.asked:
        if not asked.problem and not asked.frames:
            refused = f"; {len(found.rejected)} inputs are rejected, see above" if found.rejected else ""
            found.problems.append(
                f"task {asked.name}: no frame is of the family {asked.task.family!r}"
                + (f"; there are frames of {', '.join(families)}" if families else "")
                + refused
            )
        elif not asked.problem:
            found.warnings += [f"task {asked.name}: {warning}" for warning in _of_task(asked, file)]
        if records and asked.task.thinking and asked.task.trace is None:
            found.problems.append(f"task {asked.name}: {NO_TRACE}")
    found.warnings += _unknown_values(unmapped, file)
    found.warnings += _same(found.asked)
    found.warnings += _suites(found)
    for join in found.joins:
        if join.matched < join.frames / 2:
            found.warnings.append(f"join {join.file}: only {join.matched:,} of {join.frames:,} frames have a row")
    found.warnings += _too_few_captions(file, families) if records and file.table is not None else []


def _of_task(asked: TaskFindings, file: TaskFile) -> Iterator[str]:
    task, answers = asked.task, asked.answers
    if asked.given_away > LOPSIDED * asked.questions and len(answers) > 1:
        yield f"the reference beside the question is the answer: {task.references!r} gives it away"
    if asked.outside:
        yield (
            f"{asked.outside.total():,} truths of column {task.answer.column!r} are not among the options and "
            f"are not asked: {_counted(asked.outside, task.answer.options)}"
        )
    if not asked.questions:
        why = ", ".join(f"{count} {reason}" for reason, count in asked.skipped.most_common())
        yield f"no question is asked: {why or '`when` is never true'}"
        return
    (commonest, most), share = answers.most_common(1)[0], task.max_share
    if len(answers) == 1 and asked.questions > FEW:
        yield f"every answer is {commonest!r}; there is nothing to learn"
    elif share is not None:
        kept = min(most_of_each(answers, share), most)
        left = sum(min(kept, count) for count in answers.values())
        if left < asked.questions / 2:
            yield f"max_share {share:g} leaves {left} of {asked.questions} questions"
    elif most >= LOPSIDED * asked.questions > FEW * LOPSIDED:
        yield (
            f"{most / asked.questions:.0%} of the answers are {commonest!r}: a model that always answers this is right "
            "as often; `max_share: 0.5` balances training and suites"
        )
    idle = [option for option in task.answer.options or () if normalise(option) not in asked.spelt]
    if idle and len(answers) > 1 and asked.questions > FEW:
        yield f"no answer among the {asked.questions} questions is {' or '.join(map(repr, idle))}, of the options"
    yield from _given_away(asked, file)
    for (reason, phrasing), count in asked.traces.most_common():
        yield (
            f"{count} of {asked.phrased[phrasing]} traces are not valid with the phrasing {phrasing!r}: {reason}, such "
            f"as: {asked.bad_trace[reason, phrasing]}"
        )


def _given_away(asked: TaskFindings, file: TaskFile) -> Iterator[str]:
    """Phrasings that hold the answer: its column, one made from the same column, or one with equal values."""
    answer = asked.task.answer
    made = file.table.columns if file.table is not None else {}
    own = {name for name in (answer.column, answer.accepted_column, answer.teacher_column) if name}
    sources = {made[name].column for name in own if name in made}
    for phrasing in asked.task.phrasings:
        for name in slots(phrasing):
            equal, times = asked.told[phrasing, name], asked.phrased[phrasing]
            if name in own or any(mine.startswith(f"{name}.") for mine in own):
                yield f"the phrasing {phrasing!r} holds the answer's own column {name!r}"
            elif name in made and made[name].column in sources:
                yield (
                    f"the phrasing {phrasing!r} holds {name!r}, which is made from the same column of the table as the "
                    "answer"
                )
            elif times > FEW and equal >= LOPSIDED * times and len(asked.answers) > 1:
                yield f"the phrasing {phrasing!r} holds {name!r}, which was the answer in {equal} of {times} questions"
            elif len(asked.answers) > 1 and _decides(asked.by_slot.get((phrasing, name), {}), times):
                yield (
                    f"the phrasing {phrasing!r} holds {name!r}, and each of its values had one answer in all {times} "
                    "questions: the picture may not be needed"
                )


def _decides(answers: Mapping[str, set[str]], times: int) -> bool:
    """Whether what a slot holds decides the answer: each value came back several times, always with one answer."""
    return times > FEW and 0 < len(answers) * 3 <= times and all(len(found) == 1 for found in answers.values())


def _unknown_values(unmapped: Mapping[str, Counter[str]], file: TaskFile) -> Iterator[str]:
    columns = file.table.columns if file.table is not None else {}
    for name, values in unmapped.items():
        entries = columns[name].values or () if name in columns else ()
        yield (
            f"column {name!r}: {values.total():,} cells hold a value without an entry in `values`, and are unknown: "
            f"{_counted(values, entries)}. Add an entry or `otherwise`"
        )


def _counted(values: Counter[str], entries: Iterable[str]) -> str:
    """The commonest values with their counts, and the nearest entry of each."""
    entries, told = list(entries), list[str]()
    for value, count in values.most_common(VALUES):
        near = closest(value, entries)
        told.append(f"{value!r} {count:,}" + (f" (did you mean {near!r}?)" if near else ""))
    more = f" and {len(values) - VALUES} others" if len(values) > VALUES else ""
    return ", ".join(told) + more


def _same(asked: list[TaskFindings]) -> Iterator[str]:
    """Pairs of tasks that ask the same question."""
    for one, other in combinations(asked, 2):
        if one.task.family != other.task.family:
            continue
        both = sorted(set(one.task.phrasings) & set(other.task.phrasings))
        common = one.said.keys() & other.said.keys()
        alike = sum(normalise(one.said[f][1]) == normalise(other.said[f][1]) for f in common)
        names = f"tasks {one.name} and {other.name}"
        if both and alike < len(common):
            apart = len(common) - alike
            yield f"{names} both ask {both[0]!r}, and their answers differ in {apart} of {len(common)} frames"
        elif len(common) > FEW and alike == len(common) and len({one.said[f][1] for f in common}) > 1:
            frame = min(common)
            yield (
                f"{names} ask the same: their answers agree in all of {len(common):,} frames, such as "
                f"{one.said[frame][0]!r} and {other.said[frame][0]!r}, both {one.said[frame][1]!r}"
            )
        elif both:
            yield f"{names} both ask {both[0]!r}"


def _suites(found: Check) -> Iterator[str]:
    """Warnings about missing or small splits, from the checked frames."""
    good = found.splits.total()
    part = found.total / found.read if found.read else 1.0
    if found.own_split:
        name, values = found.own_split
        meant = ", ".join(f"{value}: {SPLIT_NAMES[value.casefold()]}" for value in values)
        yield (
            f"column {name!r} looks like the data's own split, and `split` does not use it. If it is one, put into the "
            f"table: split: {{column: {name}, values: {{{meant}}}}}"
        )
    if good and not found.splits["train"]:
        yield "no frame is of train: there is nothing to learn from"
    for split, use in (("heldout", "evaluate a model on"), ("dev", "tune and calibrate on")):
        frames = round(found.splits[split] * part)
        about = "about " if found.read < found.total else ""
        if good and not frames:
            yield (
                f"no frame is of {split}: there is nothing to {use}. `split` in the table sets which rows are; without "
                "it, 10% are chosen by hash"
            )
        elif split == "heldout" and 0 < frames < FEW_JUDGED:
            yield (
                f"{split} has {about}{frames} frames, which is few to {use}: an accuracy is then known to about "
                f"{100 / math.sqrt(frames):.0f} points in each direction"
            )


def _too_few_captions(file: TaskFile, families: Iterable[str]) -> Iterator[str]:
    sentences = {captions.family: len(captions.templates) for captions in file.captions}
    for family in sorted(families):
        asked = min(MOST_QUESTIONS, sum(task.per_frame for task in file.tasks if task.family == family))
        if family not in sentences:
            yield f"family {family} has no captions, and stage 1 learns from captions"
        elif sentences[family] < asked:
            yield (
                f"family {family}: {sentences[family]} caption templates, but up to {asked} questions a frame: a frame "
                f"never has fewer captions than questions, so some are left out. Write {asked} templates or more"
            )


def _reasons(rejected: list[Rejected]) -> str:
    """The reasons by frequency, and the first input of the commonest."""
    kinds = Counter(kind_of(r.reason) for r in rejected)
    commonest = kinds.most_common(1)[0][0]
    first = next(r for r in rejected if kind_of(r.reason) == commonest)
    several = "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(3))
    return (f"{several}; such as " if len(kinds) > 1 else "") + f"{first.name}: {first.reason}"
