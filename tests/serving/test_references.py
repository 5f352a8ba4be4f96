"""Reference pictures in a request: the answer is that of `ask --reference`, and each question has its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from lineside.ask import ask
from lineside.serving.api import ApiError, Chat, Questions
from lineside.serving.requests import Reader, ReadRequest
from lineside.serving.requests import turn as read_turn
from tests.conftest import picture
from tests.serving.conftest import Served, turn, url

QUESTION = "Is a 4711 in view?"


def part(kind: str, value: str) -> dict[str, Any]:
    return {"type": "text", "text": value} if kind == "text" else {"type": "image_url", "image_url": {"url": value}}


def chat(*parts: tuple[str, str]) -> Chat:
    content = [part(*one) for one in parts]
    return Chat.model_validate({"model": "m", "messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize(
    ("parts", "question", "frames", "references"),
    [
        ("i:a t:what?", "what?", ["a"], []),
        ("t:what? i:a", "what?", ["a"], []),  # as many clients write it
        ("t:what? i:a i:b", "what?", ["a", "b"], []),
        ("i:a t:4711: i:b t:what?", "what?", ["a"], [("b", "4711", "")]),
        ("i:a t:4711_(can_of_330_ml): i:b i:c t:red_can i:d t:what?", "what?", ["a"],
         [("b", "4711", "can of 330 ml"), ("c", "4711", "can of 330 ml"), ("d", "red can", "")]),
        ("i:a t:12:30_(x: i:b t:what?", "what?", ["a"], [("b", "12:30 (x", "")]),
        ("i:a t:4711 i:b", "", ["a"], [("b", "4711", "")]),
    ],
)  # fmt: skip
def test_text_between_pictures_names_a_reference(
    parts: str, question: str, frames: list[str], references: list[tuple[str, str, str]]
) -> None:
    pairs = [one.split(":", 1) for one in parts.split()]
    asked = chat(*[("text" if kind == "t" else "image", value.replace("_", " ")) for kind, value in pairs])
    found = read_turn(asked)
    assert found[:2] == (question, frames)
    assert [(one.image, one.name, one.text) for one in found[2]] == references


def test_a_name_that_is_none_is_refused() -> None:
    for name in (" ", ":", "x" * 300):
        with pytest.raises(ApiError, match="names a reference, in 1 to 200 characters"):
            read_turn(chat(("image", "a"), ("text", name), ("image", "b"), ("text", "what?")))


def test_an_answer_is_that_of_ask_with_the_same_references(server: Served, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    given = [f"{tmp_path}/1.png=4711", f"{tmp_path}/2.png=4711"]
    want = ask(
        server.checkpoint, tmp_path / "0.png", QUESTION, references=given, thinking=False, max_new_tokens=24,
        as_json=True,
    )  # fmt: skip
    parts = [("image", url(0)), ("text", "4711:"), ("image", url(1)), ("image", url(2)), ("text", QUESTION)]
    messages = [{"role": "user", "content": [part(*one) for one in parts]}]
    own = {"lineside": {"thinking": False}}
    found = server.openai.chat.completions.create(model="tiny", messages=messages, max_tokens=24, extra_body=own)
    assert found.choices[0].message.content == want.typed.text
    assert "without reference pictures" in found.model_extra["lineside"]["note"]
    plain = server.openai.chat.completions.create(
        model="tiny", messages=turn(QUESTION, url(0)), max_tokens=24, extra_body=own
    )
    assert plain.choices[0].message.content != want.typed.text and "note" not in plain.model_extra["lineside"]
    beside = [{"image": url(number), "name": "4711"} for number in (1, 2)]
    asked = {"question": QUESTION, "thinking": False}
    body = {"model": "tiny", "image": url(0), "max_tokens": 24, "references": beside, "questions": [asked, asked]}
    with server.http() as client:
        answers = client.post("v1/frames/questions", json=body).json()["answers"]
    assert [one["content"] for one in answers] == [want.typed.text] * 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"image": url(1), "name": "  "}, "the name of a reference is empty"),
        ({"image": url(1)}, "references.0.name: Field required"),
        ({"image": "data:image/png;base64,AAAA", "name": "4711"}, "reference 4711: not an image"),
        ({"image": "file:///etc/passwd", "name": "4711"}, "expected a data: URL"),
    ],
)
def test_bad_references_are_refused_by_name(server: Served, reference: dict[str, Any], message: str) -> None:
    body = {"model": "tiny", "image": url(0), "references": [reference], "questions": [{"question": "what?"}]}
    with server.http() as client:
        answer = client.post("v1/frames/questions", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert "references" in answer.json()["error"]["param"]


def test_a_reference_needs_a_question_too(server: Served) -> None:
    content = [part("image", url(0)), part("text", QUESTION), part("image", url(1))]
    with pytest.raises(openai.BadRequestError, match="text between two pictures names a reference"):
        server.openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


class Shows:
    """In place of the process that decodes."""

    async def show(self, data: bytes, **_: Any) -> Any:
        return ((data, "frame"),), None


def reading(views: list[str]) -> Reader:
    """Reads requests to a model that was trained with these views."""
    task = SimpleNamespace(task=None, form=None, choices=())
    book = SimpleNamespace(find=lambda text, name: task, thinks=lambda name: (False, ""))
    engine = SimpleNamespace(facts={"views": views, "references": True})
    reader = Reader(SimpleNamespace(trial=lambda name, cell: None), Shows(), SimpleNamespace())  # pyright: ignore[reportArgumentType]
    reader.model = lambda name, cell=None: SimpleNamespace(engine=engine, roi=None, book=book)  # pyright: ignore
    return reader


def shown(asked: ReadRequest) -> list[tuple[str, str, bytes]]:
    return [(one.role, one.name, one.data) for one in asked.pictures]


def test_views_come_by_name_in_the_order_of_training_before_the_references() -> None:
    reader, (frame, top, side, can) = reading(["side", "top"]), map(picture, range(4))
    want = [("frame", "", frame), ("view", "side", side), ("view", "top", top), ("reference", "can", can)]
    parts = [("image", url(0)), ("text", "top:"), ("image", url(1)), ("text", "can:"), ("image", url(3)),
             ("text", "side"), ("image", url(2)), ("text", "what?")]  # fmt: skip
    assert shown(asyncio.run(reader.chat(chat(*parts), 0.0))) == want
    body = {
        "model": "m", "image": url(0), "references": [{"image": url(3), "name": "can"}],
        "views": [{"image": url(1), "name": "top"}, {"image": url(2), "name": "side"}],
        "questions": [{"question": "what?"}],
    }  # fmt: skip
    assert shown(asyncio.run(reader.questions(Questions.model_validate(body), 0.0))) == want
    without = shown(asyncio.run(reading([]).chat(chat(*parts), 0.0)))  # to another model the same names are references
    assert [(role, name) for role, name, _ in without] == [("frame", "")] + [
        ("reference", name) for name in ("can", "side", "top")
    ]
    for name, message in (("tpo", "no view 'tpo'.*expected side, top"), (" ", "name of a view is empty")):
        body["views"] = [{"image": url(1), "name": name}]
        with pytest.raises(ApiError, match=message) as refused:
            asyncio.run(reader.questions(Questions.model_validate(body), 0.0))
        assert refused.value.status == 400 and refused.value.body["error"]["param"] == "views"


@pytest.mark.parametrize("known", [([], ["side"]), (["side"], [])])
def test_each_model_of_a_trial_reads_a_picture_beside_the_frame_as_its_own_training_had_it(
    known: tuple[list[str], list[str]],
) -> None:
    reader, pair = reading([]), [reading(views).model("m") for views in known]
    reader._pair = lambda name, cell: pair  # pyright: ignore
    parts = [("image", url(0)), ("text", "side:"), ("image", url(1)), ("text", "what?")]

    async def both() -> list[ReadRequest]:
        first = await reader.chat(chat(*parts), 0.0)
        assert first.again is not None and first.again.bytes == len(url(0)) + len(url(1))
        return [first, await first.again.read()]

    for views, asked in zip(known, asyncio.run(both()), strict=True):
        role = "view" if views else "reference"
        assert shown(asked) == [("frame", "", picture(0)), (role, "side", picture(1))]
