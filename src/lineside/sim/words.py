"""The simulator's vocabulary: how a thing looks, where it lies in the picture, and random choices by hash.

The simulator's teacher writes questions, traces and captions with these few words, so that a small language model sees
each of them often.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from lineside.sim.catalogue import COLOURS, KINDS, PATTERNS, SIZES, assortment
from lineside.types import Split
from lineside.verify.members import plural

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
VALUES: dict[str, tuple[str, ...]] = {  # the words of each attribute; "" is left out of the text
    "size": tuple(SIZES),
    "pattern": tuple(PATTERNS),
    "colour": tuple(COLOURS),
    "kind": tuple(KINDS),
}
SIDE_SLACK = 0.03  # a centre this close to the border of two places belongs to both


def dice(*key: object) -> random.Random:
    """A generator seeded by the hash of `key`: the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in key).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


@dataclass(frozen=True, slots=True, order=True)
class Look:
    """The attributes by which a thing is described. An empty field is left out: `Look(colour="red")` is "red part"."""

    size: str = ""
    pattern: str = ""
    colour: str = ""
    kind: str = ""

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> Look:
        """The full look of a part of a picking record."""
        return _look(part["size"] or "", part["pattern"] or "", part["colour"], part["kind"])

    @classmethod
    def parse(cls, description: str) -> Look:
        """The look that a description of the catalogue means. Unknown words are ignored."""
        kind = next((kind for kind in VALUES["kind"] if f" {description}".endswith(f" {kind}")), "")
        rest = description.removesuffix(kind).split()
        said = {
            name: next((word for word in rest if word in VALUES[name]), "") for name in ("size", "pattern", "colour")
        }
        return cls(kind=kind, **said)

    @property
    def text(self) -> str:
        """ "small striped red can"; without a kind it is a "part"."""
        return " ".join(word for word in (self.size, self.pattern, self.colour, self.kind or "part") if word)

    @property
    def plural(self) -> str:
        """ "small striped red cans"."""
        return plural(self.text)

    @property
    def manner(self) -> str:
        """The attributes without the kind ("striped red"); "plain" if there are none."""
        return " ".join(word for word in (self.size, self.pattern, self.colour) if word) or "plain"

    def fits(self, other: Look) -> bool:
        """Whether every attribute given here is the same in `other`, which may have more."""
        return (
            self.colour in ("", other.colour)
            and self.kind in ("", other.kind)
            and self.pattern in ("", other.pattern)
            and self.size in ("", other.size)
        )

    def differs(self, other: Look) -> tuple[str, ...]:
        """The names of the attributes in which two full looks differ, the most noticeable first."""
        return tuple(
            name for name in ("kind", "colour", "pattern", "size") if getattr(self, name) != getattr(other, name)
        )

    def change(self, **attributes: str) -> Look:
        return replace(self, **attributes)


_look = cache(Look)  # the looks of a frame's parts are needed hundreds of times, and there are few different ones


@cache
def known_looks(split: Split, week: int) -> tuple[Look, ...]:
    """The looks of all articles that a frame of a split and week may show: held-out ones for `shifted`, else the rest.

    Questions about absent things use these looks too. So a question alone does not tell that the thing is absent, and
    no training question names a held-out article.
    """
    skus = assortment(week, shifted=split == "shifted")
    return tuple(Look(sku.size, sku.pattern, sku.colour, sku.kind) for sku in skus)


def some(count: int, look: Look) -> str:
    """ "1 red can", "3 red cans"."""
    return f"{count} {look.text if count == 1 else look.plural}"


def listed(words: Sequence[str]) -> str:
    """ "left", "left and right", "top, left and right"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def name_place(row: int, column: int) -> str:
    """The word for one of the nine places of the picture, 0-based from the top left."""
    if row == 1:
        return COLUMNS[column]
    return ROWS[row] if column == 1 else f"{ROWS[row]} {COLUMNS[column]}"


PLACES = tuple(name_place(row, column) for row in range(3) for column in range(3))  # in reading order


def place(thing: Mapping[str, Any]) -> str:
    """The ninth of the picture in which the centre (x, y in [0, 1]) of a thing lies."""
    return name_place(_third(thing["y"]), _third(thing["x"]))


def places_near(thing: Mapping[str, Any]) -> tuple[str, ...]:
    """The places that are right for a thing: its own, and those whose border is close to its centre."""
    rows = sorted({_third(thing["y"] + shift) for shift in (-SIDE_SLACK, 0.0, SIDE_SLACK)})
    columns = sorted({_third(thing["x"] + shift) for shift in (-SIDE_SLACK, 0.0, SIDE_SLACK)})
    return tuple(name_place(row, column) for row in rows for column in columns)


def at(where: str) -> str:
    """ "at the top left", "in the middle": "in the" and "at the" have the same number of words."""
    return f"{'in' if where == 'middle' else 'at'} the {where}"


def reading_order(things: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Things sorted by place (the nine places in reading order), then from left to right."""
    return sorted(things, key=lambda thing: (_third(thing["y"]), _third(thing["x"]), thing["x"], thing["y"]))


def _third(value: float) -> int:
    return min(2, max(0, int(value * 3)))
