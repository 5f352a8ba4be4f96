"""From rewards to advantages: GRPO's group baseline (arXiv 2402.03300), and DAPO's shaping and filter (2503.14476).

Shapes: P prompts, G rollouts of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineside.types import Group

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


def rollout_advantages(group: Group, *, max_length: int, overlong_cache: int, std: bool = True) -> Tensor:
    """Advantages (G,) of a live group, from the judge's rewards plus the overlong penalty.

    (Whether a group is live depends on the judge's rewards without the penalty: `is_dead_group`.)
    """
    penalties = [soft_overlong(len(rollout.tokens), max_length, overlong_cache) for rollout in group.rollouts]
    rewards = [judgement.reward + penalty for judgement, penalty in zip(group.judgements, penalties)]
    return group_advantages(rewards, std=std)
