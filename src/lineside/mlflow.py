"""registry mlflow: the registry -> MLflow's model registry, for those who have one.

Each version becomes a version there: its files as artifacts of a run, its exact match as metrics, its hash as a tag by
which it is found again. Champions get aliases: `champion`, and `champion-CELL` for a cell with a champion of its own.
What is there already is not sent again, so the verb goes on where it was stopped, and follows each promotion. The
registry here stays the one that counts; nothing is read back. Left out: suites, rows of evaluations, pages of gates.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lineside.errors import LinesideError
from lineside.machine import lacking
from lineside.progress import say, track
from lineside.registry.listing import EVERYWHERE, Evaluated, Line, lines, origin
from lineside.registry.store import Registry

ALIAS, FILES, HASH, LABEL = "champion", "checkpoint", "lineside.model", "lineside.version"


def to_mlflow(folder: Path, uri: str | None, *, as_json: bool = False) -> None:
    """Bring MLflow's registry at `uri` (None: what MLFLOW_TRACKING_URI says) up to date with this one.

    Raises LinesideError without an address or mlflow, and for whatever MLflow cannot do; run again, it goes on.
    """
    uri = _address(uri)
    told: dict[str, Any] = {"registry": str(folder), "mlflow": uri, "versions": [], "aliases": {}}
    with Registry(folder) as registry, _mlflow(uri) as client:
        every = lines(registry)
        for name in dict.fromkeys(line.name for line in every):
            own = [line for line in every if line.name == name]
            numbers, sent = _versions(client, registry, name, own)
            told["versions"] += [{"version": _label(line), "mlflow": numbers[line.model], "new": line.model in sent}
                                 for line in own if line.model in numbers]  # fmt: skip
            told["aliases"][name] = _aliases(client, name, own, numbers)
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    new = [one["version"] for one in told["versions"] if one["new"]]
    say(f"{uri}: {len(new)} of {len(told['versions'])} versions are new there{': ' if new else ''}{', '.join(new)}")
    for name, aliases in told["aliases"].items():
        for alias, number in aliases.items():
            say(f"{name}: {alias} is version {number} there")


def _address(uri: str | None) -> str:
    """The address of MLflow. Raises LinesideError for none, and for one that holds a password, which is not told."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise LinesideError("where is MLflow? Give its address with --to, or as MLFLOW_TRACKING_URI")
    if urlsplit(uri).password:
        raise LinesideError(
            "the address of MLflow holds a password: give it as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


@contextmanager
def _mlflow(uri: str) -> Iterator[Any]:
    """MLflow's client. What goes wrong in the `with` block, but for our own errors, is MLflow's."""
    if find_spec("mlflow") is None:
        raise lacking("mlflow", "registry mlflow")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # from MLflow 3.17 on files must be asked for
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default it asks a server for minutes
    try:
        yield importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=uri, registry_uri=uri)
    except LinesideError:
        raise
    except Exception as error:  # MLflow's own errors, those of its store and of its connection
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise LinesideError(f"MLflow at {uri}: {why}. Nothing is changed here; run it again to go on") from error


def _versions(
    client: Any, registry: Registry, name: str, own: Sequence[Line]
) -> tuple[dict[str, int], set[str]]:  # fmt: skip
    """The number in MLflow of each version of a name, by the hash of its model, and the hashes of those sent now. One
    whose files are deleted is not sent."""
    if not list(client.search_registered_models(filter_string=f"name = '{name}'")):
        client.create_registered_model(name)
    there = client.search_model_versions(f"name = '{name}'")
    numbers = {one.tags[HASH]: int(one.version) for one in there if HASH in one.tags}
    missing = [line for line in own if line.kept and line.model not in numbers]
    for line in track(missing, total=len(missing), unit="versions", label=name) if missing else ():
        numbers[line.model] = _send(client, registry, line)
    return numbers, {line.model for line in missing}


def _send(client: Any, registry: Registry, line: Line) -> int:
    """Send a version: its files, its exact match, what it came from. Returns its number in MLflow."""
    version = registry.version(_label(line))
    files = registry.check(registry.item(line.model), version.label)
    known = origin(registry, version)
    tags = {LABEL: version.label, HASH: line.model, "lineside.from": line.parent or " > ".join(line.stages)}
    experiment = client.get_experiment_by_name(line.name)
    id = experiment.experiment_id if experiment is not None else client.create_experiment(line.name)
    run = client.create_run(id, tags=tags, run_name=version.label).info
    for one in known.evaluations:
        client.log_metric(run.run_id, _metric(one), one.exact)
    client.log_artifacts(run.run_id, str(files), FILES)
    client.set_terminated(run.run_id)
    made = client.create_model_version(line.name, f"{run.artifact_uri}/{FILES}", run_id=run.run_id, tags=tags)
    return int(made.version)


def _metric(one: Evaluated) -> str:
    return f"exact.{one.split}.{one.mode}" + (f".{one.run}" if one.run else "")


def _aliases(client: Any, name: str, own: Sequence[Line], numbers: dict[str, int]) -> dict[str, int]:
    """Set the aliases of a name's champions, and take those away that no champion has any more."""
    wanted = {_alias(cell): numbers[line.model] for line in own for cell in line.champion_of}
    there = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
    for alias in sorted(there.keys() - wanted.keys()):
        if alias == ALIAS or alias.startswith(f"{ALIAS}-"):
            client.delete_registered_model_alias(name, alias)
    for alias, number in wanted.items():
        if there.get(alias) != number:
            client.set_registered_model_alias(name, alias, str(number))
    return wanted


def _alias(cell: str) -> str:
    return ALIAS if cell == EVERYWHERE else f"{ALIAS}-{cell.replace('.', '_')}"  # MLflow allows no dot there


def _label(line: Line) -> str:
    return f"{line.name}@{line.version}"
