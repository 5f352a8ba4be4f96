"""What stage 3 is worth: the teacher, sft, rlvr and the controls side by side, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from lineside.judgement.audit import audit_of
from lineside.judgement.console import ABSENT, between, new_table, percent, points
from lineside.judgement.paired import Comparison, compare_rows
from lineside.judgement.rundata import Finding, Run
from lineside.judgement.schema import MODES, Evaluation, Mode
from lineside.stages import STAGES, is_asked
from lineside.training.controls import Account, read_account
from lineside.training.cost import Cost


class Arm(NamedTuple):
    """Stage 3 or a model that could stand in its place. `on`, `off`: with thinking on and off; `less`: rlvr less it;
    `less_better`: each in the mode in which it is more often exact."""

    stage: str
    on: Evaluation | None
    off: Evaluation | None
    cost: Cost | None
    account: Account | None
    less_on: Comparison | None
    less_off: Comparison | None
    less_better: Comparison | None


def arms(run: Run, findings: Sequence[Finding]) -> list[Arm]:
    """sft, rlvr and the controls on the main split; empty without rlvr and something to compare it with."""
    split = run.main[0].split if run.main else ""
    found: dict[tuple[str, Mode], Evaluation] = {(e.stage, e.mode): e for e in run.evaluations if e.split == split}
    less = {(f.found.first, f.mode): f.found for f in findings if f.split == split and f.found.second == "rlvr"}
    shown = [stage for stage in STAGES if is_asked(stage) and any((stage, mode) in found for mode in MODES)]
    if "rlvr" not in shown or not less:
        return []
    better: dict[str, Mode] = {
        stage: max((mode for mode in MODES if (stage, mode) in found), key=lambda mode: found[stage, mode].exact)
        for stage in shown
    }
    return [
        Arm(
            stage,
            found.get((stage, "think")),
            found.get((stage, "fast")),
            run.costs.get(stage),
            read_account(run.folder / stage),
            less.get((stage, "think")),
            less.get((stage, "fast")),
            less.get((stage, own)) if (own := better[stage]) == better["rlvr"] else _across(run, split, stage, better),
        )
        for stage in shown
    ]


def _across(run: Run, split: str, stage: str, better: Mapping[str, Mode]) -> Comparison | None:
    """rlvr less a stage whose better mode is the other one: a control may have been trained for one mode alone."""
    first = run.rows.get((split, better[stage]), {}).get(stage)
    second = run.rows.get((split, better["rlvr"]), {}).get("rlvr")
    if first is None or second is None:
        return None
    return compare_rows(first, second, names=(stage, "rlvr"), margin=run.margin, common_only=True)


def arms_table(run: Run, findings: Sequence[Finding]) -> Table | None:
    """The teacher, sft, rlvr and each control, with what they took and rlvr less each; None without a comparison."""
    found = arms(run, findings)
    if not found:
        return None
    simulated = " (simulated)" if run.main[0].simulated else ""
    title = f"stage 3 and what could stand in its place, {run.main[0].split}{simulated}"
    table = new_table(Text(title))
    table.add_column("")
    columns = (
        "thinking on",
        "95% interval",
        "off",
        "tokens",
        "minutes",
        "prompts left out",
        "rlvr less it",
        "95% interval",
        "off",
        "95% interval",
        "better modes",
        "95% interval",
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if audit := audit_of(run.data):
        low, high = audit["interval"]
        table.add_row("teacher, on training frames", percent(audit["exact"]), f"{percent(low)} to {percent(high)}")
    for arm in found:
        table.add_row(
            Text(arm.stage),
            percent(arm.on.exact if arm.on else None),
            f"{percent(arm.on.interval[0])} to {percent(arm.on.interval[1])}" if arm.on else ABSENT,
            percent(arm.off.exact if arm.off else None),
            f"{arm.cost.tokens:,}" if arm.cost else ABSENT,
            f"{arm.cost.trained / 60:,.1f}" if arm.cost else ABSENT,
            left_out(arm),
            *(cell for less in (arm.less_on, arm.less_off, arm.less_better) for cell in _difference(less)),
        )
    table.caption, table.caption_justify = (
        "minutes: without evaluation, with the sampling of rollouts; better modes: each with thinking on or off, as it "
        "is more often exact",
        "left",
    )
    return table


def left_out(arm: Arm) -> str:
    """`120 of 3,000` prompts of stage 3 that a control could not use; a dash for a stage that is none."""
    if arm.account is None:
        return ABSENT
    return f"{sum(arm.account.left_out.values()):,} of {arm.account.prompts:,}"


def _difference(found: Comparison | None) -> tuple[str, str]:
    if found is None:
        return ABSENT, ABSENT
    return points(found.overall.difference, sign=True), between(found.overall.interval)
