"""The registry's versions and champions in MLflow's registry. MLflow is played by a store with its client's methods."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lineside.errors import LinesideError
from lineside.mlflow import to_mlflow
from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from tests.registry.conftest import add

URI = "http://mlflow:5000"


class Store:
    """What MLflow keeps."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}  # aliases by name
        self.versions: list[SimpleNamespace] = []
        self.runs: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.broken = ""  # the method that fails

    def __getattribute__(self, name: str) -> Any:
        if name not in ("calls", "broken", "__dict__") and not name.startswith("_"):
            if name == self.broken:
                raise ConnectionError("no route to\n  host")
            self.calls.append(name)
        return object.__getattribute__(self, name)

    def search_registered_models(self, filter_string: str) -> list[str]:
        return [name for name in self.models if filter_string == f"name = '{name}'"]

    def create_registered_model(self, name: str) -> None:
        self.models[name] = {"mine": "1"}

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases=dict(self.models[name]))

    def search_model_versions(self, filter_string: str) -> list[SimpleNamespace]:
        return [one for one in self.versions if filter_string == f"name = '{one.name}'"]

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if any(r["experiment"] == name for r in self.runs) else None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs.append({"experiment": experiment, "name": run_name, "files": [], "metrics": {}})
        return SimpleNamespace(info=SimpleNamespace(run_id=len(self.runs) - 1, artifact_uri=f"store:/{len(self.runs)}"))

    def log_metric(self, run: int, key: str, value: float) -> None:
        self.runs[run]["metrics"][key] = value

    def log_artifacts(self, run: int, folder: str, place: str) -> None:
        self.runs[run]["files"] = sorted(f"{place}/{path.name}" for path in Path(folder).iterdir())

    def set_terminated(self, run: int) -> None:
        self.runs[run]["ended"] = True

    def create_model_version(self, name: str, source: str, run_id: int, tags: dict[str, str]) -> Any:
        number = str(1 + sum(one.name == name for one in self.versions))
        self.versions.append(SimpleNamespace(name=name, version=number, source=source, tags=tags))
        return self.versions[-1]

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.models[name][alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        del self.models[name][alias]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found, tracking = Store(), ModuleType("mlflow.tracking")
    vars(tracking)["MlflowClient"] = lambda tracking_uri, registry_uri: found
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setattr("lineside.mlflow.find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return found


def test_versions_and_champions_are_there_once_and_aliases_follow(
    registry: Registry, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = add(registry, "bins", "a"), add(registry, "bins", "b", ancestors=["w-a"])
    promote(registry, first)
    to_mlflow(registry.folder, URI)
    assert [(one.version, one.tags["lineside.version"]) for one in store.versions] == [("1", "bins@1"), ("2", "bins@2")]
    assert [one.tags["lineside.model"] for one in store.versions] == [first.model, second.model]
    assert store.versions[1].tags["lineside.from"] == "bins@1" and store.versions[0].source == "store:/1/checkpoint"
    assert store.runs[0]["files"] == ["checkpoint/config.json", "checkpoint/model.safetensors"]
    assert store.models["bins"] == {"mine": "1", "champion": "1"} and all(run["ended"] for run in store.runs)
    promote(registry, second, force="try")
    promote(registry, first, cell="cell.7", force="try")
    to_mlflow(registry.folder, URI)
    assert len(store.versions) == 2 and store.models["bins"] == {"mine": "1", "champion": "2", "champion-cell_7": "1"}
    roll_back(registry, "bins", cell="cell.7", follow=True)
    roll_back(registry, "bins")
    capsys.readouterr()
    to_mlflow(registry.folder, URI, as_json=True)
    assert store.models["bins"] == {"mine": "1", "champion": "1"}
    told = json.loads(capsys.readouterr().out)
    assert [one["new"] for one in told["versions"]] == [False, False] and told["aliases"] == {"bins": {"champion": 1}}
    store.calls.clear()
    to_mlflow(registry.folder, URI)
    assert not [call for call in store.calls if call.startswith(("create", "set", "log", "delete"))]


def test_stopped_it_goes_on_and_what_is_wrong_is_told(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in "ab":
        add(registry, "bins", content)
    store.broken = "create_model_version"
    with pytest.raises(LinesideError, match=rf"MLflow at {URI}: no route to host. Nothing is changed here; run it"):
        to_mlflow(registry.folder, URI)
    store.broken = ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    to_mlflow(registry.folder, None)
    assert [one.tags["lineside.version"] for one in store.versions] == ["bins@1", "bins@2"]
    for uri, problem in (("", "where is MLflow"), ("http://me:s3cret@host", "MLFLOW_TRACKING_PASSWORD")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(LinesideError, match=problem) as error:
            to_mlflow(registry.folder, None)
        assert "s3cret" not in str(error.value)
    (registry.files(registry.item(add(registry, "bins", "c").model)) / "config.json").unlink()
    with pytest.raises(LinesideError, match="bins@3: its files are not whole"):
        to_mlflow(registry.folder, URI)
    monkeypatch.setattr("lineside.mlflow.find_spec", lambda name: None)
    with pytest.raises(LinesideError, match="needs the package mlflow"):
        to_mlflow(registry.folder, URI)
