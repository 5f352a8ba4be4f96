"""Splits decided by the scene's hash."""

from __future__ import annotations

import pytest

from lineside.data.splits import side_of
from lineside.errors import LinesideError
from lineside.hashing import hash_uniform, split_of, stable_hash
from lineside.types import Meta


def test_the_hash_is_the_same_everywhere() -> None:
    # printf 'a\x1f1' | b2sum --length=64
    assert stable_hash("a", 1) == 0x8181C16B4AD83CC1
    assert stable_hash("a", "bc") != stable_hash("ab", "c")
    assert 0.0 <= hash_uniform("x") < 1.0


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


@pytest.mark.parametrize("by", ["cell", "camera", "day", "scene"])
def test_a_whole_cell_camera_day_or_scene_lands_on_one_side(by: str) -> None:
    def meta(group: int, number: int) -> Meta:
        names = {"scene": f"s{group}-{number}", "cell": f"c{group}-{number}", "camera": f"k{group}-{number}"}
        hour = f"T{number % 24:02d}:00:00"
        return Meta(**{**names, "time": f"2026-01-{group + 1:02d}{hour}", **({by: f"g{group}"} if by != "day" else {})})

    sides = [{side_of(meta(group, number), by=by) for number in range(40)} for group in range(28)]
    assert all(len(side) == 1 for side in sides)
    assert len(set().union(*sides)) > 1


def test_cells_and_scenes_of_one_name_are_drawn_apart_and_scenes_as_ever() -> None:
    names = [f"n{n}" for n in range(300)]
    scenes = [side_of(Meta(scene=n)) for n in names]
    assert scenes == [split_of(n) for n in names]
    assert scenes != [side_of(Meta(cell=n), by="cell") for n in names]


def test_nothing_of_a_held_out_sku_is_trained_on() -> None:
    frames = [Meta(skus=(f"s{n % 37}", f"s{n % 11}")) for n in range(400)]
    sides = [side_of(m, by="sku", shares={"train": 0.6, "dev": 0.2, "heldout": 0.2}) for m in frames]
    skus = {side: {s for m, found in zip(frames, sides) if found == side for s in m.skus} for side in set(sides)}
    alone = {f"s{n}": side_of(Meta(skus=(f"s{n}",)), by="sku", shares={"train": 0.6, "dev": 0.2, "heldout": 0.2})
             for n in range(37)}  # fmt: skip
    assert set(alone.values()) == {"train", "dev", "heldout"}
    assert all(alone[s] == "train" for s in skus["train"])
    assert all(alone[s] != "heldout" for s in skus["dev"])


def test_a_frame_that_does_not_say_what_to_split_by() -> None:
    with pytest.raises(LinesideError, match="no day to split by"):
        side_of(Meta(scene="s"), by="day")
