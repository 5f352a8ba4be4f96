"""The report page: chooses and orders its content for the template, which escapes all text from models and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lineside.data.checks import CHECKS
from lineside.judgement import plots
from lineside.judgement.arms import arms, left_out
from lineside.judgement.audit import audit_of, told_advice, told_cost, worst_first
from lineside.judgement.cards import choose_cards
from lineside.judgement.console import ABSENT, THINKING, false_facts, milliseconds, percent, points, rest_of, task_name
from lineside.judgement.heatmap import FEW, heat_maps, weakest
from lineside.judgement.html import fill_template
from lineside.judgement.mistakes import mistakes
from lineside.judgement.routes import routed
from lineside.judgement.rundata import Finding, Run
from lineside.judgement.schema import Decision, Evaluation, Route, Row, TaskResult
from lineside.stages import STAGES, entry_of, is_asked, is_control
from lineside.training.cost import PHASES
from lineside.types import SPLITS

TEMPLATE = "report.html.j2"
PAGE = "report.html"  # in the folder of the run


@dataclass(frozen=True, slots=True)
class Tile:
    """One number at the head of the page."""

    value: str
    label: str
    note: str


@dataclass(frozen=True, slots=True)
class Curves:
    """A stage's training curves, by name."""

    stage: str
    plots: tuple[tuple[str, Markup], ...]


def render(run: Run, findings: Sequence[Finding]) -> str:
    """The whole page as HTML, without downloads and scripts. `findings`: the paired differences of the run."""
    last = run.main[-1] if run.main else None
    headline = run.result
    return fill_template(
        TEMPLATE,
        name=run.folder.resolve().name,
        recipe=run.recipe,
        last=last,
        headline=headline,
        tiles=_tiles(headline) if headline else [],
        main=run.main,
        asked=_asked(run),
        simulated=any(e.simulated for e in run.evaluations),
        mixed=len({e.simulated for e in run.evaluations}) > 1,
        evaluations=run.evaluations,
        stages=STAGES,
        colours={stage: entry_of(stage).colours for stage in STAGES},
        thinking_words=THINKING,
        families=sorted({family for e in run.main for family in e.families}),
        findings=findings,
        arms=arms(run, findings),
        left_out=left_out,
        by_stage=plots.accuracy_by_stage(run.main) if run.main else "",
        by_task=_by_task(_asked(run)),
        latency=plots.latency_and_accuracy(_timed(run)) if len(_timed(run)) > 1 else "",
        risk=plots.risk_coverage({e.stage: e.risk_coverage for e in _asked(run)}) if run.main else "",
        decisions=_decisions(headline) if headline else [],
        routes=_routes(run.suites),
        judged_on=[e.split for e in run.suites] if headline and headline.route_below is not None else [],
        where=heat_maps(headline) if headline else [],
        few=FEW,
        mistakes=mistakes(run.main_rows.get(headline.stage, {}).values(), run.pictures.parent) if headline else [],
        rest_of=rest_of,
        below_blind=[task_name(k) for k, t in headline.tasks.items() if t.below_blind] if headline else [],
        reliability=plots.reliability_diagram(headline.calibration, headline.stage)
        if headline and headline.calibration
        else "",
        curves=[
            Curves(stage, tuple((series.name, plots.training_curve(series, stage)) for series in curves))
            for stage, curves in run.curves.items()
        ],
        warnings=run.warnings,
        costs=run.costs,
        phases=[(f"{phase}, s", meaning) for phase, meaning in PHASES.items()],
        cards=choose_cards(_side_by_side(run), run.pictures),
        absent=ABSENT,
        data=run.data,
        meanings=CHECKS,
        splits=_splits(run.data) if run.data else [],
        data_tasks=_data_tasks(run.data, headline) if run.data else [],
        audit=audit_of(run.data),
        audited=_audited(run),
        advice=told_advice,
        audit_cost=told_cost,
    )


@dataclass(frozen=True, slots=True)
class Audited:
    """The answers of teacher and stages to a task: the teacher's on training frames, the stages' on the suite."""

    name: str
    teacher: Mapping[str, Any]  # the task's part of the audit
    stages: tuple[float | None, ...]  # exact, in the order of `_asked`


def _audited(run: Run) -> list[Audited]:
    """The tasks of the audit, the teacher's least exact first."""
    account = audit_of(run.data)
    asked = _asked(run)
    return [
        Audited(name, rate, tuple(e.tasks[name].exact if name in e.tasks else None for e in asked))
        for name, rate in (worst_first(account) if account else ())
    ]


VERDICTS = ("use", "use with refusal", "do not use")


def _decisions(e: Evaluation) -> list[tuple[str, Decision, TaskResult, str, str]]:
    """(task, decision, result, why it is not calibrated, where it is weakest), usable tasks first."""
    order = sorted(e.decisions, key=lambda key: (VERDICTS.index(e.decisions[key].verdict), key))
    return [
        (task_name(key), e.decisions[key], e.tasks[key], e.calibration_notes.get(key, ""), weakest(e, key))
        for key in order
    ]


def _routes(suites: Sequence[Evaluation]) -> list[tuple[str, Route | None, Route | None]]:
    """(task, route for any SKU, route for new ones) of each task that is routed to a person, as `routed` has them."""
    found: dict[str, list[Route | None]] = {}
    for route in routed(suites):
        found.setdefault(route.task, [None, None])[route.new_skus] = route
    return [(task_name(task), known, new) for task, (known, new) in found.items()]


@dataclass(frozen=True, slots=True)
class DataTask:
    """A task in the data card: questions for training and evaluation, and the accuracy of guessing."""

    name: str
    train: int
    prompts: int
    suites: int
    commonest: tuple[tuple[str, float], ...]  # (answer, share of the training answers)
    answers: int
    blind: float | None


def _data_tasks(card: dict[str, Any], headline: Evaluation | None) -> list[DataTask]:
    judged = headline.tasks if headline else {}
    return [
        DataTask(
            name=name,
            train=task["samples"].get("qa-train", 0),
            prompts=task["samples"].get("prompt-train", 0),
            suites=sum(n for what, n in task["samples"].items() if not what.endswith("-train")),
            commonest=tuple((entry["answer"], entry["share"]) for entry in task["commonest"]),
            answers=task["answers"],
            blind=judged[name].blind if name in judged else None,
        )
        for name, task in card["tasks"].items()
    ]


def _splits(card: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """(split, samples by kind) in the pipeline's order."""
    found: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for name, count in card["rows"].items():
        kind, _, split = name.rpartition("-")
        if split in found:
            found[split][kind] = count
    return [(split, kinds) for split, kinds in found.items() if kinds]


def _side_by_side(run: Run) -> dict[str, dict[str, Row]]:
    """Rows of the stages to show side by side; of controls only if there are no others."""
    return {stage: rows for stage, rows in run.main_rows.items() if not is_control(stage)} or run.main_rows


def _asked(run: Run) -> list[Evaluation]:
    """The main evaluations except align, which has seen only captions."""
    return [e for e in run.main if is_asked(e.stage)] or list(run.main)


def _same_split(run: Run) -> list[Evaluation]:
    """The evaluations of the main split, in both modes, of the stages in `_asked`."""
    stages = {e.stage for e in _asked(run)}
    return [e for e in run.evaluations if run.main and e.split == run.main[0].split and e.stage in stages]


def _timed(run: Run) -> list[Evaluation]:
    """Those of `_same_split` with measured latency, if one machine measured all: else times cannot be compared."""
    timed = [e for e in _same_split(run) if e.latency is not None]
    return timed if len({e.provenance.machine for e in timed}) == 1 else []


def _by_task(main: Sequence[Evaluation]) -> list[tuple[str, Markup]]:
    """One plot for each family; tasks are ordered by the accuracy of the last stage that is no control."""
    families = sorted({family for e in main for family in e.families})
    return [(family, plots.accuracy_by_task(main, family)) for family in families]


def _tiles(e: Evaluation) -> list[Tile]:
    """Exact match first, then numbers to compare it with. A number that was not measured has no tile."""
    low, high = e.interval
    tiles = [Tile(percent(e.exact), "exact match", f"95% interval {percent(low)} to {percent(high)}")]
    if e.over_blind is not None and e.blind is not None:
        tiles.append(
            Tile(
                f"{points(e.over_blind.difference, sign=True)}",
                "points over blind",
                f"a guess without the picture reaches {percent(e.blind)}",
            )
        )
    if e.classifier is not None:
        tiles.append(Tile(percent(e.classifier), "classifier heads", "exact, on the same frozen features"))
    if e.valid_trace_rate is not None:
        known = e.false_facts
        note = f"{false_facts(known)} state a false fact" if known else "in form; their facts were not checked"
        tiles.append(Tile(percent(e.valid_trace_rate), "valid traces", note))
    if e.caption_matching is not None:
        tiles.append(
            Tile(
                percent(e.caption_matching.share),
                "captions matched",
                "told from a changed one; chance 50%",
            )
        )
    if e.latency is not None and e.latency.p95_ms is not None:
        tiles.append(
            Tile(
                milliseconds(e.latency.p95_ms),
                "for 95 in 100 answers",
                f"{percent(e.within_budget)} exact and in budget",
            )
        )
    return tiles
