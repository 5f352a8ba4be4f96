"""Which row holds at a time: the fast search equals trying every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.data.spans import NONE, SEVERAL, Choice, holding, match, nearest_only

CHOICES: tuple[Choice, ...] = ("refuse", "nearest", "first", "last")
small = st.integers(0, 30)


def brute(time: int, rows: list[tuple[int, int, int]], choice: str) -> int:
    """The index among rows (first, last, event) that hold at a time, by trying each."""
    held = [i for i, (first, last, _) in enumerate(rows) if first <= time <= last]
    if len(held) < 2 or choice == "refuse":
        return held[0] if len(held) == 1 else SEVERAL if held else NONE
    score: Any = {
        "nearest": lambda i: abs(rows[i][2] - time),
        "first": lambda i: rows[i][0],
        "last": lambda i: -rows[i][0],
    }[choice]
    best = [i for i in held if score(i) == min(map(score, held))]
    return best[0] if len(best) == 1 else SEVERAL


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(small, small), max_size=12), st.lists(small, max_size=12), st.sampled_from(CHOICES))
def test_it_equals_trying_every_row(spans: list[tuple[int, int]], times: list[int], choice: Choice) -> None:
    rows = sorted((first, first + length, first + length // 2) for first, length in spans)
    first, last, event = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    found = match(np.array(times, np.int64), first, last, choice, event)
    assert found.tolist() == [brute(time, rows, choice) for time in times]
    for time in times:
        assert holding(time, first, last).tolist() == [i for i, row in enumerate(rows) if row[0] <= time <= row[1]]


def test_worked() -> None:
    first, last = np.array([0, 10, 20, 20]), np.array([9, 29, 25, 40])
    assert match(np.array([9, 10, 19, 41]), first, last).tolist() == [0, 1, 1, NONE]
    assert match(np.array([20]), first, last).tolist() == [SEVERAL]
    assert match(np.array([20]), first, last, "first").tolist() == [1]
    assert match(np.array([20, 28]), first, last, "last").tolist() == [SEVERAL, 3]  # two start at 20; at 28 one is over


def test_no_rows_and_no_times() -> None:
    none = np.empty(0, np.int64)
    assert match(np.array([3]), none, none).tolist() == [NONE]
    assert match(none, np.array([0]), np.array([9])).tolist() == []
    assert nearest_only(none, none).tolist() == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=12))
def test_a_row_goes_to_the_nearest_frame_only(pairs: list[tuple[int, int]]) -> None:
    kept = nearest_only(np.array([r for r, _ in pairs], np.int64), np.array([d for _, d in pairs], np.int64))
    for place, (row, distance) in enumerate(pairs):
        others = [d for other, (r, d) in enumerate(pairs) if r == row and other != place]
        assert kept[place] == all(distance < d for d in others)


@pytest.mark.parametrize("choice", CHOICES)
def test_many_rows_that_all_hold_are_compared_once_for_each_time(choice: Choice) -> None:
    rows = np.arange(20_000)
    found = match(np.array([30_000]), rows, np.full(20_000, 40_000), choice, rows)
    assert found.tolist() == [{"refuse": SEVERAL, "nearest": 19_999, "first": 0, "last": 19_999}[choice]]
