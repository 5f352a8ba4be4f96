"""Random numbers that depend on names only: the same names give the same number in any process, on any machine."""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(parts: tuple[object, ...]) -> bytes:
    # Unlike hash(), the same in every process; the separator keeps ("a", "bc") from ("ab", "c").
    return hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=16).digest()


def hash_uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on the names alone."""
    return int.from_bytes(_digest(parts)[:7], "big") / 2**56


def generator(*parts: object) -> np.random.Generator:
    """A numpy generator whose seed depends on the names alone."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(parts), "big")))
