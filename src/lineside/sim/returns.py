"""Returns: one item seen close and at an angle, whole or damaged, with a label that can be read or not.

`severity` is continuous: what counts as damage starts at DAMAGED, an intact item stays below INTACT, and nothing lies
between, so that the condition of every item can be seen. Tape, cast shadows and printed artwork look like damage and are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lineside.sim import damage
from lineside.sim.catalogue import COLOURS, Sku, look_alikes
from lineside.sim.cells import light_of
from lineside.sim.damage import Patch
from lineside.sim.poses import about
from lineside.sim.render import HERO_SIDE, Camera, Renderer, Thing, hero_mesh, look_at
from lineside.sim.scene import Scene, Shot, floor, gripper
from lineside.sim.sensor import Exposure, expose, shoot
from lineside.sim.shapes import CARTON_TILES, HALF_EXTENTS, Mesh
from lineside.sim.textures import packaging, shade

KINDS = {"carton": 0.52, "can": 0.16, "bottle": 0.16, "tub": 0.16}
CONDITIONS = {"intact": 0.40, "dented": 0.22, "torn": 0.20, "open": 0.18}
INTACT, DAMAGED = 0.10, 0.30  # severities: an intact item is below the first, a damaged one above the second
FRONT = 0.75  # u of the side of a round item that faces the camera
TOP_FACE, FRONT_FACE = 0, 5  # of a carton, as in shapes.BOX_FACES


@dataclass(slots=True)
class Item:
    """A return in the making: its mesh and texture, what else is drawn with it and what is recorded."""

    sku: Sku
    mesh: Mesh
    texture: np.ndarray
    condition: str
    severity: float
    extras: list[Thing]  # in the item's own frame
    hurt: np.ndarray  # points of the damage in the item's frame, (n, 3)
    confusers: list[str]


def returns(scene: Scene, renderer: Renderer, size: int) -> Shot:
    """Build, photograph and describe one return."""
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
    material = renderer.set_hero(item.sku.kind, item.mesh.vertices, item.mesh.normals, item.texture)
    things = [floor(scene.cell)]
    gloss = (0.15, 0.3) if item.sku.kind == "carton" else (0.4, 0.55)
    things.append(Thing(f"hero/{item.sku.kind}", position, rotation, material=material, id=1, specular=gloss[0], shininess=gloss[1]))
    things += [_placed(extra, position, rotation) for extra in item.extras]
    things += _gripper(scene, half)
    exposure = expose(scene.cell, scene.chance("exposure"), glare=0.10)
    record = _record(scene, item, label, camera, position, rotation)
    if label.fault == "glare":
        spot = (record["label"]["x"], record["label"]["y"], 0.055, 210.0)
        exposure = Exposure(exposure.gain, exposure.noise, exposure.blur, exposure.quality, exposure.vignette, (spot,))
    picture = renderer.picture(things, camera, light_of(scene.cell, scene.week), size)
    if "shadow" in item.confusers:
        picture = _cast_shadow(picture, scene.chance("shadow"))
    return Shot(shoot(picture, exposure, scene.chance("sensor")), record, (item.sku.id,))


@dataclass(frozen=True, slots=True)
class Label:
    present: bool
    fault: str  # "" when it can be read
    points: np.ndarray  # its middle in the item's frame, (1, 3)


def _item(scene: Scene) -> Item:
    rng = scene.chance("item")
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    pool = [s for s in scene.assortment if s.kind == kind]
    sku = pool[int(rng.integers(len(pool)))]
    condition = str(rng.choice(list(CONDITIONS), p=list(CONDITIONS.values())))
    severity = float(rng.uniform(0, INTACT) if condition == "intact" else rng.uniform(DAMAGED, 1.0))
    style = sku.style(scene.week, shifted=scene.shifted)
    texture = packaging(sku, style, HERO_SIDE, label=False)
    return Item(sku, hero_mesh(kind).scaled(sku.scale), texture, condition, severity, [], np.zeros((0, 3)), [])


def _spot(item: Item, rng: np.random.Generator, du: float, dv: float, taken: list[Patch], top: float) -> Patch:
    """A patch on a side that the camera sees, clear of the others if that can be had."""
    patch = Patch(0.5, 0.5, du, dv)
    for _ in range(30):
        if item.sku.kind == "carton":
            u0, v0, u1, v1 = CARTON_TILES[TOP_FACE if rng.random() < top else FRONT_FACE]
            scale_u, scale_v = (u1 - u0), (v1 - v0)
            patch = Patch(0, 0, du * scale_u, dv * scale_v)
        else:
            low, high = {"can": (0.10, 0.90), "bottle": (0.48, 0.94), "tub": (0.34, 0.92)}[item.sku.kind]
            u0, u1, v0, v1 = FRONT - 0.15, FRONT + 0.15, 0.72 * low, 0.72 * high
            patch = Patch(0, 0, du * (u1 - u0), dv * (v1 - v0))
        u = float(rng.uniform(u0 + patch.du, max(u1 - patch.du, u0 + patch.du + 1e-6)))
        v = float(rng.uniform(v0 + patch.dv, max(v1 - patch.dv, v0 + patch.dv + 1e-6)))
        patch = Patch(u, v, patch.du, patch.dv)
        if all(abs(u - p.u) > 0.8 * (patch.du + p.du) or abs(v - p.v) > 0.8 * (patch.dv + p.dv) for p in taken):
            break
    taken.append(patch)
    return patch


def _label(scene: Scene, item: Item, taken: list[Patch]) -> Label:
    rng = scene.chance("label")
    if rng.random() > 0.93:
        return Label(False, "", np.zeros((0, 3)))
    fault = ""
    if rng.random() > 0.62:
        fault = str(rng.choice(["smudged", "covered", "glare"]))
    top = 0.0 if item.condition == "open" else 0.6
    du, dv = (0.24, 0.24) if item.sku.kind == "carton" else (0.28, 0.26)
    patch = _spot(item, rng, du, dv, taken, top)
    item.texture = damage.put_label(item.texture, patch, fault, rng)
    anchor = int(np.argmin(((item.mesh.uv - (patch.u, patch.v)) ** 2).sum(1)))
    return Label(True, fault, item.mesh.vertices[anchor : anchor + 1].copy())


def _confuse(scene: Scene, item: Item, taken: list[Patch]) -> None:
    rng = scene.chance("confusers")
    top = 0.0 if item.condition == "open" else 0.6
    if rng.random() < 0.30:
        patch = _spot(item, rng, 0.40, 0.07, taken, top)
        item.texture = damage.draw_tape(item.texture, patch, rng)
        item.confusers.append("tape")
    if rng.random() < 0.30:
        patch = _spot(item, rng, 0.15, 0.16, taken, top)
        item.texture = damage.draw_artwork(item.texture, patch, rng)
        item.confusers.append("print")
    if rng.random() < 0.25:
        item.confusers.append("shadow")


def _damage(scene: Scene, item: Item, taken: list[Patch]) -> None:
    rng = scene.chance("damage")
    if item.condition == "dented":
        extent = 0.20 + 0.12 * item.severity
        patch = _spot(item, rng, extent, extent, taken, 0.5)
        half = np.array(HALF_EXTENTS[item.sku.kind]) * item.sku.scale
        depth, radius = (0.12 + 0.42 * item.severity) * half.min(), (0.55 + 0.55 * item.severity) * half.min()
        item.mesh = damage.dent_mesh(item.mesh, patch, float(depth), float(radius))
        item.texture = damage.draw_dent(item.texture, patch, item.severity, rng)
        item.hurt = damage.places(item.mesh, patch)
    elif item.condition == "torn":
        extent = 0.12 + 0.20 * item.severity
        patch = _spot(item, rng, extent, extent, taken, 0.5)
        inside = damage.KRAFT if item.sku.kind == "carton" else damage.GREY
        item.texture = damage.draw_torn(item.texture, patch, inside, rng)
        item.hurt = damage.places(item.mesh, patch)
    elif item.condition == "open":
        (_open_carton if item.sku.kind == "carton" else _open_lid)(item, rng)


def _open_carton(item: Item, rng: np.random.Generator) -> None:
    """The top becomes the floor of the inside; four flaps stand up around it."""
    x, y, z = np.array(HALF_EXTENTS["carton"]) * item.sku.scale
    colour = tuple(c / 255 for c in shade(COLOURS[item.sku.colour], 0.95))
    vertices = item.mesh.vertices.copy()
    per_face = len(vertices) // 6
    vertices[:per_face, 2] = -0.55 * z
    item.mesh = Mesh(vertices, item.mesh.normals, item.mesh.uv, item.mesh.faces)
    tile = CARTON_TILES[TOP_FACE]
    side = len(item.texture)
    texture = item.texture.copy()
    texture[: int(tile[3] * side), : int(tile[2] * side)] = (52, 40, 28)
    item.texture = texture
    thick, kraft = 0.0007, tuple(c / 255 for c in damage.KRAFT)
    inner = tuple(0.62 * c for c in kraft)
    for axis, sign in ((0, -1), (0, 1), (1, -1), (1, 1)):
        reach, length = (x, y) if axis == 0 else (y, x)
        wall = np.array([sign * (x - thick) if axis == 0 else 0.0, sign * (y - thick) if axis == 1 else 0.0, 0.22 * z])
        size = (thick, y, 0.78 * z) if axis == 0 else (x, thick, 0.78 * z)
        item.extras.append(Thing("box", wall, np.eye(3), size, (*inner, 1.0), id=1))
        # 0 degrees is shut; the least severe still stands well off.
        angle = 45 + 125 * item.severity * float(rng.uniform(0.75, 1.0))
        flap = 0.5 * reach if axis == 0 else 0.95 * reach
        outward = np.array([sign, 0.0, 0.0]) if axis == 0 else np.array([0.0, sign, 0.0])
        along = np.array([0.0, 0.0, 1.0]) * np.sin(np.radians(angle)) - outward * np.cos(np.radians(angle))
        hinge = outward * reach + np.array([0.0, 0.0, z])
        across = np.cross(np.array([0.0, 0.0, 1.0]), outward)
        normal = np.cross(along, across)
        frame = np.stack([along, across, normal], 1)
        for offset, tone in ((-thick, colour), (thick, kraft)):
            up = 1.0 if normal @ (np.array([0, 0, 1.0]) * np.cos(np.radians(angle)) + outward * np.sin(np.radians(angle))) > 0 else -1.0
            item.extras.append(
                Thing("box", hinge + along * flap / 2 - normal * up * offset * -1, frame, (flap / 2, length * 0.98, thick), (*tone, 1.0), id=1)
            )
    item.hurt = np.array([(a * x, b * y, z) for a in (-1, 1) for b in (-1, 1)])


def _open_lid(item: Item, rng: np.random.Generator) -> None:
    """The end of a round item lies open and dark; its lid or cap lies against it."""
    r, _, h = np.array(HALF_EXTENTS[item.sku.kind]) * item.sku.scale
    mouth = {"can": 0.84 * r, "bottle": 0.40 * r, "tub": 0.88 * r}[item.sku.kind]
    rim = {"can": 0.88 * r, "bottle": 0.50 * r, "tub": r}[item.sku.kind]
    lid = (0.74, 0.75, 0.77) if item.sku.kind == "can" else tuple(c / 255 for c in shade(COLOURS[item.sku.colour], 1.2))
    item.extras.append(Thing("cylinder", np.array([0, 0, h + 0.0004]), np.eye(3), (mouth, mouth, 0.0006), (0.07, 0.06, 0.06, 1.0), id=1, specular=0.0))
    turn = float(rng.uniform(20, 160))
    if item.sku.kind == "can":  # hinged at the far edge
        angle = 35 + 75 * item.severity
        frame = about("z", turn - 90) @ about("x", angle)
        hinge = about("z", turn - 90) @ np.array([0.0, rim, h])
        place = hinge + frame @ np.array([0.0, -rim, 0.0]) if angle < 0 else hinge + about("z", turn - 90) @ np.array([0.0, -rim * np.cos(np.radians(angle)), rim * np.sin(np.radians(angle))])
        frame = about("z", turn - 90) @ about("x", -angle)
        item.extras.append(Thing("cylinder", place, frame, (rim, rim, 0.0012), (*lid, 1.0), id=1, specular=0.6))
        item.hurt = np.array([[rim, 0, h], [-rim, 0, h], [0, rim, h], [0, -rim, h], place])
        return
    away = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn)), 0.0])
    if item.sku.kind == "tub" and item.severity < 0.65:  # pushed aside, still on top
        place = away * rim * (0.7 + 0.9 * item.severity) + np.array([0, 0, h + 0.006])
        frame = about("z", turn) @ about("y", 12)
    else:  # on the floor beside it
        place = away * (HALF_EXTENTS[item.sku.kind][0] * item.sku.scale + rim * 1.25) + np.array([0, 0, -h + 0.006])
        frame = np.eye(3)
    thick = 0.005 if item.sku.kind == "tub" else 0.30 * h / 2
    item.extras.append(Thing("cylinder", place + np.array([0, 0, thick]), frame, (rim, rim, thick), (*lid, 1.0), id=1, specular=0.4))
    item.hurt = np.array([[rim, 0, h], [-rim, 0, h], [0, rim, h], [0, -rim, h]])


def _placed(extra: Thing, position: np.ndarray, rotation: np.ndarray) -> Thing:
    return Thing(
        extra.shape, position + rotation @ extra.position, rotation @ extra.rotation, extra.size, extra.colour,
        extra.material, extra.id, extra.specular, extra.shininess, extra.emission, extra.reach,
    )  # fmt: skip


def _camera(scene: Scene, half: np.ndarray) -> Camera:
    rng = scene.chance("camera")
    cell = scene.cell
    around = float(np.hypot(half[0], half[1])) * 1.12
    corners = np.array([(a * around, b * around, z) for a in (-1, 1) for b in (-1, 1) for z in (0.0, 2.15 * half[2])])
    return look_at(
        corners, tilt=cell.tilt + float(rng.uniform(-3, 3)), azimuth=0.5 * cell.azimuth, roll=cell.roll,
        fovy=cell.fovy * 0.7, margin=cell.margin * float(rng.uniform(1.0, 1.15)),
    )  # fmt: skip


def _gripper(scene: Scene, half: np.ndarray) -> list[Thing]:
    rng = scene.chance("gripper")
    if rng.random() >= 0.5 * scene.cell.gripper:
        return []
    x = float(rng.choice([-1, 1])) * (half[0] * 2.0 + 0.03)
    return gripper(np.array([x, half[1] * 2.0, half[2] * 2]), rng)


def _cast_shadow(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft-edged band of shadow across the picture, as a beam or an arm throws it."""
    size = len(picture)
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size - 0.5
    angle, offset, width = float(rng.uniform(0, np.pi)), float(rng.uniform(-0.15, 0.15)), float(rng.uniform(0.05, 0.13))
    distance = np.abs(x * np.cos(angle) + y * np.sin(angle) - offset)
    depth = float(rng.uniform(0.35, 0.55))
    dark = 1 - depth / (1 + np.exp((distance - width) / 0.008))
    return np.clip(picture * dark[:, :, None], 0, 255).astype(np.uint8)


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
        "similar": sorted(other.description for other in look_alikes(sku, scene.assortment)),
    }
