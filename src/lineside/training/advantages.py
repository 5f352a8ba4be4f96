"""From rewards to advantages: GRPO's group baseline (arXiv 2402.03300), and DAPO's shaping and filter (2503.14476).

Shapes: P prompts, G rollouts of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineside.types import Group

STD_EPSILON = 1e-4  # as in TRL and verl: a floor that does not matter beside a live group's spread
MIN_SPREAD = 0.05  # below it a group's differences are noise that dividing by the deviation would blow up


def group_advantages(rewards_G: Tensor | Sequence[float], *, std: bool = True) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-4) over the last dimension, std unbiased; shape as given ((G,) or (P, G)).

    `std=False` only centres (Dr. GRPO, arXiv 2503.20783), so that a group's weight grows with its spread.
    Raises ValueError for a group of fewer than two, which has nothing to be compared with, and for a reward not finite.
    """
    rewards_G = torch.as_tensor(rewards_G, dtype=torch.float32)
    if rewards_G.shape[-1] < 2:
        raise ValueError(f"a group needs at least 2 rollouts to compare, got {rewards_G.shape[-1]}")
    if not bool(torch.isfinite(rewards_G).all()):
        raise ValueError(f"rewards must be finite, got {rewards_G.tolist()}")
    centred_G = rewards_G - rewards_G.mean(-1, keepdim=True)
    return centred_G / (rewards_G.std(-1, keepdim=True) + STD_EPSILON) if std else centred_G


def is_dead_group(unshaped_rewards_G: Sequence[float], *, min_spread: float = MIN_SPREAD) -> bool:
    """Whether a group teaches nothing: its rewards are equal, or spread less than `min_spread`.

    Takes the verifier's own rewards: after the overlong penalty, groups of equal merit would look alive.
    """
    spread = max(unshaped_rewards_G) - min(unshaped_rewards_G)
    return spread == 0 or spread < min_spread


def soft_overlong(length: int, max_length: int, cache: int) -> float:
    """DAPO's soft overlong punishment, added to the reward: 0, then linearly down to -1 over the last `cache` tokens.

    0 up to max_length - cache; ((max_length - cache) - length) / cache up to max_length; -1 beyond. A `cache` of 0
    punishes only what is beyond. Lengths in tokens. Raises ValueError unless 0 <= cache <= max_length.
    """
    if not 0 <= cache <= max_length:
        raise ValueError(f"the overlong cache must lie in 0..{max_length} (max_length), got {cache}")
    free = max_length - cache
    if length <= free:
        return 0.0
    return -1.0 if length > max_length else (free - length) / cache


def rollout_advantages(group: Group, *, max_length: int, overlong_cache: int, std: bool = True) -> Tensor:
    """Advantages (G,) of a live group: the judge's rewards plus the overlong penalty, held against the group's own.

    Whether the group is live is `is_dead_group` of the judge's rewards alone.
    """
    penalties = [soft_overlong(len(rollout.tokens), max_length, overlong_cache) for rollout in group.rollouts]
    rewards = [judgement.reward + penalty for judgement, penalty in zip(group.judgements, penalties)]
    return group_advantages(rewards, std=std)
