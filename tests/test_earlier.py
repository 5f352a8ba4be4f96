"""Files of an earlier version are read, and go on: a checkpoint, samples, a feature store, an evaluation and a run that
the code of b03e042 wrote (`tests/earlier/make.py`). Files of a later one are refused by their version."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.judgement.schema import read_evaluation, read_rows, rows_path
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.score import score
from lineside.recipe import load_recipe
from lineside.report import report
from lineside.train import train
from lineside.training.lineage import read_lineage
from lineside.training.state import load_state

ARCHIVE = Path(__file__).with_name("earlier") / "b03e042.tar.xz"
RUN = Path("runs/tiny")
EVALUATION = RUN / "evaluation/align-heldout-think.json"
STOPPED_AFTER = 4  # steps of sft


@pytest.fixture
def then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """The files in the working folder; what the code of then read from them and computed."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


def losses(stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (RUN / stage / "metrics.jsonl").read_text().splitlines()]


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size < 200_000


def test_samples_are_the_same(then: Mapping[str, Any]) -> None:
    found = list(read_samples(Path("samples")))
    assert len(found) == len(then["samples"]) == 16
    for sample, told in zip(found, then["samples"]):
        now = {**asdict(sample), "images": [image.bytes.hex() for image in sample.images]}
        now = json.loads(json.dumps(now | {"target": sample.target and sample.target.to_json()}))
        assert {key: now[key] for key in told} == told


def test_a_checkpoint_and_a_feature_store_give_the_same_log_probabilities(then: Mapping[str, Any]) -> None:
    folder = RUN / "align/checkpoint"
    assert read_lineage(folder) is None  # nothing was written then
    vlm = load(folder)
    store = FeatureStore(Path("runs/features"), vlm)
    asked = [s for s in read_samples(Path("samples")) if s.kind == "qa"]
    prompts = [Prompt(s.images, s.question, True) for s in asked]
    found = score(vlm, store, prompts, [f"<think>{s.trace}</think>{s.answer}" for s in asked])
    assert len(asked) == len(then["logprobs"]) == 6
    for sample, values in zip(asked, found):
        torch.testing.assert_close(values, torch.tensor(then["logprobs"][sample.id]), atol=2e-5, rtol=1e-5)
    assert store.encoder_calls == 0 and len(store) == then["pictures"] > 0  # the features of then


def test_an_evaluation_is_read_and_shown(then: Mapping[str, Any]) -> None:
    found = read_evaluation(EVALUATION)
    assert found.exact == then["exact"] and len(list(read_rows(rows_path(EVALUATION)))) == found.n == 2
    assert "align" in report(RUN).read_text()


def test_a_stage_that_was_stopped_goes_on_and_ends_as_it_would_have(then: Mapping[str, Any]) -> None:
    assert losses("sft") == then["losses"]["sft"][:STOPPED_AFTER]
    train(load_recipe(Path("recipe.yaml"), ["evaluate.splits=[]"]), last="sft")
    assert losses("align") == then["losses"]["align"]
    assert losses("sft") == pytest.approx(then["losses"]["sft"], rel=1e-4)
    lineage = read_lineage(RUN / "sft/checkpoint")
    assert lineage is not None and lineage["parent"]["lineage"]["stage"] == "align"
    assert lineage["parent"]["lineage"]["code"] is None  # what trained it noted none


def test_a_state_of_a_later_version_is_refused_and_kept(then: Mapping[str, Any]) -> None:
    (path,) = (RUN / "sft/state").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(tensors, path, metadata={"state": json.dumps({**header, "format": "lineside-state-2"})})
    with pytest.raises(LinesideError, match=r"another version .*lineside-state-2; this one reads lineside-state-1"):
        load_state(path.parent)
    assert path.exists()


def test_an_evaluation_of_a_later_version_is_refused(then: Mapping[str, Any]) -> None:
    EVALUATION.write_text(json.dumps({**json.loads(EVALUATION.read_text()), "schema_version": 3}))
    with pytest.raises(LinesideError, match=r"not an evaluation .*schema_version"):
        read_evaluation(EVALUATION)
