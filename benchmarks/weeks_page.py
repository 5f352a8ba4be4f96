"""docs/weeks.md: the parts of the page that are written from the results, between marks in its text.

    <!-- weeks -->   table, claims, plot of the simulated weeks; <!-- sorting --> and <!-- grocery -->: of photographs

Each is ended by <!-- end -->. All else is written by hand and stays. The plot lies beside the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headline_page import claim_table, fill, heads
from lineside.judgement.console import percent
from weeks_arms import ARMS
from weeks_table import NEW, OLD, OUTCOME_COLUMNS, Record, Results, less, name_of, outcome_rows, told

LINES = {  # colour, and what a reader calls the arm
    "none": ("#8a8f94", "never retrained"),
    "ours": ("#0b6e8f", "retrained weekly"),
    "scratch": ("#c08a1e", "trained anew on everything"),
    "plain": ("#b5532a", "fine-tuned on the week alone"),
}
PLANTED = {"labels": "a fifth of the labels wrong", "camera": "a camera knocked", "noise": "harmless noise"}


def write_page(page: Path, results: Results) -> None:
    """Replace the plan's part of the page, and its plot. Raises LinesideError if the page has no such part."""
    fill(page, results.plan.photographs or "weeks", parts(page, results))


def parts(page: Path, results: Results) -> Iterator[str]:
    """The lines of a part."""
    plan, records, left, provenance = results.plan, results.records, results.left, results.provenance
    picture = page.with_name(f"weeks{'-' + plan.photographs if plan.photographs else ''}.svg")
    if len([r for r in records if not r["planted"]]) < 2:
        picture.unlink(missing_ok=True)
        yield from ("Not run.", "")
        return
    small = "" if plan.minutes == 1 else f" A small version: every training has {plan.minutes:g} of its length."
    rest = f" Not run: {len(left)} arms and weeks." if left else ""
    where = f"Photographs ({plan.photographs})" if plan.photographs else "Simulated"
    yield (f"{where}; `{provenance['command']}`, commit {provenance['commit']}; {provenance['machine']}.{small}{rest}")
    yield ""
    plot(records, picture, simulated=not plan.photographs)
    yield from (f"![Right answers by week]({picture.name})", "")
    yield from table(records)
    yield from ("", *versus(results.versus), *claim_table(results.claims), "")
    yield from planted(records)
    yield from outcomes(records)
    if any(results.changes.values()):
        yield from changed(results.changes)


def table(records: Sequence[Record]) -> Iterator[str]:
    """A row for each arm and week."""
    yield from heads("week", "arm", "new week", "all before", "less scratch, new", "less scratch, before", "minutes",
             "M tokens", "of scratch's compute", "n new; before", "gate")  # fmt: skip
    for r in records:
        if r["planted"]:
            continue
        spent, apart = r["cost"], r.get("less_scratch", {})
        cells = (
            str(r["week"]), name_of(r), told(r[NEW]), told(r[OLD]), less(apart.get(NEW)), less(apart.get(OLD)),
            f"{spent['minutes']:.1f}" if spent else "", f"{spent['tokens'] / 1e6:.2f}" if spent else "",
            percent(r["share"]) if "share" in r else "",
            "; ".join(f"{part['n']:,}" for part in (r[NEW], r[OLD]) if part), r.get("gate", ""),
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def versus(rows: Sequence[Record]) -> Iterator[str]:
    """Ours less each other arm, in pairs."""
    if rows:
        yield from heads("ours less", "each new week, together", "all weeks before, at the end", "n")
        for r in rows:
            counts = "; ".join(f"{part['n']:,}" for part in (r[NEW], r[OLD]) if part)
            yield f"| {r['arm']} | {less(r[NEW])} | {less(r[OLD])} | {counts} |"
        yield ""


def planted(records: Sequence[Record]) -> Iterator[str]:
    """What the gate said to the planted weeks."""
    chosen = [r for r in records if r["planted"]]
    if not chosen:
        return
    yield from heads("planted week", "the gate", "because")
    for r in chosen:
        because = "; ".join(r["because"]).replace("|", "\\|")
        yield f"| week {r['week']}, {PLANTED[r['planted']]} | {r['gate']} | {because} |"
    yield ""


def outcomes(records: Sequence[Record]) -> Iterator[str]:
    """What a week gave of which only outcomes are known."""
    if rows := outcome_rows(records):
        yield from heads(*OUTCOME_COLUMNS)
        yield from (f"| {' | '.join(row)} |" for row in rows)
        yield ""


def changed(changes: Mapping[int, Mapping[str, list[str]]]) -> Iterator[str]:
    """What each week brought, as the simulator wrote it beside the frames."""
    yield from heads("week", "new SKUs", "retired", "new packaging", "camera moved")
    for week, what in changes.items():
        if what:
            numbers = (len(what[key]) for key in ("new", "retired", "repackaged"))
            yield f"| {week} | {' | '.join(map(str, numbers))} | {', '.join(what['moved'])} |"
    yield ""


def plot(records: Sequence[Record], path: Path, *, simulated: bool) -> None:
    """Exact match by week, a line an arm: above on the week's own questions, below on those of all weeks before."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "weeks", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 1, figsize=(8.4, 6.4), sharex=True)
    titles = ("right answers about the new week, %", "right answers about all weeks before, %")
    for axes, part, title in zip(grid, (NEW, OLD), titles):
        ends = []
        for arm in ARMS:
            rows = [r for r in records if r["arm"] == arm and not r["planted"] and r[part]]
            start = [r for r in records if r["week"] == 0 and r[part]]  # all begin with the base
            if not rows:
                continue
            rows = rows if arm == "none" else [*start, *rows]
            colour, name = LINES[arm]
            xs, ys = [r["week"] for r in rows], [100 * r[part]["value"] for r in rows]
            bounds = [[100 * r[part]["interval"][side] for r in rows] for side in (0, 1)]
            axes.fill_between(xs, *bounds, color=colour, alpha=0.10, linewidth=0)
            axes.plot(xs, ys, "-o", color=colour, markersize=4, linewidth=2.4 if arm == "ours" else 1.6, zorder=3)
            ends.append((ys[-1], xs[-1], name, colour))
        name_lines(axes, ends)
        if part == NEW:
            mark_planted(axes, records)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e7e3db", linewidth=0.8)
    last = max(r["week"] for r in records)
    grid[1].set_xticks(range(last + 1))
    grid[1].set_xlabel(f"week{' (simulated)' if simulated else ''}; shaded: 95% interval")
    grid[1].set_xlim(-0.2, last * 1.02 + 0.2)
    figure.tight_layout()
    figure.subplots_adjust(left=0.07, right=0.74)
    place = path.with_suffix(".svg.part")
    figure.savefig(place, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    place.replace(path)


def name_lines(axes: Any, ends: Sequence[tuple[float, int, str, str]]) -> None:
    """Each line's name at its right end, moved apart where two would lie on each other."""
    ends = sorted(ends)
    for (y, x, name, colour), at in zip(ends, apart(axes, [y for y, *_ in ends], 0.085)):
        axes.annotate(name, (x, y), xytext=(axes.get_xlim()[1], at), textcoords="data", color=colour, va="center",
                      fontsize=9.5, annotation_clip=False)  # fmt: skip


def apart(axes: Any, heights: Sequence[float], gap: float) -> Iterator[float]:
    """Rising heights, moved up so that a share `gap` of the axes lies between any two."""
    low, high = axes.get_ylim()
    at = float("-inf")
    for y in heights:
        at = max(y, at + gap * (high - low))
        yield at


def mark_planted(axes: Any, records: Sequence[Record]) -> None:
    """The planted weeks: a cross where the gate refused, a tick where it passed, at the challenger's exact match."""
    chosen = [r for r in records if r["planted"] and r["challenger"][NEW]]
    chosen.sort(key=lambda r: r["challenger"][NEW]["value"])
    heights = [100 * r["challenger"][NEW]["value"] for r in chosen]
    for r, y, at in zip(chosen, heights, list(apart(axes, heights, 0.075))):
        refused = r["gate"] != "passed"
        colour = "#a8452c" if refused else "#2f7d4f"
        axes.plot(r["week"], y, "x" if refused else "D", color=colour, markersize=8, markeredgewidth=2.2, zorder=4)
        axes.annotate(f"{PLANTED[r['planted']]}: {r['gate']}", (r["week"], y), xytext=(r["week"] + 0.2, at),
                      va="center", color=colour, fontsize=8.5, zorder=5,
                      bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})  # fmt: skip
