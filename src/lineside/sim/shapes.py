"""The bodies of the articles, by kind and size: a mesh to draw, and a few primitives for collisions.

All meshes are our own. At an edge or a texture seam each vertex exists twice, so that it has one normal and one pair of
texture coordinates. Each mesh takes its texture from one square atlas with a region for each face; u goes right, v goes
down, both in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from lineside.sim.catalogue import KINDS, SIZES

# Half extents (m) of the normal size along x, y, z. The lathe kinds have their axis along z.
HALF_EXTENTS: dict[str, tuple[float, float, float]] = {
    "carton": (0.045, 0.033, 0.026),
    "can": (0.031, 0.031, 0.046),
    "bottle": (0.027, 0.027, 0.066),
    "tub": (0.042, 0.042, 0.026),
    "pouch": (0.040, 0.056, 0.014),
    "ball": (0.034, 0.034, 0.034),
    "clear bag": (0.046, 0.058, 0.017),
    "plate": (0.050, 0.034, 0.005),
    "rod": (0.0105, 0.0105, 0.080),
}

# Atlas regions (u0, v0, u1, v1).
CARTON_TILES = [(i / 3, j / 2, (i + 1) / 3, (j + 1) / 2) for j in range(2) for i in range(3)]  # +z +x +y -z -x -y
WRAP = (0.0, 0.0, 1.0, 0.60)
TOP_DISC = (0.02, 0.64, 0.36, 0.98)
BOTTOM_DISC = (0.42, 0.64, 0.76, 0.98)
PILLOW_FRONT = (0.0, 0.0, 0.5, 1.0)
PILLOW_BACK = (0.5, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Mesh:
    """vertices (V, 3), normals (V, 3), uv (V, 2), faces (F, 3) counter-clockwise from outside."""

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray

    def scaled(self, factor: float) -> Mesh:
        return Mesh(self.vertices * factor, self.normals, self.uv, self.faces)


@dataclass(frozen=True, slots=True)
class Primitive:
    """A collision shape in MuJoCo's terms: type, half sizes (m), centre in the body's frame."""

    type: str
    size: tuple[float, ...]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)


def join(parts: list[Mesh]) -> Mesh:
    """Several meshes joined into one."""
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    return Mesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.normals for p in parts]),
        np.concatenate([p.uv for p in parts]),
        np.concatenate([p.faces + offset for p, offset in zip(parts, offsets)]),
    )


def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a rows x columns grid of vertices, (2 (rows-1) (columns-1), 3)."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted normals per vertex."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


# Right-handed frames of the six faces: outward normal, direction of u, direction of v (v runs down in the texture).
BOX_FACES: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    ((0, 0, 1), (1, 0, 0), (0, -1, 0)),
    ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, -1)),
    ((0, 0, -1), (1, 0, 0), (0, 1, 0)),
    ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    ((0, -1, 0), (1, 0, 0), (0, 0, -1)),
)


def box(half: tuple[float, float, float], cells: int = 2, skip: tuple[int, ...] = ()) -> Mesh:
    """A box whose face k is textured from CARTON_TILES[k]; each face is a grid of cells x cells quads."""
    steps = np.linspace(-1, 1, cells + 1)
    v, u = (g.ravel() for g in np.meshgrid(steps, steps, indexing="ij"))
    parts = []
    for k, (normal, u_axis, v_axis) in enumerate(BOX_FACES):
        if k in skip:
            continue
        n, ua, va = (np.array(axis, float) for axis in (normal, u_axis, v_axis))
        vertices = (n + u[:, None] * ua + v[:, None] * va) * np.array(half)
        u0, v0, u1, v1 = CARTON_TILES[k]
        inset = 0.01  # so that the texture filter does not take colours from the neighbouring tile
        uv = np.stack(
            [u0 + inset + (u + 1) / 2 * (u1 - u0 - 2 * inset), v0 + inset + (v + 1) / 2 * (v1 - v0 - 2 * inset)], 1
        )
        # With u right and v down the quads are clockwise when seen from outside, so the triangles are reversed.
        faces = grid_faces(cells + 1, cells + 1)[:, ::-1]
        parts.append(Mesh(vertices, np.tile(n, (len(vertices), 1)), uv, faces))
    return join(parts)


def lathe(profile: list[tuple[float, float]], segments: int = 24, rings: int = 1) -> Mesh:
    """A body of revolution about z; `profile` lists (radius, height) from the bottom to the top of its side.

    The side has the region WRAP (v = 0 at the top), the flat ends have the two discs. `rings`: into how many parts each
    piece of the profile, and each disc, is divided.
    """
    points = [np.array(profile[0], float)]
    for a, b in pairwise(profile):
        points.extend(np.array(a) + (np.array(b) - np.array(a)) * t for t in np.linspace(0, 1, rings + 1)[1:])
    line = np.array(points)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    arc = 1 - arc / arc[-1]
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    vertices = np.concatenate(
        [line[:, None, :1] * ring[None], np.repeat(line[:, None, 1:], segments + 1, 1)], 2
    ).reshape(-1, 3)
    u0, v0, u1, v1 = WRAP
    uv = np.stack(
        [np.tile(u0 + (u1 - u0) * angles / (2 * np.pi), len(line)), np.repeat(v0 + (v1 - v0) * arc, segments + 1)], 1
    )
    faces = grid_faces(len(line), segments + 1)
    normals = vertex_normals(vertices, faces).reshape(len(line), segments + 1, 3)
    seam = normals[:, 0] + normals[:, -1]
    normals[:, 0] = normals[:, -1] = seam / np.maximum(np.linalg.norm(seam, axis=1, keepdims=True), 1e-12)
    parts = [Mesh(vertices, normals.reshape(-1, 3), uv, faces)]
    for (radius, height), disc, up in ((profile[-1], TOP_DISC, 1.0), (profile[0], BOTTOM_DISC, -1.0)):
        if radius > 1e-6:
            parts.append(_disc(radius, height, disc, up, segments, rings))
    return join(parts)


def _disc(
    radius: float, height: float, region: tuple[float, float, float, float], up: float, segments: int, rings: int
) -> Mesh:
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    flat = (np.linspace(0, 1, rings + 1)[:, None, None] * ring).reshape(-1, 2)  # rings + 1 circles from the middle out
    u0, v0, u1, v1 = region
    centre, half = np.array([(u0 + u1) / 2, (v0 + v1) / 2]), np.array([(u1 - u0) / 2, (v1 - v0) / 2])
    vertices = np.column_stack([flat * radius, np.full(len(flat), height)])
    faces = grid_faces(rings + 1, segments + 1)
    faces = faces[:, ::-1] if up > 0 else faces
    normals = np.tile([0.0, 0.0, up], (len(vertices), 1))
    return Mesh(vertices, normals, centre + flat * half * np.array([1, -up]), faces)


def pillow(half: tuple[float, float, float], cells: int = 10, seal: float = 0.12, power: float = 2.2) -> Mesh:
    """A filled bag that lies flat: thick in the middle, and flat over the share `seal` at both ends of y."""
    steps = np.linspace(-1, 1, cells + 1)
    y, x = (g.ravel() for g in np.meshgrid(steps, steps, indexing="ij"))
    inner = np.clip(np.abs(y) / (1 - seal), 0, 1)
    bulge = (1 - np.abs(x) ** power) * (1 - inner**power)
    pinch = 1 - 0.10 * (1 - inner**2)  # the sides of a filled bag move inwards
    parts = []
    for up, (u0, v0, u1, v1) in ((1.0, PILLOW_FRONT), (-1.0, PILLOW_BACK)):
        z = up * (0.06 + 0.94 * bulge) * half[2]
        vertices = np.column_stack([x * half[0] * pinch, y * half[1], z])
        faces = grid_faces(cells + 1, cells + 1)
        faces = faces if up > 0 else faces[:, ::-1]
        uv = np.column_stack([u0 + (x * up + 1) / 2 * (u1 - u0), v0 + (1 - y) / 2 * (v1 - v0)])
        parts.append(Mesh(vertices, vertex_normals(vertices, faces), uv, faces))
    return join(parts)


def crumple(radius: float, seed: int, segments: int = 12) -> Mesh:
    """A ball of crumpled paper with flat facets; each facet has its own vertices."""
    rng = np.random.default_rng(seed)
    rows = segments // 2 + 1
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, segments + 1), indexing="ij")
    noise = rng.uniform(0.62, 1.0, (rows, segments + 1))
    noise[:, -1], noise[0], noise[-1] = noise[:, 0], 0.8, 0.8
    r = radius * noise
    points = np.stack([r * np.sin(theta) * np.cos(phi), r * np.sin(theta) * np.sin(phi), 0.55 * r * np.cos(theta)], -1)
    faces = grid_faces(rows, segments + 1)
    vertices = points.reshape(-1, 3)[faces].reshape(-1, 3)
    edges = vertices.reshape(-1, 3, 3)
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    keep = np.linalg.norm(normals, axis=1) > 1e-12
    edges, normals = edges[keep], normals[keep]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    uv = np.repeat(rng.uniform(0.1, 0.9, (len(edges), 1, 2)), 3, 1) + rng.uniform(-0.05, 0.05, (len(edges), 3, 2))
    count = len(edges) * 3
    return Mesh(edges.reshape(-1, 3), np.repeat(normals, 3, 0), uv.reshape(-1, 2), np.arange(count).reshape(-1, 3))


def profile_of(kind: str) -> list[tuple[float, float]]:
    """(radius, height) from bottom to top of a solid of revolution, in metres."""
    r, _, h = HALF_EXTENTS[kind]
    if kind == "can":
        return [(0.88 * r, -h), (r, -0.93 * h), (r, 0.93 * h), (0.88 * r, h)]
    if kind == "bottle":
        shoulder, neck = 0.28 * h, 0.40 * r
        return [
            (0.90 * r, -h), (r, -0.96 * h), (r, shoulder), (0.86 * r, 0.42 * h), (0.58 * r, 0.55 * h),
            (neck, 0.62 * h), (neck, 0.70 * h), (0.50 * r, 0.70 * h), (0.50 * r, h),
        ]  # fmt: skip
    if kind == "tub":
        return [(0.80 * r, -h), (0.93 * r, 0.62 * h), (r, 0.64 * h), (r, 0.96 * h), (0.97 * r, h)]
    if kind == "ball":
        turns = np.linspace(-np.pi / 2, np.pi / 2, 13)
        return [(max(float(r * np.cos(t)), 0.0), float(r * np.sin(t))) for t in turns]
    if kind == "rod":
        return [(r, -h), (r, h)]
    raise KeyError(kind)


@cache
def mesh_of(kind: str, size: str) -> Mesh:
    """The mesh of an article of this kind and size, with its centre at the body's origin."""
    half = HALF_EXTENTS[kind]
    if kind in ("carton", "plate"):
        mesh = box(half)
    elif kind in ("pouch", "clear bag"):
        mesh = pillow(half)
    else:
        mesh = lathe(profile_of(kind), segments=20)
    return mesh.scaled(SIZES[size])


@cache
def primitives_of(kind: str, size: str) -> tuple[Primitive, ...]:
    """The collision shapes of an article of this kind and size."""
    x, y, z = (SIZES[size] * e for e in HALF_EXTENTS[kind])
    if kind in ("carton", "plate"):
        return (Primitive("box", (x, y, z)),)
    if kind in ("pouch", "clear bag"):
        return (Primitive("box", (0.86 * x, 0.80 * y, 0.72 * z)),)
    if kind == "ball":
        return (Primitive("sphere", (x,)),)
    if kind == "bottle":
        return (
            Primitive("cylinder", (x, 0.68 * z), (0.0, 0.0, -0.32 * z)),
            Primitive("cylinder", (0.5 * x, 0.32 * z), (0.0, 0.0, 0.68 * z)),
        )
    return (Primitive("cylinder", (x if kind != "tub" else 0.95 * x, z)),)


def all_meshes() -> dict[str, Mesh]:
    """Every article mesh by name "kind/size"."""
    return {f"{kind}/{size or 'normal'}": mesh_of(kind, size) for kind in KINDS for size in SIZES}


def mesh_name(kind: str, size: str) -> str:
    return f"{kind}/{size or 'normal'}"


def volume_of(kind: str, size: str) -> float:
    """Volume in m^3 of the collision shapes (used to keep a bin from being overfilled)."""
    total = 0.0
    for p in primitives_of(kind, size):
        if p.type == "box":
            total += 8 * p.size[0] * p.size[1] * p.size[2]
        elif p.type == "cylinder":
            total += np.pi * p.size[0] ** 2 * 2 * p.size[1]
        else:
            total += 4 / 3 * np.pi * p.size[0] ** 3
    return float(total)
