"""The reward is gated by a valid trace with thinking on, the verdict never; an unfinished answer earns nothing."""

import pytest

from lineside.types import Target
from lineside.verify import judge
from lineside.verify.text import MAX_TEXT

COUNT = Target("number", "sim", value=3, resolution=1, tolerance=2)
STATE = Target("choice", "sim", accepted=("dented",), options=("intact", "dented", "torn"))
RED = "How many red cans are in the bin?"
WORK = "left: 2 red can, 1 blue box; right: 1 red can; so 3 red"


def outcome(text, target=COUNT, thinking=True, finished=True, question=RED):
    judged = judge(text, target, thinking=thinking, finished=finished, question=question)
    return judged.reward, judged.verdict.reward, judged.verdict.exact


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"<think>{WORK}</think>3", (1.0, 1.0, True)),
        ("<think>left 2, right 2 red</think>4", (0.5, 0.5, False)),
        (f"<think>{WORK}</think>5", (0.0, 0.0, False)),
        ("<think></think>3", (0.0, 1.0, True)),
        ("<think>ok</think>3", (0.0, 1.0, True)),
        ("3", (0.0, 1.0, True)),
        (f"<think>{WORK}</think>4", (0.0, 0.5, False)),  # concludes 3, answers 4
        (f"<think>{WORK}</think>", (0.0, 0.0, False)),
        (f"<think>{WORK}", (0.0, 0.0, False)),
        (f"<think>{WORK} 3", (0.0, 0.0, False)),
        (f"<think><think>{WORK}</think></think>3", (0.0, 0.0, False)),
        (f"<think>{WORK}</think>3</think>3", (0.0, 0.0, False)),
        (f"<think>{WORK}</think>3 or 4", (0.0, 0.0, False)),
        ("", (0.0, 0.0, False)),
    ],
)
def test_thinking_on(text, expected):
    assert outcome(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("3", (1.0, 1.0, True)),
        ("4", (0.5, 0.5, False)),
        ("", (0.0, 0.0, False)),
        (f"<think>{WORK}</think>3", (0.0, 0.0, False)),
    ],
)
def test_thinking_off(text, expected):
    assert outcome(text, thinking=False) == expected


@pytest.mark.parametrize("thinking, text", [(True, f"<think>{WORK}</think>3"), (False, "3")])
def test_an_answer_cut_off_is_not_an_answer(thinking, text):
    assert outcome(text, thinking=thinking, finished=False) == (0.0, 0.0, False)
    assert judge(text, COUNT, thinking=thinking, finished=False).verdict.reason == "cut off"


def test_a_right_answer_followed_by_more_than_is_read_is_cut_off():
    text = f"<think>{WORK}</think>3"
    assert outcome(text + " " * (MAX_TEXT - len(text)))[0] == 1.0
    assert outcome(text + " " * 10_000_000) == (0.0, 0.0, False)


def test_a_conclusion_is_held_against_the_options_of_the_target():
    text = "<think>tear across the left edge; so torn</think>dented"
    judged = judge(text, STATE, thinking=True, finished=True, question="What is its condition?")
    assert (judged.reward, judged.verdict.exact, judged.response.reason) == (0.0, True, "contradicts the answer")


def test_no_answer_is_said_to_be_none():
    assert judge(f"<think>{WORK}", COUNT, thinking=True, finished=True).verdict.reason == "no answer"
