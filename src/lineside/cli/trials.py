"""The verb trial: start, stop, judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import app, guarded
from lineside.cli.options import (
    REGISTRY,
    AsJson,
    Cell,
    Decimal,
    Delimiter,
    Encoding,
    Margin,
    NameAtVersion,
    RegistryFolder,
    Seed,
    written,
)
from lineside.recipe import MARGIN

trial_table = typer.Typer(help="A version beside the champion, for a share of requests.", no_args_is_help=True)
app.add_typer(trial_table, name="trial")


def _trial_start(
    version: NameAtVersion,
    share: Annotated[float, typer.Option(help="Of the requests: 0.1 is a tenth.", show_default=False)],
    cell: Cell = "",
    canary: Annotated[
        bool, typer.Option("--canary", help="It really answers. Else it answers in shadow, and nobody uses that.")
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="With --canary: without the gate; the reason is kept in the history."),
    ] = None,
    registry: RegistryFolder = REGISTRY,
) -> None:
    """A version -> it runs beside the champion for a share of requests, in shadow or as a canary.

    In shadow it answers after the champion has, in time that nobody else wants; under load it is dropped first. Both
    answers are kept by servers with --outcomes. A canary needs a verdict of the gate that does not refuse it.
    """
    from lineside.trial import start

    start(registry, version, share=share, cell=cell, canary=canary, force=force)


guarded(_trial_start, trial_table, "trial start")


def _trial_stop(
    name: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    cell: Cell = "",
    registry: RegistryFolder = REGISTRY,
) -> None:
    """A name -> its trial ends; the champion answers everything, as before."""
    from lineside.trial import stop

    stop(registry, name, cell=cell)


guarded(_trial_stop, trial_table, "trial stop")


def _trial_judge(
    version: NameAtVersion,
    log: Annotated[Path, typer.Option(help="File of --outcomes of a server, or of home.", show_default=False)],
    truth: Annotated[
        list[Path] | None,
        typer.Option(help="Table (.csv, .tsv, .jsonl) with truths by id or frame, such as label_first.csv filled in."),
    ] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
    cell: Annotated[
        str, typer.Option(help="Beside the champion of this cell. None: that of all cells.", show_default=False)
    ] = "",
    margin: Margin = MARGIN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for label_first.csv: pairs that differ and have no truth yet.")
    ] = None,
    registry: RegistryFolder = REGISTRY,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A log of answers -> whether a version is as good as the champion on live questions, and what that still needs.

    Exit status 0: not worse. 1: worse. 2: bad input. 3: too little data; the frames that are missing are told.
    """
    from lineside.trial import judge

    judge(
        registry, version, log=log, truths=truth or (), written=written(encoding, delimiter, decimal), cell=cell,
        margin=margin, out=out, seed=seed, as_json=as_json,
    )  # fmt: skip


guarded(_trial_judge, trial_table, "trial judge")
