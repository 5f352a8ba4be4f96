"""Traces that work something out, and those that only look as if they did."""

import pytest

from lineside.verify import fact_share, trace_problem

RED = "How many red cans are in the bin?"
KIT = "The kit needs: 1 red can, 2 blue box, 3 white bottle. Is the kit complete?"
STATES = ("intact", "dented", "torn", "open")

VALID = [  # trace, question, answer
    ("left: 2 red can, 1 blue box; right: 1 red can; so 3 red", RED, "3"),
    ("left: 2 red can, 1 blue box; right: 1 red can; so 3", RED, "3"),
    ("red can, red can, red can; so 3", RED, "3"),
    ("1 red can at the left; so 1", RED, "1"),
    ("no red can; so 0", RED, "0"),
    ("blue box, white bottle, no can; so 0", RED, "0"),
    ("2 parts, floor seen between them; so no", "Is the bin empty?", "no"),
    ("no parts; bare floor; so yes", "Is the bin empty?", "yes"),
    ("2 empty; 5 empty; so 2, 5", "Which slots are empty?", "2, 5"),
    ("1 ok; 2 empty; 3 ok; 4 ok; 5 empty; 6 ok", "Which slots are empty?", "2, 5"),
    ("1 red can; 2 blue box; 3 white bottle; so yes", KIT, "yes"),
    ("1 red can; 2 blue box; 3 nothing; so not complete", KIT, "no"),
    ("tear across the left edge, no dent; so torn", "What is its condition?", "torn"),
    ("heap reaches 7 of 10 marks; so 70 percent", "How full is the bin, to 10 percent?", "70 percent"),
    ("heap reaches 7 of 10 marks; so 7 of 10", "How full is the bin, to 10 percent?", "70 percent"),
    ("about 28 cm of 40; so about 72 percent", "How full is the bin, to 10 percent?", "70 percent"),
    ("red can at 0.42, 0.61 lies free on top", "Point to a red can on top.", "0.42, 0.61"),
    ("longest edge spans 7.5 cm on the scale; so 7.5 cm", "How wide is it?", "75 mm"),
    ("Die Dose links ist rot, die rechts blau; so 1", "Wie viele rote Dosen?", "1"),
    ("\u5de6\u8fb9\u4e24\u4e2a\u7ea2\u8272\u7f50\u5b50", "\u6709\u51e0\u4e2a\uff1f", "2"),
    ("red can, " * 12 + "so 12", RED, "12"),
    ("1 large striped blue carton; " * 3 + "so 3", "How many large striped blue cartons?", "3"),
    ("top 3 4 2 is 9; middle none; bottom 0 1 0 is 1; so 10 in all", "How many parts are in the bin?", "10"),
    ("row 1 holds 3; row 2 holds 2, 5 now; so 5 in all", "How many slots are filled?", "5"),
    ("1 red can ok; 2 red tub, needs red can; so 2 is wrong", "Which slot is wrong?", "2"),
    ("seen red can; order red can; so they are the same", "The order line says red can. Is it this?", "yes"),
    ("no marks; a face is pressed in left; so dented means restock", "What is to be done?", "restock"),
    ("slot 3 white bottle; so yes", "The kit needs a white bottle in slot 3. Is it complete?", "yes"),
    ("red, red, red, red, red, red, red; so 7", "How many red parts?", "7"),
    ("no sign of a tear; no dent; so no", "Is it damaged?", "no"),
]


@pytest.mark.parametrize("trace, question, answer", VALID)
def test_a_trace_that_works_is_valid(trace, question, answer):
    assert trace_problem(trace, question=question, answer=answer) == ""


@pytest.mark.parametrize("trace, question, answer", VALID[:8])
def test_validity_needs_neither_answer_nor_question(trace, question, answer):
    assert trace_problem(trace, question=question, answer=None) == ""
    assert trace_problem(trace) == ""


INVALID = [  # trace, question, answer, reason
    ("", RED, "3", "blank"),
    (" \n\t\u00a0", RED, "3", "blank"),
    ("...", RED, "3", "trivial"),
    ("\u200b\u200b", RED, "3", "trivial"),
    ("ok", RED, "3", "trivial"),
    ("blue box", RED, "3", "trivial"),
    ("Let me think about this step by step.", RED, "3", "trivial"),
    ("let me look", RED, "3", "trivial"),
    ("let me think step by step", RED, "3", "trivial"),
    ("so the answer is this", RED, "3", "trivial"),
    ("I need to look at the image carefully to find the answer.", RED, "3", "trivial"),
    ("3", RED, "3", "copies the answer"),
    ("so 3", RED, "3", "copies the answer"),
    ("3 3 3 3", RED, "3", "copies the answer"),
    ("The answer is 3.", RED, "3", "copies the answer"),
    ("yes, the answer is yes", "Is the bin empty?", "Yes.", "copies the answer"),
    ("red can, blue box; so red can, blue box", "What lies beside the kit?", "red can, blue box", "copies the answer"),
    (RED, RED, "3", "restates the question"),
    (RED + " so 3", RED, "3", "restates the question"),
    ("how many red cans are in the bin", RED, "3", "restates the question"),
    ("The question asks how many red cans are in the bin.", RED, "3", "restates the question"),
    ("3 red cans in the bin", RED, "3", "restates the question"),
    ("empty bin, empty bin; so yes", "Is the bin empty?", "yes", "restates the question"),
    ("the bin is empty; so yes", "Is the bin empty?", "yes", "restates the question"),
    (KIT, KIT, "yes", "restates the question"),
    (f"{KIT} yes", KIT, "yes", "restates the question"),
    ("left: 2 red can; right: 1 red can; so 3", RED, "4", "contradicts the answer"),
    ("left: 2 red can; right: 1 red can; so there are 3 red", RED, "4", "contradicts the answer"),
    ("left 2, right 1, so 3 red", RED, "2", "contradicts the answer"),
    ("heap reaches 7 of 10 marks; so 70 percent", "How full is it?", "80 percent", "contradicts the answer"),
    ("longest edge spans two squares; so 7.5 cm", "How wide is it?", "80 mm", "contradicts the answer"),
    ("no parts seen, bare floor; so yes", "Is the bin empty?", "no", "contradicts the answer"),
    ("tear across the left edge; so torn", "What is its condition?", "dented", "contradicts the answer"),
    ("the bin holds a red can at left " * 5, RED, "3", "repeats itself"),
    ("left red left blue " * 12, RED, "3", "repeats itself"),
    ("part the the the the the the end", RED, "3", "repeats itself"),
    ("see one red blob " + "ab" * 40, RED, "3", "repeats itself"),
    ("red can; " * 1000, RED, "3", "too long"),
]


@pytest.mark.parametrize("trace, question, answer, reason", INVALID, ids=lambda v: repr(v)[:30])
def test_a_trace_that_does_not_work_says_why(trace, question, answer, reason):
    assert trace_problem(trace, question=question, answer=answer, options=STATES) == reason


NOT_A_CONTRADICTION = [
    ("2 red can left, 1 right; so about 4", RED, "3"),
    ("2 red can left, 1 right; so 2 + 1", RED, "3"),
    ("2 red can left, 1 right; so 1 more than 2", RED, "3"),
    ("2 red can left, 1 right; so 2 or more", RED, "3"),
    ("2 red can left, 1 right; 4 blue box", RED, "3"),
    ("longest edge spans two squares; so 7.5 cm", "How wide is it, in mm?", "75"),
    ("heap reaches 7 of 10 marks; so 7", "How full is it?", "70 percent"),
    ("slot 2 bare, slot 5 bare; so 2, 5", "Which slots are bare?", "2, 5"),
    ("slot 2 bare, slot 5 bare; so no parts there", "Any slot bare?", "yes"),
    ("tear across the left edge; so it would tear", "What is its condition?", "dented"),
]


@pytest.mark.parametrize("trace, question, answer", NOT_A_CONTRADICTION)
def test_only_a_plain_conclusion_can_contradict(trace, question, answer):
    assert trace_problem(trace, question=question, answer=answer, options=STATES) == ""


FACTS = ("left: 2 red can, 1 blue box; right: 1 red can", "bare floor at 0.42")


@pytest.mark.parametrize(
    "trace, share",
    [
        ("left: 2 red can, 1 blue box; right: 1 red can; so 3 red", 1.0),
        ("Left: 2 red can, 1 blue box. Right: 1 red can. So 3 red.", 1.0),
        ("left: 3 red can; right: 1 red can; so 4 red", 0.5),
        ("bare floor at 0.42; left: nothing; right: nothing", 1 / 3),
        ("right: 1 red can; right: 1 red can; left: nothing", 0.5),  # saying it twice does not make it two facts
        ("right: 1 red", 0.0),
        ("so 3 red", None),
        ("", None),
        ("right: 1 red can; " * 1000, None),
    ],
)
def test_fact_share_by_hand(trace, share):
    assert fact_share(trace, FACTS) == (None if share is None else pytest.approx(share))


def test_no_facts_nothing_to_judge():
    assert fact_share("right: 1 red can", ()) is None
