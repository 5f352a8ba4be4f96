"""Kitting: a tray with rows x columns of recesses, one for each article, and source items beside it.

The physics drops the articles into their recesses. A half-seated article is put across the rim of its recess. About
half of the kits are complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lineside.sim.articles import Article
from lineside.sim.catalogue import Sku, look_alikes
from lineside.sim.physics import Body, Wall, drop
from lineside.sim.poses import about, matrices, quaternion
from lineside.sim.render import Camera, Renderer, Thing, look_at
from lineside.sim.scene import Scene, Shot, floor, gripper, lighter, take
from lineside.sim.truth import Sight, sights

# The same in every tray, so that a small article can be told from a normal one by its recess.
PITCH = np.array([0.137, 0.114])  # m, from recess to recess along x and y
ROOM = 0.010  # m, free space around the largest article that fits
RIM, RIM_HEIGHT, BORDER = 0.009, 0.020, 0.014  # m
STRIP = 0.155  # m, width of the place for source items
COMPLETE_SHARE = 0.35
GUARD = 0.5  # m, height of the invisible walls during the drop


@dataclass(frozen=True, slots=True)
class Slot:
    """One recess: its number (from 1, in reading order), the article that belongs in it, and the one that is in it."""

    number: int
    expected: Sku
    found: Sku | None
    status: str


@dataclass(frozen=True, slots=True)
class Tray:
    """The origin is the tray's centre. `strip` says where source items lie: "", "left", "right" or "front"."""

    rows: int
    columns: int
    strip: str

    @property
    def half(self) -> np.ndarray:
        return np.array([self.columns, self.rows]) * PITCH / 2

    def middle(self, number: int) -> np.ndarray:
        """Centre (x, y) of a recess in m."""
        row, column = divmod(number - 1, self.columns)
        return np.array([column - (self.columns - 1) / 2, (self.rows - 1) / 2 - row]) * PITCH

    def outward(self, number: int) -> np.ndarray | None:
        """Direction of the outer edge over which an article of this recess can hang; None if it has no outer edge."""
        row, column = divmod(number - 1, self.columns)
        if row in (0, self.rows - 1):
            return np.array([0.0, 1.0 if row == 0 else -1.0])
        if column in (0, self.columns - 1):
            return np.array([1.0 if column else -1.0, 0.0])
        return None

    def strip_area(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre (x, y) and half sizes of the place for source items."""
        x, y = self.half + BORDER + STRIP / 2
        if self.strip == "front":
            return np.array([0.0, -y]), np.array([self.half[0], STRIP / 2])
        return np.array([-x if self.strip == "left" else x, 0.0]), np.array([STRIP / 2, self.half[1]])


Placed = tuple[Article, np.ndarray, np.ndarray]  # with position (3,) and rotation (3, 3)


def kitting(scene: Scene, renderer: Renderer, size: int) -> Shot:
    """Make one kit: fill the tray, take the picture, write the record."""
    rng = scene.chance("layout")
    rows, columns = int(rng.choice([2, 3], p=[0.55, 0.45])), int(rng.choice([2, 3, 4], p=[0.35, 0.4, 0.25]))
    slots = _slots(scene, rows, columns)
    beside = _beside(scene, slots)
    tray = Tray(rows, columns, _strip(rng, rows, columns) if beside else "")
    placed = _place(scene, tray, slots, beside)
    camera = _camera(scene, tray)
    things = [floor(scene.cell), *_draw_tray(scene, tray)]
    for k, (article, position, rotation) in enumerate(placed):
        things += article.things(renderer, position, rotation, k + 1)
    things += _gripper(scene, tray)
    seen = sights(renderer, things, camera, size)
    record = _record(tray, slots, beside, camera, seen)
    skus = sorted({article.sku.id for k, (article, _, _) in enumerate(placed) if k + 1 in seen})
    return Shot(take(renderer, scene, things, camera, size, glare=0.10), record, tuple(skus))


def _strip(rng: np.random.Generator, rows: int, columns: int) -> str:
    """The side for source items: the one with which tray and items are nearly square."""
    if columns * PITCH[0] > rows * PITCH[1]:
        return "front"
    return str(rng.choice(["left", "right"]))


def fits(sku: Sku) -> bool:
    """Whether the article fits into the largest recess."""
    return bool((2 * _resting(Article(sku, 0))[0][:2] + ROOM + RIM <= PITCH).all())


def _resting(article: Article) -> tuple[np.ndarray, np.ndarray]:
    """Half extents (3,) and rotation (3, 3) of an article that is put down with its longer side along x."""
    x, y, z = article.half
    if article.sku.kind in ("bottle", "rod"):
        return np.array([z, x, x]), about("y", 90)
    if y > x:
        return np.array([y, x, z]), about("z", 90)
    return np.array([x, y, z]), np.eye(3)


def _slots(scene: Scene, rows: int, columns: int) -> list[Slot]:
    rng = scene.chance("bill")
    among = tuple(s for s in scene.assortment if fits(s))
    count = rows * columns
    kinds = scene.choose_skus(rng, int(rng.integers(max(2, count - 4), count + 1)), among, alike=0.35)
    expected = [kinds[k] if k < len(kinds) else kinds[int(rng.integers(len(kinds)))] for k in range(count)]
    expected = [expected[int(k)] for k in rng.permutation(count)]
    statuses = _statuses(scene, rows, columns)
    slots = []
    for k, (sku, status) in enumerate(zip(expected, statuses)):
        found: Sku | None = sku
        if status == "half_seated" and sku.kind == "ball":  # it would roll off the rim
            status = "empty"
        if status == "duplicate":
            others = [e for j, e in enumerate(expected) if statuses[j] == "ok" and e != sku]
            found, status = (others[int(rng.integers(len(others)))], status) if others else (None, "empty")
        elif status == "wrong":
            pool = [s for s in look_alikes(sku, among) if s not in expected]
            if not pool or rng.random() < 0.25:
                pool = [s for s in among if s not in expected]
            found = pool[int(rng.integers(len(pool)))]
        slots.append(Slot(k + 1, sku, None if status == "empty" else found, status))
    return slots


def _statuses(scene: Scene, rows: int, columns: int) -> list[str]:
    rng = scene.chance("faults")
    count = rows * columns
    statuses = ["ok"] * count
    if rng.random() < COMPLETE_SHARE:
        return statuses
    if rng.random() < 0.25:  # a kit that is being filled, slot by slot
        done = int(rng.integers(0, count))
        return ["ok"] * done + ["empty"] * (count - done)
    edges = Tray(rows, columns, "")
    for k in rng.permutation(count)[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]:
        status = str(rng.choice(["empty", "wrong", "duplicate", "half_seated"], p=[0.36, 0.26, 0.16, 0.22]))
        if status == "half_seated" and edges.outward(int(k) + 1) is None:
            status = "empty"
        statuses[int(k)] = status
    return statuses


def _beside(scene: Scene, slots: list[Slot]) -> list[Sku]:
    """Source items; often articles that the kit lacks."""
    rng = scene.chance("beside")
    if rng.random() < 0.45:
        return []
    missing = [slot.expected for slot in slots if slot.status in ("empty", "wrong", "duplicate")]
    items = [missing[int(k)] for k in rng.permutation(len(missing))[: int(rng.integers(0, 3))]]
    items += scene.choose_skus(rng, int(rng.integers(0 if items else 1, 3)), scene.assortment)
    return items[:3]


def _place(scene: Scene, tray: Tray, slots: list[Slot], beside: list[Sku]) -> list[Placed]:
    """The articles with their final poses: those in the tray by slot, then those beside it."""
    rng = scene.chance("drop")
    bodies: list[Body] = []
    hung: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    filled = [slot for slot in slots if slot.found]
    articles = [scene.article(slot.found) for slot in filled if slot.found]
    for k, (slot, article) in enumerate(zip(filled, articles)):
        half, rotation = _resting(article)
        rotation = about("z", float(rng.uniform(-6, 6)) + 180 * int(rng.integers(2))) @ rotation
        if slot.status == "half_seated":
            hung[k] = _hang(tray, slot.number, half, rotation, float(rng.uniform(20, 32)))
            continue
        slack = np.clip((PITCH - RIM) / 2 - half[:2] - 0.003, 0, 0.012)
        spot = tray.middle(slot.number) + rng.uniform(-1, 1, 2) * slack
        bodies.append(article.body(np.array([*spot, half[2] + 0.004]), quaternion(rotation)))
    middle, reach = tray.strip_area()
    for k, sku in enumerate(beside):
        article = scene.article(sku)
        articles.append(article)
        half, rotation = _resting(article)
        offset = ((k + 0.5) / len(beside) - 0.5) * 2 * reach
        offset[int(tray.strip != "front") - 1] = 0.0
        turn = about("z", float(rng.uniform(0, 360))) @ rotation
        bodies.append(article.body(np.array([*(middle + offset), half[2] + 0.01]), quaternion(turn)))
    rest = drop(bodies, _guards(tray, slots), seconds=0.5)
    settled = iter(zip(rest.positions, matrices(rest.quaternions) if bodies else ()))
    poses = [hung[k] if k in hung else next(settled) for k in range(len(articles))]
    return [(article, position, turn) for article, (position, turn) in zip(articles, poses)]


def _hang(
    tray: Tray, number: int, half: np.ndarray, rotation: np.ndarray, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pose of an article that lies across the outer rim of its recess, with its inner end in the recess."""
    out = tray.outward(number)
    assert out is not None, "only recesses at the tray's edge are half seated"
    sideways = bool(out[0])
    along = half[0] if sideways else half[1]
    edge = PITCH[0 if sideways else 1] / 2
    tilt = about("y", -angle * out[0]) if sideways else about("x", angle * out[1])
    # The bottom of the article touches the rim a little outside the article's centre.
    spot = tray.middle(number) + out * (edge - 0.15 * along)
    rise = RIM_HEIGHT + half[2] + 0.22 * along * np.sin(np.radians(angle))
    return np.array([*spot, rise]), tilt @ rotation


def _guards(tray: Tray, slots: list[Slot]) -> list[Wall]:
    walls = []
    boxes = [(tray.middle(s.number), (PITCH - RIM) / 2) for s in slots]
    if tray.strip:
        boxes.append(tray.strip_area())
    for (x, y), (half_x, half_y) in boxes:
        for sign in (-1, 1):
            walls.append(Wall((x + sign * (half_x + RIM / 4), y, GUARD / 2), (RIM / 4, half_y, GUARD / 2)))
            walls.append(Wall((x, y + sign * (half_y + RIM / 4), GUARD / 2), (half_x, RIM / 4, GUARD / 2)))
    return walls


def _draw_tray(scene: Scene, tray: Tray) -> list[Thing]:
    bed, rim = lighter(scene.cell.tote, 0.66), lighter(scene.cell.tote, 1.12)
    eye, (half_x, half_y), z = np.eye(3), tray.half, RIM_HEIGHT / 2
    things = [Thing("box", np.array([0, 0, -0.0008]), eye, (half_x, half_y, 0.0008), bed)]
    for k in range(tray.columns + 1):
        thick = RIM / 2 if 0 < k < tray.columns else BORDER / 2
        x = (k - tray.columns / 2) * PITCH[0]
        things.append(Thing("box", np.array([x, 0, z]), eye, (thick, half_y + BORDER / 2, z), rim))
    for k in range(tray.rows + 1):
        thick = RIM / 2 if 0 < k < tray.rows else BORDER / 2
        y = (k - tray.rows / 2) * PITCH[1]
        things.append(Thing("box", np.array([0, y, z]), eye, (half_x + BORDER / 2, thick, z * 0.999), rim))
    return things


def _camera(scene: Scene, tray: Tray) -> Camera:
    rng = scene.chance("camera")
    cell = scene.cell
    low, high = -tray.half - BORDER, tray.half + BORDER
    if tray.strip:
        middle, reach = tray.strip_area()
        low, high = np.minimum(low, middle - reach), np.maximum(high, middle + reach)
    corners = np.array([(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (0.0, 0.04)])
    # Slots are numbered in reading order, so the tray is never turned far in the picture.
    return look_at(
        corners, tilt=cell.tilt, azimuth=0.35 * cell.azimuth + float(rng.normal(0, 1.5)), roll=0.6 * cell.roll,
        fovy=cell.fovy, margin=cell.margin * float(rng.uniform(0.99, 1.06)),
    )  # fmt: skip


def _gripper(scene: Scene, tray: Tray) -> list[Thing]:
    rng = scene.chance("gripper")
    if rng.random() >= scene.cell.gripper:
        return []
    x, y = float(rng.uniform(-1, 1)) * tray.half[0], tray.half[1] + float(rng.uniform(0.04, 0.08))
    return gripper(np.array([x, y, float(rng.uniform(0.03, 0.08))]), rng)


def _record(tray: Tray, slots: list[Slot], beside: list[Sku], camera: Camera, seen: dict[int, Sight]) -> dict[str, Any]:
    first = 1 + sum(slot.found is not None for slot in slots)  # the ids of the items beside the tray follow
    return {
        "rows": tray.rows,
        "columns": tray.columns,
        "slots": [_slot_record(tray, slot, camera) for slot in slots],
        "beside": [
            {"description": sku.description, "x": seen[first + k].x, "y": seen[first + k].y}
            for k, sku in enumerate(beside)
            if first + k in seen
        ],
        "complete": all(slot.status == "ok" for slot in slots),
    }


def _slot_record(tray: Tray, slot: Slot, camera: Camera) -> dict[str, Any]:
    x, y = tray.middle(slot.number)
    half_x, half_y = PITCH[0] / 2, PITCH[1] / 2
    corners = [(x + a * half_x, y + b * half_y, 0.01) for a in (-1, 1) for b in (-1, 1)]
    points = np.clip(camera.project(np.array([(x, y, 0.01), *corners])), 0, 1)
    low, high = points[1:].min(0), points[1:].max(0)
    return {
        "slot": slot.number,
        "x": round(float(points[0, 0]), 3),
        "y": round(float(points[0, 1]), 3),
        "box": [round(float(v), 3) for v in (*low, *high)],
        "expected": slot.expected.description,
        "found": slot.found.description if slot.found else None,
        "status": slot.status,
    }
