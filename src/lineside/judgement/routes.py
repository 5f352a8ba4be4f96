"""Route to a person: the tasks whose share of exact answers stays below a bound.

By task over all questions, and over the questions about new SKUs alone: a task that works for the articles of training
may not for the one that arrives on Monday. The bound is where a wrong answer stops to cost more than a person. With the
default stakes a person costs a quarter of a wrong answer, so acting on every answer pays from 1 - 1/4 = 0.75 on.
"""

from __future__ import annotations

from collections.abc import Sequence

from lineside.data.columns import NEW_SKU
from lineside.judgement import stats
from lineside.judgement.schema import Evaluation, Route, Row, by_task


def routes(rows: Sequence[Row], below: float, *, seed: int) -> list[Route]:
    """The tasks below the bound, the least exact first. Where all questions are about new SKUs, they are listed so."""
    new = [row for row in rows if row.columns.get(NEW_SKU) == ["yes"]]
    found = [] if len(new) == len(rows) else [_route(task, group, False, seed) for task, group in by_task(rows).items()]
    found += [_route(task, group, True, seed) for task, group in by_task(new).items()]
    return sorted((one for one in found if one.exact < below), key=lambda one: (one.new_skus, one.exact, one.task))


def _route(task: str, rows: Sequence[Row], new: bool, seed: int) -> Route:
    scenes = [row.scene for row in rows]
    exact = stats.share(scenes, [row.exact for row in rows], seed=seed)
    return Route(
        task=task, new_skus=new, n=len(rows), scenes=len(set(scenes)), exact=exact.value, interval=exact.interval
    )


def routed(evaluations: Sequence[Evaluation]) -> list[Route]:
    """The routes of several suites together: from each what it says of new SKUs, of all SKUs what the first says."""
    first = [route for route in evaluations[0].routes if not route.new_skus] if evaluations else []
    new: dict[str, Route] = {}
    for route in (route for e in evaluations for route in e.routes if route.new_skus):
        new.setdefault(route.task, route)
    return [*first, *new.values()]
