"""Which prompts stage 3 asks next: those whose group is likely to be live.

A group is live on exactness when some of its G answers pass (exact, with a valid trace where one is asked for) and some
do not. Such a group always teaches; one whose answers earn different partial credit teaches too (advantages.py), and is
counted beside it. After MoPPS (arXiv 2507.04632) the pass rate of a prompt has a Beta posterior that past rollouts
update, and the next prompts are chosen by it before anything is sampled. MoPPS meets each prompt often. Here a prompt
is met once or twice, so its prior is pooled: over all prompts, over the task, over those of the task with the same
answer.

    m_0        = 1/2
    m_j        = (S_j + c m_{j-1}) / (N_j + c)          j = all, task, (task, answer)
    p          ~ Beta(k m + s, k (1 - m) + f)           m = m_(task, answer)
    P(live)    = 1 - E[p^G] - E[(1 - p)^G]              E[p^G] = B(a + G, b) / B(a, b),  p ~ Beta(a, b)

N_j: groups that a pool has had, S_j: the sum of their shares of answers that pass. Both fade, since the policy moves: a
group counts 1 - 1/MEMORY as much with each later one of its pool. s, f: answers of the prompt itself that pass, and the
others; they are halved when it is met again (the lambda of MoPPS). c = PRIOR_GROUPS, k = PRIOR_ANSWERS.

Streaming: frames come from the mixture in their shuffled order. `choose` sees a bounded window of them, all prompts of
the next frames until there are CANDIDATES for each that is wanted; it takes the best and drops the others, which come
again with the next pass. So nothing but the posterior is kept, and that is bounded (KEPT). The draw depends on seed and
posterior alone.

Left out: MoPPS's Thompson sampling of p (the draw by weight explores enough) and its target of a pass rate of 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lineside.data.splits import hash_uniform, stable_hash
from lineside.images import image_key
from lineside.judgement.stakes import costs_in
from lineside.types import Group, Sample, Target

CANDIDATES = 4  # prompts looked at for each that is asked
SHARPNESS = 2.0  # power of the predicted chance that a prompt is drawn by
PRIOR_GROUPS = 4.0  # groups of a pool that weigh as much as the wider pool around it
PRIOR_ANSWERS = 1.5  # answers of a prompt that weigh as much as its pool: pass rates lie near 0 and 1 more than between
MEMORY = 200.0  # groups of a pool that count
FADING = 0.5  # what a prompt's answers still count when it is met again
KEPT = 1 << 15  # prompts and pools that are remembered; what was met longest ago is forgotten first


def prompt_key(prompt: Sample) -> str:
    """A prompt by its pictures and words: ids may clash between folders."""
    return f"{stable_hash(*(image_key(image.bytes) for image in prompt.images), prompt.question):016x}"


def pools_of(prompt: Sample) -> tuple[str, str, str]:
    """The pools a prompt belongs to, the widest first: all, its task, those of its task with the same answer."""
    task = f"{prompt.family}/{prompt.task}"
    return "", task, f"{task}={answer_key(prompt.target)}"


def answer_key(target: Target | None) -> str:
    """What makes two prompts of a task alike: the same answer, or a set of as many members."""
    if target is None or target.kind == "point":
        return ""
    if target.kind == "number":
        return f"{target.value:g}"
    return str(len(target.accepted)) if target.kind == "set" else "|".join(target.accepted)[:80]


def live_chance(a: float, b: float, answers: int) -> float:
    """P(some but not all of `answers` are exact) for a pass rate with a Beta(a, b) distribution."""

    def moment(a: float, b: float) -> float:
        """E[p^G] = B(a + G, b) / B(a, b)."""
        return math.exp(math.lgamma(a + answers) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + answers))

    return max(0.0, 1.0 - moment(a, b) - moment(b, a))


def passes(group: Group) -> list[bool]:
    """Which answers are exact and, with thinking on, have a valid trace."""
    return [judgement.verdict.exact and judgement.reward > 0 for judgement in group.judgements]


@dataclass
class PassRates:
    """The posterior. `pools`: (N, S) by pool; `prompts`: (s, f) by prompt; `owed`: prompts that a task's floor still
    owes it. Plain numbers, so that it is part of the stage's state as it is."""

    pools: dict[str, list[float]] = field(default_factory=dict)
    prompts: dict[str, list[float]] = field(default_factory=dict)
    owed: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> PassRates:
        """A copy of what `vars` of another one says."""
        pools, prompts = ({k: list(v) for k, v in state.get(name, {}).items()} for name in ("pools", "prompts"))
        return cls(pools, prompts, dict(state.get("owed", {})))

    def mean(self, prompt: Sample) -> float:
        """m: the pass rate that the prompt's pools predict."""
        mean = 0.5
        for pool in pools_of(prompt):
            groups, passed = self.pools.get(pool, (0.0, 0.0))
            mean = (passed + PRIOR_GROUPS * mean) / (groups + PRIOR_GROUPS)
        return mean

    def chance(self, prompt: Sample, answers: int) -> float:
        """P(live) of a group of so many answers."""
        mean, (passed, failed) = self.mean(prompt), self.prompts.get(prompt_key(prompt), (0.0, 0.0))
        return live_chance(PRIOR_ANSWERS * mean + passed, PRIOR_ANSWERS * (1 - mean) + failed, answers)

    def learn(self, groups: Iterable[Group]) -> None:
        """Take in what was sampled."""
        for group in groups:
            exact = sum(passes(group))
            share = exact / len(group.judgements)
            for pool in pools_of(group.sample):
                before = self.pools.pop(pool, [0.0, 0.0])
                self.pools[pool] = [(1 - 1 / MEMORY) * old + new for old, new in zip(before, (1.0, share))]
            key = prompt_key(group.sample)
            before = self.prompts.pop(key, [0.0, 0.0])
            answers = exact, len(group.judgements) - exact
            self.prompts[key] = [FADING * old + new for old, new in zip(before, answers)]
        for kept in (self.pools, self.prompts):
            for key in list(kept)[: max(0, len(kept) - KEPT)]:
                del kept[key]


def choose(
    candidates: Sequence[Sample], wanted: int, rates: PassRates, *, answers: int, floor: float, stakes: bool, seed: int
) -> list[Sample]:
    """`wanted` of the candidates, in their order, each prompt once; fewer where there are fewer.

    Each task first gets `floor` of the prompts that drawing evenly would give it, so that none starves; what a rounding
    leaves is owed to it, and noted in `rates`. The rest go to any task. Within both, prompts are drawn without
    replacement by P(live) ** SHARPNESS, times what a mistake costs with `stakes` (Efraimidis and Spirakis 2006: the
    largest u ** (1 / weight), u uniform).
    """
    prompts: dict[str, Sample] = {}
    for prompt in candidates:
        prompts.setdefault(prompt_key(prompt), prompt)
    weights = {
        key: rates.chance(prompt, answers) ** SHARPNESS * (cost_of(prompt) if stakes else 1.0)
        for key, prompt in prompts.items()
    }
    drawn = {
        key: math.log(1 - hash_uniform("choice", seed, key)) / max(weight, 1e-9) for key, weight in weights.items()
    }
    best_first = sorted(prompts, key=lambda key: (-drawn[key], key))
    by_task: dict[str, list[str]] = {}
    for key in best_first:
        by_task.setdefault(pools_of(prompts[key])[1], []).append(key)
    taken: dict[str, None] = {}
    for task in sorted(by_task):
        owed = rates.owed.get(task, 0.0) + floor * wanted * len(by_task[task]) / len(prompts)
        first = by_task[task][: int(owed)]
        taken |= dict.fromkeys(first)
        rates.owed[task] = owed - len(first)
    for key in best_first:
        if len(taken) >= wanted:
            break
        taken[key] = None
    return [prompt for key, prompt in prompts.items() if key in taken]


def cost_of(prompt: Sample) -> float:
    """The most that a mistake costs in the prompt's task, by its stakes; 1 where it has none."""
    costs = costs_in(prompt.meta.extra)
    return max(costs.wrong, costs.false_pass, costs.false_stop) if costs else 1.0
