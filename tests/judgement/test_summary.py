"""The evaluation object from rows, number by number."""

from __future__ import annotations

from typing import Any

import pytest

from lineside.judgement.console import decisions_table
from lineside.judgement.latency import LatencyModel
from lineside.judgement.schema import SureWrong
from lineside.judgement.summary import summarise
from lineside.types import Costs, Target
from tests.judgement.conftest import choice, row, wrong

NUMBER = Target("number", "sim", value=3).to_json()


def test_rates_are_macro_over_tasks_and_families_over_theirs(summary_arguments: dict[str, Any]) -> None:
    rows = [
        *(row(f"e{i}") for i in range(3)),
        wrong("e3"),  # picking/empty: 3 of 4
        *(wrong(f"c{i}", task="count", target=NUMBER, blind_exact=False) for i in range(2)),  # picking/count: 0 of 2
        row("k0", family="kitting", task="complete"),  # kitting/complete: 1 of 1
    ]
    found = summarise(rows, **summary_arguments)
    assert found.n == 7
    assert found.exact == pytest.approx((0.75 + 0.0 + 1.0) / 3)
    assert found.families["picking"].exact == pytest.approx(0.375)
    assert found.families["picking"].n == 6
    assert found.families["kitting"].exact == 1.0
    assert found.blind == pytest.approx((1.0 + 0.0 + 1.0) / 3)
    assert found.over_blind is not None
    assert found.over_blind.difference == pytest.approx(found.exact - found.blind)
    assert found.tasks["picking/empty"].exact == 0.75
    assert found.tasks["picking/empty"].yes_no and not found.tasks["picking/count"].yes_no
    assert found.interval[0] <= found.exact <= found.interval[1]
    assert found.simulated and found.name == "sft-heldout-think"


def test_trace_classes_sum_to_one_and_are_absent_in_fast_mode(summary_arguments: dict[str, Any]) -> None:
    classes = ["valid", "valid", "valid", "empty", "truncated", "missing"]
    rows = [row(str(i), trace_class=c, exact=i in (0, 1, 5)) for i, c in enumerate(classes)]
    found = summarise(rows, **summary_arguments)
    shares = (found.valid_trace_rate, found.empty, found.truncated, found.missing)
    assert shares == pytest.approx((3 / 6, 1 / 6, 1 / 6, 1 / 6))
    assert found.exact_given_valid == pytest.approx(2 / 3)
    fast = summarise(rows, **{**summary_arguments, "mode": "fast"})
    assert (fast.valid_trace_rate, fast.empty, fast.truncated, fast.missing, fast.exact_given_valid) == (None,) * 5


def test_without_baselines_their_numbers_are_absent_not_zero(summary_arguments: dict[str, Any]) -> None:
    none = {"blind": None, "blind_exact": None, "classifier": None, "classifier_exact": None}
    found = summarise([row("a", **none), wrong("b", **none)], **summary_arguments)
    assert found.blind is None and found.classifier is None and found.over_blind is None
    assert found.tasks["picking/empty"].blind is None


def test_time_within_budget_and_tokens(summary_arguments: dict[str, Any]) -> None:
    rows = [
        row("a", latency_ms=100.0, tokens=11, answer_tokens=2, budget_ms=150.0),
        row("b", latency_ms=200.0, tokens=21, answer_tokens=3, budget_ms=150.0, within_budget=False),
        wrong("c", latency_ms=120.0, tokens=13, answer_tokens=1, budget_ms=150.0),
        row("d", latency_ms=140.0, tokens=15, answer_tokens=2, budget_ms=150.0, finished=False),
    ]
    measured = LatencyModel(base_ms=10.0, per_token_ms=9.0, measured=4, p50_ms=130.0)
    found = summarise(rows, **{**summary_arguments, "latency": measured})
    assert found.within_budget == 0.5  # a and d; b is late, c is wrong
    assert found.tasks["picking/empty"].budget_ms == 150.0
    assert found.answer_tokens == 2.0 and found.response_tokens == 15.0
    assert found.unfinished == 0.25
    assert found.latency_ms == 130.0  # median of 100, 120, 140, 200
    assert found.latency is not None and found.latency.p50_ms == 130.0
    assert found.latency.base_ms == 10.0 and found.latency.measured == 4
    assert (found.latency.p95_ms, found.latency.p99_ms, found.latency_note) == (None, None, "")
    busy = summarise([row("a", within_budget=None)], **summary_arguments, untimed="not measured: busy machine")
    assert busy.latency is None and busy.within_budget is None and busy.latency_note == "not measured: busy machine"


def test_facts_count_only_traces_that_state_any(summary_arguments: dict[str, Any]) -> None:
    rows = [row("a", facts=1.0), row("b", facts=0.5), row("c", facts=None)]
    found = summarise(rows, **summary_arguments)
    assert found.facts_true == 0.75 and found.facts_all_true == 0.5


def test_false_facts_are_counted_among_valid_traces_whose_facts_are_known(summary_arguments: dict[str, Any]) -> None:
    rows = [
        *(row(f"t{i}", facts=1.0) for i in range(6)),
        *(wrong(f"f{i}", facts=0.9) for i in range(2)),
        row("unknown", facts=None),
        row("empty", facts=0.0, trace_class="empty"),
        row("fast", facts=0.0, thinking=False),
        row("other", task="count", facts=None),
    ]
    found = summarise(rows, **summary_arguments)
    assert found.false_facts is not None and (found.false_facts.n, found.false_facts.rate) == (8, 0.25)
    assert found.false_facts.interval[0] < 0.25 < found.false_facts.interval[1]
    assert found.tasks["picking/empty"].false_facts == found.false_facts
    assert found.tasks["picking/count"].false_facts is None
    none = summarise([row("a", facts=1.0)], **summary_arguments).false_facts
    assert none is not None and none.rate == 0 and none.interval[1] > 0.9  # one trace says little


STAKES = Costs.of(1.0, false_pass=5.0, false_stop=0.5)


def test_false_passes_and_false_stops_are_weighed_back_to_the_floor(summary_arguments: dict[str, Any]) -> None:
    # Half the questions are normal ("no"), each standing for 9 of the floor; half are not, each for 1. Of 5 normal
    # ones 1 is stopped, of 5 others 2 pass: 9/50 and 2/50 of what is asked, at 0.5 and 5 each.
    options: dict[str, Any] = {"target": choice("no").to_json(), "weight": 9.0, "normal": "no", "stakes": STAKES}
    other: dict[str, Any] = {**options, "target": choice("yes").to_json(), "reference": "yes", "weight": 1.0}
    rows = [
        *(row(f"n{i}", **options) for i in range(4)),
        wrong("n4", **options),
        *(row(f"y{i}", answer="yes", **other) for i in range(3)),
        *(wrong(f"y{i}", **{**other, "answer": "No."}) for i in (3, 4)),
    ]
    found = summarise(rows, **summary_arguments).prevalence["picking/empty"]
    assert (found.n, found.scenes, found.normal, found.weighted) == (10, 10, "no", True)
    assert found.normal_share == pytest.approx(0.9)
    assert found.exact == pytest.approx((4 * 9 + 3) / 50)
    assert found.false_stops is not None and found.false_passes is not None and found.cost is not None
    assert found.false_stops.value == pytest.approx(180.0)
    assert found.false_passes.value == pytest.approx(40.0)
    assert found.cost.value == pytest.approx(1000 * (9 * 0.5 + 2 * 5) / 50)
    for estimate in (found.false_stops, found.false_passes, found.cost):
        assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_a_rare_normal_answer_stays_the_normal_one(summary_arguments: dict[str, Any]) -> None:
    """The fault that was: seven of eight kits are incomplete, and each that was passed counted as a false alarm."""
    incomplete: dict[str, Any] = {"target": choice("no").to_json(), "normal": "yes", "stakes": STAKES}
    rows = [wrong(f"n{i}", answer="yes", **incomplete) for i in range(7)]
    rows.append(row("y", answer="yes", **{**incomplete, "target": choice("yes").to_json()}))
    found = summarise(rows, **summary_arguments).prevalence["picking/empty"]
    assert found.normal == "yes" and not found.weighted and found.normal_share == 0.125
    assert found.false_passes is not None and found.false_passes.value == 875.0
    assert found.false_stops is not None and found.false_stops.value == 0.0
    assert found.false_stops.interval == (0.0, pytest.approx(1000 * (1 - 0.025 ** (1 / 8)), abs=15))


def test_a_task_without_a_normal_answer_shows_neither(summary_arguments: dict[str, Any]) -> None:
    rows = [row("a", task="count", target=NUMBER, answer="3"), wrong("b", task="count", target=NUMBER, answer="4")]
    found = summarise(rows, **summary_arguments).prevalence["picking/count"]
    assert (found.normal, found.normal_share, found.false_passes, found.false_stops, found.cost) == (None,) * 5
    assert found.exact == 0.5


def test_risk_coverage_uses_the_answers_own_confidence(summary_arguments: dict[str, Any]) -> None:
    rows = [row("a", confidence=0.9), wrong("b", confidence=0.2)]
    found = summarise(rows, **summary_arguments)
    assert [(p.coverage, p.accuracy, p.threshold) for p in found.risk_coverage] == [(0.5, 1.0, 0.9), (1.0, 0.5, 0.2)]
    assert found.mean_risk == pytest.approx(0.5 * (0 + 0.5) / 2)


def test_wrong_answers_of_a_high_confidence_are_counted_before_and_after_calibration(
    summary_arguments: dict[str, Any],
) -> None:
    """(own, calibrated): four wrong answers, two of them sure by the model itself, one after calibration."""
    asked = [
        wrong(f"w{i}", confidence=p, calibrated=c)
        for i, (p, c) in enumerate([(0.99, 0.4), (1.0, 0.99), (0.98, 0.5), (0.2, 0.1)])
    ]
    rows = [*asked, row("r", confidence=1.0, calibrated=0.99), wrong("n", task="other", confidence=1.0)]
    found = summarise(rows, **summary_arguments)
    assert found.calibration is not None
    assert found.calibration.wrong == SureWrong(n=4, sure=1, sure_uncalibrated=2)
    told = str(decisions_table(found).caption)
    assert "confidence, 5 questions of calibrated tasks: expected calibration error " in told
    assert told.endswith("; of 4 wrong answers 1 have 0.99 or more, 2 before")
    assert decisions_table(summarise(rows[-1:], **summary_arguments)).caption is None
