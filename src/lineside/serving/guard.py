"""Who may ask, how often, and how large a body may be; errors as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lineside.errors import LinesideError
from lineside.progress import say
from lineside.serving.api import ApiError
from lineside.serving.keys import Keys, Rate, read_keys
from lineside.serving.metrics import Metrics
from lineside.serving.worker import milliseconds

Handler = Callable[[Request], Awaitable[Response]]

BODY_SECONDS = 30.0  # for a whole body to arrive
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class Guard:
    """Stands before every handler."""

    def __init__(self, keys: tuple[str, ...], per_minute: float, max_body: int, metrics: Metrics) -> None:
        self._keys, self._rate, self._max_body, self._metrics = Keys(keys), Rate(per_minute), max_body, metrics
        self._per_minute = per_minute

    def take_keys(self, path: Path) -> None:
        """Take the keys of a file from now on. One that cannot be read changes nothing, and that is said."""
        try:
            self._keys = Keys(read_keys(path))
        except LinesideError as error:
            say(f"serve: {error}; the keys stay as they were")

    def __call__(self, handler: Handler) -> Handler:
        """A handler behind key and rate limit, whose errors become OpenAI's error objects."""

        async def guarded(request: Request) -> Response:
            request.state.at = milliseconds()
            try:
                self._admit(request)
                response = await handler(request)
            except ApiError as error:
                response = JSONResponse(error.body, error.status, error.headers)
            except ClientDisconnect:
                response = Response(status_code=499)
            self._metrics.http.labels(str(response.status_code)).inc()
            response.headers.update(HEADERS)
            return response

        return guarded

    def _admit(self, request: Request) -> None:
        who = self._keys.who(request.headers.get("authorization"))
        if who is None:
            raise ApiError(
                401, "no valid API key: send it as `Authorization: Bearer KEY`", code="invalid_api_key",
                kind="authentication_error",
            )  # fmt: skip
        request.state.who = who
        client = who or (request.client.host if request.client else "")
        if request.method == "POST" and (seconds := self._rate.wait(client)):
            whose = "with this key" if who else "from this address"
            after = {"retry-after": str(int(seconds) + 1), "retry-after-ms": str(int(1000 * seconds) + 1)}
            raise ApiError(
                429, f"more than {self._per_minute:g} requests a minute {whose}",
                code="rate_limit_exceeded", kind="rate_limit_error", headers=after,
            )  # fmt: skip

    async def body(self, request: Request) -> bytes:
        """The body of a request. Raises ApiError for one that is no JSON, too large, or too slow."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "expected a body of Content-Type: application/json", code="unsupported_media_type")
        return await self.data(request)

    async def data(self, request: Request) -> bytes:
        """The body of a request, whatever it is. Raises ApiError for one that is too large, or too slow."""
        too_large = ApiError(413, f"the body has more than {self._max_body} bytes", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._max_body:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._max_body:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s", code="body_timeout") from None
        return b"".join(chunks)


async def unrouted(request: Request, error: Any) -> Response:
    """A path or a method that does not exist."""
    status = error.status_code
    known = {404: ("not_found", "no such path; see /openapi.json")}
    known[405] = ("method_not_allowed", "this path takes another method")
    code, told = known.get(status, ("refused", "refused"))
    body = ApiError(status, told, code=code).body
    return JSONResponse(body, status, headers={**(error.headers or {}), **HEADERS})


async def failed(request: Request, error: Exception) -> Response:
    """A bug of ours. Nothing of the request is told."""
    say(f"serve: a bug in lineside, {type(error).__name__}, at {request.url.path}")
    body = ApiError(500, "the server failed on this request", code="internal_error", kind="server_error").body
    return JSONResponse(body, 500, headers=HEADERS)
