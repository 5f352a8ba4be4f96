"""What a stage computed, and the time it took: the cost line at the end of a stage, and the same as `cost.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.strict import read_record

T = TypeVar("T")

FILE = "cost.json"
PHASES = {
    "read": "samples into trees of tokens",
    "encode": "pictures through the encoder, or from its store",
    "prefill": "sampling: reading pictures and prompts",
    "decode": "sampling: writing responses",
    "update": "all other training",
    "evaluate": "evaluation after the stage",
}


@dataclass
class Cost:
    """Cost of a stage so far, over all processes that worked on it. Plain numbers, so it can be saved as JSON."""

    tokens: int = 0  # tokens through the LM, forward and backward
    dense_tokens: int = 0  # the same as padded rows, each with its own picture and prompt
    samples: int = 0  # captions, answers or rollouts trained on
    operations: float = 0.0  # floating-point operations, with those of sampling (operations.py)
    matrix_rate: float = 0.0  # operations a second of plain matrix products on this machine
    seconds: dict[str, float] = field(default_factory=dict)  # phase -> seconds

    @property
    def trained(self) -> float:
        """Seconds of the stage without evaluation."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "evaluate")

    @property
    def share(self) -> float:
        """Operations a second over the whole stage, as a share of the machine's matrix rate."""
        return self.rate(self.operations) / self.matrix_rate if self.matrix_rate else 0.0

    @property
    def saved(self) -> float:
        """Tokens that padded rows would need, divided by the tokens computed."""
        return self.dense_tokens / self.tokens if self.tokens else 1.0

    def rate(self, number: float) -> float:
        """`number` a second of the stage."""
        return number / self.trained if self.trained else 0.0

    def add(self, *, tokens: int, dense_tokens: int, samples: int, operations: float) -> None:
        """Add an update."""
        self.tokens += tokens
        self.dense_tokens += dense_tokens
        self.samples += samples
        self.operations += operations

    def spend(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time of a `with` block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(phase, time.perf_counter() - start)

    def timed(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time to get each is added to a phase."""
        iterator = iter(items)
        while True:
            with self.clock(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def line(self) -> str:
        """One line for the console."""
        phases = (f"{phase} {self.seconds[phase]:.0f}" for phase in PHASES if self.seconds.get(phase, 0.0) >= 0.5)
        tokens, dense = self.tokens / 1e6, self.dense_tokens / 1e6
        return (
            f"{tokens:.2f}M tokens computed, {dense:.2f}M as padded rows ({self.saved:.1f}x); "
            f"{self.rate(self.tokens):,.0f} tokens/s, {self.rate(self.samples):,.1f} samples/s; "
            f"{self.rate(self.operations) / 1e9:,.0f} GFLOP/s, {100 * self.share:.0f}% of this machine's matrix rate; "
            f"seconds: {', '.join(phases) or '0'}"
        )


def read_cost(folder: Path) -> Cost | None:
    """The cost in a stage's folder; None if there is none that can be read."""
    try:
        return read_record(Cost, folder / FILE, "it is written again")
    except (OSError, LinesideError):
        return None


def read_costs(run: Path, stages: Iterable[str]) -> dict[str, Cost]:
    """The costs of those stages of a run that have one, in this order."""
    return {stage: cost for stage in stages if (cost := read_cost(run / stage)) is not None}


def write_cost(folder: Path, cost: Cost) -> None:
    """Save the cost. Raises LinesideError if the disk is full."""
    write_atomic(folder / FILE, json.dumps(asdict(cost), indent=1) + "\n")
