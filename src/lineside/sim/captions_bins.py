"""Captions of bins: what lies where, how many, how full, and what is free to pick.

Each function builds one kind of caption from phrases that know how they can be made false (lineside.sim.phrases). A
caption begins with one of a few words or with a number, never with the name of a thing. So each name has one spelling.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from lineside.sim.phrases import Builder, Caption, Phrase, View, joined, number, off, phrase, plain, swap
from lineside.sim.questions import Record
from lineside.sim.words import PLACES, Look, at, place, reading_order, some

APART = 0.12  # share of the picture's side; from this distance one thing is left of or above another


def _amount(view: View, count: int, look: Look, where: str | None = None) -> Phrase:
    """ "3 red cans": made false by its count or any of its attributes."""

    def wrong() -> Iterator[tuple[str, str]]:
        for name, other in view.variants(look):
            if view.too_many(count, other, where):
                yield name, some(count, other)
        right = view.counts(look, where)
        for other in off(count):
            if other > 0 and other not in right:
                yield "count", some(other, look)

    return phrase(some(count, look), wrong())


def _located(view: View, count: int, look: Look, where: str) -> Caption:
    """ "3 red cans at the left"."""
    others = (at(other) for other in PLACES if view.too_many(count, look, other))
    return [_amount(view, count, look, where), plain(" "), swap(at(where), "place", others)]


def _groups(record: Record) -> list[tuple[int, Look, str]]:
    """(count, look, place) of all parts in reading order."""
    there = Counter((place(part), Look.of(part)) for part in reading_order(record["parts"]))
    return [(count, look, where) for (where, look), count in there.items()]


def _all_parts(view: View, rng: random.Random) -> Caption | None:
    """Every part with its place, if they are few."""
    groups = _groups(view.record)
    if not 1 <= len(groups) <= 6:
        return None
    head = rng.choice(["All parts: ", "Parts: ", "In all: "])
    return [plain(head), *joined([_located(view, *group) for group in groups]), plain(".")]


def _some_parts(view: View, rng: random.Random) -> Caption | None:
    groups = _groups(view.record)
    if not groups:
        return None
    kept = sorted(rng.sample(range(len(groups)), min(len(groups), rng.randint(1, 5))))
    head = plain(rng.choice(["There: ", "Seen: ", ""]))
    return [head, *joined([_located(view, *groups[index]) for index in kept]), plain(".")]


def _one_place(view: View, rng: random.Random) -> Caption | None:
    groups = _groups(view.record)
    if not groups:
        return None
    where = rng.choice(sorted({group[2] for group in groups}))
    here = [(count, look) for count, look, there in groups if there == where][:6]
    others = (other for other in PLACES if all(view.too_many(n, look, other) for n, look in here))
    head = swap(at(where).capitalize(), "place", (at(other).capitalize() for other in others))
    return [head, plain(": "), *joined([[_amount(view, n, look, where)] for n, look in here]), plain(".")]


def _tally(view: View, rng: random.Random, of: Callable[[Look], Look], most: int) -> Caption | None:
    """The parts counted by what `of` keeps of their looks, the most frequent first."""
    there = Counter(of(Look.of(part)) for part in reading_order(view.record["parts"]))
    if not there:
        return None
    total = len(view.record["parts"])
    head = [number("# parts", total, least=2)] if len(there) > 1 and rng.random() < 0.5 else [plain("Counted")]
    items = [[_amount(view, count, look)] for look, count in there.most_common(most)]
    return [*head, plain(": "), *joined(items), plain(" and more." if len(there) > most else ".")]


def _by_look(view: View, rng: random.Random) -> Caption | None:
    return _tally(view, rng, lambda look: look, rng.randint(4, 8))


def _by_colour(view: View, rng: random.Random) -> Caption | None:
    return _tally(view, rng, lambda look: Look(colour=look.colour), 8)


def _by_kind(view: View, rng: random.Random) -> Caption | None:
    return _tally(view, rng, lambda look: Look(kind=look.kind), 9)


def _totals(view: View, rng: random.Random) -> Caption | None:
    record = view.record
    bins, count, fill = record["bins"], len(record["parts"]), record["fill_percent"]
    level = 10 * int(fill / 10 + 0.5)
    levels = [value for value in range(0, 101, 10) if 15 <= abs(value - fill) <= 40]
    facts = [
        [number("bins: #", bins, "bins", least=1, most=5)],
        [number("parts: #", count)],
        [swap(f"{level} percent full", "fill", [f"{value} percent full" for value in levels])],
    ]
    if not record["parts"]:  # below parts, dunnage may be hidden
        inside = ["only packing inside", "only floor inside"][:: 1 if record["dunnage"] else -1]
        facts.append([swap(inside[0], "packing", inside[1:])])
    rng.shuffle(facts)
    return [plain(rng.choice(["Check: ", "View: "])), *joined(facts[: rng.randint(2, 4)]), plain(".")]


def _states(view: View, rng: random.Random) -> Caption | None:
    """Which parts are free to pick. Only parts that differ from all others in look and place."""
    alone = [part for part in view.record["parts"] if view.counts(Look.of(part), place(part)) == {1}]
    if not alone:
        return None
    chosen = reading_order(rng.sample(alone, min(len(alone), rng.randint(1, 3))))
    return [plain(rng.choice(["To pick: ", "Access: "])), *joined([_state(view, part) for part in chosen]), plain(".")]


def _state(view: View, part: Mapping[str, Any]) -> Caption:
    """ "red can at the left is free"."""
    look, where = Look.of(part), place(part)
    others = ((name, other.text) for name, other in view.variants(look) if view.too_many(1, other, where))
    places = (at(other) for other in PLACES if view.too_many(1, look, other))
    state, wrong = ("is free", "is blocked") if part["free"] else ("is blocked", "is free")
    named = phrase(look.text, others)
    return [named, plain(" "), swap(at(where), "place", places), plain(" "), swap(state, "state", [wrong])]


def _relation(view: View, rng: random.Random) -> Caption | None:
    """The relation of two parts ("left of"), each named by a look that no other part has."""
    record = view.record
    alone = [part for part in record["parts"] if view.counts(Look.of(part)) == {1}]
    pairs: list[tuple[Any, Any, str, str]] = []
    for one, two in combinations(alone, 2):
        for axis, before, after in (("x", "left of", "right of"), ("y", "above", "below")):
            if abs(one[axis] - two[axis]) > APART:
                way = (before, after) if one[axis] < two[axis] else (after, before)
                pairs.append((one, two, *way))
    if not pairs:
        return None
    one, two, way, other_way = rng.choice(pairs)
    relation = swap(way, "place", [other_way])
    return [plain("The "), _named(view, one), plain(" is "), relation, plain(" the "), _named(view, two), plain(".")]


def _named(view: View, part: Mapping[str, Any]) -> Phrase:
    """The look of a part, made false by looks that no part has."""
    look = Look.of(part)
    return phrase(look.text, ((name, v.text) for name, v in view.variants(look) if not max(view.counts(v))))


PICKING: tuple[tuple[Builder, ...], ...] = (
    (_all_parts, _some_parts, _some_parts, _one_place),
    (_by_look, _by_colour, _by_kind),
    (_totals,),
    (_states, _relation),
)
