"""The gate: exact match, valid traces, confidence and length, over all suites; what refuses a challenger."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import pytest

from lineside.errors import LinesideError
from lineside.judgement.forgetting import Likelihood
from lineside.judgement.gate import Answered, Gate, gate, gate_schema, lost
from lineside.judgement.schema import Evaluation, Latency, Row
from lineside.judgement.summary import summarise
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401

Side = tuple[Evaluation, dict[str, Row]]
Make = Callable[..., Answered]


@pytest.fixture
def make(summary_arguments: dict[str, Any]) -> Make:  # noqa: F811
    """A suite that both models answered. `lost`, `gained`: how many scenes the challenger loses and gains. `forgot`:
    the ratio of perplexity of each caption, one a scene."""

    def side(rows: list[Row], p95: float | None) -> Side:
        latency = None
        if p95 is not None:
            latency = Latency(base_ms=1, per_token_ms=1, measured=50, p50_ms=p95 / 2, p95_ms=p95, p99_ms=None)
        evaluation = summarise(rows, **summary_arguments).model_copy(update={"latency": latency})
        return evaluation, {one.id: one for one in rows}

    def made(
        name: str, count: int = 200, *, lost: int = 0, gained: int = 0, p95: tuple[float, float] | None = None,
        forgot: Sequence[float] = (), **second: Any,
    ) -> Answered:  # fmt: skip
        def rows(right: Callable[[int], bool], **changed: Any) -> list[Row]:
            return [
                (row if right(n) else wrong)(f"{n}", scene=f"{name}-{n}").model_copy(update=changed)
                for n in range(count)
            ]

        before = rows(lambda n: n >= gained, thinking=True, calibrated=0.9, tokens=20)
        after = rows(lambda n: n < count - lost, **{"thinking": True, "calibrated": 0.9, "tokens": 20, **second})
        first, last = p95 or (None, None)
        captions = [
            Likelihood(f"{name}-{n}", tokens=10, before=5, after=5 + 10 * math.log(by)) for n, by in enumerate(forgot)
        ]
        return Answered(name, side(before, first), side(after, last), captions)

    return made


def decided(*answered: Answered, **settings: Any) -> Gate:
    return gate(answered, names=("bins@1", "bins@2"), margin=0.03, **settings)


def test_equal_models_pass_and_every_check_is_made(make: Make) -> None:
    found = decided(make("a", forgot=[1] * 30), make("b", p95=(100.0, 119.0)))
    assert found.outcome == "passed" and found.because == []
    assert {name: check.verdict for name, check in found.checks.items()} == dict.fromkeys(
        ("valid traces", "confidence", "length", "latency", "forgetting", "records"), "passed"
    )
    assert list(found.exact.suites) == ["a", "b"] and found.exact.overall.n == 400
    assert decided(make("a")).exact.suites == {}  # one suite is all that there is


def test_a_loss_in_one_suite_refuses_although_all_together_are_within_the_margin(make: Make) -> None:
    whole, small = make("base", 1000), make("week1", 60, lost=12)  # 12 of 1,060: 1.1 points overall
    found = decided(whole, small)
    assert found.exact.overall.verdict == "not worse"
    assert found.exact.suites["week1"].verdict == "worse"
    assert found.exact.suites["week1"].harm == 3 * 2**-12  # Holm: the smallest of three
    assert found.outcome == "refused" and found.because == ["exact match is worse: week1"]
    shown = lost((whole, small), found)
    assert len(shown) == 12 and {suite for suite, _, _ in shown} == {"week1"}
    assert all(first.exact and not second.exact for _, first, second in shown)


def test_few_scenes_give_too_little_data_with_the_scenes_that_are_missing(make: Make) -> None:
    found = decided(make("a", 40))
    assert found.outcome == "too little data"
    assert found.because[0].startswith("exact match, scenes needed: all tasks +")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"trace_class": "empty"}, "valid traces"),
        ({"calibrated": 0.4}, "confidence"),  # (0.6)^2 in place of (0.1)^2: +0.35
        ({"tokens": 30}, "length"),
        ({"p95": (100.0, 121.0)}, "latency"),
        ({"forgot": [1.3] * 30}, "forgetting"),
    ],
)
def test_what_is_worse_beside_exact_match_refuses(make: Make, change: dict[str, Any], check: str) -> None:
    found = decided(make("a", **change))
    assert found.exact.verdict == "not worse"
    assert [name for name, one in found.checks.items() if one.verdict == "refused"] == [check]
    assert found.outcome == "refused" and found.because[0].startswith(f"{check} is worse")
    assert json.loads(found.model_dump_json())["outcome"] == "refused"


def test_numbers_of_the_checks_by_hand(make: Make) -> None:
    checks = decided(make("a", calibrated=0.5, tokens=22, p95=(100.0, 110.0))).checks
    assert checks["confidence"].change == pytest.approx(0.25 - 0.01)
    assert (checks["length"].first, checks["length"].second, checks["length"].change) == (20, 22, pytest.approx(1.1))
    assert checks["latency"].change == pytest.approx(1.1)


def test_forgetting_by_hand(make: Make) -> None:
    """Every caption loses 0.5 nats a token before; a twentieth more perplexity is 0.5 + log 1.05 nats now."""
    check = decided(make("a", forgot=[1.05] * 30), make("b")).checks["forgetting"]
    assert (check.verdict, check.n, check.note) == ("passed", 30, "")
    assert (check.first, check.second) == (pytest.approx(math.exp(0.5)), pytest.approx(1.05 * math.exp(0.5)))
    assert check.change == pytest.approx(1.05) and check.interval == pytest.approx((1.05, 1.05)) and check.bound == 1.1
    assert decided(make("a", forgot=[1.3] * 30), forgets=0.31).outcome == "passed"
    assert decided(make("a", forgot=[0.5] * 30)).outcome == "passed"  # it has learnt them better


def test_one_suite_that_was_forgotten_refuses_although_all_together_are_within_the_bound(make: Make) -> None:
    base, week = make("base", forgot=[1.25] * 30), make("week1", forgot=[1.0] * 200)  # 1.03 together
    found = decided(base, week)
    assert found.checks["forgetting"].note == "base" and found.checks["forgetting"].n == 30
    assert found.outcome == "refused" and found.because == [
        "forgetting is worse on base: perplexity of captions given their pictures 1.65 before, 2.06 now, change 1.25 "
        "(1.250 to 1.250)"
    ]
    assert decided(base, week, forgets=0.26).checks["forgetting"].change == pytest.approx(1.25 ** (30 / 230))


def test_captions_that_show_neither_are_too_little_data(make: Make) -> None:
    """Half of 30 scenes gain a nat a token, half lose one: anything from 0.7 to 1.4 is possible."""
    found = decided(make("a", forgot=[math.e, 1 / math.e] * 15))
    low, high = found.checks["forgetting"].interval or (0, 0)
    assert low < 1 < 1.2 < high and found.outcome == "too little data"
    assert found.because[0].startswith("forgetting may be worse")


def test_without_enough_captions_forgetting_is_not_measured_and_says_why(make: Make) -> None:
    few = decided(make("a", forgot=[9] * 19))
    assert few.outcome == "passed" and few.checks["forgetting"].verdict == "not measured"
    assert few.checks["forgetting"].note == "captions of 19 scenes; 20 are needed"
    assert decided(make("a")).checks["forgetting"].note.startswith("no suite has captions, or")


def test_a_verdict_of_before_forgetting_was_judged_is_read(make: Make) -> None:
    now = json.loads(decided(make("a")).model_dump_json())
    del now["checks"]["forgetting"]
    before = Gate.model_validate_json(json.dumps(now))
    assert before.outcome == "passed" and "forgetting" not in before.checks


def test_what_cannot_be_compared_is_not_measured_and_decides_nothing(make: Make) -> None:
    one = make("a", thinking=False, calibrated=None)
    checks = decided(one).checks
    assert {checks[name].verdict for name in ("valid traces", "confidence", "latency")} == {"not measured"}
    assert all(checks[name].note for name in ("valid traces", "confidence", "latency"))
    assert decided(one).outcome == "passed"
    elsewhere = make("a", p95=(100.0, 500.0))
    told = elsewhere.second[0]
    other = told.model_copy(update={"provenance": told.provenance.model_copy(update={"machine": "another"})})
    moved = Answered("a", elsewhere.first, (other, elsewhere.second[1]))
    assert decided(moved).checks["latency"].verdict == "not measured"


def test_the_challenger_must_be_better_where_the_owner_says_so(make: Make) -> None:
    base, week = make("base"), make("week1", 200, gained=20)
    assert decided(base, week, better_on=["week1"]).better_on == {"week1": "passed"}
    found = decided(base, week, better_on=["base"])
    assert found.outcome == "refused" and found.because == ["not shown to be better on base"]
    assert decided(make("week1", gained=20), better_on=["week1"]).outcome == "passed"  # the only suite
    slightly = decided(base, make("week1", 200, gained=2), better_on=["week1"])
    assert slightly.better_on == {"week1": "too little data"} and slightly.outcome == "too little data"
    with pytest.raises(LinesideError, match="no suite named week9; the suites are: base, week1"):
        decided(base, week, better_on=["week9"])
    with pytest.raises(LinesideError, match="at least one suite"):
        decided()


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads(resources.files("lineside").joinpath("gate.schema.json").read_text())
    # After a change json.dumps(gate_schema(), indent=2) and a newline go into src/lineside/gate.schema.json
    assert published == gate_schema()
