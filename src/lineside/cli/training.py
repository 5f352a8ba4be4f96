"""Verbs that take a recipe: encode, the stages, train, plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import verb
from lineside.cli.options import AsJson, Device
from lineside.errors import LinesideError
from lineside.recipe import Recipe, load_recipe
from lineside.stages import STAGES, TABLE, StageEntry

RECIPE = (
    "YAML file, or one of the package's own: grocery, headline, nano, quickstart, qwen3-vl-2b, siglip, siglip2-qwen3, "
    "smollm2, smolvlm2, sorting."
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help=RECIPE, show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings that override the file: seed=1 sft.epochs=2", show_default=False
    ),
]


RecipeDevice = Annotated[
    Device | None, typer.Option(help="In place of the recipe's device: auto, cpu or cuda.", show_default=False)
]


def _recipe(file: Path, overrides: list[str] | None, device: Device | None) -> Recipe:
    return load_recipe(file, [*(overrides or ()), *([f"device={device}"] if device else ())])


def _run_to(last: str, recipe: Path, overrides: list[str] | None, device: Device | None) -> None:
    settings = _recipe(recipe, overrides, device)  # first: a mistake is reported before torch is loaded
    from lineside.train import train as run

    run(settings, last=last)


@verb
def encode(
    recipe: RecipeFile,
    overrides: Overrides = None,
    shard: Annotated[str, typer.Option(help="i/n: do only this share. None: torchrun's rank, if there is one.")] = "",
    device: RecipeDevice = None,
) -> None:
    """A recipe -> the features of its pictures, computed by one or several processes, before training."""
    from lineside.data.job import rank_of

    settings, share = _recipe(recipe, overrides, device), rank_of(shard, os.environ)
    from lineside.train import encode as run

    run(settings, shard=share)


def _stage_verb(entry: StageEntry) -> None:
    """Add the verb of a stage: a run up to and including it."""

    def run(recipe: RecipeFile, overrides: Overrides = None, device: RecipeDevice = None) -> None:
        _run_to(entry.name, recipe, overrides, device)

    run.__name__, run.__doc__ = entry.name, entry.about
    verb(run)


for _entry in TABLE:
    if not _entry.control_of:
        _stage_verb(_entry)


@verb
def train(recipe: RecipeFile, overrides: Overrides = None, device: RecipeDevice = None) -> None:
    """A recipe -> all stages in order, each judged, and a report; run again, it continues."""
    _run_to(STAGES[-1], recipe, overrides, device)


@verb
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(help="Plan for this GPU (l4, a100, h100, h200 ...). Default: this machine.", show_default=False),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="With --device: how many of them.")] = 1,
    device_memory: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of one device in GB, in place of its own.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A recipe -> parameters, tokens, memory and time of each step, before anything is loaded or downloaded.

    The speed of this machine is that of an earlier run with the same parts, or is measured in a second; for a named
    device it is arithmetic. Exit status 1: a stage needs more memory than there is.
    """
    if devices > 1 and device is None:
        raise LinesideError("--devices counts those of --device: name one")
    from lineside.plan import plan as run

    run(load_recipe(recipe, overrides or ()), device=device, devices=devices, memory=device_memory, as_json=as_json)
