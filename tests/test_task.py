"""task check: what is wrong with a task file is told before anything is labelled; any column of a record can serve."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, get_args

import pytest
import yaml
from PIL import Image as Pil
from pydantic import BaseModel
from typer.testing import CliRunner

from lineside import cli
from lineside.data.store import read_samples
from lineside.data.taskcheck import Check
from lineside.data.taskfile import TaskFile
from lineside.data.taskkeys import SECTIONS, Key, keys
from lineside.errors import LinesideError
from lineside.label import label
from lineside.recipe import Label
from lineside.strict import Loader, build
from lineside.task import check

RECORD = {
    "bom": [{"count": 2, "item": "red can"}, {"count": 1, "item": "blue box"}],
    "order_line": {"sku": "4711", "text": "blue box, small", "quantity": 1},
    "scan": {"code": "4006381333931", "readable": True},
    "weight": 412.0,
    "gripper": {"verdict": "slipped", "force": None},
    "missing": ["blue box"],
}

FLOOR = """
    table: {file: frames.jsonl, family: kitting, image: picture}
    captions:
      - family: kitting
        wrong: [gripper.verdict]
        templates: ["A kit of {bom}; the gripper {gripper.verdict}.", "The scan says {scan.code}.", "{weight} g.",
                    "The gripper {gripper.verdict}."]
    tasks:
      - {family: kitting, name: missing, phrasings: ["The kit needs {bom}. What is missing?"],
         answer: {kind: set, column: missing}}
      - {family: kitting, name: matches, phrasings: ["The order says {order_line.text}. Is the label readable?"],
         answer: {kind: choice, column: scan.readable, options: [yes, no]},
         trace: "the scan is {scan.code}; it is near"}
      - {family: kitting, name: weight, phrasings: ["What does the kit weigh?"],
         answer: {kind: number, column: weight, resolution: 10, tolerance: 50, unit: g}}
      - {family: kitting, name: gripper, phrasings: ["What does {an order_line.text} do in the gripper?"],
         answer: {kind: choice, column: gripper.verdict, options: [held, slipped]}, max_share: 0.6}
      - {family: kitting, name: force, phrasings: ["How hard does it press?"],
         answer: {kind: number, column: gripper.force, unit: N}}
      - {family: kitting, name: each, each: bom, phrasings: ["How many {item} belong into the kit?"],
         answer: {kind: number, column: count}, per_frame: 2}
"""


@pytest.fixture
def floor(tmp_path: Path) -> Path:
    """Twenty kits with records as a floor's systems write them, and the task file beside the folder."""
    folder = tmp_path / "floor"
    folder.mkdir()
    with open(folder / "frames.jsonl", "w") as file:
        for number in range(20):
            out = io.BytesIO()
            Pil.new("RGB", (16, 16), (number * 9, 0, 0)).save(out, "PNG")
            (folder / f"{number}.png").write_bytes(out.getvalue())
            verdict = ("held", "slipped", "held")[number % 3]
            record = {**RECORD, "gripper": {"verdict": verdict, "force": None}, "weight": 400.0 + number * 10}
            file.write(json.dumps({"picture": f"{number}.png", **record}) + "\n")
    (tmp_path / "floor.yaml").write_text(dedent(FLOOR).replace("{an ", "{a "))
    return folder


def run(floor: Path, text: str | None = None, **options: Any) -> Check:
    path = floor.parent / "floor.yaml"
    if text is not None:
        path.write_text(dedent(text))
    return check([path], floor, **options)


def test_any_column_of_a_record_fills_a_phrasing_or_is_the_truth(floor: Path) -> None:
    first = run(floor, limit=1)
    told = {asked.name: candidate for asked, _, candidate in reversed(first.examples(100))}
    assert first.read == 1 and first.total == 20
    asked = {name.split("/")[1]: (c.question, c.answer) for name, c in told.items()}
    assert asked == {
        "missing": ("The kit needs 2 red can; 1 blue box. What is missing?", "blue box"),
        "matches": ("The order says blue box, small. Is the label readable?", "yes"),
        "weight": ("What does the kit weigh?", told["kitting/weight"].answer),
        "gripper": ("What does a blue box, small do in the gripper?", told["kitting/gripper"].answer),
        "each": ("How many red can belong into the kit?", "2"),
    }
    found = run(floor)
    assert found.problems == []
    answers = {a.name.split("/")[1]: a.answers for a in found.asked}
    assert answers["gripper"] == {"held": 13, "slipped": 7}
    assert answers["each"] == {"2": 20, "1": 20}
    assert found.asked[4].skipped == {"truth unknown": 20}


def test_what_was_checked_is_what_is_labelled(floor: Path) -> None:
    found = run(floor)
    label(floor, floor.parent / "out", tasks=[floor.parent / "floor.yaml"],
          settings=Label(question_share=0.4, prompt_share=0.0, questions_per_frame=10))  # fmt: skip
    shown = {(frame, a.task.name, c.question): c.answer for a, frame, c in found.examples(10**6)}
    samples = list(read_samples(floor.parent / "out", kind="qa"))
    both = [s for s in samples if (s.id.split("/")[0], s.task, s.question) in shown]
    assert len(both) > 20
    assert all(s.answer == shown[s.id.split("/")[0], s.task, s.question] for s in both)
    captions = [s for s in read_samples(floor.parent / "out", kind="caption") if "wrong" in s.meta.extra]
    assert {s.meta.extra["wrong_attribute"] for s in captions} <= {"gripper.verdict"}
    texts = {s.answer for s in read_samples(floor.parent / "out", kind="caption")}
    assert "A kit of 2 red can; 1 blue box; the gripper held." in texts


def test_the_tasks_take_turns_in_what_is_shown(floor: Path) -> None:
    names = [asked.task.name for asked, _, _ in run(floor).examples(10)]
    assert names == ["missing", "matches", "weight", "gripper", "each"] * 2


def test_every_mistake_is_told_at_once_with_the_nearest_name(floor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FLOOR.replace("column: weight", "column: wieght").replace("column: missing}", "column: scan.cod}")
    text = text.replace("{an order_line.text}", "{gripper.verdikt}").replace('"{weight} g."', '"{weigth} g."')
    text = text.replace("wrong: [gripper.verdict]", "wrong: [bom]").replace("each: bom", "each: bmo")
    with pytest.raises(LinesideError) as error:
        run(floor, text)
    message = str(error.value)
    assert error.value.exit_status == 2
    assert message.count("\n") == 5 and "5 things are wrong" in message
    for part in (
        "task kitting/weight, frame 0.png: the records have no column 'wieght'; did you mean 'weight'?",
        "task kitting/missing, frame 0.png: the records have no column 'scan.cod'; did you mean 'scan.code'?",
        "no column 'gripper.verdikt'; did you mean 'gripper.verdict'?",
        "captions of family kitting: the records have no column 'weigth'; did you mean 'weight'?",
        "no column 'bmo'; did you mean 'bom'?",
    ):
        assert part in message
    assert "The order says blue box, small." in capsys.readouterr().out  # the sound task is shown all the same


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("column: weight", "column: scan.code", r"holds '4006381333931': .* number; use \{column: scan.code"),
        ("kind: set, column: missing", "kind: set, column: bom", "expected a list of strings"),
        ("column: scan.readable", "column: order_line", "is a string"),
        ("name: each, each: bom", "name: each, each: missing", "must hold a list of records"),
        ("wrong: [gripper.verdict]", "wrong: [weigh]", "no template has the column 'weigh'"),
        ("trace: \"the scan is {scan.code}", 'trace: "the scan is {scn.code}', "no column 'scn.code'"),
        ("{scan.code}; it", "{weight.code}; it", "weight holds 400, no record"),
        ("name: force", "name: force, when: gripper", "when: column 'gripper' holds .* expected true or false"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_with_the_value(floor: Path, old: str, new: str, message: str) -> None:
    assert old in FLOOR
    with pytest.raises(LinesideError, match=message):
        run(floor, FLOOR.replace("{an ", "{a ").replace(old, new, 1))


def test_numbers_of_a_csv_file_are_text_until_the_mapping_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "frames.csv").write_text("image,count\na.png,3\n")
    Pil.new("RGB", (9, 9)).save(tmp_path / "f" / "a.png")
    text = "table: {file: frames.csv, family: p, columns: {count: %s}}\n" + (
        "tasks: [{family: p, name: n, phrasings: ['How many?'], answer: {kind: number, column: count}}]"
    )
    (tmp_path / "t.yaml").write_text(text % "count")
    with pytest.raises(
        LinesideError, match=r"holds '3': .* use \{column: count, type: number\} in the table's columns"
    ):
        check([tmp_path / "t.yaml"], tmp_path / "f")
    (tmp_path / "t.yaml").write_text(text % "{column: count, type: number}")
    assert check([tmp_path / "t.yaml"], tmp_path / "f").asked[0].answers == {"3": 1}


def test_warnings_do_not_fail(floor: Path) -> None:
    (floor / "3.png").unlink()
    text = FLOOR.replace("{an ", "{a ").replace('trace: "the scan is {scan.code}; it is near"', 'trace: "yes"')
    text = text.replace("max_share: 0.6", "max_share: 0.1").replace(
        "family: kitting, name: weight", "family: kiting, name: w"
    )
    with pytest.raises(LinesideError, match="no frame is of the family 'kiting'; there are frames of kitting"):
        run(floor, text)
    warnings = "\n".join(run(floor, text.replace("kiting", "kitting")).warnings)
    for part in (
        "1 of 20 inputs are rejected: ",
        "task kitting/force: no question is asked: 19 truth unknown",
        "task kitting/matches: every answer is 'yes'; there is nothing to learn",
        "19 of 19 traces are not valid with the phrasing 'The order says {order_line.text}.",
        "copies the answer, such as: The order says blue box, small. Is the label readable? [yes] yes",
    ):
        assert part in warnings


def shelf(folder: Path, rows: list[str], tasks: str, table: str = "", captions: str = "", **options: Any) -> Check:
    """Check a folder of pictures with a CSV file: `rows` with its header, of which the first column is `image`."""
    (folder / "f").mkdir(exist_ok=True)
    for number, row in enumerate(rows[1:]):
        path = folder / "f" / row.split(",")[0]
        Pil.new("RGB", (9, 9), (number % 256, number // 256, 0)).save(path)
    (folder / "f" / "frames.csv").write_text("\n".join(rows) + "\n")
    text = f"table: {{file: frames.csv, family: p{table}}}\ntasks:\n{indent(dedent(tasks), '  ')}\n"
    (folder / "t.yaml").write_text(text + captions)
    return check([folder / "t.yaml"], folder / "f", **options)


STATE = """
- {family: p, name: state, phrasings: ["Which state?"], answer: {kind: choice, column: state, options: [ok, bent]}}
"""


def test_the_frames_looked_at_are_drawn_from_all_of_a_sorted_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["image,state"] + [f"{n}.png,{'ok' if n < 150 else 'bent'}" for n in range(300)]
    found = shelf(tmp_path, rows, STATE, limit=60)
    assert (found.read, found.total) == (60, 300)
    assert 20 < found.asked[0].answers["ok"] < 40  # the first 60 rows are all ok
    assert "60 of 300 frames checked (drawn by hash)" in capsys.readouterr().out
    again = check([tmp_path / "t.yaml"], tmp_path / "f", limit=60)
    assert again.asked[0].answers == found.asked[0].answers
    assert check([tmp_path / "t.yaml"], tmp_path / "f", limit=300).read == 300


def test_a_value_that_nothing_maps_is_named_counted_and_told_the_nearest(tmp_path: Path) -> None:
    """Counted over every row, however few are looked at."""
    states = ["good"] * 90 + ["OK"] * 7 + ["bnet"] * 3
    rows = ["image,made,state"] + [f"{n}.png,{'x' if n % 2 else 'y'},{state}" for n, state in enumerate(states)]
    made = "made: {column: made, values: {X: a}}, kept: {column: made, otherwise: null, values: {X: a}}"
    columns = f", columns: {{state: state, {made}}}"
    found = shelf(tmp_path, rows, STATE, columns, limit=5)
    told = "\n".join(found.warnings)
    assert "100 truths of column 'state' are not among the options and are not asked: " in told
    assert "'good' 90, 'OK' 7 (did you mean 'ok'?), 'bnet' 3 (did you mean 'bent'?)" in told
    assert "column 'made': 100 cells hold a value without an entry in `values`" in told
    assert "'y' 50, 'x' 50 (did you mean 'X'?)" in told
    assert "'kept'" not in told  # who says otherwise has thought of the rest


def test_a_join_that_gives_few_frames_a_row_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "bins.csv").write_text("bin,state\n" + "".join(f"b{n},ok\n" for n in range(7)))
    joined = ", join: [{file: bins.csv, on: bin, name: bin}], columns: {state: bin.state}"
    rows = [f"{n}.png,b{n}" for n in range(20)]
    found = shelf(tmp_path, ["image,bin", *rows], STATE, joined)
    assert "join bins.csv: only 7 of 20 frames have a row" in found.warnings


@pytest.mark.parametrize(
    ("phrasing", "message"),
    [
        ("It is {state}. Which state?", "holds the answer's own column 'state'"),
        ("Code {code}: which state?", "holds 'code', which is made from the same column of the table"),
        ("Seen as {copy}. Which state?", r"holds 'copy', which was the answer in (\d+) of \1 questions"),
    ],
)
def test_a_phrasing_that_gives_the_answer_away(tmp_path: Path, phrasing: str, message: str) -> None:
    rows = ["image,state,copy,other"] + [f"{n}.png,{s},{s.upper()},x" for n, s in enumerate(["ok", "bent"] * 20)]
    columns = ", columns: {state: state, copy: copy, other: other, code: {column: state, values: {ok: 1, bent: 2}}}"
    tasks = STATE.replace('"Which state?"', f'"{phrasing}", "And {{other}}?"')
    found = [w for w in shelf(tmp_path, rows, tasks, columns).warnings if "phrasing" in w]
    assert len(found) == 1 and re.search(message, found[0])


def test_a_phrasing_with_a_column_that_decides_the_answer(tmp_path: Path) -> None:
    """The number of a bin where each bin has one state; not where a bin has both, nor where every code is another."""
    rows = ["image,state,bin,shelf,code"]
    rows += [f"{n}.png,{('ok', 'bent')[n % 2]},B{n % 4},S{n % 3},C{n}" for n in range(48)]
    columns = ", columns: {state: state, bin: bin, shelf: shelf, code: code}"
    tasks = STATE.replace('"Which state?"', '"In {bin}?", "On {shelf}?", "Of {code}?"')
    (told,) = [w for w in shelf(tmp_path, rows, tasks, columns).warnings if "phrasing" in w]
    assert "'In {bin}?' holds 'bin', and each of its values had one answer in all" in told


def test_two_spellings_of_an_answer_are_one_and_an_option_that_never_comes_is_named(tmp_path: Path) -> None:
    rows = ["image,state"] + [f"{n}.png,{('ok', 'OK', 'Ok.')[n % 3] if n else 'bent'}" for n in range(40)]
    exact = STATE.replace("kind: choice, column: state, options: [ok, bent]", "kind: exact, column: state")
    (tmp_path / "exact").mkdir()
    told = shelf(tmp_path / "exact", rows, exact).warnings
    assert any("98% of the answers are 'OK': a model that always" in warning for warning in told)
    tasks = STATE.replace("[ok, bent]", "[ok, bent, torn]")
    told = shelf(tmp_path, [rows[0], *(f"{n}.png,{('ok', 'bent')[n % 2]}" for n in range(40))], tasks).warnings
    assert any("no answer among the 40 questions is 'torn', of the options" in warning for warning in told)


def test_a_list_to_choose_from_does_not_give_the_answer_away(floor: Path) -> None:
    """What is missing of a kit stands in its bill of materials."""
    assert not [warning for warning in run(floor).warnings if "phrasing" in warning]


@pytest.mark.parametrize(
    ("splits", "messages"),
    [
        ({"train": 90, "val": 10}, ["no frame is of heldout: there is nothing to evaluate a model on"]),
        (
            {"train": 75, "test": 25},
            ["no frame is of dev", "heldout has 25 frames, which is few .* about 20 points in each direction"],
        ),
        ({"val": 20, "test": 100}, ["no frame is of train: there is nothing to learn from"]),
        ({"train": 10, "val": 10, "test": 100}, []),
    ],
)
def test_whether_there_is_something_to_judge_by(tmp_path: Path, splits: dict[str, int], messages: list[str]) -> None:
    parts = [name for name, count in splits.items() for _ in range(count)]
    rows = ["image,part,state"] + [f"{n}.png,{part},{('ok', 'bent')[n % 2]}" for n, part in enumerate(parts)]
    table = ", split: {column: part, values: {train: train, val: dev, test: heldout}}"
    captions = "captions: [{family: p, templates: ['It is {state}.']}]"
    found = shelf(tmp_path, rows, STATE, table, captions)
    assert len(found.warnings) == len(messages), found.warnings
    for message, warning in zip(messages, sorted(found.warnings, key=lambda w: "heldout has" in w)):
        assert re.search(message, warning)


@pytest.mark.parametrize(("bent", "warned"), [(4, True), (5, False)])
def test_an_answer_that_is_nearly_always_the_same(tmp_path: Path, bent: int, warned: bool) -> None:
    """90 of 100 is too much. With a share to hold, the answers are balanced."""
    rows = ["image,state"] + [f"{n}.png,{'bent' if n < bent else 'ok'}" for n in range(40)]
    told = "\n".join(shelf(tmp_path, rows, STATE).warnings)
    assert ("90% of the answers are 'ok': a model that always answers this is right as often" in told) == warned
    (tmp_path / "t.yaml").write_text(
        (tmp_path / "t.yaml").read_text().replace("name: state,", "name: state, max_share: 0.5,")
    )
    assert "always answers this" not in "\n".join(check([tmp_path / "t.yaml"], tmp_path / "f").warnings)


def test_a_trace_that_restates_the_question_is_told_with_its_phrasing(tmp_path: Path) -> None:
    rows = ["image,state,place"] + [f"{n}.png,{('ok', 'bent')[n % 2]},left bin" for n in range(40)]
    tasks = STATE.replace('"Which state?"', '"Is the part in the {place} bent or ok?", "Which state?"')
    tasks = tasks.replace("}}", '}, trace: "the part in the {place} is {state}"}')
    (warning,) = [w for w in shelf(tmp_path, rows, tasks).warnings if "traces are not valid" in w]
    assert "with the phrasing 'Is the part in the {place} bent or ok?': restates the question" in warning
    assert "such as: Is the part in the left bin bent or ok? [the part in the left bin is " in warning


def test_two_tasks_that_ask_the_same(tmp_path: Path) -> None:
    rows = ["image,state,other"] + [f"{n}.png,{('ok', 'bent')[n % 2]},{('ok', 'bent')[n % 3 % 2]}" for n in range(40)]
    again = STATE.replace("name: state", "name: again").replace("Which state?", "Ok or bent?")
    apart = STATE.replace("name: state", "name: apart").replace("column: state", "column: other")
    told = "\n".join(w for w in shelf(tmp_path, rows, STATE + again + apart).warnings if "tasks" in w)
    assert "tasks p/state and p/again ask the same: their answers agree in all of 40 frames" in told
    assert "tasks p/state and p/apart both ask 'Which state?', and their answers differ in 19 of 40 frames" in told
    assert "p/again and p/apart" not in told


def test_why_every_row_is_refused_is_the_message(tmp_path: Path) -> None:
    rows = ["image,state"] + [f"{n}.png,ok" for n in range(12)]
    with pytest.raises(LinesideError) as error:
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "frames.csv").write_text("\n".join(rows))
        text = f"table: {{file: frames.csv, family: p}}\ntasks:\n{indent(STATE, '  ')}"
        (tmp_path / "t.yaml").write_text(text)
        check([tmp_path / "t.yaml"], tmp_path / "f")
    assert "all 12 checked inputs are rejected" in str(error.value)
    assert "0.png" in str(error.value) and "No such file" in str(error.value)
    assert "no frame is of the family" not in str(error.value)


def test_fewer_caption_templates_than_questions_a_frame(tmp_path: Path) -> None:
    rows = ["image,state"] + [f"{n}.png,{('ok', 'bent')[n % 2]}" for n in range(20)]
    two = STATE + STATE.replace("name: state", "name: again")
    captions = "captions: [{family: p, templates: ['It is {state}.']}]"
    told = "\n".join(shelf(tmp_path, rows, two, "", captions).warnings)
    assert (
        "family p: 1 caption templates, but up to 2 questions a frame" in told and "Write 2 templates or more" in told
    )


def test_whether_a_task_thinks_is_said_or_follows_from_its_trace(floor: Path) -> None:
    text = (floor.parent / "floor.yaml").read_text()
    with pytest.raises(LinesideError, match=r"task matches: thinking is false, but there is a trace to learn"):
        run(floor, text.replace("name: matches", "name: matches, thinking: false"))
    with pytest.raises(LinesideError, match="task kitting/weight: thinking is true, but there is no `trace` template"):
        run(floor, text.replace("name: weight", "name: weight, thinking: true"))
    with pytest.raises(LinesideError, match="kitting/weight: thinking is true, but there is no `trace` template"):
        label(floor, floor.parent / "out", tasks=[floor.parent / "floor.yaml"])
    run(floor, text.replace("name: matches", "name: matches, thinking: true"))
    run(floor, text.replace("name: weight", "name: weight, thinking: false"))


# What each section needs besides the key of an example.
BASES: dict[str, dict[str, Any]] = {
    "TaskFile": {
        "tasks": [{"family": "f", "name": "n", "phrasings": ["?"], "answer": {"kind": "exact", "column": "c"}}]
    },
    "Task": {"family": "f", "name": "n", "phrasings": ["?"], "answer": {"kind": "exact", "column": "c"}},
    "Captions": {"family": "f", "templates": ["{product}, sold {sold}."]},
    "Table": {"family": "f"},
}


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.place)
def test_every_key_is_described_and_its_example_loads(key: Key) -> None:
    assert len(key.text) > 10 and key.text.endswith("."), "a key needs a docstring of whole sentences"
    given = yaml.load(key.example, Loader)
    assert key.name in given, f"the example {key.example!r} does not show the key"
    built = build(key.model, {**BASES.get(key.model.__name__, {}), **given}, key.place)
    assert key.name in built.model_fields_set


def test_every_section_and_key_of_a_task_file_is_listed() -> None:
    def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
        found, todo = {model}, [model]
        while todo:
            for field in todo.pop().model_fields.values():
                todo += (new := records_in(field.annotation) - found)
                found |= new
        return found

    def records_in(annotation: Any) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return {annotation}
        return {record for part in get_args(annotation) for record in records_in(part)}

    assert sections(TaskFile) == set(SECTIONS)
    assert {(key.model, key.name) for key in keys()} == {(s, n) for s in SECTIONS for n in s.model_fields}


def test_the_keys_are_printed() -> None:
    def told(*words: str) -> str:
        done = CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, ["task", "keys", *words])
        assert done.exit_code == 0
        return " ".join(done.stdout.split())

    for name in ("when", "each", "distractors", "max_share", "resolution", "tolerance", "join", "thinking"):
        assert f" {name} " in told()
    tolerance = told("tolerance")
    assert "number; default 1" in tolerance and "It makes no answer exact and changes no accuracy" in tolerance
    assert "max_share" not in tolerance
    assert " salt text" in told("split") and " tolerance" not in told("split")
    entries = {entry["name"] for entry in json.loads(told("join", "--json"))}
    assert {"join", "file", "on", "time", "within", "start", "end", "several", "offset"} <= entries
    done = CliRunner().invoke(cli.app, ["task", "keys", "tolerence"])
    assert done.exit_code == 2 and "did you mean 'tolerance'?" in done.stderr


def test_the_command(floor: Path) -> None:
    words = ["task", "check", str(floor.parent / "floor.yaml"), str(floor)]
    done = CliRunner().invoke(cli.app, [*words, "--json", "--show", "3"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["ok"], len(told["examples"]), told["read"]) == (True, 3, 20)
    assert told["tasks"]["kitting/gripper"]["answers"] == {"held": 13, "slipped": 7}
    shown = CliRunner().invoke(cli.app, words).stdout
    assert "held 65%, slipped 35%" in shown and "What does the kit weigh?" in shown
    bad = CliRunner().invoke(cli.app, words[:3])
    assert bad.exit_code == 2 and "lineside task check: expected the task file first, then the frames" in bad.stderr


def test_the_help_of_the_group_loads_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from lineside import cli
for words in (["task", "--help"], ["task", "check", "--help"]):
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0 and "Usage: " in result.output, (words, result.output)
print(sorted({'torch', 'transformers', 'mujoco', 'matplotlib', 'pyarrow', 'numpy'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_split_of_the_data_that_is_not_used_is_pointed_out(tmp_path: Path) -> None:
    rows = ["image,part,state"] + [
        f"{n}.png,{('Train', 'val', 'test')[n % 3]},{('ok', 'bent')[n % 2]}" for n in range(30)
    ]
    told = "\n".join(shelf(tmp_path, rows, STATE).warnings)
    assert "split: {column: part, values: {Train: train, test: heldout, val: dev}}" in told
    text = (tmp_path / "t.yaml").read_text()
    split = ", split: {column: part, values: {Train: train, test: heldout, val: dev}}"
    (tmp_path / "t.yaml").write_text(text.replace("family: p}", f"family: p{split}}}", 1))
    assert "own split" not in "\n".join(check([tmp_path / "t.yaml"], tmp_path / "f").warnings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grocerry.yaml", "no such task file; the package has grocery.yaml"),
        ("f", "a folder; expected a task file"),
    ],
)
def test_a_task_file_that_is_not_there(floor: Path, name: str, message: str) -> None:
    (floor / "f").mkdir()
    word = str(floor / name) if name == "f" else name
    done = CliRunner().invoke(cli.app, ["task", "check", word, str(floor)])
    assert done.exit_code == 2 and message in done.stderr
