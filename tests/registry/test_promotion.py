"""Champions by cell, rollbacks step by step, and what a promotion asks for."""

from __future__ import annotations

import shutil

import pytest

from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.registry.listing import lines, origin
from lineside.registry.promotion import line_of, promote, roll_back
from lineside.registry.store import Registry, Version
from tests.registry.conftest import add, judged


@pytest.fixture
def versions(registry: Registry) -> list[Version]:
    """Four versions; the first is the champion."""
    found = [add(registry, "bins", content) for content in "abcd"]
    promote(registry, found[0])
    return found


def champions(registry: Registry) -> dict[str, str]:
    return {found.cell or "all": found.version.label for found in registry.champions("bins")}


def state(registry: Registry) -> list[str]:
    """Everything in the registry's file."""
    return list(registry._db.iterdump())


def test_a_promotion_asks_for_a_passed_verdict_of_this_pair(registry: Registry, versions: list[Version]) -> None:
    one, two, three, _ = versions
    before = state(registry)
    with pytest.raises(
        LinesideError, match=r"no gate verdict for bins@2 against bins@1.*lineside gate bins@2.*--force"
    ) as caught:
        promote(registry, two)
    assert caught.value.exit_status == 2 and state(registry) == before
    judged(registry, three, one, "passed")  # of another pair
    judged(registry, one, two, "passed")  # the other way round
    with pytest.raises(LinesideError, match="no gate verdict"):
        promote(registry, two)
    judged(registry, two, one, "refused")
    with pytest.raises(CheckFailed, match=r"verdict for bins@2 against bins@1 of .*: refused"):
        promote(registry, two)
    judged(registry, two, one, "too little data")
    with pytest.raises(TooLittleData, match="too little data"):
        promote(registry, two)
    hash = judged(registry, two, one, "passed")  # the newest counts
    told = [(verdict.champion, verdict.outcome) for verdict in origin(registry, two).verdicts]
    assert told == [("bins@1", "refused"), ("bins@1", "too little data"), ("bins@1", "passed")]
    assert promote(registry, two).before == one
    assert registry.events()[-1]["verdict"] == hash and registry.events()[-1]["reason"] is None
    with pytest.raises(LinesideError, match="no gate verdict for bins@3 against bins@2"):
        promote(registry, three)  # it passed against the champion of before
    with pytest.raises(LinesideError, match="write one"):
        promote(registry, three, force=" ")
    promote(registry, three, force="the line stands still")
    assert registry.events()[-1]["reason"] == "the line stands still" and champions(registry) == {"all": "bins@3"}


def test_rollbacks_go_back_step_by_step_and_a_promotion_starts_from_there(
    registry: Registry, versions: list[Version]
) -> None:
    one, two, three, four = versions
    promote(registry, two, force="x")
    promote(registry, three, force="x")
    assert line_of(registry, "bins") == [three, two, one]
    assert roll_back(registry, "bins").after == two
    promote(registry, four, force="x")
    assert line_of(registry, "bins") == [four, two, one]
    assert [roll_back(registry, "bins").after for _ in range(2)] == [two, one]
    before = state(registry)
    with pytest.raises(LinesideError, match="bins@1 is the first champion of bins: there is nothing before it"):
        roll_back(registry, "bins")
    assert state(registry) == before
    promote(registry, three, force="x")
    promote(registry, four, force="x")
    with pytest.raises(LinesideError, match="bins@2 was no champion before bins@4; earlier: bins@3, bins@1"):
        roll_back(registry, "bins", to=two)
    with pytest.raises(LinesideError, match=r"no gate verdict.*`lineside rollback bins --to bins@1` goes back to it"):
        promote(registry, one)
    with pytest.raises(LinesideError, match="expected a name; `lineside rollback bins --to bins@1` goes back to it"):
        roll_back(registry, "bins@1")
    assert roll_back(registry, "bins", to=one).after == one
    told = [(event["what"], event["number"]) for event in registry.events() if event["what"] != "register"]
    assert told[-3:] == [("promote", 3), ("promote", 4), ("rollback", 1)]


def test_cells_have_champions_of_their_own_and_follow_otherwise(registry: Registry, versions: list[Version]) -> None:
    one, two, three, _ = versions
    assert promote(registry, two, cell="cell-7", force="canary").before == one
    assert champions(registry) == {"all": "bins@1", "cell-7": "bins@2"}
    changed = promote(registry, three, force="x")
    assert [champion.cell for champion in changed.apart] == ["cell-7"]
    assert champions(registry) == {"all": "bins@3", "cell-7": "bins@2"}
    with pytest.raises(LinesideError, match=r"no gate verdict for bins@3 against bins@2.*gate bins@3 --cell cell-7`"):
        promote(registry, three, cell="cell-7")  # the pair is that of the cell
    promote(registry, three, cell="cell-7", force="x")
    assert roll_back(registry, "bins", cell="cell-7").after == two
    assert roll_back(registry, "bins", cell="cell-7").after == three  # follows all cells again
    assert champions(registry) == {"all": "bins@3"}
    with pytest.raises(LinesideError, match="cell-7 has no champion of its own: it follows bins@3"):
        roll_back(registry, "bins", cell="cell-7")
    promote(registry, one, cell="cell-7", force="x")
    promote(registry, two, cell="cell-7", force="x")
    assert roll_back(registry, "bins", cell="cell-7", follow=True).after == three
    assert champions(registry) == {"all": "bins@3"}
    promote(registry, three, cell="cell-7")  # what answers there anyway needs no verdict
    promote(registry, one, force="x")
    assert champions(registry) == {"all": "bins@1", "cell-7": "bins@3"}
    with pytest.raises(LinesideError, match="--follow is for a cell"):
        roll_back(registry, "bins", follow=True)
    with pytest.raises(LinesideError, match="leave out --to"):
        roll_back(registry, "bins", cell="cell-7", to=one, follow=True)
    for wrong in ("a b", "../x", "x" * 65):
        with pytest.raises(LinesideError, match="cell"):
            promote(registry, one, cell=wrong, force="x")


def test_the_first_champion_is_that_of_all_cells(registry: Registry) -> None:
    version = add(registry, "bins", "a")
    with pytest.raises(LinesideError, match="the first is promoted for all cells"):
        promote(registry, version, cell="cell-7")
    with pytest.raises(LinesideError, match="bins has no champion, so there is nothing to roll back"):
        roll_back(registry, "bins")
    with pytest.raises(LinesideError, match=r"no model named 'bin'.*did you mean 'bins'"):
        roll_back(registry, "bin")
    promote(registry, version)
    before = state(registry)
    assert promote(registry, version).before == version and state(registry) == before  # nothing to do


def test_files_that_are_gone_stop_a_promotion_and_a_rollback(registry: Registry, versions: list[Version]) -> None:
    one, two, _, _ = versions
    promote(registry, two, force="x")
    shutil.rmtree(registry.path(registry.item(one.model)))
    before = state(registry)
    with pytest.raises(LinesideError, match="bins@1: its files are not whole"):
        roll_back(registry, "bins")
    with pytest.raises(LinesideError, match="bins@1: its files are not whole"):
        promote(registry, one, force="x")
    assert state(registry) == before and champions(registry) == {"all": "bins@2"}


def test_states_and_parents_are_listed(registry: Registry, versions: list[Version]) -> None:
    one, two, _, four = versions
    promote(registry, two, force="x")
    promote(registry, one, cell="cell-7", force="x")
    add(registry, "bins", "e", ancestors=["unknown", "w-b", "w-a"])
    found = lines(registry, "bins")
    assert [line.state for line in found] == ["champion", "champion", "challenger", "challenger", "challenger"]
    assert [line.champion_of for line in found[:3]] == [["cell-7"], ["all cells"], []]
    assert [line.parent for line in found] == [None] * 4 + ["bins@2"]  # the nearest that is registered
    promote(registry, four, force="x")
    roll_back(registry, "bins")
    assert [line.state for line in lines(registry)] == ["champion", "champion", "retired", "retired", "challenger"]
