"""Group baseline, dead groups and the overlong penalty, worked by hand."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from lineside.training.advantages import (
    group_advantages,
    is_dead_group,
    is_live,
    not_advantages,
    rollout_advantages,
    soft_overlong,
    still_right,
)
from lineside.types import Group, Image, Judgement, Meta, Response, Rollout, Sample, Source, Target, Verdict
from lineside.verify.judge import judge


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


THREE = Target("not", "outcome", wrong=(Target("number", "outcome", value=3),))


def failed(*answers: str | None, thinking: bool = False, target: Target = THREE) -> Group:
    """The group of a `not` target that gave these answers (None: no valid trace), judged."""
    sample = replace(group([1.0], [1]).sample, target=target)
    texts = [f"<think>two and one lie there</think>{a}" if thinking and a else a or "3" for a in answers]
    judged = tuple(judge(text, target, thinking=thinking, finished=True) for text in texts)
    return Group(sample, tuple(Rollout((7,), (-1.0,), text, True) for text in texts), judged)


def test_a_failed_answer_is_pushed_away_and_all_others_are_left_alone():
    # p = 1/2: (0 - 1/2) / sqrt(1/2 * 1/2 * 4/3) = -0.866; the mean of the scored rewards (0) would give no gradient
    got = rollout_advantages(failed("3", "4", "3.0", "two"), max_length=16, overlong_cache=4, pass_rate=0.5)
    assert got.tolist() == pytest.approx([-(0.75**0.5), 0.0, -(0.75**0.5), 0.0], rel=1e-3)
    got = rollout_advantages(failed("3", "4"), max_length=16, overlong_cache=4, pass_rate=0.5, std=False)
    assert got.tolist() == [-0.5, 0.0]


def test_the_baseline_stays_within_what_a_live_group_can_have():
    for pass_rate, mean in ((0.0, 0.25), (0.25, 0.25), (0.6, 0.6), (1.0, 0.75)):
        got = not_advantages([True, False, False, False], [True, False, False, False], [0.0] * 4, doubt=0.0,
                             pass_rate=pass_rate, std=False)  # fmt: skip
        assert got.tolist() == pytest.approx([-mean, 0, 0, 0])
    # as the one wrong answer of a live group: rewards 0, 1, 1, 1
    got = not_advantages([True] + [False] * 3, [True] + [False] * 3, [0.0] * 4, doubt=0.0, pass_rate=1.0)
    assert float(got[0]) == pytest.approx(float(group_advantages([0.0, 1.0, 1.0, 1.0])[0]), rel=1e-4)


def test_doubt_shrinks_the_step_and_never_turns_it():
    assert still_right(0.1, 0.5) == pytest.approx(1 / 11)
    assert still_right(0.0, 0.9) == 0.0 and still_right(0.1, 0.9) == pytest.approx(0.09 / 0.19)
    seen = [
        float(not_advantages([True, False], [True, False], [0.0, 0.0], doubt=doubt, pass_rate=0.5, std=False)[0])
        for doubt in (0.0, 0.1, 0.5, 0.99)
    ]
    assert seen == pytest.approx([-0.5, 1 / 11 - 1 / 2, 1 / 3 - 1 / 2, 0.99 / 1.99 - 0.5]) and seen[-1] < 0


def test_what_is_no_answer_scores_nothing_with_a_not_target_too():
    thought = failed("3", "4", None, thinking=True)
    assert [j.scored for j in thought.judgements] == [True, False, True]
    got = rollout_advantages(thought, max_length=16, overlong_cache=4, pass_rate=0.5, std=False)
    assert got.tolist() == [-0.5, 0.0, -0.5]
    doubted = failed("3", "4", None, thinking=True, target=replace(THREE, doubt=0.5))
    got = rollout_advantages(doubted, max_length=16, overlong_cache=4, pass_rate=0.5, std=False)
    assert got.tolist() == pytest.approx([1 / 3 - 1 / 2, 0.0, -0.5])  # the verdict may err, a missing trace is missing


def test_a_group_of_a_not_target_lives_by_what_is_scored():
    assert is_live(failed("3", "3")) and is_live(failed("4", "3")) and not is_live(failed("4", "5"))


@pytest.mark.parametrize("doubt", [0.0, 0.3])
def test_the_estimator_is_unbiased(doubt: float):
    """Over all 3^G groups of a softmax policy, the mean of the estimate is the gradient of the expected reward: 0 (by
    Bayes' rule with doubt: `still_right`) for the failed answer, the baseline for each other."""
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    pi, size, p = torch.softmax(theta, 0), 3, 0.4
    value = torch.tensor([still_right(doubt, p), p, p], dtype=torch.float64)
    expected = pi * (value - pi @ value)  # d/d theta of sum_y pi(y) value(y)
    score = torch.eye(3, dtype=torch.float64) - pi  # d/d theta of log pi(y)
    found = torch.zeros(3, dtype=torch.float64)
    for drawn in product(range(3), repeat=size):
        repeated = [y == 0 for y in drawn]
        advantages = not_advantages(repeated, repeated, [0.0] * size, doubt=doubt, pass_rate=p, std=False)
        found += pi[list(drawn)].prod() * (advantages.double()[:, None] * score[list(drawn)]).mean(0)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-7)
    assert expected[0] < 0 < min(expected[1:])  # the failed answer loses, the others gain in proportion
