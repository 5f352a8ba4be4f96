"""Many requests at once: limited in number, rate and budget, repeated after errors, each answer saved in a journal.

The work is a set of conversations: generators that yield requests and receive replies. A conversation sends nothing
itself. So the same conversation can run again from the ledger alone (`replay`) when the samples are written. The
samples depend on the teacher's replies, never on their time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lineside.data.endpoint import Busy, Endpoint, Request, backoff
from lineside.data.ledger import Attempt, Ledger
from lineside.data.replies import BadReply
from lineside.errors import CheckFailed, LinesideError
from lineside.recipe import Label

T = TypeVar("T")

SYNC_SECONDS = 2.0  # most work that a power cut loses; a killed process loses nothing
FIRST_PATIENCE = 30.0  # seconds, before the endpoint has served anything
GIVE_UP = 3  # times `in_flight`: after this many failures in a row the job ends
PICTURE_TOKENS = 1500  # reserved for a picture until real usage is known
CUT_OFF = "cut off at max_tokens"


def cost(settings: Label, prompt_tokens: int, completion_tokens: int) -> float:
    """What tokens cost, in dollars."""
    return (prompt_tokens * settings.usd_in + completion_tokens * settings.usd_out) / 1e6


class BudgetReached(CheckFailed):
    """The budget does not allow another request. Finished work is kept; with a larger budget the job continues."""


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The final result of a request: a value, an unusable reply, or no reply."""

    value: T | None
    status: Literal["said", "unusable", "failed"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A request with a reader for its reply; `read` raises BadReply."""

    request: Request
    read: Callable[[str], T]


Conversation = Generator[Sequence[Question], Sequence[Reply], T]


def settle(attempts: Sequence[Attempt], question: Question[T], most: int) -> Reply[T] | None:
    """The result of the attempts at a question; None while another attempt is due."""
    reason, status = "", "failed"
    for attempt in attempts:
        if attempt.status == "refused":
            return Reply(None, "failed", attempt.text)
        if attempt.status == "error":
            reason, status = attempt.text, "failed"
            continue
        try:
            return Reply(question.read(attempt.text), "said")
        except BadReply as error:
            reason, status = CUT_OFF if attempt.finish == "length" else str(error), "unusable"
    if len(attempts) < most:
        return None
    return Reply(None, "unusable" if status == "unusable" else "failed", reason)


def replay(conversation: Conversation[T], ledger: Ledger, most: int, usage: Counter[str]) -> T:
    """The result of a conversation whose replies are all in the ledger; their usage is added to `usage`.

    Raises LinesideError if the ledger lacks a reply.
    """
    try:
        questions = next(conversation)
        while True:
            replies: list[Reply | None] = []
            for question in questions:
                attempts = ledger.attempts(question.request.key)
                replies.append(settle(attempts, question, most))
                answers = [attempt for attempt in attempts if attempt.status == "answer"]
                usage["answers"] += len(answers)
                usage["prompt_tokens"] += sum(attempt.prompt_tokens for attempt in answers)
                usage["completion_tokens"] += sum(attempt.completion_tokens for attempt in answers)
            if any(reply is None for reply in replies):
                raise LinesideError("the ledger lacks a reply that this job needs: run it again")
            questions = conversation.send([reply for reply in replies if reply is not None])
    except StopIteration as end:
        return end.value


class _Stopped(Exception):
    """No further attempt may be made."""


class Dispatcher:
    """Runs conversations with an endpoint. `tally` counts the outcomes of this run's requests."""

    def __init__(self, connect: Callable[[], Endpoint], ledger: Ledger, settings: Label) -> None:
        self._connect, self._ledger, self._settings = connect, ledger, settings
        self.tally: Counter[str] = Counter()
        self._stop: LinesideError | None = None
        self._reserved: Counter[str] = Counter()  # for requests in flight
        self._largest = 0, 0  # prompt and completion tokens of the largest answer so far
        self._next_slot = self._not_before = 0.0
        self._asking: dict[str, asyncio.Event] = {}
        self._failures = 0  # since the last answer
        # Errors since the last answer, by request. They count as attempts only after the endpoint answers again, so
        # an outage or a stuck machine uses up no request's attempts.
        self._held: dict[str, list[Attempt]] = {}
        self._served_at = time.monotonic()
        self._answered = False

    def run(self, conversations: Iterable[Conversation[T]]) -> Iterator[T]:
        """Run all conversations and yield the result of each as it ends (in no order).

        Raises BudgetReached, or LinesideError when the endpoint no longer serves requests; requests in flight are
        finished and saved first. If the caller stops or the user interrupts, they are cancelled.
        """
        with asyncio.Runner() as runner:
            ends: asyncio.Queue[T | None] = asyncio.Queue()
            crowd = runner.run(self._start(iter(conversations), ends))
            try:
                while (end := runner.run(ends.get())) is not None:
                    yield end
                runner.run(_result(crowd))  # raises the exceptions of conversations
            finally:
                crowd.cancel()
                runner.run(self._finish(crowd))
        if self._stop is not None:
            raise self._stop

    async def _start(
        self, conversations: Iterator[Conversation[T]], ends: asyncio.Queue[T | None]
    ) -> asyncio.Task[None]:
        self._endpoint = self._connect()
        self._slots, self._freed = asyncio.Semaphore(self._settings.in_flight), asyncio.Event()
        return asyncio.create_task(self._crowd(conversations, ends))

    async def _finish(self, crowd: asyncio.Task[None]) -> None:
        await asyncio.gather(crowd, return_exceptions=True)
        await self._endpoint.close()
        if self._stop is None or isinstance(self._stop, BudgetReached):
            self._journal_held()
        self._ledger.sync()

    async def _crowd(self, conversations: Iterator[Conversation[T]], ends: asyncio.Queue[T | None]) -> None:
        """Run twice as many conversations as slots, so that a waiting one leaves no slot idle."""
        try:
            async with asyncio.TaskGroup() as group:
                syncing = group.create_task(self._sync())
                number = 2 * self._settings.in_flight
                workers = [group.create_task(self._work(conversations, ends)) for _ in range(number)]
                await asyncio.gather(*workers)
                syncing.cancel()
        finally:
            ends.put_nowait(None)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.to_thread(self._ledger.sync)

    async def _work(self, conversations: Iterator[Conversation[T]], ends: asyncio.Queue[T | None]) -> None:
        while self._stop is None and (conversation := next(conversations, None)) is not None:
            try:
                ends.put_nowait(await self._hold(conversation))
            except _Stopped:
                return
            await asyncio.sleep(0)  # if all replies are in the ledger, let the other conversations start too

    async def _hold(self, conversation: Conversation[T]) -> T:
        replies: Sequence[Reply] | None = None
        while True:
            try:
                questions = next(conversation) if replies is None else conversation.send(replies)
            except StopIteration as end:
                return end.value
            if len(questions) == 1:
                replies = [await self._ask(questions[0])]
                continue
            # Not cancelled one by one: requests in flight are paid for when the job stops, so their answers are kept.
            found = await asyncio.gather(*map(self._ask, questions), return_exceptions=True)
            for reply in found:
                if isinstance(reply, BaseException):
                    raise reply
            replies = [reply for reply in found if isinstance(reply, Reply)]

    async def _ask(self, question: Question[T]) -> Reply[T]:
        key, most = question.request.key, self._settings.attempts
        while (asked := self._asking.get(key)) is not None:  # two frames with one picture: send one request
            await asked.wait()
        self._asking[key] = asyncio.Event()
        try:
            if self._settings.retry_failed:
                known = settle(self._ledger.attempts(key), question, most)
                if known is not None and known.status == "failed":
                    self._ledger.forget(key)
            while True:
                attempts = self._ledger.attempts(key) + self._held.get(key, [])
                if (reply := settle(attempts, question, most)) is not None:
                    return reply
                await self._attempt(question.request, len(attempts))
        finally:
            self._asking.pop(key).set()

    async def _attempt(self, request: Request, number: int) -> None:
        """One attempt, saved in the journal, and the wait after a failure. Raises _Stopped when none may be made."""
        async with self._slots:
            await self._turn()
            reserved = await self._reserve(request)
            try:
                tried = await self._endpoint.ask(request, number)
            except LinesideError as error:
                self._halt(error)
                raise _Stopped from None
            finally:
                self._reserved.subtract(reserved)
                self._freed.set()
            self.tally["requests"] += 1
            if isinstance(tried, Busy):
                wait = self._turned_away(tried)
            else:
                self._journal(request.key, number, tried.attempt)
                wait = self._note(tried.attempt, number)
                if tried.wait is not None and wait:
                    wait = max(wait, tried.wait)
        if wait:
            await asyncio.sleep(wait)

    async def _turn(self) -> None:
        """Wait until the rate limit and the endpoint allow another request."""
        while True:
            if self._stop is not None:
                raise _Stopped
            now = time.monotonic()
            if (pause := self._not_before - now) <= 0:
                break
            await asyncio.sleep(min(pause, 1.0))
        if self._settings.per_minute:
            slot = max(now, self._next_slot)
            self._next_slot = slot + 60.0 / self._settings.per_minute
            if slot > now:
                await asyncio.sleep(slot - now)
            if self._stop is not None:
                raise _Stopped

    async def _reserve(self, request: Request) -> Counter[str]:
        """Reserve budget for this request; wait if requests in flight leave too little.

        The reservation is the largest usage so far, or a guess before there is any. So a budget is exceeded only by as
        much as answers in flight are larger than all earlier ones. Stops the job if the budget is used up.
        """
        prompt, completion = self._largest
        if not self._answered:
            prompt, completion = len(request.text) // 3 + PICTURE_TOKENS, self._settings.max_tokens
        need = Counter(requests=1, prompt=prompt, completion=completion)
        while short := self._short_of(self._reserved + need):
            if not self._reserved["requests"]:
                self._halt(BudgetReached(f"the budget of {short} does not allow another request"))
            if self._stop is not None:
                raise _Stopped
            self._freed.clear()
            await self._freed.wait()
        self._reserved += need
        return need

    def _short_of(self, more: Counter[str]) -> str:
        """Name of the budget that past usage and `more` would exceed together; "" if none."""
        limits, ledger = self._settings, self._ledger
        prompt, completion = ledger.prompt_tokens + more["prompt"], ledger.completion_tokens + more["completion"]
        requests = ledger.requests + sum(map(len, self._held.values())) + more["requests"]
        if limits.budget_requests is not None and requests > limits.budget_requests:
            return f"{limits.budget_requests:,} requests"
        if limits.budget_tokens is not None and prompt + completion > limits.budget_tokens:
            return f"{limits.budget_tokens:,} tokens"
        if limits.budget_usd is not None and cost(limits, prompt, completion) > limits.budget_usd:
            return f"{limits.budget_usd:g} dollars"
        return ""

    def _journal(self, key: str, number: int, attempt: Attempt) -> None:
        """Save an attempt; an error waits in `_held` until there is an answer."""
        if attempt.status == "error":
            self._held.setdefault(key, []).append(attempt)
            return
        self._journal_held()
        self._ledger.add(key, number, attempt)

    def _journal_held(self) -> None:
        for key, attempts in self._held.items():
            first = len(self._ledger.attempts(key))
            for number, attempt in enumerate(attempts, first):
                self._ledger.add(key, number, attempt)
        self._held.clear()

    def _note(self, attempt: Attempt, number: int) -> float:
        """Count an attempt; returns the seconds to wait before the next attempt at the same request."""
        self._served_at = time.monotonic()
        if attempt.status == "answer":
            self._answered, self._failures = True, 0
            self._largest = (
                max(self._largest[0], attempt.prompt_tokens),
                max(self._largest[1], attempt.completion_tokens),
            )
            return 0.0
        self.tally[attempt.status] += 1
        self._failures += 1
        if self._failures >= max(GIVE_UP * self._settings.in_flight, 2 * self._settings.attempts):
            self._halt(
                LinesideError(
                    f"the last {self._failures} requests all failed, the last with: {attempt.text}. Finished work is "
                    "kept; run again when the endpoint works"
                )
            )
        last = attempt.status == "refused" or number + 1 >= self._settings.attempts
        return 0.0 if last else backoff(number, self._settings.backoff, random.random())

    def _turned_away(self, busy: Busy) -> float:
        """Seconds to wait as the endpoint asks; all requests wait. Ends the job after too long."""
        self.tally["turned away"] += 1
        now = time.monotonic()
        patience = self._settings.patience if self._answered else min(self._settings.patience, FIRST_PATIENCE)
        if now - self._served_at > patience:
            self._halt(
                LinesideError(
                    f"the endpoint has served nothing for {now - self._served_at:.0f} s: {busy.reason}. Finished work "
                    "is kept; run again later"
                )
            )
        base = self._settings.backoff
        wait = busy.wait if busy.wait is not None else backoff(0, base, random.random())
        self._not_before = max(self._not_before, now + wait)
        return wait * (1.0 + 0.1 * random.random())  # spread the requests in time

    def _halt(self, error: LinesideError) -> None:
        self._stop = self._stop or error


async def _result(crowd: asyncio.Task[None]) -> None:
    try:
        await crowd
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
