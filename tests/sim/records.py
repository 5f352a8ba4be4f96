"""Records made by hand and by dice, for tests that need no renderer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from lineside.sim.catalogue import assortment, catalogue, look_alikes
from lineside.sim.questions import runs_of
from lineside.types import Frame, Image, Meta, Split

SIDE = 56
SKUS = {sku.description: sku for sku in catalogue()}


def frame(family: str, record: dict[str, Any], *, id: str = "f1", split: Split = "train") -> Frame:
    return Frame(id, Image(b""), family, record, Meta(scene=id), split)


def part(description: str, x: float, y: float, *, size: float = 0.1, free: bool = True, **more: Any) -> dict[str, Any]:
    """A square part around (x, y)."""
    sku = SKUS[description]
    box = [max(0.0, x - size / 2), max(0.0, y - size / 2), min(1.0, x + size / 2), min(1.0, y + size / 2)]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[round(box[1] * SIDE) : round(box[3] * SIDE), round(box[0] * SIDE) : round(box[2] * SIDE)] = True
    return {
        "sku": sku.id, "description": description, "colour": sku.colour, "kind": sku.kind, "pattern": sku.pattern,
        "size": sku.size, "bin": 1, "x": x, "y": y, "box": box, "visible": 1.0 if free else 0.5,
        "pixels": int(size * size * 224 * 224), "free": free, "depth": 0.03, "mask": runs_of(mask), **more,
    }  # fmt: skip


def picking(parts: Sequence[dict[str, Any]], *, id: str = "f1", split: Split = "train", **more: Any) -> Frame:
    ordered = sorted(parts, key=lambda p: (int(p["y"] * 6), p["x"]))
    record = {
        "bins": 1, "empty": not parts, "dunnage": False, "fill_percent": 2.0 * len(parts), "parts": ordered,
        "buried": 0, **more,
    }  # fmt: skip
    return frame("picking", record, id=id, split=split)


def kitting(
    columns: int,
    slots: Sequence[tuple[str, str | None, str]],
    *,
    id: str = "f1",
    split: Split = "dev",
    beside: Sequence[str] = (),
) -> Frame:
    """Slots as (expected, found, status), row by row."""
    rows = len(slots) // columns
    record = {
        "rows": rows,
        "columns": columns,
        "slots": [
            {"slot": n + 1, "x": (n % columns + 0.5) / columns, "y": (n // columns + 0.5) / rows,
             "box": [0.0, 0.0, 0.1, 0.1], "expected": expected, "found": found, "status": status}
            for n, (expected, found, status) in enumerate(slots)
        ],
        "beside": [{"description": name, "x": 0.95, "y": 0.5} for name in beside],
        "complete": all(status == "ok" for _, _, status in slots),
    }  # fmt: skip
    return frame("kitting", record, id=id, split=split)


def returns(item: str = "red carton", condition: str = "intact", *, id: str = "f1", **more: Any) -> Frame:
    sku = SKUS[item]
    damaged = condition not in ("intact",)
    record = {
        "item": item, "colour": sku.colour, "kind": sku.kind, "pattern": sku.pattern, "size": sku.size,
        "condition": condition, "severity": 0.5 if damaged else 0.02, "confusers": [],
        "damage_box": [0.1, 0.1, 0.2, 0.3] if damaged else None,
        "label": {"present": True, "readable": True, "fault": "", "x": 0.5, "y": 0.8},
        "similar": sorted(other.description for other in look_alikes(sku, catalogue())), **more,
    }  # fmt: skip
    return frame("returns", record, id=id)


def random_frame(family: str, number: int) -> Frame:
    """A frame with a record as a simulator might write it, nothing left out."""
    rng = random.Random(f"{family} {number}")
    names = [sku.description for sku in assortment(0, shifted=False)]
    return {"picking": _random_bin, "kitting": _random_kit, "returns": _random_return}[family](rng, names, number)


def _random_bin(rng: random.Random, names: list[str], number: int) -> Frame:
    chosen = rng.sample(names, rng.randint(1, 6))
    bins = rng.choice([1, 1, 2, 3, 4])
    parts = [
        part(
            rng.choice(chosen), round(rng.uniform(0.05, 0.95), 3), round(rng.uniform(0.05, 0.95), 3),
            size=rng.uniform(0.05, 0.2), free=rng.random() < 0.7, bin=rng.randint(1, bins), depth=rng.uniform(0, 0.1),
        )
        for _ in range(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 18, 25, 40]))
    ]  # fmt: skip
    fill = round(rng.uniform(0, 100), 1)
    return picking(parts, id=f"p{number}", bins=bins, dunnage=rng.random() < 0.3, fill_percent=fill)


def _random_kit(rng: random.Random, names: list[str], number: int) -> Frame:
    rows, columns = rng.choice([(2, 2), (2, 3), (3, 3), (2, 4), (3, 4)])
    kinds = rng.sample(names, rng.randint(2, 6))
    slots: list[tuple[str, str | None, str]] = []
    for _ in range(rows * columns):
        expected = rng.choice(kinds)
        status = rng.choice(["ok"] * 6 + ["empty", "wrong", "duplicate", "half_seated"])
        other = rng.choice([name for name in names if name not in kinds])
        twin = rng.choice([kind for kind in kinds if kind != expected])
        found = {"empty": None, "wrong": other, "duplicate": twin}.get(status, expected)
        slots.append((expected, found, status))
    return kitting(columns, slots, id=f"k{number}", split="train", beside=rng.sample(names, rng.randint(0, 3)))


def _random_return(rng: random.Random, names: list[str], number: int) -> Frame:
    item = rng.choice([name for name in names if name.split()[-1] in ("carton", "can", "bottle", "tub")])
    condition = rng.choice(["intact", "dented", "torn", "open"])
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
    fault = rng.choice(["", "", "smudged", "covered", "glare"])
    present = rng.random() < 0.9
    label = {
        "present": present,
        "readable": present and not fault,
        "fault": fault,
        "x": round(rng.random(), 3),
        "y": 0.5,
    }
    return returns(
        item, condition, id=f"r{number}", severity=0.05 if condition == "intact" else rng.uniform(0.3, 1.0),
        confusers=[mark for mark in ("tape", "shadow", "print") if rng.random() < 0.3],
        damage_box=None if condition == "intact" else [x - 0.05, y - 0.05, x + 0.05, y + 0.05],
        label=label,
    )  # fmt: skip
