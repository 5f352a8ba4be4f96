"""Live accuracy by hand, alarms that are rare where nothing is wrong and come where something is, drift of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineside.judgement.live import EVERYTHING, Judged, Promise, answer_drift, judged, live
from lineside.judgement.outcomes import Account, Logged, Noise, Told
from lineside.judgement.typed import Form

SURE = Noise(0.0, 0.0)
COUNT = Form(kind="number", resolution=1.0)
HERE = Path("log")


def outcome(scene: int, right: bool, *, cell: str = "c1", by_truth: bool = True, decision: str = "", sku: str = "s1"):
    return Judged(f"s{scene}", "bins/count", decision, cell, (sku,), right, by_truth)


def test_the_accuracy_allows_for_wrong_verdicts() -> None:
    """8 of 10 succeed, a = 0.1, b = 0.05: (0.8 - 0.05) / 0.85 = 0.882; by truths it is what it is."""
    told = [outcome(n, n < 8) for n in range(10)]
    found = {group.name: group for group in live(told, Noise(0.1, 0.05), {})}
    assert found[EVERYTHING].accuracy == pytest.approx(0.8) and found[EVERYTHING].promised is None
    assert set(found) == {EVERYTHING, "task bins/count", "cell c1", "SKU s1"}
    verdicts = [replace(one, by_truth=False) for one in told]
    corrected = live(verdicts, Noise(0.1, 0.05), {})[0]
    assert corrected.accuracy == pytest.approx(0.75 / 0.85)
    wide, narrow = corrected.interval, found[EVERYTHING].interval
    assert wide.high - wide.low > 0.9 * (narrow.high - narrow.low) and 0 <= wide.low < 0.75 / 0.85 < wide.high <= 1


PROMISE: Mapping[tuple[str, str], Promise] = {
    ("bins/count", ""): Promise(0.8, 400),
    ("bins/count", "act"): Promise(0.95, 300),
    ("bins/count", "refuse"): Promise(0.35, 100),
}


def floor(rng: np.random.Generator, share: float, noise: Noise, *, n: int = 60, cells: int = 4) -> list[Judged]:
    right = rng.random(n) < share
    errs = rng.random(n) < np.where(right, noise.false_failures, noise.false_successes)
    by_truth = rng.random(n) < 0.5
    said = np.where(by_truth, right, right ^ errs)
    return [outcome(i, bool(said[i]), by_truth=bool(by_truth[i]), cell=f"c{i % cells}") for i in range(n)]


@pytest.mark.parametrize("noise", [SURE, Noise(0.1, 0.05)])
def test_where_the_promise_is_kept_alarms_are_rare(noise: Noise) -> None:
    """Of 60 floors that keep it exactly, without a margin: 8 alarms or more have a probability of 1% at the level."""
    rng = np.random.default_rng(0)
    alarms = [any(g.alarm for g in live(floor(rng, 0.8, noise), noise, PROMISE, margin=0.0)) for _ in range(60)]
    assert sum(alarms) <= 7


def test_a_cell_that_breaks_the_promise_is_named() -> None:
    rng = np.random.default_rng(1)
    told = floor(rng, 0.8, SURE, n=200) + [outcome(1000 + n, n % 4 == 0, cell="c9", sku="s9") for n in range(24)]
    found = live(told, SURE, PROMISE)
    alarms = {group.name for group in found if group.alarm}
    assert {"cell c9", "SKU s9"} <= alarms and not {f"cell c{n}" for n in range(4)} & alarms
    assert found[0].name == EVERYTHING and found[1].alarm  # what matters first


def test_refused_answers_are_held_to_what_was_promised_of_them() -> None:
    """Truths of the refused answers alone: 35% right are as promised, and 35% of those acted on are not."""
    refused = [outcome(n, n % 3 == 0, decision="refuse") for n in range(60)]
    assert not any(group.alarm for group in live(refused, SURE, PROMISE))
    acted = [replace(one, decision="act") for one in refused]
    assert all(group.alarm for group in live(acted, SURE, PROMISE))
    assert live(acted, SURE, PROMISE)[0].promised == pytest.approx(0.95)


def test_few_scenes_and_unknown_tasks_are_not_tested() -> None:
    few = [outcome(n // 10, False) for n in range(40)]  # of four scenes
    assert [group.p for group in live(few, SURE, PROMISE)] == [None] * 4
    other = [replace(outcome(n, False), task="bins/new") for n in range(40)]
    assert [(group.promised, group.p) for group in live(other, SURE, PROMISE)] == [(None, None)] * 4


def logged(number: int, answer: str, **more: object) -> Logged:
    place = Logged(HERE, f"row {number}", id=f"a{number}", frame=f"f{number}", question="how many?", task="bins/count")
    return replace(place, answer=answer, form=COUNT, **more)


def test_an_answer_is_right_by_its_truth_else_by_its_verdict() -> None:
    answers = [logged(n, "3") for n in range(6)]
    told = [
        Told(answers[0], "3", None, None, "0"), Told(answers[0], None, False, None, "0"),  # the truth counts
        Told(answers[1], "4", None, None, "1"),
        Told(answers[2], None, True, None, "2"), Told(answers[2], None, True, None, "2"),
        Told(answers[3], None, True, None, "3"), Told(answers[3], None, False, None, "3"),
        Told(answers[4], "3", None, None, "4"), Told(answers[4], "5", None, None, "4"),
        Told(answers[5], "many", None, None, "5"),
    ]  # fmt: skip
    account = Account()
    found = judged(told, {}, account)
    assert [(one.scene, one.right, one.by_truth) for one in found] == [
        ("f0", True, True), ("f1", False, True), ("f2", True, False),
    ]  # fmt: skip
    assert account.left_out == {
        "contradicting verdicts": 2, "contradicting truths": 2, "the truth is no answer to the question": 1,
    }  # fmt: skip


def test_answers_that_change_in_one_cell_are_named_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    counts = lambda n, shift=0: [str(k + shift) for k in rng.poisson(4, n)]  # noqa: E731
    cells = [f"c{n % 3}" for n in range(180)]
    before = [logged(n, text, cell=cell) for n, (text, cell) in enumerate(zip(counts(180), cells))]
    same = [logged(n, text, cell=cell) for n, (text, cell) in enumerate(zip(counts(180), cells), 1000)]
    assert not any(test.alarm for test in answer_drift(before, same, {}))
    moved = [replace(a, answer=str(int(a.answer or "0") + 3)) if a.cell == "c1" else a for a in same]
    alarms = [test.name for test in answer_drift(before, moved, {}) if test.alarm]
    assert "task bins/count, cell c1" in alarms and not {f"task bins/count, cell c{n}" for n in (0, 2)} & set(alarms)


def test_states_drift_too_and_silence_is_an_answer() -> None:
    before = [logged(n, "intact" if n % 5 else "torn") for n in range(60)]
    after = [logged(n + 100, "" if n % 2 else "intact") for n in range(60)]
    (test,) = answer_drift(before, after, {})
    assert test.alarm and test.before[0] == ("intact", pytest.approx(0.8)) and ("(none)", 0.5) in test.now
