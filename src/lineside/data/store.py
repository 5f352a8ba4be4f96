"""Frames and samples as a folder of Parquet shards. They are streamed and shuffled; the data set is never in memory.

One process may write to a folder at a time; any number may read. A folder never holds a partial shard.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from lineside.data import rows
from lineside.data.shards import (
    FRAMES,
    GROUPS_KEY,
    SAMPLES,
    ShardWriter,
    T,
    closing,
    count_rows,
    open_shard,
    parse,
    read_row_group,
    scan,
)
from lineside.errors import LinesideError
from lineside.strict import read_record
from lineside.types import SPLITS, Frame, Sample

SUMMARY = "label.json"  # the account of `label` beside its samples
WINDOW_ROWS = 8192  # about so many rows are shuffled together by stream_frame_samples; this limits its memory


def write_frames(folder: Path, frames: Iterable[Frame], *, shard_rows: int = 512) -> int:
    """Append frames as shards `frames-00000.parquet`, numbered after existing ones; returns the number written.

    Raises LinesideError when the disk is full or the folder cannot be written; finished shards stay, a partial one is
    removed.
    """
    writer = ShardWriter(folder, "frames", FRAMES, shard_rows)
    with closing([writer]):
        for frame in frames:
            writer.add(frame)
    return writer.written


def write_samples(folder: Path, samples: Iterable[Sample], *, shard_rows: int = 4096) -> int:
    """Append samples as shards `<kind>-<split>-00000.parquet`; returns the number written.

    Neighbouring samples of one frame become one group and stay in one row group. Errors as `write_frames`.
    """
    with SampleWriter(folder, shard_rows=shard_rows) as writer:
        for sample in samples:
            writer.add(sample)
    return writer.written


class SampleWriter:
    """`write_samples` for samples that come one by one; a `with` block without error finishes the shards."""

    def __init__(self, folder: Path, *, shard_rows: int = 4096) -> None:
        self._folder, self._shard_rows = folder, shard_rows
        self._writers: dict[str, ShardWriter[Sample]] = {}
        self._stack = ExitStack()

    def add(self, sample: Sample) -> None:
        """Append one sample to the shards of its kind and split."""
        name = f"{sample.kind}-{sample.split}"
        if name not in self._writers:
            self._writers[name] = ShardWriter(self._folder, name, SAMPLES, self._shard_rows)
        self._writers[name].add(sample)

    @property
    def written(self) -> int:
        """Rows in finished shards."""
        return sum(writer.written for writer in self._writers.values())

    def __enter__(self) -> SampleWriter:
        self._stack.enter_context(closing(self._writers.values()))
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)


def read_frames(folder: Path, *, split: str | None = None) -> Iterator[Frame]:
    """Stream the frames of a folder in order. Raises LinesideError naming file and row of a bad one."""
    for path in frame_shards(folder):
        yield from _sound(scan(path, FRAMES, split=split))


def scan_frames(folder: Path) -> Iterator[tuple[Path, int, Frame | LinesideError]]:
    """(shard, row, frame or the error of that row) in order, so that one bad row does not stop the others.

    Raises LinesideError when a whole shard cannot be read.
    """
    for path in frame_shards(folder):
        yield from ((path, number, item) for number, item in scan(path, FRAMES))


def read_samples(folder: Path, *, kind: str | None = None, split: str | None = None) -> Iterator[Sample]:
    """Stream samples shard by shard; equal pictures of a row group share one bytes object. Errors as `read_frames`."""
    for path in sample_shards(folder, kind=kind, split=split):
        yield from _sound(scan(path, SAMPLES))


def read_columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The named plain columns of every row of a shard of samples; pictures are not read. A column that the shard does
    not have, since an older version wrote it, is None.

    Raises LinesideError when the shard cannot be read.
    """
    with open_shard(path, SAMPLES) as shard:
        for index in range(shard.num_row_groups):
            for row in read_row_group(shard, path, index, list(names)).to_pylist():
                yield {name: row.get(name) for name in names}


def stream_frame_samples(
    folder: Path, *, kind: str, split: str, seed: int, epoch: int, skip: int = 0, times: Sequence[int] | None = None
) -> Iterator[tuple[Sample, ...]]:
    """All samples of one frame together, frames in an order shuffled by (seed, epoch); the first `skip` are skipped.

    The frames of a few row groups are shuffled at a time (`_windows`), so memory does not grow with the stream. The
    order is planned from the shards' metadata: a stream with `skip=n` equals the full one from its n-th group on and
    reads no skipped picture. `times`: how often each frame comes, in the order of the shards; None: once.
    Raises LinesideError when there are no such samples, or a shard is damaged.
    """
    rng = random.Random(f"{seed}/{epoch}")
    planned = [part for path in _some_shards(folder, kind, split) for part in _parts(path)]
    if times is not None:
        rest = iter(times)
        for part in planned:
            part.times = array("I", islice(rest, len(part.groups)))
    windows = _windows(planned, rng)
    del planned  # a row group is let go when its window is over
    for parts in windows:
        window = []
        while parts:
            part, start = parts.pop(), 0
            for size, count in zip(part.groups, part.times or repeat(1)):
                window += [(part, start, size)] * count
                start += size
        rng.shuffle(window)
        for part, start, size in window[skip:]:
            yield part.samples(start, size)
        skip = max(0, skip - len(window))


def _windows(parts: Sequence[_Part], rng: random.Random) -> list[list[_Part]]:
    """Row groups to shuffle together, about WINDOW_ROWS rows each.

    Frames of one kind are stored together. So the row groups are divided in order into runs, each as long as the number
    of windows, and every window takes one row group of each run. Each window is then similar to the whole. With
    randomly drawn row groups, a kind with a third of the data could be missing from a window.
    """
    count = min(len(parts), -(-sum(sum(part.groups) for part in parts) // WINDOW_ROWS))
    windows: list[list[_Part]] = [[] for _ in range(count)]
    for start in range(0, len(parts), count):
        run = list(parts[start : start + count])
        rng.shuffle(run)
        for window, part in zip(windows, run):
            window.append(part)
    rng.shuffle(windows)
    return windows


def count_samples(folder: Path, *, kind: str, split: str) -> int:
    """Number of samples, from the shards' footers alone; 0 where there are none."""
    return count_rows(sample_shards(folder, kind=kind, split=split))


def count_frames(folder: Path) -> int:
    """Number of frames of all splits, from the shards' footers alone."""
    return count_rows(frame_shards(folder))


def count_frames_with(folder: Path, *, kind: str, split: str) -> int:
    """Number of groups that one epoch of `stream_frame_samples` gives, from the shards' footers alone."""
    return sum(len(part.groups) for path in sample_shards(folder, kind=kind, split=split) for part in _parts(path))


def tasks_of_frames(folder: Path, *, kind: str, split: str) -> list[frozenset[str]]:
    """The tasks (family/task) of each frame with such samples, in the order of the shards. Reads no picture."""
    found: list[frozenset[str]] = []
    for path in sample_shards(folder, kind=kind, split=split):
        tasks = (f"{row['family']}/{row['task']}" for row in read_columns(path, ("family", "task")))
        found += [frozenset(islice(tasks, size)) for part in _parts(path) for size in part.groups]
    return found


def account_of(samples: Path) -> dict[str, Any] | None:
    """The account that `label` wrote beside its samples; None where there is none, or none that can be read."""
    try:
        return read_record(dict[str, Any], samples / SUMMARY, "")
    except (OSError, LinesideError):  # no folder of `label`, or one that is still written
        return None


def frame_shards(folder: Path) -> list[Path]:
    """Shards of frames in the order written. Raises LinesideError when there are none."""
    shards = sorted(folder.glob("frames-*.parquet"))
    if not shards:
        raise LinesideError(f"{folder}: no frames (frames-*.parquet) here; make some with `lineside simulate`")
    return shards


def sample_shards(folder: Path, *, kind: str | None = None, split: str | None = None) -> list[Path]:
    """Shards of samples, by kind, split and number. Raises LinesideError when the folder is missing."""
    if not folder.is_dir():
        raise LinesideError(f"{folder}: no such folder; samples are made with `lineside label`")
    kinds = rows.KINDS if kind is None else (kind,)
    splits = SPLITS if split is None else (split,)
    return [path for k in kinds for s in splits for path in sorted(folder.glob(f"{k}-{s}-[0-9]*.parquet"))]


@dataclass
class _Part:
    """One row group of a shard, read when the first of its groups is asked for."""

    path: Path
    index: int
    groups: array[int]  # rows of each frame, in order
    first: int  # row number in the shard of its first row
    times: array[int] | None = None  # how often each frame comes; None: once
    _table: pa.Table | None = field(default=None, repr=False)

    def samples(self, start: int, size: int) -> tuple[Sample, ...]:
        table = self._table
        if table is None:
            with open_shard(self.path, SAMPLES) as shard:
                table = self._table = read_row_group(shard, self.path, self.index)
        return tuple(parse(table.slice(start, size), SAMPLES, self.path, self.first + start))


def _parts(path: Path) -> list[_Part]:
    """The row groups of a shard with their group sizes: from our writer's metadata, else by comparing pictures."""
    with open_shard(path, SAMPLES) as shard:
        sizes = [shard.metadata.row_group(i).num_rows for i in range(shard.num_row_groups)]
        noted = (shard.metadata.metadata or {}).get(GROUPS_KEY.encode())
        read = (read_row_group(shard, path, i, ["images", "roles"]) for i in range(len(sizes)))
        counted = [] if noted else [_group_sizes(table) for table in read]
    try:
        groups = [array("I", group) for group in (json.loads(noted) if noted else counted)]
    except (TypeError, ValueError, OverflowError, RecursionError):  # no lists of counts
        groups = []
    if [sum(group) for group in groups] != sizes:
        raise LinesideError(f"{path}: its list of groups does not match its rows; write the shard again")
    return [_Part(path, i, group, sum(sizes[:i])) for i, group in enumerate(groups)]


def _group_sizes(table: pa.Table) -> list[int]:
    sizes: list[int] = []
    last: Any = object()
    for row in rows.sample_rows(table):
        pictures = row["images"] or []
        roles = row["roles"] or ["frame"] * len(pictures)
        pictures = [data for (data, _), role in zip(pictures, roles) if role != "reference"]
        if sizes and pictures == last:
            sizes[-1] += 1
        else:
            sizes.append(1)
        last = pictures
    return sizes


def _sound(scanned: Iterator[tuple[int, T | LinesideError]]) -> Iterator[T]:
    for _, item in scanned:
        if isinstance(item, LinesideError):
            raise item
        yield item


def _some_shards(folder: Path, kind: str, split: str) -> list[Path]:
    shards = sample_shards(folder, kind=kind, split=split)
    if not shards:
        raise LinesideError(
            f"{folder}: no {kind} samples of split {split} ({kind}-{split}-*.parquet); make them with `lineside label`"
        )
    return shards
