"""The page's server: Python's own, on 127.0.0.1 only.

The address holds a random token, without which nothing is served. Requests whose Host header is another name are
refused, so that a page elsewhere cannot reach it through a name of its own (DNS rebinding). The page loads nothing from
outside; its policy (CSP) says so to the browser.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from lineside.data.review_list import WrongForm
from lineside.data.tabular import read_json
from lineside.errors import LinesideError
from lineside.images import image_type
from lineside.reviewing.session import Sent, SentUndo, Session, Stale
from lineside.strict import Strict, build

M = TypeVar("M", bound=Strict)
MAX_BODY = 64 << 10  # bytes of a request
SECONDS = 30.0  # that a connection may be silent
_FILES = {"": ("review.html", "text/html"), "review.css": ("review.css", "text/css")}
_FILES |= {"review.js": ("review.js", "text/javascript")}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Serves one session until `shutdown`. `address` is what to open in a browser."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, session: Session, port: int = 0) -> None:
        """`port` 0: any that is free. Raises LinesideError when the port is taken."""
        self.session, self.token = session, secrets.token_urlsafe(18)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise LinesideError(f"--port {port}: {error}; give another port, or 0 for any that is free") from error
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """The Host headers that are served."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no error."""


class _Refused(Exception):
    """A request that is not served: its status."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "lineside"
    sys_version = ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """The page, its files, the state, a picture."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """An action of the person."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: standard error is for the person who started it."""

    def _answer(self, handle: Callable[[str, dict[str, str]], None]) -> None:
        try:
            path, asked = self._checked()
            handle(path, asked)
        except _Refused as refused:
            self.close_connection = True
            self._send_json({"error": str(refused)}, refused.status)
        except WrongForm as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except Stale as error:
            self._send_json({"error": str(error), "state": error.state}, HTTPStatus.CONFLICT)
        except LinesideError as error:
            self._send_json({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _checked(self) -> tuple[str, dict[str, str]]:
        """(path below the token, query) of a request that comes from the page."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "another host name: open the address that the program printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, "a request of another page")
        parts = urlsplit(self.path)
        token, slash, path = parts.path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page: open the address that the program printed")
        return unquote(path), {name: values[0] for name, values in parse_qs(parts.query).items()}

    def _get(self, path: str, asked: dict[str, str]) -> None:
        if path in _FILES:
            name, kind = _FILES[path]
            data = resources.files("lineside").joinpath("templates", name).read_bytes()
            self._send(data, f"{kind}; charset=utf-8")
        elif path == "state":
            step = {"1": 1, "-1": -1}.get(asked.get("step", ""), 0)
            self._send_json(self.server.session.state(asked.get("at"), step))
        elif path == "picture":
            data = self.server.session.picture(asked.get("of", ""))
            self._send(data, image_type(data), cache="private, max-age=300")  # the page loads the next one ahead
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, path: str, asked: dict[str, str]) -> None:
        data = self._body()
        if path == "answer":
            self._send_json(self.server.session.save(self._read(Sent, data)))
        elif path == "undo":
            self._send_json(self.server.session.undo(self._read(SentUndo, data)))
        elif path == "finish":
            self._send_json({"finished": True})
            threading.Thread(target=self.server.shutdown, daemon=True).start()
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or int(length[:9]) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MAX_BODY} bytes")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON")
        try:
            data = read_json(self.rfile.read(int(length)).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"not JSON ({error})") from error
        if not isinstance(data, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return data

    @staticmethod
    def _read(kind: type[M], data: dict[str, Any]) -> M:
        try:
            return build(kind, data, "the page")
        except LinesideError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error

    def _send_json(self, data: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(data).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, cache: str = "no-store") -> None:
        self.send_response(status)
        if self.close_connection:
            self.send_header("Connection", "close")
        own = {"Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": cache}
        for name, value in {**_HEADERS, **own}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
