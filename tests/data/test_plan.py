"""Which frames serve which stage, and how answers are balanced."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data.plan import AuditPlan, Balance, FrameQuestion, most_of_each, thinned, uses_of
from lineside.data.taskfile import Task
from lineside.data.tasks import Candidate
from lineside.types import Frame, Image, Meta, Split, Target


def asked(number: int, answer: str, share: float | None = 0.5, name: str = "t") -> FrameQuestion:
    keys = {"family": "f", "name": name, "phrasings": ["Q?"], "answer": {"kind": "exact", "column": "c"}}
    task = Task.model_validate({**keys, "max_share": share})
    return FrameQuestion(
        f"{name}{number}", task, Candidate("Q?", answer, Target("exact", "sim", accepted=(answer,)), {}, "")
    )


@pytest.mark.parametrize(
    ("counts", "share", "most"),
    [
        ({"no": 90, "yes": 10}, 0.5, 10),
        ({"0": 50, "1": 30, "2": 20}, 0.4, 33),  # 33 <= 0.4 * 83, and 34 > 0.4 * 84
        ({"a": 50, "b": 50}, 0.5, 50),
        ({"a": 50, "b": 30, "c": 1}, 0.4, 30),  # c would allow one of each
        ({"none": 70, **{str(i): 3 for i in range(10)}}, 0.3, 12),  # 12 <= 0.3 * 42
        ({"no": 97, "yes": 3}, 0.5, 3),
        ({"a": 40}, 0.5, 40),  # nothing to balance against
        ({str(i): 5 for i in range(40)}, 0.3, 5),
    ],
)
def test_an_answer_is_cut_to_its_share(counts: dict[str, int], share: float, most: int) -> None:
    assert most_of_each(counts, share) == most


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 300), min_size=2, max_size=8), st.floats(0.1, 0.9))
def test_the_share_holds_unless_a_common_answer_would_be_cut(counts: dict[str, int], share: float) -> None:
    most = most_of_each(counts, share)
    kept = [min(most, n) for n in counts.values()]
    common = min((n for n in counts.values() if n >= 0.05 * sum(counts.values())), default=0)
    assert max(kept) <= share * sum(kept) + 1e-9 or most <= common


def settled(found: list[FrameQuestion], share: float = 0.5) -> tuple[Balance, list[str]]:
    balance = Balance(seed=0)
    for a in found:
        balance.count("dev", a)
    return balance, balance.settle([found[0].task])


def test_exactly_the_share_stays_and_weights_restore_the_rest() -> None:
    found = [asked(i, "no" if i % 10 else "yes") for i in range(100)]
    balance, unmet = settled(found)
    kept = {a.id: balance.keeps("dev", a) for a in found}
    answers = Counter(a.candidate.answer for a in found if kept[a.id])
    assert answers == {"yes": 10, "no": 10}
    assert unmet == []
    assert {kept[a.id] for a in found if a.candidate.answer == "no"} == {0.0, 9.0}  # 90 natural, 10 kept
    assert sum(kept.values()) == pytest.approx(100)


def test_the_order_of_frames_decides_nothing() -> None:
    found = [asked(i, "no" if i % 7 else "yes") for i in range(70)]
    one, _ = settled(found)
    other, _ = settled(found[::-1])
    assert [one.keeps("dev", a) for a in found] == [other.keeps("dev", a) for a in found]


def test_what_cannot_be_balanced_is_told() -> None:
    found = [asked(i, "no") for i in range(40)]
    balance, unmet = settled(found)
    assert unmet == ["dev f/t: the commonest answer is 40 of 40, max_share 0.5"]
    assert all(balance.keeps("dev", a) == 1.0 for a in found)


def test_a_task_without_a_share_is_left_alone() -> None:
    found = [asked(i, "no", share=None) for i in range(5)]
    balance, unmet = settled(found)
    assert [balance.keeps("dev", a) for a in found] == [1.0] * 5
    assert unmet == []


def test_thinning_takes_one_of_each_task_first() -> None:
    found = [asked(i, "x", name="many") for i in range(9)] + [asked(0, "x", name="one"), asked(0, "x", name="two")]
    for seed in range(20):
        kept = thinned(found, 4, seed=seed)
        assert Counter(a.task.name for a in kept) == {"many": 2, "one": 1, "two": 1}
        assert [found.index(a) for a in kept] == sorted(found.index(a) for a in kept)
    assert thinned(found, 99, seed=0) == found


def test_frames_of_one_scene_serve_one_stage_in_the_shares_asked_for() -> None:
    def use(scene: str, number: int = 0, split: Split = "train", shares=(0.5, 0.25)) -> tuple[str, ...]:
        frame = Frame(f"{scene}-{number}", Image(b"x"), "f", {}, Meta(scene=scene), split)
        return uses_of(frame, seed=0, question_share=shares[0], prompt_share=shares[1])

    uses = Counter(use(f"s{i}") for i in range(4000))
    assert {name: count / 4000 for name, count in uses.items()} == pytest.approx(
        {("qa",): 0.5, ("prompt",): 0.25, (): 0.25}, abs=0.03
    )
    assert all(use(f"s{i}", 0) == use(f"s{i}", 1) for i in range(50))
    assert use("s1", split="heldout") == ("heldout",)
    assert {use(f"s{i}", shares=(1.0, 1.0)) for i in range(50)} == {("qa", "prompt")}
    over = Counter(use(f"s{i}", shares=(0.8, 0.5)) for i in range(4000))  # they overlap by what is over 1, no more
    assert {name: count / 4000 for name, count in over.items()} == pytest.approx(
        {("qa",): 0.5, ("prompt",): 0.2, ("qa", "prompt"): 0.3}, abs=0.03
    )


def met(plan: AuditPlan, count: int) -> set[str]:
    """The frames that an audit takes of so many to train on and a few of a suite."""
    frames = [Frame(f"f{n}", Image(b""), "f", {}, Meta(), "train" if n % 5 else "dev") for n in range(count)]
    for number, frame in enumerate(frames):
        plan.meet(frame, [asked(number, "yes")])
    plan.settle([asked(0, "yes").task])
    return {frame.id for frame in frames if plan.takes(frame)}


def test_an_audit_takes_so_many_training_frames_and_growth_changes_few() -> None:
    plan = AuditPlan(20, None, seed=0)
    few = met(plan, 100)
    assert len(few) == plan.frames == 20 and not any(int(name[1:]) % 5 == 0 for name in few)
    more = met(AuditPlan(20, None, seed=0), 130)
    assert len(more) == 20 and len(few & more) > 10
    assert few != met(AuditPlan(20, None, seed=1), 100)
    assert len(met(AuditPlan(None, None, seed=0), 100)) == 80 and len(met(AuditPlan(500, None, seed=0), 100)) == 80
    assert met(AuditPlan(0, None, seed=0), 100) == set()


def test_an_audit_asks_balanced_questions_and_an_api_no_more_than_fit_a_request() -> None:
    found = [asked(n, "no" if n % 10 else "yes") for n in range(100)]
    frame = Frame("f", Image(b""), "f", {}, Meta(), "train")
    for most, left in ((None, 20), (6, 6)):
        plan = AuditPlan(None, most, seed=0)
        plan.meet(frame, found)
        plan.settle([found[0].task])
        assert len(plan.chosen(found)) == left
    assert not plan.takes(Frame("g", Image(b""), "f", {}, Meta(), "heldout"))
