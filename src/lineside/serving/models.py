"""The models that are served: for each name an engine process, and what its checkpoint knows of its tasks.

What is to be served may change while the server runs: a new model takes over when it is warm.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from lineside.errors import LinesideError
from lineside.files import fingerprint
from lineside.judgement.taskbook import TaskBook
from lineside.progress import say
from lineside.serving import wire
from lineside.serving.outcomes import VERSION_DIGITS
from lineside.serving.pairs import EnginePair
from lineside.types import Thinking

STATE = ("running", "waiting", "steps", "prefix_cache_bytes")  # what an engine says of itself with its answers
FOLLOW_SECONDS = 1.0  # between two looks at what is wanted
RETRY_SECONDS = 60.0  # after which a model that could not be started is tried again
LEAVING_SECONDS = 60.0  # for requests that have looked up a model to send it theirs
SPARE_NICE = 19  # of an engine that gets the processor time that is left
GONE: wire.Message = ({"kind": "gone"}, [])


class EngineProcess:
    """An engine process, as the front sees it."""

    def __init__(self, checkpoint: Path, options: Mapping[str, Any]) -> None:
        self.checkpoint, self._options = checkpoint, dict(options)
        self.facts: dict[str, Any] = {}
        self.state: dict[str, Any] = dict.fromkeys(STATE, 0)
        self.alive = False
        self.on_end: Callable[[], None] = lambda: None
        self._asked: dict[str, asyncio.Queue[wire.Message]] = {}
        self._counter = 0

    async def start(self) -> None:
        """Start the process and wait until it is warm. Raises LinesideError if the checkpoint cannot be served."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "lineside.serving.worker", str(theirs.fileno()), str(self.checkpoint)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [*command, json.dumps(self._options)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the front alone, which lets the engine finish
        )
        theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            self.facts = await self._ready()
        except BaseException:
            self.kill()
            raise
        self.alive = True
        self._task = asyncio.create_task(self._read())

    async def _ready(self) -> dict[str, Any]:
        try:
            header, _ = await wire.receive(self._reader)
        except (asyncio.IncompleteReadError, OSError):
            raise LinesideError(f"{self.checkpoint}: the engine process ended while it loaded the model") from None
        if header["kind"] != "ready":
            raise LinesideError(header.get("message", f"{self.checkpoint}: cannot be served"))
        return header

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, OSError, ValueError):
            while True:
                header, blobs = await wire.receive(self._reader)
                self.state.update({key: header[key] for key in STATE if key in header})
                if (queue := self._asked.get(header["id"])) is not None:
                    queue.put_nowait((header, blobs))
        self.alive = False
        for queue in self._asked.values():
            queue.put_nowait(GONE)
        self.on_end()

    async def ask(self, header: dict[str, Any], blobs: Sequence[bytes]) -> AsyncGenerator[dict[str, Any], None]:
        """Messages about a request until its end. Whoever stops to listen before that cancels it."""
        self._counter += 1
        name = str(self._counter)
        queue = self._asked[name] = asyncio.Queue()
        ended = False
        try:
            if not self.alive:
                queue.put_nowait(GONE)
            self._writer.write(wire.packed({**header, "kind": "ask", "id": name}, blobs))
            await self._writer.drain()
            while not ended:
                message, _ = await queue.get()
                ended = message["kind"] in ("done", "refused", "failed", "gone")
                yield message
        except (OSError, RuntimeError):
            ended = True
            yield GONE[0]
        finally:
            del self._asked[name]
            if not ended and self.alive:
                with suppress(OSError, RuntimeError):
                    self._writer.write(wire.packed({"kind": "cancel", "id": name}))

    @property
    def pending(self) -> int:
        """Requests that have no answer yet."""
        return len(self._asked)

    async def finish(self) -> None:
        """Answer all that was accepted, then end the process."""
        if self.alive:
            with suppress(OSError, RuntimeError):
                self._writer.write(wire.packed({"kind": "finish"}))
                await self._writer.drain()
            await self._task
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._writer.close()


Route = tuple[str, str]  # the name of a model and a cell; "": all cells without a route of their own


@dataclass(frozen=True, slots=True)
class Release:
    """A checkpoint to serve under a name. `label`: what its answers carry. `version`: the hash of its files, or "".
    `evaluations`: files that say what it was judged with, besides those of its run. `spare`: its engine gets only the
    processor time that no other one wants."""

    name: str
    label: str
    checkpoint: Path
    version: str = ""
    evaluations: tuple[Path, ...] = field(default=(), compare=False)
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """A release that answers a share of requests beside the champion: in shadow, or really (canary)."""

    release: Release
    share: float
    kind: Literal["shadow", "canary"]


class Hold(Protocol):
    """Files that stay where they are until it is closed."""

    def close(self) -> None:
        """They may go from now on."""
        ...


class Source(Protocol):
    """Says what is to be served. That may change while the server runs."""

    def wanted(self) -> Mapping[Route, Release]:
        """What is to be served now. Raises LinesideError."""
        ...

    def trials(self) -> Mapping[Route, Trial]:
        """What runs beside it, as of the last look."""
        ...

    def hold(self, release: Release) -> Hold | None:
        """Check the files of a release, and keep them. Raises LinesideError if they are not whole."""
        ...


class Checkpoints:
    """Checkpoints by name, that stay the same."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._wanted = {(name, ""): Release(name, name, folder) for name, folder in folders.items()}

    def wanted(self) -> Mapping[Route, Release]:
        """As `Source.wanted`."""
        return self._wanted

    def trials(self) -> Mapping[Route, Trial]:
        """As `Source.trials`: none."""
        return {}

    def hold(self, release: Release) -> None:
        """As `Source.hold`: who gives a folder keeps it."""


@dataclass(slots=True, eq=False)
class Model:
    """A served model. `version`: the hash of its files, else the fingerprint of its weights."""

    release: Release
    engine: EngineProcess
    book: TaskBook
    version: str
    hold: Hold | None = None
    users: set[asyncio.Task[Any]] = field(default_factory=set)
    """The requests that have looked it up and are not done."""

    @property
    def name(self) -> str:
        """The name by which it is asked for."""
        return self.release.name

    @property
    def label(self) -> str:
        """What its answers carry: NAME@VERSION, or its name."""
        return self.release.label

    @property
    def roi(self) -> dict[str, Any] | None:
        """How pictures are cut before the model sees them."""
        return self.engine.facts["roi"]

    def use(self) -> None:
        """Its engine stays at least until the task that calls this is done."""
        if (task := asyncio.current_task()) is not None:
            self.users.add(task)
            task.add_done_callback(self.users.discard)

    async def leave(self) -> None:
        """Answer all who have looked it up, then end the engine.

        Those who have sent their request to the engine are answered in any case. The others are still receiving
        pictures: they are waited for, but not for a client that never reads its answer.
        """
        if self.users:
            await asyncio.wait(set(self.users), timeout=LEAVING_SECONDS)
        await self.engine.finish()
        if self.hold is not None:
            self.hold.close()


class Models:
    """The models that are served, by name and cell.

    A new one is loaded and warmed beside the old one. Then new requests go to it, and the old one answers those that it
    has.
    """

    def __init__(
        self,
        source: Source,
        options: Mapping[str, Any],
        allowed: Callable[[Release], Sequence[EnginePair]],
        *,
        shadows: bool = True,
    ) -> None:
        """`allowed`: the engines and weights that a release may be served by, looked up each time it is loaded.
        `shadows`: a version may answer in shadow; without a log of answers that would be for nothing. Raises
        LinesideError if it cannot be said what to serve."""
        self._source, self._options, self._allowed, self._shadows = source, dict(options), allowed, shadows
        self._wanted, self._trials = dict(source.wanted()), dict(source.trials())
        self.routes: dict[Route, Model] = {}
        self._by_release: dict[Release, Model] = {}  # of those that are wanted or tried
        self._live: set[Model] = set()
        self.problems: dict[Release, str] = {}
        """Why a release that is wanted is not served."""
        self._retry: dict[Release, float] = {}
        self._starting: set[Release] = set()
        self._blind = ""
        self._turn, self._aside = asyncio.Lock(), asyncio.Lock()  # of champions, and of challengers that start
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self.closing = False

    async def start(self) -> None:
        """Start every model, one after the other, since each measures its speed.

        Raises LinesideError if one cannot be served, unless it is for single cells, which then get that of all cells.
        """
        needed = {release for (_, cell), release in self._wanted.items() if not cell}
        for release in dict.fromkeys(self._wanted.values()):
            try:
                self._route(release, await self._started(release))
            except LinesideError as error:
                if release in needed:
                    raise
                self._failed(release, error)
        self._keep(self._tasks, self._follow())

    # --- looking up

    def at(self, name: str, cell: str | None = None) -> Model | None:
        """The model that answers for a name in a cell, or the one with this label."""
        found = self.routes.get((name, cell or "")) or self.routes.get((name, ""))
        return found or next((model for model in self.all if model.label == name), None)

    def find(self, name: str, cell: str | None = None) -> Model | None:
        """As `at`, and its engine stays at least until the task that looks it up is done: nobody asks one that has
        ended."""
        if (found := self.at(name, cell)) is not None:
            found.use()
        return found

    def trial(self, name: str, cell: str | None = None) -> tuple[Trial, Model] | None:
        """What runs beside the champion of a cell, if it is there. A cell with a champion of its own has no part in the
        trial of all cells."""
        own = (name, cell or "")
        trial = self._trials.get(own if own in self._trials or own in self.routes else (name, ""))
        model = self._by_release.get(trial.release) if trial is not None else None
        return (trial, model) if trial is not None and model is not None and model.engine.alive else None

    @property
    def _tried(self) -> list[Release]:
        """All that is to run beside the champions."""
        runs = (trial for trial in self._trials.values() if self._shadows or trial.kind == "canary")
        return list(dict.fromkeys(trial.release for trial in runs))

    @property
    def _running(self) -> list[Model]:
        """All that runs for requests or beside them."""
        return list(dict.fromkeys([*self.routes.values(), *self._by_release.values()]))

    @property
    def all(self) -> list[Model]:
        """Every model that gets new requests."""
        return list(dict.fromkeys(self.routes.values()))

    @property
    def by_name(self) -> dict[str, Model]:
        """The models of all cells. The first is the default of the page."""
        return {name: model for (name, cell), model in self.routes.items() if not cell}

    @property
    def names(self) -> list[str]:
        """The names of all models, also of those that are still loading."""
        return list(dict.fromkeys(name for name, _ in self._wanted))

    def id_of(self, model: Model) -> str:
        """The name that requests give: of a model of some cells only, its label."""
        return model.name if self.by_name.get(model.name) is model else model.label

    def facts(self, model: Model) -> dict[str, Any]:
        """Which version serves, in which cells by name, and why a newer one does not."""
        cells = [cell for (_, cell), other in self.routes.items() if other is model and cell]
        problems = [told for release, told in self.problems.items() if release.name == model.name]
        beside = {
            cell: {"model": trial.release.label, "kind": trial.kind, "share": trial.share}
            for (name, cell), trial in self._trials.items()
            if name == model.name and trial.release in self._by_release
        }
        return {"serves": model.label, "cells": cells, "trials": beside, "problems": problems}

    def state(self, name: str) -> Literal["ready", "failed", "loading"]:
        """How the model of all cells stands. "failed": it could not be started, and is tried again after a while."""
        if (model := self.by_name.get(name)) is not None and model.engine.alive:
            return "ready"
        return "failed" if self._wanted.get((name, "")) in self.problems else "loading"

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        there = set(self.names) <= self.by_name.keys()
        return not self.closing and there and all(model.engine.alive for model in self.all)

    # --- changes

    async def reload(self) -> None:
        """Load every checkpoint anew. A new engine takes over when it is warm; the old one answers what it accepted."""
        await self._look()
        await self._settle(anew=True)

    async def _follow(self) -> None:
        """Serve what is wanted, whenever that changes, and what could not be started before."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            await self._look()
            await self._settle()

    async def _look(self) -> None:
        """What is wanted now. If that cannot be said, it is what was wanted before."""
        told = ""
        try:
            self._wanted = dict(await asyncio.to_thread(self._source.wanted))
            self._trials = dict(self._source.trials())
        except LinesideError as error:
            told = str(error)
            if told != self._blind:
                say(f"serve: {told}; the models answer on as they are")
        self._blind = told

    async def _settle(self, *, anew: bool = False) -> None:
        """Start what is wanted and does not run, one after the other. `anew`: also what runs. A challenger is started
        beside this, since a champion never waits for one."""
        async with self._turn:
            self._tidy()  # what ends makes room for what begins
            await self._begin_all(dict.fromkeys(self._wanted.values()), anew)
            self._tidy()
        if not self._aside.locked() and self._tried:
            self._keep(self._tasks, self._begin_challengers(anew))

    async def _begin_challengers(self, anew: bool) -> None:
        async with self._aside:
            await self._begin_all(self._tried, anew)

    async def _begin_all(self, releases: Iterable[Release], anew: bool) -> None:
        for release in releases:
            model = next((m for m in self._running if m.release == release and m.engine.alive), None)
            if model is not None and not anew:
                self._route(release, model)
            elif anew or time.monotonic() >= self._retry.get(release, 0.0):
                await self._begin(release)

    async def _begin(self, release: Release) -> None:
        """Start a release, and send new requests to it. If it cannot be started, the old one serves on, and it is tried
        again after a while."""
        if release in self._starting:
            return
        self._starting.add(release)
        try:
            model = await self._started(release)
        except (LinesideError, OSError) as error:
            self._failed(release, error)
        else:
            self._route(release, model)
        finally:
            self._starting.discard(release)

    async def _started(self, release: Release) -> Model:
        hold = await asyncio.to_thread(self._source.hold, release)
        try:
            pairs = await asyncio.to_thread(self._allowed, release)
            say(f"serve: loading and warming {release.label} ({release.checkpoint})")
            nice = SPARE_NICE if release.spare else 0
            engine = EngineProcess(release.checkpoint, {**self._options, "pairs": pairs, "nice": nice})
            await engine.start()
            try:
                facts = engine.facts
                book = TaskBook.read(release.checkpoint, Thinking(facts["thinking"], facts["thinks"]), facts["form"])
                version = (release.version or fingerprint(release.checkpoint))[:VERSION_DIGITS]
                await self._look()  # it may be unwanted by now
            except BaseException:
                engine.kill()
                raise
        except BaseException:
            if hold is not None:
                hold.close()
            raise
        costs = ", ".join(f"{key} {value:.2f}" for key, value in facts["costs"].items())
        say(f"serve: {release.label} is ready, decoded by {facts['pair']}: {facts['why']}; measured, in ms: {costs}")
        model = Model(release, engine, book, version, hold)
        engine.on_end = partial(self._revive, model)
        return model

    def _route(self, release: Release, model: Model) -> None:
        """Send new requests for a release to a model."""
        self._live.add(model)
        self.routes |= {route: model for route, wanted in self._wanted.items() if wanted == release}
        self._by_release[release] = model
        self._tidy()

    def _tidy(self) -> None:
        """Drop what is not wanted any more, and let models leave that get no requests any more."""
        self.routes = {route: model for route, model in self.routes.items() if route in self._wanted}
        meant = {*self._wanted.values(), *self._tried}
        self._by_release = {release: model for release, model in self._by_release.items() if release in meant}
        for model in self._live - set(self._running):
            self._live.discard(model)
            self._keep(self._leaving, model.leave())
        open_ = meant - {model.release for model in self._running if model.engine.alive}
        self.problems = {release: told for release, told in self.problems.items() if release in open_}
        self._retry = {release: at for release, at in self._retry.items() if release in open_}

    def _failed(self, release: Release, error: Exception) -> None:
        self._retry[release] = time.monotonic() + RETRY_SECONDS
        routes = [route for route, wanted in self._wanted.items() if wanted == release]
        routes += [route for route, trial in self._trials.items() if trial.release == release]
        there = {self.routes.get(route) or self.by_name.get(route[0]) for route in routes}
        instead = " and ".join(sorted(model.label for model in there if model is not None and model.engine.alive))
        told = f"{release.label} is not served, {instead or 'nothing'} answers on: {error}"
        if self.problems.get(release) != told:
            say(f"serve: {told}")
        self.problems[release] = told

    def _revive(self, model: Model) -> None:
        """Start a model's engine again after it has ended by itself."""
        if not self.closing and model in self._running:
            say(f"serve: the engine of {model.label} has ended; it is started again")
            self._keep(self._tasks, self._begin(model.release))

    @staticmethod
    def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside the requests."""

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                say(f"serve: a bug in lineside, {type(error).__name__}: {error}")

        tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(done)

    # --- the end

    def kill(self) -> None:
        """End every engine at once."""
        for model in self._live:
            model.engine.kill()

    async def close(self) -> None:
        """Finish what was accepted, and end every engine."""
        self.closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        leaving = [*self._leaving, *(model.leave() for model in self._live)]
        await asyncio.gather(*leaving)
