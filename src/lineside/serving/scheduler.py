"""Deadlines: what is accepted, what runs next, and where a trace is cut. Pure: the caller brings the clock.

The engine does one thing at a time: it reads requests (pictures and prompts), or it writes one token for every running
row (a step). The *least service* of a request is to read it with thinking off, or to cut its trace now, and to write
the answer. The least plan serves all accepted requests so, earliest deadline first. What requests share is read once:
of those about the same frame, the first one that is read pays for it. Further requests join a reading where that takes
less time than to begin another one. Two rules keep deadlines:

- A request is accepted only if the least plan then meets every deadline. Otherwise it is refused at once.
- The engine does more than the least (it thinks on, it reads the next request) only if, after that, the least plan
  still meets every deadline. Otherwise it does what comes next in the least plan.

So no deadline is missed as long as nothing takes longer than predicted. Requests without a deadline use what is left.
After a refusal, thinking gives way: for as long as the refused request had, traces go on only if one like it could be
accepted. All times are milliseconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
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
        """Reading requests with `pictures` that are not in memory and `tokens` of prompts."""
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
    """A request. The scheduler reads its fields; whoever runs it keeps `rows`, `left`, `pictures` and `shared` up to
    date.

    `pictures`, `tokens`: what must be encoded and read. `shared`: of these tokens, those that other requests with the
    same `head` need too ("": no other does), as they do the pictures. `rows`: rows that still write. `left`: tokens
    that each of them must still write if its trace is cut now. `thinks`: whether it may think: as asked before it is
    read, as it does afterwards. `answer`: predicted tokens of the answer. `fast`: those after which it is done if it is
    read with thinking off, where the tokens that come with the reading count as one. `ends`: when it is ended as it is.
    """

    name: str
    deadline: float
    pictures: int
    tokens: int
    rows: int
    answer: int
    thinks: bool
    head: str = ""
    shared: int = 0
    fast: int = 0
    left: int = 0
    ends: float = math.inf

    def __post_init__(self) -> None:
        self.left, self.fast = self.answer, self.fast or self.answer


class Refused(NamedTuple):
    """A request that cannot be answered in time. `needs`: ms that it takes on an idle engine. `retry`: after how many
    ms a request like it could be accepted if no other comes (None: never, since it needs longer than it gives)."""

    needs: float
    retry: float | None


class Read(NamedTuple):
    """Read these jobs next, together. `thinking`: those with thinking on."""

    jobs: tuple[Job, ...]
    thinking: frozenset[Job]


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
        self._refused: tuple[Job, float] | None = None  # the last one that came too late, and when it came

    # --- predicted times

    def read_ms(self, jobs: Sequence[Job], heads: Collection[str] = ()) -> float:
        """Time to read jobs together, with correction and margin. `heads`: those that have been read by then."""
        return self.reading(jobs, heads) * self.reads.factor

    def reading(self, jobs: Iterable[Job], heads: Collection[str] = ()) -> float:
        """The same without correction."""
        seen, ms = set(heads), self.costs.read
        for job in jobs:
            ms += self._more(job, seen)
            seen.add(job.head)
        return ms

    def _more(self, job: Job, heads: Collection[str]) -> float:
        """What a job adds to a reading, where these heads have been read."""
        costs = self.costs
        if job.head and job.head in heads:
            return costs.token * (job.tokens - job.shared)
        return costs.picture * job.pictures + costs.token * job.tokens

    def step_ms(self, rows: int) -> float:
        """Time of a step, with correction and margin."""
        return self.costs.stepping(rows) * self.steps.factor

    def needs(self, job: Job) -> float:
        """Least service of a job on an idle engine."""
        return self.read_ms([job]) + max(0, job.fast - 1) * self.step_ms(job.rows)

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
        self._refused = job, now
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
        job.left = max(1, job.answer - 1 + FORCED if thinking else job.fast - 1)

    def end(self, job: Job) -> None:
        """A job is finished or cancelled, wherever it was."""
        for jobs in (self.waiting, self.running):
            if job in jobs:
                jobs.remove(job)

    def _room(self, now: float) -> list[Job]:
        """A request like the one that was refused, if it had so much time that it would still be there."""
        if self._refused is None or now >= self._refused[0].deadline:
            return []
        job, at = self._refused
        return [replace(job, name="", deadline=now + job.deadline - at, thinks=False)]

    def _next_read(self, now: float) -> Read | None:
        """The waiting job with the earliest deadline and those that join it, if the least plan still holds after that.
        As few as possible read with thinking off, earliest deadlines first; thinking takes at least a short trace."""
        waiting = sorted(self.waiting, key=lambda job: job.deadline)
        if not waiting:
            return None
        # A job with a deadline does not wait for the room of one without: that one pauses.
        held = [one for one in self.running if one.deadline < math.inf or waiting[0].deadline == math.inf]
        rows = sum(one.rows for one in held)
        if held and rows + waiting[0].rows > self.max_rows:
            return None
        for joins in (True, False):
            reading = self._joining(waiting, (), rows, joins=joins)
            if (thinking := self._thinking(now, reading)) is not None:
                return Read(tuple(reading.jobs), thinking)
            if len(reading.jobs) == 1:
                break
        plan = self._plan(now, self.running, waiting)
        return Read(plan.first, frozenset()) if plan.first else None

    def _thinking(self, now: float, reading: _Reading) -> frozenset[Job] | None:
        """Which of the jobs may think if they are read together now; None if the least plan does not even hold if none
        does."""
        joined, rest, after = reading.jobs, reading.rest, now + reading.ms
        heads = {job.head for job in joined}
        others, thinking = _least(self.running), [job for job in joined if job.thinks]
        room = self._room(now)

        def holds(off: int) -> bool:
            on = set(thinking[off:])
            left = [
                (job, job.answer - 1 + FORCED + WORTHWHILE if job in on else job.fast - 1)
                for job in joined
                if job.deadline < math.inf
            ]
            begun = [_Running(job.deadline, count, job.rows) for job, count in left if count > 0]
            done = all(job.deadline >= after for job, count in left if count <= 0)
            return done and self._holds(after, [*others, *begun], [*rest, *room] if on else rest, heads)

        off = _fewest(len(thinking), holds)
        return None if off is None else frozenset(thinking[off:])

    def _joining(self, queue: Sequence[Job], heads: Collection[str], rows: int, *, joins: bool = True) -> _Reading:
        """The reading of the first job of a queue, with `joins` and of those that take less time so than it takes to
        begin another one."""
        first, seen = queue[0], set(heads)
        joined, rest, rows, ms = [first], [], rows + first.rows, self.costs.read + self._more(first, seen)
        seen.add(first.head)
        for job in queue[1:]:
            if joins and rows + job.rows <= self.max_rows and (more := self._more(job, seen)) <= self.costs.read:
                joined.append(job)
                rows, ms = rows + job.rows, ms + more
                seen.add(job.head)
            else:
                rest.append(job)
        return _Reading(joined, rest, rows, ms * self.reads.factor)

    def _next_step(self, now: float) -> Step:
        """One token for all rows, with as few traces cut as the least plan allows."""
        running = self.running
        bound = [job for job in running if job.deadline < math.inf]
        free = [job for job in running if job.deadline == math.inf]
        thinking = sorted((job for job in bound if job.thinks), key=lambda job: job.deadline)
        room = self._room(now)

        def holds(jobs: Sequence[Job], cut: Sequence[Job]) -> bool:
            least = len(cut) == len(thinking) and jobs is bound
            after = now + self.step_ms(sum(job.rows for job in jobs))
            left = [(job, job.left - (not job.thinks or job in cut)) for job in jobs if job.deadline < math.inf]
            rows = [_Running(job.deadline, count, job.rows) for job, count in left if count > 0]
            done = all(job.deadline >= after for job, count in left if count <= 0)
            return done and self._holds(after, rows, self.waiting if least else [*self.waiting, *room])

        fits = sum(job.rows for job in running) <= self.max_rows
        if not bound or (free and fits and holds(running, ())):
            return Step(tuple(running), frozenset(), ())
        if not thinking:
            return Step(tuple(bound), frozenset(), ())
        cut = _fewest(len(thinking), lambda count: holds(bound, thinking[:count]))
        return Step(tuple(bound), frozenset(thinking if cut is None else thinking[:cut]), ())

    # --- the least plan

    def _feasible(self, now: float, running: Sequence[Job], waiting: Sequence[Job]) -> bool:
        return self._holds(now, _least(running), waiting)

    def _holds(
        self, now: float, running: Sequence[_Running], waiting: Sequence[Job], heads: Collection[str] = ()
    ) -> bool:
        """Whether a least plan meets every deadline, with joined readings or without."""
        ways = (True, False) if len(waiting) > 1 else (True,)
        return any(self._simulate(now, running, waiting, heads, joins=joins).holds for joins in ways)

    def _plan(self, now: float, running: Sequence[Job], waiting: Sequence[Job]) -> _Plan:
        """The least plan that holds, else the one with joined readings."""
        plans = [self._simulate(now, _least(running), waiting, (), joins=joins, stop=False) for joins in (True, False)]
        return plans[1] if plans[1].holds and not plans[0].holds else plans[0]

    def _simulate(
        self,
        now: float,
        running: Sequence[_Running],
        waiting: Sequence[Job],
        heads: Collection[str],
        *,
        joins: bool,
        stop: bool = True,
    ) -> _Plan:
        """The least plan from `now` on: read the job with the earliest deadline (with `joins`, and those that join it)
        as soon as no running one would then miss its own, and write otherwise. `stop`: at the first deadline that is
        missed."""
        going = [[one.deadline, one.left, one.rows] for one in running]
        rows, seen, step_ms = sum(one.rows for one in running), set(heads), self.step_ms
        queue = sorted((job for job in waiting if job.deadline < math.inf), key=lambda job: job.deadline)
        holds, first = True, None
        reading = None  # the next one, as long as rows and queue stay the same
        while going or queue:
            read, steps = False, 0
            if queue:
                reading = reading or self._joining(queue, seen, rows, joins=joins)
                if not going:
                    read = True
                elif reading.rows <= self.max_rows:
                    # Reading is harmless after k steps if, for every running job,
                    # now + k fast + read + (left - k) slow <= its deadline.
                    slow, fast = step_ms(reading.rows), step_ms(rows)
                    gain, after = max(slow - fast, 1e-9), now + reading.ms
                    steps = math.ceil(max(after + left * slow - end for end, left, _ in going) / gain)
                    read = steps <= 0
            if first is None:
                first = tuple(reading.jobs) if read and reading else ()
            if read and reading:
                now += reading.ms
                seen.update(job.head for job in reading.jobs)
                queue, rows = reading.rest, reading.rows
                going += [[job.deadline, job.fast - 1, job.rows] for job in reading.jobs]
                reading = None
            else:
                count = max(1, min(left for _, left, _ in going))
                count = min(count, steps) if steps > 0 else count
                now += count * step_ms(rows)
                for one in going:
                    one[1] -= count
            if any(left <= 0 for _, left, _ in going):
                ended = [one for one in going if one[1] <= 0]
                going = [one for one in going if one[1] > 0]
                rows -= sum(int(one[2]) for one in ended)
                holds = holds and all(now <= one[0] for one in ended)
                reading = None
            if stop and (not holds or any(now > end for end, _, _ in going) or (queue and now > queue[0].deadline)):
                return _Plan(False, now, first)
        return _Plan(holds, now, first or ())


class _Reading(NamedTuple):
    """Jobs that are read together, the others of the queue, the rows that write after it, and ms."""

    jobs: list[Job]
    rest: list[Job]
    rows: int
    ms: float


class _Plan(NamedTuple):
    """`first`: what it reads first of all; () if it writes first."""

    holds: bool
    end: float
    first: tuple[Job, ...]


def _least(running: Iterable[Job]) -> list[_Running]:
    return [_Running(job.deadline, max(1, job.left), job.rows) for job in running if job.deadline < math.inf]


def _fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest count from 0 to `most` that holds, where every larger one holds too; None if none does."""
    if holds(0):  # most often
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low if low < most or (most and holds(most)) else None
