"""How far two people agree, by task: the share of equal answers and Cohen's kappa, with n and intervals.

Kappa is the agreement beyond chance, (p - c) / (1 - c): p is the share of equal answers, c the share that two people
would reach who answer at random, each with their own frequencies (Cohen, Educational and Psychological Measurement
20(1), 1960). Its interval is that of p by scene, put into the same formula with c fixed, as in Cohen's paper. Answers
are equal by the verifier. "Cannot tell" is an answer of its own. Points have no categories, so no kappa.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from lineside.data.review_list import Form, ReviewQuestion, WrongForm
from lineside.judgement.stats import bootstrap, tabulate
from lineside.reviewing.log import CANNOT_TELL, Entry
from lineside.verify.text import normalise

EXAMPLES = 3  # disagreements of a task that are shown
SEED = 0

Answers = Mapping[str, str]  # by question


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two raters on the questions of a task that both answered."""

    task: str
    first: str
    second: str
    n: int
    scenes: int
    share: float
    interval: tuple[float, float]
    kappa: float | None  # None: a point, or both always gave the same answer
    kappa_interval: tuple[float, float] | None
    blind: int  # questions that both answered without seeing what others said
    differ: tuple[tuple[str, str, str], ...]  # examples: (question's id, first's answer, second's)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def agreements(questions: Sequence[ReviewQuestion], people: Mapping[str, Mapping[str, Entry]]) -> list[Agreement]:
    """Every pair of people, and every person against record, teacher and model, by task.

    Pairs of people come first. A task in which a pair has no common question is left out.
    """
    raters = {name: {q: entry.told for q, entry in entries.items()} for name, entries in people.items()}
    blind = {name: {q for q, entry in entries.items() if not entry.saw} for name, entries in people.items()}
    others = said_by(questions)
    pairs = [*combinations(sorted(people), 2), *((name, other) for name in sorted(people) for other in others)]
    tasks: dict[str, list[ReviewQuestion]] = {}
    for question in questions:
        tasks.setdefault(question.task_name, []).append(question)
    found: list[Agreement] = []
    for first, second in pairs:
        one, two = raters[first], raters.get(second) or others[second]
        seen = blind[first] & blind.get(second, blind[first])
        for asked in tasks.values():
            common = [q for q in asked if q.id in one and q.id in two]
            if common:
                found.append(_agreement(first, second, common, one, two, sum(q.id in seen for q in common)))
    return found


def said_by(questions: Iterable[ReviewQuestion]) -> dict[str, dict[str, str]]:
    """What others said, by "the record", "the teacher NAME", "the model NAME"."""
    found: dict[str, dict[str, str]] = {}
    for question in questions:
        for said in question.said:
            name = f"the {said.by} {said.name}".rstrip()
            found.setdefault(name, {}).setdefault(question.id, said.answer)
    return found


def _agreement(
    first: str, second: str, asked: Sequence[ReviewQuestion], one: Answers, two: Answers, blind: int
) -> Agreement:
    pairs = [(category(q.form, one[q.id]), category(q.form, two[q.id])) for q in asked]
    points = asked[0].form.kind == "point"
    equal = [_equal(q.form, one[q.id], two[q.id]) if points else a == b for q, (a, b) in zip(asked, pairs)]
    scenes = [q.scene or q.frame for q in asked]
    draws = bootstrap(tabulate(scenes, ["all"] * len(asked), [float(e) for e in equal]), seed=SEED)
    share, (low, high) = sum(equal) / len(equal), draws.macro()
    chance = None if points else by_chance(pairs)
    differ = [(q.id, one[q.id], two[q.id]) for q, same in zip(asked, equal) if not same]
    return Agreement(
        task=asked[0].task_name,
        first=first,
        second=second,
        n=len(asked),
        scenes=len(set(scenes)),
        share=share,
        interval=(low, high),
        kappa=None if chance is None else kappa(share, chance),
        kappa_interval=None if chance is None else (kappa(low, chance), kappa(high, chance)),
        blind=blind,
        differ=tuple(differ[:EXAMPLES]),
    )


def kappa(share: float, chance: float) -> float:
    """Cohen's kappa, at least -1. Worked: 70% equal where chance gives 50% is 0.4."""
    return max(-1.0, (share - chance) / (1 - chance))


def by_chance(pairs: Sequence[tuple[str, str]]) -> float | None:
    """The agreement of two people who answer at random with these frequencies; None if it is certain.

    Worked: of 50 answers the first says yes 25 times, the second 30 times: 0.5 x 0.6 + 0.5 x 0.4 = 0.5.
    """
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(first[name] * second[name] for name in first)
    return None if expected == len(pairs) ** 2 else expected / len(pairs) ** 2


def category(form: Form, text: str) -> str:
    """The category of an answer: equal for two answers exactly if the verifier takes them for the same.

    An answer that is not of the form (a model's) is a category of its own.
    """
    if text == CANNOT_TELL:
        return text
    try:
        answer, target = form.read(text)
    except WrongForm:
        return f"? {normalise(text)}"
    if form.kind == "set":
        return ", ".join(sorted(map(normalise, target.accepted)))
    return normalise(answer)


def _equal(form: Form, first: str, second: str) -> bool:
    return first == second or form.same(first, second)


def lines(found: Sequence[Agreement]) -> list[str]:
    """The agreements for the console."""
    width = max(len(one.task) for one in found)
    told: list[str] = []
    for number, one in enumerate(found):
        if number == 0 or (one.first, one.second) != (found[number - 1].first, found[number - 1].second):
            told.append(f"{one.first} and {one.second}:")
        kappa = "kappa  -  " if one.kappa is None or one.kappa_interval is None else f"kappa {one.kappa:.2f}"
        if one.kappa_interval is not None:
            kappa += f" ({one.kappa_interval[0]:.2f} to {one.kappa_interval[1]:.2f})"
        low, high = one.interval
        scenes = f" in {one.scenes:,} scenes" if one.scenes != one.n else ""
        told.append(
            f"  {one.task:{width}} equal {one.share:.1%} ({100 * low:.1f} to {100 * high:.1f}), {kappa}, "
            f"n {one.n:,}{scenes}, {one.blind:,} of them blind"
        )
        told += [f"  {'':{width}}   {name}: {a!r} and {b!r}" for name, a, b in one.differ]
    return told
