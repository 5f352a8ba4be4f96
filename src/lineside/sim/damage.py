"""Damage, and things that look like damage: dents in a mesh; torn patches, tape, prints and labels in a texture.

A place on an article is a patch of its texture atlas. `severity` in (0, 1] decides depth and size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lineside.sim.shapes import Mesh, vertex_normals
from lineside.sim.textures import draw_label

RGB = tuple[int, int, int]
KRAFT: RGB = (168, 132, 92)
FIBRE: RGB = (232, 224, 208)
GREY: RGB = (112, 114, 118)


@dataclass(frozen=True, slots=True)
class Patch:
    """A place on the texture: centre and half size along u and v, all in [0, 1]."""

    u: float
    v: float
    du: float
    dv: float

    def overlap(self, other: Patch) -> float:
        """Area shared with another patch, in texture units."""
        width = min(self.u + self.du, other.u + other.du) - max(self.u - self.du, other.u - other.du)
        height = min(self.v + self.dv, other.v + other.dv) - max(self.v - self.dv, other.v - other.dv)
        return max(0.0, width) * max(0.0, height)

    def texels(self, side: int) -> tuple[float, float, float, float]:
        """left, top, right, bottom."""
        return (
            (self.u - self.du) * side,
            (self.v - self.dv) * side,
            (self.u + self.du) * side,
            (self.v + self.dv) * side,
        )


def dent_mesh(mesh: Mesh, patch: Patch, depth: float, radius: float) -> Mesh:
    """The mesh with a dent at a patch: `depth` m deep in the middle, 0 from `radius` m on."""
    anchor = int(np.argmin(((mesh.uv - (patch.u, patch.v)) ** 2).sum(1)))
    centre, inward = mesh.vertices[anchor], -mesh.normals[anchor]
    distance = np.linalg.norm(mesh.vertices - centre, axis=1)
    # A fold, not a bowl: it is steep near the middle, so that light and shade show it.
    amount = depth * np.clip(1 - distance / radius, 0, 1) ** 1.3
    vertices = mesh.vertices + amount[:, None] * inward
    return Mesh(vertices, vertex_normals(vertices, mesh.faces), mesh.uv, mesh.faces)


def places(mesh: Mesh, patch: Patch) -> np.ndarray:
    """Points of the mesh inside the patch, (n, 3); the nearest point if there are none."""
    inside = (np.abs(mesh.uv[:, 0] - patch.u) <= patch.du) & (np.abs(mesh.uv[:, 1] - patch.v) <= patch.dv)
    if not inside.any():
        inside[np.argmin(((mesh.uv - (patch.u, patch.v)) ** 2).sum(1))] = True
    return mesh.vertices[inside]


def draw_dent(texture: np.ndarray, patch: Patch, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a dent: dark on the near side, with creases that are darker and lighter than the print."""
    side = len(texture)
    v, u = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
    x, y = (u - patch.u) / patch.du, (v - patch.v) / patch.dv
    hollow = np.exp(-1.4 * (x * x + y * y))
    shade = 1 - (0.30 + 0.40 * severity) * hollow * (0.75 - 0.5 * np.clip(y, -1, 1))
    creases = Image.new("L", (side, side), 128)
    draw = ImageDraw.Draw(creases)
    width = max(1, round(side * (0.008 + 0.006 * severity)))
    turn = float(rng.uniform(0, 2 * np.pi))
    for k in range(3 + round(2 * severity)):
        angle, reach = turn + k * 2.4, float(rng.uniform(0.7, 1.15))
        bend = rng.uniform(-0.12, 0.12, 2)
        line = [
            ((patch.u + a * patch.du) * side, (patch.v + b * patch.dv) * side)
            for a, b in ((0.0, 0.0), (0.5 * reach * np.cos(angle) + bend[0], 0.5 * reach * np.sin(angle) + bend[1]),
                         (reach * np.cos(angle), reach * np.sin(angle)))
        ]  # fmt: skip
        draw.line([(a + width, b + width) for a, b in line], fill=208, width=width)
        draw.line(line, fill=34, width=width)
    folds = np.asarray(creases.filter(ImageFilter.GaussianBlur(side / 300)), np.float32) / 128 - 1
    shade = shade * (1 + (0.45 + 0.2 * severity) * folds)
    # Black times a factor is black, so creases get some light added.
    dark = 1 - texture.mean(2) / 255
    lift = (30 + 70 * dark) * np.clip(folds, 0, 1) + 26 * dark * hollow * np.clip(y + 0.3, 0, 1)
    return np.clip(texture * shade[:, :, None] + lift[:, :, None], 0, 255).astype(np.uint8)


def draw_torn(texture: np.ndarray, patch: Patch, inside: RGB, rng: np.random.Generator) -> np.ndarray:
    """A torn patch: the inner material with a light, fibrous edge."""
    side = len(texture)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 26))
    reach = rng.uniform(0.55, 1.0, 26)
    outline = [
        ((patch.u + r * np.cos(a) * patch.du) * side, (patch.v + r * np.sin(a) * patch.dv) * side)
        for a, r in zip(angles, reach)
    ]
    core = [
        ((x - patch.u * side) * 0.82 + patch.u * side, (y - patch.v * side) * 0.82 + patch.v * side) for x, y in outline
    ]
    image = Image.fromarray(texture)
    draw = ImageDraw.Draw(image)
    draw.polygon(outline, fill=FIBRE)
    draw.polygon(core, fill=inside)
    left, top, right, bottom = patch.texels(side)
    for _ in range(10):
        x, y = float(rng.uniform(left, right)), float(rng.uniform(top, bottom))
        if image.getpixel((int(np.clip(x, 0, side - 1)), int(np.clip(y, 0, side - 1)))) == inside:
            tone = float(rng.uniform(0.72, 1.22))
            fill = tuple(int(min(255, c * tone)) for c in inside)
            draw.line(
                [x - 0.3 * (right - left) / 2, y, x + 0.3 * (right - left) / 2, y + rng.uniform(-2, 2)], fill=fill
            )
    return np.asarray(image)


def draw_tape(texture: np.ndarray, patch: Patch, rng: np.random.Generator) -> np.ndarray:
    """A strip of packing tape with straight edges: brown or clear. It is no damage."""
    side = len(texture)
    image = Image.fromarray(texture)
    left, top, right, bottom = (round(v) for v in patch.texels(side))
    strip = np.asarray(image.crop((left, top, right, bottom)), np.float32)
    tone, cover = ((196, 160, 104), 0.82) if rng.random() < 0.6 else ((226, 228, 226), 0.55)
    mixed = strip * (1 - cover) + np.array(tone, np.float32) * cover
    mixed[:: max(2, side // 60)] *= 0.97
    image.paste(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)), (left, top))
    return np.asarray(image)


def draw_artwork(texture: np.ndarray, patch: Patch, rng: np.random.Generator) -> np.ndarray:
    """Printed graphics: two arrows, a glass or a starburst, in one dark or light ink. It is no damage."""
    side = len(texture)
    image = Image.fromarray(texture)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = patch.texels(side)
    width, height = right - left, bottom - top
    ground = texture[int((top + bottom) / 2), int((left + right) / 2)]
    ink = (30, 30, 34) if int(ground.sum()) > 300 else (232, 230, 224)
    motif = int(rng.integers(3))
    if motif == 0:
        for k in (0.25, 0.75):
            x = left + k * width
            draw.polygon(
                [(x, top), (x - 0.2 * width, top + 0.45 * height), (x + 0.2 * width, top + 0.45 * height)], fill=ink
            )
            draw.rectangle([x - 0.07 * width, top + 0.45 * height, x + 0.07 * width, bottom - 0.1 * height], fill=ink)
        draw.rectangle([left, bottom - 0.08 * height, right, bottom], fill=ink)
    elif motif == 1:
        draw.polygon(
            [(left + 0.2 * width, top), (right - 0.2 * width, top), (left + width / 2, top + 0.6 * height)], fill=ink
        )
        draw.rectangle([left + 0.46 * width, top + 0.5 * height, left + 0.54 * width, bottom], fill=ink)
        draw.rectangle([left + 0.25 * width, bottom - 0.08 * height, right - 0.25 * width, bottom], fill=ink)
    else:
        points = []
        for k in range(16):
            r = 1.0 if k % 2 else 0.55
            angle = np.pi * k / 8
            points.append((left + width / 2 * (1 + r * np.cos(angle)), top + height / 2 * (1 + r * np.sin(angle))))
        draw.polygon(points, fill=ink)
    return np.asarray(image)


def put_label(texture: np.ndarray, patch: Patch, fault: str, rng: np.random.Generator) -> np.ndarray:
    """The shipping label: readable (`fault` ""), "smudged" or "covered"."""
    side = len(texture)
    image = Image.fromarray(texture)
    box = patch.texels(side)
    draw_label(ImageDraw.Draw(image), box, rng)
    left, top, right, bottom = (round(v) for v in box)
    if fault == "smudged":
        area = image.crop((left, top, right, bottom)).filter(ImageFilter.GaussianBlur(side / 36))
        smear = ImageDraw.Draw(area)
        for _ in range(5):
            y = float(rng.uniform(0.1, 0.9)) * area.height
            smear.line(
                [0, y, area.width, y + rng.uniform(-0.25, 0.25) * area.height], fill=(96, 94, 92), width=side // 50
            )
        image.paste(area.filter(ImageFilter.GaussianBlur(side / 90)), (left, top))
    elif fault == "covered":
        tone = [(176, 140, 92), (42, 42, 46), (206, 60, 48)][int(rng.integers(3))]
        inset = 0.12 * (right - left)
        ImageDraw.Draw(image).rectangle(
            [left + inset * rng.uniform(-1, 1), top - 2, right - inset * 0.6, top + 0.72 * (bottom - top)], fill=tone
        )
    return np.asarray(image)
