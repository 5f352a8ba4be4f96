"""How long one question takes alone, which is how a cell asks it.

A suite is answered in batches, so its wall time says nothing about one question's. A few questions, spread over the
tasks, are therefore timed one by one with nothing cached (encoder included): once stopped after the first token, once
to the end. The medians of both give base and per-token time, from which every row's time is estimated. Medians, since
the machine may be shared.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

from lineside.types import Sample

QUESTIONS = 24
SECONDS = 30.0  # measuring stops here; a slow machine measures fewer questions
FEWEST = 4


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """`base_ms` for the first token (encode and prefill included), `per_token_ms` for each further one."""

    base_ms: float
    per_token_ms: float
    measured: int

    def estimate(self, tokens: int) -> float:
        """Milliseconds for a response of `tokens` tokens, end token included."""
        return self.base_ms + self.per_token_ms * max(0, tokens - 1)


def spread(questions: Sequence[Sample], count: int = QUESTIONS) -> list[Sample]:
    """`count` questions, tasks in turn, within a task in an order fixed by the questions' ids."""
    by_task: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in sorted(questions, key=lambda s: hashlib.sha256(s.id.encode()).digest()):
        by_task[sample.family, sample.task].append(sample)
    turns = zip_longest(*(by_task[task] for task in sorted(by_task)))
    return [sample for turn in turns for sample in turn if sample is not None][:count]


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
    began = clock()
    for question in questions:
        start = clock()
        answer(question, 1)
        middle = clock()
        tokens = answer(question, max_new_tokens)
        end = clock()
        first.append((middle - start) * 1000)
        if tokens > 1:
            further.append(max(0.0, (end - middle) - (middle - start)) * 1000 / (tokens - 1))
        if len(first) >= FEWEST and end - began > SECONDS:
            break
    return LatencyModel(median(first), median(further) if further else 0.0, len(first))
