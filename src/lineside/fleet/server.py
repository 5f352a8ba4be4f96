"""Home: the registry over HTTP, to read only. The signed state, and the files that it names by their hash.

Range requests resume a download. Nothing else of the registry can be asked for. If answers are kept, machines send
theirs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from lineside.errors import LinesideError
from lineside.fleet.intake import Intake, Sent
from lineside.fleet.signing import signed
from lineside.fleet.state import State, state_of
from lineside.progress import say
from lineside.registry.manifest import FILES
from lineside.registry.store import FOLDERS, Registry, now
from lineside.serving.api import ApiError, read
from lineside.serving.guard import Guard, failed, unrouted
from lineside.serving.metrics import Metrics

LOOK_SECONDS = 1.0  # for which a state is not read again
MAX_BODY = 32 << 20
T = TypeVar("T")


class States:
    """The state of a registry as it is now, and where its files lie."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises LinesideError if there is no registry, or its models may not be sent."""
        self._folder, self._clock, self._until = folder, clock, 0.0
        self._problem = ""
        state, problem = self._read(anew=True)
        self._use(state)
        self._tell(problem)

    def now(self) -> State:
        """The state. A registry that cannot be read, or holds what may not be sent, leaves the one before."""
        if self._clock() >= self._until:
            try:
                state, problem = self._read()
                self._use(state)
            except LinesideError as error:
                problem = f"{error}; the state stays {self._state.serial}"
            self._tell(problem)
            self._until = self._clock() + LOOK_SECONDS
        return self._state

    def blob(self, sha256: str) -> Path | None:
        """The file of this hash, if the state names it."""
        return self._blobs.get(sha256)

    def _read(self, *, anew: bool = False) -> tuple[State, str]:
        """The state, and why it is without the trials, if it is: they hold up no champion."""
        with Registry(self._folder) as registry:
            try:
                return state_of(registry, anew=anew), ""
            except LinesideError as error:
                return state_of(registry, anew=anew, trials=False), f"{error}; no trial reaches a machine"

    def _tell(self, problem: str) -> None:
        if problem and problem != self._problem:
            say(f"registry serve: {problem}")
        self._problem = problem

    def _use(self, state: State) -> None:
        self._state = state
        self._blobs = {
            entry.sha256: self._folder / FOLDERS[kind] / item.hash / FILES / entry.name
            for one in state.served
            for kind, item in one.items
            for entry in item.files
        }


class Home:
    """The handlers."""

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        *,
        keys: tuple[str, ...] = (),
        intake: Callable[[], Intake] | None = None,
    ) -> None:
        """`keys`: API keys of machines; without any everyone may ask. `intake`: makes the log of answers, in the thread
        that uses it. Raises LinesideError as `States`, and if the log cannot be opened."""
        self._key, self.states = key, States(folder)
        self._guard = Guard(keys, 0.0, MAX_BODY, Metrics())
        self._writer = ThreadPoolExecutor(1, "answers")
        self._intake = None if intake is None else self._writer.submit(intake).result()

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/v1/state", self._guard(self.state), methods=["GET"]),
            Route("/v1/blobs/{sha256}", self._guard(self.blob), methods=["GET"]),
            Route("/v1/answers", self._guard(self.answers), methods=["POST"]),
            Route("/v1/frames/{key}", self._guard(self.frame), methods=["PUT"]),
            Route("/healthz", self.health, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: unrouted, Exception: failed})

    async def state(self, request: Request) -> Response:
        """`GET /v1/state`: signed now, so that a machine sees how fresh it is."""
        state = await run_in_threadpool(self.states.now)
        payload = state.model_copy(update={"time": now()}).model_dump_json().encode()
        return Response(signed(payload, self._key), media_type="application/vnd.dsse.v1+json")

    async def blob(self, request: Request) -> Response:
        """`GET /v1/blobs/{sha256}`, with ranges."""
        path = self.states.blob(request.path_params["sha256"])
        if path is None or not path.is_file():
            raise ApiError(404, "the state names no such file (any more)", code="unknown_file")
        return FileResponse(path, media_type="application/octet-stream")

    async def answers(self, request: Request) -> Response:
        """`POST /v1/answers`: what machines have answered, and what became of it."""
        sent, intake = read(Sent, await self._guard.body(request)), self._kept()
        return JSONResponse(await self._written(partial(intake.take, sent, request.state.who)))

    async def frame(self, request: Request) -> Response:
        """`PUT /v1/frames/{key}`: a picture that an answer is about."""
        data, intake = await self._guard.data(request), self._kept()
        await self._written(partial(intake.take_frame, request.path_params["key"], data))
        return JSONResponse({"kept": True})

    def _kept(self) -> Intake:
        if self._intake is None:
            told = "home keeps no answers: `lineside registry serve --outcomes FILE` does"
            raise ApiError(404, told, code="outcomes_off")
        return self._intake

    async def _written(self, work: Callable[[], T]) -> T:
        """What is written by the one thread that does so. Raises ApiError if it cannot be, so that it is sent again."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, work)
        except sqlite3.Error as error:
            say(f"registry serve: answers cannot be kept: {error}")
            raise ApiError(503, f"answers cannot be kept: {error}", code="not_kept", kind="server_error") from None
        except LinesideError as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    def close(self) -> None:
        """Write what has come, and close the log."""
        if self._intake is not None:
            self._writer.submit(self._intake.close).result()
        self._writer.shutdown()

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: it runs."""
        return JSONResponse({"status": "ok"})
