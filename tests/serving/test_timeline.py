"""The last day of a server: minutes, points, percentiles, and that it stays bounded."""

from __future__ import annotations

import pytest

from lineside.serving.timeline import MINUTES, POINTS, SAMPLED, Timeline, quantile


def timeline() -> tuple[Timeline, list[float]]:
    now = [1_000_020.0]  # 16,667 minutes
    return Timeline(clock=lambda: now[0]), now


def test_counts_of_a_minute() -> None:
    day, now = timeline()
    for ms, late in ((10.0, False), (20.0, False), (40.0, True)):
        day.answer("m", ms, late=late)
    day.refuse("m")
    for verdict in ("right", "right", "wrong", "unknown"):
        day.judge("m", verdict)
    now[0] += 60
    day.answer("m", 30.0, late=False)
    minutes, (first, second) = day.points("m")
    assert minutes == 1 and (first["time"], second["time"]) == (16_667 * 60, 16_668 * 60)
    assert first == {
        "time": 1_000_020, "answered": 3, "refused": 1, "late": 1, "right": 2, "wrong": 1, "p50_ms": 20.0,
        "p95_ms": 40.0,
    }  # fmt: skip
    assert (second["answered"], second["p50_ms"], second["right"]) == (1, 30.0, 0)
    assert day.points("another") == (1, [])


def test_a_point_without_an_answer_has_no_latency() -> None:
    day, _ = timeline()
    day.refuse("m")
    (point,) = day.points("m")[1]
    assert (point["refused"], point["p50_ms"], point["p95_ms"]) == (1, None, None)


def test_two_days_are_bounded_and_cover_the_last_one() -> None:
    day, now = timeline()
    for _ in range(2 * MINUTES):
        day.answer("m", 1.0, late=False)
        now[0] += 60
    minutes, points = day.points("m")
    assert minutes == 30 and len(points) <= POINTS
    assert sum(point["answered"] for point in points) == MINUTES


def test_what_is_older_than_a_day_is_not_shown_though_nothing_came_since() -> None:
    day, now = timeline()
    day.refuse("m")
    now[0] += 60 * MINUTES
    assert len(day.points("m")[1]) == 1
    now[0] += 60
    assert day.points("m") == (1, [])


@pytest.mark.parametrize(("span", "width"), [(59, 1), (60, 2), (118, 2), (119, 5), (295, 5), (296, 10), (591, 30)])
def test_a_point_stands_for_more_minutes_as_the_day_grows(span: int, width: int) -> None:
    day, now = timeline()
    day.refuse("m")
    now[0] += 60 * (span - 1)
    day.refuse("m")
    assert day.points("m")[0] == width


def test_a_busy_minute_keeps_a_fair_sample() -> None:
    day, now = timeline()
    for number in range(10_000):
        day.answer("m", float(number), late=False)
    assert len(day._minutes["m"][0].ms) == SAMPLED
    (point,) = day.points("m")[1]
    assert point["answered"] == 10_000 and 3_000 < point["p50_ms"] < 7_000
    now[0] += 60 * 119  # one point of five minutes holds a quiet minute too: it weighs one answer, not 1/65
    assert day.points("m")[1][0]["p50_ms"] == point["p50_ms"]


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    day, now = timeline()
    day.refuse("m")
    now[0] -= 600
    day.refuse("m")
    assert [point["refused"] for point in day.points("m")[1]] == [2]


@pytest.mark.parametrize(
    ("weighed", "share", "value"),
    [
        ([], 0.5, None),
        ([(1.0, 1.0)], 0.95, 1.0),
        ([(1.0, 1.0), (2.0, 1.0)], 0.5, 1.0),
        ([(1.0, 1.0), (2.0, 3.0)], 0.5, 2.0),
        ([(1.0, 19.0), (2.0, 1.0)], 0.95, 1.0),
        ([(1.0, 18.0), (2.0, 2.0)], 0.95, 2.0),
    ],
)
def test_a_weighted_quantile(weighed: list[tuple[float, float]], share: float, value: float | None) -> None:
    assert quantile(weighed, share) == value
