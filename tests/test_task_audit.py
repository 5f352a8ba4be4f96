"""task audit: wrong records planted in a table are found and handed to a person; bad input is told."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from typer.testing import CliRunner

from lineside import cli
from lineside.data.review_list import read_list
from lineside.evaluate import evaluate_checkpoint
from lineside.judgement.crossfit import Opinion
from lineside.judgement.suspects import Found, Suspect
from lineside.label import label
from lineside.model.checkpoint import save
from lineside.task_audit import _judges, audit
from tests.conftest import make_tiny_vlm

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}
TASKS = """
table: {file: frames.csv, family: bin, image: photo, cell: cell}
captions: [{family: bin, templates: ["A {colour} part.", "It is {colour}."]}]
tasks:
  - {family: bin, name: colour, phrasings: ["Which colour?"], answer: {kind: exact, column: colour}}
"""
RUN = CliRunner()


def frame(folder: Path, number: int, colour: str) -> str:
    rng = np.random.default_rng(number)
    pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Pil.fromarray(pixels).save(out, "PNG")
    (folder / f"{number}.png").write_bytes(out.getvalue())
    return f"{number}.png"


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """150 frames of three colours with their records, a tenth of them wrong, all from cell 2; and the wrong ones."""
    home = tmp_path_factory.mktemp("floor")
    folder, draw, wrong = home / "frames", random.Random(0), set()
    folder.mkdir()
    rows = []
    for number in range(150):
        colour = list(COLOURS)[number % 3]
        name, told = frame(folder, number, colour), colour
        if number % 10 == 4:
            told = draw.choice([other for other in COLOURS if other != colour])
            wrong.add(name)
        cell = "2" if number % 5 == 4 else "1"
        rows.append({"photo": name, "colour": told, "cell": cell, "operator": "bea" if cell == "2" else "al"})
    with open(folder / "frames.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    (home / "bin.yaml").write_text(TASKS)
    save(make_tiny_vlm(), home / "model")
    return home, wrong


def test_planted_wrong_records_become_a_list_a_page_and_an_account(
    floor: tuple[Path, set[str]], tmp_path: Path
) -> None:
    home, wrong = floor
    out = tmp_path / "audit"
    command = ["task", "audit", str(home / "bin.yaml"), str(home / "frames"), "--out", str(out), "--by", "operator"]
    done = RUN.invoke(cli.app, [*command, "--checkpoint", str(home / "model")])
    assert done.exit_code == 0, done.output
    listed = list(read_list(out / "review.jsonl"))
    found = {question.frame for question in listed}
    assert len(found & wrong) >= 0.8 * len(wrong) and len(found & wrong) >= 0.8 * len(found)
    assert all((out / question.picture).is_file() for question in listed)
    assert all(question.said[0].by == "record" and question.said[1].answer in COLOURS for question in listed)
    told = json.loads((out / "suspects.json").read_text())
    assert told["records"] == 150 and told["flagged"] == len(listed)
    (worst, best) = told["by_source"]["operator"]
    assert (worst["value"], worst["n"], best["value"]) == ("bea", 30, "al")
    assert worst["interval"][0] <= len(wrong) <= worst["interval"][1]
    assert "bea" in done.output and "colour" in done.output
    assert re.search(r"right in about (9\d|100)% of bin/colour\)\.$", told["judges"])
    assert "Judges: " in done.output
    page = (out / "suspects.html").read_text()
    assert page.count("<img") == len(found) and "<script" not in page and 'src="data:image' in page


@pytest.mark.parametrize(("sure", "weak"), [(0.95, False), (0.7, True)])
def test_weak_heads_are_named(sure: float, weak: bool) -> None:
    """They take their own errors for wrong records, and the estimate cannot show it."""
    record: Any = SimpleNamespace(task="bin/colour")
    suspects = tuple(Suspect(record, 0.1, Opinion("red", sure, True, 0.0), None) for _ in range(3))
    told = _judges("", False, Found(suspects, {}, Counter()))
    assert f"right in about {sure:.0%} of bin/colour" in told
    assert ("Weak heads (bin/colour) take their own errors for wrong records" in told) == weak


def test_the_same_command_again_writes_the_same_list(floor: tuple[Path, set[str]], tmp_path: Path) -> None:
    home, _ = floor
    for name in ("first", "again"):
        audit([home / "bin.yaml"], home / "frames", tmp_path / name, checkpoint=home / "model", as_json=True)
    for name in ("review.jsonl", "suspects.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_samples_are_audited_without_a_task_file(floor: tuple[Path, set[str]], tmp_path: Path) -> None:
    home, wrong = floor
    label(home / "frames", tmp_path / "samples", tasks=[home / "bin.yaml"])
    told = audit([], tmp_path / "samples", tmp_path / "out", checkpoint=home / "model", as_json=True)
    found = {question.frame for question in read_list(tmp_path / "out" / "review.jsonl")}
    assert told["records"] > 140 and len(found & wrong) >= 0.7 * len(wrong)


def test_a_models_answers_on_held_out_splits_are_a_judge_and_on_train_are_refused(
    floor: tuple[Path, set[str]], tmp_path: Path
) -> None:
    home, _ = floor
    label(home / "frames", tmp_path / "samples", tasks=[home / "bin.yaml"])
    given: dict[str, Any] = {"with_baselines": False, "with_calibration": False, "max_new_tokens": 4}
    evaluate_checkpoint(home / "model", tmp_path / "samples", out=tmp_path / "judged", **given)
    (path,) = (tmp_path / "judged").glob("*-heldout-think.json")
    told = audit(
        [home / "bin.yaml"], home / "frames", tmp_path / "out", checkpoint=home / "model", evaluations=[path], cut=0.05
    )
    assert "the model (model think) on splits that it was not trained on" in told["judges"]
    trained = path.with_name("model-train-think.json")
    trained.write_text(path.read_text().replace('"split": "heldout"', '"split": "train"'))
    task = home / "bin.yaml"
    assert "was trained on" in bad(task, home / "frames", "--out", tmp_path / "o", "--evaluation", trained)
    twice = bad(task, home / "frames", "--out", tmp_path / "o", "--evaluation", path, "--evaluation", path)
    assert "answered by two evaluations" in twice


def bad(*words: Any) -> str:
    done = RUN.invoke(cli.app, ["task", "audit", *map(str, words)])
    assert done.exit_code in (2, 3), done.output
    assert "Traceback" not in done.output
    return f"{done.exit_code}: {done.output}"


def test_bad_input_is_told(floor: tuple[Path, set[str]], tmp_path: Path) -> None:
    home, _ = floor
    task, frames, model = home / "bin.yaml", home / "frames", ("--checkpoint", home / "model")
    out = ("--out", tmp_path / "out")
    assert "name the task file first" in bad(frames, *out)
    assert "no such folder" in bad(tmp_path / "nowhere", *out)
    assert "operater" in (text := bad(task, frames, *out, *model, "--by", "operater")) and "operator" in text
    assert "no checkpoint at" in bad(task, frames, *out, "--checkpoint", tmp_path)
    assert "no such file" in bad(task, frames, *out, "--evaluation", tmp_path / "none.json")
    empty = tmp_path / "empty.yaml"
    empty.write_text(TASKS.replace("family: bin, name", "family: other, name"))
    assert "no record answers a question" in bad(empty, frames, *out, *model)
    few = tmp_path / "few"
    few.mkdir()
    lines = (frames / "frames.csv").read_text().splitlines()
    (few / "frames.csv").write_text("\n".join(lines[:31]) + "\n")
    for number in range(30):
        (few / f"{number}.png").write_bytes((frames / f"{number}.png").read_bytes())
    text = bad(task, few, *out, *model)
    assert text.startswith("3:") and "60 are needed" in text
    assert not (tmp_path / "out" / "review.jsonl").exists()
