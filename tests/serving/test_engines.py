"""What was judged is what is served: the engines and weights that a checkpoint may be served by, and which is taken."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lineside.cli import app
from lineside.errors import LinesideError
from lineside.judgement.calibration import file_of, fingerprint
from lineside.judgement.schema import Decoding, Evaluation, write_evaluation
from lineside.judgement.summary import summarise
from lineside.serving import engines, worker
from lineside.serving.engines import load_engine
from lineside.serving.models import EngineProcess
from lineside.serving.pairs import EnginePair, allowed, export_folder, judged, why_not
from lineside.serving.scheduler import Costs
from tests.judgement.conftest import row, summary_arguments  # noqa: F401 # a fixture
from tests.serving.conftest import make_checkpoint

FULL, NARROW = EnginePair("local", "full"), EnginePair("openvino", "int8")
OPTIONS = {"feature_bytes": 1, "prefix_bytes": 1, "device": "cpu"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that looks like a run's checkpoint."""
    folder = tmp_path / "run" / "rlvr" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "model_type": "llava"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def judge(checkpoint: Path, summary_arguments: dict[str, Any]) -> Any:  # noqa: F811
    """Writes an evaluation of the checkpoint, `changes` of it first."""
    rows = [row("a")]
    plain: Evaluation = summarise(rows, **summary_arguments)

    def write(pair: EnginePair = FULL, *, folder: Path | None = None, dtype: str = "bfloat16", **changes: Any) -> Path:
        how = Decoding(temperature=0.0, max_new_tokens=96, dtype=dtype, engine=pair.engine, weights=pair.weights)
        mark = changes.pop("mark", fingerprint(checkpoint))
        provenance = plain.provenance.model_copy(update={"checkpoint": mark})
        found = plain.model_copy(update={"stage": f"rlvr.{pair.engine}.{pair.weights}", "provenance": provenance})
        found = found.model_copy(update={"decoding": how, **changes})
        return write_evaluation(folder or checkpoint.parents[1] / "evaluation", found, rows)

    return write


def test_what_was_not_judged_is_refused_with_the_command_that_judges_it(checkpoint: Path, judge: Any) -> None:
    (checkpoint.parents[1] / "samples").mkdir()
    with pytest.raises(LinesideError) as told:
        allowed(checkpoint)
    assert f"lineside evaluate {checkpoint} {checkpoint.parents[1] / 'samples'} --engine local" in str(told.value)
    assert str(told.value).count("/evaluation/local-full\n") == 1  # a folder that no other pair writes to
    judge()
    assert allowed(checkpoint) == [FULL] == allowed(checkpoint, engine="local") == allowed(checkpoint, weights="full")
    with pytest.raises(LinesideError, match="not judged by openvino int8 in bfloat16; it was by local full"):
        allowed(checkpoint, engine="openvino", weights="int8")


@pytest.mark.parametrize("change", [{"mark": "0" * 64}, {"mark": None}, {"split": "train"}, {"dtype": "float32"}])
def test_an_evaluation_of_something_else_judges_nothing(checkpoint: Path, judge: Any, change: dict[str, Any]) -> None:
    """Of other weights, of an unknown checkpoint, of training questions, in another number format."""
    judge(**change)
    assert judged(checkpoint) == {}


def test_weights_are_known_by_their_content(checkpoint: Path, judge: Any, tmp_path: Path) -> None:
    path = judge(folder=tmp_path / "elsewhere")
    moved = tmp_path / "models" / "bins"
    shutil.copytree(checkpoint, moved)
    assert judged(moved) == {} and judged(moved, [path]).keys() == {FULL}
    (moved / "model.safetensors").write_bytes(b"trained on")
    assert judged(moved, [path]) == {}
    with pytest.raises(LinesideError, match="no such file"):
        judged(moved, [tmp_path / "no.json"])
    (checkpoint.parents[1] / "evaluation").mkdir()
    (checkpoint.parents[1] / "evaluation" / "broken.json").write_text("{")  # one that the user did not name
    assert judged(checkpoint, [path]).keys() == {FULL}


def test_an_export_must_be_there_and_of_these_weights(checkpoint: Path, judge: Any) -> None:
    pytest.importorskip("openvino")
    judge(NARROW)
    with pytest.raises(LinesideError, match=r"no export at .*lineside export .* --to openvino --weights int8"):
        allowed(checkpoint)
    folder = export_folder(checkpoint, "int8")
    folder.mkdir(parents=True)
    (folder / "export.json").write_text(json.dumps({"fingerprint": "of others"}))
    assert "is of other weights: lineside export" in why_not(checkpoint, NARROW)
    (folder / "export.json").write_text("[")
    assert "cannot be read" in why_not(checkpoint, NARROW)
    (folder / "export.json").write_text(json.dumps({"fingerprint": fingerprint(checkpoint)}))
    assert allowed(checkpoint) == [NARROW]
    judge()
    assert allowed(checkpoint) == [FULL, NARROW]


def test_a_pair_that_loses_exact_answers_is_taken_only_by_name(checkpoint: Path, judge: Any) -> None:
    narrow = EnginePair("local", "int8")
    judge(exact=0.800)
    judge(narrow, exact=0.796, folder=checkpoint.parent / "evaluation" / "local-int8")
    assert allowed(checkpoint) == [FULL, narrow]  # within half a point
    judge(narrow, exact=0.794, folder=checkpoint.parent / "evaluation" / "local-int8")
    assert allowed(checkpoint) == [FULL]
    with pytest.raises(LinesideError, match=r"it gives 0\.6 points fewer exact answers than local full"):
        allowed(checkpoint, weights="int8")
    assert allowed(checkpoint, engine="local", weights="int8") == [narrow]
    judge(narrow, exact=0.5, split="shifted", folder=checkpoint.parent / "evaluation" / "local-int8")
    judge(narrow, exact=0.799, folder=checkpoint.parent / "evaluation" / "local-int8")
    assert allowed(checkpoint) == [FULL, narrow]  # another suite is not compared


def test_unjudged_serves_the_models_own_decoding_unless_another_is_named(checkpoint: Path) -> None:
    assert allowed(checkpoint, unjudged=True) == [FULL]
    assert allowed(checkpoint, unjudged=True, engine="openvino", weights="int8") == [NARROW]


def test_the_command_refuses_before_it_loads_anything(checkpoint: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(checkpoint)])
    assert done.exit_code == 2 and "--unjudged" in done.output


class Measured:
    """An engine that takes a known time."""

    grammars = None
    all: list[Measured] = []  # noqa: RUF012

    def __init__(self, pair: str, **_: Any) -> None:
        self.pair, self.closed = pair, False
        Measured.all.append(self)

    def close(self) -> None:
        self.closed = True

    def warm(self) -> Costs:
        if self.pair == "vllm full":
            raise LinesideError("it ended while it was measured")
        return Costs(50, 0, 1, 10, 1) if self.pair == "local full" else Costs(50, 0, 1, 9, 0.5)


def test_of_several_the_fastest_is_taken_and_it_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(_: Path, pair: EnginePair, **__: Any) -> str:
        if pair.engine == "openvino":
            raise LinesideError("its export is broken")
        return str(pair)

    monkeypatch.setattr(engines, "load_engine", load)
    monkeypatch.setattr(engines, "engine_of", Measured)
    pairs = [FULL, EnginePair("local", "int8"), EnginePair("vllm", "full"), NARROW]
    begun = worker.begin(tmp_path, {"pairs": json.loads(json.dumps(pairs)), **OPTIONS})
    assert begun.pair == "local int8" and begun.engine.pair == "local int8"
    assert [one.pair for one in Measured.all if one.closed] == ["local full", "vllm full"]  # what is not taken ends
    assert "local full takes 11.00 ms for a token of one answer, 18.00 of eight" in begun.why
    assert "its export is broken" in begun.why
    assert worker.begin(tmp_path, {"pairs": [FULL], **OPTIONS}).why == "it is the only one to choose from"
    with pytest.raises(LinesideError, match="its export is broken"):
        worker.begin(tmp_path, {"pairs": [NARROW], **OPTIONS})


def test_each_way_to_compute_has_a_calibration_of_its_own() -> None:
    assert file_of("bfloat16") == "calibration.json" == file_of("float32")
    assert file_of("float32 openvino int8") == "calibration-openvino-int8.json"


def test_nothing_is_left_of_an_engine_that_cannot_be_loaded(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, {"device": "cpu", "pairs": [], "margin": 1.25})
    with pytest.raises(LinesideError, match="no engine is left"):
        asyncio.run(engine.start())
    assert engine.process.poll() is not None and engine._writer.is_closing()


def test_whoever_writes_over_the_file_does_not_change_what_runs(tmp_path: Path) -> None:
    """The weights of a file may be mapped, and a copy onto it would serve a mixture that nobody judged."""
    folder = make_checkpoint(tmp_path / "checkpoint")
    vlm = load_engine(folder, FULL)
    before = {name: weight.clone() for name, weight in vlm.model.state_dict().items()}
    file = folder / "model.safetensors"
    with file.open("r+b") as there:
        there.write(bytes(file.stat().st_size))
    assert all(torch.equal(weight, before[name]) for name, weight in vlm.model.state_dict().items())
    assert str(file) not in Path("/proc/self/maps").read_text()
