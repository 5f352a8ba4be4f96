"""What to do with a task: each rule worked by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lineside.judgement.decisions import acts, advise, decision, scenes_for_points, scenes_needed, thresholds
from lineside.judgement.schema import Thresholds
from lineside.judgement.stats import Interval, Mean
from lineside.judgement.typed import Form, type_answer
from lineside.types import Costs
from tests.judgement.conftest import choice, row, wrong

COSTS = Costs(wrong=2.0, false_pass=5.0, false_stop=1.0, refusal=0.5)


@pytest.mark.parametrize(
    ("normal", "binary", "expected"),
    [
        (True, True, (0.9, 0.5)),  # 1 - 0.5 / 5 and 1 - 0.5 / 1
        (True, False, (0.9, 0.75)),  # among several other answers a wrong one costs 2
        (False, True, (0.75, 0.75)),
    ],
)
def test_it_acts_where_a_refusal_costs_more(normal: bool, binary: bool, expected: tuple[float, float]) -> None:
    found = thresholds(COSTS, normal=normal, binary=binary)
    assert (found.normal, found.other) == expected


def test_the_ends() -> None:
    free = Costs(wrong=1.0, false_pass=1.0, false_stop=1.0, refusal=0.0)
    assert thresholds(free, normal=True, binary=True).normal == 1.0  # a person costs nothing: only certainty acts
    dear = Costs(wrong=1.0, false_pass=1.0, false_stop=0.0, refusal=1.0)
    on = thresholds(dear, normal=True, binary=True)
    assert (on.normal, on.other) == (0.0, 0.0)
    assert acts(0.01, True, on) and not acts(0.0, True, on)  # on no answer it never acts
    assert not acts(0.89, True, Thresholds(normal=0.9, other=0.5)) and acts(
        0.89, False, Thresholds(normal=0.9, other=0.5)
    )


def mean(value: float, low: float, high: float) -> Mean:
    return Mean(value, Interval(low, high))


@pytest.mark.parametrize(
    ("acting", "refusing", "exact", "blind", "verdict", "because", "needed"),
    [
        (mean(0.1, 0.05, 0.2), None, 0.9, 0.5, "use", "costs less", None),
        (mean(0.1, 0.05, 0.2), mean(0.15, 0.1, 0.2), 0.9, None, "use", "costs less", None),
        (mean(0.2, 0.1, 0.3), mean(0.1, 0.05, 0.15), 0.9, 0.5, "use with refusal", "costs less", None),
        (mean(0.9, 0.7, 1.1), mean(0.3, 0.2, 0.4), 0.7, 0.5, "use with refusal", "costs less", None),
        (mean(0.1, 0.05, 0.2), None, 0.4, 0.5, "do not use", "below a guess that sees no picture: 40.0% exact", None),
        (mean(0.9, 0.7, 1.1), None, 0.7, 0.5, "do not use", "costs more than asking a person everything", None),
        # width 0.4 where 0.1 would do, on 14 scenes: 14 x 16
        (mean(0.4, 0.1, 0.8), None, 0.7, 0.5, "do not use", "14 scenes do not show .*; about 224 would settle it", 224),
        # 0.2 / 0.1, squared
        (
            mean(0.6, 0.4, 0.8),
            None,
            0.7,
            0.5,
            "do not use",
            "costs more .* on few scenes; about 56 would settle it",
            56,
        ),
        (mean(0.5, 0.4, 0.8), None, 0.7, 0.5, "do not use", "on few scenes$", None),  # on the line: nothing settles
    ],
)
def test_verdicts(
    acting: Mean,
    refusing: Mean | None,
    exact: float,
    blind: float | None,
    verdict: str,
    because: str,
    needed: int | None,
) -> None:

    found = advise(acting, refusing, 0.5, scenes=14, exact=exact, blind=blind)
    assert found.verdict == verdict and re.search(because, found.because), found
    assert found.scenes_needed == needed


def test_scenes() -> None:
    assert scenes_needed(mean(0.3, 0.2, 0.4), 0.32, 14) == 350
    assert scenes_needed(mean(0.0, 0.0, 0.2), 0.1, 14) == 28  # nothing happened: the bound falls with the scenes
    assert scenes_needed(mean(0.3, 0.2, 0.4), 0.9, 14) == 15  # at least one more
    assert scenes_needed(mean(0.3, 0.2, 0.4), 0.3 + 1e-9, 14) is None  # no plan
    assert scenes_for_points(Interval(0.4, 0.6), 14) == 350  # 14 x (0.1 / 0.02)^2


def rows(calibrated: float | None, count: int = 100, mistakes: int = 10) -> list[Any]:
    """`count` kits that are not complete; of the first `mistakes` it is said that they are."""
    common: dict[str, Any] = {"normal": "yes", "stakes": COSTS, "weight": 1.0, "calibrated": calibrated}
    passed = [wrong(f"w{i}", **{**common, "calibrated": calibrated and 0.6}) for i in range(mistakes)]
    return passed + [row(f"r{i}", **common) for i in range(count - mistakes)]


def test_a_task_that_is_used_with_refusal() -> None:
    """Ten false passes in a hundred at 5 cost 500 a thousand, as a person does. All ten are below 0.9 and refused."""
    found = decision(rows(0.95), [1.0] * 100, blind=0.5, seed=0)
    assert found is not None and found.verdict == "use with refusal"
    assert found.refused is not None and found.refused.value == pytest.approx(100.0)
    assert (found.slips.value, found.cost.value) == (0.0, pytest.approx(50.0))
    assert found.cost_acting.value == pytest.approx(500.0) and found.cost_person == 500.0
    assert found.slips.interval[1] > 0  # none was seen in a hundred scenes, which is not none


def test_without_calibration_nothing_is_refused() -> None:
    found = decision(rows(None), [1.0] * 100, blind=0.5, seed=0)
    assert found is not None and found.verdict == "do not use" and not found.calibrated
    assert found.refused is found.acts_from is None
    assert found.false_passes is not None and found.false_passes.value == found.slips.value == pytest.approx(100.0)


def test_what_a_task_that_is_used_lets_through_is_all_its_mistakes() -> None:
    """One false pass in two hundred costs 25 a thousand. Refusing it, and nine right answers with it, costs as much."""
    some = rows(0.95, count=200, mistakes=1)
    some = [r.model_copy(update={"calibrated": 0.3}) if i < 10 else r for i, r in enumerate(some)]
    found = decision(some, [1.0] * 200, blind=0.5, seed=0)
    assert found is not None and found.verdict == "use" and found.acts_from is None
    assert found.refused is not None and found.refused.value == 0.0
    assert found.slips.value == pytest.approx(5.0) and found.cost == found.cost_acting


def test_weights_count_what_arises() -> None:
    many = [0.1] * 10 + [1.0] * 90
    found = decision(rows(None), many, blind=0.5, seed=0)
    assert found is not None and found.slips.value == pytest.approx(1000 / 91)
    assert found.verdict == "use"


def test_a_task_below_blind_and_one_without_stakes() -> None:
    found = decision(rows(0.95), [1.0] * 100, blind=0.95, seed=0)
    assert found is not None and found.below_blind and found.verdict == "do not use"
    assert decision([row("a", target=choice("no").to_json())], [1.0], blind=None, seed=0) is None


def test_an_answer_without_a_value_is_not_acted_on() -> None:
    """Sixty answers that are surely right, and sixty that are no answer of the kind: a person gets those."""
    costs: dict[str, Any] = {"stakes": COSTS, "calibrated": 0.99}
    form = Form(kind="choice", options=("yes", "no"))
    said: dict[str, Any] = {
        "task": "t",
        "form": form,
        "trace": None,
        "finished": True,
        "confidence": 0.99,
        "note": "",
        "ms": None,
    }
    said |= {"on": thresholds(COSTS, normal=False, binary=True), "normal": None}
    rows = [row(f"r{i}", typed=type_answer("no", **said), **costs) for i in range(60)]
    rows += [wrong(f"w{i}", answer="dunno", typed=type_answer("dunno", **said), **costs) for i in range(60)]
    found = decision(rows, [1.0] * 120, blind=None, seed=0)
    assert found is not None and found.refused is not None
    assert (found.refused.value, found.slips.value) == (500.0, 0.0)
    old = [r.model_copy(update={"typed": None}) for r in rows]  # rows of an earlier version do not say
    found = decision(old, [1.0] * 120, blind=None, seed=0)
    assert found is not None and found.slips.value == 500.0
