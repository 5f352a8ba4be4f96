"""Traces about kits and returns: how the simulator's teacher finds an answer, slot by slot or sign by sign.

Traces and facts have the form of lineside.sim.traces_bins. They state only what can be seen, or what the question
says (a kit, an order line, a policy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lineside.sim.questions import Record, lacking_slots
from lineside.sim.traces_bins import MAX_WORDS, Working, length
from lineside.sim.words import Look, listed, place, places_near
from lineside.verify.members import members_text

# ------------------------------------------------------------------------------------------------------------ kitting


def _rows(record: Record) -> list[list[Record]]:
    wide = record["columns"]
    return [record["slots"][start : start + wide] for start in range(0, len(record["slots"]), wide)]


def slots_to_fill(record: Record, element: Mapping[str, Any]) -> Working:
    each = [f"{slot['slot']} {'full' if slot['found'] else 'empty'}" for slot in record["slots"]]
    rows = []  # for trays that are too large for one clause a slot
    for n, row in enumerate(_rows(record), start=1):
        empty = [str(slot["slot"]) for slot in row if not slot["found"]]
        rows.append(f"row {n}: {', '.join(empty)} empty" if empty else f"row {n} full")
    end = "so those are to fill" if record["to_fill"] else "so all are full"
    return [*(each if length(each) <= MAX_WORDS else rows), end], {*each, *rows}


def slots_filled(record: Record, element: Mapping[str, Any]) -> Working:
    clauses, total = [], 0
    for n, row in enumerate(_rows(record), start=1):
        here = sum(slot["found"] is not None for slot in row)
        total += here
        clauses.append(f"row {n} holds {here}" + (f", {total} now" if n > 1 else ""))
    return [*clauses, f"so {total} in all"], ()


_VERDICTS = {"ok": "ok", "half_seated": "half seated"}  # any other filled slot is wrong


def _slot_by_slot(record: Record) -> list[str]:
    """Each slot's article word by word, as in the kit and as it is seen: "3 red red can tub wrong", "2 ball empty".

    A word of the kit is copied; the word after it must be seen in the picture; then the two neighbours are compared. A
    model that only learns whether an article is right learns to say "ok" by habit (docs/experiments.md).
    """
    return [_beside_the_kit(slot) for slot in record["kit_slots"]]


def _beside_the_kit(slot: Record) -> str:
    if slot["found"] is None:
        return f"{slot['slot']} {slot['expected']} empty"
    pairs = [f"{wanted} {seen}" for _, wanted, seen in _side_by_side(slot["expected"], slot["found"])]
    return f"{slot['slot']} {' '.join(pairs)} {_VERDICTS.get(slot['status'], 'wrong')}"


def kit_complete(record: Record, element: Mapping[str, Any]) -> Working:
    return [*_slot_by_slot(record), "so all is right" if record["complete"] else "so not all is right"], ()


def wrong_item(record: Record, element: Mapping[str, Any]) -> Working:
    wrong = record["wrong_slots"]
    named = listed(wrong) if 0 < len(wrong) <= 2 else "those"
    end = f"so {named} {'is' if len(wrong) == 1 else 'are'} wrong" if wrong else "so nothing is wrong"
    return [*_slot_by_slot(record), end], ()


def missing(record: Record, element: Mapping[str, Any]) -> Working:
    """Slot by slot, then the missing articles: the slots that lack them, and how many that are. This is the answer,
    with the numbers of the slots by which its articles are found in the kit."""
    if not record["missing"]:
        return [*_slot_by_slot(record), "so all is there"], ()
    lacking: dict[str, list[str]] = {}
    for slot in lacking_slots(record["kit_slots"]):
        lacking.setdefault(slot["expected"], []).append(str(slot["slot"]))
    listing = ", ".join(f"{' '.join(at)}: {members_text([name] * len(at))}" for name, at in lacking.items())
    return [*_slot_by_slot(record), f"lacking {listing}", "so that is missing"], ()


# ------------------------------------------------------------------------------------------------------------ returns

SIGNS = {  # what each condition looks like, in five words
    "intact": "faces flat and edges closed",
    "dented": "a face is pressed in",
    "torn": "the skin is ripped through",
    "open": "the top is not closed",
}
DAMAGED = ("dented", "torn")
FAULTS = {"smudged": "smudged", "covered": "covered", "glare": "lost in glare"}  # of a label, as words
MARGIN = 0.05  # a severity this close to the border of two degrees of damage has both
DEGREES = ((0.35, "slight"), (0.7, "clear"), (float("inf"), "heavy"))


def degree(severity: float) -> str:
    """A word for the degree of damage; severity in [0, 1]."""
    return next(word for bound, word in DEGREES if severity < bound)


def _surface(record: Record) -> Working:
    """What the surface looks like: harmless marks, then the damage, its place and degree."""
    marks = sorted(record["confusers"])
    verdict = "only a mark" if len(marks) == 1 else "only marks"
    clauses = [f"{listed(marks)} {verdict}" if marks else "no marks"]
    beside: list[str] = [f"{mark} only a mark" for mark in marks]
    sign = SIGNS[record["condition"]]
    if record["condition"] not in DAMAGED:
        return [*clauses, sign], beside
    middle = box_middle(record["damage_box"]) if record["damage_box"] else None
    if middle:
        beside += [f"{sign} {near}" for near in places_near(middle)]
        sign = f"{sign} {place(middle)}"
    beside += [degree(record["severity"] + shift) + " damage" for shift in (-MARGIN, MARGIN)]
    return [*clauses, sign, f"{degree(record['severity'])} damage"], beside


def box_middle(box: Sequence[float]) -> dict[str, float]:
    x0, y0, x1, y1 = box
    return {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2}


def condition(record: Record, element: Mapping[str, Any]) -> Working:
    clauses, beside = _surface(record)
    return [*clauses, f"so it is {record['condition']}"], beside


def _label(record: Record) -> Working:
    label = record["label"]
    if not label["present"]:
        return ["no label in sight"], ()
    print_ = f"its print is {label_state(label)}"
    return [f"label {place(label)}", print_], [f"label {near}" for near in places_near(label)]


def label_state(label: Mapping[str, Any]) -> str:
    """ "sharp", or the reason why the label cannot be read."""
    if label["readable"]:
        return "sharp"
    return FAULTS.get(label.get("fault", ""), "unclear")


def label_readable(record: Record, element: Mapping[str, Any]) -> Working:
    clauses, beside = _label(record)
    return [*clauses, "so it can be read" if record["label_readable"] else "so it cannot be read"], beside


_UNSAID = {"size": "large", "pattern": "plain"}  # the value of an attribute that a name leaves out


def _side_by_side(one: str, other: str) -> list[tuple[str, str, str]]:
    """(attribute, value of the first, value of the second) for each attribute that at least one of the names has."""
    first, second = Look.parse(one), Look.parse(other)
    both = [(name, getattr(first, name), getattr(second, name)) for name in ("size", "pattern", "colour", "kind")]
    return [(name, a or _UNSAID[name], b or _UNSAID[name]) for name, a, b in both if a or b]


def matches_order(record: Record, element: Mapping[str, Any]) -> Working:
    """The item as it is seen, then each attribute beside that of the order: "yellow yellow same; can bottle differ"."""
    odd = Look.parse(record["item"]).differs(Look.parse(element["order"]))
    pairs = [
        f"{seen} {ordered} {'differ' if name in odd else 'same'}"
        for name, seen, ordered in _side_by_side(record["item"], element["order"])
    ]
    end = f"so the {listed(odd)} {'differs' if len(odd) == 1 else 'differ'}" if odd else "so they are the same"
    return [f"seen {record['item']}", *pairs, end], ()


def disposition(record: Record, element: Mapping[str, Any]) -> Working:
    """What is seen, then the rule of the policy that applies, in the policy's words."""
    beside = list(_surface(record)[1])
    label, label_facts = _label(record)
    if element["label_action"] and not record["label_readable"]:
        return [*label, f"so unreadable label {element['label_action']}"], [*beside, *label_facts]
    clauses, _ = _surface(record)
    seen_label = label if element["label_action"] else []
    return [*seen_label, *clauses, f"so {record['condition']} {element['action']}"], [*beside, *label_facts]
