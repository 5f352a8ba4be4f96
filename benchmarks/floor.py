"""A floor with known faults: what the verbs find of them.

    python benchmarks/floor.py plant FRAMES FLOOR [--frames 600] [--wrong 0.08] [--seed 0]
    lineside task check FLOOR/floor.yaml FLOOR ...                       (docs/owner.md has the commands in between)
    python benchmarks/floor.py compare FLOOR --samples S --audit A --selected N

`plant` makes a folder as a warehouse has it of simulated returns: pictures, and three tables with a clock each.
`frames.csv` has the camera's time. `order_lines.csv` says which order was open at a station; its clock is ahead by
minutes and drifts. `inspections.csv` says in what state a person found the item, some seconds after the picture; its
clock is behind and drifts; one of three operators errs more often. The last tenth of the time is Monday: not inspected
yet, and three SKUs that were never seen before come in. `planted.json` keeps the truth.

`compare` puts what was planted beside what was found, prints it, and writes benchmarks/out/floor.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.data.job import task_file
from lineside.data.sources import open_frames
from lineside.data.store import read_frames
from lineside.data.taskfile import merge
from lineside.files import write_atomic
from lineside.types import Frame

OUT = Path(__file__).parent / "out" / "floor.json"
STATES = ("intact", "dented", "torn", "open")
STATIONS = ("R1", "R2", "R3", "R4")
OPERATORS = {"kim": 0.2, "lee": 0.4, "max": 2.4}  # how often each errs, as a multiple of the share of wrong records
NEW, OLD_WEEK, DAYS = 3, 0.9, 5
SHIFT = timedelta(hours=8)
START = datetime(2026, 3, 2, 6)
DELAY = (6.0, 2.0)  # seconds from picture to inspection: mean, standard deviation

TASKS = """\
table:
  file: frames.csv
  family: returns
  image: picture
  cell: station
  time: taken
  skus: sku
  split: {by: scene, shares: {train: 0.6, dev: 0.2, heldout: 0.2}}
  join:
    - {file: order_lines.csv, on: station, start: opened, end: closed, offset: auto, name: order}
    - {file: inspections.csv, on: station, time: at, within: 20 s, several: nearest, once: true, offset: auto,
       name: seen}
  columns:
    item: order.item
    state: seen.state
    operator: seen.operator
    line: order.line
captions:
  - family: returns
    wrong: [state]
    templates: ["A return: {item}, {state}.", "{item}; its state is {state}."]
tasks:
  - family: returns
    name: state
    phrasings: ["Is it intact, dented, torn or open?", "What is its state: intact, dented, torn or open?"]
    answer: {kind: choice, column: state, options: [intact, dented, torn, open]}
    normal: intact
    trace: "it was ordered as {item}"
    stakes: {wrong: 1, false_pass: 2, false_stop: 1}
"""


@dataclass(frozen=True)
class Clock:
    """How far a clock is ahead of the camera's, in seconds, and how many seconds more each day."""

    ahead: float
    drift: float

    def shows(self, true: datetime, start: datetime) -> str:
        """What it shows at an instant; `ahead` holds at `start`."""
        days = (true - start) / timedelta(days=1)
        return (true + timedelta(seconds=self.ahead + self.drift * days)).isoformat(timespec="milliseconds")


CLOCKS = {"order_lines.csv": Clock(187.0, 6.0), "inspections.csv": Clock(-142.0, -5.0)}


@dataclass(frozen=True)
class Item:
    """One return on the floor."""

    frame: Frame
    station: str
    taken: datetime
    monday: bool
    new: bool


def items_of(frames: Sequence[Frame], start: datetime, draw: random.Random) -> list[Item]:
    """The frames in order of time, station by station. The rarest SKUs come on Monday only."""
    counts = Counter(frame.meta.skus[0] for frame in frames)
    new = {sku for sku, _ in sorted(counts.items(), key=lambda pair: (-min(pair[1], 4), pair[0]))[:NEW]}
    known = [frame for frame in frames if frame.meta.skus[0] not in new]
    draw.shuffle(known)
    before = round(OLD_WEEK * len(frames))
    late = known[before:] + [frame for frame in frames if frame.meta.skus[0] in new]
    draw.shuffle(late)
    made: list[Item] = []
    for group, first_day, days in ((known[:before], 0, DAYS), (late, 7, 1)):
        places = sorted((draw.randrange(days), draw.random()) for _ in group)
        for frame, (day, part) in zip(group, places):
            taken = start + timedelta(days=first_day + day) + part * SHIFT
            made.append(Item(frame, draw.choice(STATIONS), taken, first_day > 0, frame.meta.skus[0] in new))
    return spaced(made)


def spaced(items: Sequence[Item]) -> list[Item]:
    """The items with at least 25 seconds between two of a station."""
    last: dict[str, datetime] = {}
    made: list[Item] = []
    for item in sorted(items, key=lambda one: one.taken):
        least = last.get(item.station, item.taken - timedelta(seconds=25)) + timedelta(seconds=25)
        last[item.station] = max(item.taken, least)
        made.append(Item(item.frame, item.station, last[item.station], item.monday, item.new))
    return made


def plant(frames: Path, floor: Path, *, number: int, wrong: float, seed: int) -> None:
    """Write the folder."""
    draw = random.Random(seed)
    returns = (frame for frame in read_frames(frames) if frame.family == "returns" and frame.meta.skus)
    start = START
    items = items_of(list(islice(returns, number)), start, draw)
    pictures = floor / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    orders: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    truth: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(items):
        name = f"{item.frame.id}.jpg"
        (pictures / name).write_bytes(item.frame.image.bytes)
        rows.append(
            {
                "picture": f"pictures/{name}",
                "station": item.station,
                "taken": item.taken.isoformat(timespec="milliseconds"),
                "sku": item.frame.meta.skus[0],
            }
        )
        begins, ends = item.taken - timedelta(seconds=draw.uniform(4, 12)), timedelta(seconds=draw.uniform(9, 12))
        show = CLOCKS["order_lines.csv"].shows
        orders.append(
            {
                "line": f"L{number:05d}",
                "station": item.station,
                "opened": show(begins, start),
                "closed": show(item.taken + ends, start),
                "item": item.frame.record["item"],
            }
        )
        state = item.frame.record["condition"]
        said, operator = state, draw.choice(list(OPERATORS))
        if draw.random() < wrong * OPERATORS[operator]:
            said = draw.choice([other for other in STATES if other != state])
        if not item.monday:
            at = item.taken + timedelta(seconds=max(1.0, draw.gauss(*DELAY)))
            shown = CLOCKS["inspections.csv"].shows(at, start)
            seen.append({"station": item.station, "at": shown, "state": said, "operator": operator})
        truth[item.frame.id] = {
            "line": f"L{number:05d}", "state": state, "said": None if item.monday else said, "operator": operator,
            "monday": item.monday, "new": item.new,
        }  # fmt: skip
    for file, table in (("frames.csv", rows), ("order_lines.csv", orders), ("inspections.csv", seen)):
        with (floor / file).open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, table[0])
            writer.writeheader()
            writer.writerows(table)
    (floor / "floor.yaml").write_text(TASKS, encoding="utf-8")
    planted = {"clocks": {file: asdict(clock) for file, clock in CLOCKS.items()}, "frames": truth}
    write_atomic(floor / "planted.json", json.dumps(planted, indent=1) + "\n")
    wrongs = sum(one["said"] not in (None, one["state"]) for one in truth.values())
    print(
        f"{floor}: {len(items)} frames, {len(seen)} inspections of which {wrongs} are wrong, "
        f"{sum(item.monday for item in items)} frames of Monday, {sum(item.new for item in items)} with a new SKU"
    )


def compare(floor: Path, samples: Path, audit: Path, selected: Path) -> list[dict[str, Any]]:
    """Claims, and lines with what was planted and what was found."""
    planted = json.loads((floor / "planted.json").read_text(encoding="utf-8"))
    truth: dict[str, dict[str, Any]] = planted["frames"]
    claims = list(clock_claims(planted, json.loads((samples / "label.json").read_text(encoding="utf-8"))))
    claims += list(join_claims(truth, floor))
    listed = [json.loads(line) for line in (audit / "review.jsonl").read_text(encoding="utf-8").splitlines()]
    flagged = {Path(one["frame"]).stem for one in listed}
    wrong = {name for name, one in truth.items() if one["said"] not in (None, one["state"])}
    judged = json.loads((audit / "suspects.json").read_text(encoding="utf-8"))["records"]
    hits = len(flagged & wrong)
    print(f"wrong records: {len(wrong)} planted, {judged} judged; {len(flagged)} listed, {hits} of them wrong")
    claims.append(found("precision of the listed records", flagged & wrong, flagged))
    claims.append(found("recall of the wrong records", flagged & wrong, wrong))
    with (selected / "select.csv").open(encoding="utf-8") as file:
        chosen = [Path(row["file"]).stem for row in csv.DictReader(file)]
    monday = [name for name, one in truth.items() if one["monday"]]
    new = [name for name in monday if truth[name]["new"]]
    picked = [name for name in chosen if truth[name]["new"]]
    print(f"new SKUs: {len(new)} of {len(monday)} frames of Monday; {len(picked)} of the {len(chosen)} chosen")
    claims.append(found("chosen frames that show a new SKU", picked, chosen))
    return claims


def clock_claims(planted: Mapping[str, Any], account: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How far each estimated offset is from the planted one, at the middle of the time that the estimate covers."""
    for join in account["joins"]:
        clock, estimate = planted["clocks"][join["file"]], join["clocks"][""]
        delay = DELAY[0] if join["file"] == "inspections.csv" else 0.0
        days = (datetime.fromisoformat(estimate["when"]) - START) / timedelta(days=1) if estimate["when"] else 0.0
        true = clock["ahead"] + clock["drift"] * days + delay
        print(
            f"{join['file']}: planted {clock['ahead']:+.1f} s, {clock['drift']:+.1f} s a day, {delay:.0f} s of delay; "
            f"at {estimate['when'] or 'all times'} {true:+.1f} s; found {estimate['seconds']:+.1f} s, "
            f"{estimate['drift']:+.2f} s a day; "
            f"{join['matched']} of {join['frames']} frames have a row"
        )
        yield claim(f"{join['file']}: error of the offset, s", abs(estimate["seconds"] - true), join["matched"])
        yield claim(
            f"{join['file']}: error of the drift, s a day", abs(estimate["drift"] - clock["drift"]), join["matched"]
        )


def join_claims(truth: Mapping[str, Mapping[str, Any]], floor: Path) -> Iterator[dict[str, Any]]:
    """How many frames got the rows of their own item from both tables; none from the inspections for one of Monday."""
    table = merge([task_file(floor / "floor.yaml")]).table
    right = {"order line": 0, "inspection": 0}
    for frame in open_frames(floor, table).frames():
        assert isinstance(frame, Frame), frame
        one, has = truth[Path(frame.id).stem], frame.record
        right["order line"] += has["line"] == one["line"]
        own = (None, None) if one["monday"] else (one["said"], one["operator"])
        right["inspection"] += (has["state"], has["operator"]) == own
    for what, count in right.items():
        print(f"{count} of {len(truth)} frames have the {what} of their own item")
        yield claim(f"share of frames with their own {what}", count / len(truth), len(truth))


def found(what: str, hits: Sequence[str] | set[str], of: Sequence[str] | set[str]) -> dict[str, Any]:
    """A share as a line of the account."""
    return claim(what, len(hits) / len(of) if of else 0.0, len(of))


def claim(what: str, value: float, n: int) -> dict[str, Any]:
    return {"claim": what, "value": value, "n": n, "command": "python benchmarks/floor.py compare FLOOR"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    planting = verbs.add_parser("plant")
    planting.add_argument("frames", type=Path)
    planting.add_argument("floor", type=Path)
    planting.add_argument("--frames", dest="number", type=int, default=600)
    planting.add_argument("--wrong", type=float, default=0.08)
    planting.add_argument("--seed", type=int, default=0)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("floor", type=Path)
    for name in ("samples", "audit", "selected"):
        comparing.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "plant":
        plant(given.frames, given.floor, number=given.number, wrong=given.wrong, seed=given.seed)
        return 0
    claims = compare(given.floor, given.samples, given.audit, given.selected)
    write_atomic(OUT, json.dumps({"claims": claims}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
