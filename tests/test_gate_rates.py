"""benchmarks/gate_rates.py: a gate from sums by scene decides as the real one, row by row."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lineside.judgement.forgetting import Likelihood
from lineside.judgement.schema import Row
from lineside.judgement.summary import summarise
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gate_rates import CAPTIONS, KINDS, Questions, decide, draw, judge_captions, real  # pyright: ignore[reportMissingImports]


def pairs(right: tuple[float, float], **second: Any) -> list[tuple[Row, Row]]:
    """Two families of 40 scenes with two questions each, right with these probabilities. Every third question is not
    calibrated."""
    rng = np.random.default_rng(0)
    made = []
    for family, task in (("kitting", "missing"), ("kitting", "wrong_item"), ("picking", "empty")):
        for n in range(40):
            same = {"scene": f"{family}{n}", "family": family, "task": task, "thinking": True}
            first, last = (
                (row if rng.random() < chance else wrong)(
                    f"{task}{n}", **same, calibrated=None if n % 3 == 0 else 0.7, **changes
                )
                for chance, changes in zip(right, ({}, second))
            )
            made.append((first, last))
    return sorted(made, key=lambda pair: (pair[0].family, pair[0].scene, pair[0].id))


@pytest.mark.parametrize(
    ("right", "second"),
    [
        ((0.95, 0.75), {}),
        ((1.0, 1.0), {}),
        ((1.0, 1.0), {"trace_class": "missing"}),
    ],
)
def test_the_same_outcome_as_the_real_gate(
    right: tuple[float, float], second: dict[str, Any], summary_arguments: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    asked = Questions.of(pairs(right, **second))
    whole = summarise([first for first, _ in asked.pairs], **summary_arguments)
    for kind, scenes in zip(KINDS, (130, 60, 30)):
        drawn = draw(asked, kind, scenes, number=3)
        assert decide(asked, [drawn, drawn])[1] == real(asked, drawn, (whole, whole)).outcome


def test_what_is_lost_is_the_margin_of_every_task_or_of_one_family_alone() -> None:
    asked = Questions.of(pairs((0.8, 0.8)))
    lost = {}
    for kind in KINDS:
        drawn = draw(asked, kind, 20_000, number=0)
        count = Counter(asked.task_N[drawn.place].tolist())
        gone = Counter(asked.task_N[drawn.place][drawn.lost].tolist())
        lost[kind] = [round(gone[task] / count[task], 2) for task in range(3)]
    assert lost == {KINDS[0]: [0, 0, 0], KINDS[1]: [0.03] * 3, KINDS[2]: [0.03, 0.03, 0]}


def test_both_models_are_the_champion_equally_often() -> None:
    asked = Questions.of(pairs((1.0, 0.0)))
    first, second = draw(asked, KINDS[0], 5000, number=1).values(asked.exact)
    assert abs(first.mean() - 0.5) < 0.02 and np.array_equal(first, 1 - second)


def test_captions_are_exchanged_by_scene_and_lose_the_bound() -> None:
    """All captions are likelier to the second model: exchanged by a coin, neither is better. A tenth is then lost."""
    captions = [Likelihood(f"{n:02}", tokens=10, before=5.2, after=5.0) for n in range(60)]
    outcomes = [[judge_captions(captions, kind, number, seed=0) for number in range(4)] for kind in CAPTIONS]
    assert outcomes[0] == ["passed"] * 4 and outcomes[1] == ["refused"] * 4
