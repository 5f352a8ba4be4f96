"""How often the gate passes: equally good models, and a challenger that is worse by the margin.

    python benchmarks/gate_rates.py FIRST.json SECOND.json [--scenes 1500] [--gates 2000]

Two real evaluations of the same questions give the answers. Each gate draws `--scenes` scenes of every family with
replacement. To make two models that are equally good, the answers of each scene are exchanged by a coin. To make the
second one worse by the margin, right answers of the challenger are then turned wrong at random, so many that every task
loses the margin on average. The gate decides on both, as `lineside gate` does with one
suite. The script makes no claim; it writes benchmarks/out/gate_rates.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lineside.files import write_atomic
from lineside.judgement.gate import Answered, gate
from lineside.judgement.paired import rows_by_id
from lineside.judgement.schema import Row, read_evaluation
from lineside.judgement.stats import binomial
from lineside.progress import track
from lineside.recipe import MARGIN

OUT = Path(__file__).parent / "out"
LOSSES = (0.0, MARGIN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--scenes", type=int, default=1500, help="of each family")
    parser.add_argument("--gates", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    one = partial(_gate, options.first, options.second, options.scenes)
    found: dict[float, Counter[str]] = {loss: Counter() for loss in LOSSES}
    questions: list[int] = []
    cases = [(loss, (options.seed, number)) for number in range(options.gates) for loss in LOSSES]
    with ProcessPoolExecutor(2) as pool:
        outcomes = pool.map(one, *zip(*cases), chunksize=4)
        shown = track(outcomes, total=len(cases), unit="gates", label="gate")
        for (outcome, count), (loss, _) in zip(shown, cases):
            found[loss][outcome] += 1
            questions.append(count)
    n = round(statistics.mean(questions))
    rows = []
    for loss, counts in found.items():
        low, high = binomial(counts["passed"] / options.gates, options.gates)
        rows.append({"loss": loss, **counts, "passes": counts["passed"] / options.gates, "interval": [low, high]})
        print(f"{-100 * loss:+.0f} points: passes {counts['passed'] / options.gates:.1%} ({low:.1%} to {high:.1%}); "
              f"too little data {counts['too little data'] / options.gates:.1%}; refused "
              f"{counts['refused'] / options.gates:.1%} of {options.gates:,} gates; n about {n:,}")  # fmt: skip
    written = {"scenes": options.scenes, "gates": options.gates, "seed": options.seed, "n": n, "rows": rows}
    write_atomic(OUT / "gate_rates.json", json.dumps(written, indent=1))


def _gate(first: Path, second: Path, scenes: int, loss: float, seed: tuple[int, int]) -> tuple[str, int]:
    """One gate's outcome, and its number of questions."""
    rng = np.random.default_rng(seed)
    by_family: dict[str, dict[str, list[tuple[Row, Row]]]] = defaultdict(lambda: defaultdict(list))
    answers = [rows_by_id(path) for path in (first, second)]
    for id, row in answers[0].items():
        by_family[row.family][row.scene].append((row, answers[1][id]))
    right = Counter(row.key for pairs in answers for row in pairs.values() if row.exact)
    total = Counter(row.key for pairs in answers for row in pairs.values())
    sides: tuple[dict[str, Row], dict[str, Row]] = {}, {}
    for family, groups in sorted(by_family.items()):
        names = sorted(groups)
        for number, place in enumerate(rng.integers(len(names), size=scenes)):
            exchanged = rng.random() < 0.5
            for a, b in groups[names[place]]:
                pair = (b, a) if exchanged else (a, b)
                lost = pair[1].exact and rng.random() < loss * total[a.key] / right[a.key]
                for side, row in zip(sides, pair):
                    update: dict[str, Any] = {"id": f"{number} {a.id}", "scene": f"{family} {number}"}
                    if lost and side is sides[1]:
                        update["exact"] = False
                    side[update["id"]] = row.model_copy(update=update)
    whole = [read_evaluation(path) for path in (first, second)]
    found = gate(
        [Answered("suite", (whole[0], sides[0]), (whole[1], sides[1]))],
        names=("champion", "challenger"),
        margin=MARGIN,
        seed=seed[1],
    )
    return found.outcome, found.exact.overall.n


if __name__ == "__main__":
    main()
