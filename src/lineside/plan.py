"""plan: what a run will take, before anything is downloaded, loaded or simulated: parameters, tokens, time, memory.

The model is made without weights (training/skeleton.py), and steps are counted (training/forecast.py). The speed of
this machine is that of an earlier run with the same parts; without one, a second of plain matrix products tells it.
For a named device all is arithmetic from its data sheet. Left out: time that other programs take, and the length of
your own texts before they are labelled."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lineside.data.store import count_frames_with, count_samples, sample_shards
from lineside.errors import CheckFailed, LinesideError
from lineside.recipe import Recipe, load_run_recipe
from lineside.runtime import Runtime
from lineside.strict import nearest
from lineside.training.cost import read_cost
from lineside.training.forecast import UNKNOWN, Held, Machine, Step, forecast, pictures_of
from lineside.training.operations import measure_matrix_rate
from lineside.training.skeleton import Skeleton, skeleton
from lineside.types import SUITES

# Memory in GB, and bf16 operations a second without sparsity: of NVIDIA's data sheets.
DEVICES: dict[str, tuple[float, float]] = {
    "l4": (24, 60e12), "rtx-4090": (24, 165e12), "l40s": (48, 362e12), "a100-40gb": (40, 312e12),
    "a100": (80, 312e12), "h100": (80, 989e12), "h200": (141, 989e12), "b200": (180, 2250e12),
}  # fmt: skip
GPU_SHARE = 0.3  # of that rate in training: what others report, not measured here
ARITHMETIC = "arithmetic, not measured"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def plan(
    recipe: Recipe,
    *,
    device: str | None = None,
    devices: int = 1,
    memory: float | None = None,
    as_json: bool = False,
) -> list[Step]:
    """Print and return the steps of a run. `device`: a name in DEVICES; None: this machine. `memory`: of one device, in
    GB, in place of what it has.

    Raises LinesideError for an unknown device, and for parts that are not at hand or do not fit; CheckFailed if a stage
    needs more memory than there is.
    """
    model = skeleton(recipe.parts, side=recipe.data.simulate.size if recipe.data.simulate else 224)
    machine = _named(device, devices) if device else this_machine(recipe)
    if memory is not None:
        machine = replace(machine, memory=memory * 1e9)
    frames, where = _frames(recipe)
    steps = list(forecast(recipe, model, machine, frames=frames, held=held(recipe.data.samples)))
    if as_json:
        told = [asdict(step) | ({"seconds": None} if math.isnan(step.seconds) else {}) for step in steps]
        found = {"model": asdict(model), "machine": asdict(machine), "frames": frames, "steps": told}
        print(json.dumps(found | {"seconds": _total(steps)}, indent=1))
    else:
        _show(recipe, model, machine, frames, where, steps)
    large = [step for step in steps if step.memory > machine.memory]
    if large:
        step = max(large, key=lambda step: step.memory)
        raise CheckFailed(
            f"{step.name} needs some {step.memory / 1e9:.1f} GB, and {machine.name} has {machine.memory / 1e9:.1f}: "
            f"take smaller packs ({step.name}.pack_tokens), set {step.name}.checkpointing=true, train an adapter "
            "(train: [projector, lora]), or take more devices"
        )
    return steps


def _named(device: str, devices: int) -> Machine:
    if device not in DEVICES:
        raise LinesideError(
            f"--device {device}: not known{nearest(device, DEVICES)}; expected one of {', '.join(DEVICES)}"
        )
    size, rate = DEVICES[device]
    name = device if devices == 1 else f"each of {devices} {device}"
    return Machine(name, rate, size * 1e9, devices, os.cpu_count() or 1, True, GPU_SHARE, ARITHMETIC)


def this_machine(recipe: Recipe) -> Machine:
    """This machine, with the speed that an earlier run with the same parts reached on it, or measured now."""
    runtime = Runtime.of(recipe.device, recipe.dtype)
    assert runtime.dtype is not None
    gpu = runtime.device.type != "cpu"
    size = runtime.memory() if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    idle = lambda: time.process_time() / torch.get_num_threads()  # noqa: E731 - whatever else the machine does
    rate = measure_matrix_rate(runtime.device, runtime.dtype, clock=time.perf_counter if gpu else idle)
    told = f"{rate / 1e9:,.0f} GFLOP/s of plain matrix products, measured now{'' if gpu else ' in processor time'}"
    machine = Machine(runtime.line(), rate, float(size), 1, os.cpu_count() or 1, gpu)
    earlier = _earlier(recipe, runtime.device.type)
    if earlier is None:
        share = f"{100 * machine.update:.0f}% of them in training, as in the quick start elsewhere"
        return replace(machine, source=f"{told}; {share}")
    reached, run = earlier
    return replace(
        machine, update=reached / rate, source=f"training at the {reached / 1e9:,.0f} GFLOP/s of {run}; {told}"
    )


def _earlier(recipe: Recipe, device: str) -> tuple[float, Path] | None:
    """Operations a second of the newest run here with the same parts, and its folder; None if there is none."""
    for path in sorted(recipe.runs.glob("*/recipe.yaml"), key=lambda path: -path.stat().st_mtime):
        costs = {stage: read_cost(path.parent / stage) for stage in ("align", "sft")}
        done = {stage: cost for stage, cost in costs.items() if cost is not None and cost.trained > 0}
        if not done:
            continue
        stage, cost = done.popitem()
        try:
            run = load_run_recipe(path)
        except LinesideError:  # of another version
            continue
        same = run.parts.model_copy(update={"nano": run.parts.nano.model_copy(update=_lengths(recipe))}) == recipe.parts
        if same and run.device in (device, "auto"):
            passes = 2 + ("lm" in run.trained_parts(stage))  # a run does not count the forward that is computed again
            again = (passes + 1) / passes if run.section(stage).checkpointing else 1.0
            return cost.rate(again * cost.operations), path.parent
    return None


def _lengths(recipe: Recipe) -> dict[str, Any]:
    """How long the nano LM is pretrained, which is none of its shape, and is written into a run's recipe."""
    return {key: getattr(recipe.parts.nano, key) for key in ("epochs", "max_minutes", "max_tokens")}


def _frames(recipe: Recipe) -> tuple[int | None, str]:
    """Training frames, and where their number comes from."""
    data = recipe.data
    if data.simulate is not None:
        return len(data.simulate.families) * data.simulate.frames.train, "simulated"
    if data.samples is not None and data.samples.is_dir() and sample_shards(data.samples, split="train"):
        kinds = (count_frames_with(data.samples, kind=kind, split="train") for kind in ("caption", "qa", "prompt"))
        return max(kinds), f"in {data.samples}"
    if data.table is not None and data.table.is_dir():
        found = sum(1 for path in data.table.rglob("*") if path.suffix.lower() in PICTURES)
        return round(0.8 * found) or None, f"0.8 of the {found:,} pictures in {data.table}"
    return None, f"not known before {data.samples or data.table or data.frames} is there"


def held(samples: Path | None) -> Held:
    """What is known of a folder of samples; of one that is not there yet, nothing."""
    if samples is None or not samples.is_dir() or not sample_shards(samples):
        return UNKNOWN
    frames = count_frames_with(samples, kind="qa", split="train")
    asked = count_samples(samples, kind="qa", split="train") / frames if frames else UNKNOWN.questions
    return Held(asked, {split: count_samples(samples, kind="qa", split=split) for split in SUITES})


def _total(steps: Sequence[Step]) -> float:
    return sum(step.seconds for step in steps if not math.isnan(step.seconds))


def _show(
    recipe: Recipe, model: Skeleton, machine: Machine, frames: int | None, where: str, steps: Sequence[Step]
) -> None:
    told = Table(box=None, show_header=False, pad_edge=False)
    told.add_column(style="dim", no_wrap=True)
    told.add_column(overflow="fold")
    for part, name, count in (
        ("encoder", model.encoder, model.encoder_parameters),
        ("projector", "maps features to the LM's width", model.projector_parameters),
        ("LM", model.lm, model.lm_parameters),
        ("all", "", model.parameters),
    ):
        told.add_row(part, f"{_millions(count)}  {name}")
    told.add_row("a picture", f"{model.picture:,} tokens, {model.features * 2 / 1e3:,.0f} kB of features in bf16")
    told.add_row("frames", f"{frames:,} to train on, {where}" if frames else where)
    told.add_row("computed on", f"{machine.name}, {machine.memory / 1e9:,.0f} GB")
    told.add_row("speed", machine.source)
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    for column in ("trains", "tokens", "steps", "time", "memory"):
        table.add_column(column, justify="right")
    table.add_column("ends by")
    for step in steps:
        table.add_row(
            step.name,
            f"{' '.join(recipe.trained_parts(step.name))}: {_millions(step.trained)}"
            if _is_stage(recipe, step)
            else "",
            f"{step.tokens:,}" if step.tokens else "",
            f"{step.steps:,}" if step.steps else "",
            _time(step.seconds),
            f"{step.memory / 1e9:.1f} GB" if step.memory else "",
            step.note,
        )
    open_ = "at least " if any(math.isnan(step.seconds) for step in steps) else ""
    table.add_row("all", "", "", "", open_ + _time(_total(steps)), f"{max(s.memory for s in steps) / 1e9:.1f} GB", "")
    console = Console()
    console.print(told)
    console.print(table)
    size, free = pictures_of(recipe, frames) * model.features * 2.0, free_bytes(recipe.runs)
    if size > 0.9 * free:
        console.print(
            f"{size / 1e9:.0f} GB of features do not fit on the disk of {recipe.runs}: {free / 1e9:.0f} GB are free"
        )
    if machine.source == ARITHMETIC:
        console.print("Times and memory are arithmetic, from data sheets and shares reached elsewhere: not measured.")
    if machine.count > 1:
        console.print(
            f"Weights are shared out over {machine.sharing} GPUs, those of a machine. Each process reads all rows: "
            "that is counted. Rank 0 alone evaluates. Links between GPUs are not counted (docs/scale.md)."
        )


def free_bytes(folder: Path) -> float:
    """Bytes that are free where a folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def _is_stage(recipe: Recipe, step: Step) -> bool:
    return step.name in (*recipe.stages, *recipe.trained_controls)


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
