"""Route to a person: the tasks below a bound, for all SKUs and for new ones alone, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lineside.data.columns import NEW_SKU, columns_of
from lineside.judgement.routes import routes
from lineside.judgement.schema import Row
from lineside.types import Image, Meta, Sample, Source, Target
from tests.judgement.conftest import row


def asked(task: str, exact: list[bool], new: str | None) -> list[Row]:
    columns = {} if new is None else {NEW_SKU: [new]}
    return [row(f"{task}-{new}-{i}", task=task, exact=right, columns=columns) for i, right in enumerate(exact)]


def test_tasks_below_the_bound_are_listed_for_all_and_for_new_skus() -> None:
    rows = asked("count", [True] * 9 + [False], "no") + asked("count", [True, False, False, False], "yes")
    rows += asked("there", [True, True, True, False], "no") + asked("there", [True] * 4, "yes")
    found = routes(rows, 0.75, seed=0)
    # count: 10 of 14 in all, 1 of 4 for new SKUs; there: 7 of 8 and 4 of 4.
    assert [(one.task.split("/")[1], one.new_skus, one.n, one.scenes) for one in found] == [
        ("count", False, 14, 14), ("count", True, 4, 4)
    ]  # fmt: skip
    assert [one.exact for one in found] == pytest.approx([10 / 14, 1 / 4])
    assert all(one.interval[0] <= one.exact <= one.interval[1] for one in found)
    assert routes(rows, 0.0, seed=0) == []
    there = [one for one in routes(rows, 1.0, seed=0) if one.task.endswith("there")]
    assert [one.new_skus for one in there] == [False]  # 4 of 4 is not below


def test_a_suite_of_new_skus_alone_and_one_without_any() -> None:
    new = routes(asked("count", [False, True], "yes"), 0.75, seed=0)
    assert [one.new_skus for one in new] == [True]
    unknown = routes(asked("count", [False, True], None), 0.75, seed=0)
    assert [one.new_skus for one in unknown] == [False]


def test_a_sku_is_new_if_no_training_frame_shows_it() -> None:
    sample = Sample(
        "s", "qa", (Image(b"x"),), "f", "t", "q?", None, "1", Target("exact", "sim", accepted=("1",)), "shifted",
        Meta(skus=("a", "b")), Source(),
    )  # fmt: skip
    assert columns_of(sample, {"a", "b", "c"})[NEW_SKU] == ["no"]
    assert columns_of(sample, {"a"})[NEW_SKU] == ["yes"]
    for known, skus in (((), ("a",)), ({"a"}, ())):  # nothing is known of the training data, or of the frame
        assert NEW_SKU not in columns_of(replace(sample, meta=Meta(skus=skus)), known)
