"""Hostile and broken requests: none crashes the server, none gets a 5xx, and a good one is answered after them."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image as Pil

from lineside.serving.api import MAX_DEPTH, load_json
from lineside.serving.keys import Keys, Rate, read_keys
from lineside.serving.pictures import ApiError, Fetcher, is_public
from tests.conftest import picture
from tests.serving.conftest import KEY, Served, turn, url

CHAT = "v1/chat/completions"


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def jpeg(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Pil.open(io.BytesIO(picture(seed))).save(out, "JPEG")
    return out.getvalue()


def data(body: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"


def bodies(count: int, seed: int = 0) -> Iterator[bytes]:
    """Hostile bodies, without end in kind: broken pictures, bombs, wrong types, deep JSON, noise, bad URLs."""
    chance, photo = random.Random(seed), jpeg()
    good: dict[str, Any] = {"model": "tiny", "messages": turn("what is it?", data(photo)), "max_tokens": 4}
    wrong: list[Any] = [None, True, -1, 1e308, 10**30, "x", "\ud800", [], {}, [[]], {"a": {}}, "9" * 300]
    for number in range(count):
        kind = number % 10
        if kind == 0:
            yield json.dumps({**good, "messages": turn("x", data(photo[: chance.randrange(len(photo))]))}).encode()
        elif kind == 1:
            broken = bytearray(photo)
            for _ in range(chance.randrange(1, 40)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            yield json.dumps({**good, "messages": turn("x", data(bytes(broken)))}).encode()
        elif kind == 2:
            yield json.dumps({**good, "messages": turn("x", data(bomb(), "png"))}).encode()
        elif kind == 3:
            field = chance.choice([*good, "temperature", "n", "stop", "lineside", "stream", "logprobs", "seed"])
            yield json.dumps({**good, field: chance.choice(wrong)}).encode()
        elif kind == 4:
            deep = chance.choice([b"[", b'{"a":']) * chance.choice([50, 100_000])
            yield deep if chance.random() < 0.5 else b'{"model":"tiny","messages":' + deep
        elif kind == 5:
            yield chance.randbytes(chance.randrange(200))
        elif kind == 6:
            text = json.dumps(good)
            yield text[: chance.randrange(len(text))].encode()
        elif kind == 7:
            place = chance.choice(
                ["file:///etc/passwd", "http://169.254.169.254/latest", "http://localhost:1/", "gopher://x", "//x",
                 "http://[::ffff:127.0.0.1]/", "http://2130706433/", "https://user:pw@example.com/a", "http://[", ""]
            )  # fmt: skip
            yield json.dumps({**good, "messages": turn("x", place)}).encode()
        elif kind == 8:
            own = {chance.choice(["task", "slots", "deadline_ms", "roi", "camera"]): chance.choice(wrong)}
            yield json.dumps({**good, "lineside": own}).encode()
        else:
            part = chance.choice(wrong)
            yield json.dumps({**good, "messages": [{"role": "user", "content": [part, part]}]}).encode()


def attack(server: Served, count: int, seed: int) -> None:
    """Send hostile bodies, hang up in the middle of some, and check a good one after each hundred."""
    with server.http() as client:
        good = {"model": "tiny", "messages": turn("what is it?", url(1)), "max_tokens": 4}
        want = client.post(CHAT, json=good).json()["choices"][0]["message"]["content"]
        for number, body in enumerate(bodies(count, seed)):
            if number % 25 == 24:
                half_open(server, body)
                continue
            answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            refused = answer.status_code == 503 and answer.json()["error"]["code"] == "deadline_unmet"
            assert answer.status_code < 500 or refused, (body[:300], answer.text)
            assert answer.status_code == 200 or answer.json()["error"]["message"]
            if number % 100 == 99:
                assert client.post(CHAT, json=good).json()["choices"][0]["message"]["content"] == want
        assert client.post(CHAT, json=good).json()["choices"][0]["message"]["content"] == want
        assert client.get("readyz").json() == {"ready": True}


def half_open(server: Served, body: bytes) -> None:
    """Promise more than is sent, and go."""
    address = urlsplit(server.address)
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = f"POST /{CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body) + 9}\r\n\r\n".encode())
        connection.sendall(body[:1000])
        connection.shutdown(socket.SHUT_WR)


def test_a_hundred_hostile_requests(server: Served) -> None:
    attack(server, 100, seed=0)


@pytest.mark.slow
def test_two_thousand_hostile_requests(server: Served) -> None:
    attack(server, 2000, seed=1)


def test_a_picture_cut_at_any_length_is_refused_by_reason(server: Served) -> None:
    photo = jpeg(2)
    with server.http() as client:
        for length in range(0, len(photo) - 2, 1 + len(photo) // 12):
            body = {"model": "tiny", "messages": turn("x", data(photo[:length])), "max_tokens": 2}
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_image", length


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
    import asyncio

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


def test_json_from_outside() -> None:
    assert load_json(b'{"a": ["[[[[[[[[[[[[[[[[[[[[[[[["]}') == {"a": ["[" * 24]}  # brackets in a text are no levels
    assert load_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for body in (b"[" * (MAX_DEPTH + 1), b"[" * 10**6, b"NaN", b"[Infinity]", b"\xff", b"", b"{", b"1" * 10_000):
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
