"""Procedural packaging and floors: square RGB textures drawn for the atlas regions of `shapes`.

A design (`style`) moves labels, changes the period of a print and adds artwork. The article keeps its name. Styles from
`catalogue.TRAIN_STYLES` on appear only in `shifted`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lineside.sim.catalogue import COLOURS, Sku
from lineside.sim.chance import generator
from lineside.sim.shapes import BOTTOM_DISC, CARTON_TILES, HALF_EXTENTS, PILLOW_BACK, PILLOW_FRONT, TOP_DISC, WRAP

SIDE = 128  # texels of a part's texture along each side
RGB = tuple[int, int, int]
Region = tuple[float, float, float, float]

SILVER: RGB = (188, 190, 194)
PRINT: RGB = (244, 244, 240)


def shade(colour: RGB, factor: float) -> RGB:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    return tuple(int(c + (255 - c) * min(1.0, factor - 1)) for c in colour)  # type: ignore[return-value]


def pixels(region: Region, side: int) -> tuple[int, int, int, int]:
    """A region of the atlas in texels, with its right and lower edge."""
    u0, v0, u1, v1 = region
    return (round(u0 * side), round(v0 * side), round(u1 * side) - 1, round(v1 * side) - 1)


@lru_cache(maxsize=32)  # few: the renderer keeps those in use, and the texture of a hero has half a megabyte
def packaging(sku: Sku, style: int, side: int = SIDE, label: bool = True) -> np.ndarray:
    """The texture of an article in a design, uint8 (side, side, 3), with or without its shipping label."""
    base = COLOURS[sku.colour]
    rng = generator("packaging", sku.id, style)
    base = shade(base, float(rng.uniform(0.94, 1.06)))
    image = Image.new("RGB", (side, side), base)
    draw = ImageDraw.Draw(image)
    if sku.kind == "carton":
        _carton(draw, side, sku, style, base, rng if label else None)
    elif sku.kind == "plate":
        _plate(draw, side, base)
    elif sku.kind in ("pouch", "clear bag"):
        _pouch(draw, side, sku, style, base)
    else:
        _lathe(image, sku, style, base)
    return np.asarray(image, np.uint8)


def draw_print(
    draw: ImageDraw.ImageDraw, region: Region, side: int, pattern: str, style: int, size: tuple[float, float]
) -> None:
    """Stripes or dots over a region. `size` is its real size (any unit), so that they look the same on every face.

    The style decides whether stripes are straight or slanted, and whether dots form a straight or a staggered grid.
    """
    x0, y0, x1, y1 = pixels(region, side)
    width, height = x1 - x0 + 1, y1 - y0 + 1
    unit = max(size) / (3.4 + 0.5 * (style % 2))  # one period in real units
    per_x, per_y = unit / size[0] * width, unit / size[1] * height
    if pattern == "striped":
        v, u = np.mgrid[0:height, 0:width]
        if style == 1:
            phase = u / per_x + v / per_y
        elif style == 4:
            phase = u / per_x - v / per_y
        else:
            phase = (u / per_x if size[0] >= size[1] else v / per_y) + 0.0 * (u + v)
        mask = Image.fromarray(((phase + 0.25) % 1.0 < 0.42).astype(np.uint8) * 255)
        draw.bitmap((x0, y0), mask.convert("1"), fill=PRINT)
    elif pattern == "dotted":
        step_x, step_y = per_x * 0.92, per_y * 0.92
        rows, columns = max(1, round(height / step_y)), max(1, round(width / step_x))
        step_x, step_y = width / columns, height / rows
        for row in range(rows):
            stagger = 0.5 if style % 2 and row % 2 else 0.0
            for column in range(columns + (1 if stagger else 0)):
                cx, cy = x0 + (column + 0.5 - stagger) * step_x, y0 + (row + 0.5) * step_y
                rx, ry = 0.29 * per_x * 0.92, 0.29 * per_y * 0.92
                draw.ellipse(_clip((cx - rx, cy - ry, cx + rx, cy + ry), (x0, y0, x1, y1)), fill=PRINT)


def _clip(inner: tuple[float, float, float, float], outer: tuple[int, int, int, int]) -> list[float]:
    left, top = max(inner[0], outer[0]), max(inner[1], outer[1])
    return [left, top, max(left, min(inner[2], outer[2])), max(top, min(inner[3], outer[3]))]


def draw_label(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], rng: np.random.Generator) -> None:
    """A white shipping label with bars and two lines of text, in texels."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    draw.rectangle([left, top, right, bottom], fill=(250, 250, 248), outline=(200, 200, 196))
    x = left + 0.12 * width
    while x < right - 0.14 * width:
        bar = float(rng.choice([0.03, 0.05, 0.08])) * width
        draw.rectangle([x, top + 0.14 * height, x + bar, top + 0.58 * height], fill=(12, 12, 14))
        x += bar + float(rng.choice([0.04, 0.06])) * width
    for row, share in ((0.70, 0.72), (0.83, 0.5)):
        y = top + row * height
        draw.rectangle([left + 0.12 * width, y, left + share * width, y + 0.05 * height], fill=(60, 60, 64))


def _carton(
    draw: ImageDraw.ImageDraw, side: int, sku: Sku, style: int, base: RGB, rng: np.random.Generator | None
) -> None:
    x, y, z = HALF_EXTENTS["carton"]
    sizes = [(x, y), (y, z), (x, z), (x, y), (y, z), (x, z)]
    for k, (region, size) in enumerate(zip(CARTON_TILES, sizes)):
        x0, y0, x1, y1 = pixels(region, side)
        draw.rectangle([x0, y0, x1, y1], fill=shade(base, 1.0 if k % 3 == 0 else 0.94))
        draw_print(draw, region, side, sku.pattern, style, size)
        width, height = x1 - x0, y1 - y0
        if k % 3 == 0:  # tape over the seams at top and bottom
            middle = (y0 + y1) / 2
            draw.rectangle([x0, middle - 0.05 * height, x1, middle + 0.05 * height], fill=shade(base, 1.35))
            draw.line([x0, middle, x1, middle], fill=shade(base, 0.6))
        if rng is not None and (k == 0 or (k == 4 and style in (1, 3)) or (k == 1 and style == 2)):
            left = x0 + (0.10 if style % 2 else 0.52) * width
            top = y0 + (0.12 if style < 2 else 0.40) * height
            draw_label(draw, (left, top, left + 0.38 * width, top + 0.46 * height), rng)


def _plate(draw: ImageDraw.ImageDraw, side: int, base: RGB) -> None:
    x, y, _ = HALF_EXTENTS["plate"]
    for k, region in enumerate(CARTON_TILES):
        x0, y0, x1, y1 = pixels(region, side)
        width, height = x1 - x0, y1 - y0
        if k % 3:
            draw.rectangle([x0, y0, x1, y1], fill=shade(base, 0.8))
            continue
        draw.rectangle([x0, y0, x1, y1], fill=base, outline=shade(base, 1.35))
        dark = (16, 16, 18) if sum(base) > 140 else (120, 120, 124)
        for fx in (0.18, 0.82):
            for fy in (0.22, 0.78):
                rx, ry = 0.085 * width, 0.085 * width * (x / y) * (height / width)
                cx, cy = x0 + fx * width, y0 + fy * height
                draw.ellipse([cx - rx, cy - ry, cx + rx, cy + ry], fill=dark)


def _pouch(draw: ImageDraw.ImageDraw, side: int, sku: Sku, style: int, base: RGB) -> None:
    x, y, _ = HALF_EXTENTS[sku.kind]
    for region in (PILLOW_FRONT, PILLOW_BACK):
        x0, y0, x1, y1 = pixels(region, side)
        width, height = x1 - x0, y1 - y0
        if sku.kind == "clear bag":  # film: its colour comes from the contents; only the header is printed
            draw.rectangle([x0, y0, x1, y1], fill=(228, 234, 238))
            draw.rectangle([x0, y0, x1, y0 + 0.15 * height], fill=base)
            draw.line([x0, y0 + 0.94 * height, x1, y0 + 0.94 * height], fill=(250, 252, 255))
            continue
        u0, v0, u1, v1 = region
        inner = (u0, v0 + 0.10, u1, v1 - 0.10)
        draw_print(draw, inner, side, sku.pattern, style, (x, 0.8 * y))
        for top in (y0, y1 - 0.09 * height):  # crimped seals
            draw.rectangle([x0, top, x1, top + 0.09 * height], fill=shade(base, 1.28))
            for step in range(0, int(width), max(2, side // 26)):
                draw.line([x0 + step, top, x0 + step, top + 0.09 * height], fill=shade(base, 0.75))
        if not sku.pattern:  # a plain pouch carries one emblem
            cx, cy, r = x0 + width / 2, y0 + height * (0.42 if style % 2 else 0.55), 0.20 * width
            draw.ellipse(
                [cx - r, cy - r * 0.9, cx + r, cy + r * 0.9], outline=shade(base, 1.6), width=max(1, side // 42)
            )
            left = cx - r * (0.4 + 0.1 * (style % 3))
            draw.line([left, cy, 2 * cx - left, cy], fill=shade(base, 1.6), width=max(1, side // 42))


def _lathe(image: Image.Image, sku: Sku, style: int, base: RGB) -> None:
    draw, side = ImageDraw.Draw(image), image.width
    r, _, h = HALF_EXTENTS[sku.kind]
    around, tall = 2 * np.pi * r, 2 * h
    u0, v0, u1, v1 = WRAP
    top, bottom = pixels(TOP_DISC, side), pixels(BOTTOM_DISC, side)
    band = {"can": (0.10, 0.90), "bottle": (0.46, 0.95), "tub": (0.32, 0.94), "ball": (0.0, 1.0)}.get(sku.kind)
    if band and sku.pattern:
        region = (u0, v0 + (v1 - v0) * band[0], u1, v0 + (v1 - v0) * band[1])
        # A third of a round body is visible, so the print repeats around it.
        _repeat_print(draw, side, region, sku.pattern, style, around, tall * (band[1] - band[0]))
    height = (v1 - v0) * side
    if sku.kind == "can":
        for v in (0.0, 0.925):
            draw.rectangle([0, v0 * side + v * height, side, v0 * side + (v + 0.075) * height], fill=SILVER)
        draw.rectangle(_grown(top, side // 42), fill=SILVER)
        draw.rectangle(_grown(bottom, side // 42), fill=SILVER)
        for region in (TOP_DISC, BOTTOM_DISC):
            _lid(image, region, 0.78, sku.pattern, base)
            cx, cy, rr = _circle(region, side)
            draw.ellipse([cx - 0.26 * rr, cy - 0.13 * rr, cx + 0.26 * rr, cy + 0.13 * rr], fill=SILVER)
    elif sku.kind == "bottle":
        cap = (58, 60, 66) if (style % 2 == 0) != (sku.colour == "black") else (226, 226, 222)
        draw.rectangle([0, 0, side, v0 * side + 0.22 * height], fill=cap)
        draw.rectangle(_grown(top, side // 42), fill=cap)
    elif sku.kind == "tub":
        lid = shade(base, 1.30 if sku.colour != "white" else 0.93)
        draw.rectangle([0, 0, side, v0 * side + 0.26 * height], fill=lid)
        draw.rectangle(_grown(top, side // 42), fill=lid)
        _lid(image, TOP_DISC, 0.84, sku.pattern, base)
        _lid(image, BOTTOM_DISC, 1.0, sku.pattern, base)
        if not sku.pattern:
            cx, cy, rr = _circle(TOP_DISC, side)
            draw.ellipse([cx - rr / 2, cy - rr / 2, cx + rr / 2, cy + rr / 2], outline=lid, width=max(1, side // 64))
    elif sku.kind == "rod":
        for disc in (top, bottom):
            draw.rectangle(_grown(disc, side // 42), fill=shade(base, 0.55))


def _circle(region: Region, side: int) -> tuple[float, float, float]:
    """Centre and radius, in texels, of the disc that fills a region."""
    left, top, right, bottom = pixels(region, side)
    return (left + right) / 2, (top + bottom) / 2, (right - left) / 2


def _lid(image: Image.Image, region: Region, share: float, pattern: str, base: RGB) -> None:
    """The end of a round body. It has the body's colour and print within `share` of the radius, so that the article can
    be recognised from above."""
    left, top, right, bottom = pixels(region, image.width)
    face = Image.new("RGB", (right - left + 1, bottom - top + 1), base)
    draw_print(ImageDraw.Draw(face), (0.0, 0.0, 1.0, 1.0), face.width, pattern, 0, (1.0, 1.0))
    inset = (1 - share) * face.width / 2
    mask = Image.new("L", face.size, 0)
    ImageDraw.Draw(mask).ellipse([inset, inset, face.width - 1 - inset, face.height - 1 - inset], fill=255)
    image.paste(face, (left, top), mask)


def _grown(box: tuple[int, int, int, int], by: int) -> list[int]:
    return [box[0] - by, box[1] - by, box[2] + by, box[3] + by]


def _repeat_print(
    draw: ImageDraw.ImageDraw, side: int, region: Region, pattern: str, style: int, around: float, tall: float
) -> None:
    u0, v0, u1, v1 = region
    repeats = 3
    for k in range(repeats):
        part = (u0 + (u1 - u0) * k / repeats, v0, u0 + (u1 - u0) * (k + 1) / repeats, v1)
        # Straight stripes are rings around the body, so they are stripes from every side.
        size = (min(around / repeats, 0.99 * tall), tall)
        draw_print(draw, part, side, pattern, style, size)


@lru_cache(maxsize=64)
def surface(name: str, side: int = 256) -> np.ndarray:
    """A floor, belt or table, uint8 (side, side, 3). It is nearly white, so that the cell's tint gives the colour."""
    rng = generator("surface", name)
    noise = rng.normal(0, 1, (side, side)).astype(np.float32)
    grey = Image.fromarray(np.clip(128 + 40 * noise, 0, 255).astype(np.uint8))
    fine = np.asarray(grey.filter(ImageFilter.GaussianBlur(0.8)), np.float32) - 128
    coarse = np.asarray(grey.filter(ImageFilter.GaussianBlur(9)), np.float32) - 128
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if name == "concrete":
        value = 222 + 0.35 * fine + 5.0 * coarse
    elif name == "steel":
        brushed = np.cumsum(noise, 1)[:, ::-1] / np.sqrt(side)
        value = 226 + 9 * brushed * 0.4 + 3 * coarse
    elif name == "belt":
        value = 214 + 0.5 * fine - 26 * ((x * 24) % 1 < 0.12)
    elif name == "wood":
        rings = np.sin(2 * np.pi * (y * 7 + 0.5 * np.sin(2 * np.pi * (x + 0.1 * y)) + coarse * 0.05))
        value = 214 + 14 * rings + 0.3 * fine
    elif name == "tiles":
        value = 226 + 2.0 * coarse - 60 * (((x * 6) % 1 < 0.035) | ((y * 6) % 1 < 0.035))
    elif name == "rollers":
        value = 150 + 90 * np.abs(np.sin(np.pi * y * 8)) + 0.2 * fine
    else:  # plain plastic
        value = 236 + 0.25 * fine + 1.5 * coarse
    return np.repeat(np.clip(value, 0, 255).astype(np.uint8)[:, :, None], 3, 2)


SURFACES = ("plain", "concrete", "steel", "belt", "wood", "tiles", "rollers")
