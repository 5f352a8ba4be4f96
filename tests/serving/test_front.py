"""What the front says by itself, without an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from lineside.serving.front import Front, FrontSettings


def front(*running: int, **settings: Any) -> Front:
    """A front with an engine of the model `bins` for each number of rows."""
    states = [{"running": rows, "waiting": 0, "steps": 1, "prefix_cache_bytes": 0} for rows in running]
    models: Any = SimpleNamespace(all=[SimpleNamespace(name="bins", engine=SimpleNamespace(state=s)) for s in states])
    return Front(models, FrontSettings(**settings))


def request(method: str, *headers: tuple[bytes, bytes]) -> Request:
    scope = {"type": "http", "method": method, "path": "/", "headers": list(headers), "client": ("192.0.2.1", 1)}
    return Request(scope)


def test_engines_of_one_model_are_counted_together() -> None:
    """A champion of one cell has the name of the champion of the others."""
    page = bytes(asyncio.run(front(1, 2).show_metrics(request("GET"))).body).decode()
    assert 'lineside:num_requests_running{model_name="bins"} 3.0' in page
    assert 'lineside:num_requests_waiting{model_name="bins"} 0.0' in page


def test_who_asks_too_often_is_told_what_is_counted() -> None:
    async def answered(_: Request) -> Response:
        return Response()

    async def second(guarded: Any, *headers: tuple[bytes, bytes]) -> Response:
        assert (await guarded(request("POST", *headers))).status_code == 200
        return await guarded(request("POST", *headers))

    key = "k" * 32
    for keys, headers, told in (((), (), "address"), ((key,), ((b"authorization", f"Bearer {key}".encode()),), "key")):
        found = asyncio.run(second(front(keys=keys, per_minute=1.0).guard(answered), *headers))
        assert found.status_code == 429 and f"this {told}" in bytes(found.body).decode()


def test_keys_are_read_again_and_a_broken_file_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, old, new = tmp_path / "keys", "a-key-of-the-tests-old", "a-key-of-the-tests-new"
    guard = front(keys=(old,)).guard

    async def answered(_: Request) -> Response:
        return Response()

    def may(key: str) -> bool:
        asked = request("GET", (b"authorization", f"Bearer {key}".encode()))
        return asyncio.run(guard(answered)(asked)).status_code == 200  # type: ignore[arg-type]

    assert may(old) and not may(new)
    file.write_text("short\n")
    guard.take_keys(file)
    assert may(old) and not may(new)
    assert f"{file}:1: a key has at least 16 ASCII characters" in capfd.readouterr().err
    file.write_text(f"{new}  # robot 7\n")
    guard.take_keys(file)
    assert may(new) and not may(old)
