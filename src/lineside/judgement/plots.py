"""The report's plots: matplotlib, as inline SVG in the page's colours, for light and dark themes.

matplotlib knows only fixed colours. So each role is drawn in a placeholder colour, which is then replaced by the page's
CSS variable. Text stays text (it uses the page's font and can be searched), and none of it is read as TeX.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from lineside.judgement.schema import CalibrationError, Coverage, Evaluation
from lineside.stages import STAGES, is_control

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Roles of the page's palette, each with its placeholder colour.
INK, MUTED, LINE, PAPER, NO = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
STAGE_COLOURS = {stage: f"#0b000{number}" for number, stage in enumerate(STAGES, start=1)}
OTHER = "#0b0000"
LABEL = 24  # characters
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    NO: "no",
    OTHER: "stage-other",
    **{colour: f"stage-{stage}" for stage, colour in STAGE_COLOURS.items()},
}


@dataclass(frozen=True, slots=True)
class Series:
    """One logged number of a stage over its steps; values may have gaps."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def colour_of(stage: str) -> str:
    """The placeholder colour of a stage."""
    return STAGE_COLOURS.get(stage, OTHER)


def accuracy_by_stage(evaluations: Sequence[Evaluation]) -> Markup:
    """Exact match over the stages. Thin lines: families; thick: the macro mean; dashed: blind and the controls."""
    line = [e for e in evaluations if not is_control(e.stage)] or list(evaluations)
    with _figure(5.1, 3.3) as (figure, axes):
        places = list(range(len(line)))
        ends: list[tuple[float, str, str]] = []
        for family in sorted({name for e in line for name in e.families}):
            known = [(x, e.families[family].exact) for x, e in zip(places, line) if family in e.families]
            axes.plot(*zip(*known), color=MUTED, linewidth=1.1, marker="o", markersize=3.2, clip_on=False)
            ends.append((known[-1][1], _label(family), MUTED))
        overall = [e.exact for e in line]
        axes.plot(places, overall, color=INK, linewidth=2.4, marker="o", markersize=5, clip_on=False)
        axes.vlines(places, [e.interval[0] for e in line], [e.interval[1] for e in line], color=INK, linewidth=1.2)
        ends.append((overall[-1], "all", INK))
        blind = [(x, e.blind) for x, e in zip(places, line) if e.blind is not None]
        if blind:
            axes.plot(*zip(*blind), color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
            ends.append((blind[-1][1], "blind", MUTED))
        for control in (e for e in evaluations if is_control(e.stage) and len(line) > 1):
            colour = colour_of(control.stage)
            axes.plot(places[-2:], [overall[-2], control.exact], color=colour, linewidth=1.6, linestyle=(0, (3, 2)))
            axes.plot(places[-1], control.exact, "o", color=colour, markersize=5)
            ends.append((control.exact, control.stage, colour))
        for y, (_, label, colour) in zip(_apart([end[0] for end in ends], 0.06), ends):
            axes.text(places[-1] + 0.08, y, label, color=colour, va="center", fontsize=9, parse_math=False)
        axes.set_xlim(-0.15, places[-1] + 0.35)
        axes.set_xticks(places, [e.stage for e in line])
        _percent(axes, "y")
        return _svg(figure, "accuracy by stage")


def accuracy_by_task(evaluations: Sequence[Evaluation], family: str) -> Markup:
    """A family's tasks: for each stage a dot with its interval; a tick for blind, a cross for the classifier.

    The name of a task below the blind baseline is red.
    """
    last = next((e for e in reversed(evaluations) if not is_control(e.stage)), evaluations[-1])
    keys = [key for key, task in last.tasks.items() if task.family == family]
    keys.sort(key=lambda key: last.tasks[key].exact)
    with _figure(3.5, 0.45 + 0.44 * len(keys)) as (figure, axes):
        lane = 0.56 / max(1, len(evaluations))
        for number, evaluation in enumerate(evaluations):
            offset = lane * ((len(evaluations) - 1) / 2 - number)
            colour = colour_of(evaluation.stage)
            for place, key in enumerate(keys):
                task = evaluation.tasks.get(key)
                if task is None:
                    continue
                axes.hlines(place + offset, *task.interval, color=colour, linewidth=1.4)
                axes.plot(task.exact, place + offset, "o", color=colour, markersize=4.6, clip_on=False)
        for place, key in enumerate(keys):
            task = last.tasks[key]
            if task.blind is not None:
                axes.vlines(task.blind, place - 0.34, place + 0.34, color=MUTED, linewidth=1.4)
            if task.classifier is not None:
                axes.plot(task.classifier, place, "x", color=MUTED, markersize=5, markeredgewidth=1.3)
        axes.set_yticks(range(len(keys)), [_label(last.tasks[key].task) for key in keys], parse_math=False)
        axes.set_ylim(-0.6, len(keys) - 0.4)
        axes.tick_params(axis="y", length=0, pad=6, labelsize=9.5, labelcolor=INK)
        for label, key in zip(axes.get_yticklabels(), keys):
            if last.tasks[key].below_blind:
                label.set_color(NO)
        _percent(axes, "x")
        return _svg(figure, f"accuracy by task {family}")


def latency_and_accuracy(evaluations: Sequence[Evaluation]) -> Markup:
    """Every stage and mode at its median latency and accuracy: full with thinking on, hollow with thinking off."""
    timed = [e for e in evaluations if e.latency_ms]
    with _figure(5.1, 3.3) as (figure, axes):
        for stage in dict.fromkeys(e.stage for e in timed):
            mine = sorted((e for e in timed if e.stage == stage), key=lambda e: e.latency_ms or 0)
            colour = colour_of(stage)
            times = [e.latency_ms or 0.0 for e in mine]
            axes.plot(times, [e.exact for e in mine], color=colour, linewidth=0.9, alpha=0.5)
            for e, time in zip(mine, times):
                fill = colour if e.mode == "think" else PAPER
                axes.vlines(time, *e.interval, color=colour, linewidth=1.1)
                axes.plot(
                    time,
                    e.exact,
                    "o",
                    color=colour,
                    markerfacecolor=fill,
                    markersize=7,
                    markeredgewidth=1.6,
                    clip_on=False,
                )
        axes.set_xlim(0, 1.15 * max((e.latency_ms or 1.0 for e in timed), default=1.0))
        axes.set_xlabel("median time of one question, ms", fontsize=9, color=MUTED)
        _percent(axes, "y")
        return _svg(figure, "latency and accuracy")


def risk_coverage(curves: Mapping[str, Sequence[Coverage]]) -> Markup:
    """Accuracy of the answered questions over their share; one line for each stage."""
    with _figure(5.1, 3.3) as (figure, axes):
        lowest = 1.0
        for stage, curve in curves.items():
            kept = [point for point in curve if point.coverage >= 0.02] or list(curve)
            axes.plot([p.coverage for p in kept], [p.accuracy for p in kept], color=colour_of(stage), linewidth=1.8)
            lowest = min(lowest, *(point.accuracy for point in kept))
        _percent(axes, "x")
        _percent(axes, "y")
        axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
        if lowest > 0.45:  # `_percent` marks quarters, which would leave the scale almost empty
            tenths = [place / 10 for place in range(5, 11)]
            axes.set_yticks(tenths, [f"{100 * place:.0f}{'%' * (place == 1)}" for place in tenths])
        axes.set_xlabel("share of questions answered, surest first", fontsize=9, color=MUTED)
        return _svg(figure, "risk and coverage")


def reliability_diagram(found: CalibrationError, stage: str) -> Markup:
    """Share right over confidence, one dot for each bin, sized by its questions. Full: calibrated; hollow: not."""
    with _figure(5.1, 3.3) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
        for bins, fill, colour in ((found.bins_uncalibrated, PAPER, MUTED), (found.bins, None, colour_of(stage))):
            axes.plot([b.confidence for b in bins], [b.exact for b in bins], color=colour, linewidth=0.9, alpha=0.5)
            for b in bins:
                axes.plot(
                    b.confidence,
                    b.exact,
                    "o",
                    color=colour,
                    markerfacecolor=fill or colour,
                    markersize=3.5 + 8 * (b.n / found.n) ** 0.5,
                    clip_on=False,
                )
        _percent(axes, "x")
        _percent(axes, "y")
        axes.set_xlabel("confidence", fontsize=9, color=MUTED)
        return _svg(figure, "reliability")


@functools.lru_cache(maxsize=256)  # a run writes its report after each stage, with the curves of those before it
def training_curve(series: Series, stage: str) -> Markup:
    """One logged number: every step faint, its running mean in front."""
    with _figure(2.6, 1.45) as (figure, axes):
        colour = colour_of(stage)
        axes.plot(series.steps, series.values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(series.steps, _running_mean(series.values), color=colour, linewidth=1.7)
        low, high = _bulk(series.values)
        axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
        axes.locator_params(axis="both", nbins=4)
        axes.tick_params(labelsize=9)
        return _svg(figure, f"curve {stage} {series.name}")


def _label(name: str) -> str:
    """A name as text for people, cut to leave room for the plot."""
    spaced = name.replace("_", " ")
    return spaced if len(spaced) <= LABEL else spaced[: LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Moves labels until neighbours are `gap` apart; keeps their order and, roughly, their place."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(60):
        for i in range(len(moved) - 1):
            short = gap - (moved[i + 1] - moved[i])
            if short > 1e-6:
                moved[i] -= short / 2
                moved[i + 1] += short / 2
    result = [0.0] * len(places)
    for place, i in zip(moved, order):
        result[i] = place
    return result


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over about a twentieth of the steps around each, fewer at the ends."""
    half = max(1, len(values) // 40)
    totals = [0.0, *accumulate(values)]
    bounds = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(totals[stop] - totals[start]) / (stop - start) for start, stop in bounds]


def _bulk(values: Sequence[float]) -> tuple[float, float]:
    """Range without the most extreme percent at each end, so that one spike does not flatten the curve."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    return ordered[cut], ordered[-1 - cut]


def _percent(axes: Axes, which: Literal["x", "y"]) -> None:
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    limits(-0.02, 1.02)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100%"])
    axes.grid(axis=which, color=LINE, linewidth=0.8)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Figure and axes in the page's plain style, sizes in inches. Without pyplot there is no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 9.5,
        "font.family": "sans-serif",
        "path.simplify": True,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
        yield figure, axes


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an `<svg>` element that scales with its box; `name` keeps its ids apart from other plots'."""
    import matplotlib

    buffer = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    unique = re.sub(r"[^a-z0-9]+", "-", name.lower())
    svg = re.sub(
        r'<g id="(figure|axes|patch|line2d|xtick|ytick|text|matplotlib\.axis|LineCollection|PathCollection)_[^"]*"',
        "<g",
        svg,
    )
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{unique}-", svg)
    return Markup(svg)
