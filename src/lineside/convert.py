"""convert: everyone's formats to samples and back; what was ours comes back as it was, what was foreign too.

Rows are streamed. A row that cannot be used is refused by its number with a reason, in `refused.jsonl`; the rest goes
on. The data file appears under its name when it is whole. Left out: pictures on the net, sound, tools and video turns.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lineside.data import rows as columns
from lineside.data import store
from lineside.data.formats import (
    ARRAYS,
    FOREIGN,
    FORMATS,
    Format,
    Refused,
    foreign_row,
    guess,
    json_rows,
    parquet_rows,
    row_of,
    safe_name,
    samples_of,
)
from lineside.data.readers import read_file
from lineside.data.shards import disk
from lineside.errors import LinesideError
from lineside.images import decode, for_the_web, image_key
from lineside.progress import say, track
from lineside.types import Image, Sample

OURS = "lineside"
REFUSED = "refused.jsonl"
PARQUET_ROWS = 256  # in a row group


@dataclass
class Converted:
    """The account: every row read is written or refused."""

    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)  # by kind
    written: int = 0
    refused: int = 0


def convert(
    source: Path,
    out: Path,
    *,
    from_: str | None = None,
    to: str = OURS,
    images: Path | None = None,
    captions: bool = False,
    family: str = "foreign",
) -> Converted:
    """Read `source` and write it to the new folder `out`; returns the account.

    `from_`, `to`: "lineside" (a folder of samples) or one of FORMATS; `from_` is told by the first row if not given.
    `images`: folder that the rows' pictures are named in; beside the file by default. `captions`: foreign rows of one
    turn are captions. Raises LinesideError when nothing can be read, or `out` holds something already.
    """
    if not source.exists():
        raise LinesideError(f"{source}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LinesideError(f"{out} is there already: give a new folder, or remove it")
    form = from_ or _form_of(source)
    for name in (form, to):
        if name not in (OURS, *FORMATS):
            raise LinesideError(f"no format {name!r}; there are {', '.join((OURS, *FORMATS))}")
    account = Converted()
    with disk(out, REFUSED):
        out.mkdir(parents=True, exist_ok=True)
    with _Refusals(out / REFUSED) as refusals:
        if form == OURS:
            samples = _ordered(source)
        else:
            load = _Loader(images or (source if source.is_dir() else source.parent))
            read = _read(source, cast(Format, form), load, refusals, account, captions=captions, family=family)
            samples = track(read, total=None, unit="samples", label="convert")
        _write(samples, out, to, account)
    account.refused = refusals.count
    if not account.written:
        raise LinesideError(f"{source}: nothing could be converted; {refusals.told or 'it holds no rows'}")
    told = f"{account.rows} rows, " if account.rows else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(account.samples.items()))
    say(f"convert: {told}{kinds} -> {account.written} written to {out}; {account.refused} refused")
    if account.refused:
        say(f"convert: refused, see {out / REFUSED}: {refusals.told}")
    return account


def _form_of(source: Path) -> str:
    if source.is_dir():
        return OURS if store.sample_shards(source) else "parquet"
    if source.suffix == ".parquet":
        return "parquet"
    first = next((row for _, row in json_rows(source) if not isinstance(row, LinesideError)), None)
    return guess(first)


class _Loader:
    """Pictures by the names that rows give them; the last one is kept, since neighbours often share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: tuple[Any, Image] | None = None

    def __call__(self, named: Any) -> Image:
        if self._last is not None and self._last[0] == named:
            return self._last[1]
        if isinstance(named, tuple):
            data, path = named
        else:
            path = str(safe_name(named))
            data = read_file(self._folder / path)
        data = for_the_web(data)
        decode(data)
        image = Image(data, "frame", path if isinstance(named, tuple) else named)
        self._last = named, image
        return image


class _Refusals:
    """`refused.jsonl`, written as it comes."""

    def __init__(self, path: Path) -> None:
        self.count, self.told = 0, ""
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 # closed by __exit__

    def add(self, refused: Refused) -> None:
        self.count += 1
        self.told = self.told or f"row {refused.row}: {refused.reason}"
        self._file.write(json.dumps({"row": refused.row, "reason": refused.reason}, ensure_ascii=False) + "\n")

    def __enter__(self) -> _Refusals:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._file.close()


def _read(
    source: Path,
    form: Format,
    load: _Loader,
    refusals: _Refusals,
    account: Converted,
    *,
    captions: bool,
    family: str,
) -> Iterator[Sample]:
    if form == "parquet":
        files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
        found = parquet_rows(files)
    else:
        found = json_rows(source)
    for number, row in found:
        account.rows += 1
        try:
            if isinstance(row, LinesideError):
                raise row
            samples = samples_of(row, number, form, load, captions=captions, family=family)
        except LinesideError as error:
            refusals.add(Refused(number, str(error)))
            continue
        yield from samples


def _ordered(folder: Path) -> Iterator[Sample]:
    """Samples as they lie, but foreign ones in the order of their rows, which lie apart by kind and split."""
    if not store.sample_shards(folder):
        raise LinesideError(f"{folder}: no samples (<kind>-<split>-*.parquet) here")
    for kind, split in itertools.product(columns.KINDS, columns.SPLITS):
        if (kind, split) == ("caption", "train"):  # foreign samples are captions and questions of train
            both = (store.read_samples(folder, kind=k, split="train") for k in ("caption", "qa"))
            yield from heapq.merge(*both, key=_place)
        elif (kind, split) != ("qa", "train"):
            yield from store.read_samples(folder, kind=kind, split=split)


def _place(sample: Sample) -> tuple[int, int]:
    kept = sample.meta.extra.get(FOREIGN)
    return (kept["row"], kept["turn"]) if isinstance(kept, dict) else (-1, 0)


def _write(samples: Iterator[Sample], out: Path, to: str, account: Converted) -> None:
    if to == OURS:
        with store.SampleWriter(out) as writer:
            for sample in samples:
                account.samples[sample.kind] += 1
                writer.add(sample)
        account.written = writer.written
        return
    form = cast(Format, to)
    rows = _rows(samples, out, form, account)
    if form == "parquet":
        _write_parquet(rows, out / "data.parquet")
    else:
        _write_json(rows, out / ("data.json" if form in ARRAYS else "data.jsonl"), array=form in ARRAYS)


def _rows(
    samples: Iterator[Sample], out: Path, form: Format, account: Converted
) -> Iterator[tuple[dict[str, Any], Sequence[Image]]]:
    """(row, its pictures) of each of our samples and each foreign row; pictures are written beside, or go inside."""
    names: dict[str, str] = {}  # of foreign pictures, by path: the same path must be the same picture
    for number, group in itertools.groupby(samples, key=lambda sample: _place(sample)[0]):
        row: dict[str, Any] | None = None
        for first in group:
            account.samples[first.kind] += 1
            row = foreign_row(first, form) if number >= 0 else None
            images = first.images
            if row is not None:
                for later in group:  # a later turn may show pictures that the first does not
                    account.samples[later.kind] += 1
                    images = max(images, later.images, key=len)
            paths = [_path(image, names, foreign=row is not None) for image in images]
            if form != "parquet":
                for image, path in zip(images, paths):
                    _write_picture(out / path, image.bytes)
            account.written += 1
            inside = [Image(image.bytes, image.role, path) for image, path in zip(images, paths)]
            yield (row if row is not None else row_of(first, form, paths)), inside


def _path(image: Image, names: dict[str, str], *, foreign: bool) -> str:
    """Where a picture goes: by its content, or where a foreign row says that it is."""
    key = image_key(image.bytes)
    if not foreign:
        return f"images/{key}.{_suffix(image.bytes)}"
    path = str(safe_name(image.path))
    if names.setdefault(path, key) != key:
        raise LinesideError(f"the path {path} names two different pictures: convert one data set at a time")
    return path


def _write_picture(path: Path, data: bytes) -> None:
    if path.exists():
        return
    with disk(path.parent, path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
        temporary.write_bytes(data)
        os.replace(temporary, path)


def _write_json(rows: Iterator[tuple[dict, Sequence[Image]]], path: Path, *, array: bool) -> None:
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with disk(path.parent, path.name):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write("[\n" if array else "")
                for number, (row, _) in enumerate(rows):
                    file.write(",\n" if array and number else "")
                    file.write(json.dumps(row, ensure_ascii=False) + ("" if array else "\n"))
                file.write("\n]\n" if array else "")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_parquet(rows: Iterator[tuple[dict, Sequence[Image]]], path: Path) -> None:
    """`messages` with the pictures inside, so that `datasets` and what is built on it show them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))),
            ("images", pa.list_(columns.IMAGE)),
            ("lineside", pa.string()),
        ]
    )
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with disk(path.parent, path.name):
        try:
            features = {"huggingface": columns.hub_features(schema)}
            with pq.ParquetWriter(temporary, schema.with_metadata(features), compression="zstd") as writer:
                while batch := list(itertools.islice(rows, PARQUET_ROWS)):
                    writer.write_table(
                        pa.Table.from_pylist(
                            [
                                {**row, "images": [{"bytes": i.bytes, "path": i.path} for i in images]}
                                for row, images in batch
                            ],
                            schema=schema,
                        )
                    )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _suffix(data: bytes) -> str:
    return "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpg"
