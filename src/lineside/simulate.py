"""`lineside simulate`: frames with ground truth from the simulated fleet (MuJoCo), in Parquet, on all cores.

Frames are numbered within (seed, week, split, family) and a frame depends on nothing else, so the work is cut into
shards that any process can render at any time. The plan is written down first (`simulate.json`); a shard appears when
it is whole; running again renders what is missing, and asking for more adds shards without touching the old ones.

Leaves out: video, depth pictures, several cameras on one scene.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.data.shards import FRAMES, scan
from lineside.data.store import write_frames
from lineside.errors import LinesideError
from lineside.files import hold
from lineside.progress import say, track
from lineside.sim.backend import choose_backend
from lineside.sim.sheet import contact_sheet
from lineside.sim.world import FAMILIES, WORLD, check, generate_frames
from lineside.types import Frame

__all__ = ["Shard", "contact_sheet", "simulate", "spread"]

PLAN = "simulate.json"
SHARD_FRAMES = (32, 256)  # least and most; between them, a fortieth of what is asked for


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the plan: frames start .. start + count - 1 of a family and split."""

    file: str
    family: str
    split: str
    seed: int
    week: int
    size: int
    start: int
    count: int


def spread(splits: Mapping[str, int], families: Sequence[str] = FAMILIES) -> dict[str, dict[str, int]]:
    """Frames per split, divided over families as evenly as can be: {"train": {"picking": 334, ...}, ...}."""
    if not families:
        raise LinesideError(f"no family to simulate; there are {', '.join(FAMILIES)}")
    return {
        split: {family: (total + k) // len(families) for k, family in enumerate(reversed(families))}
        for split, total in splits.items()
    }


def simulate(
    out: Path,
    *,
    frames: Mapping[str, Mapping[str, int]],
    seed: int = 0,
    week: int = 0,
    workers: int | None = None,
    size: int = 224,
    sheet: int = 6,
) -> int:
    """Render `frames` ({split: {family: number}}) into the folder `out`; returns how many were rendered now.

    `workers` processes (default: one a core) render one shard each at a time. `sheet` frames of each family and split
    are put on `out/contact-sheet.png`; 0 for none. Raises LinesideError on a plan that does not fit the one in the
    folder, a full disk, another process at work in it, or where nothing can render; finished shards stay.
    """
    for split, counts in frames.items():
        for family, count in counts.items():
            check(family=family, count=count, week=week, split=split, start=0, size=size)
    choose_backend()
    with hold(out):
        return _simulate(out, frames, seed=seed, week=week, workers=workers, size=size, sheet=sheet)


def _simulate(
    out: Path,
    frames: Mapping[str, Mapping[str, int]],
    *,
    seed: int,
    week: int,
    workers: int | None,
    size: int,
    sheet: int,
) -> int:
    shards = _plan(out, frames, seed=seed, week=week, size=size)
    missing = [shard for shard in shards if not (out / shard.file).exists()]
    total = sum(shard.count for shard in missing)
    workers = max(1, min(workers or os.cpu_count() or 1, len(missing)))
    for _ in track(_rendered(out, missing, workers), total=total, unit="frames", label="simulate"):
        pass
    if len(missing) < len(shards):
        say(f"simulate: {sum(s.count for s in shards) - total} frames were there already")
    if sheet:
        chosen = [frame for shard in shards if shard.start == 0 for frame in _first(out / shard.file, sheet)]
        if chosen:
            contact_sheet(chosen, out / "contact-sheet.png")
            say(f"simulate: look at {out / 'contact-sheet.png'}")
    return total


def _first(path: Path, number: int) -> Iterator[Frame]:
    """At most `number` frames of a shard."""
    return (frame for _, frame in islice(scan(path, FRAMES), number) if isinstance(frame, Frame))


def _rendered(out: Path, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    """Render the shards; yields once a frame, as they are finished."""
    if workers == 1:
        for shard in shards:
            yield from range(_render(out, shard))
        return
    # spawn: a forked process would share the parent's OpenGL context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(_render, out, shard) for shard in shards]
        try:
            for done in as_completed(waiting):
                yield from range(done.result())
        except BrokenProcessPool:
            raise LinesideError(
                f"{out}: a rendering process was killed, perhaps for want of memory; finished shards are kept:"
                " run it again, with fewer workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render(out: Path, shard: Shard) -> int:
    """Render one shard in a folder of its own, then move it to its name: it is there whole or not at all."""
    scratch = out / f".{shard.file}.parts"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was cut off
    frames = generate_frames(
        family=shard.family, count=shard.count, seed=shard.seed, week=shard.week, split=shard.split,
        start=shard.start, size=shard.size,
    )  # fmt: skip
    try:
        written = write_frames(scratch, frames, shard_rows=shard.count)
        (file,) = scratch.glob("*.parquet")
        os.replace(file, out / shard.file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def _plan(out: Path, frames: Mapping[str, Mapping[str, int]], *, seed: int, week: int, size: int) -> list[Shard]:
    """The shards that hold what is asked for: those planned before and new ones, all written down."""
    old = _read_plan(out)
    new: list[Shard] = []
    wanted: list[Shard] = []
    total = sum(sum(counts.values()) for counts in frames.values())
    step = min(SHARD_FRAMES[1], max(SHARD_FRAMES[0], total // 40))
    taken = [int(p.stem.split("-")[1]) for p in out.glob("frames-[0-9]*.parquet") if p.stem.split("-")[1].isdecimal()]
    number = 1 + max([int(s.file[7:-8]) for s in old] + taken, default=-1)
    for split, counts in frames.items():
        for family, count in counts.items():
            same = [s for s in old if (s.family, s.split, s.seed, s.week) == (family, split, seed, week)]
            if any(s.size != size for s in same):
                raise LinesideError(
                    f"{out}: holds {family} frames of {same[0].size} pixels, not {size}; choose another folder"
                )
            have = sum(s.count for s in same)
            wanted += [s for s in same if s.start < count]
            for start in range(have, count, step):
                file = f"frames-{number:05d}.parquet"
                new.append(Shard(file, family, split, seed, week, size, start, min(step, count - start)))
                number += 1
    if new:
        _write_plan(out, [*old, *new])
    return [*wanted, *new]


def _read_plan(out: Path) -> list[Shard]:
    path = out / PLAN
    if not path.exists():
        return []
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shards = [Shard(**entry) for entry in plan["shards"]]
        world = plan["world"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LinesideError(f"{path}: not a plan of `lineside simulate` ({error}); choose another folder") from None
    if world != WORLD:
        raise LinesideError(
            f"{path}: these frames are of world {world} and this version simulates world {WORLD}; choose another folder"
        )
    return shards


def _write_plan(out: Path, shards: Sequence[Shard]) -> None:
    path, temporary = out / PLAN, out / f".{PLAN}.tmp{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"world": WORLD, "shards": [asdict(shard) for shard in shards]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise LinesideError(f"{path}: cannot write the plan: {error.strerror or error}") from None
