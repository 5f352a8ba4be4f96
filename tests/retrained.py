"""Retrainings in processes of their own, forked from one that has imported everything; one of them is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import tensorboard.summary.writer.record_writer  # noqa: F401  here: children share it
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import lineside.evaluate
import lineside.plan
import lineside.retrain
import lineside.train
import lineside.training.stage
from lineside import cli
from lineside.data.store import write_samples
from lineside.model.checkpoint import save
from lineside.recipe import Recipe, dump_recipe
from lineside.training.lineage import note_inputs, note_parent, write_lineage
from lineside.training.optim import Optimizer
from tests.conftest import make_tiny_vlm
from tests.test_train import recipe, rows

FAST = ("evaluate.calibration=0", "evaluate.caption_pairs=0", "evaluate.modes=[think]", "evaluate.max_new_tokens=8")


def make_floor(folder: Path) -> Recipe:
    """A champion's run that no training made, what it says it was trained on, and a new week."""
    write_samples(folder / "samples", rows("train", range(12)) + rows("heldout", range(30, 36)))
    write_samples(folder / "week1", rows("train", range(50, 56)) + rows("heldout", range(60, 63)))
    given = recipe(folder, stages="[align, sft]", controls="[]")
    for stage in ("align", "sft"):
        save(make_tiny_vlm(), given.folder / stage / "checkpoint")
    (given.folder / "recipe.yaml").write_text(dump_recipe(given))
    note_inputs(given.folder, given, folder / "samples")
    note_parent(given.folder / "sft", given.folder / "align" / "checkpoint")
    write_lineage(given.folder, "sft", given)
    return given


def call(*words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a verb."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def _forked(work: Callable[[], int]) -> int:
    """The exit status of work in a process of its own; a negative one is the signal that ended it."""
    if not (child := os.fork()):
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed(number: int, work: Callable[[], int]) -> int:
    """Work that SIGKILL ends in the middle of an optimiser step."""
    whole, steps = Optimizer.step, []

    def step(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        steps.append(1)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, scale)

    with patch.object(Optimizer, "step", step):
        return work()


def killed_and_unbroken(folder: Path) -> None:
    """A retraining that is killed and goes on, and the same one unbroken; then the gate. What is found lies in the
    folder as found.json."""
    torch.set_num_threads(1)
    with (
        patch.object(lineside.plan, "measure_matrix_rate", lambda *_, **__: 420e9),
        patch.object(lineside.training.stage, "matrix_rate", lambda *_: 1e9),
        patch.object(lineside.train, "close_run", lambda *_: None),  # the report: other tests read it
    ):
        result = _found(folder)
    (folder / "found.json").write_text(json.dumps(result))


def _found(folder: Path) -> dict[str, object]:
    make_floor(folder)
    registry = ("--registry", folder / "registry")
    statuses = [call("register", folder / "runs" / "tiny", "--name", "bins", *registry)[0]]
    statuses.append(call("promote", "bins@1", *registry)[0])

    def work(out: str, *words: str) -> int:
        changes = [word for change in (*FAST, "sft.max_steps=5", "sft.save_seconds=1e-9") for word in ("--set", change)]
        run = ("retrain", "bins", folder / "week1", "--minutes", 5, "--out", folder / "runs" / out)
        status, told, said = call(*run, *changes, *registry, *words)
        with (folder / f"{out}.txt").open("a") as file:
            file.write(told + said)
        return status

    statuses.append(_forked(lambda: _killed(4, lambda: work("broken"))))
    found: dict[str, object] = {"states": [path.name for path in (folder / "runs/broken/sft/state").glob("step-*")]}
    statuses.append(_forked(lambda: work("broken", "--gate")))
    statuses.append(_forked(lambda: work("whole")))
    write_samples(folder / "week1", rows("train", range(56, 57)))
    changed = _forked(lambda: work("broken"))
    one, other = (load_file(folder / "runs" / out / "sft/checkpoint/model.safetensors") for out in ("broken", "whole"))
    before = load_file(folder / "runs/tiny/sft/checkpoint/model.safetensors")
    return found | {
        "statuses": statuses,
        "changed": changed,
        "equal": all(torch.equal(one[name], other[name]) for name in one),
        "trained": [name for name in one if not torch.equal(one[name], before[name])],
        "models": json.loads(call("models", "--json", *registry)[1])["models"],
        "said": {out: (folder / f"{out}.txt").read_text() for out in ("broken", "whole")},
    }
