"""Convert the minutes of a recipe into tokens or steps, once, before a stage begins.

A schedule that follows the clock gives a different model on another machine, or on the same machine when it is busy. So
the speed is measured first, with a few steps on the stage's own data, whose effect is undone. The result is saved
(budget.json) and is then the length of the stage, however fast the machine really is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from lineside.files import write_atomic
from lineside.recipe import StageSettings
from lineside.strict import read_record

FILE = "budget.json"
FEWEST, MOST = 3, 100  # number of steps that are measured
SHARE, SECONDS = 0.05, 60.0  # measuring may stop after this share of the minutes, or after this many seconds
PATIENCE = 0.5  # share of the minutes after which two steps are enough, because steps are slow
DIGITS = 3  # significant digits of a measured number

Unit = Literal["tokens", "steps"]


@dataclass(frozen=True, slots=True)
class Budget:
    """`minutes` of a stage are `number` tokens or steps. `per_minute` is the speed: the median of `measured` steps."""

    minutes: float
    unit: Unit
    number: int
    per_minute: float
    measured: int

    def line(self) -> str:
        """One line for the console and the run's recipe."""
        speed = f"{self.per_minute:,.0f}" if self.per_minute >= 100 else f"{self.per_minute:.3g}"
        return (
            f"{self.minutes:g} minutes are {self.number:,} {self.unit}, at {speed} {self.unit} a minute (median of "
            f"{self.measured} measured steps)"
        )


def by_clock(settings: StageSettings) -> float | None:
    """The minutes that limit a stage; None if there are none, or if the stage also has a limit in tokens or steps."""
    return settings.max_minutes if settings.max_tokens is None and settings.max_steps is None else None


def read_budget(folder: Path, minutes: float | None) -> Budget | None:
    """The saved budget for these minutes; None if there is none. Raises LinesideError for a damaged file."""
    path = folder / FILE
    if minutes is None or not path.exists():
        return None
    found = read_record(Budget, path, "not a measured budget; delete it to have it measured again")
    return found if found.minutes == minutes else None


def write_budget(folder: Path, budget: Budget) -> None:
    """Save the budget. Raises LinesideError if the disk is full."""
    write_atomic(folder / FILE, json.dumps(asdict(budget), indent=1) + "\n")


@dataclass
class Speed:
    """The measured steps. The first one does not count: caches are still empty and code is still being compiled."""

    steps: list[tuple[float, float]] = field(default_factory=list)  # (tokens or 1, seconds)

    def add(self, number: float, seconds: float) -> None:
        """Add a step."""
        self.steps.append((number, max(seconds, 1e-9)))

    def enough(self, minutes: float) -> bool:
        """Whether enough was measured, or measuring more would take too much of the stage's time."""
        count, seconds = len(self.steps), sum(seconds for _, seconds in self.steps)
        wanted = min(SHARE * 60 * minutes, SECONDS)
        impatient = count > 1 and seconds >= PATIENCE * 60 * minutes
        return (count >= FEWEST and seconds >= wanted) or impatient or count >= MOST

    def budget(self, minutes: float, unit: Unit) -> Budget:
        """The budget at the median speed, so that a pause of the machine or a short step has little effect."""
        rates = [60 * number / seconds for number, seconds in self.steps[1:] or self.steps]
        per_minute = median(rates)
        number = float(f"{per_minute * minutes:.{DIGITS}g}")
        return Budget(minutes, unit, max(1, round(number)), per_minute, len(rates))
