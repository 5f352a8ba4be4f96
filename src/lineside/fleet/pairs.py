"""What a trial shows: the answers of two versions to the same live questions, as the paired rows that a gate takes.

Only questions whose truth was told count, and a truth that is told for failures alone favours the challenger: tell it
for a random share, or for all. Pairs that differ and have no truth are the ones to look at first: where both answer the
same, the truth changes nothing in the difference. Questions of one frame are one scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lineside.data.tabular import AS_FOUND
from lineside.data.tabular import Form as Written
from lineside.judgement.outcomes import NOISE, Account, Logged, join, read_file, settle
from lineside.judgement.outcomes import Row as LogRow
from lineside.judgement.schema import Row
from lineside.judgement.typed import Form
from lineside.registry.store import Version
from lineside.serving.outcomes import VERSION_DIGITS, Log
from lineside.types import Target
from lineside.verify.text import normalise
from lineside.verify.verifiers import answer_to, verify


@dataclass(slots=True)
class Pairs:
    """`first`, `second`: rows by id. `count`: of all, with or without a truth; `agree`: give the same answer; `told`:
    have a truth. `account`: what became of each truth."""

    first: dict[str, Row] = field(default_factory=dict)
    second: dict[str, Row] = field(default_factory=dict)
    count: int = 0
    agree: int = 0
    told: int = 0
    account: Account = field(default_factory=Account)
    open: list[dict[str, str]] = field(default_factory=list)
    """Pairs that differ and have no truth: id, frame, question, an empty truth, both answers."""


def read_pairs(
    log: Path, first: Version, second: Version, forms: Mapping[str, Form], truths: Sequence[Path] = (),
    written: Written = AS_FOUND,
) -> Pairs:  # fmt: skip
    """The pairs of two versions in a log. `forms`: how the answers of each task are compared, where the log does not
    say it. `truths`: tables that tell of its answers, beside what was told to the server; `written`: how.

    Raises LinesideError for a file that is no log or no table.
    """
    found, pairs = Pairs(), {pair[0].place.id: pair for pair in _answered(Log(log), first, second)}
    rows = [row for row, *_ in pairs.values() if row.truth is not None]
    rows += [replace(row, has_answer=False) for path in truths for row in read_file(path, {}, found.account, written)]
    outcomes = join(rows, [row.place for row, *_ in pairs.values()], forms, found.account, decimal=written.decimal)
    told = [one for one in outcomes if one.truth is not None]
    for settled in settle(told, forms, NOISE, found.account):
        for one in settled.told:
            name = one.answer.id
            found.first[name], found.second[name] = (
                _row(one.answer, settled.task, settled.target, answer) for answer in pairs[name][1:]
            )
    known = {one.answer.id for one in told}
    found.count, found.told = len(pairs), len(known)
    for name, (row, one, other) in pairs.items():
        same = normalise(one) == normalise(other)
        found.agree += same
        if name not in known and not same:
            about = {"id": name, "frame": row.place.frame, "question": row.place.question, "truth": ""}
            found.open.append({**about, "first": one, "second": other})
    return found


def _answered(log: Log, first: Version, second: Version) -> Iterator[tuple[LogRow, str, str]]:
    """Rows, and what the first and the second version answered, whichever of them was used."""
    hashes, shadows = [one.model[:VERSION_DIGITS] for one in (first, second)], log.shadows()
    for row in log.rows():
        version, answer = shadows.get(row.place.id, ("", None))
        answers = {row.place.version: row.place.answer or "", version: answer or ""}
        if answers.keys() == set(hashes):
            yield row, answers[hashes[0]], answers[hashes[1]]


def _row(asked: Logged, key: str, target: Target, answer: str) -> Row:
    """An answer as a row. What a log does not keep is 0 or null: a comparison looks at `exact` alone."""
    verdict, (family, _, task) = verify(answer, target), key.partition("/")
    return Row(
        id=asked.id, scene=asked.unit, family=family, task=task, question=asked.question, target=target.to_json(),
        reference=answer_to(target), images=asked.frame.split(",") if asked.frame else [], text=answer, trace=None,
        answer=answer, exact=verdict.exact, reward=verdict.reward, reason=verdict.reason, trace_class="empty",
        trace_problem="", facts=None, tokens=0, answer_tokens=0, finished=True, confidence=0.0, latency_ms=None,
        budget_ms=None, within_budget=None, weight=None, blind=None, blind_exact=None, classifier=None,
        classifier_exact=None,
    )  # fmt: skip
