"""One Parquet shard: written under a temporary name, renamed when complete; its columns are checked on opening.

The samples of one frame are neighbours and lie in one row group. The shard's metadata hold the sizes of these groups,
so a stream can be planned or resumed without reading a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lineside.data import rows
from lineside.errors import LinesideError, disk_is_full
from lineside.files import make_folder, settle, temporary_of
from lineside.types import Frame, Sample

GROUPS_KEY = "lineside.groups"  # shard metadata: for each row group, how many rows each frame has
ROW_GROUP_ROWS = 1024
ROW_GROUP_BYTES = 64 << 20  # distinct picture bytes in a row group: the memory of one reader
ROW_GROUP_EXPANDED = 256 << 20  # the same for a reader without dictionaries

T = TypeVar("T", Frame, Sample)


@dataclass(frozen=True)
class Layout(Generic[T]):
    """The layout of one data type on disk."""

    schema: pa.Schema
    image_column: str
    to_table: Callable[[Sequence[Any]], pa.Table]
    to_rows: Callable[[pa.Table], list[dict[str, Any]]]
    of_row: Callable[[dict[str, Any]], T]
    pictures: Callable[[T], tuple[bytes, ...]]  # of the frame: rows with the same are one group
    beside: Callable[[T], tuple[bytes, ...]] = lambda _: ()  # references, which rows of several frames share


FRAMES: Layout[Frame] = Layout(
    rows.FRAME_SCHEMA, "image", rows.frames_table, rows.frame_rows, rows.frame_of, lambda f: (f.image.bytes,)
)
SAMPLES: Layout[Sample] = Layout(
    rows.SAMPLE_SCHEMA,
    "images",
    rows.samples_table,
    rows.sample_rows,
    rows.sample_of,
    lambda s: tuple(image.bytes for image in s.frame_images),
    lambda s: tuple(image.bytes for image in s.references),
)


class ShardWriter(Generic[T]):
    """Collects rows into row groups and shards. A shard gets its name only when it is complete."""

    def __init__(self, folder: Path, name: str, layout: Layout[T], shard_rows: int) -> None:
        self.written = 0  # rows in finished shards
        self._folder, self._name, self._layout, self._shard_rows = folder, name, layout, shard_rows
        self._rows: list[T] = []
        self._groups: list[int] = []
        self._pictures: tuple[bytes, ...] | None = None
        self._distinct = self._expanded = 0
        self._beside: set[bytes] = set()  # references of this row group
        self._parquet: pq.ParquetWriter | None = None
        self._file: BinaryIO | None = None
        self._path, self._temporary = folder, folder
        self._shard_groups: list[list[int]] = []
        self._in_shard = 0

    def add(self, item: T) -> None:
        pictures = self._layout.pictures(item)
        if pictures != self._pictures:
            self._end_group()
            self._pictures = pictures
            self._groups.append(0)
            self._distinct += sum(map(len, pictures))
        self._groups[-1] += 1
        beside = self._layout.beside(item)
        self._distinct += sum(len(data) for data in set(beside) - self._beside)
        self._beside.update(beside)
        self._expanded += sum(map(len, (*pictures, *beside)))
        self._rows.append(item)

    def finish(self) -> None:
        self._flush()
        self._end_shard()

    def abandon(self) -> None:
        """Drop the unfinished shard; finished ones stay."""
        if self._parquet is not None and self._file is not None:
            with suppress(OSError, pa.ArrowException):  # closing writes the buffer, and the disk may be full
                self._parquet.close()
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _end_group(self) -> None:
        """Called between two frames: only there may a row group or a shard end."""
        full = self._in_shard + len(self._rows) >= self._shard_rows
        big = self._distinct >= ROW_GROUP_BYTES or self._expanded >= ROW_GROUP_EXPANDED
        if full or big or len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()
        if full:
            self._end_shard()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = self._layout.to_table(self._rows)
        with disk(self._folder, self._name):
            if self._parquet is None:
                self._start_shard(table.schema)
            assert self._parquet is not None
            self._parquet.write_table(table, row_group_size=len(self._rows))
        self._in_shard += len(self._rows)
        self._shard_groups.append(self._groups)
        self._rows, self._groups, self._pictures = [], [], None
        self._distinct = self._expanded = 0
        self._beside = set()

    def _start_shard(self, schema: pa.Schema) -> None:
        make_folder(self._folder)
        taken = [p.stem.rsplit("-", 1)[1] for p in self._folder.glob(f"{self._name}-[0-9]*.parquet")]
        number = 1 + max((int(n) for n in taken if n.isdecimal()), default=-1)
        self._path = self._folder / f"{self._name}-{number:05d}.parquet"
        self._temporary = temporary_of(self._path)
        self._file = _create(self._temporary)
        self._parquet = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            dictionary_pagesize_limit=1 << 30,  # a picture is stored once in a row group, however large
            store_schema=False,  # only we use the dictionary; other readers see plain binary columns
            write_statistics=False,
        )

    def _end_shard(self) -> None:
        if self._parquet is None or self._file is None:
            return
        with disk(self._folder, self._name):
            self._parquet.add_key_value_metadata(
                {"huggingface": rows.hub_features(self._layout.schema), GROUPS_KEY: json.dumps(self._shard_groups)}
            )
            self._parquet.close()
            self._file.close()
            settle(self._temporary, self._path)
        self.written += self._in_shard
        self._parquet, self._file, self._shard_groups, self._in_shard = None, None, [], 0


def _create(path: Path) -> BinaryIO:
    return open(path, "wb")


@contextmanager
def closing(writers: Iterable[ShardWriter[Any]]) -> Iterator[None]:
    """Finish every writer at the end, or drop all their unfinished shards after an error."""
    try:
        yield
        for writer in writers:
            writer.finish()
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise


@contextmanager
def disk(folder: Path, name: str) -> Iterator[None]:
    """Turn system errors while writing `name` into LinesideError; a full disk has its own message."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise LinesideError(
                f"{folder}: the disk is full while writing {name}: make room and run the same command again"
            ) from error
        raise LinesideError(f"{folder}: cannot write {name}: {error}") from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of Arrow and of the system about a shard into LinesideError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise LinesideError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LinesideError(
            f"{path}: cannot be read as Parquet ({reason}); the shard is damaged: write it again"
        ) from error


@contextmanager
def open_shard(path: Path, layout: Layout[Any]) -> Iterator[pq.ParquetFile]:
    """A shard with the columns of the layout. Raises LinesideError naming the file and a missing or wrong column."""
    # Not by `metadata.schema`: metadata and schema would then refer to each other, and 100 KB for each row group would
    # stay in memory until Python collects reference cycles.
    with _readable(path), pq.ParquetFile(path) as plain:
        metadata, found, leaves = plain.metadata, plain.schema_arrow, plain.reader.column_paths
    for wanted in layout.schema:
        index = found.get_field_index(wanted.name)
        if index < 0 and wanted.name in rows.OPTIONAL:
            continue
        if index < 0:
            raise LinesideError(f"{path}: no column {wanted.name!r} ({wanted.type}); it has {', '.join(found.names)}")
        if not _alike(found.field(index).type, wanted.type):
            raise LinesideError(f"{path}: column {wanted.name!r} is {found.field(index).type}; expected {wanted.type}")
    # Other writers name the inner node of a list differently, so the leaf is looked up. Not in a column's metadata:
    # where these are damaged, Arrow ends the process.
    pictures = [".".join(leaf) for leaf in leaves if leaf[0] == layout.image_column and leaf[-1] == "bytes"]
    with _readable(path):
        shard = pq.ParquetFile(path, metadata=metadata, read_dictionary=pictures)
    with shard:
        yield shard


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a reader of `wanted` can use `found`: wider strings, lists and integers of other writers are accepted."""
    kinds = pa.types
    if kinds.is_null(found):
        return True
    if kinds.is_string(wanted):
        return kinds.is_string(found) or kinds.is_large_string(found)
    if kinds.is_binary(wanted):
        return kinds.is_binary(found) or kinds.is_large_binary(found)
    if kinds.is_integer(wanted):
        return kinds.is_integer(found)
    if isinstance(wanted, pa.ListType):
        return isinstance(found, pa.ListType | pa.LargeListType) and _alike(found.value_type, wanted.value_type)
    if isinstance(wanted, pa.StructType) and isinstance(found, pa.StructType):
        names = {field.name: field.type for field in found}
        return all(field.name in names and _alike(names[field.name], field.type) for field in wanted)
    return found == wanted


def read_row_group(shard: pq.ParquetFile, path: Path, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A row group, or some of its columns. Raises LinesideError if it is damaged: text that is not UTF-8, too."""
    with _readable(path):
        table = shard.read_row_group(index, columns=None if columns is None else list(columns))
        table.validate(full=True)
    return table


def parse(table: pa.Table, layout: Layout[T], path: Path, first: int) -> Iterator[T]:
    """The objects of a table's rows. Raises LinesideError naming file and row for a bad one."""
    for offset, row in enumerate(layout.to_rows(table)):
        try:
            yield layout.of_row(row)
        except LinesideError as error:
            raise LinesideError(f"{path}, row {first + offset}: {error}") from error


def scan(path: Path, layout: Layout[T], *, split: str | None = None) -> Iterator[tuple[int, T | LinesideError]]:
    """(row number, object or the error of that row) for each row of a shard; only those of one split if given.

    A row group without that split is skipped and its pictures are not read. Raises LinesideError when the whole shard
    cannot be read or lacks a column.
    """
    with open_shard(path, layout) as shard:
        first = 0
        for index in range(shard.num_row_groups):
            size = shard.metadata.row_group(index).num_rows
            splits = read_row_group(shard, path, index, ["split"]).column("split").to_pylist()
            if split is None or split in splits:
                for offset, row in enumerate(layout.to_rows(read_row_group(shard, path, index))):
                    if split is not None and splits[offset] != split:
                        continue
                    try:
                        yield first + offset, layout.of_row(row)
                    except LinesideError as error:
                        yield first + offset, LinesideError(f"{path}, row {first + offset}: {error}")
            first += size


def count_rows(paths: Sequence[Path]) -> int:
    """Number of rows of shards, from their footers alone."""
    total = 0
    for path in paths:
        with _readable(path):
            total += pq.read_metadata(path).num_rows
    return total
