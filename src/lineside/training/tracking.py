"""Experiment trackers beside TensorBoard: Weights & Biases or MLflow, if the recipe asks for one (`track`).

Each stage of a run is a run of the tracker, grouped by the name of the lineside run. Unless the environment says
otherwise (WANDB_MODE, MLFLOW_TRACKING_URI) everything is written into the run's folder and nothing is sent. A tracker
that fails is left out with a warning: it never stops a run. metrics.jsonl stays the record; after an interruption a
tracker may keep rows of steps that are trained again.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from lineside.progress import say


class Tracker(Protocol):
    """What gets every logged step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The finite metrics of an optimiser step."""
        ...

    def close(self) -> None:
        """The stage is over, or has stopped."""
        ...


class Wandb:
    """A run of Weights & Biases, offline in `folder` unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, run: str, stage: str, settings: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        place = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()
        self._run = wandb.init(
            project="lineside",
            group=run,
            name=f"{run}/{stage}",
            id=f"{run}-{stage}-{place}",  # a stage that goes on continues its run
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(folder),
            config=dict(settings),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """As `Tracker.close`."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, in the files of `folder`/mlruns unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, folder: Path, run: str, stage: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # from MLflow 3.17 on files must be asked for
        tracking, self._entities = (importlib.import_module(f"mlflow.{name}") for name in ("tracking", "entities"))
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        self._client = tracking.MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(run)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(run)
        begun = self._client.search_runs([experiment], filter_string=f"tags.lineside_stage = '{stage}'", max_results=1)
        if begun:  # a stage that goes on continues its run
            self._id = begun[0].info.run_id
            return
        made = self._client.create_run(experiment, tags={"lineside_stage": stage}, run_name=stage)
        self._id = made.info.run_id
        for key, value in settings.items():
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        now = int(time.time() * 1000)
        # A metric is a file, and "loss" cannot be a file and the folder of "loss/answer".
        named = {name.replace("/", "."): value for name, value in values.items()}
        metrics = [self._entities.Metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """As `Tracker.close`."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}
_CURRENT: ContextVar[_Guarded | None] = ContextVar("tracker", default=None)


class _Guarded:
    """A tracker whose first failure is said and ends it."""

    def __init__(self, kind: str, start: Callable[[], Tracker]) -> None:
        self._kind, self._tracker = kind, None
        self._tracker = self._try(start)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if (tracker := self._tracker) is not None:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._try(lambda: tracker.log(step, finite))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._try(tracker.close)

    def _try(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # whatever a tracker raises, training goes on
            self._tracker = None
            say(f"warning: track={self._kind} has failed and is left out: {type(error).__name__}: {error}")
            return None


@contextmanager
def tracked(kind: str | None, folder: Path, run: str, stage: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Within the `with` block every step that is logged also goes to the tracker. `folder`: where it may write."""
    if kind is None:
        yield
        return
    tracker = _Guarded(kind, lambda: TRACKERS[kind](folder, run, stage, settings))
    token = _CURRENT.set(tracker)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        tracker.close()


def track_step(step: int, values: Mapping[str, float]) -> None:
    """Give a logged step to the tracker, if there is one."""
    if (tracker := _CURRENT.get()) is not None:
        tracker.log(step, values)
