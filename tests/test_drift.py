"""`lineside drift`: folders of frames, an alarm with its group, exit status, files, bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil
from typer.testing import CliRunner

from lineside import cli
from lineside.data.sources import open_frames
from lineside.data.store import write_frames
from lineside.types import Frame, Image, Meta


def frames(folder: Path, seed: int, *, count: int = 12, darker: str = "") -> Path:
    """Grey noise of two cells; the pictures of the cell `darker` are dark."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        cell = f"c{number % 2}"
        level = 60 if cell == darker else 160
        pixels = np.clip(rng.normal(level, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Pil.fromarray(pixels).save(out, "PNG")
        meta = Meta(scene=f"{seed}-{number}", cell=cell, camera="k1")
        made.append(Frame(f"{seed}-{number}", Image(out.getvalue()), "picking", {}, meta, "train"))
    write_frames(folder, made)
    return folder


def run(*words: object, status: int) -> tuple[Any, str]:
    done = CliRunner().invoke(cli.app, ["drift", *map(str, words), "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_cell_that_has_changed_is_named(tmp_path: Path) -> None:
    before, after = frames(tmp_path / "before", 1), frames(tmp_path / "after", 2, darker="c1")
    found, said = run(before, after, "--out", tmp_path / "out", status=1)
    named = {test["group"]: test["alarm"] for test in found["tests"]}
    assert named["cell c1"] and not named["cell c0"] and found["changed"]
    assert "the frames have changed: all frames, cell c1" in said
    rows = list(csv.DictReader((tmp_path / "out" / "drift.csv").open()))
    assert {row["changed"] for row in rows[:6]} == {"cell c1"} and rows[0]["rank"] == "1"
    assert json.loads((tmp_path / "out" / "drift.json").read_text()) == found


def test_frames_of_the_same_floor_give_no_alarm(tmp_path: Path) -> None:
    found, _ = run(frames(tmp_path / "before", 1), frames(tmp_path / "after", 2), status=0)
    assert not found["changed"] and {test["group"] for test in found["tests"]} == {"all frames", "cell c0", "cell c1"}


def test_frames_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    before, after = frames(tmp_path / "before", 1), frames(tmp_path / "after", 2)
    spoilt = Frame("torn", Image(b"\x89PNG torn"), "picking", {}, Meta(scene="torn", cell="c0", camera="k1"), "train")
    write_frames(tmp_path / "more", [spoilt, *open_frames(after, None, family="frames").frames()])
    said = run(before, tmp_path / "more", status=0)[1]
    assert "frames after: 1 cannot be read and are left out, such as torn" in said
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "broken.png").write_bytes(b"")
    assert "broken.png" in run(before, tmp_path / "few", status=2)[1]


def test_bad_input_is_named(tmp_path: Path) -> None:
    before, after = frames(tmp_path / "before", 1), frames(tmp_path / "after", 2, count=3)
    assert "at least 5 scenes" in run(before, after, status=3)[1]
    assert "--level 1.5" in run(before, after, "--level", "1.5", status=2)[1]
    assert "--by cel: no frame has this column" in run(before, frames(tmp_path / "n", 2), "--by", "cel", status=2)[1]
    assert "no such file" in run(tmp_path / "gone", after, status=2)[1]
