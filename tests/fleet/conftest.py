"""A home with a registry of tiny models, served for real, and a machine's side that fetches from it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lineside.fleet.client import Home
from lineside.fleet.machine import Machine
from lineside.fleet.mirror import Mirror
from lineside.fleet.server import Home as Serving
from lineside.fleet.signing import make_keys, read_private, read_public
from lineside.registry.promotion import promote
from lineside.registry.store import Registry, Version
from lineside.serving.protocol import address, bound, configured
from tests.conftest import answered_by
from tests.registry.conftest import add_files
from tests.serving.conftest import KEY


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The API keys of a server's clients."""
    path = tmp_path / "clients"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys" / "owner")
    return tmp_path / "keys" / "owner"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with three versions of bins; the first is the champion."""
    with Registry(tmp_path / "registry", create=True) as registry:
        for content in ("a" * 300_000, "b" * 300_001, "c" * 300_002):
            add_large(registry, "bins", content)
        promote(registry, registry.version("bins@1"))
        yield registry


def add_large(registry: Registry, name: str, content: str) -> Version:
    """Register a model of some size."""
    source = registry.folder.parent / "sources" / f"{content[:1]}{len(content)}"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_text(content)
    (source / "config.json").write_text("{}")
    return add_files(registry, name, {path.name: path for path in source.iterdir()})


def to(registry: Registry, number: int, cell: str = "") -> Version:
    return promote(registry, registry.version(f"bins@{number}"), cell=cell, force="x").after


@contextmanager
def in_thread(serving: Serving) -> Iterator[str]:
    """Home, served from a thread of this process; its address."""
    import uvicorn

    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(configured(serving.app()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield address("127.0.0.1", listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def in_process(registry: Path, key: Path, port: int = 0, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`lineside registry serve` in a process of its own, and its address."""
    command = [sys.executable, "-c", "from lineside.cli import main; main()", "registry", "serve", "--key", str(key)]
    command += ["--registry", str(registry), "--port", str(port), *options]
    log = (registry.parent / "home.log").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        assert place, (registry.parent / "home.log").read_text()
        yield process, place
    finally:
        process.kill()
        process.wait()
        log.close()


@dataclass
class Site:
    """A machine: its folder, and what fetches into it."""

    folder: Path
    key: Path

    def machine(self, url: str, cell: str = "", *, max_bytes: int = 10_000_000, api_key: str = "") -> Machine:
        mirror = Mirror(self.folder, cell=cell, max_bytes=max_bytes)
        return Machine(Home(url, api_key), mirror, [read_public(self.key.with_name("owner.pub"))], seconds=0.05)

    def pulled(self, url: str, **options: object) -> Machine:
        """A machine that has looked once."""
        machine = self.machine(url, **options)
        machine.pull()
        return machine

    @property
    def labels(self) -> list[str]:
        with Registry(self.folder) as registry:
            for champion in registry.champions():
                registry.check(registry.item(champion.version.model), champion.version.label)
            return [champion.version.label for champion in registry.champions()]


@pytest.fixture
def site(tmp_path: Path, key: Path) -> Site:
    return Site(tmp_path / "machine", key)


@pytest.fixture
def home(registry: Registry, key: Path) -> Iterator[str]:
    with in_thread(Serving(registry.folder, read_private(key))) as url:
        yield url


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def between(answer: Answer) -> Iterator[str]:
    """Somebody between a machine and its home, who answers every GET himself; his address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

    with answered_by(Handler) as url:
        yield url
