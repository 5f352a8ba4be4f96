"""A scene: one physical set-up in a cell in a week, with its own random numbers, and the picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lineside.sim.articles import Article
from lineside.sim.catalogue import Sku, assortment, look_alikes
from lineside.sim.cells import RGB, Cell, light_of
from lineside.sim.chance import generator
from lineside.sim.render import Camera, Colour, Renderer, Thing
from lineside.sim.sensor import expose, shoot
from lineside.sim.weeks import struck


@dataclass(frozen=True)
class Scene:
    """Cell, week and split of a scene. `id` decides everything in it."""

    id: str
    number: int
    seed: int
    week: int
    cell: Cell
    shifted: bool
    knocked: bool = False  # the camera looks past the cell, and the record does not know

    def chance(self, topic: str) -> np.random.Generator:
        """The generator of a topic. Each topic has its own, so a change in one topic does not change the others."""
        return generator("scene", self.id, topic)

    @cached_property
    def assortment(self) -> tuple[Sku, ...]:
        return assortment(self.week, shifted=self.shifted)

    def seen_by(self, camera: Camera) -> Camera:
        """The camera that takes the picture: `camera`, unless something has struck it."""
        return struck(camera, self.cell) if self.knocked else camera

    def article(self, sku: Sku) -> Article:
        return Article(sku, sku.style(self.week, shifted=self.shifted))

    def choose_skus(self, rng: np.random.Generator, count: int, among: Sequence[Sku], alike: float = 0.5) -> list[Sku]:
        """`count` different SKUs. Each after the first is a look-alike of an earlier one with probability `alike`."""
        among = tuple(among)
        chosen: list[Sku] = []
        while len(chosen) < min(count, len(among)):
            pool: Sequence[Sku] = among
            if chosen and rng.random() < alike:
                pool = look_alikes(chosen[int(rng.integers(len(chosen)))], among) or among
            sku = pool[int(rng.integers(len(pool)))]
            if sku not in chosen:
                chosen.append(sku)
        return chosen


@dataclass(frozen=True, slots=True)
class Shot:
    """The result of a family's builder: the picture, its record and the ids of the SKUs in it."""

    jpeg: bytes
    record: Mapping[str, Any]
    skus: tuple[str, ...]


def paint(colour: tuple[int, int, int], factor: float = 1.0) -> Colour:
    """A colour in 0..255 times a factor, in the renderer's form."""
    return lighter((colour[0] / 255, colour[1] / 255, colour[2] / 255), factor)


def lighter(colour: RGB, factor: float) -> Colour:
    """A colour times a factor, opaque, clipped at white."""
    red, green, blue = (min(1.0, factor * c) for c in colour)
    return (red, green, blue, 1.0)


def floor(cell: Cell) -> Thing:
    """The floor, belt or table under everything."""
    return Thing(
        "plane", np.array([0.0, 0.0, -0.002]), np.eye(3), (4.0, 4.0, 0.1), (*cell.floor_tint, 1.0),
        f"surface/{cell.floor}", specular=0.05,
    )  # fmt: skip


def gripper(position: np.ndarray, rng: np.random.Generator) -> list[Thing]:
    """A suction gripper on its pole; `position` (3,) is the edge of the cup."""
    tone = (0.16, 0.17, 0.18, 1.0) if rng.random() < 0.6 else (0.55, 0.57, 0.60, 1.0)
    cup = (0.85, 0.45, 0.10, 1.0) if rng.random() < 0.4 else (0.08, 0.08, 0.09, 1.0)
    up, eye = np.array([0.0, 0.0, 1.0]), np.eye(3)
    return [
        Thing("cylinder", position + 0.012 * up, eye, (0.022, 0.022, 0.012), cup),
        Thing("cylinder", position + 0.044 * up, eye, (0.012, 0.012, 0.020), tone, specular=0.5),
        Thing("cylinder", position + 0.075 * up, eye, (0.030, 0.030, 0.012), tone, specular=0.5),
        Thing("cylinder", position + 0.33 * up, eye, (0.016, 0.016, 0.25), tone, specular=0.5),
    ]


def take(renderer: Renderer, scene: Scene, things: Sequence[Thing], camera: Camera, size: int, glare: float) -> bytes:
    """Render and expose: JPEG bytes."""
    rng = scene.chance("sensor")
    picture = renderer.picture(things, scene.seen_by(camera), light_of(scene.cell, scene.week), size)
    return shoot(picture, expose(scene.cell, rng, glare=glare), rng)
