"""The data of `make weeks`: samples of each week, of the planted weeks, and of photographs dealt into weeks.

Simulated: week 0 is the base, with more training frames and a dev split. In each later week SKUs come and go, packaging
and light change (`lineside simulate --week`), and from week `MOVED_FROM` on one camera of a picking cell is mounted
anew. Three other versions of week `plan.planted` are what a user would get without knowing:

    labels    a fifth of the frames carry the record of another frame, in all splits
    camera    the camera of a kitting cell was struck: its frames do not show what their records say
    noise     harmless: a little more noise of the sensor, and a stronger compression

Photographs: all frames of a class that arrives in week a are dealt over the weeks from a on; those of the other
classes lie in week 0, but for a share that is dealt over all weeks.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from lineside.data.columns import columns_of_sample
from lineside.data.store import read_frames, read_samples, write_frames, write_samples
from lineside.data.suite import scene_of
from lineside.files import write_atomic
from lineside.hashing import hash_uniform, stable_hash
from lineside.label import label
from lineside.recipe import Recipe
from lineside.sim.cells import FAMILIES, cells_of
from lineside.sim.weeks import Cameras
from lineside.simulate import PLAN, simulate
from lineside.types import Frame, Image, Sample

MOVED_FROM = 3
WRONG = 0.2  # share of the frames whose record is another's
NOISE, QUALITY = 2.5, 80  # grey levels; JPEG
PLANTED = ("labels", "camera", "noise")
LATER_SHARE = 0.4  # of the photographs of classes that are there from the beginning: dealt over the later weeks


@dataclass(frozen=True)
class Photographs:
    """A folder of photographs whose classes arrive over time. `arrive`: how many classes in each later week."""

    preset: str
    column: str  # of the samples, whose values arrive
    tasks: str
    arrive: tuple[int, ...]


SETS = {
    "sorting": Photographs("sorting", "material", "sorting.yaml", (1, 1)),
    "grocery": Photographs("grocery", "sku", "grocery.yaml", (5, 5)),
}


@dataclass(frozen=True)
class Amounts:
    """Frames of each family; of photographs the share that is taken."""

    base: int = 900
    weekly: int = 150
    heldout: int = 400
    dev: int = 120
    size: int = 224
    share: float = 1.0


FULL = Amounts()


def suite_name(week: int, planted: str = "") -> str:
    """ "week-4", or "week-4-labels": of the folders of a week."""
    return f"week-{week}-{planted}" if planted else f"week-{week}"


def moved() -> str:
    """The cell whose camera is mounted anew."""
    return cells_of("picking", shifted=False)[0].id


def knocked() -> str:
    """The cell whose camera is struck in the planted week."""
    return cells_of("kitting", shifted=False)[0].id


def simulated_week(folder: Path, week: int, planted: str, *, recipe: Recipe, amounts: Amounts, seed: int) -> Path:
    """The samples of a week, made once. `planted`: "" for the week as it is."""
    name = suite_name(week, planted)
    frames, samples = folder / "frames" / name, folder / "samples" / name
    if (samples / "label.json").exists():
        return samples
    counts = {"train": amounts.base if week == 0 else amounts.weekly, "heldout": amounts.heldout}
    counts |= {"dev": amounts.dev} if week == 0 else {}
    wanted = {split: {str(family): count for family in FAMILIES} for split, count in counts.items()}
    cameras = Cameras(
        moved=(moved(),) if week >= MOVED_FROM else (), knocked=(knocked(),) if planted == "camera" else ()
    )
    if planted in ("", "camera"):
        simulate(frames, frames=wanted, seed=seed, week=week, size=amounts.size, sheet=0, cameras=cameras)
    elif not frames.exists():
        before = read_frames(folder / "frames" / suite_name(week))
        change = mixed_up(before, seed=seed) if planted == "labels" else map(noisy, before)
        _whole(frames, lambda place: write_frames(place, change))
    label(frames, samples, settings=recipe.data.label, seed=seed)
    return samples


def changed_in(folder: Path, week: int) -> dict[str, list[str]]:
    """What the simulator says of a week; empty where its frames are not there."""
    path = folder / "frames" / suite_name(week) / PLAN
    return json.loads(path.read_text())["weeks"][str(week)] if path.exists() else {}


def mixed_up(frames: Iterable[Frame], *, seed: int, share: float = WRONG) -> Iterator[Frame]:
    """The frames, a share of each family's and split's with the record of another one of them, as after an import
    that slipped by some lines."""
    groups: dict[tuple[str, str], list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.family, frame.split].append(frame)
    for (family, split), group in groups.items():
        draw = random.Random(stable_hash("mixed up", seed, family, split))
        chosen = draw.sample(range(len(group)), round(share * len(group)))
        record_of = dict(zip(chosen, chosen[1:] + chosen[:1]))
        for place, frame in enumerate(group):
            yield replace(frame, record=group[record_of.get(place, place)].record)


def noisy(frame: Frame) -> Frame:
    """The frame with a little more noise, and compressed anew."""
    pixels = np.asarray(Pil.open(io.BytesIO(frame.image.bytes)).convert("RGB"), np.float32)
    rng = np.random.default_rng(stable_hash("noise", frame.id))
    pixels = np.clip(pixels + rng.normal(0, NOISE, pixels.shape), 0, 255)
    Pil.fromarray(pixels.astype(np.uint8)).save(buffer := io.BytesIO(), "JPEG", quality=QUALITY)
    return replace(frame, image=Image(buffer.getvalue()))


def photograph_week(
    folder: Path, table: Path, of: Photographs, week: int, *, recipe: Recipe, amounts: Amounts, seed: int
) -> Path:
    """The samples of a week of photographs, made once from those of the whole set."""
    whole, samples = folder / "samples" / "all", folder / "samples" / suite_name(week)
    if samples.exists():
        return samples
    label(table, whole, tasks=[Path(of.tasks)], settings=recipe.data.label, seed=seed)
    arrival = arrivals(whole, of, seed)
    some = (
        s for s in read_samples(whole)
        if week_of(s, of.column, arrival, len(of.arrive)) == week
        if hash_uniform("taken", scene_of(s)) < amounts.share
    )  # fmt: skip

    def write(place: Path) -> None:
        write_samples(place, some)
        write_atomic(place / "label.json", (whole / "label.json").read_text())

    _whole(samples, write)
    return samples


def arrivals(samples: Path, of: Photographs, seed: int) -> dict[str, int]:
    """The week in which each class arrives, where it is not there from the beginning: drawn by hash."""
    known = {value for s in read_samples(samples, kind="caption") for value in columns_of_sample(s).get(of.column, ())}
    drawn = sorted(known, key=lambda value: hash_uniform("arrives", seed, value))
    weeks = [week for week, count in enumerate(of.arrive, 1) for _ in range(count)]
    return dict(zip(drawn, weeks))


def week_of(sample: Sample, column: str, arrival: dict[str, int], weeks: int) -> int:
    """The week of a photograph."""
    first = max((arrival.get(value, 0) for value in columns_of_sample(sample).get(column, ())), default=0)
    draw = hash_uniform("week", scene_of(sample))
    if first == 0 and draw >= LATER_SHARE:
        return 0
    draw, first = (draw / LATER_SHARE, 1) if first == 0 else (draw, first)
    return first + int(draw * (weeks - first + 1))


def _whole(folder: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder under another name first, so that one with its own name is whole."""
    place = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(place, ignore_errors=True)
    write(place)
    place.rename(folder)
