"""The plan of a labelling job: which frames serve which stage, and which questions are kept to balance the answers.

The plan is made in a pass over all frames before anything is written. It needs eight bytes for each question of a task
that balances its answers, and nothing for the others. It depends on ids alone, never on the order of frames.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lineside.data.taskfile import Task
from lineside.data.tasks import Candidate
from lineside.hashing import hash_uniform, stable_hash
from lineside.types import SUITES, Frame

RARE = 0.05  # of a task's questions


@dataclass(frozen=True, slots=True)
class FrameQuestion:
    """A question of a frame, its task, and the id that its sample will have."""

    id: str
    task: Task
    candidate: Candidate


def uses_of(frame: Frame, *, seed: int, question_share: float, prompt_share: float) -> tuple[str, ...]:
    """The uses of a frame's questions: for a suite's frame its split, for a training frame "qa" and "prompt".

    Drawn by scene, as a point on the circle [0, 1): prompts take [0, prompt_share), questions the `question_share`
    after it. If the shares sum to at most 1, no scene serves both stages, and stage 3 sees scenes new to stage 2.
    """
    if frame.split in SUITES:
        return (frame.split,)
    draw = hash_uniform("use", seed, frame.meta.scene or frame.id)
    prompt, end = draw < prompt_share, prompt_share + question_share
    qa = prompt_share <= draw < end or draw < end - 1
    return ("qa",) * qa + ("prompt",) * prompt


def thinned(asked: Sequence[FrameQuestion], limit: int, *, seed: int) -> list[FrameQuestion]:
    """At most `limit` questions of a frame, chosen by hash, one of each task before a second of any; order is kept."""
    turn: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for position in sorted(range(len(asked)), key=lambda i: stable_hash("thin", seed, asked[i].id)):
        name = asked[position].task.name
        turn[name] = turn.get(name, 0) + 1
        ranked.append((turn[name], stable_hash("task", seed, asked[position].id), position))
    return [asked[position] for _, _, position in sorted(sorted(ranked)[:limit], key=lambda entry: entry[2])]


class Balance:
    """Keeps the share of each answer of a task at or below its `max_share`, for each use, and gives kept questions
    their weights.

    First `count` every question, then `settle`, then ask with `keeps`. Of an answer that is too common, the questions
    with the lowest hashes stay, exactly as many as the share allows.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._hashes: dict[tuple[str, str, str], dict[str, array[int]]] = {}
        self._kept: dict[tuple[str, str, str, str], tuple[int, float]] = {}  # highest hash kept, weight

    def count(self, use: str, asked: FrameQuestion) -> None:
        """Count one question."""
        if asked.task.max_share is not None:
            answers = self._hashes.setdefault(_key(use, asked), {})
            answers.setdefault(asked.candidate.answer, array("Q")).append(self._hash(asked))

    def settle(self, tasks: Iterable[Task]) -> list[str]:
        """Decide, after every question was counted. Returns a line for each task whose share is not reached."""
        shares = {(task.family, task.name): task.max_share or 1.0 for task in tasks}
        unmet: list[str] = []
        for (use, family, name), answers in sorted(self._hashes.items()):
            share = shares[family, name]
            cap = most_of_each({answer: len(hashes) for answer, hashes in answers.items()}, share)
            kept = {answer: min(cap, len(hashes)) for answer, hashes in answers.items()}
            for answer, hashes in answers.items():
                highest = sorted(hashes)[kept[answer] - 1] if kept[answer] else -1
                self._kept[use, family, name, answer] = highest, len(hashes) / max(kept[answer], 1)
            most, total = max(kept.values()), sum(kept.values())
            if most > math.ceil(share * total):
                unmet.append(f"{use} {family}/{name}: the commonest answer is {most} of {total}, max_share {share:g}")
        self._hashes.clear()
        return unmet

    def keeps(self, use: str, asked: FrameQuestion) -> float:
        """How many natural questions this one represents; 0 if it is left out."""
        if asked.task.max_share is None:
            return 1.0
        highest, weight = self._kept[*_key(use, asked), asked.candidate.answer]
        return weight if self._hash(asked) <= highest else 0.0

    def _hash(self, asked: FrameQuestion) -> int:
        return stable_hash("balance", self._seed, asked.id)


class AuditPlan:
    """The frames of a teacher's audit and their questions. Frames with the lowest hashes are taken, so new frames
    change few of them. Frames of suites are never taken."""

    def __init__(self, limit: int | None, most: int | None, seed: int) -> None:
        """`limit`: frames, None for all. `most`: questions of a frame, None for all."""
        self.limit, self._most, self._seed = limit, most, seed
        self._balance = Balance(seed)
        self._taken: list[int] = []  # negative hashes of the frames so far: the highest hash leaves the heap first
        self.frames = 0

    def meet(self, frame: Frame, asked: Sequence[FrameQuestion]) -> None:
        """Add a frame and its possible questions."""
        if frame.split != "train" or self.limit == 0 or not asked:
            return
        for one in asked:
            self._balance.count("audit", one)
        if self.limit is None:
            self.frames += 1
            return
        heapq.heappush(self._taken, -self._hash(frame))
        if len(self._taken) > self.limit:
            heapq.heappop(self._taken)
        self.frames = len(self._taken)

    def settle(self, tasks: Iterable[Task]) -> None:
        """Decide, after every frame was added."""
        self._balance.settle(tasks)

    def takes(self, frame: Frame) -> bool:
        """Whether the frame is in the audit."""
        if frame.split != "train" or self.limit == 0:
            return False
        return self.limit is None or (bool(self._taken) and self._hash(frame) <= -self._taken[0])

    def chosen(self, asked: Sequence[FrameQuestion]) -> list[FrameQuestion]:
        """The questions of a frame that are kept, so that no answer of a task is too common."""
        kept = [one for one in asked if self._balance.keeps("audit", one)]
        return kept if self._most is None else thinned(kept, self._most, seed=self._seed)

    def _hash(self, frame: Frame) -> int:
        return stable_hash("audit", self._seed, frame.id)


def most_of_each(counts: Mapping[str, int], share: float) -> int:
    """The largest c such that, with each answer cut to c, none has more than `share` of what is left.

    Answers rarer than RARE do not decide alone: c is at least the count of the rarest answer among the others, the
    commonest excluded, because one single answer would else cut all to one. With a single answer nothing is cut.
    Worked: {no: 90, yes: 10} at 0.5 gives 10; {0: 50, 1: 30, 2: 20} at 0.4 gives 33, as 33 <= 0.4 * (33 + 30 + 20);
    {a: 50, b: 30, c: 1} at 0.4 would give 1, and gives 30; 70 beside ten of 3 at 0.3 gives 12, as 12 <= 0.3 * 42.
    """
    low, high = 0, max(counts.values())
    if len(counts) == 1:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(count, middle) for count in counts.values()) + 1e-9:
            low = middle
        else:
            high = middle - 1
    common = [count for count in sorted(counts.values())[:-1] if count >= RARE * sum(counts.values())]
    return max(low, min(common, default=0))


def _key(use: str, asked: FrameQuestion) -> tuple[str, str, str]:
    return use, asked.task.family, asked.task.name


def questions(frame: Frame, found: Iterable[tuple[Task, Sequence[Candidate]]]) -> Iterator[FrameQuestion]:
    """The candidates of a frame with the ids of their samples."""
    for task, candidates in found:
        for candidate in candidates:
            yield FrameQuestion(question_id(frame, task, candidate.key), task, candidate)


def question_id(frame: Frame, task: Task, key: str) -> str:
    """The id of a question's sample."""
    return "/".join(part for part in (frame.id, task.name, key) if part)
