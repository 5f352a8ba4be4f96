"""Traces about bins: how the simulator's teacher finds an answer, one regular trace for each question, with its facts.

A trace is a few short clauses, separated by "; ", in reading order of the picture. It ends with the conclusion ("so 9
in all"). The facts are all clauses that are true in a trace of this question, in the form that
`verify.traces.fact_share` compares: the clauses of the trace, those of its other forms (a longer list, a smaller
count), and those with the neighbouring place for a part at the border of two places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product
from typing import Any

from lineside.sim.questions import Record, fitting, mask_of, topmost
from lineside.sim.words import PLACES, ROWS, Look, place, places_near, reading_order, some

MAX_WORDS = 25  # most words before the conclusion; a trace with more takes a shorter form
LISTED = 4  # up to this number, parts are named one by one; more parts are counted by place
SHOWN = 3  # parts named as examples
PLACEMENTS = 48  # most ways to assign parts at borders to places, for the facts
NEAR_TENTH = 0.02  # an edge this close to the border of two tenths of the picture lies in both

Working = tuple[list[str], Iterable[str]]  # the clauses of a trace, and other true clauses


# ---------------------------------------------------------------------------------------------------- parts by place


def _placements(parts: Sequence[Record]) -> list[tuple[str, ...]]:
    """The places of the parts: first their own, then with parts at borders on the other side."""
    choices = [(place(part), *(near for near in places_near(part) if near != place(part))) for part in parts]
    own = tuple(choice[0] for choice in choices)
    moved = [(*own[:i], near, *own[i + 1 :]) for i, choice in enumerate(choices) for near in choice[1:]]
    return list(dict.fromkeys([own, *islice(product(*choices), PLACEMENTS), *moved]))


def _by_name(parts: Sequence[Record], places: Sequence[str]) -> list[str]:
    """ "red can top left", "2 blue tubs right": by place, and within a place in order of appearance."""
    there = Counter((PLACES.index(where), Look.of(part)) for part, where in zip(parts, places))
    ordered = sorted(there.items(), key=lambda item: item[0][0])
    return [f"{look.text if n == 1 else some(n, look)} {PLACES[index]}" for (index, look), n in ordered]


def _by_row(places: Sequence[str], head: str = "") -> list[str]:
    """ "top 9; middle none; bottom 1": counts of the three rows with a running sum; `head` before each row."""
    there = Counter(ROWS[PLACES.index(where) // 3] for where in places)
    clauses, total = [], 0
    for row in ROWS:
        here = there[row]
        clauses.append(f"{head}{row} {here or 'none'}")
        if row == "middle" and total and here:
            clauses.append(f"{total + here} now")
        total += here
    return clauses


def _counted(parts: Sequence[Record], head: str = "") -> Working:
    """The steps of a count: few parts by name, more parts by row, with `head` before each row."""
    placements = _placements(parts)
    named = _by_name(parts, placements[0])
    brief = len(parts) <= LISTED and length(named) < MAX_WORDS
    clauses = named if brief else _by_row(placements[0], head)
    beside = {clause for places in placements for clause in _by_row(places, head)}
    if len(parts) <= 2 * LISTED:
        beside |= {clause for places in placements for clause in _by_name(parts, places)}
    return clauses, beside


def length(clauses: Sequence[str]) -> int:
    """The number of words."""
    return sum(len(clause.split()) for clause in clauses)


def count_all(record: Record, element: Mapping[str, Any]) -> Working:
    parts = reading_order(record["parts"])
    if not parts:
        return [*_nothing(record), "so 0 in all"], ()
    clauses, beside = _counted(parts)
    glance = [f"{len(parts)} part{'s' * (len(parts) > 1)}"] if len(parts) <= LISTED else []
    return [*glance, *clauses, f"so {len(parts)} in all"], {*beside, *glance}


def _nothing(record: Record) -> list[str]:
    return ["only packing in sight" if record["dunnage"] else "bare floor in sight", "no part on it"]


def count_described(record: Record, element: Mapping[str, Any]) -> Working:
    """First the parts that are similar to the description, as in `is_present`; then how many fit, and where.

    If the number comes first, a model guesses it and counts all parts, whatever the question is (docs/experiments.md).
    """
    query = _query(element)
    parts = fitting(record, query)
    clauses, near = _kin(record, query)
    if not record["parts"]:
        return [*clauses, "so 0 in all"], near
    glance = _fitting_at_a_glance(len(parts))
    counted, beside = _counted(parts, "fit ") if parts else ((), ())
    return [*clauses, glance, *counted, f"so {len(parts)} in all"], [*near, *beside]


def _fitting_at_a_glance(count: int) -> str:
    if count <= 1:
        return "1 fits" if count else "none fits"
    return f"{count if count <= LISTED else 'many'} fit"


def _query(element: Mapping[str, Any]) -> Look:
    return Look(element["size"], element["pattern"], element["colour"], element["kind"])


def _kin(record: Record, query: Look) -> Working:
    """The things that are similar to a description: the looks of its kind, else the kinds of its colour."""
    there = list(dict.fromkeys(Look.of(part) for part in reading_order(record["parts"])))
    if not there:
        return _nothing(record), ()
    alike = list(dict.fromkeys(look.kind for look in there if look.colour == query.colour))
    if query.kind:
        same = [look.manner for look in there if look.kind == query.kind]
        kind = Look(kind=query.kind)
        if same:
            return [_first(kind.plural, same)], [f"{kind.plural}: {manner}" for manner in same]
        none = f"no {kind.plural}"
        if not query.colour:
            return [none, *_kinds(there)], ()
        return [none, _first(query.colour, alike) if alike else f"nothing {query.colour}"], ()
    if alike:
        return [_first(query.colour, alike)], [f"{query.colour}: {kind}" for kind in alike]
    return [f"nothing {query.colour}", _first("colours", list(dict.fromkeys(look.colour for look in there)))], ()


def _first(head: str, words: Sequence[str]) -> str:
    """ "cans: red, striped blue"; those for which there is no room are counted."""
    more = len(words) - 2 * SHOWN
    return f"{head}: {', '.join(words[: 2 * SHOWN])}" + (f" and {more} more" if more > 0 else "")


def _kinds(there: Sequence[Look]) -> list[str]:
    return [_first("kinds", list(dict.fromkeys(look.kind for look in there)))]


def is_present(record: Record, element: Mapping[str, Any]) -> Working:
    query = _query(element)
    parts = fitting(record, query)
    clauses, beside = _kin(record, query)
    found = [f"one is {near}" for part in parts for near in _spots(part)]
    if parts:
        largest = max(parts, key=lambda part: part["pixels"])
        return [*clauses, f"one is {_spot(largest)}", "so it is there"], [*beside, *found]
    return [*clauses, "so none fits"], beside


def bins(record: Record, element: Mapping[str, Any]) -> Working:
    held = Counter(part["bin"] for part in record["parts"])
    names = [_quantity(held[n]) for n in range(1, record["bins"] + 1)]
    clauses = [f"bin {n} holds {name}" for n, name in enumerate(names, start=1)]
    return [*clauses, f"so {record['bins']} in all"], ()


def _quantity(count: int) -> str:
    """A count that needs no counting: few, many."""
    return "nothing" if count == 0 else "one" if count == 1 else "a few" if count <= 5 else "many"


def is_empty(record: Record, element: Mapping[str, Any]) -> Working:
    if not record["parts"]:
        return [*_nothing(record), "so nothing to pick"], ()
    largest = sorted(record["parts"], key=lambda part: -part["pixels"])[:SHOWN]
    beside = [f"{Look.of(part).text} {near}" for part in record["parts"] for near in places_near(part)]
    named = [f"{Look.of(part).text} {place(part)}" for part in reading_order(largest)]
    return [*dict.fromkeys(named), "so there is something to pick"], beside


def top_free(record: Record, element: Mapping[str, Any]) -> Working:
    chosen = topmost(record)
    end = f"so nothing lies on the {Look.of(chosen).text}"
    named = [chosen]
    for part in sorted((part for part in record["parts"] if not part["free"]), key=lambda part: -part["pixels"]):
        if length([end, *(_state(other, _spot(other)) for other in (*named, part))]) > MAX_WORDS:
            break
        named.append(part)
    clauses = [_state(part, _spot(part)) for part in reading_order(named)]
    beside = [_state(part, near) for part in record["parts"] for near in _spots(part)]
    return [*dict.fromkeys(clauses), end], beside


def _state(part: Record, where: str) -> str:
    return f"{Look.of(part).text} {where} {'is free' if part['free'] else 'is blocked'}"


def pick_point(record: Record, element: Mapping[str, Any]) -> Working:
    """Where the largest part that fits a description lies, from edge to edge."""
    parts = fitting(record, _query(element))
    largest = max(parts, key=lambda part: part["pixels"])
    x0, y0, x1, y1 = map(_tenth, largest["box"])
    clauses = [
        f"{Look.of(largest).text} {_spot(largest)}",
        f"from {x0} to {x1} tenths across",
        f"from {y0} to {y1} tenths down",
        "so aim at its middle",
    ]
    beside = [f"{Look.of(part).text} {near}" for part in parts for near in _spots(part)]
    for part in parts:
        for axis, way in ((0, "across"), (1, "down")):
            ends = product(_tenths(part["box"][axis]), _tenths(part["box"][axis + 2]))
            beside += [f"from {low} to {high} tenths {way}" for low, high in ends]
    return clauses, beside


def _spot(part: Record) -> str:
    """The place of a part's centre in tenths of the picture, from the left and from the top: "at 4,2"."""
    return f"at {_tenth(part['x'])},{_tenth(part['y'])}"


def _spots(part: Record) -> list[str]:
    """The spot of a part, and those whose border is close to it."""
    return [f"at {x},{y}" for x in _tenths(part["x"]) for y in _tenths(part["y"])]


def _tenth(edge: float) -> int:
    return int(min(max(edge, 0.0), 0.999) * 10)


def _tenths(edge: float) -> set[int]:
    return {_tenth(edge + shift) for shift in (-NEAR_TENTH, 0.0, NEAR_TENTH)}


def fill_level(record: Record, element: Mapping[str, Any]) -> Working:
    parts = record["parts"]
    if not parts:
        return [*_nothing(record), f"so {_level(record['fill_percent'])}"], ()
    cover = sum(mask_of(part["mask"]).mean() for part in parts) * 10
    under = sum(not part["free"] for part in parts)
    crowd = "none is blocked" if not under else "few are blocked" if under * 2 < len(parts) else "many are blocked"
    clauses = [_about(len(parts)), f"they cover {round(cover)} tenths", crowd, f"so {_level(record['fill_percent'])}"]
    beside = [f"they cover {round(cover + shift)} tenths" for shift in (-0.3, 0.3)]
    return clauses, [*beside, *(_about(near) for near in range(len(parts) - 1, len(parts) + 2) if near > 9)]


def _about(count: int) -> str:
    """ "7 parts", "about 15 parts": large numbers are rounded to the nearest five."""
    return some(count, Look()) if count <= 9 else f"about {5 * round(count / 5)} parts"


def _level(fill: float) -> str:
    """A fill level in words that are true and do not give the number."""
    for bound, words in ((25.0, "less than a quarter"), (50.0, "less than half"), (75.0, "more than half")):
        if fill < bound:
            return words
    return "more than three quarters"
