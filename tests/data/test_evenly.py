"""Frames of rare tasks are read more often, within bounds, and a pass keeps its length."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data import store
from lineside.data.contents import agree
from lineside.data.evenly import MOST_OFTEN, how_often, shares, whole_times
from lineside.data.mixture import Mixture, Part
from tests.test_train import rows

A, B = frozenset("a"), frozenset("b")
LISTS = st.lists(st.frozensets(st.sampled_from("abcd"), max_size=3), min_size=1, max_size=60)


def test_two_tasks_get_like_shares() -> None:
    assert how_often([A, A, A, B]) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert how_often([A, A]) == [1, 1]
    rare = how_often([A] * 99 + [B])
    assert rare[-1] == MOST_OFTEN and rare[0] == pytest.approx(96 / 99)  # not fifty times
    assert shares({A: 3, B: 1}, even=True) == pytest.approx({"a": 0.5, "b": 0.5})
    assert shares({A: 3, B: 1}, even=False) == pytest.approx({"a": 0.75, "b": 0.25})
    assert shares({A | B: 2, A: 2}, even=False) == pytest.approx({"a": 1, "b": 0.5})


@given(LISTS, st.floats(0, 1, exclude_max=True))
def test_a_pass_keeps_its_length_and_no_frame_comes_too_often(tasks: list[frozenset[str]], start: float) -> None:
    often = how_often(tasks)
    assert sum(often) == pytest.approx(len(tasks)) and max(often) <= MOST_OFTEN + 1e-9
    times = whole_times(often, start)
    assert sum(times) == len(tasks)
    assert all(abs(number - whole) < 1 + 1e-9 for number, whole in zip(often, times, strict=True))


def test_a_mixture_reads_the_rare_task_as_often_and_goes_on_after_any_frame(tmp_path: Path) -> None:
    asked = [s for s in rows("train", range(12)) if s.kind == "qa"]
    asked = [replace(s, task="lids") if n in (3, 8) else s for n, s in enumerate(asked)]
    store.write_samples(tmp_path, asked[:7])
    store.write_samples(tmp_path, asked[7:])
    mixture = Mixture((Part(tmp_path, even=True),))
    read = [[frame[0] for frame in mixture.stream("qa", seed=1, epoch=epoch)] for epoch in range(10)]
    assert all(len(each) == 12 for each in read)
    counts = Counter(sample.task for each in read for sample in each)
    assert abs(counts["lids"] - 60) <= 10 and len({s.id for each in read for s in each}) == 12
    whole = [s.id for each in read for s in each]
    for skip in (0, 5, 12, 31):
        again = [frame[0].id for frame, _ in zip(mixture.endless("qa", "train", seed=1, skip=skip), range(12))]
        assert again == whole[skip : skip + 12]


def test_an_outcome_may_know_less_of_an_answer_than_the_task() -> None:
    assert agree({"exact", "not"}, {"choice"}) and agree({"not"}, {"number"}) and agree({"number"}, ())
    assert not agree({"choice"}, {"number"}) and not agree({"number", "not"}, {"set"})
