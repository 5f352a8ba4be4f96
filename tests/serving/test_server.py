"""The server with the official client, unchanged: what it answers is what `lineside ask` answers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import jsonschema
import openai
import pytest

from lineside.ask import AskResult, ask
from lineside.serving.api import ApiError
from lineside.serving.models import Checkpoints, Models
from lineside.serving.pictures import Decoder, Fetcher
from lineside.serving.requests import Reader
from tests.conftest import picture
from tests.serving.conftest import COUNT, EMPTY, Served, serving, turn, url

QUESTION = "Is the left bin empty?"
SCHEMA = json.loads(resources.files("lineside").joinpath("answer.schema.json").read_text())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(picture(3))
    return path


def asked(server: Served, photo: Path, question: str, **options: Any) -> AskResult:
    return ask(server.checkpoint, photo, question, as_json=True, max_new_tokens=24, **options)


def same(answer: dict[str, Any], want: AskResult) -> None:
    """The typed answers are equal but for the time."""
    jsonschema.validate(answer, SCHEMA, cls=jsonschema.Draft202012Validator)
    typed = want.typed.model_dump(mode="json")
    assert {**answer, "ms": None, "confidence": None} == {**typed, "ms": None, "confidence": None}
    assert answer["confidence"] == pytest.approx(typed["confidence"], abs=1e-3)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_the_front_answers_without_torch(server: Served) -> None:
    """A front takes a second to start and little memory; its engine alone has loaded torch."""
    body = {"model": "tiny", "messages": turn(QUESTION, url(3))}
    assert server.http().post("v1/chat/completions", json=body).status_code == 200
    front = Path(f"/proc/{server.process.pid}")
    children = (front / "task" / front.name / "children").read_text().split()
    loaded = ["libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in (front.name, *children)]
    assert not loaded[0] and any(loaded)


@pytest.mark.parametrize(
    ("question", "task"), [(QUESTION, EMPTY), (QUESTION, None), ("How many parts?", COUNT), ("what is it?", None)]
)
def test_an_answer_is_that_of_ask(server: Served, photo: Path, question: str, task: str | None) -> None:
    want = asked(server, photo, question, task=task)
    found = server.openai.chat.completions.create(
        model="tiny", messages=turn(question, url(3)), max_tokens=24, extra_body={"lineside": {"task": task}}
    )  # fmt: skip
    (choice,) = found.choices
    own = choice.model_extra["lineside"]
    same(own["answer"], want)
    assert own["model_probability"] == pytest.approx(want.confidence, abs=1e-3)
    assert found.usage.completion_tokens == want.tokens
    assert choice.finish_reason == ("stop" if want.finished else "length")
    assert own["thinking"] == ("full" if want.thinking else "off")
    assert choice.message.model_extra["reasoning"] == choice.message.model_extra["reasoning_content"]
    phases = found.model_extra["lineside"]["ms"]
    assert phases.keys() == {"picture", "queue", "features", "prefill", "decode", "total"} and phases["total"] > 0
    assert found.model_extra["lineside"]["deadline_ms"] == (60_000 if task == EMPTY else None)


def test_questions_of_a_frame_are_one_tree(server: Served, photo: Path) -> None:
    body = {
        "model": "tiny",
        "image": url(3),
        "max_tokens": 24,
        "questions": [
            {"task": EMPTY, "slots": {"place": "left bin"}},
            {"question": "How many parts?", "task": COUNT},
            {"question": "what is it?", "thinking": False},
        ],
    }
    with server.http() as client:
        found = client.post("v1/frames/questions", json=body).json()
    assert [answer["question"] for answer in found["answers"]] == [QUESTION, "How many parts?", "what is it?"]
    for answer, options in zip(found["answers"], ({"task": EMPTY}, {"task": COUNT}, {"thinking": False}), strict=True):
        same(answer["answer"], asked(server, photo, answer["question"], **options))
    assert found["lineside"]["deadline_ms"] == 60_000


def test_a_frame_is_read_once(server: Served) -> None:
    def ask(question: str) -> Any:
        return server.openai.chat.completions.create(
            model="tiny", messages=turn(question, url(11)), max_tokens=2
        ).usage  # fmt: skip

    def counted(name: str) -> float:
        with server.http() as client:
            lines = client.get("metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"lineside:{name}{{"))

    first = ask("How many parts?")
    hits = counted("prefix_cache_hits_total")
    second = ask("what is it?")
    cached = second.prompt_tokens_details.cached_tokens
    assert first.prompt_tokens_details.cached_tokens == 0 < cached < second.prompt_tokens
    assert counted("prefix_cache_hits_total") == hits + cached and counted("prefix_cache_bytes") > 0


def test_a_stream_adds_up_to_the_answer(server: Served) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": turn("How many parts?", url(4)), "max_tokens": 24}
    options |= {"n": 2, "temperature": 0.9, "seed": 5}
    whole = server.openai.chat.completions.create(**options)
    chunks = list(server.openai.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        reasoning = "".join((c.delta.model_extra or {}).get("reasoning") or "" for c in mine)
        assert reasoning == (choice.message.model_extra["reasoning"] or "")
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
    known = {"prompt_tokens_details"}  # the stream's frame was read before
    assert chunks[-1].usage.model_dump(exclude=known) == whole.usage.model_dump(exclude=known)
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_a_sampled_answer_is_never_acted_on(server: Served) -> None:
    found = server.openai.chat.completions.create(
        model="tiny", messages=turn(QUESTION, url(1)), temperature=1.0, extra_body={"lineside": {"task": EMPTY}}
    )
    answer = found.choices[0].model_extra["lineside"]["answer"]
    assert answer["decision"] == "refuse" and answer["confidence"] is None


def test_logprobs_and_stop(server: Served) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": turn(QUESTION, url(2)), "max_tokens": 10}
    plain = server.openai.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    (choice,) = plain.choices
    content = choice.logprobs.content
    assert "".join(one.token for one in content) == choice.message.content
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob == one.logprob <= 0 for one in content)
    stop = choice.message.content[3:5]
    stopped = server.openai.chat.completions.create(**options, stop=[stop, "never to be seen"])
    assert stopped.choices[0].message.content == choice.message.content.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].model_extra["lineside"]["answer"]["decision"] == "refuse"


def test_models_say_what_they_are_asked(server: Served) -> None:
    (model,) = server.openai.models.list().data
    assert model.id == "tiny" and server.openai.models.retrieve("tiny").id == "tiny"
    tasks = model.model_extra["lineside"]["tasks"]
    assert tasks[EMPTY]["options"] == ["yes", "no"] and tasks[EMPTY]["budget_ms"] == 60_000
    assert tasks[COUNT]["kind"] == "number" and tasks[COUNT]["thinking"]


def test_what_cannot_be_met_is_refused_at_once_and_once(server: Served) -> None:
    refusals = 'lineside:admission_rejections_total{model_name="tiny",reason="deadline"} '

    def counted() -> float:
        with server.http() as client:
            lines = client.get("metrics").text.splitlines()
        return sum(float(line.removeprefix(refusals)) for line in lines if line.startswith(refusals))

    before = counted()
    patient = server.openai.with_options(max_retries=3)  # the client would ask again, if it were not told not to
    with pytest.raises(openai.InternalServerError) as caught:
        patient.chat.completions.create(
            model="tiny", messages=turn(QUESTION, url(1)), extra_body={"lineside": {"deadline_ms": 0.5}}
        )
    refused = caught.value
    assert refused.status_code == 503 and refused.code == "deadline_unmet"
    assert refused.response.headers["x-should-retry"] == "false"
    assert refused.body["lineside"]["deadline_ms"] == 0.5
    assert counted() == before + 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "1"}, "temperature: Input should be a valid number"),
    ({"temperature": -1}, "temperature: .*greater than or equal to 0"),
    ({"max_tokens": -1}, "max_tokens: .*greater than or equal to 1"),
    ({"max_tokens": 100_000}, "the model's context is 512"),
    ({"max_tokens": 1.5}, "max_tokens: Input should be a valid integer"),
    ({"n": 1000}, "n: .*less than or equal to 64"),
    ({"temprature": 1}, "unknown field `temprature`; did you mean `temperature`"),
    ({"deadline_ms": 100}, "unknown field `deadline_ms`; did you mean `lineside.deadline_ms`"),
    ({"tools": []}, "`tools` is not supported by this server"),
    ({"top_p": 0.5}, "top_p: only 1 is supported"),
    ({"logit_bias": {"1": 2}}, "logit_bias are not supported"),
    ({"response_format": {"type": "grammar"}}, "response_format.type: Input should be 'text', 'json_object'"),
    ({"response_format": {"type": "json_schema"}}, "expected `json_schema` with type 'json_schema' only"),
    ({"response_format": {"type": "json_object", "regex": "a"}}, "expected `regex` with type 'regex' only"),
    ({"response_format": {"type": "regex", "regex": "(?=a)b"}}, "look-around, .* is not supported"),
    ({"response_format": {"type": "regex", "regex": "a" * 5000}}, "5000 characters: at most 4096"),
    ({"response_format": {"type": "json_object"}, "stop": ["}"]}, "leave stop out"),
    ({"guided_json": {}}, "`guided_json` is not known here: state the form of the answer as `response_format`"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"stop": [""]}, "stop: expected strings that are not empty"),
    ({"lineside": {"task": "cells/emty"}}, r"no task 'cells/emty'.*did you mean cells/empty\?"),
    ({"lineside": {"budget": 3}}, "unknown field `lineside.budget`"),
    ({"lineside": {"camera": "cam1"}}, "trained on whole pictures"),
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages.0: the model answers one question"),
    ({"messages": turn("  ", url())}, "the question is empty"),
    ({"messages": turn("x", "file:///etc/passwd")}, r"expected a data: URL"),
    ({"messages": turn("x", "http://127.0.0.1/x.png")}, r"not fetched from this host"),
    ({"messages": turn("x", "data:image/png;base64,@@@@")}, "base64 of a data URL"),
    ({"messages": turn("x", "data:text/html;base64,AAAA")}, "a data URL of a picture"),
    ({"messages": turn("x", "data:image/png;base64,AAAA")}, "not an image"),
    ({"messages": turn("x", url(0)[:-400])}, "base64|damaged or cut off"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_bad_requests_are_refused_by_name(server: Served, changes: dict[str, Any], message: str) -> None:
    body = {"model": "tiny", "messages": turn(QUESTION, url()), **changes}
    with server.http() as client, pytest.raises(openai.BadRequestError, match=message) as caught:
        answer = client.post("v1/chat/completions", json=body)
        raise openai.BadRequestError(answer.json()["error"]["message"], response=answer, body=answer.json()["error"])
    assert caught.value.status_code == 400
    assert caught.value.response.headers["x-content-type-options"] == "nosniff"


def test_who_may_ask(server: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        server.openai.with_options(api_key="a-key-of-the-tests-0123456780").models.list()
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        server.openai.chat.completions.create(model="gpt", messages=turn("x"))
    with server.http() as client:
        assert client.post("v1/chat/completions", content=b"{}").status_code == 415
        big = client.post("v1/chat/completions", content=b"", headers={"Content-Type": "application/json"})
        assert big.status_code == 400
        assert client.get("v1/nothing").json()["error"]["message"].startswith("no such path")
        assert client.get("healthz").status_code == client.get("readyz").status_code == 200


def test_a_model_that_loads_is_told_from_one_that_is_not_there() -> None:
    models = Models(Checkpoints({"tiny": Path("checkpoint")}), {}, lambda release: [])
    reader = Reader(models, Decoder(max_pixels=1), Fetcher([], max_bytes=1))
    with pytest.raises(ApiError, match="tiny is still loading") as loading:
        reader.model("tiny")
    assert loading.value.status == 503 and loading.value.headers["retry-after"] and not models.ready
    with pytest.raises(ApiError, match="no model 'other': this server has tiny") as unknown:
        reader.model("other")
    assert unknown.value.status == 404


def test_metrics_have_the_names_of_vllm_and_count(server: Served) -> None:
    def read() -> dict[str, float]:
        with server.http() as client:
            lines = client.get("metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    # An engine tells its steps with an answer, so also those of requests that were given up before.
    server.openai.chat.completions.create(model="tiny", messages=turn("what is it?", url(1)), max_tokens=1)
    before = read()
    asked = server.openai.chat.completions.create(model="tiny", messages=turn("what is it?", url(1)), max_tokens=5, n=2)
    after, label = read(), '{model_name="tiny"}'
    grown = {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}
    assert grown[f"lineside:prompt_tokens_total{label}"] == asked.usage.prompt_tokens
    assert grown[f"lineside:generation_tokens_total{label}"] == asked.usage.completion_tokens
    assert sum(value for name, value in grown.items() if name.startswith("lineside:request_success_total")) == 2
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert grown[f"lineside:{name}_seconds_count{label}"] == 1
    assert grown[f"lineside:time_to_first_token_seconds_count{label}"] == 1
    assert after[f"lineside:num_requests_running{label}"] == after[f"lineside:num_requests_waiting{label}"] == 0
    assert 4 <= grown[f"lineside:engine_steps{label}"] <= 5


def long(served: Served) -> Iterator[Any]:
    """A stream that takes a while, after its first event."""
    stream = iter(
        served.openai.chat.completions.create(
            model="tiny", messages=turn("what is it?", url(7)), max_tokens=400, temperature=2.0, stream=True
        )
    )
    assert next(stream).choices[0].index == 0
    return stream


@contextmanager
def asking(served: Served) -> Iterator[list[int]]:
    """Asks one thing after the other meanwhile. Gives the status of each answer."""
    statuses: list[int] = []
    enough = Event()

    def ask() -> None:
        body = {"model": "tiny", "messages": turn("x", url()), "max_tokens": 2}
        with served.http() as client:
            while not enough.is_set():
                statuses.append(client.post("v1/chat/completions", json=body).status_code)

    thread = Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        enough.set()
        thread.join()


def test_a_client_that_hangs_up_leaves_the_engine_at_once(server: Served) -> None:
    """Its rows are no longer written when the next one has its answer."""
    body = {"model": "tiny", "messages": turn("what is it?", url(1)), "max_tokens": 400, "temperature": 2.0, "n": 8}

    def gauge(client: httpx2.Client, name: str) -> float:
        lines = client.get("metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"lineside:{name}"))

    with server.http() as client:
        before = gauge(client, "request_cancelled_total")
        with client.stream("POST", "v1/chat/completions", json={**body, "stream": True}) as stream:
            next(stream.iter_lines())
        while gauge(client, "request_cancelled_total") == before:
            time.sleep(0.01)
        server.openai.chat.completions.create(model="tiny", messages=turn("x", url()), max_tokens=1)
        assert gauge(client, "num_requests_running") == 0


def engines(served: Served) -> list[int]:
    """The engine processes of a server."""
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    named = [(int(child), Path(f"/proc/{child}/cmdline").read_bytes()) for child in children]
    return [child for child, command in named if b"lineside.serving.worker" in command]


def ready(served: Served, before: list[int]) -> None:
    """Wait until the engines are others than before, and answer."""
    with served.http() as client:
        for _ in range(6000):  # as slow as the machine is
            if client.get("readyz").status_code == 200 and not set(engines(served)) & set(before):
                return
            time.sleep(0.1)
    raise AssertionError("the engines were not replaced")


@pytest.mark.slow
def test_two_models_a_reload_a_killed_engine_and_the_end(checkpoint: Path, tmp_path: Path, keys: Path) -> None:
    with serving(checkpoint, keys, f"second={checkpoint}") as served:
        assert {model.id for model in served.openai.models.list()} == {"tiny", "second"}
        before, stream = engines(served), long(served)
        assert len(before) == 2
        with asking(served) as answers:
            served.process.send_signal(signal.SIGHUP)
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")  # the old engine answers it
            ready(served, before)
        assert len(answers) > 2 and all(status == 200 for status in answers)  # before, during and after it
        before = engines(served)
        for engine in before:
            os.kill(engine, signal.SIGKILL)
        for name in ("tiny", "second"):
            with pytest.raises(openai.InternalServerError, match=r"the engine failed|is still loading"):
                served.openai.chat.completions.create(model=name, messages=turn("x", url()), max_tokens=2)
        ready(served, before)
        served.openai.chat.completions.create(model="second", messages=turn("x", url()), max_tokens=2)
        streams = [long(served) for _ in range(3)]
        served.process.send_signal(signal.SIGTERM)
        assert all(list(stream)[-1].choices[0].finish_reason in ("stop", "length") for stream in streams)
        assert served.process.wait(timeout=120) == 0
    log = (keys.parent / "serve.log").read_text()
    assert "everything that was accepted is answered" in log and "Traceback" not in log
