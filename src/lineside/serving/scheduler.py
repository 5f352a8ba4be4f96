"""Deadlines: what is accepted, what runs next, and where a trace is cut. Pure: the caller brings the clock.

The engine does one thing at a time: it reads a request (pictures and prompts), or it writes one token for every running
row (a step). The *least service* of a request is to read it with thinking off, or to cut its trace now, and to write
the answer. The least plan serves all accepted requests so, earliest deadline first. Two rules keep deadlines:

- A request is accepted only if the least plan then meets every deadline. Otherwise it is refused at once.
- The engine does more than the least (it thinks on, it reads the next request) only if, after that, the least plan
  still meets every deadline. Otherwise it does the next thing of the least plan.

So no deadline is missed as long as nothing takes longer than predicted. Requests without a deadline use what is left.
All times are milliseconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

MARGIN = 1.25  # on every predicted time
WINDOW = 400  # measured times that the correction remembers
BLOCK = 8  # steps that are measured together: the noise of single steps evens out
FORCED = 2  # tokens of an empty trace: it is opened and closed
GRACE = 0.1  # of the time given: by so much an answer that is being written may come late, rather than be cut off
WORTHWHILE = 4  # tokens of a trace that are worth to begin one

T = TypeVar("T", int, float)


def p95(seen: Collection[T]) -> T:
    """The 95th percentile of what was measured last, at least one number."""
    return sorted(seen)[int(0.95 * len(seen))]


@dataclass(frozen=True, slots=True)
class Costs:
    """Predicted times, in ms: of reading (for each picture that must be encoded, for each token) and of a step."""

    read: float
    picture: float
    token: float
    step: float
    row: float

    def reading(self, pictures: int, tokens: int) -> float:
        """Reading a request with `pictures` that are not in memory and `tokens` of prompt."""
        return self.read + self.picture * pictures + self.token * tokens

    def stepping(self, rows: int) -> float:
        """One token for each of `rows`."""
        return self.step + self.row * rows


@dataclass
class Correction:
    """What measured times are of the predicted ones: the 95th percentile of the last ones, and a margin on their mean.

    The larger of the two is used. A new server has measured nothing, and takes the margin alone.
    """

    margin: float = MARGIN
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    factor: float = MARGIN
    _predicted: float = 0.0
    _measured: float = 0.0
    _count: int = 0

    def add(self, predicted: float, measured: float, block: int = 1) -> None:
        """Count one action. `block`: how many are measured together."""
        self._predicted, self._measured, self._count = (
            self._predicted + predicted, self._measured + measured, self._count + 1,
        )  # fmt: skip
        if self._count < block or self._predicted <= 0:
            return
        self.ratios.append(self._measured / self._predicted)
        self._predicted = self._measured = 0.0
        self._count = 0
        self.factor = max(p95(self.ratios), self.margin * sum(self.ratios) / len(self.ratios))


@dataclass(slots=True, eq=False)
class Job:
    """A request. The scheduler reads `rows` and `left`; whoever runs it keeps them up to date.

    `rows`: rows that still write. `left`: tokens that each of them must still write if its trace is cut now. `thinks`:
    whether it may think: as asked before it is read, as it does afterwards. `answer`: predicted tokens of the answer.
    `ends`: when it is ended as it is.
    """

    name: str
    deadline: float
    pictures: int
    tokens: int
    rows: int
    answer: int
    thinks: bool
    left: int = 0
    ends: float = math.inf

    def __post_init__(self) -> None:
        self.left = self.answer


class Refused(NamedTuple):
    """A request that cannot be answered in time. `needs`: ms that it takes on an idle engine. `retry`: after how many
    ms a request like it could be accepted if no other comes (None: never, since it needs longer than it gives)."""

    needs: float
    retry: float | None


class Read(NamedTuple):
    """Read this job next, with thinking on or off."""

    job: Job
    thinking: bool


class Step(NamedTuple):
    """One token for these jobs; the traces of `cut` end now. `late` are over time: they end as they are."""

    jobs: tuple[Job, ...]
    cut: frozenset[Job]
    late: tuple[Job, ...]


class _Running(NamedTuple):
    deadline: float
    left: int
    rows: int


class Scheduler:
    """The accepted requests of one engine, and what it does next."""

    def __init__(self, costs: Costs, *, max_rows: int = 64, margin: float = MARGIN) -> None:
        self.costs, self.max_rows = costs, max_rows
        self.reads, self.steps = Correction(margin, factor=margin), Correction(margin, factor=margin)
        self.waiting: list[Job] = []
        self.running: list[Job] = []

    # --- predicted times

    def read_ms(self, job: Job) -> float:
        """Time to read a job, with correction and margin."""
        return self.costs.reading(job.pictures, job.tokens) * self.reads.factor

    def step_ms(self, rows: int) -> float:
        """Time of a step, with correction and margin."""
        return self.costs.stepping(rows) * self.steps.factor

    def needs(self, job: Job) -> float:
        """Least service of a job on an idle engine."""
        return self.read_ms(job) + max(0, job.answer - 1) * self.step_ms(job.rows)

    # --- the two rules

    def offer(self, job: Job, now: float) -> Refused | None:
        """Accept a job (None) or refuse it."""
        job.ends = job.deadline + GRACE * (job.deadline - now) if job.deadline < math.inf else math.inf
        if job.deadline == math.inf or self._feasible(now, self.running, [*self.waiting, job]):
            self.waiting.append(job)
            return None
        needs, given = self.needs(job), job.deadline - now
        if needs > given:
            return Refused(needs, None)
        drained = self._plan(now, self.running, self.waiting).end
        return Refused(needs, max(1.0, drained + needs - job.deadline))

    def next(self, now: float) -> Read | Step | None:
        """What the engine does next; None if there is nothing to do."""
        if late := tuple(job for job in (*self.running, *self.waiting) if job.ends <= now):
            return Step((), frozenset(), late)
        if (read := self._next_read(now)) is not None:
            return read
        return self._next_step(now) if self.running else None

    def begin(self, job: Job, thinking: bool) -> None:
        """A job has been read; its first token is written."""
        self.waiting.remove(job)
        self.running.append(job)
        job.thinks = thinking
        job.left = max(1, job.answer - 1 + (FORCED if thinking else 0))

    def end(self, job: Job) -> None:
        """A job is finished or cancelled, wherever it was."""
        for jobs in (self.waiting, self.running):
            if job in jobs:
                jobs.remove(job)

    def _next_read(self, now: float) -> Read | None:
        """The waiting job with the earliest deadline, if the least plan still holds after it; thinking if that holds
        even with a short trace."""
        running = self.running
        waiting = sorted(self.waiting, key=lambda job: job.deadline)
        if not waiting:
            return None
        job, rest = waiting[0], waiting[1:]
        rows = sum(one.rows for one in running)
        if running and rows + job.rows > self.max_rows:
            return None
        after = now + self.read_ms(job)
        least = max(1, job.answer - 1)
        others = _least(running)
        if job.thinks:
            thinking = [*others, _Running(job.deadline, least + FORCED + WORTHWHILE, job.rows)]
            if self._holds(after, thinking, rest):
                return Read(job, True)
        if self._holds(after, [*others, _Running(job.deadline, least, job.rows)], rest):
            return Read(job, False)
        plan = self._plan(now, running, waiting)
        return Read(job, False) if plan.reads_first else None

    def _next_step(self, now: float) -> Step:
        """One token for all rows, with as few traces cut as the least plan allows."""
        running = self.running
        bound = [job for job in running if job.deadline < math.inf]
        free = [job for job in running if job.deadline == math.inf]
        thinking = sorted((job for job in bound if job.thinks), key=lambda job: job.deadline)

        def holds(jobs: Iterable[Job], cut: Sequence[Job]) -> bool:
            jobs = list(jobs)
            after = now + self.step_ms(sum(job.rows for job in jobs))
            left = [(job, job.left - (not job.thinks or job in cut)) for job in jobs if job.deadline < math.inf]
            rows = [_Running(job.deadline, count, job.rows) for job, count in left if count > 0]
            done = all(job.deadline >= after for job, count in left if count <= 0)
            return done and self._holds(after, rows, self.waiting)

        if free and holds(running, ()):
            return Step(tuple(running), frozenset(), ())
        if not bound:
            return Step(tuple(running), frozenset(), ())
        low, high = 0, len(thinking)  # the fewest traces, earliest deadlines first, that must be cut
        while low < high:
            middle = (low + high) // 2
            if holds(bound, thinking[:middle]):
                high = middle
            else:
                low = middle + 1
        return Step(tuple(bound), frozenset(thinking[:low]), ())

    # --- the least plan

    def _feasible(self, now: float, running: Sequence[Job], waiting: Sequence[Job]) -> bool:
        return self._holds(now, _least(running), waiting)

    def _holds(self, now: float, running: Sequence[_Running], waiting: Sequence[Job]) -> bool:
        return self._simulate(now, running, waiting, stop=True).holds

    def _plan(self, now: float, running: Sequence[Job], waiting: Sequence[Job]) -> _Plan:
        return self._simulate(now, _least(running), waiting, stop=False)

    def _simulate(self, now: float, running: Sequence[_Running], waiting: Sequence[Job], *, stop: bool) -> _Plan:
        """The least plan from `now` on: read the job with the earliest deadline as soon as no running one would then
        miss its own, and write otherwise. `stop`: at the first deadline that is missed."""
        going = [[one.deadline, one.left, one.rows] for one in running]
        rows = sum(one.rows for one in running)
        queue = sorted((job for job in waiting if job.deadline < math.inf), key=lambda job: job.deadline, reverse=True)
        holds, reads_first, first = True, False, True
        while going or queue:
            read_now, steps = False, 0
            if queue:
                job, read = queue[-1], self.read_ms(queue[-1])
                slow, fast = self.step_ms(rows + job.rows), self.step_ms(rows)
                if not going:
                    read_now = True
                elif rows + job.rows <= self.max_rows:
                    # Reading is harmless after k steps if, for every running job,
                    # now + k fast + read + (left - k) slow <= its deadline.
                    gain = max(slow - fast, 1e-9)
                    steps = max(math.ceil((now + read + left * slow - end) / gain) for end, left, _ in going)
                    read_now = steps <= 0
            if read_now:
                queue.pop()
                now += read
                least = max(1, job.answer - 1)
                going.append([job.deadline, least, job.rows])
                rows += job.rows
                reads_first = reads_first or first
            else:
                count = min(left for _, left, _ in going)
                count = max(1, min(count, steps)) if steps > 0 else count
                now += count * self.step_ms(rows)
                for one in going:
                    one[1] -= count
                    if one[1] <= 0:
                        rows -= int(one[2])
                        if now > one[0]:
                            holds = False
                going = [one for one in going if one[1] > 0]
            if stop and (not holds or any(now > one[0] for one in going) or (queue and now > queue[-1].deadline)):
                return _Plan(False, now, reads_first)
            first = False
        return _Plan(holds, now, reads_first)


class _Plan(NamedTuple):
    holds: bool
    end: float
    reads_first: bool


def _least(running: Iterable[Job]) -> list[_Running]:
    return [_Running(job.deadline, max(1, job.left), job.rows) for job in running if job.deadline < math.inf]
