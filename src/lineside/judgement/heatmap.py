"""Heat maps for the page: exact match by the values of a column and by task, with the questions of each field.

The number stands in the field as text and an arrow says what the data show, so that nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lineside.judgement import stats
from lineside.judgement.schema import Breakdown, Evaluation, Share, TaskResult, ValueResult

FEW = 10  # questions: a field with fewer shows only their number
BELOW, ABOVE = "\N{BLACK DOWN-POINTING TRIANGLE}", "\N{BLACK UP-POINTING TRIANGLE}"
STRONGEST = 0.4  # opacity of a field's colour where all answers are right, or all wrong


@dataclass(frozen=True, slots=True)
class Field:
    """The questions of one task with one value. `few`: too few to show a share."""

    n: int
    exact: float
    few: bool
    arrow: str  # down or up: the 95% interval lies wholly below or above the task's mean
    colour: str  # the name of the page's colour: yes or no
    opacity: float


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One family's tasks by the values of a column; `lines` has a field, or None, for each of `tasks`."""

    family: str
    tasks: tuple[TaskResult, ...]
    lines: tuple[tuple[ValueResult, tuple[Field | None, ...]], ...]


def heat_maps(evaluation: Evaluation) -> list[tuple[str, Breakdown, list[HeatMap]]]:
    """(column, its breakdown, a map for each family) of every column that was broken down."""
    return [
        (column, found, [_map(evaluation, found, family) for family in evaluation.families])
        for column, found in evaluation.by.items()
    ]


def weakest(evaluation: Evaluation, key: str) -> str:
    """Where a task has the most wrong answers beyond what its mean makes expected, among the fields that lie below it:
    "material trash: 58.6% of 29"; "" if none does."""
    mean = evaluation.tasks[key].exact
    fields = [
        (f"{column} {one.value}", field(one.tasks[key], mean))
        for column, found in evaluation.by.items()
        for one in found.values
        if key in one.tasks
    ]
    below = [(name, at) for name, at in fields if at.arrow == BELOW and not at.few]
    if not below:
        return ""
    name, at = max(below, key=lambda pair: (mean - pair[1].exact) * pair[1].n)
    return f"{name}: {at.exact:.1%} of {at.n:,}"


def _map(evaluation: Evaluation, found: Breakdown, family: str) -> HeatMap:
    tasks = {key: task for key, task in evaluation.tasks.items() if task.family == family}
    lines = [(one, _fields(one, tasks)) for one in found.values if tasks.keys() & one.tasks.keys()]
    return HeatMap(family, tuple(tasks.values()), tuple(lines))


def _fields(value: ValueResult, tasks: Mapping[str, TaskResult]) -> tuple[Field | None, ...]:
    return tuple(field(value.tasks[key], task.exact) if key in value.tasks else None for key, task in tasks.items())


def field(share: Share, mean: float) -> Field:
    """The field of a share whose task reaches `mean` in the whole suite. Worked: 2 of 10 right where the mean is 80% is
    below it (the interval ends at 51%), 7 of 10 is not."""
    low, high = stats.binomial(share.exact, share.scenes)
    arrow = BELOW if high < mean else ABOVE if low > mean else ""
    return Field(
        n=share.n,
        exact=share.exact,
        few=share.n < FEW,
        arrow=arrow,
        colour="yes" if share.exact >= 0.5 else "no",
        opacity=round(STRONGEST * abs(2 * share.exact - 1), 3),
    )
