"""Splits decided by the scene's hash."""

from __future__ import annotations

import pytest

from lineside.data.splits import split_of, stable_hash, unit
from lineside.errors import LinesideError


def test_the_hash_is_the_same_everywhere() -> None:
    # printf 'a\x1f1' | b2sum --length=64
    assert stable_hash("a", 1) == 0x8181C16B4AD83CC1
    assert stable_hash("a", "bc") != stable_hash("ab", "c")
    assert 0.0 <= unit("x") < 1.0


def test_shares_are_kept_and_growth_moves_nothing() -> None:
    few = {f"scene{i}": split_of(f"scene{i}") for i in range(2000)}
    many = {f"scene{i}": split_of(f"scene{i}") for i in range(20_000)}
    assert few.items() <= many.items()
    counts = [list(many.values()).count(name) / 20_000 for name in ("train", "dev", "heldout", "shifted")]
    assert counts == pytest.approx([0.8, 0.1, 0.1, 0.0], abs=0.01)


def test_a_salt_draws_anew() -> None:
    assert any(split_of(f"s{i}") != split_of(f"s{i}", salt="b") for i in range(50))


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(LinesideError, match="sum to 1"):
        split_of("s", shares={"train": 0.8, "dev": 0.1})
