"""How the simulator's teacher works out the answers about kits and returns: slot by slot, then sign by sign.

The shape of a trace and of its facts is that of lineside.sim.traces_bins. Only what can be seen, or is said in the
question (a kit, an order line, a policy), is ever stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lineside.sim.questions import Record, missing_items
from lineside.sim.traces_bins import MAX_WORDS, Working, length
from lineside.sim.words import Look, listed, place, places_near

# ------------------------------------------------------------------------------------------------------------ kitting


def _rows(record: Record) -> list[list[Record]]:
    wide = record["columns"]
    return [record["slots"][start : start + wide] for start in range(0, len(record["slots"]), wide)]


def _first_fit(forms: Sequence[list[str]], end: str, words: int = MAX_WORDS) -> Working:
    """The first form of at most `words` words, else the last, and the clauses of all."""
    said = next((form for form in forms if length(form) <= words), forms[-1])
    return [*said, end], {clause for form in forms for clause in form}


def slots_to_fill(record: Record, element: Mapping[str, Any]) -> Working:
    each = [f"{slot['slot']} {'full' if slot['found'] else 'empty'}" for slot in record["slots"]]
    rows = []  # for trays too large to go through slot by slot
    for n, row in enumerate(_rows(record), start=1):
        empty = [str(slot["slot"]) for slot in row if not slot["found"]]
        rows.append(f"row {n}: {', '.join(empty)} empty" if empty else f"row {n} full")
    end = "so those are to fill" if record["to_fill"] else "so all are full"
    return _first_fit([each, rows], end)


def slots_filled(record: Record, element: Mapping[str, Any]) -> Working:
    clauses, total = [], 0
    for n, row in enumerate(_rows(record), start=1):
        here = sum(slot["found"] is not None for slot in row)
        total += here
        clauses.append(f"row {n} holds {here}" + (f", {total} now" if n > 1 else ""))
    return [*clauses, f"so {total} in all"], ()


NAMING_WORDS = 60  # a trace that names articles may be as long as it takes to look them up
_VERDICTS = {"ok": "ok", "empty": "empty", "half_seated": "half seated"}  # any other slot is wrong
_BARE = {"ok": "ok", "empty": "empty"}  # any other slot is wrong


def _judged(slot: Record) -> str:
    """What a slot holds, held against the kit: "3 red can ok", "2 empty", "4 red tub, not red can".

    What is seen comes first, a word at a time, so that each word is looked for before the kit is.
    """
    number, found, status = slot["slot"], slot["found"], slot["status"]
    if status == "ok":
        return f"{number} {found} ok"
    if status == "empty":
        return f"{number} empty"
    return f"{number} {found} half seated" if status == "half_seated" else f"{number} {found}, not {slot['expected']}"


def _bare(slots: Sequence[Record]) -> list[str]:
    return [f"{slot['slot']} {_BARE.get(slot['status'], 'wrong')}" for slot in slots]


def _slot_by_slot(slots: Sequence[Record], say: Callable[[Record], str], end: str, words: int = MAX_WORDS) -> Working:
    """Slot by slot against the kit; what is right, and then what is not, is named only where there is room for it."""
    each = [say(slot) for slot in slots]
    brief = [f"{slot['slot']} ok" if slot["status"] == "ok" else said for slot, said in zip(slots, each)]
    return _first_fit([each, brief, _bare(slots)], end, words)


def kit_complete(record: Record, element: Mapping[str, Any]) -> Working:
    return _slot_by_slot(record["slots"], _judged, "so all is right" if record["complete"] else "so not all is right")


def wrong_item(record: Record, element: Mapping[str, Any]) -> Working:
    """Each slot's article as the kit has it, then whether that is what lies there.

    A name said right after its number only has to be copied from the question; the word behind it holds it against the
    picture. That a slot is "ok" without its article being named is learnt as a habit and not looked at (LOG.md).
    """
    wrong = record["wrong_slots"]
    named = listed(wrong) if 0 < len(wrong) <= 2 else "those"
    end = f"so {named} {'is' if len(wrong) == 1 else 'are'} wrong" if wrong else "so nothing is wrong"
    return _slot_by_slot(record["slots"], _held_against, end, NAMING_WORDS)


def missing(record: Record, element: Mapping[str, Any]) -> Working:
    """Full slots, and of those that lack their article what the kit wants there, which then only needs to be said
    again."""
    slots = record["slots"]
    end = "so that is missing" if missing_items(slots) else "so all is there"
    return _first_fit([[_lacking(slot) for slot in slots], _bare(slots)], end, NAMING_WORDS)


def _held_against(slot: Record) -> str:
    """ "3 red can ok", "2 blue tub empty", "4 red can wrong", "5 red ball half seated"."""
    return f"{slot['slot']} {slot['expected']} {_VERDICTS.get(slot['status'], 'wrong')}"


def _lacking(slot: Record) -> str:
    """ "3 full", "2 blue tub empty", "4 red can wrong"."""
    return f"{slot['slot']} full" if slot["found"] == slot["expected"] else _held_against(slot)


# ------------------------------------------------------------------------------------------------------------ returns

SIGNS = {  # what is seen of each condition, each in five words
    "intact": "faces flat and edges closed",
    "dented": "a face is pressed in",
    "torn": "the skin is ripped through",
    "open": "the top is not closed",
}
DAMAGED = ("dented", "torn")
FAULTS = {"smudged": "smudged", "covered": "covered", "glare": "lost in glare"}  # of a label, as words
MARGIN = 0.05  # of severity, at a border of two degrees of damage: either may be said
DEGREES = ((0.35, "slight"), (0.7, "clear"), (float("inf"), "heavy"))


def degree(severity: float) -> str:
    """A word for how far damage goes, severity in [0, 1]."""
    return next(word for bound, word in DEGREES if severity < bound)


def _surface(record: Record) -> Working:
    """What is seen of the surface: harmless marks, then the damage, its place and degree."""
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
    """ "sharp", or what keeps the print of a label from being read."""
    if label["readable"]:
        return "sharp"
    return FAULTS.get(label.get("fault", ""), "unclear")


def label_readable(record: Record, element: Mapping[str, Any]) -> Working:
    clauses, beside = _label(record)
    return [*clauses, "so it can be read" if record["label_readable"] else "so it cannot be read"], beside


_UNSAID = {"size": "large", "pattern": "plain"}  # what a look is whose name says nothing of it


def matches_order(record: Record, element: Mapping[str, Any]) -> Working:
    """The item as seen, then attribute by attribute beside the order's: "yellow yellow same; can bottle differ"."""
    seen, order = Look.parse(record["item"]), Look.parse(element["order"])
    odd = seen.differs(order)
    pairs = []
    for name in ("size", "pattern", "colour", "kind"):
        both = [getattr(look, name) or _UNSAID[name] for look in (seen, order)]
        if any(getattr(look, name) for look in (seen, order)):
            pairs.append(f"{' '.join(both)} {'differ' if name in odd else 'same'}")
    end = f"so the {listed(odd)} {'differs' if len(odd) == 1 else 'differ'}" if odd else "so they are the same"
    return [f"seen {record['item']}", *pairs, end], ()


def disposition(record: Record, element: Mapping[str, Any]) -> Working:
    """What is seen, then the rule of the policy that it falls under, in the policy's words."""
    beside = list(_surface(record)[1])
    label, label_facts = _label(record)
    if element["label_action"] and not record["label_readable"]:
        return [*label, f"so unreadable label {element['label_action']}"], [*beside, *label_facts]
    clauses, _ = _surface(record)
    seen_label = label if element["label_action"] else []
    return [*seen_label, *clauses, f"so {record['condition']} {element['action']}"], [*beside, *label_facts]
