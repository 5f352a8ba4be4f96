"""The audit of a teacher: its answers compared with records, by task, and advice based on how often it is right.

The teacher answers questions whose answers the records know, without seeing the records. The usual verifier judges
every answer. The account gives the share of exact answers, the commonest confusions with a picture of each, and a
recommendation by these rules, on the share and its 95% interval by scene:

    trust the teacher   right in at least 95%: its labels are right, and stage 3 has little to repair
    needs stage 3       right in 50 to 95%: imitation teaches the task and the teacher's errors; stage 3 unlearns them
    needs records       right in less than half: most of its labels are wrong; label stage 2 from records

A recommendation is certain if the whole interval lies on one side of these borders. Else the audit says how many more
scenes would make it certain. The borders are ours; docs/experiments.md shows what stage 3 gained at which exactness.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineside.files import write_atomic
from lineside.images import image_key, jpeg_uri, thumbnail
from lineside.judgement.html import fill_template
from lineside.judgement.stats import Interval, bootstrap, macro, tabulate, task_means
from lineside.types import Image, Target
from lineside.verify.text import normalise
from lineside.verify.verifiers import verify

TRUST, IMITATE = 0.95, 0.5  # exactness from which a teacher's labels are trusted, and from which they are imitated
NEAR = 0.015  # distance from a border below which more scenes are not worth their price
TRUSTED, STAGE_3, RECORDS = "trust the teacher", "needs stage 3", "needs records"
PICTURES = "audit"  # folder of the pictures of confusions, beside the account
SHOWN = 5  # confusions of a task
HELD = 40  # pictures of a task in memory until its commonest confusions are known
MOST = 5_000  # different confusions of a task that are counted
LONGEST = 80  # characters of an answer that are shown
NOTHING = "nothing"  # shown for a missing answer
SEED = 0  # of the bootstrap

Confusion = tuple[str, str]  # (truth, answer)


class Audit:
    """A teacher's answers, right and wrong, by task and scene."""

    def __init__(self) -> None:
        self._frames: set[str] = set()
        self._scenes: list[str] = []
        self._tasks: list[str] = []
        self._exact: list[float] = []
        self._confused: defaultdict[str, Counter[Confusion]] = defaultdict(Counter)
        self._questions: dict[tuple[str, Confusion], str] = {}
        self._pictures: defaultdict[str, dict[Confusion, tuple[str, bytes]]] = defaultdict(dict)

    @property
    def n(self) -> int:
        """Answers so far."""
        return len(self._exact)

    def add(
        self,
        *,
        frame: str,
        scene: str,
        task: str,
        question: str,
        truth: str,
        target: Target,
        said: str | None,
        image: Image | None = None,
    ) -> None:
        """Judge one answer; None for no answer. `task` is family/task."""
        exact = said is not None and verify(said, target).exact
        self._frames.add(frame)
        self._scenes.append(scene or frame)
        self._tasks.append(task)
        self._exact.append(float(exact))
        if not exact:
            self._confuse(task, confusion(truth, said, target), question, image)

    def _confuse(self, task: str, pair: Confusion, question: str, image: Image | None) -> None:
        confused, pictures = self._confused[task], self._pictures[task]
        if pair not in confused and len(confused) >= MOST:
            return
        confused[pair] += 1
        self._questions.setdefault((task, pair), question[:LONGEST])
        if image is not None and image.bytes and pair not in pictures and len(pictures) < HELD:
            pictures[pair] = image_key(image.bytes), thumbnail(image.bytes, name=image.path or task)

    def to_json(self, out: Path | None = None, **about: Any) -> dict[str, Any]:
        """The account, macro over tasks and by task, with `about` added. Pictures go into the folder PICTURES of `out`.

        Raises ValueError if there is no answer, LinesideError if a picture cannot be written.
        """
        outcomes = tabulate(self._scenes, self._tasks, self._exact)
        draws = bootstrap(outcomes, seed=SEED)
        counts = dict(zip(outcomes.tasks, outcomes.count_SK.sum(0).astype(int).tolist()))
        scenes = dict(zip(outcomes.tasks, (outcomes.count_SK > 0).sum(0).tolist()))
        tasks = {
            task: {
                **_rate(value, draws.task(task), n=counts[task]),
                **advice(value, draws.task(task), scenes=scenes[task]),
                "confusions": [self._told(task, pair, n, out) for pair, n in self._confused[task].most_common(SHOWN)],
            }
            for task, value in task_means(outcomes).items()
        }
        whole = {**_rate(macro(outcomes), draws.macro(), n=outcomes.n), "frames": len(self._frames)}
        return {**about, **whole, "scenes": len(outcomes.scenes), "tasks": tasks}

    def _told(self, task: str, pair: Confusion, n: int, out: Path | None) -> dict[str, Any]:
        told: dict[str, Any] = {"truth": pair[0], "said": pair[1], "n": n, "question": self._questions[task, pair]}
        if out is not None and (kept := self._pictures[task].get(pair)):
            write_atomic(out / PICTURES / f"{kept[0]}.jpg", kept[1])
            told["picture"] = kept[0]
        return told


def confusion(truth: str, said: str | None, target: Target) -> Confusion:
    """A wrong answer in the form in which it is counted. For a point only whether there was an answer."""
    given = NOTHING if said is None or not said.strip() else normalise(said)[:LONGEST]
    if target.kind == "point":
        return "on it", given if given == NOTHING else "beside it"
    return normalise(truth)[:LONGEST], given


def advice(exact: float, interval: Interval, *, scenes: int) -> dict[str, Any]:
    """The recommendation for a task, whether it is certain, and if not how many more scenes would make it certain.

    The scenes are an estimate by the law of large numbers: enough for an interval that ends at the nearest border.
    """
    found = TRUSTED if exact >= TRUST else STAGE_3 if exact >= IMITATE else RECORDS
    crossed = [border for border in (TRUST, IMITATE) if interval.low < border <= interval.high]
    if not crossed:
        return {"advice": found, "sure": True}
    told: dict[str, Any] = {"advice": found, "sure": False}
    gap = min(abs(exact - border) for border in crossed)
    wide = (interval.high - interval.low) / 2
    if gap > NEAR and scenes > 1:
        told["more_scenes"] = max(1, math.ceil(scenes * ((wide / gap) ** 2 - 1)))
    return told


def _rate(value: float, interval: Interval, *, n: int) -> dict[str, Any]:
    return {"exact": round(value, 4), "interval": [round(bound, 4) for bound in interval], "n": n}


def told_advice(rate: Mapping[str, Any]) -> str:
    """ "needs stage 3", "probably needs stage 3 (some 120 scenes more would tell)"."""
    if rate["sure"]:
        return str(rate["advice"])
    more = rate.get("more_scenes", 0)
    told = f" (some {more:,} scene{'s' * (more > 1)} more would tell)" if more else ""
    return f"probably {rate['advice']}{told}"


def worst_first(account: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tasks of an account, the least exact first."""
    return sorted(account["tasks"].items(), key=lambda item: item[1]["exact"])


def lines(account: Mapping[str, Any]) -> list[str]:
    """The account for the console: a headline, then by task the recommendation and the commonest confusion."""
    width = max(map(len, account["tasks"]))
    cost = f"; it cost {told_cost(account['cost'])}" if account.get("cost") else ""
    return [
        f"audit: {headline(account)}{cost}",
        *(f"  {name:{width}} {_told_task(rate)}" for name, rate in worst_first(account)),
    ]


def headline(account: Mapping[str, Any]) -> str:
    """ "the teacher is exact in 76.2% (75.4 to 77.0), n 21,555, ..."."""
    return (
        f"the teacher is exact in {_told_rate(account)}, the mean over {len(account['tasks'])} tasks, on "
        f"{account['frames']:,} frames whose records it did not see"
    )


def audit_of(card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The audit in a run's data card; None if the teacher was not audited."""
    return ((card or {}).get("account") or {}).get("audit")


def told_cost(cost: Mapping[str, Any]) -> str:
    """ "40 answers, 52,000 tokens in, 3,100 out, 0.18 $"."""
    money = f", {cost['usd']:.2f} $" if cost.get("usd") else ""
    return f"{cost['answers']:,} answers, {cost['prompt_tokens']:,} tokens in, {cost['completion_tokens']:,} out{money}"


def _told_rate(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['exact']:.1%} ({100 * low:.1f} to {100 * high:.1f}), n {rate['n']:,}"


def _told_task(rate: Mapping[str, Any]) -> str:
    first = [c for c in rate["confusions"][:1] if c["n"] > 1]
    commonest = "".join(f"; most often {c['said']!r} for {c['truth']!r} ({c['n']:,})" for c in first)
    return f"{_told_rate(rate)}: {told_advice(rate)}{commonest}"


def with_pictures(account: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The account with its pictures as data URIs, for a page; missing pictures are left out."""

    def shown(told: Mapping[str, Any]) -> dict[str, Any]:
        path = out / PICTURES / f"{told.get('picture')}.jpg"
        rest = {name: value for name, value in told.items() if name != "picture"}
        return {**rest, "picture": jpeg_uri(path.read_bytes())} if path.is_file() else rest

    tasks = {
        name: {**rate, "confusions": [shown(told) for told in rate["confusions"]]}
        for name, rate in account["tasks"].items()
    }
    return {**account, "tasks": tasks}


def render(account: Mapping[str, Any], *, name: str) -> str:
    """The audit as a page of its own. `account` is one `with_pictures`."""
    return fill_template(
        "audit.html.j2",
        name=name,
        account=account,
        tasks=worst_first(account),
        advice=told_advice,
        cost=told_cost(account["cost"]) if account.get("cost") else "",
        trust=TRUST,
        imitate=IMITATE,
    )
