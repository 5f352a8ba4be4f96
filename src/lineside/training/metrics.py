"""What a stage logs: metrics.jsonl for the report, TensorBoard events for those who watch, a line for the console."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineside.progress import say

Number = Any  # a float, an int or a one-element tensor


class MetricsLog:
    """Appends to <folder>/metrics.jsonl and to TensorBoard events in <folder>/tensorboard; a context manager.

    Opened at the step that training resumes from: what an interrupted run logged beyond it, and a last line torn by
    a kill, are cut off first, so that the curve has each step once.
    """

    def __init__(
        self, folder: Path, *, step: int = 0, label: str, show: Sequence[str] = ("loss",), every: float = 10.0
    ) -> None:
        """`label` opens the console line, `show` names the metrics on it, `every` is its period in seconds."""
        from torch.utils.tensorboard import SummaryWriter  # a second to import; only a training run pays it

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            _cut(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._label, self._show, self._every = label, show, every
        self._shown = -math.inf

    def log(self, step: int, values: Mapping[str, Number], *, of: int | None = None) -> None:
        """Log one optimiser step. A value that is not finite is written as null, since JSON has no NaN.

        `of` is the last step where it is known, for the console line.
        """
        plain = {name: float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in plain.items():
            self._events.add_scalar(name, value, step)
        now = time.monotonic()
        if now - self._shown >= self._every or step == of:
            self._shown = now
            shown = "  ".join(f"{name} {plain[name]:.4g}" for name in self._show if name in plain)
            say(f"{self._label} step {step:,}{f' of {of:,}' if of else ''}: {shown}")

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order. Lines that are not whole (the last one after a kill) are left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _cut(path: Path, step: int) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        for row in read_metrics(path):
            if row["step"] <= step:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_table(path: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows of a sample table, each with its step."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)
