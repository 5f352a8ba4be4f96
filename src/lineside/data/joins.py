"""Further tables beside the frames: joined by key (`Lookup`), or by the time of the frame (`TimeJoin`).

By time: the event within two seconds of a frame, or what was open at its time (`lineside.data.spans`). The table is
read twice, first for its keys and times (`lineside.data.timelog`), then for the rows that frames have, so that memory
does not grow with the length of its rows. The clocks of both sides are compared (`lineside.data.clocks`). No unclear
match is taken: a frame that no row matches, or several, has the columns empty, and is counted with its place.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lineside.data.clocks import NONE_NEAR, Jump, Offset, Rows, estimate, jumps
from lineside.data.joinreport import (
    NO_KEY,
    NO_PARTNER,
    NO_ROW,
    NO_TIME,
    SEVERAL_ROWS,
    TAKEN,
    TWICE,
    UNCLEAR,
    JoinReport,
)
from lineside.data.spans import NONE, SEVERAL, holding, match, nearest_only
from lineside.data.taskfile import Join, Table
from lineside.data.timelog import TimeLog, need, progress
from lineside.data.times import read_zone, told_instant, told_seconds
from lineside.data.values import key_text
from lineside.errors import LinesideError

SHOWN = 6  # keys, and rows of an unclear match


class BadRow(Exception):
    """The reason why a row is not a frame."""


@dataclass(frozen=True, slots=True)
class FrameTime:
    """When a frame was taken: one instant, two for a time that the clock shows twice, or none for a `reason`."""

    instants: tuple[int, ...] = ()
    zoned: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """A frame that asks for its row: its position among the inputs, its place for messages, its key and time."""

    position: int
    place: str
    key: tuple[str, ...]
    time: FrameTime


@dataclass(frozen=True, slots=True)
class _Found:
    frame: Asking
    row: int  # its number in the further table
    distance: int  # microseconds


class Lookup:
    """A table of which a row is found by its key alone. A frame without one is refused."""

    def __init__(self, folder: Path, spec: Join, table: Table) -> None:
        """Raises LinesideError for a bad row, or a key that occurs twice."""
        self.spec, self._path = spec, folder / spec.file
        self.report = JoinReport(spec.file, f"on {_names(spec.keys)}")
        self._rows: dict[tuple[str, ...], dict[str, Any]] = {}
        self._lacking: set[tuple[str, ...]] = set()
        theirs = list(spec.keys.values())
        for number, row in progress(self._path, table.form):
            if isinstance(row, str):
                raise LinesideError(f"{self._path}, row {number}: {row}")
            need(self._path, theirs, row)
            key = tuple(key_text(row[name]) for name in theirs)
            if key in self._rows:
                raise LinesideError(f"{self._path}, row {number}: {_told(theirs, key)} occurs twice")
            self._rows[key] = _named(spec, row)
        self.report.rows = len(self._rows)

    def partner(self, position: int, place: str, values: Mapping[str, Any], *, count: bool) -> Mapping[str, Any]:
        """The columns of a frame's row; `count` it in the report. Raises BadRow if it has none."""
        key = tuple(key_text(values[name]) for name in self.spec.keys)
        found = self._rows.get(key)
        if count:
            self.report.frames += 1
            self.report.matched += found is not None
        if found is None:
            if count:
                self._lacking.add(key)
                self.report.without(NO_PARTNER, f"{place} ({_told(self.spec.keys, key)})")
            raise BadRow(f"{_told(self.spec.keys, key)} has no row in {self.spec.file}")
        return found

    def check(self) -> None:
        """After all frames were counted. Raises LinesideError if none has a row."""
        if self.report.frames and not self.report.matched:
            raise LinesideError(
                f"{self._path}: no frame has a row in it: {_names(self.spec.keys)} of the frames is "
                f"{_some(self._lacking)}; {_names(self.spec.keys.values())} in {self.spec.file} is {_some(self._rows)}"
                f"{_alike(self._lacking, self._rows)}"
            )


class TimeJoin:
    """A table of which a row is found by the time of the frame, and by its key if there is one."""

    def __init__(self, folder: Path, spec: Join, table: Table, frames: Iterable[Asking]) -> None:
        """Raises LinesideError if a file or a column is missing, if the times of both sides cannot be compared, if no
        frame has a row, or if an offset is to be estimated and is not clear."""
        self.spec, self._path = spec, folder / spec.file
        self.report = JoinReport(spec.file, _how(spec))
        zone = spec.time_zone or table.time_zone
        self._zone = read_zone(zone) if zone else None
        self._log = TimeLog(self._path, spec, table.form, self._zone, self.report)
        self._frames = list(frames)
        self.report.frames = len(self._frames)
        self._zoned = self._comparable()
        self.report.frames_jump = self._jump_of_frames()
        found = {match.frame.position: match.row for match in self._matches()}
        self.report.matched = len(found)
        self._check(found)
        wanted = set(found.values())
        rows = {n: row for n, row in progress(self._path, table.form) if n in wanted and not isinstance(row, str)}
        self._empty = _named(spec, dict.fromkeys(self._log.columns))
        self._rows = {position: {**self._empty, **_named(spec, rows[row])} for position, row in found.items()}
        del self._log, self._frames

    def partner(self, position: int, place: str, values: Mapping[str, Any], *, count: bool) -> Mapping[str, Any]:
        """The columns of a frame's row; empty ones if it has none."""
        return self._rows.get(position, self._empty)

    def check(self) -> None:
        """Nothing is left to check."""

    def _jump_of_frames(self) -> Jump | None:
        """Where the times of the frames of one key go backwards, in the order of the inputs."""
        clear = [frame for frame in self._frames if len(frame.time.instants) == 1]
        keys: dict[tuple[str, ...], int] = {}
        codes = [keys.setdefault(frame.key, len(keys)) for frame in clear]
        times, rows = [frame.time.instants[0] for frame in clear], [frame.position + 1 for frame in clear]
        return jumps(*(np.array(values, np.int64) for values in (codes, times, rows)))

    def _comparable(self) -> bool:
        """Whether times have a zone. Raises LinesideError if only some have: nobody knows how far they are apart."""
        ours = {frame.time.zoned for frame in self._frames if frame.time.instants}
        theirs = self._log.zoned
        if len(ours) > 1:
            raise LinesideError(
                f"{self._path}: some times of the frames have a zone and some have none: set `time_zone` in the table "
                "section for those that have none"
            )
        if ours and theirs is not None and theirs not in ours:
            lacking, where = ("the frames", "the table section") if theirs else (self.spec.file, "this join")
            raise LinesideError(
                f"{self._path}: the times of {lacking} have no zone, and those of the other side have one: set "
                f"`time_zone` in {where}, such as time_zone: Europe/Berlin"
            )
        return True in ours

    def _matches(self) -> list[_Found]:
        """The frames with their rows; the other frames are counted in the report."""
        by_key: defaultdict[int, list[Asking]] = defaultdict(list)
        for frame in self._frames:
            if len(frame.time.instants) != 1:
                why = f" ({frame.time.reason})" if frame.time.reason else ""
                self.report.without(TWICE if frame.time.instants else NO_TIME, f"{frame.place}{why}")
            elif "" in frame.key:
                self.report.without(NO_KEY, frame.place)
            elif (key := self._log.keys.get(frame.key)) is None:
                self.report.without(NO_PARTNER, f"{frame.place} ({_told(self.spec.keys, frame.key)})")
            else:
                by_key[key].append(frame)
        self._compare_clocks(by_key)
        found = [match for key, frames in by_key.items() for match in self._of_key(key, frames)]
        return self._shared(found) if self.spec.time is not None else found

    def _of_key(self, key: int, frames: list[Asking]) -> Iterator[_Found]:
        times = np.array([frame.time.instants[0] for frame in frames], np.int64)
        rows, doubts = self._log.part(key), self._log.part(key, doubtful=True)
        first, last, event = rows["first"], rows["last"], rows["event"]
        chosen = match(times, first, last, self.spec.several, event)
        doubtful = match(times, doubts["first"], doubts["last"]) != NONE
        for frame, time, index, doubt in zip(frames, times.tolist(), chosen.tolist(), doubtful.tolist()):
            if doubt:
                self.report.without(UNCLEAR, self._told_frame(frame))
            elif index == NONE:
                self.report.without(NO_ROW, self._told_frame(frame))
            elif index == SEVERAL:
                several = rows["row"][holding(time, first, last)].tolist()
                more = f" and {len(several) - SHOWN} more" if len(several) > SHOWN else ""
                told = ", ".join(map(str, several[:SHOWN])) + more
                self.report.without(SEVERAL_ROWS, f"{self._told_frame(frame)} rows {told}")
            else:
                yield _Found(frame, int(rows["row"][index]), abs(int(event[index]) - time))

    def _shared(self, found: list[_Found]) -> list[_Found]:
        """The matches; with `once` an event belongs to the nearest frame only, else those of several are counted."""
        rows = np.array([match.row for match in found], np.int64)
        if not self.spec.once:
            self.report.shared = int((np.unique(rows, return_counts=True)[1] > 1).sum())
            return found
        kept = nearest_only(rows, np.array([match.distance for match in found], np.int64)).tolist()
        for given, keeps in zip(found, kept):
            if not keeps:
                self.report.without(TAKEN, f"{self._told_frame(given.frame)} row {given.row}")
        return [given for given, keeps in zip(found, kept) if keeps]

    def _compare_clocks(self, by_key: Mapping[int, list[Asking]]) -> None:
        """Estimate the offset of each clock, and take it off its times if that is asked."""
        log, offset = self._log, self.spec.offset
        times = {
            key: np.sort(np.array([frame.time.instants[0] for frame in frames], np.int64))
            for key, frames in by_key.items()
        }
        for name, clock in log.clocks.items():
            groups: list[Rows] = []
            for key, frames in times.items():
                rows = log.part(key, clock=clock)
                event = rows["event"] if self.spec.time is not None else None
                groups.append(Rows(frames, rows["first"], rows["last"], event))
            if not any(len(group.first) for group in groups):
                continue  # a clock of cells that have no frames here
            found = self.report.offsets[name] = estimate(groups).dated(self._clock)
            if offset == "auto" and (found.seconds is None or found.step):
                raise LinesideError(f"{self._path}: offset: auto: {self._unclear(name, found)}")
            taken = found.seconds if offset == "auto" else offset
            if taken:
                self.report.applied[name] = taken
                log.shift(clock, taken, found.drift if offset == "auto" else 0.0, found.middle)
        log.sort()

    def _unclear(self, name: str, found: Offset) -> str:
        """Why an offset cannot be taken off, and what to do."""
        file, report = self.spec.file, self.report
        told = f"the offset of its clock{f' {name!r}' if name else ''} is not clear: {found.step or found.reason}. "
        if found.reason.startswith(NONE_NEAR):
            return f"{told}{self._sides()}"
        if not found.step:
            return f"{told}Write it, such as `offset: 3.2 s`, or leave `offset` out"
        told += f"In {file} {report.jump.told()}. " if report.jump else ""
        if report.frames_jump:
            return f"{told}In the frames' table {report.frames_jump.told()}: correct the times of the frames"
        return (
            f"{told}Correct its times; or add a column to {file} that tells the rows before from those after, and name "
            "it in `clock`: each part then has an offset of its own"
        )

    def _check(self, found: Mapping[int, int]) -> None:
        """Raises LinesideError if no frame has a row, with the times and keys of both sides."""
        if found or not self._frames:
            return
        why = [f"{n:,} frames {reason}" for reason, n in self.report.outcomes.most_common(3)]
        why += [f"{n:,} rows {reason}" for reason, n in self.report.unread.most_common(2)]
        clocks = [offset.told() for offset in self.report.offsets.values() if offset.seconds]
        hint = f". Its clock may be {clocks[0]}: see `offset` and `time_zone`" if clocks else ""
        raise LinesideError(f"{self._path}: no frame has a row in it ({'; '.join(why)}). {self._sides()}{hint}")

    def _sides(self) -> str:
        """The times and keys of both sides."""
        spec, log = self.spec, self._log
        times = [frame.time.instants[0] for frame in self._frames if frame.time.instants]
        ours = f"{self._clock(min(times))} to {self._clock(max(times))}" if times else "no time"
        span = log.range()
        theirs = f"{self._clock(span[0])} to {self._clock(span[1])}" if span else "no time"
        if not spec.keys:
            return f"The frames have {ours}; {spec.file} has {theirs}"
        keys = {frame.key for frame in self._frames}
        ours += f", {_names(spec.keys)} {_some(keys)}"
        theirs += f", {_names(spec.keys.values())} {_some(log.keys)}"
        return f"The frames have {ours}; {spec.file} has {theirs}{_alike(keys, log.keys)}"

    def _told_frame(self, frame: Asking) -> str:
        key = f", {_told(self.spec.keys, frame.key)}" if frame.key else ""
        return f"{frame.place} ({self._clock(frame.time.instants[0])}{key})"

    def _clock(self, instant: int) -> str:
        return told_instant(instant, self._zone, zoned=self._zoned)


def _how(spec: Join) -> str:
    on = f", on {_names(spec.keys)}" if spec.keys else ""
    several = "" if spec.several == "refuse" else f", several: {spec.several}"
    if spec.time is None:
        return f"open from {spec.start} to {spec.end or 'the next row'}{on}{several}"
    where = {"either": "before or after", "before": "before", "after": "after"}[spec.side]
    return f"{spec.time} within {told_seconds(spec.within or 0.0)} {where} the frame{on}{several}"


def _named(spec: Join, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row by the names that they have beside the frames'."""
    return {f"{spec.name}.{name}": value for name, value in row.items()} if spec.name else dict(row)


def _names(columns: Iterable[str]) -> str:
    return " and ".join(columns)


def _told(columns: Iterable[str], key: Iterable[str]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in zip(columns, key))


def _alike(ours: Collection[tuple[str, ...]], theirs: Collection[tuple[str, ...]]) -> str:
    """Keys of both sides that differ only in how they are written, for a message; "" if there are none."""
    others = {_loose(key): key for key in theirs}
    for key in sorted(ours):
        if (other := others.get(_loose(key), key)) != key:
            ways = "in capitals, spaces, dashes or leading zeros"
            return (
                f". {' / '.join(map(repr, key))} and {' / '.join(map(repr, other))} differ only {ways}: make them equal"
            )
    return ""


def _loose(key: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(re.sub(r"[\s_-]", "", part.casefold()).lstrip("0") for part in key)


def _some(keys: Collection[tuple[str, ...]]) -> str:
    """The first keys in order."""
    told = [" / ".join(map(repr, key)) for key in sorted(keys)[:SHOWN]]
    more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
    return ", ".join(told) + more if told else "none"
