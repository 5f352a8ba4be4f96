"""The page's server: who may ask, what is refused, two windows, two processes, and a process killed for real."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from lineside.errors import LinesideError
from lineside.files import hold
from lineside.images import image_type
from lineside.review import serve
from lineside.reviewing.log import FOLDER, read_answers
from tests.reviewing.conftest import Client, opened, process, serving


@pytest.fixture
def client(bins: Path) -> Iterator[Client]:
    with serving(opened(bins)) as client:
        yield client


@pytest.fixture
def blind(bins: Path) -> Iterator[Client]:
    with serving(opened(bins), blind=True) as client:
        yield client


def some_answer(shown: dict) -> str:
    """An answer of the form that the question asks for."""
    return shown["proposal"] or (shown["form"]["options"] or ["10"])[0]


def raw(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request(method, path, headers=headers, body=b"{}" if method == "POST" else None)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_only_the_page_of_this_address_is_served(client: Client) -> None:
    parts = urlsplit(client.address)
    assert parts.hostname == "127.0.0.1" and len(parts.path.strip("/")) >= 20
    assert raw(client.address, parts.path + "state")[0] == 200
    assert raw(client.address, "/state")[0] == 404
    assert raw(client.address, "/" + "x" * 24 + "/state")[0] == 404
    assert raw(client.address, parts.path + "state", Host="evil.example")[0] == 403
    assert raw(client.address, parts.path + "state", Host=f"evil.example:{parts.port}")[0] == 403
    assert raw(client.address, parts.path + "state", Host=f"localhost:{parts.port}")[0] == 200
    assert raw(client.address, parts.path + "state", Origin="http://evil.example")[0] == 403
    assert raw(client.address, parts.path + "finish", "POST", Origin="null")[0] == 403
    assert raw(client.address, parts.path + "finish", "POST", **{"Content-Type": "text/plain"})[0] == 415
    assert raw(client.address, parts.path + "../../etc/passwd")[0] == 404
    assert raw(client.address, parts.path + "%2e%2e/cli.py")[0] == 404


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_says_so(client: Client) -> None:
    path = urlsplit(client.address).path
    for name in ("", "review.css", "review.js"):
        status, headers, data = raw(client.address, path + name)
        assert status == 200 and headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'; img-src 'self'")
        assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")
        assert b"http://" not in data and b"https://" not in data and b"innerHTML" not in data


@pytest.mark.parametrize(
    "body, status",
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"question": "0.png/count"}', 400),
        (b'{"question": "x", "revision": 0, "action": "answer", "key": "12345678"}', 500),
        (b'{"question": "0.png/count", "revision": 0, "action": "eat", "key": "12345678"}', 400),
        (b'{"question": "0.png/count", "revision": true, "action": "skip", "key": "12345678"}', 400),
        (b"x" * 70_000, 413),
    ],
)
def test_hostile_bodies_are_refused_in_words(client: Client, body: bytes, status: int) -> None:
    parts = urlsplit(client.address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", parts.path + "answer", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == status and json.loads(answer.read())["error"]
    connection.close()
    assert client.state()["counts"] == {"answer": 0, "cannot tell": 0, "skip": 0}


def test_the_picture_of_a_question_is_served_and_no_other_file(client: Client, bins: Path) -> None:
    path = urlsplit(client.address).path
    status, headers, data = raw(client.address, f"{path}picture?of={quote('0.png/count', safe='')}")
    assert (status, headers["content-type"], data) == (200, "image/png", (bins / "0.png").read_bytes())
    assert image_type(data) == "image/png"
    assert raw(client.address, f"{path}picture?of=..%2Fbins.yaml")[0] == 500
    (bins / "0.png").write_bytes(b"gone bad")
    status, _, data = raw(client.address, f"{path}picture?of={quote('0.png/count', safe='')}")
    assert status == 500 and "not an image" in json.loads(data)["error"]


def test_an_answer_goes_on_to_the_next_question_and_is_brought_to_its_form(client: Client, bins: Path) -> None:
    assert client.state()["question"]["id"] == "0.png/count"
    status, state = client.act(" 5 ")
    assert (status, state["question"]["id"], state["counts"]["answer"]) == (200, "0.png/state", 1)
    status, found = client.act("bent")
    assert status == 422 and found["error"] == "'bent': expected one of intact, dented, torn"
    assert client.act("Dented")[0] == 200
    answers = read_answers(bins / "review" / FOLDER / "anna.jsonl")
    assert {name: entry.answer for name, entry in answers.items()} == {"0.png/count": "5", "0.png/state": "dented"}


def test_skipped_questions_come_last_and_cannot_tell_is_done(client: Client) -> None:
    total = client.state()["total"]
    client.act("", "skip")
    client.act("", "cannot tell")
    for _ in range(total - 2):
        assert client.act(some_answer(client.state()["question"]))[0] == 200
    state = client.state()
    assert state["question"]["id"] == "0.png/count"
    assert state["counts"] == {"answer": total - 2, "cannot tell": 1, "skip": 1}
    assert client.act("4")[1]["question"] is None


def test_undo_takes_back_the_last_action_once(client: Client) -> None:
    client.act("5")
    state = client.act("dented")[1]
    status, back = client.send("undo", {"last": state["last"], "key": "undo-0001"})
    assert status == 200 and back["question"]["id"] == "0.png/state" and back["question"]["mine"] is None
    assert client.send("undo", {"last": state["last"], "key": "undo-0001"})[0] == 200  # the same, sent again
    assert client.state()["counts"]["answer"] == 1
    status, found = client.send("undo", {"last": state["last"], "key": "undo-0002"})  # another window's
    assert status == 409 and found["state"]["question"]["id"] == "0.png/count"


def test_two_windows_neither_lose_nor_double_an_answer(client: Client, bins: Path) -> None:
    other = Client(client.address)
    shown = other.state()["question"]
    assert client.act("5")[0] == 200
    late = {"question": shown["id"], "revision": shown["revision"], "action": "answer", "answer": "6"}
    status, found = other.send("answer", {**late, "key": "other-001"})
    assert status == 409 and found["state"]["question"]["mine"] == {"action": "answer", "answer": "5"}
    again = {**late, "revision": found["state"]["question"]["revision"], "key": "other-002"}
    assert other.send("answer", again)[0] == other.send("answer", again)[0] == 200  # sent twice, counts once
    log = (bins / "review" / FOLDER / "anna.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in log] == ["5", "6"]


def test_a_key_that_another_action_has_is_refused(client: Client) -> None:
    assert client.act("5", key="the-same-key")[0] == 200
    status, found = client.act("torn", key="the-same-key")
    assert status == 500 and "it is another one" in found["error"]
    assert client.state()["counts"]["answer"] == 1


def test_many_windows_at_once(client: Client, bins: Path) -> None:
    total = client.state()["total"]

    def work() -> None:
        mine = Client(client.address)
        while (shown := mine.state()["question"]) is not None:
            mine.act("", "cannot tell", question=shown["id"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (bins / "review" / FOLDER / "anna.jsonl").read_text().splitlines()
    first = {json.loads(line)["question"] for line in lines}
    assert len(first) == total and len({json.loads(line)["key"] for line in lines}) == len(lines)
    assert client.state()["counts"]["cannot tell"] == total


def test_blind_what_others_said_is_not_even_sent_before_the_answer(blind: Client, bins: Path) -> None:
    shown = blind.state()["question"]
    assert (shown["said"], shown["hidden"], shown["proposal"]) == ([], True, "")
    state = blind.act("5")[1]
    assert state["reveal"] and state["question"]["id"] == shown["id"]
    assert [(s["by"], s["answer"], s["same"]) for s in state["question"]["said"]] == [("record", "4", False)]
    blind.send("undo", {"last": state["last"], "key": "undo-0001"})
    assert blind.state(shown["id"])["question"]["said"]  # it cannot be unseen
    blind.act("4", question=shown["id"])  # changed after it was shown
    log = [json.loads(line) for line in (bins / "review" / FOLDER / "anna.jsonl").read_text().splitlines()]
    assert [(line["action"], line.get("saw", False)) for line in log] == [
        ("answer", False),
        ("undo", False),
        ("answer", True),
    ]


def test_a_port_that_is_taken_is_named(client: Client, bins: Path) -> None:
    port = urlsplit(client.address).port or 0
    with pytest.raises(LinesideError, match=f"--port {port}: .*give another port"):
        serve(opened(bins), person="ben", port=port)


def test_one_person_in_one_process_and_two_people_at_the_same_time(bins: Path) -> None:
    review = opened(bins)
    with process(bins, "--person", "anna") as (_, anna), serving(review, person="ben") as ben:
        with pytest.raises(LinesideError, match=r"another process: .*--person anna.* somebody else gives --person"):
            serve(review, person="anna")
        assert anna.act("5")[0] == ben.act("6")[0] == 200
        assert anna.state()["counts"]["answer"] == ben.state()["counts"]["answer"] == 1
    answers = bins / "review" / FOLDER
    assert read_answers(answers / "anna.jsonl")["0.png/count"].answer == "5"
    assert read_answers(answers / "ben.jsonl")["0.png/count"].answer == "6"


def test_nothing_confirmed_is_lost_when_the_process_is_killed(bins: Path) -> None:
    confirmed: dict[str, str] = {}
    for round in range(2):
        with process(bins, "--person", "anna") as (running, client):
            state, saved = client.state(), 0
            assert state["counts"]["answer"] == len(confirmed)
            kill = threading.Thread(target=running.kill)
            try:
                while (shown := state["question"]) is not None:
                    status, state = client.act(some_answer(shown))
                    assert status == 200
                    confirmed[shown["id"]] = some_answer(shown)
                    saved += 1
                    if saved == 3 + round:
                        kill.start()  # at some moment while the next ones are sent
            except (OSError, http.client.HTTPException):
                pass  # killed in the middle
            kill.join()
        kept = {name: e.answer for name, e in read_answers(bins / "review" / FOLDER / "anna.jsonl").items()}
        assert confirmed.keys() <= kept.keys() and len(kept) <= len(confirmed) + 1
        assert all(kept[name].startswith(answer) for name, answer in confirmed.items())
        confirmed = kept
    assert len(confirmed) >= 7


def test_a_lock_that_a_killed_process_left_locks_nobody_out(bins: Path) -> None:
    review = opened(bins)
    (review.folder / FOLDER).mkdir(parents=True)
    (review.folder / FOLDER / ".anna.lock").write_text("left")
    with hold(review.folder / FOLDER, name=".anna.lock"):
        pass


def test_ctrl_c_ends_it_well_and_writes_the_records(bins: Path) -> None:
    with process(bins, "--person", "anna") as (running, client):
        client.act("9")
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 0 and "Traceback" not in err
    assert "review: settled answers: 1 correct it" in err and f"records are in {bins / 'review' / 'records.csv'}" in err
    assert '""value"": 9' in (bins / "review" / "records.csv").read_text()


def test_finish_ends_the_program(bins: Path) -> None:
    with process(bins, "--person", "anna") as (running, client):
        assert client.send("finish", {})[1] == {"finished": True}
        assert running.wait(timeout=60) == 0
