"""Evaluations as tables for the terminal, and the format of rates in all output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside.judgement.calibration import certainty
from lineside.judgement.paired import ALL, Comparison
from lineside.judgement.routes import routed
from lineside.judgement.schema import SURE, Breakdown, CalibrationError, Decision, Evaluation, FalseFacts, PerThousand
from lineside.training.cost import PHASES, Cost

if TYPE_CHECKING:
    from lineside.judgement.forgetting import Forgetting
    from lineside.judgement.gate import Gate
    from lineside.judgement.rundata import Finding

THINKING = {"think": "on", "fast": "off"}
WIDE = 160  # columns, if the output is not a terminal
ABSENT = "\N{EN DASH}"


def percent(rate: float | None) -> str:
    """0.8125 as `81.2%`; a dash for None."""
    return ABSENT if rate is None else f"{100 * rate:.1f}%"


def task_name(key: str) -> str:
    """ "kitting/kit_complete" as text for people."""
    return key.replace("_", " ").replace("/", " \N{MIDDLE DOT} ")


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of rates in percentage points, with `+` before gains if `sign`.

    A value that is not zero is not shown as zero if two decimals help: an interval from +0.03 does not include 0.
    """
    digits = 2 if 0.00005 <= abs(difference) < 0.0005 else 1
    return f"{100 * difference:{'+' if sign else ''}.{digits}f}"


def milliseconds(value: float | None) -> str:
    """Whole milliseconds, or seconds from ten seconds on."""
    if value is None:
        return ABSENT
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def latency_text(evaluation: Evaluation) -> str:
    """`160 / 210 / 260 ms`: p50, p95 and p99; a dash for a missing one."""
    if evaluation.latency is None:
        return ABSENT
    known = [evaluation.latency.p50_ms, evaluation.latency.p95_ms, evaluation.latency.p99_ms]
    return " / ".join(ABSENT if ms is None else f"{ms:,.0f}" for ms in known) + " ms"


def show(table: Table | Text) -> None:
    """Prints to standard output; in a pipe or a log, which has no width, no column is squeezed."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table)


def new_table(title: str | Text) -> Table:
    """A table without lines, with its title at the left."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def results_table(evaluations: Sequence[Evaluation]) -> Table:
    """One line for each evaluation: exact with interval, blind and classifier, traces, time."""
    simulated = " (simulated)" if evaluations and all(e.simulated for e in evaluations) else ""
    table = new_table(f"exact match, macro over tasks{simulated}")
    for column in ("stage", "split", "mode"):
        table.add_column(column)
    for column in ("n", "exact", "95% interval", "blind", "classifier", "valid traces", "false facts", "in budget"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("p50 / p95 / p99", justify="right", no_wrap=True)
    for e in evaluations:
        table.add_row(
            Text(e.stage),
            Text(e.split),
            e.mode,
            f"{e.n:,}",
            percent(e.exact),
            f"{percent(e.interval[0])} to {percent(e.interval[1])}",
            percent(e.blind),
            percent(e.classifier),
            percent(e.valid_trace_rate),
            false_facts(e.false_facts),
            percent(e.within_budget),
            latency_text(e),
        )
    notes = [f"latency and what is in budget: {note}" for note in sorted({e.latency_note for e in evaluations}) if note]
    if any(e.false_facts for e in evaluations):
        notes.append("false facts: valid traces with a clause that is not among the facts known of the picture")
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def false_facts(found: FalseFacts | None) -> str:
    """`19.0% of 900`: the share of the valid traces with known facts that state a false one; a dash for None."""
    return ABSENT if found is None else f"{percent(found.rate)} of {found.n:,}"


def tasks_table(evaluation: Evaluation) -> Table:
    """One line for each task of one evaluation."""
    title = f"{evaluation.name}{' (simulated)' if evaluation.simulated else ''}"
    table = new_table(Text(title))
    table.add_column("task")
    table.add_column("thinking")
    for column in ("n", "exact", "95% interval", "blind", "classifier", "in budget", "latency"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, task in evaluation.tasks.items():
        low, high = task.interval
        table.add_row(
            Text(key),
            {True: "on", False: "off", None: ABSENT}[task.thinking],
            f"{task.n:,}",
            Text(percent(task.exact), "red" if task.below_blind else ""),
            f"{percent(low)} to {percent(high)}",
            percent(task.blind),
            percent(task.classifier),
            percent(task.within_budget),
            milliseconds(task.latency_ms),
        )
    return table


def per_thousand(found: PerThousand | None) -> str:
    """`262 (201 to 330)`: the number and its interval; a dash for None."""
    if found is None:
        return ABSENT
    return f"{found.value:,.0f} ({found.interval[0]:,.0f} to {found.interval[1]:,.0f})"


def floor_table(evaluation: Evaluation) -> Table:
    """One line for each task: mistakes of both kinds and their cost in a thousand questions on the floor."""
    weighted = any(p.weighted for p in evaluation.prevalence.values())
    how = "at natural prevalence" if weighted else "as asked: the data have no weights"
    title = f"in a thousand questions, {how}{' (simulated)' if evaluation.simulated else ''}"
    table = new_table(title)
    table.add_column("task")
    table.add_column("normal")
    for column in ("n", "scenes", "exact", "normal share", "false passes", "false stops", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, p in evaluation.prevalence.items():
        table.add_row(
            Text(key),
            Text(p.normal or ABSENT),
            f"{p.n:,}",
            f"{p.scenes:,}",
            percent(p.exact),
            percent(p.normal_share),
            per_thousand(p.false_passes),
            per_thousand(p.false_stops),
            per_thousand(p.cost),
        )
    table.caption = (
        "False pass: the answer is the task's normal one, the truth is not. False stop: the reverse. Cost: by the"
        " task's stakes. In brackets: 95% interval by scene."
    )
    table.caption_justify = "left"
    return table


def by_table(evaluation: Evaluation, column: str) -> Table:
    """One line for each listed value of a column, the worst first."""
    found = evaluation.by[column]
    simulated = " (simulated)" if evaluation.simulated else ""
    table = new_table(Text(f"exact by {column}{simulated}"))
    table.add_column(Text(column))
    for name in ("n", "scenes", "exact", "95% interval", "expected", "wrong beyond that"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.values:
        low, high = one.interval
        table.add_row(
            Text(one.value, "red" if high < one.expected else ""),
            f"{one.n:,}",
            f"{one.scenes:,}",
            percent(one.exact),
            f"{percent(low)} to {percent(high)}",
            percent(one.expected),
            f"{one.beyond:+.0f}",
        )
    table.caption = f"{BY_MEANS}{rest_of(found)}"
    table.caption_justify = "left"
    return table


BY_MEANS = (
    "Expected: what its questions' tasks reach in the whole suite. Worst first: the most wrong answers beyond that."
    " Red: the interval lies below what is expected."
)


def rest_of(found: Breakdown) -> str:
    """What a breakdown does not list, as sentences; "" if nothing."""
    text = ""
    if found.other_values:
        text = (
            f" {found.other_values:,} more values are not listed ({found.other_n:,} questions, "
            f"{percent(found.other_exact)} exact): here are the worst and the commonest."
        )
    return text + (f" {found.without:,} questions have no value." if found.without else "")


STYLES = {"use": "green", "use with refusal": "yellow", "do not use": "red"}


def decisions_table(evaluation: Evaluation) -> Table:
    """One line for each task: the decision, its reason, and how many scenes would settle it."""
    table = new_table(f"what to do{' (simulated)' if evaluation.simulated else ''}")
    table.add_column("task")
    table.add_column("advice", no_wrap=True)
    for column in ("acts from", "refuses", "slips through", "cost", "a person"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why")
    for key, d in evaluation.decisions.items():
        table.add_row(
            Text(key, "red" if d.below_blind else ""),
            Text(d.verdict, STYLES[d.verdict]),
            acts_from(d),
            per_thousand(d.refused),
            per_thousand(d.slips),
            per_thousand(d.cost),
            f"{d.cost_person:,.0f}",
            Text(d.because),
        )
    notes = "; ".join(f"{key}: {note}" for key, note in evaluation.calibration_notes.items())
    told = [line for line in (_calibration(evaluation.calibration), notes) if line]
    if told:
        table.caption, table.caption_justify = "\n".join(told), "left"
    return table


def _calibration(found: CalibrationError | None) -> str:
    """How far confidence is from the share that is right, and how many wrong answers are sure; "" if not calibrated."""
    if found is None:
        return ""
    text = (
        f"confidence, {found.n:,} questions of calibrated tasks: expected calibration error {percent(found.ece)}, "
        f"{percent(found.ece_uncalibrated)} before calibration"
    )
    if found.wrong is None:
        return text
    sure, before = found.wrong.sure, found.wrong.sure_uncalibrated
    return f"{text}; of {found.wrong.n:,} wrong answers {sure:,} have {SURE} or more, {before:,} before"


def routes_text(evaluations: Sequence[Evaluation]) -> Text:
    """The tasks that are routed to a person, for all SKUs and for new ones."""
    below = evaluations[0].route_below if evaluations else None
    if below is None:
        return Text()
    text = Text(f"route to a person: exact in less than {percent(below)} of the questions", style="bold")
    found = routed(evaluations)
    for new, what in ((False, "any SKU"), (True, "a new SKU")):
        told = [
            f"{one.task} {percent(one.exact)} ({percent(one.interval[0])} to {percent(one.interval[1])}, n {one.n:,})"
            for one in found
            if one.new_skus == new
        ]
        if told:
            text.append(f"\n  {what}: ", style="yellow").append(", ".join(told), style="not bold")
    return text if found else text.append(": no task", style="not bold")


def acts_from(found: Decision) -> str:
    """`95.0%, else 50.0%`: confidence from which a cell acts on the normal answer, and on others."""
    if found.acts_from is None:
        return "all" if found.verdict == "use" else ABSENT
    normal, other = found.acts_from.normal, found.acts_from.other
    return certainty(normal) if normal == other else f"{certainty(normal)}, else {certainty(other)}"


def baselines_table(scores: dict[str, tuple[int, float, float]]) -> Table:
    """One line for each task without a VLM: `scores` as `score_baselines` returns them."""
    table = new_table("baselines: share exact")
    table.add_column("task")
    for column in ("n", "blind", "classifier"):
        table.add_column(column, justify="right")
    for key, (n, blind, classifier) in scores.items():
        table.add_row(Text(key), f"{n:,}", percent(blind), percent(classifier))
    return table


def comparison_table(found: Comparison) -> Table:
    """One line for each part: both shares, the difference with its interval, the verdict, the scenes still needed."""
    title = f"{found.second} against {found.first}: {found.verdict} (margin {points(found.margin)} points)"
    table = new_table(Text(title))
    table.add_column("")
    for column in ("n", "scenes", "first", "second", "difference", "95% interval", "p (harm)"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    table.add_column("scenes needed", justify="right")
    parts = [(f"{ALL} (macro)", found.overall), *found.families.items(), *found.tasks.items()]
    parts += found.suites.items()
    for name, part in parts:
        table.add_row(
            Text(name),
            f"{part.n:,}",
            f"{part.scenes:,}",
            percent(part.first),
            percent(part.second),
            points(part.difference, sign=True),
            between(part.interval),
            "" if part.harm is None else f"{part.harm:.2g}",
            part.verdict,
            f"+{part.scenes_needed:,}" if part.scenes_needed else "",
        )
    if found.only_first or found.only_second:
        table.caption = (
            f"left out: {found.only_first:,} questions only in the first, {found.only_second:,} only in the second"
        )
    return table


def gate_table(found: Gate) -> Table:
    """What the gate asks beside exact match, and what it decided."""
    table = new_table(Text(f"{found.challenger} against {found.champion}: {found.outcome}"))
    table.add_column("")
    for column in ("n", "champion", "challenger", "change", "95% interval", "passes up to"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for name, check in found.checks.items():
        numbers = [check.first, check.second, check.change]
        table.add_row(
            name,
            f"{check.n:,}",
            *(ABSENT if number is None else f"{number:.3f}" for number in numbers),
            f"{check.interval[0]:.3f} to {check.interval[1]:.3f}" if check.interval else ABSENT,
            ABSENT if check.bound is None else f"{check.bound:.3f}",
            check.verdict + (f": {check.note}" if check.note else ""),
        )
    for name, verdict in found.better_on.items():
        table.add_row(Text(f"better on {name}"), *[""] * 6, verdict)
    for name, why in found.left_out.items():
        table.add_row(Text(f"suite {name}"), *[""] * 6, Text(f"left out: {why}"))
    return table


def forgetting_table(found: Forgetting) -> Table:
    """What was forgotten since an earlier checkpoint: likelihood of texts, and drift of the weights by part."""
    table = new_table(Text(f"forgotten since {found.before}: perplexity before and after"))
    table.add_column("")
    for column in ("n", "tokens", "before", "after", "ratio", "95% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, change in (("captions of pictures", found.captions), ("text without a picture", found.text)):
        if change is None:
            table.add_row(name, "none")
            continue
        low, high = change.interval
        table.add_row(name, f"{change.n:,}", f"{change.tokens:,}", f"{change.before:.3g}", f"{change.after:.3g}",
                      f"{change.ratio:.3f}", f"{low:.3f} to {high:.3f}")  # fmt: skip
    moved = ", ".join(f"{part} {100 * share:.2g}%" for part, share in found.drift.items())
    table.caption = f"A ratio above 1: forgotten. Weights moved, as a share of their norm: {moved}"
    table.caption_justify = "left"
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """One line for each comparison of two stages on a split in a mode, as in the report."""
    margin = f" (margin {points(findings[0].found.margin)})" if findings else ""
    table = new_table(f"what each stage added, in points{margin}")
    for column in ("stages", "split", "thinking"):
        table.add_column(column)
    for column in ("n", "difference", "95% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for split, mode, found in findings:
        table.add_row(
            Text(f"{found.second} less {found.first}"),
            Text(split),
            THINKING[mode],
            f"{found.overall.n:,}",
            points(found.overall.difference, sign=True),
            between(found.overall.interval),
            Text(found.verdict + (f" ({found.because})" if found.because else "")),
        )
    return table


def between(interval: tuple[float, float]) -> str:
    """`-2.5 to +1.0`: an interval of a difference in points."""
    return f"{points(interval[0], sign=True)} to {points(interval[1], sign=True)}"


def cost_table(costs: Mapping[str, Cost]) -> Table:
    """One line for each stage: its computation compared with padded rows, and where its seconds went."""
    table = new_table("what it took")
    table.add_column("stage")
    for column in ("tokens", "as padded rows", "tokens/s", "samples/s", "GFLOP/s", "of matrix rate"):
        table.add_column(column, justify="right", no_wrap=True)
    for phase in PHASES:
        table.add_column(f"{phase} s", justify="right", no_wrap=True)
    for stage, cost in costs.items():
        table.add_row(
            stage,
            f"{cost.tokens:,}",
            f"{cost.dense_tokens:,}",
            f"{cost.rate(cost.tokens):,.0f}",
            f"{cost.rate(cost.samples):,.0f}",
            f"{cost.rate(cost.operations) / 1e9:,.0f}",
            percent(cost.share),
            *(f"{cost.seconds.get(phase, 0.0):,.0f}" for phase in PHASES),
        )
    return table
