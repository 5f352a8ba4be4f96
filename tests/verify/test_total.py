"""No string makes any of it raise, leave its range, or work longer than the caps allow.

Deterministic: the same examples every run, and work is counted, not timed.
"""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.types import Mask, Target
from lineside.verify import fact_share, judge, members, parse, trace_problem, traces, verifiers, verify
from lineside.verify.text import MAX_ANSWER, MAX_TEXT, MAX_TRACE

always_the_same = settings(derandomize=True, database=None, max_examples=400)

TARGETS = {
    "exact": Target("exact", "sim", accepted=("red can",)),
    "choice": Target("choice", "sim", accepted=("torn",), options=("torn", "open")),
    "set": Target("set", "sim", accepted=("2", "5"), options=("1", "2", "5")),
    "empty set": Target("set", "sim"),
    "multiset": Target("set", "sim", accepted=("5", "red can", "5"), options=("5", "red can"), counted=True),
    "number": Target("number", "sim", value=70, resolution=10, tolerance=20, unit="percent"),
    "angle": Target("number", "sim", value=1, resolution=1, tolerance=5, unit="degrees", period=360),
    "point": Target("point", "sim", x=0.5, y=0.5, mask=Mask(10, 10, (43, 4, 6, 4, 43))),
    "not": Target("not", "outcome", wrong=(Target("number", "outcome", value=5),)),
}
any_character = st.characters(exclude_categories=())  # lone surrogates included
SHARDS = [
    "<think>",
    "</think>",
    "so ",
    "; ",
    ". ",
    ",",
    "0.5",
    "70",
    "%",
    "percent",
    "1e999",
    "nan",
    "-",
    "yes",
    "red can",
    "2 red cans",
    "2 x ",
]
SHARDS += ["\u0665", "\u212a", "\ud800", "\x00", "\n", " ", "mm", "(", ")", "?", "_", "how many"]
any_text = st.text(any_character) | st.lists(st.sampled_from(SHARDS) | st.text(any_character, max_size=3)).map("".join)


@always_the_same
@given(any_text, st.sampled_from(sorted(TARGETS)))
def test_verify_is_total_and_in_range(answer, name):
    verdict = verify(answer, TARGETS[name])
    assert 0.0 <= verdict.reward <= 1.0 and verdict.reason
    assert verdict.exact == (verdict.reward == 1.0 and verdict.reason == "exact")


@always_the_same
@given(any_text, any_text, st.booleans(), st.booleans(), st.sampled_from(sorted(TARGETS)))
def test_judge_is_total_and_gated(text, question, thinking, finished, name):
    judged = judge(text, TARGETS[name], thinking=thinking, finished=finished, question=question)
    valid = judged.response.trace_class == "valid"
    assert judged.reward == (judged.verdict.reward if valid or not thinking else 0.0)
    assert valid == (thinking and not judged.response.reason)
    assert finished or judged.verdict.reward == 0.0


@always_the_same
@given(any_text, any_text, st.none() | any_text, st.lists(any_text, max_size=3))
def test_trace_problem_and_fact_share_are_total(trace, question, answer, strings):
    assert isinstance(trace_problem(trace, question=question, answer=answer, options=strings), str)
    share = fact_share(trace, strings)
    assert share is None or 0.0 <= share <= 1.0


@always_the_same
@given(st.text(any_character, max_size=20), st.sampled_from(["3", "5 percent", "", "red can"]))
def test_a_rendered_response_is_read_back(trace, answer):
    if "think>" not in trace:
        response = parse(f"<think>{trace}</think>{answer}", thinking=True, finished=True)
        assert response.answer == answer and response.trace == trace.strip(" \t\n\r\f\v")


@always_the_same
@given(st.floats(-1e6, 1e6), st.sampled_from([0.01, 0.5, 1, 5, 10]), st.floats(0, 50), st.sampled_from([0, 90, 360]))
def test_the_number_asked_for_scores_one(value, resolution, tolerance, period):
    target = Target("number", "sim", value=value, resolution=resolution, tolerance=tolerance, period=period)
    steps = int((value / resolution + 0.5) // 1)
    said = steps * resolution
    assert verify(f"{said % period if period else said:.2f}", target).exact


@always_the_same
@given(st.sets(st.integers(1, 40)), st.randoms(use_true_random=False))
def test_the_set_asked_for_scores_one_in_any_order(members, random):
    target = Target("set", "sim", accepted=tuple(map(str, sorted(members))), options=tuple(map(str, range(1, 41))))
    shuffled = [str(m) for m in sorted(members)]
    random.shuffle(shuffled)
    assert verify(", ".join(shuffled) or "none", target).exact


TEN_MEGABYTES = 10_000_000
MONSTERS = {
    "letters": "a" * TEN_MEGABYTES,
    "digits": "7" * TEN_MEGABYTES,
    "spaces": " " * TEN_MEGABYTES,
    "words": "red can " * (TEN_MEGABYTES // 8),
    "commas": "," * TEN_MEGABYTES,
    "tags": "<think></think>" * (TEN_MEGABYTES // 15),
    "open tags": "<think>" * (TEN_MEGABYTES // 7),
    "look-alikes": "\u212a\u0130\uff17" * (TEN_MEGABYTES // 3),
    "surrogates": "\ud800" * TEN_MEGABYTES,
    "closed late": "<think>" + "left 2 red; " * (TEN_MEGABYTES // 12) + "</think>70",
}
# the longest that is read to the end: each function just under its cap, in shapes that slow careless code down
MONSTERS |= {
    "trace of one word": f"<think>{'a ' * (MAX_TRACE // 2 - 2)}</think>70",
    "trace nearly periodic": f"<think>{('a ' * 29 + 'b ') * (MAX_TRACE // 60 - 1)}</think>70",
    "trace of clauses": f"<think>{'; ' * (MAX_TRACE // 2 - 2)}</think>70",
    "trace of so": f"<think>{'so ' * (MAX_TRACE // 3 - 2)}1</think>70",
    "trace outside ascii": "<think>" + "\u5de6\u212a " * (MAX_TRACE // 3 - 2) + "</think>70",
    "answer of commas": f"<think>left 2, right 5</think>{'1,' * (MAX_ANSWER // 2)}",
    "answer outside ascii": "<think>left 2, right 5</think>" + "\u0130" * MAX_ANSWER,
    "answer of stops": f"<think>left 2, right 5</think>{'. ' * (MAX_ANSWER // 2)}",
    "text at the cap": "<think>" + "x" * (MAX_TEXT - 20) + "</think>70",
}


QUESTION = ("a " * 200_000) + "?"


def work(text: str, target: Target, question: str = QUESTION) -> int:
    """Lines of Python that judging a text runs: the same on a quiet machine and on a busy one."""
    lines = 0
    for module in (members, traces, verifiers):  # what another test has asked already would cost less
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        judged = judge(text, target, thinking=True, finished=True, question=question)
        verify(text, target)
    finally:
        sys.settrace(before)
    assert judged.reward == 0.0
    return lines


@pytest.mark.parametrize("name", MONSTERS)
def test_the_work_has_a_bound_and_what_lies_beyond_the_cap_adds_none(name):
    """Four lines of Python for each character that is ever looked at: some milliseconds."""
    text = MONSTERS[name]
    for target in (TARGETS["number"], TARGETS["set"]):
        done = work(text, target)
        assert done <= 4 * (MAX_TRACE + MAX_ANSWER)
        if len(text) > 10 * MAX_TEXT:
            assert done == work(text[: 2 * MAX_TEXT], target)


SHAPES = {
    "trace of one word": lambda n: f"<think>{'a ' * (n // 2)}</think>70",
    "trace nearly periodic": lambda n: f"<think>{('a ' * 29 + 'b ') * (n // 60)}</think>70",
    "trace of clauses": lambda n: f"<think>{'; ' * (n // 2)}</think>70",
    "trace of so": lambda n: f"<think>{'so ' * (n // 3)}1</think>70",
    "trace outside ascii": lambda n: "<think>" + "\u5de6\u212a " * (n // 3) + "</think>70",
    "answer of commas": lambda n: f"<think>left 2, right 5</think>{'1,' * (n // 2)}",
    "answer of stops": lambda n: f"<think>left 2, right 5</think>{'. ' * (n // 2)}",
}


@pytest.mark.parametrize("name", SHAPES)
def test_four_times_as_long_is_at_most_five_times_the_work(name):
    longest = (MAX_ANSWER if name.startswith("answer") else MAX_TRACE) - 20
    for target in (TARGETS["number"], TARGETS["set"]):
        quarter, whole = (work(SHAPES[name](size), target, "how many?") for size in (longest // 4, longest))
        assert whole <= 5 * quarter + 200


@pytest.mark.parametrize("name", MONSTERS)
def test_what_lies_beyond_the_cap_is_never_read(name):
    """Counted instead of timed: two texts that differ only beyond the cap are one and the same to the parser."""
    text = MONSTERS[name][:MAX_TEXT].ljust(MAX_TEXT)
    for tail in ("yes", "</think>70", "<think>" * 1000):
        for thinking in (True, False):
            cut = parse(text, thinking=thinking, finished=False)
            assert parse(text + tail, thinking=thinking, finished=True) == cut
