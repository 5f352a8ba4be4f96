"""Minutes become tokens or steps by the speed of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineside.errors import LinesideError
from lineside.recipe import Align, Rlvr
from lineside.training.budget import Budget, Speed, by_clock, read_budget, write_budget


def test_the_median_step_decides() -> None:
    """By hand: 200 tokens a second are 12,000 a minute; 2.5 minutes of them are 30,000."""
    speed = Speed()
    speed.add(400, 60.0)  # the first: code is compiled
    for tokens, seconds in ((400, 2.0), (100, 0.5), (400, 90.0), (404, 2.0), (400, 2.0)):  # one meets a busy machine
        speed.add(tokens, seconds)
    assert speed.budget(2.5, "tokens") == Budget(2.5, "tokens", 30_000, 12_000.0, 5)
    assert speed.budget(1.23456, "tokens").number == 14_800  # three digits: more were not measured
    assert speed.budget(1e-6, "steps").number == 1
    assert "2.5 minutes are 30,000 tokens, at 12,000 tokens a minute" in speed.budget(2.5, "tokens").line()


@pytest.mark.parametrize(
    "minutes, seconds, steps",
    [
        (10, 1.0, 30),  # 5% of its time
        (600, 1.0, 60),  # a minute at most
        (600, 0.001, 100),
        (1, 2.0, 3),
        (1, 20.0, 2),  # slow steps: half of its time is spent, and no third one is taken
        (0.01, 0.001, 30),
    ],
)
def test_how_long_is_measured(minutes: float, seconds: float, steps: int) -> None:
    speed = Speed()
    while not speed.enough(minutes):
        speed.add(1, seconds)
    assert len(speed.steps) == steps


def test_what_decides_the_length_of_a_stage() -> None:
    assert by_clock(Align(max_minutes=2)) == 2
    assert by_clock(Align()) is None
    assert by_clock(Align(max_minutes=2, max_tokens=5)) is None and by_clock(Rlvr(max_minutes=2, max_steps=5)) is None


def test_a_budget_is_of_its_minutes(tmp_path: Path) -> None:
    budget = Budget(2.5, "tokens", 30_000, 12_000.0, 5)
    assert read_budget(tmp_path, 2.5) is None
    write_budget(tmp_path, budget)
    assert read_budget(tmp_path, 2.5) == budget
    assert read_budget(tmp_path, 3.0) is None and read_budget(tmp_path, None) is None
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(LinesideError, match="not a measured budget"):
        read_budget(tmp_path, 2.5)
