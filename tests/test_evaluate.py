"""evaluate on a two-layer VLM, from samples to files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from typer.testing import CliRunner

import lineside.evaluate
from lineside.cli import app
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.evaluate import evaluate, evaluate_checkpoint, stage_of
from lineside.judgement import calibration, latency
from lineside.judgement.baselines import fit_baselines
from lineside.judgement.mistakes import most_confident
from lineside.judgement.schema import Evaluation, Row, read_evaluation, read_rows, rows_path
from lineside.judgement.typed import read_forms
from lineside.model.checkpoint import load, save
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.serving.pairs import PLAIN, judged
from lineside.types import Image, Sample, Target, Thinking
from tests.conftest import make_tiny_vlm, picture
from tests.judgement.conftest import choice, question
from tests.torture.compare import contents, differences

ANSWERER = lineside.evaluate.answerer
TINY: dict[str, Any] = {"max_new_tokens": 6}


def asked(count: int, split: Any, first: int = 0) -> list[Sample]:
    """Two questions about each of `count` pictures of noise, and a caption with a wrong twin."""
    samples: list[Sample] = []
    for i in range(first, first + count):
        common: dict[str, Any] = {"images": (Image(picture(i)),), "split": split, "scene": f"scene-{i}"}
        extra = {"facts": ["two red can"], "weight": 1.0, "budget_ms": 1e6}
        answer = choice("yes" if i % 2 else "no")
        samples.append(question(f"{i}/empty", answer, extra=extra, trace="two red can; so no", **common))
        count_of = Target("number", "sim", value=i % 3, tolerance=2)
        text = "How many red cans are in the bin?"
        samples.append(question(f"{i}/count", count_of, task="count", question=text, answer=str(i % 3), **common))
        wrong = {"wrong": "a blue can", "wrong_attribute": "colour"}
        caption = question(f"{i}/caption", None, **common, extra=wrong, kind="caption", task="caption", question="")
        samples.append(Sample(**{**{f: getattr(caption, f) for f in caption.__slots__}, "answer": "a red can"}))
    return samples


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return make_tiny_vlm()


@pytest.fixture
def store(vlm: VLM) -> FeatureStore:
    return FeatureStore(None, vlm, dtype=torch.float32)


def test_one_object_with_rows_and_pictures_beside_it(
    vlm: VLM, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "busy_with_others", lambda before, after: "")
    heldout = asked(6, "heldout", first=20)
    baselines = fit_baselines(asked(16, "train"), store.get, seed=0)
    found = evaluate(
        vlm, store, heldout, stage="sft", split="heldout", baselines=baselines, captions=heldout, out=tmp_path, **TINY
    )
    path = tmp_path / "sft-heldout-think.json"
    schema = json.loads(resources.files("lineside").joinpath("evaluation.schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema, cls=jsonschema.Draft202012Validator)
    assert read_evaluation(path) == found
    assert (found.n, found.provenance.scenes, found.mode) == (12, 6, "think")
    assert set(found.tasks) == {"picking/empty", "picking/count"}
    assert found.blind is not None and found.classifier is not None
    assert found.caption_matching is not None and found.caption_matching.n == 6
    assert found.latency is not None and found.latency.measured == 12 and found.latency.base_ms > 0
    assert found.latency.p95_ms is None  # of twelve
    shares = (found.valid_trace_rate, found.empty, found.truncated, found.missing)
    assert sum(share for share in shares if share is not None) == pytest.approx(1.0)
    rows = list(read_rows(rows_path(path)))
    assert sorted(r.id for r in rows) == sorted(s.id for s in heldout if s.kind == "qa")
    assert found.exact == pytest.approx(
        (sum(r.exact for r in rows if r.task == "empty") + sum(r.exact for r in rows if r.task == "count")) / 12
    )
    pictures = {p.stem for p in (tmp_path / "pictures").glob("*.jpg")}
    assert pictures == {key for r in rows for key in r.images}
    shown = {key for r in most_confident(rows) for key in r.images}
    assert {p.stem for p in (tmp_path / "full").glob("*.jpg")} == shown


def test_exact_match_by_a_column_that_the_samples_carry(vlm: VLM, tmp_path: Path) -> None:
    samples = [*asked(4, "train"), *asked(6, "heldout", 50)]
    for i, s in enumerate(samples):
        cell, extra = f"c{i // 3 % 2}", {**s.meta.extra, "columns": {"shift": ["late" if i < 21 else "early"]}}
        samples[i] = replace(s, meta=replace(s.meta, cell=cell, camera=f"{cell}-top", extra=extra))
    write_samples(tmp_path / "data", samples)
    save(vlm, tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), str(tmp_path / "data"), "--no-baselines", "--max-new-tokens", "4"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--by", "camera", "--by", "shift"])
    assert done.exit_code == 0, done.output
    assert "exact by camera" in done.output and "exact by shift" in done.output and "c1-top" in done.output
    found = read_evaluation(tmp_path / "out" / "model-heldout-think.json")
    assert list(found.by) == ["camera", "shift"]  # the cells are the cameras
    assert {one.value: one.n for one in found.by["shift"].values} == {"late": 6, "early": 6}
    refused = CliRunner().invoke(app, [*command, "--by", "belt"])
    assert refused.exit_code == 2
    assert "no column 'belt'; they carry cell, camera, week, shift" in " ".join(refused.output.split())


def test_same_seed_same_numbers_and_the_fast_mode_has_no_traces(vlm: VLM, store: FeatureStore) -> None:
    heldout = asked(5, "heldout")

    def once() -> dict[str, Any]:
        found = evaluate(vlm, store, heldout, stage="sft", split="heldout", mode="fast", time_questions=False, **TINY)
        return found.model_dump(exclude={"provenance"})

    first = once()
    assert first == once()
    assert first["valid_trace_rate"] is None and first["latency"] is None and first["caption_matching"] is None
    assert first["answer_tokens"] == first["response_tokens"]


def test_the_verb_reads_a_folder_and_fits_the_baselines(vlm: VLM, tmp_path: Path) -> None:
    write_samples(tmp_path / "data", [*asked(12, "train"), *asked(4, "dev", 30), *asked(4, "heldout", 50)])
    save(vlm, tmp_path / "run" / "rlvr" / "checkpoint")
    found = evaluate_checkpoint(
        tmp_path / "run" / "rlvr" / "checkpoint", tmp_path / "data", mode="fast", out=tmp_path / "out", **TINY
    )
    assert (found.stage, found.split, found.n) == ("rlvr", "heldout", 8)
    assert found.blind is not None
    file = tmp_path / "out" / "rlvr-heldout-fast.json"
    assert judged(tmp_path / "run" / "rlvr" / "checkpoint", [file]).keys() == {PLAIN}
    assert file.exists()


def test_a_task_without_traces_is_asked_with_thinking_off(vlm: VLM, tmp_path: Path) -> None:
    """By its training samples where the checkpoint does not say; else by the checkpoint, wherever it is judged."""
    write_samples(tmp_path / "data", [*asked(6, "train"), *asked(3, "heldout", 50)])  # count has no trace, empty has
    save(vlm, tmp_path / "old")

    def judged(name: str) -> tuple[Evaluation, list[Row]]:
        found = evaluate_checkpoint(
            tmp_path / name, tmp_path / "data", with_baselines=False, out=tmp_path / name / "out", **TINY
        )
        return found, list(read_rows(rows_path(tmp_path / name / "out" / "model-heldout-think.json")))

    found, rows = judged("old")
    assert {row.task: row.thinking for row in rows} == {"empty": True, "count": False}
    assert {key: task.thinking for key, task in found.tasks.items()} == {"picking/empty": True, "picking/count": False}
    assert found.tasks["picking/count"].valid_trace_rate is None
    assert found.valid_trace_rate == found.tasks["picking/empty"].valid_trace_rate is not None
    for row in rows:  # what was written with thinking off is all answer, and no trace gates its reward
        assert row.thinking or row.answer_tokens == row.tokens
    trained = load(tmp_path / "old")
    trained.thinking = Thinking({"picking/empty": False, "picking/count": False})
    save(trained, tmp_path / "new")
    found, rows = judged("new")
    assert not any(row.thinking for row in rows)
    assert found.valid_trace_rate is found.empty is found.exact_given_valid is None


def test_confidence_is_calibrated_on_dev_once_and_kept_with_the_checkpoint(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "FEWEST_SCENES", 3)
    stakes = {"wrong": 1.0, "false_pass": 5.0, "false_stop": 1.0, "refusal": 0.5}
    extra = {"normal": "yes", "stakes": stakes, "weight": 1.0}
    samples = [*asked(4, "train"), *asked(4, "dev", 30), *asked(4, "heldout", 50)]
    for i, s in enumerate(samples):
        if s.task == "empty":
            samples[i] = replace(s, meta=replace(s.meta, extra={**s.meta.extra, **extra}))
    write_samples(tmp_path / "data", samples)
    save(vlm, tmp_path / "checkpoint")

    def judged(**more: Any) -> tuple[Evaluation, list[Row]]:
        found = evaluate_checkpoint(
            tmp_path / "checkpoint",
            tmp_path / "data",
            mode="fast",
            with_baselines=False,
            out=tmp_path / "out",
            **more,
            **TINY,
        )
        return found, list(read_rows(rows_path(tmp_path / "out" / f"{found.name}.json")))

    dev, _ = judged(split="dev")
    assert dev.calibration is None and not (tmp_path / "checkpoint" / "calibration.json").exists()
    found, rows = judged()
    kept = (tmp_path / "checkpoint" / "calibration.json").read_bytes()
    assert found.calibration is not None and found.calibration.n == 8 and found.calibration_notes == {}
    assert all(row.calibrated is not None for row in rows)
    assert {row.task for row in rows if row.decision} == {"empty"}  # count has no stakes
    assert {row.typed.kind for row in rows if row.typed} == {"yes/no", "number"} and all(row.typed for row in rows)
    for row in rows:
        assert row.typed is not None and row.typed.confidence == row.calibrated and row.typed.text == row.answer
        assert row.typed.decision == (row.decision or "refuse")
    assert set(read_forms(tmp_path / "checkpoint")) == {"picking/count", "picking/empty"}
    assert set(found.decisions) == {"picking/empty"}
    again, same = judged()
    assert (tmp_path / "checkpoint" / "calibration.json").read_bytes() == kept
    assert [row.calibrated for row in same] == [row.calibrated for row in rows] and again.decisions == found.decisions
    monkeypatch.setattr(calibration, "FEWEST_SCENES", 60)
    (tmp_path / "checkpoint" / "calibration.json").unlink()
    found, rows = judged()
    assert found.calibration is None and rows[0].calibrated is None
    assert found.calibration_notes["picking/empty"] == "not calibrated, n = 4 (4 of the 60 scenes that it takes on dev)"
    none, _ = judged(with_calibration=False)
    assert none.calibration_notes["picking/empty"] == "not calibrated, n = 0"


def test_new_skus_and_references_are_told(vlm: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    can = Image(picture(90), "reference", name="red can")
    seen = [replace(s, meta=replace(s.meta, skus=("red can",))) for s in asked(2, "train")]
    suite = [
        replace(s, meta=replace(s.meta, skus=("red can", "box")[i % 2 :]))
        for i, s in enumerate(asked(4, "heldout", 50))
    ]
    suite = [replace(s, images=(*s.images, can)) if s.task == "count" else s for s in suite]
    write_samples(tmp_path / "data", [*seen, *suite])
    save(vlm, tmp_path / "checkpoint")
    found = evaluate_checkpoint(
        tmp_path / "checkpoint", tmp_path / "data", mode="fast", with_baselines=False, with_calibration=False,
        by=["new_sku"], route_below=1.0, out=tmp_path / "out", **TINY,
    )  # fmt: skip
    told = " ".join(capsys.readouterr().err.split())
    assert "shows reference pictures, and the checkpoint was trained without them" in told
    rows = list(read_rows(rows_path(tmp_path / "out" / f"{found.name}.json")))
    assert {(row.task, *row.reference_pictures.items()) for row in rows} == {("empty",), ("count", ("red can", 1))}
    assert all(row.columns["new_sku"] == ["yes"] for row in rows)  # no training frame shows the box
    assert found.route_below == 1.0 and {route.new_skus for route in found.routes} == {True}
    assert found.by["new_sku"].values[0].value == "yes"


def test_a_model_is_judged_with_the_views_of_its_training(vlm: VLM, tmp_path: Path) -> None:
    top = Image(picture(90), "view", name="top")
    suite = [replace(s, images=(*s.images, top)) for s in asked(2, "heldout", 50)]
    write_samples(tmp_path / "data", suite)
    judged = partial(
        evaluate_checkpoint, data=tmp_path / "data", mode="fast", with_baselines=False, with_calibration=False, **TINY
    )
    for name, views in (("without", ()), ("other", ("side", "top")), ("same", ("top",))):
        vlm.views = views
        save(vlm, tmp_path / name)
    for name in ("without", "other"):
        with pytest.raises(LinesideError, match=r"trained with (no further views|the views side, top) of a frame"):
            judged(tmp_path / name)
    assert judged(tmp_path / "same").n == 4


def test_on_a_busy_machine_time_is_not_measured(vlm: VLM, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "busy_with_others", lambda before, after: "busy machine")
    found = evaluate(vlm, store, asked(3, "heldout"), stage="sft", split="heldout", **TINY)
    assert found.latency is None and found.latency_ms is None
    assert found.latency_note == "not measured: busy machine"
    assert found.within_budget is None and found.tasks["picking/empty"].within_budget is None  # it has a budget
    assert found.tasks["picking/count"].within_budget is not None  # it has none


def test_stage_of_a_checkpoint() -> None:
    assert stage_of(Path("runs/quickstart/sft/checkpoint")) == "sft"
    assert stage_of(Path("/models/mine")) == "model"


def test_bad_input(vlm: VLM, store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"nothing to evaluate in split 'shifted'"):
        evaluate(vlm, store, asked(1, "heldout"), stage="sft", split="shifted")
    heard = [question("a", choice("no", provenance="teacher"))]
    with pytest.raises(LinesideError, match=r"1 have only a teacher's target"):
        evaluate(vlm, store, heard, stage="sft", split="heldout")
    with pytest.raises(LinesideError, match=r"stage '\.\./x'"):
        evaluate(vlm, store, asked(1, "heldout"), stage="../x", split="heldout")
    with pytest.raises(LinesideError, match=r"mode 'slow': expected one of think, fast"):
        evaluate_checkpoint(tmp_path, tmp_path, mode="slow")  # type: ignore[arg-type]


# --- killed and run again


class Asked:
    """How many questions each call of the model answered. `stop` is called in place of answering before call `at`."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int = 99, stop: Any = None, ms: float = 10.0) -> None:
        self.counts = list[int]()

        def counted(*args: Any, **options: Any) -> Any:
            answer = ANSWERER(*args, **options)

            def some(questions: Any) -> Any:
                if len(self.counts) == at:
                    stop()
                self.counts.append(len(questions))
                return answer(questions)

            return some

        patch.setattr(lineside.evaluate, "answerer", counted)
        patch.setattr(lineside.evaluate, "AT_ONCE", 4)
        time = latency.LatencyModel(ms, 1.0, 1, ms)  # each process would measure another one
        patch.setattr(lineside.evaluate, "measure_if_idle", lambda *_, **__: (time, ""))


def interrupt() -> None:
    raise KeyboardInterrupt  # as SIGTERM does


def evaluated(place: Path, **changes: Any) -> Evaluation:
    options = {"out": place / "out", "features": place / "features", "max_new_tokens": 6, "with_baselines": False}
    return evaluate_checkpoint(place / "model", place / "data", **{**options, **changes})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkpoint, and samples with 12 held-out questions and 8 of dev."""
    save(make_tiny_vlm(), tmp_path / "begin" / "model")
    write_samples(tmp_path / "begin" / "data", [*asked(6, "heldout", 20), *asked(4, "dev", 40)])
    return tmp_path / "begin"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A fork has no threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def left(place: Path) -> list[str]:
    """The endings of what is kept of an evaluation that is not whole."""
    return sorted(path.name.partition("-")[2] or path.suffix for path in place.glob("out/.*.answers/*"))


def killed(place: Path, patch: pytest.MonkeyPatch) -> int:
    """How a process ends that dies before its fifth call, when calibration and two thirds of the suite are answered."""
    if not (child := os.fork()):
        try:
            signal.alarm(300)  # rather dead than stuck
            Asked(patch, at=4, stop=lambda: os.kill(os.getpid(), signal.SIGKILL))
            evaluated(place)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_it_goes_on_and_ends_the_same(
    place: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, whole := place.with_name("whole"))
    unbroken = Asked(monkeypatch)
    evaluated(whole)
    assert unbroken.counts == [4] * 5
    assert killed(place, monkeypatch) == -signal.SIGKILL
    assert left(place) == [".latency", "0-4.rollouts", "0-4.rollouts", "4-8.rollouts", "4-8.rollouts"]
    assert not list((place / "out").glob("*.json"))
    resumed = Asked(monkeypatch, ms=99.0)
    found = evaluated(place)
    assert resumed.counts == [4] and found.latency is not None and found.latency.base_ms == 10.0
    assert "model heldout think: goes on: 8 of 12 answered" in capsys.readouterr().err
    assert not left(place) and not differences(contents(place), contents(whole))


def test_an_interrupt_keeps_what_is_answered_for_these_settings_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(at: int, **changes: Any) -> list[int]:
        found = Asked(monkeypatch, at=at, stop=interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluated(place, **changes)
        return found.counts

    assert stopped(1) == [4] and left(place) == ["0-4.rollouts"]  # of dev
    assert stopped(2) == [4, 4] and len(left(place)) == 4  # the rest of dev, the time, and some of the suite
    other = Asked(monkeypatch)
    evaluated(place, max_new_tokens=7)
    assert other.counts == [4] * 3  # all anew, but for the calibration, which is done
    assert not left(place)  # also of the other settings
    stopped(1)
    told = json.loads((place / "model" / "generation_config.json").read_text())
    (place / "model" / "generation_config.json").write_text(json.dumps({**told, "x": 1}))
    other = Asked(monkeypatch)
    evaluated(place)
    assert other.counts == [4] * 3


def test_what_is_damaged_is_answered_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, whole := place.with_name("whole"))
    Asked(monkeypatch)
    evaluated(whole)
    Asked(monkeypatch, at=4, stop=interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluated(place)
    torn, shorter = (
        path for path in sorted(place.glob("out/.*.answers/*.rollouts")) if path.stat().st_mtime_ns > calibrated(place)
    )
    torn.write_bytes(torn.read_bytes()[:-20])
    shorter.write_text(json.dumps(json.loads(shorter.read_text())[:3]))
    (torn.parent / f".x.rollouts.{2**22 + 1}.tmp").write_text("half")  # no process has this number
    resumed = Asked(monkeypatch)
    evaluated(place)
    assert resumed.counts == [4] * 3
    assert capsys.readouterr().err.count("it is made again") == 2
    assert not differences(contents(place), contents(whole))


def calibrated(place: Path) -> int:
    """When the calibration was written."""
    return (place / "model" / "calibration.json").stat().st_mtime_ns


def test_without_a_folder_nothing_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, at=4, stop=interrupt)
    before = set(place.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        evaluated(place, out=None, features=None)
    new = {path.name for path in set(place.rglob("*")) - before}
    assert new == {"calibration.json", "tasks.json"}
