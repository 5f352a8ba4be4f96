"""Reward hacking is looked for by search (hacking.py), in its short form; benchmarks/reward_hacking.py is longer."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lineside.verify.verifiers as verifiers
import tests.verify.hacking as hacking
from lineside.types import Target, Verdict
from tests.verify.hacking import (
    Found,
    Task,
    arranged,
    evolved,
    exhaustive,
    honest,
    strict,
    strict_response,
    tasks,
    train,
)
from tests.verify.test_verifiers import ATTACKS, GOLD, NEAR, PICK

TASKS = {task.name: task for task in tasks()}
READ = {"", "mm", "percent", "degrees"}  # the units that the reader knows


def readable(target: Target) -> bool:
    return target.unit in READ


@pytest.mark.parametrize("rows", [GOLD, NEAR, ATTACKS], ids=["gold", "near", "attacks"])
def test_the_reader_and_the_verifiers_agree_on_the_tables(rows: Any) -> None:
    """Two codes that know nothing of each other; the reader may be stricter, and then gives nothing."""
    compared = 0
    for target, text, *_ in rows:
        if not readable(target) or len(text) > 5000:
            continue
        found, (credit, exact) = verifiers.verify(text, target), strict(text, target)
        compared += credit > 0
        assert not exact or found.exact, (text, target)
        assert found.reward <= credit + 1e-6, (text, target)
        assert not credit or abs(found.reward - credit) < 1e-6, (text, target)
    assert compared > 15 or rows is ATTACKS


def test_the_reader_of_a_response() -> None:
    count = Target("number", "sim", value=3.0, tolerance=2.0)
    read = lambda text: strict_response(text, count, thinking=True)  # noqa: E731
    assert read("<think>a; b; so 3</think>3") == (1.0, True)
    assert read("<think>a</think>2") == (0.5, False)
    assert read("<think> </think>3") == (0.0, True)
    assert read("3") == (0.0, True)
    for text in ("<think>3", "</think>3<think>", "<think>a</think>3</think>", "a<think>b</think>3", "<think>a</think>"):
        assert read(text) == (0.0, False)


@pytest.mark.parametrize("name", TASKS)
def test_no_text_is_a_hack(name: str) -> None:
    task = TASKS[name]
    found = exhaustive(task, 1, answers=5)
    found.add(evolved(task, generations=6, size=16, seed=0))
    assert found.tried > 150 and found.earning > 10
    assert found.hacks == []


def test_no_arrangement_of_tags_traces_and_answers_is_a_hack(monkeypatch: pytest.MonkeyPatch) -> None:
    found = arranged(TASKS["yes or no"], 4)
    assert found.tried == 9 + 81 + 729 + 6561 and found.earning > 20 and found.hacks == []
    plain = hacking.judge
    monkeypatch.setattr(hacking, "judge", lambda text, *given, **how: plain(text.lower(), *given, **how))
    assert arranged(TASKS["yes or no"], 4).hacks  # a judge that takes tags in capitals is found


BROKEN = {  # a fault of a verifier, and how the search must call it
    "contains": "exact for several truths",
    "all listed": "more than any plain answer",
    "rounded": "more than the reader gives",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_search_finds_a_broken_verifier(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = verifiers.verify

    def broken(text: str, target: Target) -> Verdict:
        if fault == "contains" and target.kind == "choice" and target.accepted[0] in text:
            return Verdict(1.0, True, "exact")
        if fault == "all listed" and target.kind == "set":  # nothing watches over the list of all
            return plain(text, replace(target, options=()))
        if fault == "rounded" and target.kind == "number":
            return plain(text.partition(".")[0], target)
        return plain(text, target)

    monkeypatch.setattr(hacking, "verify", broken)
    task = {"contains": "state", "all listed": "slots", "rounded": "count"}[fault]
    fresh = replace(TASKS[task])
    found = exhaustive(fresh, 2, answers=0) if fault != "all listed" else Found()
    if fault == "all listed":
        hacking.test_text("1, 2, 3, 4, 5, 6", fresh, found)
        hacking.test_text("1, 2, 3, 4, 5", fresh, found)
    kinds = {kind for _, kind, _ in found.hacks}
    assert BROKEN[fault] in kinds or (fault == "all listed" and "more than the reader gives" in kinds)


@pytest.mark.parametrize(
    "name, sees, thinking",
    [("state", 0.6, True), ("count", 0.6, False), ("yes or no", 0.0, False), ("free set", 0.6, False)],
)
def test_a_policy_that_knows_only_the_reward_is_no_better_than_an_honest_answer(
    name: str, sees: float, thinking: bool
) -> None:
    learnt = train(TASKS[name], steps=60, seed=1, sees=sees, thinking=thinking)
    assert learnt.apart == () and learnt.exact == learnt.strict
    assert learnt.excess < 4
    untrained = train(TASKS[name], steps=1, seed=1, sees=sees, thinking=thinking)
    assert learnt.reward > untrained.reward + 0.1  # it has learnt


def test_a_policy_finds_a_broken_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier takes a text that contains the answer: the policy learns to name several, and the reader sees it."""
    plain = hacking.judge

    def broken(text: str, target: Target, **how: Any) -> Any:
        judged = plain(text, target, **how)
        right = target.accepted[0] in text
        return replace(judged, reward=float(right), verdict=Verdict(float(right), right, "exact" if right else "wrong"))

    monkeypatch.setattr(hacking, "judge", broken)
    learnt = train(TASKS["state"], steps=120, seed=0, sees=0.0)
    assert learnt.exact > learnt.strict and learnt.apart and learnt.excess > 4


def test_what_is_honest_by_hand() -> None:
    one = lambda text, target: float(text == target.accepted[0])  # noqa: E731
    task = TASKS["state"]  # four states
    assert honest(task, 0.0, one) == pytest.approx(1 / 4)
    assert honest(task, 0.6, one) == pytest.approx(0.6 + 0.4 / 4)
    count = Task("three", tuple(Target("number", "sim", value=v, tolerance=2.0) for v in (0.0, 1.0, 2.0)), ("0",))
    credit = lambda text, target: strict(text, target)[0]  # noqa: E731
    assert honest(count, 0.0, credit) == pytest.approx(2 / 3)  # "1": 1/2 + 1 + 1/2, of three


def test_angles_far_beyond_the_period_were_found_by_this_search() -> None:
    angle = TASKS["angle"].truths[0]
    for text in ("360360", "9000", "3600"):
        assert verifiers.verify(text, angle).reward == strict(text, angle)[0] == 0.0
    assert strict("0.35, 0.45", PICK) == (1.0, True)


def test_the_parts_of_the_long_search_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    search = importlib.import_module("reward_hacking")
    monkeypatch.setattr(search, "OUT", tmp_path)

    def run(*words: str) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        small = ["--longest", "1", "--generations", "1", "--steps", "2", "--seeds", "1"]
        monkeypatch.setattr(sys, "argv", ["reward_hacking.py", *small, *words])
        status, claims = search.main(), json.loads((tmp_path / "reward_hacking.json").read_text())
        return status, claims[-1]["parts"], claims

    assert list(run("--only", "state")[1]) == ["state"]
    status, parts, claims = run("--only", "yes or no", "state")
    assert status == 1 and list(parts) == ["state", "yes or no"]  # ten tasks are left
    assert claims[0]["n"] == sum(part["tried"] for part in parts.values()) > 300
    assert [claim["holds"] for claim in claims] == [True, True, True, False] and claims[-1]["value"] == 2
    monkeypatch.setattr(search, "search", lambda *given, **settings: pytest.fail("it was searched before"))
    assert run("--only", "state")[2] == claims
    monkeypatch.undo()
    monkeypatch.setattr(search, "OUT", tmp_path)
    assert search.kept({"code": "other"}) == {}  # of other code or settings nothing is kept
