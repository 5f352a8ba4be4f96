"""How often a teacher is right: its answers held against records, by task, with intervals by scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lineside.judgement.stats import bootstrap, macro, tabulate, task_means

SEED = 0  # of the bootstrap


class Exactness:
    """Right and wrong answers by task and scene. Memory grows with their number, by some hundred bytes each."""

    def __init__(self) -> None:
        self._scenes: list[str] = []
        self._tasks: list[str] = []
        self._exact: list[float] = []

    @property
    def n(self) -> int:
        """Answers so far."""
        return len(self._exact)

    def add(self, scene: str, task: str, exact: bool) -> None:
        """Note one answer; `task` with its family."""
        self._scenes.append(scene)
        self._tasks.append(task)
        self._exact.append(float(exact))

    def to_json(self) -> dict[str, Any]:
        """The share of exact answers, over all (macro over tasks) and by task, each with n and a 95% interval.

        Raises ValueError where there is no answer.
        """
        outcomes = tabulate(self._scenes, self._tasks, self._exact)
        draws = bootstrap(outcomes, seed=SEED)
        counts = dict(zip(outcomes.tasks, outcomes.count_SK.sum(0).astype(int).tolist()))
        tasks = {task: _rate(value, draws.task(task), n=counts[task]) for task, value in task_means(outcomes).items()}
        return {**_rate(macro(outcomes), draws.macro(), n=outcomes.n), "scenes": len(outcomes.scenes), "tasks": tasks}


def _rate(value: float, interval: tuple[float, float], *, n: int) -> dict[str, Any]:
    return {"exact": round(value, 4), "interval": [round(bound, 4) for bound in interval], "n": n}


def lines(exactness: Mapping[str, Any]) -> list[str]:
    """An account of `Exactness.to_json` for the console, the worst task first."""
    tasks = exactness["tasks"]
    width = max(map(len, tasks))
    worst_first = sorted(tasks.items(), key=lambda item: item[1]["exact"])
    return [
        f"the teacher's answers against the records: exact in {_told(exactness)}, macro over {len(tasks)} tasks",
        *(f"  {name:{width}} {_told(rate)}" for name, rate in worst_first),
    ]


def _told(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['exact']:.1%} ({100 * low:.1f} to {100 * high:.1f}), n {rate['n']:,}"
