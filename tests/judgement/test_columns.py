"""Exact match by the values of a column: numbers worked by hand, many values, unknown columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lineside.data.columns import columns_of
from lineside.errors import LinesideError
from lineside.judgement.columns import COMMONEST, WORST, break_down, check_columns
from lineside.judgement.schema import Row
from lineside.types import Meta, Target
from tests.judgement.conftest import choice, question, row, wrong


def at(cell: str, id: str, *, right: bool, **more: Any) -> Row:
    return (row if right else wrong)(f"{cell}-{id}", columns={"cell": [cell], **more.pop("columns", {})}, **more)


def test_a_value_stands_beside_what_its_tasks_reach_everywhere() -> None:
    """Task a: 3 of 4 exact. Task b: 1 of 4. Cell p has two of a (one right) and one of b (wrong)."""
    a = [at("p", "0", right=True), at("p", "1", right=False), at("q", "0", right=True), at("q", "1", right=True)]
    b = [at("p", "2", right=False, task="b")]
    b += [at("q", f"{i}", right=i == 2, task="b") for i in (2, 3, 4)]
    found = break_down([*a, *b], seed=0)["cell"]
    assert [one.value for one in found.values] == ["p", "q"]  # the worst first
    worst = found.values[0]
    assert (worst.n, worst.scenes, worst.exact) == (3, 3, pytest.approx(1 / 3))
    assert worst.expected == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert worst.beyond == pytest.approx(0.75)
    assert worst.tasks["picking/empty"].model_dump() == {"n": 2, "scenes": 2, "exact": 0.5}
    assert worst.tasks["picking/b"].exact == 0
    assert worst.interval[0] < worst.exact < worst.interval[1]
    # what one value lacks the others have more: nothing is lost on the way
    assert sum(one.beyond for one in found.values) == pytest.approx(0)
    assert (found.other_values, found.other_n, found.other_exact, found.without) == (0, 0, None, 0)


def test_of_many_values_the_worst_and_the_commonest_are_listed_and_the_rest_is_counted() -> None:
    rows: list[Row] = []
    for number in range(60):  # value v00 has one question, v59 sixty; only the rarest twelve fail
        for i in range(number + 1):
            rows.append(at(f"v{number:02}", f"{i}", right=number >= 12, scene=f"{number}-{i}"))
    found = break_down(rows, seed=0)["cell"]
    listed = [one.value for one in found.values]
    assert set(listed) == {f"v{n:02}" for n in (*range(20), *range(40, 60))}
    assert len(listed) == WORST + COMMONEST
    assert listed[0] == "v11"  # twelve wrong answers
    assert found.other_values == 20 and found.other_n == sum(range(21, 41)) and found.other_exact == 1.0


def test_a_question_about_two_skus_counts_for_both_and_one_without_for_none() -> None:
    rows = [
        row("0", columns={"sku": ["a", "b"]}),
        wrong("1", columns={"sku": ["b"]}),
        row("2", columns={}),
        row("3", columns={"sku": ["a"]}),
    ]
    found = break_down(rows, seed=0)["sku"]
    assert {one.value: (one.n, one.exact) for one in found.values} == {"b": (2, 0.5), "a": (2, 1.0)}
    assert found.without == 1


def test_columns_that_tell_nothing_apart_are_left_out_unless_they_are_asked_for() -> None:
    rows = [
        row(f"{i}", columns={"cell": [f"c{i % 2}"], "camera": [f"c{i % 2}-top"], "site": ["x"], "order": [f"{i}"],
                             "hour": [f"{i % 3}"], "shift": [f"s{i % 3}"]})
        for i in range(12)
    ]  # fmt: skip
    assert list(break_down(rows, seed=0)) == ["cell", "shift"]
    assert list(break_down(rows, ["order", "hour", "site"], seed=0)) == ["order", "hour", "site", "cell"]
    assert break_down(rows, ["order"], seed=0)["order"].other_values == 0
    assert break_down([row("old")], seed=0) == {}  # rows of an earlier version carry no columns


def test_what_a_sample_carries() -> None:
    sample = question("a", choice("no", provenance="record"), extra={"facts": ["x"], "weight": 2.0, "belt": 3.0})
    meta = replace(sample.meta, cell="c1", time="2026-03-04T17:05:00", skus=("b", "a"))
    extra = {**meta.extra, "columns": {"shift": ["late"], "ok": True}, "nested": {"a": 1}}
    assert columns_of(replace(sample, meta=replace(meta, extra=extra))) == {
        "cell": ["c1"],
        "sku": ["b", "a"],
        "day": ["2026-03-04"],
        "hour": ["17"],
        "belt": ["3"],
        "shift": ["late"],
        "ok": ["true"],
    }
    assert columns_of(replace(sample, meta=Meta(time="yesterday"))) == {}
    simulated = replace(sample, target=Target("choice", "sim", accepted=("no",)), meta=Meta(week=0))
    assert columns_of(simulated) == {"week": ["0"]}  # a simulated week 0 is a week


def test_an_unknown_column_is_refused_with_the_known_ones() -> None:
    carried = [{"cell": ["a"]}, {"cell": ["b"], "shift": ["late"]}]
    check_columns(["shift", "cell"], carried)
    with pytest.raises(LinesideError, match=r"no column 'shft'; did you mean 'shift'\?; they carry cell, shift"):
        check_columns(["shft"], carried)
    with pytest.raises(LinesideError, match=r"they carry no columns.*table: \{by: \[cell\]\}"):
        check_columns(["cell"], [])
