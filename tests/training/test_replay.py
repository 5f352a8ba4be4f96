"""How a retraining divides minutes and frames: by hand, and what holds for all numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.training.replay import (
    MOST_OLD_PASSES,
    MOST_PASSES,
    divide,
    fair_parts,
    frames_read,
    prompts_a_step,
    replay_share,
)


def test_half_is_replayed_but_not_more_than_there_is() -> None:
    assert replay_share(300, 3000) == 0.5
    assert replay_share(300, 100) == 0.25
    assert replay_share(300, 0) == 0.0


def test_what_the_new_frames_leave_goes_to_the_old_ones() -> None:
    assert frames_read(1000, 300, 3000) == (500, 500)  # half and half
    assert frames_read(6000, 300, 3000) == (2400, 3600)  # eight passes over the new ones, the rest is old
    assert frames_read(60_000, 300, 3000) == (2400, 12_000)  # four passes over the old ones are enough
    assert frames_read(6000, 300, 100) == (2400, 800)  # few old ones are read as often as the new ones
    assert frames_read(1000, 300, 0) == (1000, 0)
    assert frames_read(1000, 300, 3000, 0.2) == (800, 200)
    assert frames_read(60_000, 300, 3000, 0.2) == (2400, 600)  # a share that was asked for is kept
    assert frames_read(1000, 300, 3000, 0.0) == (1000, 0)


@given(st.floats(1, 1e6), st.integers(1, 10_000), st.integers(0, 10_000))
def test_what_is_read_fits_the_budget_and_replays_enough(budget: float, new: int, old: int) -> None:
    fresh, again = frames_read(budget, new, old)
    assert 0 < fresh <= MOST_PASSES * new + 1e-6 and fresh + again <= budget * (1 + 1e-9)
    assert again / (fresh + again) >= replay_share(new, old) - 1e-9
    assert again <= max(MOST_OLD_PASSES, MOST_PASSES) * old + 1e-6


def test_folders_give_their_part_of_each_task() -> None:
    base, week = {"count": 900, "empty": 900}, {"count": 100, "wrong": 100}
    assert fair_parts([base, week]) == pytest.approx([1.9 / 3, 1.1 / 3])  # (0.9 + 1) / 3, (0.1 + 1) / 3
    assert fair_parts([{"count": 300}, {"count": 100}]) == pytest.approx([0.75, 0.25])
    rare = fair_parts([{"count": 9990}, {"wrong": 10}])
    assert rare == pytest.approx([0.5 / 0.504, 0.004 / 0.504])  # four times its part of a thousandth, not half of all
    assert fair_parts([]) == [] and fair_parts([{}, {}]) == [0.0, 0.0]


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 500)), max_size=5))
def test_every_task_is_replayed(tasks: list[dict[str, int]]) -> None:
    parts = fair_parts(tasks)
    assert sum(parts) == pytest.approx(1.0 if any(tasks) else 0.0)
    for part, counts in zip(parts, tasks, strict=True):
        assert (part > 0) == bool(counts)


def test_stage_3_gets_time_for_frames_without_answers() -> None:
    assert divide(10, 300, 0) == {"sft": 10}
    assert divide(10, 0, 50) == {"rlvr": 10}
    assert divide(10, 300, 100) == {"sft": 7.5, "rlvr": 2.5}
    assert divide(10, 300, 3) == {"sft": 8, "rlvr": 2}
    assert divide(10, 3, 300) == {"sft": 5, "rlvr": 5}
    assert divide(10, 0, 0) == {}


def test_few_large_steps_become_more_small_ones() -> None:
    assert prompts_a_step(64, 30) == 64
    assert prompts_a_step(64, 6) == 16  # 24 steps
    assert prompts_a_step(64, 0.5) == 8
    assert prompts_a_step(4, 1) == 4
