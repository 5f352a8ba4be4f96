"""Reference pictures: an article alone on a plain background, as a catalogue or a photo booth shows it.

Pictures of one article differ in how it lies. They share no random number with any scene, and the camera stands at one
distance, so that small articles look small.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

import numpy as np

from lineside.sim.articles import Article
from lineside.sim.catalogue import Sku, catalogue
from lineside.sim.cells import Light
from lineside.sim.chance import generator
from lineside.sim.poses import matrices
from lineside.sim.render import Thing, look_at, renderer
from lineside.sim.sensor import Exposure, shoot
from lineside.types import Frame, Image

SIZE = 224  # pixels
REACH = 0.085  # m: half the side of what the camera sees
GREY = (0.72, 0.72, 0.72, 1.0)
LIGHT = Light(azimuth=40.0, elevation=60.0, key=0.55, fill=0.3, ambient=0.3, tint=(1.0, 1.0, 1.0))
EXPOSURE = Exposure(gain=1.0, noise=1.5, blur=0.0, quality=92, vignette=0.0)


@cache
def _by_description() -> dict[str, Sku]:
    return {sku.description: sku for sku in catalogue()}


def sku_called(name: str) -> Sku | None:
    """The SKU with this description; None for a description that names no single SKU ("red part")."""
    return _by_description().get(name)


def references_of(frame: Frame, names: Iterable[str], count: int) -> tuple[Image, ...]:
    """`count` pictures of each article that `names` describe, in the packaging of the frame's week and split.

    A description of several SKUs ("red part", "can") has none, and so tells nothing about the frame.
    """
    found: list[Image] = []
    for name in names:
        if (sku := sku_called(name)) is not None:
            style = sku.style(frame.meta.week, shifted=frame.split == "shifted")
            pictures = (reference_picture(sku, style, number) for number in range(count))
            found += [
                Image(data, "reference", f"{sku.id}-{style}-{k}.jpg", name=name) for k, data in enumerate(pictures)
            ]
    return tuple(found)


@lru_cache(4096)
def reference_picture(sku: Sku, style: int, number: int, size: int = SIZE) -> bytes:
    """JPEG bytes of picture `number` of an article in this packaging, `size` pixels square."""
    camera, rng = renderer(), generator("reference", sku.id, style, number)
    article = Article(sku, style)
    rotation = matrices(rng.normal(size=4))[0]
    lowest = float(np.abs(rotation[2]) @ article.half)  # of the turned box around it, below its centre
    ground = Thing("plane", np.array([0.0, 0.0, 0.0]), np.eye(3), (4.0, 4.0, 0.1), GREY, specular=0.0)
    things = [ground, *article.things(camera, np.array([0.0, 0.0, lowest]), rotation, 1)]
    corners = np.array([(x, y, z) for x in (-REACH, REACH) for y in (-REACH, REACH) for z in (0.0, REACH)])
    view = look_at(corners, tilt=float(rng.uniform(15, 40)), azimuth=0.0, roll=0.0, fovy=30.0, margin=1.0)
    return shoot(camera.picture(things, view, LIGHT, size), EXPOSURE, rng)
