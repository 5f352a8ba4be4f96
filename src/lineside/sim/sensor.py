"""From the rendered picture to the file: the camera's exposure, glare, vignette, blur, noise and JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from lineside.sim.cells import Cell


@dataclass(frozen=True, slots=True)
class Exposure:
    """The settings of one shot. gain is a factor; glare spots are (x, y, radius, strength) in units of the picture."""

    gain: float
    noise: float
    blur: float
    quality: int
    vignette: float
    glare: tuple[tuple[float, float, float, float], ...] = ()


def expose(cell: Cell, rng: np.random.Generator, *, glare: float = 0.10) -> Exposure:
    """Draw the settings of a shot. `glare`: the probability of a bright spot in the picture."""
    spots = ()
    if rng.random() < glare:
        spots = (tuple(rng.uniform((0.1, 0.1, 0.04, 40), (0.9, 0.9, 0.10, 110))),)
    return Exposure(
        gain=float(np.exp(rng.normal(0.0, 0.10))),
        noise=cell.noise * float(rng.uniform(0.7, 1.5)),
        blur=cell.blur * float(rng.uniform(0.5, 1.3)),
        quality=int(rng.integers(cell.quality[0], cell.quality[1] + 1)),
        vignette=float(rng.uniform(0.0, 0.22)),
        glare=spots,  # type: ignore[arg-type]
    )


def shoot(picture: np.ndarray, exposure: Exposure, rng: np.random.Generator) -> bytes:
    """JPEG bytes of a rendered picture, uint8 (size, size, 3)."""
    size = len(picture)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    field = exposure.gain * (1.0 - exposure.vignette * 2.0 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    light = picture.astype(np.float32) * field[:, :, None].astype(np.float32)
    for cx, cy, radius, strength in exposure.glare:
        spot = strength * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / np.float32(2 * radius**2))
        light += spot[:, :, None]
    if exposure.blur > 0.15:
        blurred = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(exposure.blur)
        )
        light = np.asarray(blurred, np.float32)
    light = light + exposure.noise * rng.standard_normal(light.shape, dtype=np.float32)
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(light + 0.5, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=exposure.quality)
    return buffer.getvalue()
