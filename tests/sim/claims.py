"""Reads the captions of the simulator's teacher claim by claim and holds each against the record.

Written without a look at how captions are built: it knows the grammar and the record, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from lineside.types import Frame

Record = dict[str, Any]
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
KINDS = {
    "carton": "cartons", "can": "cans", "bottle": "bottles", "tub": "tubs", "pouch": "pouches", "ball": "balls",
    "clear bag": "clear bags", "plate": "plates", "rod": "rods", "part": "parts",
}  # fmt: skip
BORDER = 0.03


def claims(frame: Frame, caption: str) -> list[tuple[str, bool]]:
    """(claim, whether it holds) for everything that a caption says. AssertionError where it cannot be read."""
    assert caption.endswith(".")
    read: dict[str, Callable[[Record, str], Iterator[tuple[str, bool]]]] = {
        "picking": _bin,
        "kitting": _kit,
        "returns": _return,
    }
    record = dict(frame.record)
    return [claim for sentence in caption[:-1].split(". ") for claim in read[frame.family](record, sentence)]


def look(text: str) -> dict[str, str]:
    """What a name, singular or plural, says."""
    for one, many in KINDS.items():
        for form in (many, one):
            if text == form or text.endswith(" " + form):
                words = text[: len(text) - len(form)].split()
                said = {"kind": "" if one == "part" else one, "colour": "", "pattern": "", "size": ""}
                for word in words:
                    key = "colour" if word in COLOURS else "size" if word == "small" else "pattern"
                    assert key != "pattern" or word in ("striped", "dotted"), f"unknown word {word!r} in {text!r}"
                    said[key] = word
                return said
    raise AssertionError(f"no kind in {text!r}")


def _third(v: float) -> int:
    return 0 if v < 1 / 3 else 1 if v < 2 / 3 else 2


def _in(thing: Record, where: str, slack: float) -> bool:
    rows = {"top": 0, "bottom": 2}
    columns = {"left": 0, "right": 2}
    row = next((n for word, n in rows.items() if word in where.split()), 1)
    column = next((n for word, n in columns.items() if word in where.split()), 1)
    near_x = {_third(thing["x"] + s) for s in (-slack, 0, slack)}
    near_y = {_third(thing["y"] + s) for s in (-slack, 0, slack)}
    return row in near_y and column in near_x


def _surely_in(thing: Record, where: str) -> bool:
    return all(
        _in({"x": thing["x"] + dx, "y": thing["y"] + dy}, where, 0)
        for dx in (-BORDER, 0, BORDER)
        for dy in (-BORDER, 0, BORDER)
    )


def _may_be(record: Record, count: int, name: str, where: str | None) -> bool:
    said = look(name)
    ways = []
    for exact in (False, True):
        fit = [p for p in record["parts"] if all(p[k] == v or (not v and not exact) for k, v in said.items())]
        low = len(fit) if where is None else sum(_surely_in(p, where) for p in fit)
        high = len(fit) if where is None else sum(_in(p, where, BORDER) for p in fit)
        ways.append(low <= count <= high)
    return any(ways)


def _bin(record: Record, sentence: str) -> Iterator[tuple[str, bool]]:
    if match := re.fullmatch(r"The (.+) is (left of|right of|above|below) the (.+)", sentence):
        yield sentence, _related(record, *match.groups())
        return
    if match := re.fullmatch(r"(?:At|In) the ([a-z ]+): (.+)", sentence):
        for item in match[2].split(", "):
            count, name = item.split(" ", 1)
            yield item, _may_be(record, int(count), name, match[1])
        return
    head, _, rest = (
        sentence.rpartition(": ") if not re.search(r"(bins|parts): \d", sentence) else sentence.partition(": ")
    )
    if match := re.fullmatch(r"(\d+) parts", head):
        yield head, int(match[1]) == len(record["parts"])
    for item in rest.removesuffix(" and more").split(", "):
        yield item, _bin_item(record, item)


def _bin_item(record: Record, item: str) -> bool:
    if match := re.fullmatch(r"(bins|parts): (\d+)", item):
        return int(match[2]) == (record["bins"] if match[1] == "bins" else len(record["parts"]))
    if match := re.fullmatch(r"(\d+) percent full", item):
        return abs(int(match[1]) - record["fill_percent"]) <= 5
    if match := re.fullmatch(r"only (packing|floor) inside", item):
        return not record["parts"] and record["dunnage"] == (match[1] == "packing")
    if match := re.fullmatch(r"(.+) (?:at|in) the ([a-z ]+) is (free|blocked)", item):
        said = look(match[1])
        fit = [p for p in record["parts"] if all(v in ("", p[k]) for k, v in said.items()) and _in(p, match[2], BORDER)]
        return bool(fit) and all(p["free"] == (match[3] == "free") for p in fit)
    match = re.fullmatch(r"(\d+) (.+?)(?: (?:at|in) the ([a-z ]+))?", item)
    assert match, f"unreadable: {item!r}"
    return _may_be(record, int(match[1]), match[2], match[3])


def _related(record: Record, one: str, way: str, two: str) -> bool:
    found = []
    for name in (one, two):
        fit = [p for p in record["parts"] if all(v in ("", p[k]) for k, v in look(name).items())]
        if len(fit) != 1:
            return False
        found.append(fit[0])
    a, b = found
    return {
        "left of": a["x"] < b["x"],
        "right of": a["x"] > b["x"],
        "above": a["y"] < b["y"],
        "below": a["y"] > b["y"],
    }[way]


def _kit(record: Record, sentence: str) -> Iterator[tuple[str, bool]]:
    slots = {slot["slot"]: slot for slot in record["slots"]}
    head, _, rest = sentence.partition(": ")
    if head in ("Empty slots", "Full slots"):
        named = {int(n) for n in rest.split(", ")}
        yield sentence, named == {n for n, s in slots.items() if (s["found"] is None) == (head == "Empty slots")}
        return
    there = [thing["description"] for thing in record["beside"]]
    for item in rest.split(", "):
        if head == "Beside the tray":
            count, name = item.split(" ", 1)
            said = look(name)
            yield item, sum(look(other) == said for other in there) == int(count)
        else:
            yield item, _kit_item(record, slots, item)


def _kit_item(record: Record, slots: dict[int, Record], item: str) -> bool:
    if match := re.fullmatch(r"slot (\d+) is (empty|full)", item):
        return (slots[int(match[1])]["found"] is None) == (match[2] == "empty")
    if match := re.fullmatch(r"slot (\d+) holds (.+?)(?: (half|fully) seated)?", item):
        slot = slots[int(match[1])]
        seat = match[3] is None or (slot["status"] == "half_seated") == (match[3] == "half")
        return slot["found"] == match[2] and seat
    if match := re.fullmatch(r"row (\d+) holds (\d+)", item):
        wide = record["columns"]
        row = record["slots"][(int(match[1]) - 1) * wide : int(match[1]) * wide]
        return sum(s["found"] is not None for s in row) == int(match[2])
    match = re.fullmatch(r"(rows|slots in a row|full|empty|half seated): (\d+)", item)
    assert match, f"unreadable: {item!r}"
    full = sum(s["found"] is not None for s in record["slots"])
    truth = {
        "rows": record["rows"], "slots in a row": record["columns"], "full": full, "empty": len(slots) - full,
        "half seated": sum(s["status"] == "half_seated" for s in record["slots"]),
    }  # fmt: skip
    return truth[match[1]] == int(match[2])


def _return(record: Record, sentence: str) -> Iterator[tuple[str, bool]]:
    rest = sentence.removeprefix("Also ").partition(": ")[2] if not sentence.startswith("Also") else sentence[5:]
    marks = None
    for item in rest.split(", "):
        if item.startswith("marks: ") or (marks is not None and item in ("tape", "shadow", "print")):
            mark = item.removeprefix("marks: ")
            marks = [*(marks or []), mark]
            yield item, (not record["confusers"]) if mark == "none" else mark in record["confusers"]
        else:
            yield item, _return_item(record, item)


def _return_item(record: Record, item: str) -> bool:
    signs = {
        "faces flat and edges closed": "intact", "a face is pressed in": "dented",
        "the skin is ripped through": "torn", "the top is not closed": "open",
    }  # fmt: skip
    label = record["label"]
    if item in signs:
        return record["condition"] == signs[item]
    if match := re.fullmatch(r"(slight|clear|heavy) damage", item):
        low, high = {"slight": (0, 0.35), "clear": (0.35, 0.7), "heavy": (0.7, 1.0)}[match[1]]
        return low - 0.05 <= record["severity"] <= high + 0.05
    if match := re.fullmatch(r"(intact|dented|torn|open)(?: (?:at|in) the ([a-z ]+))?", item):
        where = match[2] is None
        if match[2]:
            x0, y0, x1, y1 = record["damage_box"]
            where = _in({"x": (x0 + x1) / 2, "y": (y0 + y1) / 2}, match[2], BORDER)
        return match[1] == record["condition"] and where
    if item in ("no label", "one label"):
        return label["present"] == (item == "one label")
    if match := re.fullmatch(r"label (?:at|in) the ([a-z ]+) (can|cannot) be read", item):
        return label["present"] and _in(label, match[1], BORDER) and label["readable"] == (match[2] == "can")
    return item == record["item"]
