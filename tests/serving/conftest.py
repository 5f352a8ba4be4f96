"""A server as its user starts it, with a tiny checkpoint that has tasks, budgets and a calibration."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from lineside.errors import LinesideError
from lineside.judgement.calibration import Curve, write_calibration
from lineside.judgement.typed import Form, keep_forms
from lineside.model.checkpoint import save
from lineside.registry.manifest import files_below
from lineside.registry.promotion import promote
from lineside.registry.store import Registry, Version
from lineside.serving import models
from lineside.serving.follow import Champions
from lineside.serving.models import Models
from lineside.types import Costs, Thinking
from tests.conftest import picture, sharp, wait_until
from tests.registry.conftest import add, add_files

KEY = "a-key-of-the-tests-0123456789"
EMPTY, COUNT = "cells/empty", "cells/count"


def url(seed: int = 0, size: int = 48) -> str:
    """A data URL of a picture."""
    return "data:image/png;base64," + base64.b64encode(picture(seed, size)).decode()


def turn(question: str, *urls: str) -> list[dict[str, Any]]:
    """A user's turn of text and pictures."""
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def make_checkpoint(folder: Path) -> Path:
    """A tiny model with two tasks: one answers at once, one thinks."""
    vlm = sharp()
    vlm.thinking = Thinking({EMPTY: False, COUNT: True})
    save(vlm, folder)
    yes_no = Form(kind="choice", options=("yes", "no"), phrasings=("Is the {place} empty?",), budget_ms=60_000)
    keep_forms(folder, {EMPTY: yes_no, COUNT: Form(kind="number", phrasings=("How many parts?",))})
    stakes = Costs.of(1.0, refusal=0.5)
    curve = Curve(n=70, scenes=70, slope=1.0, offset=0.0, normal="yes", stakes=stakes, binary=True, thinking=False)
    write_calibration(folder, "float32", "fast", {EMPTY: curve})
    return folder


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    checkpoint: Path | None

    @property
    def openai(self) -> OpenAI:
        """The official client."""
        return OpenAI(base_url=f"{self.address}v1", api_key=KEY, max_retries=0, timeout=120)

    def http(self) -> httpx2.Client:
        """A plain client with the key."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=120)


@contextmanager
def serving(checkpoint: Path | None, keys: Path, *options: str) -> Iterator[Served]:
    """`lineside serve` in a process of its own."""
    command = [
        sys.executable,
        "-c",
        "from lineside.cli import main; main()",
        "serve",
        *([f"tiny={checkpoint}"] if checkpoint else []),
        "--port",
        "0",
        "--keys",
        str(keys),
        "--unjudged",
    ]
    environment = {**os.environ, "LINESIDE_BACKEND": "reference"}
    log = (keys.parent / "serve.log").open("w+")
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, (keys.parent / "serve.log").read_text()
        yield Served(process, address, checkpoint)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)
        log.close()


def registry_of_two(folder: Path) -> Path:
    """A registry with two versions of bins: equal weights and other files, so the same answers and another version.
    The first is the champion."""
    checkpoint = make_checkpoint(folder / "checkpoint")
    with Registry(folder / "registry", create=True) as registry:
        for number in (1, 2):
            (checkpoint / "note.json").write_text(str(number))
            add_files(registry, "bins", files_below(checkpoint))
        promote(registry, registry.version("bins@1"))
    return folder / "registry"


class Load:
    """Clients, one for each cell (None: of no cell), that ask bins without a pause until the block ends.

    `answers`: model, version and text of each client's answers, in order. `failed`: what was no answer."""

    def __init__(self, served: Served, cells: Sequence[str | None]) -> None:
        self._served, self._over = served, threading.Event()
        self.answers: list[list[tuple[str, str, str]]] = [[] for _ in cells]
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=one) for one in zip(cells, self.answers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, cell: str | None, answers: list[tuple[str, str, str]]) -> None:
        about = {"task": EMPTY} | ({"cell": cell} if cell else {})
        body = {"model": "bins", "messages": turn("Is the left bin empty?", url(3)), "max_tokens": 8, "lineside": about}
        with self._served.http() as client:
            while not self._over.is_set():
                found = client.post("v1/chat/completions", json=body)
                if found.status_code != 200:
                    self.failed.append(found.text)
                    return
                told = found.json()
                text = told["choices"][0]["message"]["content"]
                answers.append((told["model"], told["lineside"]["version"], text))

    def until(self, label: str, client: int | None = None) -> None:
        """Wait until the last answers of a client, or of all, are those of a version."""
        waiting = self.answers if client is None else [self.answers[client]]
        wait_until(lambda: self.failed or all(own and own[-1][0] == label for own in waiting))
        assert not self.failed, self.failed

    @property
    def count(self) -> int:
        """How many answers there are."""
        return sum(map(len, self.answers))

    @property
    def shown(self) -> list[list[str]]:
        """The models that answered each client, without repetitions."""
        return [[label for label, _ in groupby(label for label, _, _ in own)] for own in self.answers]


class Engine:
    """Stands for an engine process: it starts when it may, and remembers what became of it."""

    all: list[Engine] = []  # noqa: RUF012
    may_start: asyncio.Event

    def __init__(self, checkpoint: Path, options: Any) -> None:
        self.checkpoint, self.alive, self.ended = checkpoint, False, ""
        self.facts = {
            "thinking": {},
            "thinks": True,
            "form": "float32",
            "pair": "",
            "why": "",
            "costs": {},
            "roi": None,
        }
        self.on_end: Callable[[], None] = lambda: None
        Engine.all.append(self)

    async def start(self) -> None:
        await Engine.may_start.wait()
        if (self.checkpoint / "model.safetensors").read_text() == "bad":
            self.ended = "broken"
            raise LinesideError("cannot be loaded")
        self.alive = True

    async def finish(self) -> None:
        self.alive, self.ended = False, "finished"

    def kill(self) -> None:
        self.alive, self.ended = False, "killed"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """All engines of a scene, in the order in which they were made."""
    monkeypatch.setattr(models, "EngineProcess", Engine)
    monkeypatch.setattr(models, "TaskBook", SimpleNamespace(read=lambda *_: None))
    monkeypatch.setattr(models, "FOLLOW_SECONDS", 0.001)
    Engine.all.clear()
    yield Engine.all


def play(registry: Registry, scene: Callable[[Models], Coroutine[Any, Any, None]], **options: bool) -> None:
    """A scene with models that follow the registry, from their start to their end."""

    async def run() -> None:
        Engine.may_start = asyncio.Event()
        Engine.may_start.set()
        followed = Models(Champions(registry.folder), {}, lambda _: [], **options)
        await followed.start()
        assert followed.ready
        await asyncio.create_task(scene(followed))  # a task of its own: a model waits for those that have looked it up
        await followed.close()
        assert not followed.ready and all(engine.ended for engine in Engine.all)

    asyncio.run(run())


async def until(holds: Callable[[], object]) -> None:
    """Wait for what another task does, but not for ever."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Four versions of bins, of which the first is the champion and the last cannot be loaded."""
    with Registry(tmp_path / "registry", create=True) as registry:
        for content in ("a", "b", "c", "bad"):
            add(registry, "bins", content)
        promote(registry, registry.version("bins@1"))
        yield registry


def to(registry: Registry, number: int, cell: str = "") -> Version:
    """Make a version of bins the champion."""
    return promote(registry, registry.version(f"bins@{number}"), cell=cell, force="x").after


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("served") / "checkpoint")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# of the tests\nanother-key-0123456789\n{KEY}\n")
    return path


@pytest.fixture(scope="session")
def server(checkpoint: Path, keys: Path) -> Iterator[Served]:
    with serving(checkpoint, keys, "--outcomes", str(keys.parent / "outcomes.sqlite")) as served:
        yield served
