"""A real server that pulls: promotions and a rollback under load, home killed and back, a start without home."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lineside.registry.manifest import files_below
from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from tests.fleet.conftest import in_process
from tests.registry.conftest import ABOUT
from tests.serving.conftest import EMPTY, Served, make_checkpoint, serving, turn, url


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A registry with two versions: equal weights and other files, so the same answers and another version."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    with Registry(tmp_path / "registry", create=True) as registry:
        for number in (1, 2):
            (checkpoint / "note.json").write_text(str(number))
            with registry.staging() as place:
                staged = registry.stage(place, "model", files_below(checkpoint), ABOUT)
                with registry.transaction():
                    registry.add_version("bins", registry.put(staged).hash)
        promote(registry, registry.version("bins@1"))
    return tmp_path / "registry"


class Load:
    """Clients that ask without a pause. `seen`: the versions that answered, in order; `failed`: what was no answer."""

    def __init__(self, served: Served, cell: str) -> None:
        self._served, self._cell, self._over = served, cell, threading.Event()
        self.seen: list[str] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        body = {"model": "bins", "messages": turn("Is the left bin empty?", url(number)), "max_tokens": 8}
        with self._served.http() as client:
            while not self._over.is_set():
                found = client.post("v1/chat/completions", json={**body, "lineside": {"task": EMPTY}})
                if found.status_code != 200:
                    self.failed.append(found.text)
                    return
                self.seen.append(found.json()["model"])

    def until(self, label: str) -> None:
        """Wait until a version answers."""
        deadline = time.monotonic() + 600
        while not self.seen or self.seen[-1] != label:
            assert time.monotonic() < deadline and not self.failed, self.failed
            time.sleep(0.05)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_promotions_under_load_reach_a_machine_that_pulls_and_home_may_die(
    two: Path, key: Path, keys: Path, tmp_path: Path
) -> None:
    pull = ["--trust", str(key.with_name("owner.pub")), "--cell", "cell-7", "--cache", str(tmp_path / "pulled")]
    pull += ["--pull-seconds", "0.2", "--pull"]
    with in_process(two, key) as (home, address), serving(None, keys, *pull, address) as served:
        load = Load(served, "cell-7")
        with suppress(AssertionError), Registry(two) as registry:
            load.until("bins@1")
            promote(registry, registry.version("bins@2"), cell="cell-7", force="canary")
            load.until("bins@2")
            roll_back(registry, "bins", cell="cell-7")
            load.until("bins@1")
            home.kill()
            home.wait()
            promote(registry, registry.version("bins@2"), force="x")
            with served.http() as client:
                while not (told := client.get("healthz").json()["home"])["offline"]:
                    time.sleep(0.05)
                assert not told["well"] and client.get("readyz").status_code == 200
                assert "lineside:home_problem 1.0" in client.get("metrics").text
                assert address.rstrip("/") in client.get("v1/models").json()["lineside"]["home"]["problem"]
            count = len(load.seen)
            while len(load.seen) < count + 5 and not load.failed:
                time.sleep(0.05)
            with in_process(two, key, int(address.rstrip("/").rpartition(":")[2])):
                load.until("bins@2")
        load.end()
    assert not load.failed and load.seen[-1] == "bins@2"
    shown = [label for i, label in enumerate(load.seen) if i == 0 or load.seen[i - 1] != label]
    assert shown[0] == "bins@1" and shown[-1] == "bins@2" and len(load.seen) > 20
    with serving(None, keys, *pull, address) as served, served.http() as client:  # home is gone
        body = {"model": "bins", "messages": turn("Is the left bin empty?", url(1)), "max_tokens": 8}
        assert client.post("v1/chat/completions", json=body).json()["model"] == "bins@2"
        assert client.get("healthz").json()["home"]["offline"]
