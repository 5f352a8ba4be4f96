"""The review list: questions about pictures for a person, with what record, teacher and model said.

This is the one seam between `lineside review` and the verbs that find frames for a person: they call `write_list`. A
list is a folder with `review.jsonl`, one `ReviewQuestion` a line, and the pictures that its lines name. Any other file
of such lines is read too (`read_list`). Unknown keys, a wrong type and an id that occurs twice are refused by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lineside.data.regions import mask_of
from lineside.data.tabular import read_json
from lineside.data.taskfile import Answer
from lineside.data.tasks import parse_teacher_answer
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.images import image_key, image_suffix, stored
from lineside.strict import Strict, Tuple, build
from lineside.types import AnswerKind, Mask, Target
from lineside.verify.text import MAX_ANSWER, strip
from lineside.verify.verifiers import verify, verify_point

LIST = "review.jsonl"
PICTURES = "pictures"
MAX_LINE = 1 << 20  # bytes
POINT_RADIUS = 0.03  # of the picture's side: a person's point stands for a disc of this radius
_GRID = 200  # pixels a side of the mask of such a disc
_POINT = re.compile(r"([0-9.]{1,12}) ?, ?([0-9.]{1,12})")


class WrongForm(LinesideError):
    """An answer is not of the form that its question asks for. The message says what was expected."""


class Form(Strict):
    """What an answer must look like: the fields of a target that do not tell the truth."""

    kind: AnswerKind
    options: Tuple[str] = ()
    unit: str = ""
    resolution: Annotated[float, Field(gt=0)] = 1.0
    period: Annotated[float, Field(ge=0)] = 0.0
    counted: bool = False

    @classmethod
    def of_target(cls, target: Target) -> Form:
        """The form of a question whose target is known."""
        fields = {name: getattr(target, name) for name in ("kind", "options", "unit", "counted")}
        return cls(**fields, resolution=float(target.resolution), period=float(target.period))

    @classmethod
    def of_answer(cls, answer: Answer, options: tuple[str, ...]) -> Form:
        """The form of a task's questions. `options`: those of this frame, where they differ between frames."""
        fields = {name: getattr(answer, name) for name in ("kind", "unit", "resolution", "period", "counted")}
        return cls(**fields, options=options)

    def read(self, text: str) -> tuple[str, Target]:
        """(canonical answer, target that takes it for the truth). Raises WrongForm.

        The target has provenance "record". A point's target is a disc of POINT_RADIUS around it.
        """
        text = strip(text)
        found = None
        if 0 < len(text) <= MAX_ANSWER and text.isprintable():
            found = _read_point(text) if self.kind == "point" else parse_teacher_answer(self._answer(), text)
        if found is None:
            raise WrongForm(f"{text[:60]!r}: expected {self.expected()}")
        return found[0], replace(found[1], provenance="record")

    def takes(self, text: str) -> bool:
        """Whether an answer is of this form."""
        try:
            self.read(text)
        except WrongForm:
            return False
        return True

    def same(self, first: str, second: str) -> bool:
        """Whether two answers of this form say the same, by the verifier. False if either is not of this form."""
        return self.takes(second) and verify(first, self.read(second)[1]).exact

    def expected(self) -> str:
        """What an answer must be, in words."""
        if self.kind == "number":
            unit = f" {self.unit}" if self.unit else ""
            step = "a whole number" if self.resolution == 1 else f"a number that is a multiple of {self.resolution:g}"
            return f"{step}{f', in{unit}' if unit else ''}, such as {self.resolution * 4:g}{unit}"
        if self.kind == "point":
            return "a point of the picture: x, y from 0 to 1"
        if self.kind == "set":
            such = "members with commas between them, or none"
            such = f'{such}; "2 cartons" for two of a kind' if self.counted else such
            return f"{such}, out of {', '.join(self.options)}" if self.options else such
        return f"one of {', '.join(self.options)}" if self.options else "a short text"

    def _answer(self) -> Answer:
        """The form as the answer of a task file."""
        kept: dict[str, Any] = {"kind": self.kind, "column": "told"}
        if self.kind in ("choice", "set"):
            kept["options"] = self.options
        if self.kind == "choice" and not self.options:
            kept = {"kind": "exact", "column": "told"}
        if self.kind == "set":
            kept["counted"] = self.counted
        if self.kind == "number":
            kept |= {"unit": self.unit, "resolution": self.resolution, "period": self.period}
        return Answer(**kept)


class Said(Strict):
    """What somebody said to a question before a person was asked."""

    by: Literal["record", "teacher", "model", "person"]
    name: str = ""  # the teacher's or the model's name
    answer: str
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    trace: str | None = None


class ReviewQuestion(Strict):
    """One question about one picture.

    `id` is unique in the list and stays when the list is written again: answers are kept by it. `frame` is the frame's
    id, in a folder of pictures the picture's file; `key` names the element of a task with `each` (`Candidate.key`).
    `picture` is a file, relative to the list. `why` says in a few words why a person is asked.
    `about` says what is asked if that is not the text: answers are kept while it stays (`subject`).
    """

    version: Literal[1] = 1
    id: Annotated[str, Field(min_length=1, max_length=5000)]
    frame: Annotated[str, Field(min_length=1)]
    picture: str
    family: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    key: str = ""
    question: Annotated[str, Field(min_length=1)]
    form: Form
    said: Tuple[Said] = ()
    scene: str = ""
    why: str = ""
    about: str = ""

    @property
    def subject(self) -> str:
        """What an answer is an answer to. "Is this a can?" is another question than "Is this a box?" of the same id."""
        return self.about or self.question

    @property
    def task_name(self) -> str:
        """`family/task`."""
        return f"{self.family}/{self.task}"


def write_list(folder: Path, questions: Iterable[tuple[ReviewQuestion, bytes]]) -> int:
    """Write a list and its pictures into `folder`; returns the number of questions.

    Each question comes with the bytes of its picture; `picture` is set here. An earlier list there is replaced, at
    once; answers to it stay. Raises LinesideError for bytes that are no picture, an id that occurs twice, and when the
    folder cannot be written.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for question, data in questions:
        if question.id in seen:
            raise LinesideError(f"{folder / LIST}: the question {question.id!r} occurs twice")
        seen.add(question.id)
        picture = keep_picture(folder, data, question.frame)
        lines.append(question.model_copy(update={"picture": picture}).model_dump_json(exclude_defaults=True))
    write_atomic(folder / LIST, "".join(line + "\n" for line in lines))
    return len(lines)


def keep_picture(folder: Path, data: bytes, name: str) -> str:
    """Save a picture below `folder`, named by its content; returns its name relative to `folder`.

    Raises LinesideError with `name` for bytes that are no picture.
    """
    try:
        shown = stored(data)[0]
    except LinesideError as error:
        raise LinesideError(f"{name}: {error}") from error
    path = folder / PICTURES / f"{image_key(data)}{image_suffix(shown)}"
    if not path.exists():
        write_atomic(path, shown)
    return f"{PICTURES}/{path.name}"


def read_list(path: Path) -> Iterator[ReviewQuestion]:
    """The questions of a file of JSON lines. Raises LinesideError naming file and line of a bad one."""
    seen: set[str] = set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    question = _read_line(line, f"{path}, line {number}")
                    if question.id in seen:
                        raise LinesideError(f"{path}, line {number}: the question {question.id!r} occurs twice")
                    seen.add(question.id)
                    yield question
    except UnicodeError as error:
        raise LinesideError(f"{path}: not UTF-8 ({error}): expected JSON lines") from error
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_line(line: str, where: str) -> ReviewQuestion:
    if len(line) > MAX_LINE:
        raise LinesideError(f"{where}: {len(line)} characters: at most {MAX_LINE} are read")
    try:
        data = read_json(line)
    except (ValueError, RecursionError) as error:
        raise LinesideError(f"{where}: not JSON ({error}): expected one question a line") from error
    if not isinstance(data, Mapping):
        raise LinesideError(f"{where}: expected a JSON object with the keys of a question")
    return build(ReviewQuestion, data, where)


def _read_point(text: str) -> tuple[str, Target] | None:
    match = _POINT.fullmatch(text)
    if match is None or any(part.count(".") > 1 or not part.strip(".") for part in match.groups()):
        return None
    x, y = (float(part) for part in match.groups())
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return None
    target = Target("point", "record", x=x, y=y, mask=disc(x, y))
    canonical = f"{x:.3f}, {y:.3f}"
    return (canonical, target) if verify_point(canonical, target).exact else None


def disc(x: float, y: float, radius: float = POINT_RADIUS) -> Mask:
    """A mask with the pixels whose centre lies within `radius` of (x, y), and the pixel that holds (x, y)."""
    centre = (np.arange(_GRID) + 0.5) / _GRID
    on = (centre[:, None] - y) ** 2 + (centre[None, :] - x) ** 2 <= radius**2
    on[min(int(y * _GRID), _GRID - 1), min(int(x * _GRID), _GRID - 1)] = True
    return mask_of(on)
