"""Returns: one item, seen from nearby at an angle, intact or damaged, with a label that can be read or not.

`severity` is continuous. An intact item is below INTACT and a damaged one above DAMAGED. There is none between, so the
condition of every item can be seen. Tape, shadows and artwork look like damage, but are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lineside.sim import damage
from lineside.sim.catalogue import COLOURS, Sku, catalogue, look_alikes
from lineside.sim.cells import light_of
from lineside.sim.damage import Patch
from lineside.sim.poses import about
from lineside.sim.render import HERO_SIDE, Camera, Renderer, Thing, hero_mesh, look_at
from lineside.sim.scene import Scene, Shot, floor, gripper, paint
from lineside.sim.sensor import Exposure, expose, shoot
from lineside.sim.shapes import CARTON_TILES, HALF_EXTENTS, WRAP, Mesh
from lineside.sim.textures import packaging, shade

KINDS = {"carton": 0.52, "can": 0.16, "bottle": 0.16, "tub": 0.16}
CONDITIONS = {"intact": 0.40, "dented": 0.22, "torn": 0.20, "open": 0.18}
INTACT, DAMAGED = 0.10, 0.38  # severities: an intact item is below the first, a damaged one above the second
TOP_FACE, FRONT_FACE = 0, 5  # of a carton, as in shapes.BOX_FACES
Region = tuple[float, float, float, float]


def _front(top: float, bottom: float, left: float = -0.16, right: float = 0.16) -> Region:
    """A part of a round item's side around u = 0.75, which faces the camera. `bottom`, `top`: shares of its height."""
    height = WRAP[3] - WRAP[1]
    return (0.75 + left, WRAP[1] + top * height, 0.75 + right, WRAP[1] + bottom * height)


# Places for labels, tape and damage: parts of the atlas that the camera sees, and how often each is chosen.
PLACES: dict[str, list[tuple[Region, float]]] = {
    "carton": [(CARTON_TILES[TOP_FACE], 0.6), (CARTON_TILES[FRONT_FACE], 0.4)],
    "can": [(_front(0.10, 0.90), 1.0)],
    "bottle": [(_front(0.47, 0.95), 1.0)],
    "tub": [((0.06, 0.68, 0.32, 0.94), 1.0)],  # its lid, because its side is too steep to be seen
}
# Dents of round items lie where they change the outline.
DENT_PLACES: dict[str, list[tuple[Region, float]]] = {
    "carton": PLACES["carton"],
    "can": [(_front(0.05, 0.80, -0.27, 0.0), 1.0), (_front(0.05, 0.80, 0.0, 0.27), 1.0)],
    "bottle": [(_front(0.45, 0.90, -0.27, 0.0), 1.0), (_front(0.45, 0.90, 0.0, 0.27), 1.0)],
    "tub": [((0.04, 0.84, 0.34, 0.975), 1.0)],  # the near edge of its lid
}


@dataclass(slots=True)
class Item:
    """A return while it is made: its mesh, its texture, the other things to draw with it, and what is recorded."""

    sku: Sku
    mesh: Mesh
    texture: np.ndarray
    condition: str
    severity: float
    extras: list[Thing]  # in the item's own frame
    hurt: np.ndarray  # points of the damage in the item's frame, (n, 3)
    confusers: list[str]


def returns(scene: Scene, renderer: Renderer, size: int) -> Shot:
    """Make one return: build the item, take the picture, write the record."""
    item = _item(scene)
    taken: list[Patch] = []
    label = _label(scene, item, taken)
    _confuse(scene, item, taken)
    _damage(scene, item, taken)
    rng = scene.chance("pose")
    rotation = about("z", float(rng.uniform(-28, 28)))
    half = np.array(HALF_EXTENTS[item.sku.kind]) * item.sku.scale
    position = np.array([0.0, 0.0, half[2]])
    camera = _camera(scene, half)
    renderer.set_hero(item.sku.kind, item.mesh.vertices, item.mesh.normals, item.texture)
    things = [floor(scene.cell)]
    gloss = (0.15, 0.3) if item.sku.kind == "carton" else (0.4, 0.55)
    things.append(
        Thing(f"hero/{item.sku.kind}", position, rotation, material="hero", id=1, specular=gloss[0], shininess=gloss[1])
    )
    things += [_placed(extra, position, rotation) for extra in item.extras]
    things += _gripper(scene, half)
    exposure = expose(scene.cell, scene.chance("exposure"), glare=0.10)
    record = _record(scene, item, label, camera, position, rotation)
    if label.fault == "glare":
        spot = (record["label"]["x"], record["label"]["y"], 0.055, 210.0)
        exposure = Exposure(exposure.gain, exposure.noise, exposure.blur, exposure.quality, exposure.vignette, (spot,))
    picture = renderer.picture(things, scene.seen_by(camera), light_of(scene.cell, scene.week), size)
    if "shadow" in item.confusers:
        picture = _cast_shadow(picture, scene.chance("shadow"))
    return Shot(shoot(picture, exposure, scene.chance("sensor")), record, (item.sku.id,))


@dataclass(frozen=True, slots=True)
class Label:
    present: bool
    fault: str  # "" when it can be read
    points: np.ndarray  # its centre in the item's frame, (1, 3)


def _item(scene: Scene) -> Item:
    rng = scene.chance("item")
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    pool = [s for s in scene.assortment if s.kind == kind and not s.size]
    sku = pool[int(rng.integers(len(pool)))]
    condition = str(rng.choice(list(CONDITIONS), p=list(CONDITIONS.values())))
    severity = float(rng.uniform(0, INTACT) if condition == "intact" else rng.uniform(DAMAGED, 1.0))
    style = sku.style(scene.week, shifted=scene.shifted)
    texture = packaging(sku, style, HERO_SIDE, label=False)
    return Item(sku, hero_mesh(kind).scaled(sku.scale), texture, condition, severity, [], np.zeros((0, 3)), [])


def _spot(
    item: Item,
    rng: np.random.Generator,
    extent: tuple[float, float],
    taken: list[Patch],
    where: dict[str, list[tuple[Region, float]]] = PLACES,
) -> Patch:
    """A patch that the camera sees. `extent`: its half size in shares of the place. It avoids the other patches if it
    can."""
    places = where[item.sku.kind]
    if item.condition == "open" and item.sku.kind == "carton":
        places = places[1:]  # it has no top
    weights = np.array([weight for _, weight in places])
    best, least = None, np.inf
    for _ in range(24):
        u0, v0, u1, v1 = places[int(rng.choice(len(places), p=weights / weights.sum()))][0]
        du, dv = extent[0] * (u1 - u0), extent[1] * (v1 - v0)
        patch = Patch(float(rng.uniform(u0 + du, u1 - du)), float(rng.uniform(v0 + dv, v1 - dv)), du, dv)
        overlap = sum(patch.overlap(other) for other in taken)
        if overlap < least:
            best, least = patch, overlap
        if not overlap:
            break
    assert best is not None
    taken.append(best)
    return best


def _label(scene: Scene, item: Item, taken: list[Patch]) -> Label:
    rng = scene.chance("label")
    if rng.random() > 0.93:
        return Label(False, "", np.zeros((0, 3)))
    fault = "" if rng.random() < 0.62 else str(rng.choice(["smudged", "covered", "glare"]))
    patch = _spot(item, rng, (0.24, 0.23) if item.sku.kind == "carton" else (0.30, 0.24), taken)
    item.texture = damage.put_label(item.texture, patch, fault, rng)
    anchor = int(np.argmin(((item.mesh.uv - (patch.u, patch.v)) ** 2).sum(1)))
    return Label(True, fault, item.mesh.vertices[anchor : anchor + 1].copy())


def _confuse(scene: Scene, item: Item, taken: list[Patch]) -> None:
    rng = scene.chance("confusers")
    tape, artwork, shadow = rng.random(3) < (0.30, 0.30, 0.25)
    if tape:
        item.texture = damage.draw_tape(item.texture, _spot(item, rng, (0.40, 0.07), taken), rng)
        item.confusers.append("tape")
    if artwork and (not tape or item.sku.kind == "carton"):  # round items have room for one
        item.texture = damage.draw_artwork(item.texture, _spot(item, rng, (0.15, 0.15), taken), rng)
        item.confusers.append("print")
    if shadow:
        item.confusers.append("shadow")


def _damage(scene: Scene, item: Item, taken: list[Patch]) -> None:
    rng = scene.chance("damage")
    carton = item.sku.kind == "carton"
    if item.condition == "dented":
        extent = (0.20 if carton else 0.30) + 0.13 * item.severity
        patch = _spot(item, rng, (extent, extent), taken, DENT_PLACES)
        girth = float(np.min(HALF_EXTENTS[item.sku.kind])) * item.sku.scale
        depth = (0.14 + 0.44 * item.severity if carton else 0.30 + 0.45 * item.severity) * girth
        radius = (0.60 + 0.55 * item.severity if carton else 1.00 + 0.50 * item.severity) * girth
        item.mesh = damage.dent_mesh(item.mesh, patch, depth, radius)
        item.texture = damage.draw_dent(item.texture, patch, item.severity, rng)
        item.hurt = damage.places(item.mesh, patch)
    elif item.condition == "torn":
        extent = (0.13 if carton else 0.25) + 0.20 * item.severity
        patch = _spot(item, rng, (extent, extent), taken)
        item.texture = damage.draw_torn(item.texture, patch, damage.KRAFT if carton else damage.GREY, rng)
        item.hurt = damage.places(item.mesh, patch)
    elif item.condition == "open":
        (_open_carton if carton else _open_lid)(item, rng)


def _open_carton(item: Item, rng: np.random.Generator) -> None:
    """Open the carton: the top becomes the floor of the inside, with four flaps around it, brown on the inner side."""
    x, y, z = np.array(HALF_EXTENTS["carton"]) * item.sku.scale
    vertices = item.mesh.vertices.copy()
    vertices[: len(vertices) // 6, 2] = -0.55 * z
    item.mesh = Mesh(vertices, item.mesh.normals, item.mesh.uv, item.mesh.faces)
    u0, v0, u1, v1 = (round(edge * len(item.texture)) for edge in CARTON_TILES[TOP_FACE])
    item.texture = item.texture.copy()
    item.texture[v0:v1, u0:u1] = (52, 40, 28)
    thick = 0.0007
    outer, inner, lining = paint(COLOURS[item.sku.colour], 0.95), paint(damage.KRAFT), paint(damage.KRAFT, 0.62)
    up = np.array([0.0, 0.0, 1.0])
    for k, outward in enumerate(np.array([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]])):
        short = k < 2  # the flaps over the carton's ends
        reach, length = (x, y) if short else (y, x)
        across = np.cross(up, outward)
        size = (reach / 2 if short else 0.95 * reach / 2, 0.97 * length, thick)
        # At 0 degrees a flap is closed; even a slight case is clearly open. The near flap must not hide the label.
        angle = np.radians(min(55 + 85 * item.severity * float(rng.uniform(0.8, 1.0)), 100 if k == 2 else 180))
        along = np.sin(angle) * up - np.cos(angle) * outward
        within = -np.cos(angle) * up - np.sin(angle) * outward
        frame = np.stack([along, across, np.cross(along, across)], 1)
        middle = outward * reach + up * z + along * size[0]
        item.extras.append(Thing("box", middle - within * thick, frame, size, outer, id=1))
        item.extras.append(Thing("box", middle + within * thick, frame, size, inner, id=1))
        wall = np.stack([up, across, np.cross(up, across)], 1)
        lined = outward * (reach - 3 * thick) + up * 0.22 * z
        item.extras.append(Thing("box", lined, wall, (0.77 * z, 0.96 * length, thick), lining, id=1))
    item.hurt = np.array([(a * x, b * y, z) for a in (-1, 1) for b in (-1, 1)])


def _open_lid(item: Item, rng: np.random.Generator) -> None:
    """Open a round item: its end is dark. The lid hangs on it, is pushed aside or lies on the floor."""
    kind = item.sku.kind
    r, _, h = np.array(HALF_EXTENTS[kind]) * item.sku.scale
    mouth, rim = {"can": (0.80, 0.88), "bottle": (0.38, 0.50), "tub": (0.86, 1.0)}[kind]
    mouth, rim = mouth * r, rim * r
    tone = shade(COLOURS[item.sku.colour], 1.2) if kind == "tub" else (186, 188, 192) if kind == "can" else (70, 72, 78)
    dark = (0.06, 0.05, 0.05, 1.0)
    item.extras.append(
        Thing("cylinder", np.array([0, 0, h]), np.eye(3), (mouth, mouth, 0.0008), dark, id=1, specular=0.0)
    )
    turn = float(rng.uniform(25, 155))  # the place of the lid: behind the item, as the camera sees it
    away = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn)), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    if kind == "can":
        angle = 40 + 70 * item.severity
        along = np.sin(np.radians(angle)) * up - np.cos(np.radians(angle)) * away
        across = np.cross(up, away)
        frame, thick = np.stack([along, across, np.cross(along, across)], 1), 0.0010
        place = away * rim + up * h + along * rim
    elif kind == "tub" and item.severity < 0.65:
        frame, thick = about("z", turn) @ about("y", 10), 0.004
        place = away * rim * (0.75 + 0.9 * item.severity) + up * (h + 0.008)
    else:
        frame, thick = np.eye(3), 0.004 if kind == "tub" else 0.15 * h
        place = np.array([np.sign(away[0]), -0.4, 0.0]) * (r + rim) * 1.05 + up * (thick - h)
    colour = paint(tone)
    item.extras.append(Thing("cylinder", place, frame, (rim, rim, thick), colour, id=1, specular=0.5))
    mouth_corners = [(rim, 0, h), (-rim, 0, h), (0, rim, h), (0, -rim, h)]
    item.hurt = np.array([*mouth_corners, place] if kind == "can" else mouth_corners)


def _placed(extra: Thing, position: np.ndarray, rotation: np.ndarray) -> Thing:
    return Thing(
        extra.shape, position + rotation @ extra.position, rotation @ extra.rotation, extra.size, extra.colour,
        extra.material, extra.id, extra.specular, extra.shininess, extra.emission, extra.reach,
    )  # fmt: skip


def _camera(scene: Scene, half: np.ndarray) -> Camera:
    rng = scene.chance("camera")
    cell = scene.cell
    around = 0.95 * float(np.hypot(half[0], half[1]))
    corners = np.array([(a * around, b * around, z) for a in (-1, 1) for b in (-1, 1) for z in (0.0, 2.0 * half[2])])
    return look_at(
        corners, tilt=cell.tilt + float(rng.uniform(-3, 3)), azimuth=0.5 * cell.azimuth, roll=cell.roll,
        fovy=cell.fovy * 0.7, margin=cell.margin * float(rng.uniform(1.05, 1.25)),
    )  # fmt: skip


def _gripper(scene: Scene, half: np.ndarray) -> list[Thing]:
    rng = scene.chance("gripper")
    if rng.random() >= 0.5 * scene.cell.gripper:
        return []
    x = float(rng.choice([-1, 1])) * (half[0] * 2.0 + 0.03)
    return gripper(np.array([x, half[1] * 2.0, half[2] * 2]), rng)


def _cast_shadow(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A band of shadow with soft edges across the picture, like that of a beam or an arm."""
    size = len(picture)
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size - 0.5
    angle, offset, width = float(rng.uniform(0, np.pi)), float(rng.uniform(-0.15, 0.15)), float(rng.uniform(0.05, 0.13))
    distance = np.abs(x * np.cos(angle) + y * np.sin(angle) - offset)
    depth = float(rng.uniform(0.35, 0.55))
    dark = 1 - depth / (1 + np.exp((distance - width) / 0.008))
    return np.clip(picture * dark[:, :, None], 0, 255).astype(np.uint8)


def _similar(scene: Scene, sku: Sku) -> list[str]:
    """Articles that look like the item. They are only named, so `shifted` may name articles of the other splits."""
    among = catalogue() if scene.shifted else scene.assortment
    return sorted(other.description for other in look_alikes(sku, among) if not other.size)


def _record(scene: Scene, item: Item, label: Label, camera: Camera, position: np.ndarray, rotation: np.ndarray) -> dict:
    def seen(points: np.ndarray) -> np.ndarray:
        return np.clip(camera.project(points @ rotation.T + position), 0, 1)

    box = None
    if len(item.hurt):
        points = seen(item.hurt)
        box = [round(float(v), 3) for v in (*points.min(0), *points.max(0))]
    where = seen(label.points)[0] if label.present else (0.0, 0.0)
    sku = item.sku
    return {
        "item": sku.description,
        "colour": sku.colour,
        "kind": sku.kind,
        "pattern": sku.pattern,
        "size": sku.size,
        "condition": item.condition,
        "severity": round(item.severity, 3),
        "confusers": item.confusers,
        "damage_box": box,
        "label": {
            "present": label.present,
            "readable": label.present and not label.fault,
            "fault": label.fault,
            "x": round(float(where[0]), 3),
            "y": round(float(where[1]), 3),
        },
        "similar": _similar(scene, sku),
    }
