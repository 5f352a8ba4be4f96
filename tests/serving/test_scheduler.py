"""Deadlines under a virtual clock: nothing accepted is late as long as nothing takes longer than predicted."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.serving.scheduler import Correction, Costs, Job, Read, Refused, Scheduler, Step
from tests.serving.virtual import COSTS, Asked, by_deadline, by_queue, load

ONE = Costs(read=0.0, picture=10.0, token=0.0, step=1.0, row=0.0)  # 10 ms to read a picture, 1 ms a step


def scheduler() -> Scheduler:
    return Scheduler(ONE, max_rows=4, margin=1.0)


def job(name: str, deadline: float, *, answer: int = 3, thinks: bool = False, rows: int = 1) -> Job:
    return Job(name, deadline, pictures=1, tokens=0, rows=rows, answer=answer, thinks=thinks)


def test_admission_by_hand() -> None:
    """Reading writes the first token, so an answer of 3 tokens takes 10 + 2 ms."""
    queue = scheduler()
    assert queue.offer(job("exactly", 12.0), 0.0) is None
    assert scheduler().offer(job("too late", 11.9), 0.0) == Refused(12.0, None)
    # The second is read after the first has answered, or before: 10 + 10 + 2 at the earliest for one of both.
    assert queue.offer(job("no room", 20.0), 0.0) == Refused(12.0, 4.0)  # free at 12, and 12 + 12 - 20 = 4
    assert queue.offer(job("behind it", 24.0), 0.0) is None
    assert queue.offer(job("whenever", math.inf), 0.0) is None
    assert [one.name for one in queue.waiting] == ["exactly", "behind it", "whenever"]


def test_the_earliest_deadline_is_read_first_and_others_when_it_does_no_harm() -> None:
    queue = scheduler()
    assert queue.offer(job("late", 200.0), 0.0) is None
    assert queue.offer(job("soon", 13.0), 0.0) is None
    first = queue.next(0.0)
    assert isinstance(first, Read) and [one.name for one in first.jobs] == ["soon"] and not first.thinking
    queue.begin(first.jobs[0], False)
    second = queue.next(10.0)  # reading the other one takes 10 ms, and the first has 3 left
    assert isinstance(second, Step) and [one.name for one in second.jobs] == ["soon"]
    queue.end(first.jobs[0])
    third = queue.next(12.0)
    assert isinstance(third, Read) and third.jobs[0].name == "late"


def test_a_trace_is_cut_when_its_slack_is_used_up() -> None:
    """Deadline 30, read until 10: a cut answer takes the closing tag and 3 tokens, so it is cut at 26."""
    queue, one = scheduler(), job("x", 30.0, thinks=True)
    assert queue.offer(one, 0.0) is None
    assert queue.next(0.0) == Read((one,), frozenset({one}))
    queue.begin(one, True)
    now, one.left = 10.0, 4
    while (step := queue.next(now)) == Step((one,), frozenset(), ()):
        now += 1
    assert step == Step((one,), frozenset({one}), ()) and now == 26.0


def test_too_little_time_for_a_trace_means_thinking_off() -> None:
    for deadline, thinking in (
        (12.0, False),
        (17.9, False),
        (18.0, True),
    ):  # 2 tags and 4 tokens of a trace are worth it
        queue, one = scheduler(), job("x", deadline, thinks=True)
        assert queue.offer(one, 0.0) is None
        assert queue.next(0.0) == Read((one,), frozenset({one} if thinking else ()))


def test_what_is_over_time_ends_as_it_is() -> None:
    queue, one = scheduler(), job("x", 20.0)
    assert queue.offer(one, 0.0) is None
    queue.begin(one, False)
    assert queue.next(21.9) == Step((one,), frozenset(), ())  # an answer may be a tenth of its time late
    assert queue.next(22.0) == Step((), frozenset(), (one,))
    queue.end(one)
    assert queue.next(22.0) is None


def test_requests_without_a_deadline_use_what_is_left() -> None:
    queue, free, bound = scheduler(), job("free", math.inf), job("bound", 100.0)
    queue.costs = Costs(read=0.0, picture=10.0, token=0.0, step=0.0, row=1.0)
    for one in (free, bound):
        assert queue.offer(one, 0.0) is None
        queue.begin(one, False)
    bound.left = 3
    assert queue.next(0.0) == Step((free, bound), frozenset(), ())
    assert queue.next(97.0) == Step((bound,), frozenset(), ())  # with the other one a step takes 2 ms


def test_of_requests_about_a_frame_the_first_one_read_pays_for_it() -> None:
    """A frame takes 10 ms, to begin a reading 2, a question 1: five take 17 ms together, and 65 if each were alone."""
    queue = Scheduler(Costs(read=2.0, picture=10.0, token=1.0, step=1.0, row=0.0), max_rows=8, margin=1.0)
    five = [Job(str(i), 17.0, 1, 1, 1, answer=3, thinks=False, head="a", fast=1) for i in range(5)]
    assert [queue.offer(one, 0.0) for one in five] == [None] * 5
    another = Job("x", 17.0, 1, 1, 1, answer=3, thinks=False, head="a", fast=1)
    assert queue.offer(another, 0.0) == Refused(13.0, 13.0)  # free at 17, and 17 + 13 - 17 = 13
    assert queue.next(0.0) == Read(tuple(five), frozenset())


def test_a_request_joins_a_reading_only_if_that_is_cheap() -> None:
    queue = Scheduler(Costs(read=2.0, picture=10.0, token=1.0, step=1.0, row=0.0), max_rows=2, margin=1.0)
    first, same, other, third = (
        Job(name, 200.0 + at, 1, 1, 1, answer=3, thinks=True, head=head)
        for at, (name, head) in enumerate([("first", "a"), ("same", "a"), ("other", "b"), ("third", "a")])
    )
    for one in (first, same, other, third):
        assert queue.offer(one, 0.0) is None
    # The other's frame takes 10 ms, more than to begin its own reading; for a third there is no row.
    assert queue.next(0.0) == Read((first, same), frozenset({first, same}))


def test_in_a_reading_together_only_those_think_that_have_the_time() -> None:
    queue = Scheduler(Costs(read=2.0, picture=10.0, token=1.0, step=1.0, row=0.0), max_rows=8, margin=1.0)
    soon, late = (
        Job(name, deadline, 1, 1, 1, answer=3, thinks=True, head="a") for name, deadline in (("s", 18.0), ("l", 90.0))
    )
    for one in (late, soon):
        assert queue.offer(one, 0.0) is None
    assert queue.next(0.0) == Read((soon, late), frozenset({late}))


def test_after_a_refusal_thinking_gives_way() -> None:
    """A trace of an answer of 4 tokens, deadline 28. At 15 one comes that takes 12 of its 14 ms: not after 4 steps."""
    queue, one = scheduler(), job("x", 28.0, thinks=True)
    assert queue.offer(one, 0.0) is None
    queue.begin(one, True)
    one.left = 4
    assert queue.next(15.0) == Step((one,), frozenset(), ())
    assert queue.offer(job("never", 26.0), 15.0) == Refused(12.0, None)  # no room is kept for what cannot be met
    assert queue.next(15.0) == Step((one,), frozenset(), ())
    assert queue.offer(job("y", 29.0), 15.0) is not None
    assert queue.next(15.0) == Step((one,), frozenset({one}), ())
    assert queue.next(29.0 - 8.0) == Step((one,), frozenset({one}), ())
    other = job("z", 60.0, thinks=True)  # after 29 ms the refused one would be gone
    queue.end(one)
    assert queue.offer(other, 29.0) is None and queue.next(29.0) == Read((other,), frozenset({other}))


def test_rows_are_limited() -> None:
    queue = scheduler()
    wide, late = job("wide", 1000.0, rows=3), job("late", 1000.0, rows=2)
    for one in (wide, late):
        assert queue.offer(one, 0.0) is None
    queue.begin(wide, False)
    assert isinstance(queue.next(10.0), Step)
    wide.rows = 2
    assert queue.next(11.0) == Read((late,), frozenset())


def test_a_request_without_a_deadline_makes_room_for_one_with() -> None:
    queue = Scheduler(ONE, max_rows=1, margin=1.0)
    free, bound = job("free", math.inf, thinks=True), job("bound", 100.0)
    assert queue.offer(free, 0.0) is None
    queue.begin(free, True)
    assert queue.offer(bound, 0.0) is None
    assert queue.next(0.0) == Read((bound,), frozenset())
    queue.begin(bound, False)
    assert queue.next(10.0) == Step((bound,), frozenset(), ())  # one row at a time
    queue.end(bound)
    assert queue.next(20.0) == Step((free,), frozenset(), ())


def test_the_correction_learns() -> None:
    slow = Correction(margin=1.25, factor=1.25)
    slow.add(10.0, 20.0)
    assert slow.factor == pytest.approx(2.5)  # the mean of one, with its margin
    blocks = Correction(margin=1.25, factor=1.25)
    for _ in range(7):
        blocks.add(1.0, 2.0, block=8)
    assert blocks.factor == 1.25  # not before eight
    blocks.add(1.0, 10.0, block=8)
    assert blocks.factor == pytest.approx(1.25 * 24 / 8)
    for ratio in [1.0] * 90 + [3.0] * 10:
        slow.add(1.0, ratio)
    assert slow.factor == 3.0  # the 95th percentile lies above the mean and its margin


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Asked,
            at=st.floats(0, 600),
            trace=st.integers(0, 30),
            answer=st.integers(1, 5),
            given=st.one_of(st.floats(1, 900), st.just(math.inf)),
            thinks=st.booleans(),
            tokens=st.integers(1, 30),
            frame=st.sampled_from(["", "a", "b", "c"]),
            fast=st.integers(1, 5),
        ),
        max_size=24,
    ),
    st.sampled_from([1, 2, 16]),
    st.sampled_from([0.0, 5.0, 40.0]),
)
def test_nothing_accepted_is_late_if_nothing_is_slower_than_predicted(
    asked: list[Asked], max_rows: int, begin: float
) -> None:
    """Answers may be shorter than predicted, never longer. Requests share frames, and join each other's reading."""
    costs = replace(COSTS, read=begin)
    result = by_deadline(asked, costs=costs, margin=1.0, max_rows=max_rows)
    assert result.late() == 0.0 and result.broken == 0
    assert result.refused + result.accepted == len(asked)
    free = sum(one.given == math.inf for one in asked)
    assert result.accepted >= free  # without a deadline nothing is refused, and all of it is answered


@given(st.floats(70, 900), st.integers(0, 30))
def test_alone_a_request_thinks_as_long_as_it_wants_or_can(given_ms: float, trace: int) -> None:
    result = by_deadline([Asked(0.0, trace, given=given_ms)], margin=1.0)
    # The trace, its closing tag, the answer; and one token more, since what is written next could be more of the trace.
    whole = 63 + (trace + 1 + 5 + 1) * 2.15
    if given_ms >= 63 + (2 + 4 + 5) * 2.15 and given_ms > whole + 1e-6:  # sums of floats differ in the last bits
        assert result.cut == result.off == 0 and result.in_time == 1


def test_where_traces_take_most_of_the_time_it_answers_three_times_as_many_in_time_as_any_cap() -> None:
    """A language model of 135 million parameters on two cores; a queue answers some 4 of these a second in the end."""
    costs = Costs(read=79.0, picture=25.0, token=1.3, step=24.0, row=1.1)
    chance, asked = random.Random(0), list[Asked]()
    for number in range(200):
        at, given_ms = number * 150.0, chance.choice([800.0, 1000.0, 1500.0, 2000.0])
        asked.append(Asked(at, chance.randint(15, 90), 2, given_ms, 2, tokens=15, frame=str(number // 5), fast=1))
    ours = by_deadline(asked, costs=costs, noise=0.2, max_rows=64)
    best = max(by_queue(asked, cap=cap, costs=costs, noise=0.2, max_rows=64).in_time for cap in (1, 2, 3, 4, 6, 8, 16))
    assert ours.late(by=0.1) == 0 and ours.in_time > 3 * best > 0


@pytest.mark.parametrize("rate", [0.7, 1.5])
def test_under_load_and_noise(rate: float) -> None:
    """At 1.5 times the load that an engine can answer, every action up to some ten percent slower than predicted."""
    asked = load(rate, seconds=40, seed=1)
    ours = by_deadline(asked, noise=0.2)
    assert ours.late(by=0.1) < 0.001
    fifo, caps = by_queue(asked, cap=None, noise=0.2), [by_queue(asked, cap=cap, noise=0.2) for cap in range(1, 9)]
    best = max(result.in_time for result in caps)
    assert ours.in_time > 1.2 * best > 1.2 * fifo.in_time
