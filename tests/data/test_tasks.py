"""Task files: what they refuse, which questions they ask of a record, and that every gold answer is right."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data import taskfile as f
from lineside.data import tasks as t
from lineside.errors import LinesideError
from lineside.types import Costs, Frame, Image, Mask, Meta
from lineside.verify.verifiers import verify


def frame(record: dict[str, Any], name: str = "f1", family: str = "picking") -> Frame:
    return Frame(name, Image(b"x"), family, record, Meta(), "train")


def task(answer: dict[str, Any], **keys: Any) -> f.Task:
    options = {"family": "picking", "name": "q", "phrasings": ["Q?"], **keys}
    return f.Task.model_validate({**options, "answer": answer})


def ask(answer: dict[str, Any], record: dict[str, Any], **keys: Any) -> list[t.Candidate]:
    return t.candidates(task(answer, **keys), frame(record), provenance="sim")


def load(tmp_path: Path, text: str) -> tuple[f.Task, ...]:
    path = tmp_path / "cell.yaml"
    path.write_text(dedent(text))
    return f.load_task_file(path).tasks


GOOD = """
    tasks:
      - family: picking
        name: empty
        phrasings: ["Is it empty?"]
        answer: {kind: choice, column: empty, options: [yes, no]}
        normal: no
        stakes: {wrong: 1, false_stop: 0.2}
        max_share: 0.5
"""


def test_a_task_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    (read,) = load(tmp_path, GOOD)
    assert (read.family, read.name, read.version, read.per_frame, read.max_share) == ("picking", "empty", 1, 1, 0.5)
    assert read.answer.options == ("yes", "no")  # words, though YAML 1.1 would make them booleans
    assert read.normal == "no"  # a word too
    assert read.stakes.costs == Costs(wrong=1.0, false_pass=1.0, false_stop=0.2, refusal=0.25)


@pytest.mark.parametrize(
    ("answer", "normal", "fits"),
    [
        ("{kind: set, column: a, options: [x, y]}", "none", True),
        ("{kind: set, column: a, options: [x, y]}", "y, x", True),
        ("{kind: set, column: a, options: [x, y]}", "z", False),
        ("{kind: number, column: a, unit: g}", "0", True),
        ("{kind: number, column: a, unit: g}", "0 mm", False),
        ("{kind: choice, column: a, options_column: b}", "ship", True),
        ("{kind: exact, column: a}", "intact", True),
        ("{kind: point, column: a, mask_column: b}", "0.5, 0.5", False),
        ("{kind: exact, column: a}", "", False),
    ],
)
def test_a_normal_answer_is_one_that_can_be_given(tmp_path: Path, answer: str, normal: str, fits: bool) -> None:
    line = "{kind: choice, column: empty, options: [yes, no]}"
    text = GOOD.replace(line, answer).replace("normal: no", f'normal: "{normal}"')
    if fits:
        assert load(tmp_path, text)[0].normal == normal
    else:
        with pytest.raises(LinesideError, match="normal: "):
            load(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("phrasings:", "phrasing:"), "task empty: unknown key 'phrasing'; did you mean 'phrasings'?"),
        (("column:", "colum:"), "unknown key 'answer.colum'; did you mean 'column'?"),
        (("false_stop", "flase_stop"), "unknown key 'stakes.flase_stop'; did you mean 'false_stop'?"),
        (("false_stop", "false_alarm"), "stakes: .*false_alarm is now called false_stop"),
        (("false_stop: 0.2", "false_pass: -1"), "stakes.false_pass: .*expected 0.0 or more"),
        (
            ("normal: no", "normal: perhaps"),
            "normal: 'perhaps' is not an answer of kind choice; expected one of yes",
        ),
        (("normal: no", "normal: 0"), "normal: .0. is not an answer of kind choice"),
        (("normal: no", "normal: true"), "normal: YAML reads this as true, which is not text"),
        (("tasks:", "task:"), "unknown key 'task'; did you mean 'tasks'?"),
        (("kind: choice", "kind: chioce"), "answer.kind: expected 'exact', 'choice'"),
        (("max_share: 0.5", "max_share: half"), "max_share: expected a number, got 'half'"),
        (("max_share: 0.5", "max_share: 1.5"), "max_share: expected 1.0 or less"),
        (("max_share: 0.5", "per_frame: 2.0"), "per_frame: expected a whole number"),
        (('["Is it empty?"]', "[]"), "phrasings: .*a list of at least 1"),
        (('["Is it empty?"]', "['Is {it empty?']"), "a slot is written"),
        (('["Is it empty?"]', "['Is {bins[0]} empty?']"), "a slot is written"),
        (("options: [yes, no]", "unit: percent"), "an answer of kind choice has no unit"),
        (("options: [yes, no]", "accepted_column: x"), "a choice needs options"),
        (("kind: choice, column: empty, options: [yes, no]", "kind: point, column: p"), "a point needs a mask_column"),
        (("name: empty", "name: empty\n        name: full"), "line 5: .*'name' occurs twice"),
        (("family: picking", "family: [picking"), "not valid YAML"),
        (("tasks:", "tasks: []\n    other:"), "tasks: .*a list of at least 1"),
    ],
)
def test_a_mistake_in_a_task_file_names_the_place(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(LinesideError, match=message) as error:
        load(tmp_path, GOOD.replace(*change, 1))
    assert "cell.yaml" in str(error.value)
    assert error.value.exit_status == 2


def test_one_task_twice_is_an_error(tmp_path: Path) -> None:
    body = dedent(GOOD)
    with pytest.raises(LinesideError, match="picking/empty occurs twice"):
        load(tmp_path, body + body.split("tasks:\n")[1])
    (tmp_path / "a.yaml").write_text(body)
    with pytest.raises(LinesideError, match="picking/empty occurs twice"):
        f.merge([tmp_path / "a.yaml", tmp_path / "cell.yaml"])


def test_a_missing_file_and_a_binary_one(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"absent\.yaml"):
        f.load_task_file(tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00tasks")
    with pytest.raises(LinesideError, match=r"b\.yaml"):
        f.load_task_file(tmp_path / "b.yaml")


def test_yes_and_no_from_a_boolean() -> None:
    answer = {"kind": "choice", "column": "empty", "options": ["yes", "no"]}
    (yes,), (no,) = ask(answer, {"empty": True}), ask(answer, {"empty": False})
    assert (yes.answer, no.answer) == ("yes", "no")
    assert yes.target.accepted == ("yes",)
    assert yes.target.options == ("yes", "no")
    assert yes.target.provenance == "sim"


def test_any_of_several_is_right() -> None:
    record = {"best": "red can", "free": ["red can", "blue box"], "all": ["red can", "blue box", "jar"]}
    answer = {"kind": "choice", "column": "best", "accepted_column": "free", "options_column": "all"}
    (found,) = ask(answer, record)
    assert found.answer == "red can"
    assert found.target.accepted == ("red can", "blue box")
    assert verify("blue box", found.target).exact
    assert not verify("jar", found.target).exact


@pytest.mark.parametrize(
    ("value", "answer"), [(0, "0"), (62.9, "60"), (67.1, "70"), (70, "70"), (72.9, "70"), (99.9, "100"), (2.0, "0")]
)
def test_a_number_is_answered_at_its_resolution(value: float, answer: str) -> None:
    keys = {"kind": "number", "column": "fill", "resolution": 10, "tolerance": 30, "unit": "percent"}
    (found,) = ask(keys, {"fill": value})
    assert found.answer == f"{answer} percent"
    assert found.target.value == value  # the raw truth
    assert verify(found.answer, found.target).exact


@pytest.mark.parametrize("value", [63.0, 63.1, 65.0, 66.9, 67.0, 5.0, 4.0])
def test_a_truth_within_a_fifth_of_a_step_of_a_rounding_boundary_is_not_asked(value: float) -> None:
    keys = {"kind": "number", "column": "fill", "resolution": 10, "tolerance": 30}
    seen = t.survey(task(keys), frame({"fill": value}))
    assert seen.candidates == ()
    assert seen.skipped == {t.CLOSE: 1}


@given(
    st.floats(-1e6, 1e6),
    st.sampled_from([1.0, 10.0, 0.5, 0.1, 0.05, 5.0, 15.0, 0.001]),
    st.sampled_from([0.0, 180.0, 360.0]),
)
def test_every_number_that_is_asked_has_a_right_answer(value: float, resolution: float, period: float) -> None:
    value = abs(value)
    keys = {"kind": "number", "column": "v", "resolution": resolution, "tolerance": resolution * 2, "period": period}
    seen = t.survey(task(keys), frame({"v": value}))
    assert t.UNSOUND not in seen.skipped
    for found in seen.candidates:
        assert verify(found.answer, found.target).exact


def test_an_angle_wraps() -> None:
    keys = {"kind": "number", "column": "v", "resolution": 10, "tolerance": 20, "period": 360}
    (found,) = ask(keys, {"v": 358.0})
    assert found.answer == "0"


def test_sets() -> None:
    keys = {"kind": "set", "column": "slots", "options": ["1", "2", "3"]}
    assert [ask(keys, {"slots": s})[0].answer for s in (["3", "1"], [])] == ["3, 1", "none"]
    seen = t.survey(task({"kind": "set", "column": "slots"}), frame({"slots": ["a, b"]}))
    assert seen.skipped == {t.UNSOUND: 1}  # a member with a comma could not be told from two


def test_a_point_lies_in_its_mask_as_written() -> None:
    keys = {"kind": "point", "column": "at", "mask_column": "mask"}
    mask = {"height": 2, "width": 2, "runs": [1, 1, 2]}  # the top right quarter
    (found,) = ask(keys, {"at": [0.756, 0.25], "mask": mask})
    assert found.answer == "0.76, 0.25"
    assert found.target.mask == Mask(2, 2, (1, 1, 2))
    # 0.4951 lies in the upper half, but is written 0.50, which does not
    thin = {"height": 100, "width": 1, "runs": [49, 1, 50]}
    assert t.survey(task(keys), frame({"at": [0.5, 0.4951], "mask": thin})).skipped == {t.UNSOUND: 1}


def test_each_asks_of_every_element_and_fills_slots_element_first() -> None:
    keys = {"kind": "number", "column": "count", "tolerance": 2}
    record = {
        "bin": "left",
        "item": "thing",
        "described": [{"item": "red can", "count": 2}, {"item": "jar", "count": 0}],
    }
    found = ask(keys, record, each="described", per_frame=9, phrasings=["How many {item} in the {bin} bin?"])
    assert [(c.question, c.answer, c.key) for c in found] == [
        ("How many red can in the left bin?", "2", "0"),
        ("How many jar in the left bin?", "0", "1"),
    ]
    assert found[0].element == {"item": "red can", "count": 2}


def test_when_margin_unknown_and_other_families() -> None:
    keys = {"kind": "number", "column": "count", "margin_column": "clear"}
    record = {"described": [{"count": 1, "clear": True, "ask": True}, {"count": 2, "clear": True, "ask": False}]}
    record["described"] += [{"count": 3, "clear": False, "ask": True}, {"count": None, "clear": True, "ask": True}]
    asked = task(keys, each="described", when="ask", per_frame=9)
    seen = t.survey(asked, frame(record))
    assert [c.answer for c in seen.candidates] == ["1"]
    assert seen.skipped == {t.CLOSE: 1, t.UNKNOWN: 1}
    assert t.candidates(asked, frame(record, family="kitting")) == []
    slot = ask({"kind": "exact", "column": "name"}, {"name": "x", "bin": None}, phrasings=["In {bin}?"])
    assert slot == []


def test_no_more_than_per_frame_chosen_by_the_frame_alone() -> None:
    described = [{"item": str(i), "count": i} for i in range(12)]
    asked = task({"kind": "number", "column": "count"}, each="described", per_frame=3, phrasings=["{item}?"])
    frames = [frame({"described": described}, f"f{i}") for i in range(30)]
    picks = [tuple(c.key for c in t.candidates(asked, f)) for f in frames]
    assert picks == [tuple(c.key for c in t.candidates(asked, f)) for f in frames]
    assert all(len(p) == 3 and list(p) == sorted(p, key=int) for p in picks)
    assert len(set(picks)) > 20
    assert t.survey(asked, frames[0]).skipped == {t.SURPLUS: 9}


def test_all_phrasings_are_used() -> None:
    asked = task({"kind": "number", "column": "count"}, phrasings=["A?", "B?", "C?"])
    used = [t.candidates(asked, frame({"count": 1}, f"f{i}"))[0].question for i in range(60)]
    assert {used.count(q) > 8 for q in ("A?", "B?", "C?")} == {True}


def test_a_slot_can_bring_its_article() -> None:
    asked = {"kind": "exact", "column": "item"}
    found = [ask(asked, {"item": i}, phrasings=["Is this {a item}?"])[0].question for i in ("orange can", "red can")]
    assert found == ["Is this an orange can?", "Is this a red can?"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"answer": {"kind": "number", "column": "cuont"}},
            "no column 'cuont'; did you mean 'count'.*they have count, word",
        ),
        ({"answer": {"kind": "number", "column": "word"}}, "'word' holds 'red': expected a finite number"),
        ({"answer": {"kind": "number", "column": "flag"}}, "'flag' holds True: expected a finite number"),
        ({"answer": {"kind": "exact", "column": "flag"}}, "is a string"),
        ({"answer": {"kind": "set", "column": "word"}}, "expected a list of strings"),
        ({"answer": {"kind": "point", "column": "word", "mask_column": "word"}}, r"expected \[x, y\]"),
        ({"answer": {"kind": "exact", "column": "word"}, "each": "items"}, "no column 'items'"),
        ({"answer": {"kind": "exact", "column": "word"}, "each": "word"}, "must hold a list of records"),
        ({"answer": {"kind": "exact", "column": "word"}, "when": "word"}, "expected true or false"),
        ({"answer": {"kind": "exact", "column": "word"}, "phrasings": ["In {bni}?"]}, "no column 'bni'"),
    ],
)
def test_a_column_the_records_lack_or_hold_otherwise_is_named(keys: dict[str, Any], message: str) -> None:
    asked = f.Task.model_validate({"family": "picking", "name": "q", "phrasings": ["Q?"], **keys})
    with pytest.raises(LinesideError, match=message) as error:
        t.candidates(asked, frame({"count": 1, "word": "red", "flag": True}))
    assert "picking/q" in str(error.value)
    assert "f1" in str(error.value)


def test_a_truth_that_is_no_option_is_skipped_and_counted() -> None:
    seen = t.survey(task({"kind": "choice", "column": "c", "options": ["intact", "torn"]}), frame({"c": "bent"}))
    assert seen.skipped == {t.NO_OPTION: 1}


@pytest.mark.parametrize("truth", [["can", "box", "can"], {"can": 2, "box": 1, "tub": 0}])
def test_a_list_in_which_things_are_counted(truth: Any) -> None:
    keys = {"kind": "set", "column": "lack", "options": ("can", "box", "tub"), "counted": True}
    (asked,) = t.candidates(task(keys), frame({"lack": truth}))
    assert asked.answer == "2 cans, box"
    assert asked.target.counted and sorted(asked.target.accepted) == ["box", "can", "can"]
    assert verify("can, can, box", asked.target).exact and not verify("can, box", asked.target).exact


@pytest.mark.parametrize("truth", [{"can": -1}, {"can": 1.5}, {"can": True}, {"can": 1000}, {"can": "2"}])
def test_counts_that_are_none(truth: Any) -> None:
    keys = {"kind": "set", "column": "lack", "counted": True}
    with pytest.raises(LinesideError, match="expected a whole number from 0 to 999 for each member"):
        t.candidates(task(keys), frame({"lack": truth}))


def test_a_set_without_counts_is_as_it_was() -> None:
    (asked,) = t.candidates(task({"kind": "set", "column": "lack"}), frame({"lack": ["can", "box"]}))
    assert asked.answer == "can, box"
    assert asked.target.to_json() == {"kind": "set", "provenance": "record", "accepted": ("can", "box")}


def test_what_a_teacher_tells_of_counts() -> None:
    answer = f.Answer(kind="set", options=("can", "box"), counted=True)
    told = t.parse_teacher_answer(answer, "2 cans, box")
    assert told is not None and told[0] == "2 cans, box" and told[1].accepted == ("can", "can", "box")
    assert t.parse_teacher_answer(answer, "2 jars") is None
    free = t.parse_teacher_answer(f.Answer(kind="set", counted=True), "2 cans, box")
    assert free is not None and free[1].accepted == ("cans", "cans", "box")
