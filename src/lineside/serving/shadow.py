"""Shadow: another version answers what was answered already, with time that nobody else wants; its answer is only kept.

A request never waits for it. It runs while no request is being answered, and when one comes it is broken off and tried
again later, a few times. What waits is bounded; under load it is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from lineside.errors import LinesideError
from lineside.progress import say
from lineside.serving import replies
from lineside.serving.api import ApiError
from lineside.serving.metrics import Metrics
from lineside.serving.models import Model
from lineside.serving.outcomes import Outcomes
from lineside.serving.requests import Again, ReadRequest

WAITING = 8  # requests that wait to be asked again: each holds its pictures
MOST_BYTES = 16 << 20  # that one holds
TRIES = 3


@dataclass(slots=True)
class _Job:
    again: Again
    names: Sequence[str]
    tries: int = 0


class Shadow:
    """What is to be asked again. Used in one event loop."""

    def __init__(self, metrics: Metrics, outcomes: Outcomes) -> None:
        self._metrics, self._outcomes = metrics, outcomes
        self._waiting: deque[_Job] = deque()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Nothing runs in shadow during the `with` block, in which a request is answered."""
        self._active += 1
        self._idle.clear()
        if self._running is not None:
            self._running.cancel()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def offer(self, asked: ReadRequest, names: Sequence[str]) -> None:
        """Let the other version answer, sometime. `names`: under which the answers of the first one are kept."""
        if asked.again is None:
            return
        if asked.again.bytes > MOST_BYTES:
            self._count(asked.again.model, "shed")
            return
        self._waiting.append(_Job(asked.again, names))
        while len(self._waiting) > WAITING:
            self._count(self._waiting.popleft().again.model, "shed")
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        tasks = [task for task in (self._loop, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            while self._active:  # the next request may have come before this wakes
                await self._idle.wait()
            job = self._waiting.popleft()
            if not job.again.model.engine.alive:  # its trial has ended
                self._count(job.again.model, "shed")
                continue
            job.tries += 1
            self._running = running = asyncio.create_task(self._answer(job))
            try:
                await asyncio.wait({running})
            finally:
                self._running = None
                running.cancel()
            if not running.cancelled():
                error = running.exception()
                self._count(job.again.model, "answered" if error is None else "failed")
                if error is not None and not isinstance(error, ApiError | LinesideError):
                    say(f"serve: a bug in lineside, {type(error).__name__}: a shadow's answer failed")
            elif job.tries < TRIES and len(self._waiting) < WAITING:
                self._waiting.appendleft(job)
            else:
                self._count(job.again.model, "shed")

    async def _answer(self, job: _Job) -> None:
        """Ask the other version the same, without a deadline, and keep what it says. Raises ApiError."""
        model = job.again.model
        model.use()
        asked = await job.again.read()
        asked.deadline_ms, asked.stream = None, False
        blobs = [picture.data for picture in asked.pictures]
        async with aclosing(model.engine.ask(asked.header(0.0), blobs)) as messages:
            async for message in messages:
                if message["kind"] in ("refused", "failed", "gone"):
                    raise ApiError(500, f"the shadow's engine: {message['kind']}")
                if message["kind"] == "done":
                    self._keep(job, asked, message)

    def _keep(self, job: _Job, asked: ReadRequest, done: Mapping[str, Any]) -> None:
        model = job.again.model
        for name, row in zip(job.names, done["rows"], strict=True):
            question = asked.prompts[row["prompt"]].question
            one = replies.answered(
                row, question, model.book, think_close=model.engine.facts["think_close"],
                ms=sum(done["ms"].values()) - done["ms"]["queue"], temperature=asked.options.get("temperature", 0.0),
            )  # fmt: skip
            self._outcomes.keep_shadow(name, one.typed, version=model.version)

    def _count(self, model: Model, result: str) -> None:
        self._metrics.shadow.labels(model.name, result).inc()
