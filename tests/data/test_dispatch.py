"""Dispatch: how many at once, how often again, at what rate, within what budget; and what the ledger then holds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lineside.data.dispatch import (
    BudgetReached,
    Conversation,
    Dispatcher,
    Question,
    Reply,
    replay,
    settle,
)
from lineside.data.endpoint import Busy, Request, Tried
from lineside.data.ledger import Attempt, Ledger
from lineside.data.replies import BadReply
from lineside.errors import LinesideError
from lineside.recipe import Label
from lineside.types import Image


def read(text: str) -> str:
    if text == "broken":
        raise BadReply("not JSON")
    return text


def question(name: str) -> Question[str]:
    return Question(Request(f"{int(name, 36):032x}", name, Image(b""), {}), read)


def talk(*names: str) -> Conversation[list[str]]:
    """One request after another; what came of them."""
    said = []
    for name in names:
        (reply,) = yield [question(name)]
        said.append(reply.value if reply.status == "said" else f"{reply.status}: {reply.reason}")
    return said


def answer(text: str = "ok", tokens: tuple[int, int] = (10, 5)) -> Tried:
    return Tried(Attempt("answer", text, "stop", *tokens))


def failure(text: str = "HTTP 500") -> Tried:
    return Tried(Attempt("error", text))


class Fake:
    """An endpoint in memory; `script` says what attempt `number` at a request of that name meets."""

    def __init__(self, script: Callable[[str, int], Busy | Tried | LinesideError], seconds: float = 0.0) -> None:
        self.script, self.seconds = script, seconds
        self.asked: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.now = self.most = 0
        self.closed = False

    async def ask(self, request: Request, number: int) -> Busy | Tried:
        self.asked.append((request.text, number))
        self.times.append(time.monotonic())
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        met = self.script(request.text, number)
        if isinstance(met, LinesideError):
            raise met
        return met

    async def close(self) -> None:
        self.closed = True


def settings(**words) -> Label:
    return Label(**{"teacher": "api", "model": "m", "attempts": 3, "backoff": 0.0, **words})


def run(folder: Path, fake: Fake, conversations: Iterator, **words) -> list:
    with Ledger(folder) as ledger:
        return list(Dispatcher(lambda: fake, ledger, settings(**words)).run(conversations))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attempts", "reply"),
    [
        ([], None),
        ([("error", "a")], None),
        ([("error", "a"), ("answer", "yes")], Reply("yes", "said")),
        ([("answer", "broken")], None),
        ([("answer", "broken")] * 3, Reply(None, "unusable", "not JSON")),
        ([("answer", "broken"), ("error", "a"), ("error", "b")], Reply(None, "failed", "b")),
        ([("error", "a"), ("refused", "no")], Reply(None, "failed", "no")),
    ],
)
def test_settle(attempts: list, reply: Reply | None) -> None:
    assert settle([Attempt(*attempt) for attempt in attempts], question("a"), 3) == reply


def test_a_reply_cut_off_by_the_length_says_so() -> None:
    cut = Attempt("answer", "broken", "length")
    assert settle([cut], question("a"), 1) == Reply(None, "unusable", "cut off at max_tokens")


def test_every_conversation_is_held_once_and_no_more_at_once_than_allowed(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: failure() if number == 0 else answer(name), seconds=0.002)
    said = run(tmp_path, fake, iter([talk(f"a{n}", f"b{n}") for n in range(40)]), in_flight=7)
    assert sorted(said) == sorted([f"a{n}", f"b{n}"] for n in range(40))
    assert fake.most == 7
    assert fake.closed
    assert Counter(fake.asked).most_common(1)[0][1] == 1  # no attempt twice
    again = Fake(lambda name, number: answer())
    assert sorted(run(tmp_path, again, iter([talk(f"a{n}", f"b{n}") for n in range(40)]))) == sorted(said)
    assert again.asked == []  # all of it is in the ledger
    with Ledger(tmp_path) as ledger:
        usage: Counter[str] = Counter()
        assert replay(talk("a3", "b3"), ledger, 3, usage) == ["a3", "b3"]
        assert usage == {"answers": 2, "prompt_tokens": 20, "completion_tokens": 10}
        with pytest.raises(LinesideError, match="lacks a reply"):
            replay(talk("zz"), ledger, 3, usage)


def test_attempts_end_and_failures_can_be_tried_anew(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer("broken") if name == "b" else failure("HTTP 500: x"))
    said = run(tmp_path, fake, iter([talk("a"), talk("b")]))
    assert sorted(said) == [["failed: HTTP 500: x"], ["unusable: not JSON"]]
    assert Counter(name for name, _ in fake.asked) == {"a": 3, "b": 3}
    well = Fake(lambda name, number: answer())
    assert sorted(run(tmp_path, well, iter([talk("a"), talk("b")]), retry_failed=True)) == [
        ["ok"],
        ["unusable: not JSON"],
    ]
    assert well.asked == [("a", 0)]


def test_one_request_of_two_frames_is_asked_once(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer(), seconds=0.01)
    assert run(tmp_path, fake, iter([talk("a") for _ in range(5)])) == [["ok"]] * 5
    assert fake.asked == [("a", 0)]


def test_a_budget_stops_the_job_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer(), seconds=0.001)
    with Ledger(tmp_path) as ledger:
        ledger.add("ee" * 16, 0, Attempt("error", "of an earlier run, and counted"))
    with pytest.raises(BudgetReached, match="10 requests"):
        run(tmp_path, fake, iter([talk(f"a{n}") for n in range(30)]), budget_requests=10, in_flight=4)
    assert len(fake.asked) == 9
    assert len(run(tmp_path, fake, iter([talk(f"a{n}") for n in range(30)]), budget_requests=31)) == 30
    assert len(set(fake.asked)) == len(fake.asked) == 30


def test_a_budget_below_the_guess_for_one_request_buys_none(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer())
    with pytest.raises(BudgetReached, match="1,000 tokens does not allow another request"):
        run(tmp_path, fake, iter([talk("a")]), budget_tokens=1000)
    assert fake.asked == []


@pytest.mark.parametrize("budget", [{"budget_tokens": 3000}, {"budget_usd": 0.8}])
def test_tokens_and_money_are_never_overspent(tmp_path: Path, budget: dict) -> None:
    limit = {**budget, "usd_in": 200.0, "usd_out": 400.0, "max_tokens": 5}
    fake = Fake(lambda name, number: answer(), seconds=0.001)
    with pytest.raises(BudgetReached):
        run(tmp_path, fake, iter([talk(f"a{n}") for n in range(400)]), **limit, in_flight=8)
    assert len(fake.asked) == 200  # 3,000 / 15 and 0.8 / 0.004: all that there is room for, and not one more


def test_what_is_in_flight_at_the_end_of_a_budget_is_kept(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer(), seconds=0.02)
    with pytest.raises(BudgetReached):
        run(tmp_path, fake, iter([talk(f"a{n}") for n in range(9)]), budget_requests=5, in_flight=5)
    with Ledger(tmp_path) as ledger:
        assert ledger.requests == len(fake.asked) == 5


def test_a_rate(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer())
    started = time.monotonic()
    run(tmp_path, fake, iter([talk(f"a{n}") for n in range(8)]), per_minute=1200.0)  # one each 50 ms
    # Against the start, not against one another: a busy machine delays a request, and the next then follows it closely.
    assert all(at - started >= 0.05 * k - 0.001 for k, at in enumerate(sorted(fake.times)))
    assert len(fake.times) == 8


def test_an_endpoint_that_is_busy_is_waited_for_by_all_and_it_is_no_attempt(tmp_path: Path) -> None:
    turned: list[float] = []

    def script(name: str, number: int) -> Busy | Tried:
        if not turned:
            turned.append(time.monotonic())
            return Busy("HTTP 429", 0.3)
        return answer()

    fake = Fake(script)
    run(tmp_path, fake, iter([talk(f"a{n}") for n in range(6)]), in_flight=1)
    assert min(t for t in fake.times if t > turned[0]) >= turned[0] + 0.3
    assert fake.asked[0] in fake.asked[1:]  # the same attempt again
    with Ledger(tmp_path) as ledger:
        assert ledger.requests == 6


def test_an_attempt_waits_as_long_as_its_endpoint_asked(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: Tried(Attempt("error", "HTTP 503"), 0.25) if number == 0 else answer())
    run(tmp_path, fake, iter([talk("a")]), backoff=0.01)
    assert fake.times[1] - fake.times[0] >= 0.25


def test_an_endpoint_that_fails_everything_ends_the_job(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: failure("HTTP 502: bad gateway"))
    with pytest.raises(LinesideError, match="all failed, the last with: HTTP 502: bad gateway"):
        run(tmp_path, fake, iter([talk(f"a{n}") for n in range(500)]), in_flight=4)
    assert len(fake.asked) < 30


def test_an_outage_uses_up_no_attempts_and_errors_between_answers_do(tmp_path: Path) -> None:
    down = Fake(lambda name, number: failure("HTTP 502"))
    with pytest.raises(LinesideError, match="all failed"):
        run(tmp_path, down, iter([talk(f"a{n}") for n in range(50)]), in_flight=4)
    with Ledger(tmp_path) as ledger:
        assert ledger.requests == 0
    well = Fake(lambda name, number: failure() if name == "bad" else answer())
    said = run(tmp_path, well, iter([talk("bad"), *(talk(f"a{n}") for n in range(50))]), in_flight=4)
    assert Counter(map(tuple, said)) == {("ok",): 50, ("failed: HTTP 500",): 1}
    assert [number for name, number in well.asked if name == "bad"] == [0, 1, 2]
    with Ledger(tmp_path) as ledger:
        assert len(ledger.attempts(question("bad").request.key)) == 3


def test_errors_at_the_end_of_a_job_are_journalled_too(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: failure() if name == "bad" else answer())
    run(tmp_path, fake, iter([talk("a", "bad")]))
    again = Fake(lambda name, number: answer())
    assert run(tmp_path, again, iter([talk("a", "bad")])) == [["ok", "failed: HTTP 500"]]
    assert again.asked == []


def test_an_endpoint_that_turns_everything_away_ends_the_job(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: Busy("cannot connect", 0.01))
    with pytest.raises(LinesideError, match=r"served nothing for .*cannot connect"):
        run(tmp_path, fake, iter([talk("a")]), patience=0.1)


def test_what_no_request_gets_past_ends_the_job_at_once(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: LinesideError("HTTP 401"), seconds=0.01)
    with pytest.raises(LinesideError, match="HTTP 401"):
        run(tmp_path, fake, iter([talk(f"a{n}") for n in range(100)]), in_flight=3)
    assert len(fake.asked) <= 3


def test_a_fault_in_a_conversation_is_not_swallowed(tmp_path: Path) -> None:
    def faulty() -> Conversation[list[str]]:
        yield [question("a")]
        raise LinesideError("no column 'x'")

    fake = Fake(lambda name, number: answer())
    with pytest.raises(LinesideError, match="no column 'x'"):
        run(tmp_path, fake, iter([talk("b"), faulty()]))
    assert fake.closed


def test_leaving_early_closes_and_keeps(tmp_path: Path) -> None:
    fake = Fake(lambda name, number: answer(), seconds=0.001)
    with Ledger(tmp_path) as ledger:
        ends = Dispatcher(lambda: fake, ledger, settings()).run(talk(f"a{n}") for n in range(1000))  # type: ignore[arg-type]
        next(ends)
        ends.close()  # type: ignore[attr-defined]
        assert fake.closed
        assert 0 < ledger.requests < 1000
