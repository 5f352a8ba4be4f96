"""Choices by hash: they depend on names alone, so every process on every machine makes the same ones (DESIGN 8)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from lineside.errors import LinesideError
from lineside.types import Split

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
