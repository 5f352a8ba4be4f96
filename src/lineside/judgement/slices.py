"""A page with any selection of samples and their pictures. The same data and conditions give the same page."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lineside.data import store
from lineside.data.shards import SAMPLES, scan
from lineside.errors import LinesideError
from lineside.hashing import stable_hash
from lineside.images import image_key, jpeg_uri, thumbnail
from lineside.judgement.html import fill_template
from lineside.strict import nearest
from lineside.types import Sample
from lineside.verify.traces import problem_of_trace

TEMPLATE = "samples.html.j2"
COLUMNS = ("kind", "split", "family", "task", "answer", "cell", "camera", "time", "week", "scene", "teacher", "id")
COUNTED = ("kind", "split", "family", "task", "answer", "teacher")  # counted beside the samples, commonest first
COMMONEST = 8


def conditions(words: Sequence[str]) -> dict[str, str]:
    """["task=count", "split=train"] as a mapping. Raises LinesideError for text that is not column=value."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise LinesideError(f"--where {word!r}: expected column=value, such as task=count_all")
        if name not in COLUMNS:
            raise LinesideError(f"--where {word!r}: no column {name!r}{nearest(name, COLUMNS)}; {', '.join(COLUMNS)}")
        found[name] = value
    return found


def render_slice(data: Path, where: Mapping[str, str], *, limit: int, seed: int = 0) -> str:
    """A page of at most `limit` samples that match all conditions, drawn by hash. Pictures of others are not read.

    Raises LinesideError when none matches.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    drawn: list[tuple[int, Path, int]] = []
    total = 0
    for path in store.sample_shards(data, kind=where.get("kind"), split=where.get("split")):
        for number, row in enumerate(store.read_columns(path, COLUMNS)):
            if any(str(row[name]) != value for name, value in where.items()):
                continue
            total += 1
            for name in COUNTED:
                counts[name][str(row[name])] += 1
            place = (-stable_hash(seed, path.name, row["id"]), path, number)
            if len(drawn) < limit:
                heapq.heappush(drawn, place)
            else:
                heapq.heappushpop(drawn, place)
    if not total:
        asked = ", ".join(f"{name}={value}" for name, value in where.items()) or "anything"
        raise LinesideError(f"{data}: no sample has {asked}")
    samples = _read(drawn)
    pictures = {image_key(i.bytes): _data_uri(i.bytes, s.id) for s in samples for i in s.images}
    return fill_template(
        TEMPLATE,
        name=str(data),
        where=where,
        total=total,
        counts=[(name, count.most_common(COMMONEST), len(count)) for name, count in counts.items()],
        samples=[
            {
                "sample": sample,
                "pictures": [pictures[image_key(image.bytes)] for image in sample.images],
                "problem": problem_of_trace(sample) if sample.kind == "qa" and sample.split == "train" else "",
            }
            for sample in samples
        ],
    )


def _read(drawn: Sequence[tuple[int, Path, int]]) -> list[Sample]:
    """The drawn samples, shard by shard in their order."""
    found: list[Sample] = []
    for path in sorted({path for _, path, _ in drawn}):
        rows = {number for _, other, number in drawn if other == path}
        for number, item in scan(path, SAMPLES):
            if number in rows and isinstance(item, Sample):
                found.append(item)
    return found


def _data_uri(data: bytes, name: str) -> str:
    try:
        return jpeg_uri(thumbnail(data, name=name))
    except LinesideError:
        return ""  # `validate` names it; the others are still shown
