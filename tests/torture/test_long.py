"""Slopes of a long run: their intervals hold what they promise, and what does not grow is told from what does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineside.stages import LINE
from tests.torture import long
from tests.torture.long import HELD, WARM, Reading, claims, rounds_of, run, slope_of, verdict


def readings(count: int, *, process: int = 0, first: int = 0, **held: float) -> list[Reading]:
    """Stages that all hold the same."""
    same = {"memory": 500.0, "peak": 600.0, "handles": 8, "threads": 4, "disk": 2.0, "cpu": 1.0} | held
    return [Reading(stage=stage, process=process, **same) for stage in range(first, first + count)]  # type: ignore[arg-type]


def test_a_slope_by_hand() -> None:
    found = slope_of([[2.0 * i for i in range(40)]], each=4)  # 2 in four stages: 50 in a hundred
    assert found is not None and found.value == pytest.approx(50.0) and found.interval == pytest.approx((50.0, 50.0))
    assert (found.first, found.last, found.stages) == (3.0, 75.0, 160)  # blocks of four: 0 2 4 6, and 72 74 76 78
    # Blocks of one: steps 1, 3, 2 have the mean 2, a standard error of sqrt(1.5 / 3), and t of 2 degrees is 4.303.
    found = slope_of([[0.0, 1.0, 4.0, 6.0]], each=100)
    assert found is not None and found.value == 2.0
    assert found.interval == pytest.approx((2 - 4.303 / 2**0.5, 2 + 4.303 / 2**0.5), rel=0.01)
    assert slope_of([[0.0, 1.0, 4.0]]) is None and slope_of([]) is None


def test_what_differs_between_processes_is_no_growth() -> None:
    found = slope_of([[1.0] * 20, [9.0] * 20])
    assert found is not None and found.value == 0.0 and found.interval == (0.0, 0.0)
    first, second = readings(90), readings(90, process=1, first=91)  # killed in the first stage of a round
    values = list(rounds_of([*first, *second], "memory"))
    assert [len(own) for own in values] == [30 - WARM, 29 - WARM]  # a round of two processes is nobody's


@pytest.mark.parametrize(("kept", "least"), [(0.0, 0.95), (0.9, 0.95), (1.0, 0.93)])
def test_an_interval_holds_the_true_slope_as_often_as_it_says(kept: float, least: float) -> None:
    """Readings that are independent, that follow the one before, and that wander off."""
    noise, runs, rounds = np.random.default_rng(0), 400, 156
    held = 0
    for _ in range(runs):
        values, shocks = np.zeros(rounds), noise.normal(size=rounds)
        for i in range(rounds):
            values[i] = shocks[i] + (kept * values[i - 1] if i else 0.0)
        found = slope_of([(values + 0.05 * np.arange(rounds)).tolist()], each=1)
        assert found is not None
        held += found.interval.low <= 5.0 <= found.interval.high
    assert held / runs >= least


def test_one_handle_a_round_grows_and_a_jump_is_not_told_from_growth() -> None:
    same = readings(300)
    assert [verdict(row) for row in claims(same, "")] == ["flat"] * len(HELD)
    leaking = [replace(one, handles=8 + one.stage // 3) for one in same]
    told = {row["what"]: row for row in claims(leaking, "")}
    assert verdict(told["handles"]) == "GROWS" and told["handles"]["slope"] == pytest.approx(100 / 3)
    assert all(row["holds"] == (what != "handles") for what, row in told.items())
    slowly = [replace(one, memory=500.0 + one.stage / 100) for one in same]
    (row,) = (row for row in claims(slowly, "") if row["what"] == "memory")
    assert row["holds"] and verdict(row) == "grows, within its bound"
    jumped = [replace(one, memory=500.0 + 50 * (one.stage > 200)) for one in same]
    (row,) = (row for row in claims(jumped, "") if row["what"] == "memory")
    assert verdict(row) == "NOT SHOWN TO BE FLAT"
    assert {verdict(row) for row in claims(readings(30), "")} == {"too few stages"}


def test_a_killed_run_goes_on_after_the_last_stage_of_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def do(folder: Path, number: int, after: Callable[[str], None]) -> None:
        for name in LINE:  # those of an earlier process are passed over within
            done.append(f"{number} {name}")
            if len(done) == 5:
                raise KeyboardInterrupt
            after(name)

    monkeypatch.setattr(long, "do_round", do)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "recipe.yaml").touch()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "work", tmp_path / "journal.json", 6)
    found = run(tmp_path / "work", tmp_path / "journal.json", 6)
    assert done[3:] == ["1 align", "1 sft", "1 align", "1 sft", "1 rlvr"]
    assert [(one.stage, one.process) for one in found] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert len(json.loads((tmp_path / "journal.json").read_text())) == 6


@pytest.mark.slow
def test_stages_in_one_process_leave_no_file_and_no_thread_open(tmp_path: Path) -> None:
    found = run(tmp_path / "work", tmp_path / "journal.json", 9)
    assert len({(one.handles, one.threads) for one in found[3:]}) == 1  # the first round imports and opens for good
    rounds = [found[at].disk for at in (2, 5, 8)]
    assert max(rounds) - min(rounds) < 0.1 * rounds[0]
