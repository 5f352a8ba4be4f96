"""HTTP/1.1 as the server speaks it: headers are bounded in size (by h11) and in the time that they may take."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from lineside.errors import LinesideError

HEAD_SECONDS = 60.0  # from a connection, or the end of an answer, to the last header of the next request
HEAD_BYTES = 64 << 10
BACKLOG = 2048  # connections that wait to be taken, as uvicorn has it


class Protocol(H11Protocol):
    """Closes a connection whose next request does not arrive in time. The body has a limit of its own (guard.py)."""

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer has been sent."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """The time runs while no request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._closing is None and not self.transport.is_closing():
            self._closing = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


def configured(app: Any) -> Config:
    """How an application is served."""
    return Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=Protocol,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=60,
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises LinesideError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Only where the protocol is named asyncio sends small pieces at once: else a reply waits 40 ms for its client.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # who is told the address may connect at once, and is served a moment later
    except (OSError, OverflowError) as error:
        raise LinesideError(f"{host}:{port} cannot be listened on: {error}; give another --host or --port") from None
    return listening


def address(host: str, listening: socket.socket) -> str:
    """The URL of what listens there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
