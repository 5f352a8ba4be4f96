"""From rewards to advantages: GRPO's group baseline (arXiv 2402.03300), and DAPO's shaping and filter (2503.14476).

Shapes: P prompts, G rollouts of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineside.types import Group, Judgement, Sample
from lineside.verify.parse import THINKING_OFF
from lineside.verify.verifiers import REPEATED

STD_EPSILON = 1e-4  # as in TRL and verl; negligible compared with the deviation of a live group
MIN_SPREAD = 0.05  # a smaller spread is noise, which the division by the deviation would amplify


def group_advantages(rewards_G: Tensor | Sequence[float], *, std: bool = True) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-4) over the last dimension, std unbiased; shape as given ((G,) or (P, G)).

    With `std=False` rewards are only centred (Dr. GRPO, arXiv 2503.20783), so the weight of a group grows with its
    spread. Raises ValueError for a group of fewer than two rollouts and for a reward that is not finite.
    """
    rewards_G = torch.as_tensor(rewards_G, dtype=torch.float32)
    if rewards_G.shape[-1] < 2:
        raise ValueError(f"a group needs at least 2 rollouts to compare, got {rewards_G.shape[-1]}")
    if not bool(torch.isfinite(rewards_G).all()):
        raise ValueError(f"rewards must be finite, got {rewards_G.tolist()}")
    centred_G = rewards_G - rewards_G.mean(-1, keepdim=True)
    return centred_G / (rewards_G.std(-1, keepdim=True) + STD_EPSILON) if std else centred_G


def is_dead_group(unshaped_rewards_G: Sequence[float], *, min_spread: float = MIN_SPREAD) -> bool:
    """Whether a group is dead: its rewards are equal, or their spread is less than `min_spread`.

    It needs the rewards before the overlong penalty. With the penalty, equally good rollouts of different lengths would
    look like a live group.
    """
    spread = max(unshaped_rewards_G) - min(unshaped_rewards_G)
    return spread == 0 or spread < min_spread


def soft_overlong(length: int, max_length: int, cache: int) -> float:
    """DAPO's soft overlong penalty, which is added to the reward. It falls linearly to -1 over the last `cache` tokens.

    0 up to max_length - cache; ((max_length - cache) - length) / cache up to max_length; -1 for longer rollouts. With a
    `cache` of 0 there is only the last case. Lengths in tokens. Raises ValueError unless 0 <= cache <= max_length.
    """
    if not 0 <= cache <= max_length:
        raise ValueError(f"the overlong cache must lie in 0..{max_length} (max_length), got {cache}")
    free = max_length - cache
    if length <= free:
        return 0.0
    return -1.0 if length > max_length else (free - length) / cache


def is_live(group: Group) -> bool:
    """Whether a group has a gradient: its rewards, before the overlong penalty, are not equal. That of a `not` target
    has one if any rollout is scored, even if all are: its baseline is not their mean (`not_advantages`)."""
    if is_not(group.sample):
        return any(judgement.scored for judgement in group.judgements)
    return not is_dead_group([judgement.reward for judgement in group.judgements])


def is_not(prompt: Sample) -> bool:
    """Whether all that is known of a prompt is an answer that an outcome said to be wrong."""
    return prompt.target is not None and prompt.target.kind == "not"


def still_right(doubt: float, pass_rate: float) -> float:
    """P(an answer is right although an outcome said that it is wrong), by Bayes' rule from the `doubt` of its target
    and the share of answers that are right. Worked: doubt 0.1 and half of the answers right: 0.05 / 0.55 = 1/11."""
    return pass_rate * doubt / (pass_rate * doubt + 1.0 - pass_rate)


def not_advantages(
    repeated_G: Sequence[bool], scored_G: Sequence[bool], penalty_G: Sequence[float], *, doubt: float, pass_rate: float,
    std: bool = True,
) -> Tensor:  # fmt: skip
    """Advantages (G,) of a group whose target is a `not`: which rollouts repeat the answer that failed, which are
    scored at all, and their overlong penalties.

    The mean of the scored rewards is no baseline: all of them are 0, so every advantage would be 0. The truth is not
    known, so the true gradient is not known either, only its expectation. Let pi be the policy and C the answers that
    repeat the failed one. No outcome tells the other answers apart, so each of them is right with the same chance p:

        E[gradient] = sum_y E[r(y)] grad pi(y) = (E[r | failed] - p) grad pi(C)        as sum_y grad pi(y) = 0

    The score-function estimator of this has the baseline p: a rollout that repeats the answer has the advantage
    E[r | failed] - p; the others have 0 and are left out. It is unbiased for any number of repetitions, all G included.
    p decides the length of the step, not its direction: for every p in (0, 1) the probability of the failed answer
    falls. So an estimate is enough: the running pass rate of the task (`choice.PassRates`), kept within [1/G, 1 - 1/G],
    the mean of a live group of G, so that such a group weighs as any other. E[r | failed] is `still_right`: the less a
    verdict is believed, the smaller the step. It is also smaller the surer the task is, and never changes its sign.

    A scored rollout that does not repeat the answer has no answer or no valid trace: its reward is 0 for certain. With
    `std` the divisor is the unbiased deviation that a live group with this mean has, sqrt(p (1 - p) G / (G - 1)).
    Worked: G = 2, p = 1/2, no doubt: one repetition has (0 - 1/2) / sqrt(1/2) = -0.707, as in a group of rewards 0, 1.
    """
    size = len(repeated_G)
    if size < 2:
        raise ValueError(f"a group needs at least 2 rollouts to compare, got {size}")
    mean = min(max(pass_rate, 1 / size), 1 - 1 / size)
    known = still_right(doubt, mean)
    value_G = [known if repeated else 0.0 if scored else mean for repeated, scored in zip(repeated_G, scored_G)]
    advantage_G = torch.tensor([value + penalty - mean for value, penalty in zip(value_G, penalty_G)])
    deviation = (mean * (1 - mean) * size / (size - 1)) ** 0.5
    return advantage_G / (deviation + STD_EPSILON) if std else advantage_G


def rollout_advantages(
    group: Group, *, max_length: int, overlong_cache: int, std: bool = True, pass_rate: float = 0.5
) -> Tensor:
    """Advantages (G,) of a live group, from the judge's rewards plus the overlong penalty.

    (Whether a group is live depends on the judge's rewards without the penalty: `is_live`.) `pass_rate`: of the task,
    the baseline where the target is a `not`.
    """
    penalties = [soft_overlong(len(rollout.tokens), max_length, overlong_cache) for rollout in group.rollouts]
    if is_not(group.sample):
        assert group.sample.target is not None
        return not_advantages(
            [repeats(judgement) for judgement in group.judgements], [j.scored for j in group.judgements], penalties,
            doubt=group.sample.target.doubt, pass_rate=pass_rate, std=std,
        )  # fmt: skip
    rewards = [judgement.reward + penalty for judgement, penalty in zip(group.judgements, penalties)]
    return group_advantages(rewards, std=std)


def repeats(judgement: Judgement) -> bool:
    """Whether a response to a `not` target repeats the answer that failed, with a valid trace if it thinks: without one
    its reward is 0 for certain."""
    response = judgement.response
    return judgement.verdict.reason == REPEATED and (response.trace_class == "valid" or response.reason == THINKING_OFF)
