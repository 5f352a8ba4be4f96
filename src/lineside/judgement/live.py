"""The floor by its outcomes: how often answers are right there, against what was promised, and whether answers drift.

**Live accuracy.** A truth says 1 or 0. A verdict errs: where v = 1 is a success, its expectation is
p (1 - a) + (1 - p) b for accuracy p, false failures a and false successes b. So (v - b) / (1 - a - b) is an unbiased
value of one answer (Rogan and Gladen, 1978). Means have the intervals of `stats.weighted_means`, by scene.

**Promise.** The held-out evaluation's share of exact answers, by task and by decision: truths may come for the answers
that were refused alone, which are the harder ones. The p of a group is how often a floor that keeps the promise less
the margin would do as badly. It is simulated: the promised share is drawn from its posterior (Beta, uniform prior,
counted in scenes), the answers of one scene and task are right or wrong together, verdicts err as stated.

**Drift of answers.** The kernel two-sample test of `drift`, which exchanges scenes, on the answers of a task: numbers
by rank, other answers as categories.

Holm's correction over all tests of a kind keeps the probability of any false alarm at the level that is asked.

Shapes: N outcomes, U units (a scene and task each), G groups, B draws.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lineside.data.tasks import near_boundary
from lineside.hashing import stable_hash
from lineside.judgement import stats
from lineside.judgement.drift import LEAST_SCENES, MOST, PERMUTATIONS, two_sample
from lineside.judgement.outcomes import (
    NEAR,
    NO_TASK,
    NO_TRUTH,
    TRUTHS,
    VERDICTS,
    Account,
    Logged,
    Noise,
    Told,
    task_in,
)
from lineside.judgement.schema import Row
from lineside.judgement.typed import TEXT, Form
from lineside.verify.quantity import read_quantity
from lineside.verify.text import normalise
from lineside.verify.verifiers import verify

DRAWS = 2000
AT_ONCE = 100  # draws
COMMONEST = 100  # answers that are categories of their own
EVERYTHING = "all answers"


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer of which is known whether it is right. `by_truth`: for certain; else a verdict says so."""

    scene: str
    task: str
    decision: str
    cell: str
    skus: tuple[str, ...]
    right: bool
    by_truth: bool

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that it is counted in."""
        return groups_of(self.task, self.cell, self.skus)


def groups_of(task: str, cell: str, skus: Sequence[str]) -> tuple[str, ...]:
    """Names for people."""
    cells, kinds = ([f"cell {cell}"] if cell else []), [f"SKU {sku}" for sku in dict.fromkeys(skus)]
    return (EVERYTHING, f"task {task}", *cells, *kinds)


@dataclass(frozen=True, slots=True)
class Group:
    """The live accuracy of a group. `promised`, `p` and `alarm`: None, None, False where nothing is promised, or of too
    few scenes. `p` is corrected for the number of tests."""

    name: str
    n: int
    scenes: int
    accuracy: float
    interval: stats.Interval
    promised: float | None
    p: float | None
    alarm: bool


def judged(told: Sequence[Told], forms: Mapping[str, Form], account: Account) -> list[Judged]:
    """Whether each answer is right, by its truth, else its verdict. An answer with outcomes that contradict each other
    is left out."""
    groups: dict[int, list[Told]] = {}
    for one in told:
        groups.setdefault(id(one.answer), []).append(one)
    found: list[Judged] = []
    for group in groups.values():
        answer, task = group[0].answer, task_in(group[0].answer, forms)
        if not task:
            _leave(group, NO_TASK, account)
            continue
        form = answer.form or forms.get(task) or TEXT
        truths = [one for one in group if one.truth is not None]
        said = {_right(one, form) for one in truths or group}
        if len(said) > 1:
            _leave(group, TRUTHS if truths else VERDICTS, account)
        elif isinstance(right := said.pop(), str):
            _leave(group, right, account)
        else:
            found.append(Judged(answer.unit, task, answer.decision, answer.cell, answer.skus, right, bool(truths)))
            account.used["truth" if truths else "verdict"] += len(group)
    return found


def _leave(group: Iterable[Told], reason: str, account: Account) -> None:
    for one in group:
        account.leave(reason, one.where, one.truth or "")


def _right(one: Told, form: Form) -> bool | str:
    if one.truth is None:
        return bool(one.succeeded)
    if (target := form.target_for(one.truth)) is None:
        return NO_TRUTH
    if target.kind == "number" and near_boundary(target.value, target.resolution):
        return NEAR
    return one.answer.answer is not None and verify(one.answer.answer, target).exact


# --- accuracy


@dataclass(frozen=True, slots=True)
class Promise:
    """Share of exact answers of a task, and the number of scenes that it was measured on."""

    share: float
    scenes: int


def promises(rows: Iterable[Row]) -> dict[tuple[str, str], Promise]:
    """By task and decision ("" for all) what an evaluation promises."""
    found: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for decision in {"", row.decision or ""}:
            found[row.key, decision].append(row)
    return {
        key: Promise(sum(row.exact for row in some) / len(some), len({row.scene for row in some}))
        for key, some in found.items()
    }


def live(
    answers: Sequence[Judged], noise: Noise, promised: Mapping[tuple[str, str], Promise], *, margin: float = 0.03,
    level: float = 0.05, seed: int = 0,
) -> list[Group]:  # fmt: skip
    """The live accuracy of all answers, of each task, cell and SKU; those that break the promise first."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(answers):
        for name in one.groups:
            members[name].append(place)
    value_N = np.array([_value(one.right, one.by_truth, noise) for one in answers])
    kept = [key if (key := (a.task, a.decision)) in promised else (a.task, "") for a in answers]
    kept = [key if key in promised else None for key in kept]
    tested = [
        name for name, places in members.items()
        if len({answers[i].scene for i in places if kept[i]}) >= LEAST_SCENES
    ]  # fmt: skip
    found = _ps(answers, value_N, kept, promised, [members[n] for n in tested], noise, margin, level, seed)
    ps = dict(zip(tested, stats.holm(found)))
    groups = []
    for name, places in members.items():
        some = [answers[i] for i in places]
        mean = _mean([one.scene for one in some], value_N[places], noise, all(one.by_truth for one in some), seed)
        shares = [promised[key].share for i in places if (key := kept[i]) is not None]
        p = ps.get(name)
        groups.append(
            Group(
                name, len(some), len({one.scene for one in some}), mean.value, mean.interval,
                sum(shares) / len(shares) if shares else None, p, p is not None and p <= level,
            )
        )  # fmt: skip
    return sorted(groups, key=lambda g: (g.name != EVERYTHING, not g.alarm, g.p if g.p is not None else 2.0, g.name))


def _value(right: bool, by_truth: bool, noise: Noise) -> float:
    """The unbiased value of one answer: its mean is the accuracy."""
    if by_truth:
        return float(right)
    return (right - noise.false_successes) / (1 - noise.false_failures - noise.false_successes)


def _mean(scenes: Sequence[str], values: NDArray[np.float64], noise: Noise, certain: bool, seed: int) -> stats.Mean:
    """Mean and interval of values between the lowest and the highest that one answer can have."""
    low, high = (0.0, 1.0) if certain else (_value(False, False, noise), _value(True, False, noise))
    (mean,) = stats.weighted_means(
        scenes, [[value - low] for value in values], [1.0] * len(values), highest=[high - low], seed=seed
    )
    clipped = np.clip([mean.value + low, mean.interval.low + low, mean.interval.high + low], 0.0, 1.0).tolist()
    return stats.Mean(clipped[0], stats.Interval(*clipped[1:]))


def _ps(
    answers: Sequence[Judged], value_N: NDArray[np.float64], kept: Sequence[tuple[str, str] | None],
    promised: Mapping[tuple[str, str], Promise], members: Sequence[Sequence[int]], noise: Noise, margin: float,
    level: float, seed: int,
) -> list[float]:  # fmt: skip
    """For each group the share of simulated floors that keep the promise less the margin and are as bad as this one."""
    places = [i for i, one in enumerate(kept) if one is not None]
    if not members or not places:
        return []
    strata = {key: n for n, key in enumerate(dict.fromkeys(key for key in kept if key is not None))}
    units = {u: n for n, u in enumerate(dict.fromkeys((answers[i].scene, answers[i].task) for i in places))}
    unit_N = np.array([units[answers[i].scene, answers[i].task] for i in places])
    stratum_N = np.array([strata[key] for key in kept if key is not None])
    certain_N = np.array([answers[i].by_truth for i in places])
    place_of = {i: n for n, i in enumerate(places)}
    member_NG = np.zeros((len(places), len(members)))
    for g, group in enumerate(members):
        member_NG[[place_of[i] for i in group if i in place_of], g] = 1.0
    observed_G = value_N[places] @ member_NG
    draws = max(DRAWS, math.ceil(2 * len(members) / level))
    rng, as_bad_G = np.random.default_rng(seed), np.zeros(len(members))
    kept_promises = [promised[key] for key in strata]
    wins = np.array([1 + one.share * one.scenes for one in kept_promises])
    losses = np.array([1 + (1 - one.share) * one.scenes for one in kept_promises])
    values = {right: _value(right, False, noise) for right in (False, True)}
    for start in range(0, draws, AT_ONCE):
        size = min(AT_ONCE, draws - start)
        share_BS = np.clip(rng.beta(wins, losses, (size, len(strata))) - margin, 0.0, 1.0)
        right_BN = rng.random((size, len(units)))[:, unit_N] < share_BS[:, stratum_N]
        errs_BN = rng.random(right_BN.shape) < np.where(right_BN, noise.false_failures, noise.false_successes)
        verdict_BN = np.where(right_BN ^ errs_BN, values[True], values[False])
        as_bad_G += (np.where(certain_N, right_BN, verdict_BN) @ member_NG <= observed_G + 1e-9).sum(0)
    return ((1 + as_bad_G) / (1 + draws)).tolist()


# --- drift of answers


@dataclass(frozen=True, slots=True)
class AnswerDrift:
    """Whether the answers of a group have changed. `p` is corrected for the number of tests. `before`, `now`: the
    commonest answers with their shares."""

    name: str
    before: tuple[tuple[str, float], ...]
    now: tuple[tuple[str, float], ...]
    n: tuple[int, int]
    p: float
    alarm: bool


def answer_drift(
    before: Sequence[Logged], now: Sequence[Logged], forms: Mapping[str, Form], *, level: float = 0.05, seed: int = 0
) -> list[AnswerDrift]:
    """Test the answers of each task, in all cells and SKUs and in each that both sides have with enough scenes."""
    sides = [_by_group(side, forms) for side in (before, now)]
    names = [
        name for name in sides[0]
        if all(len({a.unit for a in side.get(name, ())}) >= LEAST_SCENES for side in sides)
    ]  # fmt: skip
    permutations = max(PERMUTATIONS, math.ceil(2 * len(names) / level))
    found = []
    for name in names:
        some = [sorted(side[name], key=lambda a: stable_hash(seed, a.id, a.where))[:MOST] for side in sides]
        scenes = [f"{number} {answer.unit}" for number, side in enumerate(some) for answer in side]
        features = _features([normalise(a.answer or "") for side in some for a in side])
        p, _ = two_sample(features, scenes, len(some[0]), permutations=permutations, seed=seed)
        found.append((name, some, p))
    corrected = stats.holm([p for *_, p in found])
    tests = [
        AnswerDrift(name, _commonest(some[0]), _commonest(some[1]), (len(some[0]), len(some[1])), p, p <= level)
        for (name, some, _), p in zip(found, corrected)
    ]
    return sorted(tests, key=lambda test: (test.p, test.name))


def _by_group(answers: Sequence[Logged], forms: Mapping[str, Form]) -> dict[str, list[Logged]]:
    found: defaultdict[str, list[Logged]] = defaultdict(list)
    for answer in answers:
        if task := task_in(answer, forms):
            found[f"task {task}"].append(answer)
            for name in groups_of(task, answer.cell, answer.skus)[2:]:
                found[f"task {task}, {name}"].append(answer)
    return dict(found)


def _features(texts: Sequence[str]) -> NDArray[np.float64]:
    """(N, I) answers for the kernel: the rank among all of a number (from 0 to 1), and which category another is."""
    numbers = [quantity[0] if (quantity := read_quantity(text)) else None for text in texts]
    order = sorted({number for number in numbers if number is not None})
    rank = {number: place / max(1, len(order) - 1) for place, number in enumerate(order)}
    words = Counter(text for text, number in zip(texts, numbers) if number is None)
    column = {text: place + 2 for place, (text, _) in enumerate(words.most_common(COMMONEST))}
    features = np.zeros((len(texts), len(column) + 3))
    for row, (text, number) in enumerate(zip(texts, numbers)):
        if number is not None:
            features[row, :2] = 0.0, rank[number]
        else:
            features[row, column.get(text, len(column) + 2)] = 1.0
    return features


def _commonest(answers: Sequence[Logged]) -> tuple[tuple[str, float], ...]:
    counts = Counter(normalise(answer.answer or "") or "(none)" for answer in answers)
    return tuple((text, count / len(answers)) for text, count in counts.most_common(3))
