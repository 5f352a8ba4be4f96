"""The cells of the fleet: the place of the camera, what stands under it, and the light. The same for every seed.

Each cell does one job (picking, kitting or returns). A share of them (those with the lowest hash in their family) is
held out and appears only in `shifted`. Held-out cells have their own lists of floors, lights and tote colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from lineside.sim.chance import generator, hash_uniform

FAMILIES = ("picking", "kitting", "returns")
CELLS_PER_FAMILY = 12
HELD_OUT_PER_FAMILY = 3

RGB = tuple[float, float, float]

_FLOORS: tuple[tuple[str, RGB], ...] = (
    ("concrete", (0.58, 0.57, 0.55)),
    ("concrete", (0.42, 0.43, 0.45)),
    ("steel", (0.62, 0.64, 0.67)),
    ("belt", (0.20, 0.21, 0.22)),
    ("wood", (0.62, 0.48, 0.33)),
    ("belt", (0.24, 0.33, 0.28)),
)
_FLOORS_SHIFTED: tuple[tuple[str, RGB], ...] = (
    ("tiles", (0.66, 0.63, 0.58)),
    ("rollers", (0.55, 0.57, 0.60)),
    ("tiles", (0.40, 0.46, 0.52)),
)
_TOTES: tuple[RGB, ...] = (
    (0.52, 0.55, 0.58),
    (0.34, 0.37, 0.41),
    (0.62, 0.60, 0.55),
    (0.40, 0.50, 0.60),
    (0.70, 0.71, 0.71),
    (0.45, 0.47, 0.42),
)
_TOTES_SHIFTED: tuple[RGB, ...] = ((0.58, 0.50, 0.42), (0.30, 0.38, 0.36), (0.50, 0.46, 0.54))
_TINTS: tuple[RGB, ...] = ((1.0, 0.96, 0.90), (1.0, 1.0, 1.0), (0.94, 0.98, 1.0))
_TINTS_SHIFTED: tuple[RGB, ...] = ((1.0, 0.92, 0.80), (0.88, 0.95, 1.0))


@dataclass(frozen=True, slots=True)
class Light:
    """Key light (casts the shadows), fill light from the camera's side, and ambient light. Directions point away from
    the light."""

    azimuth: float  # degrees
    elevation: float  # degrees above the floor
    key: float
    fill: float
    ambient: float
    tint: RGB


@dataclass(frozen=True, slots=True)
class Cell:
    """What is the same in all scenes of a cell. Lengths in metres, angles in degrees."""

    id: str
    family: str
    held_out: bool
    tilt: float  # of the optical axis against straight down
    azimuth: float  # side from which the camera looks when tilted; 0 = from the near edge
    roll: float
    fovy: float
    margin: float  # of the picture around the work area
    tote: RGB
    bin_size: tuple[float, float, float]  # inner width, depth, height of a single bin
    floor: str
    floor_tint: RGB
    light: Light
    gripper: float  # probability that the gripper is in view
    noise: float  # standard deviation, grey levels
    blur: float  # radius, pixels at 224
    quality: tuple[int, int]  # JPEG quality, from and to


@cache
def fleet() -> tuple[Cell, ...]:
    """All cells, with the held-out ones: c00 ... picking, then kitting, then returns."""
    cells = []
    for index, family in enumerate(FAMILIES):
        ids = [f"c{index * CELLS_PER_FAMILY + n:02d}" for n in range(CELLS_PER_FAMILY)]
        held_out = sorted(ids, key=lambda cell_id: hash_uniform("cell held out", cell_id))[:HELD_OUT_PER_FAMILY]
        cells.extend(_cell(cell_id, family, cell_id in held_out) for cell_id in ids)
    return tuple(cells)


@cache
def cells_of(family: str, *, shifted: bool) -> tuple[Cell, ...]:
    """The cells of a family that a split may use."""
    return tuple(c for c in fleet() if c.family == family and c.held_out == shifted)


def _cell(cell_id: str, family: str, held_out: bool) -> Cell:
    rng = generator("cell", cell_id)
    floors, totes, tints = (_FLOORS_SHIFTED, _TOTES_SHIFTED, _TINTS_SHIFTED) if held_out else (_FLOORS, _TOTES, _TINTS)
    floor, floor_tint = floors[rng.integers(len(floors))]
    low = {"picking": 0.0, "kitting": 0.0, "returns": 34.0}[family]
    high = {"picking": 24.0, "kitting": 20.0, "returns": 56.0}[family]
    quality = int(rng.integers(70, 90))
    return Cell(
        id=cell_id,
        family=family,
        held_out=held_out,
        tilt=float(rng.uniform(low, high)),
        azimuth=float(rng.uniform(-25, 25)),
        roll=float(rng.uniform(-6, 6)),
        fovy=float(rng.uniform(28, 58)),
        margin=float(rng.uniform(1.04, 1.16)),
        tote=totes[rng.integers(len(totes))],
        bin_size=(float(rng.uniform(0.33, 0.40)), float(rng.uniform(0.26, 0.31)), float(rng.uniform(0.062, 0.105))),
        floor=floor,
        floor_tint=floor_tint,
        light=Light(
            azimuth=float(rng.uniform(0, 360)),
            elevation=float(rng.uniform(38, 55) if held_out else rng.uniform(52, 80)),
            key=float(rng.uniform(0.58, 0.74)),
            fill=float(rng.uniform(0.22, 0.34)),
            ambient=float(rng.uniform(0.30, 0.40)),
            tint=tints[rng.integers(len(tints))],
        ),
        gripper=float(rng.choice([0.0, 0.15, 0.35])),
        noise=float(rng.uniform(0.8, 3.6)),
        blur=float(rng.uniform(0.0, 0.55)),
        quality=(quality, min(95, quality + int(rng.integers(4, 12)))),
    )


def light_of(cell: Cell, week: int) -> Light:
    """The cell's light in a week: lamps grow old, are cleaned, and are moved a little."""
    rng = generator("light", cell.id, week)
    base = cell.light
    warm = float(rng.uniform(-0.03, 0.03))
    red, green, blue = base.tint
    return Light(
        azimuth=base.azimuth + float(rng.uniform(-20, 20)),
        elevation=base.elevation + float(rng.uniform(-5, 5)),
        key=base.key * float(rng.uniform(0.88, 1.12)),
        fill=base.fill * float(rng.uniform(0.88, 1.12)),
        ambient=base.ambient * float(rng.uniform(0.9, 1.1)),
        tint=(red + warm, green, blue - warm),
    )


def light_name(light: Light) -> str:
    """The light in words, such as "warm, dim": its tint, and whether key and ambient light are weak."""
    red, _, blue = light.tint
    tint = "warm" if red - blue > 0.04 else "cool" if blue - red > 0.04 else "white"
    return f"{tint}, {'dim' if light.key + light.ambient < 1.0 else 'bright'}"
