"""Rows with pictures as frames, by the mapping in the task file's `table` section. A new folder needs no code.

Rows of every reader (`lineside.data.readers`) are read twice, once for the values of their columns and once for the
frames, and never all held in memory. A row that cannot be a frame is returned as `Rejected` with its place and the
reason.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from lineside.data.folders import PictureFolder, Rejected, read_file
from lineside.data.joinreport import JoinReport
from lineside.data.joins import Asking, BadRow, FrameTime, Lookup, TimeJoin
from lineside.data.readers import Reader, Row, TableReader
from lineside.data.regions import cut
from lineside.data.reviewed import COLUMN as REVIEWED
from lineside.data.reviewed import Reviewed, corrected, read_cell
from lineside.data.splits import side_of
from lineside.data.tabular import delimiter_of
from lineside.data.taskfile import EXIF, PASS_ON, Column, Distractors, Join, Roi, Table
from lineside.data.template import known
from lineside.data.timelog import text_of
from lineside.data.times import NamePattern, Times, instants, read_zone
from lineside.data.values import (
    MISSING,
    ClassLabel,
    DecimalSign,
    decimal_text,
    key_text,
    read_number,
    skus_of,
    texts_of,
)
from lineside.errors import LinesideError
from lineside.hashing import SHARES, hash_uniform, stable_hash
from lineside.hashmap import HashMap
from lineside.images import exif_time, grey_bits, stored, undecodable
from lineside.progress import track
from lineside.strict import nearest
from lineside.types import COLUMNS, Frame, Image, Meta, Split

__all__ = ["Rejected", "Remarks", "TableFrames"]

EXAMPLES = 3  # names given with a remark

# Other data sets' names of splits, and our names for them: their test is our held-out suite.
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "eval"), "dev"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "heldout"),
}
MOST_UNMAPPED = 1000  # different values of a column that are counted
MOST_KEPT = 10_000  # different records that are kept
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


class Remarks:
    """Notes about what is neither an input nor rejected, counted, with a few examples each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: str = "") -> None:
        """Count one occurrence."""
        self.counts[what] += 1
        if example and len(self._examples[what]) < EXAMPLES and example not in self._examples[what]:
            self._examples[what].append(example)

    def lines(self) -> list[str]:
        """One line for each remark."""
        told = {what: ", ".join(self._examples[what]) for what in self.counts}
        return [f"{count:,} {what}" + (f": {told[what]}" if told[what] else "") for what, count in self.counts.items()]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {what: {"count": count, "examples": self._examples[what]} for what, count in self.counts.items()}


class Kept:
    """Different records, reduced to some columns, from which wrong captions and traces take their values."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._rows: dict[str, dict[str, Any]] = {}

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep a record, unless it is known or too many are. Raises LinesideError where a column does not exist."""
        if self._names:
            row = known(record, self._names)
            if len(self._rows) < MOST_KEPT:
                self._rows.setdefault(repr(row), row)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The records, each once, in the order in which they were met."""
        return list(self._rows.values())


class TableFrames:
    """Rows as frames by a mapping. Opening it checks the columns and collects the values for distractors."""

    def __init__(
        self,
        folder: Path,
        table: Table,
        reader: Reader | None = None,
        *,
        beside: Callable[[], Iterable[tuple[str, str]]] = tuple,
        keep: Sequence[str] = (),
    ) -> None:
        """`reader` gives the rows; by default the CSV or JSON-lines file that `table` names. `beside`: (name, kind) of
        the folder's other files that could hold frames. `keep`: columns of the record for `kept`.

        Raises LinesideError when a file is missing, or the table lacks a column of the mapping.
        """
        self.folder, self.table, self.remarks = folder, table, Remarks()
        self._reader: Reader = reader or TableReader(folder / (table.file or ""), table.form)
        self._path = self._reader.path
        self._beside = beside
        self._pictures: PictureFolder | None = None  # opened when a row names a picture by its file
        self._scene = table.scene or self._reader.scene
        self._columns = table.columns
        named = [table.image, self._scene, table.cell, table.camera, table.time, table.week, table.skus]
        named += [table.split.column] if table.split else []
        named += [table.roi.corners] if table.roi else []
        named += table.views.values()
        named += [name for name in table.by if name not in self._columns]
        self._named = [name for name in named if name] + [column.column for column in self._columns.values()]
        self._checked = False  # whether a row with all columns was read
        self._complete = False  # whether all frames were read once, so that the remarks are complete
        # Words for nothing that `values` gives a meaning, by column.
        self._meant = {(c.column, word) for c in self._columns.values() for word in MISSING & (c.values or {}).keys()}
        self._refused, self._viewed = HashMap(), HashMap()  # pictures named in refused rows, and those named as views
        self._sound = HashMap()  # views that can be decoded: all readings ask
        self._depths: dict[str, int] | None = None  # bits of deep grey pictures by camera, once one is met
        self._sizes: dict[str, tuple[int, int]] = {}  # of the first picture of each camera, with a roi
        self._counting = False  # while all rows are read once for the remarks and the accounts of joins
        self._name_pattern = NamePattern(table.time_from) if table.time_from not in (None, EXIF) else None
        self._frame_times: list[FrameTime] | None = None  # read for the first join by time
        self._joins: list[Lookup | TimeJoin] = []
        for join in table.join:  # in order: a later one may use the columns of an earlier one
            made = TimeJoin(folder, join, table, self._asking(join)) if join.by_time else Lookup(folder, join, table)
            self._joins.append(made)
        self._frame_times = None
        self._counting = True
        self._written = self._survey()
        self._counting = False
        for join in self._joins:
            join.check()
        self.joins: list[JoinReport] = [join.report for join in self._joins]
        self._values: dict[str, _Values] = {d.name: _Values() for d in table.distractors}
        self.unmapped: dict[str, Counter[str]] = {}  # by column: values without an entry in `values`, counted
        self._parts: dict[str, set[str]] | None = None  # columns whose values are all names of splits
        self.kept = Kept(keep)
        self.total = self._read_values()

    def _read_values(self) -> int:
        """Read all records once, to know their values; returns the number of rows."""
        total = 0
        for total, found in enumerate(self._rows(pictures=False), 1):  # noqa: B007
            if not isinstance(found, Rejected):
                row, record = found
                self._note_unmapped(row.values)
                self._note_parts(row.values)
                self.kept.note(record)
                for distractors in self.table.distractors:
                    self._values[distractors.name].add(*_own_and_near(distractors, record, self._path))
        if not total:
            raise LinesideError(f"{self._path}: no rows; expected one for each picture")
        return total

    def _note_unmapped(self, values: Mapping[str, Any]) -> None:
        for name, column in self._columns.items():
            raw = values[column.column]
            if column.values is None or "otherwise" in column.model_fields_set or raw in (None, ""):
                continue
            if column.entry(key := _key(column, raw, self._written)) is None:
                counted = self.unmapped.setdefault(name, Counter())
                if key in counted or len(counted) < MOST_UNMAPPED:
                    counted[key] += 1

    def _note_parts(self, values: Mapping[str, Any]) -> None:
        if self._parts is None:
            self._parts = {name: set() for name in values}
        for name, seen in list(self._parts.items()):
            value = str(values.get(name) or "")
            if value.casefold() not in SPLIT_NAMES:
                del self._parts[name]
            else:
                seen.add(value)

    def unused_split(self) -> tuple[str, list[str]] | None:
        """(column, values) of a column that looks like the data's own split but is not used by the task file."""
        if self.table.split is not None and self.table.split.column is not None:
            return None
        found = ((name, sorted(seen)) for name, seen in (self._parts or {}).items() if len(seen) > 1)
        return next(found, None)

    def records(self) -> Iterator[dict[str, Any]]:
        """The record of each row that has one, without its picture."""
        return (found[1] for found in self._rows(pictures=False) if not isinstance(found, Rejected))

    @property
    def reader(self) -> Reader:
        """What gives the rows."""
        return self._reader

    def raw_rows(self) -> Iterator[dict[str, Any] | None]:
        """The rows as the source has them, one for each input of `frames`; None for one that cannot be read."""
        for row in self._reader.rows(pictures=False):
            yield None if isinstance(row, Rejected) else dict(row.values)

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        """Each row in order, as a frame with its picture or as its rejection. `only`: those at these positions."""
        seen = HashMap()
        for position, found in enumerate(self._rows(pictures=True)):
            if only is not None and position not in only:
                continue
            if isinstance(found, Rejected):
                yield found
                continue
            row, record = found
            name = self._name(row)
            try:
                file = name if row.picture else self._folder().find(name)
                key = stable_hash(file)
                if key in seen:
                    raise BadRow("listed twice: expected one row for each picture")
                seen[key] = position
                yield self._frame(file, row, record)
            except (BadRow, LinesideError) as error:
                at = row.place if row.place.endswith(name or " ") else f"{row.place}: {name or 'no name'}"
                yield Rejected(at, str(error))
        if not self._complete:
            self._complete = True
            self._look_beside((seen, self._refused, self._viewed))

    def _look_beside(self, seen: Sequence[HashMap]) -> None:
        """Remark on pictures that no row names, and on other files that could hold frames."""
        inside = f"{self.table.pictures.strip('/')}/" if self.table.pictures else ""
        for name, kind in self._beside():
            if kind == "picture" and self._pictures is not None:
                key = stable_hash(name.removeprefix(inside))
                if not name.startswith(inside) or not any(key in some for some in seen):
                    self.remarks.add("pictures lie in the folder that no row names", name)
            else:
                self.remarks.add("files lie in the folder that could hold frames and are not read", name)

    def _folder(self) -> PictureFolder:
        if self._pictures is None:
            self._pictures = PictureFolder(self.folder / (self.table.pictures or ""))
        return self._pictures

    def _name(self, row: Row) -> str:
        """What a row calls its picture."""
        named = row.values.get(self.table.image)
        return named.strip() if isinstance(named, str) else key_text(named)

    def _data(self, file: str, row: Row) -> bytes:
        return row.picture() if row.picture else read_file(self._folder().folder / file)

    def _bits(self, name: str, data: bytes, camera: str) -> int | None:
        """Bits of a deep grey picture: as stated, else the same for all pictures of its camera."""
        own = None if self.table.bits else grey_bits(data)
        if own is None:
            return self.table.bits
        if self._depths is None:
            self._depths = self._measured()
        bits = self._depths[camera]
        if own <= bits - 4:  # no pixel would be brighter than 15 of 255
            raise BadRow(
                f"a grey picture of 16 bits that uses {own} of them, where others of its camera use {bits}: it would "
                f"be nearly black. If it is just dark, set `bits: {bits}` in the table section; if another camera took "
                "it, name the column `camera`"
            )
        if not self._complete:
            self.remarks.add(
                f"grey pictures of 16 bits are read as {bits} bits, which the brightest of their camera needs (see "
                "`bits`)", name
            )  # fmt: skip
        return bits

    def _measured(self) -> dict[str, int]:
        """The bits that the brightest deep grey picture of each camera needs."""
        found: dict[str, int] = {}
        rows = track(self._rows(pictures=True), total=self.total, unit="pictures", label="depth of grey pictures")
        for row, _ in (row for row in rows if not isinstance(row, Rejected)):
            with suppress(LinesideError):  # `frames` tells the reason
                name = self._name(row)
                bits = grey_bits(self._data(name if row.picture else self._folder().find(name), row))
                if bits is not None:
                    camera = self._text(row.values, self.table.camera)
                    found[camera] = max(bits, found.get(camera, 0))
        return found

    def _frame(self, name: str, row: Row, record: dict[str, Any]) -> Frame:
        """`name` becomes the id: the picture's file, or the reader's name for the row."""
        values, reviewed = row.values, read_cell(row.values.get(REVIEWED))
        record = record | {
            d.name: self._values[d.name].draw(d, name, record, self._path) for d in self.table.distractors
        }
        data = self._data(name, row)
        week = self._text(values, self.table.week) or "0"
        if not re.fullmatch("[0-9]{1,6}", week):
            raise BadRow(f"week {week!r} is not a number")
        meta = Meta(
            scene=self._text(values, self._scene) or name,
            cell=self._text(values, self.table.cell),
            camera=self._text(values, self.table.camera),
            time=self._time(name, values, data),
            week=int(week),
            skus=skus_of(values[self.table.skus]) if self.table.skus else (),
            extra=self._extra(values, record, reviewed),
        )
        split = self._split(values, meta)
        picture, notes = stored(data, bits=self._bits(name, data, meta.camera))
        if not self._complete:
            for note in notes:
                self.remarks.add(note, name)
        views = self._views(name, values)
        frame = Frame(name, Image(picture, "frame", name), self.table.family, record, meta, split, views=views)
        return frame if self.table.roi is None else self._cut(frame, self.table.roi, values)

    def _views(self, name: str, values: Mapping[str, Any]) -> tuple[Image, ...]:
        """The views of the frame `name`, without those whose cell is empty."""
        said = {view: self._text(values, column) for view, column in self.table.views.items()}
        for view, file in said.items():
            with suppress(LinesideError):  # read below, and told there
                self._viewed[stable_hash(self._folder().find(file))] = 0
            if not file and not self._complete:
                self.remarks.add(f"rows lack the view {view}", name)
        return tuple(self._view(view, file) for view, file in said.items() if file)

    def _view(self, view: str, said: str) -> Image:
        try:
            file = self._folder().find(said)
            data, notes = stored(read_file(self._folder().folder / file), bits=self.table.bits)
            if (key := stable_hash(file)) not in self._sound:
                if why := undecodable(data):
                    raise LinesideError(why)
                self._sound[key] = 0
        except LinesideError as error:
            raise BadRow(f"a view cannot be read: {view}, {said}: {error}") from None
        if not self._complete:
            for note in notes:
                self.remarks.add(note, file)
        return Image(data, "view", file, name=view)

    def _cut(self, frame: Frame, roi: Roi, values: Mapping[str, Any]) -> Frame:
        """The frame with the region of its picture, and its tiles."""
        try:
            corners = values[roi.corners] if roi.corners else None
            pictures, region = cut(frame.image.bytes, roi, camera=frame.meta.camera, corners=corners)
        except ValueError as error:
            raise BadRow(str(error)) from error
        known = self._sizes.setdefault(frame.meta.camera, region.size)
        if roi.in_pixels(frame.meta.camera) and region.size != known:
            raise BadRow(
                f"a picture of another size than the first of its camera, whose roi is in pixels: {region.size[0]}x"
                f"{region.size[1]} and {known[0]}x{known[1]}; give the roi in shares from 0 to 1"
            )
        if not self._complete:
            self.remarks.add("pictures are cut to their roi", f"{frame.id}: {region.told}")
        first, *tiles = (Image(data, "crop", frame.id) for data in pictures)
        meta = replace(
            frame.meta, extra={**frame.meta.extra, "region": {"size": list(region.size), "box": list(region.box)}}
        )
        return replace(frame, image=first, tiles=tuple(tiles), region=region, meta=meta)

    def _extra(
        self, values: Mapping[str, Any], record: Mapping[str, Any], reviewed: Mapping[str, Reviewed]
    ) -> dict[str, Any]:
        """The columns by which results are shown, and who corrected which column of the record."""
        shown = {name: texts_of({**values, **record}[name]) for name in self.table.by}
        people = {name: {"by": r.by, "at": r.at} for name, r in reviewed.items()}
        return ({COLUMNS: shown} if shown else {}) | ({"reviewed": people} if people else {})

    def _time(self, name: str, values: Mapping[str, Any], data: bytes) -> str:
        """In ISO 8601 if it can be read. It must be readable if days decide the split or its form is given."""
        text = self._text(values, self.table.time)
        try:
            if self.table.time_from is not None:
                return self._picture_time(name, data).isoformat()
            return self._written.times.read(text).isoformat() if text else ""
        except ValueError as error:
            by_day = self.table.split and self.table.split.by == "day"
            if self.table.time_format or self._name_pattern or by_day:
                raise BadRow(f"the time {error}") from error
            return text

    def _picture_time(self, name: str, source: bytes | Path) -> datetime:
        """The time in the picture's name or in its EXIF block. Raises ValueError."""
        if self._name_pattern is not None:
            return self._name_pattern.read(name)
        try:
            return Times().read(exif_time(source))
        except LinesideError as error:
            raise ValueError(f"cannot be read: {error}") from None

    def _asking(self, join: Join) -> Iterator[Asking]:
        """The frames with the keys and the times by which they ask for a row of a further table."""
        if self._frame_times is None:
            self._frame_times = list(self._times_of_frames())
        for position, row in enumerate(self._joined(pictures=False)):
            if not isinstance(row, Rejected):
                self._need(list(join.keys), row.values)
                key = tuple(text_of(row.values[name]) for name in join.keys)
                yield Asking(position, self._place(row), key, self._frame_times[position])

    def _times_of_frames(self) -> Iterator[FrameTime]:
        """The time of each input, for the joins."""
        zone = read_zone(self.table.time_zone) if self.table.time_zone else None
        times, column = Times(self.table.time_format), self.table.time
        for row in self._joined(pictures=False) if column else ():
            if column and not isinstance(row, Rejected):
                self._need([column], row.values)
                times.note(text_of(row.values[column]))
        inside = column is None and self._name_pattern is None  # in the picture
        for row in self._joined(pictures=inside):
            if isinstance(row, Rejected):
                yield FrameTime(reason="rejected")
                continue
            try:
                if column is not None:
                    if not (text := text_of(row.values[column])):
                        raise ValueError(f"{column} is empty")
                    moment = times.read(text)
                else:
                    self._need([self.table.image], row.values)
                    name = key_text(row.values[self.table.image])
                    moment = self._picture_time(name, self._source(row, name) if inside else b"")
                yield FrameTime(instants(moment, zone), moment.tzinfo is not None or zone is not None)
            except (ValueError, OSError, LinesideError) as error:
                yield FrameTime(reason=str(error))

    def _source(self, row: Row, name: str) -> bytes | Path:
        """Where the bytes of a picture are."""
        return row.picture() if row.picture else self._folder().folder / self._folder().find(name)

    def _place(self, row: Row) -> str:
        """Place of a row for messages, with the picture's name."""
        name = key_text(row.values.get(self.table.image))
        place = row.place.removeprefix(f"{self.folder}/")
        return place if not name or place.endswith(name) else f"{place}, {name}"

    def _split(self, values: Mapping[str, Any], meta: Meta) -> Split:
        split = self.table.split
        if split is None or split.column is None:
            if split is None or split.by is None:
                return side_of(meta)
            return side_of(meta, by=split.by, shares=split.shares or SHARES, salt=split.salt)
        value = key_text(values[split.column])
        if value not in split.values:
            raise BadRow(f"split {value!r} is not mapped: the task file maps {', '.join(split.values)}")
        return split.values[value]

    def _text(self, values: Mapping[str, Any], name: str | None) -> str:
        return "" if name is None else key_text(values[name])

    def _record(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the record, with corrections by people."""
        if self._columns:
            record = {n: _value(column, values[column.column], self._written) for n, column in self._columns.items()}
        else:
            record = {name: value for name, value in values.items() if name != REVIEWED}
        try:
            return corrected(record, read_cell(values.get(REVIEWED)))
        except LinesideError as error:
            raise BadRow(str(error)) from error

    def _survey(self) -> _Written:
        """Read all texts of the table once, to find how its numbers and times are written.

        Raises LinesideError if a number could mean two things.
        """
        signs, floats, times = DecimalSign(), defaultdict[str, _Floats](_Floats), Times(self.table.time_format)
        texts = {c.column for c in self._columns.values() if c.type == "text" and c.values is None and not c.words}
        numbers = {c.column for c in self._columns.values() if c.ranged or (c.type == "number" and c.values is None)}
        for row in self._joined(pictures=False):
            if isinstance(row, Rejected):
                continue
            for name in texts & row.values.keys():
                floats[name].note(row.values[name])
            for name in numbers & row.values.keys():
                if isinstance(row.values[name], str):
                    signs.note(row.values[name])
            if self.table.time and self.table.time in row.values:
                times.note(key_text(row.values[self.table.time]))
        try:
            semicolons = self._path.name.lower().endswith(".csv") and delimiter_of(self._path, self.table.form) == ";"
            sign = self.table.decimal or signs.decide(semicolons=semicolons)
        except ValueError as error:
            raise LinesideError(
                f'{self._path}: a column of type number {error}: set `decimal: ","` or `decimal: "."` in the table '
                "section"
            ) from error
        if sign == "," and self.table.decimal is None:
            self.remarks.add("table is read with a decimal comma", self._path.name)
        whole = frozenset(name for name, found in floats.items() if found.whole)
        for name in sorted(whole):
            self.remarks.add("columns of whole numbers with '.0' and empty cells are read as integers", name)
        return _Written(sign, self.table.decimal is not None, whole, times)

    def _joined(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        """Each row joined with its rows of the other tables, or its rejection."""
        for position, row in enumerate(self._reader.rows(pictures=pictures)):
            if isinstance(row, Rejected):
                yield row
                continue
            values = {name: self._cell(name, value) for name, value in row.values.items()}
            if problem := _unwritable(row.values):
                yield Rejected(row.place.encode("utf-8", "backslashreplace").decode(), problem)
                continue
            try:
                for join in self._joins:
                    self._need(list(join.spec.keys), values)
                    partner = join.partner(position, self._place(row), values, count=self._counting)
                    if not join.report.hidden:
                        join.report.hidden = _hidden(join.spec, partner, values)
                    values = {**{name: self._cell(name, value) for name, value in partner.items()}, **values}
            except BadRow as error:
                yield Rejected(row.place, str(error))
                continue
            yield replace(row, values=values)

    def _cell(self, name: str, value: Any) -> Any:
        """The value of a cell; None for a word that programs write into empty ones, unless `values` says what it is."""
        if not isinstance(value, str) or value.strip() not in MISSING or (name, value.strip()) in self._meant:
            return value
        if self._counting:
            self.remarks.add("cells hold a word for nothing and are read as empty", f"{value.strip()} in {name}")
        return None

    def _rows(self, *, pictures: bool) -> Iterator[tuple[Row, dict[str, Any]] | Rejected]:
        """Each row joined and checked, with its record, or its rejection."""
        for row in self._joined(pictures=pictures):
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                self._need(self._named, row.values)
                record = self._record(row.values)
            except BadRow as error:
                if pictures and row.picture is None:
                    with suppress(LinesideError):
                        self._refused[stable_hash(self._folder().find(row.values.get(self.table.image)))] = 0
                yield Rejected(row.place, str(error))
                continue
            self._checked = True
            yield row, record

    def _need(self, names: Sequence[str], row: Mapping[str, Any]) -> None:
        """A column missing in the first good row is an error of the mapping; later it is an error of that row."""
        for name in names:
            if name not in row:
                problem = f"no column {name!r}{nearest(name, row)}; it has {', '.join(row)}"
                raise BadRow(problem) if self._checked else LinesideError(f"{self._path}: {problem}")


class _Floats:
    """Whether a text column holds integers written as floats: pandas does this if some cells are empty."""

    def __init__(self) -> None:
        self._whole = self._empty = self._others = 0

    def note(self, value: Any) -> None:
        if value is None or value == "":
            self._empty += 1
        elif isinstance(value, str) and value.endswith(".0") and key_text(value) != value:
            self._whole += 1
        else:
            self._others += 1

    @property
    def whole(self) -> bool:
        return bool(self._whole and self._empty) and not self._others


@dataclass(frozen=True)
class _Written:
    """How the texts of a table are written: the decimal sign, whether the user set it, columns of floats that are
    integers, and times."""

    decimal: str
    told: bool
    whole: frozenset[str]
    times: Times


class _Values:
    """The values of a distractor column, counted, overall and by the `near` column."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()
        self._near: defaultdict[Any, Counter[Any]] = defaultdict(Counter)

    def add(self, own: Any, near: Any) -> None:
        if own is not None:
            self._counts[own] += 1
            self._near[near][own] += 1

    def draw(self, spec: Distractors, frame_id: str, record: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
        """The row's own value, then `count` different others, each with the probability of its frequency."""
        own, near = _own_and_near(spec, record, path)
        said = _known(record[spec.teacher_column]) if spec.teacher_column else None
        known = own is not None
        if (own := own if known else said) is None:
            return []
        chosen: dict[Any, bool] = {own: True}
        for number in range(spec.count):
            close = spec.near is not None and hash_uniform(frame_id, spec.name, "near", number) < 0.5
            pools = [self._near[near], self._counts] if close else [self._counts]
            for pool in pools:
                others = sorted(((v, count) for v, count in pool.items() if v not in chosen), key=str)
                if others:
                    totals = list(accumulate(count for _, count in others))
                    at = hash_uniform(frame_id, spec.name, "value", number) * totals[-1]
                    chosen[others[bisect.bisect(totals, at)][0]] = False
                    break
        found = [{"item": item, "same": same if known else None} for item, same in chosen.items()]
        if not spec.teacher_column:
            return found
        return [{**element, "said": None if said is None else element["item"] == said} for element in found]


def _own_and_near(spec: Distractors, record: Mapping[str, Any], path: Path) -> tuple[Any, Any]:
    for name in (spec.column, spec.near, spec.teacher_column):
        if name is not None and name not in record:
            raise LinesideError(f"{path}: distractors {spec.name!r}: no column {name!r}{nearest(name, record)}")
    return _known(record[spec.column]), record[spec.near] if spec.near else None


def _known(value: Any) -> Any:
    """The value of a cell, None for an empty one."""
    return None if value == "" else value


def _unwritable(values: Mapping[str, Any]) -> str:
    """Why a row could not be written again: half a surrogate pair (from file names), NaN. "" if it can be written."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return "text that is not Unicode"
    except (ValueError, RecursionError) as error:
        return f"a value that cannot be written ({error})"
    return ""


def _value(column: Column, raw: Any, written: _Written) -> Any:
    """A value of the record from a value of the table; an empty cell is unknown (null)."""
    if raw is None or raw == "":
        return None
    if column.values is not None:
        if (entry := column.entry(_key(column, raw, written))) is not None:
            return column.values[entry]
        if column.otherwise != PASS_ON:
            return column.otherwise
    if not isinstance(raw, str) and not column.model_fields_set & {"type", "words", "sentences"}:
        return raw  # JSON lines and Parquet have their own types
    if column.type == "text":
        exact = isinstance(raw, str | bool) and column.column not in written.whole
        text = str(raw).strip() if exact else key_text(raw)
        if column.words:
            text = " ".join(text.replace("-", " ").replace("_", " ").split())
        return " ".join(_SENTENCE.split(text)[: column.sentences]) if column.sentences else text
    if column.type == "list":
        return raw if isinstance(raw, list) else [part.strip() for part in str(raw).split("|")]
    if column.type == "bool":
        word = key_text(raw).lower()
        if word not in _TRUE + _FALSE:
            raise BadRow(f"column {column.column!r} holds {raw!r:.40}: expected true or false")
        return word in _TRUE
    number = read_number(raw, written.decimal, groups=written.told) if isinstance(raw, str) else raw
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        comma = " with a decimal comma" if written.decimal == "," else ""
        raise BadRow(f"column {column.column!r} holds {raw!r:.40}: expected a number{comma}")
    return number


def _key(column: Column, raw: Any, written: _Written) -> str:
    """The key of a value in `values`: a class label's name, or its index if all the keys are indexes."""
    keys = column.values or {}
    if column.ranged and isinstance(raw, str) and raw not in keys:
        number = read_number(raw, written.decimal, groups=written.told)
        return key_text(raw) if number is None else decimal_text(number)
    if not isinstance(raw, ClassLabel) or keys.keys() <= set(raw.names):
        return key_text(raw)
    indexes = all(key.isdecimal() and int(key) < len(raw.names) for key in keys)
    return str(raw.index) if indexes else raw


def _hidden(join: Join, partner: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The columns of a further table that an earlier one has too, without those by which it is joined."""
    own = {*join.keys.values(), join.time, join.start, join.end}
    return sorted(name for name in partner.keys() & values.keys() if name not in own)
