"""A two-layer VLM (tiny random SigLIP tower, tiny Llama) that goes through every verb on the CPU in seconds."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
from hypothesis import settings

from lineside.machine import end_with_parent
from lineside.types import Rollout, Thinking

settings.register_profile("lineside", deadline=None)  # a busy machine is slow; no test asserts a time
settings.load_profile("lineside")
os.environ.setdefault("LINESIDE_BACKEND", "reference")  # compiling the others takes longer than these models run
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as in a shell's background job: tests and what they start need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Flush nothing to the disk: what a power cut takes is tested in processes of their own (tests/torture)."""
    os.fsync = lambda fd: None
    typer.testing._get_command = _built  # pyright: ignore[reportPrivateImportUsage]


def _built(app: typer.Typer) -> Any:
    """The command of an app, made once: typer makes that of all verbs anew at each call, in 0.1 seconds."""
    return _command(app, len(app.registered_commands), len(app.registered_groups))


@cache
def _command(app: typer.Typer, *_: int) -> Any:
    return typer.main.get_command(app)


class Forks:
    """A process that runs functions of tests in forks of itself, one after the other. It is forked from this one when
    all tests are imported and none has run: to import torch takes seconds, and a process that has computed a gradient
    has none in its forks."""

    def __init__(self) -> None:
        self._asks, asked = Pipe()
        if os.fork() == 0:
            end_with_parent()
            os.closerange(3, asked.fileno())  # pytest's pipes: who reads them waits for their last writer
            os.closerange(asked.fileno() + 1, 1024)
            _run_forks(asked)
        asked.close()

    def run(self, work: Callable[[Path], object], folder: Path) -> tuple[int, str]:
        """What `work(folder)` ends with in a process of its own (negative: the signal), and what it has said."""
        self._asks.send((work, folder))
        return self._asks.recv(), (folder / SAID).read_text()


SAID = "said.txt"


def _run_forks(asked: Connection) -> None:
    while True:
        try:
            work, folder = asked.recv()
        except BaseException:  # the tests have ended
            os._exit(0)
        if (child := os.fork()) == 0:
            status = 1
            try:
                for stream in (1, 2):
                    os.dup2(os.open(folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
                sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
                work(folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        asked.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Only the processes that run tests have collected any."""
    if any("forks" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[_FORKS] = Forks()


_FORKS = pytest.StashKey[Forks]()


@pytest.fixture
def forks(pytestconfig: pytest.Config) -> Forks:
    return pytestconfig.stash[_FORKS]


@dataclass
class FixedSampler:
    """A sampler elsewhere: it answers every prompt with the same rollouts, and needs no model."""

    rollouts: tuple[Rollout, ...]
    thinking: Thinking = field(default_factory=Thinking)
    version: int = 0

    def sample(self, prompts: Sequence[Any], **_: object) -> list[tuple[Rollout, ...]]:
        return [self.rollouts for _ in prompts]

    def refresh(self, version: int) -> None:
        self.version = version


def wait_until(holds: Callable[[], object], seconds: float = 600.0) -> None:
    """Wait for what another process or thread does, on however busy a machine, but not for ever."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it does not come about within {seconds:.0f} seconds"
        time.sleep(0.002)


FAKE_VLLM = Path(__file__).with_name("fake_vllm")


def fake_vllm(folder: Path, fault: str = "", found: Path = FAKE_VLLM) -> Path:
    """A Python in whose environment there is a vLLM: the fake one, with a fault."""
    path = folder / f"python-{fault or 'right'}"
    path.write_text(f'#!/bin/sh\nFAKE_VLLM={fault} PYTHONPATH={found} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


class _LocalServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is no error of a test
            super().handle_error(request, client_address)


@contextmanager
def answered_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server of this machine, in threads of this process; its address, without a slash at its end."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    with _LocalServer(("127.0.0.1", 0), quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


TEXTS = [
    "how many red cans are in the bin? left: 2 red can; right: 1 red can; so 3",
    "is there a blue box? yes no none the bin holds a blue box and a small white bottle",
    "which slots still need filling? 1 red can ok, 2 empty, 3 blue box ok; so slot 2",
    "a tray with six slots; condition: intact, dented, torn, open; describe the picture",
]


def make_tiny_vlm(seed: int = 0, lm: str = "llama", tokenizer: Any = None):
    """Random weights, fp32: 16 image tokens of a 32x32 picture, 2 layers on both sides, grouped-query heads.

    `tokenizer`: nano's kind by default."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    from lineside.model.nano import train_tokenizer
    from lineside.model.parts import assemble

    torch.manual_seed(seed)
    tokenizer = tokenizer or train_tokenizer(TEXTS, 400)
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[lm]
    text = AutoModelForCausalLM.from_config(
        kind(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=8,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )
    )
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    ).eval()
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return assemble(tower, processor, text, tokenizer, seed=seed)


def sharp(dtype: Any = None):
    """A tiny VLM that does not say the same of every picture; in float32 by default."""
    import torch

    vlm = make_tiny_vlm()
    with torch.no_grad():
        for name, weight in vlm.language_model.named_parameters():
            weight.mul_(20 if "proj" in name else 1)
    vlm.model.to(dtype or torch.float32).requires_grad_(False)
    return vlm


@pytest.fixture
def tiny_vlm():
    return make_tiny_vlm()


@pytest.fixture(params=["cpu", "sham", pytest.param("cuda", marks=pytest.mark.gpu)])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A runtime on each kind of device: the CPU, the sham device (tests/sham.py) and, with `-m gpu`, a GPU."""
    from lineside.runtime import ON_CPU, Runtime

    if request.param != "sham":
        yield ON_CPU if request.param == "cpu" else Runtime.of("cuda")
        return
    from tests.sham import sham_device

    with sham_device(monkeypatch) as bus:
        yield Runtime(bus.device)


def picture(seed: int = 0, size: int = 48) -> bytes:
    """PNG bytes of seeded noise."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """A headless Chromium for the pages of a module."""
    from tests.reviewing.chromium import Browser

    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
