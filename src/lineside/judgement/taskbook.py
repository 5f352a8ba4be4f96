"""What a checkpoint knows of its tasks, and one response as a typed answer. `ask` and the server use the same.

The forms and budgets of tasks lie in tasks.json, the calibration in calibration.json, both in the checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from lineside.errors import LinesideError
from lineside.judgement.answers import answer_tokens, confidence
from lineside.judgement.calibration import Calibration, Curve, read_calibration
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form, read_forms, task_of, type_answer
from lineside.types import Region, Response, Rollout, Thinking
from lineside.verify.parse import parse

UNUSED = "this checkpoint was trained without reference pictures: do not expect them to help"
NO_FORM = "this checkpoint does not say what the task's answers are (`lineside evaluate` writes its tasks.json)"


class TypedResponse(NamedTuple):
    """A response, read and typed. `confidence`: the model's own probability of its answer."""

    typed: TypedAnswer
    response: Response
    confidence: float


class Named(NamedTuple):
    """The task of a question: None where it is not known. `why`: the reason why task or form is not known, or ""."""

    task: str | None
    form: Form | None
    why: str

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers that the task allows; () if they are not known."""
        return self.form.options if self.form is not None and self.form.kind == "choice" else ()


@dataclass(frozen=True, slots=True)
class TaskBook:
    """Forms, calibration and thinking of a checkpoint's tasks, by family/task."""

    forms: Mapping[str, Form]
    thinking: Thinking
    calibration: Calibration | None
    uncalibrated: str
    """Why there is no calibration, or ""."""

    @classmethod
    def read(cls, checkpoint: Path, thinking: Thinking, form: str) -> TaskBook:
        """Those of a folder. `form`: how the model computes (`VLM.form`). Raises LinesideError for a damaged file."""
        return cls(read_forms(checkpoint), thinking, *read_calibration(checkpoint, form))

    def find(self, question: str, named: str | None) -> Named:
        """The task that a request names, else the one that asks so. Raises LinesideError for an unknown name."""
        if named is None:
            task, why = task_of(question, self.forms)
            return Named(task, self.forms.get(task or ""), why)
        if named not in self.forms and named not in self.thinking.tasks and (known := self.names):
            near = get_close_matches(named, known, n=1, cutoff=0.4)
            raise LinesideError(
                f"this checkpoint has no task {named!r}: expected one of {', '.join(known)}"
                f"{f'; did you mean {near[0]}?' if near else ''}"
            )
        form = self.forms.get(named)
        return Named(named, form, "" if form else f"{NO_FORM}, so the answer is text")

    @property
    def names(self) -> list[str]:
        """Every task that the checkpoint knows."""
        return sorted({**self.thinking.tasks, **self.forms})

    def thinks(self, task: str | None) -> tuple[bool, str]:
        """Whether to ask with thinking on, and a note for the user about that choice."""
        if task is not None and task in self.thinking.tasks:
            return self.thinking.tasks[task], ""
        fast = [name for name, thinks in self.thinking.tasks.items() if not thinks]
        if not fast or not self.thinking.default:
            return self.thinking.default, ""
        return True, f"asked with thinking on; for a question of {', '.join(fast)} give --task, or --mode fast"

    def curve(self, task: str, *, thinking: bool) -> tuple[Curve | None, str]:
        """The calibration of the task in this mode, and "" or the reason why it is missing."""
        if self.calibration is None:
            return None, self.uncalibrated
        curve = self.calibration.curve(task, thinking=thinking)
        if curve is None:
            return None, f"not calibrated: {task} was not asked on dev in this mode"
        return curve, curve.note

    def answer(
        self,
        rollout: Rollout,
        question: str,
        named: Named,
        *,
        thinking: bool,
        think_close: int,
        ms: float,
        region: Region | None = None,
        uncalibrated: str = "",
    ) -> TypedResponse:
        """A response as a typed answer. `uncalibrated`: why no calibration holds for this response, or ""."""
        response = parse(rollout.text, thinking=thinking, finished=rollout.finished, question=question)
        logprobs = answer_tokens(rollout, thinking=thinking, think_close=think_close)
        sure = 0.0 if response.answer is None else confidence(logprobs)
        curve, missing = self.curve(named.task, thinking=thinking) if named.task is not None else (None, "")
        typed = type_answer(
            response.answer,
            task=named.task,
            form=named.form,
            trace=response.trace,
            finished=rollout.finished,
            confidence=curve.apply(sure) if curve and not uncalibrated else None,
            note=named.why or uncalibrated or missing,
            on=curve.acts_from if curve else None,
            normal=curve.normal if curve else None,
            ms=ms,
            region=region,
        )
        return TypedResponse(typed, response, sure)
