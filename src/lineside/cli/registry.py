"""The verb registry: gc, suites, leave-out, take-back, mlflow, keys, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import app, guarded
from lineside.cli.options import (
    OUTCOMES,
    REGISTRY,
    AsJson,
    Host,
    OutcomeDays,
    OutcomeFrames,
    OutcomeMb,
    Port,
    RegistryFolder,
)

registry_table = typer.Typer(help="The registry's folder.", no_args_is_help=True)
app.add_typer(registry_table, name="registry")


def _gc(
    keep: Annotated[int, typer.Option(min=0, help="Newest versions of each name that stay.")] = 3,
    most: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Delete the oldest until all files take less, such as 20GB."),
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="From now on also after every `register`.")] = False,
    registry: RegistryFolder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Old models -> deleted by a policy; their records stay.

    Champions, the champion before each, versions on trial, models that a running server uses, suites and evaluations
    are never deleted.
    """
    from lineside.models import gc as run

    run(registry, keep=keep, most=most, always=always, as_json=as_json)


guarded(_gc, registry_table, "registry gc")


Suite = Annotated[
    str, typer.Argument(metavar="SUITE", help="As `lineside registry suites` names it.", show_default=False)
]


def _suites(registry: RegistryFolder = REGISTRY, as_json: AsJson = False) -> None:
    """The registry -> the suites that gates ask, and those that they leave out, and why."""
    from lineside.suites import list_suites

    list_suites(registry, as_json=as_json)


guarded(_suites, registry_table, "registry suites")


def _leave_out(
    suite: Suite,
    reason: Annotated[
        str, typer.Argument(help="What is wrong with it; every later verdict shows it.", show_default=False)
    ],
    registry: RegistryFolder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """A suite whose records are wrong -> left out of later gates, with the reason, which every verdict shows.

    It stays in the registry: `lineside registry take-back SUITE` lets gates ask it again.
    """
    from lineside.suites import leave_out

    leave_out(registry, suite, reason, as_json=as_json)


guarded(_leave_out, registry_table, "registry leave-out")


def _take_back(suite: Suite, registry: RegistryFolder = REGISTRY, as_json: AsJson = False) -> None:
    """A suite that is left out -> asked again by later gates."""
    from lineside.suites import take_back

    take_back(registry, suite, as_json=as_json)


guarded(_take_back, registry_table, "registry take-back")


def _mlflow(
    to: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Address of MLflow. None: MLFLOW_TRACKING_URI.", show_default=False),
    ] = None,
    registry: RegistryFolder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """The registry -> MLflow's model registry: versions with their files and exact match, and champions as aliases.

    It sends what is not there yet, so run it after each promotion. Nothing is read back. It needs pip install mlflow.
    """
    from lineside.mlflow import to_mlflow

    to_mlflow(registry, to, as_json=as_json)


guarded(_mlflow, registry_table, "registry mlflow")


def _keys(
    file: Annotated[Path, typer.Argument(help="The private key; FILE.pub is the public one.", show_default=False)],
) -> None:
    """A new pair of keys -> FILE, with which home signs, and FILE.pub, which every machine trusts."""
    from lineside.home import make_keys

    make_keys(file)


guarded(_keys, registry_table, "registry keys")


def _serve(
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="Private key that `lineside registry keys` wrote.", show_default=False)
    ],
    registry: RegistryFolder = REGISTRY,
    host: Host = "127.0.0.1",
    port: Port = 8001,
    keys: Annotated[
        Path | None, typer.Option(help="File with API keys of the machines, one a line. None: everyone may ask.")
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTCOMES,
            help="File in which the answers that machines send are kept. None: they send none.",
        ),
    ] = None,
    outcome_days: OutcomeDays = 365.0,
    outcome_mb: OutcomeMb = 10_000,
    outcome_frames: OutcomeFrames = False,
) -> None:
    """The registry -> its champions over HTTP, signed, for machines that run `lineside serve --pull`.

    Every promotion and rollback reaches them, by cell. It only reads the registry, but for the serial of what it signs.
    """
    from lineside.home import serve_registry

    serve_registry(
        registry,
        key=key,
        host=host,
        port=port,
        keys=keys,
        outcomes=outcomes,
        outcome_days=outcome_days,
        outcome_mb=outcome_mb,
        outcome_frames=outcome_frames,
    )


guarded(_serve, registry_table, "registry serve")
