"""An engine under a virtual clock: the scheduler's work without a model. Times are milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from lineside.serving.scheduler import BLOCK, Costs, Job, Read, Scheduler

COSTS = Costs(read=0.0, picture=58.0, token=0.1, step=2.0, row=0.15)  # 63 ms to read a frame with 50 tokens
ANSWER = 5


@dataclass(eq=False)
class Asked:
    """A request of the simulation: when it comes, how long its trace and its answer will be, its deadline."""

    at: float
    trace: int
    answer: int = ANSWER
    given: float = 300.0
    predicted: int = ANSWER
    thinks: bool = True

    def job(self) -> Job:
        return Job("", self.at + self.given, pictures=1, tokens=50, rows=1, answer=self.predicted, thinks=self.thinks)


@dataclass
class Result:
    """What became of the requests. `answered`: time from asking to the answer, as a share of the time given."""

    refused: int = 0
    broken: int = 0  # accepted, and ended by the deadline without a whole answer
    cut: int = 0
    off: int = 0
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

    def write(self, cut: bool) -> None:
        if self.trace:
            self.trace = 0 if cut else self.trace - 1
        else:
            self.written += 1
        self.job.thinks = self.trace > 0
        left = self.job.answer - self.written
        self.job.left = max(1, left + (1 if self.trace else 0))

    @property
    def done(self) -> bool:
        return not self.trace and self.written >= self.asked.answer


def by_deadline(asked: list[Asked], *, noise: float = 0.0, margin: float = 1.25, max_rows: int = 16) -> Result:
    """The scheduler on a stream of requests."""
    scheduler, took, result = Scheduler(COSTS, max_rows=max_rows, margin=margin), noisy(noise), Result()
    rows: dict[Job, _Row] = {}
    coming, now, next_one = sorted(asked, key=lambda a: a.at), 0.0, 0
    by_job: dict[Job, Asked] = {}

    def leave(job: Job) -> None:
        scheduler.end(job)
        rows.pop(job)

    while True:
        while next_one < len(coming) and coming[next_one].at <= now:
            one, next_one = coming[next_one], next_one + 1
            job = one.job()
            by_job[job] = one
            result.refused += scheduler.offer(job, now) is not None
        action = scheduler.next(now)
        if action is None:
            if next_one == len(coming):
                result.milliseconds = now
                return result
            now = coming[next_one].at
        elif isinstance(action, Read):
            job, cost = action.job, COSTS.reading(action.job.pictures, action.job.tokens)
            ms = took(cost)
            now += ms
            scheduler.reads.add(cost, ms)
            scheduler.begin(job, action.thinking)
            rows[job] = _Row(by_job[job], job, action.thinking)
            result.off += by_job[job].thinks and not action.thinking
        else:
            for job in action.late:
                leave(job)
                result.broken += 1
            if not action.jobs:
                continue
            cost = COSTS.stepping(len(action.jobs))
            ms = took(cost)
            now += ms
            scheduler.steps.add(cost, ms, BLOCK)
            for job in action.jobs:
                result.cut += job in action.cut
                rows[job].write(job in action.cut)
                if rows[job].done:
                    leave(job)
                    one = by_job[job]
                    result.answered.append((now - one.at) / one.given if one.given < math.inf else 0.0)


def by_queue(asked: list[Asked], *, cap: int | None, noise: float = 0.0, max_rows: int = 16) -> Result:
    """First in, first out, whole traces; at most `cap` requests in the house (None: all that come)."""
    took, result, coming = noisy(noise), Result(), sorted(asked, key=lambda a: a.at)
    now, next_one, queue, rows = 0.0, 0, list[Asked](), list[_Row]()
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
            one = queue.pop(0)
            rows.append(_Row(one, one.job(), thinking=True))
            now += took(COSTS.reading(1, 50))
        elif rows:
            now += took(COSTS.stepping(len(rows)))
            for row in rows:
                row.write(False)
            result.answered += [(now - row.asked.at) / row.asked.given for row in rows if row.done]
            rows = [row for row in rows if not row.done]
    result.milliseconds = now
    return result
