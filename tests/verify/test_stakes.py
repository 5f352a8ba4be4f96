"""Right, false pass, false stop, wrong: each case worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lineside.types import Costs, Target
from lineside.verify.stakes import cost, costs_in, outcome
from tests.judgement.conftest import choice

STATES = ("intact", "dented", "torn")
DENTED = choice("dented", options=STATES)
EITHER = choice("intact", "dented", options=STATES)
SLOTS = Target("set", "sim", accepted=("2", "5"), options=("1", "2", "3", "4", "5"))
FULL = Target("set", "sim", options=("1", "2", "3", "4", "5"))
LITRES = Target("number", "sim", value=2.0, unit="l")


@pytest.mark.parametrize(
    ("answer", "target", "normal", "expected"),
    [
        ("yes", choice("yes"), "yes", "right"),
        ("yes", choice("no"), "yes", "false pass"),
        ("YES. ", choice("no"), "yes", "false pass"),
        ("no", choice("yes"), "yes", "false stop"),
        ("", choice("yes"), "yes", "false stop"),  # no answer passes nothing
        (None, choice("yes"), "yes", "false stop"),
        (None, choice("no"), "yes", "wrong"),
        ("perhaps", choice("no"), "yes", "wrong"),
        ("yes", choice("no"), None, "wrong"),
        ("torn", DENTED, "intact", "wrong"),
        ("intact", DENTED, "intact", "false pass"),
        ("torn", EITHER, "intact", "false stop"),
        ("dented", EITHER, "intact", "right"),
        ("none", SLOTS, "none", "false pass"),
        ("2", SLOTS, "none", "wrong"),
        ("2", FULL, "none", "false stop"),
        ("none", FULL, "none", "right"),
        ("0 ml", LITRES, "0", "false pass"),
        ("1", LITRES, "0", "wrong"),
        ("shut", choice("no"), "shut", "wrong"),  # a normal answer that was not offered is nobody's
    ],
)
def test_outcomes(answer: str | None, target: Target, normal: str | None, expected: str) -> None:
    assert outcome(answer, target, normal) == expected


def test_costs() -> None:
    costs = Costs(wrong=2.0, false_pass=20.0, false_stop=1.0, refusal=0.5)
    assert [cost(o, costs) for o in ("right", "false pass", "false stop", "wrong")] == [0.0, 20.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, None),
        ({"stakes": "dear"}, None),
        ({"stakes": {}}, Costs(1.0, 1.0, 1.0, 0.25)),
        ({"stakes": {"wrong": 4}}, Costs(4.0, 4.0, 4.0, 1.0)),
        ({"stakes": {"wrong": 2.0, "false_alarm": 0.5}}, Costs(2.0, 2.0, 0.5, 0.5)),  # as samples were before
        ({"stakes": {"wrong": 1, "false_pass": 9, "refusal": 0}}, Costs(1.0, 9.0, 1.0, 0.0)),
        ({"stakes": {"wrong": float("nan"), "false_pass": -1, "false_stop": True}}, Costs(1.0, 1.0, 1.0, 0.25)),
    ],
)
def test_the_stakes_of_a_sample(extra: dict[str, Any], expected: Costs | None) -> None:
    assert costs_in(extra) == expected
