"""A floor with known faults: what the verbs find of them.

    python benchmarks/floor.py plant FRAMES FLOOR [--frames 600] [--wrong 0.08] [--seed 0]
    lineside task check FLOOR/floor.yaml FLOOR ...                       (docs/owner.md has the commands in between)
    python benchmarks/floor.py compare FLOOR --samples S --audit A --selected N [--evaluation E ...]

`plant` makes a folder as a warehouse has it of simulated returns: pictures, and three tables with a clock each.
`frames.csv` has the camera's time. `order_lines.csv` says which order was open at a station; its clock is ahead by
minutes and drifts. `inspections.csv` says in what state a person found the item, some seconds after the picture; its
clock is behind and drifts; one of three operators errs more often. The last tenth of the time is Monday: not inspected
yet, and three SKUs that were never seen before come in. `monday.yaml` is `floor.yaml` with Monday as the suite.
`planted.json` keeps the truth.

`compare` puts what was planted beside what was found, and writes benchmarks/out/floor.json. It claims that the clocks
are found and that nearly every frame has its own rows; what audit and selection find, and how many answers of an
evaluation are right by the planted truth, is told without a bound.
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
from lineside.judgement.schema import read_rows, rows_path
from lineside.types import Frame

COMMAND = "python benchmarks/floor.py compare FLOOR --samples S --audit A --selected N --evaluation E"
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

MONDAY = TASKS.replace(
    "{by: scene, shares: {train: 0.6, dev: 0.2, heldout: 0.2}}", "{column: week, values: {W10: train, W11: heldout}}"
)


@dataclass(frozen=True)
class Clock:
    """How far a clock is ahead of the camera's, in seconds, and how many seconds more each day."""

    ahead: float
    drift: float

    def ahead_at(self, true: datetime) -> float:
        """Seconds that it is ahead at an instant; `ahead` holds at START."""
        return self.ahead + self.drift * ((true - START) / timedelta(days=1))

    def shows(self, true: datetime) -> str:
        """What it shows at an instant."""
        return (true + timedelta(seconds=self.ahead_at(true))).isoformat(timespec="milliseconds")


CLOCKS = {"order_lines.csv": Clock(187.0, 6.0), "inspections.csv": Clock(-142.0, -5.0)}


@dataclass(frozen=True)
class Item:
    """One return on the floor."""

    frame: Frame
    station: str
    taken: datetime
    monday: bool
    new: bool


def items_of(frames: Sequence[Frame], draw: random.Random) -> list[Item]:
    """The frames in order of time. Three SKUs, of four frames or more where there are such, come on Monday only."""
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
            taken = START + timedelta(days=first_day + day) + part * SHIFT
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
    items = items_of(list(islice(returns, number)), draw)
    (floor / "pictures").mkdir(parents=True, exist_ok=True)
    for item in items:
        (floor / picture_of(item)).write_bytes(item.frame.image.bytes)
    orders, found = zip(*((order_of(x, place, draw), inspection_of(x, wrong, draw)) for place, x in enumerate(items)))
    seen = [row for item, row in zip(items, found) if not item.monday]
    rows = [
        {
            "picture": picture_of(item),
            "station": item.station,
            "taken": item.taken.isoformat(timespec="milliseconds"),
            "week": f"W{item.taken.isocalendar().week}",
            "sku": item.frame.meta.skus[0],
        }
        for item in items
    ]
    for file, table in (("frames.csv", rows), ("order_lines.csv", orders), ("inspections.csv", seen)):
        with (floor / file).open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, table[0])
            writer.writeheader()
            writer.writerows(table)
    (floor / "floor.yaml").write_text(TASKS, encoding="utf-8")
    (floor / "monday.yaml").write_text(MONDAY, encoding="utf-8")
    truth = {
        item.frame.id: {
            "line": order["line"],
            "state": item.frame.record["condition"],
            "said": None if item.monday else row["state"],
            "operator": row["operator"],
            "monday": item.monday,
            "new": item.new,
        }
        for item, order, row in zip(items, orders, found)
    }
    planted = {"clocks": {file: asdict(clock) for file, clock in CLOCKS.items()}, "frames": truth}
    write_atomic(floor / "planted.json", json.dumps(planted, indent=1) + "\n")
    print(
        f"{floor}: {len(items)} frames, {len(seen)} inspections of which {len(wrong_ones(truth))} are wrong, "
        f"{sum(item.monday for item in items)} frames of Monday, {sum(item.new for item in items)} with a new SKU"
    )


def picture_of(item: Item) -> str:
    """The picture's file, relative to the floor."""
    return f"pictures/{item.frame.id}.jpg"


def order_of(item: Item, place: int, draw: random.Random) -> dict[str, str]:
    """The order line of an item, by the clock of the warehouse system."""
    clock = CLOCKS["order_lines.csv"]
    before, after = timedelta(seconds=draw.uniform(4, 12)), timedelta(seconds=draw.uniform(9, 12))
    return {
        "line": f"L{place:05d}",
        "station": item.station,
        "opened": clock.shows(item.taken - before),
        "closed": clock.shows(item.taken + after),
        "item": item.frame.record["item"],
    }


def inspection_of(item: Item, wrong: float, draw: random.Random) -> dict[str, str]:
    """What a person typed about an item, by the station's clock."""
    state, operator = item.frame.record["condition"], draw.choice(list(OPERATORS))
    if draw.random() < wrong * OPERATORS[operator]:
        state = draw.choice([other for other in STATES if other != state])
    delay = 0.0 if item.monday else max(1.0, draw.gauss(*DELAY))  # Monday's are not typed yet
    at = CLOCKS["inspections.csv"].shows(item.taken + timedelta(seconds=delay))
    return {"station": item.station, "at": at, "state": state, "operator": operator}


def wrong_ones(truth: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The frames whose typed state is not the true one."""
    return {name for name, one in truth.items() if one["said"] not in (None, one["state"])}


def compare(
    floor: Path, samples: Path, audit: Path, selected: Path, evaluations: Sequence[Path] = ()
) -> dict[str, list[dict[str, Any]]]:
    """What the joins must give (`claims`), and the shares of what audit, selection and models found (`rows`)."""
    planted = json.loads((floor / "planted.json").read_text(encoding="utf-8"))
    truth: dict[str, dict[str, Any]] = planted["frames"]
    claims = list(clock_claims(json.loads((samples / "label.json").read_text(encoding="utf-8"))))
    claims += list(join_claims(truth, floor))
    lines = (audit / "review.jsonl").read_text(encoding="utf-8").splitlines()
    flagged, wrong = {Path(json.loads(line)["frame"]).stem for line in lines}, wrong_ones(truth)
    with (selected / "select.csv").open(encoding="utf-8") as file:
        chosen = {Path(row["file"]).stem for row in csv.DictReader(file)}
    new = {name for name, one in truth.items() if one["new"]}
    rows = [
        share("precision: of the listed records, wrong", wrong, flagged),
        share("recall: of the wrong records, listed", flagged, wrong),
        share("of the chosen frames, with a new SKU", new, chosen),
    ]
    for path in evaluations:
        rows += by_truth(path, truth)
    return {"claims": claims, "rows": rows}


def by_truth(evaluation: Path, truth: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the answers of an evaluation, how many are right by the records of its suite and by the planted truth."""
    rows = {Path(row.id.removesuffix(f"/{row.task}")).stem: row for row in read_rows(rows_path(evaluation))}
    right = {
        name for name, row in rows.items() if row.answer is not None and row.answer.strip() == truth[name]["state"]
    }
    yield share(f"{evaluation}: right by the records", {name for name, row in rows.items() if row.exact}, {*rows})
    yield share(f"{evaluation}: right by the planted truth", right, {*rows})


def clock_claims(account: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How far each estimate is from the planted clock at its instant. The join of an event reaches 20 seconds."""
    for join in account["joins"]:
        clock, found = CLOCKS[join["file"]], join["clocks"][""]
        at = datetime.fromisoformat(found["when"]) if found["when"] else START
        true = clock.ahead_at(at) + (DELAY[0] if join["file"] == "inspections.csv" else 0.0)
        print(
            f"{join['file']}, {at:%Y-%m-%d %H:%M}: planted {true:+.1f} s, {clock.drift:+.1f} s a day; "
            f"found {found['seconds']:+.1f} s, {found['drift']:+.2f} s a day"
        )
        error, drift = abs(found["seconds"] - true), abs(found["drift"] - clock.drift)
        yield claim(f"{join['file']}: error of the offset, s", error, join["matched"], at_most=10.0)
        yield claim(f"{join['file']}: error of the drift, s a day", drift, join["matched"], at_most=1.0)


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
        yield claim(f"share of frames with the {what} of their own item", count / len(truth), len(truth), at_least=0.95)


def claim(what: str, value: float, n: int, **bound: float) -> dict[str, Any]:
    """A claim with its bound, `at_least` or `at_most`."""
    least, most = bound.get("at_least", value), bound.get("at_most", value)
    holds = least <= value <= most
    return {"claim": what, "value": value, **bound, "holds": holds, "n": n, "command": COMMAND}


def share(what: str, hits: set[str], of: set[str]) -> dict[str, Any]:
    """How many of some frames are among the hits."""
    return {"what": what, "value": len(hits & of) / len(of) if of else None, "hits": len(hits & of), "n": len(of)}


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
    comparing.add_argument("--evaluation", type=Path, action="append", default=[])
    given = parser.parse_args()
    if given.verb == "plant":
        plant(given.frames, given.floor, number=given.number, wrong=given.wrong, seed=given.seed)
        return 0
    found = compare(given.floor, given.samples, given.audit, given.selected, given.evaluation)
    write_atomic(OUT, json.dumps(found, indent=2) + "\n")
    for one in found["claims"]:
        print(f"{one['claim']}: {one['value']:.3f}, n {one['n']}: {'holds' if one['holds'] else 'FAILS'}")
    for one in found["rows"]:
        print(f"{one['what']}: {one['hits']} of {one['n']}")
    return 0 if all(one["holds"] for one in found["claims"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
