"""What an imperfect teacher sees in a frame: the ground truth record with the errors that a strong model would make.

    seen = perceive(frame, 0.5)

A vision-language model makes errors where things are hard to see and where it expects something else. Asked again, it
makes the same error again. So the hash of the frame's id and of the thing decides here what is misread. The chance is a
rate times 1 - acuity: a weaker teacher misreads all that a stronger one misreads, and more. All that a teacher says
about a frame (captions, traces, answers) comes from one misread record, so it does not contradict itself.

    picking   parts are missed, most often those of which little is visible; a colour, kind, pattern or size is taken
              for a similar one, in the same way for all parts that look alike; a wrong part seems to lie on top; the
              fill level is off by one or two steps
    kitting   the teacher sees what the kit asks for: a look-alike or a half-seated article passes for the right one;
              now and then a right article is taken for another, or a full slot for an empty one
    returns   slight damage is taken for none or for a harmless mark, a mark for damage, a dent for a tear; the degree
              is off; a label that is just readable or just not is misjudged; the item is taken for a look-alike

The simulator could have written the misread record itself: descriptions belong to articles that are sold, parts keep
their masks, and counts and states follow from the parts. Left out: parts that are counted twice, and parts that are
seen where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lineside.sim.acuity import PERFECT
from lineside.sim.catalogue import catalogue
from lineside.sim.chance import hash_uniform
from lineside.sim.questions import CONDITIONS, RETURNED, Record, compared_slots
from lineside.sim.words import Look, known_looks
from lineside.types import Frame

T = TypeVar("T")

# What is taken for what. Patterns and sizes are taken for any other.
NEAR_COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("orange",), "orange": ("red", "yellow"), "yellow": ("orange", "white"), "green": ("blue",),
    "blue": ("purple", "black", "green"), "purple": ("blue",), "white": ("yellow",), "black": ("blue",),
}  # fmt: skip
NEAR_KINDS: Mapping[str, tuple[str, ...]] = {
    "carton": ("pouch",), "can": ("tub", "bottle"), "bottle": ("can",), "tub": ("can",),
    "pouch": ("clear bag", "carton"), "clear bag": ("pouch",), "ball": (), "plate": ("tub",), "rod": ("bottle",),
}  # fmt: skip

# Chances of a misreading at acuity 0 that do not depend on how much of a part is visible. They are set so that the
# named acuities give the published accuracies (lineside.sim.acuity). No training result was used to set them.
FREE_BLOCKED, FILL_STEP, FILL_TWO = 0.4, 0.9, 0.3
LOOK_ALIKE, OTHER_ARTICLE, HALF_SEATED, FILLED_IN, OVERLOOKED, RIGHT_AS_OTHER = 1.0, 0.3, 0.9, 0.12, 0.06, 0.05
BESIDE = 0.2
DENT_TEAR, MARK_AS_DAMAGE, LID_SHUT, DEGREE, MARK_MISSED, ITEM = 0.4, 0.6, 0.6, 0.6, 0.3, 0.3
LABEL_READABLE = 0.4
LABEL_FAULTS = {"glare": 0.9, "smudged": 0.8, "covered": 0.4}

STEP = 10.0  # percent, of a fill level
FULL = 100.0
INTACT, SLIGHTEST = 0.05, 0.40  # severity of an item that is taken for intact, and of damage that is not there
CLEAR = 0.7  # severity at which damage is heavy (traces_stations.DEGREES)
MARK_OF = {"dented": "shadow", "torn": "print"}  # the harmless mark that damage is taken for
DAMAGE_OF = {"shadow": "dented", "print": "torn", "tape": "torn"}  # the damage that a mark is taken for


class Eyes:
    """The random choices of one acuity, by frame and by the thing that is looked at."""

    def __init__(self, frame: Frame, acuity: float) -> None:
        self._id, self._blur = frame.id, 1.0 - acuity
        self.known = known_looks(frame.split, frame.meta.week)

    def misread(self, rate: float, *what: object) -> bool:
        """Whether a thing is misread. At acuity 0 its chance is `rate`."""
        return hash_uniform(self._id, "misread", *what) < self._blur * rate

    def choose(self, options: Sequence[T], *what: object) -> T:
        """One of the options, the same at every acuity."""
        return options[int(hash_uniform(self._id, "taken for", *what) * len(options))]

    def other(self, look: Look, *what: object, among: Sequence[Look] = ()) -> Look:
        """An article for which a look is taken; the look itself if no known article is similar."""
        near = [other for other in among or self.known if confusable(look, other)]
        return self.choose(near, *what) if near else look


def perceive(frame: Frame, acuity: float) -> Frame:
    """The frame as a teacher of this acuity sees it; the frame itself at acuity 1.

    `frame` comes from `simulate`, with or without the columns of `enrich`. These columns are not updated in the result.
    Raises KeyError for a family that the simulator does not have, or a record that lacks a column.
    """
    if acuity >= PERFECT:
        return frame
    return replace(frame, record={**frame.record, **_FAMILIES[frame.family](frame, Eyes(frame, acuity))})


def confusable(look: Look, other: Look) -> bool:
    """Whether two looks differ in one attribute, and are similar in it."""
    odd = look.differs(other)
    if len(odd) != 1:
        return False
    if odd == ("colour",):
        return other.colour in NEAR_COLOURS[look.colour]
    if odd == ("kind",):
        return other.kind in NEAR_KINDS[look.kind]
    return True


# ---------------------------------------------------------------------------------------------------------- picking


def missed(part: Record) -> float:
    """The chance that a part is missed: small if all of it is visible, near 1 if only a tenth is."""
    return 0.14 + 0.86 * (1.0 - part["visible"])


def _picking(frame: Frame, eyes: Eyes) -> dict[str, Any]:
    record = frame.record
    shown: dict[Look, float] = {}  # largest visible share among the parts of each look
    for part in record["parts"]:
        shown[Look.of(part)] = max(shown.get(Look.of(part), 0.0), part["visible"])
    taken = {look: _taken_for(look, visible, eyes) for look, visible in shown.items()}
    parts = [
        {**part, **_article(taken[Look.of(part)]), "free": _free(part, number, eyes)}
        for number, part in enumerate(record["parts"])
        if not eyes.misread(missed(part), "part", number)
    ]
    if not parts and record["parts"]:
        return {"parts": [], "empty": True, "buried": 0, "fill_percent": record["fill_percent"] % STEP}
    return {"parts": parts, "fill_percent": _fill(record["fill_percent"], eyes)}


def _taken_for(look: Look, visible: float, eyes: Eyes) -> Look:
    """The look for which all parts of a look are taken. `visible`: the largest visible share of one of them."""
    rate = 0.3 + 0.4 * (1.0 - visible)
    return eyes.other(look, "look", look.text) if eyes.misread(rate, "look", look.text) else look


def _free(part: Record, number: int, eyes: Eyes) -> bool:
    """Whether nothing seems to lie on a part. A blocked part seems free more often if much of it is visible."""
    rate = FREE_BLOCKED if part["free"] else part["visible"] ** 2
    return part["free"] != eyes.misread(rate, "free", number)


def _article(look: Look) -> dict[str, Any]:
    """The columns of a part that say what it is."""
    sku = _SKUS[look]
    return {
        "sku": sku.id, "description": sku.description, "colour": sku.colour, "kind": sku.kind, "pattern": sku.pattern,
        "size": sku.size,
    }  # fmt: skip


def _fill(fill: float, eyes: Eyes) -> float:
    """A fill level that is off by whole steps. So its distance to a rounding boundary stays the same."""
    steps = eyes.misread(FILL_STEP, "fill") * (1 + eyes.misread(FILL_TWO, "fill", "twice"))
    off = steps * STEP * eyes.choose((-1, -1, 1), "fill")
    return round(fill + off if 0.0 <= fill + off <= FULL else fill - off, 1)


# ---------------------------------------------------------------------------------------------------------- kitting


def _kitting(frame: Frame, eyes: Eyes) -> dict[str, Any]:
    record = frame.record
    wanted = [slot["expected"] for slot in compared_slots(frame)]
    slots = [_slot(slot, kit, eyes) for slot, kit in zip(record["slots"], wanted)]
    beside = [_seen_beside(item, number, eyes) for number, item in enumerate(record["beside"])]
    return {"slots": slots, "beside": beside, "complete": all(slot["status"] == "ok" for slot in slots)}


def _slot(slot: Record, wanted: str, eyes: Eyes) -> dict[str, Any]:
    """A slot as someone reads it who expects `wanted` in it."""
    found, seated = _found(slot, wanted, eyes), slot["status"] != "half_seated"
    if not seated and eyes.misread(HALF_SEATED, "seat", slot["slot"]):
        seated = True
    if found is None:
        status = "empty"
    elif found != slot["expected"]:
        status = slot["status"] if found == slot["found"] and slot["status"] == "duplicate" else "wrong"
    else:
        status = "ok" if seated else "half_seated"
    return {**slot, "found": found, "status": status}


def _found(slot: Record, wanted: str, eyes: Eyes) -> str | None:
    found, number = slot["found"], slot["slot"]
    if found is None:
        return wanted if eyes.misread(FILLED_IN, "slot", number, "filled in") else None
    if eyes.misread(OVERLOOKED, "slot", number, "overlooked"):
        return None
    if found == wanted:
        as_other = eyes.misread(RIGHT_AS_OTHER, "slot", number, "as other")
        return eyes.other(Look.parse(found), "slot", number).text if as_other else found
    alike = len(Look.parse(found).differs(Look.parse(wanted))) == 1
    rate = LOOK_ALIKE if alike else OTHER_ARTICLE
    return wanted if eyes.misread(rate, "slot", number, "as wanted") else found


def _seen_beside(item: Record, number: int, eyes: Eyes) -> dict[str, Any]:
    if not eyes.misread(BESIDE, "beside", number):
        return dict(item)
    return {**item, "description": eyes.other(Look.parse(item["description"]), "beside", number).text}


# ---------------------------------------------------------------------------------------------------------- returns


def _returns(frame: Frame, eyes: Eyes) -> dict[str, Any]:
    record = frame.record
    return {**_item(record, eyes), **_damage(record, eyes), "label": _label(record["label"], eyes)}


def _item(record: Record, eyes: Eyes) -> dict[str, Any]:
    if not eyes.misread(ITEM, "item"):
        return {}
    look = Look.parse(record["item"])
    among = [other for other in map(Look.parse, record["similar"]) if other.kind in RETURNED]
    other = eyes.other(look, "item", among=among) if among else look
    if other == look:
        return {}
    sku = _SKUS[other]
    return {
        "item": other.text, "colour": sku.colour, "kind": sku.kind, "pattern": sku.pattern, "size": sku.size,
        "similar": sorted({*record["similar"], record["item"]} - {other.text}),
    }  # fmt: skip


def _damage(record: Record, eyes: Eyes) -> dict[str, Any]:
    """Condition, severity, place of the damage, and harmless marks."""
    condition, severity = record["condition"], record["severity"]
    marks = [mark for mark in record["confusers"] if not eyes.misread(MARK_MISSED, "mark", mark)]
    if condition == "intact":
        for mark in record["confusers"]:
            if eyes.misread(MARK_AS_DAMAGE, "mark", mark, "as damage"):
                return _hurt(DAMAGE_OF[mark], SLIGHTEST, _somewhere(eyes), [m for m in marks if m != mark])
        return {"confusers": marks}
    slight = max(0.0, min(1.0, (1.0 - severity) / (1.0 - SLIGHTEST)))  # 1 for the least damage, 0 for the worst
    if condition == "open":
        shut = eyes.misread(LID_SHUT * slight, "damage", "missed")
        return _whole(marks) if shut else {"confusers": marks}
    if eyes.misread(0.1 + 0.9 * slight, "damage", "missed"):
        mark = MARK_OF[condition]
        as_mark = mark not in marks and eyes.choose((True, False), "damage", "as mark")
        return _whole([*marks, mark] if as_mark else marks)
    if eyes.misread(DENT_TEAR, "damage", "kind"):
        condition = next(other for other in MARK_OF if other != condition)
    if eyes.misread(DEGREE, "damage", "degree"):
        severity = round(CLEAR + 0.1 if severity < CLEAR else CLEAR - 0.1, 3)
    return _hurt(condition, severity, record["damage_box"], marks)


def _whole(marks: list[str]) -> dict[str, Any]:
    """The columns of an item that seems intact."""
    return {"condition": CONDITIONS[0], "severity": INTACT, "damage_box": None, "confusers": marks}


def _hurt(condition: str, severity: float, box: Sequence[float] | None, marks: list[str]) -> dict[str, Any]:
    """The columns of an item that seems damaged."""
    return {"condition": condition, "severity": severity, "damage_box": box, "confusers": marks}


def _somewhere(eyes: Eyes) -> list[float]:
    """A box for damage that is not there. It lies on the item, which fills the middle of the picture."""
    x, y = (eyes.choose((0.36, 0.43, 0.5, 0.57, 0.64), "damage", axis) for axis in "xy")
    return [round(edge, 3) for edge in (x - 0.08, y - 0.08, x + 0.08, y + 0.08)]


def _label(label: Mapping[str, Any], eyes: Eyes) -> dict[str, Any]:
    if not label["present"]:
        return dict(label)
    if label["readable"]:
        misread = eyes.misread(LABEL_READABLE, "label")
        return (
            {**label, "readable": False, "fault": eyes.choose(tuple(LABEL_FAULTS), "label")} if misread else {**label}
        )
    misread = eyes.misread(LABEL_FAULTS.get(label["fault"], 0.5), "label")
    return {**label, "readable": True, "fault": ""} if misread else {**label}


_SKUS = {Look(sku.size, sku.pattern, sku.colour, sku.kind): sku for sku in catalogue()}
_FAMILIES: dict[str, Callable[[Frame, Eyes], dict[str, Any]]] = {
    "picking": _picking,
    "kitting": _kitting,
    "returns": _returns,
}
