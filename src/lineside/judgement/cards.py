"""The report's cards: the same question about the same picture, answered by every stage, right and wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lineside.images import jpeg_uri
from lineside.judgement.schema import Row
from lineside.stages import is_asked, is_control
from lineside.types import THINK_OPEN

SHOWN = 700  # characters of a model's text on a card; the page does not show endless responses
QUOTA = {"learned": 2, "right": 1, "lost": 1, "wrong": 2}  # cards of a family, by outcome over the stages


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """One stage's answer to the question."""

    stage: str
    trace: str
    answer: str
    exact: bool
    note: str  # why it is wrong, or what is wrong with its trace; "" if nothing
    confidence: float


@dataclass(frozen=True, slots=True)
class Card:
    """One or more pictures (as data URIs), the question, its target, and every stage's answer."""

    family: str
    task: str
    outcome: str
    pictures: tuple[str, ...]
    mark: tuple[float, float] | None  # a point target, as shares of width and height
    context: str  # what the question gives before it asks: a bill of materials, a policy
    question: str
    target: str
    blind: str | None
    answers: tuple[StageAnswer, ...]


def choose_cards(rows_by_stage: Mapping[str, Mapping[str, Row]], pictures: Path) -> dict[str, list[Card]]:
    """Cards by family, from questions that every stage answered and whose pictures are in `pictures`.

    By outcome: `learned` (wrong at an earlier stage, right at the last), `right` or `wrong` at all stages, `lost`.
    Tasks take turns, and a picture is shown twice only if there are no others. The same rows give the same cards.
    """
    stages = list(rows_by_stage)
    if not stages:
        return {}
    there = {path.stem for path in pictures.glob("*.jpg")} if pictures.is_dir() else set()
    common = set.intersection(*(set(rows) for rows in rows_by_stage.values()))
    first = rows_by_stage[stages[0]]
    ids = [i for i in common if first[i].images and there.issuperset(first[i].images)]
    ids.sort(key=lambda i: hashlib.sha256(i.encode()).digest())
    cards: dict[str, list[Card]] = {}
    for family in sorted({first[i].family for i in ids}):
        mine = [i for i in ids if first[i].family == family]
        chosen = _choose({i: _outcome([rows_by_stage[s][i].exact for s in _judged(stages)]) for i in mine}, first)
        cards[family] = [_card([(s, rows_by_stage[s][i]) for s in stages], outcome, pictures) for i, outcome in chosen]
    return cards


def _judged(stages: Sequence[str]) -> list[str]:
    """The stages that decide a card's outcome: not align, which has seen no question, and no control."""
    return [stage for stage in stages if is_asked(stage) and not is_control(stage)] or list(stages)


def _outcome(exact: Sequence[bool]) -> str:
    if exact[-1]:
        return "right" if all(exact) else "learned"
    return "lost" if any(exact) else "wrong"


def _choose(outcomes: Mapping[str, str], rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """Ids and outcomes in the order of `QUOTA`; if one outcome has too few, others fill its places."""
    chosen: list[tuple[str, str]] = []
    tasks: dict[str, int] = {}
    seen: set[str] = set()

    def take(candidates: list[str], count: int) -> None:
        for _ in range(count):
            left = [i for i in candidates if i not in dict(chosen)]
            if not left:
                return
            best = min(left, key=lambda i: (seen.issuperset(rows[i].images), tasks.get(rows[i].task, 0)))
            chosen.append((best, outcomes[best]))
            tasks[rows[best].task] = tasks.get(rows[best].task, 0) + 1
            seen.update(rows[best].images)

    for outcome, count in QUOTA.items():
        take([i for i, found in outcomes.items() if found == outcome], count)
    take(list(outcomes), sum(QUOTA.values()) - len(chosen))
    order = list(QUOTA)
    return sorted(chosen, key=lambda pair: order.index(pair[1]))


def _card(answers: Sequence[tuple[str, Row]], outcome: str, pictures: Path) -> Card:
    row = answers[0][1]
    context, asked = parts_of(cut(row.question))
    return Card(
        family=row.family,
        task=row.task.replace("_", " "),
        outcome=outcome,
        pictures=tuple(jpeg_uri((pictures / f"{key}.jpg").read_bytes()) for key in row.images),
        mark=mark_of(row),
        context=context,
        question=asked,
        target=target_text(row),
        blind=row.blind,
        answers=tuple(_stage_answer(stage, row) for stage, row in answers),
    )


def _stage_answer(stage: str, row: Row) -> StageAnswer:
    if row.answer is None:
        answer, note = "" if row.text.strip() else "(blank)", row.reason or row.trace_problem
    else:
        answer = cut(row.answer)
        note = "" if row.exact else row.reason
    if row.trace_class != "valid" and row.text.startswith(THINK_OPEN):
        note = "; ".join(dict.fromkeys(part for part in (note, f"trace {row.trace_class}") if part))
    trace = row.trace if row.trace is not None else ("" if row.answer is not None else row.text)
    return StageAnswer(stage, cut(trace), answer, row.exact, note, row.confidence)


def parts_of(question: str) -> tuple[str, str]:
    """The context, and the sentence that asks."""
    context, stop, asked = question.rpartition(". ")
    return (context + stop.strip(), asked) if asked.endswith("?") else ("", question)


def target_text(row: Row) -> str:
    """The right answer as text for people."""
    kind, accepted = row.target.get("kind"), [str(a) for a in row.target.get("accepted") or ()]
    if kind in ("exact", "choice") and len(accepted) > 1:
        return cut(" or ".join(accepted))
    if kind == "point":
        return "inside the marked part"
    return cut(row.reference)


def mark_of(row: Row) -> tuple[float, float] | None:
    """Position of a point target in the picture."""
    if row.target.get("kind") != "point" or len(row.images) != 1:
        return None
    x, y = (min(1.0, max(0.0, float(row.target.get(axis) or 0.0))) for axis in ("x", "y"))
    return x, y


def cut(text: str) -> str:
    """A model's text, shortened for the page."""
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."
