"""Rows with one picture each, from folders, tables, Parquet, WebDataset tars and videos.

A reader gives every input once, always in the same order, as a `Row` or as `Rejected`. It knows nothing about frames:
the mapping (`lineside.data.table`) decides which column is the cell or the scene. Everything is streamed. Names, sizes,
links and playlists from outside are checked before they are used.
"""

from __future__ import annotations

import gc
import io
import json
import math
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import PIL.Image

from lineside.data.folders import Rejected, read_file, walk
from lineside.data.tabular import TABLES, Form, read_json, read_table
from lineside.data.values import ClassLabel
from lineside.errors import LinesideError
from lineside.images import MAX_BYTES, MAX_PIXELS, PICTURES
from lineside.machine import lacking
from lineside.strict import nearest

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
MAX_RECORD = 4 << 20  # bytes of a record beside a picture
MAX_MEMBERS = 32  # files of one tar sample
BATCH_ROWS = 32  # of a Parquet file in memory at once
MAX_SECONDS = 7 * 86400  # of a video; a longer one has wrong time stamps
JPEG_QUALITY = 95  # of frames taken from a video
# Containers with pictures inside; a playlist would make the decoder open other files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts"


@dataclass(frozen=True, slots=True)
class Row:
    """One input: its place, its columns, and a function that reads its picture.

    `picture` is None when a column names the picture's file. It may raise LinesideError or OSError.
    """

    place: str
    values: Mapping[str, Any]
    picture: Callable[[], bytes] | None = None


class Reader(Protocol):
    """Inputs in order. Without `pictures` nothing is decoded and `Row.picture` must not be called."""

    path: Path  # for messages
    scene: str | None  # column of the scene if the mapping names none; None: each row is a scene

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        """Every input once. Raises LinesideError when the whole source cannot be read."""
        ...


class FolderReader:
    """Every file of a folder and its subfolders, by name; columns `image` (path), `folder` and `name`."""

    scene: str | None = None

    def __init__(self, path: Path, without: str | None = None) -> None:
        """`without`: a folder inside whose pictures are no frames."""
        self.path, self._without = path, f"{without}/" if without else None

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        for name in walk(self.path):
            if self._without and (name.name if isinstance(name, Rejected) else name).startswith(self._without):
                continue
            if isinstance(name, Rejected):
                yield name
                continue
            if name.lower().endswith(TABLES):
                yield Rejected(name, "a table, not a picture: name it with `file` to read its rows")
                continue
            pure = PurePosixPath(name)
            folder = "" if str(pure.parent) == "." else str(pure.parent)
            yield Row(name, {"image": name, "folder": folder, "name": pure.stem}, _later(self.path / name))


class TableReader:
    """A CSV or JSON-lines file; one of its columns names the files of the pictures."""

    scene: str | None = None

    def __init__(self, path: Path, form: Form | None = None) -> None:
        self.path, self._form = path, form or Form()

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        for number, row in read_table(self.path, self._form):
            place = f"{self.path}, row {number}"
            yield Rejected(place, row) if isinstance(row, str) else Row(place, row)


class ParquetReader:
    """Parquet files with a column of pictures: bytes, `struct<bytes, path>` as in `datasets`, or paths."""

    scene: str | None = None

    def __init__(self, path: Path, files: list[Path], image: str) -> None:
        self.path, self._files, self._image = path, files, image

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        for file in self._files:
            yield from self._file(file, pictures)

    def _file(self, file: Path, pictures: bool) -> Iterator[Row | Rejected]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as shard:
                fields = [field for field in shard.schema_arrow if _is_value(field.type)]
                names = [field.name for field in fields]
                if twice := {name for name in names if names.count(name) > 1}:
                    raise LinesideError(f"{file}: two columns are called {sorted(twice)[0]!r}: rename one")
                if self._image not in names:
                    raise LinesideError(
                        f"{file}: no column {self._image!r}{nearest(self._image, names)}; it has {', '.join(names)}"
                    )
                kind = shard.schema_arrow.field(self._image).type
                inside = not (_is_text(kind) or pa.types.is_integer(kind))  # 7 may mean 7.jpg
                wanted = [name for name in names if pictures or name != self._image]
                if not inside and not pictures:
                    wanted.append(self._image)  # a path, not a picture
                elif not pictures and isinstance(kind, pa.StructType):
                    wanted.append(f"{self._image}.path")
                for number, values in enumerate(parquet_values(shard, wanted)):
                    yield self._row(file, number, values, inside)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Rejected(str(file), f"cannot be read as Parquet ({reason})")

    def _row(self, file: Path, number: int, values: dict[str, Any], inside: bool) -> Row | Rejected:
        place = f"{file}, row {number}"
        name = f"{file.name}#{number}"
        found = values.get(self._image)
        values = {key: plain(value) for key, value in values.items() if not isinstance(value, bytes)}
        if not inside:
            return Row(place, values)
        if isinstance(found, Mapping):
            name = str(found.get("path") or "") or name
            path, found = found.get("path"), found.get("bytes")
            if found is None and path:  # `datasets` may store only the file's name
                return Row(place, {**values, self._image: name})
        values[self._image] = name
        return Row(place, values, lambda: _bytes(found))


class TarReader:
    """WebDataset tars: neighbouring members with one stem are one sample, a picture with a .json or .txt file.

    The keys of the .json are columns; other small members are columns named by their extension ("txt", "cls").
    """

    scene: str | None = None

    def __init__(self, path: Path, files: list[Path], image: str) -> None:
        self.path, self._files, self._image = path, files, image

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        for file in self._files:
            key, members = "", dict[str, bytes | str]()
            try:
                with _open_tar(file) as tar:
                    for member in tar:
                        if member.isdir():
                            continue
                        stem, extension = _stem(member.name)
                        if stem != key and members:
                            yield self._row(file, key, members)
                            members = {}
                        key, problem = stem, _hostile(member)
                        if extension in members or len(members) == MAX_MEMBERS:
                            problem = "this name occurs twice" if extension in members else "too many members"
                        if problem:
                            members[extension] = f"{member.name[:200]}: {problem}"
                        elif data := tar.extractfile(member):
                            members[extension] = data.read()
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                yield Rejected(
                    str(file), f"the tar breaks off ({type(error).__name__}: {error}) after {key or 'nothing'}"
                )
                members = {}
            if members:
                yield self._row(file, key, members)

    def _row(self, file: Path, key: str, members: Mapping[str, bytes | str]) -> Row | Rejected:
        """A sample from its members. A text instead of bytes says why a member was not read: refused."""
        place = f"{file}: {key[:200]}"
        for problem in members.values():
            if isinstance(problem, str):
                return Rejected(place, problem)
        found = [name for name in members if f".{name.rsplit('.', 1)[-1]}" in PICTURES]
        if self._image in members:
            found = [self._image]
        if len(found) != 1:
            some = f"{len(found)} pictures ({', '.join(found)}): name one with `image`" if found else "no picture"
            return Rejected(place, f"{some}; its members are {', '.join(members)}")
        values: dict[str, Any] = {"key": key}
        for name, data in members.items():
            if name == found[0] or isinstance(data, str):
                continue
            if len(data) > MAX_RECORD:
                return Rejected(place, f"{name} has {len(data)} bytes: at most {MAX_RECORD} are read")
            try:
                text = data.decode("utf-8")
                record = read_json(text) if name == "json" else {name: text.strip()}
            except (ValueError, RecursionError) as error:
                if name == "json":
                    return Rejected(place, f"{name} cannot be read ({error})")
                continue  # an array or a depth picture, which is not read
            if not isinstance(record, dict):
                return Rejected(place, "its json is not an object")
            values |= record
        return Row(place, {**values, self._image: f"{file.name}/{key}"}, lambda: _bytes(members[found[0]]))


class VideoReader:
    """A frame of each video every `every` seconds; columns `video`, `second`, `folder`, and `time` where it is known.

    The seconds are planned from the container's time stamps, so the rows are the same with and without pictures. A
    frame that cannot be decoded is rejected by its second.
    """

    scene: str | None = "video"  # neighbouring seconds look alike and must be in one split

    def __init__(self, path: Path, files: list[Path], every: float) -> None:
        """Raises LinesideError if the video library is missing."""
        self.path, self._files, self._every = path, files, every
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise lacking("av", f"{path}: reading videos") from error

    def rows(self, *, pictures: bool) -> Iterator[Row | Rejected]:
        from av.error import FFmpegError

        for file in self._files:
            name = file.relative_to(self.path).as_posix() if file != self.path else file.name
            try:
                planned, begun = self._plan(file)
            except (FFmpegError, OSError, ValueError, ArithmeticError, LinesideError) as error:
                yield Rejected(name, f"the video cannot be read ({error})")
                continue
            done, reason = 0, "the video breaks off before this second"
            try:
                for second, data in zip(planned, self._decoded(file, planned) if pictures else repeat(b"")):
                    yield self._row(name, second, begun, data)
                    done += 1
            except (FFmpegError, OSError, ValueError, ArithmeticError) as error:
                reason = f"the video cannot be read from here on ({error})"
            for second in planned[done:]:
                yield Rejected(f"{name}@{second:g}s", reason)

    def _plan(self, file: Path) -> tuple[list[float], datetime | None]:
        """(the seconds of the wanted frames, the start of the recording); nothing is decoded."""
        with _video(file) as video:
            if not video.streams.video:
                raise LinesideError("no pictures in it")
            stream = video.streams.video[0]
            if stream.codec_context is None:
                raise LinesideError("its pictures are coded in a way that is not known")
            size = stream.codec_context.width * stream.codec_context.height
            if size > MAX_PIXELS:
                raise LinesideError(f"image too large: {size} pixels; at most {MAX_PIXELS}")
            begun = _moment(video.metadata.get("creation_time", ""))
            stamps = (float(p.pts * p.time_base) for p in video.demux(stream) if p.pts is not None and p.time_base)
            last = max(stamps, default=-1.0)
        if not 0 <= last < MAX_SECONDS:
            raise LinesideError("no pictures in it" if last < 0 else f"{last:.0f} seconds long")
        return [k * self._every for k in range(int(last / self._every + 1e-6) + 1)], begun

    def _row(self, name: str, second: float, begun: datetime | None, data: bytes) -> Row:
        values = {
            "image": f"{name}@{second:g}s",
            "video": name,
            "second": second,
            "folder": "" if "/" not in name else name.rpartition("/")[0],
            "time": (begun + timedelta(seconds=second)).isoformat() if begun else "",
        }
        return Row(str(values["image"]), values, lambda: data)

    def _decoded(self, file: Path, planned: list[float]) -> Iterator[bytes]:
        """JPEG bytes of the first frame at or after each planned second."""
        with _video(file) as video:
            waiting, turn = iter(planned), None
            second = next(waiting, None)
            for number, frame in enumerate(video.decode(video=0)):
                if second is None:
                    return
                if number == 0:
                    turn = _turn_of(frame)
                elif number == 1:
                    gc.collect(1)  # reading side data puts a frame into a reference cycle, with its megabytes
                data = b""
                while second is not None and frame.time is not None and frame.time >= second - 1e-3:
                    if not data:
                        out = io.BytesIO()
                        picture = frame.to_image(threads=1)  # a frame would keep the threads of its conversion
                        picture = picture if turn is None else picture.transpose(turn)
                        picture.save(out, "JPEG", quality=JPEG_QUALITY)
                        data = out.getvalue()
                    yield data
                    second = next(waiting, None)


def _turn_of(frame: Any) -> PIL.Image.Transpose | None:
    """How a player turns the frames of a video: a phone stores its rotation beside the pixels of each."""
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) != 36:
        return None
    a, b, _, c, d = struct.unpack_from("<5i", matrix)  # x' = a x + c y, y' = b x + d y, as FFmpeg's display.h says
    return _TURNS.get((np.sign(a), np.sign(b), np.sign(c), np.sign(d)))


_TURNS = {  # signs of (a, b, c, d)
    (0, 1, -1, 0): PIL.Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): PIL.Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): PIL.Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): PIL.Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): PIL.Image.Transpose.TRANSVERSE,
}


def _video(file: Path) -> Any:
    """A container opened for reading; the decoder refuses formats that refer to other files."""
    import av

    return av.open(str(file), options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"})


def plain(value: Any) -> Any:
    """An Arrow value as a value of a record: times as ISO text, decimals as numbers, NaN as null, bytes left out.

    A whole float becomes an integer: pandas turns a column of integers into floats if one is missing.
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None  # pandas writes NaN for a missing value
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value if not isinstance(v, bytes)]
    return value


def _later(path: Path) -> Callable[[], bytes]:
    return lambda: read_file(path)


def _bytes(found: Any) -> bytes:
    if isinstance(found, list):
        raise LinesideError(f"a list of {len(found)} pictures in this row: expected one row for each picture")
    if not isinstance(found, bytes) or not found:
        raise LinesideError("no image bytes in this row")
    return found


def _is_value(kind: Any) -> bool:
    """Whether a Parquet column can be a value of a record or a picture; unions and extension types cannot be."""
    import pyarrow as pa

    return not pa.types.is_union(kind) and not isinstance(kind, pa.ExtensionType)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def parquet_values(shard: Any, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of an open Parquet file by column, as exact Python values."""
    converters = _converters(list(shard.schema_arrow), shard.schema_arrow.metadata)
    for batch in shard.iter_batches(batch_size=BATCH_ROWS, columns=columns):
        for values in _microseconds(batch).to_pylist():
            for name in converters.keys() & values.keys():
                values[name] = _each(values[name], converters[name])
            yield values


def _microseconds(batch: Any) -> Any:
    """The batch with its times in microseconds, Python's precision; finer digits are cut off."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if getattr(field.type, "unit", "") == "ns":
            zone = (field.type.tz,) if pa.types.is_timestamp(field.type) else ()
            make = pa.timestamp if zone else pa.duration if pa.types.is_duration(field.type) else pa.time64
            batch = batch.set_column(place, field.name, batch.column(place).cast(make("us", *zone), safe=False))
    return batch


def _converters(fields: list[Any], metadata: Mapping[bytes, bytes] | None) -> dict[str, Callable[[Any], Any]]:
    """Extra conversions by column: single-precision floats as they were written, class indexes to their names."""
    import pyarrow as pa

    found: dict[str, Callable[[Any], Any]] = {}
    for field in fields:
        kind = field.type
        while hasattr(kind, "value_field"):  # a list
            kind = kind.value_type
        if pa.types.is_float32(kind) or pa.types.is_float16(kind):
            single = np.float32 if pa.types.is_float32(kind) else np.float16
            found[field.name] = partial(_as_written, single)
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return found
    for name, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, dict) and "feature" in feature:  # a list
            feature = feature["feature"]
        if (
            isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        ):
            found[name] = partial(_class_label, names=tuple(map(str, feature["names"])))
    return found


def _as_written(kind: type[np.floating[Any]], value: float) -> float:
    return float(str(kind(value)))  # 0.1, not 0.10000000149011612


def _class_label(index: Any, names: tuple[str, ...]) -> Any:
    """The name of a class; -1 stands for no label in the `datasets` library."""
    if index == -1:
        return None
    return ClassLabel(index, names) if isinstance(index, int) and 0 <= index < len(names) else index


def _each(value: Any, convert: Callable[[Any], Any]) -> Any:
    """A value, or each value of a list, converted; null stays null."""
    if isinstance(value, list):
        return [_each(inner, convert) for inner in value]
    return None if value is None else convert(value)


def _open_tar(path: Path) -> tarfile.TarFile:
    """A tar to be read in one pass. Raises TarError, or OSError, for what is none."""
    try:
        return tarfile.open(path, "r|*")
    except TypeError:  # what tarfile makes of a gzip header that ends early
        raise tarfile.ReadError("its first bytes are those of a gzip file, and no more follow") from None


def _hostile(member: tarfile.TarInfo) -> str:
    """Why a member of a tar is not read, "" if it can be read. Nothing is ever written under its name."""
    name = PurePosixPath(member.name)
    if member.issym() or member.islnk():
        return "a link: only plain files are read"
    if not member.isreg():
        return "not a plain file"
    if name.is_absolute() or ".." in name.parts or "\0" in member.name or "\\" in member.name:
        return "its name leads out of the tar"
    if member.size > MAX_BYTES:
        return f"{member.size} bytes: at most {MAX_BYTES} are read"
    return ""


def _stem(name: str) -> tuple[str, str]:
    """(folder and name up to the first dot, lower-case extension) as WebDataset splits them."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
    except ValueError:
        return None
