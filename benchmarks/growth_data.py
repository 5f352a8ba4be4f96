"""How data grow: up to a million rows streamed from shards, up to a hundred thousand frames in the feature store.

    python benchmarks/growth_data.py [--tiny]

rows     samples with eight questions a frame and a small JPEG, written by `SampleWriter`, streamed once in a shuffled
         order by `stream_frame_samples`: rows a second of both, and peak memory of the reading process over its start
store    pictures through `FeatureStore` on disk (49 x 32 numbers a frame from a two-layer random tower: the store is
         measured, not an encoder): frames a second when written, seconds to open it again, random frames a second,
         and peak memory over the start

Every size runs in a fresh process. Writes growth-rows.json, growth-store.json and a picture of each into
benchmarks/out; makes no claim. A million rows take about 1 GB of disk while it runs, the store 320 MB.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from common import OUT, Lengths, Options, apart, model_folder, options, picture, samples
from lineside.data.store import SampleWriter, stream_frame_samples
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.types import Image, Sample
from loss_memory import standing

EACH = 8  # questions of a frame
AT_ONCE = 64  # frames taken from the store together
Measured = dict[str, float]


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def numbered(base: bytes, number: int) -> bytes:
    """A picture with other bytes but the same pixels: a JPEG ignores what follows its end."""
    return base + number.to_bytes(8, "big")


def rows_of(count: int) -> Iterator[Sample]:
    """Rows with texts of the usual length; every frame has its own picture and name."""
    base, texts = picture(0, side=28), list(samples("qa", 1, EACH, Lengths()))
    for frame in range(-(-count // EACH)):
        image, meta = Image(numbered(base, frame)), replace(texts[0].meta, scene=f"s{frame}")
        for number, row in enumerate(texts[: count - frame * EACH]):
            yield replace(row, id=f"f{frame}-{number}", images=(image,), meta=meta)


def write_rows(line: Connection, count: int, folder: Path) -> None:
    """Rows to shards."""
    start = time.perf_counter()
    with SampleWriter(folder) as writer:
        for row in rows_of(count):
            writer.add(row)
    line.send({"written a second": count / (time.perf_counter() - start)})


def read_rows(line: Connection, count: int, folder: Path) -> None:
    """One shuffled pass."""
    before, start, seen = standing("cpu"), time.perf_counter(), 0
    for group in stream_frame_samples(folder, kind="qa", split="train", seed=0, epoch=0):
        seen += len(group)
    assert seen == count, f"{seen} rows came of {count}"
    line.send({"read a second": count / (time.perf_counter() - start), "peak MiB": (peak() - before) / 2**20})


def fill_store(line: Connection, count: int, folder: Path) -> None:
    """Frames encoded and stored, in batches as a stage asks for them."""
    store = FeatureStore(folder, load(model_folder(49, tiny=True)[0], dtype=torch.bfloat16))
    base, start = picture(0, side=28), time.perf_counter()
    for first in range(0, count, AT_ONCE):
        store.get([Image(numbered(base, i)) for i in range(first, min(count, first + AT_ONCE))])
    line.send({"written a second": count / (time.perf_counter() - start)})


def read_store(line: Connection, count: int, folder: Path) -> None:
    """The store opened again; random frames taken from it."""
    vlm = load(model_folder(49, tiny=True)[0], dtype=torch.bfloat16)
    base, rng = picture(0, side=28), random.Random(0)
    before, start = standing("cpu"), time.perf_counter()
    store = FeatureStore(folder, vlm)
    opened = time.perf_counter() - start
    asked = [[Image(numbered(base, rng.randrange(count))) for _ in range(AT_ONCE)] for _ in range(256)]
    start = time.perf_counter()
    for images in asked:
        store.get(images)
    took = time.perf_counter() - start
    assert store.encoder_calls == 0, "the store forgot a frame"
    rate = AT_ONCE * len(asked) / took
    line.send({"seconds to open": opened, "read a second": rate, "peak MiB": (peak() - before) / 2**20})


def plot(name: str, points: list[dict[str, Any]], path: Path) -> None:
    """Rate and memory against size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2))
    sizes = [p["size"] for p in points]
    for key in ("written a second", "read a second"):
        left.plot(sizes, [p[key] for p in points], marker="o", label=key)
    right.plot(sizes, [p["peak MiB"] for p in points], marker="o")
    left.set(xscale="log", yscale="log", xlabel=name, ylabel=f"{name} a second")
    right.set(xscale="log", xlabel=name, ylabel="MiB over the start, at most", ylim=(0, None))
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(settings: Options) -> None:
    model_folder(49, tiny=True)
    suffix = "-tiny" if settings.tiny else ""
    sizes = {"rows": (1_000, 10_000, 100_000, 1_000_000), "store": (1_000, 10_000, 100_000)}
    runs = {"rows": (write_rows, read_rows), "store": (fill_store, read_store)}
    for name, (write, read) in runs.items():
        points = []
        for size in (400, 1_200) if settings.tiny else sizes[name]:
            folder = Path(tempfile.mkdtemp(dir=OUT))
            try:
                point = {"size": size, **apart(write, size, folder), **apart(read, size, folder)}
            finally:
                shutil.rmtree(folder)
            points.append(point)
            print(f"{name} {size:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in point.items() if k != "size"), flush=True)
            (OUT / f"growth-{name}{suffix}.json").write_text(json.dumps(points, indent=1) + "\n")
        plot("rows" if name == "rows" else "frames", points, OUT / f"growth-{name}{suffix}.png")


if __name__ == "__main__":
    main(options(__doc__))
