"""Picking: parts and dunnage that are dropped into one to four bins.

`fill_percent` is the share of the bins' inner volume below the surface of the contents (dunnage included): the mean
height of this surface over a grid of floor points (at most the rim), divided by the height of the rim. A person who
looks in from above would estimate this. Gaps under tilted parts count as full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lineside.sim.articles import Article, Dunnage
from lineside.sim.physics import Body, Rest, Wall, drop
from lineside.sim.poses import matrices
from lineside.sim.render import Camera, Renderer, Thing, look_at
from lineside.sim.scene import Scene, Shot, floor, gripper, lighter, take
from lineside.sim.truth import SEEN, Sight, sights

MAX_PARTS = 40
EMPTY_SHARE, STOCKED_SHARE = 0.12, 0.20
MEDIAN_PARTS, SPREAD = 6.0, 0.75  # of a log-normal count
DUNNAGE_SHARE, DUNNAGE_SHARE_EMPTY = 0.15, 0.40
PACKING = 0.50  # largest share of a bin's volume for the parts; with more they lie above the rim
WALL = 0.008  # m, of a bin
GAP = 0.03  # m, between bins
GUARD = 1.2  # m, height of the invisible walls that keep falling parts in their bin


@dataclass(frozen=True, slots=True)
class Bin:
    """Centre of the floor (x, y) and inner size, in m."""

    x: float
    y: float
    width: float
    depth: float
    height: float

    @property
    def volume(self) -> float:
        return self.width * self.depth * self.height


def picking(scene: Scene, renderer: Renderer, size: int) -> Shot:
    """Make one picking scene: fill the bins, take the picture, write the record."""
    bins = _bins(scene)
    loads = _loads(scene, bins)
    flat = [(k, item) for k, load in enumerate(loads) for item in load]
    bodies = [body for k, load in enumerate(loads) for body in _above(scene, k, bins[k], load)]
    layers = max((len(load) for load in loads), default=0) / 6
    rest = drop(bodies, _guards(bins), seconds=0.75 + 0.06 * layers)
    camera = _camera(scene, bins)
    things = [floor(scene.cell), *(t for b in bins for t in _tote(b, scene))]
    rotations = matrices(rest.quaternions) if flat else np.zeros((0, 3, 3))
    for k, (_, item) in enumerate(flat):
        pose = rest.positions[k], rotations[k]
        things += item.things(renderer, *pose, k + 1) if isinstance(item, Article) else item.things(renderer, *pose)
    things += _gripper(scene, bins)
    seen = sights(renderer, things, camera, size)
    record = _record(bins, flat, rest, seen)
    record["dunnage"] = any(isinstance(item, Dunnage) for _, item in flat)
    skus = sorted({part["sku"] for part in record["parts"]})
    return Shot(take(renderer, scene, things, camera, size, glare=0.15), record, tuple(skus))


def _bins(scene: Scene) -> list[Bin]:
    rng = scene.chance("bins")
    count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.2, 0.12, 0.13]))
    width, depth, height = scene.cell.bin_size
    height *= float(rng.uniform(0.8, 1.15))
    if count > 1:
        width, depth, height = (
            0.84 * width,
            0.84 * depth,
            0.9 * height,
        )  # not smaller: in a tiny bin a small part would look large
    rows, columns = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2)}[count]
    if count in (2, 3) and rng.random() < 0.5:
        rows, columns, width, depth = columns, rows, depth, width
    step_x, step_y = width + 2 * WALL + GAP, depth + 2 * WALL + GAP
    return [
        Bin((c - (columns - 1) / 2) * step_x, ((rows - 1) / 2 - r) * step_y, width, depth, height)
        for r in range(rows)
        for c in range(columns)
    ]


def _loads(scene: Scene, bins: list[Bin]) -> list[list[Article | Dunnage]]:
    """The contents of each bin, in the order in which they fall."""
    rng = scene.chance("load")
    skus = scene.choose_skus(
        rng, int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.14, 0.2, 0.24, 0.2, 0.12, 0.1])), scene.assortment
    )
    shares = rng.dirichlet(np.full(len(skus), 1.5))
    bin_shares = rng.dirichlet(np.full(len(bins), 1.2))
    if len(bins) > 1:
        bin_shares = bin_shares * (rng.random(len(bins)) > 0.2) + 1e-9
    loads: list[list[Article | Dunnage]] = [[] for _ in bins]
    room = [PACKING * b.volume for b in bins]
    count = _count(rng)
    for _ in range(count):
        article = scene.article(skus[int(rng.choice(len(skus), p=shares))])
        k = int(rng.choice(len(bins), p=bin_shares / bin_shares.sum()))
        if room[k] >= article.volume:
            room[k] -= article.volume
            loads[k].append(article)
    if rng.random() < (DUNNAGE_SHARE if count else DUNNAGE_SHARE_EMPTY):
        kind = "paper" if rng.random() < 0.55 else "cushion"
        for _ in range(int(rng.integers(1, 4))):
            k = int(rng.integers(len(bins)))
            loads[k].insert(int(rng.integers(len(loads[k]) + 1)), Dunnage(kind, int(rng.integers(3))))
    return loads


def _count(rng: np.random.Generator) -> int:
    """Number of parts: none, a few (log-normal), or a full load."""
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return 0
    if kind < EMPTY_SHARE + STOCKED_SHARE:
        return int(rng.integers(15, MAX_PARTS + 1))
    return int(np.clip(round(float(np.exp(rng.normal(np.log(MEDIAN_PARTS), SPREAD)))), 1, MAX_PARTS))


def _above(scene: Scene, index: int, bin_: Bin, load: Sequence[Article | Dunnage]) -> list[Body]:
    """The bodies over their bin at the start: layers of a loose grid, with random rotations."""
    rng = scene.chance(f"drop {index}")
    columns, rows = (3, 2) if bin_.width >= bin_.depth else (2, 3)
    per_layer = columns * rows
    bodies: list[Body] = []
    order = rng.permutation(per_layer)
    height = 0.07
    for k, item in enumerate(load):
        place = k % per_layer
        if k and place == 0:
            order = rng.permutation(per_layer)
            height += 0.105
        column, row = int(order[place]) % columns, int(order[place]) // columns
        x = ((column + 0.5) / columns - 0.5) * bin_.width + float(rng.uniform(-0.035, 0.035))
        y = ((row + 0.5) / rows - 0.5) * bin_.depth + float(rng.uniform(-0.035, 0.035))
        free_x, free_y = max(0.0, bin_.width / 2 - item.reach), max(0.0, bin_.depth / 2 - item.reach)
        spot = (bin_.x + np.clip(x, -free_x, free_x), bin_.y + np.clip(y, -free_y, free_y), height + item.reach * 0.5)
        turn = rng.normal(size=4)
        bodies.append(item.body(np.array(spot), turn / np.linalg.norm(turn)))
    return bodies


def _guards(bins: list[Bin]) -> list[Wall]:
    walls = []
    thick = GAP / 2
    for b in bins:
        for sign in (-1, 1):
            walls.append(Wall((b.x + sign * (b.width / 2 + thick), b.y, GUARD / 2), (thick, b.depth / 2, GUARD / 2)))
            walls.append(Wall((b.x, b.y + sign * (b.depth / 2 + thick), GUARD / 2), (b.width / 2, thick, GUARD / 2)))
    return walls


def _tote(b: Bin, scene: Scene) -> list[Thing]:
    """Floor, four walls and a lighter rim."""
    eye = np.eye(3)
    inner, rim = lighter(scene.cell.tote, 0.95), lighter(scene.cell.tote, 1.18)
    things = [Thing("box", np.array([b.x, b.y, -0.0005]), eye, (b.width / 2 + WALL, b.depth / 2 + WALL, 0.0005), inner)]
    half, lip = b.height / 2, 0.006
    for sign in (-1, 1):
        x, y = b.x + sign * (b.width / 2 + WALL / 2), b.y + sign * (b.depth / 2 + WALL / 2)
        long_x, long_y = b.width / 2 + WALL, b.depth / 2 + WALL
        things.append(Thing("box", np.array([x, b.y, half]), eye, (WALL / 2, long_y, half), inner))
        things.append(Thing("box", np.array([b.x, y, half]), eye, (long_x, WALL / 2, half), inner))
        things.append(
            Thing("box", np.array([x, b.y, b.height]), eye, (WALL / 2 + lip / 2, long_y + lip / 2, lip / 2), rim)
        )
        things.append(
            Thing("box", np.array([b.x, y, b.height]), eye, (long_x + lip / 2, WALL / 2 + lip / 2, lip / 2), rim)
        )
    return things


def _camera(scene: Scene, bins: list[Bin]) -> Camera:
    rng = scene.chance("camera")  # the mount moves a little between shots
    cell = scene.cell
    x = [b.x + s * (b.width / 2 + WALL) for b in bins for s in (-1, 1)]
    y = [b.y + s * (b.depth / 2 + WALL) for b in bins for s in (-1, 1)]
    corners = np.array([(a, b, z) for a in (min(x), max(x)) for b in (min(y), max(y)) for z in (0.0, bins[0].height)])
    return look_at(
        corners, tilt=cell.tilt, azimuth=cell.azimuth + float(rng.normal(0, 1.0)), roll=cell.roll,
        fovy=cell.fovy, margin=cell.margin * float(rng.uniform(0.98, 1.05)),
    )  # fmt: skip


def _gripper(scene: Scene, bins: list[Bin]) -> list[Thing]:
    rng = scene.chance("gripper")
    if rng.random() >= scene.cell.gripper:
        return []
    right = max(b.x + b.width / 2 for b in bins) * float(rng.uniform(0.55, 1.0)) * float(rng.choice([-1, 1]))
    top = max(b.y + b.depth / 2 for b in bins) * float(rng.uniform(0.55, 1.0))
    return gripper(np.array([right, top, bins[0].height + float(rng.uniform(0.02, 0.10))]), rng)


def _record(bins: list[Bin], flat: list[tuple[int, Article | Dunnage]], rest: Rest, seen: dict[int, Sight]) -> dict:
    covered = {lower for lower, _ in rest.supports}
    parts = []
    for k, (bin_index, item) in enumerate(flat):
        sight = seen.get(k + 1)
        if not isinstance(item, Article) or sight is None or sight.visible < SEEN:
            continue
        sku = item.sku
        parts.append(
            {
                "sku": sku.id, "description": sku.description, "colour": sku.colour, "kind": sku.kind,
                "pattern": sku.pattern, "size": sku.size, "bin": bin_index + 1, "x": sight.x, "y": sight.y,
                "box": list(sight.box), "visible": round(sight.visible, 3), "pixels": sight.pixels,
                "free": bool(k not in covered and sight.visible >= 0.9),
                "depth": round(float(rest.positions[k, 2]), 4), "mask": sight.mask,
            }
        )  # fmt: skip
    total = sum(isinstance(item, Article) for _, item in flat)
    parts.sort(key=lambda p: (int(p["y"] * 6), p["x"]))
    return {
        "bins": len(bins),
        "empty": total == 0,
        "dunnage": False,
        "fill_percent": round(_fill(bins, rest), 1),
        "parts": parts,
        "buried": total - len(parts),
    }


def _fill(bins: list[Bin], rest: Rest) -> float:
    shares = []
    for b in bins:
        x = b.x + (np.arange(14) + 0.5) / 14 * b.width - b.width / 2
        y = b.y + (np.arange(11) + 0.5) / 11 * b.depth - b.depth / 2
        heights = rest.heights(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
        shares.append(float(np.clip(heights / b.height, 0, 1).mean()))
    return 100 * float(np.mean(shares))
