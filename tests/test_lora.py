"""LoRA: the base stays bit-identical, every backend computes the adapter at any number of rows, files are peft's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

import lineside.training.rollout
import lineside.training.stage
from lineside.ask import ask
from lineside.backends.adapters import Rows
from lineside.backends.cpu import Cpu, why_not_laid_out
from lineside.backends.cuda import Cuda
from lineside.backends.reference import Reference
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.export import export
from lineside.judgement.calibration import read_calibration
from lineside.model import adapter
from lineside.model.checkpoint import family_of, load, load_trainable, save, weights_of
from lineside.model.config import CONFIG, base_of
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.vlm import VLM
from lineside.recipe import Rates, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.runtime import Runtime
from lineside.settings import Lora
from lineside.sft import sft
from lineside.train import _Run, train
from lineside.training.lineage import read_lineage
from lineside.training.optim import Optimizer, ParameterGroup
from lineside.training.rollout import sampler_gap
from lineside.training.stage import trainable
from lineside.types import Group, Image, Meta, Sample, Source
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs
from tests.families.finished import KINDS
from tests.families.test_finished import image, tree_of
from tests.model.test_tree import cases, features_for
from tests.small_run import by_length, frame_samples, weights
from tests.test_train import ASKED, recipe, rows, save_parts

peft = pytest.importorskip("peft")
SHAPE = Lora(rank=4, alpha=8, dropout=0.2)
RATES = Rates(projector=1e-2, lora=5e-2)
PARTS: Any = ("projector", "lora")


@pytest.fixture(autouse=True)
def no_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineside.training.stage, "matrix_rate", lambda *_: 1e9)  # measuring takes longer than a stage


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    save(make_tiny_vlm(), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_samples(folder, [s for frame in range(4) for s in frame_samples(frame)])
    return folder


def untied(folder: Path) -> Path:
    """A checkpoint whose head has weights of its own."""
    vlm = make_tiny_vlm()
    vlm.model.lm_head.weight = nn.Parameter(vlm.model.lm_head.weight.detach() + 0.1)
    for config in (vlm.model.config, vlm.model.config.text_config):
        config.tie_word_embeddings = False
    save(vlm, folder)
    return folder


def shaken(vlm: VLM, scale: float = 0.3) -> VLM:
    """Its adapter with numbers that change every answer."""
    seeded = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapter.parameters(vlm):
            if "lora_A" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=seeded) * scale)
    return vlm


def scored(vlm: VLM) -> torch.Tensor:
    return vlm.logprobs(vlm.pack(cases(vlm)), features_for(cases(vlm)))


@pytest.mark.parametrize("tied", [True, False])
def test_peft_and_transformers_load_what_was_trained(base: Path, tmp_path: Path, tied: bool) -> None:
    base = base if tied else untied(tmp_path / "base")
    vlm = load_trainable(base, SHAPE)
    plain = scored(load(base))
    torch.testing.assert_close(scored(vlm), plain, atol=2e-6, rtol=0)  # a new adapter changes nothing
    shaken(vlm).thinking = replace(vlm.thinking, tasks={"a/b": False})
    parts = dict(trainable(vlm, PARTS))
    now = scored(vlm)
    assert float((now - plain).detach().abs().max()) > 0.1
    torch.testing.assert_close(now, torch.cat(dense_logprobs(vlm, cases(vlm), features_for(cases(vlm)))), atol=2e-5,
                               rtol=1e-5)  # fmt: skip
    now.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in parts["lora"] if "lora_" in name)
    assert len([name for name, _ in parts["lora"] if name.endswith("rows")]) == (1 if tied else 2)

    save(vlm, tmp_path / "sft" / "checkpoint")
    merged, added = load(tmp_path / "sft" / "checkpoint"), load(tmp_path / "sft" / "adapter")
    assert vlm.adapter is None and all(torch.equal(weights(merged)[n], w) for n, w in weights(added).items())
    torch.testing.assert_close(scored(merged), now.detach(), atol=2e-5, rtol=1e-5)
    assert added.thinking.tasks == {"a/b": False} and (tmp_path / "sft" / "adapter" / "tokenizer.json").exists()
    theirs = AutoModelForImageTextToText.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "sft" / "adapter").merge_and_unload().state_dict()
    alone = AutoModelForImageTextToText.from_pretrained(tmp_path / "sft" / "checkpoint").state_dict()
    assert theirs.keys() == alone.keys() and all(torch.equal(theirs[name], w) for name, w in alone.items())
    again = load_trainable(tmp_path / "sft" / "adapter", replace_alpha(SHAPE))
    torch.testing.assert_close(scored(again), now.detach(), atol=2e-6, rtol=0)  # it goes on
    assert again.adapter is not None and again.adapter.base == base


def test_the_same_adapter_is_the_same_file(base: Path, tmp_path: Path) -> None:
    """Ten times: a header of two texts in a random order would be the same by chance once in five hundred."""
    found = adapter.stored(shaken(load_trainable(base, SHAPE)))
    files = set[bytes]()
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        adapter.write(folder, found, base)
        files.add((folder / adapter.WEIGHTS).read_bytes())
    assert len(files) == 1
    with safe_open(tmp_path / "0" / adapter.WEIGHTS, framework="pt") as file:
        assert set(file.metadata()) == {"format", adapter.BASE}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in found.tensors.items())


def replace_alpha(lora: Lora) -> Lora:
    """The same shape; dropout is none of it."""
    return lora.model_copy(update={"dropout": 0.0, "alpha": 8.0})


@pytest.fixture(params=[Cpu, Cuda, Reference])
def backend(request: pytest.FixtureRequest) -> Iterator[Reference]:
    if request.param is Cpu and not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    yield request.param()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sampler_is_the_policy_at_any_number_of_rows(base: Path, backend: Reference, dtype: torch.dtype) -> None:
    vlm = load_trainable(base, SHAPE, dtype=dtype)
    store, asked = FeatureStore(None, vlm), sample_of(0)
    prompt = Prompt(asked.images, asked.question, True)
    trainable(vlm, PARTS)

    def gap(rows: int) -> float:
        vlm.backend = backend
        (group,) = generate(vlm, store, [prompt], samples=rows, temperature=1.0, max_new_tokens=8)
        vlm.backend = Reference()  # the trainer
        return sampler_gap(vlm, store, [Group(asked, group, ())], 1.0)

    bound = 2e-6 if dtype == torch.float32 else 0.02
    for scale in (0.3, 0.002):  # the second is less than bf16 could hold, added to a weight
        shaken(vlm, scale)
        assert not why_not_laid_out(vlm.lm)
        assert max(map(gap, (1, 8, 40))) < bound
    (group,) = generate(vlm, store, [prompt], samples=8, temperature=1.0, max_new_tokens=8)
    with torch.no_grad():  # a sampler that passes the adapter over would be seen
        for name, parameter in adapter.parameters(vlm):
            parameter.mul_(0 if "lora_B" in name else 1)
    assert sampler_gap(vlm, store, [Group(asked, group, ())], 1.0) > 0.05


def sample_of(frame: int) -> Sample:
    return Sample("a", "prompt", (Image(picture(frame)),), "picking", "count", "how many red cans?", None, None, None,
                  "train", Meta(scene="s"), Source("sim"))  # fmt: skip


def test_what_is_unknown_about_an_adapter_is_not_laid_out(base: Path) -> None:
    vlm = load_trainable(base, SHAPE)
    assert not why_not_laid_out(vlm.lm)
    with adapter.dropping(vlm):
        assert "down_proj" in why_not_laid_out(vlm.lm) or "q_proj" in why_not_laid_out(vlm.lm)
    layer: Any = vlm.language_model.get_submodule("layers.1.mlp.up_proj")
    layer.lora_B["default"].register_forward_hook(lambda *_: None)
    assert "has hooks" in why_not_laid_out(vlm.lm)
    with pytest.raises(ValueError, match="cannot train alone"):
        Rows(nn.Conv1d(1, 1, 1), [0], nn.Parameter(torch.zeros(1, 1)))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stages_two_and_three_train_the_adapter_and_no_other_weight_moves(
    base: Path, data: Path, tmp_path: Path, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineside.training.rollout, "judge", by_length)
    before = weights(load(base))
    vlm = load_trainable(base, SHAPE)
    settings = Sft(epochs=16, step_tokens=300, optimizer=optimizer, learning_rate=RATES, train=PARTS)
    sft(vlm, FeatureStore(None, vlm), data, tmp_path / "sft", settings)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    vlm = load_trainable(tmp_path / "sft" / "adapter", SHAPE.model_copy(update={"dropout": 0.0}))
    third = Rlvr(epochs=1, prompts=4, group_size=4, max_new_tokens=12, overlong_cache=0, learning_rate=RATES,
                 optimizer=optimizer, train=PARTS)  # fmt: skip
    held: dict[str, torch.Tensor] = {}
    kept = lineside.training.stage.save

    def seen(vlm: VLM, folder: Path) -> None:
        held.update({name.replace(".base_layer", ""): w for name, w in weights(vlm).items()})
        kept(vlm, folder)

    monkeypatch.setattr(lineside.training.stage, "save", seen)
    rlvr(vlm, FeatureStore(None, vlm), data, tmp_path / "rlvr", third)
    assert [name for name, w in before.items() if not torch.equal(w, held[name])] == [
        name for name in before if "projector" in name
    ]  # tower, language model, embeddings and head below the adapter are those of the base, bit by bit
    stored = load_file(tmp_path / "rlvr" / "adapter" / adapter.WEIGHTS)
    first = load_file(tmp_path / "sft" / "adapter" / adapter.WEIGHTS)
    moved = {name for name in stored if not torch.equal(stored[name], first[name])}
    assert moved == set(stored)  # the same adapter went on
    assert json.loads((tmp_path / "rlvr" / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
    last = [json.loads(line) for line in (tmp_path / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert last and all(row["sampler_gap"] < 1e-5 for row in last)


def test_a_stage_with_dropout_goes_on_bit_by_bit(base: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for folder, steps in ((tmp_path / "unbroken", (6,)), (tmp_path / "resumed", (3, 6))):
        for limit in steps:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            vlm = load_trainable(base, SHAPE, dtype=torch.bfloat16, seed=2)
            settings = Sft(epochs=9, step_tokens=300, max_steps=6, learning_rate=RATES, train=PARTS,
                           schedule="constant", warmup=0.0)  # fmt: skip
            stop_after(limit, vlm, data, folder, settings)
        found.append(load_file(folder / "adapter" / adapter.WEIGHTS))
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    vlm = load_trainable(base, SHAPE.model_copy(update={"dropout": 0.0}), dtype=torch.bfloat16, seed=2)
    stop_after(6, vlm, data, tmp_path / "whole", settings)
    whole = load_file(tmp_path / "whole" / "adapter" / adapter.WEIGHTS)
    assert any(not torch.equal(found[0][name], tensor) for name, tensor in whole.items())  # dropout acts


def stop_after(limit: int, vlm: VLM, data: Path, folder: Path, settings: Sft) -> None:
    """A stage that is interrupted in step `limit`, if that is not its last."""
    step, done = Optimizer.step, []

    def counted(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        done.append(1)
        if len(done) == limit < 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, scale)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(lineside.training.stage.Stopped):
        patch.setattr(Optimizer, "step", counted)
        sft(vlm, FeatureStore(None, vlm), data, folder, settings, runtime=Runtime(seed=1))


def test_only_one_of_lm_and_adapter_trains(base: Path) -> None:
    vlm = load_trainable(base, SHAPE)
    with pytest.raises(ValueError, match="do not train"):
        trainable(vlm, ("projector", "lm"))
    with pytest.raises(ValueError, match="attach one"):
        trainable(load(base), PARTS)
    trainable(vlm, PARTS)
    freed = [name for name, p in vlm.model.named_parameters() if p.requires_grad]
    assert all(any(part in name for part in (".lora_", ".rows", "projector")) for name in freed)


def test_the_optimiser_holds_the_adapter_alone(base: Path) -> None:
    """Twelve bytes a parameter in bf16: float32 master and two moments. Counted by hand for 2 layers of width 32."""
    vlm = load_trainable(base, Lora(rank=4), dtype=torch.bfloat16)
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]  # in, out of q k v o gate up down
    own = 2 * sum(4 * (a + b) for a, b in sizes) + 2 * 32  # and two rows of embeddings, tied with the head
    optimizer = Optimizer([ParameterGroup(part, named, 1e-3) for part, named in trainable(vlm, ("lora",))])
    scored(vlm).sum().backward()
    optimizer.step()
    tensors = {name: t for name, t in optimizer.state_dict().items() if not name.endswith("step")}
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 12 * own


def test_what_is_wrong_with_an_adapter_is_told(base: Path, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"lora.targets: .* no linear layer w_proj; it has .*q_proj"):
        load_trainable(base, Lora(targets=("w_proj",)))
    run = tmp_path / "run"
    shutil.copytree(base, run / "align" / "checkpoint")
    save(shaken(load_trainable(run / "align" / "checkpoint", SHAPE)), run / "sft" / "checkpoint")
    folder = run / "sft" / "adapter"
    with pytest.raises(LinesideError, match=r"rank: 4, alpha: 8, .* and the recipe lora: \{rank: 2"):
        load_trainable(folder, Lora(rank=2, alpha=8))
    want = scored(load(folder))
    assert family_of(folder).kind == "llava"  # its few weights are not compared with a whole model
    run.rename(tmp_path / "elsewhere")  # a run that was moved as a whole
    folder = tmp_path / "elsewhere" / "sft" / "adapter"
    assert torch.equal(scored(load(folder)), want)
    weight_file = folder.parents[1] / "align" / "checkpoint" / "model.safetensors"
    tensors = load_file(weight_file)
    save_file({name: t + 1 for name, t in tensors.items()}, weight_file, metadata={"format": "pt"})
    with pytest.raises(LinesideError, match="was trained on other weights than those of"):
        load(folder)
    shutil.rmtree(weight_file.parent)
    with pytest.raises(LinesideError, match="needs the checkpoint that it was trained on, and there is none at"):
        load(folder)
    config = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": str(base)}
    (folder / CONFIG).write_text(json.dumps(config))
    assert torch.equal(scored(load(folder)), want)
    some = load_file(folder / adapter.WEIGHTS)
    save_file(dict(list(some.items())[1:]), folder / adapter.WEIGHTS)
    with pytest.raises(LinesideError, match=r"does not fit its base: .*embed_tokens"):
        load(folder)
    (folder / adapter.WEIGHTS).write_bytes(b"half")
    with pytest.raises(LinesideError, match="not readable as weights"):
        load(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(LinesideError, match="cannot be read as JSON"):
        load(folder)


def test_a_run_with_an_adapter_is_judged_merged_and_every_verb_takes_both(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", [*rows("train", range(6)), *rows("dev", range(20, 22)),
                                         *rows("heldout", range(30, 32))])  # fmt: skip
    train_lora = "[projector, lora]"
    changes: dict[str, object] = {
        "controls": "[]", "evaluate.modes": "[think]", "evaluate.baselines": "false", "evaluate.caption_pairs": 0,
        "lora": "{rank: 4, alpha: 8, dropout: 0.1}", "sft.train": train_lora, "rlvr.train": train_lora,
        "sft.learning_rate": "{projector: 1e-2, lora: 5e-2}", "sft.epochs": 8, "rlvr.max_steps": 1,
        "evaluate.calibration": 2,
    }  # fmt: skip
    run = train(recipe(tmp_path, **changes))
    parent = json.loads((run / "rlvr" / "parent.json").read_text())
    assert parent["checkpoint"] == str(run / "sft" / "adapter")  # it went on, beside the weights of align
    assert base_of(run / "rlvr" / "adapter") == (run / "align" / "checkpoint").resolve()
    came = read_lineage(run / "rlvr" / "adapter")
    assert came and came == read_lineage(run / "rlvr" / "checkpoint") and came["parent"]["lineage"]["stage"] == "sft"
    picture_file = tmp_path / "frame.png"
    picture_file.write_bytes(picture(30))
    folders = [run / "rlvr" / kind for kind in ("checkpoint", "adapter")]
    both = [ask(folder, picture_file, ASKED, max_new_tokens=16).typed for folder in folders]
    assert both[0] == both[1].model_copy(update={"ms": both[0].ms}) and both[0].task == "picking/count_all"
    calibrations = [read_calibration(folder, "float32") for folder in folders]
    assert [why for _, why in calibrations] == ["", ""]  # those of the adapter are valid too
    out = export(run / "rlvr" / "adapter", to="merged", weights="fp32", out=tmp_path / "merged")
    assert out.check.overall is not None and out.check.overall.max_difference < 1e-3
    with pytest.raises(LinesideError, match="holds an adapter, and not all weights"):
        weights_of(run / "rlvr" / "adapter")

    with pytest.raises(LinesideError, match=r"lora.rank: 4 -> 8"):
        train(recipe(tmp_path, **changes | {"lora": "{rank: 8, alpha: 8, dropout: 0.1}"}))
    other = changes | {"name": "other", "stages": "[rlvr]", "rlvr.from": run / "sft", "lora": "{rank: 2}"}
    with pytest.raises(LinesideError, match=r"rank: 4.* and the recipe lora: \{rank: 2.*rlvr.from=.*sft/checkpoint"):
        train(recipe(tmp_path, **other))
    settings = recipe(tmp_path, **other)
    assert _Run(settings, settings.folder).parent("rlvr") == run / "sft" / "adapter"
    settings = recipe(tmp_path, **other | {"rlvr.from": run / "sft" / "checkpoint"})
    assert _Run(settings, settings.folder).parent("rlvr") == run / "sft" / "checkpoint"
    settings = recipe(tmp_path, **other | {"rlvr.train": "[projector, lm]"})
    assert _Run(settings, settings.folder).parent("rlvr") == run / "sft" / "checkpoint"


@pytest.mark.parametrize("train_parts", ["[lm, lora]", "[projector, projector]", "[]", "[encoder]"])
def test_parts_that_cannot_train_together_are_refused(tmp_path: Path, train_parts: str) -> None:
    with pytest.raises(LinesideError, match=r"sft\.train"):
        recipe(tmp_path, **{"sft.train": train_parts})


@pytest.mark.parametrize("name", ["smolvlm", "qwen3_vl"])  # a projector of one part beside the tower, of two within it
def test_a_finished_model_takes_an_adapter(tmp_path: Path, name: str) -> None:
    save(load(KINDS[name].build(tmp_path / "hub")), tmp_path / "base" / "checkpoint")
    vlm = shaken(load_trainable(tmp_path / "base" / "checkpoint", SHAPE))
    tree, shown = tree_of(vlm, [image(0)], 2)
    store, asked = FeatureStore(None, vlm, dtype=torch.float32), replace(sample_of(0), images=tuple(shown))
    want = vlm.logprobs(vlm.pack([tree]), store.get(shown)).detach()

    def gap(kind: type[Reference], rows: int) -> float:
        vlm.backend = kind()
        prompt = Prompt(asked.images, asked.question, True)
        (group,) = generate(vlm, store, [prompt], samples=rows, temperature=1.0, max_new_tokens=6)
        vlm.backend = Reference()  # the trainer
        return sampler_gap(vlm, store, [Group(asked, group, ())], 1.0)

    kinds = (Cpu, Reference) if shutil.which("g++") else (Reference,)
    assert max(gap(kind, rows) for kind in kinds for rows in (1, 40)) < 2e-6
    save(vlm, tmp_path / "sft" / "checkpoint")
    added, merged = (load(tmp_path / "sft" / kind) for kind in ("adapter", "checkpoint"))
    assert all(torch.equal(weights(merged)[n], w) for n, w in weights(added).items())
    features = FeatureStore(None, added, dtype=torch.float32).get(shown)
    torch.testing.assert_close(added.logprobs(added.pack([tree]), features), want, atol=2e-6, rtol=0)
