"""Content of a run folder for the report. A missing part is left out; a broken one is an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lineside.errors import LinesideError
from lineside.judgement.paired import Comparison, compare_rows, rows_by_id
from lineside.judgement.plots import Series
from lineside.judgement.schema import MODES, Evaluation, Mode, Row, read_evaluation, rows_path
from lineside.recipe import MARGIN, load_run_recipe
from lineside.stages import STAGES, entry_of, is_control
from lineside.strict import read_record
from lineside.training.cost import Cost, read_costs
from lineside.training.metrics import WARNINGS, read_metrics

SPLITS = ("heldout", "shifted", "dev", "train")
MAX_CURVES = 9  # of a stage
MAX_POINTS = 400  # of a curve: more are not visible
# Metrics that show how a stage went, in this order; the others (seconds, rates) stay in TensorBoard.
TELLING = (
    "loss",
    "loss/answer",
    "loss/trace",
    "probe/exact",
    "probe/valid",
    "reward",
    "exact",
    "valid",
    "dead",
    "entropy",
    "length",
    "unfinished",
    "clip/high",
    "clip/low",
    "sampler_gap",
    "gradient_norm",
)
NOT_CURVES = ("step", "time", "progress")


class Finding(NamedTuple):
    """Two stages compared on a split in a mode."""

    split: str
    mode: Mode
    found: Comparison


@dataclass(frozen=True, slots=True)
class Run:
    """A run so far. `evaluations` are in pipeline order; `main` are those of one split and mode."""

    folder: Path
    recipe: str
    evaluations: tuple[Evaluation, ...]
    main: tuple[Evaluation, ...]
    rows: dict[tuple[str, Mode], dict[str, dict[str, Row]]]  # by split and mode, then by stage and id
    curves: dict[str, list[Series]]
    costs: dict[str, Cost]  # by stage
    data: dict[str, Any] | None  # the card of its samples (`lineside.judgement.data_card`)
    margin: float = MARGIN  # an accepted loss, by its recipe
    warnings: dict[str, list[str]] = field(default_factory=dict)  # of each stage, told while it trained

    @property
    def pictures(self) -> Path:
        """Folder of the small pictures that the evaluations kept."""
        return self.folder / "evaluation" / "pictures"

    @property
    def main_rows(self) -> dict[str, dict[str, Row]]:
        """Rows of `main`, by stage and id."""
        return self.rows.get((self.main[0].split, self.main[0].mode), {}) if self.main else {}

    @property
    def result(self) -> Evaluation | None:
        """The evaluation of the run's result: of `main`, the last stage that is no control."""
        stages = [e for e in self.main if not is_control(e.stage)] or list(self.main)
        return stages[-1] if stages else None

    @property
    def suites(self) -> list[Evaluation]:
        """The evaluations of the result's stage and mode: first that of the result, then those of other suites."""
        if (result := self.result) is None:
            return []
        same = [e for e in self.evaluations if (e.stage, e.mode) == (result.stage, result.mode) and e is not result]
        return [result, *same]


def read_run(folder: Path) -> Run:
    """Reads `runs/<name>`. Raises LinesideError if it is not a run folder, or naming a broken evaluation or card."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise LinesideError(
            f"{folder}: {what}; expected the folder of a run (`lineside train`) or of samples (`lineside label`)"
        )
    if not is_run(folder):
        runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run(path))
        there = f"; it holds the runs {', '.join(runs[:8])}: name one of them" if runs else ""
        raise LinesideError(
            f"{folder}: neither a run (recipe.yaml, evaluation/, a folder for each stage) nor samples "
            f"(<kind>-<split>-*.parquet){there}"
        )
    paths = sorted((folder / "evaluation").glob("*.json")) if (folder / "evaluation").is_dir() else []
    # Those of other engines and weights tell how a stage may be served, not what it has learnt.
    found = {path: one for path in paths if (one := read_evaluation(path)).is_plain}
    evaluations = sorted(found.values(), key=_order)
    main = main_suite(evaluations)
    path_of = {evaluation.name: path for path, evaluation in found.items()}
    rows: dict[tuple[str, Mode], dict[str, dict[str, Row]]] = {}
    for e in evaluations:
        if rows_path(path_of[e.name]).exists():
            rows.setdefault((e.split, e.mode), {})[e.stage] = rows_by_id(path_of[e.name])
    recipe, card = folder / "recipe.yaml", folder / "data.json"
    return Run(
        folder=folder,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        evaluations=tuple(evaluations),
        main=tuple(main),
        rows=rows,
        curves={stage: curves for stage in STAGES if (curves := _curves(folder / stage / "metrics.jsonl"))},
        costs=read_costs(folder, STAGES),
        data=_card(card) if card.is_file() else None,
        margin=_margin(recipe),
        warnings={stage: lines for stage in STAGES if (lines := _warnings(folder / stage / WARNINGS))},
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a part of a run: its recipe, evaluations, or a stage's metrics."""
    kept = ("recipe.yaml", "evaluation", "data.json", *(f"{stage}/metrics.jsonl" for stage in STAGES))
    return any((folder / name).exists() for name in kept)


def _margin(recipe: Path) -> float:
    """`evaluate.margin` of a run's recipe; the default if there is none that this version can read."""
    try:
        return load_run_recipe(recipe).evaluate.margin
    except LinesideError:
        return MARGIN


def _card(path: Path) -> dict[str, Any]:
    return read_record(dict[str, Any], path, "not a data card; delete it to write it again")


def paired_findings(run: Run, *, seed: int = 0) -> list[Finding]:
    """Each stage compared with the one before it on every split and in both modes, and rlvr with each control.

    If two stages were evaluated on different questions, only the common ones are compared.
    """
    findings: list[Finding] = []
    how: dict[str, Any] = {"margin": run.margin, "common_only": True, "seed": seed}
    for (split, mode), rows in run.rows.items():
        pairs = list(pairwise(stage for stage in rows if not is_control(stage)))
        pairs += [(stage, place) for stage in rows if is_control(stage) and (place := entry_of(stage).slot) in rows]
        findings += [Finding(split, mode, compare_rows(rows[a], rows[b], names=(a, b), **how)) for a, b in pairs]
    return findings


def _order(evaluation: Evaluation) -> tuple[int, int, int, str]:
    def place(names: Iterable[str], name: str) -> int:
        listed = list(names)
        return listed.index(name) if name in listed else len(listed)

    return (
        place(SPLITS, evaluation.split),
        place(MODES, evaluation.mode),
        place(STAGES, evaluation.stage),
        evaluation.stage,
    )


def main_suite(evaluations: list[Evaluation]) -> list[Evaluation]:
    """The evaluations of one suite for a page or a closing table: those with the first one's split and mode."""
    if not evaluations:
        return []
    split, mode = evaluations[0].split, evaluations[0].mode
    return [e for e in evaluations if (e.split, e.mode) == (split, mode)]


def _warnings(path: Path) -> list[str]:
    return [str(row.get("line")) for row in read_metrics(path)] if path.is_file() else []


def _curves(path: Path) -> list[Series]:
    """The chosen metrics of a metrics.jsonl, thinned evenly to what is visible."""
    if not path.is_file():
        return []
    rows = read_metrics(path)
    names = {n for row in rows for n, v in row.items() if n not in NOT_CURVES and isinstance(v, int | float)}
    telling = [name for name in TELLING if name in names]
    curves: list[Series] = []
    for name in telling[:MAX_CURVES]:
        points = [(float(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        thin = -(-len(points) // MAX_POINTS)
        if len(points) > 1:
            steps, values = zip(*_thinned(points, thin))
            curves.append(Series(name.replace("/", " ").replace("_", " "), steps, values))
    return curves


def _thinned(points: list[tuple[float, float]], every: int) -> list[tuple[float, float]]:
    """Means of runs of `every` points."""
    runs = [points[i : i + every] for i in range(0, len(points), every)]
    return [(sum(s for s, _ in run) / len(run), sum(v for _, v in run) / len(run)) for run in runs]
