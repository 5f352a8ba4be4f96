"""A machine fetches what its home has signed, over real HTTP; in every other case its last good models stay."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response

from lineside import files
from lineside.errors import LinesideError
from lineside.fleet import client, mirror
from lineside.fleet.server import Home as Serving
from lineside.fleet.signing import make_keys, read_private, signed
from lineside.fleet.state import State, read_state, state_of
from lineside.registry.manifest import Entry, read_manifest
from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry, remove
from lineside.registry.trials import start, stop
from tests.fleet.conftest import Answer, Site, add_large, between, in_process, in_thread, to
from tests.registry.conftest import add, add_files


def test_promotions_and_rollbacks_reach_the_cells_that_they_are_for(
    registry: Registry, home: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    seven, other = site.machine(home, "cell-7"), Site(tmp_path / "other", site.key).machine(home)
    for machine in (seven, other):
        machine.pull()
    assert site.labels == ["bins@1"] and not seven.status.problem and not seven.status.offline
    first = seven.status.serial
    to(registry, 2, "cell-7")
    for machine in (seven, other):
        machine.pull()
    assert (site.labels, Site(tmp_path / "other", site.key).labels) == (["bins@2"], ["bins@1"])
    assert seven.status.serial == other.status.serial > first  # the state is the same, what they take of it is not
    fetched = [path.name for path in (site.folder / "models").iterdir()]
    roll_back(registry, "bins", cell="cell-7")
    seven.pull()
    assert site.labels == ["bins@1"] and seven.status.serial > other.status.serial
    assert sorted(fetched) == sorted(path.name for path in (site.folder / "models").iterdir())  # it was still there
    to(registry, 3)
    seven.pull()
    assert site.labels == ["bins@3"]
    kept = {path.name for path in (site.folder / "models").iterdir()}
    assert kept == {registry.version("bins@1").model, registry.version("bins@3").model}  # and the one before it
    assert not list((site.folder / "fetched").iterdir())


def test_a_machine_that_has_all_writes_nothing(home: str, site: Site) -> None:
    machine = site.pulled(home)
    before = {path: path.stat().st_mtime_ns for path in site.folder.rglob("*") if path.is_file()}
    machine.pull()
    assert not machine.status.problem
    assert before == {path: path.stat().st_mtime_ns for path in site.folder.rglob("*") if path.is_file()}


def test_evaluations_come_with_their_model_and_go_with_it(
    registry: Registry, home: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    for number in (1, 2):
        version = registry.version(f"bins@{number}")
        for split in ("heldout", "train"):
            path = tmp_path / f"{split}-{number}.json"
            path.write_text(f"{split} {number}")
            with registry.staging() as place:
                about = {"name": f"{split}-{number}", "split": split}
                staged = registry.stage(place, "evaluation", {path.name: path}, about)
                with registry.transaction():
                    registry.put(staged, [("model", version.model)])
    machine = site.pulled(home)
    with Registry(site.folder) as own:
        (found,) = own.made_from(registry.version("bins@1").model, "model")
        assert (own.files(found) / "heldout-1.json").read_text() == "heldout 1"
    for number in (2, 3, 2, 3):
        to(registry, number)
        machine.pull()
    assert not machine.status.problem
    with Registry(site.folder) as own:
        assert [item.kept for item in own.items("evaluation")] == [False, True]  # bins@1 is gone, bins@2 is not


def test_trials_reach_the_cells_that_they_are_for(
    registry: Registry, home: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    start(registry, registry.version("bins@2"), kind="shadow", share=0.25, cell="cell-7")
    start(registry, registry.version("bins@3"), kind="shadow", share=0.5)
    other = Site(tmp_path / "other", site.key)
    machine = site.pulled(home, cell="cell-7")
    other.pulled(home, cell="cell-8")
    found = []
    for one in (site, other):
        with Registry(one.folder) as own:
            found += [(trial.version.label, trial.cell, trial.share) for trial in own.trials()]
            assert [champion.version.label for champion in own.champions()] == ["bins@1"]
    assert found == [("bins@2", "", 0.25), ("bins@3", "", 0.5)]
    stop(registry, "bins", cell="cell-7")
    machine.pull()
    with Registry(site.folder) as own:
        assert [trial.version.label for trial in own.trials()] == ["bins@3"]
    to(registry, 1, "cell-7")  # the cell has a champion of its own now, and no part in the trial of all cells
    to(registry, 2)
    machine.pull()
    with Registry(site.folder) as own:
        assert own.trials() == [] and site.labels == ["bins@1"]
    assert not machine.status.problem
    assert {path.name for path in (site.folder / "models").iterdir()} == {registry.version("bins@1").model}


def on_trial(site: Site) -> list[str]:
    with Registry(site.folder) as own:
        return [trial.version.label for trial in own.trials()]


def test_a_trial_that_does_not_fit_or_arrive_holds_up_no_champion(
    registry: Registry, home: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    start(registry, registry.version("bins@3"), kind="shadow", share=0.5)
    machine = site.machine(home, max_bytes=500_000)
    machine.pull()
    told = machine.status
    assert site.labels == ["bins@1"] and on_trial(site) == [] and "--cache-gb allows 500,000" in told.problem
    assert told.serial and told.signed and not told.offline
    machine = site.machine(home, max_bytes=1_000_000)
    real = client.Home.fetch

    def lost(self: client.Home, entry: Entry, place: Path) -> None:
        if entry.bytes == 300_002:
            raise client.Offline("the line is down")
        real(self, entry, place)

    monkeypatch.setattr(client.Home, "fetch", lost)
    to(registry, 2)
    machine.pull()
    assert site.labels == ["bins@2"] and machine.status.offline and machine.status.serial > told.serial
    monkeypatch.setattr(client.Home, "fetch", real)
    machine.pull()
    assert on_trial(site) == ["bins@3"] and not machine.status.problem


def test_a_trial_goes_on_offline_and_damage_of_it_is_mended(registry: Registry, home: str, site: Site) -> None:
    start(registry, registry.version("bins@2"), kind="shadow", share=0.5)
    with in_thread(Serving(registry.folder, read_private(site.key))) as url:
        site.pulled(url)
    assert site.pulled(url).status.offline and on_trial(site) == ["bins@2"]
    (path,) = site.folder.glob(f"models/{registry.version('bins@2').model}/files/model.safetensors")
    path.chmod(0o644)
    path.write_text("z" * 300_001)  # the same size
    with in_thread(Serving(registry.folder, read_private(site.key))) as url:
        assert not site.pulled(url).status.problem
    with Registry(site.folder) as own:
        own.check(own.item(registry.version("bins@2").model), "bins@2")
        assert [trial.version.label for trial in own.trials()] == ["bins@2"]


def test_a_trial_that_home_cannot_send_holds_up_no_champion(
    registry: Registry, site: Site, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    (tmp_path / "weights.pt").write_text("x")
    about = registry.item(registry.version("bins@1").model).about
    bad = add_files(registry, "bins", {"weights.pt": tmp_path / "weights.pt"}, about)
    start(registry, bad, kind="shadow", share=0.5)
    with in_thread(Serving(registry.folder, read_private(key))) as url:
        assert "weights.pt is not sent" in (told := capfd.readouterr().err) and "no trial reaches a machine" in told
        machine = site.pulled(url)
        start(registry, registry.version("bins@2"), kind="shadow", share=0.5)
        manifest = registry.path(registry.item(registry.version("bins@2").model)) / "manifest.json"
        manifest.rename(tmp_path / "manifest")  # its files are gone, or damaged
        to(registry, 3)
        machine.pull()
        assert site.labels == ["bins@3"] and on_trial(site) == [] and not machine.status.problem
        (tmp_path / "manifest").rename(manifest)
        machine.pull()
        assert on_trial(site) == ["bins@2"]


# --- offline


def test_offline_the_last_good_models_stay_also_after_a_start(
    registry: Registry, key: Path, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with in_thread(Serving(registry.folder, read_private(key))) as url:
        machine = site.pulled(url)
    serial = machine.status.serial
    for _ in range(2):
        machine.pull()
        assert machine.status.offline and url.rstrip("/") in machine.status.problem and machine.status.serial == serial
    assert capfd.readouterr().err.count("the models here answer on") == 1
    again = site.machine(url)
    again.start()
    again.stop()
    assert again.status.offline and again.status.serial == serial and again.status.signed and site.labels == ["bins@1"]
    capfd.readouterr()
    with pytest.raises(LinesideError, match=r"there is no model here yet, and none could be fetched: .*refused"):
        Site(site.folder.with_name("new"), key).machine(url).start()
    assert "answer on" not in capfd.readouterr().err  # nothing does


def test_a_home_that_has_lost_files_is_told_to_a_machine_that_lacks_them(
    registry: Registry, home: str, site: Site
) -> None:
    remove(registry.files(registry.item(registry.version("bins@1").model)))
    refused(site, home, "status 404; home has lost this file: register the model there again", good=[])


def test_home_killed_in_the_middle_of_a_download_which_then_goes_on(
    registry: Registry, key: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 24_000_000
    add_large(registry, "large", "x" * size)
    version = registry.version("large@1")
    promote(registry, version)
    with in_process(registry.folder, key) as (process, url):
        fetch, killed = client.Home._download, threading.Event()

        def watched(self: client.Home, entry: object, part: Path) -> None:
            def kill() -> None:
                while not (part.exists() and part.stat().st_size > 1 << 20):
                    time.sleep(0.0005)
                process.kill()
                killed.set()

            if getattr(entry, "bytes", 0) == size:
                threading.Thread(target=kill, daemon=True).start()
            fetch(self, entry, part)

        monkeypatch.setattr(client.Home, "_download", watched)
        machine = site.pulled(url, max_bytes=100_000_000)
        monkeypatch.undo()
    assert killed.is_set() and machine.status.offline and site.labels == []
    (part,) = (site.folder / "fetched").glob("*.part")
    got = part.stat().st_size
    assert 1 << 20 < got < size
    asked: list[str] = []
    serving = Serving(registry.folder, read_private(key))
    blob = serving.blob

    async def heard(request: Request) -> Response:
        asked.append(request.headers.get("range", ""))
        return await blob(request)

    monkeypatch.setattr(serving, "blob", heard)
    with in_thread(serving) as url:
        site.pulled(url, max_bytes=100_000_000)
    assert site.labels == ["bins@1", "large@1"] and f"bytes={got}-" in asked


def test_a_machine_killed_while_it_fetches_goes_on_and_is_whole(registry: Registry, home: str, site: Site) -> None:
    """As a kill at every step leaves it: fetched files, parts of files, folders that were never renamed."""
    machine = site.machine(home)
    with httpx2.Client() as http:
        sha = registry.version("bins@1").model
        entries = json.loads((registry.folder / "models" / sha / "manifest.json").read_text())["files"]
        data = {entry["sha256"]: http.get(f"{home}v1/blobs/{entry['sha256']}").content for entry in entries}
    fetched = site.folder / "fetched"
    (small, large) = sorted(data, key=lambda sha: len(data[sha]))
    (fetched / small).write_bytes(data[small])
    (fetched / f"{large}.part").write_bytes(data[large][:1000])
    (fetched / "of-another-state.part").write_bytes(b"x")
    (site.folder / "tmp" / "1-abc" / "model-x").mkdir(parents=True)
    machine.pull()
    assert site.labels == ["bins@1"] and not machine.status.problem and not list(fetched.iterdir())
    assert not list((site.folder / "tmp").iterdir())


def test_files_that_were_damaged_here_are_fetched_again(registry: Registry, home: str, site: Site) -> None:
    site.pulled(home)
    folder = site.folder / "models" / registry.version("bins@1").model / "files"
    (folder / "model.safetensors").chmod(0o644)
    (folder / "model.safetensors").write_text("z" * 300_000)  # the same size
    with pytest.raises(LinesideError, match="has changed"):
        _ = site.labels
    site.pulled(home)
    assert site.labels == ["bins@1"]


# --- whoever stands in between


def envelope_of(state: State, key: Path) -> bytes:
    return signed(state.model_dump_json().encode(), read_private(key))


def answering(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


def refused(site: Site, url: str, told: str, *, good: list[str] | None = None) -> None:
    """A look at this address changes nothing, and says why."""
    machine = site.pulled(url)
    assert told in machine.status.problem, machine.status.problem
    assert site.labels == (["bins@1"] if good is None else good)


def test_a_state_of_another_key_is_refused(registry: Registry, home: str, site: Site, tmp_path: Path) -> None:
    site.pulled(home)
    make_keys(tmp_path / "thief")
    to(registry, 2)
    with in_thread(Serving(registry.folder, read_private(tmp_path / "thief"))) as url:
        refused(site, url, "the signature of what home sends does not hold")


def test_an_old_state_that_somebody_sends_again_is_refused(
    registry: Registry, home: str, site: Site, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.server.LOOK_SECONDS", 0.0)
    recorded = httpx2.get(f"{home}v1/state").content
    to(registry, 2)
    site.pulled(home)
    with between(lambda handler: answering(handler, recorded)) as url:
        refused(site, url, "an older state is never taken", good=["bins@2"])
    now = state_of(registry)
    other = now.model_copy(update={"champions": (now.champions[0].model_copy(update={"cell": "cell-1"}),)})
    with between(lambda handler: answering(handler, envelope_of(other, key))) as url:
        refused(site, url, "two different states with the serial", good=["bins@2"])
    old = now.model_copy(update={"serial": now.serial + 1, "time": (datetime.now(UTC) - timedelta(days=2)).isoformat()})
    with between(lambda handler: answering(handler, envelope_of(old, key))) as url:
        refused(site, url, "too old, or this clock is wrong", good=["bins@2"])
        new = Site(site.folder.with_name("new"), key)  # a machine that has seen nothing yet
        refused(new, url, "too old, or this clock is wrong", good=[])


def test_a_registry_from_an_older_copy_is_taken_after_its_server_has_started_anew(
    registry: Registry, key: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(registry.folder, copy := registry.folder.with_name("copy"))
    for number in (2, 3, 2, 3):  # the serial goes ahead of the copy's
        to(registry, number)
        state_of(registry)
    with in_thread(Serving(registry.folder, read_private(key))) as url:
        serial = site.pulled(url).status.serial
    monkeypatch.setattr(time, "time", lambda: float(serial + 100))
    with in_thread(Serving(copy, read_private(key))) as url:
        assert site.pulled(url).status.serial == serial + 100
    assert site.labels == ["bins@1"]


@pytest.mark.parametrize("name", ["../escaped", "/etc/cron.d/x", "a/../../escaped", "model.safetensors/../../x"])
def test_a_name_that_leads_outside_is_refused_even_if_it_is_signed(
    registry: Registry, home: str, site: Site, key: Path, name: str
) -> None:
    site.pulled(home)
    plain = json.loads(state_of(registry, anew=True).model_dump_json())
    plain["served"][0]["model"]["files"][0]["name"] = name
    with between(lambda handler: answering(handler, signed(json.dumps(plain).encode(), read_private(key)))) as url:
        refused(site, url, "what home signed cannot be read")
    assert not list(site.folder.parent.rglob("*escaped*"))


@pytest.mark.parametrize(
    "change", [{"number": 9}, {"name": "kits"}, {"share": 2.0}, {"share": -1.0}, {"kind": "champion"}, {"cell": "../x"}]
)
def test_a_trial_that_makes_no_sense_is_refused_even_if_it_is_signed(
    registry: Registry, home: str, site: Site, key: Path, change: dict[str, object]
) -> None:
    site.pulled(home)
    start(registry, registry.version("bins@2"), kind="shadow", share=0.5)
    plain = json.loads(state_of(registry, anew=True).model_dump_json())
    plain["trials"][0] |= change
    with between(lambda handler: answering(handler, signed(json.dumps(plain).encode(), read_private(key)))) as url:
        refused(site, url, "what home signed cannot be read")
    assert on_trial(site) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pkl", "modeling_x.py", "x.so", "noending"])
def test_weights_are_safetensors_at_home_and_on_the_machine(
    registry: Registry, site: Site, key: Path, tmp_path: Path, name: str
) -> None:
    good = state_of(registry)
    (entry, *_) = good.served[0].model.files
    kept = {"hash": "", "about": {}, "files": (entry.model_copy(update={"name": name}),)}
    kept["hash"] = mirror.Kept.model_construct(**kept).manifest.hash
    served = good.served[0].model_copy(update={"model": mirror.Kept(**kept)})
    bad = good.model_copy(update={"served": (served,), "serial": good.serial + 1})
    with between(lambda handler: answering(handler, envelope_of(bad, key))) as url:
        refused(site, url, f"{name} is not sent: weights are safetensors", good=[])
    (tmp_path / name).write_text("x")
    to(registry, add_files(registry, "bins", {name: tmp_path / name}, good.served[0].model.about).number)
    with pytest.raises(LinesideError, match=f"bins@4: {name} is not sent"):
        Serving(registry.folder, read_private(key))


def relayed(home: str, change: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Answer:
    """An answer that is home's, but for the weights, which `change` answers."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        found = httpx2.get(home.rstrip("/") + path).content
        large = "/blobs/" in path and len(found) > 1000
        change(handler, found) if large else answering(handler, found)

    return answer


def test_a_changed_file_is_refused_and_nothing_of_it_stays(home: str, site: Site) -> None:
    def tampered(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        answering(handler, data[:-1] + b"X")

    with between(relayed(home, tampered)) as url:
        refused(site, url, "home sends another file than the one that was signed", good=[])
    assert max(path.stat().st_size for path in (site.folder / "fetched").iterdir()) < 1000  # of the weights nothing
    site.pulled(home)
    assert site.labels == ["bins@1"]


def test_a_file_is_durable_before_its_name_says_that_it_is_whole(
    registry: Registry, home: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, flush = [], files.flush

    def seen(path: Path) -> None:
        if path.suffix == ".part":
            flushed.append(path.stem)
            assert not path.with_suffix("").exists()
        flush(path)

    monkeypatch.setattr(files, "flush", seen)
    site.pulled(home)
    champion = registry.item(registry.version("bins@1").model)
    assert sorted(flushed) == sorted(entry.sha256 for entry in read_manifest(registry.path(champion)).files)


def test_a_file_without_end_is_not_read_to_its_end(home: str, site: Site) -> None:
    def endless(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        with pytest.raises(OSError):
            answering(handler, data, length=1 << 40)
            while True:
                handler.wfile.write(bytes(1 << 16))

    with between(relayed(home, endless)) as url:
        refused(site, url, "home sends more than the", good=[])
    assert sum(path.stat().st_size for path in (site.folder / "fetched").iterdir()) < 1_000_000


def test_a_state_without_end_is_not_read_to_its_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_STATE", 1000)
    with between(lambda handler: answering(handler, bytes(100_000))) as url:
        refused(site, url, "a reply of more than 1,000 bytes", good=[])


def test_a_line_that_drips_is_given_up_and_what_came_stays(home: str, site: Site) -> None:
    ticks = itertools.count(0.0, 0.4 * client.SLOW_SECONDS)  # each look at the clock

    def dripping(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        answering(handler, data[:100], length=len(data))
        with suppress(OSError):
            while True:
                time.sleep(0.05)
                handler.wfile.write(data[:10])

    with between(relayed(home, dripping)) as url:
        machine = site.machine(url)
        machine._home = client.Home(url, clock=lambda: next(ticks))
        machine.pull()
    assert machine.status.offline and "too slow" in machine.status.problem
    assert any(path.stat().st_size for path in (site.folder / "fetched").glob("*.part"))


def test_redirects_and_errors_are_home_being_offline(site: Site) -> None:
    def moved(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "http://127.0.0.1:1/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with between(moved) as url:
        refused(site, url, "status 302", good=[])
    with between(lambda handler: answering(handler, b"{}", 500)) as url:
        refused(site, url, "status 500", good=[])


# --- room, keys, addresses


def test_the_folder_takes_no_more_than_it_may(registry: Registry, home: str, site: Site) -> None:
    machine = site.pulled(home, max_bytes=500_000)
    assert site.labels == ["bins@1"]
    to(registry, 2)
    with in_thread(Serving(registry.folder, read_private(site.key))) as url:
        machine = site.pulled(url, max_bytes=500_000)
        assert "and --cache-gb allows 500,000" in machine.status.problem and site.labels == ["bins@1"]
        assert not list((site.folder / "fetched").iterdir())
        site.pulled(url, max_bytes=700_000)
    assert site.labels == ["bins@2"]


def test_a_full_disk_is_told_and_its_room_given_back(home: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    refused(site, home, "bytes free, and 300,002 are to be fetched", good=[])
    monkeypatch.undo()
    real = Path.open

    def opened(path: Path, mode: str = "r", *how: object, **more: object) -> object:
        full = path.suffix == ".part" and "a" in mode
        return open("/dev/full", "ab", buffering=0) if full else real(path, mode, *how, **more)

    monkeypatch.setattr(Path, "open", opened)
    refused(site, home, "the disk is full", good=[])
    monkeypatch.undo()
    assert not list((site.folder / "fetched").iterdir())
    site.pulled(home)
    assert site.labels == ["bins@1"]


def test_home_asks_for_a_key_and_shows_nothing_else(registry: Registry, site: Site, key: Path) -> None:
    with in_thread(Serving(registry.folder, read_private(key), keys=("machine-key-0123456789",))) as url:
        refused(site, url, "status 401; set LINESIDE_HOME_KEY to a key that home knows", good=[])
        assert site.pulled(url, api_key="machine-key-0123456789").status.problem == ""
        with httpx2.Client(base_url=url, headers={"Authorization": "Bearer machine-key-0123456789"}) as http:
            retired = json.loads(
                (registry.folder / "models" / registry.version("bins@2").model / "manifest.json").read_text()
            )["files"][-1]["sha256"]
            for path in (f"v1/blobs/{retired}", "v1/blobs/..%2f..%2fregistry.sqlite", "registry.sqlite", "v1/blobs/"):
                assert http.get(path).status_code == 404
            assert http.post("v1/state").status_code == 405


@pytest.mark.parametrize(
    "url", ["home:8001", "ftp://home", "http://", "http://user:pass@home", "http://h?x=1", "http://[::1"]
)
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(LinesideError, match="expected the address of `lineside registry serve`, such as"):
        client.Home(url)


def test_what_a_newer_home_signs_is_told(registry: Registry) -> None:
    plain = json.loads(state_of(registry).model_dump_json())
    with pytest.raises(LinesideError, match=r"version.*install the lineside of home here"):
        read_state(json.dumps({**plain, "version": 2}).encode())


def test_a_home_that_began_anew_is_followed(
    registry: Registry, home: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its versions count from 1 again: the same labels for other models."""
    site.pulled(home)
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    with Registry(tmp_path / "new" / "registry", create=True) as new:
        for content in ("n", "m"):
            add(new, "bins", content)
        to(new, 2)
        to(new, 1)
        with in_thread(Serving(new.folder, read_private(site.key))) as url:
            assert site.pulled(url).status.problem == ""
        with Registry(site.folder) as own:
            champion = own.champion("bins")
            assert champion is not None and champion.version.model == new.version("bins@1").model
    assert len(list((site.folder / "models").iterdir())) == 1
