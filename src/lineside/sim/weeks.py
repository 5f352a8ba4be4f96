"""What a week changes: SKUs that come and go, packaging, light; and, where they are asked for, cameras that stand
elsewhere.

SKUs, packaging and light depend on the week alone. A camera changes only for the cells that are named:

    moved      it was mounted anew, for good: another pose that shows the whole cell; the truth is that of the new pose
    knocked    something has struck it: it looks past the cell and is turned, while the records go on as if it did not
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lineside.errors import LinesideError
from lineside.sim.catalogue import assortment
from lineside.sim.cells import Cell, cells_of, fleet, light_name, light_of
from lineside.sim.chance import generator
from lineside.sim.render import Camera
from lineside.strict import nearest

PAN = (0.75, 1.0)  # how far a knocked camera looks past the middle, in half widths of the picture
TURN = (15.0, 35.0)  # degrees that it is turned


@dataclass(frozen=True, slots=True)
class Cameras:
    """The cells whose cameras do not stand as the fleet's plan says."""

    moved: tuple[str, ...] = ()
    knocked: tuple[str, ...] = ()

    def check(self, families: Collection[str]) -> None:
        """Raises LinesideError for a cell that the fleet, or these families, do not have."""
        cells = {cell.id: cell for cell in fleet()}
        for name, value in [("moved", c) for c in self.moved] + [("knocked", c) for c in self.knocked]:
            if value not in cells:
                raise LinesideError(
                    f"{name} {value}: no such cell{nearest(value, cells)}; there are c00 to c{len(cells) - 1}"
                )
            if cells[value].family not in families:
                raise LinesideError(
                    f"{name} {value}: a cell of {cells[value].family}, and that family is not simulated"
                )


AS_PLANNED = Cameras()


def mounted(cell: Cell, cameras: Cameras) -> Cell:
    """The cell with its camera as it stands: in another pose if it was moved."""
    if cell.id not in cameras.moved:
        return cell
    rng = generator("moved", cell.id)
    low, high = {"picking": (0.0, 24.0), "kitting": (0.0, 20.0), "returns": (34.0, 56.0)}[cell.family]
    tilt = low + (cell.tilt - low + float(rng.uniform(0.4, 0.6)) * (high - low)) % (high - low)
    side = float(rng.choice([-1.0, 1.0]))
    return replace(
        cell,
        tilt=tilt,
        azimuth=cell.azimuth + side * float(rng.uniform(25, 45)),
        roll=-cell.roll,
        fovy=28 + (cell.fovy - 28 + 15) % 30,
        margin=cell.margin * 1.15,
    )


def struck(camera: Camera, cell: Cell) -> Camera:
    """A camera after a blow: panned by `PAN` and turned by `TURN`, always the same for a cell."""
    rng = generator("knocked", cell.id)
    way = float(rng.uniform(0, 2 * np.pi))
    angle = float(rng.uniform(*PAN)) * np.radians(camera.fovy) / 2
    aside = np.cos(way) * camera.right + np.sin(way) * camera.up
    forward = np.cos(angle) * camera.forward + np.sin(angle) * aside
    turn = np.radians(float(rng.uniform(*TURN)) * float(rng.choice([-1.0, 1.0])))
    up = camera.up - (camera.up @ forward) * forward
    up /= np.linalg.norm(up)
    right = np.cross(forward, up)
    turned = np.cos(turn) * right + np.sin(turn) * up
    return replace(camera, forward=forward, right=turned, up=np.cross(turned, forward))


def changes(week: int, cameras: Cameras = AS_PLANNED, families: Sequence[str] = ()) -> dict[str, Any]:
    """What differs from the week before, for a page: descriptions of SKUs, and cells. Week 0 has no week before."""
    found: dict[str, Any] = {"moved": list(cameras.moved), "knocked": list(cameras.knocked)}
    if week == 0:
        return found
    before, now = ({sku.id: sku for sku in assortment(w, shifted=False)} for w in (week - 1, week))
    both = [now[id] for id in now if id in before]
    cells = [cell for family in families for cell in cells_of(family, shifted=False)]
    lights = {cell.id: light_name(light_of(cell, week)) for cell in cells}
    return found | {
        "new": sorted(now[id].description for id in now.keys() - before.keys()),
        "retired": sorted(before[id].description for id in before.keys() - now.keys()),
        "repackaged": sorted(
            s.description for s in both if s.style(week, shifted=False) != s.style(week - 1, shifted=False)
        ),
        "light": lights,
        "skus": len(now),
    }
