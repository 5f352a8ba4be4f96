"""What a server has done over the last day, minute by minute, for the charts of its page. In memory, bounded."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MINUTES = 24 * 60  # kept
SAMPLED = 64  # latencies kept of a minute, drawn at random from all
WIDTHS = (1, 2, 5, 10, 30)  # minutes that a point may stand for
POINTS = 60  # at most


@dataclass(slots=True)
class Minute:
    """One minute of one model. `ms`: latencies, each of which stands for `answered / len(ms)` answers."""

    number: int  # since 1970
    answered: int = 0
    refused: int = 0
    late: int = 0
    right: int = 0
    wrong: int = 0
    ms: list[float] = field(default_factory=list)


class Timeline:
    """The last day of each model."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._minutes: dict[str, deque[Minute]] = {}
        self._random = random.Random(0)

    def answer(self, model: str, ms: float, *, late: bool) -> None:
        """An answered request, its milliseconds, and whether it missed its deadline."""
        minute = self._now(model)
        minute.answered += 1
        minute.late += late
        if len(minute.ms) < SAMPLED:
            minute.ms.append(ms)
        elif (place := self._random.randrange(minute.answered)) < SAMPLED:  # algorithm R (Vitter 1985)
            minute.ms[place] = ms

    def refuse(self, model: str) -> None:
        """A request that was refused, for its deadline or for a full queue."""
        self._now(model).refused += 1

    def judge(self, model: str, verdict: str) -> None:
        """The verdict about an answer whose truth was told now: right, wrong or unknown."""
        minute = self._now(model)
        minute.right += verdict == "right"
        minute.wrong += verdict == "wrong"

    def points(self, model: str) -> tuple[int, list[dict[str, Any]]]:
        """Minutes for which a point stands, and at most 60 points, oldest first; minutes without requests have none.

        A point: `time` (seconds since 1970 at which it begins), counts `answered`, `refused`, `late`, `right`, `wrong`,
        and `p50_ms` and `p95_ms`, None without an answer.
        """
        number = self._number()
        minutes = [one for one in self._minutes.get(model, ()) if one.number >= number - MINUTES]
        if not minutes:
            return WIDTHS[0], []
        span = number - minutes[0].number + 1
        width = next((width for width in WIDTHS if span <= width * (POINTS - 1)), WIDTHS[-1])
        groups: dict[int, list[Minute]] = {}
        for minute in minutes:
            groups.setdefault(minute.number // width, []).append(minute)
        return width, [_point(number * width, group) for number, group in groups.items()]

    def _number(self) -> int:
        return int(self._clock() // 60)

    def _now(self, model: str) -> Minute:
        minutes, number = self._minutes.setdefault(model, deque()), self._number()
        if not minutes or minutes[-1].number < number:  # a clock that was set back adds to the last minute
            minutes.append(Minute(number))
            while minutes[0].number <= number - MINUTES:
                minutes.popleft()
        return minutes[-1]


def _point(number: int, minutes: Iterable[Minute]) -> dict[str, Any]:
    group = list(minutes)
    weighed = sorted((ms, minute.answered / len(minute.ms)) for minute in group for ms in minute.ms)
    names = ("answered", "refused", "late", "right", "wrong")
    counts = {name: sum(getattr(minute, name) for minute in group) for name in names}
    return {"time": number * 60, **counts, "p50_ms": quantile(weighed, 0.5), "p95_ms": quantile(weighed, 0.95)}


def quantile(weighed: list[tuple[float, float]], share: float) -> float | None:
    """The smallest value that is not exceeded by `share` of the weight. `weighed`: pairs (value, weight), sorted."""
    left = share * sum(weight for _, weight in weighed)
    for value, weight in weighed:
        left -= weight
        if left <= 1e-9:
            return round(value, 3)
    return None
