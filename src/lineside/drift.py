"""drift: have the frames changed since? Two folders of frames -> an alarm that names cell, SKU or camera.

The frozen encoder describes each frame, and a kernel two-sample test compares the two folders (judgement/drift.py). The
probability of any false alarm is `--level`, over all groups together. Values that were never seen before, such as a new
SKU, are named without a test. The frames that are least like the earlier ones are listed: label them first.

Left out: what the model answers (a changed floor can be seen before any answer is wrong).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from lineside.data.columns import columns_of_frame
from lineside.data.job import task_file
from lineside.data.sources import FrameSource, open_frames
from lineside.data.taskfile import merge
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.files import hold, write_atomic
from lineside.images import undecodable
from lineside.judgement import drift as rules
from lineside.judgement.console import new_table, show
from lineside.judgement.drift import LEAST_SCENES, Drift, Shot
from lineside.judgement.pooled import AT_ONCE, Describer, open_store
from lineside.progress import say, track
from lineside.runtime import ON_CPU, Runtime
from lineside.strict import nearest
from lineside.types import Frame, Image

COLUMNS = ("cell", "camera", "sku")
LIST, ACCOUNT = "drift.csv", "drift.json"
LISTED = 200  # frames


def drift(
    before: Path,
    after: Path,
    *,
    out: Path | None = None,
    by: Sequence[str] = COLUMNS,
    level: float = 0.05,
    tasks: Sequence[Path] = (),
    checkpoint: Path | None = None,
    features: Path | None = None,
    runtime: Runtime = ON_CPU,
    as_json: bool = False,
) -> Drift:
    """Compare the frames of two folders, and print what has changed.

    `by`: columns whose values are tested one by one. `tasks`: task files that say how to read tables. `out`: a folder
    for the account and the list of the frames that are least like those before. Raises CheckFailed if there is an
    alarm, TooLittleData for too few scenes, and LinesideError for folders that cannot be read or hold no frames, and
    for a column that no frame has.
    """
    if not 0 < level < 1:
        raise LinesideError(f"--level {level}: expected a probability such as 0.05, the chance of any false alarm")
    table = merge([task_file(path) for path in tasks]).table if tasks else None
    sources = [open_frames(path, table, family="frames") for path in (before, after)]
    store = open_store(checkpoint, features, lambda: _images(sources[0]), runtime)
    describer = Describer(store.get, seed=runtime.seed)
    shots = [_shots(source, describer, label) for source, label in zip(sources, ("frames before", "frames after"))]
    for path, some in zip((before, after), shots):
        if (scenes := len({shot.scene for shot in some})) < LEAST_SCENES:
            error = TooLittleData if some else LinesideError
            raise error(f"{path}: {len(some):,} frames of {scenes} scenes; a test needs at least {LEAST_SCENES} scenes")
    known = {column for some in shots for shot in some for column in shot.groups}
    if unknown := [column for column in by if column not in known and column not in COLUMNS]:
        raise LinesideError(
            f"--by {unknown[0]}: no frame has this column{nearest(unknown[0], known)}; they have: "
            f"{', '.join(sorted(known))}"
        )
    every_NI = describer.described().float().numpy()
    sides = np.split(every_NI, [len(shots[0])])
    found = rules.drift(shots[0], sides[0], shots[1], sides[1], columns=by, level=level, seed=runtime.seed)
    if out is not None:
        with hold(out):
            _write(out, found, shots[1], rules.unlike(*sides), level)
    if as_json:
        print(json.dumps(_account(found, level), indent=2, ensure_ascii=False))
    else:
        _tell(found, level)
    if found.alarms:
        raise CheckFailed(f"the frames have changed: {', '.join(test.name for test in found.alarms)}")
    return found


def _images(source: FrameSource) -> Iterator[Image]:
    for frame in _frames(source, []):
        yield frame.image


def _frames(source: FrameSource, spoilt: list[str]) -> Iterator[Frame]:
    """The frames that can be read. `spoilt`: takes the names of the others."""
    for item in source.frames():
        if isinstance(item, Frame) and not undecodable(item.image.bytes):
            yield item
        else:
            spoilt.append(item.id if isinstance(item, Frame) else f"{item.name}: {item.reason}")


def _shots(source: FrameSource, describer: Describer, label: str) -> list[Shot]:
    """The frames of a folder, described in their order."""
    shots: list[Shot] = []
    spoilt: list[str] = []
    frames = iter(track(_frames(source, spoilt), total=source.total, unit="frames", label=label))
    while some := list(islice(frames, AT_ONCE)):
        describer.add([frame.image for frame in some])
        shots += [Shot(frame.id, frame.meta.scene or frame.id, columns_of_frame(frame)) for frame in some]
    if spoilt:
        say(f"{label}: {len(spoilt):,} cannot be read and are left out, such as {spoilt[0]}")
    return shots


def _account(found: Drift, level: float) -> dict[str, Any]:
    return {
        "changed": bool(found.alarms),
        "level": level,
        "tests": [{"group": test.name, **asdict(test)} for test in found.tests],
        "new": [{"column": column, "value": value, "frames": count} for column, value, count in found.new],
        "untested": [{"column": column, "value": value} for column, value in found.untested],
    }


def _write(out: Path, found: Drift, after: Sequence[Shot], order: Sequence[int], level: float) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "frame", "scene", "changed"])
    changed = {(test.column, test.value) for test in found.alarms}
    for rank, place in enumerate(order[:LISTED], 1):
        shot = after[place]
        within = [f"{c} {v}" for c, v in sorted(changed) if c and v in shot.groups.get(c, ())]
        writer.writerow([rank, shot.id, shot.scene, " | ".join(within)])
    write_atomic(out / LIST, text.getvalue())
    write_atomic(out / ACCOUNT, json.dumps(_account(found, level), indent=2, ensure_ascii=False) + "\n")
    say(f"the frames that are least like those before: {out / LIST}")


def _tell(found: Drift, level: float) -> None:
    table = new_table(f"have the frames changed? a false alarm has a probability of {level:.0%} over all tests")
    table.add_column("")
    for column in ("before", "after", "scenes", "p", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for test in found.tests:
        table.add_row(
            Text(test.name),
            f"{test.before:,}",
            f"{test.after:,}",
            f"{test.scenes[0]:,} and {test.scenes[1]:,}",
            f"{test.p:.2g}",
            f"{test.size:.1f}",
            "changed" if test.alarm else "",
        )
    show(table)
    for column, value, count in found.new:
        say(f"new: {column} {value}, {count:,} frames")
    if found.untested:
        named = ", ".join(f"{column} {value}" for column, value in found.untested[:8])
        say(f"too few scenes to test: {named}{' ...' if len(found.untested) > 8 else ''}")
