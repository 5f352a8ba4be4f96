"""`lineside simulate`: frames with ground truth from the simulated fleet (MuJoCo), in Parquet, on all cores.

Frames are numbered within (seed, week, split, family), and a frame depends on nothing else. So the work is cut into
shards that any process can render at any time. The plan is written first (`simulate.json`). A shard gets its name when
it is complete. Another run renders what is missing; a larger request adds shards and keeps the old ones.

Left out: video, depth pictures, several cameras on one scene.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.data.shards import FRAMES, scan
from lineside.data.store import write_frames
from lineside.errors import LinesideError
from lineside.files import hold, settle, write_atomic
from lineside.machine import end_with_parent
from lineside.progress import say, track
from lineside.sim.backend import choose_backend
from lineside.sim.sheet import contact_sheet
from lineside.sim.weeks import AS_PLANNED, Cameras, changes
from lineside.sim.world import FAMILIES, WORLD, check, generate_frames
from lineside.strict import read_record
from lineside.types import Frame

__all__ = ["Shard", "contact_sheet", "simulate", "spread"]

PLAN = "simulate.json"
UNFINISHED = ".parts"  # ending of the folder in which a shard is rendered
SHARD = re.compile(r"frames-[0-9]{5,12}\.parquet")
SHARD_FRAMES = (32, 256)  # least and most; between them, a fortieth of the frames


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
    moved: tuple[str, ...] = ()
    knocked: tuple[str, ...] = ()

    @property
    def cameras(self) -> Cameras:
        """The cameras that stand elsewhere."""
        return Cameras(self.moved, self.knocked)


def _named(cameras: Cameras) -> str:
    named = [f"{name} {', '.join(cells)}" for name, cells in asdict(cameras).items() if cells]
    return " and ".join(named) or "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is, or will be, in a folder."""

    world: int
    shards: tuple[Shard, ...]
    weeks: Mapping[str, Any] = field(default_factory=dict)
    """What changes in each, for people."""


def spread(splits: Mapping[str, int], families: Sequence[str] = FAMILIES) -> dict[str, dict[str, int]]:
    """Frames per split, divided evenly over families: {"train": {"picking": 334, ...}, ...}."""
    if not families:
        raise LinesideError(f"no family to simulate; expected one or more of {', '.join(FAMILIES)}")
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
    cameras: Cameras = AS_PLANNED,
) -> int:
    """Render `frames` ({split: {family: number}}) into the folder `out`; returns how many this call rendered.

    Each of `workers` processes (default: one for each core) renders one shard at a time. `out/contact-sheet.png` shows
    `sheet` frames of each family and split; 0 for none. `cameras`: those that stand elsewhere. `out/simulate.json` says
    what each week changed. Raises LinesideError if the folder's plan does not fit, the
    disk is full, another process works in the folder, or rendering is impossible; finished shards stay.
    """
    for split, counts in frames.items():
        for family, count in counts.items():
            check(family=family, count=count, week=week, split=split, start=0, size=size)
    cameras.check({family for counts in frames.values() for family in counts})
    choose_backend()
    with hold(out):
        return _simulate(out, frames, seed=seed, week=week, workers=workers, size=size, sheet=sheet, cameras=cameras)


def _simulate(
    out: Path,
    frames: Mapping[str, Mapping[str, int]],
    *,
    seed: int,
    week: int,
    workers: int | None,
    size: int,
    sheet: int,
    cameras: Cameras,
) -> int:
    for left in out.glob(f".*{UNFINISHED}"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    shards = _plan(out, frames, seed=seed, week=week, size=size, cameras=cameras)
    missing = [shard for shard in shards if not (out / shard.file).exists()]
    total = sum(shard.count for shard in missing)
    workers = max(1, min(workers or os.cpu_count() or 1, len(missing)))
    for _ in track(_rendered(out, missing, workers), total=total, unit="frames", label="simulate"):
        pass
    if len(missing) < len(shards):
        say(f"simulate: {sum(s.count for s in shards) - total} frames exist already")
    if sheet:
        chosen = [frame for shard in shards if shard.start == 0 for frame in _first(out / shard.file, sheet)]
        if chosen:
            contact_sheet(chosen, out / "contact-sheet.png")
            say(f"simulate: see {out / 'contact-sheet.png'}")
    return total


def _first(path: Path, number: int) -> Iterator[Frame]:
    """The first `number` frames of a shard, or all if it has fewer."""
    return (frame for _, frame in islice(scan(path, FRAMES), number) if isinstance(frame, Frame))


def _rendered(out: Path, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    """Render the shards; yields once for each finished frame."""
    if workers == 1:
        for shard in shards:
            yield from range(_render(out, shard))
        return
    # spawn: a forked process would share the parent's OpenGL context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        waiting = [pool.submit(_render, out, shard) for shard in shards]
        try:
            for done in as_completed(waiting):
                yield from range(done.result())
        except BrokenProcessPool:
            raise LinesideError(
                f"{out}: a rendering process was killed, perhaps because memory ran out; finished shards are kept:"
                " run it again, with fewer workers"
            ) from None
        except BaseException:
            for process in multiprocessing.active_children():  # of which each would finish its shard first
                process.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render(out: Path, shard: Shard) -> int:
    """Render one shard in a temporary folder, then move it to its name, so that no partial shard has that name."""
    scratch = out / f".{shard.file}{UNFINISHED}"
    frames = generate_frames(
        family=shard.family, count=shard.count, seed=shard.seed, week=shard.week, split=shard.split,
        start=shard.start, size=shard.size, cameras=shard.cameras,
    )  # fmt: skip
    try:
        written = write_frames(scratch, frames, shard_rows=shard.count)
        (file,) = scratch.glob("*.parquet")
        settle(file, out / shard.file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def _plan(
    out: Path, frames: Mapping[str, Mapping[str, int]], *, seed: int, week: int, size: int, cameras: Cameras
) -> list[Shard]:
    """The shards for this request, earlier ones and new ones; the plan is written to the folder."""
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
            if any(s.cameras != cameras for s in same):
                raise LinesideError(
                    f"{out}: holds {family} frames of week {week} with other cameras moved or knocked "
                    f"({_named(same[0].cameras)}, not {_named(cameras)}); choose another folder"
                )
            have = sum(s.count for s in same)
            wanted += [s for s in same if s.start < count]
            for start in range(have, count, step):
                file = f"frames-{number:05d}.parquet"
                new.append(
                    Shard(
                        file,
                        family,
                        split,
                        seed,
                        week,
                        size,
                        start,
                        min(step, count - start),
                        cameras.moved,
                        cameras.knocked,
                    )
                )
                number += 1
    if new:
        _write_plan(out, [*old, *new])
    return [*wanted, *new]


def _read_plan(out: Path) -> list[Shard]:
    path = out / PLAN
    if not path.exists():
        return []
    plan = read_record(Plan, path, "not a plan of `lineside simulate`: choose another folder")
    ends: Counter[tuple[Any, ...]] = Counter()
    for shard in plan.shards:
        what = (shard.family, shard.split, shard.seed, shard.week)
        if not SHARD.fullmatch(shard.file) or shard.count < 1 or shard.start != ends[what]:
            raise LinesideError(f"{path}: {shard.file[:80]!r} is no shard of frames: choose another folder")
        ends[what] += shard.count
    if len({shard.file for shard in plan.shards}) < len(plan.shards):
        raise LinesideError(f"{path}: names a file twice: choose another folder")
    if plan.world != WORLD:
        raise LinesideError(
            f"{path}: these frames are of world {plan.world} and this version simulates world {WORLD}; choose another "
            "folder"
        )
    return list(plan.shards)


def _cameras(shards: Sequence[Shard], week: int) -> Cameras:
    """The cameras that stand elsewhere in a week, of all families."""
    those = [shard for shard in shards if shard.week == week]
    moved, knocked = ({c for s in those for c in s.moved}, {c for s in those for c in s.knocked})
    return Cameras(tuple(sorted(moved)), tuple(sorted(knocked)))


def _write_plan(out: Path, shards: Sequence[Shard]) -> None:
    families = list(dict.fromkeys(shard.family for shard in shards))
    changed = {str(week): changes(week, _cameras(shards, week), families) for week in sorted({s.week for s in shards})}
    write_atomic(out / PLAN, json.dumps(asdict(Plan(WORLD, tuple(shards), changed)), indent=1))
