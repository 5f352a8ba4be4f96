"""Files of rows, streamed: a JSON array, JSON lines, one JSON object after another, rows under a key, or Parquet.

The content tells the shape, not the suffix; gzip, bzip2 and xz are unpacked while reading. Other files are refused with
what they seem to be. Python's own JSON decoder reads every shape, so all shapes have the same numbers, text and
limits.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lineside.data import rows as columns
from lineside.data.readers import parquet_values, plain
from lineside.errors import LinesideError
from lineside.progress import say
from lineside.types import Image

MAX_ROW = 64 << 20  # characters of one row, and of one object that holds all rows
CHUNK = 1 << 16  # characters read at a time
PARQUET_ROWS = 256  # in a row group that is written
_HELD_OUT = re.compile(  # as Hugging Face, COCO, VQAv2 and others name splits: testmini, val2014, minival, test-dev
    r"(?:mini|public_?|private_?)?(?:test(?:s|ing)?|vali?d?|validation|dev|development|eval|evaluation"
    r"|held[_-]?out|hold[_-]?out|shifted|benchmark)"
    r"(?:[ _-]?(?:a|b|c|set|mini|dev|std|standard|small|data|split|standardized|challenge|matched|[0-9]{1,4}))*",
    re.IGNORECASE,
)

_PACKED: Mapping[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_STARTS = {
    b"PK\x03\x04": "it is a zip archive, or a workbook: unpack it, or save its table as CSV",
    b"(\xb5/\xfd": "it is packed with zstd: unpack it first (zstd -d)",
    b"ARROW1": "it is an Arrow file: save it as Parquet",
    b"\xff\xff\xff\xff": "it is an Arrow stream, as `save_to_disk` of datasets writes: save it with Dataset.to_parquet",
    b"SQLite format 3": "it is a database: save its table as Parquet or CSV",
    b"\x80\x04": "it is a Python pickle, which is never loaded: save the rows as JSON or Parquet",
    b"\x80\x05": "it is a Python pickle, which is never loaded: save the rows as JSON or Parquet",
    b"\x93NUMPY": "it is an array of numpy: save the rows as JSON or Parquet",
    b"\xd0\xcf\x11\xe0": "it is a workbook: save its table as CSV",
    b"%PDF": "it is a PDF",
    b"version https://git-lfs": "it is a Git LFS pointer: fetch the file itself (git lfs pull)",
    b"<": "it is HTML or XML, perhaps a page that says why a download failed",
}
_SOUND = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_SPACE = re.compile(r"[ \t\r\n]*")


def held_out(split: str) -> bool:
    """Whether a split of this name is never trained on."""
    return _HELD_OUT.fullmatch(split.strip()) is not None


def rows_of(source: Path, is_row: Callable[[Any], bool]) -> Iterator[tuple[int, Any]]:
    """(number from 1, row or LinesideError) of a file, or of the Parquet files of a folder.

    `is_row` tells a row from an object that holds the rows under one of its keys. Raises LinesideError when the source
    cannot be read, or is damaged and the next row cannot be found.
    """
    if source.is_dir():
        return parquet_rows(_parquet_files(source))
    return parquet_rows([source]) if _head(source).startswith(b"PAR1") else json_rows(source, is_row)


def json_rows(path: Path, is_row: Callable[[Any], bool] = bool) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON file as in `rows_of`; of arrays and lines only one row is in memory at a time."""
    try:
        with _text(path) as file:
            start = _Values(file, path).peek()
            file.seek(0)
            if start == "[":
                yield from _array(file, path)
                return
            heads = list(itertools.islice((line for line in _lines(file, path) if line.strip()), 2))
            file.seek(0)
            if start == "{" and len(heads) == 2 and any(isinstance(_whole(line), dict) for line in heads):
                for number, line in enumerate(_lines(file, path), start=1):
                    if line.strip():
                        yield number, _whole(line)
            elif start == "{":
                yield from _objects(file, path, is_row)
            elif heads and len(re.split("[,;\t]", heads[0])) > 1:
                raise LinesideError(
                    f"{path}: this is not JSON; if it is a table (CSV), `lineside label --teacher table` reads it"
                )
            else:
                raise LinesideError(
                    f"{path}: this {'is not JSON' if heads else 'file is empty'}; expected rows as JSON"
                )
    except UnicodeError as error:
        raise LinesideError(
            f"{path}: text that is not UTF-8 ({error}): save it as UTF-8, for instance with iconv -f cp1252 -t utf-8"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise LinesideError(f"{path}: cannot be read ({error})") from error


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror})") from error


def _text(path: Path) -> io.TextIOWrapper:
    """The file as text: unpacked, in the encoding of its first bytes (UTF-8, 16 or 32)."""
    head = _head(path)
    unpack = next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), open)
    file = unpack(path, "rb")
    head = file.peek(64)[:64]
    for start, told in _STARTS.items():
        if head.lstrip().startswith(start):
            file.close()
            raise LinesideError(f"{path}: no rows can be read: {told}")
    return io.TextIOWrapper(file, encoding=json.detect_encoding(head[:4]))


def _lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_ROW):
        if len(line) >= MAX_ROW:
            raise LinesideError(
                f"{path}: a line of over {MAX_ROW:,} characters: write one row a line, or all rows as one list"
            )
        yield line


def _array(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Any]]:
    values = _Values(file, path)
    values.take("[")
    while not values.take("]"):
        yield values.number, values.value()
        if not values.take(",") and values.peek() != "]":
            raise values.damaged("expected a comma or the end of the list before it")
    if values.peek():
        raise values.damaged("something follows the end of the list")


def _objects(file: io.TextIOWrapper, path: Path, is_row: Callable[[Any], bool]) -> Iterator[tuple[int, Any]]:
    """Rows that are objects one after another; or the rows inside a file's one object: its one list of objects, or all
    its values if each is a row under its id."""
    values = _Values(file, path)
    first = values.value()
    if isinstance(first, dict) and not is_row(first) and all(map(is_row, first.values())) and not values.peek():
        yield from enumerate(first.values(), start=1)
        return
    lists = {} if is_row(first) or not isinstance(first, dict) else {k: v for k, v in first.items() if _records(v)}
    if len(lists) > 1:
        raise LinesideError(f"{path}: lists of objects under {', '.join(lists)}: save the right one in its own file")
    if held := next(filter(held_out, lists), None):
        raise LinesideError(f"{path}: the rows of the split {held}: what is converted becomes training data")
    if lists and not values.peek():
        yield from enumerate(*lists.values(), start=1)
        return
    yield 1, first
    while sign := values.peek():
        if sign == ",":
            raise values.damaged("a comma between rows: write one row a line without commas, or all rows as one list")
        yield values.number, values.value()


def _records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


class _Values:
    """JSON values one after another from a text file: one is in memory, and time is linear in the file's size."""

    def __init__(self, file: io.TextIOWrapper, path: Path) -> None:
        self.number = 1  # of the next value
        self._file, self._path = file, path
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, sign: str) -> bool:
        """Whether `sign` comes next; if so it is consumed."""
        found = self.peek() == sign
        self._at += found
        return found

    def value(self) -> Any:
        """The next value, or LinesideError in its place if it is invalid. Raises LinesideError when it has no end."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
                if end == len(self._text) and self._more():
                    continue  # a number may continue
                self._at = end
                self.number += 1
                return value
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ROW:
                    told = f"over {MAX_ROW:,} characters without an end; write one row a line, or all rows as one list"
                    raise self.damaged(told) from error
                if isinstance(error, RecursionError) or not self._more():
                    told = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", error)
                    cause = "damaged or cut off"
                    if self._text.startswith("{'", self._at):
                        cause = "single quotes are Python's notation, write rows with json.dumps"
                    raise self.damaged(f"not JSON from here on ({told}): {cause}") from error

    def damaged(self, reason: str) -> LinesideError:
        """An error at the next value."""
        return LinesideError(f"{self._path}, row {self.number}: {reason}")

    def _more(self) -> bool:
        """Read as much again as is in memory, so that a long value is parsed only a few times; False at the end."""
        more = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _whole(line: str) -> Any:
    """The value of a line, or LinesideError in its place."""
    try:
        value, end = _decode(line, len(line) - len(line.lstrip()))
    except (ValueError, RecursionError) as error:
        return LinesideError(f"not JSON ({error})"[:200])
    return value if not line[end:].strip() else LinesideError(f"not JSON (more follows at character {end + 1})")


def _decode(text: str, start: int) -> tuple[Any, int]:
    """(value, its end) by the JSON standard: what only Python's decoder accepts is a LinesideError in its place.

    Raises ValueError or RecursionError if the value has no end.
    """
    faults: list[str] = []

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            faults.append(f"the key {twice!r} occurs twice in one object")
        return made

    def constant(name: str) -> None:
        faults.append(f"{name} is not JSON: write null")

    value, end = json.JSONDecoder(object_pairs_hook=record, parse_constant=constant).raw_decode(text, start)
    try:
        # JSON can hold half a surrogate pair and 1e999; later steps cannot.
        _SOUND.encode(value).encode("utf-8")
    except UnicodeError:
        faults.append("text that is not Unicode: half of a surrogate pair")
    except ValueError:
        faults.append("a number that is too large")
    return (LinesideError(faults[0]) if faults else value), end


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder. Raises LinesideError if there are none, or a file of a split for testing."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise LinesideError(f"{folder}: no Parquet files in it; name the file of rows itself")
    others = sorted(p.name for p in folder.rglob("*") if p.suffix.lower() in (".json", ".jsonl", ".ndjson", ".csv"))
    if others:
        say(f"{folder}: only its Parquet files are read, not {len(others)} other files, such as {others[0]}")
    for file in files:
        if held := next(filter(held_out, _parts_of(file.relative_to(folder))), None):
            raise LinesideError(
                f"{folder}: one of its files belongs to the split {held} ({file.relative_to(folder)}): converted rows "
                "become training data; name the training files alone"
            )
    return files


def _parts_of(path: Path) -> list[str]:
    """The folders of a path and the parts of a file's name: each may be the name of a split."""
    return [*path.parts[:-1], *re.split(r"[-.]", path.stem)]


def parquet_rows(files: Sequence[Path]) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of Parquet files; pictures are bytes, paths, or records of the two, other values plain."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = itertools.count(1)
    for file in files:
        try:
            with pq.ParquetFile(file) as shard:
                for row in parquet_values(shard):
                    yield next(numbers), _plain(row)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise LinesideError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _plain(value: Any) -> Any:
    """An Arrow value as JSON; only the bytes of pictures stay."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, bytes) else plain(value)


def write_json(rows: Iterator[tuple[dict[str, Any], Sequence[Image]]], path: Path, *, array: bool) -> None:
    """One JSON array with one row a line, or JSON lines; the pictures are written beside the file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n" if array else "")
        for number, (row, _) in enumerate(rows):
            file.write(",\n" if array and number else "")
            file.write(json.dumps(row, ensure_ascii=False) + ("" if array else "\n"))
        file.write("\n]\n" if array else "")


def write_parquet(rows: Iterator[tuple[dict[str, Any], Sequence[Image]]], path: Path) -> None:
    """`messages` with the pictures inside, so that `datasets` and tools built on it show them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.list_(part)), ("loss", pa.bool_())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(message)),
            ("images", pa.list_(columns.IMAGE)),
            ("lineside", pa.string()),
        ]
    )
    features = {"huggingface": columns.hub_features(schema)}
    with pq.ParquetWriter(path, schema.with_metadata(features), compression="zstd") as writer:
        while batch := list(itertools.islice(rows, PARQUET_ROWS)):
            inside = [{**row, "images": [{"bytes": i.bytes, "path": i.path} for i in images]} for row, images in batch]
            writer.write_table(pa.Table.from_pylist(inside, schema=schema))
