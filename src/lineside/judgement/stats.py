"""Rates of a suite and how far to trust them: macro means, intervals and paired differences, by scene.

Questions about one scene share its picture, its light and its clutter, so they are right and wrong together; drawing
questions one by one would pretend to more evidence than there is. Here whole scenes are drawn with replacement
(a cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, ch. 3.8) and every number of a
suite, each task's and the macro mean's, is computed from the same draws.

Shapes: S scenes, K tasks, B bootstrap draws, N questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
DRAWS_AT_ONCE = 256  # bounds the B x S matrix of scene counts
# With fewer scenes than this in which two systems differ, even unanimity has a two-sided sign-test p above 0.05 (2 *
# 0.5**5).
FEWEST_DIFFERING_SCENES = 6

Verdict = Literal["better", "worse", "no difference"]
FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """Bounds of a two-sided interval at `LEVEL`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Sums and counts of the questions' values by scene and task: all that a cluster bootstrap needs to know."""

    scenes: tuple[str, ...]
    tasks: tuple[str, ...]
    total_SK: FloatArray
    count_SK: FloatArray

    @property
    def n(self) -> int:
        """Questions in all."""
        return int(self.count_SK.sum())

    def only(self, tasks: Sequence[str]) -> Outcomes:
        """The same scenes with only these tasks, in this order."""
        columns = [self.tasks.index(task) for task in tasks]
        return Outcomes(self.scenes, tuple(tasks), self.total_SK[:, columns], self.count_SK[:, columns])


def tabulate(scenes: Sequence[str], tasks: Sequence[str], values: Sequence[float]) -> Outcomes:
    """Collects N questions, each with its scene, task and value (1.0 right, 0.0 wrong, or a difference of two such).

    Raises ValueError when the three differ in length or are empty.
    """
    if not len(scenes) == len(tasks) == len(values) or not len(values):
        raise ValueError(f"one scene, task and value a question: got {len(scenes)}, {len(tasks)} and {len(values)}")
    scene_names, scene_N = np.unique(np.asarray(scenes, dtype=object).astype(str), return_inverse=True)
    task_names, task_N = np.unique(np.asarray(tasks, dtype=object).astype(str), return_inverse=True)
    total_SK = np.zeros((len(scene_names), len(task_names)))
    count_SK = np.zeros_like(total_SK)
    np.add.at(total_SK, (scene_N, task_N), np.asarray(values, dtype=np.float64))
    np.add.at(count_SK, (scene_N, task_N), 1.0)
    return Outcomes(tuple(map(str, scene_names)), tuple(map(str, task_names)), total_SK, count_SK)


def task_means(outcomes: Outcomes) -> dict[str, float]:
    """Mean value of each task's questions."""
    mean_K = outcomes.total_SK.sum(0) / outcomes.count_SK.sum(0)
    return dict(zip(outcomes.tasks, map(float, mean_K)))


def macro(outcomes: Outcomes) -> float:
    """Mean over tasks of the tasks' means: each task counts the same however many questions it has."""
    return float(np.mean(list(task_means(outcomes).values())))


@dataclass(frozen=True, slots=True)
class Draws:
    """Task means in B bootstrap draws of the scenes; NaN where a draw holds no question of a task."""

    outcomes: Outcomes
    mean_BK: FloatArray

    def macro(self, tasks: Sequence[str] | None = None) -> Interval:
        """Interval of the macro mean over `tasks` (all of them by default); the values are rates in [0, 1]."""
        tasks = self.outcomes.tasks if tasks is None else tasks
        columns = [self.outcomes.tasks.index(task) for task in tasks]
        return _interval(self.outcomes.only(tasks), _row_means(self.mean_BK[:, columns]))

    def task(self, task: str) -> Interval:
        """Interval of one task's mean."""
        return self.macro([task])


def bootstrap(outcomes: Outcomes, *, seed: int, draws: int = DRAWS) -> Draws:
    """Draws S scenes with replacement `draws` times and computes each task's mean in each draw."""
    generator = np.random.default_rng(seed)
    count = len(outcomes.scenes)
    chunks: list[FloatArray] = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, draws - start)
        weight_BS = generator.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            chunks.append((weight_BS @ outcomes.total_SK) / (weight_BS @ outcomes.count_SK))
    return Draws(outcomes, np.concatenate(chunks))


def _row_means(mean_BK: FloatArray) -> FloatArray:
    """Mean of each row over the tasks its draw holds; rows without any are left out."""
    held_BK = ~np.isnan(mean_BK)
    some_B = held_BK.any(1)
    return np.where(held_BK, mean_BK, 0.0)[some_B].sum(1) / held_BK[some_B].sum(1)


def _interval(outcomes: Outcomes, statistic_B: FloatArray) -> Interval:
    """Percentile interval of the draws, widened where drawing again cannot show any spread.

    One scene says nothing about other scenes. And if every question of S scenes is right (or every one wrong), each
    draw repeats that, while the exact binomial bound for S scenes (Clopper and Pearson, 1934) still allows for some
    that differ.
    """
    touched = int((outcomes.count_SK.sum(1) > 0).sum())
    if touched <= 1:
        return Interval(0.0, 1.0)
    tail = (1.0 - LEVEL) / 2
    if np.array_equal(outcomes.total_SK, outcomes.count_SK):
        return Interval(tail ** (1.0 / touched), 1.0)
    if not outcomes.total_SK.any():
        return Interval(0.0, 1.0 - tail ** (1.0 / touched))
    low, high = np.quantile(statistic_B, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference (second less first) on common questions, macro over tasks."""

    n: int
    scenes: int
    differing_scenes: int
    difference: float
    interval: Interval
    first: float
    second: float

    @property
    def verdict(self) -> Verdict:
        """`better`, `worse` or `no difference` of the second against the first: the interval must be clear of 0."""
        if self.differing_scenes >= FEWEST_DIFFERING_SCENES:
            if self.interval.low > 0:
                return "better"
            if self.interval.high < 0:
                return "worse"
        return "no difference"


def paired(
    scenes: Sequence[str],
    tasks: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Difference:
    """Compares two systems question by question. `first` and `second` are values of the same N questions, in order."""
    if len(first) != len(second):
        raise ValueError(f"paired values differ in length: {len(first)} and {len(second)}")
    difference_N = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    outcomes = tabulate(scenes, tasks, difference_N.tolist())
    differing = len({scene for scene, value in zip(scenes, difference_N) if value != 0})
    statistic_B = _row_means(bootstrap(outcomes, seed=seed, draws=draws).mean_BK)
    low, high = np.quantile(statistic_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        n=len(difference_N),
        scenes=len(outcomes.scenes),
        differing_scenes=differing,
        difference=macro(outcomes),
        interval=Interval(-1.0, 1.0) if len(outcomes.scenes) == 1 else Interval(float(low), float(high)),
        first=macro(tabulate(scenes, tasks, first)),
        second=macro(tabulate(scenes, tasks, second)),
    )


class CurvePoint(NamedTuple):
    """Answering only the questions with confidence at least `threshold`: their share, and their accuracy."""

    coverage: float
    accuracy: float
    threshold: float


def risk_coverage(
    tasks: Sequence[str], confidence: Sequence[float], exact: Sequence[bool], *, points: int = 40
) -> list[CurvePoint]:
    """Accuracy of the answers a cell would still act on when it refuses the less confident ones (and asks a person).

    Each question weighs so that every task weighs the same, so that the curve ends at coverage 1 in the suite's macro
    mean. Questions of equal confidence are taken together: a threshold cannot part them. At most `points` points.
    """
    names, task_N, count_K = np.unique(np.asarray(tasks), return_inverse=True, return_counts=True)
    weight_N = 1.0 / (len(names) * count_K[task_N])
    confidence_N = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(-confidence_N, kind="stable")
    covered_N = np.cumsum(weight_N[order])
    right_N = np.cumsum((weight_N * np.asarray(exact, dtype=np.float64))[order])
    sorted_N = confidence_N[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(sorted_N) != 0, True))
    if len(last_of_tie) > points:
        wanted = np.linspace(1.0 / points, 1.0, points)
        nearest = np.minimum(np.searchsorted(covered_N[last_of_tie], wanted - 1e-9), len(last_of_tie) - 1)
        last_of_tie = last_of_tie[np.unique(nearest)]
    return [
        CurvePoint(float(min(1.0, covered_N[i])), float(right_N[i] / covered_N[i]), float(sorted_N[i]))
        for i in last_of_tie
    ]


def mean_risk(curve: Sequence[CurvePoint]) -> float:
    """Area under the risk-coverage curve: the error rate averaged over all coverages (lower is better; trapezoids)."""
    coverage = np.array([0.0, *(point.coverage for point in curve)])
    risk = 1.0 - np.array([curve[0].accuracy, *(point.accuracy for point in curve)])
    return float(np.sum(np.diff(coverage) * (risk[1:] + risk[:-1]) / 2))
