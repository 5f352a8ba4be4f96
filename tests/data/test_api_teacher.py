"""The API teacher: what of its words is taken, and what is dropped for which reason. Replies are put in by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from lineside.data.api_teacher import Agreement, ApiTeacher, Heard, Posed, Wants, _with_form, record_text
from lineside.data.dispatch import Question, Reply
from lineside.data.plan import questions
from lineside.data.prompts import load_prompts
from lineside.data.taskfile import Answer, Task
from lineside.data.tasks import survey
from lineside.recipe import Label
from lineside.types import Frame, Image, Meta, Target

COUNT = Task(
    family="bin",
    name="count",
    phrasings=("How many parts?",),
    answer=Answer(kind="number", column="count", tolerance=2),
)
UPRIGHT = Task(
    family="bin", name="upright", phrasings=("Is it upright?",), answer=Answer(kind="choice", options=("yes", "no"))
)


def frame(count: int = 4, item: str = "red can") -> Frame:
    return Frame("f1", Image(b"\xff\xd8 picture"), "bin", {"count": count, "item": item}, Meta("s1"), "train")


def api_teacher(**words) -> ApiTeacher:
    who = ApiTeacher(Label(teacher="api", model="m", **words), load_prompts())
    for item in ("red can", "blue box"):
        who.meet(frame(item=item))
    return who


def hold(who: ApiTeacher, wants: Wants, *rounds: list[dict | str], of: Frame | None = None) -> Heard:
    """The conversation with these replies; a string is a failure."""
    talk = who.converse(of or frame(), wants)
    asked: list[Question] = list(next(talk))
    for number, said in enumerate(rounds):
        assert len(asked) == len(said), [q.request.text for q in asked]
        replies = [
            Reply(None, "failed", given) if isinstance(given, str) else Reply(q.read(json.dumps(given)), "said")
            for q, given in zip(asked, said)
        ]
        try:
            asked = list(talk.send(replies))
        except StopIteration as end:
            assert number == len(rounds) - 1
            return end.value
    raise AssertionError(f"it asks more: {[q.request.text for q in asked]}")


def dropped(heard: Heard) -> Counter[tuple[str, str]]:
    return Counter((said.what, said.reason) for said in heard.dropped)


def test_captions_are_taken_once_and_not_against_the_record() -> None:
    said = [
        "A red can lies there.",
        " a red can lies there ",
        "No.",
        "A blue box lies there.",
        "It holds four parts.",
        "x y z",
    ]
    heard = hold(api_teacher(), Wants(captions=2), [{"captions": said}])
    assert heard.captions == ["A red can lies there.", "It holds four parts."]
    assert dropped(heard) == {
        ("caption", "said already"): 1,
        ("caption", "says nothing"): 1,
        ("caption", "states another item than the record"): 1,
        ("caption", "more than requested"): 1,
    }


def test_traces_are_judged_by_the_rules_of_verify_and_by_the_record() -> None:
    asked = tuple(questions(frame(), [(COUNT, survey(COUNT, frame()).candidates)] * 5))
    asked = tuple(replace(a, id=f"{a.id}/{n}") for n, a in enumerate(asked))
    texts = ["left: 3 red can; right: 1; so 4", "ok", "left: 3; right: 2; so 5", "two blue box on top; so 4"]
    traces = [{"id": n, "trace": text} for n, text in enumerate(texts, 1)]
    heard = hold(api_teacher(), Wants(asked=asked), [{"traces": traces}])
    assert heard.traces == {asked[0].id: texts[0]}
    assert dropped(heard) == {
        ("trace", "trivial"): 1,
        ("trace", "contradicts the answer"): 1,
        ("trace", "states another item than the record"): 1,
        ("trace", "not given"): 1,
    }


@pytest.mark.parametrize(
    ("answers", "agree", "agreement"),
    [
        (["yes", "Yes.", "yes"], 3, Agreement(3, 3)),
        (["yes", "yes", "no"], 3, None),
        (["yes", "no", "yes"], 2, Agreement(3, 2)),
        (["no", "yes", "yes"], 2, None),  # the first one's trace would be of the other answer
        (["yes", "yes", None], 3, None),
        (["perhaps", "yes", "yes"], 2, None),
    ],
)
def test_a_question_without_a_record_needs_agreement(answers: list, agree: int, agreement: Agreement | None) -> None:
    posed = Posed("f1/upright", UPRIGHT, "Is it upright?", "")
    replies: list[dict | str] = [
        {"answers": [{"id": 1, "trace": "the lid shows above; so yes", "answer": a}] if a else []} for a in answers
    ]
    heard = hold(api_teacher(agree=agree), Wants(posed=(posed,)), replies)
    assert heard.agreement == ({"f1/upright": agreement} if agreement else {})
    if agreement:
        (asked,) = heard.asked
        assert asked.candidate.target == Target("choice", "teacher", ("yes",), ("yes", "no"))
        assert heard.traces == {"f1/upright": "the lid shows above; so yes"}
    else:
        assert heard.dropped and not heard.asked and not heard.traces


def own(question: str, answer: str, kind: str = "choice", options: tuple = ("yes", "no")) -> dict:
    return {"question": question, "kind": kind, "options": list(options), "unit": "", "answer": answer}


def test_questions_of_its_own_must_be_checkable_and_agreed_upon() -> None:
    trace = {"trace": "a lid at the top left; so yes"}
    first = [
        own("Is a lid on it?", "yes") | trace,
        own("How many lids are there?", "2", "number", ()) | {"trace": "left: one lid; right: one lid; so 2"},
        own("How many red ones are there?", "a few", "number", ()) | trace,
        own("Which of these is it?", "red", "choice", ("red",)) | trace,
        own("Say something nice.", "yes") | trace,
    ]
    again: list[dict | str] = [
        {"answers": [{"id": 1, "trace": "", "answer": "yes"}, {"id": 2, "trace": "", "answer": number}]}
        for number in ("2", "3")
    ]
    heard = hold(api_teacher(), Wants(own=5), [{"questions": first}], again)
    assert [asked.candidate.question for asked in heard.asked] == ["Is a lid on it?"]
    assert heard.asked[0].id == "f1/own/0"
    assert heard.traces == {"f1/own/0": trace["trace"]}
    assert dropped(heard) == {
        ("question", "the teacher does not agree with itself"): 1,
        ("question", "cannot be checked"): 1,
        ("question", "a choice of fewer than two"): 1,
        ("question", "no question"): 1,
    }


def test_for_stage_3_it_writes_no_traces() -> None:
    again: list[dict | str] = [{"answers": [{"id": 1, "trace": "", "answer": "yes"}]}] * 2
    heard = hold(api_teacher(), Wants(own=1, stage=3), [{"questions": [own("Is a lid on it?", "yes")]}], again)
    assert len(heard.asked) == 1
    assert not heard.traces


def test_an_endpoint_that_gave_no_answer_fails_the_frame() -> None:
    asked = tuple(questions(frame(), [(COUNT, survey(COUNT, frame()).candidates)]))
    heard = hold(api_teacher(), Wants(captions=1, asked=asked), [{"captions": ["A red can."]}, "HTTP 500"])
    assert heard.failed == "HTTP 500"


def test_requests_differ_where_anything_that_decides_differs() -> None:
    posed = Posed("f1/upright", UPRIGHT, "Is it upright?", "")

    def keys(who: ApiTeacher, wants: Wants, of: Frame) -> list[str]:
        return [question.request.key for question in next(who.converse(of, wants))]

    base = keys(api_teacher(), Wants(captions=2), frame())
    assert base == keys(api_teacher(attempts=9), Wants(captions=2), frame())
    others = [
        keys(api_teacher(), Wants(captions=3), frame()),
        keys(api_teacher(body={"temperature": 0.5}), Wants(captions=2), frame()),
        keys(api_teacher(max_tokens=9), Wants(captions=2), frame()),
        keys(api_teacher(), Wants(captions=2), frame(count=5)),
        keys(api_teacher(), Wants(captions=2), replace(frame(), image=Image(b"other"))),
        keys(api_teacher(), Wants(posed=(posed,)), frame()),  # three samples
    ]
    every = base + [key for found in others for key in found]
    assert len(every) == len(set(every)) == 1 + 5 + 3


def test_the_prompt_holds_what_is_known_and_no_more() -> None:
    record = {"count": 4, "item": "red\ncan", "mask": {"runs": [1]}, "boxes": [[1, 2]], "skus": ["a", "b"], "x": None}
    assert record_text(record) == "\nWhat is known of it:\n- count: 4\n- item: red can\n- skus: a, b\n"
    assert record_text({}) == ""
    assert len(record_text({f"column{n}": "word" * 20 for n in range(500)})) < 2100


def test_columns_that_name_things_are_not_classes() -> None:
    who = ApiTeacher(Label(teacher="api", model="m"), load_prompts())
    for number in range(300):
        who.meet(Frame(str(number), Image(b""), "bin", {"serial": f"name {number}", "item": "can"}, Meta(), "train"))
    heard = hold(who, Wants(captions=1), [{"captions": ["it reads name 7 below"]}], of=frame(item="can"))
    assert heard.captions


def audit(who: ApiTeacher, reply: Reply | dict) -> tuple[str, dict[str, str] | None]:
    """(the request's text, what was heard) of an audit of the count and a choice whose truths the record has."""
    state = Task(
        family="bin",
        name="item",
        phrasings=("Which item?",),
        answer=Answer(kind="choice", column="item", options=("red can", "blue box")),
    )
    asked = list(questions(frame(), [(task, survey(task, frame()).candidates) for task in (COUNT, state)]))
    talk = who.audit(frame(), asked)
    (question,) = next(talk)
    said = Reply(question.read(json.dumps(reply)), "said") if isinstance(reply, dict) else reply
    try:
        talk.send([said])
    except StopIteration as end:
        return question.request.text, end.value
    raise AssertionError("it asks more")


def test_an_audit_asks_what_the_record_knows_and_does_not_tell_it(tmp_path) -> None:
    (tmp_path / "answers.md").write_text("Known: $record\n$questions")  # a user's prompt that would give it away
    who = ApiTeacher(Label(teacher="api", model="m"), load_prompts(tmp_path))
    answers = {"answers": [{"id": 2, "trace": "", "answer": " Red can "}]}
    text, heard = audit(who, answers)
    assert text.splitlines() == [
        "Known: ",
        "1. How many parts? (a number)",
        "2. Which item? (one of: red can, blue box)",
    ]
    assert heard == {"f1/item": "Red can"}  # the other one was not answered
    assert audit(api_teacher(), Reply(None, "failed", "HTTP 500"))[1] is None
    assert audit(api_teacher(), Reply(None, "unusable", "not JSON"))[1] is None


def test_questions_of_an_audit_say_the_form_of_an_answer() -> None:
    def form(**keys) -> str:
        return _with_form("Q?", Target(provenance="record", **keys))

    assert form(kind="number", unit="percent", resolution=10.0) == "Q? (a number in percent, to the nearest 10)"
    assert form(kind="set", options=("1", "2")) == 'Q? (of 1, 2: members separated by commas, or "none")'
    assert form(kind="exact") == "Q? (a name)"
    assert form(kind="point").startswith('Q? (a point "x, y", each from 0 to 1')
