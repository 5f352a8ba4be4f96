"""From questions to rows, with a writer that is ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from lineside.data.suite import scene_of, suite, suite_digest
from lineside.judgement.answers import answer_questions, answer_tokens, confidence
from lineside.judgement.baselines import Guess
from lineside.judgement.latency import LatencyModel
from lineside.judgement.schema import Row
from lineside.types import Image, Rollout, Sample, Target
from tests.judgement.conftest import choice, question

OPEN, CLOSE, END = 1, 2, 3


def rollout(text: str, tokens: Sequence[int] = (OPEN, 7, CLOSE, 8, END), finished: bool = True) -> Rollout:
    return Rollout(tuple(tokens), tuple(-0.1 * (i + 1) for i in range(len(tokens))), text, finished)


def answered(samples: Sequence[Sample], writes: dict[str, Rollout], mode: Any = "think", **changes: Any) -> list[Row]:
    arguments: dict[str, Any] = {"latency": None, "budgets": {}, "baselines": None, **changes}
    answerer = lambda chunk: [writes[s.id] for s in chunk]  # noqa: E731
    return list(answer_questions(samples, answerer, thinking=lambda _: mode == "think", think_close=CLOSE, **arguments))


def test_a_suite_asks_each_question_once() -> None:
    samples = [
        question("a", choice("no"), trace="one way"),
        question("b", choice("no"), trace="another way", images=(Image(b"a"),)),  # the same picture and question
        question("c", choice("no"), question="Is it full?", images=(Image(b"a"),)),
        question("d", choice("no"), split="train"),
        question("e", None),
        question("f", choice("no"), kind="prompt"),
    ]
    assert [s.id for s in suite(samples, split="heldout").questions] == ["a", "c", "f"]


def test_a_limit_is_spread_evenly_over_tasks_which_share_their_scenes() -> None:
    many = [question(f"e{i}", choice("no"), scene=f"s{i}") for i in range(20)]
    few = [question(f"f{i}", choice("no"), task="full", question="Is it full?", scene=f"s{i}") for i in range(3)]
    some = [question(f"b{i}", choice("no"), task="bins", question="Two bins?", scene=f"s{i}") for i in range(20)]
    found = suite([*many, *few, *some], split="heldout", limit=11).questions
    by_task = {task: [s.meta.scene for s in found if s.task == task] for task in ("empty", "full", "bins")}
    assert {task: len(scenes) for task, scenes in by_task.items()} == {"empty": 4, "full": 3, "bins": 4}
    assert set(by_task["empty"]) == set(by_task["bins"])
    again = suite([*some, *few, *many], split="heldout", limit=11).questions
    assert {s.id for s in again} == {s.id for s in found}
    assert len(suite(many, split="heldout", limit=99).questions) == 20


def test_only_a_teachers_word_is_not_enough_held_out() -> None:
    heard = question("a", choice("no", provenance="teacher"))
    seen = question("b", choice("yes"), images=heard.images)  # the same question, vouched for by the simulator
    alone = question("c", choice("no", provenance="teacher"))
    found = suite([heard, seen, alone], split="heldout")
    assert [s.id for s in found.questions] == ["b"] and found.left_out == 1
    dev = [question("c", choice("no", provenance="teacher"), split="dev")]
    assert len(suite(dev, split="dev").questions) == 1


def test_digest_knows_the_suite_whatever_its_order() -> None:
    a, b = question("a", choice("no")), question("b", choice("yes"))
    assert suite_digest([a, b]) == suite_digest([b, a])
    assert suite_digest([a, b]) != suite_digest([a, question("b", choice("no"))])
    assert suite_digest([a]) != suite_digest([question("a", choice("no"), images=(Image(b"other"),))])


def test_questions_without_a_scene_are_bound_by_their_picture() -> None:
    a, b = (question(i, choice("no"), scene="", images=(Image(b"same"),)) for i in "ab")
    assert scene_of(a) == scene_of(b) != ""
    assert scene_of(question("c", choice("no"), scene="drop-7")) == "drop-7"


def test_confidence_is_the_answers_own_probability() -> None:
    assert answer_tokens(rollout("x"), thinking=True, think_close=CLOSE) == pytest.approx((-0.4, -0.5))
    assert len(answer_tokens(rollout("x"), thinking=False, think_close=CLOSE)) == 5
    assert answer_tokens(rollout("x", (OPEN, 7, 8)), thinking=True, think_close=CLOSE) == ()
    assert confidence((-0.4, -0.5)) == pytest.approx(math.exp(-0.9))
    assert confidence(()) == 0.0


def test_rows_hold_what_the_judge_said() -> None:
    samples = [question(i, choice("no"), extra={"facts": ["two parts lie in it"], "weight": 3}) for i in "abcd"]
    trace = "<think>two parts lie in it; so it is not empty</think>"
    writes = {
        "a": rollout(trace + "no"),
        "b": rollout(trace + "yes"),
        "c": rollout("<think>two parts", (OPEN, 7, 7), finished=False),
        "d": rollout("<think></think>no"),
    }
    a, b, c, d = answered(samples, writes)
    assert (a.exact, a.reward, a.trace_class, a.facts, a.weight) == (True, 1.0, "valid", 1.0, 3.0)
    assert a.confidence == pytest.approx(math.exp(-0.9)) and a.answer_tokens == 2 and a.tokens == 5
    assert (b.exact, b.reward, b.reason, b.answer) == (False, 0.0, "wrong", "yes")
    assert (c.exact, c.answer, c.confidence, c.trace_class, c.answer_tokens) == (False, None, 0.0, "truncated", 0)
    assert (d.exact, d.reward, d.trace_class) == (True, 0.0, "empty")  # exact is reported ungated
    assert a.reference == "no" and a.target == choice("no").to_json()


def test_budgets_come_from_the_table_else_from_the_sample() -> None:
    samples = [
        question("a", choice("no"), extra={"budget_ms": 30}),
        question("b", choice("no"), task="full", extra={"budget_ms": 30}),
        question("c", choice("no"), task="none"),
        question("d", choice("no"), task="none", extra={"budget_ms": "soon"}),
    ]
    writes = {s.id: rollout("no", (8, END)) for s in samples}  # 10 + 5 ms a further token: 15 ms
    measured, budgets = LatencyModel(10, 5, 1, p50_ms=15, slow=1.0), {("picking", "empty"): 14.0}
    rows = answered(samples, writes, "fast", latency=measured, budgets=budgets)
    assert [(r.latency_ms, r.budget_ms, r.within_budget) for r in rows] == [
        (15.0, 14.0, False),
        (15.0, 30.0, True),
        (15.0, None, True),
        (15.0, None, True),
    ]
    for latency, expected in (
        (LatencyModel(10, 5, 1, p50_ms=15, slow=2.0), [False, True, True, True]),  # 95 in 100 within 30 ms
        (LatencyModel(10, 5, 1, p50_ms=15, slow=2.1), [False, False, True, True]),
        (LatencyModel(10, 5, 1, p50_ms=15), [None, None, True, True]),  # too few were measured
        (None, [None, None, True, True]),
    ):
        rows = answered(samples, writes, "fast", latency=latency, budgets=budgets)
        assert [r.within_budget for r in rows] == expected


def test_baselines_are_judged_by_the_same_verifier() -> None:
    class Guesser:
        def predict(self, samples: Sequence[Sample]) -> list[Guess]:
            return [Guess("3", "5 or 3") for _ in samples]

    samples = [question("a", Target("number", "sim", value=3))]
    (found,) = answered(samples, {"a": rollout("4", (8, END))}, "fast", baselines=Guesser())
    assert (found.exact, found.blind_exact, found.classifier_exact) == (False, True, False)


def test_chunks_keep_the_order_and_a_missing_rollout_is_noticed() -> None:
    samples = [question(str(i), choice("no")) for i in range(7)]
    writes = {s.id: rollout("no", (8, END)) for s in samples}
    assert [r.id for r in answered(samples, writes, "fast", at_once=3)] == [s.id for s in samples]
    with pytest.raises(ValueError):
        list(
            answer_questions(
                samples,
                lambda _: [],
                thinking=lambda _: False,
                think_close=CLOSE,
                latency=None,
                budgets={},
                baselines=None,
            )
        )
