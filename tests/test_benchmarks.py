"""The benchmarks rehearsed on a tiny model: every script ends well and both sides compute the same. Never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rehearse(script: str, file: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a rehearsal writes; anything but exit status 0 fails."""
    pytest.importorskip("trl")
    command = [sys.executable, str(BENCHMARKS / script), "--tiny", "--repeats", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((BENCHMARKS / "out" / file).read_text())
    assert all({"work", "peer", "ratio", "at_least", "equal", "ours_s", "peer_s"} <= set(row) for row in rows)
    return rows


@pytest.mark.slow
def test_every_comparison_runs_and_both_sides_are_equal() -> None:
    rows = rehearse("run_all.py", "results-tiny.json")
    compared = [row["equal"] for row in rows if row["equal"] is not None]
    assert len(compared) >= 8 and all(compared)


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    rows = rehearse("run_all.py", "results-tiny-cuda.json", "--device", "cuda")
    compared = [row["equal"] for row in rows if row["equal"] is not None]
    assert len(compared) >= 8 and all(compared)


def gpu_benchmark(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr[-3000:]


def test_the_gpu_benchmark_is_rehearsed_on_the_cpu_and_says_so() -> None:
    status, told = gpu_benchmark("--device", "cpu", "--tiny")
    assert status == 0, told
    assert "a REHEARSAL, not a measurement" in told
    assert "sft, tiny: " in told and "rlvr, tiny: " in told and told.count("not measured") >= 3
    (claim,) = json.loads((BENCHMARKS / "out" / "gpu-rehearsal.json").read_text())
    assert claim["claim"] == "largest difference of a stage from the CPU's" and claim["holds"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run() -> None:
    status, told = gpu_benchmark()
    assert status == 2 and "there is no CUDA device here" in told and "nothing was run" in told


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_gpu_benchmark_on_a_gpu() -> None:
    status, told = gpu_benchmark()
    assert status in (0, 1) and "largest difference of a stage from the CPU's" in told, told


@pytest.mark.slow
def test_a_step_with_and_without_a_critic_trains_on_the_same_rollouts() -> None:
    command = [sys.executable, str(BENCHMARKS / "no_critic.py"), "--tiny", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((BENCHMARKS / "out" / "results-tiny.json").read_text())
    rows = [row for row in rows if row["peer"].startswith("PPO")]
    assert {row["peer"] for row in rows} == {"PPO, critic", "PPO, critic and reward model"}
    assert all(row["equal"] and row["at_least"] is None and row["memory_ratio"] > 0 for row in rows)
    assert all("192 tokens trained on in each step" in row["details"] for row in rows)  # 4 prompts x 8 x 6


def test_advantages_of_ppo_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from no_critic import gae

    # The last token: 1 - 0.25 = 0.75. The first: 0.25 - 0.5 + 0.95 * 0.75 = 0.4625. Returns add the values.
    advantages, returns = gae(torch.tensor([[0.5, 0.25], [0.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert torch.allclose(advantages, torch.tensor([[0.4625, 0.75], [0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.9625, 1.0], [0.0, 0.0]]))


@pytest.mark.slow
def test_live_prompts_against_uniform_ones() -> None:
    command = [sys.executable, str(BENCHMARKS / "live_prompts.py"), "--tiny", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "live on exactness, of groups sampled: 0." in done.stdout
    assert "steps a minute, live to uniform" in done.stdout
