"""task check: what is wrong with a task file is told before anything is labelled; any column of a record can serve."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from PIL import Image as Pil
from typer.testing import CliRunner

from lineside import cli
from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.label import label
from lineside.recipe import Label
from lineside.task import Check, check

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
    asked = {name.split("/")[1]: (c.question, c.answer) for name, c in told.items()}
    assert asked == {
        "missing": ("The kit needs 2 red can; 1 blue box. What is missing?", "blue box"),
        "matches": ("The order says blue box, small. Is the label readable?", "yes"),
        "weight": ("What does the kit weigh?", "400 g"),
        "gripper": ("What does a blue box, small do in the gripper?", "held"),
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
        ("column: weight", "column: scan.code", r"holds '4006381333931': .* number; say \{column: scan.code"),
        ("kind: set, column: missing", "kind: set, column: bom", "expected a list of strings"),
        ("column: scan.readable", "column: order_line", "is a string"),
        ("name: each, each: bom", "name: each, each: missing", "must hold a list of records"),
        ("wrong: [gripper.verdict]", "wrong: [weigh]", "no template has the column 'weigh'"),
        ("trace: \"the scan is {scan.code}", 'trace: "the scan is {scn.code}', "no column 'scn.code'"),
        ("{scan.code}; it", "{weight.code}; it", "weight holds 400.0, no record"),
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
        LinesideError, match=r"holds '3': .* say \{column: count, type: number\} in the table's columns"
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
        "1 of 20 inputs are refused: ",
        "task kitting/force asked nothing: 19 truth unknown",
        "task kitting/matches: every answer is 'yes'; nothing can be learnt",
        "19 of 19 traces are not valid",
    ):
        assert part in warnings


def test_only_the_first_inputs_are_read(floor: Path) -> None:
    assert run(floor, limit=7).read == 7


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
    assert bad.exit_code == 2 and "lineside task check: expected a task file and the frames" in bad.stderr


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
