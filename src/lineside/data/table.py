"""A folder of pictures with a table of records, as frames: the CSV or JSON-lines file that a user already has.

How the table is read stands in the task file's `table` section, so a new folder needs no code. The table is read twice,
once for the values that its columns take and once for the frames; rows are never all held. A row that cannot be a frame
is given back as `Rejected` with its number and the reason.
"""

from __future__ import annotations

import bisect
import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lineside.data.splits import split_of, stable_hash, unit
from lineside.data.strict import nearest
from lineside.data.taskfile import Column, Distractors, Join, Table
from lineside.errors import LinesideError
from lineside.images import MAX_BYTES, for_the_web
from lineside.types import Frame, Image, Meta, Split

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that did not become a frame: its name, and why."""

    name: str
    reason: str


class _BadRow(Exception):
    """Why one row is no frame."""


class TableFrames:
    """The frames of a folder with a table. Opening it checks the columns and collects the values of the distractors."""

    def __init__(self, folder: Path, table: Table) -> None:
        """Raises LinesideError when a file is missing, or a column that the mapping names is not in the table."""
        self.folder, self.table = folder, table
        self._path = folder / table.file
        self._joins = [(join, _read_join(folder, join)) for join in table.join]
        self._columns = {name: Column(column=c) if isinstance(c, str) else c for name, c in table.columns.items()}
        named = [table.image, table.scene, table.cell, table.camera, table.time, table.week, table.skus]
        named += [table.split.column] if table.split else []
        self._named = [name for name in named if name] + [column.column for column in self._columns.values()]
        self._checked = False  # whether a row with all columns was seen
        self.rows = 0
        self._values: dict[str, _Values] = {d.name: _Values() for d in table.distractors}
        for row in self._rows():
            self.rows += 1
            if not isinstance(row, Rejected):
                record = self._record(row[1])
                for distractors in table.distractors:
                    self._values[distractors.name].add(*_own_and_near(distractors, record, self._path))
        if not self.rows:
            raise LinesideError(f"{self._path}: no rows; expected one for each picture")

    def records(self) -> Iterator[dict[str, Any]]:
        """The record of each row that has one, without its picture."""
        for row in self._rows():
            if not isinstance(row, Rejected):
                yield self._record(row[1])

    def frames(self) -> Iterator[Frame | Rejected]:
        """Each row in order, as a frame with its picture or as what is wrong with it."""
        seen: set[int] = set()
        for row in self._rows():
            if isinstance(row, Rejected):
                yield row
                continue
            number, values = row
            name = str(values.get(self.table.image) or "")
            try:
                key = stable_hash(name)
                if key in seen:
                    raise _BadRow("listed twice: one row for each picture")
                seen.add(key)
                yield self._frame(name, values)
            except (_BadRow, LinesideError) as error:
                yield Rejected(f"{self._path}, row {number}: {name or 'no name'}", str(error))

    def _frame(self, name: str, values: Mapping[str, Any]) -> Frame:
        record = self._record(values)
        record |= {d.name: self._values[d.name].draw(d, name, record, self._path) for d in self.table.distractors}
        scene = self._text(values, self.table.scene) or name
        week = self._text(values, self.table.week) or "0"
        if not re.fullmatch("[0-9]{1,6}", week):
            raise _BadRow(f"week {week!r} is no number")
        skus = self._text(values, self.table.skus)
        meta = Meta(
            scene=scene,
            cell=self._text(values, self.table.cell),
            camera=self._text(values, self.table.camera),
            time=self._text(values, self.table.time),
            week=int(week),
            skus=tuple(skus.split("|")) if skus else (),
        )
        split = self._split(values, scene)
        return Frame(name, Image(self._picture(name), "frame", name), self.table.family, record, meta, split)

    def _picture(self, name: str) -> bytes:
        path = self.folder / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise _BadRow("the picture must lie inside the folder")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise _BadRow(f"image of {path.stat().st_size} bytes: at most {MAX_BYTES} are read")
            return for_the_web(path.read_bytes())
        except OSError as error:
            raise _BadRow(f"image cannot be read: {error.strerror}") from error

    def _split(self, values: Mapping[str, Any], scene: str) -> Split:
        if self.table.split is None:
            return split_of(scene)
        value = str(values[self.table.split.column])
        if value not in self.table.split.values:
            raise _BadRow(f"split {value!r} is not mapped: the task file knows {', '.join(self.table.split.values)}")
        return self.table.split.values[value]

    def _text(self, values: Mapping[str, Any], name: str | None) -> str:
        return "" if name is None or values[name] is None else str(values[name])

    def _record(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not self._columns:
            return dict(values)
        return {name: _value(column, values[column.column]) for name, column in self._columns.items()}

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]] | Rejected]:
        """(row number, joined row) or what is wrong with the row. The first row is number 1."""
        for number, row in _read_table(self._path):
            if isinstance(row, str):
                yield Rejected(f"{self._path}, row {number}", row)
                continue
            try:
                for join, other in self._joins:
                    self._need([join.on], row)
                    row = {**_partner(join, other, row), **row}
                self._need(self._named, row)
                for column in self._columns.values():
                    _value(column, row[column.column])
            except _BadRow as error:
                yield Rejected(f"{self._path}, row {number}", str(error))
                continue
            self._checked = True
            yield number, row

    def _need(self, names: Sequence[str], row: Mapping[str, Any]) -> None:
        """Columns lacking in the first good row are a mistake in the mapping; lacking later, in that row."""
        for name in names:
            if name not in row:
                problem = f"no column {name!r}{nearest(name, row)}; it has {', '.join(row)}"
                raise _BadRow(problem) if self._checked else LinesideError(f"{self._path}: {problem}")


class _Values:
    """The values that a distractor column takes, counted, overall and by the `near` column."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()
        self._near: defaultdict[Any, Counter[Any]] = defaultdict(Counter)

    def add(self, own: Any, near: Any) -> None:
        if own is not None:
            self._counts[own] += 1
            self._near[near][own] += 1

    def draw(self, spec: Distractors, frame_id: str, record: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
        """The row's own value, then `count` different others, each as likely as it is frequent."""
        own, near = _own_and_near(spec, record, path)
        if own is None:
            return []
        chosen: dict[Any, bool] = {own: True}
        for number in range(spec.count):
            close = spec.near is not None and unit(frame_id, spec.name, "near", number) < 0.5
            pools = [self._near[near], self._counts] if close else [self._counts]
            for pool in pools:
                others = sorted(((v, count) for v, count in pool.items() if v not in chosen), key=str)
                if others:
                    totals = list(accumulate(count for _, count in others))
                    at = unit(frame_id, spec.name, "value", number) * totals[-1]
                    chosen[others[bisect.bisect(totals, at)][0]] = False
                    break
        return [{"item": item, "same": same} for item, same in chosen.items()]


def _own_and_near(spec: Distractors, record: Mapping[str, Any], path: Path) -> tuple[Any, Any]:
    for name in (spec.column, spec.near):
        if name is not None and name not in record:
            raise LinesideError(f"{path}: distractors {spec.name!r}: no column {name!r}{nearest(name, record)}")
    return record[spec.column], record[spec.near] if spec.near else None


def _value(column: Column, raw: Any) -> Any:
    """A value of the record from one of the table; an empty cell is unknown (null)."""
    if raw is None or raw == "":
        return None
    if column.values is not None:
        return column.values.get(str(raw), column.otherwise)
    if column.type == "text":
        text = str(raw).strip()
        if column.words:
            text = " ".join(text.replace("-", " ").replace("_", " ").split())
        return " ".join(_SENTENCE.split(text)[: column.sentences]) if column.sentences else text
    if column.type == "list":
        return raw if isinstance(raw, list) else [part.strip() for part in str(raw).split("|")]
    if column.type == "bool":
        word = str(raw).strip().lower()
        if word not in _TRUE + _FALSE:
            raise _BadRow(f"column {column.column!r} holds {raw!r:.40}: expected true or false")
        return word in _TRUE
    try:
        number = float(raw)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _BadRow(f"column {column.column!r} holds {raw!r:.40}: expected a number")
    return int(number) if number.is_integer() else number


def _read_join(folder: Path, join: Join) -> dict[str, dict[str, Any]]:
    path, found = folder / join.file, {}
    for number, row in _read_table(path):
        if isinstance(row, str):
            raise LinesideError(f"{path}, row {number}: {row}")
        if join.on not in row:
            raise LinesideError(f"{path}: no column {join.on!r}{nearest(join.on, row)}; it has {', '.join(row)}")
        if str(row[join.on]) in found:
            raise LinesideError(f"{path}, row {number}: {join.on} {row[join.on]!r} stands here twice")
        found[str(row[join.on])] = row
    return found


def _partner(join: Join, other: Mapping[str, dict[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
    value = str(row[join.on])
    if value not in other:
        raise _BadRow(f"{join.on} {value!r} has no row in {join.file}")
    return other[value]


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row number from 1, row or what is wrong with it) of a CSV file, or of a JSON-lines file by its suffix."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _json_rows(file) if path.suffix in (".jsonl", ".ndjson") else _csv_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LinesideError(f"{path}: the table cannot be read ({error})") from error


def _csv_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    lines = csv.reader(file)
    header = next(lines, None)
    if not header:
        raise csv.Error("it is empty; expected a header and one row for each picture")
    for number, cells in enumerate(lines, start=1):
        if len(cells) == len(header):
            yield number, dict(zip(header, cells))
        elif cells:
            yield number, f"{len(cells)} fields where the header has {len(header)}"


def _json_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = json.loads(line)
                yield number, row if isinstance(row, dict) else "not a JSON object"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON ({error})"
