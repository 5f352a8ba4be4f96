"""The offset between two clocks: planted ones are found, unclear ones are refused, jumps are told."""

from __future__ import annotations

import numpy as np
import pytest

from lineside.data.clocks import Offset, Rows, estimate, jumps
from lineside.data.times import SECOND

DAY = 86400


def frames(n: int = 400, gap: float = 15.0, seed: int = 0) -> np.ndarray:
    """Frames at random times, in seconds."""
    return np.cumsum(np.random.default_rng(seed).exponential(gap, n) + 3)


def events(at: np.ndarray, within: float = 2.0, side: str = "either") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    event = np.sort(np.round(at * SECOND).astype(np.int64))
    wide = round(within * SECOND)
    return event - (0 if side == "before" else wide), event + (0 if side == "after" else wide), event


def compared(seen: np.ndarray, at: np.ndarray, within: float = 2.0, side: str = "either") -> Offset:
    return estimate([Rows(np.round(seen * SECOND).astype(np.int64), *events(at, within, side))])


@pytest.mark.parametrize("planted", [0.0, 3.2, -47.0, 3600.4, -7200.0, 0.25])
@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_a_planted_offset_is_found(planted: float, lost: float) -> None:
    rng, seen = np.random.default_rng(7), frames()
    kept = rng.random(len(seen)) >= lost
    strange = rng.uniform(seen[0], seen[-1], 60)
    found = compared(seen, np.concatenate([seen[kept] + planted + rng.normal(0, 0.1, kept.sum()), strange]))
    assert found.seconds == pytest.approx(planted, abs=0.05)
    assert found.spread is not None and 0.03 < found.spread < 0.2
    assert found.drift == 0 and not found.step


def test_the_offset_is_found_over_several_cells() -> None:
    groups = []
    for seed in range(20):  # each cell alone has too few frames
        seen = frames(10, seed=seed)
        groups.append(Rows(np.round(seen * SECOND).astype(np.int64), *events(seen + 12.5)))
    assert estimate(groups).seconds == pytest.approx(12.5, abs=0.01)
    assert estimate(groups * 60).frames < 20 * 60 * 10  # of very many keys some are compared


def test_events_after_the_frame_need_no_offset_while_they_lie_within() -> None:
    seen, rng = frames(), np.random.default_rng(1)
    delay = rng.uniform(2, 6, len(seen))
    found = compared(seen, seen + delay, 10.0, "after")
    assert found.seconds == 0.0 and found.low < 0 < found.high and "agrees" in found.told()
    late = compared(seen, seen + delay + 60, 10.0, "after")
    assert late.seconds == pytest.approx(60, abs=4) and late.low < 60 < late.high


def test_an_offset_of_order_lines_is_found_by_their_gaps() -> None:
    rng = np.random.default_rng(3)
    start = np.cumsum(rng.exponential(120, 300) + 60)
    end = start + np.diff(np.append(start, start[-1] + 100)) * 0.6
    seen = np.sort(np.concatenate([rng.uniform(a, b, 2) for a, b in zip(start, end, strict=True)]))
    for planted in (0.0, 300.0):
        first, last = ((t + planted) * SECOND for t in (start, end))
        found = estimate([Rows((seen * SECOND).astype(np.int64), first.astype(np.int64), last.astype(np.int64))])
        assert found.seconds is not None and found.low <= planted <= found.high
        assert (found.seconds == 0) == (planted == 0)


def test_a_fixed_cycle_has_no_clear_offset() -> None:
    seen = np.arange(400) * 10.0
    found = compared(seen, seen + 4)
    assert found.seconds is None and "equally good" in found.reason


def test_readings_at_all_times_do_not_tell() -> None:
    seen = frames(300)
    found = compared(seen, np.arange(0, seen[-1], 0.2), 2.0)
    assert found.seconds is None and found.reason


def test_unrelated_logs_do_not_tell() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen = frames(200, seed=seed)
        assert compared(seen, rng.uniform(0, seen[-1], 200)).seconds is None


def test_few_frames_do_not_tell() -> None:
    seen = np.arange(5) * 60.0
    assert "only 5 frames" in compared(seen, seen + 1).reason
    assert estimate([]).seconds is None


@pytest.mark.parametrize("rate", [4.3, -20.0])  # seconds a day: 50 ppm, and a bad clock
def test_a_drift_is_told(rate: float) -> None:
    seen = frames(3000, gap=120)  # four days
    found = compared(seen, seen * (1 + rate / DAY) + 5 + np.random.default_rng(0).normal(0, 0.05, len(seen)))
    assert found.drift == pytest.approx(rate, rel=0.1)
    middle = found.middle / SECOND
    assert found.seconds == pytest.approx(5 + middle * rate / DAY, abs=0.5)


def test_a_drift_is_no_step_where_frames_go_on_after_the_log_ends() -> None:
    """Five days with a log, then a Monday without one. The last part of the time holds frames of both: its estimate
    speaks for Friday, not for the middle of the weekend."""
    rng = np.random.default_rng(5)
    days = [np.sort(rng.uniform(0, 8 * 3600, 108)) + day * DAY for day in (0, 1, 2, 3, 4, 7)]
    seen = np.concatenate(days)
    logged = seen[seen < 5 * DAY]
    found = compared(seen, logged - 136 - 5 * logged / DAY + rng.normal(0, 2, len(logged)), 20.0)
    assert not found.step, found
    assert found.drift == pytest.approx(-5, abs=1)
    assert found.seconds == pytest.approx(-136 - 5 * found.middle / (DAY * SECOND), abs=1.5)


@pytest.mark.parametrize("n", [240, 600])
@pytest.mark.parametrize("rate", [0.0, 6.0])
def test_a_drift_of_order_lines_is_told_though_each_day_fits_a_wide_range(rate: float, n: int) -> None:
    """A line is open for 14 to 23 seconds. So an offset of 10 seconds more fits a day too, but not the next days."""
    rng = np.random.default_rng(1)
    per_day = [np.sort(rng.uniform(0, 8 * 3600, n // 6)) + day * DAY for day in (0, 1, 2, 3, 4, 7)]
    seen = np.concatenate(per_day)
    ahead = 187 + rate * seen / DAY
    first, last = seen + ahead - rng.uniform(4, 12, n), seen + ahead + rng.uniform(9, 12, n)
    spans = ((times * SECOND).astype(np.int64) for times in (seen, first, last))
    found = estimate([Rows(*spans)])
    assert not found.step and found.seconds is not None
    assert found.drift == pytest.approx(rate, abs=1 if rate else 0)
    assert found.seconds == pytest.approx(187 + rate * found.middle / (DAY * SECOND), abs=4)


def test_a_clock_that_was_set_is_told() -> None:
    seen = frames(800)
    found = compared(seen, seen + np.where(np.arange(800) < 300, 1.0, 31.0))
    assert "was set" in found.step and "1 s to 31 s" in found.step and "daylight" not in found.step
    hour = compared(seen, seen + np.where(np.arange(800) < 300, 0.0, 3600.0))
    assert "daylight saving" in hour.step


def test_jumps_are_told_by_key_and_row() -> None:
    times = np.arange(40) * 10 * SECOND
    times[25:] -= 3600 * SECOND
    found = jumps(np.zeros(40, int), times, np.arange(1, 41))
    assert found is not None and (found.count, found.row, found.seconds) == (1, 26, 3590.0)
    assert jumps(np.zeros(40, int), np.arange(40) * SECOND, np.arange(40)) is None
    newest_first = jumps(np.zeros(40, int), times[::-1], np.arange(1, 41))
    assert newest_first is not None and newest_first.count == 1 and newest_first.row == 16
    two = np.arange(40) % 2  # two cells by turns, whose clocks differ: no jump in either
    assert jumps(two, np.arange(40) * SECOND - two * 100 * SECOND, np.arange(40)) is None
    assert jumps(np.zeros(40, int), np.random.default_rng(0).permutation(40), np.arange(40)) is None  # in no order
    assert jumps(np.empty(0, int), np.empty(0, np.int64), np.empty(0, int)) is None


def test_an_hour_back_is_named() -> None:
    times = np.arange(30) * 10 * SECOND
    times[10:] -= 3610 * SECOND
    found = jumps(np.zeros(30, int), times, np.arange(30))
    assert found is not None and "daylight saving" in found.told()
