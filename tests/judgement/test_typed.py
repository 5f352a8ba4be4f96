"""Typed answers: values by kind, decisions, the form of a task, and the task of a question."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.judgement.decisions import thresholds
from lineside.judgement.schema import Counted, TypedAnswer
from lineside.judgement.typed import FILE, Form, forms_in, keep_forms, read_forms, task_of, type_answer
from lineside.types import Costs, Image, Region, Target
from lineside.verify.verifiers import target_problem, verify
from tests.conftest import picture
from tests.judgement.conftest import choice, question

COUNT = Form(kind="number")
WEIGHT = Form(kind="number", unit="g")
YES_NO = Form(kind="choice", options=("Yes", "no"))
STATE = Form(kind="choice", options=("intact", "Badly torn"))
OPEN = Form(kind="choice")  # options that differ from frame to frame
TEXT = Form(kind="exact")
SLOTS = Form(kind="set", options=("1", "2", "3"))
NAMES = Form(kind="set")
PARTS = Form(kind="set", options=("red can", "3 mm screw"), counted=True)
ANY_PARTS = Form(kind="set", counted=True)
POINT = Form(kind="point")
FORMS = (COUNT, WEIGHT, YES_NO, STATE, OPEN, TEXT, SLOTS, NAMES, PARTS, ANY_PARTS, POINT)


def counted(**counts: int) -> list[Counted]:
    return [Counted(name=name.replace("_", " "), count=count) for name, count in counts.items()]


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        (COUNT, "12", 12),
        (COUNT, " 1,204. ", 1204),
        (COUNT, "-0.5", -0.5),
        (COUNT, "twelve", None),
        (COUNT, "12 or 13", None),
        (COUNT, "12 g", None),
        (WEIGHT, "1.5 kg", 1500),
        (WEIGHT, "40", 40),
        (WEIGHT, "40 mm", None),
        (YES_NO, "yes.", True),
        (YES_NO, "NO", False),
        (YES_NO, "yes, I think", None),
        (STATE, "badly  torn", "Badly torn"),
        (STATE, "torn", None),
        (OPEN, "to the scrap", "to the scrap"),
        (TEXT, " Golden Delicious ", "Golden Delicious"),
        (TEXT, " . ", None),
        (SLOTS, "2, 3", ["2", "3"]),
        (SLOTS, "none", []),
        (SLOTS, "2, 4", None),
        (SLOTS, "2,, 3", None),
        (SLOTS, "2, 2", None),
        (NAMES, "Red can, box.", ["Red can", "box"]),
        (PARTS, "2 red cans, 3 mm screw", [Counted(name="red can", count=2), Counted(name="3 mm screw", count=1)]),
        (PARTS, "red can, red can", counted(red_can=2)),
        (PARTS, "none", []),
        (PARTS, "2 blue cans", None),
        (ANY_PARTS, "2 x box, lid", counted(box=2, lid=1)),
        (POINT, "(0.25, 0.5)", (0.25, 0.5)),
        (POINT, "0 1", (0, 1)),
        (POINT, "1.2, 0.5", None),
        (POINT, "left", None),
    ],
)
def test_a_text_has_the_value_of_its_kind_or_none(form: Form, text: str, value: Any) -> None:
    found = form.value(text)
    assert found == value and type(found) is type(value)


def test_two_names_for_nothing() -> None:
    form = Form(kind="set", options=("none", "a"))
    assert form.value("none") == ["none"]  # here it is a name
    assert Form(kind="choice", options=("no", "yes", "unclear")).value("yes") == "yes"  # three options are words
    assert Form(kind="number").value("") is None and Form(kind="exact").value(None) is None
    assert Form(kind="exact").value("x" * 5000) is None


PUBLISHED = jsonschema.Draft202012Validator(
    json.loads(resources.files("lineside").joinpath("answer.schema.json").read_text())
)
CASES = st.one_of(st.text(max_size=40), st.sampled_from(["1, 2", "2 red cans", "0.1, 0.2", "none", "1e9", "٣"]))


@given(text=CASES, form=st.sampled_from(FORMS))
def test_no_text_raises_and_every_answer_follows_the_published_schema(text: str, form: Form) -> None:
    typed = answer(text, form=form)
    PUBLISHED.validate(json.loads(typed.model_dump_json()))
    assert TypedAnswer.model_validate_json(typed.model_dump_json()) == typed
    assert typed.value is not None or typed.decision == "refuse"


@given(value=st.integers(0, 10**9), resolution=st.sampled_from([1.0, 10.0, 0.5]))
def test_what_is_exact_for_the_verifier_has_a_value(value: int, resolution: float) -> None:
    target = Target("number", "sim", value=float(value), resolution=resolution)
    said = f"{round(value / resolution) * resolution:g}"
    if verify(said, target).exact:
        assert Form.of(target).value(said) is not None


COSTS = Costs(wrong=1.0, false_pass=5.0, false_stop=1.0, refusal=0.5)  # from 0.9 on the normal answer, else from 0.5


def answer(text: str | None, **changes: Any) -> TypedAnswer:
    common: dict[str, Any] = {"task": "kitting/complete", "form": YES_NO, "trace": "six of six", "finished": True}
    common |= {"confidence": 0.95, "note": "", "normal": "yes", "ms": 80.0}
    return type_answer(text, **{**common, "on": thresholds(COSTS, normal=True, binary=True), **changes})


@pytest.mark.parametrize(
    ("text", "changes", "decision", "because"),
    [
        ("Yes.", {"confidence": 0.91}, "act", "confidence 91.0% reaches 90.0%"),
        ("yes", {"confidence": 0.89}, "refuse", "confidence 89.0% is below 90.0%"),
        ("no", {"confidence": 0.51}, "act", "confidence 51.0% reaches 50.0%"),
        ("no", {"confidence": 0.49}, "refuse", "confidence 49.0% is below 50.0%"),
        ("0.0", {"form": COUNT, "normal": "0", "confidence": 0.89}, "refuse", "confidence 89.0% is below 90.0%"),
        ("yes", {"confidence": None, "note": "not calibrated, n = 40"}, "refuse", "not calibrated, n = 40"),
        ("perhaps", {}, "refuse", "the answer is not of the kind yes/no"),
        ("4 mm", {"form": WEIGHT}, "refuse", "the answer is not of the kind number in g"),
        (None, {"confidence": 0.0}, "refuse", "there is no answer"),
        ("yes", {"finished": False}, "refuse", "the answer is cut off"),
        ("yes", {"on": None}, "refuse", "the cost of a mistake is not known: the task has no stakes"),
        ("yes", {"form": None, "task": None, "note": "no such task"}, "refuse", "no such task"),
        ("", {"confidence": 0.99}, "refuse", "the answer is not of the kind yes/no"),
    ],
)
def test_a_cell_acts_only_on_a_value_that_is_sure_enough(
    text: str | None, changes: dict[str, Any], decision: str, because: str
) -> None:
    typed = answer(text, **changes)
    assert (typed.decision, typed.because) == (decision, because)


def test_what_a_machine_reads() -> None:
    assert answer("1.5 kg", form=WEIGHT, confidence=0.7, task="bins/weight").model_dump() == {
        "value": 1500,
        "unit": "g",
        "confidence": 0.7,
        "decision": "act",
        "trace": "six of six",
        "ms": 80.0,
        "kind": "number",
        "task": "bins/weight",
        "text": "1.5 kg",
        "because": "confidence 70.0% reaches 50.0%",
    }
    assert answer("0.5, 0.5", form=POINT).unit == "of width and height"
    assert answer("a", form=TEXT).unit is None
    plain = answer("yes", form=None, task=None, confidence=None, note="which task?")
    assert (plain.value, plain.kind, plain.unit) == ("yes", "text", None)  # without a task it is not a boolean


def test_a_point_comes_back_in_the_whole_picture() -> None:
    region = Region((200, 100), (50, 20, 150, 70))
    for text, point in (("0.50, 0.40", (0.5, 0.4)), ("(0, 1)", (0.25, 0.7)), ("red can", None), ("3, 4", None)):
        assert answer(text, form=POINT, region=region).value == point
    assert answer("0.5, 0.4", form=POINT).value == (0.5, 0.4)
    assert answer("7", form=COUNT, region=region).value == 7


def test_an_unsound_target_gives_text() -> None:
    for target in (Target("riddle", "sim"), Target("number", "sim", unit=5), Target("choice", "sim")):  # type: ignore
        assert Form.of(target).value_kind == "text"


def asked(id: str, task: str, text: str, target: Target) -> Any:
    changes: dict[str, Any] = {"images": (Image(picture(1)),), "answer": "x", "split": "train"}
    return question(id, target, task=task, question=text, **changes)


def test_forms_come_from_the_samples_and_the_phrasings_from_label(tmp_path: Path) -> None:
    weight = Target("number", "record", value=3.0, unit="g", resolution=5.0)
    samples = [asked(f"w{i}", "weight", ("How heavy?", "What does it weigh?")[i % 2], weight) for i in range(4)]
    samples += [asked(f"k{i}", "kit", f"Kit: {i} cans. Is it right?", choice("yes")) for i in range(30)]
    offered = [("a", "b"), ("a", "c")]
    samples += [asked(f"a{i}", "act", "What now?", choice("a", options=offered[i % 2])) for i in range(4)]
    samples[-1] = replace(samples[-1], meta=replace(samples[-1].meta, extra={"budget_ms": 800}))
    write_samples(tmp_path / "data", samples)
    found = forms_in(tmp_path / "data")
    assert found == {
        "picking/act": Form(kind="choice", phrasings=("What now?",), budget_ms=800),  # the options differ by frame
        "picking/kit": Form(kind="choice", options=("yes", "no")),  # too many questions to be phrasings
        "picking/weight": Form(
            kind="number", unit="g", phrasings=("How heavy?", "What does it weigh?"), resolution=5, tolerance=1
        ),
    }
    templates = {"picking/kit": ["Kit: {kit}. Is it right?"]}
    (tmp_path / "data" / "label.json").write_text(json.dumps({"phrasings": templates}))
    told = forms_in(tmp_path / "data")
    assert told["picking/kit"].phrasings == ("Kit: {kit}. Is it right?",)
    assert task_of("kit: 2 red cans, box. Is it right", told) == ("picking/kit", "")
    model = tmp_path / "model"
    model.mkdir()
    assert read_forms(model) == {}
    keep_forms(model, told)
    keep_forms(model, {"other/task": COUNT})  # what is there stays
    assert read_forms(model) == told
    (model / FILE).write_text('{"tasks": 3}')
    with pytest.raises(LinesideError, match=r"tasks\.json: not a list of tasks: .*delete it"):
        read_forms(model)


def test_the_task_of_a_question() -> None:
    forms = {
        "picking/all": Form(kind="number", phrasings=("How many parts are there?", "Count the parts.")),
        "picking/some": Form(kind="number", phrasings=("How many {items} are there?", "Count {a items} here")),
        "returns/all": Form(kind="number", phrasings=("Count the parts.",)),
    }
    assert task_of("how many  parts are there", forms) == ("picking/all", "")  # leaves less open than {items}
    assert task_of("How many red cans are there?", forms) == ("picking/some", "")
    for text, why in (
        ("How many are there?", "none of the checkpoint's tasks"),  # a slot is never empty
        ("Is it empty?", "none of the checkpoint's tasks"),
        ("Count the parts.", "may be of picking/all or returns/all"),
    ):
        task, reason = task_of(text, forms)
        assert task is None and why in reason and "--task" in reason
    assert task_of("what?", {})[0] is None
    many = {"a/a": Form(kind="exact", phrasings=("{a}" * 40,))}
    assert task_of("x" * 8000, many) == ("a/a", "")  # in linear time


@pytest.mark.parametrize(
    ("form", "text", "target"),
    [
        (Form(kind="number", unit="g", resolution=10.0, tolerance=30.0), "0.12 kg",
         Target("number", "outcome", value=120.0, unit="g", resolution=10.0, tolerance=30.0)),
        (Form(kind="number"), "3", Target("number", "outcome", value=3.0)),
        (Form(kind="choice", options=("yes", "no")), "Yes.",
         Target("choice", "outcome", accepted=("yes",), options=("yes", "no"))),
        (Form(kind="choice"), "Dented", Target("exact", "outcome", accepted=("dented",))),
        (Form(kind="set", options=("a", "b")), "b, a",
         Target("set", "outcome", accepted=("b", "a"), options=("a", "b"))),
        (Form(kind="choice", options=("yes", "no")), "perhaps", None),
        (Form(kind="number"), "three", None),
        (Form(kind="point"), "1.2, 0.5", None),
        (Form(kind="exact"), "", None),
    ],
)  # fmt: skip
def test_the_target_of_a_truth(form: Form, text: str, target: Target | None) -> None:
    assert form.target_for(text, "outcome") == target


def test_a_point_of_a_truth_is_a_disc() -> None:
    target = Form(kind="point").target_for("(0.5, 0.25)", "outcome")
    assert target is not None and not target_problem(target) and (target.x, target.y) == (0.5, 0.25)
    assert [verify(text, target).exact for text in ("0.5, 0.25", "0.52, 0.25", "0.55, 0.25")] == [True, True, False]


def test_the_form_of_what_is_only_known_to_be_wrong_is_that_of_its_answer() -> None:
    wrong = Target("number", "outcome", value=3.0, unit="g", resolution=10.0)
    assert Form.of(Target("not", "outcome", wrong=(wrong,))) == Form.of(wrong)
