"""Ground truth from the id image: the visible share of each thing, its place, and a point on it.

The visible share is a ratio of pixels: those that the thing has in the picture, and those that it would have alone.
Things that do not overlap can be rendered together for the second number, so a few extra renders of ids are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lineside.sim.render import Camera, Renderer, Thing

MASK_SIDE = 56
SEEN = 0.1  # a part counts if at least this share of it is visible


@dataclass(frozen=True, slots=True)
class Sight:
    """What the camera sees of one thing. x, y and box in [0, 1], origin top left; (x, y) lies on it and in the mask."""

    visible: float
    pixels: int
    x: float
    y: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any]  # {"height", "width", "runs"}: see types.Mask


def sights(renderer: Renderer, scene: Sequence[Thing], camera: Camera, size: int) -> dict[int, Sight]:
    """The Sight of each id that has at least one pixel."""
    image = renderer.ids(scene, camera, size)
    alone = alone_pixels(renderer, [t for t in scene if t.id], camera, size)
    counts = np.bincount(image.ravel())
    found = {int(k): int(counts[k]) for k in np.flatnonzero(counts) if k}
    return {key: look(image == key, pixels / max(alone.get(key, 0), pixels)) for key, pixels in found.items()}


def look(mask: np.ndarray, visible: float) -> Sight:
    """Box, mask and point of a boolean picture (size, size) with at least one pixel set."""
    size = len(mask)
    cell = size // MASK_SIDE
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # Only the grid cells around the thing are computed, because most things are small.
    top, left = rows[0] // cell, columns[0] // cell
    bottom, right = min(rows[-1] // cell + 1, MASK_SIDE), min(columns[-1] // cell + 1, MASK_SIDE)
    window = mask[top * cell : bottom * cell, left * cell : right * cell]
    share = window.reshape(bottom - top, cell, right - left, cell).mean((1, 3))
    coarse = share >= min(0.5, float(share.max()))
    y, x = np.nonzero(window)
    middle_y, middle_x = y.mean(), x.mean()
    inside = coarse[y // cell, x // cell]
    y, x = y[inside], x[inside]
    nearest = np.argmin((y - middle_y) ** 2 + (x - middle_x) ** 2)
    grid = np.zeros((MASK_SIDE, MASK_SIDE), bool)
    grid[top:bottom, left:right] = coarse
    return Sight(
        visible=float(visible),
        pixels=int(window.sum()),
        x=round((left * cell + float(x[nearest]) + 0.5) / size, 3),
        y=round((top * cell + float(y[nearest]) + 0.5) / size, 3),
        box=(
            round(float(columns[0]) / size, 3), round(float(rows[0]) / size, 3),
            round(float(columns[-1] + 1) / size, 3), round(float(rows[-1] + 1) / size, 3),
        ),
        mask={"height": MASK_SIDE, "width": MASK_SIDE, "runs": runs(grid)},
    )  # fmt: skip


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths off, on, off, ... of a boolean grid in row-major order; the first may be 0."""
    flat = mask.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    lengths = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else lengths


def alone_pixels(renderer: Renderer, things: Sequence[Thing], camera: Camera, size: int) -> dict[int, int]:
    """The number of pixels that each id would have alone in the picture."""
    by_id: dict[int, list[Thing]] = {}
    for thing in things:
        by_id.setdefault(thing.id, []).append(thing)
    boxes = {key: _bounds(group, camera) for key, group in by_id.items()}
    counts: dict[int, int] = {}
    for layer in _layers(boxes):
        image = renderer.ids([t for key in layer for t in by_id[key]], camera, size)
        pixels = np.bincount(image.ravel())
        counts.update({key: int(pixels[key]) for key in layer if key < len(pixels)})
    return counts


def _bounds(group: Sequence[Thing], camera: Camera) -> np.ndarray:
    """Bounds (x0, y0, x1, y1) in the picture of the spheres around some things, with some room."""
    centres = np.array([t.position for t in group])
    points = camera.project(centres)
    depth = np.maximum((centres - camera.position) @ camera.forward, 1e-3)
    reach = np.array([t.reach for t in group])
    radius = 0.5 * reach / (depth * np.tan(np.radians(camera.fovy) / 2)) * 1.1 + 0.01
    return np.concatenate([(points - radius[:, None]).min(0), (points + radius[:, None]).max(0)])


def _layers(boxes: dict[int, np.ndarray]) -> list[list[int]]:
    """Groups (greedy) in which no two boxes overlap."""
    layers: list[list[int]] = []
    for key, box in boxes.items():
        for layer in layers:
            others = np.array([boxes[k] for k in layer])
            apart = (
                (others[:, 0] > box[2]) | (others[:, 2] < box[0]) | (others[:, 1] > box[3]) | (others[:, 3] < box[1])
            )
            if apart.all():
                layer.append(key)
                break
        else:
            layers.append([key])
    return layers
