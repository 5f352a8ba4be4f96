"""Answers become records that `label` reads with the same task file, and override what the table says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lineside.data.review_list import LIST, write_list
from lineside.data.reviewed import COLUMN
from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.label import label
from lineside.recipe import Label
from lineside.reviewing.log import read_people
from lineside.reviewing.records import Account, settle, write_records
from lineside.reviewing.sources import Choice, open_review
from lineside.types import Sample
from lineside.verify.verifiers import verify
from tests.conftest import picture
from tests.reviewing.conftest import answer, opened, serving


def labelled(frames: Path, out: Path, tasks: Path) -> dict[str, Sample]:
    """Every question that `label` asks, by id."""
    label(frames, out, tasks=[tasks], settings=Label(question_share=1.0, prompt_share=0.0))
    return {sample.id: sample for sample in read_samples(out, kind="qa")}


def test_label_gives_the_answers_of_people_with_the_same_task_file(bins: Path, tmp_path: Path) -> None:
    review = opened(bins)
    told = {
        "0.png/count": "5",  # the record says 4
        "0.png/state": "torn",  # which the table's `values` cannot write
        "0.png/item": "red can",  # agrees
        "0.png/inside": "2 cartons",
        "0.png/empty": "yes",
        "0.png/weight": "130",
        "1.png/weight": None,
        "2.png/weight": "90 g",  # the record has none
        "3.png/state": "dented",
    }
    answer(review, told)
    path, account = write_records(review, read_people(review.folder, review.every))
    assert path == bins / "review" / "records.csv"
    assert account == Account(confirmed=1, corrected=5, new=2, untold=1)
    before = labelled(bins, tmp_path / "before", bins.parent / "bins.yaml")
    after = labelled(path, tmp_path / "after", bins.parent / "bins.yaml")
    for name, text in told.items():
        if text is None:
            assert name in before and name not in after  # the truth is unknown: not asked
        else:
            sample = after[name]
            assert sample.target is not None and sample.target.provenance == "record"
            assert verify(text, sample.target).exact and verify(sample.answer or "", sample.target).exact
            column = "reviewed"
            assert [entry["by"] for entry in sample.meta.extra[column].values()]
    untouched = [name for name in before if name.split("/")[1] not in ("is_it",) and name not in told]
    assert all(after[name].answer == before[name].answer and after[name].target == before[name].target
               for name in untouched)  # fmt: skip
    captions = {s.id: s.answer for s in read_samples(tmp_path / "after", kind="caption")}
    assert any("torn" in (text or "") for name, text in captions.items() if name.startswith("0.png/"))


def test_the_tables_own_cells_stay_and_the_new_column_says_who_and_when(bins: Path) -> None:
    review = opened(bins)
    answer(review, {"0.png/count": "5", "0.png/item": "Red can"})
    path, _ = write_records(review, read_people(review.folder, review.every))
    rows = list(csv.DictReader(path.open()))
    assert [row["parts"] for row in rows] == ["4", "2", "0", "7"]
    found = json.loads(rows[0][COLUMN])
    assert found["count"] == {"value": 5, "was": 4, "by": "anna", "at": "2026-01-01"}
    assert found["item"] == {"value": "red can", "was": "red can", "by": "anna", "at": "2026-01-02"}
    assert [row[COLUMN] for row in rows[1:]] == ["", "", ""]


def test_records_hold_all_answers_whatever_was_chosen_last(bins: Path, tmp_path: Path) -> None:
    answer(opened(bins), {"0.png/count": "5"})
    review = opened(bins, choice=Choice(tasks=("bins/state",), limit=1, split="heldout"))
    path, account = write_records(review, read_people(review.folder, review.every))
    assert account == Account(corrected=1) and '""value"": 5' in path.read_text()
    tasks = bins.parent / "bins.yaml"
    labelled(bins, tmp_path / "samples", tasks)
    out = tmp_path / "elsewhere"
    review = open_review(tmp_path / "samples", tasks=[tasks], frames=bins, out=out)
    answer(review, {"1.png/count": "3"})
    write_records(review, read_people(out, review.every))
    open_review(tmp_path / "samples", out=out)  # without --frames: the records still find their pictures
    assert labelled(out / "records.csv", tmp_path / "after", tasks)["1.png/count"].answer == "3"


def test_is_this_it_corrects_the_value_that_it_asks_about(bins: Path) -> None:
    review = opened(bins)
    own = next(q for q in review.questions if q.id.startswith("0.png/is_it") and q.said[0].answer == "yes")
    other = next(q for q in review.questions if q.id.startswith("1.png/is_it") and q.said[0].answer == "no")
    answer(review, {own.id: "no", other.id: "yes"})
    path, account = write_records(review, read_people(review.folder, review.every))
    rows = [json.loads(row[COLUMN] or "{}") for row in csv.DictReader(path.open())]
    assert rows[0]["item"]["value"] is None  # it is no red can, and nobody said what it is
    assert rows[1]["item"]["value"] == other.question.removeprefix("Is it ").removesuffix("?")
    assert account.corrected == 2
    answer(review, {own.id: "no", "0.png/item": "blue box"}, "ben")
    path, _ = write_records(review, read_people(review.folder, review.every))
    rows = [json.loads(row[COLUMN] or "{}") for row in csv.DictReader(path.open())]
    assert rows[0]["item"]["value"] == "blue box"  # what is known wins over what is not


def test_questions_that_say_different_things_of_one_value_make_it_unknown(bins: Path) -> None:
    review = opened(bins)
    own, other = (q for q in review.questions if q.id.startswith("0.png/is_it"))
    assert {own.said[0].answer, other.said[0].answer} == {"yes", "no"}
    answer(review, {own.id: "yes", other.id: "yes", "0.png/item": "ball"})  # three names for one thing
    path, account = write_records(review, read_people(review.folder, review.every))
    row = next(csv.DictReader(path.open()))
    assert json.loads(row[COLUMN])["item"] == {"value": None, "was": "red can", "by": "anna", "at": "2026-01-03"}
    assert account.contested == 1


def test_an_answer_about_a_value_that_the_record_does_not_ask_about_any_more_does_not_count(bins: Path) -> None:
    review = opened(bins)
    own = next(q for q in review.questions if q.id.startswith("0.png/is_it") and q.said[0].answer == "yes")
    answer(review, {own.id: "no", "0.png/count": "5"})
    (bins / "frames.csv").write_text((bins / "frames.csv").read_text().replace("A,red_can", "A,ball"))
    tasks = bins.parent / "bins.yaml"
    tasks.write_text(tasks.read_text().replace("How many parts?", "Count the parts."))  # asks the same
    again = opened(bins)
    assert next(q for q in again.questions if q.id == own.id).question == "Is it ball?"
    people = read_people(again.folder, again.every)
    assert people["anna"].keys() == {"0.png/count"}  # "Is it red can?" says nothing about a ball
    assert write_records(again, people)[1] == Account(corrected=1)
    with serving(again) as client:
        assert client.state(own.id)["question"]["mine"] is None  # asked again
        assert client.state("0.png/count")["question"]["mine"] == {"action": "answer", "answer": "5"}
    stale = read_people(review.folder, review.every)  # a list that was written before
    assert write_records(review, stale)[1] == Account(corrected=1, unplaced=1)


def test_what_more_than_half_say_settles_a_question(bins: Path) -> None:
    review = opened(bins)
    answer(review, {"0.png/count": "5", "0.png/state": "torn"}, "anna")
    answer(review, {"0.png/count": "6", "0.png/state": "torn"}, "ben")
    found = settle(review.questions, read_people(review.folder, review.every))
    assert (found["0.png/count"].answer, found["0.png/count"].contested) == (None, True)
    assert (found["0.png/state"].answer, found["0.png/state"].by) == ("torn", "anna, ben")
    _, account = write_records(review, read_people(review.folder, review.every))
    assert (account.contested, account.corrected) == (1, 1)
    answer(review, {"0.png/count": "6"}, "cleo")
    assert settle(review.questions, read_people(review.folder, review.every))["0.png/count"].answer == "6"


def test_answers_to_a_question_whose_options_have_changed_do_not_count(bins: Path) -> None:
    review = opened(bins)
    answer(review, {"0.png/state": "torn", "1.png/state": "intact"})
    tasks = bins.parent / "bins.yaml"
    tasks.write_text(tasks.read_text().replace("[intact, dented, torn]", "[intact, dented]"))
    again = opened(bins)
    assert settle(again.questions, read_people(again.folder, again.every)).keys() == {"1.png/state"}
    assert write_records(again, read_people(again.folder, again.every))[1] == Account(corrected=1)


@pytest.mark.parametrize(
    "decimal, delimiter, encoding", [(",", ";", "cp1252"), (".", "\t", "utf-16"), (".", "|", None)]
)
def test_the_records_are_written_in_the_form_of_the_table(
    bins: Path, tmp_path: Path, decimal: str, delimiter: str, encoding: str | None
) -> None:
    text = (bins / "frames.csv").read_text().replace("|", "/").replace(",", delimiter).replace("118", f"118{decimal}5")
    (bins / "frames.csv").write_bytes(text.replace("blue-box", "bläu-box").encode(encoding or "utf-8"))
    tasks = bins.parent / "bins.yaml"
    form = f"delimiter: {json.dumps(delimiter)}\n  " if delimiter == "|" else ""
    form += f"encoding: {encoding}\n  " if encoding == "cp1252" else ""
    tasks.write_text(tasks.read_text().replace("file: frames.csv", f"{form}file: frames.csv"))
    review = opened(bins)
    answer(review, {"0.png/count": "5", "2.png/item": "bläu box"})
    path, _ = write_records(review, read_people(review.folder, review.every))
    after = labelled(path, tmp_path / "after", tasks)
    assert (after["0.png/count"].answer, after["0.png/weight"].answer) == ("5", "120 g")
    assert after["2.png/item"].answer == "bläu box"


def test_photographs_without_a_table_are_answered_from_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "cam1").mkdir(parents=True)
    for number in range(3):
        (folder / "cam1" / f"{number}.png").write_bytes(picture(number, 32))
    (tmp_path / "photos.yaml").write_text(
        "table: {family: bins, split: {by: scene, shares: {heldout: 1.0}}}\n"
        "tasks:\n  - {family: bins, name: state, phrasings: ['In what state?'],\n"
        "     answer: {kind: choice, column: state, options: [intact, dented]}}\n"
        "  - {family: bins, name: grip, phrasings: ['Where to grip?'],\n"
        "     answer: {kind: point, column: grip, mask_column: grip_mask}}\n"
    )
    review = open_review(folder, tasks=[tmp_path / "photos.yaml"])
    assert len(review.questions) == 6 and not any(q.said for q in review.questions)
    answer(review, {"cam1/0.png/state": "dented", "cam1/1.png/grip": "0.25, 0.75", "cam1/2.png/state": None})
    path, account = write_records(review, read_people(review.folder, review.every))
    assert account == Account(new=2, untold=1)
    after = labelled(path, tmp_path / "out", tmp_path / "photos.yaml")
    assert after.keys() == {"cam1/0.png/state", "cam1/1.png/grip"}
    target = after["cam1/1.png/grip"].target
    assert target is not None and verify("0.26, 0.75", target).exact and not verify("0.3, 0.75", target).exact


def test_elements_of_a_list_in_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    slots = [{"slot": 1, "state": "full"}, {"slot": 2, "state": "empty"}]
    (folder / "frames.jsonl").write_text(json.dumps({"image": "a.png", "slots": slots, "line": {"item": "can"}}) + "\n")
    (tmp_path / "kits.yaml").write_text(
        "table: {family: kits, file: frames.jsonl, split: {by: scene, shares: {heldout: 1.0}}}\n"
        "tasks:\n  - {family: kits, name: slot, each: slots, per_frame: 2, phrasings: ['In slot {slot}?'],\n"
        "     answer: {kind: choice, column: state, options: [full, empty]}}\n"
        "  - {family: kits, name: item, phrasings: ['What?'], answer: {kind: exact, column: line.item}}\n"
    )
    review = open_review(folder, tasks=[tmp_path / "kits.yaml"])
    answer(review, {"a.png/slot/1": "full", "a.png/item": "carton"})
    path, account = write_records(review, read_people(review.folder, review.every))
    assert path.name == "records.jsonl" and account == Account(corrected=2)
    after = labelled(path, tmp_path / "out", tmp_path / "kits.yaml")
    assert {name: s.answer for name, s in after.items()} == {
        "a.png/slot/0": "full", "a.png/slot/1": "full", "a.png/item": "carton",
    }  # fmt: skip
    again = open_review(path, tasks=[tmp_path / "kits.yaml"])  # a second review of the records
    assert next(q for q in again.questions if q.id == "a.png/slot/1").said[0].answer == "full"


def test_samples_and_lists_write_records_of_the_frames_that_they_come_from(bins: Path, tmp_path: Path) -> None:
    tasks = bins.parent / "bins.yaml"
    labelled(bins, tmp_path / "samples", tasks)
    review = open_review(tmp_path / "samples", tasks=[tasks], frames=bins)
    assert {q.id for q in review.questions} >= {"1.png/count", "0.png/state"}
    answer(review, {"1.png/count": "3", "0.png/state": "dented"})
    path, account = write_records(review, read_people(review.folder, review.every))
    assert path == tmp_path / "samples" / "review" / "records.csv" and account == Account(corrected=2)
    after = labelled(path, tmp_path / "after", tasks)
    assert (after["1.png/count"].answer, after["0.png/state"].answer) == ("3", "dented")


def test_a_list_of_another_verb_corrects_the_photographs_that_it_is_about(bins: Path, tmp_path: Path) -> None:
    questions = [q for q in opened(bins).questions if q.id in ("0.png/count", "1.png/state")]
    write_list(tmp_path / "doubts", [(q, picture(n, 64)) for n, q in enumerate(questions)])
    tasks = bins.parent / "bins.yaml"
    for named in (tmp_path / "doubts", tmp_path / "doubts" / LIST):  # the folder, and the file
        review = open_review(named, tasks=[tasks], frames=bins, out=tmp_path / "out")
        assert {q.id for q in review.questions} == {"0.png/count", "1.png/state"}
        answer(review, {"0.png/count": "5", "1.png/state": "torn"})
        path, account = write_records(review, read_people(review.folder, review.every))
        assert account == Account(corrected=2)
    after = labelled(path, tmp_path / "after", tasks)
    assert (after["0.png/count"].answer, after["1.png/state"].answer) == ("5", "torn")
    with pytest.raises(LinesideError, match=r"--frames .*gone: no such folder"):
        open_review(tmp_path / "doubts", frames=tmp_path / "gone")


def test_records_that_cannot_be_written_say_what_is_missing(bins: Path, tmp_path: Path) -> None:
    review = opened(bins)
    with pytest.raises(LinesideError, match="nobody has answered yet"):
        write_records(review, {})
    tasks = bins.parent / "bins.yaml"
    labelled(bins, tmp_path / "samples", tasks)
    review = open_review(tmp_path / "samples")
    answer(review, {"1.png/count": "3"})
    with pytest.raises(LinesideError, match="name it with --frames, and the task file"):
        write_records(review, read_people(review.folder, review.every))
