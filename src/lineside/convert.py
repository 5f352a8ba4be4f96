"""convert: from other trainers' formats to samples and back, without change in either direction.

Rows are streamed. A row that cannot be used is refused: `refused.jsonl` has its number and the reason; the others are
converted. The new folder is filled only when all rows are written, so a conversion that failed can be run again. Left
out: pictures on the web, sound, video, tool calls, preference pairs.
"""

from __future__ import annotations

import heapq
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from lineside.data import rows as columns
from lineside.data import store
from lineside.data.conversations import ARRAYS, FORMATS, Format, is_row
from lineside.data.formats import FOREIGN, foreign_row, row_of, samples_of
from lineside.data.pictures import Loader, picture_of, safe_name
from lineside.data.rowfiles import rows_of, write_json, write_parquet
from lineside.data.shards import disk
from lineside.errors import LinesideError
from lineside.files import LOCK, flush_all, hold, rename, settle
from lineside.images import image_key
from lineside.progress import say, track
from lineside.types import SPLITS, Image, Sample

OURS = "lineside"
REFUSED = "refused.jsonl"
UNFINISHED = ".unfinished"
TOLD = 12  # most keys named in a message


@dataclass
class Converted:
    """The account: every row that was read is written or refused."""

    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)  # by kind
    written: int = 0
    refused: int = 0
    first_refusal: str = ""
    suites: int = 0  # samples whose split is not train
    unread: Counter[str] = field(default_factory=Counter)  # number of rows by key that is not used
    longest: tuple[int, str] = (0, "")  # characters of question, trace and answer; id of the sample


def convert(
    source: Path,
    out: Path,
    *,
    from_: str | None = None,
    to: str = OURS,
    images: Path | None = None,
    captions: bool = False,
    family: str = "foreign",
    bits: int | None = None,
) -> Converted:
    """Read `source` and write it to the new folder `out`; returns the account.

    `from_`, `to`: "lineside" (a folder of samples) or one of FORMATS; without `from_` the format is found row by row.
    `images`: folder that the rows' picture paths are in; by default the folder of the file. `captions`: foreign rows of
    one turn are captions. `bits`: how many bits the camera uses in grey pictures of 16 bits. Raises LinesideError when
    nothing can be read, or `out` is not empty.
    """
    if not source.exists():
        raise LinesideError(f"{source}: no such file or folder")
    if images is not None and not images.is_dir():
        raise LinesideError(f"{images}: no such folder of pictures; --images names the folder of the rows' paths")
    for name in (from_, to):
        if name not in (None, OURS, *FORMATS):
            raise LinesideError(f"no format {name!r}; expected one of {', '.join((OURS, *FORMATS))}")
    ours = from_ == OURS or (from_ is None and source.is_dir() and bool(store.sample_shards(source)))
    account = Converted()
    with _unfinished(out) as work:
        with open(work / REFUSED, "w", encoding="utf-8") as refused:
            if ours:
                samples = _ordered(source)
            else:
                form = None if from_ in (None, "parquet") else cast(Format, from_)
                load = Loader(images or (source if source.is_dir() else source.parent), bits=bits)
                read = _read(source, form, load, refused, account, captions=captions, family=family)
                samples = track(read, total=None, unit="samples", label="convert")
            _write(samples, work, to, account)
        if not account.written:
            settle(work / REFUSED, out / REFUSED)
            told = f"{account.refused} of {account.rows} rows refused, see {out / REFUSED}; {account.first_refusal}"
            raise LinesideError(f"{source}: nothing could be converted: {told if account.rows else 'it holds no rows'}")
    _tell(account, out)
    if to == OURS and not ours:
        _tell_use(account, out)
    return account


def _tell(account: Converted, out: Path) -> None:
    """Report what happened to the rows."""
    told = f"{account.rows:,} rows, " if account.rows else ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(account.samples.items()))
    say(f"convert: {told}{kinds} -> {account.written:,} written to {out}; {account.refused:,} refused")
    if account.refused:
        say(f"convert: refused, see {out / REFUSED}: {account.first_refusal}")
    if account.unread:
        keys = ", ".join(f"{key} ({count})" for key, count in account.unread.most_common(TOLD))
        say(f"convert: these keys (rows) are not used: {keys}")


def _tell_use(account: Converted, out: Path) -> None:
    """Report which kinds of sample are missing for training, and what needs a model to check."""
    size, name = account.longest
    say(
        f"convert: the longest sample, {name}, has {size:,} characters; `lineside validate {out} --checkpoint MODEL` "
        "says whether all fit a model"
    )
    needed = {"captions for align": "caption", "questions for sft": "qa", "prompts for rlvr": "prompt"}
    lacking = [name for name, kind in needed.items() if not account.samples[kind]]
    if lacking := [*lacking, *["suite for evaluate"] * (not account.suites)]:
        say(
            f"convert: this data has no {', no '.join(lacking)}: nothing but their author supports the answers of "
            "foreign rows. Train on it beside labelled data, with this in the recipe: "
            f"data: {{samples: LABELLED, mix: [{{samples: {out}, weight: 1}}]}}"
        )


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write in. On success its content moves to `out`; else it is removed.

    Raises LinesideError if `out` holds anything but the remains of a failed attempt, or if another process writes
    into it.
    """
    work = out / UNFINISHED
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {UNFINISHED, REFUSED, LOCK}):
        raise LinesideError(f"{out} exists: give a new folder, or remove it")
    with hold(out), disk(out, "data"):
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            flush_all(work)
            for path in sorted(work.iterdir(), key=lambda path: (path.suffix == ".parquet", path.name)):
                rename(path, out / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _read(
    source: Path,
    form: Format | None,
    load: Loader,
    refused: TextIO,
    account: Converted,
    *,
    captions: bool,
    family: str,
) -> Iterator[Sample]:
    """The samples of a source's rows. Refused rows are written to `refused` at once."""
    for number, row in rows_of(source, is_row):
        account.rows += 1
        try:
            if isinstance(row, LinesideError):
                raise row
            samples, unread = samples_of(row, number, form, load, captions=captions, family=family)
        except (LinesideError, RecursionError) as error:
            reason = str(error) if isinstance(error, LinesideError) else "nested too deep"
            account.refused += 1
            account.first_refusal = account.first_refusal or f"row {number}: {reason}"
            refused.write(json.dumps({"row": number, "reason": reason}, ensure_ascii=False) + "\n")
            continue
        account.unread.update(unread)
        for sample in samples:
            size = sum(len(text or "") for text in (sample.question, sample.trace, sample.answer))
            account.longest = max(account.longest, (size, sample.id))
            account.suites += sample.split != "train"
            yield sample


def _ordered(folder: Path) -> Iterator[Sample]:
    """Samples in the order of the files; foreign ones in the order of their rows, which kind and split set apart."""
    if not store.sample_shards(folder):
        raise LinesideError(f"{folder}: no samples (<kind>-<split>-*.parquet) in it")
    for kind, split in itertools.product(columns.KINDS, SPLITS):
        if (kind, split) == ("caption", "train"):  # foreign samples are captions and questions of the split train
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
        write_parquet(rows, out / "data.parquet")
    else:
        write_json(rows, out / ("data.json" if form in ARRAYS else "data.jsonl"), array=form in ARRAYS)


def _rows(
    samples: Iterator[Sample], out: Path, form: Format, account: Converted
) -> Iterator[tuple[dict[str, Any], Sequence[Image]]]:
    """(row, its pictures) of each of our samples and each foreign row; pictures go into files or into the row."""
    names: dict[str, str] = {}  # foreign pictures by path: the same path must be the same picture
    for number, group in itertools.groupby(samples, key=lambda sample: _place(sample)[0]):
        # A foreign row is written once, with the pictures of its last turn. Each of our samples (number -1) is a row.
        for first in group:
            account.samples[first.kind] += 1
            foreign, images = number >= 0 and foreign_row(first, form, ()) is not None, first.images
            for later in group if foreign else ():
                account.samples[later.kind] += 1
                images = max(images, later.images, key=len)
            paths = [_path(image, names, foreign=foreign) for image in images]
            if form != "parquet":
                for image, path in zip(images, paths):
                    (out / path).parent.mkdir(parents=True, exist_ok=True)
                    (out / path).write_bytes(image.bytes)
            account.written += 1
            row = foreign_row(first, form, paths) if foreign else row_of(first, form, paths)
            yield cast(dict[str, Any], row), [Image(i.bytes, i.role, path) for i, path in zip(images, paths)]


def _path(image: Image, names: dict[str, str], *, foreign: bool) -> str:
    """Path of a picture: made from its content, or as a foreign row gives it."""
    if not foreign:
        return picture_of(image.bytes).path
    path, key = str(safe_name(image.path)), image_key(image.bytes)
    if names.setdefault(path, key) != key:
        raise LinesideError(f"the path {path} names two different pictures: convert one data set at a time")
    return path
