"""The answers of records: from frames and from samples alike, each with its sources and a teacher's answer."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pil

from lineside.data.recorded import answer_text, recorded_in_frames, recorded_in_samples
from lineside.data.sources import open_frames
from lineside.data.store import read_samples, write_samples
from lineside.data.taskfile import TaskFile, merge
from lineside.errors import LinesideError
from lineside.label import label
from lineside.types import Target

TASKS = """
table: {file: frames.jsonl, family: bin, image: photo, cell: cell, scene: order, by: [operator]}
captions: [{family: bin, templates: ["A {item} part.", "It is {item}.", "Order {order}.", "{item}, {item}."]}]
tasks:
  - {family: bin, name: item, phrasings: ["Which item?"], answer: {kind: exact, column: item, teacher_column: said}}
  - {family: bin, name: is_it, each: kit, phrasings: ["Is {name} there?"], per_frame: 2,
     answer: {kind: choice, column: there, options: ["yes", "no"]}}
  - {family: bin, name: weight, phrasings: ["What does it weigh?"],
     answer: {kind: number, column: g, resolution: 10, unit: g}}
"""


@pytest.fixture
def floor(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    with open(folder / "frames.jsonl", "w") as file:
        for number in range(12):
            out = io.BytesIO()
            Pil.new("RGB", (16, 16), (number * 20, 0, 0)).save(out, "PNG")
            (folder / f"{number}.png").write_bytes(out.getvalue())
            kit = [{"name": "nut", "there": True}, {"name": "cap", "there": number % 2 == 0}]
            row = {"photo": f"{number}.png", "item": "can", "said": "box" if number == 3 else "can", "kit": kit}
            row |= {"g": 100 + number * 10, "cell": "7", "order": f"o{number}", "operator": "bea" if number else ""}
            file.write(json.dumps(row) + "\n")
    (folder / "cut.png").write_bytes(b"\x89PNG no picture")
    (tmp_path / "bin.yaml").write_text(TASKS)
    return folder


def file_of(floor: Path) -> TaskFile:
    return merge([floor.parent / "bin.yaml"])


def test_every_record_once_with_its_sources_and_what_the_teacher_said(floor: Path) -> None:
    file = file_of(floor)
    recorded = recorded_in_frames(open_frames(floor, file.table), file, by=["operator"])
    records = [record for _, found in recorded.read() for record in found]
    assert len(records) == 12 * 4
    by_id = {record.id: record for record in records}
    item = by_id["3.png/item"]
    assert (item.answer, item.said, item.frame, item.key, item.scene) == ("can", "box", "3.png", "", "o3")
    assert item.sources == {"column": "item (bin/item)", "cell": "7", "operator": "bea"}
    assert by_id["0.png/item"].sources["operator"] == "unknown"
    assert (by_id["4.png/is_it/1"].answer, by_id["5.png/is_it/1"].answer) == ("yes", "no")
    assert by_id["2.png/weight"].answer == "120 g" and by_id["2.png/weight"].said is None
    assert [record.id for _, found in recorded.read() for record in found] == [record.id for record in records]


def test_samples_give_the_same_records_by_the_same_ids(floor: Path) -> None:
    file = file_of(floor)
    label(floor, floor.parent / "samples", tasks=[floor.parent / "bin.yaml"])
    in_frames = {r.id: r for _, found in recorded_in_frames(open_frames(floor, file.table), file).read() for r in found}
    by = ["operator", "split"]
    in_samples = {r.id: r for _, found in recorded_in_samples(floor.parent / "samples", by=by).read() for r in found}
    assert len(in_samples) > 20
    for name, record in in_samples.items():
        other = in_frames[name]
        assert (record.answer, record.task, record.key, record.frame, record.picture, record.scene) == (
            other.answer, other.task, other.key, other.frame, other.picture, other.scene,
        )  # fmt: skip
        assert set(record.sources) == {"column", "cell", "operator", "split"}


def test_a_teachers_answer_in_samples_is_what_the_teacher_said(floor: Path, tmp_path: Path) -> None:
    label(floor, floor.parent / "samples", tasks=[floor.parent / "bin.yaml"])
    prompt = next(s for s in read_samples(floor.parent / "samples", kind="prompt") if s.task == "item")
    told = Target("exact", "teacher", accepted=("box",))
    write_samples(tmp_path / "two", [replace(prompt, kind="qa", answer="box", target=told), prompt])
    recorded = recorded_in_samples(tmp_path / "two")
    ((_, (record,)),) = recorded.read()
    assert (record.answer, record.said) == ("can", "box")
    assert recorded.left_out == {"only a teacher vouches for it": 1}


def test_what_is_lacking_is_told(floor: Path, tmp_path: Path) -> None:
    file = file_of(floor)
    label(floor, floor.parent / "samples", tasks=[floor.parent / "bin.yaml"])
    for made in (
        lambda: recorded_in_frames(open_frames(floor, file.table), file, by=["operater"]),
        lambda: recorded_in_samples(floor.parent / "samples", by=["operater"]),
    ):
        with pytest.raises(LinesideError, match=r"--by operater: no frame has such a column.*operator"):
            made()
    with pytest.raises(LinesideError, match="no questions here"):
        recorded_in_samples(tmp_path)


def test_equal_answers_have_equal_texts() -> None:
    assert answer_text(Target("set", "record", accepted=("b", "a"))) == answer_text(
        Target("set", "record", accepted=("a", "b"))
    )
    assert answer_text(Target("set", "record")) == "none"
    assert answer_text(Target("set", "record", accepted=("can", "can", "box"), counted=True)) == "2 cans, box"
    assert answer_text(Target("number", "record", value=123.0, resolution=10, unit="g")) == "120 g"
    assert answer_text(Target("number", "record", value=359.0, resolution=10, period=360)) == "0"
