"""The world: numbered scenes, each with its cell and split, and the frames of them.

Scene number n of (seed, family, week) is always the same, whatever was rendered before. The hash of its id decides its
split, so a scene never moves to another split when the data set grows. `shifted` has a numbering of its own: its scenes
lie in held-out cells, with held-out SKUs, packaging and light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from lineside.errors import LinesideError
from lineside.hashing import split_of
from lineside.sim.cells import FAMILIES, cells_of, light_name, light_of
from lineside.sim.chance import hash_uniform
from lineside.sim.kitting import kitting
from lineside.sim.picking import picking
from lineside.sim.render import MAX_SIZE, Renderer, renderer
from lineside.sim.returns import returns
from lineside.sim.scene import Scene, Shot
from lineside.sim.weeks import AS_PLANNED, Cameras, mounted
from lineside.types import SPLITS, Frame, Image, Meta

WORLD = 3  # is raised when the same seed gives other frames than before
_EPOCH = datetime(2026, 1, 5, 6, 0)  # the Monday of week 0
_BUILDERS: dict[str, Callable[[Scene, Renderer, int], Shot]] = {
    "picking": picking,
    "kitting": kitting,
    "returns": returns,
}


def scene_at(family: str, number: int, *, seed: int, week: int, shifted: bool, cameras: Cameras = AS_PLANNED) -> Scene:
    """Scene `number` of a family. Its id is unique: it holds the cell (and so the family), week, seed and number."""
    cells = cells_of(family, shifted=shifted)
    cell = cells[int(hash_uniform("cell of", family, seed, week, number) * len(cells))]
    id, knocked = f"w{week}-{cell.id}-s{seed}-{number:06d}", cell.id in cameras.knocked
    return Scene(id, number, seed, week, mounted(cell, cameras), shifted, knocked)


def scenes(
    family: str, *, seed: int, week: int, split: str | None, start: int = 0, cameras: Cameras = AS_PLANNED
) -> Iterator[Scene]:
    """The scenes of a split in order, beginning with number `start`. Split None: all scenes of the training cells."""
    number, found = 0, 0
    while True:
        scene = scene_at(family, number, seed=seed, week=week, shifted=split == "shifted", cameras=cameras)
        number += 1
        if split not in (None, "shifted") and split_of(scene.id) != split:
            continue
        if found >= start:
            yield scene
        found += 1


def generate_frames(
    *,
    family: str,
    count: int,
    seed: int,
    week: int = 0,
    split: str | None = None,
    start: int = 0,
    size: int = 224,
    cameras: Cameras = AS_PLANNED,
) -> Iterator[Frame]:
    """Frames start, start+1, ... start+count-1 of a family in a week.

    Frame i depends only on (seed, family, week, split, i), on its cell's camera, and on the render backend. With split
    None the hash gives each scene its split (train, dev, heldout at 8:1:1). Raises LinesideError for an unknown family
    or split, a negative number, a size that is no multiple of the masks' size, or if no backend can render.
    """
    check(family=family, count=count, week=week, split=split, start=start, size=size)
    if not count:
        return
    camera = renderer()
    for taken, scene in enumerate(scenes(family, seed=seed, week=week, split=split, start=start, cameras=cameras)):
        shot = _BUILDERS[family](scene, camera, size)
        yield Frame(
            id=f"{family}-{scene.id}",
            image=Image(shot.jpeg),
            family=family,
            record=shot.record,
            meta=Meta(
                scene=scene.id,
                cell=scene.cell.id,
                camera=f"{scene.cell.id}-top",
                time=_time(scene),
                week=week,
                skus=shot.skus,
                extra={"renderer": camera.backend, "light": light_name(light_of(scene.cell, week))},
            ),
            split="shifted" if scene.shifted else split_of(scene.id),
        )
        if taken + 1 == count:
            return


def _time(scene: Scene) -> str:
    moment = _EPOCH + timedelta(weeks=scene.week, seconds=int(hash_uniform("time", scene.id) * 5 * 86400))
    return moment.isoformat(timespec="seconds")


def check(*, family: str, count: int, week: int, split: str | None, start: int, size: int) -> None:
    """Raises LinesideError for arguments that `generate_frames` refuses."""
    if family not in FAMILIES:
        raise LinesideError(f"no family {family!r} in the simulated fleet; there are {', '.join(FAMILIES)}")
    if split is not None and split not in SPLITS:
        raise LinesideError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    for name, value in (("count", count), ("week", week), ("start", start)):
        if value < 0:
            raise LinesideError(f"{name} is {value}; expected 0 or more")
    if size % 56 or not 56 <= size <= MAX_SIZE:
        raise LinesideError(f"size is {size}; expected a multiple of 56 from 56 to {MAX_SIZE}")
