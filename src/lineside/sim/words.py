"""The words of the floor: what a thing looks like, where it lies in the picture, and choices made by hash.

Everything the simulator's teacher writes (questions, traces, captions) is put together from these few words, so that a
small language model meets each of them often.
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
VALUES: dict[str, tuple[str, ...]] = {  # of each attribute, as words; "" is not said
    "size": tuple(SIZES),
    "pattern": tuple(PATTERNS),
    "colour": tuple(COLOURS),
    "kind": tuple(KINDS),
}
SIDE_SLACK = 0.03  # a centre this close to the border of two places may be said to lie in either


def dice(*key: object) -> random.Random:
    """A generator seeded by the hash of `key`: the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in key).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


@dataclass(frozen=True, slots=True, order=True)
class Look:
    """What is said of a thing. An empty field says nothing, so that `Look(colour="red")` is "red part"."""

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
        """The look behind a description of the catalogue. Words it does not know are dropped."""
        kind = next((kind for kind in VALUES["kind"] if f" {description}".endswith(f" {kind}")), "")
        rest = description.removesuffix(kind).split()
        said = {
            name: next((word for word in rest if word in VALUES[name]), "") for name in ("size", "pattern", "colour")
        }
        return cls(kind=kind, **said)

    @property
    def text(self) -> str:
        """ "small striped red can"; a look without a kind is of a "part"."""
        return " ".join(word for word in (self.size, self.pattern, self.colour, self.kind or "part") if word)

    @property
    def plural(self) -> str:
        """ "small striped red cans"."""
        return plural(self.text)

    @property
    def manner(self) -> str:
        """What is said besides the kind ("striped red"); "plain" where nothing is."""
        return " ".join(word for word in (self.size, self.pattern, self.colour) if word) or "plain"

    def fits(self, other: Look) -> bool:
        """Whether all that is said here is true of `other`, which may have more to it."""
        return (
            self.colour in ("", other.colour)
            and self.kind in ("", other.kind)
            and self.pattern in ("", other.pattern)
            and self.size in ("", other.size)
        )

    def differs(self, other: Look) -> tuple[str, ...]:
        """The names of the attributes in which two full looks differ, the most telling first."""
        return tuple(
            name for name in ("kind", "colour", "pattern", "size") if getattr(self, name) != getattr(other, name)
        )

    def change(self, **attributes: str) -> Look:
        return replace(self, **attributes)


_look = cache(Look)  # a frame's parts are looked at hundreds of times, and there are few looks


@cache
def known_looks(split: Split, week: int) -> tuple[Look, ...]:
    """The looks of all articles that a frame of a split and week may show: held-out ones for `shifted`, else others.

    What is asked for in vain is drawn from these, so that a question alone does not tell that a thing cannot be there,
    and no training question names a held-out article.
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
    """Which ninth of the picture the centre (x, y in [0, 1]) of a thing lies in."""
    return name_place(_third(thing["y"]), _third(thing["x"]))


def places_near(thing: Mapping[str, Any]) -> tuple[str, ...]:
    """The places that may rightly be named for a thing: its own, and those whose border it lies at."""
    rows = sorted({_third(thing["y"] + shift) for shift in (-SIDE_SLACK, 0.0, SIDE_SLACK)})
    columns = sorted({_third(thing["x"] + shift) for shift in (-SIDE_SLACK, 0.0, SIDE_SLACK)})
    return tuple(name_place(row, column) for row in rows for column in columns)


def at(where: str) -> str:
    """ "at the top left", "in the middle": always as many words as any other place of its length."""
    return f"{'in' if where == 'middle' else 'at'} the {where}"


def reading_order(things: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Things by place (the nine places as one reads), then from left to right."""
    return sorted(things, key=lambda thing: (_third(thing["y"]), _third(thing["x"]), thing["x"], thing["y"]))


def _third(value: float) -> int:
    return min(2, max(0, int(value * 3)))
