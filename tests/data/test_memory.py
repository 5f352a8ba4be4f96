"""What is kept of a row is a few bytes: memory is counted early and late in one pass over the rows."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from lineside import progress
from lineside.data import duplicates, shards, store
from lineside.data.checks import inspect
from lineside.label import label
from lineside.recipe import Label
from lineside.types import Image, Meta, Sample, Source

ROWS = 1000
EARLY, LATE = 200, 900  # rows: what is kept by then is compared
NEAR = range(0, 100, 4)  # rows after each, of which the least counts: buffers fill and empty

TASKS = """
table: {file: "*.parquet", family: picking}
captions: [{family: picking, templates: ["{caption}"]}]
tasks:
  - family: picking
    name: colour
    phrasings: ["Which colour?"]
    answer: {kind: exact, column: colour}
"""


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and caches of a fixed size are full after a few rows."""
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 16)
    for name, value in {"MOST_KEPT": 16, "NEAREST": 8, "SAMPLED": 4, "DEGRADED": 2}.items():
        monkeypatch.setattr(duplicates, name, value)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of rows with a picture each; by default a fifth of the rows are in suites."""
    drawn, folder = io.BytesIO(), tmp_path_factory.mktemp("frames")
    Pil.radial_gradient("L").resize((24, 24)).convert("RGB").save(drawn, "PNG")
    for file in range(4):
        rows = [
            {"image": drawn.getvalue() + number.to_bytes(4, "big"), "caption": f"part {number}", "colour": "red"}
            for number in range(file * ROWS // 4, (file + 1) * ROWS // 4)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet")
    (folder.parent / "tasks.yaml").write_text(TASKS)
    return folder


def kept_of_a_row(run: Callable[[], object], wanted: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Bytes that a pass called `wanted` keeps of each row between EARLY and LATE."""
    counted_rows, seen = {start + more for start in (EARLY, LATE) for more in NEAR}, dict[int, int]()

    def counted(items: Iterable[Any], total: int | None, unit: str, name: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if name == wanted and number in counted_rows:
                gc.collect()  # pictures refer to themselves
                seen[number] = tracemalloc.get_traced_memory()[0]
            yield item

    monkeypatch.setattr(progress, "_lines", counted)
    gc.freeze()  # what is there already need not be looked through
    tracemalloc.start()
    try:
        run()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    early, late = (min(seen[start + more] for more in NEAR) for start in (EARLY, LATE))
    return (late - early) / (LATE - EARLY)


def test_of_a_row_label_and_validate_keep_a_few_bytes(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [frames.parent / "tasks.yaml"]
    captions = Label(question_share=0, prompt_share=0)
    plan = partial(label, frames, tmp_path / "s", tasks=tasks, settings=captions)
    assert kept_of_a_row(plan, "label: plan", monkeypatch) < 100
    assert kept_of_a_row(partial(inspect, tmp_path / "s"), "validate", monkeypatch) < 100


def test_of_a_frame_a_stream_keeps_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 256)
    monkeypatch.setattr(store, "WINDOW_ROWS", 256)

    def held(frames: int) -> int:
        folder = tmp_path / str(frames)
        pictures = (Image(number.to_bytes(4, "big")) for number in range(frames))
        samples = (
            Sample(
                image.bytes.hex(), "caption", (image,), "f", "caption", "", None, "a", None, "train", Meta(), Source()
            )
            for image in pictures
        )
        store.write_samples(folder, samples)
        stream = store.stream_frame_samples(folder, kind="caption", split="train", seed=0, epoch=0)
        tracemalloc.start()
        try:
            next(stream)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    held(1)  # what is made once
    assert (held(12_288) - held(4_096)) / 8_192 < 12
