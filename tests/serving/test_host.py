"""The engine process without its process: a real engine whose actions take the time that was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lineside.serving.engine import LocalEngine, Request, Tree
from lineside.serving.scheduler import Costs, Read, Scheduler
from lineside.serving.vllm import VllmEngine
from lineside.serving.worker import AnswerLengths, Host
from tests.conftest import picture
from tests.serving.conftest import sharp

READ, STEP = 20.0, 10.0  # ms


class Sent:
    """A channel that keeps what is sent."""

    closed = False

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        self.messages.append(header)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["id"] == name]


class Timed(LocalEngine):
    """An engine whose clock goes on by the cost of each action."""

    now = 0.0

    def read(self, requests: Sequence[Request]) -> list[Tree]:
        self.now += READ
        return super().read(requests)

    def step(self, trees: Sequence[Tree]) -> None:
        self.now += STEP
        super().step(trees)


@pytest.fixture(scope="module")
def thinker() -> Timed:
    """A model that opens a trace and never closes it."""
    vlm = sharp()
    engine = Timed(vlm)
    write = engine._write

    def opening(trees: Sequence[Tree], logits: torch.Tensor, chosen: Any = None) -> None:
        logits = logits.clone()
        logits[:, vlm.render.think_open] = logits.max() + 1
        write(trees, logits)

    engine._write = opening
    return engine


def host(engine: Timed) -> tuple[Host, Sent]:
    engine.now, sent = 0.0, Sent()
    costs = Costs(read=READ, picture=0.0, token=0.0, step=STEP, row=0.0)
    return Host(sent, engine, Scheduler(costs, margin=1.0), clock=lambda: engine.now), sent  # pyright: ignore


def ask(name: str, deadline: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "ask", "id": name, "tasks": ["a/b"], "pictures": [{"role": "frame"}],
        "prompts": [{"question": "how many?", "thinking": True, "choices": [], "grammar": None}],
        "deadline": deadline, "at": 0.0, "stream": False, "max_tokens": 60,
        "clamp": False, "samples": 1, "temperature": 0.0, "seed": 0, "stop": [], "top": None, **changes,
    }  # fmt: skip


def run(served: Host) -> None:
    for _ in range(500):
        if not served.live:
            return
        served.act()
    raise AssertionError("it does not end")


def test_a_trace_is_cut_so_that_the_answer_is_in_time(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("x", 400.0), [picture(0)])
    run(served)
    accepted, done = sent.of("x")
    (row,) = done["rows"]
    assert accepted["kind"] == "accepted" and done["kind"] == "done" and row["cut"] and row["thinking"]
    close = row["tokens"].index(thinker.render.think_close)
    # Reading takes 20 ms and writes a token. The closing tag and 8 predicted tokens take 90 ms: it comes at 310 + 10.
    assert close == (320 - 20) // 10 and row["answer_from"] == close + 1
    assert row["logprobs"][close] == 0.0 and row["text"].startswith("<think>") and "</think>" in row["text"]
    assert (
        row["reason"] == "deadline" and 400 <= done["ended"] <= 440
    )  # it never ends by itself: a tenth late, then cut


def test_with_little_time_it_does_not_think(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("x", 110.0), [picture(0)])
    run(served)
    assert [row["thinking"] for row in sent.of("x")[-1]["rows"]] == [False]


def test_a_choice_is_answered_with_its_reading_where_there_is_no_time_for_anything_else() -> None:
    """It would think. With 25 ms it is read in 20 and has its answer; a step would take 10 more."""
    engine = Timed(sharp())
    write, said = engine._write, (*engine.render.encode_untrusted("yes"), engine.render.eos_id)

    def saying(trees: Sequence[Tree], logits: torch.Tensor, chosen: Any = None) -> None:
        logits = logits.clone()
        for row, tokens in zip(logits, (tree.rows[i].tokens for tree in trees for i in tree.alive), strict=True):
            row[said[len(tokens)]] = row.max() + 10
        write(trees, logits)

    engine._write = saying
    served, sent = host(engine)
    prompts = [{"question": "empty?", "thinking": True, "choices": ["no", "yes"], "grammar": None}]
    fast = [{**prompts[0], "thinking": False}]
    for number in range(5):  # it learns that these answers come with the reading
        served.take(ask(f"{number}", None, prompts=fast), [picture(number)])
        run(served)
    engine.now = 0.0
    served.take(ask("x", 25.0, prompts=prompts), [picture(9)])
    run(served)
    (row,) = sent.of("x")[-1]["rows"]
    assert (row["content"], row["reason"], row["thinking"], sent.of("x")[-1]["ended"]) == ("yes", "stop", False, READ)
    assert engine.steps == 0


def test_what_cannot_be_met_is_refused_with_the_time_that_it_needs(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("x", 80.0), [picture(0)])  # 20 ms, and 7 more tokens
    (refused,) = sent.of("x")
    assert (refused["kind"], refused["needs"], refused["retry"]) == ("refused", 90.0, None)
    assert not served.live


def test_a_cancelled_request_runs_no_further(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("x", None), [picture(0)])
    for _ in range(5):
        served.act()
    assert len(served.live["x"].tree.rows[0].tokens) == 5
    served.take({"kind": "cancel", "id": "x"}, [])
    before = thinker.now
    run(served)
    assert thinker.now == before and not served.scheduler.running
    assert [message["kind"] for message in sent.of("x")] == ["accepted", "state"] and sent.of("x")[-1]["running"] == 0


def test_an_error_ends_its_request_and_no_other(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("bad", None), [b"no picture"])
    served.take(ask("long", None, max_tokens=5000), [picture(1)])
    served.take(ask("many", None, samples=65), [picture(1)])
    served.take(ask("good", None, max_tokens=4), [picture(1)])
    run(served)
    for name, message in (("bad", "not an image"), ("long", "context is 512"), ("many", "65 answers at once")):
        failed = sent.of(name)[-1]
        assert failed["kind"] == "failed" and failed["bad"] and message in failed["message"]
    assert sent.of("good")[-1]["kind"] == "done"


def test_a_bad_picture_fails_alone_where_requests_are_read_together(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("bad", None), [b"no picture"])
    served.take(ask("good", None, max_tokens=4), [picture(5)])
    served.scheduler.costs = Costs(read=READ, picture=0.0, token=0.0, step=STEP, row=0.0)
    action = served.scheduler.next(0.0)
    assert isinstance(action, Read) and [job.name for job in action.jobs] == ["bad", "good"]
    run(served)
    assert sent.of("bad")[-1]["kind"] == "failed" and sent.of("good")[-1]["kind"] == "done"


def test_a_waiting_request_costs_less_once_its_frame_is_read(thinker: Timed) -> None:
    thinker.heads.clear()
    served, _ = host(thinker)
    served.scheduler.costs = Costs(read=0.0, picture=1.0, token=0.1, step=STEP, row=0.0)  # nothing joins
    for name, seed in (("first", 6), ("second", 6), ("other", 7)):
        served.take(ask(name, None), [picture(seed)])
    served.act()
    second, other = (served.live[name].job for name in ("second", "other"))
    assert (second.pictures, second.shared) == (0, 0) and other.pictures == 1 and other.shared > 0
    assert other.tokens == second.tokens + other.shared


def test_steps_of_choices_are_learned_apart(thinker: Timed) -> None:
    """An answer that comes with the reading counts as one; the same task's answers after a trace do not."""
    served, _ = host(thinker)
    prompts = [{"question": "empty?", "thinking": False, "choices": ["yes", "no"], "grammar": None}]
    for number in range(5):
        served.take(ask(str(number), None, max_tokens=3, prompts=prompts), [picture(number)])
        run(served)
    served.take(ask("x", 400.0, prompts=prompts), [picture(0)])
    job = served.live["x"].job
    assert (job.answer, job.fast) == (3, 3)  # the model wrote neither, so three tokens took three
    assert served.steps.predict("a/b") == 3 and served.steps.predict("other") == 8
    served.take(ask("sampled", None, prompts=prompts, temperature=1.0), [picture(0)])
    assert served.live["sampled"].request.choices == () != served.live["x"].request.choices


def test_a_stream_holds_back_what_may_be_a_stop_string(thinker: Timed) -> None:
    served, sent = host(thinker)
    served.take(ask("x", None, stream=True, max_tokens=12, stop=["<thi"]), [picture(2)])
    served.act()
    row = served.live["x"].tree.rows[0]
    row.part, row.answer_from = "answer", 0  # as if it had not opened a trace
    run(served)
    assert sent.of("x")[-1]["rows"][0]["content"] == "" and sent.of("x")[-1]["rows"][0]["reason"] == "stop"
    assert not [message for message in sent.of("x") if "content" in message]


@pytest.mark.parametrize("kind", [LocalEngine, VllmEngine])
def test_an_idle_engine_is_looked_at_only_if_it_can_end_by_itself(kind: type[LocalEngine]) -> None:
    class Idle:
        closed = False
        waits: list[float | None] = []  # noqa: RUF012

        def messages(self, *, wait: float | None) -> list[Any]:
            self.closed = len(self.waits) == 1
            self.waits.append(wait)
            return []

    channel, looks = Idle(), list[str]()
    engine = SimpleNamespace(look_seconds=kind.look_seconds, check=lambda: looks.append("looked"))
    Host(channel, engine, Scheduler(Costs(1, 1, 1, 1, 1))).run()  # pyright: ignore
    assert channel.waits == [1.0 if kind is VllmEngine else None] * 2 and len(looks) == 2


def test_the_length_of_answers_is_learned_by_task() -> None:
    lengths = AnswerLengths(first=8)
    assert lengths.predict("a") == 8
    for _ in range(19):
        lengths.add("a", 2)
    lengths.add("a", 5)
    assert lengths.predict("a") == 5 and lengths.predict("b") == 8  # the 95th percentile of twenty is the longest
    lengths.add("b", 30)
    assert lengths.predict("b") == 30  # a longer one counts at once
    assert lengths.predict("c", formed=True) == 40 and lengths.predict("a", formed=True) == 5
    for number in range(2000):  # a client may state as many forms as it likes
        lengths.add(f"c {number}", 3)
    assert len(lengths._seen) == 1024 and lengths.predict("a") == 8 and lengths.predict("c 1999") == 8
