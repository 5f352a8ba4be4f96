"""What a stage computed and what it took: the cost line that every stage ends with, and the same as `cost.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from lineside.judgement.files import write_atomic

T = TypeVar("T")

FILE = "cost.json"
# Reading and laying out samples, the encoder and its store, the two halves of sampling; update is what is in no other.
PHASES = ("read", "encode", "prefill", "decode", "update", "evaluate")


@dataclass
class Cost:
    """Of a stage so far, over all processes that worked on it. Plain numbers, so that it is saved and read as JSON."""

    tokens: int = 0  # through the LM, forward and backward
    dense_tokens: int = 0  # the same as padded rows, each with its picture and prompt
    samples: int = 0  # captions, answers or rollouts trained on
    operations: float = 0.0  # floating-point, sampling included (lineside.model.operations)
    matrix_rate: float = 0.0  # operations a second of plain products on this machine
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    @property
    def trained(self) -> float:
        """Seconds of the stage itself."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "evaluate")

    @property
    def share(self) -> float:
        """Of the machine's matrix rate, over the whole of the stage."""
        return self.rate(self.operations) / self.matrix_rate if self.matrix_rate else 0.0

    @property
    def saved(self) -> float:
        """How many tokens padded rows would take for each one computed."""
        return self.dense_tokens / self.tokens if self.tokens else 1.0

    def rate(self, number: float) -> float:
        """Of something, a second of the stage."""
        return number / self.trained if self.trained else 0.0

    def add(self, *, tokens: int, dense_tokens: int, samples: int, operations: float) -> None:
        """Count an update."""
        self.tokens += tokens
        self.dense_tokens += dense_tokens
        self.samples += samples
        self.operations += operations

    def spend(self, phase: str, seconds: float) -> None:
        """Add to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add what passes to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(phase, time.perf_counter() - start)

    def timed(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """The items; what each takes to come is added to a phase."""
        iterator = iter(items)
        while True:
            with self.clock(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def line(self) -> str:
        """For the console."""
        phases = (f"{phase} {self.seconds[phase]:.0f}" for phase in PHASES if self.seconds.get(phase, 0.0) >= 0.5)
        tokens, dense = self.tokens / 1e6, self.dense_tokens / 1e6
        return (
            f"{tokens:.2f}M tokens computed, {dense:.2f}M as padded rows ({self.saved:.1f}x); "
            f"{self.rate(self.tokens):,.0f} tokens/s, {self.rate(self.samples):,.1f} samples/s; "
            f"{self.rate(self.operations) / 1e9:,.0f} GFLOP/s, {100 * self.share:.0f}% of this machine's matrix rate; "
            f"seconds: {', '.join(phases) or '0'}"
        )


def read_cost(folder: Path) -> Cost | None:
    """Of a stage's folder; None where there is none that can be read."""
    try:
        return Cost(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_costs(run: Path, stages: Iterable[str]) -> dict[str, Cost]:
    """Of those of a run's stages that have one, in this order."""
    return {stage: cost for stage in stages if (cost := read_cost(run / stage)) is not None}


def write_cost(folder: Path, cost: Cost) -> None:
    """Raises LinesideError where the disk is full."""
    write_atomic(folder / FILE, json.dumps(asdict(cost), indent=1) + "\n")
