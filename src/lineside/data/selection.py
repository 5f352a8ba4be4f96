"""What to label next: frames that stand for many others, are unlike what is labelled, and balance the columns.

Frames are chosen one after another. Of those whose values have the fewest labelled frames (the balance), the one is
taken that adds the most to the coverage

    F(A) = sum over frames i of  w_i max over a in A of  max(0, cos(x_i, x_a))        A: what is labelled or chosen

with w_i the doubt about frame i. F is submodular, so taking the best one each time comes within 1 - 1/e of the best
set (facility location: Nemhauser et al., 1978; Wei et al., 2015). It is a soft form of the coverage of core sets
(arXiv 1708.00489), and like TypiClust (arXiv 2202.02794) prefers typical frames while few are labelled: an outlier
stands for itself alone. A frame like one that is labelled adds nothing.

Shapes: N candidates, M labelled frames, I features, R frames that are to be covered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lineside.hashing import stable_hash

COVERED = 4000  # frames whose coverage is counted; more are drawn by hash
LEAST_DOUBT = 0.05  # weight of a frame whose answers are certain: a model can be sure and wrong
AT_ONCE = 2048

FloatArray = NDArray[np.float32]
Groups = Mapping[str, tuple[str, ...]]  # a frame's values by column; several for SKUs


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that may be labelled. `doubt`: 1 less the calibrated
    confidence of its least certain answer; None where no model was asked. `cost`: in the unit of the budget."""

    id: str
    groups: Groups = field(default_factory=dict)
    doubt: float | None = None
    cost: float = 1.0


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen frame and the reasons.

    `index` of the candidate. `nearest`: cosine to the most similar frame that is labelled or was chosen before; None
    if there is none. `stands_for`: candidates to which it is nearer than all of those, itself included. `had`: by
    column its value and how many frames had it before.
    """

    index: int
    nearest: float | None
    stands_for: int
    had: Mapping[str, tuple[str, int]]


def select(
    candidates: Sequence[Candidate],
    features_NI: FloatArray,
    *,
    budget: float,
    labelled_MI: FloatArray | None = None,
    labelled_groups: Sequence[Groups] = (),
    seed: int = 0,
) -> list[Pick]:
    """Frames to label, the most useful first, until the next one would cost more than what is left of `budget`.

    The same candidates in any order, with the same seed, give the same frames. Raises ValueError unless features and
    candidates are as many.
    """
    if len(candidates) != len(features_NI):
        raise ValueError(f"{len(candidates)} candidates with the features of {len(features_NI)}")
    order = sorted(range(len(candidates)), key=lambda i: (stable_hash("select", seed, candidates[i].id), i))
    chosen = _Greedy(
        [candidates[i] for i in order],
        _unit(features_NI[order]),
        _unit(labelled_MI) if labelled_MI is not None and len(labelled_MI) else features_NI[:0],
        _Balance([candidates[i].groups for i in order], labelled_groups),
    )
    picks: list[Pick] = []
    while (pick := chosen.take(budget)) is not None:
        budget -= candidates[order[pick.index]].cost
        picks.append(Pick(order[pick.index], pick.nearest, pick.stands_for, pick.had))
    return picks


class _Greedy:
    def __init__(
        self, candidates: Sequence[Candidate], unit_NI: FloatArray, labelled_MI: FloatArray, balance: _Balance
    ) -> None:
        self._unit_NI, self._balance = unit_NI, balance
        self._unit_RI = unit_NI[:COVERED]  # the candidates come in the order of their hashes
        self._cost_N = np.array([candidate.cost for candidate in candidates])
        doubt = [candidate.doubt for candidate in candidates]
        doubt_R = np.array([1.0 if one is None else max(one, LEAST_DOUBT) for one in doubt[:COVERED]])
        self._weight_R = doubt_R.astype(np.float32)
        self._cover_R = np.zeros(len(self._unit_RI), np.float32)
        self._nearest_N = np.full(len(unit_NI), -np.inf, np.float32)
        for rows in _blocks(len(labelled_MI)):
            self._cover(labelled_MI[rows])
        self._left_N = np.ones(len(unit_NI), bool)
        self._most_N = np.concatenate([self._gains(rows) for rows in _blocks(len(unit_NI))] or [np.zeros(0)])

    def take(self, budget: float) -> Pick | None:
        """The next frame; None if none is left that the budget pays."""
        able_N = self._left_N & (self._cost_N <= budget + 1e-9)
        if not able_N.any():
            return None
        able_N &= self._balance.least(able_N)
        best = self._best(able_N)
        nearest = float(self._nearest_N[best])
        new_N = self._unit_NI @ self._unit_NI[best]
        stands_for = int((new_N > np.maximum(self._nearest_N, 0.0)).sum())
        self._left_N[best] = False
        self._cover(self._unit_NI[best : best + 1])
        return Pick(best, nearest if np.isfinite(nearest) else None, stands_for, self._balance.take(best))

    def _best(self, able_N: NDArray[np.bool_]) -> int:
        """The frame with the most gain. Gains only shrink, so an old one is a bound (lazy greedy: Minoux, 1978)."""
        bound_N = np.where(able_N, self._most_N, -1.0)
        fresh: set[int] = set()
        while (best := int(bound_N.argmax())) not in fresh:
            fresh.add(best)
            self._most_N[best] = bound_N[best] = self._gains(slice(best, best + 1))[0]
        return best

    def _gains(self, rows: slice) -> FloatArray:
        similar_nR = self._unit_NI[rows] @ self._unit_RI.T
        return np.maximum(similar_nR - self._cover_R, 0.0) @ self._weight_R

    def _cover(self, unit_nI: FloatArray) -> None:
        self._cover_R = np.maximum(self._cover_R, (self._unit_RI @ unit_nI.T).max(1))
        for rows in _blocks(len(self._unit_NI)):
            self._nearest_N[rows] = np.maximum(self._nearest_N[rows], (self._unit_NI[rows] @ unit_nI.T).max(1))


class _Balance:
    """How many frames have each value of each column, labelled and chosen ones together. No value is a value too."""

    def __init__(self, groups: Sequence[Groups], labelled: Sequence[Groups]) -> None:
        self._columns = sorted({column for one in groups for column in one})
        self._groups = [{column: one.get(column) or ("",) for column in self._columns} for one in groups]
        self._had: dict[str, Counter[str]] = {c: Counter() for c in self._columns}
        self._with: dict[tuple[str, str], list[int]] = defaultdict(list)
        for column in self._columns:
            self._had[column].update(value for one in labelled for value in one.get(column) or ("",))
            for index, one in enumerate(self._groups):
                for value in one[column]:
                    self._with[column, value].append(index)
        kinds = Counter(column for column, _ in self._with)
        self._kinds = {column: kinds[column] for column in self._columns}
        self._load_N = np.array([self._load(index) for index in range(len(groups))])

    def least(self, able_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the able candidates those whose values have the fewest frames, each column counting alike."""
        return self._load_N <= self._load_N[able_N].min() + 1e-9

    def take(self, index: int) -> dict[str, tuple[str, int]]:
        """Count a chosen candidate; returns what its rarest values had before."""
        had = {column: self._rarest(index, column) for column in self._columns}
        for column, values in self._groups[index].items():
            self._had[column].update(values)
            for other in {other for value in values for other in self._with[column, value]}:
                self._load_N[other] = self._load(other)
        return had

    def _load(self, index: int) -> float:
        return float(sum(self._kinds[column] * self._rarest(index, column)[1] for column in self._columns))

    def _rarest(self, index: int, column: str) -> tuple[str, int]:
        values = self._groups[index][column]
        return min(((value, self._had[column][value]) for value in values), key=lambda pair: (pair[1], pair[0]))


def _unit(features_NI: FloatArray) -> FloatArray:
    wide_NI = np.asarray(features_NI, dtype=np.float32)
    return wide_NI / np.maximum(np.linalg.norm(wide_NI, axis=1, keepdims=True), 1e-12)


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
