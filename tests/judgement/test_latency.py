"""Latency from a clock that is ours."""

from __future__ import annotations

import pytest

from lineside.judgement import latency
from lineside.judgement.latency import measure, spread
from lineside.types import Sample
from tests.judgement.conftest import choice, question


class Machine:
    """Takes `base` seconds for the first token and `step` for each further one; question i writes 3 + i tokens."""

    def __init__(self, base: float, step: float) -> None:
        self.base, self.step, self.now, self.calls = base, step, 0.0, 0
        self.hiccup: dict[int, float] = {}

    def clock(self) -> float:
        return self.now

    def answer(self, sample: Sample, at_most: int) -> int:
        tokens = min(at_most, 3 + int(sample.id))
        self.now += self.base + self.step * (tokens - 1) + self.hiccup.get(self.calls, 0.0)
        self.calls += 1
        return tokens


QUESTIONS = [question(str(i), choice("no")) for i in range(9)]


def test_base_and_step_are_found_again() -> None:
    machine = Machine(base=0.05, step=0.004)
    found = measure(machine.answer, QUESTIONS, max_new_tokens=8, clock=machine.clock)
    assert found is not None
    assert (found.base_ms, found.per_token_ms, found.measured) == (pytest.approx(50), pytest.approx(4), 9)
    assert found.estimate(1) == pytest.approx(50) and found.estimate(6) == pytest.approx(70)
    assert found.estimate(0) == pytest.approx(50)


def test_a_hiccup_of_the_machine_does_not_move_the_medians() -> None:
    machine = Machine(base=0.05, step=0.004)
    machine.hiccup = {0: 9.0, 3: 5.0, 6: 2.0}  # warming up, one short run, one long run
    found = measure(machine.answer, QUESTIONS, max_new_tokens=8, clock=machine.clock)
    assert found is not None
    assert (found.base_ms, found.per_token_ms) == (pytest.approx(50), pytest.approx(4))


def test_a_slow_machine_measures_fewer() -> None:
    machine = Machine(base=latency.SECONDS, step=0.0)
    found = measure(machine.answer, QUESTIONS, max_new_tokens=8, clock=machine.clock)
    assert found is not None and found.measured == latency.FEWEST
    assert found.per_token_ms == 0.0


def test_nothing_to_measure() -> None:
    assert measure(Machine(1, 1).answer, [], max_new_tokens=8) is None


def test_spread_takes_tasks_in_turn() -> None:
    many = [question(f"a{i}", choice("no"), task="a") for i in range(50)]
    few = [question(f"b{i}", choice("no"), task="b") for i in range(3)]
    taken = spread(many + few, 8)
    assert [s.task for s in taken] == ["a", "b", "a", "b", "a", "b", "a", "a"]
    assert taken == spread(few + many[::-1], 8)
