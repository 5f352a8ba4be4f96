"""A real server that pulls: promotions and a rollback under load, home killed and back, a start without home."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from lineside.registry.trials import start, stop
from tests.conftest import wait_until
from tests.fleet.conftest import in_process
from tests.serving.conftest import EMPTY, Load, registry_of_two, serving, turn, url


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


@pytest.mark.slow
def test_a_shadow_and_a_canary_beside_the_champion(keys: Path, tmp_path: Path) -> None:
    """A real server: both answers are kept with their versions, and the champion's is used, until it is a canary."""
    two, log = registry_of_two(tmp_path), tmp_path / "log"
    pairs = (
        "SELECT answers.version, shadows.version, answers.answer, shadows.answer FROM answers JOIN shadows USING (id)"
    )
    body = {"model": "bins", "messages": turn("Is the left bin empty?", url(1)), "max_tokens": 8}
    body["lineside"] = {"task": EMPTY}
    with Registry(two) as registry:
        hashes = [registry.version(f"bins@{number}").model[:16] for number in (1, 2)]
        start(registry, registry.version("bins@2"), kind="shadow", share=1.0)
        with (
            serving(None, keys, "--registry", str(two), "--outcomes", str(log)) as served,
            served.http() as client,
        ):

            def on_trial() -> bool:
                time.sleep(0.5)  # a shadow loads in the time that nobody else wants, so none is taken from it here
                return bool(client.get("v1/models").json()["data"][0]["lineside"]["trials"])

            wait_until(on_trial)
            found = client.post("v1/chat/completions", json=body).json()
            assert found["model"] == "bins@1" and found["lineside"]["version"] == hashes[0]
            wait_until(lambda: sqlite3.connect(log).execute(pairs).fetchall())
            ((first, second, one, other),) = sqlite3.connect(log).execute(pairs).fetchall()
            assert [first, second] == hashes
            assert json.loads(one)["text"] == json.loads(other)["text"]  # equal weights
            assert 'lineside:shadow_total{model_name="bins",result="answered"} 1.0' in client.get("metrics").text
            with Load(served, [None]) as load:
                start(registry, registry.version("bins@2"), kind="canary", share=1.0, force="x")
                load.until("bins@2")
                stop(registry, "bins")
                load.until("bins@1")
    assert not load.failed and load.shown == [["bins@1", "bins@2", "bins@1"]]
