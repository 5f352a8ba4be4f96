"""Articles in a scene: what is drawn and what falls for each SKU, and the dunnage between the articles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lineside.sim.catalogue import COLOURS, SIZES, Sku
from lineside.sim.chance import generator
from lineside.sim.physics import Body
from lineside.sim.poses import matrices
from lineside.sim.render import PAPERS, Renderer, Thing
from lineside.sim.shapes import HALF_EXTENTS, Primitive, mesh_name, primitives_of, volume_of

# (specular, shininess) by kind.
_GLOSS = {"can": (0.55, 0.7), "bottle": (0.45, 0.6), "pouch": (0.5, 0.5), "plate": (0.5, 0.6), "clear bag": (0.9, 0.85)}


@dataclass(frozen=True, slots=True)
class Article:
    """A SKU with the packaging that it has in its scene."""

    sku: Sku
    style: int

    @property
    def half(self) -> np.ndarray:
        """Half extents (3,) in m."""
        return np.array(HALF_EXTENTS[self.sku.kind]) * self.sku.scale

    @property
    def reach(self) -> float:
        """Radius of a sphere around the article, in m."""
        return float(np.linalg.norm(self.half))

    @property
    def volume(self) -> float:
        """In m^3."""
        return volume_of(self.sku.kind, self.sku.size)

    def body(self, position: np.ndarray, quaternion: np.ndarray) -> Body:
        """The rigid body that falls."""
        return Body(
            primitives_of(self.sku.kind, self.sku.size), position, quaternion, rolling=self.sku.kind in ("ball",)
        )

    def things(self, renderer: Renderer, position: np.ndarray, rotation: np.ndarray, thing_id: int) -> list[Thing]:
        """The pieces to draw, all with the same id. The first piece is the outermost one."""
        sku = self.sku
        specular, shininess = _GLOSS.get(sku.kind, (0.2, 0.3))
        clear = sku.kind == "clear bag"
        outer = Thing(
            shape=mesh_name(sku.kind, sku.size),
            position=position,
            rotation=rotation,
            colour=(1.0, 1.0, 1.0, 0.34 if clear else 1.0),
            material=renderer.wear(sku, self.style),
            id=thing_id,
            specular=specular,
            shininess=shininess,
            reach=self.reach,
        )
        return [outer, *self._contents(position, rotation, thing_id)] if clear else [outer]

    def _contents(self, position: np.ndarray, rotation: np.ndarray, thing_id: int) -> list[Thing]:
        rng = generator("contents", self.sku.id, self.style)
        red, green, blue = (c / 255 for c in COLOURS[self.sku.colour])
        shape = ("box", "sphere", "cylinder")[self.style % 3]
        scale = SIZES[self.sku.size]
        pieces = []
        for k in range(8):
            spot = np.array([(k % 2 - 0.5) * 0.042, (k // 2 - 1.5) * 0.023, 0.0]) + rng.uniform(-0.003, 0.003, 3)
            turn = matrices(rng.normal(size=4))[0]
            pieces.append(
                Thing(
                    shape=shape,
                    position=position + rotation @ (spot * scale),
                    rotation=rotation @ turn,
                    size=(0.0130 * scale, 0.0130 * scale, 0.0105 * scale),
                    colour=(red, green, blue, 1.0),
                    id=thing_id,
                    reach=0.024 * scale,
                )
            )
        return pieces


@dataclass(frozen=True, slots=True)
class Dunnage:
    """Filling material: crumpled paper or an air cushion. It is no article, but it may hide articles."""

    kind: str  # "paper" or "cushion"
    variant: int

    @property
    def volume(self) -> float:
        """In m^3."""
        return 8 * 0.03 * 0.03 * 0.02

    @property
    def reach(self) -> float:
        """Radius of a sphere around it, in m."""
        return 0.06 if self.kind == "paper" else 0.08

    def body(self, position: np.ndarray, quaternion: np.ndarray) -> Body:
        """The rigid body that falls."""
        if self.kind == "paper":
            return Body((Primitive("ellipsoid", (0.040, 0.040, 0.022)),), position, quaternion, 60.0, rolling=True)
        return Body((Primitive("box", (0.042, 0.050, 0.013)),), position, quaternion, density=60.0)

    def things(self, renderer: Renderer, position: np.ndarray, rotation: np.ndarray) -> list[Thing]:
        """The pieces to draw. They are scenery: they hide articles and are never counted."""
        if self.kind == "paper":
            tone = ((0.66, 0.52, 0.36), (0.86, 0.85, 0.82), (0.60, 0.50, 0.40))[self.variant % 3]
            return [Thing(f"paper/{self.variant % PAPERS}", position, rotation, colour=(*tone, 1.0), specular=0.05)]
        return [
            Thing(
                "clear bag/normal", position, rotation, colour=(0.90, 0.95, 1.0, 0.38), specular=0.9, shininess=0.85
            )
        ]  # fmt: skip
