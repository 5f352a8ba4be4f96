"""From rows to the evaluation object: every number of a suite, computed from its rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from statistics import fmean, median

import numpy as np

from lineside.judgement import stats
from lineside.judgement.calibration import reliability
from lineside.judgement.columns import break_down
from lineside.judgement.decisions import decision, per_thousand
from lineside.judgement.latency import LatencyModel
from lineside.judgement.routes import routes
from lineside.judgement.schema import (
    SURE,
    CalibrationError,
    CaptionMatching,
    Coverage,
    Decision,
    Decoding,
    Evaluation,
    FalseFacts,
    FamilyResult,
    Latency,
    Mode,
    Paired,
    Prevalence,
    Provenance,
    Row,
    SureWrong,
    TaskResult,
    by_task,
    natural_weights,
)
from lineside.recipe import ROUTE_BELOW
from lineside.types import Target
from lineside.verify.stakes import Outcome, cost, outcome
from lineside.verify.verifiers import verify

YES_NO = {"yes", "no"}


def summarise(
    rows: Sequence[Row],
    *,
    stage: str,
    split: str,
    mode: Mode,
    seed: int,
    latency: LatencyModel | None,
    untimed: str = "",
    notes: Mapping[str, str] | None = None,
    by: Sequence[str] = (),
    route_below: float = ROUTE_BELOW,
    captions: CaptionMatching | None,
    decoding: Decoding,
    provenance: Provenance,
) -> Evaluation:
    """The evaluation of one suite. `rows` must not be empty; the same rows and seed give the same object.

    `untimed`: why there is no `latency`. `notes`: by family/task, why it is not calibrated. `by`:
    columns that are broken down even if they tell nothing apart. `route_below`: as in `routes`.
    """
    scenes, tasks = [row.scene for row in rows], [row.key for row in rows]
    exact = stats.tabulate(scenes, tasks, [row.exact for row in rows])
    draws = stats.bootstrap(exact, seed=seed)
    groups = by_task(rows)
    results = {task: _task(group, draws.task(task), mode=mode, seed=seed) for task, group in groups.items()}
    calibrated = all(row.calibrated is not None for row in rows)
    sure = [row.calibrated or 0.0 if calibrated else row.confidence for row in rows]
    curve = stats.risk_coverage(tasks, sure, [row.exact for row in rows])
    facts = [row.facts for row in rows if row.facts is not None]
    thinking = [row for row in rows if _thinks(row, mode)]
    valid = [row for row in thinking if row.trace_class == "valid"]
    return Evaluation(
        stage=stage,
        split=split,
        mode=mode,
        simulated=any(row.target.get("provenance") == "sim" for row in rows),
        n=len(rows),
        exact=stats.macro(exact),
        interval=draws.macro(),
        families=_families(results, draws),
        tasks=results,
        blind=_mean([task.blind for task in results.values()]),
        classifier=_mean([task.classifier for task in results.values()]),
        over_blind=_over_blind(rows, seed=seed),
        valid_trace_rate=_share(thinking, "valid"),
        empty=_share(thinking, "empty"),
        truncated=_share(thinking, "truncated"),
        missing=_share(thinking, "missing"),
        false_facts=_false_facts(thinking, seed=seed),
        exact_given_valid=fmean(row.exact for row in valid) if valid else None,
        facts_true=fmean(facts) if facts else None,
        facts_all_true=fmean(share == 1.0 for share in facts) if facts else None,
        answer_tokens=fmean(row.answer_tokens for row in rows),
        response_tokens=fmean(row.tokens for row in rows),
        unfinished=fmean(not row.finished for row in rows),
        latency_ms=_median_latency(rows),
        latency=_latency(latency),
        latency_note=untimed if latency is None else "",
        within_budget=_mean([task.within_budget for task in results.values()]),
        caption_matching=captions,
        prevalence={task: _prevalence(group, seed=seed) for task, group in groups.items()},
        decisions=_decisions(groups, results, seed=seed),
        routes=routes(rows, route_below, seed=seed),
        route_below=route_below,
        calibration=_calibration(groups),
        calibration_notes=dict(notes or {}),
        by=break_down(rows, by, seed=seed),
        risk_coverage=[Coverage(**point._asdict()) for point in curve],
        mean_risk=stats.mean_risk(curve),
        decoding=decoding,
        provenance=provenance,
    )


def _task(rows: list[Row], interval: stats.Interval, *, mode: Mode, seed: int) -> TaskResult:
    """The result of one task, whose rows are `rows`."""
    budgets = [row.budget_ms for row in rows if row.budget_ms is not None]
    thinking = [row for row in rows if _thinks(row, mode)]
    return TaskResult(
        family=rows[0].family,
        task=rows[0].task,
        n=len(rows),
        thinking=_thinks(rows[0], mode),
        exact=fmean(row.exact for row in rows),
        interval=interval,
        yes_no=all(row.target.get("kind") in ("choice", "exact") and _only_yes_no(row.target) for row in rows),
        blind=_rate([row.blind_exact for row in rows]),
        classifier=_rate([row.classifier_exact for row in rows]),
        over_blind=_over_blind(rows, seed=seed),
        budget_ms=min(budgets) if budgets else None,
        within_budget=_rate([row.within_budget for row in rows]),
        latency_ms=_median_latency(rows),
        valid_trace_rate=_share(thinking, "valid"),
        false_facts=_false_facts(thinking, seed=seed),
    )


def _only_yes_no(target: dict[str, object]) -> bool:
    """Whether the options (without options the accepted answers) are yes and no."""
    offered = target.get("options") or target.get("accepted") or ()
    return isinstance(offered, list | tuple) and bool(offered) and {str(o).lower() for o in offered} <= YES_NO


def _families(results: dict[str, TaskResult], draws: stats.Draws) -> dict[str, FamilyResult]:
    """Macro mean over each family's tasks, intervals from the suite's own draws."""
    families: dict[str, FamilyResult] = {}
    for family in sorted({task.family for task in results.values()}):
        keys = [key for key, task in results.items() if task.family == family]
        mine = [results[key] for key in keys]
        families[family] = FamilyResult(
            n=sum(task.n for task in mine),
            exact=fmean(task.exact for task in mine),
            interval=draws.macro(keys),
            blind=_mean([task.blind for task in mine]),
            classifier=_mean([task.classifier for task in mine]),
        )
    return families


def _over_blind(rows: Sequence[Row], *, seed: int) -> Paired | None:
    """Exact minus blind on the same questions, macro over their tasks; None unless every row has a blind answer."""
    if any(row.blind_exact is None for row in rows):
        return None
    found = stats.paired(
        [row.scene for row in rows],
        [row.key for row in rows],
        [float(bool(row.blind_exact)) for row in rows],
        [row.exact for row in rows],
        seed=seed,
    ).difference()
    return Paired(difference=found.difference, interval=found.interval)


def _decisions(groups: Mapping[str, list[Row]], results: Mapping[str, TaskResult], *, seed: int) -> dict[str, Decision]:
    found = {
        key: decision(rows, natural_weights(rows)[0], blind=results[key].blind, seed=seed)
        for key, rows in groups.items()
    }
    return {key: one for key, one in found.items() if one is not None}


def _calibration(groups: Mapping[str, list[Row]]) -> CalibrationError | None:
    """Calibration error over the questions of calibrated tasks, at natural prevalence within each, as in fitting."""
    before: list[float] = []
    after: list[float] = []
    exact: list[bool] = []
    each: list[float] = []
    for rows in groups.values():
        weights, _ = natural_weights(rows)
        for row, weight in zip(rows, weights):
            if row.calibrated is not None:
                before.append(row.confidence)
                after.append(row.calibrated)
                exact.append(row.exact)
                each.append(weight * len(rows) / sum(weights))
    if not after:
        return None
    bins, ece = reliability(after, exact, each)
    bins_before, ece_before = reliability(before, exact, each)
    wrong = [(a, b) for a, b, right in zip(after, before, exact) if not right]
    return CalibrationError(
        n=len(after),
        ece=ece,
        ece_uncalibrated=ece_before,
        bins=bins,
        bins_uncalibrated=bins_before,
        wrong=SureWrong(
            n=len(wrong), sure=sum(a >= SURE for a, _ in wrong), sure_uncalibrated=sum(b >= SURE for _, b in wrong)
        ),
    )


def _prevalence(rows: Sequence[Row], *, seed: int) -> Prevalence:
    """One task at natural prevalence, where most answers are normal.

    Questions are weighted by how many natural ones each represents; without weights each counts once.
    """
    weights, weighted = natural_weights(rows)
    targets = [Target.from_json(row.target) for row in rows]
    found: list[Outcome] = [outcome(row.answer, target, row.normal) for row, target in zip(rows, targets)]
    normals = {row.normal for row in rows}
    normal = normals.pop() if len(normals) == 1 else None
    is_normal = [normal is not None and verify(normal, target).exact for target in targets]
    stakes = rows[0].stakes
    costs = [cost(one, row.stakes) if row.stakes else 0.0 for one, row in zip(found, rows)]
    exact, passes, stops, paid = stats.weighted_means(
        [row.scene for row in rows],
        [[row.exact, one == "false pass", one == "false stop", paid] for row, one, paid in zip(rows, found, costs)],
        weights,
        highest=[1.0, 1.0, 1.0, max((max(astuple(r.stakes)[:3]) for r in rows if r.stakes), default=0.0)],
        seed=seed,
    )
    return Prevalence(
        n=len(rows),
        scenes=len({row.scene for row in rows}),
        exact=exact.value,
        interval=exact.interval,
        weighted=weighted,
        normal=normal,
        normal_share=min(1.0, float(np.average(is_normal, weights=weights))) if normal is not None else None,
        false_passes=per_thousand(passes) if normal is not None else None,
        false_stops=per_thousand(stops) if normal is not None else None,
        stakes=stakes,
        cost=per_thousand(paid) if all(row.stakes for row in rows) else None,
    )


def _latency(measured: LatencyModel | None) -> Latency | None:
    if measured is None:
        return None
    return Latency(
        base_ms=measured.base_ms,
        per_token_ms=measured.per_token_ms,
        measured=measured.measured,
        p50_ms=measured.p50_ms,
        p95_ms=measured.p95_ms,
        p99_ms=measured.p99_ms,
    )


def _median_latency(rows: Sequence[Row]) -> float | None:
    times = [row.latency_ms for row in rows if row.latency_ms is not None]
    return median(times) if times else None


def _thinks(row: Row, mode: Mode) -> bool:
    """Whether a question was asked with thinking on; in older rows without this field, all of think mode were."""
    return mode == "think" if row.thinking is None else row.thinking


def _share(rows: Sequence[Row], trace_class: str) -> float | None:
    return fmean(row.trace_class == trace_class for row in rows) if rows else None


def _false_facts(rows: Sequence[Row], *, seed: int) -> FalseFacts | None:
    """Of the valid traces that state known facts, those that state a false one; None without any."""
    judged = [(row.scene, row.facts < 1.0) for row in rows if row.trace_class == "valid" and row.facts is not None]
    if not judged:
        return None
    scenes, false = zip(*judged)
    rate = stats.share(scenes, false, seed=seed)
    return FalseFacts(n=len(judged), rate=rate.value, interval=rate.interval)


def _rate(values: list[bool | None]) -> float | None:
    """Share of true values; None unless every value is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
