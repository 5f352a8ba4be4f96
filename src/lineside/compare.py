"""compare: is the second evaluation better than the first? Paired by question, bootstrapped by scene (DESIGN 8).

The difference is second less first on the questions that both answered, macro over tasks, with the same for every
family and task. The verdict is `better` or `worse` when the interval is clear of 0 and enough scenes differ for that
to mean something, `no difference` otherwise. Left out: a correction for looking at many tasks at once; the verdict
that counts is the overall one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside.errors import CheckFailed, LinesideError
from lineside.judgement.console import percent, points
from lineside.judgement.schema import Row, read_evaluation, read_rows, rows_path
from lineside.judgement.stats import Verdict, paired

Expectation = Literal["not worse", "better"]


class Part(BaseModel):
    """The paired difference of all questions, or of one family's or task's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    n: int
    scenes: int
    differing_scenes: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    verdict: Verdict


class Comparison(BaseModel):
    """What `compare` found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    first: str
    second: str
    only_first: int
    only_second: int
    overall: Part
    families: dict[str, Part]
    tasks: dict[str, Part]


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
    found = compare_rows(_indexed(first), _indexed(second), names=(names[0], names[1]), seed=seed)
    console = Console()
    if as_json:
        console.print_json(found.model_dump_json())
    else:
        console.print(_table(found))
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


def compare_rows(
    first: dict[str, Row], second: dict[str, Row], *, names: tuple[str, str] = ("first", "second"), seed: int = 0
) -> Comparison:
    """The comparison of two evaluations' rows by id. Raises LinesideError as `compare` does."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise LinesideError(
            f"{names[0]} and {names[1]} share no question: paired comparison needs the same split of the same data"
        )
    for key in common:
        a, b = first[key], second[key]
        if (a.question, a.target, a.images, a.key) != (b.question, b.target, b.images, b.key):
            raise LinesideError(
                f"question {key} differs between {names[0]} and {names[1]}: they are of different data,"
                " evaluate both on the same"
            )
    pairs = [(first[key], second[key]) for key in common]
    families, tasks = sorted({a.family for a, _ in pairs}), sorted({a.key for a, _ in pairs})
    return Comparison(
        first=names[0],
        second=names[1],
        only_first=len(first) - len(common),
        only_second=len(second) - len(common),
        overall=_part(pairs, seed),
        families={name: _part([pair for pair in pairs if pair[0].family == name], seed) for name in families},
        tasks={name: _part([pair for pair in pairs if pair[0].key == name], seed) for name in tasks},
    )


def _part(pairs: Sequence[tuple[Row, Row]], seed: int) -> Part:
    found = paired(
        [a.scene for a, _ in pairs],
        [a.key for a, _ in pairs],
        [a.exact for a, _ in pairs],
        [b.exact for _, b in pairs],
        seed=seed,
    )
    return Part(
        n=found.n,
        scenes=found.scenes,
        differing_scenes=found.differing_scenes,
        first=found.first,
        second=found.second,
        difference=found.difference,
        interval=found.interval,
        verdict=found.verdict,
    )


def _indexed(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in read_rows(rows_path(path)):
        if row.id in rows:
            raise LinesideError(f"{rows_path(path)}: question {row.id} stands there twice; each must be answered once")
        rows[row.id] = row
    return rows


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
