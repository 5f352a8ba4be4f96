"""What a run was made from: changes of its data are named, and a comment is no change."""

import json
from pathlib import Path
from typing import Any

import pytest

from lineside import files
from lineside.recipe import load_recipe
from lineside.training.lineage import LINEAGE, VERSION, changed_inputs, keeps_captions, note_inputs

TASKS = """
tasks:
  - {family: shop, name: product, phrasings: ["Which product is this?"], answer: {kind: exact, column: product}}
"""


def test_a_task_file_counts_by_what_it_says(tmp_path: Path) -> None:
    tasks = tmp_path / "shop.yaml"
    tasks.write_text(TASKS)
    (tmp_path / "r.yaml").write_text(f"name: r\ndata: {{samples: {tmp_path}, tasks: [{tasks}]}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    note_inputs(tmp_path / "run", recipe, tmp_path)
    tasks.write_text("# reviewed\n" + TASKS.replace("family: shop, name: product", "name: product,  family: shop"))
    assert changed_inputs(tmp_path / "run", recipe, tmp_path) == ""
    tasks.write_text(TASKS.replace("Which", "What"))
    assert "data.tasks (shop.yaml)" in changed_inputs(tmp_path / "run", recipe, tmp_path)
    earlier = '{"samples": {}, "data.tasks (shop.yaml)": {"shop.yaml": {"size": 1, "time": 2, "hash": "of its bytes"}}}'
    (tmp_path / "run" / "inputs.json").write_text(earlier)  # of an earlier version: its hash says nothing here
    assert changed_inputs(tmp_path / "run", recipe, tmp_path) == ""


def test_a_folder_that_is_mixed_in_for_each_stage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = files._hash
    monkeypatch.setattr(files, "_hash", lambda path: (read.append(path.parent.name), real(path))[1])
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "qa-train-00000.parquet").write_bytes(name.encode())
    mix = ", ".join(f"{{samples: {tmp_path / 'old'}, stages: [{stage}]}}" for stage in ("sft", "rlvr"))
    (tmp_path / "r.yaml").write_text(f"name: r\ndata: {{samples: {tmp_path / 'new'}, mix: [{mix}]}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    note_inputs(tmp_path / "run", recipe, tmp_path / "new")
    assert sorted(read) == ["new", "old"]
    (tmp_path / "old" / "qa-train-00000.parquet").write_bytes(b"other")
    told = changed_inputs(tmp_path / "run", recipe, tmp_path / "new")
    assert all(f"data.mix.{number}: qa-train-00000.parquet has changed" in told for number in (0, 1))
    assert sorted(read) == ["new", "old", "old"]


@pytest.mark.parametrize(
    ("replays", "keeps"),
    [((), True), ((1,), True), ((0,), False), ((0, 1), True), ((1, 0), False)],  # of each stage 2, the oldest first
)
def test_the_last_stage_2_says_whether_captions_are_kept(tmp_path: Path, replays: tuple[int, ...], keeps: bool) -> None:
    assert keeps_captions(tmp_path)  # nothing is known
    lineage: dict[str, Any] = {"stage": "align", "settings": {"align": {}}, "parent": {"lineage": None}}
    for replay in replays:
        settings = {"sft": {"caption_replay": replay}}
        lineage = {"stage": "sft", "settings": settings, "parent": {"lineage": lineage}}
    lineage = {"version": VERSION, "stage": "rlvr", "settings": {"rlvr": {}}, "parent": {"lineage": lineage}}
    (tmp_path / LINEAGE).write_text(json.dumps(lineage))
    assert keeps_captions(tmp_path) is keeps
