"""Frames and samples as Arrow columns, and back. No other file knows the columns of a shard.

The types are plain enough for readers without our code. The `huggingface` entry of a shard's metadata tells `datasets`
that the image columns are pictures. In memory, images are `struct<bytes, path>`, dictionary-encoded by content, so
that the hundred captions of one frame hold its picture once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast, get_args

import pyarrow as pa

from lineside.errors import LinesideError
from lineside.types import SPLITS, Frame, Image, Meta, Role, Sample, SampleKind, Source, Target, frame_images

KINDS: tuple[str, ...] = get_args(SampleKind)
ROLES: tuple[str, ...] = get_args(Role)

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRINGS = pa.list_(pa.string())
OPTIONAL = ("names", "texts")  # columns of views and references: null without any; older shards have no such columns

_META = [
    ("split", pa.string()),
    ("scene", pa.string()),
    ("cell", pa.string()),
    ("camera", pa.string()),
    ("time", pa.string()),
    ("week", pa.int32()),
    ("skus", STRINGS),
    ("extra", pa.string()),
]
FRAME_SCHEMA = pa.schema(
    [("id", pa.string()), ("image", IMAGE), ("family", pa.string()), *_META, ("record", pa.string())]
)
SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("roles", STRINGS),
        ("names", STRINGS),
        ("texts", STRINGS),
        ("family", pa.string()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("trace", pa.string()),
        ("answer", pa.string()),
        ("target", pa.string()),
        *_META,
        ("teacher", pa.string()),
        ("prompt_hash", pa.string()),
        ("date", pa.string()),
    ]
)


def hub_features(schema: pa.Schema) -> str:
    """The JSON that `datasets` reads from the schema metadata: which column is a picture, a string, a list."""

    def feature(kind: pa.DataType) -> Any:
        if kind == IMAGE:
            return {"_type": "Image"}
        if isinstance(kind, pa.StructType):
            return {field.name: feature(field.type) for field in kind}
        if isinstance(kind, pa.ListType) and kind.value_type != IMAGE and isinstance(kind.value_type, pa.StructType):
            return [feature(kind.value_type)]  # "Sequence" of records would become a record of lists
        if pa.types.is_list(kind):
            # "Sequence" is read by every version of datasets; "List" only by 4.0 and later.
            return {"feature": feature(kind.value_type), "_type": "Sequence"}
        return {"dtype": str(kind), "_type": "Value"}

    return json.dumps({"info": {"features": {field.name: feature(field.type) for field in schema}}})


def frames_table(frames: Sequence[Frame]) -> pa.Table:
    """Columns of FRAME_SCHEMA with the picture bytes dictionary-encoded."""
    columns: dict[str, Any] = {
        "id": [f.id for f in frames],
        "image": _image_array([f.image for f in frames]),
        "family": [f.family for f in frames],
        **_meta_columns(frames),
        "record": [_dump(f.record, f.id, "record") for f in frames],
    }
    return _table(columns, FRAME_SCHEMA)


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """Columns of SAMPLE_SCHEMA with the picture bytes dictionary-encoded: equal pictures are held once."""
    offsets, total = [0], 0
    for sample in samples:
        total += len(sample.images)
        offsets.append(total)
    pictures, named = _image_array([image for sample in samples for image in sample.images]), [*map(_named, samples)]
    columns: dict[str, Any] = {
        "id": [s.id for s in samples],
        "kind": [s.kind for s in samples],
        "images": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pictures),
        "roles": [[image.role for image in s.images] for s in samples],
        **{key: [columns.get(key) for columns in named] for key in OPTIONAL},
        "family": [s.family for s in samples],
        "task": [s.task for s in samples],
        "question": [s.question for s in samples],
        "trace": [s.trace for s in samples],
        "answer": [s.answer for s in samples],
        "target": [None if s.target is None else _dump(s.target.to_json(), s.id, "target") for s in samples],
        **_meta_columns(samples),
        "teacher": [s.source.teacher for s in samples],
        "prompt_hash": [s.source.prompt_hash for s in samples],
        "date": [s.source.date for s in samples],
    }
    return _table(columns, SAMPLE_SCHEMA)


def frame_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Plain rows of a frame table; `image` is a (bytes, path) pair."""
    return _rows(table, "image", _read_images(table.column("image")))


def sample_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Plain rows of a sample table; `images` is a list of (bytes, path), equal pictures sharing one bytes object."""
    lists: list[list[tuple[bytes, str]] | None] = []
    shared: dict[bytes, bytes] = {}
    for chunk in table.column("images").chunks:
        flat = iter(_read_images(pa.chunked_array([chunk.flatten()]), shared))
        for size in chunk.value_lengths().to_pylist():
            lists.append(None if size is None else [next(flat) for _ in range(size)])
    return _rows(table, "images", lists)


def frame_of(row: Mapping[str, Any]) -> Frame:
    """Raises LinesideError with the reason (the caller adds file and row) when the row is not a frame."""
    picture, path = row["image"]
    if not picture:
        raise LinesideError("no image bytes: the picture must be inside the row")
    return Frame(
        id=_text(row, "id"),
        image=Image(picture, "frame", path),
        family=_text(row, "family"),
        record=_load(row, "record"),
        meta=_meta(row),
        split=_one_of(row, "split", SPLITS),
    )


def sample_of(row: Mapping[str, Any]) -> Sample:
    """Raises LinesideError with the reason (the caller adds file and row) when the row is not a sample."""
    return Sample(
        id=_text(row, "id"),
        kind=_one_of(row, "kind", KINDS),
        images=_images_of(row),
        family=_text(row, "family"),
        task=row["task"] or "",
        question=row["question"] or "",
        trace=row["trace"],
        answer=row["answer"],
        target=_target(row),
        split=_one_of(row, "split", SPLITS),
        meta=_meta(row),
        source=Source(row["teacher"] or "", row["prompt_hash"] or "", row["date"] or ""),
    )


def _images_of(row: Mapping[str, Any]) -> tuple[Image, ...]:
    """The pictures of a row, each with its role."""
    pictures = row["images"] or []
    if not pictures:
        raise LinesideError("no image bytes: a sample has at least one picture inside the row")
    columns = {"roles": row["roles"] or ["frame"] * len(pictures)}
    columns |= {key: row.get(key) or [""] * len(pictures) for key in OPTIONAL}
    for key, values in columns.items():
        if len(values) != len(pictures):
            each = "each image has one role" if key == "roles" else "one for each image"
            raise LinesideError(f"{len(pictures)} images but {len(values)} {key}: {each}")
    found: list[Image] = []
    for (data, path), role, name, text in zip(pictures, columns["roles"], columns["names"], columns["texts"]):
        if role not in ROLES:
            raise LinesideError(f"role {role!r}: expected one of {', '.join(ROLES)}")
        if role == "reference" and not data:
            raise LinesideError(f"no image bytes: the reference picture of {name!r} must be inside the row")
        found.append(Image(data, cast(Role, role), path, name=name or "", text=text or ""))
    if not all(image.bytes for image in found):
        raise LinesideError("no image bytes: every picture of a sample is inside the row")
    if not frame_images(found):
        raise LinesideError("no picture of the frame: all pictures are references")
    return tuple(found)


def sample_extra(sample: Sample) -> dict[str, Any]:
    """Everything in a sample except its picture bytes, as plain data; `sample_from` is the inverse."""
    meta = sample.meta
    return {
        "id": sample.id,
        "kind": sample.kind,
        "family": sample.family,
        "task": sample.task,
        "question": sample.question,
        "trace": sample.trace,
        "answer": sample.answer,
        "target": None if sample.target is None else sample.target.to_json(),
        "split": sample.split,
        "meta": {
            **{f.name: getattr(meta, f.name) for f in fields(meta)},
            "skus": list(meta.skus),
            "extra": dict(meta.extra),
        },
        "source": asdict(sample.source),
        "roles": [image.role for image in sample.images],
        "paths": [image.path for image in sample.images],
    } | _named(sample)


def _named(sample: Sample) -> dict[str, list[str]]:
    """The columns of views and references; none without any."""
    if not any(image.label for image in sample.images):
        return {}
    return {"names": [image.name for image in sample.images], "texts": [image.text for image in sample.images]}


def sample_from(data: Mapping[str, Any], images: Sequence[Image]) -> Sample:
    """The inverse of `sample_extra`. Raises KeyError, TypeError or LinesideError for other data."""
    meta, target = dict(data["meta"]), data["target"]
    row = {**data, **meta, **data["source"], "images": [(i.bytes, i.path) for i in images], "target": None}
    row["extra"] = json.dumps(meta["extra"])
    for name in (
        "id",
        "family",
        "task",
        "question",
        "scene",
        "cell",
        "camera",
        "time",
        "teacher",
        "prompt_hash",
        "date",
    ):
        if not isinstance(row[name], str):
            raise TypeError(f"{name} is not text")
    return replace(sample_of(row), target=None if target is None else Target.from_json(target))


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, schema.field(name).type)
        for name, values in columns.items()
    ]
    return pa.table(arrays, names=list(columns))


def _image_array(images: Sequence[Image]) -> pa.StructArray:
    """struct<dictionary<binary>, string>: each distinct picture once."""
    position: dict[bytes, int] = {}
    indices = [position.setdefault(image.bytes, len(position)) for image in images]
    data = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(position), pa.binary()))
    return pa.StructArray.from_arrays(
        [data, pa.array([image.path for image in images], pa.string())], ["bytes", "path"]
    )


def _read_images(column: pa.ChunkedArray, shared: dict[bytes, bytes] | None = None) -> list[tuple[bytes, str]]:
    """(bytes, path) of each struct; `shared` reuses objects for equal pictures across calls. A null is (b"", "")."""
    shared = {} if shared is None else shared
    out: list[tuple[bytes, str]] = []
    for chunk in column.chunks:
        data, paths = chunk.field("bytes"), chunk.field("path").to_pylist()
        if isinstance(data, pa.DictionaryArray):
            indices = data.indices.to_pylist()
            pictures = {i: data.dictionary[i].as_py() for i in set(indices) if i is not None}
            values = [pictures[i] if i is not None else None for i in indices]
        else:
            values = data.to_pylist()
        for value, path in zip(values, paths):
            value = value or b""
            out.append((shared.setdefault(value, value), path or ""))
    return out


def _rows(table: pa.Table, image_column: str, images: Sequence[Any]) -> list[dict[str, Any]]:
    names = table.column_names
    columns = [images if name == image_column else table.column(name).to_pylist() for name in names]
    return [dict(zip(names, values)) for values in zip(*columns)]


def _meta_columns(items: Sequence[Frame] | Sequence[Sample]) -> dict[str, list[Any]]:
    return {
        "split": [i.split for i in items],
        "scene": [i.meta.scene for i in items],
        "cell": [i.meta.cell for i in items],
        "camera": [i.meta.camera for i in items],
        "time": [i.meta.time for i in items],
        "week": [i.meta.week for i in items],
        "skus": [list(i.meta.skus) for i in items],
        "extra": [_dump(i.meta.extra, i.id, "extra") for i in items],
    }


def _meta(row: Mapping[str, Any]) -> Meta:
    return Meta(
        scene=row["scene"] or "",
        cell=row["cell"] or "",
        camera=row["camera"] or "",
        time=row["time"] or "",
        week=row["week"] or 0,
        skus=tuple(row["skus"] or ()),
        extra=_load(row, "extra"),
    )


def _target(row: Mapping[str, Any]) -> Target | None:
    if row["target"] is None:
        return None
    data = _load(row, "target")
    try:
        return Target.from_json(data)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LinesideError(f"target {str(data)[:120]}: {error}") from error


def _text(row: Mapping[str, Any], name: str) -> str:
    if not row[name]:
        raise LinesideError(f"column {name!r} is empty: every row needs one")
    return row[name]


def _one_of(row: Mapping[str, Any], name: str, allowed: Sequence[str]) -> Any:
    if row[name] not in allowed:
        raise LinesideError(f"{name} {row[name]!r}: expected one of {', '.join(allowed)}")
    return row[name]


def _dump(value: Any, row_id: str, column: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise LinesideError(
            f"{row_id}: {column} cannot be written as JSON ({error}); use strings, finite numbers, lists"
        ) from error


def _load(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    text = row[column]
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LinesideError(f"column {column!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise LinesideError(f"column {column!r} holds a {type(value).__name__}: expected a JSON object")
    return value
