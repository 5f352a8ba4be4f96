"""Tables of text, read strictly: CSV of any separator and encoding, and JSON lines. No value depends on a guess.

What can be read in more than one way is refused with its line. A row with too many fields is returned as an error.
An unclosed quote or a repeated column name makes the whole table unreliable, so the table is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lineside.data.values import read_number
from lineside.errors import LinesideError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MAX_FIELD = 4 << 20  # characters
_HEAD = 1 << 16  # bytes from which encoding and separator are found
_SAMPLED = 50  # rows


@dataclass(frozen=True, slots=True)
class Form:
    """How tables are written, as set by the user; None: found from the file. `decimal`: the decimal sign of numbers.
    `by_options`: by those of a verb, not in the table section of a task file."""

    encoding: str | None = None
    delimiter: str | None = None
    decimal: str | None = None
    by_options: bool = False

    def told(self, key: str, value: str) -> str:
        """What to set, for a message."""
        return f"`--{key} {value}`" if self.by_options else f"`{key}: {value}` in the table section"


AS_FOUND = Form()


def read_table(path: Path, form: Form = AS_FOUND) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row number from 1, row or its error) of a CSV file, or of a JSON-lines file by its suffix.

    Empty rows are counted and left out. Raises LinesideError naming the line if the whole table is unreliable.
    """
    with _opened(path, form) as file:
        yield from _json_rows(file) if is_json(path) else _csv_rows(path, file, form)


def is_json(path: Path) -> bool:
    """Whether a table is JSON lines, by its name."""
    return path.name.lower().endswith((".jsonl", ".ndjson"))


def encoding_of(path: Path, head: bytes, form: Form = AS_FOUND) -> str:
    """The encoding of a file from its start: a byte-order mark, else UTF-8. Raises LinesideError for UTF-16 without
    a mark."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    for mark, name in marks.items():
        if head.startswith(mark):
            return name
    if head.count(0) > len(head) // 4:
        name = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        raise LinesideError(
            f"{path}: looks like UTF-16 without a byte-order mark: set {form.told('encoding', name)}, or save it as "
            "UTF-8"
        )
    return "utf-8"


@contextmanager
def _opened(path: Path, form: Form) -> Iterator[TextIO]:
    try:
        with open(path, "rb") as file:
            encoding = form.encoding or encoding_of(path, file.read(_HEAD), form)
        with open(path, encoding=encoding, newline="") as file:
            yield file
    except UnicodeError as error:
        raise LinesideError(f"{path}{_undecodable(path, encoding, form)}") from error
    except OSError as error:
        raise LinesideError(f"{path}: the table cannot be read ({error.strerror or error})") from error


def _undecodable(path: Path, encoding: str, form: Form) -> str:
    """Where a file breaks its encoding, and how the place reads in Windows-1252, which is common in the West."""
    if encoding != "utf-8":
        return f": is not {encoding}: correct {form.told('encoding', encoding)}, or save the file as UTF-8"
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                around = line[max(0, error.start - 12) : error.end + 12].decode("cp1252", "replace").strip()
                return (
                    f", line {number}: not UTF-8. In Windows-1252 it reads {around!r}: if that is right, set "
                    f"{form.told('encoding', 'cp1252')}; else set its own encoding, or save it as UTF-8"
                )
    return ": not UTF-8"


def _csv_rows(path: Path, file: TextIO, form: Form) -> Iterator[tuple[int, dict[str, Any] | str]]:
    delimiter = delimiter_of(path, form)
    csv.field_size_limit(MAX_FIELD)
    lines = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
    begun = 1

    def following() -> list[str] | None:
        nonlocal begun
        begun = lines.line_num + 1
        try:
            return next(lines, None)
        except csv.Error as error:
            raise LinesideError(f"{path}, line {begun}: {_quoting(str(error))}") from error

    header = following()
    while header == [] or (header and _is_separator_line(header, delimiter)):
        header = following()
    if not header:
        raise LinesideError(f"{path}: the file is empty; expected a header and one row for each picture")
    if told := _no_table(header[0]):
        raise LinesideError(f"{path}: no table: {told}")
    names = _names(path, header)
    number = fitting = width = 0
    while (cells := following()) is not None:
        number += 1
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if swallowed := _swallowed(cells, len(header), delimiter):
            raise LinesideError(
                f"{path}, line {begun}: a quoted field ends only at line {lines.line_num} and holds what looks like a "
                f"row ({swallowed!r:.60}): close the quote"
            )
        width = len(cells)
        fitting += width == len(names)
        yield number, _row(cells, names, delimiter)
    if number and not fitting:
        raise LinesideError(
            f"{path}: its first line {delimiter.join(header)!r:.60} has {len(header)} fields, its rows have {width}: "
            "the names of all columns must be the first line; take titles and comments away"
        )


def _no_table(first: str) -> str:
    """What a file is whose first cell begins so, "" for a table."""
    starts = {
        "PK\x03\x04": "a workbook or a zip archive: save its table as CSV",
        "<": "HTML or XML",
        "{": "JSON: name it .jsonl",
    }
    return next((told for start, told in starts.items() if first.lstrip().startswith(start)), "")


def _names(path: Path, header: list[str]) -> list[str]:
    """The names of the columns; "" for one without a name (an index, a separator at the end), which is ignored."""
    names = [name.strip() for name in header]
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise LinesideError(
                f"{path}: two columns are called {name!r} (number {names.index(name) + 1} and {place + 1}): rename one"
            )
        if "\0" in name:
            raise LinesideError(f"{path}: NUL characters in the header: not a table of text")
    return names


def _row(cells: list[str], names: list[str], delimiter: str) -> dict[str, Any] | str:
    if len(cells) != len(names):
        advice = f"; put a text with {delimiter!r} in quotes" if len(cells) > len(names) else ""
        return f"{len(cells)} fields, but the header has {len(names)}{advice}"
    if "\0" in "".join(cells):
        return "a NUL character in it"
    return {name: cell for name, cell in zip(names, cells) if name}


def _swallowed(cells: list[str], width: int, delimiter: str) -> str:
    """A line inside a field that looks like a row of the table (as many fields, with numbers and file names where this
    row has them), "" if there is none. Such a line means that a quote was opened and closed in different rows."""
    together = "".join(cells)
    if width < 2 or not ("\n" in together or "\r" in together):
        return ""
    for cell in cells:
        for line in cell.splitlines() if "\n" in cell or "\r" in cell else ():
            parts = line.split(delimiter)
            if len(parts) == width and any(
                _shape(a) and _shape(a) == _shape(b) for a, b in zip(parts, cells) if b != cell
            ):
                return line
    return ""


def _shape(cell: str) -> str:
    """The kind of text in a cell: "number", a file's suffix, or ""."""
    cell = cell.strip()
    if read_number(cell) is not None:
        return "number"
    stem, _, suffix = cell.rpartition(".")
    return suffix.lower() if stem and suffix.isalnum() and 2 <= len(suffix) <= 5 and " " not in cell else ""


def delimiter_of(path: Path, form: Form = AS_FOUND) -> str:
    """The separator of a CSV file: as set, by a first line "sep=;", or the one by which header and rows agree."""
    if form.delimiter:
        return form.delimiter
    if path.name.lower().endswith(".tsv"):
        return "\t"
    with _opened(path, form) as file:
        sample = file.read(_HEAD)
    first = sample.partition("\n")[0].strip().strip('"')
    if first.lower().startswith("sep=") and len(first) == 5:
        return first[4]
    found: dict[str, tuple[float, int]] = {}
    for separator in SEPARATORS:
        with _ignored():
            rows = [row for row in islice(csv.reader(io.StringIO(sample), delimiter=separator), _SAMPLED) if row]
            if rows and (width := len(rows[0])) > 1:
                body = rows[1:-1] or rows[1:] or rows  # the last row may be cut off
                found[separator] = sum(len(row) == width for row in body) / len(body), width
    best = [separator for separator in found if found[separator][0] == max(found.values())[0]]
    if len(best) > 1 and max(found.values())[0] > 0:
        raise LinesideError(
            f"{path}: its fields could be separated by {' or by '.join(SEPARATORS[b] for b in best)}: set "
            f"{form.told('delimiter', repr(best[0]))}, or another"
        )
    return max(found, key=lambda separator: found[separator], default=",")


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except csv.Error:
        return


def _is_separator_line(header: list[str], delimiter: str) -> bool:
    """Whether it is Excel's line before the header that names the separator."""
    return "".join(header).lower() == "sep=" or header == [f"sep={delimiter}"]


def _quoting(reason: str) -> str:
    if "end of data" in reason:
        return "a quoted field begins here and never ends: close the quote, or double it if it is part of the text"
    if "expected after" in reason:
        return 'text follows a closing quote: double a quote that is part of the text ("")'
    return reason


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = read_json(line)
                yield number, row if isinstance(row, dict) else "not a JSON object"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON ({error})"


def read_json(text: str) -> Any:
    """JSON with exact numbers, whole ones as integers. Raises ValueError also for a repeated key."""
    return json.loads(text, parse_float=_float, object_pairs_hook=_object, parse_constant=_constant)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON: write null")


def _float(text: str) -> int | float:
    number = read_number(text)
    return float(text) if number is None else number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found
