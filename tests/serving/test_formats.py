"""`response_format`: answers that always have the form that was asked for, whatever the model would have written."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lineside.model.generate import Prompt
from lineside.serving.engine import LocalEngine, Request, Tree
from lineside.serving.grammar import FormError, Grammars, json_grammar, regex_grammar
from lineside.types import Image
from tests.conftest import picture
from tests.serving.conftest import COUNT, EMPTY, Served, sharp, turn, url
from tests.serving.test_host import Timed, ask, host
from tests.serving.test_host import run as finish

SMALL = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "empty": {"type": "boolean"}},
    "required": ["count", "empty"],
    "additionalProperties": False,
}
IMAGES = (Image(picture(0)),)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(sharp())


def run(engine: LocalEngine, *grammars: str | None, thinking: bool = False, **options: Any) -> Tree:
    prompts = tuple(Prompt(IMAGES, f"how many {number}?", thinking) for number in range(len(grammars)))
    request = Request(prompts, **{"max_tokens": 90, "grammars": grammars, **options})
    engine.cost(request)
    (tree,) = engine.read([request])
    while any(row.reason is None for row in tree.rows):
        engine.step([tree])
    return tree


def bounded(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose texts are short, so that an answer ends."""
    texts = st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(1, 8))
    numbers = st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)},
        st.integers(-300, 300), st.integers(-300, 300),
    )  # fmt: skip
    words = st.text(st.sampled_from('ab "\\é\n/'), max_size=5)
    enums = st.builds(lambda v: {"enum": v}, st.lists(words | st.integers(0, 9) | st.none(), min_size=1, max_size=4))
    flat = (
        texts
        | numbers
        | enums
        | st.just({"type": "boolean"})
        | st.just({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"})
    )
    if not depth:
        return flat
    inner = bounded(depth - 1)
    lists = st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 3))

    def objects(properties: dict[str, Any], required: int) -> dict[str, Any]:
        names = list(properties)[:required]
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

    return flat | lists | st.builds(objects, st.dictionaries(words, inner, max_size=3), st.integers(0, 3))


@settings(max_examples=15)
@given(schema=bounded(), seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0, 2.0]), thinking=st.booleans())
def test_every_answer_that_ends_is_of_its_schema(
    engine: LocalEngine, schema: dict[str, Any], seed: int, temperature: float, thinking: bool
) -> None:
    tree = run(engine, json_grammar(schema), seed=seed, temperature=temperature, samples=2, thinking=thinking)
    for row in tree.rows:
        text = engine.content(row) if row.part == "answer" else ""
        form, tail = row.matcher.closed(text)  # pyright: ignore[reportOptionalMemberAccess]
        assert form == "whole" or row.reason == "length"
        if form != "partial":
            jsonschema.validate(json.loads(text + tail), schema, cls=jsonschema.Draft202012Validator)


def test_the_form_of_one_question_is_not_that_of_another(engine: LocalEngine) -> None:
    free, alone = run(engine, None, max_tokens=12), run(engine, None, None, max_tokens=12)
    mixed = run(engine, None, json_grammar(SMALL), regex_grammar("yes|no"), max_tokens=12)
    assert mixed.rows[0].tokens == free.rows[0].tokens == alone.rows[0].tokens
    assert mixed.rows[0].logprobs == pytest.approx(free.rows[0].logprobs, abs=1e-5)
    assert engine.content(mixed.rows[2]) in ("yes", "no") and not mixed.rows[0].bent and mixed.rows[2].bent


def test_a_form_that_forbids_nothing_changes_nothing(engine: LocalEngine) -> None:
    # Three tokens: the fifth one of this model would be a byte that is no UTF-8.
    free, formed = run(engine, None, max_tokens=3), run(engine, regex_grammar("(?s:.*)"), max_tokens=3)
    assert formed.rows[0].tokens == free.rows[0].tokens and not formed.rows[0].bent
    assert formed.rows[0].logprobs == pytest.approx(free.rows[0].logprobs, abs=1e-5)


def test_the_form_begins_behind_the_trace(engine: LocalEngine) -> None:
    tree = run(engine, regex_grammar("[0-9]{3}"), thinking=True, max_tokens=40, temperature=2.0, seed=1, samples=8)
    for row in tree.rows:
        assert engine.render.eos_id not in row.tokens[:-1]
        if row.part == "answer" and row.reason == "stop":
            assert re.fullmatch("[0-9]{3}", engine.content(row))


def test_the_form_holds_behind_a_trace_that_the_deadline_cut(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, opened = engine._by.choose, engine.render.think_open

    def opens(logits: torch.Tensor, *rest: Any) -> Any:
        logits = logits.clone()
        logits[:, opened] = torch.where(logits[:, opened] > -torch.inf, logits.max() + 1, -torch.inf)
        return choose(logits, *rest)

    monkeypatch.setattr(engine._by, "choose", opens)
    request = Request((Prompt(IMAGES, "how many?", True),), max_tokens=40, grammars=(regex_grammar("[0-9]{3}"),))
    (tree,) = engine.read([request])
    for _ in range(5):
        engine.step([tree])
    engine.cut(tree)
    while tree.rows[0].reason is None:
        engine.step([tree])
    assert tree.rows[0].cut and tree.rows[0].tokens[6] == engine.render.think_close
    assert re.fullmatch("[0-9]{3}", engine.content(tree.rows[0])) and tree.rows[0].reason == "stop"


def test_control_tokens_are_never_part_of_an_answer(engine: LocalEngine) -> None:
    grammars = Grammars(engine.render, engine.grammars.vocabulary)
    matcher = grammars.matcher(json_grammar({"type": "string"}))
    (quote,) = engine.render.encode('"')
    matcher.take(quote)
    allowed = matcher.allowed()
    banned = [engine.render.think_open, engine.render.think_close, engine.render.image_id, engine.render.eos_id]
    assert not allowed[banned].any() and allowed.any()


CUT = [
    ('{"count": 1', "partial", ""),  # it may have been 12
    ('{"count": 12', "partial", ""),  # the other value would have to be invented
    ('{"count": 12, "empty": t', "closed", "rue}"),
    ('{"count": 12, "empty": ', "partial", ""),
    ('{"count": 12, "empty": true', "closed", "}"),
    ('{"count": 12, "empty": true}', "whole", ""),
    ("", "partial", ""),
]


@pytest.mark.parametrize(("written", "form", "tail"), CUT)
def test_what_was_cut_is_closed_where_nothing_must_be_invented(
    engine: LocalEngine, written: str, form: str, tail: str
) -> None:
    matcher = engine.grammars.matcher(json_grammar(SMALL))
    for token in engine.render.encode(written):
        matcher.take(token)
    assert matcher.closed(written) == (form, tail)


def test_texts_and_lists_that_were_cut(engine: LocalEngine) -> None:
    schema = {"type": "object", "properties": {"seen": {"type": "array", "items": {"type": "string"}}},
              "required": ["seen"], "additionalProperties": False}  # fmt: skip

    def closed(written: str) -> tuple[str, str]:
        matcher = engine.grammars.matcher(json_grammar(schema))
        for token in engine.render.encode(written):
            matcher.take(token)
        return matcher.closed(written)

    assert closed('{"seen": ["red can", "bl') == ("closed", '"]}')
    assert closed('{"seen": ["a 1') == ("closed", '"]}')  # a digit within a text
    assert closed('{"seen": ["red can"') == ("closed", "]}")
    assert closed('{"seen": ["red can", ') == ("partial", "")
    assert closed('{"seen": ["a\\') == ("partial", "")
    assert closed('{"seen": [') == ("closed", "]}")


def test_a_deadline_leaves_json_that_is_whole_or_says_that_it_is_not() -> None:
    served, sent = host(Timed(sharp()))
    letters = json_grammar({"type": "string", "pattern": "^[a-z ]{200}[a-z ]*$"})
    words = json_grammar({"type": "string", "pattern": "^[a-z ]*$"})
    digits = regex_grammar("[0-9]{300}")
    for name, grammar in (("words", words), ("letters", letters), ("digits", digits)):
        asked = {"question": "how many?", "thinking": False, "choices": [], "grammar": grammar}
        served.take(ask(name, served.clock() + 500.0, prompts=[asked], tasks=[name], max_tokens=300), [picture(0)])
        finish(served)
    rows = {name: sent.of(name)[-1]["rows"][0] for name in ("words", "letters", "digits")}
    assert rows["words"]["form"] in ("whole", "closed") and isinstance(json.loads(rows["words"]["content"]), str)
    for name in ("letters", "digits"):  # too short: more would have to be invented
        assert rows[name]["reason"] == "deadline" and rows[name]["form"] == "partial"
    assert rows["digits"]["content"].isdigit()


REFUSED = [
    ({"not": {"type": "string"}}, 'Unimplemented keys: \\["not"\\]'),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"$ref": "http://169.254.169.254/latest"}, "not present in a registry"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "NoExtension"),
    ({"type": "wrong"}, "Invalid type"),
    ({"enum": list(range(3000))}, "3002 values: at most 2000"),
    ({"const": "\ud800"}, "cannot be read"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=[reason[:20] for _, reason in REFUSED])
def test_what_llguidance_refuses_is_refused_with_its_reason(
    engine: LocalEngine, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FormError, match=reason):
        engine.grammars.matcher(json_grammar(schema))


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "a{100000}", "(", "(?=a)b", "\\bа"])
def test_a_regular_expression_that_costs_too_much_or_is_none_is_refused(engine: LocalEngine, pattern: str) -> None:
    with pytest.raises(FormError, match=r"too many expressions|invalid regex|fuel"):
        engine.grammars.matcher(regex_grammar(pattern))


def test_hostile_forms_are_refused_and_never_raise_anything_else(engine: LocalEngine) -> None:
    chance = random.Random(0)
    values: list[Any] = [None, True, -1, 1e308, 10**30, "x", "\ud800", [], {}, [[]], "9" * 300, "#", "(((", "\0"]
    keys = ["type", "properties", "items", "enum", "const", "$ref", "pattern", "minimum", "maxLength", "format",
            "anyOf", "allOf", "required", "additionalProperties", "x-guidance", "multipleOf", "minItems"]  # fmt: skip
    for _ in range(150):
        schema = {chance.choice(keys): chance.choice(values) for _ in range(chance.randrange(1, 4))}
        try:
            engine.grammars.matcher(json_grammar(schema))
            engine.grammars.matcher(regex_grammar(str(chance.choice(values))))
        except FormError as error:
            assert 0 < len(str(error)) <= 300


class Bin(BaseModel):
    """A form as the official client states it."""

    count: int
    colour: str


def test_the_official_client_parses_its_own_class(server: Served) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": turn("what is it?", url(3)), "max_tokens": 400}
    options |= {"extra_body": {"lineside": {"thinking": False}}}
    short = {**options, "max_tokens": 60}  # for forms that may have no end
    schema = {**SMALL, "title": "small"}
    form = {"type": "json_schema", "json_schema": {"name": "small", "schema": schema, "strict": True}}
    found = server.openai.chat.completions.create(**options, response_format=form, n=3, temperature=1.5, logprobs=True)
    assert len({choice.message.content for choice in found.choices}) > 1
    for choice in found.choices:
        assert choice.finish_reason == "stop" and choice.model_extra["lineside"]["form"] == "whole"
        jsonschema.validate(json.loads(choice.message.content), SMALL)
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
    chunks = list(server.openai.chat.completions.create(**options, response_format=form, stream=True))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = server.openai.chat.completions.create(**options, response_format=form).choices[0]
    assert streamed == whole.message.content and jsonschema.validate(json.loads(streamed), SMALL) is None
    try:
        parsed = server.openai.chat.completions.parse(**short, response_format=Bin).choices[0].message.parsed
        assert isinstance(parsed, Bin)
    except openai.LengthFinishReasonError as error:  # a text without end: the client says that it was cut
        assert error.completion.choices[0].model_extra["lineside"]["form"] in ("closed", "partial")
    (asked,) = server.openai.chat.completions.create(**short, response_format={"type": "json_object"}).choices
    if asked.model_extra["lineside"]["form"] == "partial":
        assert asked.finish_reason == "length" and asked.message.content.startswith("{")
    else:
        assert isinstance(json.loads(asked.message.content), dict)
    with pytest.raises(openai.BadRequestError, match='Unimplemented keys: \\["not"\\]') as caught:
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        server.openai.chat.completions.create(**options, response_format=bad)
    assert caught.value.code == "invalid_response_format" and caught.value.param == "response_format"


def test_each_question_of_a_frame_has_a_form_of_its_own(server: Served) -> None:
    forms = [{"type": "regex", "regex": "yes|no"}, {"type": "json_schema", "json_schema": {"schema": SMALL}}, None]
    questions = [
        {"question": "Is the left bin empty?", "task": EMPTY},
        {"question": "How many parts?", "task": COUNT, "thinking": False},
        {"question": "what is it?", "thinking": False},
    ]
    questions = [{**one, "response_format": form} for one, form in zip(questions, forms, strict=True)]
    body = {"model": "tiny", "image": url(3), "max_tokens": 60, "questions": questions}
    with server.http() as client:
        first, second, third = client.post("v1/frames/questions", json=body).json()["answers"]
    assert first["content"] in ("yes", "no") and first["answer"]["value"] == (first["content"] == "yes")
    assert first["answer"]["decision"] == "refuse" and "response_format" in first["answer"]["because"]
    jsonschema.validate(json.loads(second["content"]), SMALL)
    assert second["form"] == "whole" and "form" not in third
