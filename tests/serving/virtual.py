"""An engine under a virtual clock: the scheduler's work without a model. Times are milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lineside.serving.scheduler import BLOCK, Costs, Job, Read, Scheduler

COSTS = Costs(read=0.0, picture=58.0, token=0.1, step=2.0, row=0.15)  # 63 ms to read a frame with 50 tokens
ANSWER = 5


@dataclass(eq=False)
class Asked:
    """A request of the simulation: when it comes, how long its trace and its answer will be, its deadline.

    `tokens`: of its question. `shared`: of its frame, which other requests with the same `frame` need too. `fast`:
    tokens after which its answer without thinking is complete: 1 if it comes with the reading. `predicted` and
    `predicted_fast`: what the server predicts of `answer` and `fast`.
    """

    at: float
    trace: int
    answer: int = ANSWER
    given: float = 300.0
    predicted: int = ANSWER
    thinks: bool = True
    tokens: int = 0
    frame: str = ""
    shared: int = 50
    fast: int = 0
    predicted_fast: int = 0

    def __post_init__(self) -> None:
        self.fast = self.fast or self.answer
        self.predicted_fast = self.predicted_fast or self.predicted

    def job(self, known: Iterable[str] = ()) -> Job:
        """As the engine's process makes it. `known`: the frames that are in memory."""
        fresh = self.frame not in known
        return Job(
            "", self.at + self.given, pictures=int(fresh), tokens=self.tokens + self.shared * fresh, rows=1,
            answer=self.predicted, thinks=self.thinks, head=self.frame, shared=self.shared * fresh,
            fast=self.predicted_fast,
        )  # fmt: skip


@dataclass
class Result:
    """What became of the requests. `answered`: time from asking to the answer, as a share of the time given."""

    refused: int = 0
    broken: int = 0  # accepted, and ended by the deadline without a whole answer
    cut: int = 0
    off: int = 0
    readings: int = 0
    answered: list[float] = field(default_factory=list)
    milliseconds: float = 0.0

    @property
    def accepted(self) -> int:
        return len(self.answered) + self.broken

    def late(self, by: float = 0.0) -> float:
        """Share of accepted answers that came later than the deadline and `by` of the time given, or not at all."""
        over = sum(share > 1 + by for share in self.answered)
        return (over + self.broken) / max(1, self.accepted)

    @property
    def in_time(self) -> int:
        return sum(share <= 1 for share in self.answered)


def load(rate: float, seconds: float, seed: int, **fields: float) -> list[Asked]:
    """Requests at random times, `rate` times as many as an engine answers that shares a step between four rows."""
    chance = random.Random(seed)
    capacity = 1 / (63 + 22 * (COSTS.step / 4 + COSTS.row))
    asked, at = [], 0.0
    while at < seconds * 1000:
        at += chance.expovariate(rate * capacity)
        asked.append(Asked(at, chance.randint(8, 24), **fields))  # pyright: ignore[reportArgumentType]
    return asked


def noisy(noise: float, seed: int = 0) -> Callable[[float], float]:
    """Every action takes longer than its cost by |N(0, 1)| of `noise`."""
    chance = random.Random(seed)
    return lambda ms: ms * (1 + noise * abs(chance.gauss(0, 1)))


class _Row:
    """A row that writes: where it is in its trace or answer."""

    def __init__(self, asked: Asked, job: Job, thinking: bool) -> None:
        self.asked, self.job = asked, job
        self.trace = asked.trace + 1 if thinking else 0  # the closing tag counts with the trace
        self.written = 0 if thinking else 1  # of the answer
        self.answer, self.predicted = (asked.answer, job.answer) if thinking else (asked.fast, job.fast)
        self._count()

    def write(self, cut: bool) -> None:
        if self.trace:
            self.trace = 0 if cut else self.trace - 1
        else:
            self.written += 1
        self._count()

    def _count(self) -> None:
        self.job.thinks = self.trace > 0
        left = self.predicted - self.written
        self.job.left = max(1, left + (1 if self.trace else 0))

    @property
    def done(self) -> bool:
        return not self.trace and self.written >= self.answer


class _Engine:
    """A scheduler and the clock of its work."""

    def __init__(self, scheduler: Scheduler, took: Callable[[float], float]) -> None:
        self.scheduler, self.took, self.now, self.result = scheduler, took, 0.0, Result()
        self.asked: dict[Job, Asked] = {}
        self.rows: dict[Job, _Row] = {}
        self.known: set[str] = set()

    def offer(self, one: Asked) -> None:
        job = one.job(self.known)
        self.asked[job] = one
        self.result.refused += self.scheduler.offer(job, self.now) is not None

    def read(self, action: Read) -> None:
        cost = self.scheduler.reading(action.jobs)
        ms = self.took(cost)
        self.now += ms
        self.result.readings += 1
        self.scheduler.reads.add(cost, ms)
        self.known |= {job.head for job in action.jobs if job.head}
        for job in action.jobs:
            thinking = job in action.thinking
            self.scheduler.begin(job, thinking)
            self.rows[job] = _Row(self.asked[job], job, thinking)
            self.result.off += self.asked[job].thinks and not thinking
            self._end_if_done(job)
        for job in self.scheduler.waiting:
            if job.head in self.known and job.shared:
                job.tokens, job.pictures, job.shared = job.tokens - job.shared, 0, 0

    def step(self, jobs: tuple[Job, ...], cut: frozenset[Job]) -> None:
        cost = self.scheduler.costs.stepping(len(jobs))
        ms = self.took(cost)
        self.now += ms
        self.scheduler.steps.add(cost, ms, BLOCK)
        for job in jobs:
            self.result.cut += job in cut
            self.rows[job].write(job in cut)
            self._end_if_done(job)

    def late(self, job: Job) -> None:
        self.scheduler.end(job)
        self.rows.pop(job, None)
        self.result.broken += 1

    def _end_if_done(self, job: Job) -> None:
        if self.rows[job].done:
            self.scheduler.end(job)
            del self.rows[job]
            one = self.asked[job]
            self.result.answered.append((self.now - one.at) / one.given if one.given < math.inf else 0.0)


def by_deadline(
    asked: list[Asked], *, costs: Costs = COSTS, noise: float = 0.0, margin: float = 1.25, max_rows: int = 16
) -> Result:
    """The scheduler on a stream of requests."""
    engine = _Engine(Scheduler(costs, max_rows=max_rows, margin=margin), noisy(noise))
    coming, next_one = sorted(asked, key=lambda a: a.at), 0
    while True:
        while next_one < len(coming) and coming[next_one].at <= engine.now:
            engine.offer(coming[next_one])
            next_one += 1
        action = engine.scheduler.next(engine.now)
        if action is None:
            if next_one == len(coming):
                engine.result.milliseconds = engine.now
                return engine.result
            engine.now = coming[next_one].at
        elif isinstance(action, Read):
            engine.read(action)
        else:
            for job in action.late:
                engine.late(job)
            if action.jobs:
                engine.step(action.jobs, action.cut)


def by_queue(
    asked: list[Asked],
    *,
    cap: int | None,
    costs: Costs = COSTS,
    noise: float = 0.0,
    max_rows: int = 16,
    thinks: bool = True,
) -> Result:
    """First in, first out, whole traces (or none at all: `thinks`); at most `cap` requests in the house (None: all that
    come). The engine is the same: a frame is read once, and requests join a reading as they do by deadline."""
    took, result, coming = noisy(noise), Result(), sorted(asked, key=lambda a: a.at)
    now, next_one, queue, rows = 0.0, 0, list[Asked](), list[_Row]()
    known: set[str] = set()
    while next_one < len(coming) or queue or rows:
        if not queue and not rows:
            now = max(now, coming[next_one].at)
        while next_one < len(coming) and coming[next_one].at <= now:
            if cap is not None and len(queue) + len(rows) >= cap:
                result.refused += 1
            else:
                queue.append(coming[next_one])
            next_one += 1
        if queue and len(rows) < max_rows:
            pictures = tokens = 0
            for one in _read_together(queue, costs, known, max_rows - len(rows)):
                queue.remove(one)
                job = one.job(known)
                rows.append(_Row(one, job, thinking=one.thinks and thinks))
                pictures, tokens = pictures + job.pictures, tokens + job.tokens
                known |= {one.frame} - {""}
            now += took(costs.reading(pictures, tokens))
        elif rows:
            now += took(costs.stepping(len(rows)))
            for row in rows:
                row.write(False)
        result.answered += [(now - row.asked.at) / row.asked.given for row in rows if row.done]
        rows = [row for row in rows if not row.done]
    result.milliseconds = now
    return result


def _read_together(queue: list[Asked], costs: Costs, known: set[str], room: int) -> list[Asked]:
    """The first request of a queue, and those of the next ones that take less time with it than it takes to begin
    another reading."""
    joined, seen = [queue[0]], known | ({queue[0].frame} - {""})
    for one in queue[1:room]:
        fresh = one.frame not in seen
        if costs.picture * fresh + costs.token * (one.tokens + one.shared * fresh) <= costs.read:
            joined.append(one)
            seen |= {one.frame} - {""}
    return joined
