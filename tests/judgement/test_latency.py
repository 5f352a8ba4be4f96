"""Latency from a clock that is ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lineside.judgement import latency
from lineside.judgement.latency import (
    ProcessorTime,
    busy_with_others,
    measure,
    measure_if_idle,
    processor_time,
    spread,
)
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
IDLE = [ProcessorTime(50, 1, 100, 40), ProcessorTime(50, 1, 101, 40), ProcessorTime(75, 1, 151, 65)]


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


def test_quantiles_are_told_from_enough_questions_only() -> None:
    """Answers of 2 tokens take 54 ms, the few slow ones 1 s: of 100 answers 3 are slow, beyond p95 and within p99."""
    for n, p95, p99 in ((39, None, None), (40, 54.0, None), (99, 54.0, None), (100, 54.0, 1054.0)):
        machine = Machine(base=0.05, step=0.004)
        first_whole = 1 + 2 * latency.PARTED  # calls before the first question that is timed as a whole only
        machine.hiccup = {first_whole + i: 1.0 for i in range(3 if n == 100 else 0)}
        asked = [question("-1", choice("no"), scene=str(i)) for i in range(n)]
        found = measure(machine.answer, asked, max_new_tokens=8, clock=machine.clock)
        assert found is not None and found.measured == n and found.p50_ms == pytest.approx(54)
        assert (found.p95_ms, found.p99_ms) == (p95 and pytest.approx(p95), p99 and pytest.approx(p99))
        assert found.estimate_p95(2) == (p95 and pytest.approx(54))


def test_what_is_in_budget_goes_by_the_slow_answers() -> None:
    machine = Machine(base=0.1, step=0.0)
    machine.hiccup = {1 + 2 * latency.PARTED + i: 0.1 for i in range(4)}  # 4 of 40 take twice as long
    found = measure(machine.answer, [question("-1", choice("no"))] * 40, max_new_tokens=8, clock=machine.clock)
    assert found is not None and found.p50_ms == pytest.approx(100)
    assert found.estimate(2) == pytest.approx(100) and found.estimate_p95(2) == pytest.approx(200)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ((149, 1, 200, 130), "other processes had 9%"),  # of 100 s all processors worked 99, we 90
        ((149, 1, 200, 139), ""),  # all but nothing is our own
        ((145, 3, 200, 135), "stolen by its host"),
        ((50, 1, 100, 40), "too short"),
        (None, "does not tell"),
    ],
)
def test_a_machine_is_idle_if_nobody_else_computes(after: tuple[float, ...] | None, why: str) -> None:
    before = ProcessorTime(50, 1, 100, 40)
    found = busy_with_others(before, ProcessorTime(*after) if after else None)
    assert why in found and (bool(why) or not found)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is Linux's")
def test_a_process_that_this_one_started_is_no_other() -> None:
    """As an engine in a process of its own: what it computes is our own, while it runs and when it has ended."""
    burns = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before = processor_time()
    with subprocess.Popen([sys.executable, "-c", burns], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = processor_time()
        child.communicate(b"\n")
    after = processor_time()
    assert before is not None and during is not None and after is not None
    assert during.own - before.own >= 0.3 and after.own - during.own >= 0


def test_nothing_is_measured_on_a_busy_machine() -> None:
    machine, slept = Machine(0.01, 0.0), []
    counts = iter([ProcessorTime(50, 1, 100, 40), ProcessorTime(51, 1, 101, 40)])
    found, note = measure_if_idle(
        machine.answer, QUESTIONS, max_new_tokens=4, count=lambda: next(counts), sleep=slept.append
    )
    assert found is None and note == "not measured: busy machine: other processes had 100% of its processor time"
    assert machine.calls == 0 and slept == [latency.WAIT]


def test_what_was_measured_while_others_came_is_thrown_away() -> None:
    machine = Machine(0.01, 0.0)
    counts = iter([*IDLE[:2], ProcessorTime(100, 1, 151, 65)])  # 50 s of work, 25 our own
    found, note = measure_if_idle(
        machine.answer, QUESTIONS, max_new_tokens=4, count=lambda: next(counts), sleep=lambda _: None
    )
    assert found is None and "other processes had 50%" in note and machine.calls == 1 + 2 * len(QUESTIONS)
    counts = iter(IDLE)
    found, note = measure_if_idle(
        machine.answer, QUESTIONS, max_new_tokens=4, count=lambda: next(counts), sleep=lambda _: None
    )
    assert found is not None and note == ""
