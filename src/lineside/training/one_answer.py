"""The alarm of a task that becomes one answer: stage 3 has learnt to say "no" to every picture.

Curves over all tasks (watch.py) do not show it: one task of many is lost while reward and exactness rise. The task's
own rollouts do not either, if it is asked where "no" is right. So the share of an answer is compared with that of all
prompts that were read, also those that were not asked, for which it is right. For each task, after n groups:

    u = 1 - max(share of the prompts for which the answer is right, its share of the rollouts of the first START groups)
    score = m ln((1 - u/16) / (1 - u/2)) - (n - m) ln 8        m: sum over the groups of its share of their rollouts

u says how often other answers are due. The score is the logarithm of a likelihood ratio: other answers come a sixteenth
as often as they are due, against half as often. What is followed is the commonest answer of a step; below 0 the score
begins again with that of the next step (CUSUM, Page 1954). The alarm is raised above SURE. If groups are independent
and u is known, a policy that gives other answers at least half as often as they are due gets there with a probability
of at most exp(-SURE) each time that the score begins (Wald 1945); docs/experiments.md has what was measured. Whether an
answer is right is decided by the verifier, so targets may be of any kind.

Not told: a stage that begins with one answer (its evaluation shows it), and a task whose exactness falls. Prompts are
chosen by how hard they are for the policy, so the exactness of a task's rollouts falls in sound runs too.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lineside.training.advantages import is_not
from lineside.training.watch import Alarm
from lineside.types import Group, Sample
from lineside.verify.text import normalise
from lineside.verify.verifiers import verify

START = 24  # groups of a task that show what it answers before it has learnt
FEWEST = 24  # groups behind an alarm: those of one step may be of similar pictures
SURE = 8.0  # nats
LONGEST = 40  # characters of an answer that are shown


@dataclass
class TaskAnswers:
    """What is known of a task. A group counts as the share of its rollouts."""

    start: dict[str, float] = field(default_factory=dict)  # of the first groups, how many gave an answer
    start_groups: int = 0
    answer: str = ""  # the one that is followed; "" if none is yet
    given: float = 0.0  # m: how many groups gave it
    groups: int = 0  # n
    right: int = 0  # for how many of the prompts it is right
    prompts: int = 0
    samples: list[str] = field(default_factory=list)  # of the last step, first those to which it was given and is wrong
    told: bool = False

    def see(self, groups: Sequence[Group], prompts: Sequence[Sample]) -> None:
        """Learn from a step: the groups of the task, and its prompts that were read."""
        given: defaultdict[str, float] = defaultdict(float)  # by answer
        for group in groups:
            for judgement in group.judgements:
                given[normalise(judgement.response.answer or "")] += 1 / len(group.judgements)
        given.pop("", None)
        if self.start_groups < START:
            self.start_groups += len(groups)
            self.start = {answer: self.start.get(answer, 0.0) + given[answer] for answer in {**self.start, **given}}
            return
        if not self.answer and given:
            self.answer = max(given, key=given.__getitem__)
        self.given += given[self.answer]
        self.groups += len(groups)
        self.right += sum(verify(self.answer, prompt.target).exact for prompt in prompts if prompt.target)
        self.prompts += len(prompts)
        self.samples = [group.sample.id for group in sorted(groups, key=self._errors, reverse=True)]
        if self.score() < 0:
            vars(self).update(vars(TaskAnswers(self.start, self.start_groups)))

    def _errors(self, group: Group) -> int:
        """How many of its rollouts give the answer where it is wrong."""
        wrong = [judgement for judgement in group.judgements if not judgement.verdict.exact]
        return sum(normalise(judgement.response.answer or "") == self.answer for judgement in wrong)

    def score(self) -> float:
        """The logarithm of the likelihood ratio."""
        right = (self.right + 1) / (self.prompts + 2)
        others = 1 - max(right, self.start.get(self.answer, 0.0) / self.start_groups)
        gain = math.log((1 - others / 16) / (1 - others / 2))
        return self.given * gain - (self.groups - self.given) * math.log(8)

    def alarm(self, task: str, step: int) -> Alarm:
        """What is told of it."""
        shown = self.answer if len(self.answer) <= LONGEST else f"{self.answer[:LONGEST]} ..."
        numbers = {
            "share of its rollouts": self.given / self.groups,
            "share at the start": self.start.get(self.answer, 0.0) / self.start_groups,
            "share of prompts for which it is right": self.right / max(1, self.prompts),
            "rollout groups": float(self.groups),
            "prompts": float(self.prompts),
        }
        about = f"{task} answers {json.dumps(shown, ensure_ascii=False)}"
        return Alarm("one_answer", step, numbers, about, tuple(self.samples))


class Answers(dict[str, TaskAnswers]):
    """What is known of each task, by "family/task"."""

    @classmethod
    def of(cls, state: Mapping[str, Mapping[str, Any]]) -> Answers:
        """From a saved state, which is the `state` of another one."""
        return cls({task: TaskAnswers(**known) for task, known in state.items()})

    def state(self) -> dict[str, dict[str, Any]]:
        """A copy that can be saved as JSON."""
        return {task: asdict(known) for task, known in self.items()}

    def see(self, groups: Iterable[Group], prompts: Iterable[Sample]) -> None:
        """Learn from the groups of a step and from all prompts that were read for it. Those of which only a wrong
        answer is known are left out."""
        asked: dict[str, list[Group]] = {}
        read: dict[str, list[Sample]] = {}
        for group in groups:
            asked.setdefault(_task(group.sample), []).append(group)
        for prompt in prompts:
            read.setdefault(_task(prompt), []).append(prompt)
        for task in filter(None, asked):
            self.setdefault(task, TaskAnswers()).see(asked[task], read.get(task, []))

    def alarms(self, step: int) -> list[Alarm]:
        """The tasks that have become one answer. Each is told once until it has begun anew."""
        found = [(task, known) for task, known in sorted(self.items())
                 if not known.told and known.groups >= FEWEST and known.score() > SURE]  # fmt: skip
        for _, known in found:
            known.told = True
        return [known.alarm(task, step) for task, known in found]


def _task(prompt: Sample) -> str:
    """Its "family/task"; "" if all that is known of it is a wrong answer."""
    return "" if is_not(prompt) else prompt.key
