"""Paired comparison of two evaluations of the same questions: `compare` decides by it and the report shows it.

The gate is a non-inferiority test (Piaggio et al., CONSORT extension for non-inferiority trials, JAMA 2012). It does
not ask whether the data show a loss, which few data never do, but whether they exclude a loss beyond the margin. In
addition no task may show harm: a one-sided test at `HARM`, with Holm's correction over the tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lineside.errors import LinesideError
from lineside.judgement import stats
from lineside.judgement.schema import Count, Evaluation, Rate, Row, Signed, read_rows, rows_path
from lineside.recipe import MARGIN

HARM = 0.05  # level of the test for harm
ALL = "all tasks"  # name of the overall part, beside the names of families and tasks
NAMED = 3  # questions named in a refusal

GateVerdict = Literal["better", "not worse", "worse", "too little data"]
Pair = tuple[Row, Row]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Strict):
    """The paired difference over all questions, or over one family's or task's."""

    n: Count = Field(description="questions compared")
    scenes: Count
    differing_scenes: Count = Field(description="scenes in which the two have different numbers of exact answers")
    first: Rate = Field(description="share exact of the first, macro over tasks")
    second: Rate = Field(description="share exact of the second, macro over tasks")
    difference: Signed = Field(description="second less first")
    interval: tuple[Signed, Signed] = Field(description="95% interval of the difference, bootstrapped by scene")
    harm: Rate | None = Field(
        description="of a task or suite: one-sided p of no harm (sign-flip test by scene), Holm-adjusted over all"
    )
    verdict: GateVerdict
    scenes_needed: Count | None = Field(
        description="too little data: about so many scenes more give the verdict `not worse` with probability 80% if"
        " the two are equally good; null for another verdict, or with margin 0"
    )


class Comparison(_Strict):
    """The output of `compare --json`. Rates and differences are shares: 0.03 is three points."""

    first: str = Field(description="<stage>-<split>-<mode> of the first evaluation, its path where both have the same")
    second: str
    margin: Rate = Field(description="a loss of up to this much counts as none")
    verdict: GateVerdict = Field(
        description="worse: a part is. too little data: overall or a family is, and no part is worse. better: overall"
        " is, and no family is undecided. not worse: all else"
    )
    only_first: Count = Field(description="questions left out since the second lacks them (--common-only)")
    only_second: Count
    overall: Part
    families: dict[str, Part]
    tasks: dict[str, Part] = Field(description="by family/task")
    suites: dict[str, Part] = Field(
        default={}, description="by suite, where several were asked; they decide as tasks do"
    )

    def parts(self, verdict: GateVerdict) -> dict[str, Part]:
        """The deciding parts with this verdict, by name: a task or suite decides only if it is `worse`."""
        small = {**self.tasks, **self.suites} if verdict == "worse" else {}
        named = {ALL: self.overall, **self.families, **small}
        return {name: part for name, part in named.items() if part.verdict == verdict}

    @property
    def because(self) -> str:
        """The parts that decided on `worse` or `too little data`, in a few words; "" for other verdicts."""
        parts = self.parts(self.verdict)
        if self.verdict == "worse":
            return ", ".join(parts)
        if self.verdict == "too little data":
            needed = [f"{name} +{p.scenes_needed:,}" if p.scenes_needed else name for name, p in parts.items()]
            return f"scenes needed: {', '.join(needed)}"
        return ""


def comparison_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of the output of `compare --json`."""
    schema = Comparison.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def rows_by_id(path: Path) -> dict[str, Row]:
    """The rows beside the evaluation file at `path`. Raises LinesideError for a bad or repeated one."""
    rows: dict[str, Row] = {}
    for row in read_rows(rows_path(path)):
        if row.id in rows:
            raise LinesideError(f"{rows_path(path)}: question {row.id} occurs twice; each must be answered once")
        rows[row.id] = row
    return rows


def check_same_suite(first: Evaluation, second: Evaluation, *, across_modes: bool = False) -> None:
    """Raises LinesideError for evaluations of different splits, of different modes without `across_modes`, and for
    different limits of the response's length if the shorter one cut off responses."""
    if first.split != second.split:
        raise LinesideError(
            f"{first.name} is of the split {first.split}, {second.name} of {second.split}:"
            " evaluate both models on the same split"
        )
    if first.mode != second.mode and not across_modes:
        raise LinesideError(
            f"{first.name} is in the mode {first.mode}, {second.name} in {second.mode}: evaluate both in the same"
            " mode, or give --across-modes if the modes are what you compare"
        )
    short, long = sorted((first, second), key=lambda e: e.decoding.max_new_tokens)
    if short.decoding.max_new_tokens < long.decoding.max_new_tokens and short.unfinished > 0:
        raise LinesideError(
            f"{short.name} was evaluated with max_new_tokens {short.decoding.max_new_tokens}, which cut off"
            f" {short.unfinished:.1%} of its responses; {long.name} with {long.decoding.max_new_tokens}: evaluate both"
            " with the same"
        )


def compare_rows(
    first: Mapping[str, Row],
    second: Mapping[str, Row],
    *,
    names: tuple[str, str] = ("first", "second"),
    margin: float = MARGIN,
    common_only: bool = False,
    suites: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
) -> Comparison:
    """The comparison of two evaluations' rows by id. `suites`: the ids of each suite, where the rows are of several.

    Raises LinesideError if a question differs between the two, none is common, or (without `common_only`) one side
    lacks any.
    """
    pairs = _pairs(first, second, names=names, common_only=common_only)
    draws = _draws(pairs, seed)
    of_suites = {
        name: _draws([(first[id], second[id]) for id in sorted(ids)], seed) for name, ids in (suites or {}).items()
    }
    kinds = sorted({(a.family, a.key) for a, _ in pairs})
    tasks_of = {family: [key for other, key in kinds if other == family] for family, _ in kinds}
    harms = stats.holm([draws.harm([key]) for _, key in kinds] + [some.harm() for some in of_suites.values()])
    overall = _part(draws.difference(), margin)
    families = {family: _part(draws.difference(keys), margin) for family, keys in tasks_of.items()}
    tasks = {key: _part(draws.difference([key]), margin, harm) for (_, key), harm in zip(kinds, harms)}
    shown = {
        name: _part(some.difference(), margin, harm)
        for (name, some), harm in zip(of_suites.items(), harms[len(kinds) :])
    }
    return Comparison(
        first=names[0],
        second=names[1],
        margin=margin,
        verdict=_gate(overall, families.values(), [*tasks.values(), *shown.values()]),
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        overall=overall,
        families=families,
        tasks=tasks,
        suites=shown,
    )


def check_same_questions(
    first: Mapping[str, Row], second: Mapping[str, Row], *, names: tuple[str, str] = ("first", "second")
) -> list[Pair]:
    """The pairs of two evaluations' rows by id. Raises LinesideError if a question differs, or only one has it."""
    return _pairs(first, second, names=names, common_only=False)


def _draws(pairs: Iterable[Pair], seed: int) -> stats.PairedDraws:
    """Exactness of both, by scene and task."""
    listed = list(pairs)
    return stats.paired(
        [a.scene for a, _ in listed],
        [a.key for a, _ in listed],
        [a.exact for a, _ in listed],
        [b.exact for _, b in listed],
        seed=seed,
    )


def _pairs(
    first: Mapping[str, Row], second: Mapping[str, Row], *, names: tuple[str, str], common_only: bool
) -> list[Pair]:
    common = sorted(first.keys() & second.keys())
    if not common:
        raise LinesideError(
            f"{names[0]} and {names[1]} share no question: a paired comparison needs the same split of the same data"
        )
    for key in common:
        if different := _different(first[key], second[key]):
            raise LinesideError(
                f"question {key} differs between {names[0]} and {names[1]} in its {', '.join(different)}: they come"
                " from different data, evaluate both on the same"
            )
    lacking = [
        f"{name} lacks {len(missing):,} of {len(missing) + len(common):,} questions ({', '.join(missing[:NAMED])}"
        f"{' ...' if len(missing) > NAMED else ''})"
        for name, missing in zip(names, (sorted(second.keys() - first.keys()), sorted(first.keys() - second.keys())))
        if missing
    ]
    if lacking and not common_only:
        raise LinesideError(
            f"{'; '.join(lacking)}: evaluate both on the same suite, or give --common-only to compare"
            f" the {len(common):,} questions that both answered"
        )
    return [(first[key], second[key]) for key in common]


def _different(a: Row, b: Row) -> list[str]:
    """The fields in which the same question differs between two evaluations."""
    seen = {"question": "text", "target": "target", "images": "pictures", "key": "task", "scene": "scene"}
    return [name for field, name in seen.items() if getattr(a, field) != getattr(b, field)]


def _part(found: stats.Difference, margin: float, harm: float | None = None) -> Part:
    verdict = part_verdict(found.interval, margin, harm)
    needed = None
    if verdict == "too little data" and margin > 0:
        needed = max(1, stats.scenes_for(found.spread, margin) - found.scenes)
    return Part(
        n=found.n,
        scenes=found.scenes,
        differing_scenes=found.differing_scenes,
        first=found.first,
        second=found.second,
        difference=found.difference,
        interval=found.interval,
        harm=harm,
        verdict=verdict,
        scenes_needed=needed,
    )


def part_verdict(interval: stats.Interval, margin: float, harm: float | None) -> GateVerdict:
    """The verdict of one part. A certain loss within the margin is `not worse`.

    `worse` follows from the interval, but for a task from the corrected test: by chance one interval in twenty excludes
    0.
    """
    if interval.low > 0:
        return "better"
    if interval.low >= -margin:
        return "not worse"
    worse = interval.high < 0 if harm is None else harm <= HARM
    return "worse" if worse else "too little data"


def _gate(overall: Part, families: Iterable[Part], tasks: Iterable[Part]) -> GateVerdict:
    """The overall verdict; see `Comparison.verdict`. `tasks`: and suites."""
    verdicts = {overall.verdict, *(part.verdict for part in families)}
    if "worse" in verdicts or any(part.verdict == "worse" for part in tasks):
        return "worse"
    return "too little data" if "too little data" in verdicts else overall.verdict
