"""Rollouts by vLLM, over the real protocol and a real process, in which tests/fake_vllm stands for vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lineside.backends.vllm_process import (
    ENGINE,
    environment,
    language_model_weights,
    model_problem,
    write_language_model,
)
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.model import generate
from lineside.model.adapter import attach, merge
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.tree import Node
from lineside.model.vlm import VLM
from lineside.recipe import Rates, Rlvr, Vllm
from lineside.rlvr import check_gap, rlvr
from lineside.settings import Lora
from lineside.training import rollout
from lineside.training.losses import dapo_loss
from lineside.training.metrics import read_metrics
from lineside.training.rollout import sampler_gap
from lineside.training.sampler import LocalSampler
from lineside.training.vllm_sampler import VllmSampler, sampler_of
from lineside.types import Group, Image, Judgement, Meta, Response, Sample, Source, Target, Verdict
from tests.conftest import fake_vllm, make_tiny_vlm, picture

QUESTIONS = ("how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Path]:
    """Makes a Python in whose environment there is a vLLM: the fake one, with a fault."""

    return partial(fake_vllm, tmp_path)


@pytest.fixture
def model() -> tuple[VLM, FeatureStore]:
    vlm = make_tiny_vlm()
    with torch.no_grad():
        for weight in vlm.language_model.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)  # far from even odds, so that wrong weights show
    return vlm, FeatureStore(None, vlm)


def prompts() -> list[Prompt]:
    """Questions of two frames by turns, with thinking on and off, one of them beside a reference."""
    frames = [Image(picture(0)), Image(picture(1))]
    beside = Image(picture(7), role="reference", name="red can")
    asked = [Prompt((frames[n % 2],), QUESTIONS[n % 3], thinking=n % 2 == 0) for n in range(5)]
    return [*asked, Prompt((frames[0], beside), QUESTIONS[0], thinking=True)]


def grouped(prompts: list[Prompt], rolled: list[Any]) -> list[Group]:
    sample = Sample("p", "prompt", (), "picking", "count", "", None, None, None, "train", Meta(), Source())
    return [
        Group(replace(sample, images=p.images, question=p.question), rollouts, ())
        for p, rollouts in zip(prompts, rolled, strict=True)
        if p.thinking  # how `lay_out` asks a task that it does not know
    ]


def test_rollouts_are_those_of_the_weights_as_they_are_now(
    model: tuple[VLM, FeatureStore], python: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where pictures are shared and references stand beside; each prompt gets its own; new weights are taken."""
    vlm, store = model
    asked, options = prompts(), {"samples": 3, "temperature": 0.7, "max_new_tokens": 8}
    settings = Rlvr(sampler="vllm", vllm=Vllm(python=python()))
    with sampler_of(vlm, store, settings, tmp_path, 5) as sampler:
        greedy, local = (one.sample(asked, max_new_tokens=8) for one in (sampler, LocalSampler(vlm, store)))
        assert [r.tokens for (r,) in greedy] == [r.tokens for (r,) in local]
        assert [r.finished for (r,) in greedy] == [r.finished for (r,) in local]
        first = sampler.sample(asked, seed=3, **options)
        assert sampler_gap(vlm, store, grouped(asked, first), 0.7) < 1e-4
        assert {r.policy_version for rollouts in first for r in rollouts} == {5}
        assert len({r.tokens for rollouts in first for r in rollouts}) > 9  # each of a group has draws of its own
        assert first == sampler.sample(asked, seed=3, **options) != sampler.sample(asked, seed=4, **options)
        assert isinstance(sampler, VllmSampler) and sampler._engine and sampler._folder
        process, folder = sampler._engine._process, sampler._folder
        with torch.no_grad():
            vlm.lm.decoder.layers[0].self_attn.v_proj.weight.mul_(-1.0)
        assert sampler_gap(vlm, store, grouped(asked, first), 0.7) > 0.05
        sampler.refresh(6)
        again = sampler.sample(asked, seed=3, **options)
        assert sampler_gap(vlm, store, grouped(asked, again), 0.7) < 1e-4
        assert sampler._engine._process is process and process.poll() is None
        assert [path.name for path in folder.glob("weights-*")] == ["weights-6"]
    assert process.poll() is not None and not folder.exists()


def test_the_encoders_time_is_not_that_of_reading_prompts(
    model: tuple[VLM, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured speed of a stage leaves out the encoder, which sees each picture only once."""
    vlm, store = model
    now, get = [0.0], store.get

    def slowly(images: Any) -> Any:
        now[0] += 100.0
        return get(images)

    monkeypatch.setattr(store, "get", slowly)
    monkeypatch.setattr(generate, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    timing = generate.Timing()
    _, places = generate.embedded(vlm, store, prompts(), 8, timing)
    assert timing == generate.Timing(features=100.0, prefill_tokens=sum(map(len, places)))


def prompt_rows(count: int) -> list[Sample]:
    target = Target("number", "sim", value=3, tolerance=40)
    meta, source = Meta(scene="s"), Source("sim")
    return [
        Sample(f"p{n}", "prompt", (Image(picture(n)),), "picking", "count", QUESTIONS[0], None, None, target, "train",
               replace(meta, scene=f"s{n}"), source)
        for n in range(count)
    ]  # fmt: skip


def test_stage_3_trains_on_its_rollouts_and_stops_if_they_are_not_of_its_weights(
    model: tuple[VLM, FeatureStore], python: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that says it took new weights, and did not, ends the stage before the step that it would spoil. The
    same command with a right one goes on from the state before; one on a CPU is started anew for each step."""

    def by_length(text: str, *_: object, **__: object) -> Judgement:  # so that groups are live
        reward = float(len(text) % 2)
        return Judgement(Response(None, text, "valid", ""), Verdict(reward, reward == 1, ""), reward)

    monkeypatch.setattr(rollout, "judge", by_length)
    vlm, store = model
    write_samples(tmp_path / "samples", prompt_rows(6))

    def train(fault: str) -> list[dict[str, Any]]:
        settings = Rlvr(
            sampler="vllm", vllm=Vllm(python=python(fault)), prompts=2, group_size=6, max_new_tokens=8, max_steps=3,
            prompt_choice="uniform", prompts_per_frame=1, overlong_cache=0, warmup=0.0, save_seconds=1e-6,
            learning_rate=Rates(projector=3e-2, lm=3e-2),
        )  # fmt: skip
        rlvr(vlm, store, tmp_path / "samples", tmp_path / "rlvr", settings)
        return read_metrics(tmp_path / "rlvr" / "metrics.jsonl")

    with pytest.raises(LinesideError, match=r"nats a token away from the trainer's.*sampler=local"):
        train("stale")
    rows = read_metrics(tmp_path / "rlvr" / "metrics.jsonl")
    assert len(rows) == 1 and rows[0]["sampler_gap"] < 1e-4
    assert rows[0]["importance"] == pytest.approx(1, abs=1e-3) and rows[0]["importance/capped"] == 0
    rows = train("cpu")
    assert len(rows) == 3 and all(row["sampler_gap"] < 1e-4 for row in rows)
    assert (tmp_path / "rlvr" / "checkpoint" / "config.json").is_file()


FAILS = {
    "old": r"has vLLM 0.9.1, and lineside needs 0.32 or newer.*pip install --upgrade vllm",
    "no-start": r"vLLM did not start: ValueError: the KV cache needs 7.0 GiB.*lower rlvr.vllm.memory",
    "killed": r"vLLM ended: it was killed, as the system does where memory runs out.*run the same command again",
    "mute": r"no answer within 0.2 seconds.*vllm.log; if it only needs longer, raise rlvr.vllm.patience",
}


@pytest.mark.parametrize("fault", FAILS)
def test_what_goes_wrong_in_the_engine_is_told(
    fault: str, model: tuple[VLM, FeatureStore], python: Callable[..., Path], tmp_path: Path
) -> None:
    settings = Vllm(python=python(fault))
    with sampler_of(*model, Rlvr(sampler="vllm", vllm=settings), tmp_path, 0) as sampler:
        assert isinstance(sampler, VllmSampler)
        if fault == "mute":
            sampler._with_weights()
            assert sampler._engine
            sampler._engine.patience = 0.2
        with pytest.raises(LinesideError, match=FAILS[fault]):
            sampler.sample(prompts(), max_new_tokens=4)
    assert (tmp_path / "vllm.log").exists()


def test_what_is_wrong_before_it_starts_is_told(
    model: tuple[VLM, FeatureStore], python: Callable[..., Path], tmp_path: Path
) -> None:
    def sample(path: Path | None, **more: Any) -> None:
        settings = Rlvr(sampler="vllm", vllm=Vllm(python=path, **more))
        with sampler_of(*model, settings, tmp_path, 0) as sampler:
            sampler.sample(prompts(), max_new_tokens=4)

    with pytest.raises(LinesideError, match=r"give vLLM's own Python as rlvr.vllm.python"):
        sample(None)
    with pytest.raises(LinesideError, match=r"no-such/python: no such program; make an environment for it"):
        sample(tmp_path / "no-such" / "python")
    with pytest.raises(LinesideError, match=r"cannot import vLLM: ModuleNotFoundError.*make an environment"):
        sample(python("none", found=tmp_path))
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(LinesideError, match=r"cannot be started .*make an environment"):
        sample(broken)
    broken.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(LinesideError, match=r"answered b'hello', which is not its protocol"):
        sample(broken)
    with pytest.raises(LinesideError, match=r"takes \d+ tokens, and vLLM is started for 20: set rlvr.vllm.context=\d+"):
        sample(python(), context=20)
    lm: Any = model[0].language_model
    lm.config.model_type = "qwen3_vl_text"
    assert "'qwen3_vl_text'" in model_problem(model[0])
    with pytest.raises(LinesideError, match=r"qwen3_vl_text.*set rlvr.sampler=local"):
        sample(python())


def test_the_engine_ends_with_the_trainer_and_takes_the_weights_along(
    model: tuple[VLM, FeatureStore], python: Callable[..., Path], tmp_path: Path
) -> None:
    write_language_model(model[0], tmp_path / "weights" / "weights-0")
    settings = {"model": str(tmp_path / "weights" / "weights-0"), "dtype": "float32", "max_model_len": 64,
                "memory": 0.3, "eos": 3, "banned": 5}  # fmt: skip
    trainer = (
        "import json, os, subprocess, sys, time\n"
        f"command = [{str(python())!r}, {str(ENGINE)!r}, str(os.getpid()), {str(tmp_path / 'weights')!r}]\n"
        "p = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)\n"
        "p.stdout.readline()\n"
        f"p.stdin.write(json.dumps({settings!r}) + chr(10)); p.stdin.flush()\n"
        "print(p.pid, json.loads(p.stdout.readline()), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        engine, answer = process.stdout.readline().split(maxsplit=1)
        assert answer.strip() == "{'reloads': True}"
        process.kill()
    until = time.monotonic() + 60
    while (Path("/proc") / engine).exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not (tmp_path / "weights").exists()


def test_an_adapter_is_added_to_the_weights_that_are_handed_over(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    vlm = make_tiny_vlm()
    attach(vlm, Lora(rank=2), tmp_path)
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if ".lora_" in name or name.endswith(".rows"):
                parameter.normal_(std=0.3)
    handed = language_model_weights(vlm)
    merge(vlm)
    plain = language_model_weights(vlm)
    assert set(handed) == set(plain) and "lm_head.weight" not in plain
    for name, weight in plain.items():
        torch.testing.assert_close(handed[name], weight, msg=name)


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
def test_the_folder_is_a_plain_model_of_text(lm: str, tmp_path: Path) -> None:
    vlm = make_tiny_vlm(lm=lm)
    write_language_model(vlm, tmp_path)
    alone: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = vlm.render.encode("how many red cans are in the bin?")
    packed = vlm.pack([Node(tokens[:3], children=(Node(tokens[3:], roles=(1,) * len(tokens[3:]), leaf=0),))])
    logits = alone(torch.tensor([tokens])).logits[0].detach()
    logits[:, vlm.render.image_id] = -torch.inf
    want = logits.log_softmax(-1)[range(2, len(tokens) - 1), tokens[3:]]
    torch.testing.assert_close(vlm.logprobs(packed, None).detach(), want, atol=1e-5, rtol=1e-4)
    assert alone.config.eos_token_id == vlm.render.eos_id


def test_what_torchrun_says_is_kept_from_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    on_cpu, on_gpu = environment(torch.device("cpu")), environment(torch.device("cuda", 1))
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "PYTHONPATH"} & set(on_cpu)
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "4,6" and on_gpu["CUDA_VISIBLE_DEVICES"] == "6"
    assert on_cpu["PATH"] == os.environ["PATH"]


def test_the_bound_is_that_of_the_number_format_or_the_users() -> None:
    check_gap(0.05, torch.bfloat16, Rlvr(sampler="vllm"))
    for gap, dtype in ((0.05, torch.float32), (0.2, torch.bfloat16), (float("nan"), torch.bfloat16)):
        with pytest.raises(LinesideError, match="nats a token"):
            check_gap(gap, dtype, Rlvr(sampler="vllm"))
    check_gap(0.05, torch.float32, Rlvr(sampler="vllm", vllm=Vllm(max_gap=0.06)))


def test_a_token_weighs_as_much_as_the_sampler_underrated_it_and_at_most_the_cap() -> None:
    """By hand: p/q is 2, 0.5 and 8 for tokens of advantage 1, -1 and 2, so the weights are 2, 0.5 and 3."""
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    sampled = logprobs.detach() - torch.tensor([2.0, 0.5, 8.0]).log()
    advantages = torch.tensor([1.0, -1.0, 2.0])
    loss, metrics = dapo_loss(logprobs, advantages, 3, sampled_logprobs_T=sampled, importance_cap=3.0)
    assert loss.item() == pytest.approx(-(2 * 1 + 0.5 * -1 + 3 * 2) / 3)
    assert metrics["importance"].item() == pytest.approx(5.5 / 3)
    assert metrics["importance/capped"].item() == pytest.approx(1 / 3)
    loss.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -torch.tensor([2.0, -0.5, 6.0]) / 3)
    plain, metrics = dapo_loss(logprobs, advantages, 3, sampled_logprobs_T=sampled)
    assert plain.item() == pytest.approx(-2 / 3) and "importance" not in metrics
