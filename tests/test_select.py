"""select: the frames to label next, with reasons; labelled frames and suites are not chosen; bad budgets are told."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from typer.testing import CliRunner

from lineside import cli
from lineside.data.review_list import read_list
from lineside.judgement.calibration import Curve, write_calibration
from lineside.label import label
from lineside.model.checkpoint import save
from lineside.select import select
from tests.conftest import make_tiny_vlm

COLOURS = [(200, 40, 40), (40, 180, 60), (40, 60, 200)]
TASKS = """
table: {file: frames.csv, family: bin, image: photo, cell: cell, split: {column: part, values: {a: train, b: heldout}}}
captions: [{family: bin, templates: ["A {colour} part.", "It is {colour}."]}]
tasks:
  - {family: bin, name: colour, phrasings: ["Which?"], answer: {kind: choice, column: colour, options: [r, g, b]}}
  - {family: bin, name: full, phrasings: ["Is it full?"], answer: {kind: choice, column: full, options: ["yes", "no"]}}
"""
RUN = CliRunner()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames: 0 to 5 are labelled, 6 to 11 lack one answer, 12 to 41 both; the last six are held out."""
    home = tmp_path_factory.mktemp("floor")
    frames = home / "frames"
    frames.mkdir()
    rows: list[dict[str, str]] = []
    for number in range(48):
        rng = np.random.default_rng(number)
        pixels = np.clip(np.array(COLOURS[number % 3]) + rng.normal(0, 9, (32, 32, 3)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Pil.fromarray(pixels).save(out, "PNG")
        (frames / f"{number}.png").write_bytes(out.getvalue())
        colour, full = "rgb"[number % 3] if number < 12 else "", "yes" if number < 6 else ""
        cell, part = "rare" if number in (12, 13, 14) else "usual", "b" if number >= 42 else "a"
        rows.append({"photo": f"{number}.png", "colour": colour, "full": full, "cell": cell, "part": part})
    with open(frames / "frames.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    (home / "bin.yaml").write_text(TASKS)
    save(make_tiny_vlm(), home / "model")
    return home


def chosen(out: Path) -> list[dict[str, str]]:
    with open(out / "select.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_unlabelled_frames_are_chosen_with_reasons_and_open_questions(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "next"
    command = ["select", str(home / "frames"), str(out), "--budget", "8", "--tasks", str(home / "bin.yaml")]
    done = RUN.invoke(cli.app, [*command, "--balance", "cell", "--checkpoint", str(home / "model")])
    assert done.exit_code == 0, done.output
    rows = chosen(out)
    numbers = [int(row["file"].removesuffix(".png")) for row in rows]
    assert len(set(numbers)) == 8 and all(6 <= number < 42 for number in numbers)
    assert sorted(numbers[:3]) == [12, 13, 14]  # six frames of the usual cell are labelled, none of the rare one
    assert rows[0]["cell"] == "rare" and "cell rare had 0" in rows[0]["why"] and "similarity" in rows[0]["why"]
    asked = list(read_list(out / "review.jsonl"))
    assert {question.frame for question in asked} == {row["frame"] for row in rows}
    assert all((out / question.picture).is_file() and question.why for question in asked)
    halves = [question.task for question in asked if 6 <= int(question.frame.removesuffix(".png")) < 12]
    assert set(halves) <= {"full"}  # their colour is known
    told = json.loads((out / "select.json").read_text())
    assert (told["chosen"], told["unlabelled"], told["labelled"]) == (8, 36, 6)
    assert told["left_out"] == {"of a suite: suites are drawn at random": 6}
    assert "8 of 36 unlabelled frames" in done.output


def test_without_a_task_file_samples_say_what_is_labelled(home: Path, tmp_path: Path) -> None:
    label(home / "frames", tmp_path / "samples", tasks=[home / "bin.yaml"])
    pictures = tmp_path / "pictures"  # a folder of pictures alone
    shutil.copytree(home / "frames", pictures, ignore=shutil.ignore_patterns("*.csv"))
    told = select(pictures, tmp_path / "out", budget=5, labelled=[tmp_path / "samples"], checkpoint=home / "model")
    assert told["labelled"] == 12 and told["left_out"]["labelled already, or a copy"] == 12
    numbers = [int(row["file"].removesuffix(".png")) for row in chosen(tmp_path / "out")]
    assert len(numbers) == 5 and min(numbers) >= 12
    assert not (tmp_path / "out" / "review.jsonl").exists()


def test_money_pays_for_answers_and_the_seed_decides(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"tasks": [home / "bin.yaml"], "checkpoint": home / "model"}
    told = select(home / "frames", tmp_path / "a", usd=1.0, usd_per_answer=0.1, balance=["camera"], **given)
    assert "--balance camera: all unlabelled frames have the same value" in capsys.readouterr().err
    spent = sum(1 for _ in read_list(tmp_path / "a" / "review.jsonl")) * 0.1
    assert told["spent"] == pytest.approx(spent) and 0.8 < spent <= 1.0
    select(home / "frames", tmp_path / "b", usd=1.0, usd_per_answer=0.1, balance=["camera"], **given)
    assert (tmp_path / "a" / "select.csv").read_bytes() == (tmp_path / "b" / "select.csv").read_bytes()


def test_a_calibrated_model_answers_first_and_its_doubt_is_told(home: Path, tmp_path: Path) -> None:
    curve = Curve(n=90, scenes=90, slope=0.0, offset=1.0, normal=None, stakes=None, binary=False, thinking=True)
    model = tmp_path / "model"
    save(make_tiny_vlm(), model)
    write_calibration(model, "float32", "think", {"bin/full": curve})
    told = select(home / "frames", tmp_path / "out", budget=2, tasks=[home / "bin.yaml"], checkpoint=model)
    rows = chosen(tmp_path / "out")
    assert told["not_calibrated"] == ["bin/colour"]
    doubts = {row["doubt"] for row in rows}
    assert doubts <= {"0.2689", "1.0000"} and doubts  # 1 - sigmoid(1); no answer at all is the largest doubt


def bad(*words: Any) -> str:
    done = RUN.invoke(cli.app, ["select", *map(str, words)])
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    return done.output


def test_bad_input_is_told(home: Path, tmp_path: Path) -> None:
    frames, out, task = home / "frames", tmp_path / "out", ("--tasks", home / "bin.yaml")
    model = ("--checkpoint", home / "model")
    assert "--budget 0: expected at least 1" in bad(frames, out, "--budget", 0)
    assert "give --budget N" in bad(frames, out)
    assert "give --budget N" in bad(frames, out, "--budget", 3, "--usd", 1)
    assert "--usd-per-answer" in bad(frames, out, "--usd", 1)
    assert "at least the price of one answer" in bad(frames, out, "--usd", 1, "--usd-per-answer", 2)
    assert "no samples here" in bad(frames, out, "--budget", 1, *task, *model, "--labelled", tmp_path)
    assert "only 36 frames are unlabelled" in bad(frames, out, "--budget", 37, *task, *model)
    assert "light" in (text := bad(frames, out, "--budget", 3, *task, *model, "--balance", "light")) and "cell" in text
    assert not out.exists()


def test_no_unlabelled_frame_is_told(home: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    lines = (home / "frames" / "frames.csv").read_text().splitlines()
    (full / "frames.csv").write_text("\n".join(lines[:7]) + "\n")
    for number in range(6):
        (full / f"{number}.png").write_bytes((home / "frames" / f"{number}.png").read_bytes())
    text = bad(full, tmp_path / "out", "--budget", 1, "--tasks", home / "bin.yaml", "--checkpoint", home / "model")
    assert "no unlabelled frame: 6 answered by their records" in text
