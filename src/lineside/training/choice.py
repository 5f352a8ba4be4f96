"""Which prompts stage 3 asks next: those whose group is likely to be live.

Here a group is live if some of its G answers pass (exact, with a valid trace if the task thinks) and some do not. Such
a group always has a gradient. A group whose answers get different partial credit has one too (advantages.py); it is
counted separately. After MoPPS (arXiv 2507.04632), the pass rate p of a prompt has a Beta posterior. Past rollouts
update it, and it decides which prompts come next before anything is sampled. MoPPS samples each prompt often and starts
from Beta(1, 1). Here a prompt comes once or twice, so its prior comes from pools of prompts, each within the one
before: all prompts, those of its task, those of its task with the same answer. Each pool j has two shares:

    m_j = (S_j + c m_{j-1}) / (N_j + c)        of its answers, those that pass      m_0 = 1/2
    l_j = (L_j + c l_{j-1}) / (N_j + c)        of its groups, those that are live   l_0 = 1/2

N_j: number of groups of the pool. L_j: how many of them were live. S_j: sum over these groups of the share of answers
that pass. All three fade, because the policy changes: with each new group of the pool, older groups count 1 - 1/MEMORY
times as much. c = PRIOR_GROUPS. The prior of a prompt is the Beta(k m, k (1 - m)) with both shares of its narrowest
pool. (If each prompt of a pool is either solved or hopeless, k is small.) After s answers of its own that pass, and f
that do not:

    p       ~ Beta(k m + s, k (1 - m) + f)
    P(live) = 1 - E[p^G] - E[(1 - p)^G]        E[p^G] = B(a + G, b) / B(a, b) for p ~ Beta(a, b)

So P(live) of a new prompt is l. s and f are halved when the prompt comes again (the lambda of MoPPS).

Streaming: frames come from the mixture in shuffled order. `choose` sees a bounded window: all prompts of the next
frames, until there are CANDIDATES for each wanted prompt. It takes the best of them and drops the others, which come
again in the next pass. So only the posterior is kept, and its size is limited (KEPT). The choice depends only on seed
and posterior.

A prompt whose target is a `not` (an answer that an outcome said to be wrong) has pools of its own. There an answer
passes if it does not repeat the wrong one, and a group is live if any does: P(live) = 1 - E[p^G].

The prompts of a task are chosen with the shares of its answers as they come (`choose`). Left out: MoPPS's Thompson
sampling of p (drawing by weight explores enough) and its target of a pass rate of 1/2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lineside.hashing import hash_uniform, stable_hash
from lineside.images import image_key
from lineside.training.advantages import is_not
from lineside.types import Group, Sample, Target
from lineside.verify.stakes import costs_in

CANDIDATES = 4  # candidates for each prompt that is chosen
SHARPNESS = 8.0  # exponent of P(live) in the weight of a prompt
PRIOR_GROUPS = 2.0  # so many groups of a pool weigh as much as the next wider pool
MEMORY = 200.0  # number of recent groups of a pool that effectively count
FADING = 0.5  # weight of a prompt's earlier answers when it comes again
NO_GROUPS = (0.0, 0.0, 0.0)  # a pool that nothing is known of
KEPT = 1 << 15  # number of prompts and of pools that are remembered; the oldest are forgotten first


def prompt_key(prompt: Sample) -> str:
    """Key of a prompt: hash of its pictures and its question. Ids are not used, since folders may share them."""
    return f"{stable_hash(*(image_key(image.bytes) for image in prompt.images), prompt.question):016x}"


def pools_of(prompt: Sample, thinking: bool = True) -> tuple[str, str, str]:
    """The pools of a prompt, the widest first: all prompts, its task, the prompts of its task with the same answer.
    Those that are asked with thinking off have pools of their own."""
    wide, task = _wide_pools(prompt, thinking, failed=is_not(prompt))
    return wide, task, f"{task}={answer_key(prompt.target)}"


def _wide_pools(prompt: Sample, thinking: bool, *, failed: bool) -> tuple[str, str]:
    """The pools of all prompts and of a prompt's task, among those with a known truth or with a failed answer."""
    kind = ("" if thinking else "off ") + ("not " if failed else "")
    return kind.strip(), f"{kind}{prompt.key}"


def answer_key(target: Target | None) -> str:
    """What makes two prompts of a task alike: the same answer, or a set of as many members."""
    if target is None or target.kind == "point":
        return ""
    if target.kind == "not":
        return answer_key(target.wrong[0])
    if target.kind == "number":
        return f"{target.value:g}"
    return str(len(target.accepted)) if target.kind == "set" else "|".join(target.accepted)[:80]


def live_chance(a: float, b: float, answers: int, *, all_fail: bool = False) -> float:
    """P(some but not all of `answers` are exact) for a pass rate with a Beta(a, b) distribution. `all_fail`: a group of
    which none passes is live too."""

    def moment(a: float, b: float) -> float:
        """E[p^G] = B(a + G, b) / B(a, b)."""
        return math.exp(math.lgamma(a + answers) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + answers))

    return max(0.0, 1.0 - moment(a, b) - (0.0 if all_fail else moment(b, a)))


def passes(group: Group) -> list[bool]:
    """For each answer, whether it is exact and, with thinking on, has a valid trace; of a `not` target, whether
    nothing says that it is wrong."""
    if is_not(group.sample):
        return [not judgement.scored for judgement in group.judgements]
    return [judgement.verdict.exact and judgement.reward > 0 for judgement in group.judgements]


def prior_weight(mean: float, live: float, answers: int, *, all_fail: bool = False) -> float:
    """The k for which groups with p ~ Beta(k mean, k (1 - mean)) are live with chance `live`.

    Found by bisection over log2 k from -6 to 6. If no k in this range fits, the nearer end is returned.
    """
    low, high = -6.0, 6.0
    while high - low > 0.01:
        middle = (low + high) / 2
        below = live_chance(2**middle * mean, 2**middle * (1 - mean), answers, all_fail=all_fail) < live
        low, high = (middle, high) if below else (low, middle)
    return 2**low


@dataclass
class PassRates:
    """The posterior. `pools`: (N, S, L) of each pool. `prompts`: (s, f) of each prompt. `owed`: fractions of prompts
    that a task's share still gives it. All are plain numbers, so they can be saved in the stage's state."""

    pools: dict[str, list[float]] = field(default_factory=dict)
    prompts: dict[str, list[float]] = field(default_factory=dict)
    owed: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> PassRates:
        """From a saved state, which is the `vars` of another one."""
        pools, prompts = ({k: list(v) for k, v in state.get(name, {}).items()} for name in ("pools", "prompts"))
        return cls(pools, prompts, dict(state.get("owed", {})))

    def prior(self, prompt: Sample, thinking: bool = True) -> tuple[float, float]:
        """(m, l) of the prompt's narrowest pool: the shares of answers that pass and of groups that are live."""
        return self._shares(pools_of(prompt, thinking))

    def _shares(self, pools: Iterable[str]) -> tuple[float, float]:
        """(m, l) of the last of these pools; each is the prior of the next."""
        mean = live = 0.5
        for pool in pools:
            groups, passed, alive = self.pools.get(pool, NO_GROUPS)
            mean = (passed + PRIOR_GROUPS * mean) / (groups + PRIOR_GROUPS)
            live = (alive + PRIOR_GROUPS * live) / (groups + PRIOR_GROUPS)
        return mean, live

    def chance(self, prompt: Sample, answers: int, thinking: bool = True) -> float:
        """P(live) of a group of `answers` answers."""
        mean, live = self.prior(prompt, thinking)
        own = self.prompts.get(prompt_key(prompt))
        if own is None:
            return live
        every = is_not(prompt)
        weight = prior_weight(mean, live, answers, all_fail=every)
        return live_chance(weight * mean + own[0], weight * (1 - mean) + own[1], answers, all_fail=every)

    def pass_rate(self, prompt: Sample, thinking: bool = True) -> float:
        """The share of answers to prompts of its task that pass: the baseline of a group whose target is a `not`.

        The groups of failed answers count as none that passes. What is known otherwise are often answers that
        succeeded, and of these most pass again: the share would be too large, and so would the steps.
        """
        mean = 0.5
        for known, failed in zip(*(_wide_pools(prompt, thinking, failed=f) for f in (False, True))):
            groups, passed, _ = self.pools.get(known, NO_GROUPS)
            groups += self.pools.get(failed, NO_GROUPS)[0]
            mean = (passed + PRIOR_GROUPS * mean) / (groups + PRIOR_GROUPS)
        return mean

    def learn(self, groups: Iterable[Group]) -> None:
        """Update the posterior with new rollouts."""
        for group in groups:
            passed, answers = sum(passes(group)), len(group.judgements)
            least = 0 if is_not(group.sample) else 1  # a group of which every answer repeats the wrong one is live
            seen = 1.0, passed / answers, float(least <= passed < answers)
            for pool in pools_of(group.sample, group.thinking):
                before = self.pools.pop(pool, [0.0, 0.0, 0.0])
                self.pools[pool] = [(1 - 1 / MEMORY) * old + new for old, new in zip(before, seen)]
            key = prompt_key(group.sample)
            before = self.prompts.pop(key, [0.0, 0.0])
            self.prompts[key] = [FADING * old + new for old, new in zip(before, (passed, answers - passed))]
        for kept in (self.pools, self.prompts):
            for key in list(kept)[: max(0, len(kept) - KEPT)]:
                del kept[key]


def choose(
    candidates: Sequence[Sample], wanted: int, rates: PassRates, *, answers: int, floor: float, stakes: bool, seed: int,
    thinks: Callable[[Sample], bool] = lambda _: True,
) -> list[Sample]:  # fmt: skip
    """Choose `wanted` of the candidates, each prompt once. They keep their order; there may be fewer. `thinks`: whether
    a prompt will be asked with thinking on.

    First, `floor` of them are divided evenly among the tasks, because accuracy is the mean over tasks. What rounding
    cuts off is kept in `rates.owed` for later. The other prompts may be of any task: a task gets them by the mean of
    P(live) ** SHARPNESS over its candidates, with `stakes` times the cost of a mistake.

    In both parts the prompts of a task with the same answer, asked in the same mode, are chosen as often as they
    come among the candidates (a systematic sample: Madow 1949). A policy that tends to "yes" has its live groups
    where the truth is "no". If these were chosen alone, it would learn to say "no" to every picture. So it is with
    prompts of which only a wrong answer is known: nearly all of their groups are live, those of answers that
    succeeded seldom. If they were chosen for that, the policy would learn to avoid whatever it says (`balanced`
    also limits their number). Among the prompts with one answer, those that are likely to be live come first: they
    are drawn without replacement with the weight P(live) ** SHARPNESS (Efraimidis and Spirakis 2006: take the
    largest u ** (1 / weight), u uniform).
    """
    prompts: dict[str, Sample] = {}
    for prompt in candidates:
        prompts.setdefault(prompt_key(prompt), prompt)
    prompts = balanced(prompts, seed)
    weights = {
        key: rates.chance(prompt, answers, thinks(prompt)) ** SHARPNESS * (cost_of(prompt) if stakes else 1.0)
        for key, prompt in prompts.items()
    }
    drawn = {
        key: math.log(1 - hash_uniform("choice", seed, key)) / max(weight, 1e-9) for key, weight in weights.items()
    }
    pools = {  # its task, that among its like, and that with its answer
        key: (prompt.key, *pools_of(prompt, thinks(prompt))[1:]) for key, prompt in prompts.items()
    }
    tasks = sorted({task for task, _, _ in pools.values()})
    pace = {task: fmean(weights[key] for key in pools if pools[key][0] == task) for task in tasks}
    times = Counter(pools.values())
    alike: dict[tuple[str, str], list[str]] = {}  # the best first; answers that come once are one group
    for key in sorted(prompts, key=lambda key: (-drawn[key], key)):
        task, like, answer = pools[key]
        alike.setdefault((task, answer if times[task, like, answer] > 1 else like), []).append(key)
    turn = {
        key: (place + hash_uniform("turn", seed, answer)) / max(len(keys) * pace[task], 1e-9)
        for (task, answer), keys in alike.items()
        for place, key in enumerate(keys)
    }
    best_first = sorted(prompts, key=lambda key: (turn[key], key))
    taken: dict[str, None] = {}
    for task in tasks:
        owed = rates.owed.get(task, 0.0) + floor * wanted / len(tasks)
        taken |= dict.fromkeys([key for key in best_first if pools[key][0] == task][: int(owed)])
        rates.owed[task] = owed % 1  # only the fraction: a task may have fewer prompts than its share
    for key in best_first:
        if len(taken) >= wanted:
            break
        taken[key] = None
    return [prompt for key, prompt in prompts.items() if key in taken]


def balanced(prompts: Mapping[str, Sample], seed: int) -> dict[str, Sample]:
    """The prompts by key, without the failed answers of a task that outnumber its prompts whose truth is known.

    A failure teaches the policy to give its answer less often. Where it cannot tell right answers from wrong ones, it
    so avoids both, unless as many prompts teach it to give the right one.
    """
    failed = [key for key, prompt in prompts.items() if is_not(prompt)]
    room = Counter(prompt.key for prompt in prompts.values() if not is_not(prompt))
    over = set[str]()
    for key in sorted(failed, key=lambda key: hash_uniform("balanced", seed, key)):
        room[prompts[key].key] -= 1
        if room[prompts[key].key] < 0:
            over.add(key)
    return {key: prompt for key, prompt in prompts.items() if key not in over}


def cost_of(prompt: Sample) -> float:
    """The largest cost of a mistake in the prompt's task, from its stakes; 1 if it has none."""
    costs = costs_in(prompt.meta.extra)
    return max(costs.wrong, costs.false_pass, costs.false_stop) if costs else 1.0
