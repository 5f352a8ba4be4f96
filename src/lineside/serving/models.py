"""The models that are served: for each name an engine process, what its checkpoint knows of its tasks, a reload."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lineside.errors import LinesideError
from lineside.judgement.calibration import fingerprint
from lineside.judgement.taskbook import TaskBook
from lineside.progress import say
from lineside.serving import wire
from lineside.serving.engines import EnginePair
from lineside.types import Thinking

STATE = ("running", "waiting", "steps", "prefix_cache_bytes")  # what an engine says of itself with its answers
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
            header, _ = await wire.receive(self._reader)
        except (asyncio.IncompleteReadError, OSError):
            raise LinesideError(f"{self.checkpoint}: the engine process ended while it loaded the model") from None
        except asyncio.CancelledError:
            self.kill()
            raise
        if header["kind"] != "ready":
            raise LinesideError(header.get("message", f"{self.checkpoint}: cannot be served"))
        self.facts, self.alive = header, True
        self._task = asyncio.create_task(self._read())

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


@dataclass(slots=True)
class Model:
    """A served model. `version`: the fingerprint of its weights."""

    name: str
    engine: EngineProcess
    book: TaskBook
    version: str
    successor: Model | None = None
    """What has taken its place."""

    @property
    def latest(self) -> Model:
        """The one that answers now."""
        return self if self.successor is None else self.successor.latest

    @property
    def roi(self) -> dict[str, Any] | None:
        """How pictures are cut before the model sees them."""
        return self.engine.facts["roi"]


class Models:
    """The models by name. The first is the default of the page."""

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        options: Mapping[str, Any],
        allowed: Callable[[Path], Sequence[EnginePair]],
    ) -> None:
        """`allowed`: the engines and weights that a checkpoint may be served by, looked up each time it is loaded."""
        self._checkpoints, self._options, self._allowed = dict(checkpoints), dict(options), allowed
        self.by_name: dict[str, Model] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self._reviving: set[str] = set()
        self.closing = False

    async def start(self) -> None:
        """Start every model, one after the other, since each measures its speed. Raises LinesideError."""
        for name in self._checkpoints:
            self.by_name[name] = await self._started(name)

    async def _started(self, name: str) -> Model:
        checkpoint = self._checkpoints[name]
        say(f"serve: loading and warming {name} ({checkpoint})")
        engine = EngineProcess(checkpoint, {**self._options, "pairs": self._allowed(checkpoint)})
        await engine.start()
        facts = engine.facts
        book = TaskBook.read(checkpoint, Thinking(facts["thinking"], facts["thinks"]), facts["form"])
        costs = ", ".join(f"{key} {value:.2f}" for key, value in facts["costs"].items())
        say(f"serve: {name} is ready, decoded by {facts['pair']}: {facts['why']}; measured, in ms: {costs}")
        model = Model(name, engine, book, fingerprint(checkpoint)[:16])
        engine.on_end = partial(self._revive, model)
        return model

    @property
    def names(self) -> list[str]:
        """The names of all models, also of those that are still loading."""
        return list(self._checkpoints)

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return not self.closing and len(self.by_name) == len(self._checkpoints) and all(
            model.engine.alive for model in self.by_name.values()
        )  # fmt: skip

    async def reload(self) -> None:
        """Load every checkpoint anew. A new engine takes over when it is warm; the old one answers what it accepted."""
        for name, old in list(self.by_name.items()):
            try:
                self.by_name[name] = old.successor = await self._started(name)
            except LinesideError as error:
                say(f"serve: {name} is not reloaded, the old weights stay: {error}")
                continue
            await old.engine.finish()

    def _revive(self, model: Model) -> None:
        """Start a model's engine again after it has ended by itself."""
        if self.closing or self.by_name.get(model.name) is not model or model.name in self._reviving:
            return
        self._reviving.add(model.name)

        async def again() -> None:
            say(f"serve: the engine of {model.name} has ended; it is started again")
            model.engine.kill()
            try:
                self.by_name[model.name] = model.successor = await self._started(model.name)
            except LinesideError as error:
                say(f"serve: {error}")
            finally:
                self._reviving.discard(model.name)

        task = asyncio.create_task(again())
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def close(self) -> None:
        """Finish what was accepted, and end every engine."""
        self.closing = True
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*(model.engine.finish() for model in self.by_name.values()))
