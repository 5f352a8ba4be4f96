"""Captions of kits and returns: what is in each slot and beside the tray; the state of an item and of its label.

Each function builds one kind of caption from phrases that know how they can be made false (lineside.sim.phrases).
Captions say only what can be seen. A kit's bill of materials and an order line are not in the picture.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping

from lineside.sim.phrases import Builder, Caption, Phrase, View, joined, number, phrase, plain, swap
from lineside.sim.questions import CONDITIONS, RETURNED, Record
from lineside.sim.traces_stations import DAMAGED, DEGREES, MARGIN, SIGNS, box_middle, degree
from lineside.sim.words import PLACES, Look, at, place, places_near, some

_COUNTERPART = {"intact": "open", "open": "intact", "dented": "torn", "torn": "dented"}
MARKS = ("tape", "shadow", "print")  # they look like damage, but are not


def _thing(view: View, description: str) -> Phrase:
    """The name of a thing, made false by any of its attributes."""
    others = view.variants(Look.parse(description), () if "slots" in view.record else RETURNED)
    return phrase(description, ((name, other.text) for name, other in others))


def _placed(thing: Record) -> Phrase:
    """ "at the left", made false by every place that is not close to the thing."""
    near = places_near(thing)
    return swap(at(place(thing)), "place", [at(other) for other in PLACES if other not in near])


# ------------------------------------------------------------------------------------------------------------ kitting


def _slot(view: View, slot: Record, rng: random.Random) -> Caption:
    """ "slot 3 holds red can", "slot 4 is empty"."""
    name = plain(f"slot {slot['slot']} ")
    if slot["found"] is None:
        return [name, plain("is empty")]  # no true caption says "is full", so a wrong one could be told by it
    seat, other = ("half", "fully") if slot["status"] == "half_seated" else ("fully", "half")
    said = (
        [plain(" "), swap(f"{seat} seated", "seat", [f"{other} seated"])]
        if seat == "half" or rng.random() < 0.3
        else []
    )
    return [name, plain("holds "), _thing(view, slot["found"]), *said]


def _slots(view: View, rng: random.Random) -> Caption:
    """A few slots in a row."""
    slots = view.record["slots"]
    count = min(len(slots), rng.randint(2, 6))
    start = rng.randint(0, len(slots) - count)
    return [plain("Tray: "), *joined([_slot(view, slot, rng) for slot in slots[start : start + count]]), plain(".")]


def _tray(view: View, rng: random.Random) -> Caption:
    record = view.record
    slots = record["slots"]
    full = sum(slot["found"] is not None for slot in slots)
    facts = [
        [
            number("rows: #", record["rows"], "rows", least=1, most=4),
            number(", slots in a row: #", record["columns"], "rows", least=1, most=5),
        ],
        [number("full: #", full)],
        [number("empty: #", len(slots) - full)],
        [number("half seated: #", sum(slot["status"] == "half_seated" for slot in slots), "seat")],
    ]
    rng.shuffle(facts)
    return [plain(rng.choice(["Slots: ", "Check: "])), *joined(facts[: rng.randint(2, 4)]), plain(".")]


def _row_counts(view: View, rng: random.Random) -> Caption:
    wide, slots = view.record["columns"], view.record["slots"]
    items = []
    for n, start in enumerate(range(0, len(slots), wide), start=1):
        here = sum(slot["found"] is not None for slot in slots[start : start + wide])
        items.append([plain(f"row {n} "), number("holds #", here, most=wide)])
    return [plain(rng.choice(["Tray: ", "Check: "])), *joined(items), plain(".")]


def _empty_slots(view: View, rng: random.Random) -> Caption | None:
    """The numbers of all slots of one state; made false by the number of a slot in another state."""
    state = rng.choice(["Empty", "Full"])
    slots = view.record["slots"]
    members = [str(slot["slot"]) for slot in slots if (slot["found"] is None) == (state == "Empty")]
    others = [str(slot["slot"]) for slot in slots if str(slot["slot"]) not in members]
    if not members or not others:
        return None
    right = [int(member) for member in members]
    wrong = [sorted({*right, int(other)} - {member}) for member in right for other in others]
    texts = [", ".join(map(str, numbers)) for numbers in wrong]
    return [plain(f"{state} slots: "), swap(", ".join(members), "slot", texts), plain(".")]


def _beside(view: View, rng: random.Random) -> Caption | None:
    there = Counter(thing["description"] for thing in view.record["beside"])
    if not there:
        return None
    looks = {Look.parse(name): count for name, count in there.items()}
    items = [[_amount(view, look, looks)] for look in list(looks)[:5]]
    return [plain("Beside the tray: "), *joined(items), plain(".")]


def _amount(view: View, look: Look, there: Mapping[Look, int]) -> Phrase:
    """ "2 red cans", made false by looks that no item has, and by one more or less."""

    def wrong() -> Iterator[tuple[str, str]]:
        for name, other in view.variants(look):
            if not any(map(other.fits, there)):
                yield name, some(count, other)
        yield "count", some(count + 1, look)
        if count > 1:
            yield "count", some(count - 1, look)

    count = there[look]
    return phrase(some(count, look), wrong())


# ------------------------------------------------------------------------------------------------------------ returns


def _bare(record: Record) -> Caption:
    """ "dented", made false by any other condition."""
    return [swap(record["condition"], "condition", [other for other in CONDITIONS if other != record["condition"]])]


def _damage(record: Record) -> Caption:
    """ "dented at the left, clear damage"; "intact". The words about damage must not show that a condition is wrong."""
    condition = record["condition"]
    state = swap(condition, "condition", [_COUNTERPART[condition]])
    if condition not in DAMAGED or not record["damage_box"]:
        return [state]
    return [state, plain(" "), _placed(box_middle(record["damage_box"])), plain(", "), *_degree(record)]


def _degree(record: Record) -> Caption:
    """ "clear damage"."""
    right = {degree(record["severity"] + shift) for shift in (-MARGIN, 0.0, MARGIN)}
    others = [f"{word} damage" for _, word in DEGREES if word not in right]
    return [swap(f"{degree(record['severity'])} damage", "degree", others)]


def _marks(record: Record) -> Caption:
    """ "marks: tape, print"."""
    marks = sorted(record["confusers"])
    others = [mark for mark in MARKS if mark not in marks]
    if not marks:
        return [swap("marks: none", "marks", [f"marks: {mark}" for mark in others])]
    wrong = [sorted({*marks, other} - {mark}) for mark in marks for other in others]
    return [plain("marks: "), swap(", ".join(marks), "marks", [", ".join(names) for names in wrong])]


def _label(record: Record) -> Caption:
    """ "label at the left can be read"."""
    label = record["label"]
    if not label["present"]:
        return [swap("no label", "label", ["one label"])]
    state, other = ("can be read", "cannot be read") if label["readable"] else ("cannot be read", "can be read")
    return [plain("label "), _placed(label), plain(" "), swap(state, "label", [other])]


def _returned(view: View, rng: random.Random) -> Caption:
    """The item and some facts about it, always in the same order."""
    record = view.record
    facts = [_bare(record) if rng.random() < 0.5 else _damage(record), _marks(record), _label(record)]
    kept = sorted(rng.sample(range(len(facts)), rng.randint(1, len(facts))))
    head = rng.choice(["Item: ", "Return: ", "Desk: "])
    return [plain(head), *joined([[_thing(view, record["item"])], *(facts[index] for index in kept)]), plain(".")]


def _surface(view: View, rng: random.Random) -> Caption:
    """The signs that show the condition."""
    record = view.record
    condition = record["condition"]
    others = [other for other in SIGNS if other != condition]
    facts: list[Caption] = []
    if condition in DAMAGED and rng.random() < 0.5:
        others = [_COUNTERPART[condition]]
        facts.append(_degree(record))
    facts.insert(0, [swap(SIGNS[condition], "condition", [SIGNS[other] for other in others])])
    if rng.random() < 0.5:
        facts.append(_marks(record))
    return [plain(rng.choice(["Surface: ", "Outside: "])), *joined(facts), plain(".")]


def _whole(view: View, rng: random.Random) -> Caption:
    """Everything in two sentences."""
    record = view.record
    second = [_marks(record), _label(record)]
    rng.shuffle(second)
    first = [[_thing(view, record["item"])], _damage(record)]
    return [plain("Item: "), *joined(first), plain(". Also "), *joined(second), plain(".")]


def _condition_and_label(view: View, rng: random.Random) -> Caption:
    record = view.record
    facts = [_damage(record), _label(record)]
    rng.shuffle(facts)
    return [plain(rng.choice(["State: ", "Seen: "])), *joined(facts), plain(".")]


KITTING: tuple[tuple[Builder, ...], ...] = ((_slots, _slots), (_tray, _row_counts, _empty_slots), (_beside,))
RETURNS: tuple[tuple[Builder, ...], ...] = ((_returned, _returned, _surface, _whole, _condition_and_label),)
