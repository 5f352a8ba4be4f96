"""Answers go home over real HTTP: each once, with its truth, whoever is killed in between."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lineside.errors import LinesideError
from lineside.fleet.client import Home, Offline
from lineside.fleet.intake import Intake, Sent
from lineside.fleet.outbox import SENT, Outbox
from lineside.fleet.server import Home as Serving
from lineside.fleet.signing import read_private
from lineside.images import image_key
from lineside.registry.store import Registry
from lineside.serving.outcomes import Outcomes
from tests.conftest import wait_until
from tests.fleet.conftest import Site, in_process, in_thread
from tests.serving.test_outcomes import typed

TYPED = typed()


def log_at(path: Path, **options: Any) -> Outcomes:
    return Outcomes(path, **{"days": 30.0, "max_bytes": 1 << 30, "frames": True, **options})


def answer(log: Outcomes, name: str, frame: bytes = b"frame") -> None:
    log.keep(name, (frame,), "how many?", TYPED, model="bins", version="v1")


def rows(path: Path, table: str = "answers") -> list[dict[str, Any]]:
    with sqlite3.connect(path) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY 1")]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Home's log."""
    return tmp_path / "home.sqlite"


@pytest.fixture
def home(registry: Registry, key: Path, kept: Path) -> Iterator[str]:
    intake = partial(Intake, kept, days=365.0, max_bytes=1 << 30, frames=True)
    serving = Serving(registry.folder, read_private(key), intake=intake)
    with in_thread(serving) as url:
        yield url
    serving.close()


def sent_by(path: Path, url: str, machine: str = "cell-7", key: str = "") -> int:
    outbox, total = Outbox(path, machine=machine), 0
    while count := outbox.send(Home(url, key)):
        total += count
    return total


def test_answers_truths_and_pictures_arrive_once(tmp_path: Path, home: str, kept: Path) -> None:
    log = log_at(tmp_path / "log")
    answer(log, "before", b"one")
    outbox = Outbox(tmp_path / "log", machine="cell-7")
    for number in range(450):
        answer(log, f"a-{number:03}", b"%d" % (number % 7))
    assert outbox.waiting == 451 and sent_by(tmp_path / "log", home) == 451 and outbox.waiting == 0
    assert rows(kept) == rows(tmp_path / "log") and rows(kept, "frames") == rows(tmp_path / "log", "frames")
    assert {row["machine"] for row in rows(kept, "origins")} == {"cell-7"}
    log.keep_shadow("a-001", TYPED, version="v2")
    log.keep_shadow("unknown", TYPED, version="v2")
    assert sent_by(tmp_path / "log", home) == 1 and [row["id"] for row in rows(kept, "shadows")] == ["a-001"]
    assert rows(kept, "shadows") == rows(tmp_path / "log", "shadows")
    log.tell("a-000", "4", "wrong")
    assert sent_by(tmp_path / "log", home) == 1
    assert rows(kept) == rows(tmp_path / "log") and rows(kept)[0]["verdict"] == "wrong"
    assert [row["machine"] for row in rows(kept, "origins")] == ["cell-7"] * 451


def test_what_comes_again_changes_nothing_and_the_last_truth_counts(tmp_path: Path, home: str, kept: Path) -> None:
    """Batches that arrive twice, and in the wrong order."""
    log = log_at(tmp_path / "log")
    answer(log, "a")
    outbox = Outbox(tmp_path / "log", machine="m")
    first = [row for _, row in outbox._first()]
    log.tell("a", "3", "right")
    second = [row for _, row in outbox._first()]
    log.tell("a", "4", "wrong")
    third = [row for _, row in outbox._first()]
    for batch in (first, third, second, first, third):
        reply = Home(home).send(json.dumps({"machine": "m", "answers": batch}).encode())
        assert json.loads(reply)["refused"] == {}
    assert [(row["truth"], row["verdict"]) for row in rows(kept)] == [("4", "wrong")]


def test_while_home_is_offline_answers_wait_and_the_oldest_go_first(tmp_path: Path, home: str, kept: Path) -> None:
    log = log_at(tmp_path / "log", max_bytes=200_000)
    outbox = Outbox(tmp_path / "log", machine="m")
    for number in range(300):
        log._clock = lambda number=number: 1_800_000_000.0 + number
        answer(log, f"a-{number:03}", bytes([number % 256]) * 3_000)
    log.prune()
    with pytest.raises(Offline, match="refused"):
        outbox.send(Home("http://127.0.0.1:9"))
    assert (tmp_path / "log").stat().st_size < 300_000 and 5 < outbox.waiting < 100
    sent_by(tmp_path / "log", home)
    assert [row["id"] for row in rows(kept)] == [row["id"] for row in rows(tmp_path / "log")]
    assert rows(kept)[-1]["id"] == "a-299"


def test_an_answer_that_is_deleted_before_it_is_sent_never_is(tmp_path: Path, home: str, kept: Path) -> None:
    log = log_at(tmp_path / "log")
    outbox = Outbox(tmp_path / "log", machine="m")
    answer(log, "a")
    answer(log, "b")
    log.delete("a")
    assert outbox.send(Home(home)) == 1 and [row["id"] for row in rows(kept)] == ["b"]


# --- killed for real

SENDER = """
import sys, time
from pathlib import Path
from lineside.fleet.client import Home, Offline
from lineside.fleet.outbox import Outbox
from lineside.fleet import outbox
outbox.ROWS = 5
box, home = Outbox(Path(sys.argv[1]), machine="m"), Home(sys.argv[2])
print("ready", flush=True)
while True:
    try:
        if not box.send(home):
            break
    except Offline:
        time.sleep(0.02)
"""


def sender(log: Path, url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", SENDER, str(log), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def count(kept: Path) -> int:
    if not kept.exists():
        return 0
    with sqlite3.connect(kept, timeout=10) as db:
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.mark.slow
def test_kill_either_side_and_every_answer_is_there_once(
    registry: Registry, key: Path, tmp_path: Path, kept: Path
) -> None:
    log = log_at(tmp_path / "log")
    for number in range(3000):
        answer(log, f"a-{number:04}", b"%d" % (number % 20))
    options = ["--outcomes", str(kept), "--outcome-frames"]
    with in_process(registry.folder, key, 0, *options) as (process, url):
        port = int(url.rstrip("/").rpartition(":")[2])
        for stop in (100, 400):  # the machine is killed
            machine = sender(tmp_path / "log", url)
            wait_until(lambda stop=stop: count(kept) > stop)
            machine.send_signal(signal.SIGKILL)
            machine.wait()
        machine = sender(tmp_path / "log", url)
        wait_until(lambda: count(kept) > 700)
        process.kill()  # home is killed, and the machine goes on when it is back
        process.wait()
        before = count(kept)
    assert 700 < before < 3000
    with in_process(registry.folder, key, port, *options):
        assert machine.wait(timeout=600) == 0
    log.close()
    assert rows(kept) == rows(tmp_path / "log") and rows(kept, "frames") == rows(tmp_path / "log", "frames")


def test_home_ends_between_keeping_and_acknowledging(
    tmp_path: Path, home: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply is lost: the machine sends the same again."""
    log = log_at(tmp_path / "log")
    answer(log, "a", b"one")
    outbox, real = Outbox(tmp_path / "log", machine="m"), Home.send

    def lost(self: Home, body: bytes) -> bytes:
        real(self, body)
        raise Offline("the line is down")

    monkeypatch.setattr(Home, "send", lost)
    with pytest.raises(Offline):
        outbox.send(Home(home))
    monkeypatch.undo()
    assert count(kept) == 1 and outbox.waiting == 1 and rows(kept, "frames") == []
    assert outbox.send(Home(home)) == 1 and count(kept) == 1 and len(rows(kept, "frames")) == 1
    assert outbox.waiting == 0


# --- what home does not take


def good(name: str = "a") -> dict[str, Any]:
    values = (name, 1.0, "bins", "v", image_key(b"x"), "how many?", TYPED.model_dump_json(), *[None] * 6)
    return dict(zip(SENT, values, strict=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": "../x"}, "id"),
        ({"id": "x" * 101}, "id"),
        ({"time": "1"}, "time"),
        ({"frame": "not-a-key"}, "frame"),
        ({"answer": "{}"}, "answer"),
        ({"answer": "[" * 5000}, "answer"),
        ({"verdict": "perhaps"}, "verdict"),
        ({"truth": "x" * 1001}, "truth"),
        ({"extra": 1}, "extra"),
        ({"told": -1.0}, "told"),
        ({"about": "[" * 5000}, "about"),
        ({"about": '{"beside": [{"key": "../x"}]}'}, "about"),
        ({"shadow_version": "v", "shadow_answer": "{}"}, "shadow_answer"),
    ],
)
def test_a_bad_answer_is_refused_alone(home: str, kept: Path, change: dict[str, Any], told: str) -> None:
    body = {"machine": "m", "answers": [{**good("bad"), **change}, good("good")]}
    reply = json.loads(Home(home).send(json.dumps(body).encode()))
    assert len(reply["refused"]) == 1 and told in next(iter(reply["refused"].values()))
    assert [row["id"] for row in rows(kept)] == ["good"]


def test_a_refused_answer_holds_up_no_other(
    tmp_path: Path, home: str, kept: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = log_at(tmp_path / "log")
    outbox = Outbox(tmp_path / "log", machine="m")
    answer(log, "bad id of an older version")
    answer(log, "good")
    assert outbox.send(Home(home)) == 2 and outbox.waiting == 0
    assert [row["id"] for row in rows(kept)] == ["good"]
    assert "home refuses the answer bad id of an older version" in capfd.readouterr().err


def test_a_machine_changes_no_answer_of_another(registry: Registry, key: Path, kept: Path) -> None:
    one, other = "machine-one-0123456789", "machine-two-0123456789"
    intake = partial(Intake, kept, days=1.0, max_bytes=1 << 30, frames=True)
    serving = Serving(registry.folder, read_private(key), keys=(one, other), intake=intake)
    told = {**good(), "truth": "9", "verdict": "wrong", "told": 5.0}
    told |= {"shadow_version": "v2", "shadow_answer": TYPED.model_dump_json()}
    with in_thread(serving) as url:
        Home(url, one).send(json.dumps({"machine": "m", "answers": [good()]}).encode())
        reply = json.loads(Home(url, other).send(json.dumps({"machine": "m", "answers": [told]}).encode()))
        assert reply["refused"] == {"a": "another machine has sent an answer of this id"}
        assert rows(kept)[0]["truth"] is None and rows(kept, "shadows") == []
        with pytest.raises(Offline, match="status 401"):
            Home(url).send(json.dumps({"machine": "m", "answers": [told]}).encode())
        Home(url, one).send(json.dumps({"machine": "m", "answers": [told]}).encode())
        assert rows(kept)[0]["truth"] == "9"
        forged = {**told, "shadow_version": "v3"}  # what a shadow has answered once, stands
        Home(url, one).send(json.dumps({"machine": "m", "answers": [forged]}).encode())
        assert [row["version"] for row in rows(kept, "shadows")] == ["v2"]
    serving.close()


def test_pictures_are_those_of_their_keys(home: str, kept: Path) -> None:
    with httpx2.Client(base_url=home) as http:
        assert http.put(f"v1/frames/{image_key(b'x')}", content=b"y").status_code == 400
        assert http.put(f"v1/frames/{image_key(b'x')}", content=b"x").status_code == 200
        for body in (b"", b"[]", b"{}", b'{"machine": "m"}', b'{"machine": "m", "answers": [1]}', b"[" * 10_000):
            found = http.post("v1/answers", content=body, headers={"Content-Type": "application/json"})
            assert found.status_code == 400
        many = json.dumps({"machine": "m", "answers": [{}] * 201}).encode()
        assert http.post("v1/answers", content=many, headers={"Content-Type": "application/json"}).status_code == 400
    assert [row["key"] for row in rows(kept, "frames")] == [image_key(b"x")]


def test_a_home_that_cannot_write_acknowledges_nothing(
    tmp_path: Path, home: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_at(tmp_path / "log")
    answer(log, "a")
    outbox = Outbox(tmp_path / "log", machine="m")
    with sqlite3.connect(kept, isolation_level=None) as busy:
        busy.execute("BEGIN IMMEDIATE")
        with pytest.raises(Offline, match="status 503"):
            outbox.send(Home(home))
        assert outbox.waiting == 1
        busy.execute("ROLLBACK")
    assert outbox.send(Home(home)) == 1 and count(kept) == 1


def test_a_home_that_keeps_none_is_told_and_a_log_that_is_none_is_named(
    tmp_path: Path, registry: Registry, key: Path, site: Site
) -> None:
    log = log_at(tmp_path / "log")
    answer(log, "a")
    with in_thread(Serving(registry.folder, read_private(key))) as url:
        machine = site.machine(url)
        machine._make_outgoing = partial(Outbox, tmp_path / "log", machine="m")
        machine.pull()
        machine.send()
    assert not machine.status.problem and machine.status.answers_waiting == 1
    assert "status 404; home keeps no answers: start it with --outcomes" in machine.status.answers_problem
    with pytest.raises(LinesideError, match="cannot be used as a log of answers"):
        Outbox(tmp_path / "none", machine="m")
    assert not (tmp_path / "none").exists()


def test_home_prunes_what_is_too_old_with_its_pictures_and_origins(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineside.fleet.intake.PRUNE_EVERY", 2)
    intake = Intake(kept, days=1.0, max_bytes=1 << 30, frames=True)
    frames = {name: image_key(name.encode()) for name in ("old", "new", "two")}
    for name, key in frames.items():
        intake.take_frame(key, name.encode())
    now = time.time()
    intake.take(Sent(machine="m", answers=[{**good("old"), "frame": frames["old"]}]), "")
    new = {**good("new"), "time": now, "frame": f"{frames['new']},{frames['two']}"}
    intake.take(Sent(machine="m", answers=[new]), "")
    assert [row["id"] for row in rows(kept)] == ["new"] == [row["id"] for row in rows(kept, "origins")]
    assert {row["data"] for row in rows(kept, "frames")} == {b"new", b"two"}


def test_pictures_without_an_answer_do_not_fill_the_disk_of_home(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "kept", days=1.0, max_bytes=1 << 18, frames=True)
    own = bytes(1 << 16)
    about = {**good("a"), "time": time.time(), "frame": image_key(own)}
    assert intake.take(Sent(machine="m", answers=[about]), "")["lacks"] == [image_key(own)]
    for number in range(16):
        intake.take_frame(image_key(data := own + bytes([number])), data)
        intake.take_frame(image_key(own), own)
        assert intake._bytes() <= 1 << 18
    assert image_key(own) in {row["key"] for row in rows(tmp_path / "kept", "frames")}
    assert [row["id"] for row in rows(tmp_path / "kept")] == ["a"]
    intake.close()
