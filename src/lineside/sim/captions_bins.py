"""Captions of bins, part after part: what lies where, how many, how full, what is free to pick.

Each function builds one kind of caption out of phrases that know how they can be made false (lineside.sim.phrases).
Captions begin with one of a few words or a number and never with the name of a thing, so that no name needs a second
spelling.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

from lineside.sim.phrases import Builder, Caption, Phrase, joined, number, plain, swap, variants
from lineside.sim.questions import Record
from lineside.sim.words import PLACES, Look, at, place, places_near, reading_order, some
from lineside.types import Frame

APART = 0.12  # of the picture's side, from where one thing is left of or above another


def _counts(record: Record, look: Look, where: str | None = None) -> set[int]:
    """Every number of such things that one may rightly name (at a place, or in all).

    "1 red can" is right beside a striped one whether or not that is counted, and a thing at a border is in both places.
    """
    numbers: set[int] = set()
    for alike in (look.fits, look.__eq__):
        near = [places_near(part) for part in record["parts"] if alike(Look.of(part))]
        low = sum(where is None or places == (where,) for places in near)
        high = sum(where is None or where in places for places in near)
        numbers |= set(range(low, high + 1))
    return numbers


def _too_many(record: Record, count: int, look: Look, where: str | None = None) -> bool:
    """Whether there are not so many such things (there), however one counts."""
    return count > max(_counts(record, look, where))


def _amount(frame: Frame, count: int, look: Look, where: str | None = None) -> Phrase:
    """ "3 red cans": wrong by count and by every attribute said."""
    record, right = frame.record, _counts(frame.record, look, where)
    others = variants(look, frame.split)
    wrong = [(name, some(count, other)) for name, other in others if _too_many(record, count, other, where)]
    near = (count + shift for shift in (-2, -1, 1, 2))
    wrong += [("count", some(other, look)) for other in near if other > 0 and other not in right]
    return Phrase(some(count, look), tuple(wrong))


def _located(frame: Frame, count: int, look: Look, where: str) -> Caption:
    """ "3 red cans at the left"."""
    others = [at(other) for other in PLACES if _too_many(frame.record, count, look, other)]
    return [_amount(frame, count, look, where), plain(" "), swap(at(where), "place", others)]


def _groups(record: Record) -> list[tuple[int, Look, str]]:
    """(count, look, place) of all parts in reading order."""
    there = Counter((place(part), Look.of(part)) for part in reading_order(record["parts"]))
    return [(count, look, where) for (where, look), count in there.items()]


def _all_parts(frame: Frame, rng: random.Random) -> Caption | None:
    """Every part with its place, where that can be said in a breath."""
    groups = _groups(frame.record)
    if not 1 <= len(groups) <= 6:
        return None
    head = rng.choice(["All parts: ", "Parts: ", "In all: "])
    return [plain(head), *joined([_located(frame, *group) for group in groups]), plain(".")]


def _some_parts(frame: Frame, rng: random.Random) -> Caption | None:
    groups = _groups(frame.record)
    if not groups:
        return None
    kept = sorted(rng.sample(range(len(groups)), min(len(groups), rng.randint(1, 5))))
    return [
        plain(rng.choice(["There: ", "Seen: ", ""])),
        *joined([_located(frame, *groups[i]) for i in kept]),
        plain("."),
    ]


def _one_place(frame: Frame, rng: random.Random) -> Caption | None:
    record, groups = frame.record, _groups(frame.record)
    if not groups:
        return None
    where = rng.choice(sorted({group[2] for group in groups}))
    here = [(count, look) for count, look, there in groups if there == where][:6]
    others = [other for other in PLACES if all(_too_many(record, n, look, other) for n, look in here)]
    head = swap(at(where).capitalize(), "place", [at(other).capitalize() for other in others])
    return [head, plain(": "), *joined([[_amount(frame, n, look, where)] for n, look in here]), plain(".")]


def _tally(frame: Frame, rng: random.Random, view: Callable[[Look], Look], most: int) -> Caption | None:
    """The parts counted by what `view` leaves of their looks, the commonest first."""
    there = Counter(view(Look.of(part)) for part in reading_order(frame.record["parts"]))
    if not there:
        return None
    total = len(frame.record["parts"])
    head = [number("# parts", total, least=2)] if total > 1 and rng.random() < 0.5 else [plain("Counted")]
    items = [[_amount(frame, count, look)] for look, count in there.most_common(most)]
    return [*head, plain(": "), *joined(items), plain(" and more." if len(there) > most else ".")]


def _by_look(frame: Frame, rng: random.Random) -> Caption | None:
    return _tally(frame, rng, lambda look: look, rng.randint(4, 8))


def _by_colour(frame: Frame, rng: random.Random) -> Caption | None:
    return _tally(frame, rng, lambda look: Look(colour=look.colour), 8)


def _by_kind(frame: Frame, rng: random.Random) -> Caption | None:
    return _tally(frame, rng, lambda look: Look(kind=look.kind), 9)


def _totals(frame: Frame, rng: random.Random) -> Caption | None:
    record = frame.record
    bins, count, fill = record["bins"], len(record["parts"]), record["fill_percent"]
    level = 10 * int(fill / 10 + 0.5)
    levels = [value for value in range(0, 101, 10) if 15 <= abs(value - fill) <= 40]
    facts = [
        [number("bins: #", bins, "bins", least=1, most=9)],
        [number("parts: #", count)],
        [swap(f"{level} percent full", "fill", [f"{value} percent full" for value in levels])],
    ]
    if not record["parts"]:  # under parts packing may be out of sight
        linings = (
            ("only packing inside", "only floor inside")
            if record["dunnage"]
            else ("only floor inside", "only packing inside")
        )
        facts.append([swap(linings[0], "packing", [linings[1]])])
    rng.shuffle(facts)
    return [plain(rng.choice(["Check: ", "View: "])), *joined(facts[: rng.randint(2, 4)]), plain(".")]


def _states(frame: Frame, rng: random.Random) -> Caption | None:
    """Which parts are free to pick; only of parts that their look and place tell from all others."""
    record = frame.record
    alone = [part for part in record["parts"] if _counts(record, Look.of(part), place(part)) == {1}]
    if not alone:
        return None
    items = []
    for part in reading_order(rng.sample(alone, min(len(alone), rng.randint(1, 3)))):
        state, other = ("is free", "is blocked") if part["free"] else ("is blocked", "is free")
        items.append([*_located(frame, 1, Look.of(part), place(part)), plain(" "), swap(state, "state", [other])])
    return [plain(rng.choice(["To pick: ", ""])), *joined(items), plain(".")]


def _relation(frame: Frame, rng: random.Random) -> Caption | None:
    """How two parts lie to each other, told by looks that only they have."""
    record = frame.record
    alone = [part for part in record["parts"] if _counts(record, Look.of(part)) == {1}]
    pairs: list[tuple[Any, Any, str, str]] = []
    for one, two in combinations(alone, 2):
        for axis, before, after in (("x", "left of", "right of"), ("y", "above", "below")):
            if abs(one[axis] - two[axis]) > APART:
                way = (before, after) if one[axis] < two[axis] else (after, before)
                pairs.append((one, two, *way))
    if not pairs:
        return None
    one, two, way, other_way = rng.choice(pairs)
    names = []
    for look in (Look.of(one), Look.of(two)):
        absent = [(name, other.text) for name, other in variants(look, frame.split) if not max(_counts(record, other))]
        names.append(Phrase(look.text, tuple(absent)))
    return [
        plain("The "),
        names[0],
        plain(" is "),
        swap(way, "place", [other_way]),
        plain(" the "),
        names[1],
        plain("."),
    ]


PICKING: tuple[Builder, ...] = (
    _all_parts,
    _some_parts,
    _one_place,
    _by_look,
    _by_colour,
    _by_kind,
    _totals,
    _states,
    _relation,
)
