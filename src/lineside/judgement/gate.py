"""The gate: may a challenger take the champion's place? Pure: rows in, verdict out.

Both models answer the same suites, and everything is compared in pairs, by scene. Seven questions must all be answered
well; the first is that of `paired`:

- exact match over all suites together: not worse overall and in every family (non-inferiority by `margin`), and no harm
  in any task or suite (sign-flip test with Holm's correction over all of them);
- valid traces: the share is not lower by more than `margin`;
- confidence: the Brier score of calibrated confidence is not higher by more than `margin`;
- length: responses are not longer by more than `longer`, since time on the line follows their tokens;
- latency: where both were timed on an idle machine, the 95th percentile is not longer by more than `longer`;
- forgetting: the perplexity of captions of all suites together, given their pictures, is not higher by more than
  `forgets`, and no suite's is surely higher than that (`forgetting`); without captions it is not measured;
- records: no suite, and no cell or camera in one, has records that both models surely contradict: such a suite measures
  nothing, and a model that was trained on the same week has learnt it (`contradicted`).

Besides, the challenger must be better on the suites that the owner names, such as the week for which it was trained.
Refused: the data show a loss. Too little data: they show neither that nor the contrary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lineside.errors import LinesideError
from lineside.judgement import stats
from lineside.judgement.contradicted import Changed, Contradicted, Judged, contradicted
from lineside.judgement.forgetting import Likelihood
from lineside.judgement.forgetting import change as change_of
from lineside.judgement.paired import ALL, Comparison, compare_rows
from lineside.judgement.schema import Count, Evaluation, Row
from lineside.types import Outcome

LONGER = 0.2  # a response may take so much more tokens, or time
FORGETS = 0.1  # the perplexity of captions may grow by so much
CAPTION_SCENES = 20  # at least: a bootstrap of fewer tells too narrow an interval
FRAMES = 60  # questions that a refusal shows
NO_CAPTIONS = "no suite has captions, or the champion was trained without any beside questions (sft.caption_replay: 0)"

Found = Literal["passed", "refused", "too little data", "not measured"]
Pair = tuple[Row, Row]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One question of the gate beside exact match. A share, or for length, latency and forgetting a ratio."""

    verdict: Found
    what: str = Field(description="what is compared, in words")
    n: Count = Field(description="questions compared")
    first: float | None = Field(default=None, description="of the champion")
    second: float | None = Field(default=None, description="of the challenger")
    change: float | None = Field(
        default=None, description="second less first; of length, latency and forgetting second over first"
    )
    interval: tuple[float, float] | None = Field(default=None, description="95% interval of the change")
    bound: float | None = Field(default=None, description="the change passes up to here")
    note: str = Field(default="", description="why it was not measured, or where it is worst")


class Gate(_Frozen):
    """The verdict of a gate: the output of `gate --json`."""

    schema_version: Literal[1] = 1
    champion: str
    challenger: str
    outcome: Outcome
    because: list[str] = Field(description="what decided, the gravest first; empty if it passed")
    exact: Comparison = Field(description="over all suites together; `first` is the champion")
    checks: dict[str, Check] = Field(description="valid traces, confidence, length, latency, forgetting, records")
    better_on: dict[str, Found] = Field(description="suites on which the challenger must be better")
    contradicted: list[Contradicted] = Field(default=[], description="suites and places whose records cannot be right")
    suites: dict[str, str] = Field(description="the digest of each suite's questions, by its name")
    left_out: dict[str, str] = Field(default={}, description="suites that were not asked, with the owner's reason")
    mode: str
    seed: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What both models answered to one suite. Each side is an evaluation and its rows by id. `captions`: how likely
    those of the suite are to both."""

    name: str
    first: tuple[Evaluation, Mapping[str, Row]]
    second: tuple[Evaluation, Mapping[str, Row]]
    captions: Sequence[Likelihood] = ()


def gate(
    answered: Sequence[Answered],
    *,
    names: tuple[str, str],
    margin: float,
    longer: float = LONGER,
    forgets: float = FORGETS,
    better_on: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
    changed: Changed | None = None,
    seed: int = 0,
) -> Gate:
    """The verdict. `names`: champion and challenger. `left_out`: suites that were not asked, with the reason.
    `changed`: tests whether the pictures of a place have changed, where its records are contradicted. Raises
    LinesideError for suites that are not the same questions on both sides, for none, and for a name of `better_on` that
    is no suite."""
    if not answered:
        raise LinesideError("the gate needs at least one suite")
    if unknown := set(better_on) - {one.name for one in answered}:
        known = ", ".join(one.name for one in answered)
        raise LinesideError(f"no suite named {', '.join(sorted(unknown))}; the suites are: {known}")
    first, second, ids = _together(answered)
    exact = compare_rows(
        first, second, names=names, margin=margin, suites=ids if len(answered) > 1 else None, seed=seed
    )
    pairs = [(first[id], second[id]) for id in sorted(first)]
    checks = {
        "valid traces": _valid_traces(pairs, margin, seed),
        "confidence": _confidence(pairs, margin, seed),
        "length": _length(pairs, longer, seed),
        "latency": _latency(answered, longer),
        "forgetting": _forgetting(answered, forgets, seed),
    }
    judged = Judged.of({one.name: [(row, one.second[1][id]) for id, row in one.first[1].items()] for one in answered})
    doubted = contradicted(judged, changed)
    checks["records"] = _records(judged, doubted)
    wanted: dict[str, Found] = {name: _better(exact, name, alone=len(answered) == 1) for name in better_on}
    outcome, because = _decide(exact, checks, wanted, doubted)
    return Gate(
        champion=names[0],
        challenger=names[1],
        outcome=outcome,
        because=because,
        exact=exact,
        checks=checks,
        better_on=wanted,
        contradicted=doubted,
        suites={one.name: one.first[0].provenance.data for one in answered},
        left_out=dict(left_out or {}),
        mode=answered[0].first[0].mode,
        seed=seed,
    )


def gate_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of the output of `gate --json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Gate.model_json_schema(mode="serialization")}


def lost(answered: Sequence[Answered], found: Gate, most: int = FRAMES) -> list[tuple[str, Row, Row]]:
    """(suite, champion's row, challenger's row) of questions that only the champion answers exactly: of the parts that
    refuse the challenger, or of all parts if exact match does not. Those of the challenger's surest answers first."""
    bad = found.exact.parts("worse")
    every = not bad or bad.keys() == {ALL}
    some = [
        (one.name, first, one.second[1][id])
        for one in answered
        for id, first in one.first[1].items()
        if first.exact and not one.second[1][id].exact
        if every or bad.keys() & {first.key, first.family, one.name}
    ]
    return sorted(some, key=lambda triple: (-triple[2].confidence, triple[1].id))[:most]


def _together(answered: Sequence[Answered]) -> tuple[dict[str, Row], dict[str, Row], dict[str, list[str]]]:
    """The rows of all suites, by suite and id, and the ids of each. A question that is in two suites counts twice, but
    its scene once: scenes keep their names."""
    sides: tuple[dict[str, Row], dict[str, Row]] = {}, {}
    ids: dict[str, list[str]] = {}
    for one in answered:
        for rows, (_, found) in zip(sides, (one.first, one.second)):
            rows |= {f"{one.name} {id}": row for id, row in found.items()}
        ids[one.name] = [f"{one.name} {id}" for id in one.first[1]]
    return *sides, ids


def within(worst: float, best: float, bound: float) -> Found:
    """The verdict on a change that is bad when large: its interval, and up to where it passes."""
    if worst <= bound:
        return "passed"
    return "refused" if best > 0 else "too little data"


def _paired(pairs: Sequence[Pair], value: Callable[[Row], float], seed: int) -> stats.Difference:
    scenes, tasks = [a.scene for a, _ in pairs], ["all"] * len(pairs)
    return stats.paired(
        scenes, tasks, [value(a) for a, _ in pairs], [value(b) for _, b in pairs], seed=seed
    ).difference()


def _valid_traces(pairs: Sequence[Pair], margin: float, seed: int) -> Check:
    what = "share of valid traces"
    traced = [(a, b) for a, b in pairs if a.thinking and b.thinking]
    if not traced:
        return Check(verdict="not measured", what=what, n=0, note="no question was asked with thinking on")
    found = _paired(traced, lambda row: float(row.trace_class == "valid"), seed)
    return _check(what, found, within(-found.interval.low, -found.interval.high, margin), -margin)


def _confidence(pairs: Sequence[Pair], margin: float, seed: int) -> Check:
    what = "Brier score of calibrated confidence (0 is best)"
    sure = [(a, b) for a, b in pairs if a.calibrated is not None and b.calibrated is not None]
    if not sure:
        return Check(verdict="not measured", what=what, n=0, note="no task is calibrated in both models")
    found = _paired(sure, lambda row: ((row.calibrated or 0.0) - row.exact) ** 2, seed)
    return _check(what, found, within(found.interval.high, found.interval.low, margin), margin)


def _check(what: str, found: stats.Difference, verdict: Found, bound: float) -> Check:
    return Check(
        verdict=verdict,
        what=what,
        n=found.n,
        first=found.first,
        second=found.second,
        change=found.difference,
        interval=found.interval,
        bound=bound,
    )


def _length(pairs: Sequence[Pair], longer: float, seed: int) -> Check:
    what = "tokens of a response"
    tokens = [[row.tokens for row in side] for side in zip(*pairs)]
    found = stats.ratio([a.scene for a, _ in pairs], tokens[1], tokens[0], seed=seed)
    low, high = found.interval
    return Check(
        verdict=within(high - 1, low - 1, longer),
        what=what,
        n=len(pairs),
        first=sum(tokens[0]) / len(pairs),
        second=sum(tokens[1]) / len(pairs),
        change=found.value,
        interval=found.interval,
        bound=1 + longer,
    )


def _latency(answered: Sequence[Answered], longer: float) -> Check:
    """The suite with the most timed questions. Times of different machines are not compared."""
    what = "milliseconds of a question alone, 95th percentile"
    timed = [
        (first.latency.measured, first.latency.p95_ms, second.latency.p95_ms)
        for first, second in ((one.first[0], one.second[0]) for one in answered)
        if first.latency and second.latency and first.provenance.machine == second.provenance.machine
        if first.latency.p95_ms and second.latency.p95_ms
    ]
    if not timed:
        told = answered[0].second[0].latency_note.removeprefix("not measured: ")
        note = told or "not timed on the same idle machine, with enough questions"
        return Check(verdict="not measured", what=what, n=0, note=note)
    n, first, second = max(timed)
    verdict: Found = "passed" if second <= first * (1 + longer) else "refused"
    return Check(verdict=verdict, what=what, n=n, first=first, second=second, change=second / first, bound=1 + longer)


def _forgetting(answered: Sequence[Answered], forgets: float, seed: int) -> Check:
    """The captions of all suites together; or the worst suite, if its whole interval is above the bound."""
    what = "perplexity of captions given their pictures"
    parts = [("", [text for one in answered for text in one.captions]), *((one.name, one.captions) for one in answered)]
    scenes = {name: len({text.scene for text in texts}) for name, texts in parts}
    found = [
        (name, made)
        for name, texts in parts
        if scenes[name] >= CAPTION_SCENES and (made := change_of(texts, seed=seed)) is not None
    ]
    if not found:
        note = f"captions of {scenes['']} scenes; {CAPTION_SCENES} are needed" if scenes[""] else NO_CAPTIONS
        return Check(verdict="not measured", what=what, n=len(parts[0][1]), note=note)
    surely = [(name, made) for name, made in found if made.interval[0] > 1 + forgets]
    where, worst = max(surely, key=lambda one: one[1].interval[0], default=found[0])
    low, high = worst.interval
    return Check(
        verdict=within(high - 1, low - 1, forgets),
        what=what,
        n=worst.n,
        first=worst.before,
        second=worst.after,
        change=worst.ratio,
        interval=worst.interval,
        bound=1 + forgets,
        note=where,
    )


def _records(judged: Judged, doubted: Sequence[Contradicted]) -> Check:
    """The worst of what is contradicted; else the share over all suites, which calibration alone explains."""
    what = "share of records that both models surely contradict"
    if not judged.ratios:
        return Check(verdict="not measured", what=what, n=0, note="no task is calibrated in both models")
    if not doubted:
        share, interval = judged.estimate(judged.ratios)
        return Check(verdict="passed", what=what, n=len(judged.ratios), change=share, interval=interval)
    worst = max(doubted, key=lambda one: one.interval[0])
    return Check(
        verdict="refused", what=what, n=worst.n, change=worst.share, interval=worst.interval, note=worst.where
    )  # fmt: skip


def _better(exact: Comparison, name: str, *, alone: bool) -> Found:
    """Whether the challenger is better on a suite: its interval lies above 0."""
    part = exact.overall if alone else exact.suites[name]
    if part.verdict == "better":
        return "passed"
    return "too little data" if part.difference > 0 else "refused"


def _decide(
    exact: Comparison, checks: Mapping[str, Check], better_on: Mapping[str, Found], doubted: Sequence[Contradicted]
) -> tuple[Outcome, list[str]]:
    """The outcome, and what decided it. A suite that measures nothing comes first."""
    reasons: dict[Found, list[str]] = {"refused": [one.told for one in doubted], "too little data": []}
    if exact.verdict == "worse":
        reasons["refused"] += [f"exact match is worse: {exact.because}"]
    elif exact.verdict == "too little data":
        reasons["too little data"] += [f"exact match, {exact.because}"]
    for name, check in checks.items():
        if check.verdict in reasons and name != "records":
            told = "is worse" if check.verdict == "refused" else "may be worse"
            where = f" on {check.note}" if check.note else ""
            reasons[check.verdict] += [f"{name} {told}{where}: {_told(check)}"]
    for name, found in better_on.items():
        if found in reasons:
            reasons[found] += [f"not shown to be better on {name}"]
    return outcome_of([found for found, told in reasons.items() if told]), (
        reasons["refused"] or reasons["too little data"]
    )


def outcome_of(found: Collection[Found]) -> Outcome:
    """The outcome by what each question of the gate found: the gravest decides."""
    return "refused" if "refused" in found else "too little data" if "too little data" in found else "passed"


def _told(check: Check) -> str:
    interval = f" ({check.interval[0]:.3f} to {check.interval[1]:.3f})" if check.interval else ""
    return f"{check.what} {check.first:.3g} before, {check.second:.3g} now, change {check.change:.3g}{interval}"
