"""Opens frames from any kind of input: `open_frames` gives a stream of `Frame | Rejected` that can be read again.

a folder that `lineside simulate` or an earlier job wrote   frames-*.parquet, read unchanged
pictures in folders                                         columns image, folder, name
pictures with a table                                       .csv, .tsv, .jsonl
Parquet with the pictures inside                            bytes, or struct<bytes, path> of `datasets`
WebDataset tars                                             picture and .json (or .txt) of one stem
videos and episodes                                         a frame every `every` seconds
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lineside.data import store
from lineside.data.folders import PictureFolder, Rejected, is_picture, walk
from lineside.data.joinreport import JoinReport
from lineside.data.readers import TARS, VIDEOS, FolderReader, ParquetReader, Reader, TableReader, TarReader, VideoReader
from lineside.data.reviewed import home_of
from lineside.data.table import Kept, Remarks, TableFrames
from lineside.data.tabular import TABLES
from lineside.data.taskfile import Table
from lineside.errors import LinesideError
from lineside.files import blocks, is_file
from lineside.images import PICTURES
from lineside.strict import nearest
from lineside.types import Frame

__all__ = ["FrameSource", "Rejected", "fingerprint", "open_frames"]

_KINDS = {"table": TABLES, "parquet": (".parquet",), "tar": TARS, "video": VIDEOS, "picture": PICTURES}
_USUAL_TABLES = ("frames.csv", "frames.jsonl", "metadata.csv", "metadata.jsonl")
_ADVICE = {".zip": ": unpack it first", ".gz": ": unpack it first", ".7z": ": unpack it first"} | dict.fromkeys(
    (".xlsx", ".xls", ".ods"), ": save the sheet as CSV first"
)


class FrameSource(Protocol):
    """Frames that can be streamed more than once, always in the same order."""

    folder: Path  # of the frames: where the files lie that a task file names
    total: int  # inputs that `frames` will give
    remarks: Remarks  # notes about files that are not inputs; complete after `frames` was read to its end
    kept: Kept  # different records, as far as they were asked for

    @property
    def unmapped(self) -> Mapping[str, Counter[str]]:
        """Values that the task file does not map, counted, by column."""
        ...

    @property
    def joins(self) -> Sequence[JoinReport]:
        """The accounts of further tables."""
        ...

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        """Every input once, as a frame or as the reason why it is rejected. `only`: those at these positions."""
        ...

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The record of each input that has one, without its picture."""
        ...


def open_frames(
    path: Path, table: Table | None = None, *, family: str | None = None, keep: Sequence[str] = ()
) -> FrameSource:
    """Frames of a folder or file. `table` maps columns; without it, `family` is enough for pictures alone. `keep`:
    columns of the record whose values are kept (`kept`).

    Frames in lineside's own shards need no table. Raises LinesideError when nothing can be read as frames, when several
    kinds of file could be meant, or when the mapping does not fit.
    """
    if not path.exists():
        raise LinesideError(f"{path}: no such file or folder of frames")
    if own_shards(path) and (table is None or table.file is None):
        return ShardFrames(path, keep)
    if table is None:
        if family is None:
            raise LinesideError(
                f"{path}: describe how to read it in the `table` section of a task file (at least its family)"
            )
        table = Table(family=family)
    folder, files, kind = _find(path, table)
    beside = partial(_beside, path, files, kind) if path.is_dir() and kind != "picture" else tuple
    return TableFrames(folder, table, _reader(kind, folder, files, table), beside=beside, keep=keep)


class ShardFrames:
    """Frames in lineside's own shards."""

    unmapped: Mapping[str, Counter[str]] = {}
    joins: Sequence[JoinReport] = ()

    def __init__(self, folder: Path, keep: Sequence[str] = ()) -> None:
        """Raises LinesideError when a shard is damaged."""
        self.folder = folder
        self.remarks = Remarks()
        self.total = store.count_frames(folder)
        self.kept = Kept(keep)
        for record in self.records() if keep else ():
            self.kept.note(record)

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        for position, (path, row, item) in enumerate(store.scan_frames(self.folder)):
            if only is not None and position not in only:
                continue
            yield Rejected(f"{path}, row {row}", str(item)) if isinstance(item, LinesideError) else item

    def records(self) -> Iterator[Mapping[str, Any]]:
        return (item.record for item in self.frames() if isinstance(item, Frame))


def own_shards(path: Path) -> bool:
    """Whether a folder holds frames as lineside writes them."""
    return path.is_dir() and any(path.glob("frames-[0-9]*.parquet"))


def fingerprint(path: Path, table: Table | None) -> str:
    """Hash of everything that decides the frames of a source: its tables by content, other files by name and size."""
    digest = hashlib.blake2b(digest_size=16)
    tables: list[Path] = []
    beside = table.references if table else None
    if own_shards(path) and (table is None or table.file is None):
        files = sorted(path.glob("frames-[0-9]*.parquet"))
    else:
        folder, files, kind = _find(path, table)
        tables = [folder / join.file for join in table.join] if table else []
        tables += [folder / beside.file] if beside and beside.file else []
        if kind == "table":
            tables = [*files, *tables]
        if kind in ("table", "picture"):
            where = folder / (table.pictures or "") if table else folder
            files = [where / name for name in walk(where) if isinstance(name, str)] if where.is_dir() else []
        if beside and beside.folder and (shown := folder / beside.folder).is_dir():
            files = [*files, *(shown / name for name in walk(shown) if isinstance(name, str))]
    for file in files:
        name = file.relative_to(path) if file.is_relative_to(path) and file != path else file.name
        digest.update(f"{name}:{file.stat().st_size if file.is_file() else 0};".encode("utf-8", "surrogateescape"))
    for file in tables:
        for block in blocks(file) if file.is_file() else ():
            digest.update(block)
    return digest.hexdigest()


def _find(path: Path, table: Table | None) -> tuple[Path, list[Path], str]:
    """(folder, files, kind) of a source; kind "picture" means a whole folder of pictures and has no files."""
    pattern = table.file if table else None
    if path.is_file():
        return home_of(path) if _kind(path) == "table" else path, [path], _sure_kind(path)
    if pattern is not None:
        files = _matching(path, pattern)
        kinds = {_sure_kind(file) for file in files}
        if len(kinds) > 1 or (kinds == {"table"} and len(files) > 1):
            raise LinesideError(
                f"{path / pattern}: {', '.join(f.name for f in files[:4])}: expected one table, or files of one kind"
            )
        return path, files, kinds.pop()
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    usual = [file for file in files if file.name.lower() in _USUAL_TABLES]
    by_kind = {kind: found for kind in ("parquet", "tar", "video") if (found := [f for f in files if _kind(f) == kind])}
    if usual:
        by_kind = {"table": usual}
    if len(by_kind) > 1 or len(usual) > 1:
        raise LinesideError(f"{path}: it holds {' and '.join(sorted(by_kind))} files: name those to read with `file`")
    if by_kind:
        ((kind, found),) = by_kind.items()
        return path, found, kind
    return path, [], "picture"


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The file of exactly that name, else those that match it as a pattern, in any case."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise LinesideError(f"{folder}: file {pattern!r} must be inside the folder")
    if is_file(folder / pattern):
        return [folder / pattern]
    files = sorted(found for found in folder.glob(pattern) if found.is_file())
    if not files and "**" not in pattern:
        above, last = (folder / pattern).parent, Path(pattern).name.lower()
        beside = above.iterdir() if above.is_dir() else ()
        files = sorted(file for file in beside if fnmatch.fnmatchcase(file.name.lower(), last) and file.is_file())
    if not files:
        there = [file.name for file in folder.iterdir() if file.is_file() and not is_picture(file.name)]
        raise LinesideError(
            f"{folder / pattern}: no such file{nearest(pattern, there)}; the folder has {_listing(folder)}"
        )
    return files


def _beside(folder: Path, files: list[Path], kind: str) -> Iterator[tuple[str, str]]:
    """(name, kind) of the files below a folder that could hold frames but are not in `files`."""
    for name in walk(folder):
        if isinstance(name, str) and folder / name not in files:
            found = "picture" if is_picture(name) else _kind(Path(name))
            if found is not None and found != "table":
                yield name, found


def _reader(kind: str, folder: Path, files: list[Path], table: Table) -> Reader:
    if kind == "table":
        return TableReader(files[0], table.form)
    if kind == "parquet":
        return ParquetReader(folder, files, table.image)
    if kind == "tar":
        return TarReader(folder, files, table.image)
    if kind == "video":
        return VideoReader(folder, files, table.every)
    where = PictureFolder(folder / (table.pictures or "")).folder
    beside = table.references.folder if table.references else None
    return FolderReader(where, os.path.relpath(folder / beside, where) if beside else None)


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for kind, suffixes in _KINDS.items() if name.endswith(suffixes)), None)


def _sure_kind(file: Path) -> str:
    kind = _kind(file)
    if kind is None or kind == "picture":
        known = ", ".join(s for name, suffixes in _KINDS.items() if name != "picture" for s in suffixes)
        advice = _ADVICE.get(file.suffix.lower(), "")
        raise LinesideError(
            f"{file}: cannot be read as frames by its name{advice}; expected {known}, or a folder of pictures"
        )
    return kind


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
