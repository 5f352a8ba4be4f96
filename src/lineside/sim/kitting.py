"""Kitting: a tray with rows x columns of recesses, each meant for one article, and source items lying beside it.

Articles are dropped into their recesses with the physics; one that is half seated is set across the rim of its recess.
About half of the kits are complete.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lineside.sim.articles import Article
from lineside.sim.catalogue import Sku, look_alikes
from lineside.sim.physics import Body, Wall, drop
from lineside.sim.poses import about, matrices, quaternion
from lineside.sim.render import Camera, Renderer, Thing, look_at
from lineside.sim.scene import Scene, Shot, floor, gripper, take
from lineside.sim.truth import sights

PITCH_X, PITCH_Y = 0.146, 0.122  # m, from recess to recess
RIM = 0.009  # m, thickness of the dividers
RIM_HEIGHT = 0.020
BORDER = 0.014
STRIP = 0.17  # m, width of the place for source items beside the tray
COMPLETE_SHARE = 0.5
GUARD = 0.5  # m, height of the unseen walls during the drop


@dataclass(frozen=True, slots=True)
class Slot:
    """One recess: number (1.., as a person reads), middle (x, y) in m, what belongs in it and what is in it."""

    number: int
    x: float
    y: float
    expected: Sku
    found: Sku | None
    status: str


def kitting(scene: Scene, renderer: Renderer, size: int) -> Shot:
    """Build, fill, photograph and describe one kit."""
    rng = scene.chance("layout")
    rows, columns = int(rng.choice([2, 3], p=[0.55, 0.45])), int(rng.choice([2, 3, 4], p=[0.3, 0.4, 0.3]))
    slots = _slots(scene, rows, columns)
    beside, side = _beside(scene, slots)
    placed = _place(scene, slots, beside, rows, columns, side)
    camera = _camera(scene, rows, columns, side if beside else 0)
    things = [floor(scene.cell), *_tray(scene, rows, columns)]
    for k, (article, position, rotation) in enumerate(placed):
        things += article.things(renderer, position, rotation, k + 1)
    things += _gripper(scene, rows, columns)
    seen = sights(renderer, things, camera, size)
    filled = sum(slot.found is not None for slot in slots)
    record = {
        "rows": rows,
        "columns": columns,
        "slots": [_slot_record(slot, camera) for slot in slots],
        "beside": [
            {"description": sku.description, "x": seen[filled + k + 1].x, "y": seen[filled + k + 1].y}
            for k, sku in enumerate(beside)
            if filled + k + 1 in seen
        ],
        "complete": all(slot.status == "ok" for slot in slots),
    }
    skus = sorted({article.sku.id for k, (article, _, _) in enumerate(placed) if k + 1 in seen})
    return Shot(take(renderer, scene, things, camera, size, glare=0.10), record, tuple(skus))


def fits(sku: Sku) -> bool:
    """Whether the article lies in a recess as a whole."""
    x, y, z = np.sort(_resting(Article(sku, 0))[0])
    return 2 * z <= PITCH_X - RIM - 0.002 and 2 * y <= PITCH_Y - RIM - 0.002 and x > 0


def _resting(article: Article) -> tuple[np.ndarray, np.ndarray]:
    """Half extents (3,) and rotation (3, 3) of an article as it is put into a recess, longer side along x."""
    x, y, z = article.half
    kind = article.sku.kind
    if kind in ("bottle", "rod"):
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
        row, column = divmod(k, columns)
        found: Sku | None = sku
        if status == "empty":
            found = None
        elif status == "duplicate":
            others = [e for j, e in enumerate(expected) if statuses[j] == "ok" and e != sku]
            found, status = (others[int(rng.integers(len(others)))], status) if others else (None, "empty")
        elif status == "wrong":
            pool = [s for s in look_alikes(sku, among) if s not in expected]
            if not pool or rng.random() < 0.25:
                pool = [s for s in among if s not in expected]
            found = pool[int(rng.integers(len(pool)))]
        x, y = (column - (columns - 1) / 2) * PITCH_X, ((rows - 1) / 2 - row) * PITCH_Y
        slots.append(Slot(k + 1, x, y, sku, found, status))
    return slots


def _statuses(scene: Scene, rows: int, columns: int) -> list[str]:
    rng = scene.chance("faults")
    count = rows * columns
    statuses = ["ok"] * count
    if rng.random() < COMPLETE_SHARE:
        return statuses
    if rng.random() < 0.25:  # a kit that is still being filled, in order
        done = int(rng.integers(0, count))
        return ["ok"] * done + ["empty"] * (count - done)
    for k in rng.permutation(count)[: int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))]:
        status = str(rng.choice(["empty", "wrong", "duplicate", "half_seated"], p=[0.4, 0.25, 0.15, 0.2]))
        if status == "half_seated" and _outward(int(k), rows, columns) is None:
            status = "empty"
        statuses[int(k)] = status
    return statuses


def _outward(k: int, rows: int, columns: int) -> tuple[int, int] | None:
    """Towards which outer edge of the tray slot k (from 0) can hang over, if any."""
    row, column = divmod(k, columns)
    if row in (0, rows - 1):
        return (0, 1 if row == 0 else -1)
    if column in (0, columns - 1):
        return (1 if column else -1, 0)
    return None


def _beside(scene: Scene, slots: list[Slot]) -> tuple[list[Sku], int]:
    """Source items beside the tray, and on which side of it: -1 left, 1 right."""
    rng = scene.chance("beside")
    side = int(rng.choice([-1, 1]))
    if rng.random() < 0.45:
        return [], side
    missing = [slot.expected for slot in slots if slot.status in ("empty", "wrong", "duplicate")]
    items = [missing[int(k)] for k in rng.permutation(len(missing))[: int(rng.integers(0, 3))]]
    items += scene.choose_skus(rng, int(rng.integers(0 if items else 1, 3)), scene.assortment)
    return items[:3], side


def _place(
    scene: Scene, slots: list[Slot], beside: list[Sku], rows: int, columns: int, side: int
) -> list[tuple[Article, np.ndarray, np.ndarray]]:
    """Articles with the pose in which they came to rest: those in the tray in slot order, then those beside."""
    rng = scene.chance("drop")
    bodies: list[Body] = []
    poses: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    articles = [scene.article(slot.found) for slot in slots if slot.found]
    for k, (slot, article) in enumerate(zip([s for s in slots if s.found], articles)):
        half, rotation = _resting(article)
        rotation = about("z", float(rng.uniform(-7, 7)) + 180 * int(rng.integers(2))) @ rotation
        jitter = rng.uniform(-1, 1, 2) * np.clip([PITCH_X / 2 - half[0] - RIM, PITCH_Y / 2 - half[1] - RIM], 0, 0.012)
        if slot.status == "half_seated":
            poses[k] = _hung(slot, half, rotation, rows, columns, float(rng.uniform(22, 34)))
            continue
        position = np.array([slot.x + jitter[0], slot.y + jitter[1], half[2] + 0.004])
        bodies.append(article.body(position, quaternion(rotation)))
    middle = side * (columns * PITCH_X / 2 + BORDER + STRIP / 2)
    length = rows * PITCH_Y
    for k, sku in enumerate(beside):
        article = scene.article(sku)
        articles.append(article)
        y = ((k + 0.5) / len(beside) - 0.5) * length
        turn = about("z", float(rng.uniform(0, 360))) @ _resting(article)[1]
        bodies.append(article.body(np.array([middle, y, _resting(article)[0][2] + 0.01]), quaternion(turn)))
    rest = drop(bodies, _guards(slots, middle, length), seconds=0.5)
    settled = iter(zip(rest.positions, matrices(rest.quaternions) if bodies else ()))
    return [(article, *(poses[k] if k in poses else next(settled))) for k, article in enumerate(articles)]


def _hung(
    slot: Slot, half: np.ndarray, rotation: np.ndarray, rows: int, columns: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pose of an article that lies across the outer rim of its recess, its inner end down in it."""
    out_x, out_y = _outward(slot.number - 1, rows, columns) or (0, 1)
    along = half[0] if out_x else half[1]
    edge = (PITCH_X if out_x else PITCH_Y) / 2
    shift = edge - 0.25 * along
    tilt = about("y", -angle * out_x) if out_x else about("x", angle * out_y)
    rise = RIM_HEIGHT + half[2] + 0.30 * along * np.sin(np.radians(angle))
    return np.array([slot.x + out_x * shift, slot.y + out_y * shift, rise]), tilt @ rotation


def _guards(slots: list[Slot], middle: float, length: float) -> list[Wall]:
    walls = []
    for slot in slots:
        for sign in (-1, 1):
            walls.append(Wall((slot.x + sign * PITCH_X / 2, slot.y, GUARD / 2), (RIM / 2, PITCH_Y / 2, GUARD / 2)))
            walls.append(Wall((slot.x, slot.y + sign * PITCH_Y / 2, GUARD / 2), (PITCH_X / 2, RIM / 2, GUARD / 2)))
    for sign in (-1, 1):
        walls.append(Wall((middle + sign * (STRIP / 2 + 0.01), 0, GUARD / 2), (0.01, length, GUARD / 2)))
        walls.append(Wall((middle, sign * (length / 2 + 0.05), GUARD / 2), (STRIP / 2, 0.01, GUARD / 2)))
    return walls


def _tray(scene: Scene, rows: int, columns: int) -> list[Thing]:
    red, green, blue = scene.cell.tote
    bed, rim = (0.62 * red, 0.62 * green, 0.62 * blue, 1.0), (min(1, 1.12 * red), min(1, 1.12 * green), min(1, 1.12 * blue), 1.0)
    eye, half_x, half_y = np.eye(3), columns * PITCH_X / 2, rows * PITCH_Y / 2
    things = [Thing("box", np.array([0, 0, -0.0008]), eye, (half_x, half_y, 0.0008), bed)]
    z = RIM_HEIGHT / 2
    for k in range(columns + 1):
        thick = RIM / 2 if 0 < k < columns else BORDER / 2
        x = (k - columns / 2) * PITCH_X
        things.append(Thing("box", np.array([x, 0, z]), eye, (thick, half_y + BORDER / 2, z), rim))
    for k in range(rows + 1):
        thick = RIM / 2 if 0 < k < rows else BORDER / 2
        y = (k - rows / 2) * PITCH_Y
        things.append(Thing("box", np.array([0, y, z]), eye, (half_x + BORDER / 2, thick, z), rim))
    return things


def _camera(scene: Scene, rows: int, columns: int, side: int) -> Camera:
    rng = scene.chance("camera")
    cell = scene.cell
    half_x, half_y = columns * PITCH_X / 2 + BORDER, rows * PITCH_Y / 2 + BORDER
    x = (-half_x - (STRIP if side < 0 else 0), half_x + (STRIP if side > 0 else 0))
    corners = np.array([(a, b, z) for a in x for b in (-half_y, half_y) for z in (0.0, 0.03)])
    # Slots are numbered as a person reads them, so the tray never stands far askew in the picture.
    return look_at(
        corners, tilt=cell.tilt, azimuth=0.35 * cell.azimuth + float(rng.normal(0, 1.5)), roll=0.6 * cell.roll,
        fovy=cell.fovy, margin=cell.margin * float(rng.uniform(0.99, 1.06)),
    )  # fmt: skip


def _gripper(scene: Scene, rows: int, columns: int) -> list[Thing]:
    rng = scene.chance("gripper")
    if rng.random() >= scene.cell.gripper:
        return []
    x = float(rng.uniform(-0.5, 0.5)) * columns * PITCH_X
    y = rows * PITCH_Y / 2 + float(rng.uniform(0.045, 0.09))
    return gripper(np.array([x, y, float(rng.uniform(0.03, 0.08))]), rng)


def _slot_record(slot: Slot, camera: Camera) -> dict:
    corners = [(slot.x + a * PITCH_X / 2, slot.y + b * PITCH_Y / 2, 0.01) for a in (-1, 1) for b in (-1, 1)]
    points = np.clip(camera.project(np.array([(slot.x, slot.y, 0.01), *corners])), 0, 1)
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
