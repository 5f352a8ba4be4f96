"""Where a model fails: exact match by the values of a column, such as cell, camera, SKU, week or light.

A row carries the columns of its frame: those of `Meta`, those that a task file lists under `table.by`, and plain values
that the samples hold in `extra`. Questions differ in difficulty, so every value stands beside what is expected of it:
the mean, over its questions, of how often their tasks are exact in the whole suite. The worst value has the most wrong
answers beyond that expectation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from lineside.errors import LinesideError
from lineside.judgement import stats
from lineside.judgement.schema import Breakdown, Row, Share, ValueResult, by_task
from lineside.strict import nearest

WORST, COMMONEST = 20, 20  # values of a column that are listed
ON_REQUEST = ("day", "hour")  # every other column is always broken down


def check_columns(wanted: Iterable[str], carried: Iterable[Mapping[str, list[str]]]) -> None:
    """Raises LinesideError for a column that no question carries, with the known ones."""
    known = list(dict.fromkeys(name for columns in carried for name in columns))
    for name in wanted:
        if name not in known:
            has = f"they carry {', '.join(known)}" if known else "they carry no columns"
            raise LinesideError(
                f"--by {name}: the questions have no column {name!r}{nearest(name, known)}; {has}. A task file adds "
                f"columns of your table: `table: {{by: [{name}]}}`, then label again"
            )


def break_down(rows: Sequence[Row], wanted: Sequence[str] = (), *, seed: int) -> dict[str, Breakdown]:
    """Exact match by the values of each column: those in `wanted`, then every other that tells questions apart.

    A column that has one value, one for almost every scene, or the same groups as an earlier one is left out unless it
    is wanted.
    """
    names = list(dict.fromkeys([*wanted, *(name for row in rows for name in row.columns if name not in ON_REQUEST)]))
    scenes, usual = len({row.scene for row in rows}), _exact_by_task(rows)
    found: dict[str, Breakdown] = {}
    seen: set[frozenset[tuple[int, ...]]] = set()
    for name in names:
        groups = _grouped(rows, name)
        same = frozenset(map(tuple, groups.values()))
        if name not in wanted and (same in seen or not 1 < len(groups) <= max(2, scenes // 2)):
            continue
        seen.add(same)
        found[name] = _breakdown(rows, groups, usual, seed=seed)
    return found


def _grouped(rows: Sequence[Row], name: str) -> dict[str, list[int]]:
    """Positions of the rows with each value."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        for value in row.columns.get(name, ()):
            groups[value].append(position)
    return groups


def _breakdown(
    rows: Sequence[Row], groups: Mapping[str, Sequence[int]], usual: Mapping[str, Share], *, seed: int
) -> Breakdown:
    """The breakdown of one column. `usual`: what the tasks reach in the whole suite."""
    beyond = {value: sum(usual[rows[i].key].exact - rows[i].exact for i in places) for value, places in groups.items()}
    worst = sorted(groups, key=lambda value: (-beyond[value], value))
    commonest = sorted(groups, key=lambda value: (-len(groups[value]), value))
    shown = set(worst[:WORST])
    shown.update([value for value in commonest if value not in shown][:COMMONEST])
    held = {i for value in groups for i in groups[value]}
    left = {i for value in groups if value not in shown for i in groups[value]}
    return Breakdown(
        values=[_value(value, [rows[i] for i in groups[value]], usual, seed=seed) for value in worst if value in shown],
        other_values=len(groups) - len(shown),
        other_n=len(left),
        other_exact=fmean(rows[i].exact for i in left) if left else None,
        without=len(rows) - len(held),
    )


def _value(value: str, rows: Sequence[Row], usual: Mapping[str, Share], *, seed: int) -> ValueResult:
    scenes = [row.scene for row in rows]
    exact = stats.share(scenes, [row.exact for row in rows], seed=seed)
    return ValueResult(
        value=value,
        n=len(rows),
        scenes=len(set(scenes)),
        exact=exact.value,
        interval=exact.interval,
        expected=fmean(usual[row.key].exact for row in rows),
        tasks=_exact_by_task(rows),
    )


def _exact_by_task(rows: Sequence[Row]) -> dict[str, Share]:
    return {
        key: Share(n=len(group), scenes=len({row.scene for row in group}), exact=fmean(row.exact for row in group))
        for key, group in by_task(rows).items()
    }
