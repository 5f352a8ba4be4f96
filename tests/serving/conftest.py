"""A server as its user starts it, with a tiny checkpoint that has tasks, budgets and a calibration."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI

from lineside.judgement.calibration import Curve, write_calibration
from lineside.judgement.typed import Form, keep_forms
from lineside.model.checkpoint import save
from lineside.model.vlm import VLM
from lineside.types import Costs, Thinking
from tests.conftest import make_tiny_vlm, picture

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


def sharp(dtype: torch.dtype = torch.float32) -> VLM:
    """A model that does not say the same of every picture."""
    vlm = make_tiny_vlm()
    with torch.no_grad():
        for name, weight in vlm.language_model.named_parameters():
            weight.mul_(20 if "proj" in name else 1)
    vlm.model.to(dtype).requires_grad_(False)  # pyright: ignore[reportArgumentType]
    return vlm


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
