"""The review list: what an answer must look like, and the file that other verbs hand to `lineside review`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data.review_list import (
    LIST,
    POINT_RADIUS,
    Form,
    ReviewQuestion,
    Said,
    WrongForm,
    disc,
    read_list,
    write_list,
)
from lineside.errors import LinesideError
from lineside.types import Target
from lineside.verify.verifiers import target_problem, verify
from tests.conftest import picture

STATE = Form(kind="choice", options=("intact", "dented"))
FILL = Form(kind="number", unit="percent", resolution=10.0)
MISSING = Form(kind="set", options=("carton", "red can"), counted=True)
FORMS = [STATE, FILL, MISSING, Form(kind="exact"), Form(kind="point"), Form(kind="number", period=360.0)]


@pytest.mark.parametrize(
    "form, text, canonical",
    [
        (STATE, " Dented ", "dented"),
        (FILL, "40", "40 percent"),
        (FILL, "40 %", "40 percent"),
        (MISSING, "red can, carton, carton", "red can, 2 cartons"),
        (MISSING, "none", "none"),
        (Form(kind="exact"), "Golden Delicious", "Golden Delicious"),
        (Form(kind="point"), "0.5,0.25", "0.500, 0.250"),
        (Form(kind="number"), "7", "7"),
    ],
)
def test_an_answer_is_brought_to_the_form_of_the_task(form: Form, text: str, canonical: str) -> None:
    answer, target = form.read(text)
    assert answer == canonical
    assert target.provenance == "record" and verify(answer, target).exact


@pytest.mark.parametrize(
    "form, text, expected",
    [
        (STATE, "bent", "one of intact, dented"),
        (FILL, "43", "multiple of 10"),
        (FILL, "40 kg", "in percent"),
        (FILL, "nan", "multiple of 10"),
        (Form(kind="number"), "3.5", "a whole number, such as 4"),
        (MISSING, "2 balls", "out of carton, red can"),
        (Form(kind="point"), "1.2, 0.5", "from 0 to 1"),
        (Form(kind="point"), "., 0.5", "from 0 to 1"),
        (Form(kind="exact"), "", "a short text"),
        (Form(kind="exact"), "a\x00b", "a short text"),
        (Form(kind="exact"), "x" * 5000, "a short text"),
    ],
)
def test_another_form_is_refused_with_what_was_expected(form: Form, text: str, expected: str) -> None:
    with pytest.raises(WrongForm, match=expected):
        form.read(text)


@given(st.sampled_from(FORMS), st.text())
def test_what_is_accepted_is_sound_and_exact_and_stays_what_it_is(form: Form, text: str) -> None:
    try:
        answer, target = form.read(text)
    except WrongForm:
        return
    assert target_problem(target) == "" and verify(answer, target).exact
    assert form.read(answer)[0] == answer


def test_two_answers_are_the_same_by_the_verifier() -> None:
    assert FILL.same("40", "40 %") and not FILL.same("40", "50")
    assert MISSING.same("carton, red can", "red can, carton")
    point = Form(kind="point")
    assert point.same(f"{0.5 + POINT_RADIUS * 0.8:.3f}, 0.5", "0.5, 0.5")
    assert not point.same(f"{0.5 + POINT_RADIUS * 1.3:.3f}, 0.5", "0.5, 0.5")
    assert not STATE.same("bent", "bent")  # no answer of this form


def test_a_disc_has_the_area_of_a_circle_and_holds_its_centre_at_the_edge() -> None:
    assert sum(disc(0.5, 0.5, 0.1).runs[1::2]) / 200**2 == pytest.approx(3.1416 * 0.1**2, rel=0.02)
    for corner in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        mask = disc(*corner)
        assert target_problem(Target("point", "record", x=corner[0], y=corner[1], mask=mask)) == ""


def a_question(name: str = "a", **changed) -> ReviewQuestion:
    fields = {
        "id": name,
        "frame": f"{name}.png",
        "picture": "",
        "family": "bins",
        "task": "state",
        "question": "In what state is it?",
        "form": STATE,
        "said": (Said(by="record", answer="intact"), Said(by="model", name="sft", answer="dented", confidence=0.9)),
    }
    return ReviewQuestion(**{**fields, **changed})


def test_a_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    questions = [a_question("a"), a_question("b", why="model and record disagree", form=FILL)]
    assert write_list(tmp_path, [(questions[0], picture(0)), (questions[1], picture(0))]) == 2
    found = list(read_list(tmp_path / LIST))
    assert [q.model_copy(update={"picture": ""}) for q in found] == questions
    assert len(list((tmp_path / "pictures").iterdir())) == 1  # one picture, two questions
    assert (tmp_path / found[0].picture).read_bytes() == picture(0)


def test_a_list_written_by_hand_needs_little(tmp_path: Path) -> None:
    line = {"id": "1", "frame": "a.png", "picture": "a.png", "family": "bins", "task": "count", "question": "How many?"}
    (tmp_path / "my.jsonl").write_text(json.dumps({**line, "form": {"kind": "number", "resolution": 1}}) + "\n\n")
    (found,) = read_list(tmp_path / "my.jsonl")
    assert found.task_name == "bins/count" and found.form == Form(kind="number")


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"id": "b"}', "line 2: key 'frame' is missing"),
        (a_question("a").model_dump_json(), "line 2: the question 'a' occurs twice"),
        (a_question("b").model_dump_json().replace('"why"', '"whi"'), "unknown key 'whi'; did you mean 'why'"),
        (a_question("b").model_dump_json().replace('"choice"', '"chois"'), "form.kind"),
        (a_question("b").model_dump_json().replace("0.9", "1.9"), "confidence"),
        (a_question("b").model_dump_json().replace("0.9", "NaN"), "NaN is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / LIST).write_text(a_question("a").model_dump_json() + "\n" + line + "\n")
    with pytest.raises(LinesideError, match=message):
        list(read_list(tmp_path / LIST))


def test_a_list_with_a_bad_picture_or_a_repeated_question_leaves_the_old_one(tmp_path: Path) -> None:
    write_list(tmp_path, [(a_question("old"), picture())])
    with pytest.raises(LinesideError, match=r"b\.png: not an image"):
        write_list(tmp_path, [(a_question("b"), b"no picture")])
    with pytest.raises(LinesideError, match="'a' occurs twice"):
        write_list(tmp_path, [(a_question("a"), picture())] * 2)
    assert [q.id for q in read_list(tmp_path / LIST)] == ["old"]
