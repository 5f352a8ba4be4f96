"""Stable splits, decided by hash of the scene (or cell, camera, day, SKU): new frames change no other frame's split
(DESIGN 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lineside.data.folders import Rejected
from lineside.data.times import day_of
from lineside.errors import LinesideError
from lineside.hashing import SHARES, split_of, stable_hash
from lineside.hashmap import HashMap, Texts
from lineside.images import image_key
from lineside.types import SUITES, Frame, Image, Meta, Split

By = Literal["scene", "cell", "camera", "day", "sku"]
HELD: tuple[Split, ...] = ("heldout", "dev", "train")  # from most to least held out


def side_of(meta: Meta, *, by: By = "scene", shares: Mapping[Split, float] = SHARES, salt: str = "") -> Split:
    """The split of a frame. All frames of a scene, cell, camera, day or SKU are in one split.

    By SKU, a frame with several goes to the split of the most held-out one: no held-out SKU is ever trained on, but a
    suite may show a training SKU beside it. Raises LinesideError when the frame has no value for `by`.
    """
    names = names_of(meta, by)
    if not names:
        raise LinesideError(f"no {by} to split by: map the column that holds it")
    # Only the others have `by` in their hash: cell "1" and scene "1" are drawn apart, and old scene splits stay.
    sides = {split_of(n, shares=shares, salt=salt if by == "scene" else f"{salt}/{by}") for n in names}
    return next(side for side in HELD if side in sides)


def names_of(meta: Meta, by: By) -> tuple[str, ...]:
    """The scene, day, cell, camera or SKUs of a frame. Raises LinesideError for a time that is not a date."""
    if by == "sku":
        return tuple(sku for sku in meta.skus if sku)
    if by == "day" and meta.time:
        try:
            return (day_of(meta.time),)
        except ValueError as error:
            raise LinesideError(f"no day to split by: the time {error}") from error
    name = "" if by == "day" else getattr(meta, by)
    return (name,) if name else ()


class SuitePictures:
    """Which pictures the suites show, without the pictures: what no training frame and no reference may show."""

    def __init__(self) -> None:
        self._frames, self._names = HashMap(), Texts()  # hash of a picture -> number of the frame that shows it first

    def meet(self, item: Frame | Rejected) -> None:
        """Note the pictures of a suite's frame; anything else is passed over."""
        if not isinstance(item, Frame) or item.split not in SUITES:
            return
        new = [key for image in item.images if (key := _hash(image)) not in self._frames]
        number = self._names.add(f"{item.split}/{item.id}") if new else 0
        for key in new:
            self._frames[key] = number

    def of(self, image: Image) -> tuple[str, str] | None:
        """(id, split) of the suite's frame that shows a picture first; None if none does."""
        if not len(self._names) or (number := self._frames.get(_hash(image))) is None:
            return None
        split, _, name = self._names[number].partition("/")
        return name, split


def _hash(image: Image) -> int:
    return stable_hash(image_key(image.bytes))
