"""Replies of a teacher behind an API: untrusted text becomes a strict record or is refused with a reason.

Only what cannot change the meaning is repaired: a code fence around the JSON, a reasoning model's thoughts before it,
commas before a closing bracket. Nothing is evaluated, completed or guessed; an unknown key is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import ValidationError

from lineside.strict import Strict, Tuple
from lineside.verify.text import normalise, strip, words

MAX_REPLY = 262_144  # characters of a reply that are read
MAX_CAPTION = 600
MAX_QUESTION = 400
MIN_CAPTION_WORDS = 3
# Text that our renderer, or another chat template, would read as markup.
_MARKUP = re.compile(r"</?think>|<image>|<\|[^|>]{0,40}\|>", re.IGNORECASE)
_FENCE = re.compile(r"\A[^{\[]*?```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```[^{\[]*\Z", re.DOTALL)
# A string, or a comma before a closing bracket. A string without a closing quote goes to the end: linear time.
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=[ \t\r\n]*+[\]}])', re.DOTALL)
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
    """Stage 2 with recorded answers."""

    traces: Tuple[Trace]


class Question(Strict):
    """A question that the teacher made up, with what is needed to check an answer to it."""

    question: str
    kind: Literal["choice", "number", "set", "exact"]
    options: Tuple[str]
    unit: str
    answer: str


class TracedQuestion(Question):
    """A question with the trace of its answer."""

    trace: str


class QuestionsReply(Strict):
    """Stage 2 without records."""

    questions: Tuple[TracedQuestion]


class PromptsReply(Strict):
    """Stage 3 without records."""

    questions: Tuple[Question]


class Answered(Strict):
    """One answer to question `id`."""

    id: int
    trace: str
    answer: str


class AnswersReply(Strict):
    """Answers to questions of an earlier reply or of the task file."""

    answers: Tuple[Answered]


R = TypeVar("R", bound=Strict)


def read_reply(model: type[R], text: str) -> R:
    """The record in a reply. Raises BadReply with the reason, and nothing else for any string."""
    data = read_json(text)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join("*" if isinstance(part, int) else str(part) for part in first["loc"])
        raise BadReply(f"not as asked: {place or 'the reply'}: {first['msg'].lower()}") from None


def read_json(text: str) -> Any:
    """The JSON of a reply, repaired if that is safe. Raises BadReply."""
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
        except (ValueError, RecursionError):  # ValueError: not JSON, or a number with thousands of digits
            continue
    raise BadReply("not JSON")


def without_trailing_commas(text: str) -> str:
    """The text without commas before a closing bracket; strings stay as they are."""
    return _STRING_OR_COMMA.sub(lambda found: "" if found[0] == "," else found[0], text)


@cache  # making a schema takes longer than sending the request
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
    """Why a question that the teacher made up is not asked, "" if it is."""
    if len(question) > MAX_QUESTION:
        return "too long"
    if _MARKUP.search(question):
        return "holds markup"
    if not question.endswith("?") or len(words(question)) < MIN_CAPTION_WORDS:
        return "no question"
    return "asked already" if normalise(question) in map(normalise, earlier) else ""


def holds_markup(text: str) -> bool:
    """Whether a renderer would read a part of the text as markup."""
    return _MARKUP.search(text) is not None


def _refuse(constant: str) -> NoReturn:
    raise BadReply(f"not JSON: {constant}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadReply("not JSON: a key occurs twice")
    return found
