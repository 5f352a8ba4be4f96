"""Have the pictures changed? A kernel two-sample test of frozen features: all frames, and each cell, camera and SKU.

The statistic is the squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance (MMD;
Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012). Its p is that of a permutation test that exchanges
whole scenes, since frames of one scene are alike: where nothing has changed, p is at most a with a probability of at
most a, for any number of scenes. Holm's correction over all tests keeps the probability of any false alarm at the level
that is asked.

Shapes: N frames before, M after, I features, P permutations, S scenes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lineside.hashing import stable_hash
from lineside.judgement import stats

MOST = 1000  # frames of each side that a test looks at; more are drawn by hash
PERMUTATIONS = 999
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
            if enough and len(first) > 1:
                groups.append((column, value, *places))
            elif not enough:
                untested.append((column, value))
    if min(_scenes(side, range(len(side))) for side in (before, after)) < LEAST_SCENES:
        raise ValueError(f"a test needs {LEAST_SCENES} scenes of each side")
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
    tests.sort(key=lambda test: (test.column != "", test.p, -test.size, test.value))
    return Drift(tuple(tests), tuple(sorted(new)), tuple(sorted(untested)))


def two_sample(
    features: FloatArray, scenes: Sequence[str], first: int, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """(p, size) of the change between the `first` rows of (N + M, I) features and the others. No scene is on both
    sides."""
    kernel = _kernel(features)
    names, scene = np.unique(np.asarray(scenes), return_inverse=True)
    kernel_SS = np.zeros((len(names), len(scene)))
    np.add.at(kernel_SS, scene, kernel)
    kernel_SS = _summed(kernel_SS.T, scene, len(names))  # the sums of the kernel over the frames of two scenes
    count_S = np.bincount(scene, minlength=len(names)).astype(np.float64)
    after_S = np.zeros(len(names), bool)
    after_S[scene[first:]] = True
    rng = np.random.default_rng(seed)
    drawn_PS = np.array([rng.permutation(after_S) for _ in range(permutations)])
    statistic = _mmd(kernel_SS, count_S, np.concatenate([after_S[None], drawn_PS]))
    observed, others = statistic[0], statistic[1:]
    p = (1 + int((others >= observed - 1e-12).sum())) / (1 + permutations)
    return p, float((observed - others.mean()) / max(others.std(), 1e-12))


def unlike(before_NI: NDArray[np.float32], after_MI: NDArray[np.float32]) -> list[int]:
    """The frames of `after`, those that are least like `before` first: by the witness function of the MMD."""
    features = np.concatenate([before_NI, after_MI]).astype(np.float64)
    kernel, first = _kernel(features), len(before_NI)
    witness = kernel[first:, first:].mean(1) - kernel[first:, :first].mean(1)
    return np.argsort(-witness, kind="stable").tolist()


def _mmd(kernel_SS: FloatArray, count_S: FloatArray, after_PS: NDArray[np.bool_]) -> FloatArray:
    """(P,) the squared MMD of each division of the scenes: the mean kernel within each side less that between them."""
    sides = [(~after_PS).astype(np.float64), after_PS.astype(np.float64)]
    weight = [side / (side @ count_S)[:, None] for side in sides]
    difference = weight[0] - weight[1]
    return ((difference @ kernel_SS) * difference).sum(1)


def _kernel(features: FloatArray) -> FloatArray:
    """exp(-|x - y|^2 / m), m the median squared distance of two frames."""
    square = (features**2).sum(1)
    distance = np.maximum(square[:, None] + square[None] - 2 * features @ features.T, 0.0)
    middle = np.median(distance[np.triu_indices(len(distance), 1)])
    return np.exp(-distance / (middle or 1.0))


def _summed(values: FloatArray, scene: NDArray[np.intp], count: int) -> FloatArray:
    """(n, S) values summed over the rows of each scene: (S, S)."""
    out = np.zeros((count, values.shape[1]))
    np.add.at(out, scene, values)
    return out


def _by_value(shots: Sequence[Shot], column: str) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, shot in enumerate(shots):
        for value in shot.groups.get(column, ()):
            found[value].append(place)
    return dict(sorted(found.items()))


def _scenes(shots: Sequence[Shot], places: Sequence[int] | range) -> int:
    return len({shots[place].scene for place in places})


def _some(shots: Sequence[Shot], places: Sequence[int], seed: int) -> list[int]:
    """At most `MOST` frames."""
    return sorted(sorted(places, key=lambda place: stable_hash("drift", seed, shots[place].id))[:MOST])
