"""The questions about a simulated frame: the ground truth record, with the columns that the task files use.

`enrich` adds what a question needs and the record does not have: descriptions to count and to look for, a point on a
part, the bill of materials as text, order lines, policies. The hash of the frame's id decides every choice, so a frame
always gets the same questions. Questions are only about what can be seen: the record lists parts of which at least a
tenth is visible.

A description fits everything of which it is true: "red can" also fits a striped red can. In kits and returns each
description stands for a part number, so two descriptions mean the same item only if they are equal.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lineside.errors import LinesideError
from lineside.sim.words import Look, dice, known_looks, reading_order
from lineside.types import Frame

Record = Mapping[str, Any]

TRIES = 24  # attempts to find a description of something that is not there
ABSENT_SHARE = 0.5  # share of the frames with a question that counts something which is not there
LOOKED_FOR = 2  # questions of a frame whether a thing is there
OTHER_KITS = 0.5  # share of the training trays that are compared with a kit they were not packed for
ORDERS = 2
POLICIES = 2
LEAST_CELLS = 6  # visible cells of the coarse mask that a part needs for a question about a point on it

# Kinds that are returned; an order of another kind could be told without the picture.
RETURNED = ("carton", "can", "bottle", "tub")
CONDITIONS = ("intact", "dented", "torn", "open")
# The possible actions of a returns desk, by condition. The lists overlap, so that the policy must be read.
ACTIONS = {
    "intact": ("restock", "repack", "inspect", "donate"),
    "open": ("repack", "inspect", "restock", "outlet"),
    "dented": ("outlet", "inspect", "repack", "donate"),
    "torn": ("scrap", "outlet", "inspect", "repack"),
    "label": ("relabel", "inspect", "scrap"),
}
LABEL_RULE_SHARE = 1 / 3  # share of the policies that begin with a rule for labels which cannot be read


def enrich(frame: Frame, *, own_kit: bool = False) -> Frame:
    """Add the columns that lineside/tasks/<family>.yaml uses to the record. Calling it twice changes nothing.

    `own_kit`: a training tray is always compared with the kit for which it was packed, as on the floor
    (`compared_slots`). Raises LinesideError for a family that the simulator does not have, or a record that lacks a
    column.
    """
    add = _FAMILIES.get(frame.family)
    if add is None:
        raise LinesideError(
            f"frame {frame.id}: the simulator's teacher knows no family '{frame.family}', only {', '.join(_FAMILIES)}. "
            "Label other frames with a table of records or an API teacher."
        )
    try:
        frame = replace(frame, record={**frame.record, "own_kit": own_kit or frame.record.get("own_kit", False)})
        return replace(frame, record={**frame.record, **add(frame)})
    except KeyError as missing:
        raise LinesideError(
            f"frame {frame.id}: its {frame.family} record lacks the column {missing}, which `lineside simulate` "
            "writes; simulate the frames anew."
        ) from None


def answer_as_seen(asked: Frame, seen: Frame) -> Frame:
    """`seen` with the questions of `asked` (an enriched frame of the same id), answered from the record of `seen`.

    The answer is None if the record of `seen` does not give one (a point on a part that was missed).
    """
    answer = _ANSWERS[seen.family]
    return replace(seen, record={**seen.record, **answer(asked.record, seen)})


def looks(record: Record) -> list[Look]:
    """The look of each visible part, in the order of the record."""
    return [Look.of(part) for part in record["parts"]]


def fitting(record: Record, look: Look) -> list[Record]:
    """The visible parts that a description fits, in reading order."""
    return reading_order(part for part in record["parts"] if look.fits(Look.of(part)))


# ---------------------------------------------------------------------------------------------------------- picking


def _picking(frame: Frame) -> dict[str, Any]:
    record = frame.record
    known = known_looks(frame.split, frame.meta.week)
    free = [part for part in record["parts"] if part["free"]]
    return {
        "count": len(record["parts"]),
        "empty_clear": bool(record["empty"]) == (not record["parts"]),  # False if there are parts, but none is visible
        "described": _described(record, known, dice(frame.id, "described")),
        "looked_for": _looked_for(record, known, dice(frame.id, "looked for")),
        "pickable": _pickable(record),
        "top": topmost(record)["description"] if free else "",
        "free_names": _free_names(record),
        "can_pick": bool(free) and len(record["parts"]) > 1,
    }


def _picking_as_seen(asked: Record, seen: Frame) -> dict[str, Any]:
    record, there = seen.record, looks(seen.record)
    named = (*asked["described"], *asked["looked_for"])
    fits = {element["item"]: sum(_look_of(element).fits(look) for look in there) for element in named}
    free = any(part["free"] for part in record["parts"])
    return {
        "count": len(there),
        "described": [{**element, "count": fits[element["item"]]} for element in asked["described"]],
        "looked_for": [{**element, "there": fits[element["item"]] > 0} for element in asked["looked_for"]],
        "pickable": [_point_on(record, _look_of(element)) for element in asked["pickable"]],
        "top": topmost(record)["description"] if free else None,
        "free_names": _free_names(record),
    }


def _described(record: Record, known: Sequence[Look], rng: random.Random) -> list[dict[str, Any]]:
    """Things to count: one description for each count that occurs, so that large counts are asked too."""
    by_count: dict[int, set[Look]] = {}
    there = looks(record)
    for look in set(there):
        for query in _levels(look):
            by_count.setdefault(sum(query.fits(other) for other in there), set()).add(query)
    absent = _absent(there, known, rng, vague=True) if rng.random() < ABSENT_SHARE or not there else None
    if absent is not None:
        by_count[0] = {absent}
    chosen = [rng.choice(sorted(queries)) for _, queries in sorted(by_count.items())]
    rng.shuffle(chosen)
    return [{**_item(look), "count": sum(look.fits(other) for other in there)} for look in chosen]


def _looked_for(record: Record, known: Sequence[Look], rng: random.Random) -> list[dict[str, Any]]:
    """Things to look for. Each is there with probability 1/2. Of four empty bins, one gets one such question."""
    there = looks(record)
    chosen: dict[Look, bool] = {}
    for _ in range(LOOKED_FOR if there else int(rng.random() < 0.25)):
        if there and rng.random() < 0.5:
            kinds = _levels(rng.choice(there))[1:]  # at least a kind; a colour alone is used for counting
            chosen[rng.choice(kinds)] = True
        elif (absent := _absent(there, known, rng)) is not None:
            chosen[absent] = False
    return [{**_item(look), "there": is_there} for look, is_there in chosen.items()]


def _absent(there: Sequence[Look], known: Sequence[Look], rng: random.Random, *, vague: bool = False) -> Look | None:
    """A description that fits no part. In two of three cases it differs from a part in one attribute only."""
    for _ in range(TRIES):
        other = rng.choice(known)
        if there and rng.random() < 2 / 3:
            near = rng.choice(there)
            other = rng.choice(_look_alikes(near, known) or [other])
        query = rng.choice(_levels(other)[0 if vague else 1 :])
        if not any(query.fits(look) for look in there):
            return query
    return None


def _look_alikes(look: Look, known: Sequence[Look]) -> list[Look]:
    """The looks that differ from a look in one attribute."""
    return [other for other in known if len(other.differs(look)) == 1]


def _levels(look: Look) -> list[Look]:
    """Descriptions of a thing, from vague to full: "red part", "can", "red can", "small striped red can"."""
    ways = [Look(colour=look.colour), Look(kind=look.kind), Look(colour=look.colour, kind=look.kind)]
    return ways if look in ways else [*ways, look]


def _item(look: Look) -> dict[str, Any]:
    return {**asdict(look), "item": look.text, "items": look.plural}


def _look_of(element: Record) -> Look:
    """The inverse of `_item`."""
    return Look(element["size"], element["pattern"], element["colour"], element["kind"])


def topmost(record: Record) -> Record:
    """The part that a picker takes first: the highest (to the cm) of the free ones, then the one with most visible
    pixels."""
    free = [part for part in record["parts"] if part["free"]]
    return max(free, key=lambda part: (round(part["depth"], 2), part["pixels"], -part["y"], -part["x"]))


def _free_names(record: Record) -> list[str]:
    """All names that fit free parts only: full descriptions, and colour and kind if all parts that fit are free."""
    names: list[str] = []
    for part in record["parts"]:
        for query in (Look.of(part), Look(colour=part["colour"], kind=part["kind"])):
            fits = fitting(record, query)
            exact = [
                other for other in fits if Look.of(other) == query
            ]  # "red can" for a plain one beside a striped one
            if part["free"] and query.text not in names and all(other["free"] for other in exact or fits):
                names.append(query.text)
    return names


def _pickable(record: Record) -> list[dict[str, Any]]:
    """Descriptions, each with a point on the largest part that it fits, and the mask of all parts that it fits."""
    queries = sorted({way for look in set(looks(record)) for way in _levels(look)[2:]})
    elements = (_point_on(record, query, least=LEAST_CELLS) for query in queries)
    return [element for element in elements if element["mask"] is not None]


def _point_on(record: Record, query: Look, *, least: int = 1) -> dict[str, Any]:
    """A point on the largest part that a description fits, its box, and the mask of all parts that it fits. All None if
    fewer than `least` cells of the part are visible."""
    fits = fitting(record, query)
    best = max(fits, key=lambda part: part["pixels"], default=None)
    seen = mask_of(best["mask"]) if best is not None else np.zeros((1, 1), dtype=bool)
    if best is None or seen.sum() < least:
        return {**_item(query), "point": None, "mask": None, "best": None}
    row, column = innermost(seen)
    union = np.logical_or.reduce([mask_of(part["mask"]) for part in fits])
    point = [round((column + 0.5) / seen.shape[1], 3), round((row + 0.5) / seen.shape[0], 3)]
    return {**_item(query), "point": point, "mask": runs_of(union), "best": list(best["box"])}


def mask_of(mask: Mapping[str, Any]) -> np.ndarray:
    """A run-length mask (off, on, off, ... along the rows) as booleans of shape (height, width)."""
    runs = np.asarray(mask["runs"], dtype=np.int64)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(mask["height"], mask["width"])


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """The inverse of `mask_of`."""
    flat = mask.ravel()
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [mask.size]))
    runs = ([0] if flat[0] else []) + np.diff(bounds).tolist()
    return {"height": mask.shape[0], "width": mask.shape[1], "runs": runs}


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """(row, column) of the cell farthest from the edge of a mask; of several cells the one nearest to their centre."""
    core = mask
    while True:
        padded = np.pad(core, 1)
        smaller = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not smaller.any():
            break
        core = smaller
    rows, columns = np.nonzero(core)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return int(rows[nearest]), int(columns[nearest])


# ---------------------------------------------------------------------------------------------------------- kitting


def _kitting(frame: Frame) -> dict[str, Any]:
    slots = compared_slots(frame)
    return {
        "kit": ", ".join(f"{slot['slot']} {slot['expected']}" for slot in slots),
        "kit_slots": slots,
        "numbers": [str(slot["slot"]) for slot in slots],
        "kit_items": sorted({slot["expected"] for slot in slots}),
        "to_fill": [str(slot["slot"]) for slot in slots if slot["found"] is None],
        "filled": sum(slot["found"] is not None for slot in slots),
        "complete": all(slot["status"] == "ok" for slot in slots),
        "wrong_slots": [str(slot["slot"]) for slot in slots if slot["status"] not in ("ok", "empty")],
        "missing": missing_items(slots),
    }


def compared_slots(frame: Frame) -> list[dict[str, Any]]:
    """The slots with the kit of the question: the tray's own kit, or, for half of the training trays, another kit.

    Nearly every article is the one that its own kit wants. If all questions were about the own kit, a model would
    repeat the kit and never look (docs/experiments.md). So this is a lesson for stage 2. Stage 3 must see the answers
    as often as the floor gives them: with other kits it learns a wrong prior. Its trays keep their own kit (`own_kit`).
    """
    slots, rng = frame.record["slots"], dice(frame.id, "kit")
    if frame.split != "train" or frame.record["own_kit"] or rng.random() >= OTHER_KITS:
        return slots
    kit = _another_kit([slot["expected"] for slot in slots], known_looks(frame.split, frame.meta.week), rng)
    return [{**slot, "expected": wanted, "status": _status(slot, wanted)} for slot, wanted in zip(slots, kit)]


def _another_kit(kit: Sequence[str], known: Sequence[Look], rng: random.Random) -> list[str]:
    """Another kit: some articles are replaced by look-alikes or by any others, everywhere in the kit, so that its text
    does not show that it is not the tray's own. Now and then a slot gets an article of another slot."""
    instead = {name: name for name in kit}
    for name in instead:
        draw = rng.random()
        if draw < 0.3:
            alike = [look.text for look in _look_alikes(Look.parse(name), known)]
            instead[name] = rng.choice(alike or list(instead))
        elif draw < 0.4:
            instead[name] = rng.choice(known).text
    articles = list(instead.values())
    return [rng.choice(articles) if rng.random() < 0.15 else instead[name] for name in kit]


def _status(slot: Record, wanted: str) -> str:
    """The status of a slot in which `wanted` belongs."""
    if slot["found"] is None or (slot["status"] == "half_seated" and slot["found"] == wanted):
        return slot["status"]
    return "ok" if slot["found"] == wanted else "wrong"


def missing_items(slots: Sequence[Record]) -> list[str]:
    """The articles that the kit needs and the tray lacks, each as often as it is missing, in the order of slots."""
    return [slot["expected"] for slot in lacking_slots(slots)]


def lacking_slots(slots: Sequence[Record]) -> list[Record]:
    """The first slots whose article is missing from the whole tray: for each description as many as are missing."""
    lack = Counter(slot["expected"] for slot in slots) - Counter(slot["found"] for slot in slots if slot["found"])
    found: list[Record] = []
    for slot in slots:
        if slot["found"] != slot["expected"] and lack[slot["expected"]] > 0:
            lack[slot["expected"]] -= 1
            found.append(slot)
    return found


# ---------------------------------------------------------------------------------------------------------- returns


def _returns(frame: Frame) -> dict[str, Any]:
    record = frame.record
    label_readable = bool(record["label"]["present"] and record["label"]["readable"])
    return {
        "label_readable": label_readable,
        "orders": _orders(record, dice(frame.id, "orders")),
        "policies": _policies(record["condition"], label_readable, dice(frame.id, "policies")),
    }


def _returns_as_seen(asked: Record, seen: Frame) -> dict[str, Any]:
    record = seen.record
    readable = bool(record["label"]["present"] and record["label"]["readable"])
    policies = [
        {**element, "action": _action(element["rules"], element["label_action"], record["condition"], readable)}
        for element in asked["policies"]
    ]
    orders = [{**element, "matches": element["order"] == record["item"]} for element in asked["orders"]]
    return {"label_readable": readable, "orders": orders, "policies": policies}


def _orders(record: Record, rng: random.Random) -> list[dict[str, Any]]:
    """Order lines. Each is for the item or, with probability 1/2, for a look-alike that can be returned too."""
    similar = [other for other in record["similar"] if Look.parse(other).kind in RETURNED]
    chosen: dict[str, bool] = {}
    for _ in range(ORDERS):
        matches = not similar or rng.random() < 0.5
        chosen[record["item"] if matches else rng.choice(similar)] = matches
    return [{"order": order, "matches": matches} for order, matches in chosen.items()]


def _policies(condition: str, label_readable: bool, rng: random.Random) -> list[dict[str, Any]]:
    """Policies: an action for each condition, all different. In some, a rule for unreadable labels comes first."""
    elements: dict[str, dict[str, Any]] = {}
    for _ in range(POLICIES):
        rules: dict[str, str] = {}
        for state in rng.sample(CONDITIONS, len(CONDITIONS)):
            rules[state] = rng.choice([action for action in ACTIONS[state] if action not in rules.values()])
        text = ", ".join(f"{state} {action}" for state, action in rules.items())
        label_action = ""
        if rng.random() < LABEL_RULE_SHARE:
            label_action = rng.choice([action for action in ACTIONS["label"] if action not in rules.values()])
            text = f"unreadable label {label_action}, else {text}"
        elements[text] = {
            "policy": text,
            "actions": [*([label_action] if label_action else []), *rules.values()],
            "action": _action(rules, label_action, condition, label_readable),
            "label_action": label_action,
            "rules": rules,
        }
    return list(elements.values())


def _action(rules: Mapping[str, str], label_action: str, condition: str, label_readable: bool) -> str:
    """The action that a policy gives."""
    return label_action if label_action and not label_readable else rules[condition]


_FAMILIES: dict[str, Callable[[Frame], dict[str, Any]]] = {
    "picking": _picking,
    "kitting": _kitting,
    "returns": _returns,
}
_ANSWERS: dict[str, Callable[[Record, Frame], dict[str, Any]]] = {
    "picking": _picking_as_seen,
    "kitting": lambda asked, seen: _kitting(seen),  # the kit is that of the frame's id
    "returns": _returns_as_seen,
}
