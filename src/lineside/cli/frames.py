"""Verbs about frames: simulate, select, drift."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import verb
from lineside.cli.options import AsJson, Device, Features, Frames, Seed, Where


class Family(StrEnum):
    """Kinds of cell."""

    picking = "picking"
    kitting = "kitting"
    returns = "returns"


@verb
def simulate(
    out: Annotated[
        Path, typer.Argument(help="Folder for the frames. An existing one gets the missing frames.", show_default=False)
    ],
    family: Annotated[list[Family] | None, typer.Option(help="Repeat for several. None: all three.")] = None,
    train: Annotated[int, typer.Option(min=0, help="Training frames of each family.")] = 100,
    dev: Annotated[int, typer.Option(min=0, help="Frames of each family to tune on.")] = 10,
    heldout: Annotated[int, typer.Option(min=0, help="Frames of each family from unseen scenes.")] = 20,
    shifted: Annotated[int, typer.Option(min=0, help="Frames of each family: unseen SKUs in unseen cells.")] = 10,
    week: Annotated[int, typer.Option(min=0, help="Week of the fleet: SKUs, packaging and light change by week.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the picture in pixels.")] = 224,
    moved: Annotated[
        list[str] | None,
        typer.Option(help="A cell whose camera was mounted anew, such as c03; repeat for several.", show_default=False),
    ] = None,
    knocked: Annotated[
        list[str] | None,
        typer.Option(
            help="A cell whose camera was struck: it looks past the cell, and the records do not know; repeat.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    seed: Seed = 0,
) -> None:
    """A seed, a week, families of cells -> frames with ground truth from a simulated fleet, and a contact sheet."""
    from lineside.sim.weeks import Cameras
    from lineside.simulate import simulate as run

    families = [str(f) for f in family or Family]
    counts = {"train": train, "dev": dev, "heldout": heldout, "shifted": shifted}
    frames = {split: dict.fromkeys(families, number) for split, number in counts.items() if number}
    cameras = Cameras(tuple(moved or ()), tuple(knocked or ()))
    run(out, frames=frames, seed=seed, week=week, workers=workers or None, size=size, cameras=cameras)


@verb
def select(
    frames: Frames,
    out: Annotated[Path, typer.Argument(help="Folder for the list.", show_default=False)],
    budget: Annotated[int | None, typer.Option(help="Number of frames to choose.", show_default=False)] = None,
    usd: Annotated[
        float | None, typer.Option(help="US dollars to spend, in place of --budget.", show_default=False)
    ] = None,
    usd_per_answer: Annotated[
        float | None, typer.Option(help="Price of one answer. A frame costs one for each open question.")
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--tasks", "-t", help="Task file: frames with a question that their record leaves open are new."),
    ] = None,
    labelled: Annotated[
        list[Path] | None, typer.Option(help="Folder of samples: their frames are not new; repeat for several.")
    ] = None,
    balance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose values get equal numbers of labelled frames, such as cell, sku or light; repeat for "
            "several.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Its encoder compares the frames; it answers the open questions, and doubtful ones weigh more."
        ),
    ] = None,
    features: Features = None,
    device: Where = Device.auto,
    seed: Seed = 0,
) -> None:
    """Frames, a budget -> the frames to label next, with the reason for each, as a table and a list to review.

    Chosen are frames that stand for many others, are unlike what is labelled, balance the columns of --balance, and on
    which the model is unsure. Frames of dev, heldout and shifted are left out: suites are drawn at random.
    """
    from lineside.runtime import Runtime
    from lineside.select import select as run

    run(
        frames,
        out,
        budget=budget,
        usd=usd,
        usd_per_answer=usd_per_answer,
        tasks=tasks or (),
        labelled=labelled or (),
        balance=balance or (),
        checkpoint=checkpoint,
        features=features,
        runtime=Runtime.of(device, seed=seed),
    )


@verb
def drift(
    before: Annotated[Path, typer.Argument(help="Frames of before, such as last week's.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Frames of now.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for the account and the list of frames.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column to test value by value; repeat it. None: cell, camera and sku."),
    ] = None,
    level: Annotated[float, typer.Option(help="Probability of any false alarm.")] = 0.05,
    tasks: Annotated[
        list[Path] | None, typer.Option("--tasks", "-t", help="Task file that says how to read the tables.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Its encoder compares the frames.")] = None,
    features: Features = None,
    device: Where = Device.auto,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Frames of before and of now -> whether they have changed, and in which cell, camera or SKU.

    A kernel two-sample test of the encoder's features, by scene. Exit status 0: no change is shown. 1: an alarm. 2: bad
    input. 3: too few scenes.
    """
    from lineside.drift import COLUMNS
    from lineside.drift import drift as run
    from lineside.runtime import Runtime

    run(
        before,
        after,
        out=out,
        by=by or COLUMNS,
        level=level,
        tasks=tasks or (),
        checkpoint=checkpoint,
        features=features,
        runtime=Runtime.of(device, seed=seed),
        as_json=as_json,
    )
