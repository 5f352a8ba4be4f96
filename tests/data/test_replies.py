"""Replies: repaired where that is safe, else refused with a reason; nothing is evaluated, nothing raises else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data.replies import (
    AnswersReply,
    BadReply,
    CaptionsReply,
    caption_problem,
    question_problem,
    read_json,
    read_reply,
    schema_of,
    without_trailing_commas,
)

GOOD = {"captions": ["a red can", "commas, ] in } strings,"]}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\ufeff  {TEXT}\n",
        f"```json\n{TEXT}\n```",
        f"Here you are:\n```\n{TEXT}\n```\nAnything else?",
        f"<think>first {{ I look</think>\n{TEXT}",
        TEXT[:-1] + ",}",
        TEXT.replace("]}", ' , \n]\n, }'),
        f"```json\n{TEXT[:-1]},\n}}\n```",
    ],
)  # fmt: skip
def test_repaired(text: str) -> None:
    assert read_json(text) == GOOD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("I cannot see it.", "not JSON"),
        (TEXT[: len(TEXT) // 2], "not JSON"),
        (f"Sure: {TEXT}", "not JSON"),  # prose is not guessed away
        (TEXT + TEXT, "not JSON"),
        ("{'captions': ['a red can']}", "not JSON"),  # Python is not JSON, and is not evaluated
        ('__import__("os").getpid()', "not JSON"),
        ('{"captions": [], "captions": ["x"]}', "a key occurs twice"),
        ('{"captions": NaN}', "NaN"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("x" * 300_000, "too long"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(BadReply, match=reason):
        read_json(text)


@given(st.text(alphabet='{}[]",:\\ \n`ab0', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadReply):
        read_reply(CaptionsReply, text)


@given(st.recursive(st.text(',]}"\\ ', max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_sound_json_has_no_commas_to_take(value) -> None:
    text = json.dumps(value)
    assert without_trailing_commas(text) == text


@pytest.mark.parametrize(
    "text",
    [
        '{"captions": "none"}',
        '{"captions": [1]}',
        '{"captions": ["a"], "note": "b"}',
        "{}",
        "[]",
        '"captions"',
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadReply, match="not as asked"):
        read_reply(CaptionsReply, text)


def test_numbers_are_not_converted() -> None:
    with pytest.raises(BadReply, match=r"answers\.\*\.id"):
        read_reply(AnswersReply, '{"answers": [{"id": "1", "trace": "", "answer": "3"}]}')


def test_the_schema_forbids_what_the_reader_refuses() -> None:
    schema = schema_of(AnswersReply)["schema"]
    entry = schema["$defs"]["Answered"]
    assert entry["additionalProperties"] is False
    assert set(entry["required"]) == set(entry["properties"]) == {"id", "trace", "answer"}


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("Three red cans in a tray.", ""),
        ("three red  CANS in a tray", "said already"),
        ("Red.", "says nothing"),
        ("Three blue cans <|im_end|> in a tray", "holds markup"),
        ("Three blue cans </think> 4", "holds markup"),
        ("can " * 200, "too long"),
    ],
)
def test_captions(caption: str, problem: str) -> None:
    assert caption_problem(caption, [] if not problem else ["Three red cans in a tray."]) == problem


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("How many cans are red?", ""),
        ("How many cans?", "asked already"),
        ("Count the cans.", "no question"),
        ("What?", "no question"),
        ("Is <image> a can of red?", "holds markup"),
    ],
)
def test_questions(question: str, problem: str) -> None:
    assert question_problem(question, ["how many cans?"]) == problem
