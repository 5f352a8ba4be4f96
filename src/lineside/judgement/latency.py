"""Time of one question alone, as a cell asks it; or the reason why it was not measured.

A suite is answered in batches, so its wall time does not show the time of one question. So some questions, spread over
the tasks, are timed one by one with nothing cached (encoder included). The quantiles are those of these times. Some of
them are timed again, stopped after the first token. This splits the time into a base and a time per token; every other
row's time is estimated from these two medians.

On a busy machine a time shows only how busy it was. So times count only if the machine is idle except for this process
and those that it started, both before, while this process waits, and during the measurement. The kernel's count of
processor time shows this (proc(5), /proc/stat; time stolen by a hypervisor counts as busy).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from lineside.types import Sample

QUESTIONS = 120
PARTED = 24  # of them, also timed to the first token
SECONDS = 45.0  # measuring stops after this; a slow machine measures fewer questions
FEWEST = 4
ENOUGH = {95: 40, 99: 100}  # fewest questions for a percentile
WAIT = 0.3  # seconds for which the machine is watched before the measurement
OTHERS, STOLEN = 0.05, 0.01  # shares of all processor time above which a machine is busy


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """`base_ms` for the first token (encode and prefill included), `per_token_ms` for each further one; both medians.

    `p50_ms`, `p95_ms`, `p99_ms`: quantiles of the measured questions' times, None where too few were measured.
    `slow`: the 95th percentile of measured time over estimated time.
    """

    base_ms: float
    per_token_ms: float
    measured: int
    p50_ms: float
    p95_ms: float | None = None
    p99_ms: float | None = None
    slow: float | None = None

    def estimate(self, tokens: int) -> float:
        """Milliseconds for a response of `tokens` tokens, end token included."""
        return self.base_ms + self.per_token_ms * max(0, tokens - 1)

    def estimate_p95(self, tokens: int) -> float | None:
        """Milliseconds within which 95 of 100 such responses are finished; None if too few were measured."""
        return None if self.slow is None else self.slow * self.estimate(tokens)


class ProcessorTime(NamedTuple):
    """Seconds of all processors since boot: busy, stolen by a hypervisor, in all; and busy with this process and those
    that it started, as an engine in a process of its own."""

    busy: float
    stolen: float
    total: float
    own: float


def processor_time() -> ProcessorTime | None:
    """The kernel's count now; None on a system without one."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
        user, nice, system, idle, waiting, interrupts, soft, stolen = (int(field) for field in fields)
    except (OSError, ValueError, IndexError):
        return None
    ticks, busy = os.sysconf("SC_CLK_TCK"), user + nice + system + interrupts + soft
    total = busy + stolen + idle + waiting
    return ProcessorTime(busy / ticks, stolen / ticks, total / ticks, _own_ticks(os.getpid()) / ticks)


def _own_ticks(process: int) -> int:
    """Processor time of a process and of those below it, the ended ones included."""
    folder = Path("/proc") / str(process)
    try:
        # user, system, and both of the children that have ended; what stands before is the name, in brackets
        mine = (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[11:15]
        children = [child for file in folder.glob("task/*/children") for child in file.read_text().split()]
    except OSError:  # it has ended since
        return 0
    return sum(map(int, mine)) + sum(_own_ticks(int(child)) for child in children)


def busy_with_others(before: ProcessorTime | None, after: ProcessorTime | None) -> str:
    """Why the machine was too busy between two counts, "" if it was idle except for this process.

    Worked: 100 s of all processors, 50 s busy, 49 of them with this process: others had 1%, which is idle.
    """
    if before is None or after is None:
        return "this system does not tell how busy it is"
    total = after.total - before.total
    if total <= 0:
        return "too short to tell how busy the machine was"
    others = (after.busy - before.busy - (after.own - before.own)) / total
    stolen = (after.stolen - before.stolen) / total
    if others > OTHERS:
        return f"busy machine: other processes had {others:.0%} of its processor time"
    return f"busy machine: {stolen:.0%} of its processor time was stolen by its host" if stolen > STOLEN else ""


def spread(questions: Sequence[Sample], count: int = QUESTIONS) -> list[Sample]:
    """`count` questions, one of each task in turn, within a task in an order fixed by the questions' ids."""
    by_task: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in sorted(questions, key=lambda s: hashlib.sha256(s.id.encode()).digest()):
        by_task[sample.family, sample.task].append(sample)
    turns = zip_longest(*(by_task[task] for task in sorted(by_task)))
    return [sample for turn in turns for sample in turn if sample is not None][:count]


def measure_if_idle(
    answer: Callable[[Sample, int], int],
    questions: Sequence[Sample],
    *,
    max_new_tokens: int,
    count: Callable[[], ProcessorTime | None] = processor_time,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[LatencyModel | None, str]:
    """`measure`, and "" as the note; or None and why it was not measured."""
    start = count()
    sleep(WAIT)
    if why := busy_with_others(start, (before := count())):
        return None, f"not measured: {why}"
    found = measure(answer, questions, max_new_tokens=max_new_tokens)
    if why := busy_with_others(before, count()):
        return None, f"not measured: {why}"
    return found, "" if found else "not measured: no questions"


def measure(
    answer: Callable[[Sample, int], int],
    questions: Sequence[Sample],
    *,
    max_new_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyModel | None:
    """Times `answer(question, at most this many tokens) -> tokens written` on `questions`; None without questions.

    The first question is answered once untimed, so that one-time costs (allocation, kernels) do not count.
    """
    if not questions:
        return None
    answer(questions[0], 2)
    first: list[float] = []
    further: list[float] = []
    whole: list[tuple[float, int]] = []  # milliseconds and tokens
    began = clock()
    for question in questions:
        start = clock()
        if parted := len(first) < PARTED:
            answer(question, 1)
        middle = clock()
        tokens = answer(question, max_new_tokens)
        end = clock()
        whole.append(((end - middle) * 1000, tokens))
        if parted:
            first.append((middle - start) * 1000)
            if tokens > 1:
                further.append(max(0.0, (end - middle) - (middle - start)) * 1000 / (tokens - 1))
        if len(whole) >= FEWEST and end - began > SECONDS:
            break
    return _model(median(first), median(further) if further else 0.0, whole)


def _model(base_ms: float, per_token_ms: float, whole: Sequence[tuple[float, int]]) -> LatencyModel:
    """Quantiles are order statistics (measured times, not interpolated), so 40 times are enough for a p95."""

    def quantile(values: Sequence[float], percent: int) -> float | None:
        if len(values) < ENOUGH.get(percent, 1):
            return None
        return float(np.quantile(values, percent / 100, method="higher"))

    times = [time for time, _ in whole]
    plain = LatencyModel(base_ms, per_token_ms, len(whole), float(np.quantile(times, 0.5)))
    ratios = [time / plain.estimate(tokens) for time, tokens in whole if plain.estimate(tokens) > 0]
    return LatencyModel(
        base_ms,
        per_token_ms,
        len(whole),
        p50_ms=plain.p50_ms,
        p95_ms=quantile(times, 95),
        p99_ms=quantile(times, 99),
        slow=quantile(ratios, 95),
    )
