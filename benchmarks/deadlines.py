"""In-deadline answers under load, by a virtual clock: our scheduler against queues with a cap, at the same costs.

    python benchmarks/deadlines.py [--requests 10000] [--seed 0] [--noise 0.2] [--load 1.5]

A cell asks some questions about a frame at once, each as a request of its own. Tasks, budgets (the deadlines), and the
lengths of questions, traces and answers are those of the quick start's 17 tasks on its held-out suite (1,800 questions,
0 to 100% in steps of 20% of each length). Costs are those that the engine measures at its start (`LocalEngine.warm`),
in CPU time of one thread. Every action takes longer than its cost by |N(0, 1)| of `--noise`.

Load 1 is what a queue without a cap answers of the same questions when it never runs dry: whole traces, 64 rows. The
queues run on the same engine: they read a frame once, and requests together. Their cap is the best of all, chosen on
the same requests.
Writes benchmarks/out/deadlines.json; the exit status says whether all claims hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lineside.serving.scheduler import Costs  # noqa: E402
from tests.serving.virtual import Asked, Result, by_deadline, by_queue  # noqa: E402

Lengths = tuple[int, int, int, int, int, int]
ROWS = 64
HEAD = 50  # tokens of a frame
CAPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96)


class Task(NamedTuple):
    """Questions on the suite, budget in ms, tokens of a question and of the answers that are read with it, and the
    lengths of traces, of answers after a trace, and of answers without one (1: it comes with the reading)."""

    count: int
    budget: float
    question: int
    drafts: int
    trace: Lengths
    answer: Lengths
    fast: Lengths


TASKS = {
    "kitting/kit_complete": Task(74, 2000, 56, 2, (35, 61, 68, 85, 108, 138), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 2)),
    "kitting/missing": Task(112, 2000, 61, 0, (37, 58, 68, 84, 112, 188), (2, 2, 2, 2, 2, 57), (2, 4, 7, 10, 13, 193)),
    "kitting/slots_filled": Task(120, 1500, 12, 0, (24, 24, 24, 35, 35, 37), (2, 2, 2, 2, 2, 3), (2, 2, 2, 2, 2, 3)),
    "kitting/slots_to_fill": Task(81, 1500, 12, 0, (20, 28, 28, 36, 40, 55), (2, 2, 2, 2, 5, 23), (2, 2, 2, 2, 5, 29)),
    "kitting/wrong_item": Task(64, 2000, 59, 0, (40, 56, 68, 79, 106, 141), (2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 8, 24)),
    "picking/bins": Task(61, 1000, 12, 0, (12, 12, 18, 24, 30, 33), (2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2)),
    "picking/count_all": Task(120, 1500, 13, 0, (15, 16, 17, 21, 25, 33), (2, 2, 2, 2, 3, 3), (2, 2, 2, 2, 3, 3)),
    "picking/count_described": Task(155, 1500, 13, 0, (13, 15, 16, 18, 20, 41), (2, 2, 2, 2, 2, 3), (2, 2, 2, 2, 2, 3)),
    "picking/fill_level": Task(64, 1000, 16, 0, (16, 19, 19, 22, 22, 22), (3, 3, 4, 4, 4, 4), (3, 3, 4, 4, 4, 4)),
    "picking/is_empty": Task(34, 800, 13, 2, (15, 15, 15, 19, 22, 25), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
    "picking/is_present": Task(155, 1500, 13, 2, (10, 11, 13, 17, 19, 24), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
    "picking/pick_point": Task(
        155, 1500, 16, 0, (32, 33, 33, 34, 34, 35), (11, 11, 11, 11, 11, 11), (11, 11, 11, 11, 11, 11)
    ),
    "picking/top_free": Task(101, 1500, 14, 0, (18, 22, 31, 31, 34, 38), (3, 3, 4, 4, 5, 5), (3, 3, 4, 4, 5, 5)),
    "returns/condition": Task(90, 1500, 16, 4, (14, 14, 14, 18, 18, 21), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
    "returns/disposition": Task(154, 1500, 26, 0, (10, 13, 13, 13, 19, 28), (2, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2)),
    "returns/label_readable": Task(106, 1000, 12, 2, (11, 11, 14, 14, 14, 14), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
    "returns/matches_order": Task(154, 1500, 17, 2, (17, 17, 21, 22, 23, 23), (2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1)),
}
COSTS = {  # in ms
    "nano": Costs(read=7.78, picture=52.5, token=0.070, step=1.55, row=0.066),
    "smollm2": Costs(read=78.6, picture=25.0, token=1.34, step=24.4, row=1.11),
}


def drawn(lengths: Lengths, chance: random.Random) -> int:
    """A length between those of the table."""
    at = chance.random() * 5
    low = lengths[int(at)]
    return round(low + (at - int(at)) * (lengths[int(at) + 1] - low))


def requests(rate: float, count: int, seed: int, questions: int) -> list[Asked]:
    """`count` questions, `rate` a second, about frames that come at random times, each frame of one family. The server
    predicts the 95th percentile of a task's answers, as it learns it."""
    chance, out, at, number = random.Random(seed), list[Asked](), 0.0, 0
    names = list(TASKS)
    while len(out) < count:
        at += chance.expovariate(rate / questions / 1000)
        number += 1
        family = chance.choices(names, [task.count for task in TASKS.values()])[0].partition("/")[0]
        own = [name for name in names if name.startswith(family)]
        for name in chance.choices(own, [TASKS[name].count for name in own], k=questions):
            task = TASKS[name]
            late, late_fast = (round(ls[4] + 0.75 * (ls[5] - ls[4])) for ls in (task.answer, task.fast))
            out.append(
                Asked(
                    at,
                    drawn(task.trace, chance),
                    drawn(task.answer, chance),
                    task.budget,
                    late,
                    tokens=task.question + task.drafts,
                    frame=str(number),
                    shared=HEAD,
                    fast=drawn(task.fast, chance),
                    predicted_fast=late_fast,
                )
            )
    return out


def capacity(costs: Costs, questions: int) -> float:
    """Answers a second of a queue that never runs dry."""
    asked = [replace(one, at=0.0) for one in requests(50, 2000, 99, questions)]
    result = by_queue(asked, cap=None, costs=costs, max_rows=ROWS)
    return 1000 * len(asked) / result.milliseconds


def alone(asked: list[Asked]) -> list[Asked]:
    """Each request as if it were about a frame of its own."""
    return [replace(one, frame="") for one in asked]


def decoded(asked: list[Asked]) -> list[Asked]:
    """Answers of closed sets are decoded like all others."""
    return [replace(one, fast=max(2, one.fast), predicted_fast=max(2, one.predicted_fast)) for one in asked]


class Policy(NamedTuple):
    """A way to serve, and what it knows of the requests."""

    serve: Callable[[list[Asked], Costs, float], Result]
    knows: Callable[[list[Asked]], list[Asked]] = list


def best_cap(thinks: bool) -> Callable[[list[Asked], Costs, float], Result]:
    """The queue with the cap that answers most in time."""

    def serve(asked: list[Asked], costs: Costs, noise: float) -> Result:
        found = (by_queue(asked, cap=cap, costs=costs, noise=noise, max_rows=ROWS, thinks=thinks) for cap in CAPS)
        return max(found, key=lambda result: result.in_time)

    return serve


def endless_queue(asked: list[Asked], costs: Costs, noise: float) -> Result:
    """The queue without a cap."""
    return by_queue(asked, cap=None, costs=costs, noise=noise, max_rows=ROWS)


def ours(asked: list[Asked], costs: Costs, noise: float) -> Result:
    """The server's scheduler."""
    return by_deadline(asked, costs=costs, noise=noise, max_rows=ROWS)


POLICIES = {
    "first in, first out": Policy(endless_queue),
    "best cap": Policy(best_cap(thinks=True)),
    "best cap, never thinking": Policy(best_cap(thinks=False)),
    "ours": Policy(ours),
    "ours, choices decoded": Policy(ours, decoded),
    "ours, every request reads its frame": Policy(ours, lambda asked: alone(decoded(asked))),
}


def measured(policy: Policy, asked: list[Asked], costs: Costs, noise: float) -> dict[str, float]:
    """Answers in time a second, and shares: of requests those refused, of accepted ones the others."""
    found = policy.serve(policy.knows(asked), costs, noise)
    return {
        "in_time_per_s": 1000 * found.in_time / found.milliseconds,
        "refused": found.refused / len(asked),
        "late": found.late(),
        "late_over_10": found.late(by=0.1),
        "cut": found.cut / found.accepted,
        "off": found.off / found.accepted,
        "accepted": found.accepted,
    }


def main() -> int:
    """Print the tables and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--load", type=float, default=1.5)
    chosen = parser.parse_args()
    command = " ".join(["python", "benchmarks/deadlines.py", *sys.argv[1:]])
    claims: list[dict[str, Any]] = []
    for model, costs in COSTS.items():
        for questions in (5, 1):
            rate = chosen.load * capacity(costs, questions)
            asked = requests(rate, chosen.requests, chosen.seed, questions)
            what = f"{model}, {questions} question{'s' * (questions > 1)} a frame"
            print(f"\n{what}: {rate:.1f} requests a second, n {len(asked)}")
            print(f"  {'':36}{'in time/s':>10}{'refused':>9}{'late':>8}{'>10%':>8}{'cut':>6}{'off':>6}")
            table: dict[str, dict[str, float]] = {}
            for name, policy in POLICIES.items():
                one = table[name] = measured(policy, asked, costs, chosen.noise)
                print(
                    f"  {name:36}{one['in_time_per_s']:10.2f}{one['refused']:9.1%}{one['late']:8.2%}"
                    f"{one['late_over_10']:8.3%}{one['cut']:6.0%}{one['off']:6.0%}",
                    flush=True,
                )
            best, mine = table["best cap"], table["ours"]
            ratio, most = (one / best["in_time_per_s"] for one in (mine["in_time_per_s"], rate))
            print(f"  {ratio:.2f} times the best cap; if every request were answered in time: {most:.2f} times")
            shared: dict[str, Any] = {"n": mine["accepted"], "command": command, "table": table, "requests_per_s": rate}
            late = mine["late_over_10"]
            claims += [
                {"claim": f"{what}: accepted answers over 10% late", "value": late, "at_most": 0.001}
                | {"holds": late < 0.001, **shared},
                {"claim": f"{what}: in time, against the best cap", "value": ratio, "at_least": 3.0}
                | {"holds": ratio >= 3.0, "possible": most, **shared},
            ]
    out = ROOT / "benchmarks" / "out" / "deadlines.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(claims, indent=2) + "\n")
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
