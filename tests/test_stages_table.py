"""The table of stages: everything that names a stage agrees with it, and what a model came from goes with it."""

import json
from pathlib import Path

import pytest

from lineside.cli import app
from lineside.errors import LinesideError
from lineside.files import Stamp, dump_stamps
from lineside.recipe import Recipe, differences, load_recipe
from lineside.stages import CONTROLS, LINE, OLD_CONTROL, PARTS, STAGES, TABLE, entry_of, is_asked, is_control
from lineside.training.lineage import LINEAGE, PARENT, note_code, note_parent, read_lineage, write_lineage
from lineside.training.runfolder import RunFolder


def test_every_row_has_its_place() -> None:
    verbs = {command.name for command in app.registered_commands}
    known = {PARTS}
    for entry in TABLE:
        assert entry.parent in known, f"{entry.name} comes after its parent"
        known.add(entry.name)
        assert hasattr(Recipe.model_fields[entry.name].default, "learning_rate")  # a section of its own
        assert (entry.name in verbs) == (not entry.control_of)
        assert bool(entry.makes) == bool(entry.control_of)
    assert (*LINE, *CONTROLS, OLD_CONTROL) == STAGES
    assert not is_asked("align") and is_asked("sft") and is_asked("a model from elsewhere")
    assert is_control(OLD_CONTROL) and entry_of(OLD_CONTROL).slot == "rlvr" and not is_control("model")


def test_the_label_settings_that_an_earlier_version_wrote_down_are_those_of_today(tmp_path: Path) -> None:
    """Until 2026-11-29 a run's recipe held 4, 0.5 and 0.25; now null, which the teacher decides."""
    old = "label: {captions_per_frame: 4, question_share: 0.5, prompt_share: 0.25}"
    for source, same in (("samples: s", True), ("simulate: {}", True), ("table: t, tasks: [t.yaml]", False)):
        for path, label in (("old.yaml", f", {old}"), ("new.yaml", "")):
            (tmp_path / path).write_text(f"name: r\ndata: {{{source}{label}}}\n")
        changed = differences(load_recipe(tmp_path / "old.yaml"), load_recipe(tmp_path / "new.yaml"))
        assert (not changed) == same, (source, changed)
    (tmp_path / "new.yaml").write_text("name: r\ndata: {simulate: {}, label: {question_share: 0.3}}\n")
    (tmp_path / "old.yaml").write_text(f"name: r\ndata: {{simulate: {{}}, {old}}}\n")
    changed = differences(load_recipe(tmp_path / "old.yaml"), load_recipe(tmp_path / "new.yaml"))
    assert changed == ["data.label.question_share: 0.5 -> 0.3"]


def recipe(tmp_path: Path, **changes: object) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nruns: {tmp_path}\ndata: {{samples: {tmp_path}}}\n")
    return load_recipe(path, [f"{key}={value}" for key, value in changes.items()])


def test_a_stage_starts_from_the_nearest_parent_that_is_trained(tmp_path: Path) -> None:
    def starts(stage: str, **changes: object) -> str:
        given = recipe(tmp_path, **changes)
        return str(RunFolder(given, given.folder).parent(stage).relative_to(tmp_path))

    assert starts("align") == "r/parts/checkpoint" and starts("rlvr") == "r/sft/checkpoint"
    assert starts("rejection") == "r/sft/checkpoint"  # where stage 3 starts
    assert starts("rlvr", stages="[align, rlvr]") == "r/align/checkpoint"
    assert starts("rlvr", stages="[rlvr]") == "r/parts/checkpoint"
    (tmp_path / "other" / "checkpoint").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint" / "config.json").touch()
    assert starts("traced", **{"rlvr.from": tmp_path / "other"}) == "other/checkpoint"


def test_a_setting_is_fixed_once_a_stage_that_it_shapes_has_begun(tmp_path: Path) -> None:
    run = RunFolder(recipe(tmp_path), tmp_path / "r")
    (run.folder / "traced" / "checkpoint").mkdir(parents=True)
    assert all(map(run.fixed, ("traced.equal", "sft.trace_weight", "rlvr.leave_out")))  # a control has all three
    assert not run.fixed("align.epochs") and not run.fixed("answers.equal")


def test_what_a_model_came_from_goes_with_it(tmp_path: Path) -> None:
    given = recipe(tmp_path, seed=7)
    run, before = tmp_path / "r", None
    for stage, parent in (("align", "parts"), ("sft", "align"), ("traced", "sft")):
        for name in (stage, parent):
            (run / name / "checkpoint").mkdir(parents=True, exist_ok=True)
            (run / name / "checkpoint" / "model.safetensors").write_text(name)
        note_parent(run / stage, run / parent / "checkpoint")
        if stage == "sft":  # trained by an earlier version, which noted no code
            noted = json.loads((run / stage / PARENT).read_text())
            (run / stage / PARENT).write_text(json.dumps({key: noted[key] for key in ("checkpoint", "files")}))
        write_lineage(run, stage, given)
        found = read_lineage(run / stage / "checkpoint")
        assert found and found["stage"] == stage and found["seed"] == 7 and found["parent"]["lineage"] == before
        assert found["parent"]["checkpoint"] == str(run / parent / "checkpoint")
        assert (found["code"] is None) == (stage == "sft")
        before = found
    assert before and set(before["settings"]) == {"traced", "sft", "rlvr"}
    assert before["parent"]["weights"] != before["parent"]["lineage"]["parent"]["weights"]
    assert read_lineage(run / "parts" / "checkpoint") is None
    note_code(run / "sft")  # this version goes on with it
    (run / "sft" / "checkpoint" / LINEAGE).unlink()
    write_lineage(run, "sft", given)
    found = read_lineage(run / "sft" / "checkpoint")
    assert found and found["code"]["version"] and found["parent"] == before["parent"]["lineage"]["parent"]
    (run / "sft" / PARENT).unlink()  # a stage that began before parents were noted
    (run / "sft" / "checkpoint" / LINEAGE).unlink()
    write_lineage(run, "sft", given)
    assert read_lineage(run / "sft" / "checkpoint") is None


@pytest.mark.parametrize(
    "text, said", [('{"version": 9}', "version 9"), ("[]", "should be an object"), ("{", "cannot be read")]
)
def test_a_lineage_of_another_version_or_a_broken_one_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / LINEAGE).write_text(text)
    with pytest.raises(LinesideError, match=f"{LINEAGE}.*{said}.*delete"):
        read_lineage(tmp_path)


def test_the_data_of_a_run_have_a_fingerprint_each_in_the_lineage(tmp_path: Path) -> None:
    run = tmp_path / "r"
    (run / "parts" / "checkpoint").mkdir(parents=True)
    note_parent(run / "align", run / "parts" / "checkpoint")
    prints = set()
    for content in ("a", "b"):
        files = {"samples": dump_stamps({"qa-train-0.parquet": Stamp(1, 2, content)})}
        (run / "inputs.json").write_text(json.dumps(files))
        (run / "align" / "checkpoint").mkdir(exist_ok=True)
        write_lineage(run, "align", recipe(tmp_path))
        found = read_lineage(run / "align" / "checkpoint")
        assert found and set(found["data"]) == {"samples"}
        prints.add(found["data"]["samples"])
    assert len(prints) == 2
