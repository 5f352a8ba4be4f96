"""Frames of the world: the same from any process in any order, and their records true to the picture."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from lineside.errors import LinesideError
from lineside.hashing import split_of
from lineside.sim.catalogue import catalogue, distance
from lineside.sim.cells import FAMILIES, fleet
from lineside.sim.world import generate_frames, scene_at, scenes
from lineside.types import Frame, Mask, Target

SEED = 11
BY_DESCRIPTION = {s.description: s for s in catalogue()}


def fingerprint(frame: Frame) -> str:
    record = json.dumps(frame.record, sort_keys=True)
    return f"{frame.id} {hashlib.sha256(frame.image.bytes + record.encode()).hexdigest()}"


def inside(mask: dict, x: float, y: float) -> bool:
    values = np.zeros(len(mask["runs"]), bool)
    values[1::2] = True
    grid = np.repeat(values, mask["runs"]).reshape(mask["height"], mask["width"])
    return bool(grid[int(y * mask["height"]), int(x * mask["width"])])


@pytest.fixture(scope="module")
def frames() -> dict[str, list[Frame]]:
    try:
        return {f: list(generate_frames(family=f, count=12, seed=SEED)) for f in FAMILIES}
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")


@pytest.fixture(scope="module")
def shifted() -> dict[str, list[Frame]]:
    try:
        return {f: list(generate_frames(family=f, count=4, seed=SEED, split="shifted")) for f in FAMILIES}
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_does_not_depend_on_what_was_rendered_before(frames, family: str) -> None:
    (alone,) = generate_frames(family=family, count=1, seed=SEED, start=3)
    assert fingerprint(alone) == fingerprint(frames[family][3])


def test_two_processes_render_the_same_bytes(frames) -> None:
    ours = [fingerprint(f) for family in FAMILIES for f in frames[family][:3]]
    program = (
        "from tests.sim.test_world import *\n"
        "for family in FAMILIES:\n"
        "    for frame in generate_frames(family=family, count=3, seed=SEED):\n"
        "        print(fingerprint(frame))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines() == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_week_and_number_make_different_scenes(family: str) -> None:
    scenes_ = [
        scene_at(family, number, seed=seed, week=week, shifted=False)
        for number in range(20) for seed in range(3) for week in range(3)
    ]  # fmt: skip
    assert len({s.id for s in scenes_}) == len(scenes_)
    assert len({s.cell.id for s in scenes_}) == 9


def test_families_never_share_a_scene_id() -> None:
    ids = [scene_at(f, n, seed=1, week=0, shifted=s).id for f in FAMILIES for n in range(50) for s in (False, True)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", ["train", "dev", "heldout"])
def test_a_split_asked_for_by_name_is_the_one_of_the_hash(split: str) -> None:
    everything = islice(scenes("picking", seed=5, week=2, split=None), 200)
    expected = [s.id for s in everything if split_of(s.id) == split]
    got = [s.id for s in islice(scenes("picking", seed=5, week=2, split=split), len(expected))]
    assert got == expected
    assert [s.id for s in islice(scenes("picking", seed=5, week=2, split=split, start=4), 3)] == expected[4:7]


def test_splits_are_8_to_1_to_1() -> None:
    counts = Counter(split_of(s.id) for s in islice(scenes("kitting", seed=0, week=0, split=None), 3000))
    assert counts["train"] == pytest.approx(2400, abs=90) and counts["dev"] == pytest.approx(300, abs=70)


@pytest.mark.parametrize("family", FAMILIES)
def test_shifted_shares_no_sku_and_no_cell(frames, shifted, family: str) -> None:
    held_out_skus = {s.id for s in catalogue() if s.held_out}
    held_out_cells = {c.id for c in fleet() if c.held_out}
    for frame in frames[family]:
        assert frame.split in ("train", "dev", "heldout") and frame.meta.cell not in held_out_cells
        assert not set(frame.meta.skus) & held_out_skus
    for frame in shifted[family]:
        assert frame.split == "shifted" and frame.meta.cell in held_out_cells
        assert set(frame.meta.skus) <= held_out_skus


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_jpegs_of_the_size_asked_for_with_full_meta(frames, family: str) -> None:
    for frame in frames[family][:4]:
        image = Image.open(io.BytesIO(frame.image.bytes))
        assert image.format == "JPEG" and image.size == (224, 224)
        assert frame.meta.scene in frame.id and frame.meta.cell in frame.meta.scene and frame.meta.time
        assert re.fullmatch("(warm|white|cool), (dim|bright)", frame.meta.extra["light"])
        assert json.loads(json.dumps(frame.record)) == frame.record
    (small,) = generate_frames(family=family, count=1, seed=SEED, size=112)
    assert Image.open(io.BytesIO(small.image.bytes)).size == (112, 112)


def test_picking_records_agree_with_themselves(frames) -> None:
    for frame in frames["picking"]:
        record = frame.record
        assert record["empty"] == (not record["parts"] and not record["buried"])
        assert 1 <= record["bins"] <= 4 and 0 <= record["fill_percent"] <= 100
        assert {p["sku"] for p in record["parts"]} == set(frame.meta.skus)
        for part in record["parts"]:
            x0, y0, x1, y1 = part["box"]
            assert x0 <= part["x"] <= x1 and y0 <= part["y"] <= y1 and inside(part["mask"], part["x"], part["y"])
            assert 0.1 <= part["visible"] <= 1 and 1 <= part["bin"] <= record["bins"]
            assert not part["free"] or part["visible"] >= 0.9
            assert BY_DESCRIPTION[part["description"]].id == part["sku"]


def test_counts_are_those_of_the_segmentation_image(frames) -> None:
    """Loads, buried parts and pixels, worked out again from an id image of the same scene."""
    from lineside.sim import picking
    from lineside.sim.render import renderer

    checked = 0
    for number in range(40):
        scene = scene_at("picking", number, seed=SEED, week=0, shifted=False)
        bins = picking._bins(scene)
        loads = picking._loads(scene, bins)
        articles = sum(isinstance(item, picking.Article) for load in loads for item in load)
        if articles < 12:
            continue
        record = picking.picking(scene, renderer(), 224).record
        assert len(record["parts"]) + record["buried"] == articles
        total = sum(p["pixels"] for p in record["parts"])
        areas = [(p["box"][2] - p["box"][0]) * (p["box"][3] - p["box"][1]) * 224**2 for p in record["parts"]]
        assert total <= 224**2 and all(p["pixels"] <= area + 1 for p, area in zip(record["parts"], areas))
        checked += 1
        if checked == 3:
            return
    pytest.fail("no full bin among 40 scenes")


def test_a_deep_pile_buries_parts(frames) -> None:
    """Forty large parts in one bin: some end up under the others, are not counted, and are not free."""
    from lineside.sim import picking
    from lineside.sim.physics import drop

    sku = next(s for s in catalogue() if s.attributes == ("red", "carton", "", ""))
    scene = scene_at("picking", 0, seed=SEED, week=0, shifted=False)
    bin_ = picking.Bin(0.0, 0.0, 0.30, 0.24, 0.12)
    load = [scene.article(sku) for _ in range(40)]
    rest = drop(picking._above(scene, 0, bin_, load), picking._guards([bin_]), seconds=1.2)
    assert (np.abs(rest.positions[:, 0]) < 0.16).all() and (np.abs(rest.positions[:, 1]) < 0.13).all()
    assert rest.positions[:, 2].min() > 0.0
    lowest = int(rest.positions[:, 2].argmin())
    assert lowest in {lower for lower, _ in rest.supports}
    assert picking._fill([bin_], rest) > 80


def test_fill_is_the_mean_height_over_the_rim() -> None:
    from lineside.sim import picking
    from lineside.sim.physics import Body, drop
    from lineside.sim.shapes import Primitive

    # A slab of 0.1 x 0.2 m and 0.04 m height in a bin of 0.2 x 0.2 m and 0.08 m: half the floor at half the height.
    slab = Body((Primitive("box", (0.05, 0.10, 0.02)),), np.array([-0.05, 0, 0.0201]), np.array([1.0, 0, 0, 0]))
    bin_ = picking.Bin(0.0, 0.0, 0.2, 0.2, 0.08)
    assert picking._fill([bin_], drop([slab], [], seconds=0.2)) == pytest.approx(25, abs=1.5)
    empty = picking.Bin(1.0, 0.0, 0.2, 0.2, 0.08)
    assert picking._fill([bin_, empty], drop([slab], [], seconds=0.2)) == pytest.approx(12.5, abs=0.8)


def test_kitting_statuses_mean_what_they_say(frames, shifted) -> None:
    for frame in [*frames["kitting"], *shifted["kitting"]]:
        record = frame.record
        slots = record["slots"]
        assert [s["slot"] for s in slots] == list(range(1, record["rows"] * record["columns"] + 1))
        assert record["complete"] == all(s["status"] == "ok" for s in slots)
        expected = [s["expected"] for s in slots]
        for slot in slots:
            status, found = slot["status"], slot["found"]
            assert (found is None) == (status == "empty")
            assert status not in ("ok", "half_seated") or found == slot["expected"]
            assert status != "wrong" or found not in expected
            assert status != "duplicate" or (found != slot["expected"] and found in expected)
        middles = [(s["x"], s["y"]) for s in slots]
        for k, (x, y) in enumerate(middles):  # numbered as a person reads: rightwards, then down
            column, row = k % record["columns"], k // record["columns"]
            assert column == 0 or middles[k - 1][0] < x
            assert row == 0 or middles[k - record["columns"]][1] < y


def test_a_third_of_the_kits_are_complete_and_every_fault_occurs() -> None:
    """0.35 of 400 is 140, 9.5 a standard deviation: within four of them."""
    from lineside.sim.kitting import COMPLETE_SHARE, _statuses

    assert COMPLETE_SHARE == 0.35

    kits = [_statuses(s, 2, 3) for s in islice(scenes("kitting", seed=3, week=0, split=None), 400)]
    complete = sum(set(statuses) == {"ok"} for statuses in kits)
    assert 102 <= complete <= 178
    faults = Counter(status for statuses in kits for status in statuses)
    assert min(faults[name] for name in ("empty", "wrong", "duplicate", "half_seated")) >= 20


def test_seated_articles_lie_in_their_recess_and_half_seated_ones_do_not() -> None:
    from lineside.sim import kitting

    seen: Counter[str] = Counter()
    for scene in islice(scenes("kitting", seed=4, week=0, split=None), 40):
        slots = kitting._slots(scene, 2, 3)
        tray = kitting.Tray(2, 3, "")
        placed = kitting._place(scene, tray, slots, [])
        for slot, (_, position, _) in zip([s for s in slots if s.found], placed):
            off = np.abs(position[:2] - tray.middle(slot.number)) / kitting.PITCH
            assert (off.max() > 0.25) == (slot.status == "half_seated"), (scene.id, slot)
            seen[slot.status] += 1
    assert seen["half_seated"] >= 5 and seen["ok"] > 100


def test_returns_records_agree_with_themselves(frames, shifted) -> None:
    for frame in [*frames["returns"], *shifted["returns"]]:
        record = frame.record
        assert record["condition"] in ("intact", "dented", "torn", "open")
        assert (record["damage_box"] is None) == (record["condition"] == "intact")
        assert (record["severity"] < 0.2) == (record["condition"] == "intact")
        assert set(record["confusers"]) <= {"tape", "shadow", "print"}
        assert record["label"]["present"] or not record["label"]["readable"]
        item = BY_DESCRIPTION[record["item"]]
        assert record["similar"] and record["item"] not in record["similar"]
        assert all(distance(item, BY_DESCRIPTION[name]) == 1 for name in record["similar"])


def test_masks_load_as_targets(frames) -> None:
    part = next(p for f in frames["picking"] for p in f.record["parts"])
    target = Target.from_json({"kind": "point", "provenance": "sim", "mask": part["mask"]})
    assert isinstance(target.mask, Mask) and sum(target.mask.runs) == 56 * 56


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"family": "packing"}, "no family 'packing'.*picking, kitting, returns"),
        ({"split": "test"}, "no split 'test'.*shifted"),
        ({"count": -1}, "count is -1"),
        ({"size": 100}, "multiple of 56"),
        ({"size": 4480}, "multiple of 56"),
    ],
)
def test_bad_wishes_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        list(generate_frames(**{"family": "picking", "count": 1, "seed": 0, **wrong}))
