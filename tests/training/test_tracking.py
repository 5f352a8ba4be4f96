"""Experiment trackers: they get what is logged, go on where a stage goes on, and never stop a run."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lineside.errors import LinesideError
from lineside.recipe import load_recipe
from lineside.training.metrics import MetricsLog, read_metrics
from lineside.training.preflight import recipe_problems, refuse
from lineside.training.tracking import track_step, tracked


class Calls(list):
    """What a fake package was told, in order."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, module = Calls(), ModuleType("wandb")

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        log = lambda values, step: calls.append(("log", step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: calls.append(("finish",)))

    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


class Store:
    """MLflow's client, as far as it is used: experiments and runs by id."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def client(self, tracking_uri: str) -> Any:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.split("'")[1]
        found = [k for k, run in self.runs.items() if run["stage"] == wanted and run["experiment"] in experiments]
        return [SimpleNamespace(info=SimpleNamespace(run_id=k)) for k in found][:max_results]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        name = f"run{len(self.runs)}"
        self.runs[name] = {"stage": tags["lineside_stage"], "experiment": experiment, "metrics": [], "params": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_param(self, run: str, key: str, value: str) -> None:
        self.runs[run]["params"][key] = value

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.runs[run]["metrics"] += [(m.key, m.value, m.step) for m in metrics]

    def set_terminated(self, run: str) -> None:
        self.runs[run]["ended"] = True


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    parts = {name: ModuleType(f"mlflow.{name}") for name in ("tracking", "entities")}
    vars(parts["tracking"])["MlflowClient"] = store.client
    metric = lambda key, value, time, step: SimpleNamespace(key=key, value=value, step=step)  # noqa: E731
    vars(parts["entities"])["Metric"] = metric
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"mlflow.{name}", part)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store


def test_wandb_gets_every_logged_step_offline(wandb: Calls, tmp_path: Path) -> None:
    with tracked("wandb", tmp_path, "bins", "sft", {"epochs": 3}), MetricsLog(tmp_path, label="sft") as log:
        log.log(1, {"loss": 2.0, "gone": math.nan})
        log.log(2, {"loss": 1.5})
    (_, options), *rest = wandb
    assert rest == [("log", 1, {"loss": 2.0}), ("log", 2, {"loss": 1.5}), ("finish",)]
    assert (options["mode"], options["name"], options["config"]) == ("offline", "bins/sft", {"epochs": 3})
    with tracked("wandb", tmp_path, "bins", "sft", {}):
        pass
    assert wandb[-2][1]["id"] == options["id"] and wandb[-2][1]["resume"] == "allow"
    track_step(3, {"loss": 1.0})  # outside of a stage nothing is sent
    assert len(wandb) == 6


def test_mlflow_writes_into_the_folder_and_goes_on_in_the_same_run(mlflow: Store, tmp_path: Path) -> None:
    for first in (1, 3):
        with tracked("mlflow", tmp_path, "bins", "sft", {"epochs": 3}):
            track_step(first, {"loss": 1 / first, "loss/answer": 0.5})
    with tracked("mlflow", tmp_path, "bins", "rlvr", {}):
        pass
    sft, rlvr = mlflow.runs.values()
    assert [m for m in sft["metrics"] if m[0] == "loss"] == [("loss", 1.0, 1), ("loss", 1 / 3, 3)]
    assert {m[0] for m in sft["metrics"]} == {"loss", "loss.answer"}  # in files a name is no folder too
    assert sft["params"] == {"epochs": "3"}
    assert sft["ended"] and rlvr["stage"] == "rlvr" and set(mlflow.experiments) == {"bins"}
    assert set(mlflow.uris) == {(tmp_path / "mlruns").as_uri()}


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(
    wandb: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    if when == "init":
        monkeypatch.setattr("wandb.init", fail)
    else:
        monkeypatch.setattr("wandb.init", lambda **_: SimpleNamespace(**{"log": id, "finish": id, when: fail}))
        if when == "finish":
            run = SimpleNamespace(log=lambda values, step: None, finish=fail)
            monkeypatch.setattr("wandb.init", lambda **_: run)
    with tracked("wandb", tmp_path, "bins", "sft", {}), MetricsLog(tmp_path, label="sft") as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert capsys.readouterr().err.count("warning: track=wandb has failed and is left out: OSError: no route") == 1


def test_a_package_that_is_not_installed_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.training.preflight.find_spec", lambda name: None if name == "mlflow" else name)
    (tmp_path / "r.yaml").write_text("name: r\ndata: {simulate: {}}\n")
    given = load_recipe(tmp_path / "r.yaml", ["track=mlflow"])
    with pytest.raises(LinesideError, match=r"track=mlflow needs the package mlflow.*pip install mlflow"):
        refuse(problem for problem in recipe_problems(given, ["align"]) if "track" in problem)
    with pytest.raises(LinesideError, match=r"track: expected .*wandb.*mlflow"):
        load_recipe(tmp_path / "r.yaml", ["track=tensorbord"])
