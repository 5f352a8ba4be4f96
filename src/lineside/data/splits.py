"""Stable splits, decided by hash of the scene (or cell, camera, day, SKU): new frames change no other frame's split
(DESIGN 8)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

from lineside.data.times import day_of
from lineside.errors import LinesideError
from lineside.types import Meta, Split

By = Literal["scene", "cell", "camera", "day", "sku"]
HELD: tuple[Split, ...] = ("heldout", "dev", "train")  # from most to least held out
SHARES: Mapping[Split, float] = {"train": 0.8, "dev": 0.1, "heldout": 0.1}


def stable_hash(*parts: object) -> int:
    """64 bits that depend on the parts alone: the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)  # the separator keeps ("a", "bc") from ("ab", "c")
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hash_uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return (stable_hash(*parts) >> 11) / 2**53


def split_of(scene: str, *, shares: Mapping[Split, float] = SHARES, salt: str = "") -> Split:
    """The split of a scene. All its frames are in one split; `shifted` is never drawn, because it is held out whole.

    Raises LinesideError when the shares do not sum to 1.
    """
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9) or min(shares.values()) < 0:
        raise LinesideError(f"split shares {dict(shares)} must be at least 0 and sum to 1")
    draw, reached = hash_uniform("split", salt, scene), 0.0
    for name, share in shares.items():
        reached += share
        if draw < reached:
            return name
    return next(iter(shares))  # for the rounding error of the sum


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
