"""Which model answers most within a budget? Several checkpoints, one suite, a list of budgets in milliseconds.

    python benchmarks/budget.py SAMPLES --model nano=runs/nano/rlvr/checkpoint --model smollm2=CHECKPOINT local int8 ...
        [--budgets 100 300 1000] [--split heldout] [--limit N]

(NAME=FOLDER, and behind it the engine and its weights if they are not local and full.)

Each model is asked the same questions once for each budget, by the engine that serves it, as `lineside evaluate
--deadlines` asks: as the server would answer a question that comes alone, with the budget as its deadline. A trace is
whole, cut or left out, or the question is refused. Each cell is an evaluation of its own, which times the model first.
It is kept in benchmarks/out/budget; the same command goes on with what is missing.

A cell has the exact answers that are within the budget 95 times in 100 (macro mean over tasks, 95% interval by scene),
the median and the 95th percentile of the answers' times, and the share that is refused. A model wins at a budget if the
paired interval of its difference to every other model lies above 0.

Times are taken on an idle machine only; elsewhere a cell is "not measured". Writes benchmarks/out/budget.json and
budget.png. It claims nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import OUT
from lineside import origin
from lineside.data.store import read_samples
from lineside.data.suite import suite, suite_digest
from lineside.errors import LinesideError
from lineside.evaluate import evaluate, load_judged
from lineside.files import fingerprint, write_atomic
from lineside.judgement import stats
from lineside.judgement.console import milliseconds, new_table, percent, points, show
from lineside.judgement.paired import check_same_questions, rows_by_id
from lineside.judgement.schema import MODES, STAGE_NAME, Mode, Row, read_evaluation
from lineside.model.checkpoint import dtype_of
from lineside.model.features import FeatureStore
from lineside.runtime import Runtime
from lineside.serving.pairs import PAIRS, PLAIN, EnginePair
from lineside.serving.scheduler import GRACE
from lineside.types import Sample, VllmAt

BUDGETS = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Model:
    """A checkpoint, its name in the table, and what decodes it."""

    name: str
    checkpoint: Path
    pair: EnginePair

    @classmethod
    def of(cls, words: Sequence[str]) -> Model:
        """From `NAME=FOLDER [ENGINE WEIGHTS]`. Raises LinesideError for anything else."""
        name, _, folder = words[0].partition("=")
        pair = PLAIN if len(words) == 1 else next((one for one in PAIRS if [*one] == [*words[1:]]), None)
        if pair is not None and re.fullmatch(STAGE_NAME, name) and folder:
            return cls(name, Path(folder), pair)
        raise LinesideError(
            f"--model {' '.join(words)}: expected NAME=FOLDER, with a name of letters, digits, _ and . only, and behind"
            f" it nothing or one of: {', '.join(map(str, PAIRS))}"
        )


@dataclass(frozen=True)
class Suite:
    """What every model is asked."""

    data: Path
    split: str
    mode: Mode
    questions: tuple[Sample, ...]
    digest: str
    vllm: VllmAt
    runtime: Runtime

    def file(self, model: Model, budget: float) -> Path:
        """The evaluation of a cell."""
        return OUT / "budget" / f"{budget:g}ms" / f"{model.name}-{self.split}-{self.mode}.json"

    def has(self, model: Model, budget: float) -> bool:
        """Whether a cell was measured before, with these weights and questions on this machine."""
        if not (path := self.file(model, budget)).exists():
            return False
        found, dtype = read_evaluation(path), self.runtime.dtype or dtype_of(model.checkpoint)
        made, how = found.provenance, found.decoding
        return (made.checkpoint, made.data, made.machine, how.engine, how.weights) == (
            fingerprint(model.checkpoint), self.digest, origin.machine(self.runtime, dtype), *model.pair
        )  # fmt: skip


def measure(model: Model, budgets: Sequence[float], asked: Suite) -> dict[float, str]:
    """Make the evaluations that a model lacks. Returns by budget why one could not be made."""
    if not model.checkpoint.is_dir():
        return dict.fromkeys(budgets, f"not run: no such folder: {model.checkpoint}")
    missing, notes = [budget for budget in budgets if not asked.has(model, budget)], dict[float, str]()
    if not missing:
        return notes
    try:
        vlm = load_judged(
            model.checkpoint, asked.data, asked.questions, pair=model.pair, vllm=asked.vllm, runtime=asked.runtime
        )  # fmt: skip
    except LinesideError as error:
        return dict.fromkeys(missing, f"not run: {error}")
    store = FeatureStore(None, vlm, runtime=asked.runtime)
    with closing(vlm.backend):
        for budget in missing:
            try:
                evaluate(
                    vlm, store, asked.questions, stage=model.name, split=asked.split, mode=asked.mode,
                    seed=asked.runtime.seed, budgets={(one.family, one.task): budget for one in asked.questions},
                    checkpoint=model.checkpoint, deadlines=True, out=asked.file(model, budget).parent,
                )  # fmt: skip
            except LinesideError as error:
                notes[budget] = f"not measured: {error}"
    return notes


@dataclass(frozen=True)
class Cell:
    """A model at a budget. Times in ms, of the answers that were not refused; None: all were."""

    model: str
    budget_ms: float
    exact: float
    interval: tuple[float, float]
    p50_ms: float | None
    p95_ms: float | None
    refused: float
    n: int
    scenes: int

    def __str__(self) -> str:
        low, high = (points(end) for end in self.interval)
        times = f"{milliseconds(self.p50_ms)} / {milliseconds(self.p95_ms)}"
        refused = f"{percent(self.refused)} refused" if self.refused else ""
        return "\n".join((percent(self.exact), f"{low} to {high}", times, refused))


def cell(model: str, budget: float, rows: Rows, seed: int) -> Cell | str:
    """The cell of an evaluation's rows, or why it was not measured."""
    every = list(rows.values())
    if any(row.within_budget is None for row in every):
        return "not measured: too few questions were timed for a 95th percentile"
    table = stats.tabulate([r.scene for r in every], [r.key for r in every], [bool(r.within_budget) for r in every])
    # The server ends an answer that is still being written then.
    times = [min(row.latency_ms, (1 + GRACE) * budget) for row in every if row.tokens and row.latency_ms is not None]
    p50, p95 = np.quantile(times, (0.5, 0.95), method="higher").tolist() if times else (None, None)
    refused = sum(not row.tokens for row in every) / len(every)
    interval = stats.bootstrap(table, seed=seed).macro()
    return Cell(model, budget, stats.macro(table), interval, p50, p95, refused, len(every), len(table.scenes))


@dataclass(frozen=True)
class Winner:
    """The model with the most exact answers at a budget, and its lead over the model that comes closest."""

    budget_ms: float
    best: str
    closest: str
    difference: float
    interval: tuple[float, float]
    wins: bool

    def __str__(self) -> str:
        low, high = (points(end, sign=True) for end in self.interval)
        lead = f"{points(self.difference, sign=True)} to {self.closest}\n{low} to {high}"
        return f"{self.best if self.wins else 'not decided'}\n{lead}"


def lead(rows: Rows, other: Rows, seed: int) -> stats.Difference:
    """Exact within the budget, of `rows` less `other`: the same questions."""
    pairs = check_same_questions(other, rows)
    first, second = ([bool(row.within_budget) for row in side] for side in zip(*pairs))
    return stats.paired([a.scene for a, _ in pairs], [a.key for a, _ in pairs], first, second, seed=seed).difference()


def winner(cells: Sequence[Cell], rows: Mapping[str, Rows], seed: int) -> Winner | None:
    """Who wins, of the cells of one budget and the rows by model; None with fewer than two."""
    if len(cells) < 2:
        return None
    best = max(cells, key=lambda one: one.exact)
    leads = {one.model: lead(rows[best.model], rows[one.model], seed) for one in cells if one is not best}
    closest = min(leads, key=lambda name: leads[name].interval.low)
    found = leads[closest]
    return Winner(best.budget_ms, best.model, closest, found.difference, found.interval, found.interval.low > 0)


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Exact answers within the budget over the budget, a line for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(one.model for one in cells):
        mine = [one for one in cells if one.model == name]
        exact = np.array([(one.exact, *one.interval) for one in mine]) * 100
        ends = np.abs(exact[:, 1:] - exact[:, :1]).T
        axes.errorbar([one.budget_ms for one in mine], exact[:, 0], yerr=ends, marker="o", capsize=3, label=name)
    budgets = sorted({one.budget_ms for one in cells})
    axes.set(xscale="log", xlabel="budget of a question, ms", ylabel="exact within the budget, %", ylim=(0, 100))
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def results(
    models: Sequence[Model], budgets: Sequence[float], asked: Suite
) -> tuple[dict[tuple[str, float], Cell | str], list[Winner | None]]:
    """Measure what is missing. Returns each cell, or why there is none, and the winner at each budget."""
    found: dict[tuple[str, float], Cell | str] = {}
    rows: dict[float, dict[str, Rows]] = {budget: {} for budget in budgets}
    for model in models:
        notes = measure(model, budgets, asked)
        for budget in budgets:
            if budget in notes:
                found[model.name, budget] = notes[budget]
                continue
            rows[budget][model.name] = rows_by_id(asked.file(model, budget))
            found[model.name, budget] = cell(model.name, budget, rows[budget][model.name], asked.runtime.seed)
    at = {b: [one for one in found.values() if isinstance(one, Cell) and one.budget_ms == b] for b in budgets}
    return found, [winner(at[budget], rows[budget], asked.runtime.seed) for budget in budgets]


def main() -> int:
    """Print the table, and write it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="folder of samples")
    words = ("NAME=FOLDER", "ENGINE WEIGHTS")
    parser.add_argument("--model", nargs="+", action="append", required=True, metavar=words, dest="models")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, metavar="MS")
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--mode", choices=MODES, default="think")
    parser.add_argument("--limit", type=int, help="at most this many questions, spread evenly over tasks")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--vllm-python", type=Path, help="Python of vLLM's environment, for models that it decodes")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    budgets, split = sorted(set(chosen.budgets)), chosen.split
    try:
        models = [Model.of(words) for words in chosen.models]
        if len({model.name for model in models}) < len(models) or budgets[0] <= 0:
            raise LinesideError("expected a name of its own for each model, and budgets above 0")
        questions = suite(
            read_samples(chosen.samples, kind="qa", split=split), split=split, limit=chosen.limit
        ).questions
        runtime = Runtime.of(chosen.device, seed=chosen.seed)
        digest = suite_digest(questions)
        asked = Suite(chosen.samples, split, chosen.mode, questions, digest, VllmAt(chosen.vllm_python), runtime)
        found, winners = results(models, budgets, asked)
    except LinesideError as error:
        parser.error(str(error))
    print(f"exact within the budget (95% interval by scene), p50 / p95; {split}, n {len(questions):,}")
    table = new_table("")
    for heading in ("", *(f"{budget:g} ms" for budget in budgets)):
        table.add_column(heading)
    for model in models:
        shown = [found[model.name, budget] for budget in budgets]
        table.add_row(model.name, *(str(one) if isinstance(one, Cell) else one.partition(":")[0] for one in shown))
    table.add_row("wins", *("" if one is None else str(one) for one in winners))
    show(table)
    cells = [one for one in found.values() if isinstance(one, Cell)]
    for line in dict.fromkeys(f"{name}: {why}" for (name, _), why in found.items() if isinstance(why, str)):
        print(line)
    written = {
        "command": " ".join(["python benchmarks/budget.py", *sys.argv[1:]]),
        "cells": [asdict(one) for one in cells],
        "winners": [asdict(one) for one in winners if one is not None],
    }
    write_atomic(OUT / "budget.json", json.dumps(written, indent=2) + "\n")
    if cells:
        draw(cells, OUT / "budget.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
