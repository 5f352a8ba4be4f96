"""Label Studio and CVAT: what is written can be read back, files of the tools are understood, others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.data.review_list import Form, ReviewQuestion, Said, write_list
from lineside.errors import LinesideError
from lineside.reviewing import cvat, label_studio
from lineside.reviewing.exchange import keep
from lineside.reviewing.log import CANNOT_TELL, read_people
from lineside.reviewing.sources import Review, open_review
from tests.conftest import picture
from tests.reviewing.conftest import answer

ASKED = {
    "state": (Form(kind="choice", options=("intact", "dented & torn", '"open"')), "dented & torn"),
    "count": (Form(kind="number"), "4"),
    "weight": (Form(kind="number", unit="g", resolution=10.0), "120 g"),
    "item": (Form(kind="exact"), "red <can>"),
    "inside": (Form(kind="set", options=("can", "box", "ball")), "ball, can"),
    "none": (Form(kind="set", options=("can", "box")), "none"),
    "counted": (Form(kind="set", options=("can", "box"), counted=True), "2 cans, box"),
    "grip": (Form(kind="point"), "0.250, 0.750"),
    "unsure": (Form(kind="exact"), None),
}


@pytest.fixture
def review(tmp_path: Path) -> Review:
    """A list with every kind of answer, each about the same picture."""
    questions = []
    for name, (form, _) in ASKED.items():
        model = Said(by="model", name="sft", answer="4", confidence=0.75)
        said = (Said(by="record", answer=form.options[0] if form.options else "4"), model)
        fields: dict[str, Any] = {
            "id": f"a/{name}",
            "frame": "cam1/a.png",
            "picture": "",
            "family": "bins",
            "task": name,
        }
        questions.append((ReviewQuestion(question=f"{name}?", form=form, said=said, **fields), picture(0, 80)))
    write_list(tmp_path / "list", questions)
    return open_review(tmp_path / "list")


def answered(review: Review) -> dict[str, dict[str, str]]:
    people = read_people(review.folder, review.every)
    return {n: {q: e.answer or CANNOT_TELL for q, e in entries.items()} for n, entries in people.items()}


@pytest.mark.parametrize("tool, name", [(label_studio, "tasks.json"), (cvat, "annotations.xml")])
def test_what_is_written_comes_back_into_an_empty_review(review: Review, tmp_path: Path, tool: Any, name: str) -> None:
    told = {f"a/{task}": text for task, (_, text) in ASKED.items()}
    answer(review, told, "anna")
    answer(review, {"a/count": "5"}, "ben")
    before = answered(review)
    tool.write(tmp_path / name, review, read_people(review.folder, review.every))
    again = open_review(tmp_path / "list", out=tmp_path / "other")
    found = tool.read(tmp_path / name, again)
    assert found.refused == []
    assert keep(again, found, person=None, via=tool.VIA) == {"new": len(ASKED) + 1, "refused": 0}
    assert answered(again) == before
    assert keep(again, tool.read(tmp_path / name, again), person=None, via=tool.VIA)["same"] == len(ASKED) + 1
    assert answered(again) == before
    assert keep(review, tool.read(tmp_path / name, review), person=None, via=tool.VIA)["new"] == 0


def test_label_studio_gets_tasks_predictions_and_an_interface(review: Review, tmp_path: Path) -> None:
    interface = label_studio.write(tmp_path / "tasks.json", review, {})
    tasks = {task["data"]["task"]: task for task in json.loads((tmp_path / "tasks.json").read_text())}
    count = tasks["bins/count"]
    assert count["data"]["image"] == f"/data/local-files/?d={review.questions[0].picture}"
    assert (count["data"]["question"], count["annotations"]) == ("count?", [])
    assert [(p["model_version"], p.get("score")) for p in count["predictions"]] == [
        ("record", None),
        ("model sft", 0.75),
    ]
    value = {"from_name": "number", "to_name": "image", "type": "number", "value": {"number": 4.0}, "id": "p2-0"}
    assert count["predictions"][0]["result"] == [value]
    assert tasks["bins/state"]["data"]["options"][1] == {"value": "dented & torn"}
    root = Xml.parse(interface).getroot()
    names = {element.get("name"): element.tag for element in root}
    for choices in root.iter("Choices"):  # Label Studio refuses one <Choice>: all come from the task
        assert len(choices) == 0 and str(choices.get("value")).removeprefix("$") in count["data"]
    assert count["data"]["flags"] == [{"value": CANNOT_TELL}]
    assert names["choice"] == names["flag"] == "Choices" and names["point"] == "KeyPointLabels"
    used = {r["from_name"] for t in tasks.values() for p in t["predictions"] for r in p["result"]}
    assert used <= names.keys() and interface.name == "tasks.interface.xml"  # an export for CVAT may be tasks.xml


def task(result: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """A task as Label Studio exports it, of a project that knows nothing of us."""
    annotation = {
        "id": 1001,
        "completed_by": {"id": 7, "email": "cleo@example.com", "first_name": ""},
        "result": [{"id": "Dx_aB91ISN", "from_name": "tag", "to_name": "img", "origin": "manual", **r} for r in result],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:09.728353Z",
        "lead_time": 4.288,
        **changed.pop("annotation", {}),
    }
    data = {"image": "/data/upload/3/1a2b3c4d-a.png", "question": "state?"}
    return {"id": 1, "data": data, "annotations": [annotation], "predictions": [], "project": 83, **changed}


CHOSEN = {"type": "choices", "value": {"choices": ["intact"]}}


def imported(review: Review, tmp_path: Path, data: Any) -> Any:
    (tmp_path / "in.json").write_text(json.dumps(data))
    found = label_studio.read(tmp_path / "in.json", review)
    keep(review, found, person=None, via="label-studio")
    return found


def test_an_export_of_label_studio_is_matched_by_picture_and_question(review: Review, tmp_path: Path) -> None:
    count = {
        **task([{"type": "number", "value": {"number": 7}}]),
        "data": {"image": "s3://b/cam1/a.png", "task": "count"},
    }
    point = {"type": "keypointlabels", "value": {"x": 10.0, "y": 95.5, "width": 0.2, "keypointlabels": ["grip"]}}
    data = {"img": "x?d=list%2Fcam1%2Fa.png", "task": "grip"}
    grip = {**task([point], annotation={"completed_by": 9}), "data": data}
    text = {"type": "textarea", "value": {"text": ["2 cans", "box"]}}
    counted = {**task([text]), "data": {"image": "a.png", "task": "bins/counted"}}
    skipped = task([], annotation={"was_cancelled": True})
    found = imported(review, tmp_path, [task([CHOSEN]), count, grip, counted, skipped, {"data": {"image": "b.png"}}])
    assert (found.refused, found.empty) == ([], 2)
    assert answered(review) == {
        "cleo": {"a/state": "intact", "a/count": "7", "a/counted": "2 cans, box"},
        "label-studio-9": {"a/grip": "0.100, 0.955"},
    }
    entry = read_people(review.folder, review.every)["cleo"]["a/state"]
    assert (entry.at, entry.via) == ("2026-03-09T22:16:09.728353Z", "label-studio")


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"data": {"image": "z.png"}}, "no picture 'z.png' here"),
        ({"data": {"image": "/data/cam3/a.png", "question": "state?"}}, "no picture '/data/cam3/a.png' here"),
        ({"data": {"image": "a.png"}}, "9 questions about the picture 'a.png': expected one"),
        ({"data": {"image": "a.png", "question": "why?"}}, "no question about the picture 'a.png', question 'why\\?'"),
        ({"data": {"lineside_id": "b/state"}}, "no question 'b/state' here"),
        ({"annotation": {"result": [{"type": "rectanglelabels", "value": {"x": 1}}]}}, "type 'rectanglelabels'"),
        ({"annotation": {"result": []}}, "0 answers to one question: expected one of intact"),
        ({"annotation": {"result": [CHOSEN, CHOSEN]}}, "2 answers to one question"),
        ({"annotation": {"result": "intact"}}, "`result` is not a list"),
        ({"annotation": {"result": [{"type": "choices", "value": {"choices": [1]}}]}}, "choices without texts"),
        ({"annotation": {"result": [{"type": "choices", "value": {"choices": ["bent"]}}]}}, "'bent': expected one of"),
        ({"annotation": {"completed_by": {"email": "../x@y"}}}, "expected a name of letters"),
        ({"annotations": {"a": 1}}, "not a list of annotations"),
    ],
)
def test_an_entry_that_is_no_answer_here_is_refused_by_name(
    review: Review, tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    good = {**task([CHOSEN]), "id": 2}
    found = imported(review, tmp_path, [task([CHOSEN], **changed), good])
    assert len(found.refused) == 1
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.refused[0])
    assert answered(review) == {"cleo": {"a/state": "intact"}}  # the others are read


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b'[{"image": "a.png", "choice": "intact"}]', "not JSON-MIN"),
        ("a.json", b'{"images": [], "categories": []}', "a list of tasks with `data`"),
        ("a.json", b"PK\x03\x04", "an archive: unpack it first"),
        ("a.xml", b"<annotations>", "not XML"),
        ("a.xml", b"<annotation><version>1.1</version></annotation>", "the root is <annotation> of version 1.1"),
        ("a.xml", b"<annotations><version>2</version></annotations>", "version 2"),
        (
            "a.xml",
            b"<annotations><version>1.1</version><track/></annotations>",
            "not 'for video'",
        ),
        ("a.xml", b'<!DOCTYPE a [<!ENTITY x "y">]><annotations/>', "it has a document type"),
        ("a.csv", b"a,b", "expected .json"),
        ("gone.json", None, "cannot be read"),
        ("a.json", b"[]", "no answer to these questions"),
    ],
)
def test_other_files_are_refused_by_name(review: Review, tmp_path: Path, name: str, content: Any, why: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ran = CliRunner().invoke(cli.app, ["review", str(review.path), "--import", str(tmp_path / name)])
    assert ran.exit_code == 2 and name in ran.stderr and why in ran.stderr and "Traceback" not in ran.output
    assert answered(review) == {}


def test_an_export_of_cvat_is_matched_by_picture_and_label(review: Review, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <meta><task><id>4</id><name>bins</name><mode>annotation</mode></task><dumped>2026-09-25 11:38:28+03:00</dumped></meta>
  <image id="0" subset="Train" task_id="4" name="cam1/a.png" width="80" height="80">
    <tag label="bins/state" source="manual"><attribute name="answer">intact</attribute></tag>
    <tag label="count" source="manual"><attribute name="answer">7</attribute><attribute name="by">ben</attribute></tag>
    <points label="bins/grip" source="manual" occluded="0" points="8.00,76.40" z_order="0"></points>
    <tag label="bins/item" source="manual"><attribute name="answer"></attribute></tag>
    <tag label="bins/nothing" source="manual"></tag>
    <box label="bins/item" xtl="1" ytl="1" xbr="9" ybr="9" occluded="0" z_order="0"></box>
    <points label="bins/grip" points="8.00,76.40;1,1" occluded="0"></points>
  </image>
</annotations>"""
    )
    words = ["review", str(review.path), "--import", str(tmp_path / "a.xml")]
    ran = CliRunner().invoke(cli.app, words)
    assert ran.exit_code == 0
    assert "3 answers read, 0 were known, 3 refused, 1 entries without an answer" in ran.stderr
    assert "box 'bins/item': expected a tag, or a point" in ran.stderr
    assert "tag 'bins/nothing': no question about the picture" in ran.stderr
    assert "expected one point in pixels" in ran.stderr
    assert answered(review) == {"cvat": {"a/state": "intact", "a/grip": "0.100, 0.955"}, "ben": {"a/count": "7"}}


def test_cvat_gets_one_image_for_all_its_questions_with_the_size_of_the_upright_picture(
    review: Review, tmp_path: Path
) -> None:
    answer(review, {"a/grip": "0.25, 0.75"})
    ran = CliRunner().invoke(cli.app, ["review", str(review.path), "--export", "cvat", str(tmp_path / "out.xml")])
    assert ran.exit_code == 0 and f"pictures lie in {review.path}" in ran.stderr
    root = Xml.parse(tmp_path / "out.xml").getroot()
    (image,) = root.iter("image")
    assert (image.get("name"), image.get("width")) == (review.questions[0].picture, "80")
    (points,) = image.iter("points")
    assert (points.get("label"), points.get("points")) == ("bins/grip", "20.00,60.00")
    labels = {label.findtext("name"): label for label in root.iter("label")}
    assert labels.keys() == {f"bins/{name}" for name in ASKED}
    values = labels["bins/state"].find("attributes/attribute/values")
    assert values is not None and (values.text or "").split("\n") == ["", *ASKED["state"][0].options, CANNOT_TELL]


def test_a_person_who_is_answering_now_is_not_written_to(review: Review, tmp_path: Path) -> None:
    from lineside.files import hold

    (tmp_path / "in.json").write_text(json.dumps([task([CHOSEN])]))
    with (
        hold(review.folder / "answers", name=".cleo.lock"),
        pytest.raises(LinesideError, match="in use by another process"),
    ):
        keep(review, label_studio.read(tmp_path / "in.json", review), person=None, via="label-studio")
