"""Wrong records planted in true ones: how many of them `task audit` finds, and how many that it names are planted.

    python benchmarks/wrong_records.py FRAMES [--tasks grocery.yaml] [--task grocery/product] [--near group]
        [--checkpoint C] [--features F] [--seeds 3] [--precision 0.9 --recall 0.8]

A share of the records of each task gets the answer of another record, drawn by the seed: of any, or with `--near` of
one with the same value in that column (a look-alike). Records that were wrong before count as right, so precision is a
lower bound. With `--precision` and `--recall` it claims that the means over seeds, any other answer planted, are at
least that. Writes benchmarks/out/wrong_records.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from lineside.data.recorded import Record
from lineside.files import write_atomic
from lineside.judgement.crossfit import cross_fit
from lineside.judgement.suspects import find_suspects
from lineside.runtime import ON_CPU
from lineside.task_audit import CUT, described, recorded_of

OUT = Path(__file__).parent / "out" / "wrong_records.json"
SHARES = (0.0, 0.05, 0.1)


def corrupted(records: Sequence[Record], share: float, *, seed: int, near: str | None) -> tuple[list[Record], set[str]]:
    """The records with a share of them wrong, and the ids of these."""
    draw = random.Random(seed)
    like: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        like[record.task, record.sources[near] if near else ""].append(record)
    wrong = set(draw.sample(sorted(record.id for record in records), round(share * len(records))))
    made: list[Record] = []
    for record in records:
        key = record.task, record.sources[near] if near else ""
        others = [other for other in like[key] if other.answer != record.answer] if record.id in wrong else []
        if others:
            other = draw.choice(others)
            record = replace(record, answer=other.answer, target=other.target)
        else:
            wrong.discard(record.id)
        made.append(record)
    return made, wrong


def measure(
    records: Sequence[Record], seen: dict[str, Tensor], share: float, *, seed: int, near: str | None
) -> dict[str, Any]:
    """What the audit finds of one corruption."""
    made, wrong = corrupted(records, share, seed=seed, near=near)
    found = find_suspects(made, cross_fit(made, seen, seed=seed))
    flagged = [suspect.record.id for suspect in found.above(CUT)]
    ranked = [suspect.record.id in wrong for suspect in found.suspects]
    columns = found.by_source.get("column", {}).values()
    hits = sum(name in wrong for name in flagged)
    return {
        "planted": "a look-alike" if near else "any",
        "share": share,
        "seed": seed,
        "n": len(records),
        "judged": len(ranked),
        "wrong": len(wrong),
        "flagged": len(flagged),
        "precision": hits / len(flagged) if flagged else None,
        "recall": hits / len(wrong) if wrong else None,
        "precision_at_wrong": fmean(ranked[: len(wrong)]) if wrong else None,
        "estimated": sum(n * estimate.share for n, estimate in columns),
        "interval": [sum(n * estimate.interval[end] for n, estimate in columns) for end in (0, 1)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument("--task", nargs="*", default=[])
    parser.add_argument("--near")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", type=float)
    parser.add_argument("--recall", type=float)
    given = parser.parse_args()
    recorded = recorded_of(given.tasks, given.frames, [given.near] if given.near else [])
    records, seen = described(recorded, given.checkpoint, given.features, ON_CPU)
    records = [record for record in records if record.task in given.task or not given.task]
    kinds = (None, given.near) if given.near else (None,)
    rows: list[dict[str, Any]] = []
    for near, share, seed in [
        (None, 0.0, 0),
        *((near, share, seed) for near in kinds for share in SHARES[1:] for seed in range(given.seeds)),
    ]:
        rows.append(measure(records, seen, share, seed=seed, near=near))
        print(json.dumps(rows[-1]), flush=True)
    goals = [(name, least) for name, least in (("precision", given.precision), ("recall", given.recall)) if least]
    claims = [claim(rows, share, name, least) for share in SHARES[1:] for name, least in goals]
    write_atomic(OUT, json.dumps({"claims": claims, "rows": rows}, indent=2) + "\n")
    for one in claims:
        print(f"{one['claim']}: {one['value']:.3f}, at least {one['at_least']}: {'holds' if one['holds'] else 'FAILS'}")
    return 0 if all(one["holds"] for one in claims) else 1


def claim(rows: Sequence[dict[str, Any]], share: float, name: str, least: float) -> dict[str, Any]:
    """The mean over seeds where any other answer was planted."""
    values = [row[name] or 0.0 for row in rows if row["share"] == share and row["planted"] == "any"]
    return {
        "claim": f"{name} of planted wrong records, {share:.0%} of {rows[0]['n']:,}",
        "value": fmean(values),
        "at_least": least,
        "holds": fmean(values) >= least,
        "n": len(values),
        "command": "python benchmarks/wrong_records.py FRAMES",
    }


if __name__ == "__main__":
    raise SystemExit(main())
