"""Have the pictures changed? A kernel two-sample test of frozen features: all frames, and each cell, camera and SKU.

The statistic is the squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance (MMD;
Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012). Its p is that of a permutation test that exchanges
whole scenes, since frames of one scene are alike: where nothing has changed, p is at most a with a probability of at
most a, for any number of scenes. Holm's correction over all tests keeps the probability of any false alarm at the level
that is asked.

Shapes: N frames before, M after, I features, P permutations, S scenes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lineside.hashing import stable_hash
from lineside.judgement import stats

MOST = 1000  # frames of each side that a test looks at; more are drawn by hash
PERMUTATIONS = 999  # at least; more for many tests, since the least p of a test is 1 / (1 + permutations)
AT_ONCE = 1000  # permutations, or frames, of one matrix product
ROUNDING = 1e-12  # of the squared lengths of two frames: a squared distance below it is 0
LEAST_SCENES = 5  # of each side, for a test
EVERYTHING = "all frames"

FloatArray = NDArray[np.float64]
Groups = Mapping[str, Sequence[str]]  # a frame's values by column


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame as the test sees it."""

    id: str
    scene: str
    groups: Groups


@dataclass(frozen=True, slots=True)
class Test:
    """Whether the frames of a group have changed. `column` and `value` name it; both "" for all frames.

    `p` is corrected for the number of tests. `size`: the MMD over the same for a random exchange, in standard
    deviations: which of several alarms is the largest.
    """

    column: str
    value: str
    before: int
    after: int
    scenes: tuple[int, int]
    p: float
    size: float
    alarm: bool

    @property
    def name(self) -> str:
        """The group for people."""
        return f"{self.column} {self.value}" if self.column else EVERYTHING


@dataclass(frozen=True, slots=True)
class Drift:
    """The tests, the largest change first; values that only appear after; values with too few scenes to test."""

    tests: tuple[Test, ...]
    new: tuple[tuple[str, str, int], ...]
    untested: tuple[tuple[str, str], ...]

    @property
    def alarms(self) -> list[Test]:
        """The groups that have changed."""
        return [test for test in self.tests if test.alarm]


def drift(
    before: Sequence[Shot],
    before_NI: NDArray[np.float32],
    after: Sequence[Shot],
    after_MI: NDArray[np.float32],
    *,
    columns: Sequence[str] = (),
    level: float = 0.05,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Drift:
    """Test all frames, and those of each value of `columns` that both sides have. `level`: the probability of any false
    alarm. Raises ValueError if a side has fewer than `LEAST_SCENES` scenes."""
    groups: list[tuple[str, str, list[int], list[int]]] = [("", "", [*range(len(before))], [*range(len(after))])]
    new: list[tuple[str, str, int]] = []
    untested: list[tuple[str, str]] = []
    for column in columns:
        first, second = _by_value(before, column), _by_value(after, column)
        new += [(column, value, len(places)) for value, places in second.items() if value not in first]
        for value in first.keys() & second.keys():
            places = first[value], second[value]
            enough = all(_scenes(side, some) >= LEAST_SCENES for side, some in zip((before, after), places))
            if not enough:
                untested.append((column, value))
            elif (len(places[0]), len(places[1])) != (len(before), len(after)):  # else it is all frames
                groups.append((column, value, *places))
    if min(_scenes(side, range(len(side))) for side in (before, after)) < LEAST_SCENES:
        raise ValueError(f"a test needs {LEAST_SCENES} scenes of each side")
    permutations = max(permutations, math.ceil(2 * len(groups) / level))  # so that Holm's correction leaves an alarm
    found = []
    for column, value, here, there in groups:
        here, there = (_some(side, places, seed) for side, places in ((before, here), (after, there)))
        features = np.concatenate([before_NI[here], after_MI[there]]).astype(np.float64)
        scenes = [f"before {before[i].scene}" for i in here] + [f"after {after[i].scene}" for i in there]
        p, size = two_sample(features, scenes, len(here), permutations=permutations, seed=seed)
        found.append((column, value, here, there, p, size))
    corrected = stats.holm([p for *_, p, _ in found])
    tests = [
        Test(column, value, len(here), len(there), (_scenes(before, here), _scenes(after, there)), p, size, p <= level)
        for (column, value, here, there, _, size), p in zip(found, corrected)
    ]
    tests.sort(key=lambda test: (test.column != "", test.p, -test.size, test.column, test.value))
    return Drift(tuple(tests), tuple(sorted(new)), tuple(sorted(untested)))


def two_sample(
    features: FloatArray, scenes: Sequence[str], first: int, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """(p, size) of the change between the `first` rows of (N + M, I) features and the others. No scene is on both
    sides."""
    kernel = _kernel(features)
    names, scene = np.unique(np.asarray(scenes), return_inverse=True)
    # The sums of the kernel over the frames of two scenes.
    kernel_SS = _summed(_summed(kernel, scene, len(names)).T, scene, len(names))
    count_S = np.bincount(scene, minlength=len(names)).astype(np.float64)
    after_S = np.zeros(len(names), bool)
    after_S[scene[first:]] = True
    rng = np.random.default_rng(seed)
    observed = _mmd(kernel_SS, count_S, after_S[None])[0]
    others = np.concatenate(
        [
            _mmd(kernel_SS, count_S, rng.permuted(np.tile(after_S, (min(AT_ONCE, permutations - start), 1)), axis=1))
            for start in range(0, permutations, AT_ONCE)
        ]
    )
    p = (1 + int((others >= observed - 1e-12).sum())) / (1 + permutations)
    return p, float((observed - others.mean()) / max(others.std(), 1e-12))


def unlike(before_NI: NDArray[np.float32], after_MI: NDArray[np.float32]) -> list[int]:
    """The frames of `after`, those that are least like `before` first: by the witness function of the MMD.

    Each is compared with at most `MOST` of either side, at random, so that memory does not grow with (N + M)^2.
    """
    rng = np.random.default_rng(0)
    some = [side[rng.permutation(len(side))[:MOST]].astype(np.float64) for side in (before_NI, after_MI)]
    seen, first = np.concatenate(some), len(some[0])
    width = _width(_distances(seen, seen))
    witness = []
    for start in range(0, len(after_MI), AT_ONCE):
        kernel = np.exp(-_distances(after_MI[start : start + AT_ONCE].astype(np.float64), seen) / width)
        witness.append(kernel[:, first:].mean(1) - kernel[:, :first].mean(1))
    return np.argsort(-np.concatenate(witness), kind="stable").tolist()


def _mmd(kernel_SS: FloatArray, count_S: FloatArray, after_PS: NDArray[np.bool_]) -> FloatArray:
    """(P,) the squared MMD of each division of the scenes: the mean kernel within each side less that between them."""
    sides = [(~after_PS).astype(np.float64), after_PS.astype(np.float64)]
    weight = [side / (side @ count_S)[:, None] for side in sides]
    difference = weight[0] - weight[1]
    return ((difference @ kernel_SS) * difference).sum(1)


def _kernel(features: FloatArray) -> FloatArray:
    """exp(-|x - y|^2 / m), m the median squared distance of two frames."""
    distance = _distances(features, features)
    return np.exp(-distance / _width(distance))


def _distances(first: FloatArray, second: FloatArray) -> FloatArray:
    """(N, M) squared distances; 0 where they are no more than rounding, so that equal pictures are equal."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None]
    distance = squares - 2 * first @ second.T
    return np.where(distance > ROUNDING * squares, distance, 0.0)


def _width(distance: FloatArray) -> float:
    """The median squared distance of two frames. If most pairs are equal: of those that differ; 1 if all are."""
    pairs = distance[np.triu_indices(len(distance), 1)]
    return float(np.median(pairs) or np.median(pairs[pairs > 0] if pairs.any() else [1.0]))


def _summed(values: FloatArray, scene: NDArray[np.intp], count: int) -> FloatArray:
    """(n, m) values summed over the rows of each scene: (S, m)."""
    out = np.zeros((count, values.shape[1]))
    np.add.at(out, scene, values)
    return out


def _by_value(shots: Sequence[Shot], column: str) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, shot in enumerate(shots):
        for value in dict.fromkeys(shot.groups.get(column, ())):
            found[value].append(place)
    return dict(sorted(found.items()))


def _scenes(shots: Sequence[Shot], places: Sequence[int] | range) -> int:
    return len({shots[place].scene for place in places})


def _some(shots: Sequence[Shot], places: Sequence[int], seed: int) -> list[int]:
    """At most `MOST` frames."""
    return sorted(sorted(places, key=lambda place: stable_hash("drift", seed, shots[place].id))[:MOST])
