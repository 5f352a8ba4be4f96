"""What to label next: coverage and balance worked by hand, and what must hold for any frames."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.data.selection import Candidate, select


def frames(count: int, **same: Any) -> list[Candidate]:
    return [Candidate(str(i), **same) for i in range(count)]


def cluster(direction: int, count: int, size: int = 4, noise: float = 0.01) -> np.ndarray:
    rng = np.random.default_rng(direction)
    return np.eye(size, dtype=np.float32)[[direction] * count] + noise * rng.standard_normal((count, size)).astype("f4")


def test_the_largest_group_that_nothing_covers_comes_first_and_each_group_once() -> None:
    seen = np.concatenate([cluster(0, 10), cluster(1, 30), cluster(2, 20)])
    picks = select(frames(60), seen, budget=3)
    assert [(pick.index >= 10) + (pick.index >= 40) for pick in picks] == [1, 2, 0]
    assert [pick.stands_for for pick in picks] == [pytest.approx(size, abs=size) for size in (30, 20, 10)]
    assert picks[0].nearest is None and all(abs(pick.nearest or 0) < 0.2 for pick in picks[1:])


def test_what_is_labelled_covers_its_likes() -> None:
    seen = np.concatenate([cluster(0, 30), cluster(1, 3)])
    (pick,) = select(frames(33), seen, budget=1, labelled_MI=cluster(0, 1))
    assert pick.index >= 30  # the large group has a labelled frame
    assert pick.nearest == pytest.approx(0, abs=0.1)


def test_a_doubtful_group_weighs_more_than_a_larger_certain_one() -> None:
    seen = np.concatenate([cluster(0, 30), cluster(1, 10)])
    sure = [Candidate(str(i), doubt=0.05 if i < 30 else 0.9) for i in range(40)]
    assert select(sure, seen, budget=1)[0].index >= 30
    assert select(frames(40), seen, budget=1)[0].index < 30


def test_the_rarest_value_goes_first_and_the_labelled_count() -> None:
    cells = ["a"] * 20 + ["b"] * 4
    made = [Candidate(str(i), groups={"cell": (cell,)}) for i, cell in enumerate(cells)]
    seen = np.random.default_rng(0).standard_normal((24, 8)).astype("f4")
    picks = select(made, seen, budget=8, labelled_MI=seen[:2], labelled_groups=[{"cell": ("a",)}, {"cell": ("a",)}])
    assert [cells[pick.index] for pick in picks][:2] == ["b", "b"]  # until both cells have two
    assert Counter(cells[pick.index] for pick in picks) == {"b": 4, "a": 4}  # b has no more
    assert picks[0].had == {"cell": ("b", 0)}


def test_an_unknown_value_is_a_value_and_a_frame_with_several_skus_counts_for_each() -> None:
    skus: list[tuple[str, ...]] = [("x", "y"), ("x",), (), ("z",)]
    made = [Candidate(str(i), groups={"skus": one}) for i, one in enumerate(skus)]
    picks = select(made, np.eye(4, dtype=np.float32), budget=3)
    assert {pick.index for pick in picks} in ({0, 2, 3}, {1, 2, 3}, {0, 1, 3})
    had = {pick.index: pick.had["skus"] for pick in picks}
    assert had.get(2, ("", 0)) == ("", 0)


def test_a_budget_in_money_is_kept_and_a_dear_frame_is_passed_over() -> None:
    made = [Candidate("dear", cost=5.0), Candidate("a", cost=1.0), Candidate("b", cost=1.0)]
    picks = select(made, np.eye(3, dtype=np.float32), budget=2.5)
    assert sorted(made[pick.index].id for pick in picks) == ["a", "b"]


def test_greedy_is_within_its_bound_of_the_best_set() -> None:
    """Nemhauser: at least 1 - 1/e of the optimum, which is found by trying all sets."""
    seen = np.random.default_rng(3).standard_normal((12, 3)).astype("f4")
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    similar = np.maximum(unit @ unit.T, 0)

    def covered(chosen: tuple[int, ...]) -> float:
        return float(similar[:, list(chosen)].max(1).sum())

    greedy = covered(tuple(pick.index for pick in select(frames(12), seen, budget=3)))
    assert greedy >= (1 - 1 / np.e) * max(covered(three) for three in combinations(range(12), 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 3), st.integers(0, 5))
def test_any_order_gives_the_same_frames_each_once_and_at_most_the_budget(
    count: int, budget: int, labelled: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((count, 5)).astype("f4")
    made = [Candidate(str(i), {"cell": (str(i % 3),)}, doubt=float(rng.random())) for i in range(count)]
    known = rng.standard_normal((labelled, 5)).astype("f4")
    first = [made[p.index].id for p in select(made, seen, budget=budget, labelled_MI=known, seed=seed)]
    assert len(first) == len(set(first)) == min(budget, count)
    order = rng.permutation(count)
    again = select([made[i] for i in order], seen[order], budget=budget, labelled_MI=known, seed=seed)
    assert [made[order[p.index]].id for p in again] == first


def test_features_and_candidates_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 candidates with the features of 3"):
        select(frames(2), np.eye(3, dtype=np.float32), budget=1)


def test_frames_with_equal_features_are_all_chosen_if_the_budget_says_so() -> None:
    assert len(select(frames(5), np.ones((5, 3), np.float32), budget=4)) == 4
    assert len(select(frames(5), np.zeros((5, 3), np.float32), budget=5)) == 5
