"""Templates and bags of words."""

from __future__ import annotations

from collections import Counter

from lineside.judgement.words import MajorityByTemplate, Vocabulary, majority


def test_majority_by_template_takes_slots_out() -> None:
    # Two phrasings with opposite answers; the slot words are rarer than any word of a phrasing.
    colours = ["red", "blue", "green", "white", "black", "grey", "pink", "brown"]
    questions = [f"Is there a {c} can?" for c in colours] + [f"Can you rule out any {c} box?" for c in colours]
    answers = ["yes"] * 8 + ["no"] * 8
    fitted = MajorityByTemplate.fit(questions, answers, share=0.2)
    assert fitted.predict(["Is there a violet can?", "Can you rule out any violet box?"]) == ["yes", "no"]


def test_a_rare_template_answers_as_the_task_does() -> None:
    questions = ["How many cans?"] * 6 + ["What number of them?"] * 4
    answers = ["2"] * 6 + ["5"] * 4
    fitted = MajorityByTemplate.fit(questions, answers, share=0.0)
    assert fitted.predict(["What number of them?", "never seen", "how many CANS"]) == ["2", "2", "2"]
    more = MajorityByTemplate.fit([*questions, "What number of them?"], [*answers, "5"], share=0.0)
    assert more.predict(["What number of them?"]) == ["5"]


def test_share_above_one_is_the_task_as_a_whole() -> None:
    questions = ["a b"] * 6 + ["c d"] * 7
    fitted = MajorityByTemplate.fit(questions, ["1"] * 6 + ["2"] * 7, share=1.1)
    assert fitted.predict(["a b"]) == ["2"]


def test_majority_breaks_ties_by_name() -> None:
    assert majority(Counter({"yes": 2, "no": 2, "maybe": 1})) == "no"


def test_vocabulary_leaves_out_what_says_nothing() -> None:
    vocabulary = Vocabulary.of(["is the red can here", "is the blue can here", "is the red box here"])
    # "is", "the", "here" and "is the" stand in all three, "blue", "box" and their pairs in one
    assert set(vocabulary.index) == {"red", "can", "the red", "can here"}
    encoded = vocabulary.encode(["THE RED, can?", "unknown"])
    assert encoded.sum(1).tolist() == [3.0, 0.0]
