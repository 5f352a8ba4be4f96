"""compare: is the second evaluation better than the first? Paired by question, bootstrapped by scene (DESIGN 8).

The difference is second less first on the questions that both answered, macro over tasks, with the same for every
family and task. The verdict is `better` or `worse` when the interval is clear of 0 and enough scenes differ for that
to mean something, `no difference` otherwise. Left out: a correction for looking at many tasks at once; the verdict
that counts is the overall one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from lineside.errors import CheckFailed, LinesideError
from lineside.judgement.console import percent, points, show
from lineside.judgement.paired import Comparison, compare_rows, rows_by_id
from lineside.judgement.schema import read_evaluation

Expectation = Literal["not worse", "better"]


def compare(
    first: Path,
    second: Path,
    *,
    margin: float = 0.0,
    expect: Expectation = "not worse",
    seed: int = 0,
    as_json: bool = False,
) -> Comparison:
    """Compares two evaluation files, prints the finding, and raises CheckFailed if `second` does not hold up.

    It does not hold up if it is worse by more than `margin` (a share: 0.02 is two points) beyond doubt, that is with
    the whole interval, or under `expect="better"` if the verdict is not `better`. Raises LinesideError for files that
    are not evaluations, share no question, or mean different things by the same question.
    """
    if not 0 <= margin <= 1:
        raise LinesideError(f"margin {margin}: expected a share from 0 to 1, such as 0.02 for two points")
    names = [read_evaluation(path).name for path in (first, second)]
    found = compare_rows(rows_by_id(first), rows_by_id(second), names=(names[0], names[1]), seed=seed)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        show(_table(found))
    overall = found.overall
    if overall.verdict == "worse" and overall.interval[1] < -margin:
        raise CheckFailed(
            f"{found.second} is worse than {found.first} by {points(-overall.difference)} points"
            f" (95% interval {points(overall.interval[0])} to {points(overall.interval[1])}),"
            f" more than the margin of {points(margin)}"
        )
    if expect == "better" and overall.verdict != "better":
        raise CheckFailed(
            f"{found.second} is not shown to be better than {found.first}: {points(overall.difference)} points,"
            f" 95% interval {points(overall.interval[0])} to {points(overall.interval[1])}"
        )
    return found


def _table(found: Comparison) -> Table:
    table = Table(title=Text(f"{found.second} against {found.first}"), title_justify="left", box=None, pad_edge=False)
    for column in ("", "n", "first", "second", "difference", "95% interval", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    parts = [("all (macro over tasks)", found.overall), *found.families.items(), *found.tasks.items()]
    for name, part in parts:
        low, high = part.interval
        table.add_row(
            Text(name),
            f"{part.n:,}",
            percent(part.first),
            percent(part.second),
            points(part.difference, sign=True),
            f"{points(low, sign=True)} to {points(high, sign=True)}",
            part.verdict,
        )
    if found.only_first or found.only_second:
        table.caption = (
            f"left out: {found.only_first} questions only in the first, {found.only_second} only in the second"
        )
    return table
