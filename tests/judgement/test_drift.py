"""The test for changed frames: numbers by hand, false alarms, what is named, scenes that are exchanged as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from lineside.judgement.drift import Shot, _kernel, _mmd, drift, two_sample, unlike


def shots(count: int, name: str, **groups: str) -> list[Shot]:
    return [Shot(f"{name}{n}", f"{name}{n}", {key: [value] for key, value in groups.items()}) for n in range(count)]


def noise(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 4)) + shift).astype(np.float32)


def test_the_statistic_is_the_mean_kernel_within_the_sides_less_that_between_them() -> None:
    kernel = _kernel(np.array([[0.0], [1.0], [3.0]]))  # squared distances 1, 4, 9: the median is 4
    assert kernel[0, 1] == pytest.approx(np.exp(-0.25)) and kernel[0, 2] == pytest.approx(np.exp(-2.25))
    after = np.array([[False, False, True]])
    within = (2 + 2 * np.exp(-0.25)) / 4 + 1
    between = (np.exp(-2.25) + np.exp(-1.0)) / 2
    assert _mmd(kernel, np.ones(3), after)[0] == pytest.approx(within - 2 * between)


def test_false_alarms_are_as_rare_as_they_are_said_to_be() -> None:
    alarms = sum(
        two_sample(noise(seed, 40).astype(float), [str(n) for n in range(40)], 20, permutations=99, seed=seed)[0] <= 0.1
        for seed in range(200)
    )
    assert 8 <= alarms <= 34  # 20 expected; the bounds are those of a binomial, p below 0.1%


def test_scenes_are_exchanged_as_a_whole() -> None:
    # Ten frames of each of six scenes, which differ: frame by frame there is a change, scene by scene there is none.
    centres = np.repeat(np.random.default_rng(1).normal(size=(6, 4)) * 5, 10, 0)
    features = centres + noise(2, 60) * 0.01
    as_scenes, _ = two_sample(features, [str(n // 10) for n in range(60)], 30, permutations=199)
    as_frames, _ = two_sample(features, [str(n) for n in range(60)], 30, permutations=199)
    assert as_scenes > 0.05 and as_frames == pytest.approx(1 / 200)


def test_the_group_that_has_changed_is_named_and_new_values_are_listed() -> None:
    before = shots(60, "a", cell="c1") + shots(60, "b", cell="c2") + shots(3, "r", cell="rare")
    after = (
        shots(60, "x", cell="c1") + shots(60, "y", cell="c2") + shots(8, "z", cell="c9") + shots(3, "s", cell="rare")
    )
    earlier = noise(1, 123)
    later = np.concatenate([noise(2, 60), noise(3, 60, shift=1.0), noise(4, 11)])
    found = drift(before, earlier, after, later, columns=["cell"], permutations=499)
    assert [test.name for test in found.alarms if test.column] == ["cell c2"]
    assert found.new == (("cell", "c9", 8),) and found.untested == (("cell", "rare"),)
    assert found.tests[0].name == "all frames" and len(found.tests) == 3
    (same,) = [test for test in found.tests if test.name == "cell c1"]
    assert not same.alarm and same.scenes == (60, 60)
    least = unlike(earlier, later)[:20]
    assert sum(60 <= place < 120 for place in least) >= 15  # the frames of the changed cell


def test_many_groups_leave_an_alarm_possible() -> None:
    # 99 permutations and 21 tests: the least corrected p would be 0.21.
    before = [Shot(f"a{n}", f"a{n}", {"sku": [f"s{n % 20}"]}) for n in range(240)]
    after = [Shot(f"b{n}", f"b{n}", {"sku": [f"s{n % 20}"] * 2}) for n in range(240)]  # listed twice, one frame
    later = noise(2, 240)
    later[::20] += 9.0
    found = drift(before, noise(3, 240), after, later, columns=["sku"], permutations=99)
    assert [test.name for test in found.alarms if test.column] == ["sku s0"]
    assert all((test.before, test.after) == (12, 12) for test in found.tests if test.column)


def test_one_value_before_is_tested_where_others_came() -> None:
    before, after = shots(20, "a", cell="c1"), shots(20, "b", cell="c1") + shots(20, "z", cell="c2")
    later = np.concatenate([noise(2, 20), noise(3, 20, shift=4.0)])
    found = drift(before, noise(1, 20), after, later, columns=["cell"])
    assert [(test.name, test.alarm) for test in found.tests] == [("all frames", True), ("cell c1", False)]


def test_equal_pictures_are_equal_whatever_the_rounding() -> None:
    row = np.random.default_rng(0).normal(size=300)
    features = np.tile(row, (259, 1))
    assert _kernel(features).min() == 1.0
    p, _ = two_sample(features, [str(n) for n in range(259)], 129, permutations=99)
    assert p == 1.0


def test_the_frames_that_are_least_alike_do_not_depend_on_how_many_there_are() -> None:
    later = noise(2, 2500)
    later[1::12] += 4.0
    assert all(place % 12 == 1 for place in unlike(noise(1, 2500), later)[:150])


def test_a_side_with_few_scenes_cannot_be_tested() -> None:
    with pytest.raises(ValueError, match="5 scenes"):
        drift(shots(4, "a"), noise(1, 4), shots(9, "b"), noise(2, 9))
