"""Multisets as text: what is written is read back, in whatever order and wording, and counts are never guessed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.types import Target
from lineside.verify.members import ambiguous, guess_members, members_text, plural, read_members
from lineside.verify.verifiers import verify, with_truth

always_the_same = settings(derandomize=True, database=None, max_examples=300)
NAMES = ("red can", "small box", "pouch", "3 mm screw", "scissors", "Battery")
lists = st.lists(st.sampled_from(NAMES), max_size=12)


def target(members: list[str]) -> Target:
    return Target("set", "sim", accepted=tuple(members), options=NAMES, counted=True)


@pytest.mark.parametrize(
    ("one", "many"),
    [("red can", "red cans"), ("pouch", "pouches"), ("box", "boxes"), ("battery", "batteries"), ("BOX", "BOXes")],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 red cans, pouch", {"red can": 2, "pouch": 1}),
        ("pouch, red can, pouch", {"red can": 1, "pouch": 2}),
        ("3 mm screw", {"3 mm screw": 1}),
        ("3 3 mm screws", {"3 mm screw": 3}),
        ("2 scissors", {"scissors": 2}),  # the plural of a few words is the word
        ("2 scissorses", {"scissors": 2}),
        ("none", {}),
        ("2 apples", {"2 apples": 1}),  # no name: it earns nothing
        ("pouch,", None),
        ("", None),
    ],
)
def test_reading(text: str, expected: dict[str, int] | None) -> None:
    found = read_members(text, NAMES)
    assert (None if found is None else dict(found)) == expected


@always_the_same
@given(lists, st.randoms(use_true_random=False))
def test_what_is_written_is_exact_in_any_order_and_so_is_the_plain_list(members: list[str], random) -> None:
    assert verify(members_text(members), target(members)).exact
    shuffled = random.sample(members, len(members))
    assert verify(members_text(shuffled), target(members)).exact
    assert verify(", ".join(shuffled) or "none", target(members)).exact


@always_the_same
@given(lists, lists)
def test_credit_is_the_multisets_f1_and_exact_means_equal(one: list[str], other: list[str]) -> None:
    verdict = verify(members_text(one), target(other))
    hits = sum((Counter(one) & Counter(other)).values())
    assert verdict.exact == (Counter(one) == Counter(other))
    if not verdict.exact and verdict.reason != "every option listed":
        assert verdict.reward == pytest.approx(2 * hits / (len(one) + len(other)) if hits else 0.0)


@always_the_same
@given(st.lists(st.sampled_from(NAMES), unique=True), st.lists(st.sampled_from(NAMES), unique=True))
def test_where_nothing_stands_twice_it_is_the_set(one: list[str], other: list[str]) -> None:
    plain = Target("set", "sim", accepted=tuple(other), options=NAMES)
    assert verify(", ".join(one) or "none", plain) == verify(", ".join(one) or "none", target(other))


def test_names_that_could_be_counts_of_each_other_are_told() -> None:
    assert ambiguous(("2 cans", "can")) == "'2 cans' could be 2 of 'can'"
    assert ambiguous(("2 can", "can")) == "'2 can' could be 2 of 'can'"
    assert ambiguous(("cans", "can")) == "'cans' could be several of 'can'"
    assert "sign for times" in ambiguous(("x ray",))
    assert ambiguous(NAMES) == ""


def test_a_list_where_no_name_is_known() -> None:
    assert guess_members("2 cans, box") == ("cans", "cans", "box")
    assert guess_members("None.") == ()


def test_another_truth() -> None:
    kept = target(["pouch"])
    two, none = with_truth(kept, "2 pouches"), with_truth(kept, "none")
    assert two is not None and two.accepted == ("pouch", "pouch")
    assert none is not None and none.accepted == ()
    assert with_truth(kept, "2 apples") is None
