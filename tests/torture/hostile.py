"""Hostile requests to a running server: none crashes it, none gets a 5xx but a refused deadline, and after each hundred
a good request takes as many steps of the engine as ever.

    python tests/torture/hostile.py [--count 10000] [--seed 1] [--checkpoint FOLDER]

Real HTTP to a real `lineside serve`. Some requests are bodies that are broken in one way; others break HTTP itself. It
writes its claims to benchmarks/out/hostile.json. Without a checkpoint it serves a tiny model.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import socket
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402
from PIL import Image as Pil  # noqa: E402

from tests.conftest import picture  # noqa: E402
from tests.serving.conftest import KEY, Served, make_checkpoint, serving, turn, url  # noqa: E402

CHAT, FRAME = "v1/chat/completions", "v1/frames/questions"
WRONG: list[Any] = [None, True, -1, 1e308, 10**30, "x", "\ud800", "\0", [], {}, [[]], {"a": {}}, "9" * 300, "1", 0.5]
PLACES = [
    "file:///etc/passwd", "http://169.254.169.254/latest", "http://localhost:1/", "gopher://x", "//x", "",
    "http://[::ffff:127.0.0.1]/", "http://[::1]:22/", "http://[fe80::1%25lo]/", "http://2130706433/", "http://0/",
    "http://0x7f.1/", "http://127.1/", "https://user:pw@example.com/a", "http://[", "http://example.com:99999/",
    "http://example.com#@127.0.0.1/", "HTTP://LOCALHOST/", "data:", "data:image/png;base64,", "data:image/png,raw",
    "data:image/svg+xml;base64,PHN2Zy8+", "data:text/html;base64,AAAA", "javascript:alert(1)", "http://\r\nX: y/",
]  # fmt: skip


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def encoded(kind: str, seed: int = 0) -> bytes:
    """A picture as PNG, JPEG, WEBP, GIF, BMP or TIFF."""
    out = io.BytesIO()
    Pil.open(io.BytesIO(picture(seed, 24))).save(out, kind)
    return out.getvalue()


def data(body: bytes, kind: str = "jpeg") -> str:
    """A data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"


# --- bodies


def bodies(count: int, seed: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """(kind, path, body) of hostile requests, the kinds in turn."""
    chance = random.Random(seed)
    kinds = [value for name, value in sorted(globals().items()) if name.startswith("_body_")]
    photos = [encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    for number in range(count):
        kind: Callable[..., tuple[str, bytes]] = kinds[number % len(kinds)]
        path, body = kind(chance, photos[number // len(kinds) % len(photos)], number // len(kinds))
        yield kind.__name__.removeprefix("_body_"), path, body


def _good(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": turn("what is it?", url(1, 24)), "max_tokens": 4, **changes}


def _shown(place: str) -> tuple[str, bytes]:
    return CHAT, json.dumps(_good(messages=turn("x", place))).encode()


def _body_cut_picture(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    return _shown(data(photo[: number * 7 % len(photo)]))


def _body_changed_picture(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    broken = bytearray(photo)
    for _ in range(chance.randrange(1, 40)):
        broken[chance.randrange(len(broken))] = chance.randrange(256)
    return _shown(data(bytes(broken)))


def _body_bomb(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    return _shown(data(bomb(), "png"))


def _body_wrong_type(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    good = _good()
    extra = ["temperature", "n", "stop", "lineside", "stream", "logprobs", "seed", "response_format", "top_p", "user"]
    return CHAT, json.dumps({**good, chance.choice([*good, *extra]): chance.choice(WRONG)}).encode()


def _body_deep(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    deep = chance.choice([b"[", b'{"a":', b'[{"a":']) * chance.choice([50, 100_000])
    return CHAT, deep if chance.random() < 0.5 else b'{"model":"tiny","messages":' + deep


def _body_noise(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    return chance.choice([CHAT, FRAME, "v1/outcomes"]), chance.randbytes(chance.randrange(200))


def _body_cut_json(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    text = json.dumps(_good())
    return CHAT, text[: chance.randrange(len(text))].encode()


def _body_place(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    return _shown(PLACES[number % len(PLACES)])


def _body_own_field(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    name = chance.choice(["task", "slots", "deadline_ms", "roi", "camera", "thinking", "other"])
    return CHAT, json.dumps(_good(lineside={name: chance.choice(WRONG)})).encode()


def _body_content_part(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    part = chance.choice([*WRONG, {"type": "image_url", "image_url": chance.choice(WRONG)}, {"type": "text"}])
    return CHAT, json.dumps(_good(messages=[{"role": "user", "content": [part, part]}])).encode()


def _body_huge_number(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    value = chance.choice(["1e400", "-1e400", "9" * 5000, "1e-400", "-0", "NaN", "Infinity", "1" + "0" * 400])
    name = chance.choice(["max_tokens", "temperature", "seed", "n", "top_logprobs"])
    return CHAT, json.dumps(_good()).replace('"max_tokens": 4', f'"{name}": {value}').encode()


def _body_key_twice(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    text = json.dumps(_good())
    return CHAT, ('{"model": "other", ' + text[1:] if chance.random() < 0.5 else text[:-1] + ', "n": 64}' * 2).encode()


def _body_bad_utf8(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    bad = chance.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\\ud800", b"\0"])
    return CHAT, json.dumps(_good()).encode().replace(b"what is it?", b"what " + bad)


def _body_form(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    keys = ["type", "properties", "items", "enum", "const", "$ref", "pattern", "minimum", "maxLength", "anyOf", "not"]
    schema = {chance.choice(keys): chance.choice([*WRONG, "#", "(((", "(a{999}){999}"]) for _ in range(3)}
    forms = [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        {
            "type": "regex",
            "regex": chance.choice(["(a{999}){999}", "(", "\\", "(?=a)", ".*" * 500, "(a+)+$", "\ud800"]),
        },
        chance.choice(WRONG),
    ]
    own = {"thinking": chance.random() < 0.5}
    return CHAT, json.dumps(_good(response_format=forms[number % 3], lineside=own)).encode()


def _body_frame(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    body: dict[str, Any] = {"model": "tiny", "image": url(1, 24), "questions": [{"question": "x"}], "max_tokens": 2}
    name = chance.choice([*body, "images", "references", "deadline_ms", "roi", "nothing"])
    value = chance.choice([*WRONG, [{"question": "x"}] * 65, [{"image": url(1), "name": "\0"}] * 65, ["x"] * 9])
    return FRAME, json.dumps({**body, name: value}).encode()


def _body_reference(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    names = ["4711:", "", "</think>", "<image>", "x" * 300, " \n", "<|end|>", "(((", "\ud800"]
    parts = [{"type": "image_url", "image_url": {"url": url(1, 24)}}, {"type": "text", "text": chance.choice(names)}]
    beside = data(photo[: chance.randrange(len(photo) + 1)])
    parts += [{"type": "image_url", "image_url": {"url": beside}}, {"type": "text", "text": "is it there?"}]
    return CHAT, json.dumps(_good(messages=[{"role": "user", "content": parts}])).encode()


def _body_control_text(chance: random.Random, photo: bytes, number: int) -> tuple[str, bytes]:
    text = chance.choice(
        ["<image>", "<|end|>", "</think>", "<think>", "\u202e", "\ufeff", "a" * 8192, "é" * 8193, "🙂" * 99]
    )
    return CHAT, json.dumps(_good(messages=turn(text * chance.choice([1, 3]), url(1, 24)))).encode()


# --- connections


@dataclass
class Wire:
    """Connections to a server, below HTTP."""

    server: Served
    open: list[socket.socket] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A new connection."""
        address = urlsplit(self.server.address)
        return socket.create_connection((address.hostname or "", address.port or 0), timeout=60)

    def answers(self, *parts: bytes, half_close: bool = False) -> bytes:
        """What comes back until the server is silent or closes."""
        with self.connect() as connection:
            with suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            got = b""
            connection.settimeout(5)
            with suppress(OSError):
                while (more := connection.recv(65536)) and len(got) < 1 << 20:
                    got += more
                    if b"\r\n\r\n" in got and not half_close:
                        connection.settimeout(0.3)
            return got


def _head(length: int | str, *lines: str, path: str = CHAT) -> bytes:
    own = [f"POST /{path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Type: application/json"]
    return ("\r\n".join([*own, f"Content-Length: {length}", *lines]) + "\r\n\r\n").encode()


def _wire_more_promised_than_sent(wire: Wire, body: bytes) -> bytes:
    return wire.answers(_head(len(body) + 9), body, half_close=True)


def _wire_closed_at_once(wire: Wire, body: bytes) -> bytes:
    with wire.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        connection.sendall(_head(len(body)) + body[: len(body) // 2])
    return b""


def _wire_slow_body(wire: Wire, body: bytes) -> bytes:
    """A byte now and then, and the connection is left open."""
    connection = wire.connect()
    connection.sendall(_head(len(body)) + body[:1])
    wire.open.append(connection)
    for slow in wire.open:
        with suppress(OSError):
            slow.sendall(b" ")
    if len(wire.open) > 50:
        wire.open.pop(0).close()
    return b""


def _wire_slow_head(wire: Wire, body: bytes) -> bytes:
    connection = wire.connect()
    connection.sendall(f"POST /{CHAT} HTTP/1.1\r\nX-Slow: ".encode())
    wire.open.append(connection)
    return b""


def _wire_pipelined(wire: Wire, body: bytes) -> bytes:
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    got = wire.answers(health + _head(len(body)) + body + health * 3)
    assert got.startswith(b"HTTP/1.1 200"), got[:200]
    return got[got.find(b"HTTP/1.1", 8) :] if got.count(b"HTTP/1.1") > 1 else b""


def _wire_many_headers(wire: Wire, body: bytes) -> bytes:
    return wire.answers(_head(len(body), *[f"X-{number}: {'a' * 90}" for number in range(2000)]), body)


def _wire_long_header(wire: Wire, body: bytes) -> bytes:
    return wire.answers(_head(len(body), "X-Long: " + "a" * (1 << 20)), body)


def _wire_bad_framing(wire: Wire, body: bytes) -> bytes:
    lines = [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: 5",
        "Expect: 100-continue",
    ]
    return wire.answers(_head(len(body), lines[len(body) % len(lines)]), b"FFFFFFFFFFFFFFFF\r\n" + body[:100])


def _wire_bad_length(wire: Wire, body: bytes) -> bytes:
    lengths = ["-1", "1e3", "0x10", str(1 << 70), "١٢", "", "5, 5", " 7 7"]
    return wire.answers(_head(lengths[len(body) % len(lengths)]), body[:100])


def _wire_no_http(wire: Wire, body: bytes) -> bytes:
    heads = [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM",
    ]
    return wire.answers(heads[len(body) % len(heads)] + b"\r\n\r\n")


def _wire_bad_path(wire: Wire, body: bytes) -> bytes:
    paths = [
        "/../../etc/passwd",
        "/%2e%2e/%00",
        "//",
        "/v1/models/" + "x" * 5000,
        "/serve.js/../x",
        "*",
        "http://x/",
        "/é",
    ]
    path = paths[len(body) % len(paths)]
    return wire.answers(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())


WIRES = [value for name, value in sorted(globals().items()) if name.startswith("_wire_")]
WIRE_EVERY = 12


# --- the attack


@dataclass
class Found:
    """What came back. `steps`: the engine's steps for the good request, each time."""

    statuses: Counter[str] = field(default_factory=Counter)
    steps: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, kind: str, status: str) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        self.by_kind.setdefault(kind, Counter())[status] += 1


class Good:
    """A request whose answer and cost must not change."""

    def __init__(self, client: httpx2.Client, found: Found) -> None:
        self._client, self._found = client, found
        self._body = {"model": "tiny", "messages": turn("what is it?", url(1)), "max_tokens": 4}
        self._want = self._ask()["choices"][0]["message"]["content"]

    def check(self) -> None:
        """Ask it when nothing else runs. Raises AssertionError if the answer or its steps differ."""
        for _ in range(600):  # what was accepted is answered first
            if self._metric("num_requests_running") == self._metric("num_requests_waiting") == 0:
                break
            time.sleep(0.1)
        before = self._metric("engine_steps")
        answer = self._ask()
        assert answer["choices"][0]["message"]["content"] == self._want
        self._found.steps.append(int(self._metric("engine_steps") - before))
        self._found.ms.append(answer["lineside"]["ms"]["total"])
        assert len(set(self._found.steps)) == 1, self._found.steps

    def _ask(self) -> dict[str, Any]:
        answer = self._client.post(CHAT, json=self._body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _metric(self, name: str) -> float:
        lines = self._client.get("metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"lineside:{name}{{"))


def attack(server: Served, count: int, seed: int) -> Found:
    """Send `count` hostile requests. Raises AssertionError at the first one that does harm."""
    found, wire = Found(), Wire(server)
    with server.http() as client:
        good = Good(client, found)
        good.check()
        for number, (kind, path, body) in enumerate(bodies(count, seed), start=1):
            if number % WIRE_EVERY == 0:
                wired = WIRES[number // WIRE_EVERY % len(WIRES)]
                got = wired(wire, body)
                first = got.split(b"\r\n")[0].split()
                status = first[1].decode() if len(first) > 1 and first[0].startswith(b"HTTP/") else "closed"
                assert not status.startswith("5"), (wired.__name__, got[:300])
                found.count(wired.__name__.removeprefix("_wire_"), status)
            else:
                answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
                refused = answer.status_code == 503 and answer.json()["error"]["code"] == "deadline_unmet"
                assert answer.status_code < 500 or refused, (kind, body[:300], answer.text)
                assert answer.status_code == 200 or answer.json()["error"]["message"], (kind, body[:300])
                found.count(kind, "deadline" if refused else str(answer.status_code))
            if number % 100 == 0:
                good.check()
        for connection in wire.open:
            connection.close()
        good.check()
        assert client.get("readyz").json()["ready"]
    assert server.process.poll() is None
    return found


def main() -> int:
    """Attack, print what came back, write the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = chosen.checkpoint or make_checkpoint(folder / "checkpoint")
        (folder / "keys").write_text(KEY + "\n")
        with serving(checkpoint, folder / "keys") as server:
            try:
                found, problem = attack(server, chosen.count, chosen.seed), ""
            except AssertionError as error:
                found, problem = Found(), str(error)[:500]
        log = (folder / "serve.log").read_text()
    bugs = sum(map(log.count, ("a bug in lineside", "Traceback", "is started again", KEY)))  # and the key is not told
    command = " ".join(["python", os.path.relpath(__file__, ROOT), *sys.argv[1:]])
    claim = {
        "claim": "hostile requests that did harm", "value": int(bool(problem)) + bugs, "at_most": 0,
        "holds": not (problem or bugs), "n": chosen.count, "command": command, "problem": problem,
        "statuses": dict(found.statuses), "good_steps": sorted(set(found.steps)), "good_asked": len(found.steps),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(found.by_kind.items())},
    }  # fmt: skip
    if found.ms:
        half = len(found.ms) // 2
        claim["good_ms_median_first_and_last_half"] = [
            statistics.median(found.ms[:half]),
            statistics.median(found.ms[half:]),
        ]
    out = ROOT / "benchmarks" / "out" / "hostile.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([claim], indent=2) + "\n")
    print(json.dumps(claim, indent=2))
    return 0 if claim["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
