"""compare: can the second model replace the first? Paired by question, by scene, with a verdict (DESIGN 8).

The difference is second minus first in exact answers, as the macro mean over tasks, and for every family and task.

- `better`: the lower bound of the 95% interval is above 0.
- `not worse`: the lower bound is at or above -margin (non-inferiority).
- `worse`: neither of these, and the data show a loss: the upper bound is below 0, or for a task a one-sided
  test by scene with Holm's correction over the tasks has p <= 5%.
- `too little data`: none of these.

The gate passes if overall and every family are `better` or `not worse` and no task is `worse`. Left out: a correction
for calling one of many tasks `better` by chance. The overall verdict counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.judgement.console import comparison_table, points, show
from lineside.judgement.paired import ALL, Comparison, Part, check_same_suite, compare_rows, rows_by_id
from lineside.judgement.schema import Row, read_evaluation, rows_path
from lineside.recipe import MARGIN

Expectation = Literal["not worse", "better"]


def compare(
    first: Path,
    second: Path,
    *,
    margin: float = MARGIN,
    expect: Expectation = "not worse",
    common_only: bool = False,
    across_modes: bool = False,
    seed: int = 0,
    as_json: bool = False,
) -> Comparison:
    """Compares two evaluation files, prints the comparison, and raises if `second` does not pass the gate.

    `margin` is a share: 0.02 is two points. `common_only` compares only the questions that both answered;
    `across_modes` allows one evaluation with thinking and one without.

    Raises CheckFailed if the verdict is `worse`, or is not `better` under `expect="better"`; TooLittleData if it is
    `too little data`; LinesideError for files that are not evaluations, or not of the same questions.
    """
    if not 0 <= margin <= 1:
        raise LinesideError(f"margin {margin}: expected a share from 0 to 1, such as 0.02 for two points")
    evaluations = read_evaluation(first), read_evaluation(second)
    check_same_suite(*evaluations, across_modes=across_modes)
    names = evaluations[0].name, evaluations[1].name
    if names[0] == names[1]:  # of two runs
        names = str(first), str(second)
    found = compare_rows(
        _rows(first, evaluations[0].n),
        _rows(second, evaluations[1].n),
        names=names,
        margin=margin,
        common_only=common_only,
        seed=seed,
    )
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        show(comparison_table(found))
    _decide(found, expect)
    return found


def _rows(path: Path, n: int) -> dict[str, Row]:
    """The rows of an evaluation of `n` questions. Raises LinesideError if their number is not `n`."""
    rows = rows_by_id(path)
    if len(rows) != n:
        raise LinesideError(
            f"{rows_path(path)}: {len(rows):,} questions, but its evaluation counts {n:,}: evaluate again"
        )
    return rows


def _decide(found: Comparison, expect: Expectation) -> None:
    """Raises for a verdict that does not pass and names the parts that decided it."""
    if found.verdict == "worse":
        raise CheckFailed(f"{found.second} is worse than {found.first}:{_named(found.parts('worse'))}")
    if found.verdict == "too little data":
        raise TooLittleData(
            f"too little data to say whether {found.second} is worse than {found.first} by more than"
            f" {points(found.margin)} points:{_named(found.parts('too little data'))}\n{_wanted(found.margin)}"
        )
    if expect == "better" and found.verdict != "better":
        raise CheckFailed(
            f"{found.second} is not worse than {found.first}, but not shown to be better:{_named({ALL: found.overall})}"
        )


def _named(parts: dict[str, Part]) -> str:
    """One line for each part: its difference with the interval, and the p-value or the scenes needed."""
    return "".join(f"\n  {name}: {_difference(part)}{_evidence(part)}" for name, part in parts.items())


def _difference(part: Part) -> str:
    low, high = part.interval
    return (
        f"{points(part.difference, sign=True)} points"
        f" (95% interval {points(low, sign=True)} to {points(high, sign=True)}, {part.scenes:,} scenes)"
    )


def _evidence(part: Part) -> str:
    if part.verdict == "worse" and part.harm is not None:
        return f", one-sided p {part.harm:.2g} with Holm's correction"
    return f", about {part.scenes_needed:,} more scenes needed" if part.scenes_needed else ""


def _wanted(margin: float) -> str:
    """What the number of scenes needed is computed for."""
    if margin == 0:
        return "With margin 0 two equally good models pass once in 40 times, with any number of scenes: give a margin."
    return (
        'With this many more scenes the verdict is "not worse" with probability 80%, if the two are equally good and'
        " their answers differ as often as here."
    )
