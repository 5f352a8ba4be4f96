"""docs/headline.md: the parts of the page that are written from the results, between marks in its text.

    <!-- headline -->   tables of the four suites, claims, what was forgotten, plots and frames; ended by <!-- end -->
    <!-- sorting -->    the same of photographs, without frames; <!-- grocery --> too
    <!-- ablations -->  the tables by group, and the plot of stage 3's gain against the teacher's exactness

All else is written by hand and stays. Pictures lie beside the page. What was not run is written as "not run".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from arms import FAMILIES, Plan, parts_of, suites
from headline_frames import examples
from headline_table import Record, Results, bound, exact, short, told
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement.console import percent, points
from lineside.judgement.forgetting import WITHIN_LM
from lineside.judgement.schema import Mode
from lineside.stages import CONTROLS

MODES = {"think": "on", "fast": "off"}
LOSSES = {"plain": "#b5532a", "lambda": "#888888", "masked": "#1f6f8b"}  # colours
MOVED = ("projector", *WITHIN_LM)  # the encoder is frozen
TEACHERS = ("perfect", "strong", "rlvr", "weak")  # arms of the ablations whose teachers differ; rlvr's is typical


def write_page(
    page: Path, table: str, claims: Sequence[Record], records: Sequence[Record], results: Results, plan: Plan
) -> None:
    """Replace the part of the page that belongs to `table`, and its pictures. Raises LinesideError if it has none."""
    made = ablations(page, records) if table == "ablations" else headline(page, table, claims, records, results)
    fill(page, table, chain([about(records, plan), ""], made))


def fill(page: Path, mark: str, lines: Iterable[str]) -> None:
    """Replace the part of a page after this mark. Raises LinesideError if it has none; `lines` are then not asked."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    block = re.compile(rf"<!-- {mark} -->\n.*?<!-- end -->", re.DOTALL)
    if not block.search(text):
        raise LinesideError(f"{page}: expected a part between <!-- {mark} --> and <!-- end --> to write into")
    body = "\n".join([f"<!-- {mark} -->", "", *lines, "<!-- end -->"])
    write_atomic(page, block.sub(lambda _: body, text, count=1))


def about(records: Sequence[Record], plan: Plan) -> str:
    """One paragraph: of which code, machine and length the numbers are, and what differs from the arms' settings."""
    ran = [r for r in records if r["value"] is not None]
    if not ran:
        return "Nothing of this was run yet."
    scale = "" if plan.scale == 1 else f" **Every stage has {plan.scale:g} of its length.**"
    commits = ", ".join(sorted({c for r in ran for c in r["commit"].split()}))
    machines = "; ".join(sorted({r["machine"] for r in ran}))
    if other := dict.fromkeys(line for r in ran for line in r["other"]):
        scale += f" **Other settings than the recipe's: {', '.join(other)}.**"
    kind = "Real photographs, one seed" if plan.photographs else "Simulated"
    return f"{kind}; {max(r['date'] for r in ran)}, commit {commits}; {machines}.{scale}"


# --- the headline


def headline(
    page: Path, table: str, claims: Sequence[Record], records: Sequence[Record], results: Results
) -> Iterator[str]:
    """The parts of the headline, or of a set of photographs."""
    simulated = table == "headline"

    def of(split: str, mode: Mode) -> list[Record]:
        return [r for r in records if (r["split"], r["mode"]) == (split, mode)]

    for split, mode in suites(table):
        yield from (f"### `{split}`, thinking {MODES[mode]}", "", *arm_table(of(split, mode), parts_of(table)), "")
    yield from ("### Claims", "", *claim_table(claims), "")
    main = of("heldout", "think")
    yield from ("### What was forgotten", "", *forgetting_table(main), "")
    name = "arms" if simulated else f"arms-{table}"
    better = [max(both, key=lambda r: r["value"] or 0.0) for both in zip(main, of("heldout", "fast"))]
    yield from plotted(page, name, plot_arms, better, "Exact answers of each arm on `heldout`, in its better mode")
    if not simulated:
        return
    yield from ("### The same frame answered by teacher, sft and rlvr", "", *frames(page, results), "")


def arm_table(records: Sequence[Record], parts: Sequence[str]) -> Iterator[str]:
    """One suite: a row an arm."""
    yield from heads("arm", "exact", "less sft", "; ".join(map(short, parts)), "rlvr less it", "n; seeds",
                     "valid traces", "tokens a response", "M tokens; minutes")  # fmt: skip
    for r in records:
        name = f"{r['arm']}: {r['about']}"
        if r["value"] is None:
            yield f"| {name} | {r['why']} | | | | | | | |"
            continue
        less, over = r.get("less"), r.get("rlvr_less")
        by_seed = (
            f" by seed: {', '.join(points(d, sign=True) for d in less['by_seed'])}" if less and less["by_seed"] else ""
        )
        yield (
            f"| {name} | {exact(r)} "
            f"| {told(less and less['all'])}{by_seed} | {by_part(less, parts)} | {told(over and over['all'])} "
            f"| {r['n']:,}; {' '.join(map(str, r['seeds']))} | {percent(r['valid'])} | {r['response_tokens']:.0f} "
            f"| {length(r)} |"
        )


def by_part(less: Record | None, parts: Sequence[str] = FAMILIES) -> str:
    """ "+3.1; +0.2; -0.4": the difference in each family or task."""
    return "; ".join(points(less[part][0], sign=True) for part in parts if part in less) if less else ""


def heads(*names: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join(['---'] * len(names))} |"


def length(r: Record) -> str:
    """ "3.72; 18": million tokens trained on, and minutes of the stage."""
    return "" if r["tokens"] is None else f"{r['tokens'] / 1e6:.2f}; {r['minutes']:.0f}"


def claim_table(claims: Sequence[Record]) -> Iterator[str]:
    """What is claimed, and whether it holds."""
    yield from heads("claim", "value", "bound", "n", "")
    for c in claims:
        value = "" if c["value"] is None else f"{c['value']:.3f}"
        if c.get("interval"):
            value += f" ({c['interval'][0]:.2f} to {c['interval'][1]:.2f})"
        if c.get("difference"):
            off = [one for one, mode in zip(("the control", "rlvr"), c["modes"]) if mode == "fast"]
            value += f", of {told(c['difference'])} points"
            value += f", thinking off: {' and '.join(off)}" if off else ""
        if c.get("tasks"):
            value += f" ({', '.join(c['tasks'])})"
        state = {True: "holds", False: "**does not hold**", None: c["why"]}[c["holds"]]
        yield f"| {c['claim']} | {value} | {bound(c)} | {c['n']:,} | {state} |"


def forgetting_table(records: Sequence[Record]) -> Iterator[str]:
    """Stage 3 and what stood in its place, since sft."""
    yield (
        "Perplexity after over before (above 1: forgotten), of `heldout` captions given their pictures and of the same "
        "captions as text alone; caption matching; and how far the weights of each part moved, as a share of their "
        "norm. The first seed's."
    )
    yield ""
    yield from heads("arm", "captions", "text", "caption matching", f"moved: {'; '.join(MOVED)}")
    for r in records:
        if r["arm"] not in ("rlvr", *CONTROLS):
            continue
        found = r.get("forgetting")
        if found is None:
            yield f"| {r['arm']} | {r['why'] or 'not measured'} | | | |"
            continue
        moved = "; ".join(f"{found['drift'][part]:.2%}" for part in MOVED)
        yield (
            f"| {r['arm']} | {ratio(found['captions'])} | {ratio(found['text'])} | {percent(r['captions'])} | {moved} |"
        )


def ratio(change: dict[str, Any] | None) -> str:
    """ "1.042 (1.031 to 1.054)"."""
    if change is None:
        return "none"
    low, high = change["interval"]
    return f"{change['ratio']:.3f} ({low:.3f} to {high:.3f})"


# --- the same frame, three answers


def frames(page: Path, results: Results) -> Iterator[str]:
    """A frame of each family on which the teacher errs and sft and rlvr differ; its picture lies beside the page."""
    found = examples(results)
    if not found:
        yield "Not run, or without a frame that tells them apart."
        return
    yield (
        "Of each family a question that the teacher gets wrong and exactly one of sft and rlvr gets right; of several "
        "the one with the lowest hash. The model's trace stands in brackets."
    )
    yield ""
    yield from heads("frame", "question", "truth", "teacher", "sft", "rlvr")
    for example in found:
        picture = page.with_name(f"headline-{example.family}.jpg")
        write_atomic(picture, example.picture)
        cells = (example.question, example.truth, example.teacher, example.sft, example.rlvr)
        yield f'| <img src="{picture.name}" width="160" alt="{example.family}"> | {" | ".join(map(cell, cells))} |'


def cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


# --- the ablations


def ablations(page: Path, records: Sequence[Record]) -> Iterator[str]:
    """The parts of the ablations."""
    main = [r for r in records if r["mode"] == "think"]
    fast = {r["arm"]: r for r in records if r["mode"] == "fast"}
    points_of = [r for name in TEACHERS for r in main if r["arm"] == name and r.get("less")]
    yield from ("### The gain of stage 3 against the teacher's exactness", "")
    yield from plotted(page, "teacher", plot_teachers, points_of, "Gain of stage 3 against the teacher's exactness", 2)
    for group, arms in groupby(main, key=lambda r: r["group"]):
        yield from (f"### {group[0].upper()}{group[1:]}", "")
        yield from heads("arm", "exact", "difference", "picking; kitting; returns", "thinking off; difference", "n",
                         "valid traces", "M tokens; minutes")  # fmt: skip
        for r in arms:
            yield ablation_row(r, fast[r["arm"]])
        yield ""
        if group == "trace loss":
            probed = [r for r in main if r["group"] == group and r.get("curves")]
            yield from plotted(page, "traces", plot_traces, probed, "Valid traces and exact answers during stage 2")


def ablation_row(r: Record, fast: Record) -> str:
    """One arm of the ablations."""
    name = f"{r['arm']}: {r['about']}"
    if r["value"] is None:
        return f"| {name} | {r['why']} | | | | | | |"
    less, fast_less = (told(one["less"]["all"]) if one.get("less") else "" for one in (r, fast))
    teacher = f", teacher {percent(r['teacher'])}" if r["group"] == "teacher" and r["teacher"] is not None else ""
    alone = f"; on the tasks left out {told(r['left_out']['all'])}" if r.get("left_out") else ""
    return (
        f"| {name}{teacher} | {exact(r)} "
        f"| {less}{' less ' + r['less']['first'] if less else ''}{alone} | {by_part(r.get('less'))} "
        f"| {percent(fast['value'])}{'; ' + fast_less if fast_less else ''} "
        f"| {r['n']:,} | {percent(r['valid'])} | {length(r)} |"
    )


# --- plots


def plotted(page: Path, name: str, plot: Any, records: Sequence[Record], title: str, least: int = 1) -> Iterator[str]:
    """A plot beside the page, if there are enough results for it."""
    ran = [r for r in records if r["value"] is not None]
    picture = page.with_name(f"headline-{name}.png")
    if len(ran) < least:
        picture.unlink(missing_ok=True)
        yield from (f"*{title}*: not run.", "")
        return
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    plot(ran, picture, title.replace("`", ""))
    yield from (f"![{title}]({picture.name})", "")


def plot_arms(records: Sequence[Record], path: Path, title: str) -> None:
    """Exact answers with intervals, a line an arm. The mode is said where thinking is off."""
    from matplotlib import pyplot

    figure, axes = canvas(title, 0.6 + 0.42 * len(records))
    for place, r in enumerate(reversed(records)):
        low, high = (100 * bound for bound in r["interval"])
        axes.hlines(place, low, high, color="#888888", linewidth=2)
        axes.plot(100 * r["value"], place, "o", color="#1f6f8b" if r["arm"] == "rlvr" else "#333333")
        axes.annotate(f"{100 * r['value']:.1f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center")
    names = [r["arm"] + (", thinking off" if r["mode"] == "fast" else "") for r in reversed(records)]
    axes.set_yticks(range(len(records)), names)
    axes.set_xlabel("exact answers, %; 95% interval by scene")
    axes.margins(x=0.12, y=0.15)
    save_plot(pyplot, figure, path)


def plot_teachers(records: Sequence[Record], path: Path, title: str) -> None:
    """The gain of a short stage 3 over its own stage 2, at each teacher's exactness."""
    from matplotlib import pyplot

    figure, axes = canvas(title, 3.2)
    axes.axhline(0, color="#bbbbbb", linewidth=1)
    for r in records:
        if r["teacher"] is None:
            continue
        value, low, high = (100 * x for x in r["less"]["all"])
        x = 100 * r["teacher"]
        axes.vlines(x, low, high, color="#1f6f8b", linewidth=2)
        axes.plot(x, value, "o", color="#1f6f8b")
        name = "typical" if r["arm"] == "rlvr" else r["arm"]
        axes.annotate(name, (x, high), xytext=(0, 5), textcoords="offset points", ha="center")
    axes.set_xlabel("exact answers of the teacher on its own questions, %")
    axes.set_ylabel("gain of stage 3, points")
    axes.margins(x=0.1, y=0.2)
    save_plot(pyplot, figure, path)


def plot_traces(records: Sequence[Record], path: Path, title: str) -> None:
    """The shares of valid traces and of exact answers over the stage, a line an arm; a row for each share of traces
    that are missing or trivial."""
    from matplotlib import pyplot

    shares = sorted({r["arm"].split("-")[1] for r in records}, key=int)
    figure, grid = pyplot.subplots(len(shares), 2, figsize=(7.2, 2.3 * len(shares)), squeeze=False, sharex=True)
    for row, share in zip(grid, shares):
        for axes, (name, label) in zip(row, (("valid", "valid traces, %"), ("exact", "exact answers, %"))):
            for r in (r for r in records if r["arm"].split("-")[1] == share):
                if points_of := r["curves"].get(name):
                    xs, ys = zip(*points_of)
                    loss = r["arm"].split("-")[2]
                    axes.plot([100 * x for x in xs], [100 * y for y in ys], label=loss, color=LOSSES[loss])
            axes.set_title(f"{share}% missing or trivial: {label}", fontsize=9, loc="left")
            axes.set_ylim(-3, 103)
            axes.spines[["top", "right"]].set_visible(False)
        row[1].legend(fontsize=8, frameon=False)
    for axes in grid[-1]:
        axes.set_xlabel("% of the stage")
    figure.suptitle(title, fontsize=11)
    save_plot(pyplot, figure, path)


def canvas(title: str, height: float) -> tuple[Any, Any]:
    """A figure of this height in inches, without a box around it."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def save_plot(pyplot: Any, figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
