"""Hostile and broken requests: none crashes the server, none gets a 5xx, and a good one is answered after them."""

from __future__ import annotations

import asyncio
import http.server
import socket
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn

from lineside.errors import LinesideError
from lineside.judgement.taskbook import TaskBook
from lineside.serving import pictures, protocol, requests
from lineside.serving.api import MAX_DEPTH, MAX_VALUES, Questions, load_json
from lineside.serving.keys import Keys, Rate, read_keys
from lineside.serving.pictures import ApiError, Decoder, Fetcher, is_public
from lineside.serving.requests import Reader
from lineside.types import Thinking
from tests.conftest import answered_by
from tests.serving.conftest import EMPTY, KEY, Served, turn, url
from tests.torture.hostile import CHAT, attack, data, encoded


def test_hostile_requests_of_every_kind(server: Served) -> None:
    found = attack(server, 150, seed=0)
    assert (
        len(found.by_kind) == 28
        and "closed" in found.statuses
        and not any(one.startswith("5") for one in found.statuses)
    )


@pytest.mark.slow
def test_two_thousand_hostile_requests(server: Served) -> None:
    attack(server, 2000, seed=1)


def test_a_picture_cut_at_any_length_is_refused_by_reason(server: Served) -> None:
    photo = encoded("JPEG", 2)
    with server.http() as client:
        for length in range(0, len(photo) - 2, 1 + len(photo) // 12):
            body = {"model": "tiny", "messages": turn("x", data(photo[:length])), "max_tokens": 2}
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_image", length


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_picture_cut_at_every_length_is_shown_or_refused(kind: str) -> None:
    photo, shown = encoded(kind, 3), 0
    for length in range(len(photo) + 1):
        try:
            ((part, *_), _) = pictures._show(photo[:length], None, None, None, 1 << 20)
            shown += bool(part[0])
        except LinesideError:
            continue
    assert shown == (21 if kind == "PNG" else 1)  # of a PNG, 20 bytes stand behind the pixels


def test_a_client_that_hangs_up_is_cancelled(server: Served) -> None:
    body = {"model": "tiny", "messages": turn("what is it?", url(1)), "max_tokens": 400, "temperature": 2.0, "n": 8}

    def counted(client: httpx2.Client) -> float:
        lines = client.get("metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("lineside:request_cancelled_total"))

    with server.http() as client:
        before = counted(client)
        with pytest.raises(httpx2.TimeoutException):
            client.post(CHAT, json=body, timeout=0.3)
        for _ in range(200):
            if counted(client) == before + 1:
                break
            client.get("healthz")
        assert counted(client) == before + 1


def test_a_body_that_is_too_large_is_not_read(server: Served) -> None:
    address = urlsplit(server.address)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        head = f"POST /{CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {1 << 40}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_headers_must_arrive_in_time_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def talk(port: int, *parts: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
        try:
            return await reader.read()  # until the server closes
        except ConnectionResetError:  # it closed before it had read all that was sent
            return b"HTTP/1.1 400 "
        finally:
            writer.close()

    async def check() -> None:
        config = uvicorn.Config(
            app, http=protocol.Protocol, lifespan="off", log_level="critical",
            h11_max_incomplete_event_size=protocol.HEAD_BYTES,
        )  # fmt: skip
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: protocol.Protocol(config, state, {}), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await talk(port) == await talk(port, b"GET / HTTP/1.1\r\nX-Slow: ") == b""
        assert (await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")  # then it is idle
        flood = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 90) for number in range(2000))
        assert b" 400 " in await talk(port, b"GET / HTTP/1.1\r\n", flood)
        server.close()

    asyncio.run(check())


def test_a_small_reply_is_sent_at_once() -> None:
    """Nagle's algorithm is off: else the body of a reply waits until the client has confirmed its headers (40 ms)."""

    async def check() -> None:
        with protocol.bound("127.0.0.1", 0) as listening:
            took = asyncio.get_running_loop().create_future()
            server = await asyncio.start_server(lambda _, writer: took.set_result(writer), sock=listening)
            _, ours = await asyncio.open_connection(*listening.getsockname())
            end = (await took).get_extra_info("socket")
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            ours.close()
            server.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0",
     "fc00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "224.0.0.1", "100.64.0.1", "nonsense"],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


async def refusal(fetcher: Fetcher, address: str) -> str:
    with pytest.raises(ApiError) as caught:
        await fetcher.get(address)
    assert caught.value.status == 400
    return str(caught.value)


def test_urls_are_fetched_from_allowed_public_hosts_only() -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        found = {"inside.example": ["10.0.0.7"], "both.example": ["93.184.216.34", "127.0.0.1"]}[host]
        return [(0, 0, 0, "", (address, port)) for address in found]

    async def check() -> None:
        fetcher = Fetcher(["inside.example", "both.example"], max_bytes=100, resolve=resolve)
        assert is_public("93.184.216.34")
        for host in ("inside.example", "both.example"):  # one private address is enough
            assert "private address" in await refusal(fetcher, f"http://{host}/a.png")
        assert "not fetched from this host" in await refusal(fetcher, "http://other.example/a.png")
        assert "not fetched from this host" in await refusal(fetcher, "http://user@inside.example/a.png")
        assert "expected a data: URL" in await refusal(fetcher, "ftp://inside.example/a.png")

    asyncio.run(check())


def test_a_redirect_is_not_followed_and_a_large_or_slow_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            self.wfile.write(b"a" * (5000 if self.path == "/large" else 50))

    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    with answered_by(Host) as place:
        address = place.replace("127.0.0.1", "photos.example")

        async def check() -> None:
            fetcher = Fetcher(["photos.example"], max_bytes=1000, resolve=resolve)
            assert await fetcher.get(f"{address}/good") == b"a" * 50
            assert "answered 302; redirects are not followed" in await refusal(fetcher, f"{address}/moved")
            assert "more than 1000 bytes" in await refusal(fetcher, f"{address}/large")
            monkeypatch.setattr(pictures, "FETCH_WHOLE_SECONDS", -1.0)
            assert "too slow" in await refusal(fetcher, f"{address}/good")

        def resolve(host: str, port: int, **_: Any) -> list[Any]:
            return [(0, 0, 0, "", ("127.0.0.1", port))]

        asyncio.run(check())


def test_json_from_outside() -> None:
    assert load_json(b'{"a": ["[[[[[[[[[[[[[[[[[[[[[[[["]}') == {"a": ["[" * 24]}  # brackets in a text are no levels
    assert load_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for body in (
        b"[" * (MAX_DEPTH + 1),
        b"[" * 10**6,
        b"[" * 900,
        b"[" + b"1," * MAX_VALUES + b"1]",
        b"[" + b"{}," * (MAX_VALUES // 2) + b"1]",
        b"NaN",
        b"[Infinity]",
        b"\xff",
        b"",
        b"{",
        b"1" * 10_000,
        b'{"a": 1, "b": {"c": 1, "c": 1}}',
    ):
        with pytest.raises(ValueError, match=r"JSON|UTF-8"):
            load_json(body)


def test_keys_and_rates(tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("# cell 7\nfirst-key-0123456789\nsecond-key-0123456789  # cell 8\n")
    keys = Keys(read_keys(tmp_path / "keys"))
    names = {keys.who("Bearer first-key-0123456789"), keys.who("bearer second-key-0123456789")}
    assert len(names) == 2 and None not in names and not any("key" in str(name) for name in names)
    for header in (None, "", "Bearer", "Bearer first-key-012345678", "Basic first-key-0123456789", "Bearer \udcff"):
        assert keys.who(header) is None
    assert Keys().who(None) == ""
    now = [0.0]
    rate = Rate(60, clock=lambda: now[0])
    assert [rate.wait("a") for _ in range(7)] == [0, 0, 0, 0, 0, 0, 1.0]  # bursts of six, then one a second
    assert rate.wait("b") == 0
    now[0] = 1.0
    assert rate.wait("a") == 0 and rate.wait("a") == 1.0
    assert Rate(0).wait("a") == 0


class Pool:
    """Stands for a pool of one process, which a bad picture ends, and with it all that was sent there."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._sent: list[tuple[bytes, Future[Any]]] = []
        self._broken = False

    def submit(self, _: Any, data: bytes, *__: Any) -> Future[Any]:
        if self._broken:
            raise BrokenProcessPool
        future: Future[Any] = Future()
        self._sent.append((data, future))
        asyncio.get_running_loop().call_later(0.01, self._work)
        return future

    def _work(self) -> None:
        self._broken |= any(sent == b"bad" for sent, _ in self._sent)
        for sent, future in self._sent:
            if self._broken:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result((((sent, "frame"),), None))
        self._sent.clear()

    def shutdown(self, **_: Any) -> None:
        """It has ended."""


def test_a_picture_that_breaks_the_decoder_is_refused_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ProcessPoolExecutor", Pool)

    async def check() -> None:
        decoder = Decoder(max_pixels=100)
        sent = (b"good", b"bad", b"fine", b"bad", b"well")
        found = await asyncio.gather(*(decoder.show(one, roi=None) for one in sent), return_exceptions=True)
        assert ["fails" if isinstance(one, ApiError) else one[0][0][0] for one in found if one] == [
            b"good", "fails", b"fine", "fails", b"well",
        ]  # fmt: skip

    asyncio.run(check())


def test_pictures_that_take_too_much_together_are_refused_before_they_are_sent(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_SHOWN", 100)
    facts = {"views": ("side",), "references": True}
    book = TaskBook.read(checkpoint, Thinking({}, True), "float32")
    model = SimpleNamespace(book=book, roi=None, engine=SimpleNamespace(facts=facts, alive=True))
    models: Any = SimpleNamespace(find=lambda *_: model, trial=lambda *_: None, names=["m"])

    class Shows:
        async def show(self, data: bytes, **_: Any) -> Any:
            return ((b"x" * 30, "frame"),), None

    async def check(frames: int, views: int, references: int) -> None:
        beside = {"image": url(), "name": "side"}
        body = {"model": "m", "images": [url()] * frames, "questions": [{"question": "x"}]}
        body |= {"views": [beside] * views, "references": [beside] * references}
        asked = await Reader(models, Shows(), None).questions(Questions.model_validate(body), 0.0)  # pyright: ignore
        assert len(asked.pictures) == frames + views + references

    asyncio.run(check(1, 1, 1))
    for counts in ((4, 0, 0), (3, 1, 0), (1, 0, 3)):
        with pytest.raises(ApiError, match="the pictures of the request take more than") as refused:
            asyncio.run(check(*counts))
        assert refused.value.status == 413


def test_a_wrong_question_is_told_by_its_place_and_a_missing_slot_by_its_name(checkpoint: Path) -> None:
    book = TaskBook.read(checkpoint, Thinking({}, True), "float32")
    model = SimpleNamespace(book=book, roi=None, engine=SimpleNamespace(facts={"views": ()}, alive=True))
    models: Any = SimpleNamespace(find=lambda *_: model, trial=lambda *_: None, names=["m"])

    def problem(*questions: dict[str, Any]) -> tuple[str, str]:
        body = Questions.model_validate({"model": "m", "image": url(), "questions": list(questions)})
        with pytest.raises(ApiError) as refused:
            asyncio.run(Reader(models, None, None).questions(body, 0.0))  # pyright: ignore
        assert refused.value.status == 400
        return refused.value.body["error"]["message"], refused.value.body["error"]["param"]

    told, where = problem({"question": "a"}, {"question": "b"}, {"task": "cells/emty", "question": "c"})
    assert told.startswith("questions.2: this checkpoint has no task 'cells/emty'") and where == "questions.2"
    assert problem({"task": EMPTY, "slots": {"plce": "left"}}) == (
        "cells/empty is asked as 'Is the {place} empty?': its slots lack place", "lineside.task",
    )  # fmt: skip
    assert problem({"question": "a", "slots": {"place": "left"}})[0] == "slots belong to a task: name it"
