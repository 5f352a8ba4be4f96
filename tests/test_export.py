"""export on a tiny checkpoint, through the command: files, checks, refusals and statuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside import export as verb
from lineside.exporting import check as checking
from lineside.exporting import targets
from lineside.model.checkpoint import load, save
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.serving.engines import load_engine
from lineside.serving.pairs import EnginePair
from lineside.types import Image
from tests.conftest import picture
from tests.exporting.conftest import lively

HAS = {"gguf": "xllamacpp", "openvino": "openvino", "onnx": "onnxruntime", "merged": "transformers"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "rlvr" / "checkpoint"
    save(lively(), folder)
    return folder


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "NEW_TOKENS", 4)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["export", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    "to, weights, bound",
    [
        ("gguf", "fp32", 5e-3),
        ("openvino", "fp32", 1e-4),
        pytest.param("openvino", "int8", 0.5, marks=pytest.mark.slow),  # its decoder: backends/test_openvino.py
        pytest.param("onnx", "fp32", 1e-4, marks=pytest.mark.slow),  # its decoder: exporting/test_graphs.py
        ("merged", "fp32", 1e-5),
        ("merged", "bf16", 0.5),
    ],
)
def test_each_format_is_written_and_checked(
    checkpoint: Path, tmp_path: Path, to: str, weights: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's model is computed by our own kernels, which no tracer can follow: a graph must hold none of them."""
    pytest.importorskip(HAS[to], reason="the extra 'export' is not installed")
    with monkeypatch.context() as users:
        if to in ("openvino", "onnx") and weights == "fp32":
            users.setenv("LINESIDE_BACKEND", "")
        status, said = run(checkpoint, "--to", to, "--weights", weights, "--out", tmp_path / "out")
    assert status == 0, said
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    check = record["check"]
    assert check["made"] and check["prompts"] == 32 and check["other_prompts"] == []
    assert check["overall"]["max_difference"] < bound
    assert set(check["by_picture"]) == {"encoder's size", "square", "wide", "tall"}
    assert check["overall"]["greedy_same"] == 8 or weights in ("int8", "bf16")
    assert all((tmp_path / "out" / name).stat().st_size == size for name, size in record["files"].items())
    notes = " ".join(record["limits"])
    if to == "gguf":
        assert "resized to 32 x 32" in notes and check["unprepared"]["wide"]["max_difference"] > 0.01
    if to == "openvino":
        assert "line end" in notes
        same_answers(checkpoint, tmp_path, weights)
    if to == "merged":
        assert "no kernel for heads of 8" in notes
        assert (
            str(next(load(tmp_path / "out").model.parameters()).dtype)
            == f"torch.{ {'fp32': 'float32', 'bf16': 'bfloat16'}[weights] }"
        )
    if to == "onnx":
        (tmp_path / "photo.png").write_bytes(picture(3))
        words = [sys.executable, "run.py", str(tmp_path / "photo.png"), "how many?", "--max-new-tokens", "4"]
        done = subprocess.run(words, cwd=tmp_path / "out", capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def same_answers(checkpoint: Path, folder: Path, weights: str) -> None:
    """The export decodes the model in lineside itself, as `evaluate` and `serve` load it."""
    copy = shutil.copytree(checkpoint, folder / "checkpoint")
    (folder / "export").mkdir()
    (folder / "out").rename(folder / "export" / f"openvino-{weights}")
    other = load_engine(copy, EnginePair("openvino", "full" if weights == "fp32" else "int8"))
    assert other.form == f"float32 openvino {other.backend.weights}"
    asked = [Prompt((Image(picture(i)),), "how many?", thinking=i == 0) for i in range(2)]
    ours, theirs = (
        [one for (one,) in generate(vlm, FeatureStore(None, vlm), asked, max_new_tokens=8)]
        for vlm in (load(copy), other)
    )
    assert weights == "int8" or [one.tokens for one in ours] == [one.tokens for one in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.sampler_logprobs[1] == pytest.approx(b.sampler_logprobs[1], abs=1e-4 if weights == "fp32" else 0.5)


@pytest.mark.usefixtures("short_answers")
def test_the_place_is_beside_the_checkpoint_and_replaced_whole(checkpoint: Path) -> None:
    place = checkpoint.parent / "export" / "merged-bf16"
    assert run(checkpoint, "--to", "merged")[0] == 0
    (place / "left over").touch()
    assert run(checkpoint, "--to", "merged")[0] == 0
    assert not (place / "left over").exists()
    assert {path.name for path in place.parent.iterdir()} == {"merged-bf16"}


@pytest.mark.usefixtures("short_answers")
def test_an_export_that_is_not_the_checkpoint_does_not_replace_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(checkpoint, "--to", "merged", "--out", tmp_path / "out")[0] == 0
    good = (tmp_path / "out" / "export.json").read_text()

    def broken(vlm, folder):  # an engine that lost a matrix
        engine = targets.Transformers(folder)
        engine.model.model.language_model.layers[0].mlp.up_proj.weight.data.zero_()
        return targets.contextlib.nullcontext(engine)

    whole = targets.TARGETS["merged"]
    monkeypatch.setitem(
        verb.TARGETS, "merged", targets.Target(whole.weights, whole.writes, whole.checks, whole.write, broken)
    )
    status, said = run(checkpoint, "--to", "merged", "--out", tmp_path / "out")
    assert status == 1 and "the export is not the checkpoint: log-probabilities differ by" in said
    assert (tmp_path / "out" / "export.json").read_text() == good and (tmp_path / "out.failed").is_dir()
    assert not (tmp_path / "out.tmp").exists()


def test_without_the_engine_the_check_is_said_to_be_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="the extra 'export' is not installed")
    monkeypatch.setattr(verb, "installed", lambda package: package != "xllamacpp")
    status, said = run(checkpoint, "--to", "gguf", "--out", tmp_path / "out")
    assert status == 0 and "NOT MADE: xllamacpp is not installed: pip install 'lineside[export]'" in said
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["check"]["made"] is False and record["engine"] == ""
    status, said = run(checkpoint, "--to", "gguf", "--out", tmp_path / "out", "--suite", tmp_path)
    assert status == 2 and "--suite needs the package xllamacpp" in said
    monkeypatch.setattr(verb, "installed", lambda package: package != "openvino")
    status, said = run(checkpoint, "--to", "openvino", "--out", tmp_path / "ov")
    assert status == 2 and "needs the package openvino" in said and not (tmp_path / "ov").exists()


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    odd = tmp_path / "odd"
    shutil.copytree(checkpoint, odd)
    config = json.loads((odd / "config.json").read_text())
    config["text_config"]["model_type"] = "gemma3_text"
    (odd / "config.json").write_text(json.dumps(config))
    for words, message in (
        ([tmp_path / "none", "--to", "gguf"], "no checkpoint at"),
        ([checkpoint, "--to", "onnx", "--weights", "int8"], "--to onnx has no weights int8: expected one of fp32"),
        ([checkpoint, "--to", "merged", "--out", tmp_path / "mine"], "is not an export"),
        ([checkpoint, "--to", "merged", "--for", "vllm"], "vLLM has no kernel for heads of 8 numbers"),
        ([checkpoint, "--to", "onnx", "--for", "vllm"], "--for says who loads a merged folder"),
        ([checkpoint, "--to", "merged", "--limit", "5"], "give --suite SAMPLES"),
        ([odd, "--to", "openvino"], "language model of type 'gemma3_text' is not known"),
    ):
        status, said = run(*words)
        assert status == 2 and message in said, said
    assert (tmp_path / "mine" / "thesis.txt").exists()
