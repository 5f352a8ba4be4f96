"""The endpoint: what a response means, what is told of it, and that the key is never among it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.server
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from lineside.data.endpoint import (
    Busy,
    Endpoint,
    Request,
    Tried,
    backoff,
    other_limit,
    read_completion,
    read_key,
    retry_after,
)
from lineside.data.ledger import Attempt
from lineside.errors import LinesideError
from lineside.recipe import Label
from lineside.strict import build
from lineside.types import Image
from tests.conftest import answered_by

KEY = "sk-abcdef0123456789"
AT: dict = {"teacher": "api", "model": "m", "base_url": "http://127.0.0.1:9/v1/", "key_env": "K", "timeout": 1.0}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("K", KEY)
    return Endpoint(Label(**AT))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("100000", 300.0),  # not believed further than that
        ("-1", None),
        ("1e9", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value, now=60.0) == seconds


def test_backoff_doubles_with_jitter_and_has_an_end() -> None:
    assert [backoff(n, 1.0, 0.0) for n in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert backoff(2, 1.0, 1.0) == 2.0
    assert backoff(10**9, 1.0, 0.0) == 60.0


def completion(content: object, finish: str = "stop", **message: object) -> bytes:
    choice = {"finish_reason": finish, "message": {"content": content, **message}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


@pytest.mark.parametrize(
    ("content", "attempt"),
    [
        (completion("hello"), Attempt("answer", "hello", "stop", 7, 3)),
        (completion("hel", "length"), Attempt("answer", "hel", "length", 7, 3)),
        (completion(None), Attempt("error", "the response holds no text", "", 7, 3)),
        (completion(None, refusal="no"), Attempt("refused", "the teacher refuses: no", "", 7, 3)),
        (completion("", "content_filter"), Attempt("refused", "the teacher refuses: content filter", "", 7, 3)),
        (b"<html>", Attempt("error", "the response is not a chat completion")),
        (b'{"choices": []}', Attempt("error", "the response is not a chat completion")),
        (b"[" * 100_000, Attempt("error", "the response is not a chat completion")),
    ],
)
def test_completions(content: bytes, attempt: Attempt) -> None:
    assert read_completion(content) == attempt


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_usage_is_survived(usage: object) -> None:
    choice = {"message": {"content": "x"}}
    read_completion(json.dumps({"choices": [choice], "usage": usage}).encode())


@pytest.mark.parametrize(
    ("status", "headers", "met"),
    [
        (500, {}, Tried(Attempt("error", "HTTP 500: no"))),
        (503, {"retry-after": "2"}, Tried(Attempt("error", "HTTP 503: no"), 2.0)),
        (400, {}, Tried(Attempt("refused", "HTTP 400: no"))),
        (413, {}, Tried(Attempt("refused", "HTTP 413: no"))),
        (429, {"retry-after": "4"}, Busy("HTTP 429 no", 4.0)),
    ],
)
def test_statuses(endpoint: Endpoint, status: int, headers: dict, met: object) -> None:
    assert endpoint._judge(status, headers, b'{"error": {"message": "no"}}') == met


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_what_no_request_can_get_past_ends_the_job(endpoint: Endpoint, status: int) -> None:
    with pytest.raises(LinesideError, match=f"HTTP {status}") as told:
        endpoint._judge(status, {}, f'{{"error": {{"message": "bad key {KEY}"}}}}'.encode())
    assert KEY not in str(told.value)


def test_a_spent_account_is_no_reason_to_wait(endpoint: Endpoint) -> None:
    with pytest.raises(LinesideError, match="insufficient_quota"):
        endpoint._judge(429, {}, b'{"error": {"message": "you are out", "code": "insufficient_quota"}}')


def test_texts_from_outside_are_cleaned(endpoint: Endpoint) -> None:
    assert endpoint.clean(f"\x1b[31mwrong key {KEY}\n or sk-other0123456789 {'x' * 500}").startswith(
        "[31mwrong key *** or *** xxx"
    )
    assert len(endpoint.clean("y" * 9999)) == 200


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("ABSENT_KEY", None, "ABSENT_KEY is not set"), ("K", f"{KEY}\nX: y", "holds no key"), ("K", " ", "is not set")],
)
def test_keys_that_are_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str) -> None:
    if value is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(LinesideError, match=message) as told:
        read_key(name)
    assert KEY not in str(told.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://a/v1", "http://", "http://a:99999/v1", "http://me:secret@a/v1", "http://a/v1?key=s"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(LinesideError, match=r"base_url: (not an http|holds a name)") as told:
        build(Label, {**AT, "base_url": url}, "recipe.yaml")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("name", [KEY, "two words", "9", "a=b"])
def test_a_key_in_place_of_its_variable_is_not_told(name: str) -> None:
    with pytest.raises(LinesideError, match="key_env: expected the name of an environment variable") as told:
        build(Label, {**AT, "key_env": name}, "recipe.yaml")
    assert name not in str(told.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"model": ""}, "no model"),
        ({"teacher": None}, "base_url, key_env, timeout: of a teacher behind an API, and the teacher is not given"),
        ({"teacher": "table"}, "of a teacher behind an API, and the teacher is table"),
        ({"flaws": {"wrong": 0.1}}, "flawed traces come from"),
        ({"acuity": 0.5}, "acuity is a setting of the teacher 'sim'"),
        ({"budget_usd": 3.0}, "--usd-in and --usd-out"),
        ({"budget_requests": 0}, "budget_requests: expected 1 or more, got 0"),
        ({"in_flight": 0}, "in_flight: expected 1 or more"),
        ({"timeout": 0.0}, "timeout: expected more than 0"),
        ({"usd_in": -1.0}, "usd_in: expected 0.0 or more"),
        ({"body": "{"}, "body: not JSON"),
        ({"body": "[1]"}, "body: expected keys and values"),
        ({"agree": 1}, "more than half"),
        ({"agree": 4}, "at most all"),
        ({"attempts": 0}, "attempts: expected 1 or more"),
        ({"body": {"stream": True}}, "stream is set by lineside"),
    ],
)
def test_settings_that_make_no_sense(words: dict, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        build(Label, {**AT, **words}, "recipe.yaml")


@pytest.mark.parametrize(
    ("said", "sent", "other"),
    [
        (
            "HTTP 400: Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead. unsupported_parameter",
            "max_tokens",
            "max_completion_tokens",
        ),
        (
            "HTTP 400: Unrecognized request argument: max_completion_tokens",
            "max_completion_tokens",
            "max_tokens",
        ),
        ("HTTP 422: body.max_completion_tokens: Extra inputs are not permitted", "max_completion_tokens", "max_tokens"),
        ("HTTP 400: max_tokens is too large: 9999. This model supports at most 4096", "max_tokens", None),
        ("HTTP 400: bad picture", "max_tokens", None),
    ],
)
def test_the_name_of_the_limit_that_an_endpoint_asks_for(said: str, sent: str, other: str | None) -> None:
    assert other_limit(Attempt("refused", said), sent) == other
    assert other_limit(Attempt("error", said), sent) is None


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({}, {"max_tokens": 2048}),
        ({"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"max_tokens": None}, {}),
    ],
)
def test_who_says_the_limit_is_not_overruled(monkeypatch: pytest.MonkeyPatch, body: dict, sent: dict) -> None:
    monkeypatch.setenv("K", KEY)
    endpoint = Endpoint(Label(**AT, body=body))
    made = endpoint._body(Request("k", "text", Image(png()), {}))
    assert {name: value for name, value in made.items() if name.startswith("max")} == sent


def png() -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def test_a_reply_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineside.data.endpoint.MAX_RESPONSE", 10_000)
    sent = 0

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal sent
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(2000):  # a gigabyte once it is unpacked
                    self.wfile.write(gzip.compress(b"x" * 500_000))
                    sent += 1

    async def ask(address: str) -> object:
        endpoint = Endpoint(Label(**{**AT, "base_url": address, "key_env": "", "timeout": 60.0}))
        try:
            return await endpoint.ask(Request("k", "what?", Image(b"\x89PNG"), {}), 0)
        finally:
            await endpoint.close()

    with answered_by(Endless) as address:
        met = asyncio.run(ask(f"{address}/v1"))
    assert isinstance(met, Tried) and met.attempt.status == "error" and "at most 10000 are read" in met.attempt.text
    assert sent < 2000
