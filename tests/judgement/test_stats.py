"""Statistics by scene, against numbers worked by hand and exact enumeration."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from lineside.judgement import stats
from lineside.judgement.stats import (
    bootstrap,
    holm,
    macro,
    mean_risk,
    paired,
    risk_coverage,
    scenes_for,
    tabulate,
    task_means,
)


def test_macro_is_the_mean_over_tasks_not_over_questions() -> None:
    # count: 1 of 4 right; empty: 2 of 2 right. Macro (1/4 + 1) / 2 = 0.625; micro would be 3/6 = 0.5.
    tasks = ["count"] * 4 + ["empty"] * 2
    outcomes = tabulate(list("abcdab"), tasks, [1, 0, 0, 0, 1, 1])
    assert task_means(outcomes) == {"count": 0.25, "empty": 1.0}
    assert macro(outcomes) == 0.625
    assert outcomes.n == 6


def test_bootstrap_follows_exact_enumeration_of_scene_draws() -> None:
    # Three scenes: a holds 1 right of 1, b 0 right of 2, c 3 right of 3. All 27 equally likely draws of three scenes:
    scenes = ["a", "b", "b", "c", "c", "c"]
    values = [1, 0, 0, 1, 1, 1]
    right, count = {"a": 1, "b": 0, "c": 3}, {"a": 1, "b": 2, "c": 3}
    exact = [sum(right[s] for s in draw) / sum(count[s] for s in draw) for draw in product("abc", repeat=3)]
    drawn = bootstrap(tabulate(scenes, ["t"] * 6, values), seed=1, draws=20_000).mean_BK[:, 0]
    for bound in sorted(set(exact)):
        share = sum(e <= bound + 1e-12 for e in exact) / 27
        assert abs(float((drawn <= bound + 1e-12).mean()) - share) < 0.012  # 4 standard errors of 20,000 draws


def test_scenes_that_agree_within_make_the_interval_wider_than_questions_would() -> None:
    # 40 scenes of 9 questions that are all right or all wrong: 360 questions, but the evidence of 40.
    scenes = [f"s{i}" for i in range(40) for _ in range(9)]
    values = [float(i % 2 == 0) for i in range(40) for _ in range(9)]
    clustered = bootstrap(tabulate(scenes, ["t"] * 360, values), seed=0).task("t")
    naive = bootstrap(tabulate([str(i) for i in range(360)], ["t"] * 360, values), seed=0).task("t")
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert 2.6 < ratio < 3.4  # sqrt(9) = 3
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.1)


def test_a_draw_without_a_task_takes_the_mean_over_the_tasks_it_holds() -> None:
    # Task u stands only in scene b. In draws of a alone the macro mean is t's: every draw gives a number.
    outcomes = tabulate(["a", "a", "b", "b"], ["t", "t", "t", "u"], [1, 0, 1, 0])
    interval = bootstrap(outcomes, seed=0).macro()
    # draws: aa (1/4): t = 1/2; ab (1/2): t = 2/3, u = 0, macro 1/3; bb (1/4): t = 1, u = 0, macro 1/2
    assert interval.low == pytest.approx(1 / 3)
    assert interval.high == pytest.approx(1 / 2)


def test_unanimous_scenes_get_the_exact_binomial_bound() -> None:
    # All right in 10 scenes: Clopper-Pearson lower bound (0.05 / 2) ** (1 / 10) = 0.6915.
    scenes = [f"s{i}" for i in range(10) for _ in range(3)]
    outcomes = tabulate(scenes, ["t"] * 30, [1.0] * 30)
    assert bootstrap(outcomes, seed=0).task("t") == pytest.approx((0.6915, 1.0), abs=1e-4)
    outcomes = tabulate(scenes, ["t"] * 30, [0.0] * 30)
    assert bootstrap(outcomes, seed=0).task("t") == pytest.approx((0.0, 0.3085), abs=1e-4)


def test_one_scene_says_nothing_about_others() -> None:
    assert bootstrap(tabulate(["a", "a"], ["t", "t"], [1, 0]), seed=0).macro() == (0.0, 1.0)
    low, high = paired(["a", "a"], ["t", "t"], [0, 0], [1, 1], seed=0).difference().interval
    assert (low, high) == (pytest.approx(-0.95, abs=0.01), 1.0)  # 1 - 2 * (1 - 0.025)


def test_same_seed_same_interval_and_order_of_questions_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    scenes = [f"s{i}" for i in generator.integers(0, 30, 200)]
    tasks = [f"t{i}" for i in generator.integers(0, 4, 200)]
    values = generator.integers(0, 2, 200).astype(float).tolist()
    first = bootstrap(tabulate(scenes, tasks, values), seed=7).macro()
    order = generator.permutation(200)
    shuffled = tabulate([scenes[i] for i in order], [tasks[i] for i in order], [values[i] for i in order])
    assert bootstrap(shuffled, seed=7).macro() == first
    assert bootstrap(shuffled, seed=8).macro() != first


def test_many_draws_are_computed_in_chunks_without_losing_any() -> None:
    outcomes = tabulate(["a", "b"], ["t", "t"], [0, 1])
    assert len(bootstrap(outcomes, seed=0, draws=stats.DRAWS_AT_ONCE * 2 + 5).mean_BK) == stats.DRAWS_AT_ONCE * 2 + 5


def alike(first: list[int], second: list[int]) -> stats.PairedDraws:
    """One task, one question a scene."""
    return paired([str(i) for i in range(len(first))], ["t"] * len(first), first, second, seed=0)


def test_paired_difference_by_hand() -> None:
    # count: +1, 0, 0, -1 -> 0; empty: +1, +1 -> 1. Macro difference 0.5; first (2/4 + 0) / 2, second (2/4 + 1) / 2.
    draws = paired(list("abcdab"), ["count"] * 4 + ["empty"] * 2, [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1], seed=0)
    found = draws.difference()
    assert (found.difference, found.first, found.second) == (0.5, 0.25, 0.75)
    assert (found.n, found.scenes, found.differing_scenes) == (6, 4, 3)  # c is answered alike
    empty = draws.difference(["empty"])
    assert (empty.difference, empty.n, empty.scenes, empty.differing_scenes) == (1.0, 2, 2, 2)


@pytest.mark.parametrize("scenes", [2, 5, 6, 20, 121])
def test_where_all_scenes_agree_the_bound_is_the_exact_binomial_one(scenes: int) -> None:
    unseen = 1 - 0.025 ** (1 / scenes)  # Clopper and Pearson: so large a share of scenes may be otherwise
    lost, same = alike([1] * scenes, [0] * scenes).difference(), alike([1] * scenes, [1] * scenes).difference()
    assert lost.interval == (-1.0, pytest.approx(-1 + 2 * unseen, abs=0.05 * unseen + 0.01))
    assert same.interval == (pytest.approx(-unseen, rel=0.07), pytest.approx(unseen, rel=0.07))
    # Clear of 0 from six scenes on, as the two-sided sign test has it: 2 * 0.5 ** 6 = 0.031, 2 * 0.5 ** 5 = 0.0625.
    assert (lost.interval.high < 0) == (scenes >= 6)


def test_a_loss_in_few_scenes_is_not_excluded_by_missing_it() -> None:
    # 1 of 100 scenes lost. Clopper and Pearson: up to 5.4% of scenes may be; a plain bootstrap says 3%.
    low = alike([1] * 100, [0] + [1] * 99).difference().interval.low
    assert low == pytest.approx(-0.0545, abs=0.003)


def test_a_paired_interval_of_many_scenes_is_the_usual_one() -> None:
    # 100 of 2,000 scenes gained, 100 lost: standard error sqrt(0.1 / 2000) = 0.0071.
    found = alike([0] * 100 + [1] * 1900, [1] * 100 + [0] * 100 + [1] * 1800).difference()
    assert found.interval == pytest.approx((-1.96 * 0.0071, 1.96 * 0.0071), abs=0.0012)
    assert found.spread == pytest.approx(0.1**0.5, rel=0.05)


def test_the_interval_mirrors_when_the_two_change_places() -> None:
    first, second = [0, 1, 1, 0, 1, 1, 1, 0] * 10, [1, 1, 0, 0, 1, 1, 1, 1] * 10
    there, back = alike(first, second).difference(), alike(second, first).difference()
    assert back.difference == -there.difference
    assert back.interval == pytest.approx((-there.interval.high, -there.interval.low))


def test_harm_by_hand() -> None:
    assert alike([1] * 5, [0] * 5).harm() == 1 / 32
    # four lost, one gained: of 32 exchanges 1 has all lost and 5 have one gained.
    assert alike([1, 1, 1, 1, 0], [0, 0, 0, 0, 1]).harm() == 6 / 32
    assert alike([1, 0, 1], [0, 1, 1]).harm() == 3 / 4  # one lost, one gained, one alike: sums -2, 0, 0 of -2, 0, 0, 2
    assert alike([0] * 5, [1] * 5).harm() == 1.0
    assert alike([1] * 9, [1] * 9).harm() == 1.0


def test_harm_counts_scenes_not_questions() -> None:
    # Twelve questions lost, in two scenes: the evidence is that of two coin tosses.
    assert paired(["a"] * 6 + ["b"] * 6, ["t"] * 12, [1] * 12, [0] * 12, seed=0).harm() == 1 / 4
    # A scene that lost 3 and one that gained 1: the sums are -4, -2, 2, 4, two of which are as low as -2.
    assert paired(list("aaab"), ["t"] * 4, [1, 1, 1, 0], [0, 0, 0, 1], seed=0).harm() == 2 / 4


def test_harm_of_many_scenes_agrees_with_the_count_of_all_exchanges() -> None:
    # 14 lost and 6 gained: the binomial chance of 14 or more of 20 is 60,460 / 2 ** 20 = 0.0577.
    found = alike([1] * 14 + [0] * 6, [0] * 14 + [1] * 6).harm()
    assert found == pytest.approx(60_460 / 2**20, abs=0.008)
    assert alike([1] * 60, [0] * 60).harm() == 1 / (stats.PAIRED_DRAWS + 1)  # never 0: the observed one counts


def test_holm_by_hand() -> None:
    # sorted 0.01 * 3, 0.03 * 2, 0.04 * 1 raised to 0.06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_scenes_for_a_margin() -> None:
    # Without spread: 1 - 0.025 ** (1 / S) <= 0.03 from S = 122 on, here from draws.
    assert scenes_for(0.0, 0.03) == pytest.approx(122, abs=3)
    # With much spread the usual formula: ((1.96 + 0.84) * 1 / 0.03) ** 2 = 8,721.
    assert scenes_for(1.0, 0.03) == pytest.approx(8721, rel=0.03)
    assert scenes_for(0.3, 0.06) < scenes_for(0.3, 0.03)
    with pytest.raises(ValueError, match="above 0"):
        scenes_for(0.2, 0.0)


@pytest.mark.slow
def test_scenes_for_holds_its_promise() -> None:
    # Scenes of four questions, 10% of them answered differently, equally good: 80% of suites of that size pass.
    generator = np.random.default_rng(0)
    size = scenes_for((0.1 / 4) ** 0.5, 0.03)
    scenes = [str(i // 4) for i in range(4 * size)]
    passed = 0
    for seed in range(300):
        change = generator.choice([-1, 0, 1], 4 * size, p=[0.05, 0.9, 0.05])
        first = (change < 0).astype(float)
        low, _ = (
            paired(scenes, ["t"] * len(scenes), first.tolist(), (first + change).tolist(), seed=seed)
            .difference()
            .interval
        )
        passed += low >= -0.03
    assert 0.73 < passed / 300 < 0.87


def test_pairing_narrows_the_interval_of_two_systems_that_err_alike() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2, 800).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:40]] = 1.0  # 5 points better, the same otherwise
    scenes = [str(i) for i in range(800)]
    found = paired(scenes, ["t"] * 800, first.tolist(), second.tolist(), seed=0).difference()
    alone = bootstrap(tabulate(scenes, ["t"] * 800, first.tolist()), seed=0).task("t")
    assert found.difference == pytest.approx(0.05)
    assert found.interval.low > 0
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 2


def test_risk_coverage_by_hand() -> None:
    # One task, confidences 0.9 right, 0.8 wrong, 0.8 right, 0.1 wrong; the two of 0.8 cannot be parted.
    curve = risk_coverage(["t"] * 4, [0.8, 0.9, 0.1, 0.8], [False, True, False, True])
    assert curve == [(0.25, 1.0, 0.9), (0.75, pytest.approx(2 / 3), 0.8), (1.0, 0.5, 0.1)]
    # risk 0 to 0.25; 0 -> 1/3 over 0.5; 1/3 -> 1/2 over 0.25: 1/12 + 0.25 * 5/12
    assert mean_risk(curve) == pytest.approx(1 / 12 + 0.25 * 5 / 12)


def test_risk_coverage_ends_in_the_macro_mean_and_keeps_few_points() -> None:
    generator = np.random.default_rng(1)
    tasks = ["big"] * 900 + ["small"] * 100
    exact = [*(generator.random(900) < 0.5), *(generator.random(100) < 0.9)]
    confidence = generator.random(1000).tolist()
    curve = risk_coverage(tasks, confidence, exact, points=20)
    assert len(curve) <= 20
    assert curve[-1].coverage == pytest.approx(1.0)
    assert curve[-1].accuracy == pytest.approx((np.mean(exact[:900]) + np.mean(exact[900:])) / 2)
    assert all(a.coverage < b.coverage and a.threshold > b.threshold for a, b in pairwise(curve))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        tabulate(["a"], ["t", "t"], [1])
    with pytest.raises(ValueError, match="differ in length"):
        paired(["a"], ["t"], [1], [1, 0], seed=0)
    with pytest.raises(ValueError, match="got 0"):
        tabulate([], [], [])


def test_a_weighted_mean_worked_by_hand() -> None:
    """Weights 3 and 1: (3 x 1 + 1 x 0) / 4, and costs (3 x 0 + 1 x 8) / 4."""
    right, paid = stats.weighted_means(["a", "b"], [[1, 0], [0, 8]], [3.0, 1.0], highest=[1.0, 8.0], seed=0)
    assert (right.value, paid.value) == (0.75, 2.0)
    assert right.interval.low < 0.75 < right.interval.high <= 1.0 and paid.interval.high <= 8.0


def test_the_interval_of_a_share_holds_the_share_where_none_or_all_are_right() -> None:
    """Else a heat map says that 13 of 13 lie below a mean of 100%."""
    assert stats.binomial(0.0, 4) == (0.0, pytest.approx(0.4899, abs=1e-4))  # 3.8415 / (4 + 3.8415)
    for count in range(1, 400):
        for share in (0.0, 1.0):
            low, high = stats.binomial(share, count)
            assert low <= share <= high


@pytest.mark.parametrize("scenes", [1, 5, 14, 200])
def test_what_never_happened_has_the_exact_binomial_bound(scenes: int) -> None:
    (none,) = stats.weighted_means(
        [f"s{i}" for i in range(scenes)], [[0.0]] * scenes, [2.0] * scenes, highest=[1], seed=3
    )
    assert none.value == none.interval.low == 0.0
    assert none.interval.high == pytest.approx(1 - 0.025 ** (1 / scenes), rel=0.1)


def test_questions_of_one_scene_count_as_one() -> None:
    wide, narrow = (
        stats.weighted_means(names, [[i % 2] for i in range(80)], [1.0] * 80, highest=[1.0], seed=0)[0].interval
        for names in ([f"s{i // 2 // 10}{i % 2}" for i in range(80)], [f"s{i}" for i in range(80)])
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_scenes_of_weight_0_tell_nothing() -> None:
    some = stats.weighted_means(["a", "b"], [[1], [0]], [1.0, 1.0], highest=[1.0], seed=0)
    more = stats.weighted_means(["a", "b", "c"], [[1], [0], [1]], [1.0, 1.0, 0.0], highest=[1.0], seed=0)
    assert some == more
    with pytest.raises(ValueError, match="sum to 0"):
        stats.weighted_means(["a"], [[1.0]], [0.0], highest=[1.0], seed=0)
