"""Minutes of a recipe, turned into tokens or steps once, before a stage begins.

A schedule that runs over the clock gives another model on another machine, or on the same one when it is busy. So the
minutes are measured out beforehand: a few steps are taken on the stage's own data, and none of them is kept. What comes
of it is written down (budget.json) and is from then on the stage's length, however fast or slow the machine turns out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from lineside.errors import LinesideError
from lineside.judgement.files import write_atomic
from lineside.recipe import Stage

FILE = "budget.json"
FEWEST, MOST = 3, 100  # steps measured
SHARE, SECONDS = 0.05, 60.0  # of its minutes and at most, that a stage is measured for
PATIENCE = 0.5  # of its minutes: where steps are so slow, two must do
DIGITS = 3  # of a measured number that mean something

Unit = Literal["tokens", "steps"]


@dataclass(frozen=True, slots=True)
class Budget:
    """`minutes` of a stage are `number` tokens or steps, at `per_minute` by the median of `measured` steps."""

    minutes: float
    unit: Unit
    number: int
    per_minute: float
    measured: int

    def line(self) -> str:
        """For the console and the recipe."""
        speed = f"{self.per_minute:,.0f}" if self.per_minute >= 100 else f"{self.per_minute:.3g}"
        return (
            f"{self.minutes:g} minutes are {self.number:,} {self.unit}, at {speed} {self.unit} a minute (the median of "
            f"steps measured before: {self.measured})"
        )


def by_clock(settings: Stage) -> float | None:
    """The minutes that decide how long a stage is; None where tokens or steps do, or nothing but its epochs."""
    return settings.max_minutes if settings.max_tokens is None and settings.max_steps is None else None


def read_budget(folder: Path, minutes: float | None) -> Budget | None:
    """What was measured for a stage of these minutes; None where nothing was.

    Raises LinesideError for a file that is broken.
    """
    path = folder / FILE
    if minutes is None or not path.exists():
        return None
    try:
        found = Budget(**json.loads(path.read_text(encoding="utf-8")))
        return found if found.minutes == minutes else None
    except (OSError, ValueError, TypeError) as error:
        raise LinesideError(f"{path}: not a measured budget ({error}); delete it to have it measured again") from None


def write_budget(folder: Path, budget: Budget) -> None:
    """Raises LinesideError where the disk is full."""
    write_atomic(folder / FILE, json.dumps(asdict(budget), indent=1) + "\n")


@dataclass
class Speed:
    """Steps that were measured. The first is left out: it meets caches empty and code not yet compiled."""

    steps: list[tuple[float, float]] = field(default_factory=list)  # (tokens or 1, seconds)

    def add(self, number: float, seconds: float) -> None:
        """Note a step."""
        self.steps.append((number, max(seconds, 1e-9)))

    def enough(self, minutes: float) -> bool:
        """Whether the speed is known well enough, or measuring more would take too much of the stage's time."""
        count, seconds = len(self.steps), sum(seconds for _, seconds in self.steps)
        wanted = min(SHARE * 60 * minutes, SECONDS)
        impatient = count > 1 and seconds >= PATIENCE * 60 * minutes
        return (count >= FEWEST and seconds >= wanted) or impatient or count >= MOST

    def budget(self, minutes: float, unit: Unit) -> Budget:
        """By the median step: neither a pause of the machine nor a short step counts for more than one."""
        rates = [60 * number / seconds for number, seconds in self.steps[1:] or self.steps]
        per_minute = median(rates)
        number = float(f"{per_minute * minutes:.{DIGITS}g}")
        return Budget(minutes, unit, max(1, round(number)), per_minute, len(rates))
