"""Pictures of a request: data URLs, or http(s) URLs of allowed hosts; decoded in a bounded process of their own.

A picture from outside can be damaged, huge when decoded, or made to break a decoder. So it is decoded once in a process
with limits of memory and time, before it reaches the engine. A large one goes on as its plain pixels (BMP, without
loss), so that the engine does not decode it again. A fetched URL is bound to the address that was checked. Redirects
and addresses that are not public are refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import io
import ipaddress
import multiprocessing
import resource
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from lineside.data.regions import shown_to_model
from lineside.errors import LinesideError
from lineside.images import decode, stored
from lineside.machine import end_with_parent
from lineside.serving.api import ApiError
from lineside.types import Image, Region

MEMORY = 2 << 30  # bytes of address space of the decoding process
SECONDS = 20.0  # for one picture
PLAIN_FROM = 512 * 512  # pixels: larger pictures go on as plain pixels
FETCH_SECONDS = 5.0  # for a host to answer, and for each piece of a picture
FETCH_WHOLE_SECONDS = 20.0
CHUNK = 1 << 16
WAITING = 64  # pictures that may wait for a decoding process

Parts = tuple[tuple[tuple[bytes, str], ...], Region | None]


def data_url(url: str) -> bytes:
    """The bytes of a data URL. Raises ApiError (400)."""
    head, comma, body = url.partition(",")
    if not comma or not head.removesuffix(";base64").startswith("data:image/") or not head.endswith(";base64"):
        raise _bad("a data URL of a picture is written data:image/jpeg;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the base64 of a data URL cannot be read") from None


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_image_url", param="image_url")


# --- in the decoding process


def _limit(memory: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _show(data: bytes, roi: Mapping[str, Any] | None, camera: str | None, box: str | None, max_pixels: int) -> Parts:
    """What the model is shown of a picture (bytes and role of each part), and the region. Raises LinesideError."""
    try:
        picture = decode(data, max_pixels=max_pixels)
        if roi is None and picture.width * picture.height >= PLAIN_FROM:
            plain = io.BytesIO()
            picture.save(plain, "BMP")
            data = plain.getvalue()
        else:
            data = stored(data)[0]
        images, region = shown_to_model(Image(data, path="the picture"), roi, camera=camera, box=box)
    except MemoryError:
        raise LinesideError("image too large: decoding it takes more memory than is allowed") from None
    return tuple((image.bytes, image.role) for image in images), region


class Decoder:
    """Decodes pictures in a process with limits, one after another. A process that dies or takes too long is replaced;
    only the picture that it had then is refused."""

    def __init__(self, *, max_pixels: int, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._max_pixels, self._memory, self._seconds = max_pixels, memory, seconds
        self._pool: ProcessPoolExecutor | None = None
        self._waiting, self._turn = 0, asyncio.Lock()

    async def show(
        self, data: bytes, *, roi: Mapping[str, Any] | None, camera: str | None = None, box: str | None = None
    ) -> Parts:
        """What the model is shown of a picture. Raises ApiError: 400 for a picture that is refused, 429 if too many
        wait."""
        if self._waiting >= WAITING:
            raise ApiError(429, "too many pictures wait to be decoded", code="overloaded", kind="rate_limit_error")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._shown(data, roi, camera, box)
        finally:
            self._waiting -= 1

    async def _shown(self, data: bytes, roi: Mapping[str, Any] | None, camera: str | None, box: str | None) -> Parts:
        pool = self.start()
        try:
            future: Future[Parts] = pool.submit(_show, data, roi, camera, box, self._max_pixels)
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except LinesideError as error:
            raise ApiError(400, str(error), code="invalid_image", param="image_url") from None
        except (BrokenProcessPool, TimeoutError) as error:
            self._replace(pool)
            why = "takes too long" if isinstance(error, TimeoutError) else "fails"
            raise ApiError(400, f"decoding the picture {why}", code="invalid_image", param="image_url") from None

    def start(self) -> ProcessPoolExecutor:
        """The pool of one process, which starts with the first picture."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawn, initializer=_limit, initargs=(self._memory,))
        return self._pool

    def _replace(self, pool: ProcessPoolExecutor) -> None:
        if pool is self._pool:
            self._pool = None
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)

    async def warm(self) -> None:
        """Start the process, which takes a second, before the first request."""
        await asyncio.wrap_future(self.start().submit(len, b""))  # without a limit of time: nobody waits for it

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._replace(self._pool)


# --- http


class Fetcher:
    """Fetches pictures from allowed hosts."""

    def __init__(self, hosts: Sequence[str], *, max_bytes: int, resolve: Any = socket.getaddrinfo) -> None:
        self._hosts, self._max_bytes, self._resolve = frozenset(host.lower() for host in hosts), max_bytes, resolve
        self._slots = asyncio.Semaphore(4)

    async def get(self, url: str) -> bytes:
        """The bytes behind a URL. Raises ApiError (400)."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise _bad("the URL of a picture cannot be read") from None
        if parts.scheme not in ("http", "https") or not host:
            raise _bad("expected a data: URL, or an http(s) URL of an allowed host")
        if host not in self._hosts or parts.username is not None or parts.password is not None:
            allowed = "none is" if not self._hosts else "see --image-host"
            raise _bad(f"pictures are not fetched from this host ({allowed} allowed); send a data: URL")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        secure = parts.scheme == "https"
        fetch = partial(self._fetch, host, port or (443 if secure else 80), path, secure)
        async with self._slots:
            return await asyncio.to_thread(fetch)

    def _fetch(self, host: str, port: int, path: str, secure: bool) -> bytes:
        address = self._address(host, port)
        connection = _Pinned(host, port, address, secure)
        try:
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "lineside"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise _bad(f"the picture's host answered {answer.status}; redirects are not followed")
            data, ends = bytearray(), time.monotonic() + FETCH_WHOLE_SECONDS
            while len(data) <= self._max_bytes and (piece := answer.read1(CHUNK)):
                data += piece
                if time.monotonic() > ends:
                    raise _bad("the picture's host is too slow")
        except (OSError, http.client.HTTPException, ValueError):
            raise _bad("the picture cannot be fetched from its host") from None
        finally:
            connection.close()
        if len(data) > self._max_bytes:
            raise _bad(f"the picture has more than {self._max_bytes} bytes")
        return bytes(data)

    def _address(self, host: str, port: int) -> str:
        """The address to connect to. Every address of the host must be public."""
        try:
            found = {str(entry[4][0]) for entry in self._resolve(host, port, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError):
            raise _bad("the picture's host has no address") from None
        if not found or not all(is_public(address) for address in found):
            raise _bad("the picture's host has a private address: pictures are fetched from public ones only")
        return sorted(found)[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open Internet; an IPv4 address inside an IPv6 one counts as itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return (inner or ip).is_global and not ip.is_multicast and not str(ip).startswith("64:ff9b:")


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the name resolves to now."""

    def __init__(self, host: str, port: int, address: str, secure: bool) -> None:
        super().__init__(host, port, timeout=FETCH_SECONDS)
        self._address, self._secure = address, secure

    def connect(self) -> None:
        """Connect to the address; with TLS the certificate is that of the name."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
