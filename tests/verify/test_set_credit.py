"""Part credit for lists: more right parts never earn less, an exact list stands clear, and no trick gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.training.advantages import is_dead_group
from lineside.types import Target
from lineside.verify.members import members_text
from lineside.verify.verifiers import credit_by_errors, verify

always_the_same = settings(derandomize=True, deadline=None, database=None, max_examples=200)
SLOTS = tuple(map(str, range(1, 13)))
NAMES = ("red can", "small box", "pouch", "battery", "ball")
slots = st.lists(st.sampled_from(SLOTS), unique=True, max_size=12)
items = st.lists(st.sampled_from(NAMES), max_size=12)
Credit = Callable[[str, Target], float]


def f1(answer: str, target: Target) -> float:
    return verify(answer, target).reward


CREDITS = pytest.mark.parametrize("credit", [f1, credit_by_errors])


def plain(right: Sequence[str]) -> Target:
    return Target("set", "sim", accepted=tuple(right), options=SLOTS)


def counted(right: Sequence[str]) -> Target:
    return Target("set", "sim", accepted=tuple(right), options=NAMES, counted=True)


def listed(members: Sequence[str]) -> str:
    return ", ".join(members) or "none"


KINDS = pytest.mark.parametrize("kind, members", [(plain, slots), (counted, items)])


@CREDITS
@KINDS
@always_the_same
@given(data=st.data())
def test_credit_lies_in_0_to_1_and_only_the_exact_list_has_1(credit, kind, members, data) -> None:
    right, named = data.draw(members), data.draw(members)
    reward = credit(listed(named), kind(right))
    assert (reward == 1.0) == (sorted(named) == sorted(right)) == verify(listed(named), kind(right)).exact
    assert 0.0 <= reward <= 1.0


@CREDITS
@KINDS
@always_the_same
@given(data=st.data())
def test_one_more_right_part_never_earns_less_and_one_more_wrong_part_never_more(credit, kind, members, data) -> None:
    right, named = data.draw(members), data.draw(members)
    target, reward = kind(right), credit(listed(named), kind(right))
    for part in set(SLOTS if kind is plain else NAMES):
        with_it = credit(listed([*named, part]), target)
        if named.count(part) < right.count(part):
            if set(target.options) <= {*named, part} and sorted([*named, part]) != sorted(right):
                continue  # every option is listed now: that is no answer
            assert with_it > reward or with_it == reward == 0.0
        else:
            assert with_it <= reward
    for number, part in enumerate(named):
        if named.count(part) > right.count(part) and not set(target.options) <= set(named):
            assert credit(listed(named[:number] + named[number + 1 :]), target) >= reward


@CREDITS
@KINDS
@always_the_same
@given(data=st.data(), random=st.randoms(use_true_random=False))
def test_order_case_and_space_change_nothing(credit, kind, members, data, random) -> None:
    right, named = data.draw(members), data.draw(members)
    shuffled = random.sample(named, len(named))
    for answer in (listed(shuffled), listed(named).upper(), f"  {listed(shuffled)} .", " ,  ".join(named) or "None"):
        assert credit(answer, kind(right)) == credit(listed(named), kind(right))


@CREDITS
@KINDS
@always_the_same
@given(data=st.data())
def test_padding_gains_nothing(credit, kind, members, data) -> None:
    right = data.draw(members)
    named = data.draw(members)
    target, honest = kind(right), credit(listed(named), kind(right))
    again = [part for part in dict.fromkeys(named) if named.count(part) >= right.count(part)]
    assert credit(listed(named + again), target) <= honest  # members said again
    assert credit(listed([*named, "no such part"]), target) <= honest
    for tail in (",", ", ,", " and more", ", none", "; so that is all"):
        if not set(target.options) <= set(named):  # else the tail spoils one name: all options but one
            assert credit(listed(named) + tail, target) <= honest
    for empty in ("", " ", ",", ".", "none, none", "nothing", "all", "..."):
        assert credit(empty, target) == 0.0
    assert credit("none", target) == float(not right)


@CREDITS
def test_every_option_at_once_earns_nothing(credit: Credit) -> None:
    assert credit(listed(SLOTS), plain(["3", "4"])) == 0.0
    assert credit(listed([*SLOTS, "13"]), plain(["3", "4"])) == 0.0
    assert credit(members_text([*NAMES, *NAMES]), counted(["red can", "ball"])) == 0.0


@pytest.mark.parametrize(
    "right, named, expected_f1, expected",
    [  # twelve slots, by hand
        (["2", "5"], ["2"], 2 / 3, 1 / 2),  # one left out, of two
        (["2", "5"], ["2", "5", "6"], 4 / 5, 1 / 2),  # one too many
        (["2", "5"], ["2", "6"], 1 / 2, 0.0),  # one left out and one too many: two errors
        (["2", "5"], list(SLOTS[:11]), 4 / 13, 0.0),  # all but one, without looking
        (list(SLOTS[:8]), list(SLOTS[:7]), 14 / 15, 7 / 8),
        (list(SLOTS[:8]), list(SLOTS[1:9]), 14 / 16, 6 / 8),
        (list(SLOTS[:11]), list(SLOTS[:10]), 20 / 21, 10 / 11),
        ([], ["2"], 0.0, 0.0),
    ],
)
def test_credit_by_hand(right: list[str], named: list[str], expected_f1: float, expected: float) -> None:
    assert f1(listed(named), plain(right)) == pytest.approx(expected_f1)
    assert credit_by_errors(listed(named), plain(right)) == pytest.approx(expected)


def test_credit_of_counts_by_hand() -> None:
    target = counted(["red can", "red can", "ball", "pouch"])
    assert credit_by_errors("2 red cans, ball", target) == pytest.approx(3 / 4)
    assert credit_by_errors("red can, ball, pouch", target) == pytest.approx(3 / 4)  # one of two cans
    assert credit_by_errors("4 red cans, ball, pouch", target) == pytest.approx(2 / 4)  # two too many
    assert credit_by_errors("999 red cans, ball, pouch", target) == 0.0


def test_other_kinds_keep_their_credit() -> None:
    count = Target("number", "sim", value=5, tolerance=2)
    assert [credit_by_errors(answer, count) for answer in ("5", "4", "9", "many")] == [1.0, 0.5, 0.0, 0.0]


def mean(credit: Credit, answer: Sequence[str], truths: Sequence[Sequence[str]], options: tuple[str, ...]) -> float:
    targets = [Target("set", "sim", accepted=tuple(truth), options=options) for truth in truths]
    return sum(credit(listed(answer), target) for target in targets) / len(targets)


def test_f1_pays_for_naming_much_without_looking_and_errors_do_not() -> None:
    # One of six slots is wrong, each as likely. Naming one is right in 1 of 6. Naming five: 5/6 * 2 / (5 + 1) = 5/18.
    six = SLOTS[:6]
    truths = [[slot] for slot in six]
    assert mean(f1, six[:1], truths, six) == pytest.approx(1 / 6)
    assert mean(f1, six[:5], truths, six) == pytest.approx(5 / 18)
    by_errors = [mean(credit_by_errors, six[:named], truths, six) for named in range(7)]
    assert by_errors == pytest.approx([0, 1 / 6, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_no_answer_without_looking_beats_none_where_half_of_the_kits_are_right(wrong: int) -> None:
    # In half of the kits nothing is wrong; in the others `wrong` of six slots are, each choice as likely.
    six = SLOTS[:6]
    faulty = list(combinations(six, wrong))
    truths = [*faulty, *[()] * len(faulty)]
    best = max(mean(credit_by_errors, six[:named], truths, six) for named in range(1, 7))
    assert best < mean(credit_by_errors, [], truths, six) == 0.5


@pytest.mark.parametrize(
    "credit, size",
    [*((f1, size) for size in (2, 5, 9)), *((credit_by_errors, size) for size in (2, 5, 10, 11, 12, 19))],
)
def test_a_group_with_an_exact_long_list_is_live_whatever_the_others_miss(credit: Credit, size: int) -> None:
    """With F1 up to nine members: the spread of a longer list is below what teaches (MIN_SPREAD)."""
    options = tuple(map(str, range(1, 2 * size + 1)))
    target = Target("set", "sim", accepted=options[:size], options=options)
    for near in (options[: size - 1], options[: size + 1]):
        assert not is_dead_group([credit(listed(options[:size]), target), credit(listed(near), target)])


@pytest.mark.parametrize("size", range(2, 20))
def test_by_errors_each_part_of_up_to_nineteen_tells(size: int) -> None:
    options = tuple(map(str, range(1, 2 * size + 1)))
    target = Target("set", "sim", accepted=options[:size], options=options)
    rewards = [credit_by_errors(listed(options[:named]), target) for named in range(1, size + 1)]
    assert all(not is_dead_group(pair) for pair in pairwise(rewards))
