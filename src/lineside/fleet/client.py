"""Home, as a machine reaches it over HTTP. Everything that it sends is bounded in size and time, and checked elsewhere.

A download goes on where it stopped, whoever was killed. Redirects are not followed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx2

from lineside.errors import LinesideError, disk_is_full
from lineside.files import settle
from lineside.fleet.state import MAX_STATE
from lineside.progress import track
from lineside.registry.manifest import BLOCK, Entry

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0  # for a connection, and for each piece of an answer
SLOW_BYTES, SLOW_SECONDS = 1 << 16, 30.0  # a download of less in this time is given up; the next try goes on with it
LONG = 64 << 20  # bytes from which a download shows a bar
KEY_ENV = "LINESIDE_HOME_KEY"
MAX_REPLY = 1 << 20  # bytes of any other reply


class Offline(LinesideError):
    """Home cannot be reached, or does not answer as it should. It may do so later."""


class Home:
    """Where a machine gets its models from and sends its answers to. Used by one thread."""

    def __init__(self, url: str, key: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        """`key`: sent as a bearer token. Raises LinesideError for a URL that is none."""
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
            good = good and parts.username is None and parts.port != 0
        except ValueError:
            good = False
        if not good:
            told = (
                repr(url) if url.isprintable() and "@" not in url else "the address of home"
            )  # it may hold a password
            raise LinesideError(f"{told}: expected the address of `lineside registry serve`, such as http://home:8001")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise LinesideError(f"{KEY_ENV} holds no key: it has spaces or characters beyond ASCII")
        self.url, self._clock = url.rstrip("/"), clock
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx2.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def state(self) -> bytes:
        """The signed state. Raises Offline."""
        return self._whole("GET", "/v1/state", MAX_STATE)

    def send(self, body: bytes) -> bytes:
        """Send answers; returns the reply. Raises Offline."""
        return self._whole("POST", "/v1/answers", MAX_REPLY, content=body, headers={"Content-Type": "application/json"})

    def send_frame(self, key: str, data: bytes) -> None:
        """Send a picture. Raises Offline."""
        kind = {"Content-Type": "application/octet-stream"}
        self._whole("PUT", f"/v1/frames/{key}", MAX_REPLY, content=data, headers=kind)

    def fetch(self, entry: Entry, place: Path) -> None:
        """Download a file to `place`, where a part of it may lie already. It then has its size and its hash.

        Raises Offline if it does not arrive whole (what has arrived stays), and LinesideError if it is another file
        (nothing stays) or the disk is full (nothing stays: others need the room).
        """
        part = place.with_name(f"{place.name}.part")
        try:
            self._download(entry, part)
            digest = _sha256(part)
            if digest != entry.sha256:
                part.unlink()
                raise LinesideError(f"{entry.name}: home sends another file than the one that was signed")
            settle(part, place)
        except OSError as error:
            if disk_is_full(error):
                part.unlink(missing_ok=True)
                raise LinesideError(f"{place.parent}: the disk is full: {entry.name} was not fetched") from None
            raise LinesideError(f"{error.filename or part}: {error.strerror or error}") from None

    def _download(self, entry: Entry, part: Path) -> None:
        with part.open("ab") as file:
            if file.tell() > entry.bytes:
                file.truncate(0)
            if (start := file.tell()) == entry.bytes:
                return
            headers = {"Range": f"bytes={start}-"} if start else {}
            with self._asked("GET", f"/v1/blobs/{entry.sha256}", headers=headers) as reply:
                if reply.status_code == 200 and start:  # a proxy that knows no ranges: from the beginning
                    file.truncate(start := 0)
                left = entry.bytes - start
                blocks = self._written(reply, file, entry, left)
                if left > LONG:
                    blocks = track(blocks, total=left // BLOCK, unit="MB", label=f"fetching {entry.name}")
                for _ in blocks:
                    pass

    def _written(self, reply: httpx2.Response, file: IO[bytes], entry: Entry, left: int) -> Iterator[None]:
        """Writes what arrives, and yields at each MB. Raises as `fetch`."""
        window, got = self._clock(), 0
        for chunk in reply.iter_raw():
            if len(chunk) > left:
                file.truncate(0)
                raise LinesideError(f"{entry.name}: home sends more than the {entry.bytes:,} bytes signed")
            file.write(chunk)
            yield from (None for _ in range((left - 1) // BLOCK - (left - len(chunk) - 1) // BLOCK))
            left, got = left - len(chunk), got + len(chunk)
            if self._clock() - window > SLOW_SECONDS:
                if got < SLOW_BYTES:
                    raise Offline(f"{self.url}: {got} bytes in {SLOW_SECONDS:.0f} s: too slow")
                window, got = self._clock(), 0
        if left:
            raise Offline(f"{self.url}: the connection ended before {entry.name} was whole")

    def _whole(self, method: str, path: str, most: int, **options: Any) -> bytes:
        """A reply of at most so many bytes."""
        found, began = bytearray(), self._clock()
        with self._asked(method, path, **options) as reply:
            for chunk in reply.iter_raw():
                found += chunk
                if len(found) > most:
                    raise Offline(f"{self.url}{path}: a reply of more than {most:,} bytes")
                if self._clock() - began > SLOW_SECONDS:
                    raise Offline(f"{self.url}{path}: no whole reply in {SLOW_SECONDS:.0f} s")
        return bytes(found)

    @contextmanager
    def _asked(self, method: str, path: str, **options: Any) -> Iterator[httpx2.Response]:
        try:
            with self._client.stream(method, self.url + path, **options) as reply:
                if reply.status_code not in (200, 206):
                    raise Offline(f"{self.url}{path}: status {reply.status_code}{_hint(reply.status_code, path)}")
                yield reply
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Offline(f"{self.url}: {str(error) or type(error).__name__}") from None


def _hint(status: int, path: str) -> str:
    """What to do about a status of home."""
    if status == 401:
        return f"; set {KEY_ENV} to a key that home knows"
    if status == 404 and path.startswith("/v1/blobs/"):
        return "; home has lost this file: register the model there again"
    return "; home keeps no answers: start it with --outcomes" if (status, path) == (404, "/v1/answers") else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
