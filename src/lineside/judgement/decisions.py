"""Use, use with refusal, or do not use: advice for each task, from its numbers and stakes.

A cell either acts on an answer, or refuses it and asks a person, which costs the stakes' `refusal`. Acting on an answer
of calibrated confidence c costs (1 - c) times the mistake's cost on average, so it pays from

    c >= 1 - refusal / mistake        (Chow's rule: IEEE Transactions on Information Theory 16, 1970)

The mistake is a false pass if the answer is the normal one; else a false stop (or, with more than two answers, a wrong
answer if that costs more). A task is used if acting costs less than always asking a person. The upper bound of the
cost's interval must show this, not only the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lineside.judgement import stats
from lineside.judgement.schema import Decision, PerThousand, Row, Thresholds
from lineside.types import Costs, Target
from lineside.verify.stakes import Outcome, cost, outcome, passes

Use = Literal["use", "use with refusal", "do not use"]
TWO_POINTS = 0.02
MOST_SCENES = 1_000_000  # a larger number is not reported


def thresholds(costs: Costs, *, normal: bool, binary: bool) -> Thresholds:
    """Calibrated confidence from which a cell acts on the normal answer, and on any other.

    Worked: refusal 0.5, false pass 5, false stop 1: from 0.9 on "yes", from 0.5 on "no".
    """
    if not normal:
        same = _acts_from(costs.refusal, costs.wrong)
        return Thresholds(normal=same, other=same)
    stop = costs.false_stop if binary else max(costs.false_stop, costs.wrong)
    return Thresholds(normal=_acts_from(costs.refusal, costs.false_pass), other=_acts_from(costs.refusal, stop))


def _acts_from(refusal: float, mistake: float) -> float:
    return 0.0 if mistake <= refusal else 1.0 - refusal / mistake


def acts(confidence: float, is_normal: bool, on: Thresholds) -> bool:
    """Whether a cell acts on an answer; without an answer (confidence 0) it never does."""
    return confidence > 0 and confidence >= (on.normal if is_normal else on.other)


@dataclass(frozen=True, slots=True)
class Advice:
    """`scenes_needed`: about how many in all would settle the verdict; None if it is settled or cannot be."""

    verdict: Use
    because: str
    scenes_needed: int | None = None


def advise(
    acting: stats.Mean, refusing: stats.Mean | None, person: float, *, scenes: int, exact: float, blind: float | None
) -> Advice:
    """The verdict from three mean costs: of acting on every answer, of refusing some (None: not calibrated, or none is
    refused), and of always asking a person."""
    if blind is not None and exact < blind:
        return Advice("do not use", f"below a guess that sees no picture: {exact:.1%} exact against {blind:.1%}")
    policies: list[tuple[Use, stats.Mean]] = [("use", acting)]
    if refusing is not None:
        policies.append(("use with refusal", refusing))
    shown = [policy for policy in policies if policy[1].interval.high < person]
    if shown:
        verdict, _ = min(shown, key=lambda policy: policy[1].value)
        return Advice(verdict, "costs less than asking a person everything, interval included")
    _, best = min(policies, key=lambda policy: policy[1].value)
    if best.value < person:
        needed = scenes_needed(best, person, scenes)
        tail = f"; about {needed:,} would settle it" if needed else ""
        return Advice("do not use", f"{scenes:,} scenes do not show that it costs less than a person{tail}", needed)
    if best.interval.low < person:
        needed = scenes_needed(best, person, scenes)
        tail = f"; about {needed:,} would settle it" if needed else ""
        return Advice("do not use", f"costs more than asking a person everything, on few scenes{tail}", needed)
    return Advice("do not use", "costs more than asking a person everything")


def scenes_needed(mean: stats.Mean, bound: float, scenes: int) -> int | None:
    """About how many scenes in all give an interval that ends at `bound`, if the mean stays as it is.

    The half width shrinks with the square root of the scenes: with width 0.1 on 14 scenes and a bound 0.02 away,
    14 x 5^2 = 350. For a mean of 0 the upper bound shrinks with the number of scenes itself.
    """
    width = mean.interval.high - mean.value if bound > mean.value else mean.value - mean.interval.low
    gap = abs(bound - mean.value)
    if gap <= 0:
        return None
    factor = width / gap if mean.value == 0 else (width / gap) ** 2
    needed = math.ceil(scenes * factor - 1e-9)
    return max(scenes + 1, needed) if needed <= MOST_SCENES else None


def scenes_for_points(interval: stats.Interval, scenes: int, points: float = TWO_POINTS) -> int:
    """About how many scenes in all give an accuracy with an interval of `points` to each side."""
    half = (interval.high - interval.low) / 2
    return max(1, math.ceil(scenes * (half / points) ** 2 - 1e-9))


def decision(rows: Sequence[Row], weights: Sequence[float], *, blind: float | None, seed: int) -> Decision | None:
    """The decision for the task of `rows`; None without stakes.

    Refused questions, slips and cost are those of the advised policy; if the advice is not to use the task, those of
    refusal by calibrated confidence.
    """
    costs = rows[0].stakes
    if costs is None or any(row.stakes != costs or row.normal != rows[0].normal for row in rows):
        return None
    targets = [Target.from_json(row.target) for row in rows]
    normal = rows[0].normal
    on = thresholds(costs, normal=normal is not None, binary=all(len(target.options) == 2 for target in targets))
    calibrated = all(row.calibrated is not None for row in rows)
    found: list[Outcome] = [outcome(row.answer, target, normal) for row, target in zip(rows, targets)]
    kept = [
        not calibrated or (acts(row.calibrated or 0.0, passes(row.answer, target, normal), on) and not unreadable(row))
        for row, target in zip(rows, targets)
    ]
    paid = [cost(one, costs) for one in found]
    most = max(costs.wrong, costs.false_pass, costs.false_stop, costs.refusal)
    scene_of = [row.scene for row in rows]
    scenes, share = len(set(scene_of)), sum(row.exact for row in rows) / len(rows)
    exact, refused, acting, refusing = stats.weighted_means(
        scene_of,
        [[row.exact, not k, p, p if k else costs.refusal] for row, k, p in zip(rows, kept, paid)],
        weights,
        highest=[1, 1, most, most],
        seed=seed,
    )
    may_refuse = calibrated and refused.value > 0
    advice = advise(acting, refusing if may_refuse else None, costs.refusal, scenes=scenes, exact=share, blind=blind)
    if advice.verdict == "use":
        kept = [True] * len(rows)
    refused, slips, passed, stopped, spent = stats.weighted_means(
        scene_of,
        [
            [
                not k,
                k and one != "right",
                k and one == "false pass",
                k and one == "false stop",
                p if k else costs.refusal,
            ]
            for one, k, p in zip(found, kept, paid)
        ],
        weights,
        highest=[1, 1, 1, 1, most],
        seed=seed,
    )
    return Decision(
        verdict=advice.verdict,
        because=advice.because,
        below_blind=blind is not None and share < blind,
        calibrated=calibrated,
        acts_from=on if calibrated and advice.verdict != "use" else None,
        scenes=scenes,
        scenes_needed=advice.scenes_needed,
        scenes_for_two_points=scenes_for_points(exact.interval, scenes),
        refused=per_thousand(refused) if calibrated else None,
        slips=per_thousand(slips),
        false_passes=per_thousand(passed) if normal is not None else None,
        false_stops=per_thousand(stopped) if normal is not None else None,
        cost=per_thousand(spent),
        cost_acting=per_thousand(acting),
        cost_person=1000 * costs.refusal,
    )


def unreadable(row: Row) -> bool:
    """Whether an answer has no value of its task's kind, so that a cell cannot act on it; old rows do not say."""
    return row.typed is not None and row.typed.value is None


def per_thousand(mean: stats.Mean) -> PerThousand:
    """The mean as a number in a thousand questions."""
    low, high = mean.interval
    return PerThousand(value=1000 * mean.value, interval=(1000 * low, 1000 * high))
