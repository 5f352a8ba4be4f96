"""Ranges of numbers as keys, which turn numbers of a table into words: "0-10", "0..10", "<5", ">=50", "50+"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

_NUMBER = r"[-+]?[0-9]{1,30}(?:\.[0-9]{1,30})?"
_PLAIN = re.compile(_NUMBER)
_BETWEEN = re.compile(rf"({_NUMBER})\s*(?:-|–|—|\.\.|to)\s*({_NUMBER})")
_OPEN = re.compile(rf"(<=|>=|<|>|≤|≥)\s*({_NUMBER})|({_NUMBER})\+")


class Range(NamedTuple):
    """Numbers from `low` to `high`; each end is included if it is `closed`."""

    low: float
    high: float
    closed: bool = True

    def holds(self, number: float) -> bool:
        """Whether a number lies in the range."""
        if self.low < number < self.high:
            return True
        return self.closed and number in (self.low, self.high)


def read_range(key: str) -> Range | None:
    """The range that a key means; None for other keys ("36-38 long", or "2026-01", which would run backwards)."""
    key = key.strip()
    if match := _BETWEEN.fullmatch(key):
        low, high = float(match[1]), float(match[2])
        return Range(low, high) if low < high else None
    if match := _OPEN.fullmatch(key):
        sign, bound = match[1] or ">=", float(match[2] or match[3])
        closed = sign in ("<=", ">=", "≤", "≥")
        return Range(-math.inf, bound, closed) if sign[0] in "<≤" else Range(bound, math.inf, closed)
    return None


def where_in(value: str, ranges: Mapping[str, Range]) -> str | None:
    """The key of the range that holds a number; of two that share an end the higher one; None for other values."""
    if not _PLAIN.fullmatch(value.strip()):
        return None
    number = float(value)
    found = [(found.low, key) for key, found in ranges.items() if found.holds(number)]
    return max(found)[1] if found else None


def overlapping(ranges: Mapping[str, Range]) -> tuple[str, str] | None:
    """Two ranges that share more than an end, or None."""
    for (one, a), (other, b) in combinations(ranges.items(), 2):
        if max(a.low, b.low) < min(a.high, b.high):
            return one, other
    return None
