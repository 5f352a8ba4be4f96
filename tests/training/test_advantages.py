"""Group baseline, dead groups and the overlong penalty, worked by hand."""

import pytest
import torch

from lineside.training.advantages import group_advantages, is_dead_group, rollout_advantages, soft_overlong
from lineside.types import Group, Image, Judgement, Meta, Response, Rollout, Sample, Source, Target, Verdict


def test_advantage_uses_the_unbiased_deviation():
    # mean 0.4, squared differences 0.16+0.16+0.36+0.16+0.36 = 1.2, over G - 1 = 4: std sqrt(0.3)
    std = 0.3**0.5 + 1e-4
    got = group_advantages([0.0, 0.0, 1.0, 0.0, 1.0])
    assert got.tolist() == pytest.approx([-0.4 / std, -0.4 / std, 0.6 / std, -0.4 / std, 0.6 / std], rel=1e-5)


def test_center_drops_the_deviation():
    assert group_advantages([0.0, 1.0], std=False).tolist() == pytest.approx([-0.5, 0.5])


def test_groups_in_rows_are_kept_apart():
    both = group_advantages(torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    assert torch.equal(both[0], group_advantages([0.0, 1.0]))
    assert torch.equal(both[1], group_advantages([0.2, 0.4]))


@pytest.mark.parametrize("rewards", [[1.0], [], [0.5, float("nan")], [0.5, float("inf")]])
def test_groups_without_a_baseline_are_refused(rewards):
    with pytest.raises(ValueError):
        group_advantages(rewards)


@pytest.mark.parametrize(
    "rewards, dead",
    [
        ([1, 1, 1, 1], True),
        ([0, 0], True),
        ([0.50, 0.54, 0.52], True),  # spread 0.04
        ([0.50, 0.55, 0.52], False),  # spread 0.05
        ([0, 0, 0, 1], False),
    ],
)
def test_dead_groups(rewards, dead):
    assert is_dead_group(rewards) is dead


def test_equal_rewards_are_dead_at_any_threshold():
    assert is_dead_group([0.3, 0.3], min_spread=0.0)


@pytest.mark.parametrize(
    "length, penalty", [(0, 0.0), (12, 0.0), (13, -0.25), (14, -0.5), (16, -1.0), (17, -1.0), (400, -1.0)]
)
def test_soft_overlong(length, penalty):
    assert soft_overlong(length, max_length=16, cache=4) == penalty


def test_overlong_without_a_cache_is_a_step():
    assert [soft_overlong(n, 16, 0) for n in (16, 17)] == [0.0, -1.0]
    with pytest.raises(ValueError, match=r"0\.\.16"):
        soft_overlong(1, 16, 17)


def group(rewards: list[float], lengths: list[int]) -> Group:
    target = Target("number", "sim", value=3)
    sample = Sample(
        "s", "prompt", (Image(b""),), "picking", "count", "?", None, None, target, "train", Meta(), Source()
    )
    return Group(
        sample,
        tuple(Rollout((7,) * n, (-1.0,) * n, "", True) for n in lengths),
        tuple(Judgement(Response("t", "3", "valid", ""), Verdict(r, r == 1, ""), r) for r in rewards),
    )


def test_the_overlong_penalty_shapes_the_advantage_but_does_not_wake_a_dead_group():
    equal = group([1.0, 1.0], [10, 16])
    assert is_dead_group([j.reward for j in equal.judgements])
    got = rollout_advantages(group([1.0, 0.0], [16, 4]), max_length=16, overlong_cache=4, std=False)
    assert got.tolist() == [0.0, 0.0]  # 1 - 1 and 0: being right and far too long is worth what being wrong is
    got = rollout_advantages(group([1.0, 0.0], [14, 4]), max_length=16, overlong_cache=4, std=False)
    assert got.tolist() == [0.25, -0.25]
