"""Two evaluations of the same questions, answer by answer: what `compare` prints and the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lineside.errors import LinesideError
from lineside.judgement.schema import Row, read_rows, rows_path
from lineside.judgement.stats import Verdict, paired


class Part(BaseModel):
    """The paired difference of all questions, or of one family's or task's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    n: int
    scenes: int
    differing_scenes: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    verdict: Verdict


class Comparison(BaseModel):
    """What `compare` found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    first: str
    second: str
    only_first: int
    only_second: int
    overall: Part
    families: dict[str, Part]
    tasks: dict[str, Part]


def rows_by_id(path: Path) -> dict[str, Row]:
    """The rows beside the evaluation file at `path`. Raises LinesideError for a bad or double one."""
    rows: dict[str, Row] = {}
    for row in read_rows(rows_path(path)):
        if row.id in rows:
            raise LinesideError(f"{rows_path(path)}: question {row.id} stands there twice; each must be answered once")
        rows[row.id] = row
    return rows


def compare_rows(
    first: dict[str, Row], second: dict[str, Row], *, names: tuple[str, str] = ("first", "second"), seed: int = 0
) -> Comparison:
    """The comparison of two evaluations' rows by id. Raises LinesideError if no question is common or one differs."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise LinesideError(
            f"{names[0]} and {names[1]} share no question: paired comparison needs the same split of the same data"
        )
    for key in common:
        a, b = first[key], second[key]
        if (a.question, a.target, a.images, a.key) != (b.question, b.target, b.images, b.key):
            raise LinesideError(
                f"question {key} differs between {names[0]} and {names[1]}: they are of different data,"
                " evaluate both on the same"
            )
    pairs = [(first[key], second[key]) for key in common]
    families, tasks = sorted({a.family for a, _ in pairs}), sorted({a.key for a, _ in pairs})
    return Comparison(
        first=names[0],
        second=names[1],
        only_first=len(first) - len(common),
        only_second=len(second) - len(common),
        overall=_part(pairs, seed),
        families={name: _part([pair for pair in pairs if pair[0].family == name], seed) for name in families},
        tasks={name: _part([pair for pair in pairs if pair[0].key == name], seed) for name in tasks},
    )


def _part(pairs: Sequence[tuple[Row, Row]], seed: int) -> Part:
    found = paired(
        [a.scene for a, _ in pairs],
        [a.key for a, _ in pairs],
        [a.exact for a, _ in pairs],
        [b.exact for _, b in pairs],
        seed=seed,
    )
    return Part(
        n=found.n,
        scenes=found.scenes,
        differing_scenes=found.differing_scenes,
        first=found.first,
        second=found.second,
        difference=found.difference,
        interval=found.interval,
        verdict=found.verdict,
    )
