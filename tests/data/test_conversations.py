"""Rows of other tools: each is read as it is meant, or refused with what was found in it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lineside.data.conversations import NAMES, answer_text
from lineside.data.formats import samples_of
from lineside.data.pictures import Picture
from lineside.errors import LinesideError
from lineside.types import Image, Sample


def load(picture: Picture) -> Image:
    return Image(picture.data or b"file", "frame", picture.path)


def read(row: Any, **options: Any) -> list[Sample]:
    return samples_of(row, 1, None, load, **options)[0]


def user(content: Any = "<image>How many?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "3", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def chat(*turns: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"images": ["p.png"], "messages": list(turns), **keys}


DATA_URL = "data:image/png;base64,iVBORw0KGgo="
ASKED = ("How many?", None, "3")
ONE = {
    "plain": {"image": "p.png", "question": "How many?", "answer": "3"},
    "easyr1": {"images": ["p.png"], "problem": "<image>How many?", "answer": "3"},
    "query response": {"images": ["p.png"], "query": "<image>How many?", "response": "3"},
    "prompt completion": {"image": "p.png", "prompt": "How many?", "completion": "3"},
    "prompt answer": {"image": "p.png", "prompt": "How many?", "answer": "3"},
    "chartqa": {"image": "p.png", "query": "How many?", "label": ["3"]},
    "vqa": {"question_id": 7, "image": "p.png", "question": "How many?", "answers": ["3", "3", "4"]},
    "vqa objects": {"image": "p.png", "question": "How many?", "answers": [{"answer": "3", "answer_id": 1}]},
    "alpaca": {"images": ["p.png"], "instruction": "How many?", "input": "", "output": "3"},
    "input output": {"image": "p.png", "input": "How many?", "output": "3"},
    "solution": {"image": "p.png", "problem": "How many?", "solution": "<answer>3</answer>"},
    "upper case": {"Image": "p.png", "Question": "How many?", "ANSWER": "3"},
    "spaces": {"Image Path": "p.png", "question": "How many?", "answer": "3"},
    "an integer": {"image": "p.png", "question": "How many?", "answer": 3},
    "a whole float": {"image": "p.png", "question": "How many?", "answer": 3.0},
    "null is absent": {"image": "p.png", "images": None, "question": "How many?", "answer": "3", "trace": None},
    "verl": {
        "images": [{"bytes": None, "path": "p.png"}],
        "prompt": [user()],
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0},
    },
    "trl": {"images": ["p.png"], "prompt": [user()], "completion": [assistant()]},
    "grpo": chat(user(), solution="3"),
    "messages": chat(user(), assistant()),
    "roles in conversations": {"image": "p.png", "conversations": [user(), assistant()]},
    "from in messages": chat({"from": "Human", "value": "<image>How many?"}, {"from": "GPT", "value": "3"}),
    "cauldron": {"images": ["p.png"], "texts": [{"user": "How many?", "assistant": "3", "source": "x"}]},
    "kto": chat(user(), assistant(), label=True),
    "parts": chat(user([{"type": "image"}, {"type": "text", "text": "How many?"}]), assistant([{"text": "3"}])),
    "named parts": {
        "messages": [user([{"type": "image", "image": "p.png"}, {"type": "text", "text": "How many?"}]), assistant()]
    },
    "an empty list beside": {"images": [], "image": "p.png", "question": "How many?", "answer": "3"},
    "llava-instruct-mix": chat(
        user([{"index": None, "text": "How many?", "type": "text"}, {"index": 0, "text": None, "type": "image"}]),
        assistant([{"index": None, "text": "3", "type": "text"}]),
    ),
    "pairs": {"image": "p.png", "qa": [{"question": "How many?", "answer": 3}]},
    "user and assistant": {"image": "p.png", "user": "How many?", "assistant": "3"},
    "final answer": {"image": "p.png", "question": "How many?", "final_answer": "3"},
    "a weight": {"image": "p.png", "question": "How many?", "answer": "3", "weight": 0, "label": 0},
    "parts without types": {"messages": [user([{"image": "p.png"}, {"text": "How many?"}]), assistant()]},
    "file url": {"image": "p.png", "question": "<|vision_start|><|image_pad|><|vision_end|>How many?", "answer": "3"},
    "answer tags": chat(user(), assistant("<answer>3</answer>")),
    "boxed": chat(user(), assistant("\\boxed{3}")),
    "empty think": chat(user(), assistant("<think>\n\n</think>\n\n3")),
    "empty reasoning": chat(user(), assistant(reasoning_content="")),
    "system unused": chat(user(), assistant(), system=None, tools=[]),
    "camel case": {"imagePath": "p.png", "Question": "How many?", "correctAnswer": "3"},
    "clevr": {"image_filename": "p.png", "question": "How many?", "answer": 3, "split": "train"},
    "a picture and its name": {
        "image": {"bytes": None, "path": "p.png"}, "question": "How many?", "answer": "3", "filename": None,
    },
    "xtuner": {"image": "p.png", "conversation": [{"system": "", "input": "<image>How many?", "output": "3"}]},
    "turns as text": {"image": "p.png", "prompt": '[{"role": "user", "content": "<image>How many?"}]', "answer": "3"},
    "message as text": {"image": "p.png", "message": '[{"role": "user", "content": "How many?"}]', "answer": "3"},
    "ollama": {"messages": [{**user("How many?"), "images": ["p.png"]}, assistant()]},
    "solution tags": chat(user(), assistant("<SOLUTION>3</SOLUTION>")),
    "boxed in a formula": chat(user(), assistant("\\[\\boxed{\\text{3}}\\].")),
    "not for a judge": {"image": "p.png", "question": "How many?", "answer": "3", "is_correct": True, "valid": True},
    "train and val": {"image": "p.png", "question": "How many?", "answer": "3", "split": "trainval"},
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_a_row_of_one_question(name: str) -> None:
    (sample,) = read(ONE[name])
    assert (sample.kind, sample.question, sample.trace, sample.answer) == ("qa", *ASKED)
    assert [image.path for image in sample.images] == ["p.png"]


TRACED = {
    "tags": "<think>two left, one right</think>3",
    "line ends": "\n<think>\ntwo left, one right\n</think>\n\n3",
    "no opening tag": "two left, one right</think>3",
    "answer tags": "<think>two left, one right</think> <answer> 3 </answer>",
    "thinking": "<thinking>two left, one right</thinking>\n3",
    "other tokens": "[THINK]two left, one right[/THINK]3",
    "another model": "\u25c1think\u25b7two left, one right\u25c1/think\u25b7\n3",
    "solution": "<|begin_of_thought|>two left, one right<|end_of_thought|><|begin_of_solution|>3<|end_of_solution|>",
    "boxed": "<think>two left, one right</think>$\\boxed{3}$",
    "space in tags": "< think >two left, one right</think >3",
    "a line end in a tag": "<think\n>two left, one right</think>3",
    "a name before": "<seed:think>two left, one right</seed:think>3",
    "working out": "<start_working_out>two left, one right<end_working_out><SOLUTION>3</SOLUTION>",
    "small brackets": "[think]two left, one right[/think]3",
    "hashes": "two left, one right\n#### 3",
    "final answer": "<cot>two left, one right</cot><final_answer>3</final_answer>",
}


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_in_the_text(name: str) -> None:
    (sample,) = read(chat(user(), assistant(TRACED[name])))
    assert (sample.trace, sample.answer) == ("two left, one right", "3")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thoughts", "Thought Process"])
def test_a_trace_in_a_field(key: str) -> None:
    trace = {key: "two left, one right"}
    for row in (chat(user(), assistant("3", **trace)), {"image": "p.png", "question": "How?", "answer": "3", **trace}):
        assert [(s.trace, s.answer) for s in read(row)] == [("two left, one right", "3")]
    parts = [{"type": "thinking", "thinking": "two left, one right"}, {"type": "text", "text": "3"}]
    details = [{"type": "reasoning.text", "text": "two left, one right"}]
    for answer in (
        assistant(parts),
        assistant("<think>two left, one right</think>3", **trace),
        assistant(reasoning_details=details),
        assistant(reasoning={"content": "two left, one right"}),
    ):
        assert [(s.trace, s.answer) for s in read(chat(user(), answer))] == [("two left, one right", "3")]
    assert read(chat(user(), assistant(), **trace))[0].trace == "two left, one right"


def test_marked_turns_are_context_only() -> None:
    for mark in (
        {"loss": False}, {"weight": 0}, {"train": False}, {"label": 0}, {"mask": True}, {"loss": 0.0},
        {"compute_loss": False}, {"trainOnTurn": False}, {"training": False}, {"ignore_loss": True}, {"Skip": 1},
    ):  # fmt: skip
        row = chat(user(), assistant("Nine.", **mark), user("Look again."), assistant("2", loss=None))
        assert [(s.question, s.answer) for s in read(row)] == [("How many?\nNine.\nLook again.", "2")]
    asked = [{"input": "How many?", "output": "Nine.", "output_with_loss": False}, {"input": "Again.", "output": "2"}]
    assert [(s.question, s.answer) for s in read({"image": "p.png", "conversation": asked})] == [
        ("How many?\nNine.\nAgain.", "2")
    ]
    twice = chat(user(), assistant("Nine."), user("Again."), assistant("2"))
    assert len(read(twice)) == 2
    assert [s.answer for s in read({**twice, "mask_history": True})] == ["2"]


def test_history_comes_before_the_question() -> None:
    row = {"image": "p.png", "query": "And red?", "response": "1", "history": [["How many?", "3"]], "system": "Count."}
    assert [(s.question, s.answer) for s in read(row)] == [
        ("Count.\nHow many?", "3"),
        ("Count.\nHow many?\n3\nAnd red?", "1"),
    ]


def test_an_instruction_and_its_input_are_one_question() -> None:
    (sample,) = read({"image": "p.png", "instruction": "Count.", "input": "The red ones.", "output": 0})
    assert (sample.question, sample.answer) == ("Count.\nThe red ones.", "0")


def test_captions_are_told_by_their_key_or_by_the_user() -> None:
    for row in ({"file_name": "p.png", "caption": "A can."}, {"image": "p.png", "question": "", "answer": "A can."}):
        assert [(s.kind, s.answer) for s in read(row)] == [("caption", "A can.")]
    for row in ({"file_name": "p.png", "text": "A can."}, {"image": "p.png", "answer": "A can."}):
        with pytest.raises(LinesideError, match=r"an answer without a question; its keys are .*give --captions"):
            read(row)
        assert [(s.kind, s.answer) for s in read(row, captions=True)] == [("caption", "A can.")]


def test_true_and_false_are_answers_where_nothing_else_is() -> None:
    for label, answer in ((True, "yes"), (False, "no")):
        (sample,) = read({"image": "p.png", "question": "Is it open?", "label": label})
        assert sample.answer == answer


def test_what_many_annotators_say_most_is_taken_and_bytes_win_over_a_name() -> None:
    row = {"image": {"bytes": b"x", "path": "a.png"}, "file_name": "b.png", "question": "How many?"}
    answers = [{"answer": "3"}, {"answer": "4"}, {"answer": "5"}]
    (sample,) = read({**row, "answers": answers, "multiple_choice_answer": "4"})
    assert sample.answer == "4" and sample.images[0].bytes == b"x"


def test_pictures_and_their_marks() -> None:
    def asked(question: str, count: int = 2) -> tuple[str, int]:
        (sample,) = read({"images": [f"{n}.png" for n in range(count)], "question": question, "answer": "1"})
        return sample.question, len(sample.images)

    assert asked("<image><image>how many?") == ("how many?", 2)
    assert asked("In <image>, not in <image>, how many?") == ("In picture 1, not in picture 2, how many?", 2)
    assert asked("<image_1>\n<image_2>\nSame?") == ("Same?", 2)
    assert asked("In the image <image>, not in <image>?") == ("In the image 1, not in picture 2?", 2)
    assert asked("See the picture <image> first.", 1) == ("See the picture first.", 1)
    assert asked("A: <image> B: <image> which?") == ("A: picture 1 B: picture 2 which?", 2)
    assert asked("[IMG] <ImageHere> Same?") == ("Same?", 2)
    assert asked("Same?") == ("Same?", 2)
    turns = [{"type": "text", "text": "Here"}, {"image": "1.png"}, {"type": "text", "text": "and"}, {"image": "2.png"}]
    (sample,) = read({"messages": [{"role": "system", "content": "You count."}, user(turns), assistant()]})
    assert (sample.question, [i.path for i in sample.images]) == (
        "You count.\nHere picture 1 and picture 2",
        ["1.png", "2.png"],
    )
    said = [{"role": "system", "content": "See <image>."}, user("How many?"), assistant()]
    assert read(chat(*said))[0].question == "See the picture.\nHow many?"


REFUSED = {
    "two questions": ({"image": "p", "problem": "a?", "query": "b?", "answer": "3"}, "problem and query may both"),
    "two answers": ({"image": "p", "question": "a?", "response": "1", "output": "2"}, "may both be the answer"),
    "a near name": ({"image": "p", "question": "a?", "anwser": "3"}, "did you mean 'answer'?"),
    "no question": ({"image": "p", "answer": "3", "score": 1}, "its keys are image, answer, score"),
    "a text beside": ({"image": "p", "question": "a?", "text": "A can."}, "its keys are image, question, text"),
    "a caption beside": ({"image": "p", "caption": "A can.", "answer": "3"}, "an answer without a question"),
    "columns": ({"image": ["p"], "question": ["a?"], "answer": ["1"]}, "the question is a list: expected text"),
    "no name": ({"image": "", "question": "a?", "answer": "1"}, "its keys are image, question, answer"),
    "null question": ({"image": "p", "question": None, "answer": "3"}, "an answer without a question"),
    "no picture": ({"image_id": 7, "question": "a?", "answer": "3"}, "its keys are image_id, question, answer"),
    "nothing known": ({"x": 1, "y": 2}, "no turns, question, answer or caption among its keys (x, y)"),
    "empty answer": ({"image": "p", "question": "a?", "answer": ""}, "no supervised tokens"),
    "an object": ({"image": "p", "question": "a?", "answer": {"x": 1}}, "the answer is an object"),
    "annotators differ": ({"image": "p", "question": "a?", "answers": ["1", "2"]}, "the answers differ (1, 2)"),
    "no list": ({"image": "p", "messages": "hi"}, "the turns are text"),
    "choices": ({"image": "p", "question": "a?", "choices": ["x", "y"], "answer": 1}, "the key 'choices'"),
    "lettered choices": ({"image": "p", "question": "a?", "A": "x", "B": "y", "answer": "A"}, "the key 'A'"),
    "chosen": (chat(user(), chosen=assistant("2"), rejected=assistant("9")), "preference pairs"),
    "undesired": (chat(user(), assistant(), label=False), "marked label: false"),
    "not learnt": ({**chat(user(), assistant()), "loss": False}, "marked loss: false"),
    "no weight": (chat(user(), assistant(), weight=0), "marked weight: 0"),
    "a weight of the row": (chat(user(), assistant(), weight=0.5), "weight: 0.5: expected 0 or 1"),
    "not to train": ({"image": "p", "question": "a?", "answer": "3", "train": False}, "marked train: false"),
    "a control token": (chat(user(), assistant("3<|im_end|>")), "the control token '<|im_end|>'"),
    "an end of text": (chat(user("[INST] a? [/INST]"), assistant("3</s>")), "the control token '[INST]'"),
    "no turn learnt": (chat(user(), assistant(loss=False)), "no turn to train on"),
    "half a weight": (chat(user(), assistant(weight=0.5)), "weight: 0.5: expected 0 or 1"),
    "user learnt": (chat({**user(), "loss": True}, assistant()), "only answers are"),
    "marks disagree": (chat(user(), assistant(loss=True, weight=0)), "disagree"),
    "kto": (chat(user(), assistant(), kto_tag=False), "marked kto_tag: false"),
    "a wrong answer": ({"image": "p", "question": "a?", "answer": "3", "isCorrect": False}, "marked isCorrect: false"),
    "an excluded row": ({"image": "p", "question": "a?", "answer": "3", "exclude": True}, "marked exclude: true"),
    "a mark of its own": (chat(user(), assistant(supervised=False)), "may mark what is trained on"),
    "a part not learnt": (chat(user(), assistant([{"type": "text", "text": "9", "loss": False}])), "mark whole turns"),
    "a mask by token": (chat(user(), assistant(step_loss_mask=0)), "by token"),
    "val2014": ({"image": "p", "question": "a?", "answer": "3", "data_split": "val2014"}, "the split 'val2014'"),
    "testmini": ({"image": "p", "question": "a?", "answer": "3", "split": "testmini"}, "the split 'testmini'"),
    "python's notation": ({"image": "p", "prompt": "[{'role': 'user', 'content': 'a?'}]", "answer": "3"}, "json.dumps"),
    "written out": (
        {"image": "p", "prompt": "USER: <image>\na? ASSISTANT:", "answer": "3"},
        "rendered for another model",
    ),
    "a trace of the user": (chat({**user(), "reasoning": "x"}, assistant()), "only answers have one"),
    "an unknown tag": (chat(user(), assistant("<internal>a</internal>3")), "the tag '<internal>'"),
    "escaped tags": (chat(user(), assistant("&lt;think&gt;a&lt;/think&gt;3")), "the tag '&lt;think&gt;'"),
    "an empty tag": (chat(user(), assistant("<think/>3")), "the tag '<think/>'"),
    "boxed within": (chat(user(), assistant("so \\boxed{3}")), "inside a longer answer"),
    "the end of a turn": (chat(user(), assistant("3<end_of_utterance>")), "the control token '<end_of_utterance>'"),
    "another end": (chat(user(), assistant("3<\uff5cend of sentence\uff5c>")), "the control token"),
    "a tool": (chat(user(), {"role": "tool", "content": "3"}), "a turn of 'tool'"),
    "calls": (chat(user(), assistant("", tool_calls=[{"name": "f"}])), "tool calls are not read"),
    "video": ({"video": "v.mp4", "question": "a?", "answer": "3"}, "only pictures"),
    "a part": (chat(user([{"type": "input_audio", "data": "x"}]), assistant()), "part of type 'input_audio'"),
    "places out of order": (
        {
            **chat(user([{"type": "image", "index": 1}, {"type": "image", "index": 0}, "a?"]), assistant()),
            "images": ["a", "b"],
        },
        "not in order",
    ),
    "no content": (chat(user(), assistant(None)), "the content is null"),
    "test split": ({"image": "p", "question": "a?", "answer": "3", "split": "test"}, "the split 'test'"),
    "verl test": (
        {"image": "p", "prompt": [user()], "answer": "3", "extra_info": {"split": "test"}},
        "the split 'test'",
    ),
    "unclosed": (chat(user(), assistant("<think>two left 3")), "the tags <think> are not one trace"),
    "nested": (chat(user(), assistant("<think>a<think>b</think>c</think>3")), "are not one trace"),
    "text before": (chat(user(), assistant("Well. <think>a</think>3")), "are not one trace"),
    "twice": (chat(user(), assistant("<think>a</think>3<think>b</think>")), "are not one trace"),
    "other tag": (chat(user(), assistant("<think>a</reasoning>3")), "are not one trace"),
    "two traces": (chat(user(), assistant("<think>a</think>3", reasoning="b")), "keep one"),
    "half an answer": (chat(user(), assistant("<answer>3")), "not once around the whole answer"),
    "beside an answer": (chat(user(), assistant("so <answer>3</answer>")), "not once around the whole answer"),
    "mark in the answer": (chat(user(), assistant("as in <image>")), "the answer holds the mark"),
    "img": (chat(user("<img>p.png</img>How many?"), assistant()), "the mark '<img>'"),
    "closing mark": (chat(user("<image></image>How many?"), assistant()), "the mark '</image>'"),
    "video mark": (chat(user("<video>How many?"), assistant()), "the mark '<video>'"),
    "out of order": (chat(user("In <image 2> and <image 1>?"), assistant()), "not in order"),
    "a mark too few": ({**chat(user(), assistant()), "images": ["a", "b"]}, "<image> occurs 1 times, for 2 pictures"),
    "late system": (chat(user(), assistant(), {"role": "system", "content": "x"}), "must alternate"),
    "two users": (chat(user(), user("b?"), assistant()), "must alternate"),
    "some named": (
        {"images": ["p"], "messages": [user([{"type": "image"}, {"image": "a"}, {"text": "b?"}]), assistant()]},
        "names some of its pictures",
    ),
    "named twice": ({"images": ["p"], "messages": [user([{"image": "a"}, {"text": "b?"}]), assistant()]}, "keep one"),
    "too late": (
        {"images": ["a", "b"], "messages": [user(), assistant(), user("<image>?"), assistant(loss=False)]},
        "a picture after the last turn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    row, reason = REFUSED[name]
    with pytest.raises(LinesideError) as error:
        read(row)
    assert reason in str(error.value)


def test_answers_become_text_in_one_way() -> None:
    assert [answer_text(value) for value in (0, 3, 3.0, 2.5, True, False, " x ")] == [
        "0", "3", "3", "2.5", "yes", "no", " x "]  # fmt: skip
    assert [answer_text(value) for value in (12345678.9, 4006381333931.0, 1e-7, -0.1, 10**25)] == [
        "12345678.9", "4006381333931", "0.0000001", "-0.1", "1" + "0" * 25]  # fmt: skip
    assert answer_text({"ground_truth": 0}) == "0"
    assert answer_text(["Yes", "yes.", "no"]) == "Yes"
    for value in (None, [], {}, [["a"], ["b"]], [1, 2]):
        with pytest.raises(LinesideError):
            answer_text(value)


def test_keys_that_nothing_was_made_of_are_told() -> None:
    row = {"id": 1, "image": "p", "question": "a?", "answer": "3", "solution": "1 + 2", "score": 5, "nothing": None}
    assert samples_of(row, 1, None, load)[1] == ("solution", "score")
    assert samples_of({**ONE["plain"], "caption": "A can."}, 1, None, load)[1] == ("caption",)
    row = chat(user(), assistant(prefix=True, name=None), source="x")
    assert samples_of(row, 1, None, load)[1] == ("source", "prefix of a turn")


def test_a_format_that_is_asked_for_is_the_only_one_taken() -> None:
    assert samples_of(ONE["messages"], 1, "messages", load)[0]
    with pytest.raises(LinesideError, match="a row of the format jsonl, not llava"):
        samples_of(ONE["plain"], 1, "llava", load)


def test_no_row_is_a_fault_of_ours() -> None:
    """Whatever stands under the known keys, a row is read or refused."""
    keys = [name for names in NAMES.values() for name in names] + [
        "type",
        "loss",
        "weight",
        "extra_info",
        "index",
        "ground_truth",
    ]
    draw = random.Random(0)

    def value(depth: int) -> Any:
        kind = draw.randrange(14)
        if depth and kind < 4:
            return {draw.choice(keys): value(depth - 1) for _ in range(draw.randrange(4))}
        if depth and kind < 8:
            return [value(depth - 1) for _ in range(draw.randrange(4))]
        plain = [
            None,
            True,
            0,
            2.5,
            "",
            "user",
            "assistant",
            "image",
            "text",
            "<image>",
            "<think>a</think>",
            "p.png",
            b"x",
        ]
        return draw.choice(plain)

    read_rows = 0
    for _ in range(5000):
        row = {draw.choice(keys): value(3) for _ in range(draw.randrange(1, 6))}
        try:
            read_rows += bool(read(row, captions=True))
        except LinesideError:
            continue
    assert read_rows
