"""How often the gate passes: equally good models, and a challenger that is worse by the margin.

    python benchmarks/gate_rates.py FIRST.json SECOND.json [--scenes 1500] [--gates 2000] [--check 20]
    python benchmarks/gate_rates.py --captions CHECKPOINT CHECKPOINT SAMPLES [--gates 2000]

Two real evaluations of the same questions give the answers. Each gate draws `--scenes` scenes of every family with
replacement. To make two models that are equally good, the answers of each scene are exchanged by a coin. To make the
second one worse by the margin, right answers of the challenger are then turned wrong at random, so many that every task
loses the margin on average; in a third kind, only the tasks of one family do. Each gate decides as `lineside gate` does
with one suite, without its checks of latency, which no drawing of scenes changes, and of forgetting.

The latter has captions of its own: `--captions` gives those of `heldout` to two real checkpoints, and resamples this
check alone. What is lost is then the bound: perplexity is higher by that much in every caption.

All gates share the weights of one bootstrap, as all gates of a user do that have the same seed and number of scenes, so
that gates are one matrix product on sums by scene. `--check N` also puts the first N of each kind through the real
gate, row by row, and stops if one decides differently.

Claims: at no difference at least 90% pass; at a loss of the margin, in all families or in one, or of the bound, at most
5%. Writes benchmarks/out/gate_rates.json (of captions gate_rates_captions.json). Exit status 1: a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement import stats
from lineside.judgement.forgetting import Likelihood, change
from lineside.judgement.gate import FORGETS, LONGER, Answered, Found, Gate, gate, outcome_of, within
from lineside.judgement.paired import HARM, check_same_questions, part_verdict, rows_by_id
from lineside.judgement.schema import Row, read_evaluation
from lineside.progress import track
from lineside.recipe import MARGIN
from lineside.types import Outcome

OUT = Path(__file__).parent / "out"
CAPTIONS = ("no difference in captions", "captions less likely by the bound")
KINDS = ("no difference", "a loss of the margin", "a loss of the margin in one family")
LEAST, MOST = 0.90, 0.05
SEED = 0  # of the gate's bootstrap
NO_HARM = -1.5  # standard deviations: the one-sided p of a smaller loss is above 5%
AT_ONCE = 8  # gates of one product

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Table = tuple[stats.Outcomes, stats.Outcomes, stats.Outcomes]


@dataclass(frozen=True)
class Questions:
    """N questions that two models have answered, those of a scene together. Values are (2, N): of the first model, of
    the second."""

    pairs: Sequence[tuple[Row, Row]]
    tasks: tuple[str, ...]  # family/task
    task_N: Places
    scenes: dict[str, list[Places]]  # by family: the questions of each scene
    exact: Floats
    valid: Floats
    calibrated: Floats  # NaN: not calibrated in both
    tokens: Floats
    thinks: NDArray[np.bool_]  # (N,) asked with thinking on, both
    share_K: Floats  # of right answers, over both models

    @staticmethod
    def read(first: Path, second: Path) -> Questions:
        """Raises LinesideError for evaluations that are not of the same questions."""
        answers = [rows_by_id(path) for path in (first, second)]
        pairs = check_same_questions(*answers, names=(str(first), str(second)))
        return Questions.of(sorted(pairs, key=lambda pair: (pair[0].family, pair[0].scene, pair[0].id)))

    @staticmethod
    def of(pairs: Sequence[tuple[Row, Row]]) -> Questions:
        """From (first, second) rows, those of a family and scene together."""
        tasks = tuple(sorted({row.key for row, _ in pairs}))
        task_N = np.array([tasks.index(row.key) for row, _ in pairs])
        scenes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, (row, _) in enumerate(pairs):
            scenes[row.family][row.scene].append(place)
        sides = list(zip(*pairs))
        exact = np.array([[float(row.exact) for row in side] for side in sides])
        calibrated = np.array([[np.nan if r.calibrated is None else r.calibrated for r in side] for side in sides])
        return Questions(
            pairs=pairs,
            tasks=tasks,
            task_N=task_N,
            scenes={family: [np.array(some) for some in found.values()] for family, found in scenes.items()},
            exact=exact,
            valid=np.array([[float(row.trace_class == "valid") for row in side] for side in sides]),
            calibrated=np.where(np.isnan(calibrated).any(0), np.nan, calibrated),
            tokens=np.array([[float(row.tokens) for row in side] for side in sides]),
            thinks=np.array([bool(a.thinking and b.thinking) for a, b in pairs]),
            share_K=np.bincount(task_N, exact.mean(0)) / np.bincount(task_N),
        )


@dataclass(frozen=True)
class Drawn:
    """The questions of one gate: M places among the N, each with its scene, and the two models' values (2, M)."""

    place: Places
    scene: Places
    scenes: int
    swapped: NDArray[np.bool_]  # the second model's answers are the champion's
    lost: NDArray[np.bool_]  # a right answer of the challenger is turned wrong

    def values(self, values: Floats) -> Floats:
        """(2, M) of the champion and of the challenger, before any loss."""
        both = values[:, self.place]
        return np.where(self.swapped, both[::-1], both)


def draw(asked: Questions, kind: str, scenes: int, number: int, seed: int = 0) -> Drawn:
    """The questions of gate `number`: `scenes` scenes of every family."""
    rng = np.random.default_rng((seed, number))
    parts = [group[at] for group in asked.scenes.values() for at in rng.integers(len(group), size=scenes)]
    place = np.concatenate(parts)
    scene = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    swapped = (rng.random(len(parts)) < 0.5)[scene]
    drawn = Drawn(place, scene, len(parts), swapped, np.zeros(len(place), bool))
    if kind == KINDS[0]:
        return drawn
    loses_K = np.array([kind == KINDS[1] or task.startswith(f"{min(asked.scenes)}/") for task in asked.tasks])
    chance_K = np.where(loses_K, MARGIN / np.maximum(asked.share_K, MARGIN), 0.0)
    right = drawn.values(asked.exact)[1] > 0
    return replace(drawn, lost=right & (rng.random(len(place)) < chance_K[asked.task_N[place]]))


@cache
def weights(scenes: int) -> tuple[NDArray[np.float32], Floats]:
    """The (B, S) weights of the scenes and the B weights of the unseen one: those that `stats.paired` draws."""
    generator = np.random.default_rng(SEED)
    drawn = generator.standard_exponential((stats.PAIRED_DRAWS, scenes)).astype(np.float32)
    return drawn, generator.standard_exponential(stats.PAIRED_DRAWS)


def decide(asked: Questions, gates: Sequence[Drawn]) -> list[Outcome]:
    """The outcomes of gates with equally many scenes: those of `gate` on the same rows, from sums by scene."""
    tables = [list(tables_of_gate(asked, drawn)) for drawn in gates]
    columns = [
        [c for table in some for c in (table[2].total_SK, table[2].count_SK, table[1].total_SK)] for some in tables
    ]
    weight, unseen = weights(gates[0].scenes)  # one product for all, since reading the weights takes the longest
    sums = weight @ np.concatenate([c for some in columns for c in some], 1).astype(np.float32)
    places = np.cumsum([c.shape[1] for some in columns for c in some])[:-1]
    split = iter(np.split(sums.astype(np.float64), places, 1))
    outcomes = []
    for some in tables:
        totals = [(next(split), next(split), next(split)) for _ in some]
        exact, valid, brier = (
            stats.PairedDraws(*table, total, count, unseen, SEED) for table, (total, count, _) in zip(some[:3], totals)
        )
        change, _, now = (total[: stats.DRAWS, 0] for total in totals[-1])  # of the tokens
        outcomes.append(_outcome(asked, exact, valid, brier, now / (now - change)))
    return outcomes


def _outcome(
    asked: Questions, exact: stats.PairedDraws, valid: stats.PairedDraws, brier: stats.PairedDraws, longer_B: Floats
) -> Outcome:
    """The outcome of one gate from its draws."""
    found: list[Found] = [_exact(asked, exact)]
    if valid.change.n:
        low, high = valid.difference().interval
        found.append(within(-low, -high, MARGIN))
    if brier.change.n:
        low, high = brier.difference().interval
        found.append(within(high, low, MARGIN))
    low, high = np.quantile(longer_B, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
    return outcome_of([*found, within(float(high) - 1, float(low) - 1, LONGER)])


def _exact(asked: Questions, draws: stats.PairedDraws) -> Found:
    """What exact match finds. A task is tested for harm only if it lost much: else its p is far above what Holm's
    correction takes for harm, and so is no other task's p that is higher."""
    families = [[key for key in asked.tasks if key.startswith(f"{family}/")] for family in asked.scenes]
    verdicts = [part_verdict(draws.difference(keys).interval, MARGIN, None) for keys in (None, *families)]
    total_SK = draws.change.total_SK
    lost_K = total_SK.sum(0) / np.sqrt(np.maximum((total_SK**2).sum(0), 1e-12))  # in standard deviations
    harms = stats.holm([draws.harm([key]) if lost < NO_HARM else 1.0 for key, lost in zip(asked.tasks, lost_K)])
    small = [key for key, harm in zip(asked.tasks, harms) if harm <= HARM]
    worse = any(draws.difference([key]).interval.low < -MARGIN for key in small)
    if worse or "worse" in verdicts:
        return "refused"
    return "too little data" if "too little data" in verdicts else "passed"


def tables_of_gate(asked: Questions, drawn: Drawn) -> Iterator[Table]:
    """Exactness by task, valid traces, the Brier score of confidence, and tokens."""
    exact = drawn.values(asked.exact)
    exact[1, drawn.lost] = 0.0
    sure, every, one = drawn.values(asked.calibrated), np.ones(len(drawn.place)), np.zeros(len(drawn.place), np.intp)
    known = (~np.isnan(sure[0])).astype(float)
    yield tables_of(drawn, asked.tasks, asked.task_N[drawn.place], exact, every)
    yield tables_of(drawn, ("all",), one, drawn.values(asked.valid), asked.thinks[drawn.place].astype(float))
    yield tables_of(drawn, ("all",), one, np.nan_to_num((sure - exact) ** 2), known)
    yield tables_of(drawn, ("all",), one, drawn.values(asked.tokens), every)


def tables_of(drawn: Drawn, tasks: tuple[str, ...], task: Places, values: Floats, count: Floats) -> Table:
    """Sums by scene and task of the (2, M) values of the questions that count: of both models, and of the change."""
    size = drawn.scenes, len(tasks)
    cell = drawn.scene * size[1] + task
    names = tuple(map(str, range(size[0])))

    def summed(value: Floats) -> stats.Outcomes:
        total, asked = (
            np.bincount(cell, each, size[0] * size[1]).reshape(size).astype(np.float64)
            for each in (value * count, count)
        )
        return stats.Outcomes(names, tasks, total, asked)

    return summed(values[0]), summed(values[1]), summed(values[1] - values[0])


def judge_captions(captions: Sequence[Likelihood], kind: str, number: int, seed: int) -> Outcome:
    """The outcome of one check of forgetting: scenes drawn with replacement, models exchanged in each by a coin."""
    rng = np.random.default_rng((seed, CAPTIONS.index(kind), number))
    rise = math.log(1 + FORGETS) if kind == CAPTIONS[1] else 0.0
    scenes = [[*some] for _, some in groupby(captions, key=lambda text: text.scene)]
    drawn = []
    for place, at in enumerate(rng.integers(len(scenes), size=len(scenes))):
        swapped = rng.random() < 0.5
        for text in scenes[at]:
            before, after = (text.after, text.before) if swapped else (text.before, text.after)
            drawn.append(Likelihood(f"{place}", text.tokens, before, after + rise * text.tokens))
    found = change(drawn, seed=SEED)
    assert found is not None, "a gate draws as many scenes as there are"
    return outcome_of([within(found.interval[1] - 1, found.interval[0] - 1, FORGETS)])


def of_captions(options: argparse.Namespace) -> int:
    """Tell how often the check of forgetting passes."""
    from lineside.evaluate import caption_likelihoods

    before, after, samples = options.captions
    captions = caption_likelihoods(before, after, {"heldout": (samples, "heldout")})["heldout"]
    cases = [(kind, number) for kind in CAPTIONS for number in range(options.gates)]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in CAPTIONS}
    for kind, number in track(cases, total=len(cases), unit="gates", label="gates"):
        found[kind][judge_captions(captions, kind, number, options.seed)] += 1
    return tell(found, options, len(captions), len({text.scene for text in captions}))


def real(asked: Questions, drawn: Drawn, whole: tuple[Any, Any]) -> Gate:
    """The real gate on the rows of the same questions. `whole`: the two evaluations."""
    sides: tuple[dict[str, Row], dict[str, Row]] = {}, {}
    for at, scene, swapped, lost in zip(drawn.place, drawn.scene, drawn.swapped, drawn.lost):
        pair = asked.pairs[at][::-1] if swapped else asked.pairs[at]
        for side, row in zip(sides, pair):
            update: dict[str, Any] = {"id": f"{scene:06d} {at:06d}", "scene": f"{scene:06d}"}
            if lost and side is sides[1]:
                update["exact"] = False
            side[update["id"]] = row.model_copy(update=update)
    untimed = [evaluation.model_copy(update={"latency": None}) for evaluation in whole]
    suite = Answered("suite", (untimed[0], sides[0]), (untimed[1], sides[1]))
    return gate([suite], names=("champion", "challenger"), margin=MARGIN, seed=SEED)


def _some(asked: Questions, scenes: int, seed: int, cases: Sequence[tuple[str, int]]) -> list[tuple[Outcome, int]]:
    """The outcome and the number of questions of each case."""
    gates = [draw(asked, kind, scenes, number, seed) for kind, number in cases]
    return [(outcome, len(drawn.place)) for outcome, drawn in zip(decide(asked, gates), gates)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, nargs="?")
    parser.add_argument("second", type=Path, nargs="?")
    parser.add_argument("--captions", type=Path, nargs=3, metavar=("CHECKPOINT", "CHECKPOINT", "SAMPLES"))
    parser.add_argument("--scenes", type=int, default=1500, help="of each family")
    parser.add_argument("--gates", type=int, default=2000, help="of each kind")
    parser.add_argument("--check", type=int, default=0, help="gates of each kind that also go through the real gate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.captions:
        return of_captions(options)
    if options.second is None:
        parser.error("expected two evaluations, or --captions")
    asked = Questions.read(options.first, options.second)
    whole = read_evaluation(options.first), read_evaluation(options.second)
    check = [(kind, number) for kind in KINDS for number in range(options.check)]
    for kind, number in track(check, total=len(check), unit="gates", label="check"):
        drawn = draw(asked, kind, options.scenes, number, options.seed)
        if (slow := real(asked, drawn, whole).outcome) != (fast := decide(asked, [drawn])[0]):
            raise LinesideError(f"gate {number}, {kind}: {fast} here, and {slow} by the real gate")
    weights(options.scenes * len(asked.scenes))  # before the processes fork: they share them
    cases = [(kind, number) for number in range(options.gates) for kind in KINDS]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    with ProcessPoolExecutor(2) as pool:
        parts = [cases[at : at + AT_ONCE] for at in range(0, len(cases), AT_ONCE)]
        outcomes = chain.from_iterable(pool.map(partial(_some, asked, options.scenes, options.seed), parts))
        shown = list(track(outcomes, total=len(cases), unit="gates", label="gates"))
    for (kind, _), (outcome, _) in zip(cases, shown):
        found[kind][outcome] += 1
    return tell(found, options, round(fmean(count for _, count in shown)), options.scenes)


def tell(found: dict[str, Counter[str]], options: argparse.Namespace, n: int, scenes: int) -> int:
    """Print and write the claims; returns the exit status."""
    given = "--captions CHECKPOINT CHECKPOINT SAMPLES" if options.captions else f"--scenes {scenes}"
    command = f"python benchmarks/gate_rates.py {given} --gates {options.gates} --seed {options.seed}"
    claims = []
    for kind, counts in found.items():
        passed = counts["passed"] / options.gates
        equal = kind in (KINDS[0], CAPTIONS[0])
        bound = {"at_least": LEAST} if equal else {"at_most": MOST}
        holds = passed >= LEAST if equal else passed <= MOST
        claims.append({
            "claim": f"share of gates that pass, {kind}", "value": passed, **bound, "holds": holds,
            "n": options.gates, "interval": list(stats.binomial(passed, options.gates)), **counts,
            "questions": n, "scenes": scenes, "check": options.check, "command": command,
        })  # fmt: skip
        low, high = stats.binomial(passed, options.gates)
        print(f"{kind}: passes {passed:.1%} ({low:.1%} to {high:.1%}); too little data "
              f"{counts['too little data'] / options.gates:.1%}; refused {counts['refused'] / options.gates:.1%} of "
              f"{options.gates:,} gates; n about {n:,}: {'holds' if holds else 'DOES NOT HOLD'}")  # fmt: skip
    name = "gate_rates_captions.json" if options.captions else "gate_rates.json"
    write_atomic(OUT / name, json.dumps(claims, indent=1) + "\n")
    return int(not all(claim["holds"] for claim in claims))


if __name__ == "__main__":
    raise SystemExit(main())
