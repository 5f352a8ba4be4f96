"""A million caption rows through label, validate and an epoch of align: does memory grow with the rows?

    python benchmarks/stream.py [--rows 1000000] [--keep]

Writes Parquet files with so many rows, each with a small picture and a caption of its own; one row in fifty belongs to
a suite. Then the verbs run on them, each in a process of its own, as a user starts them: `label`, `validate`, and
`align` for one epoch, of a two-layer random model, with a feature store that has room for a few thousand pictures.

Memory is what each process holds of its own (RssAnon of /proc/PID/status), read 400 times in every pass over the rows.
Buffers fill and empty, so what is left counts: the least in each of ten runs of rows, from the row on at which caches
of a fixed size are full. The slope is fitted through these, with the 95% interval of the fit (t, 8 degrees of freedom).
With fewer than 220,000 rows it has caches in it that still fill, and nothing is claimed. The peak is that of all
resident memory (VmHWM), mapped files included. A million rows take some 2 GB of disk and about an hour of processor
time. After an interrupt it goes on with the verb that was not done.

Writes the claims into benchmarks/out/stream-ROWS.json; the exit status says whether all hold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import OUT, memory, model_folder, picture, sentence
from lineside.files import write_atomic

FILE_ROWS = 50_000  # of a Parquet file
BATCH_ROWS = 1000
SAMPLES = 400  # of memory in a pass
CACHED = 110_000  # rows after which all is full: 65,536 tokenised texts, a row group (1,024) of the rows of each suite
BLOCKS, T8 = 10, 2.306  # points that a slope is fitted through, and the 97.5% quantile of t with 8 degrees of freedom
MOST = 5.0  # MB that a verb may grow for 100,000 rows: some 50 bytes a row
STORE_GB = 0.008  # 7,800 pictures of the model's features
COLOURS = ("red", "blue", "green", "white")

TASKS = """
table:
  file: "*.parquet"
  family: picking
  camera: camera
  split: {by: scene, shares: {train: 0.98, dev: 0.01, heldout: 0.01}}
captions:
  - {family: picking, templates: ["{caption}"]}
tasks:
  - family: picking
    name: colour
    phrasings: ["Which colour has the lid?"]
    answer: {kind: choice, column: colour, options: [red, blue, green, white]}
"""
RECIPE = """
name: run
runs: {folder}/runs
features_gb: {store}
data: {{samples: {folder}/samples}}
stages: [align]
controls: []
align: {{from: {model}, epochs: 1}}
evaluate: {{splits: [], baselines: false}}
"""


def write_rows(folder: Path, count: int) -> None:
    """The rows as `datasets` writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), *((name, pa.string()) for name in ("caption", "colour", "camera"))])
    rng, new = random.Random(0), folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for first in range(0, count, FILE_ROWS):
        with pq.ParquetWriter(new / f"rows-{first // FILE_ROWS:05d}.parquet", schema) as writer:
            last = min(count, first + FILE_ROWS)
            for start in range(first, last, BATCH_ROWS):
                rows = [
                    {
                        "image": {"bytes": picture(n, side=28), "path": f"frame-{n:07d}.jpg"},
                        "caption": sentence(12, rng),
                        "colour": rng.choice(COLOURS),
                        "camera": f"cam{n % 8}",
                    }
                    for n in range(start, min(last, start + BATCH_ROWS))
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema))
    new.rename(folder)


def child(log: Path, arguments: Sequence[str]) -> None:
    """A verb of lineside in this process, which notes its memory in each pass over the rows."""
    from lineside import progress
    from lineside.cli import main as lineside
    from lineside.machine import end_with_parent

    end_with_parent()
    quietly = progress._lines
    with log.open("w", buffering=1) as file:

        def sampled(items: Iterable[Any], total: int | None, unit: str, label: str) -> Iterator[Any]:
            every = max(1, (total or SAMPLES) // SAMPLES)
            for done, item in enumerate(quietly(items, total, unit, label)):
                if done % every == 0:
                    file.write(json.dumps([label, done, memory("RssAnon") / 1e6]) + "\n")
                yield item

        progress._lines = sampled
        sys.argv = ["lineside", *arguments]
        try:
            lineside()
        finally:
            cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            file.write(json.dumps(["peak", cpu, memory("VmHWM") / 1e6]) + "\n")


def run(folder: Path, verb: str, *arguments: object) -> list[list[Any]]:
    """What a verb noted, now or before an interrupt."""
    log = folder / f"{verb}.memory"
    if not log.exists():
        new = log.with_suffix(".new")
        command = [sys.executable, __file__, "--child", str(new), verb, *map(str, arguments)]
        environment = {**os.environ, "LINESIDE_BACKEND": "reference"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{verb} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        new.rename(log)
    return [json.loads(line) for line in log.read_text().splitlines()]


def slope(points: Sequence[tuple[float, float]], start: float) -> tuple[float, float, float]:
    """(MB for 100,000 rows, its interval) of (row, MB) from a row on."""
    runs = np.array_split(np.array([point for point in points if point[0] >= start]), BLOCKS)
    x, y = np.array([run[:, 0].mean() for run in runs]), np.array([run[:, 1].min() for run in runs])
    apart = x - x.mean()
    rise = apart @ y / (apart @ apart)
    error = math.sqrt(((y - y.mean() - rise * apart) ** 2).sum() / (BLOCKS - 2) / (apart @ apart))
    low, high = rise - T8 * error, rise + T8 * error
    return float(1e5 * rise), float(1e5 * low), float(1e5 * high)


def measured(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Each pass of each verb: rows, MB, slope with its interval; the last pass of a verb has its peak and seconds."""
    model, _ = model_folder(16, tiny=True)
    (folder / "tasks.yaml").write_text(TASKS)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, model=model, store=STORE_GB))
    frames, samples = folder / "frames", folder / "samples"
    shares = ("--question-share", 0, "--prompt-share", 0)
    verbs = {
        "label": (frames, samples, "--tasks", folder / "tasks.yaml", *shares),
        "validate": (samples,),
        "align": (folder / "recipe.yaml",),
    }
    for verb, arguments in verbs.items():
        *noted, (_, cpu, peak) = run(folder, verb, *arguments)
        for label in dict.fromkeys(label for label, *_ in noted):
            points = [(row, mb) for name, row, mb in noted if name == label]
            if points[-1][0] < count / 2:  # of a suite
                continue
            start = CACHED if count >= 2 * CACHED else count / 2
            rise, low, high = slope(points, start)
            point = {"verb": verb, "pass": label, "rows": count, "mb": points[-1][1], "slope": rise}
            yield point | {"low": low, "high": high, "peak_mb": peak, "cpu_seconds": round(cpu)}


def main() -> int:
    """Write rows, run the verbs, print and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true", help="leave what was written in benchmarks/out")
    given = parser.parse_args()
    folder = OUT / f"stream-{given.rows}"
    command = " ".join(["python", "benchmarks/stream.py", *sys.argv[1:]])
    if not (folder / "frames").exists():
        write_rows(folder / "frames", given.rows)
    claims = []
    for point in measured(folder, given.rows):
        claim = {"claim": f"MB that {point['verb']} ({point['pass']}) grows for 100,000 rows", "value": point["slope"]}
        state = "not checked: too few rows"
        if given.rows >= 2 * CACHED:
            claim |= {"at_most": MOST, "holds": point["slope"] <= MOST}
            state = f"at most {MOST:g} {'holds' if claim['holds'] else 'DOES NOT HOLD'}"
        claims.append({**claim, "n": given.rows, **point, "command": command})
        print(
            f"{point['verb']}, {point['pass']}: {given.rows:,} rows, {point['mb']:.0f} MB at the end, "
            f"{point['slope']:+.2f} MB for 100,000 rows ({point['low']:+.2f} to {point['high']:+.2f}), {state}; all of "
            f"{point['verb']}: at most {point['peak_mb']:.0f} MB, {point['cpu_seconds']:,} s of processor time",
            flush=True,
        )
    write_atomic(folder.with_suffix(".json"), json.dumps(claims, indent=1) + "\n")
    if not given.keep:
        shutil.rmtree(folder)
    return 0 if all(claim.get("holds", True) for claim in claims) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
