"""Two sides of one comparison, each in its own process. They take turns after each step.

A side is a function `side(work, turn)`. It loads the model, gives its score of given tokens (`turn.scored`), then runs
its own training or sampling loop and calls `turn.done()` after every step. Between two calls it waits for its turn, so
each side has the whole machine. The time of a step is everything in its turn: reading, decoding, preprocessing and
computing. The processes are separate, so no side profits from what the other has compiled, allocated or patched.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from common import Options, Work, record
from lineside.machine import ENVIRONMENT, end_with_parent

# Both sides score in float32 with the weights that they run with, so that a difference comes from the computation.
# Our side bans the image token from the softmax and the peer does not. This moves all log-probabilities by that token's
# share: 1e-4 for SmolLM2, 1/640 for the tiny random model.
GAP32, BIAS32, COSINE = 2e-3, 2e-3, 0.9999
# For a server that runs only in bf16.
GAP = 0.05  # nats: mean distance of two bf16 log-probabilities of the same token; logits near 16 are 1/16 apart
BIAS = 0.02  # nats: distance of their means, in which rounding cancels


class Done(BaseException):
    """The other end wants no more steps. Not an Exception, so that no loop catches it."""


@dataclass
class Score:
    """A side's result for given tokens: their log-probabilities in the given order, and a loss's gradient."""

    tokens: Tensor  # (M,) ids, to show that both scored the same
    logprobs: Tensor  # (M,)
    gradient: dict[str, Tensor] = field(default_factory=dict)  # empty if nothing trains
    exact: bool = True  # scored in float32


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name; they are cleared afterwards."""
    found = {name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """For scoring: the same weights in float32. The conversion and back changes no bf16 weight."""
    dtype = next(model.parameters()).dtype
    model.float()
    try:
        yield
    finally:
        model.to(dtype)


class Turn:
    """A side's end of the connection."""

    def __init__(self, line: Connection, device: str) -> None:
        self._line, self._device, self._start = line, device, 0.0

    def scored(self, score: Score) -> None:
        """Hand in the score; the first step's clock starts when this returns."""
        handle, path = tempfile.mkstemp(suffix=".pt")
        os.close(handle)
        torch.save(score.__dict__, path)
        self._line.send(("scored", path))
        self._wait()

    def begin(self) -> None:
        """There is nothing to score; the first step's clock starts when this returns."""
        self._wait()

    def done(self) -> None:
        """End a step. Returns when the next begins; raises Done when there is none."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        self._line.send(("step", time.perf_counter() - self._start))
        self._wait()

    def _wait(self) -> None:
        if self._line.recv() == "stop":
            raise Done
        self._start = time.perf_counter()


W = TypeVar("W", bound=Work)
Runner = Callable[[W, Turn], None]


class Side(Protocol):
    """The parent's end of the connection."""

    def score(self) -> Score: ...

    def step(self) -> float: ...


class ProcessSide(Generic[W]):
    """A side in a fresh Python process."""

    def __init__(self, run: Runner[W], work: W, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(run, work, theirs), daemon=True)
        with patch.dict(os.environ, environment or {}):
            self._process.start()
        theirs.close()

    def score(self) -> Score:
        """Waits for the side to load and to score."""
        path = Path(str(self._receive()))
        try:
            return Score(**torch.load(path, weights_only=True))
        finally:
            path.unlink()

    def step(self) -> float:
        """Seconds of one step."""
        self._line.send("go")
        return float(self._receive())

    def _receive(self) -> Any:
        try:
            kind, value = self._line.recv()
        except EOFError:
            raise SystemExit("a side of the comparison died without a message (out of memory?)") from None
        if kind == "failed":
            raise SystemExit(f"a side of the comparison failed:\n{value}")
        return value

    def close(self) -> None:
        """Let the process end; after a time kill it."""
        with suppress(OSError):
            self._line.send("stop")
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()


def _serve(run: Runner[W], work: W, line: Connection) -> None:
    end_with_parent()
    try:
        run(work, Turn(line, work.device))
    except Done:
        pass
    except BaseException:
        line.send(("failed", traceback.format_exc()))


def race(
    name: str,
    peer: str,
    ours: Runner[W],
    theirs: Runner[W],
    work: W,
    settings: Options,
    *,
    at_least: float | None,
    note: str,
) -> dict[str, Any]:
    """Compare scores, then time both in turn; prints and records the row."""
    left, right = ProcessSide(ours, work, ENVIRONMENT), ProcessSide(theirs, work)  # ours with its command's environment
    try:
        return run_race(name, peer, left, right, settings, at_least=at_least, note=note)
    finally:
        left.close()
        right.close()


def run_race(
    name: str, peer: str, ours: Side, theirs: Side, settings: Options, *, at_least: float | None, note: str
) -> dict[str, Any]:
    """The same for sides that already run."""
    equal, words = agree(ours.score(), theirs.score())
    print(f"{name}: {'equal' if equal else 'NOT EQUAL'} ({words})", flush=True)
    ours_s, peer_s = [], []
    for number in range(settings.warmup + settings.repeats):
        pair = ours.step(), theirs.step()
        if number >= settings.warmup:
            ours_s.append(pair[0])
            peer_s.append(pair[1])
    median = statistics.median(ours_s), statistics.median(peer_s)
    spread = ", ".join(f"{who} {min(x):.3g} to {max(x):.3g} s" for who, x in (("ours", ours_s), ("peer", peer_s)))
    row = {
        "work": name,
        "peer": peer,
        "ratio": median[1] / median[0],
        "at_least": at_least,
        "equal": equal,
        "ours_s": median[0],
        "peer_s": median[1],
        "details": f"{note}; {words}; {len(ours_s)} steps each by turns, {spread}",
    }
    return record(row, settings)


def agree(ours: Score, theirs: Score) -> tuple[bool, str]:
    """Whether both gave the same tokens the same scores, and the differences as text."""
    if not torch.equal(ours.tokens, theirs.tokens):
        return False, f"they scored different tokens ({len(ours.tokens)} and {len(theirs.tokens)})"
    apart = ours.logprobs.double() - theirs.logprobs.double()
    gap, bias = float(apart.abs().mean()), float(apart.mean().abs())
    words = f"{len(apart)} tokens, log-probabilities {gap:.2g} apart, their means {bias:.2g}"
    exact = ours.exact and theirs.exact
    equal = gap <= (GAP32 if exact else GAP) and bias <= (BIAS32 if exact else BIAS)
    if ours.gradient or theirs.gradient:
        if ours.gradient.keys() != theirs.gradient.keys():
            odd = sorted(ours.gradient.keys() ^ theirs.gradient.keys())
            return False, f"{words}, gradients of different parameters ({len(odd)}, such as {odd[0]})"
        cosine = _cosine(ours.gradient, theirs.gradient)
        equal = equal and cosine >= COSINE
        words += f", gradients' cosine {cosine:.5f}"
    return equal, words


def _cosine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    dot = a = b = 0.0
    for name, x in left.items():
        x, y = x.double().flatten(), right[name].double().flatten()
        dot, a, b = dot + float(x @ y), a + float(x @ x), b + float(y @ y)
    return dot / max((a * b) ** 0.5, 1e-300)


@contextmanager
def stepping(verb: ModuleType, turn: Turn) -> Iterator[None]:
    """Let a verb (align, sft, rlvr) run its own loop, and end the turn after each optimiser step."""
    stage = verb.Stage

    class Turning(stage):
        def step(self, *args: Any, **kwargs: Any) -> None:
            super().step(*args, **kwargs)
            turn.done()

    with patch.object(verb, "Stage", Turning):
        yield
