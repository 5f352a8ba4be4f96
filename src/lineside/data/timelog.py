"""The keys and times of a table that is joined by time, as arrays: three numbers and a hash for each row.

A time that the clock shows twice (daylight saving ends) makes the row doubtful: it may hold at either time, and a
frame there gets no row. Copies of a row are one row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineside.data.clocks import corrected, jumps
from lineside.data.joinreport import NO_END, JoinReport
from lineside.data.spans import FOREVER, Instants
from lineside.data.tabular import TABLES, Form, read_table
from lineside.data.taskfile import Join
from lineside.data.times import SECOND, Times, instants
from lineside.data.values import MISSING, key_text
from lineside.errors import LinesideError
from lineside.progress import track
from lineside.strict import nearest

BIG = 16 << 20  # bytes of a table whose reading takes seconds and shows its progress
_READ = ("key", "row", "clock", "content", "begin", "begin_late", "end", "end_late")
_KEPT = ("group", "row", "clock", "first", "last", "event")


class TimeLog:
    """The rows of a table by key and time. `keys`: value of `on` -> its number; `clocks`: names of the clocks."""

    def __init__(self, path: Path, spec: Join, form: Form, zone: tzinfo | None, report: JoinReport) -> None:
        """Raises LinesideError for a table that cannot be read, lacks a column, or has times with and without zone."""
        self.keys: dict[tuple[str, ...], int] = {}
        self.columns: dict[str, None] = {}
        self.clocks: dict[str, int] = {} if spec.clock else {"": 0}
        self._spec, self._zone, self._times, self._report = spec, zone, Times(spec.time_format), report
        self._zoned: dict[bool, int] = {}  # whether times have a zone -> a row that shows it
        self._read: dict[str, array[int]] = {name: array("q") for name in _READ}
        self._read_rows(path, form)
        if len(self._zoned) > 1:
            raise LinesideError(
                f"{path}: row {self._zoned[True]} has a time with a zone, row {self._zoned[False]} one without: set "
                "`time_zone` in this join for those without"
            )
        self.zoned = next(iter(self._zoned), None)  # None: no time at all
        read = {name: np.frombuffer(values, np.int64) for name, values in self._read.items()}
        plain = read["begin"] == read["begin_late"]
        report.jump = jumps(*(read[name][plain] for name in ("key", "begin", "row")))
        self._rows = self._spans(read)
        self.sort()

    def _read_rows(self, path: Path, form: Form) -> None:
        spec, report = self._spec, self._report
        self._timed = [name for name in (spec.time or spec.start, spec.end) if name]
        named = [*spec.keys.values(), *self._timed, *([spec.clock] if spec.clock else [])]
        later: list[tuple[int, Mapping[str, Any]]] = []  # rows whose time others may show how to read
        for number, row in progress(path, form):
            report.rows += 1
            if isinstance(row, str):
                report.unused("cannot be read", f"row {number} ({row})")
                continue
            if not row.keys() <= self.columns.keys():
                if not self.columns:
                    need(path, named, row)
                self.columns |= dict.fromkeys(row)
            try:
                self._add(number, row)
            except _Unusable:
                later.append((number, row))
        try:
            self._times.check()
        except ValueError as error:
            raise LinesideError(f"{path}: the time {error}: set `time_format` in this join") from error
        for number, row in later:
            try:
                self._add(number, row)
            except _Unusable as error:
                report.unused(error.args[0], f"row {number}" + (f" ({error.args[1]})" if error.args[1:] else ""))

    def _add(self, number: int, row: Mapping[str, Any]) -> None:
        """Raises _Unusable(reason, detail)."""
        spec, read = self._spec, self._read
        try:
            key = tuple(text_of(row[name]) for name in spec.keys.values())
            clock = key_text(row[spec.clock]) if spec.clock else ""
            moments = [self._moments(number, name, row[name]) for name in self._timed]
        except KeyError as error:
            raise _Unusable(f"lack the column {error}") from None
        begin, end = moments[0], moments[1] if len(moments) > 1 else (FOREVER,)
        if not begin:
            raise _Unusable(f"have no {self._timed[0]}")
        end = end or (FOREVER,)  # still open
        if end[-1] < begin[0]:
            raise _Unusable("end before they start")
        read["key"].append(self.keys.setdefault(key, len(self.keys)))
        read["clock"].append(self.clocks.setdefault(clock, len(self.clocks)))
        read["row"].append(number)
        read["content"].append(hash(tuple(map(str, row.values()))))
        read["begin"].append(begin[0])
        read["begin_late"].append(begin[-1])
        read["end"].append(end[0])
        read["end_late"].append(end[-1])

    def _moments(self, number: int, name: str, value: Any) -> tuple[int, ...]:
        """The instants of a time; () for an empty cell."""
        if not (text := text_of(value)):
            return ()
        try:
            self._times.note(text)
            moment = self._times.read(text)
            self._zoned.setdefault(moment.tzinfo is not None or self._zone is not None, number)
            return instants(moment, self._zone)
        except ValueError as error:
            raise _Unusable(f"have a time in {name} that cannot be used", str(error)) from None

    def _spans(self, read: Mapping[str, Instants]) -> dict[str, Instants]:
        """The rows with the first and the last moment at which each holds, the doubtful ones in groups of their own."""
        spec = self._spec
        order = np.lexsort((read["content"], read["end"], read["begin"], read["key"]))
        order = order[_new(*(read[name][order] for name in ("key", "begin", "end", "content")))]
        key, row, clock, _, begin, begin_late, end, end_late = (read[name][order] for name in _READ)
        if spec.time is not None:
            wide = round((spec.within or 0.0) * SECOND)
            early, late = (0 if spec.side == "before" else wide), (0 if spec.side == "after" else wide)
            sure = begin == begin_late
            parts = [(sure, 0, begin), (~sure, 1, begin), (~sure, 1, begin_late)]
            spans = [(keep, doubt, event - early, event + late, event) for keep, doubt, event in parts]
        else:
            if spec.end is None:
                end, end_late = _until_next(key, begin, begin_late)
            else:
                self._tell_open(key, row, begin, end)
            holds = [(0, begin_late, end), (1, begin, begin_late), (1, end, end_late)]
            spans = [(last > first, doubt, first, last - 1, first) for doubt, first, last in holds]
        columns = [(2 * key + doubt, row, clock, first, last, event) for _, doubt, first, last, event in spans]
        return {
            name: np.concatenate([part[place][span[0]] for part, span in zip(columns, spans)])
            for place, name in enumerate(_KEPT)
        }

    def _tell_open(self, key: Instants, row: Instants, begin: Instants, end: Instants) -> None:
        """Note rows without an end after which other rows of their key start. All four are ordered by key and start."""
        followed = np.append((key[1:] == key[:-1]) & (begin[1:] > begin[:-1]), False)[: len(key)]
        for number in sorted(row[(end == FOREVER) & followed].tolist()):
            self._report.unused(NO_END, f"row {number}")

    def sort(self) -> None:
        """Order the rows by key and time."""
        rows = self._rows
        order = np.lexsort((rows["last"], rows["first"], rows["group"]))
        self._rows = {name: values[order] for name, values in rows.items()}
        self._bounds = np.searchsorted(self._rows["group"], np.arange(2 * len(self.keys) + 1))

    def part(self, key: int, *, doubtful: bool = False, clock: int | None = None) -> dict[str, Instants]:
        """The rows of a key: `row` (number), `first`, `last`, `event`."""
        group = 2 * key + doubtful
        found = {name: values[self._bounds[group] : self._bounds[group + 1]] for name, values in self._rows.items()}
        if clock is None or len(self.clocks) == 1:
            return found
        mine = found["clock"] == clock
        return {name: values[mine] for name, values in found.items()}

    def shift(self, clock: int, seconds: float, drift: float, middle: int) -> None:
        """Take the offset off the times of a clock: `seconds` at the instant `middle`, and `drift` seconds a day more.
        `sort` must follow."""
        mine = self._rows["clock"] == clock
        for name in ("first", "last", "event"):
            times = self._rows[name]
            self._rows[name] = np.where(mine, corrected(times, seconds, drift, middle), times)

    def range(self) -> tuple[int, int] | None:
        """The first and the last moment of the table; None if it has no times."""
        first, last = self._rows["first"], self._rows["last"]
        if not len(first):
            return None
        return int(first.min()), int(max(first.max(), last[last < FOREVER // 2].max(initial=0)))


class _Unusable(Exception):
    """Why a row is not used: the reason, and the detail for an example."""


def progress(path: Path, form: Form) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a further table; a big one shows its progress. Raises LinesideError for a file that is no table."""
    if not path.name.lower().endswith(TABLES) and path.suffix.lower() in (".parquet", ".xlsx", ".xls", ".ods", ".gz"):
        raise LinesideError(f"{path}: a table that is joined is a text file ({', '.join(TABLES)}): save it as CSV")
    rows = read_table(path, form)
    big = path.is_file() and path.stat().st_size >= BIG
    return track(rows, total=None, unit="rows", label=f"join {path.name}") if big else rows


def need(path: Path, names: Sequence[str], row: Mapping[str, Any]) -> None:
    """Raises LinesideError for a column that the table lacks, with the nearest one."""
    for name in names:
        if name not in row:
            raise LinesideError(f"{path}: no column {name!r}{nearest(name, row)}; it has {', '.join(row)}")


def text_of(value: Any) -> str:
    """A key or a time as text; "" for an empty cell and for words that programs write into one."""
    text = key_text(value)
    return "" if text in MISSING else text


def _new(*columns: Instants) -> npt.NDArray[np.bool_]:
    """Where an ordered row differs from the one before it."""
    same = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return np.append(True, ~same)[: len(columns[0])]


def _until_next(key: Instants, begin: Instants, begin_late: Instants) -> tuple[Instants, Instants]:
    """(earliest, latest) start of the next row of the same key; FOREVER after the last. Rows that start at one moment
    all hold until the next."""
    if not len(key):
        return begin, begin_late
    new = _new(key, begin)
    starts = np.flatnonzero(new)
    following = np.cumsum(new)  # the number of the next start
    at = starts[np.minimum(following, len(starts) - 1)]
    ends = (following >= len(starts)) | (key[at] != key)
    return np.where(ends, FOREVER, begin[at]), np.where(ends, FOREVER, begin_late[at])
