"""Answers for machines: the text of an answer as a value of its task's kind, and whether a cell may act on it.

The form of a task's answers (kind, unit, options) and its phrasings are kept in the checkpoint's folder, in
`tasks.json`, so that `ask` can type an answer and find the task of a question. A text that is not exactly of its kind
has no value. A cell acts only on a value whose calibrated confidence reaches the threshold of the task's stakes; in
every other case, so also where nothing is calibrated, it refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lineside.data.job import phrasings_of
from lineside.data.review_list import disc
from lineside.data.store import read_columns, sample_shards
from lineside.data.template import fits
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement.calibration import certainty
from lineside.judgement.decisions import acts
from lineside.judgement.schema import Counted, Strict, Thresholds, TypedAnswer
from lineside.progress import say
from lineside.types import AnswerKind, Provenance, Region, Target
from lineside.verify.members import guess_members, read_members
from lineside.verify.quantity import convert, read_quantity
from lineside.verify.stakes import passes
from lineside.verify.text import MAX_ANSWER, normalise, strip
from lineside.verify.verifiers import NONE, read_point, target_problem, with_truth

FILE = "tasks.json"
POINT_UNIT = "of width and height"
LOOKED_AT = 200  # questions of a task from which its form is read
FEW_QUESTIONS = 20  # so many different ones are phrasings; more are filled from templates that are not known

Kind = Literal["yes/no", "number", "choice", "text", "list", "counts", "point"]
Value = bool | int | float | str | tuple[float, float] | list[str] | list[Counted]


class Form(Strict):
    """What an answer of a task looks like, how the task is asked, and in how many milliseconds it is useful (None: not
    known). `options`: empty where they differ by frame. `resolution`, `tolerance`: of the numbers (None: not known)."""

    kind: AnswerKind
    unit: str = ""
    options: tuple[str, ...] = ()
    counted: bool = False
    phrasings: tuple[str, ...] = ()
    budget_ms: float | None = None
    resolution: float | None = None
    period: float = 0.0
    tolerance: float | None = None

    @classmethod
    def of(cls, target: Target) -> Form:
        """The form of one question's answer; text if the target is unsound. That of a `not` is its wrong answer's."""
        if target_problem(target):
            return cls(kind="exact")
        if target.kind == "not":
            return cls.of(target.wrong[0])
        form = cls(kind=target.kind, unit=target.unit, options=target.options, counted=target.counted)
        numbers = {name: float(getattr(target, name)) for name in ("resolution", "period", "tolerance")}
        return form.model_copy(update=numbers) if target.kind == "number" else form

    @property
    def target(self) -> Target:
        """A target of this form without a truth."""
        return Target(self.kind, "record", unit=self.unit, options=self.options, counted=self.counted)

    @property
    def is_compared(self) -> bool:
        """Whether it is known when two answers are the same: not of numbers with a unit and no known resolution."""
        return self.kind != "number" or self.resolution is not None or not self.unit

    def target_for(self, text: str, provenance: Provenance = "record") -> Target | None:
        """The target of a question of this form if `text` is the truth; None if it is no answer to it.

        Of a point the target is the disc that stands for a person's point (`disc`). Options that differ by frame are
        not known: then only the same text is the same answer. A number need not be a multiple of the resolution, as a
        scale says 124.9 g; its tolerance is one step if none is known.
        """
        if self.kind == "point":
            found = read_point(normalise(text)) if len(text) <= MAX_ANSWER else None
            if found is None or max(found) > 1.0:
                return None
            return Target("point", provenance, x=found[0], y=found[1], mask=disc(*found))
        target = replace(self.target, provenance=provenance)
        if self.kind == "choice" and not self.options:
            target = Target("exact", provenance)
        if self.kind != "number":
            return with_truth(target, text)
        quantity = read_quantity(normalise(text)) if len(text) <= MAX_ANSWER else None
        value = convert(*quantity, normalise(self.unit)) if quantity else None
        step = self.resolution or 1.0
        tolerance = step if self.tolerance is None else self.tolerance
        target = replace(target, value=value or 0.0, resolution=step, tolerance=tolerance, period=self.period)
        return None if value is None or target_problem(target) else target

    @property
    def value_kind(self) -> Kind:
        """The kind of value that answers have."""
        if self.kind == "set":
            return "counts" if self.counted else "list"
        if self.kind == "choice":
            return "yes/no" if sorted(map(normalise, self.options)) == ["no", "yes"] else "choice"
        return "number" if self.kind == "number" else "point" if self.kind == "point" else "text"

    def value(self, text: str | None) -> Value | None:
        """The value of an answer; None if the text is not exactly an answer of this form. It never raises."""
        if text is None or len(text) > MAX_ANSWER or not (said := normalise(text)):
            return None
        if self.kind == "number":
            quantity = read_quantity(said)
            number = convert(*quantity, normalise(self.unit)) if quantity else None
            return int(number) if number is not None and number == int(number) else number
        if self.kind == "point":
            point = read_point(said)
            return point if point is not None and max(point) <= 1.0 else None
        if self.kind == "set":
            return self._counts(text, said) if self.counted else self._list(text, said)
        if self.value_kind == "yes/no":
            return {"yes": True, "no": False}.get(said)
        return self._spelt(strip(text))

    def _spelt(self, text: str) -> str | None:
        """A name as the options spell it; None if it is none of them."""
        known = {normalise(option): option for option in self.options}
        return known.get(normalise(text)) if known and self.kind != "exact" else text

    def _list(self, text: str, said: str) -> list[str] | None:
        if said == NONE and NONE not in map(normalise, self.options):
            return []
        names = [self._spelt(strip(part)) for part in text.removesuffix(".").split(",")]
        found = [name for name in names if name]
        return found if len(found) == len(names) == len(set(map(normalise, found))) else None

    def _counts(self, text: str, said: str) -> list[Counted] | None:
        counts = read_members(said, self.options) if self.options else Counter(guess_members(strip(text)))
        spelt = {name: self._spelt(name) for name in counts or ()}
        if counts is None or not all(spelt.values()):
            return None
        return [Counted(name=spelt[name] or "", count=count) for name, count in counts.items()]


def type_answer(
    text: str | None,
    *,
    task: str | None,
    form: Form | None,
    trace: str | None,
    finished: bool,
    confidence: float | None,
    note: str,
    on: Thresholds | None,
    normal: str | None,
    ms: float | None,
    region: Region | None = None,
) -> TypedAnswer:
    """The typed answer. `form` None: the task is not known, and the answer is text.

    `confidence`: calibrated, or None with the reason in `note`. `on`: the thresholds by the task's stakes, None if the
    stakes are not known. `normal`: the task's normal answer. `region`: what was shown of the picture; the value of a
    point is given in the whole picture.
    """
    kind: Kind = form.value_kind if form else "text"
    value = (form or TEXT).value(text) if finished else None
    if region is not None and isinstance(value, tuple):
        x, y = region.outside(*value)
        value = min(1.0, max(0.0, x)), min(1.0, max(0.0, y))
    least, act = 1.0, False
    if form is not None and on is not None and confidence is not None and value is not None:
        is_normal = passes(text, form.target, normal)
        least, act = on.normal if is_normal else on.other, acts(confidence, is_normal, on)
    if text is None or not finished:
        because = "there is no answer" if text is None else "the answer is cut off"
    elif value is None:
        because = f"the answer is not of the kind {kind}" + (f" in {form.unit}" if form and form.unit else "")
    elif form is None or confidence is None:
        because = note
    elif on is None:
        because = "the cost of a mistake is not known: the task has no stakes"
    else:
        because = f"confidence {certainty(confidence)} {'reaches' if act else 'is below'} {certainty(least)}"
    return TypedAnswer(
        value=value,
        unit=POINT_UNIT if kind == "point" else (form.unit or None) if form and kind == "number" else None,
        confidence=confidence,
        decision="act" if act else "refuse",
        trace=trace,
        ms=ms,
        kind=kind,
        task=task,
        text=text,
        because=because,
    )


TEXT = Form(kind="exact")


class Forms(Strict):
    """The forms of a checkpoint's tasks, by family/task: the content of `tasks.json`."""

    version: Literal[1] = 1
    tasks: dict[str, Form]


def forms_in(samples: Path) -> dict[str, Form]:
    """The forms of the tasks of a folder of samples, from their targets and budgets, and the phrasings `label` kept.

    Without these, the questions themselves are the phrasings of a task that has few. No picture is read.
    """
    forms: dict[str, list[Form]] = {}
    questions: dict[str, set[str]] = {}
    budgets: dict[str, float] = {}
    for path in sample_shards(samples, kind="qa"):
        for row in read_columns(path, ("family", "task", "question", "target", "extra")):
            name = f"{row['family']}/{row['task']}"
            if name not in budgets and (budget := _budget(row["extra"])):
                budgets[name] = budget
            asked = questions.setdefault(name, set())
            if len(asked) <= FEW_QUESTIONS:
                asked.add(row["question"] or "")
            if row["target"] and len(forms.setdefault(name, [])) < LOOKED_AT:
                with suppress(ValueError, TypeError, KeyError, AttributeError):  # `validate` reports it
                    forms[name].append(Form.of(Target.from_json(json.loads(row["target"]))))
    kept = phrasings_of(samples)
    found: dict[str, Form] = {}
    for name, each in sorted(forms.items()):
        few = tuple(sorted(questions[name])) if len(questions[name]) <= FEW_QUESTIONS else ()
        same = len({form.options for form in each}) == 1
        for form in each[:1]:
            changes = {"options": form.options if same else (), "phrasings": kept.get(name, few)}
            found[name] = form.model_copy(update={**changes, "budget_ms": budgets.get(name)})
    return found


def _budget(extra: str | None) -> float | None:
    """The time budget in a sample's further columns, in milliseconds; None if there is none."""
    try:
        budget = json.loads(extra or "{}").get("budget_ms")
    except (ValueError, AttributeError):
        return None
    return float(budget) if type(budget) in (int, float) and 0 < budget < float("inf") else None


def read_forms(checkpoint: Path) -> dict[str, Form]:
    """The forms kept with a checkpoint; none if it has no such file. Raises LinesideError if it cannot be read."""
    path = checkpoint / FILE
    if not path.is_file():
        return {}
    try:
        return Forms.model_validate_json(path.read_bytes()).tasks
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LinesideError(f"{path}: not a list of tasks: {reason}; delete it: `evaluate` writes it again") from None


def keep_forms(checkpoint: Path, forms: Mapping[str, Form]) -> None:
    """Writes the forms into a checkpoint's folder, unless it has the file."""
    if (checkpoint / FILE).exists() or not forms:
        return
    try:
        write_atomic(checkpoint / FILE, Forms(tasks=dict(forms)).model_dump_json(indent=2) + "\n")
    except LinesideError as error:  # a checkpoint that is read-only can still be evaluated
        say(f"warning: the forms of the answers are not kept: {error}")


def task_of(question: str, forms: Mapping[str, Form]) -> tuple[str | None, str]:
    """(task, "") of a question that one of its phrasings can be, else (None, why not).

    Of several tasks the one whose phrasing leaves least open is meant; if two leave the same, none is.
    """
    scores = {
        name: max((score for phrasing in form.phrasings if (score := fits(phrasing, question)) is not None), default=-1)
        for name, form in forms.items()
    }
    best = max(scores.values(), default=-1)
    names = [name for name, score in scores.items() if score == best]
    if best < 0:
        return None, "the question is none of the checkpoint's tasks; name its task with --task"
    if len(names) > 1:
        return None, f"the question may be of {' or '.join(names)}; name its task with --task"
    return names[0], ""
