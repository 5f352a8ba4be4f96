"""report: a run, or a selection of samples, as one page (DESIGN 8, 10).

Reads a run folder (evaluations, their rows and small pictures, training metrics, the recipe) and writes `report.html`:
self-contained, no script, no download. Stages without results are left out, and `train` rewrites the page after each
stage. Nothing is computed for it but paired differences; all other numbers come from evaluation files. A folder of
samples gives a page with any selection of them and their pictures: the same data and conditions give the same page.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lineside.data.shards import SAMPLES, scan
from lineside.data.store import read_columns, sample_shards
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.hashing import stable_hash
from lineside.images import image_key, jpeg_uri, thumbnail
from lineside.judgement.html import fill_template
from lineside.judgement.page import PAGE, render
from lineside.judgement.rundata import Finding, Run, paired_findings, read_run
from lineside.strict import nearest
from lineside.types import Sample
from lineside.verify.traces import problem_of_trace

SHOWN = 60  # samples on a page
TEMPLATE = "samples.html.j2"
COLUMNS = ("kind", "split", "family", "task", "answer", "cell", "camera", "time", "week", "scene", "teacher", "id")
COUNTED = ("kind", "split", "family", "task", "answer", "teacher")  # counted beside the samples, commonest first
COMMONEST = 8


def report(
    folder: Path, *, out: Path | None = None, where: Sequence[str] = (), limit: int = SHOWN, seed: int = 0
) -> Path:
    """Writes the page of a run, or of a folder of samples, to `out` (default `report.html` in it) atomically and
    returns its path.

    `where` ("task=count_all") and `limit` select samples. Raises LinesideError when `folder` is neither, a file in it
    is broken, or no sample matches.
    """
    path = out or folder / PAGE
    if folder.is_dir() and sample_shards(folder):
        page = _render_samples(folder, _conditions(where), limit=limit, seed=seed)
    elif where:
        raise LinesideError(f"{folder}: --where selects samples, and this folder holds none")
    else:
        run = read_run(folder)
        page = _rendered(run, paired_findings(run, seed=seed))
    write_atomic(path, page)
    return path


def _rendered(run: Run, findings: Sequence[Finding]) -> str:
    """The page. Raises LinesideError for a data card that no page can show, in whatever way it is damaged."""
    try:
        return render(run, findings)
    except Exception as error:
        if run.data is None or isinstance(error, LinesideError):
            raise
        render(replace(run, data=None), findings)  # else the card is not the cause
        raise LinesideError(
            f"{run.folder / 'data.json'}: not a data card ({type(error).__name__}: {str(error)[:100]}); delete it to "
            "write it again"
        ) from error


def _conditions(words: Sequence[str]) -> dict[str, str]:
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


def _render_samples(data: Path, where: Mapping[str, str], *, limit: int, seed: int = 0) -> str:
    """A page of at most `limit` samples that match all conditions, drawn by hash. Pictures of others are not read.

    Raises LinesideError when none matches.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    drawn: list[tuple[int, Path, int]] = []
    total = 0
    for path in sample_shards(data, kind=where.get("kind"), split=where.get("split")):
        for number, row in enumerate(read_columns(path, COLUMNS)):
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
