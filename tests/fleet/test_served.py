"""A real server that pulls: promotions and a rollback under load, home killed and back, a start without home."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from tests.conftest import wait_until
from tests.fleet.conftest import in_process
from tests.serving.conftest import Load, registry_of_two, serving, turn, url


@pytest.mark.slow
def test_promotions_under_load_reach_a_machine_that_pulls_and_home_may_die(
    key: Path, keys: Path, tmp_path: Path
) -> None:
    two = registry_of_two(tmp_path)
    pull = ["--trust", str(key.with_name("owner.pub")), "--cell", "cell-7", "--cache", str(tmp_path / "pulled")]
    pull += ["--pull-seconds", "0.2", "--pull"]
    with (
        in_process(two, key) as (home, address),
        serving(None, keys, *pull, address) as served,
        Load(served, [None, None]) as load,
        Registry(two) as registry,
    ):
        load.until("bins@1")
        promote(registry, registry.version("bins@2"), cell="cell-7", force="canary")
        load.until("bins@2")
        roll_back(registry, "bins", cell="cell-7")
        load.until("bins@1")
        home.kill()
        home.wait()
        promote(registry, registry.version("bins@2"), force="x")
        with served.http() as client:
            wait_until(lambda: client.get("healthz").json()["home"]["offline"])
            assert not client.get("healthz").json()["home"]["well"] and client.get("readyz").status_code == 200
            assert "lineside:home_problem 1.0" in client.get("metrics").text
            assert address.rstrip("/") in client.get("v1/models").json()["lineside"]["home"]["problem"]
        count = load.count
        wait_until(lambda: load.count >= count + 5 or load.failed)
        with in_process(two, key, int(address.rstrip("/").rpartition(":")[2])):
            load.until("bins@2")
    assert not load.failed
    assert load.count > 20 and all((labels[0], labels[-1]) == ("bins@1", "bins@2") for labels in load.shown)
    with serving(None, keys, *pull, address) as served, served.http() as client:  # home is gone
        body = {"model": "bins", "messages": turn("Is the left bin empty?", url(1)), "max_tokens": 8}
        assert client.post("v1/chat/completions", json=body).json()["model"] == "bins@2"
        assert client.get("healthz").json()["home"]["offline"]
