"""Rates of a suite and their uncertainty: macro means, intervals and paired differences, by scene.

Questions about one scene share its picture, light and clutter, so they are right and wrong together. Drawing questions
one by one would overstate the evidence. Here whole scenes are drawn with replacement (a cluster bootstrap: Davison and
Hinkley, Bootstrap Methods and their Application, 1997, ch. 3.8), and every number of a suite, each task's and the macro
mean's, is computed from the same draws. A paired difference, on which a gate decides, has bounds that also hold with
few scenes (`paired`) and a test for harm (`PairedDraws.harm`).

Shapes: S scenes, K tasks, B bootstrap draws, N questions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
DRAWS_AT_ONCE = 256  # limits the B x S matrix of scene counts
PAIRED_DRAWS = 10_000  # for a paired difference, on which a gate decides
ENUMERATED = 13  # up to this many differing scenes all exchanges are counted: 8,192 of them
POWER = 0.8  # power that `scenes_for` plans for

FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """Bounds of a two-sided interval at `LEVEL`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Sums and counts of the questions' values by scene and task, which is all that a cluster bootstrap needs."""

    scenes: tuple[str, ...]
    tasks: tuple[str, ...]
    total_SK: FloatArray
    count_SK: FloatArray

    @property
    def n(self) -> int:
        """Questions in all."""
        return int(self.count_SK.sum())

    @property
    def differs_S(self) -> NDArray[np.bool_]:
        """Scenes with a value other than 0 in any task's sum."""
        return (self.total_SK != 0).any(1)

    def only(self, tasks: Sequence[str]) -> Outcomes:
        """The same scenes with only these tasks, in this order."""
        columns = [self.tasks.index(task) for task in tasks]
        return Outcomes(self.scenes, tuple(tasks), self.total_SK[:, columns], self.count_SK[:, columns])


def tabulate(scenes: Sequence[str], tasks: Sequence[str], values: Sequence[float]) -> Outcomes:
    """Collects N questions, each with its scene, task and value (1.0 right, 0.0 wrong, or the difference of two).

    Raises ValueError when the three differ in length or are empty.
    """
    if not len(scenes) == len(tasks) == len(values) or not len(values):
        raise ValueError(f"one scene, task and value a question: got {len(scenes)}, {len(tasks)} and {len(values)}")
    (scene_names, scene_N), (task_names, task_N) = _numbered(scenes), _numbered(tasks)
    total_SK = np.zeros((len(scene_names), len(task_names)))
    count_SK = np.zeros_like(total_SK)
    np.add.at(total_SK, (scene_N, task_N), np.asarray(values, dtype=np.float64))
    np.add.at(count_SK, (scene_N, task_N), 1.0)
    return Outcomes(tuple(map(str, scene_names)), tuple(map(str, task_names)), total_SK, count_SK)


def _numbered(names: Sequence[str]) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """The different names in order, and the place of each of the N among them."""
    return np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)


def task_means(outcomes: Outcomes) -> dict[str, float]:
    """Mean value of each task's questions."""
    mean_K = outcomes.total_SK.sum(0) / outcomes.count_SK.sum(0)
    return dict(zip(outcomes.tasks, map(float, mean_K)))


def macro(outcomes: Outcomes) -> float:
    """Mean over tasks of the tasks' means: each task has the same weight, with any number of questions."""
    return float(np.mean(list(task_means(outcomes).values())))


@dataclass(frozen=True, slots=True)
class Draws:
    """Task means in B bootstrap draws of the scenes; NaN if a draw holds no question of a task."""

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
    for size in _chunks(draws):
        weight_BS = generator.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            chunks.append((weight_BS @ outcomes.total_SK) / (weight_BS @ outcomes.count_SK))
    return Draws(outcomes, np.concatenate(chunks))


def _chunks(draws: int) -> list[int]:
    """Sizes of at most `DRAWS_AT_ONCE` that sum to `draws`."""
    return [min(DRAWS_AT_ONCE, draws - start) for start in range(0, draws, DRAWS_AT_ONCE)]


def _row_means(mean_BK: FloatArray) -> FloatArray:
    """Mean of each row over the tasks in its draw; rows without tasks are left out."""
    held_BK = ~np.isnan(mean_BK)
    some_B = held_BK.any(1)
    return np.where(held_BK, mean_BK, 0.0)[some_B].sum(1) / held_BK[some_B].sum(1)


def _interval(outcomes: Outcomes, statistic_B: FloatArray) -> Interval:
    """Percentile interval of the draws, widened where the bootstrap cannot show any spread.

    One scene says nothing about other scenes. If every question of S scenes is right (or every one wrong), all draws
    are equal, but the exact binomial bound for S scenes (Clopper and Pearson, 1934) still allows for some that differ.
    """
    touched = int((outcomes.count_SK.sum(1) > 0).sum())
    if touched <= 1:
        return Interval(0.0, 1.0)
    tail = (1.0 - LEVEL) / 2
    if np.array_equal(outcomes.total_SK, outcomes.count_SK):
        return Interval(tail ** (1.0 / touched), 1.0)
    if not outcomes.total_SK.any():
        return Interval(0.0, 1.0 - tail ** (1.0 / touched))
    return _percentiles(statistic_B)


def _percentiles(statistic_B: FloatArray) -> Interval:
    """The interval that leaves out as many draws below as above."""
    tail = (1.0 - LEVEL) / 2
    low, high = np.quantile(statistic_B, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def binomial(share: float, count: int) -> Interval:
    """Interval of a share of `count` independent questions (Wilson, 1927). With 0 of 4 right it is 0 to 49%. It holds
    the share itself, which rounding could leave out where none or all are right."""
    z = NormalDist().inv_cdf((1.0 + LEVEL) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return Interval(min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


class Mean(NamedTuple):
    """A weighted mean and its interval."""

    value: float
    interval: Interval


def weighted_means(
    scenes: Sequence[str],
    values: Sequence[Sequence[float]],
    weights: Sequence[float],
    *,
    highest: Sequence[float],
    seed: int,
    draws: int = DRAWS,
) -> list[Mean]:
    """Weighted means of V values (N x V) of N questions, each value between 0 and its `highest`.

    The bounds are those of `paired`: a Bayesian bootstrap by scene with one more, unseen scene, in which every value is
    0 for the lower bound and `highest` for the upper one. So "no false pass in 14 scenes" has the upper bound
    1 - 0.025^(1/14) = 23% (Clopper and Pearson, 1934); a plain bootstrap would give 0. Scenes of weight 0 count for
    nothing. Raises ValueError unless some weight is above 0.
    """
    weight_N = np.asarray(weights, dtype=np.float64)
    if not weight_N.sum() > 0:
        raise ValueError("the weights sum to 0: a mean is not defined")
    value_NV, highest_V = np.asarray(values, dtype=np.float64), np.asarray(highest, dtype=np.float64)
    names, scene_N = _numbered(scenes)
    total_SV, count_S = np.zeros((len(names), value_NV.shape[1])), np.zeros(len(names))
    np.add.at(total_SV, scene_N, value_NV * weight_N[:, None])
    np.add.at(count_S, scene_N, weight_N)
    total_SV, count_S = total_SV[count_S > 0], count_S[count_S > 0]
    generator = np.random.default_rng(seed)
    low_BV, high_BV = [], []
    for size in _chunks(draws):
        share_BS = generator.standard_exponential((size, len(count_S)))
        unseen_B = generator.standard_exponential(size) * count_S[generator.integers(len(count_S), size=size)]
        total_BV, all_B1 = share_BS @ total_SV, (share_BS @ count_S + unseen_B)[:, None]
        low_BV.append(total_BV / all_B1)
        high_BV.append((total_BV + unseen_B[:, None] * highest_V) / all_B1)
    tail = (1.0 - LEVEL) / 2
    low_V, high_V = np.quantile(np.concatenate(low_BV), tail, 0), np.quantile(np.concatenate(high_BV), 1.0 - tail, 0)
    mean_V = np.clip(total_SV.sum(0) / count_S.sum(), 0.0, highest_V)
    return [
        Mean(float(mean), Interval(float(min(low, mean)), float(min(max(high, mean), most))))
        for mean, low, high, most in zip(mean_V, low_V, high_V, highest_V)
    ]


def share(scenes: Sequence[str], true: Sequence[bool], *, seed: int) -> Mean:
    """The share of true values, one a question, with the interval of `weighted_means`."""
    (mean,) = weighted_means(scenes, [[one] for one in true], [1.0] * len(true), highest=[1.0], seed=seed)
    return mean


def ratio(
    scenes: Sequence[str], above: Sequence[float], below: Sequence[float], *, seed: int, draws: int = DRAWS
) -> Mean:
    """Sum of `above` over sum of `below`, both of the same N texts or questions, in order.

    The interval is that of a Bayesian bootstrap by scene (Rubin, 1981). The sum of `below` must be above 0 in every
    scene.
    """
    names, scene_N = _numbered(scenes)
    above_S, below_S = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(above_S, scene_N, np.asarray(above, dtype=np.float64))
    np.add.at(below_S, scene_N, np.asarray(below, dtype=np.float64))
    generator = np.random.default_rng(seed)
    ratio_B: list[FloatArray] = []
    for size in _chunks(draws):
        weight_BS = generator.standard_exponential((size, len(names)))
        ratio_B.append((weight_BS @ above_S) / (weight_BS @ below_S))
    return Mean(float(above_S.sum() / below_S.sum()), _percentiles(np.concatenate(ratio_B)))


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference (second minus first) on common questions, macro over tasks."""

    n: int
    scenes: int
    differing_scenes: int
    difference: float
    interval: Interval
    first: float
    second: float
    spread: float  # standard deviation of the difference by scene: its standard error is spread / sqrt(scenes)


@dataclass(frozen=True, slots=True)
class PairedDraws:
    """Two systems' values of the same questions, and B draws of the scenes' weights. Made by `paired`."""

    first: Outcomes
    second: Outcomes
    change: Outcomes  # second minus first
    total_BK: FloatArray  # of `change`, weighted
    count_BK: FloatArray
    unseen_B: FloatArray  # weight of the unseen scene
    seed: int

    def difference(self, tasks: Sequence[str] | None = None) -> Difference:
        """Macro over `tasks` (all by default), from the scenes with any of them."""
        tasks = self.change.tasks if tasks is None else tasks
        change = self.change.only(tasks)
        held = change.count_SK.sum(1) > 0
        scenes = int(held.sum())
        columns = [self.change.tasks.index(task) for task in tasks]
        total_BK, count_BK = self.total_BK[:, columns], self.count_BK[:, columns]
        like_B = np.random.default_rng((self.seed, 1)).integers(scenes, size=len(self.unseen_B))
        unseen_BK = self.unseen_B[:, None] * change.count_SK[held][like_B]
        lost_B = ((total_BK - unseen_BK) / (count_BK + unseen_BK)).mean(1)
        gained_B = ((total_BK + unseen_BK) / (count_BK + unseen_BK)).mean(1)
        tail = (1.0 - LEVEL) / 2
        return Difference(
            n=change.n,
            scenes=scenes,
            differing_scenes=int(change.differs_S.sum()),
            difference=macro(change),
            interval=Interval(
                *np.clip([np.quantile(lost_B, tail), np.quantile(gained_B, 1.0 - tail)], -1.0, 1.0).tolist()
            ),
            first=macro(self.first.only(tasks)),
            second=macro(self.second.only(tasks)),
            spread=float(np.std((total_BK / count_BK).mean(1)) * scenes**0.5),
        )

    def harm(self, tasks: Sequence[str] | None = None, *, draws: int = PAIRED_DRAWS) -> float:
        """One-sided p of the hypothesis that the second is not worse than the first, macro over `tasks`.

        A sign-flip permutation test (Fisher, 1935; Good, Permutation, Parametric and Bootstrap Tests, 2005, ch. 3): if
        the two systems are equally good, their answers in any whole scene can be exchanged. The p is the share of
        exchanges with a difference as low as the observed one. The test is exact for any number of scenes: with one
        question a scene it is McNemar's exact test; five lost scenes have p = 1/32. Up to `ENUMERATED` differing scenes
        every exchange is counted; above that `draws` random ones and the observed one (which keeps the test valid:
        Phipson and Smyth, 2010).
        """
        change = self.change if tasks is None else self.change.only(tasks)
        change_SK = change.total_SK / change.count_SK.sum(0) / len(change.tasks)
        change_S = change_SK[change.differs_S].sum(1)
        count = len(change_S)
        observed = change_S.sum() + 1e-12  # the order of a sum changes its last digits
        if count <= ENUMERATED:
            flipped = np.arange(2**count)[:, None] >> np.arange(count) & 1
            return float(np.mean((1 - 2 * flipped) @ change_S <= observed))
        generator = np.random.default_rng((self.seed, 2))
        as_low = 1
        for size in _chunks(draws):
            sign_BS = 1 - 2 * generator.integers(2, size=(size, count), dtype=np.int8)
            as_low += int((sign_BS @ change_S <= observed).sum())
        return as_low / (draws + 1)


def paired(
    scenes: Sequence[str],
    tasks: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int,
    draws: int = PAIRED_DRAWS,
) -> PairedDraws:
    """Compares two systems question by question. `first` and `second` are values of the same N questions, in order.

    Intervals come from a Bayesian bootstrap by scene (Rubin, 1981): each draw weights the scenes by independent
    exponential numbers. A plain bootstrap only repeats what it has seen. From five scenes that all went from right to
    wrong it gives -100 points with certainty, from equal answers that the systems never differ, and it passes a system
    that fails in 3% of the scenes whenever none of these is in the sample. So each draw has one more scene, as large as
    one of the others, which is unseen: for the lower bound every question in it is lost, for the upper bound every
    question in it is gained (Gaffke's bound: Learned-Miller and Thomas, "A New Confidence Interval for the Mean of a
    Bounded Random Variable", arXiv 1905.06208). Where all scenes agree this is the exact binomial bound of Clopper and
    Pearson (1934): the interval excludes 0 from six scenes on that all changed in one direction, exactly as in the
    two-sided sign test. With many scenes the additional one has little weight.

    Raises ValueError for lists of different lengths or without questions.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values differ in length: {len(first)} and {len(second)}")
    change = tabulate(scenes, tasks, [float(b) - float(a) for a, b in zip(first, second)])
    generator = np.random.default_rng(seed)
    totals: list[FloatArray] = []
    counts: list[FloatArray] = []
    for size in _chunks(draws):
        weight_BS = generator.standard_exponential((size, len(change.scenes)))
        totals.append(weight_BS @ change.total_SK)
        counts.append(weight_BS @ change.count_SK)
    return PairedDraws(
        first=tabulate(scenes, tasks, first),
        second=tabulate(scenes, tasks, second),
        change=change,
        total_BK=np.concatenate(totals),
        count_BK=np.concatenate(counts),
        unseen_B=generator.standard_exponential(draws),
        seed=seed,
    )


def gap_recovered(
    scenes: Sequence[str],
    tasks: Sequence[str],
    *,
    base: Sequence[float],
    better: Sequence[float],
    ceiling: Sequence[float],
    seed: int,
    draws: int = PAIRED_DRAWS,
) -> Mean | None:
    """(better - base) / (ceiling - base), macro over tasks: how much of what `base` lacks to `ceiling` is made good by
    `better` (the "performance gap recovered" of Burns et al., Weak-to-Strong Generalization, arXiv 2312.09390).

    The three hold values of the same N questions, in order. The interval is that of the ratio in a Bayesian bootstrap
    by scene (Rubin, 1981). None if the gap itself is not clear of 0: the ratio then has no meaning. Raises ValueError
    for lists of different lengths or without questions.
    """
    gap = paired(scenes, tasks, base, ceiling, seed=seed, draws=draws)
    gained = paired(scenes, tasks, base, better, seed=seed, draws=draws)  # the same draws
    if gap.difference().interval.low <= 0:
        return None
    ratio_B = (gained.total_BK / gained.count_BK).mean(1) / (gap.total_BK / gap.count_BK).mean(1)
    return Mean(macro(gained.change) / macro(gap.change), _percentiles(ratio_B))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Adjusted p, in order. The probability that any true hypothesis has one at or below 5% is at most 5% (Holm,
    1979).
    """
    adjusted = [0.0] * len(probabilities)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(probabilities)), key=lambda i: probabilities[i])):
        highest = max(highest, min(1.0, (len(probabilities) - rank) * probabilities[place]))
        adjusted[place] = highest
    return adjusted


def scenes_for(spread: float, margin: float) -> int:
    """Scenes with which `paired`'s lower bound lies at or above -margin with probability `POWER`, if the two systems
    are equally good and `spread` (see `Difference`) stays as it is.

    With spread 0 it is the exact binomial count: 122 scenes for a margin of 0.03. Raises ValueError for a margin that
    is not above 0: equally good systems pass that with probability 2.5%, with any number of scenes.
    """
    if margin <= 0:
        raise ValueError(f"margin {margin}: expected a share above 0")
    generator = np.random.default_rng(0)
    normal_B, unseen_B = generator.standard_normal(20_000), generator.standard_exponential(20_000)
    above = NormalDist().inv_cdf(POWER)

    def enough(scenes: int) -> bool:
        """The lower bound of the difference is about normal, with one additional lost scene; see `paired`."""
        low = np.quantile(normal_B * spread / scenes**0.5 - unseen_B / scenes, (1.0 - LEVEL) / 2)
        return low - above * spread / scenes**0.5 >= -margin

    high = 1
    while not enough(high):
        high *= 2
    return bisect_left(range(high + 1), True, lo=1, key=enough)


class CurvePoint(NamedTuple):
    """Answering only the questions with confidence at least `threshold`: their share, and their accuracy."""

    coverage: float
    accuracy: float
    threshold: float


def risk_coverage(
    tasks: Sequence[str], confidence: Sequence[float], exact: Sequence[bool], *, points: int = 40
) -> list[CurvePoint]:
    """Accuracy of the answers on which a cell still acts if it refuses the less confident ones (and asks a person).

    Questions are weighted so that all tasks have the same weight; at coverage 1 the curve equals the suite's macro
    mean. Questions of equal confidence stay together, because no threshold separates them. At most `points` points.
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
