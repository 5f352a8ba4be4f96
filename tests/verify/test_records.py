"""Traces against records: plain contradictions are found, and nothing else is held against a trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.verify.records import record_problem

RECORD = {
    "count": 4,
    "state": "half full",
    "item": "red can",
    "slots_filled": 2,
    "weight": 1.5,
    "sealed": True,
    "x": None,
}
VALUES = {"state": {"half full", "full", "empty", "no"}, "item": {"red can", "blue can", "red canister"}}


@pytest.mark.parametrize(
    ("trace", "column"),
    [
        ("left: 2; right: 2; so 4", ""),
        ("count: 4; so 4", ""),
        ("count is 5; so 5", "count"),
        ("a first count of 3, then a count of 4", ""),  # the truth is said as well
        ("1 slots filled; so 1", "slots_filled"),
        ("slots filled: 02", ""),
        ("the bin is empty", "state"),
        ("not empty, half full to the left", ""),
        ("it is half full", ""),
        ("it is FULL to the rim.", "state"),  # "half full" holds "full" and is not it
        ("no part stands upright", ""),  # too common a word to tell anything
        ("two blue can lie there", "item"),
        ("one blue can beside the red can", ""),
        ("a red canister", "item"),
        ("a redcan", ""),
        ("", ""),
    ],
)
def test_what_is_held_against_a_trace(trace: str, column: str) -> None:
    assert record_problem(trace, RECORD, VALUES) == (f"states another {column} than the record" if column else "")


@given(st.text(max_size=200), st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.none()))
def test_total(trace: str, record: dict) -> None:
    record_problem(trace, record, {name: {"a b", "", "\\", trace} for name in record})
