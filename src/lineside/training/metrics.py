"""What a stage logs: metrics.jsonl for the report, events for TensorBoard and a tracker, lines for the console."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineside.files import flush, flush_all, make_folder, write_atomic
from lineside.progress import say
from lineside.training.tracking import track_step

METRICS, TABLE, WARNINGS = "metrics.jsonl", "samples.jsonl", "warnings.jsonl"
_LINES = (METRICS, TABLE, WARNINGS)  # each row says its step
Number = Any  # a float, an int or a one-element tensor


class MetricsLog:
    """Appends to <folder>/metrics.jsonl and to TensorBoard events in <folder>/tensorboard; a context manager.

    `step` is the step that training resumes from. Rows of later steps, which an interrupted run has logged, and an
    unfinished last line are first removed from metrics.jsonl, the table samples.jsonl and warnings.jsonl. The events
    are written again from the rows that are left. So each step is logged once.
    """

    def __init__(
        self, folder: Path, *, step: int = 0, label: str, show: Sequence[str] = ("loss",), every: float = 10.0
    ) -> None:
        """`label` begins each console line, `show` names its metrics, `every` is the time between lines in seconds."""
        make_folder(folder)
        path = folder / METRICS
        for kept in (folder / name for name in _LINES):
            if kept.exists():
                _cut(kept, step)
        # TensorBoard's files cannot be shortened, and its readers do not always skip events that should be dropped.
        for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        kept_rows = read_metrics(path) if path.exists() else []
        self._folder, self._file = folder, path.open("a", encoding="utf-8")
        self._events = _Events(folder / "tensorboard")
        for row in kept_rows:
            values = {name: value for name, value in row.items() if name not in ("step", "time") and value is not None}
            self._events.write(row["step"], values, row.get("time", 0.0))
        self._label, self._show, self._every = label, show, every
        self._shown = -math.inf

    def log(self, step: int, values: Mapping[str, Number], *, of: int | None = None) -> None:
        """Log one optimiser step. A value that is not finite is written as null, because JSON has no NaN.

        `of` is the last step, if it is known, for the console line.
        """
        plain = {name: float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        at = round(time.time(), 3)
        self._file.write(json.dumps({"step": step, "time": at, **row}, allow_nan=False) + "\n")
        self._file.flush()
        self._events.write(step, plain, at)
        track_step(step, plain)
        now = time.monotonic()
        if now - self._shown >= self._every or step == of:
            self._shown = now
            shown = "  ".join(f"{name} {plain[name]:.4g}" for name in self._show if name in plain)
            say(f"{self._label} step {step:,}{f' of {of:,}' if of else ''}: {shown}")

    def flush(self) -> None:
        """Make all rows durable: before a state is saved, so that no row of its steps is missing after a power cut."""
        for path in (self._folder / name for name in _LINES):
            if path.exists():
                flush(path)
        flush(self._folder)

    def close(self) -> None:
        """Flush to disk and close."""
        self.flush()
        self._file.close()
        self._events.close()
        flush_all(self._folder / "tensorboard")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Events:
    """A TensorBoard event file.

    torch's SummaryWriter writes in a thread of its own, which prints a stack trace when the disk is full. Here the
    caller gets the error.
    """

    def __init__(self, folder: Path) -> None:
        # Only training needs them. (The names of generated code are not seen by pyright.)
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_folder(folder)
        now = time.time()
        self._event: Any = Event
        self._records = RecordWriter((folder / f"events.out.tfevents.{now:.6f}").open("wb"))
        self._records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, float], at: float) -> None:
        """Write the values of a step, logged at a time in seconds since 1970."""
        summary = {"value": [{"tag": name, "simple_value": value} for name, value in values.items()]}
        self._records.write(self._event(wall_time=at, step=step, summary=summary).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Flush and close."""
        self._records.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order, without lines that are incomplete (the last one, after a process was
    killed)."""
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
    rows = (row for row in read_metrics(path) if row["step"] <= step)
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_table(folder: Path, step: int, rows: Sequence[Mapping[str, Any]], name: str = TABLE) -> None:
    """Append rows, each with the step, to a stage's table of samples, or to another one."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)
