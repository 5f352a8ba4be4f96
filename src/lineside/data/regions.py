"""The region of a picture that a model sees, and its tiles, at full resolution (`roi` of a task file).

A model sees each picture at the fixed size of its encoder, so a small part in a wide picture becomes a few pixels.
Cutting the picture to the tote keeps them. Samples hold what was cut, so training and evaluation see the same; `ask`
cuts a whole picture by the `roi` that the checkpoint states. A point is asked and answered within the region:
`inside` and `Region.outside` convert.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from lineside.data.store import account_of
from lineside.data.taskfile import Box, Roi, Table
from lineside.data.values import read_number
from lineside.errors import LinesideError
from lineside.images import decode, image_type
from lineside.strict import build
from lineside.types import Image, Mask, Region, Target
from lineside.verify.verifiers import target_problem

JPEG_QUALITY = 95
LEAST = 8  # pixels: a region with a shorter side shows nothing
_BETWEEN = re.compile(r"[\s,;|()\[\]]+")


def cut(data: bytes, roi: Roi, *, camera: str, corners: Any = None) -> tuple[list[bytes], Region]:
    """(the region, its tiles and, with `whole`, all of the picture, encoded; the region). A JPEG stays one, anything
    else becomes PNG.

    Raises ValueError for a camera without a region, corners that cannot be read, or a region outside the picture;
    LinesideError as `decode`.
    """
    picture = decode(data)
    region = region_of(roi, picture.size, camera=camera, corners=corners)
    lossy = image_type(data) == "image/jpeg"
    whole = region.box == (0, 0, *picture.size)
    pieces = [] if whole else [region.box]
    pieces += tiles_of(region, roi) if roi.tiles else []
    cuts = [_encoded(picture.crop(box), lossy) for box in pieces]
    return ([data] if whole else []) + cuts + ([data] if roi.whole and not whole else []), region


def shown_to_model(
    picture: Image, stated: Mapping[str, Any] | None, *, camera: str | None = None, box: str | None = None
) -> tuple[tuple[Image, ...], Region | None]:
    """What a model is shown of a picture: the region and the tiles that its checkpoint states, as in training.

    `stated`: the checkpoint's `roi`; None: whole pictures. `box`: "left,top,right,bottom" in pixels or shares, in place
    of the checkpoint's boxes; "whole" for a picture that is cut already. Raises LinesideError if the region is not
    clear or not in the picture.
    """
    if stated is None:
        if camera is not None or box is not None:
            raise LinesideError("this checkpoint was trained on whole pictures: leave out --camera and --roi")
        return (picture,), None
    roi = build(Roi, dict(stated), "the checkpoint's roi")
    if box is not None:
        sides = [0.0, 0.0, 1.0, 1.0] if box == "whole" else [read_number(part) for part in box.split(",")]
        data = {"tiles": roi.tiles, "whole": roi.whole, "margin": 0.0 if box == "whole" else roi.margin, "box": sides}
        roi = build(Roi, data, f"--roi {box}")
    elif roi.corners is not None:
        raise LinesideError(
            f"this checkpoint was trained on regions around {roi.corners}: give their bounding box with --roi "
            "left,top,right,bottom, or --roi whole for a picture that is cut already"
        )
    elif roi.cameras and camera is None:
        names = ", ".join(roi.cameras)
        raise LinesideError(
            f"this checkpoint was trained on a region of each camera: give --camera, one of {names}, or --roi"
        )
    try:
        cuts, region = cut(picture.bytes, roi, camera=camera or "")
    except ValueError as error:
        raise LinesideError(f"{picture.path}: {error}") from None
    return tuple(replace(picture, bytes=data, role="crop") for data in cuts), region


def roi_of_samples(folder: Path) -> dict[str, Any] | None:
    """The `roi` by which `label` cut the pictures of a folder of samples; None for whole pictures."""
    return (account_of(folder) or {}).get("roi")


def roi_stated(table: Table | None) -> dict[str, Any] | None:
    """How pictures are cut, as plain data; None for whole pictures."""
    return table.roi.model_dump(mode="json", exclude_defaults=True) if table is not None and table.roi else None


def check_same_roi(checkpoint: Mapping[str, Any] | None, samples: Mapping[str, Any] | None, where: Path) -> None:
    """Raises LinesideError if a model would be judged on pictures that are not cut as in its training. The boxes may
    differ, as cameras do."""
    kinds = [roi and (bool(roi.get("corners")), roi.get("tiles"), roi.get("whole")) for roi in (checkpoint, samples)]
    if kinds[0] != kinds[1]:
        told = ["whole pictures" if roi is None else f"roi {json.dumps(roi)}" for roi in (checkpoint, samples)]
        raise LinesideError(
            f"{where}: the checkpoint was trained on {told[0]}, and these samples show {told[1]}: label them with the "
            "`roi` of the checkpoint"
        )


def region_of(roi: Roi, size: tuple[int, int], *, camera: str, corners: Any = None) -> Region:
    """The region of a picture of `size` (width, height) in whole pixels. Raises ValueError as `cut`."""
    if roi.corners is not None:
        points = read_corners(corners)
        found = _pixels([min(x for x, _ in points), min(y for _, y in points),
                         max(x for x, _ in points), max(y for _, y in points)], size)  # fmt: skip
        named = f"{roi.corners} {corners!r:.60}"
    elif roi.cameras or roi.box:
        box = roi.cameras.get(camera, roi.box)
        if box is None:
            raise ValueError(
                f"camera {camera!r} has no roi: add it to `cameras`, which has {', '.join(roi.cameras)}, or give `box` "
                "for all others"
            )
        found, named = _pixels(box, size), f"{list(box)}"
    else:
        return Region(size, (0, 0, *size))
    if found[0] < 0 or found[1] < 0 or found[2] > size[0] or found[3] > size[1]:
        raise ValueError(f"the roi lies outside the picture: {named} in {size[0]}x{size[1]} pixels")
    wide, high = (roi.margin * (found[2] - found[0]), roi.margin * (found[3] - found[1]))
    left, top = max(0, round(found[0] - wide)), max(0, round(found[1] - high))
    right, bottom = min(size[0], round(found[2] + wide)), min(size[1], round(found[3] + high))
    if right - left < LEAST or bottom - top < LEAST:
        raise ValueError(f"the roi is smaller than {LEAST} pixels: {named} in {size[0]}x{size[1]} pixels")
    return Region(size, (left, top, right, bottom))


def _pixels(box: Box | list[float], size: tuple[int, int]) -> list[float]:
    """Left, top, right, bottom in pixels; a box within 0 to 1 is in shares of the picture."""
    shares = all(0 <= value <= 1 for value in box)
    return [value * side if shares else float(value) for value, side in zip(box, (*size, *size))]


def read_corners(value: Any) -> list[tuple[float, float]]:
    """At least three points, from [[x, y], ...], a flat list of numbers, or a text of either.

    Raises ValueError for anything else.
    """
    found: Any = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = [read_number(part) for part in _BETWEEN.split(value.strip()) if part]
    if isinstance(found, list) and all(isinstance(point, list) and len(point) == 2 for point in found):
        found = [number for point in found for number in point]
    numbers = found if isinstance(found, list) else []
    good = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n)]
    if len(good) < 6 or len(good) % 2 or len(good) < len(numbers):
        raise ValueError(f"no corners: {value!r:.60}, expected points such as [[x, y], [x, y], [x, y], [x, y]]")
    return list(zip(good[::2], good[1::2]))


def tiles_of(region: Region, roi: Roi) -> list[tuple[int, int, int, int]]:
    """The boxes of the tiles in pixels of the whole picture, row by row; neighbours share no pixel."""
    columns, rows = roi.tiles or (1, 1)
    left, top, right, bottom = region.box
    across = np.linspace(left, right, columns + 1).round().astype(int).tolist()
    down = np.linspace(top, bottom, rows + 1).round().astype(int).tolist()
    if min(np.diff(across).min(), np.diff(down).min()) < LEAST:
        raise ValueError(f"a tile is smaller than {LEAST} pixels: {columns}x{rows} tiles of a roi of {region.told}")
    return [(across[c], down[r], across[c + 1], down[r + 1]) for r in range(rows) for c in range(columns)]


def _encoded(picture: PIL.Image.Image, lossy: bool) -> bytes:
    out = io.BytesIO()
    if lossy:
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(out, "PNG")
    return out.getvalue()


def inside(target: Target, region: Region) -> Target | None:
    """A point of the whole picture and its mask, as seen within the region; None if they do not lie in it.

    A mask of another size than the picture is cut at its nearest pixels.
    """
    mask, (width, height) = target.mask, region.size
    if mask is None:
        return target
    left, top, right, bottom = region.box
    across = [round(x * mask.width / width) for x in (left, right)]
    down = [round(y * mask.height / height) for y in (top, bottom)]
    if sum(mask.runs) != mask.height * mask.width or across[0] >= across[1] or down[0] >= down[1]:
        return None
    flat = np.repeat(np.arange(len(mask.runs)) % 2 == 1, mask.runs).reshape(mask.height, mask.width)
    part = flat[down[0] : down[1], across[0] : across[1]]
    x, y = region.within(target.x, target.y)
    found = replace(target, x=x, y=y, mask=mask_of(part))
    return None if target_problem(found) else found


def mask_of(on: npt.NDArray[np.bool_]) -> Mask:
    """The mask of a grid of pixels (height, width) that are on or off."""
    edges = np.flatnonzero(np.diff(on.ravel(), prepend=False))
    return Mask(on.shape[0], on.shape[1], tuple(np.diff(np.concatenate([[0], edges, [on.size]])).tolist()))
