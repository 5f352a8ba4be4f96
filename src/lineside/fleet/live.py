"""What a trial shows: the answers of two versions to the same live questions, as the paired rows that a gate takes.

Only questions whose truth was told count, and a truth that is told for failures alone favours the challenger: tell it
for a random share, or for all. Pairs that differ and have no truth are the ones to look at first: where both answer the
same, the truth changes nothing in the difference. Questions of one frame are one scene.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lineside.errors import LinesideError
from lineside.judgement.schema import Row, TypedAnswer
from lineside.judgement.typed import TEXT, Form, read_forms
from lineside.registry.store import Registry, Version
from lineside.serving.outcomes import judge_truth
from lineside.verify.text import normalise

DIGITS = 16  # of a model's hash that a log keeps
NO_TASK = "live/other"


@dataclass(slots=True)
class Live:
    """`first`, `second`: rows by id. `pairs`: all, also those without a truth; `agree`: of them give the same answer;
    `told`: have a truth."""

    first: dict[str, Row] = field(default_factory=dict)
    second: dict[str, Row] = field(default_factory=dict)
    pairs: int = 0
    agree: int = 0
    told: int = 0
    unusable: int = 0
    """Pairs whose truth is no answer to their question, or that cannot be compared."""
    open: list[dict[str, str]] = field(default_factory=list)
    """Pairs that differ and have no truth: id, frame, question, both answers."""


def live(log: Path, first: Version, second: Version, forms: Mapping[str, Form]) -> Live:
    """The pairs of two versions in a log. `forms`: how the answers of each task are compared, by family/task.

    Raises LinesideError for a file that is no log.
    """
    found, hashes = Live(), (first.model[:DIGITS], second.model[:DIGITS])
    for row, one, other in _pairs(log, hashes):
        found.pairs += 1
        same = normalise(one.text or "") == normalise(other.text or "")
        found.agree += same
        found.told += row["truth"] is not None
        if row["truth"] is None:
            if not same:
                told = {"id": row["id"], "frame": row["frame"], "question": row["question"]}
                found.open.append({**told, "first": one.text or "", "second": other.text or ""})
            continue
        rows = [_row(row, typed, forms.get(typed.task or "")) for typed in (one, other)]
        if rows[0] is None or rows[1] is None or rows[0].key != rows[1].key:
            found.unusable += 1
            continue
        found.first[row["id"]], found.second[row["id"]] = rows[0], rows[1]
    return found


def _pairs(log: Path, hashes: tuple[str, str]) -> Iterator[tuple[dict[str, Any], TypedAnswer, TypedAnswer]]:
    """Rows, and what the first and the second version answered."""
    query = (
        "SELECT answers.id, frame, question, truth, answers.version, answers.answer, shadows.answer AS shadow "
        "FROM answers JOIN shadows ON shadows.id = answers.id "
        "WHERE (answers.version, shadows.version) IN (VALUES (?, ?), (?, ?)) ORDER BY answers.id"
    )
    try:
        with sqlite3.connect(f"{log.resolve().as_uri()}?mode=ro", uri=True, timeout=10.0) as db:
            db.row_factory = sqlite3.Row
            for row in map(dict, db.execute(query, (*hashes, *hashes[::-1]))):
                answers = [TypedAnswer.model_validate_json(row[name]) for name in ("answer", "shadow")]
                one, other = answers if row["version"] == hashes[0] else answers[::-1]
                yield row, one, other
    except sqlite3.Error as error:
        raise LinesideError(
            f"{log}: no log of answers ({error}); expected the file of --outcomes of a server, or of home"
        ) from None
    except ValidationError:
        raise LinesideError(f"{log}: an answer in it cannot be read: it is of another version of lineside") from None


def forms_of(registry: Registry, version: Version) -> Mapping[str, Form]:
    """How the answers of a version's tasks are compared. Raises LinesideError for files that are gone or damaged."""
    return read_forms(registry.files(registry.item(version.model)))


def _row(row: Mapping[str, Any], typed: TypedAnswer, form: Form | None) -> Row | None:
    """One answer as a row; None if it cannot be judged."""
    verdict = judge_truth(typed.text, row["truth"], form)
    target = (form or TEXT).target_for(row["truth"], "outcome")
    if verdict not in ("right", "wrong") or target is None:
        return None
    family, _, task = (typed.task or NO_TASK).partition("/")
    exact = verdict == "right"
    return Row(
        id=row["id"],
        scene=row["frame"] or row["id"],
        family=family,
        task=task,
        question=row["question"],
        target=target.to_json(),
        reference=row["truth"],
        images=row["frame"].split(",") if row["frame"] else [],
        text=typed.text or "",
        trace=typed.trace,
        answer=typed.text,
        exact=exact,
        reward=float(exact),
        reason="judged by the truth that was told",
        trace_class="valid" if typed.trace else "empty",
        trace_problem="",
        facts=None,
        tokens=0,  # a log does not keep them
        answer_tokens=0,
        finished=True,
        confidence=typed.confidence or 0.0,
        calibrated=typed.confidence,
        decision=typed.decision,
        latency_ms=None,
        budget_ms=None,
        within_budget=None,
        typed=typed,
        weight=None,
        blind=None,
        blind_exact=None,
        classifier=None,
        classifier_exact=None,
    )
