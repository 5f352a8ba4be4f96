"""retrain: from a champion, new samples and minutes to a challenger; killed, it goes on; then the gate."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import lineside.plan
import lineside.retrain
from lineside.data.mixture import Mixture
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.recipe import Rlvr
from lineside.registry.store import Registry
from lineside.retrain import Request
from lineside.rlvr import checked_prompts
from lineside.types import Image, Sample, Target
from tests.conftest import Forks, picture
from tests.retrained import call, killed_and_unbroken, make_floor
from tests.test_train import rows


def test_killed_and_run_again_it_goes_on_to_the_gate(forks: Forks, tmp_path: Path) -> None:
    status, said = forks.run(killed_and_unbroken, tmp_path)
    assert status == 0, said[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    said = found["said"]
    assert found["statuses"][:3] == [0, 0, -9] and max(found["states"]).startswith("step-00000003"), said
    assert found["statuses"][3] in (1, 3) and found["statuses"][4] == 0, said  # the gate: nine scenes
    assert found["equal"] and found["trained"]
    first, *challengers = found["models"]
    assert first["state"] == "champion" and {line["parent"] for line in challengers} == {"bins@1"}
    assert "bins@2 against bins@1" in said["broken"] and said["broken"].count("continuing") >= 2
    assert said["broken"].count("\nnew: ") == 2 and "\n\nnew: " not in said["broken"]  # the plan, again as it was
    assert f"lineside gate bins@3 --registry {tmp_path / 'registry'}" in said["whole"]
    assert "--better-on broken/heldout" in said["whole"]  # the suite's first run
    assert found["changed"] == 2 and "its data have changed since it began" in said["broken"]


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineside.plan, "measure_matrix_rate", lambda *_, **__: 420e9)


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floor")
    make_floor(folder)
    return folder


def planned(floor: Path, *words: object, status: int = 0, champion: str = "runs/tiny") -> str:
    found, told, said = call("retrain", floor / champion, *words, "--dry-run")
    assert found == status, told + said
    return told if status == 0 else said


def test_a_plan_says_what_is_read_and_why_and_writes_nothing(floor: Path) -> None:
    before = sorted(floor.rglob("*"))
    told = planned(floor, floor / "week1", "--minutes", 5)
    assert "week1: 6 frames to train on, 6 questions and 6 prompts of 1 tasks" in told
    assert "reads the 6 new frames 8.0 times" in told and "rlvr: left out: all new prompts are of frames" in told
    assert "0.3 of the rate of its first training" in told and "judged on heldout" in told
    assert sorted(floor.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{week1}", "--minutes", "0.5"], "--minutes 0.5 are not enough for one step"),
        (["{empty}"], "nothing new to train on in"),
        ([], "nothing new: give folders of samples"),
        (["{samples}"], "was trained on it already"),
        (["{copy}"], "was trained on it already"),
        (["{nowhere}"], "no such folder"),
        (["{week1}", "--stages", "sft,dpo"], "expected sft, rlvr, or sft,rlvr"),
        (["{suites}", "--stages", "rlvr"], "nothing new to train on in"),
        (["{other}"], "the answers of picking/count_all are of the kind choice"),
        (["{week1}", "--out", "{week1}/my run"], "its name is that of a run"),
        (["{week1}", "--gate"], "--gate compares versions of a registry"),
        (["{week1}", "--set", "sft.epoch=1"], "sft.epoch"),
        (["{week1}", "--set", "stages=[align]"], "stages: a retraining decides it by itself; say it with --stages"),
        (["{week1}", "--set", "data.samples={samples}"], "say it with the folders of SAMPLES and --outcomes"),
        (["{week1}", "--set", "parts.encoder=x"], "--set parts.encoder: a retraining decides it"),
        (["{week1}", "--outcomes", "{week1}"], "holds the same samples as"),
        (["{week1}", "--name", "my bins"], "name 'my bins': expected up to 64 letters"),
        (["{week1}", "--minutes", "inf"], "Input should be less than or equal to"),
        (["{week1}", "--out", "{samples}"], "holds samples, a checkpoint or a registry: give a folder of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(floor: Path, words: list[str], expected: str) -> None:
    suites = floor / "suites"
    if not suites.exists():
        write_samples(suites, rows("heldout", range(70, 72)))
        write_samples(floor / "other", [to_choice(s) for s in rows("train", range(80, 84))])
        shutil.copytree(floor / "samples", floor / "copy")
        (floor / "empty").mkdir()
    names = {name: floor / name for name in ("week1", "samples", "copy", "empty", "nowhere", "suites", "other")}
    assert expected in planned(floor, *(word.format(**names) for word in words), status=2)


def to_choice(sample: Sample) -> Sample:
    """The same question with names for answers."""
    target = Target("choice", "record", accepted=("few",), options=("few", "many"))
    return replace(
        sample, target=target if sample.target else None, answer="few" if sample.kind == "qa" else sample.answer
    )


def test_a_champion_whose_files_or_data_are_gone_is_named(floor: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(floor, moved)
    text = (moved / "runs/tiny/recipe.yaml").read_text().replace(str(floor), str(moved))
    (moved / "runs/tiny/recipe.yaml").write_text(text)
    shutil.rmtree(moved / "samples")
    week = floor / "week1"
    assert "no samples are there now" in planned(moved, week, status=2)
    assert "replays nothing (as asked for)" in planned(moved, week, "--replay", 0)
    assert "old: " in planned(moved, week, "--old", floor / "samples")
    assert "nothing says what it was trained on" in planned(
        tmp_path, week, status=2, champion=str(shutil.copytree(floor / "runs/tiny/sft/checkpoint", tmp_path / "bare"))
    )
    (moved / "runs/tiny/sft/checkpoint/model.safetensors").unlink()
    assert "weights" in planned(moved, week, status=2)
    assert "no such folder, and no registry in" in planned(moved, week, status=2, champion="runs/gone")


def test_what_would_fail_later_is_told_before_anything_is_trained(
    floor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a registry that is read-only or has lost the champion's files, torchrun, a leak."""
    registry = ("--registry", tmp_path / "registry")
    assert call("register", floor / "runs/tiny", "--name", "bins", *registry)[0] == 0
    assert "bins has no champion" in call("retrain", "bins", floor / "week1", *registry)[2]
    assert call("promote", "bins@1", *registry)[0] == 0
    monkeypatch.setattr(lineside.retrain, "train", lambda _: pytest.fail("it trains"))
    retrain = ("retrain", "bins", floor / "week1", "--minutes", 5, "--out", tmp_path / "out", *registry)
    with monkeypatch.context() as full:
        full.setattr(lineside.retrain, "free_bytes", lambda _: 1e3)
        status, _, said = call(*retrain)
        assert status == 2 and "make room" in said
    with monkeypatch.context() as many:
        for name, number in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
            many.setenv(name, number)
        with pytest.raises(LinesideError, match="retrain is one process"):
            lineside.retrain.retrain(Request("bins", (floor / "week1",)))
    write_samples(tmp_path / "leak", rows("train", range(33, 36)))  # pictures of the champion's suite
    status, _, said = call("retrain", "bins", tmp_path / "leak", *retrain[3:])
    assert status == 1 and "is also in the suite heldout of" in said
    with monkeypatch.context() as locked:
        opened = Registry.__init__

        def read_only(self: Registry, *given: object, **named: object) -> None:
            opened(self, *given, **named)  # pyright: ignore[reportArgumentType]
            self._unwritable = sqlite3.OperationalError("read-only")

        locked.setattr(Registry, "__init__", read_only)
        status, _, said = call(*retrain)
        assert status == 2 and "read-only" in said
    shutil.rmtree(next((tmp_path / "registry/models").iterdir()) / "files")
    status, _, said = call(*retrain)
    assert status == 2 and "bins@1: its files are not whole" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_or_retraining_is_left_alone(floor: Path, tmp_path: Path) -> None:
    assert "another run" in planned(floor, floor / "week1", "--out", floor / "runs" / "tiny", status=2)
    (tmp_path / "retrain.json").write_text(json.dumps({"minutes": 3}))
    said = planned(floor, floor / "week1", "--out", tmp_path, status=2)
    assert "holds another retraining" in said and "minutes: 3 before, 10.0 now" in said
    (tmp_path / "retrain.json").write_text("{")
    assert "give another folder with --out" in planned(floor, floor / "week1", "--out", tmp_path, status=2)


def test_new_tasks_answers_and_sizes_are_told(floor: Path, tmp_path: Path) -> None:
    large = [
        replace(s, images=(Image(picture(n, 64)),), task="lids") for n, s in enumerate(rows("train", range(90, 93)))
    ]
    write_samples(tmp_path / "lids", large)
    told = planned(floor, tmp_path / "lids")
    assert (
        "new to the model: the tasks picking/lids" in told and "pictures of 64x64 pixels, before mostly 48x48" in told
    )


def test_a_week_with_outcomes_only_trains_stage_3_beside_old_prompts(floor: Path, tmp_path: Path) -> None:
    prompts = [s for s in rows("train", range(100, 104)) if s.kind == "prompt"]
    told = [replace(s.target, provenance="outcome") for s in prompts if s.target]
    told[0] = Target("not", "outcome", wrong=(told[0],))  # a pick failed
    write_samples(tmp_path / "outcomes", [replace(s, target=target) for s, target in zip(prompts, told, strict=True)])
    words = ("--outcomes", tmp_path / "outcomes", "--minutes", 5)
    plan = planned(floor, *words)
    assert "sft: left out: no new questions with answers" in plan and "judged on heldout" in plan
    assert "reads the 4 new frames" in plan and "replays old frames, 50% of all" in plan
    plan = planned(floor, floor / "week1", *words)  # 4 of 10 frames have no answers
    minutes = [float(line.split()[1]) for line in plan.splitlines() if line.startswith(("sft:", "rlvr:"))]
    assert len(minutes) == 2 and plan.index("sft:") < plan.index("rlvr:")


def test_failures_alone_need_prompts_whose_truth_is_known_beside_them(floor: Path, tmp_path: Path) -> None:
    prompts = [s for s in rows("train", range(100, 104)) if s.kind == "prompt" and s.target]
    failed = [replace(s, target=Target("not", "outcome", wrong=(s.target,))) for s in prompts if s.target]
    write_samples(tmp_path / "outcomes", failed)
    words = ("--outcomes", tmp_path / "outcomes", "--minutes", 5)
    assert "replays old frames, 50% of all" in planned(floor, *words)
    said = planned(floor, *words, "--replay", 0, status=2)
    assert "all prompts only say that an answer was wrong" in said and "--replay above 0" in said
    with pytest.raises(LinesideError, match="only say that an answer was wrong"):
        checked_prompts(Mixture.of(tmp_path / "outcomes"), Rlvr())
