"""Processes that train together, as torchrun starts them, but forked from one that has imported everything.

python -m tests.forked SCENARIO FOLDER      a function below; what it finds lies in the folder as found.json
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import tensorboard.summary.writer.record_writer  # noqa: F401  here: children share it
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule, fully_shard

import lineside.rlvr
import lineside.training.rollout
import lineside.training.stage
from lineside import progress, ranks
from lineside.align import align
from lineside.data.store import write_samples
from lineside.images import image_key
from lineside.model.checkpoint import load, load_trainable, save
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.ranks import ends_step, is_sharded, joined
from lineside.recipe import Align, ProjectorRate, Rates, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.runtime import CPU, Runtime
from lineside.settings import Lora
from lineside.sft import sft
from lineside.training.metrics import WARNINGS, read_metrics
from lineside.training.one_answer import Answers
from lineside.training.optim import Optimizer
from lineside.training.rollout import live
from lineside.training.sampler import LocalSampler
from lineside.training.stage import Stage
from lineside.training.watch import Alarm, Watch
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture
from tests.families.finished import KINDS
from tests.small_run import by_length, frame_samples, logged, run_stages, weights

Work = Callable[[Runtime, Path], Any]
Weights = dict[str, torch.Tensor]


def run(work: Work, count: int, folder: Path, *, machines: int = 1) -> list[int]:
    """The exit statuses of `count` processes that do the work; a negative one is the signal that ended it. This
    process must not have computed a gradient: autograd does not survive a fork."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, here = [], count // machines
    for rank in range(count):
        if not (child := os.fork()):
            names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
            os.environ |= {name: str(number) for name, number in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(_child(work, folder))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _child(work: Work, folder: Path) -> int:
    try:
        with joined(CPU) as runtime:
            progress.be_quiet(runtime.rank > 0)
            work(runtime, folder)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def keep(runtime: Runtime, folder: Path, found: Weights, curves: Mapping[str, Any]) -> None:
    """Rank 0 writes what it has."""
    if runtime.rank == 0:
        save_file(found, folder / "weights.safetensors")
        (folder / "curves.json").write_text(json.dumps(curves))


def difference(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference between the weights of two runs, and the largest relative one between their curves."""
    return apart(one, other), max(by_step(one, other))


def apart(one: Path, other: Path, file: str = "weights.safetensors") -> float:
    """The largest difference between the tensors that two runs have kept."""
    kept = [load_file(folder / file) for folder in (one, other)]
    return max(float((tensor.float() - kept[1][name].float()).abs().max()) for name, tensor in kept[0].items())


def by_step(one: Path, other: Path) -> list[float]:
    """The largest relative difference between what two runs have logged of each step."""
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (one, other)]
    assert [[sorted(row) for row in rows] for rows in curves[0].values()] == [
        [sorted(row) for row in rows] for rows in curves[1].values()
    ]
    return [
        max(abs(row[name] - theirs[name]) / max(abs(row[name]), abs(theirs[name]), 1e-2) for name in row)
        for stage in curves[0] for row, theirs in zip(curves[0][stage], curves[1][stage], strict=True)
    ]  # fmt: skip


# --- what is trained

MUON = {"stage": "sft", "optimizer": "muon", "weight_decay": 0.1}
STAGES: dict[str, dict[str, Any]] = {"align": {"stage": "align"}, "sft": {}, "muon": MUON, "rlvr": {"stage": "rlvr"}}
GRADIENTS = "gradients.safetensors"


@contextmanager
def blanks(runtime: Runtime, folder: Path) -> Iterator[None]:
    """Counts the steps without work for a rank, by stage, in blank.json."""
    blank: Counter[str] = Counter()
    plain = Stage.each

    def each(stage: Stage, packs: Any) -> Any:
        blank[stage.label] += not packs
        return plain(stage, packs)

    with patch.object(Stage, "each", each):
        yield
    told = runtime.exchange(blank)
    (folder / "blank.json").write_text(json.dumps({label: sum(one[label] for one in told) for label in blank}))


def small(runtime: Runtime, folder: Path) -> None:
    """The run of small_run.py, one model through all stages. Counts the steps without work for a rank."""
    with blanks(runtime, folder):
        vlm, curves = run_stages(folder, runtime)
    keep(runtime, folder, weights(vlm), curves)


def lonely(runtime: Runtime, folder: Path) -> None:
    """As `one_stage`, with one tree a step, so that a rank has none: in stage 2 a step has one frame, in stage 3 only
    the groups of one frame are live."""
    one = lambda groups: [group for group in live(groups) if group.sample.id.startswith("f1-")]  # noqa: E731
    with blanks(runtime, folder), patch.object(lineside.rlvr, "live", one):
        one_stage(runtime, folder / "sft", "sft", 2, step_tokens=50)
        one_stage(runtime, folder / "rlvr", "rlvr", 2)


def counted(runtime: Runtime, folder: Path) -> None:
    """As `one_stage`, in bf16 and with several packs a step. Writes the bytes that a rank holds before the last of its
    packs in the second step: of gathered weights, of their gradient, of its part of the optimiser; the number of
    weights that train; and the bytes of its part of the step's gradient."""
    held: list[int] = []
    steps: list[Optimizer] = []
    packs: list[int] = []
    whole, plain = Optimizer.step, ends_step
    size = lambda tensor: 0 if tensor is None else tensor.numel() * tensor.element_size()  # noqa: E731

    def step(optimizer: Optimizer, scale: float = 1.0) -> dict[str, float]:
        steps.append(optimizer)
        packs.clear()
        if len(steps) == 2:
            held.append(sum(size(ranks_part(master.grad)) for _, master in optimizer._pairs.values()))
        return whole(optimizer, scale)

    def ends(model: Any, last: bool) -> None:
        plain(model, last)
        packs.append(1)
        if last and len(steps) == 1 and len(packs) > 1:
            shared: list[Any] = [fully_shard.state(m) for m in model.modules() if isinstance(m, FSDPModule)]  # pyright: ignore
            parts = [p for state in shared for group in state._fsdp_param_groups for p in group.fsdp_params]
            held.append(sum(size(p._unsharded_param) for p in parts))
            held.append(sum(size(p.unsharded_accumulated_grad) for p in parts))
            held.append(sum(size(ranks_part(tensor)) for tensor in steps[0].state_dict().values()))
            held.append(sum(p._orig_size.numel() for p in parts))

    with patch.object(Optimizer, "step", step), patch("lineside.ranks.ends_step", ends):
        one_stage(runtime, folder, steps=2, dtype=torch.bfloat16, pack_tokens=60)
    told = [one for one in runtime.exchange(held) if len(one) == 5]  # of ranks with several packs
    if runtime.rank == 0:
        (folder / "held.json").write_text(json.dumps(told))


def ranks_part(tensor: Any) -> Any:
    """This rank's part of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def one_stage(
    runtime: Runtime,
    folder: Path,
    stage: str = "sft",
    steps: int | None = 4,
    dtype: torch.dtype = torch.float32,
    rate: float = 1e-2,
    lora: bool = False,
    step_tokens: int = 400,
    base: Callable[[], VLM] = make_tiny_vlm,
    **settings: Any,
) -> None:
    """Some steps of one stage of the tiny model, or of `base`; it goes on where it was stopped."""
    rows = [s for frame in range(8) for s in frame_samples(frame)]
    samples = folder / "samples"
    runtime.first(lambda: samples.exists() or write_samples(samples, rows))
    vlm = base()
    if lora:
        runtime.first(lambda: save(base(), folder / "base"))
        vlm = load_trainable(folder / "base", Lora(rank=4, alpha=8, dropout=0.0))
        settings |= {"train": ("projector", "lora"), "max_grad_norm": 0}
    vlm.model.to(dtype)  # pyright: ignore[reportArgumentType]
    store = FeatureStore(None, vlm, runtime=runtime)
    given = {"epochs": 500, "max_steps": steps, "pack_tokens": 250, **settings}
    rates = Rates(projector=rate, lm=rate, lora=rate)
    todo = {
        "align": lambda: align(vlm, store, samples, folder / stage, Align(
            step_tokens=120, learning_rate=ProjectorRate(projector=rate), **given), runtime=runtime),
        "sft": lambda: sft(vlm, store, samples, folder / stage, Sft(
            step_tokens=step_tokens, learning_rate=rates, feature_dropout=0.1, caption_replay=1, **given),
            runtime=runtime),
        "rlvr": lambda: rlvr(vlm, store, samples, folder / stage, Rlvr(
            prompts=4, group_size=4, max_new_tokens=12, overlong_cache=0, learning_rate=rates, **given),
            runtime=runtime),
    }  # fmt: skip
    with (
        patch.object(lineside.training.rollout, "judge", by_length),
        patch.object(lineside.training.stage, "matrix_rate", lambda *_: 1e9),
        patch.object(lineside.training.stage, "price", lambda _: SimpleNamespace(line=str)),
    ):
        todo[stage]()
    keep(runtime, folder, weights(vlm), {stage: logged(folder / stage)} if runtime.rank == 0 else {})


def graded(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`; rank 0 also writes the whole gradients of the first step, clipped to a norm of 1."""
    plain, found = Optimizer.step, {}

    def step(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        if not found:
            self.norm()
            found.update({name: ranks.whole(master.grad).clone() for name, (_, master) in self._pairs.items()
                          if master.grad is not None})  # fmt: skip
        return plain(self, scale)

    with patch.object(Optimizer, "step", step):
        one_stage(runtime, folder, **given)
    if runtime.rank == 0:
        save_file(found, folder / GRADIENTS)


def hit(runtime: Runtime, folder: Path, number: int, by: signal.Signals, rank: int, **given: Any) -> None:
    """As `one_stage`; in the middle of step `number` a rank gets a signal."""
    whole, steps = Optimizer.step, []

    def step(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        steps.append(1)
        if len(steps) == number and runtime.rank == rank:
            os.kill(os.getpid(), by)
        return whole(self, scale)

    with patch.object(Optimizer, "step", step):
        one_stage(runtime, folder, **given)


def late(runtime: Runtime, folder: Path, number: int, name: str, **given: Any) -> None:
    """As `one_stage`; the last rank is told to stop in the step `number`, in a method that it cannot end in time."""
    steps: list[int] = []
    holder, plain = (LocalSampler, LocalSampler._roll) if name == "_roll" else (Stage, Stage.features)

    def slow(*given: Any) -> Any:
        steps.append(1)
        if len(steps) == number and runtime.rank == runtime.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            wait = time.monotonic() + (60 if name == "_roll" else 0.2)  # sampling is interrupted, a pack is not
            while time.monotonic() < wait:
                time.sleep(0.01)
        return plain(*given)

    with patch.object(holder, name, slow), patch.object(lineside.training.stage, "GRACE", 0.05):
        one_stage(runtime, folder, **given)


def ahead(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`, with the thread that reads ahead for a GPU."""
    plain = Stage.__enter__

    def enter(stage: Stage) -> Stage:
        stage._threaded = True
        return plain(stage)

    with patch.object(Stage, "__enter__", enter):
        one_stage(runtime, folder, **given)


def poisoned(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`; the features of one picture are no numbers."""
    plain, bad = FeatureStore.get, image_key(picture(5))

    def get(store: FeatureStore, images: Sequence[Image]) -> list[torch.Tensor]:
        return [row * (math.nan if image_key(image.bytes) == bad else 1.0) for row, image in
                zip(plain(store, images), images)]  # fmt: skip

    with patch.object(FeatureStore, "get", get):
        one_stage(runtime, folder, **given)


def odd(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`; the second step raises an alarm."""

    def see(_: Watch, row: Mapping[str, Any]) -> list[Alarm]:
        return [Alarm("loss_spike", 2, {"value": 3.0})] if row["step"] == 2 else []

    with patch.object(Watch, "see", see):
        one_stage(runtime, folder, **given)


def collapsed(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`, of stage 3; a task is found to have become one answer at the second step."""

    def alarms(_: Answers, step: int) -> list[Alarm]:
        return [Alarm("one_answer", 2, {"groups": 30.0}, "picking/count_all", ("f1-prompt-0",))] if step == 2 else []

    with patch.object(Answers, "alarms", alarms):
        one_stage(runtime, folder, "rlvr", **given)


def dead(runtime: Runtime, folder: Path, **given: Any) -> None:
    """As `one_stage`, of stage 3, in which no group is ever live."""
    with patch("lineside.rlvr.live", lambda groups: []), patch("lineside.training.watch.LEVEL", 2):
        one_stage(runtime, folder, "rlvr", max_sampling_rounds=1, **given)


# --- scenarios


def equal(folder: Path) -> dict[str, Any]:
    """All stages by one process and by two; a rank without a tree; a run that is stopped and goes on; an alarm."""
    found: dict[str, Any] = {"status": [run(small, count, folder / f"small-{count}") for count in (1, 2)]}
    found["small"] = difference(folder / "small-1", folder / "small-2")
    found["status"] += [run(lonely, count, folder / f"lonely-{count}") for count in (1, 2)]
    found["lonely"] = [difference(folder / "lonely-1" / name, folder / "lonely-2" / name) for name in ("sft", "rlvr")]
    found["blank"] = [json.loads((folder / name / "blank.json").read_text()) for name in ("small-2", "lonely-2")]
    found["halted"] = [run(partial(odd, halt_on=("loss_spike",)), 2, folder / "odd")]
    found["halted"] += [json.loads((folder / "odd" / "sft" / "warnings.jsonl").read_text())["samples"]]
    found["halted"] += [[p.name for p in (folder / "odd" / "sft" / "state").glob("*")]]
    found["left"] = left(folder, "sft", "features", steps=3, pack_tokens=100, optimizer="muon")
    return found


def settings(folder: Path) -> dict[str, Any]:
    """One stage with each setting that ranks share in another way, by one process and by two; what a rank holds; and
    what stops all of them."""
    found: dict[str, Any] = {"status": []}
    for machines in (1, 2):
        found["status"].append(run(counted, 2, there := folder / f"counted-{machines}", machines=machines))
        found[f"held-{machines}"] = json.loads((there / "held.json").read_text())
    muon = partial(one_stage, **MUON)
    found["status"] += [run(muon, count, folder / f"muon-{count}") for count in (1, 2)]
    found["muon"] = difference(folder / "muon-1", folder / "muon-2")
    for count, work in ((1, one_stage), (2, ahead)):
        found["status"].append(run(partial(work, checkpointing=True), count, folder / f"ahead-{count}"))
    found["ahead"] = difference(folder / "ahead-1", folder / "ahead-2")
    there, lora = folder / "poisoned", bool(importlib.util.find_spec("peft"))
    stopped = run(partial(poisoned, lora=lora), 2, there)
    rows = [json.loads(line) for line in (there / "sft" / "not_finite" / "responses.jsonl").read_text().splitlines()]
    names = [sorted({row["sample"][:5] for row in rows if row["finite"] is finite}) for finite in (False, True)]
    found["poisoned"] = [stopped, *names, rows[0]["step"], [p.name for p in (there / "sft" / "state").glob("*")]]
    found["collapsed"] = [run(partial(collapsed, halt_on=("one_answer",)), 2, folder / "collapsed")]
    found["collapsed"] += [json.loads((folder / "collapsed" / "rlvr" / "warnings.jsonl").read_text())["samples"]]
    found["dead"] = [run(partial(dead, steps=6, halt_on=("dead_groups",)), 2, there := folder / "dead")]
    found["dead"] += [[row["step"] for row in logged(there / "rlvr")], len(read_metrics(there / "rlvr" / WARNINGS))]
    found["dead"] += [[p.name for p in (there / "rlvr" / "state").glob("*")]]
    if lora:
        adapter = partial(one_stage, lora=True)
        found["lora-status"] = [run(adapter, count, folder / f"lora-{count}") for count in (1, 2)]
        found["lora"] = difference(folder / "lora-1", folder / "lora-2")
    return found


def left(folder: Path, stage: str, name: str, number: int = 4, **given: Any) -> list[Any]:
    """Two processes of which one is told to stop in a step that takes too long: all leave it out. Then they go on."""
    work, there = partial(one_stage, stage=stage, **given), folder / f"{stage}-left"
    run(work, 2, folder / f"{stage}-whole")
    ended = run(partial(late, number=number, name=name, stage=stage, **given), 2, there)
    states = sorted(path.name for path in (there / stage / "state").glob("*"))
    return [ended, states, run(work, 2, there), *difference(folder / f"{stage}-whole", there)]


def long(folder: Path) -> dict[str, list[Any]]:
    """50 steps of every stage by one process, by two, and by two that are machines of their own, and four in bf16. How
    they ended, and how far they are from the first in their weights at the end, in their first gradients, as a share of
    the largest, and in their curves by step.

    "packs" is one process with each frame in a pack of its own: it differs in the order of its sums."""
    found: dict[str, list[Any]] = {}
    runs = {"one": (1, 1), "packs": (1, 1), "one machine": (2, 1), "two machines": (2, 2)}  # processes, machines
    for name, given in {**STAGES, "bf16": {"dtype": torch.bfloat16, "steps": 4}}.items():
        # One sampled token that rounding changes gives stage 3 other data; small steps keep that unlikely.
        given, first = {"steps": 50, "rate": 1e-3 if name == "rlvr" else 1e-2, **given}, folder / f"{name}, one"
        for what, (count, machines) in runs.items():
            there = folder / f"{name}, {what}"
            work = partial(graded, **given, pack_tokens=60 if what == "packs" else 250)
            ended = run(work, count, there, machines=machines)
            if what != "one":
                largest = max(float(gradient.abs().max()) for gradient in load_file(first / GRADIENTS).values())
                gradients = apart(first, there, GRADIENTS) / largest
                found[there.name] = [ended, apart(first, there), gradients, by_step(first, there)]
    return found


def finished(folder: Path) -> dict[str, Any]:
    """Stages 2 and 3 of a finished model of each family, and its adapter, by one process and by two."""
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        base = partial(load, kind.build(folder / name))
        for what, given in (("sft", {}), ("rlvr", {"stage": "rlvr", "steps": 2}), ("lora", {"lora": True})):
            work = partial(one_stage, base=base, **{"rate": 1e-3, **given})
            there = [folder / f"{name}-{what}-{count}" for count in (1, 2)]
            ended = [run(work, count, place) for count, place in zip((1, 2), there)]
            found[f"{name} {what}"] = [ended, *(difference(*there) if ended == [[0], [0, 0]] else ())]
    return found


def resumed(folder: Path) -> dict[str, Any]:
    """Runs that are stopped or killed and go on, with as many processes or with another number of them."""
    found: dict[str, Any] = {}
    for name, given in STAGES.items():
        given = {"stage": "sft", **given, "steps": 6}
        work, states_in = partial(one_stage, **given), f"{given['stage']}/state"
        for count in (1, 2):
            run(work, count, folder / f"{name}-{count}")
        for before, after in ((2, 1), (1, 2)):
            there = folder / f"{name}-{before}-{after}"
            stop = partial(hit, number=3, by=signal.SIGINT, rank=before - 1, **given)
            states = run(stop, before, there), sorted(p.name for p in (there / states_in).glob("*"))
            found[f"{name}-{before}-{after}"] = [*states, run(work, after, there)]
            found[f"{name}-{before}-{after}"] += difference(folder / f"{name}-1", there)
        there = folder / f"{name}-killed"
        kill = partial(hit, number=4, by=signal.SIGKILL, rank=1, save_seconds=1e-9, **given)
        states = run(kill, 2, there), sorted(p.name for p in (there / states_in).glob("*"))
        found[f"{name}-killed"] = [*states, run(work, 2, there), *difference(folder / f"{name}-2", there)]
    found["rlvr-left"] = left(folder, "rlvr", "_roll", number=2, steps=3)
    for name, work in (("minutes", one_stage), ("minutes-ahead", ahead)):
        measured = run(partial(work, steps=None, max_minutes=0.05), 2, folder / f"{name}-2")
        tokens = json.loads((folder / f"{name}-2" / "sft" / "budget.json").read_text())["number"]
        by_tokens = run(partial(one_stage, steps=None, max_tokens=tokens), 1, folder / f"{name}-1")
        found[name] = [measured, by_tokens, *difference(folder / f"{name}-1", folder / f"{name}-2")]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_tiny_vlm()  # and what is imported where it is first used
    scenario, where = sys.argv[1], Path(sys.argv[2])
    write_samples(where / "none", frame_samples(0))
    scenarios = {"equal": equal, "settings": settings, "long": long, "finished": finished, "resumed": resumed}
    result = scenarios[scenario](where)
    for kept in where.glob("*/"):
        shutil.rmtree(kept)
    (where / "found.json").write_text(json.dumps(result))
