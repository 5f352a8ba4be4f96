"""What a teacher behind an API wrote, taken apart: untrusted text becomes a strict record or is refused with a reason.

Repaired is only what cannot change the meaning: a code fence around the JSON, a reasoning model's thoughts before it,
commas before a closing bracket. Nothing is evaluated, completed or guessed; a key too many is a refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import ValidationError

from lineside.data.strict import Strict, Tuple
from lineside.verify.text import normalise, strip, words

MAX_REPLY = 262_144  # characters of a reply that are ever looked at
MAX_CAPTION = 600
MAX_QUESTION = 400
MIN_CAPTION_WORDS = 3
# What our own renderer, or somebody else's chat template, would read as markup.
_MARKUP = re.compile(r"</?think>|<image>|<\|[^|>]{0,40}\|>", re.IGNORECASE)
_FENCE = re.compile(r"\A[^{\[]*?```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```[^{\[]*\Z", re.DOTALL)
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class BadReply(Exception):
    """A reply that cannot be used. The message is the reason."""


class CaptionsReply(Strict):
    """Stage 1."""

    captions: Tuple[str]


class Trace(Strict):
    """The trace of question `id`."""

    id: int
    trace: str


class TracesReply(Strict):
    """Stage 2 where the record gives the answers."""

    traces: Tuple[Trace]


class Question(Strict):
    """A question of the teacher's own, with what is needed to check an answer to it."""

    question: str
    kind: Literal["choice", "number", "set", "exact"]
    options: Tuple[str]
    unit: str
    answer: str


class TracedQuestion(Question):
    """... with the trace of its answer."""

    trace: str


class QuestionsReply(Strict):
    """Stage 2 where only the teacher speaks."""

    questions: Tuple[TracedQuestion]


class PromptsReply(Strict):
    """Stage 3 where only the teacher speaks."""

    questions: Tuple[Question]


class Answered(Strict):
    """One answer to question `id`."""

    id: int
    trace: str
    answer: str


class AnswersReply(Strict):
    """Answers to questions that were asked before, or that the task file asks."""

    answers: Tuple[Answered]


R = TypeVar("R", bound=Strict)


def read_reply(model: type[R], text: str) -> R:
    """The record that a reply holds. Raises BadReply with the reason; total on strings."""
    data = read_json(text)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join("*" if isinstance(part, int) else str(part) for part in first["loc"])
        raise BadReply(f"not as asked: {place or 'the reply'}: {first['msg'].lower()}") from None


def read_json(text: str) -> Any:
    """The JSON of a reply, repaired where that is safe. Raises BadReply."""
    if len(text) > MAX_REPLY:
        raise BadReply("too long")
    text = strip(_THOUGHTS.sub("", text.removeprefix("\ufeff")))
    if not text:
        raise BadReply("empty")
    if (fenced := _FENCE.match(text)) is not None:
        text = fenced[1]
    for repair in (str, without_trailing_commas):
        try:
            return json.loads(repair(text), parse_constant=_refuse, object_pairs_hook=_object)
        except BadReply:
            raise
        except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
            continue
    raise BadReply("not JSON")


def without_trailing_commas(text: str) -> str:
    """Without the commas that stand before a closing bracket; what is inside strings stays as it is."""
    kept: list[str] = []
    in_string = escaped = False
    comma = -1  # place in `kept` of a comma that nothing but white space has followed
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character in "]}" and comma >= 0:
            kept[comma] = ""
            comma = -1
        elif character == ",":
            comma = len(kept)
        elif character not in " \t\r\n":
            comma = -1
            in_string = character == '"'
        kept.append(character)
    return "".join(kept)


@cache  # making one takes longer than sending the request
def schema_of(model: type[Strict]) -> dict[str, Any]:
    """The JSON schema of a reply, as `response_format` takes it."""
    return {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}


def caption_problem(caption: str, earlier: Sequence[str]) -> str:
    """Why a caption is not used, "" if it is."""
    if len(caption) > MAX_CAPTION:
        return "too long"
    if _MARKUP.search(caption):
        return "holds markup"
    if len(words(caption)) < MIN_CAPTION_WORDS:
        return "says nothing"
    return "said already" if normalise(caption) in map(normalise, earlier) else ""


def question_problem(question: str, earlier: Sequence[str]) -> str:
    """Why a question of the teacher's own is not asked, "" if it is."""
    if len(question) > MAX_QUESTION:
        return "too long"
    if _MARKUP.search(question):
        return "holds markup"
    if not question.endswith("?") or len(words(question)) < MIN_CAPTION_WORDS:
        return "no question"
    return "asked already" if normalise(question) in map(normalise, earlier) else ""


def holds_markup(text: str) -> bool:
    """Whether a text holds what a renderer would read as markup."""
    return _MARKUP.search(text) is not None


def _refuse(constant: str) -> NoReturn:
    raise BadReply(f"not JSON: {constant}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadReply("not JSON: a key stands twice")
    return found
