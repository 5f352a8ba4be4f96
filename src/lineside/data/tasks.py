"""Tasks over records: which questions a frame is asked, and what the right answer to each is.

A question is asked only if its truth is known and certain: null truths, numbers near a rounding boundary and points
that leave their mask when rounded to two decimals are skipped and counted. The hash of the frame's id decides phrasing
and elements, so labelling again, or with more frames, changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lineside.data.regions import inside
from lineside.data.taskfile import Answer, Task
from lineside.data.template import column, fill
from lineside.errors import LinesideError
from lineside.hashing import stable_hash
from lineside.types import Frame, Mask, Provenance, Target
from lineside.verify.members import NONE, guess_members, read_members
from lineside.verify.quantity import convert, read_quantity
from lineside.verify.text import MAX_ANSWER, normalise, strip
from lineside.verify.verifiers import answer_to, target_problem, verify

MARGIN = 0.2  # of a step: a truth this close to a rounding boundary is not asked (DESIGN 3)

UNKNOWN = "truth unknown"
CLOSE = "too close to call"
UNSOUND = "truth cannot be told"
OUTSIDE = "the point lies outside the roi"
NO_OPTION = "truth not among the options"
SURPLUS = "over the task's questions per frame"
TOLD = "told"  # the column for a teacher's answer


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible question of a frame, about a list `element` or none; `key` names it within the task."""

    question: str
    answer: str
    target: Target
    element: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question that a frame's record does not answer; `key` names its element, `options` are those of this frame."""

    key: str
    question: str
    options: tuple[str, ...]


Q = TypeVar("Q", Candidate, OpenQuestion)


@dataclass(frozen=True, slots=True)
class Survey:
    """The questions of a task for a frame, and how many were skipped for which reason."""

    candidates: tuple[Candidate, ...]
    skipped: Counter[str]


class _NotAsked(Exception):
    """The reason why a question is not asked."""


def candidates(task: Task, frame: Frame, *, provenance: Provenance = "record") -> list[Candidate]:
    """The questions of `task` for `frame`: none for another family, at most `per_frame`, chosen by hash.

    Raises LinesideError when the records lack a column of the task, or a column has a wrong type.
    """
    return list(survey(task, frame, provenance=provenance).candidates)


def survey(task: Task, frame: Frame, *, provenance: Provenance = "record") -> Survey:
    """`candidates`, with what was skipped and why."""
    skipped: Counter[str] = Counter()
    if task.family != frame.family or task.answer.column is None:
        return Survey((), skipped)
    where = f"task {task.family}/{task.name}, frame {frame.id}"
    asked: list[Candidate] = []
    for key, element, values in _due(task, frame, where):
        try:
            asked.append(_candidate(task, frame, values, element, key, provenance, where))
        except _NotAsked as reason:
            skipped[str(reason)] += 1
    if len(asked) > task.per_frame:
        skipped[SURPLUS] += len(asked) - task.per_frame
    return Survey(tuple(_drawn(task, frame, asked)), skipped)


def _due(task: Task, frame: Frame, where: str) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """(key, element, record with the element's columns) of the questions that `when` allows."""
    for key, element in _elements(task, frame, where):
        values = {**frame.record, **element}
        if task.when is None or _flag(values, task.when, "when", where):
            yield key, element, values


def _drawn(task: Task, frame: Frame, found: Sequence[Q]) -> list[Q]:
    """At most `per_frame` of a frame's questions, chosen by hash; order is kept."""
    by_hash = sorted(found, key=lambda one: stable_hash(frame.id, task.name, "chosen", one.key))
    return [one for one in found if one in by_hash[: task.per_frame]]


def survey_of_teacher(task: Task, frame: Frame) -> Survey:
    """`survey` of a teacher's answers (`answer.teacher_column`), also without a truth; the targets are its own."""
    found = survey(_as_told(task), frame, provenance="teacher")
    return Survey(found.candidates, Counter({f"the teacher's answer: {why}": n for why, n in found.skipped.items()}))


def with_teacher_answer(task: Task, frame: Frame, candidate: Candidate) -> Candidate | None:
    """The question with the answer of a teacher in the table; None if there is no answer, or an invalid one."""
    said = ask_again(_as_told(task), frame, candidate.key, provenance="teacher")
    return said if said is not None and said.question == candidate.question else None


def _as_told(task: Task) -> Task:
    """The task with the teacher's answer in place of the truth."""
    own = {"accepted_column": None, "margin_column": None, "teacher_column": None}
    answer = task.answer.model_copy(update={"column": task.answer.teacher_column, **own})
    return task.model_copy(update={"answer": answer})


def ask_again(task: Task, frame: Frame, key: str, *, provenance: Provenance) -> Candidate | None:
    """The question of that key for a frame, even if its record would not ask it; None if the record has no answer.

    Used for one frame with two records: the questions of one are answered by the other. Raises LinesideError as
    `candidates`.
    """
    where = f"task {task.family}/{task.name}, frame {frame.id}"
    element = dict(_elements(task, frame, where)).get(key)
    if element is None:
        return None
    try:
        return _candidate(task, frame, {**frame.record, **element}, element, key, provenance, where)
    except _NotAsked:
        return None


def unanswered(task: Task, frame: Frame) -> list[tuple[str, str]]:
    """(key, question) of a task without a column for a frame: at most `per_frame`, chosen by hash.

    Raises LinesideError when the records lack a column of the phrasings.
    """
    return [] if task.answer.column is not None else [(o.key, o.question) for o in open_questions(task, frame)]


def open_questions(task: Task, frame: Frame) -> list[OpenQuestion]:
    """The questions of a task that a frame's record leaves open: the truth is null or empty, or the task has no column.

    At most `per_frame`, chosen by hash. Raises LinesideError when the records lack a column.
    """
    if task.family != frame.family:
        return []
    where = f"task {task.family}/{task.name}, frame {frame.id}"
    if task.each is not None and column(frame.record, task.each, where) is None:
        return []
    found: list[OpenQuestion] = []
    for key, _, values in _due(task, frame, where):
        if task.answer.column is not None and column(values, task.answer.column, where) not in (None, ""):
            continue
        question = fill(phrasing_of(task, frame, key), values, where)
        if question is not None:
            found.append(OpenQuestion(key, question, _known_options(task.answer, values, where)))
    return _drawn(task, frame, found)


def _known_options(answer: Answer, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The options of a question; none where the record does not know them."""
    listed = answer.options_column
    return () if listed and column(values, listed, where) is None else _options(answer, values, where)


def phrasing_of(task: Task, frame: Frame, key: str) -> str:
    """The phrasing of the question `key` for a frame."""
    return task.phrasings[stable_hash(frame.id, task.name, key) % len(task.phrasings)]


def _elements(task: Task, frame: Frame, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    if task.each is None:
        return [("", {})]
    elements = column(frame.record, task.each, where)
    if (
        not isinstance(elements, Sequence)
        or isinstance(elements, str)
        or not all(isinstance(e, Mapping) for e in elements)
    ):
        raise LinesideError(f"{where}: each: column {task.each!r} must hold a list of records, not {elements!r:.80}")
    return [(str(index), element) for index, element in enumerate(elements)]


def _candidate(
    task: Task,
    frame: Frame,
    values: Mapping[str, Any],
    element: Mapping[str, Any],
    key: str,
    provenance: Provenance,
    where: str,
) -> Candidate:
    if task.answer.margin_column and not _flag(values, task.answer.margin_column, "margin_column", where):
        raise _NotAsked(CLOSE)
    question = fill(phrasing_of(task, frame, key), values, where)
    if question is None:
        raise _NotAsked(UNKNOWN)
    answer, target = answer_and_target(task.answer, values, provenance, where)
    if frame.region is not None and target.kind == "point" and not target_problem(target):
        if (within := inside(target, frame.region)) is None:
            raise _NotAsked(OUTSIDE)
        answer, target = answer_to(within), within
    if target_problem(target) or not verify(answer, target).exact:
        raise _NotAsked(UNSOUND)
    return Candidate(question, answer, target, element, key)


def answer_and_target(
    answer: Answer, values: Mapping[str, Any], provenance: Provenance, where: str
) -> tuple[str, Target]:
    """The canonical answer and its target. Raises LinesideError for a wrong type, `_NotAsked` for an unknown truth."""
    truth = column(values, answer.column or "", where)
    if truth is None:
        raise _NotAsked(UNKNOWN)
    return _READERS[answer.kind](answer, truth, values, provenance, f"{where}: column {answer.column!r}")


def parse_teacher_answer(answer: Answer, text: str) -> tuple[str, Target] | None:
    """(canonical answer, target) where `text` is all there is to go by; None if it is no answer of that kind.

    The target's provenance is "teacher": it is as reliable as the author of the text.
    """
    text = strip(text)
    if len(text) > MAX_ANSWER or not text:
        return None
    truth: Any = text
    if answer.kind in ("choice", "exact"):
        same = [option for option in answer.options if normalise(option) == normalise(text)]
        if answer.options and not same:
            return None
        truth = same[0] if same else text
    elif answer.kind == "set":
        truth = [] if normalise(text) == NONE else [member.strip() for member in text.split(",")]
        if answer.counted:
            found = read_members(normalise(text), answer.options) if answer.options else None
            truth = list(found.elements() if found is not None else guess_members(text))
    elif answer.kind == "number":
        quantity = read_quantity(normalise(text))
        truth = convert(*quantity, normalise(answer.unit)) if quantity else None
        if truth is None:
            return None
        truth = math.floor(truth / answer.resolution + 0.5) * answer.resolution  # rounded to the resolution
    else:
        return None
    try:
        canonical, target = _READERS[answer.kind](
            answer.model_copy(update={"column": TOLD}), truth, {TOLD: truth}, "teacher", "the teacher's answer"
        )
    except _NotAsked:
        return None
    if target_problem(target) or not verify(canonical, target).exact or not verify(text, target).exact:
        return None
    return canonical, target


def _word(
    answer: Answer, truth: Any, values: Mapping[str, Any], provenance: Provenance, where: str
) -> tuple[str, Target]:
    options = _options(answer, values, where)
    if isinstance(truth, bool) and {"yes", "no"} <= set(options):
        truth = "yes" if truth else "no"
    if isinstance(truth, bool) or not isinstance(truth, str | int):
        raise LinesideError(
            f"{where} holds {truth!r:.60}: an answer of kind {answer.kind} is a string"
            " (or true/false for a choice whose options are yes and no)"
        )
    truth = str(truth)
    accepted = _strings(values, answer.accepted_column, where) if answer.accepted_column else (truth,)
    if truth not in accepted:
        accepted = (truth, *accepted)
    if options and not set(accepted) <= set(options):
        raise _NotAsked(NO_OPTION)
    return truth, Target(answer.kind, provenance, accepted=accepted, options=options)


def _set(
    answer: Answer, truth: Any, values: Mapping[str, Any], provenance: Provenance, where: str
) -> tuple[str, Target]:
    if answer.counted and isinstance(truth, Mapping):
        values = {**values, TOLD: _repeated(truth, where)}
        answer = answer.model_copy(update={"column": TOLD})
    members = _strings(values, answer.column or "", where)
    target = Target(
        "set", provenance, accepted=members, options=_options(answer, values, where), counted=answer.counted
    )
    return answer_to(target), target


def _repeated(counts: Mapping[Any, Any], where: str) -> list[str]:
    """{"carton": 2, "can": 1} as carton, carton, can."""
    if not all(type(n) is int and 0 <= n < 1000 for n in counts.values()):
        raise LinesideError(f"{where} holds {counts!r:.60}: expected a whole number from 0 to 999 for each member")
    return [str(name) for name, n in counts.items() for _ in range(n)]


def near_boundary(truth: float, resolution: float) -> bool:
    """Whether a truth is so close to a rounding boundary that it is not asked."""
    steps = truth / resolution
    return abs(steps - math.floor(steps) - 0.5) < MARGIN + 1e-9


def _number(
    answer: Answer, truth: Any, values: Mapping[str, Any], provenance: Provenance, where: str
) -> tuple[str, Target]:
    if isinstance(truth, bool) or not isinstance(truth, int | float) or not math.isfinite(truth):
        typed = (
            f"; use {{column: {answer.column}, type: number}} in the table's columns" if isinstance(truth, str) else ""
        )
        raise LinesideError(f"{where} holds {truth!r:.60}: expected a finite number{typed}")
    if near_boundary(truth, answer.resolution):
        raise _NotAsked(CLOSE)
    target = Target(
        "number",
        provenance,
        value=float(truth),
        resolution=answer.resolution,
        tolerance=answer.tolerance,
        unit=answer.unit,
        period=answer.period,
    )
    return answer_to(target), target


def _point(
    answer: Answer, truth: Any, values: Mapping[str, Any], provenance: Provenance, where: str
) -> tuple[str, Target]:
    if not isinstance(truth, Sequence) or len(truth) != 2 or not all(isinstance(v, int | float) for v in truth):
        raise LinesideError(f"{where} holds {truth!r:.60}: expected [x, y] from 0 to 1")
    x, y = float(truth[0]), float(truth[1])
    mask = column(values, answer.mask_column or "", where)
    if mask is None:
        raise _NotAsked(UNKNOWN)
    try:
        runs = Mask(int(mask["height"]), int(mask["width"]), tuple(int(run) for run in mask["runs"]))
    except (TypeError, KeyError, ValueError) as error:
        raise LinesideError(
            f"{where}: column {answer.mask_column!r} holds {mask!r:.60}: expected height, width and runs"
        ) from error
    target = Target("point", provenance, x=x, y=y, mask=runs)
    return answer_to(target), target


_READERS = {"exact": _word, "choice": _word, "set": _set, "number": _number, "point": _point}


def _options(answer: Answer, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    return _strings(values, answer.options_column, where) if answer.options_column else answer.options


def _strings(values: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    found = column(values, name, where)
    if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(v, str | int) for v in found):
        raise LinesideError(f"{where}: column {name!r} holds {found!r:.60}: expected a list of strings")
    return tuple(str(v) for v in found)


def _flag(values: Mapping[str, Any], name: str, key: str, where: str) -> bool:
    found = column(values, name, where)
    if not isinstance(found, bool):
        typed = f"; use {{column: {name}, type: bool}} in the table's columns" if isinstance(found, str) else ""
        raise LinesideError(f"{where}: {key}: column {name!r} holds {found!r:.60}: expected true or false{typed}")
    return found
