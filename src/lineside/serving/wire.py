"""Messages between the front and an engine process: a JSON header and raw bytes behind it, over a socket pair.

A message is two lengths (4 bytes each, big endian: of the header and of all bytes behind it), the header and the bytes.
The header's `blobs` are the lengths of the single byte strings. Both ends are ours; what is broken ends the connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

_LENGTHS = struct.Struct(">II")
MAX_MESSAGE = 1 << 30
CHUNK = 1 << 20

Message = tuple[dict[str, Any], list[bytes]]


def packed(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """A message as bytes."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join((_LENGTHS.pack(len(text), sum(map(len, blobs))), text, *blobs))


def _unpacked(text: bytes, rest: bytes) -> Message:
    header, blobs, at = json.loads(text), [], 0
    for length in header.pop("blobs"):
        blobs.append(rest[at : at + length])
        at += length
    return header, blobs


async def receive(reader: asyncio.StreamReader) -> Message:
    """The next message. Raises asyncio.IncompleteReadError when the other end has gone."""
    head, body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return _unpacked(await reader.readexactly(head), await reader.readexactly(body))


class Channel:
    """The engine's end of the socket pair. It never waits for a message unless asked to, so that no thread is needed
    beside the one that computes."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._held = end, bytearray()
        self.closed = False

    def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Send a message; without effect once the front has gone."""
        try:
            self._end.setblocking(True)
            self._end.sendall(packed(header, blobs))
        except OSError:
            self.closed = True

    def messages(self, *, wait: float | None) -> Iterator[Message]:
        """All messages that are there. `wait`: at most so many seconds for the first one; None: as long as it takes."""
        self._end.settimeout(wait)
        while not self.closed:
            try:
                got = self._end.recv(CHUNK)
            except (TimeoutError, BlockingIOError):
                break
            except OSError:
                got = b""
            if not got:
                self.closed = True
                break
            self._held += got
            if self._whole():
                self._end.settimeout(0.0)
        while self._whole():
            head, body = _LENGTHS.unpack_from(self._held)
            start, end = _LENGTHS.size + head, _LENGTHS.size + head + body
            message = _unpacked(bytes(self._held[_LENGTHS.size : start]), bytes(self._held[start:end]))
            del self._held[:end]
            yield message

    def _whole(self) -> bool:
        if len(self._held) < _LENGTHS.size:
            return False
        head, body = _LENGTHS.unpack_from(self._held)
        if head + body > MAX_MESSAGE:
            raise ValueError(f"a message of {head + body} bytes")
        return len(self._held) >= _LENGTHS.size + head + body
