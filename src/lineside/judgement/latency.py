"""How long one question takes alone, which is how a cell asks it; or why that was not measured.

A suite is answered in batches, so its wall time says nothing about one question's. Questions spread over the tasks are
therefore timed one by one with nothing cached (encoder included). The quantiles are those of these times. Some of the
questions are timed once more, stopped after the first token, which parts a base from a time per token: every other
row's time is estimated from these two medians.

A time on a busy machine says how busy it was. So nothing is measured unless the machine is idle but for this process:
before, while this process waits, and over the whole measurement, by the kernel's count of processor time (proc(5),
/proc/stat; time stolen by a hypervisor counts as well).
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
PARTED = 24  # of them, timed to the first token as well
SECONDS = 45.0  # measuring stops here; a slow machine measures fewer questions
FEWEST = 4
ENOUGH = {95: 40, 99: 100}  # questions without which a percentile is not told
WAIT = 0.3  # seconds for which the machine is watched beforehand
OTHERS, STOLEN = 0.05, 0.01  # of all processor time: above these a machine is busy


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
        """Milliseconds within which 95 of 100 such responses are there; None where too few were measured."""
        return None if self.slow is None else self.slow * self.estimate(tokens)


class ProcessorTime(NamedTuple):
    """Seconds of all processors since boot: in work, stolen by a hypervisor, in all; and those of this process."""

    busy: float
    stolen: float
    total: float
    own: float


def processor_time() -> ProcessorTime | None:
    """As the kernel counts it now; None on a system that does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
        user, nice, system, idle, waiting, interrupts, soft, stolen = (int(field) for field in fields)
    except (OSError, ValueError, IndexError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    busy, mine = user + nice + system + interrupts + soft, os.times()
    return ProcessorTime(
        busy / ticks, stolen / ticks, (busy + stolen + idle + waiting) / ticks, mine.user + mine.system
    )


def busy_with_others(before: ProcessorTime | None, after: ProcessorTime | None) -> str:
    """Why a measurement between two counts would tell of other work, "" if the machine was idle but for this process.

    Worked: 100 s of all processors, 50 s in work of which this process had 49: others had 1%, which is idle.
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
    """`count` questions, tasks in turn, within a task in an order fixed by the questions' ids."""
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

    The first question is answered once untimed, so that one-time costs (allocation, kernels) are not a question's.
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
    """Quantiles are order statistics (none between two measured times is made up), so that 40 times hold a p95."""

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
