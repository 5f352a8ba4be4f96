"""`torchrun -m lineside`: a run by two processes, with one voice. Slow: five processes import torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lineside.data.store import write_samples
from lineside.train import train
from lineside.training.metrics import read_metrics
from tests.test_train import recipe, rows, save_parts

pytestmark = pytest.mark.slow
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*words: str, restarts: int = 0) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*TORCHRUN, "--max-restarts", str(restarts), "-m", "lineside", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **pipes,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A recipe, and what it needs; its run is runs/tiny."""
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(12)) + rows("heldout", range(30, 36)))
    recipe(tmp_path)
    return tmp_path


def test_two_processes_do_a_run_and_rank_0_alone_speaks_and_writes(run: Path) -> None:
    words = ("controls=[answers]", "sft.epochs=4", "rlvr.max_sampling_rounds=1")
    done = torchrun("train", str(run / "recipe.yaml"), *words)
    out, err = done.communicate(timeout=1500)
    assert done.returncode == 0, err
    folder = run / "runs" / "tiny"
    for stage in ("align", "sft", "rlvr", "answers"):
        assert (folder / stage / "checkpoint" / "model.safetensors").exists()
        assert (folder / "evaluation" / f"{stage}-heldout-think.json").exists()
        assert err.count(f"{stage}-heldout-think: exact") == 1
    assert "</html>" in (folder / "report.html").read_text()
    assert err.count("computing on") == 1 and err.count("sft: 48 frames") == 1 and "Traceback" not in err
    told = len(read_metrics(folder / "sft" / "metrics.jsonl"))
    steps = [row["step"] for row in read_metrics(folder / "sft" / "metrics.jsonl")]
    assert steps == list(range(1, told + 1))

    found = torchrun("validate", str(run / "samples"), "--json")  # what is not training is done by rank 0
    out, err = found.communicate(timeout=600)
    assert found.returncode == 0 and json.loads(out), err


def test_what_is_wrong_is_said_once_and_an_interrupt_saves(run: Path) -> None:
    wrong = torchrun("train", str(run / "recipe.yaml"), "align.epoch=3")
    _, err = wrong.communicate(timeout=600)
    assert wrong.returncode != 0 and err.count("did you mean") == 1 and not (run / "runs").exists()

    changes: dict[str, object] = {"evaluate.splits": "[]", "sft.epochs": 100000, "sft.max_steps": 150, "controls": "[]"}
    words = [f"{key}={value}" for key, value in changes.items()]
    long = torchrun("sft", str(run / "recipe.yaml"), *words)
    curve = run / "runs" / "tiny" / "sft" / "metrics.jsonl"
    while long.poll() is None and not (curve.exists() and len(read_metrics(curve)) > 3):
        time.sleep(0.1)
    long.send_signal(signal.SIGINT)
    _, err = long.communicate(timeout=600)
    assert long.returncode != 0 and err.count("stopping after this step") == 1
    assert err.count("interrupted; finished work is kept") == 1 and "bug in lineside" not in err
    (state,) = (curve.parent / "state").iterdir()
    assert int(state.stem.removeprefix("step-")) == read_metrics(curve)[-1]["step"] < 150
    train(recipe(run, **changes), last="sft")  # one process goes on
    assert [row["step"] for row in read_metrics(curve)] == list(range(1, 151))


def process_of(parent: int, rank: int) -> int:
    """The process that torchrun has started for a rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


def test_torchrun_starts_a_killed_run_again_and_it_goes_on(run: Path) -> None:
    words = ("evaluate.splits=[]", "sft.epochs=1000", "sft.max_steps=40", "sft.save_seconds=0.1", "controls=[]")
    long = torchrun("sft", str(run / "recipe.yaml"), *words, restarts=1)
    curve = run / "runs" / "tiny" / "sft" / "metrics.jsonl"
    while long.poll() is None and not (curve.exists() and len(read_metrics(curve)) > 5):
        time.sleep(0.1)
    os.kill(process_of(long.pid, rank=1), signal.SIGKILL)
    _, err = long.communicate(timeout=1500)
    assert long.returncode == 0, err
    assert err.count("a process of this run has ended without a word") == 1 and err.count(": continuing") == 1
    assert [row["step"] for row in read_metrics(curve)] == list(range(1, 41))
    assert (curve.parent / "checkpoint" / "model.safetensors").exists()
