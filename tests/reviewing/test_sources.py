"""What can be reviewed: photographs, samples, an evaluation, a list; and what is refused, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.data.review_list import LIST, Form, ReviewQuestion, Said, write_list
from lineside.data.store import write_frames, write_samples
from lineside.data.table import TableFrames
from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.judgement.schema import Decoding, Provenance, write_evaluation
from lineside.judgement.summary import summarise
from lineside.reviewing.sources import Choice, open_review
from lineside.types import Image, Meta, Sample, Source, Target
from tests.conftest import picture
from tests.judgement.conftest import row, wrong
from tests.reviewing.conftest import opened
from tests.sim import records

YES_NO = Target("choice", "record", accepted=("no",), options=("yes", "no"))


def sample(name: str, number: int, *, provenance: Any = "record", **changed: Any) -> Sample:
    fields: dict[str, Any] = {
        "id": f"{name}/empty", "kind": "qa", "images": (Image(picture(number, 40), path=name),), "family": "picking",
        "task": "empty", "question": "Is the bin empty?", "trace": None, "answer": "no", "split": "heldout",
        "target": Target("choice", provenance, accepted=("no",), options=("yes", "no")),
        "meta": Meta(scene=f"scene-{name}"), "source": Source(teacher="table"),
    }  # fmt: skip
    return Sample(**{**fields, **changed})


def test_photographs_give_every_question_also_where_the_record_has_no_answer(bins: Path) -> None:
    review = opened(bins)
    questions = {q.id: q for q in review.questions}
    assert len(questions) == 4 * 8
    count, state, weight = (questions[name] for name in ("0.png/count", "3.png/state", "0.png/weight"))
    assert count.said == (Said(by="record", answer="4"),) and count.form == Form(kind="number")
    assert (state.said, state.form.options) == ((), ("intact", "dented", "torn"))
    assert weight.said == (Said(by="record", answer="120 g"),)
    assert review.picture(count) == (bins / "0.png").read_bytes()
    assert review.folder == bins / "review" and not (review.folder / "pictures").exists()  # nothing is copied


def test_a_review_in_the_folder_is_no_frame_of_it(bins: Path) -> None:
    opened(bins)
    again = opened(bins)
    assert len(again.questions) == 4 * 8
    table = again.tasks.table if again.tasks is not None else None
    assert table is not None
    assert TableFrames(bins, table).total == 4


def test_one_task_one_split_and_some(bins: Path) -> None:
    assert {q.task for q in opened(bins, choice=Choice(tasks=("bins/count",))).questions} == {"count"}
    some = opened(bins, choice=Choice(limit=5)).questions
    assert len(some) == 5 and some == opened(bins, choice=Choice(limit=5)).questions
    with pytest.raises(LinesideError, match="no question to review"):
        opened(bins, choice=Choice(split="train"))
    with pytest.raises(LinesideError, match=r"--task 'bins/cuont': no question .*did you mean 'bins/count'"):
        opened(bins, choice=Choice(tasks=("bins/cuont",)))


def test_a_folder_that_cannot_be_written_to_needs_another_for_the_review(bins: Path, tmp_path: Path) -> None:
    (bins / "review").write_text("a file is in the way")
    with pytest.raises(LinesideError, match="--out names another folder"):
        opened(bins)
    assert opened(bins, out=tmp_path / "elsewhere").folder == tmp_path / "elsewhere"


def test_a_table_with_a_teachers_answers_shows_both(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "frames.csv").write_text("image,product,said\na.png,apple,pear\n")
    (tmp_path / "t.yaml").write_text(
        "table: {family: shop, file: frames.csv}\ntasks:\n  - {family: shop, name: product, phrasings: ['What?'],\n"
        "     answer: {kind: exact, column: product, teacher_column: said}}\n"
    )
    (question,) = open_review(tmp_path, tasks=[tmp_path / "t.yaml"]).questions
    assert [(said.by, said.answer) for said in question.said] == [("record", "apple"), ("teacher", "pear")]


def test_samples_give_each_question_once_with_what_record_and_teachers_say(tmp_path: Path) -> None:
    api = Source(teacher="gpt-5-mini")
    write_samples(
        tmp_path,
        [
            sample("a", 0),
            sample("a", 0, trace="one trace", answer="yes", source=api),
            sample("b", 1, provenance="teacher", source=api, trace="it is dark"),
            sample("c", 2, kind="caption", target=None, task="caption", question=""),
            sample("d", 3, kind="prompt", answer=None, split="train"),
        ],
    )
    review = open_review(tmp_path)
    found = {q.id: [(s.by, s.name, s.answer, s.trace) for s in q.said] for q in review.questions}
    assert found == {
        "a/empty": [("record", "", "no", None), ("teacher", "gpt-5-mini", "yes", "one trace")],
        "b/empty": [("teacher", "gpt-5-mini", "no", "it is dark")],
        "d/empty": [("record", "", "no", None)],
    }
    assert [(q.frame, q.key, q.scene) for q in review.questions if q.id == "a/empty"] == [("a", "", "scene-a")]
    assert review.picture(review.questions[0]) in {picture(n, 40) for n in range(4)}
    only = open_review(tmp_path, choice=Choice(split="train"))
    assert [q.id for q in only.questions] == ["d/empty"]


def an_evaluation(folder: Path, samples: list[Sample], stage: str = "sft") -> Path:
    """An evaluation whose first sample is answered right, the others wrongly and ever more surely."""
    rows = []
    for number, one in enumerate(samples):
        make = row if number == 0 else wrong
        images = [image_key(image.bytes) for image in one.images]
        rows.append(make(one.id, images=images, target=YES_NO.to_json(), confidence=0.5 + number / 10, scene=one.id))
    provenance = Provenance(
        date="", seed=0, git=None, version="0", machine="", data="0" * 64, scenes=len(rows), left_out=0
    )
    decoding = Decoding(temperature=0.0, max_new_tokens=96)
    found = summarise(
        rows, stage=stage, split="heldout", mode="think", seed=0, latency=None, captions=None, decoding=decoding,
        provenance=provenance,
    )  # fmt: skip
    return write_evaluation(folder / "evaluation", found, rows)


def test_the_wrong_answers_of_a_run_the_surest_first_with_its_whole_pictures(tmp_path: Path) -> None:
    samples = [sample(name, number) for number, name in enumerate("abc")]
    write_samples(tmp_path / "samples", samples)
    an_evaluation(tmp_path, samples, "align")
    path = an_evaluation(tmp_path, samples)
    for reviewed, folder in ((tmp_path, tmp_path / "review"), (path, path.with_name("sft-heldout-think.review"))):
        review = open_review(reviewed)
        assert [q.id for q in review.questions] == ["c/empty", "b/empty"] and review.folder == folder
        first = review.questions[0]
        record, model = first.said
        assert (record.by, record.answer) == ("record", "no")
        assert (model.by, model.name, model.answer, model.confidence) == ("model", "sft", "yes", 0.7)
        assert "not exact: wrong" in first.why
        assert review.picture(first) == picture(2, 40)


def test_without_samples_an_evaluation_shows_its_small_copies_or_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [sample(name, number) for number, name in enumerate("abc")]
    path = an_evaluation(tmp_path, samples)
    small = path.parent / "pictures" / f"{image_key(picture(1, 40))}.jpg"
    small.parent.mkdir()
    small.write_bytes(picture(9, 16))
    review = open_review(path)
    assert [q.id for q in review.questions] == ["b/empty"]
    told = capsys.readouterr().err
    assert "1 pictures are small copies; --samples FOLDER" in told and "1 questions are left out" in told
    write_samples(tmp_path / "elsewhere", samples)
    assert len(open_review(path, samples=tmp_path / "elsewhere").questions) == 2
    with pytest.raises(LinesideError, match="no wrong answer"):
        open_review(an_evaluation(tmp_path / "right", samples[:1]))


def test_simulated_frames_are_asked_the_simulators_questions(tmp_path: Path) -> None:
    parts = [records.part(name, 0.3 + 0.3 * n, 0.4) for n, name in enumerate(list(records.SKUS)[:2])]
    frame = records.picking(parts, id="sim-1", split="dev")
    write_frames(tmp_path, [type(frame)(frame.id, Image(picture()), frame.family, frame.record, frame.meta, "dev")])
    review = open_review(tmp_path)
    questions = {q.task: q for q in review.questions}
    assert questions["count_all"].said[0].answer == "2" and questions["pick_point"].form.kind == "point"
    assert review.picture(questions["count_all"]) == picture()


def test_a_list_and_a_file_of_one(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"frame": "f", "picture": "", "family": "bins", "task": "count", "question": "?"}
    write_list(tmp_path / "list", [(ReviewQuestion(id="1", form=Form(kind="number"), **fields), picture())])
    assert open_review(tmp_path / "list").folder == tmp_path / "list" / "review"
    shutil.copy(tmp_path / "list" / LIST, tmp_path / "list" / "mine.jsonl")
    review = open_review(tmp_path / "list" / "mine.jsonl")
    assert review.folder == tmp_path / "list" / "mine.review" and review.picture(review.questions[0]) == picture()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "gone.png", ""])
def test_a_list_reads_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "list").mkdir()
    line = {"id": "1", "frame": "f", "picture": name, "family": "b", "task": "t", "question": "?"}
    (tmp_path / "list" / LIST).write_text(json.dumps({**line, "form": {"kind": "exact"}}) + "\n")
    review = open_review(tmp_path / "list")
    with pytest.raises(LinesideError):
        review.picture(review.questions[0])


@pytest.mark.parametrize(
    "words, why",
    [
        (["gone"], "gone: no such folder or file to review"),
        (["."], "say with --tasks what to ask"),
        ([".", "--tasks", "no-table.yaml"], "no `table` section"),
        ([".", "--tasks", "gone.yaml"], "gone.yaml: no such task file"),
        (["broken.json"], "broken.json: not an evaluation"),
        (["broken.jsonl"], "broken.jsonl, line 1: not JSON"),
        (["empty.jsonl"], "empty.jsonl: no question to review"),
        (["list.jsonl", "--person", "../x"], "--person '../x': expected a name"),
        (["list.jsonl", "--records", "--agreement"], "one of --records, --agreement, --export and --import at a time"),
        (["list.jsonl", "--records"], "nobody has answered yet"),
        (["list.jsonl", "--export", "excel", "x"], "excel"),
        (["list.jsonl", "--export", "cvat", "x.json"], "x.json: a file for cvat ends with .xml"),
        (["list.jsonl", "--export", "label-studio", "x.xml"], "x.xml: a file for label-studio ends with .json"),
        (["list.jsonl", "--split", "dev"], "--split chooses among photographs and samples only"),
        (["list.jsonl", "--limit", "0"], "limit"),
        (["list.jsonl", "--port", "70000"], "port"),
    ],
)
def test_bad_input_is_refused_in_words(tmp_path: Path, monkeypatch, words: list[str], why: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(picture())
    Path("no-table.yaml").write_text(
        "tasks: [{family: a, name: b, phrasings: [c], answer: {kind: exact, column: d}}]\n"
    )
    Path("broken.json").write_text("{")
    Path("broken.jsonl").write_text("{\n")
    Path("empty.jsonl").write_text("")
    line = {"id": "1", "frame": "f", "picture": "a.png", "family": "b", "task": "t", "question": "?"}
    Path("list.jsonl").write_text(json.dumps({**line, "form": {"kind": "exact"}}) + "\n")
    ran = CliRunner().invoke(cli.app, ["review", *words])
    assert ran.exit_code == 2 and why in ran.stderr and "Traceback" not in ran.output
