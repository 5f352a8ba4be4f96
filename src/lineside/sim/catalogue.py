"""The catalogue: every SKU of the simulated fleet, the same for every seed.

A SKU is a combination of colour, kind, pattern and size. Its description is unique, and a name that a person would use.
A share of the SKUs is held out (by hash of the id) and appears only in the split `shifted`. Weeks add and retire SKUs
and change their packaging. Both depend on a hash, so week 500 needs no table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from lineside.sim.chance import hash_uniform

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (196, 24, 30),
    "orange": (244, 124, 12),
    "yellow": (248, 210, 32),
    "green": (28, 142, 58),
    "blue": (28, 76, 190),
    "purple": (122, 42, 150),
    "white": (236, 236, 232),
    "black": (34, 34, 38),
}
PATTERNS = ("", "striped", "dotted")
SIZES = {"": 1.0, "small": 0.64}
# Kinds with a surface that is large enough for a print. The others are plain.
PRINTED_KINDS = ("carton", "can", "bottle", "tub", "pouch", "ball")
PLAIN_KINDS = ("clear bag", "plate", "rod")
KINDS = PRINTED_KINDS + PLAIN_KINDS

HELD_OUT_SHARE = 0.2
SEASON_WEEKS = 13  # a SKU is sold, or not, for a whole season; the seasons of SKUs start in different weeks
LISTED_SHARE = 0.8
REDESIGN_WEEKS = 9
TRAIN_STYLES = 3  # packaging designs 0 to 2; the designs from 3 on appear only in `shifted`
SHIFTED_STYLES = 2


@dataclass(frozen=True, slots=True)
class Sku:
    """One article. `held_out` ones never appear in train, dev or heldout."""

    id: str
    colour: str
    kind: str
    pattern: str
    size: str
    held_out: bool

    @property
    def description(self) -> str:
        """What a person says: "[size ][pattern ]colour kind"."""
        return describe(self.colour, self.kind, self.pattern, self.size)

    @property
    def scale(self) -> float:
        """Length relative to the normal size of the kind."""
        return SIZES[self.size]

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        return (self.colour, self.kind, self.pattern, self.size)

    def listed(self, week: int) -> bool:
        """Whether the article is sold in that week."""
        season = (week + int(hash_uniform("phase", self.id) * SEASON_WEEKS)) // SEASON_WEEKS
        return hash_uniform("listed", self.id, season) < LISTED_SHARE

    def style(self, week: int, *, shifted: bool) -> int:
        """The packaging design of the article in that week."""
        if shifted:
            return TRAIN_STYLES + int(hash_uniform("style", self.id, "shifted") * SHIFTED_STYLES)
        edition = (week + int(hash_uniform("redesign", self.id) * REDESIGN_WEEKS)) // REDESIGN_WEEKS
        return int(hash_uniform("style", self.id, edition) * TRAIN_STYLES)


def describe(colour: str, kind: str, pattern: str = "", size: str = "") -> str:
    """The description of a SKU with these attributes."""
    return " ".join(word for word in (size, pattern, colour, kind) if word)


@cache
def catalogue() -> tuple[Sku, ...]:
    """All SKUs, with the held-out ones, in a fixed order."""
    skus = []
    for kind in KINDS:
        for colour in COLOURS:
            for pattern in PATTERNS:
                # White with a print would look like the print's colour, so white is only sold plain.
                if pattern and (kind in PLAIN_KINDS or colour == "white"):
                    continue
                for size in SIZES:
                    sku_id = "-".join(("sku", kind.replace(" ", ""), colour, pattern or "plain", size or "normal"))
                    skus.append(Sku(sku_id, colour, kind, pattern, size, held_out=False))
    held_out = _held_out(skus)
    return tuple(replace(sku, held_out=sku.id in held_out) for sku in skus)


def _held_out(skus: list[Sku]) -> set[str]:
    """The ids with the lowest hashes of each kind and size, so that `shifted` has every kind."""
    chosen: set[str] = set()
    for kind in KINDS:
        for size in SIZES:
            ids = sorted(
                (s.id for s in skus if (s.kind, s.size) == (kind, size)), key=lambda i: hash_uniform("held-out", i)
            )
            chosen.update(ids[: round(HELD_OUT_SHARE * len(ids))])
    return chosen


@cache
def assortment(week: int, *, shifted: bool) -> tuple[Sku, ...]:
    """The SKUs on the floor in a week: for `shifted` all held-out ones, else the other ones that are sold."""
    return tuple(s for s in catalogue() if s.held_out == shifted and (shifted or s.listed(week)))


def distance(a: Sku, b: Sku) -> int:
    """The number of attributes (colour, kind, pattern, size) in which two SKUs differ."""
    return sum(x != y for x, y in zip(a.attributes, b.attributes))


def look_alikes(sku: Sku, among: tuple[Sku, ...]) -> tuple[Sku, ...]:
    """The SKUs of `among` that differ in one attribute."""
    return tuple(other for other in among if distance(sku, other) == 1)
