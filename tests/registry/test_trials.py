"""Trials: who may begin one, when it ends, and what it keeps."""

from __future__ import annotations

import re
import sqlite3

import pytest

from lineside.errors import CheckFailed, LinesideError
from lineside.models import history, list_models
from lineside.registry.listing import lines
from lineside.registry.policy import Policy, clean
from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from lineside.registry.trials import start, stop
from tests.registry.conftest import add, judged


@pytest.fixture
def three(registry: Registry) -> Registry:
    for content in ("a", "b", "c"):
        add(registry, "bins", content)
    promote(registry, registry.version("bins@1"))
    return registry


def shown(registry: Registry) -> list[tuple[str, str, str, float]]:
    return [(one.version.label, one.cell, one.kind, one.share) for one in registry.trials()]


def test_a_trial_by_cell_replaced_and_stopped(three: Registry) -> None:
    second, third = three.version("bins@2"), three.version("bins@3")
    first, before = start(three, second, kind="shadow", share=0.5)
    assert before is None
    start(three, third, kind="shadow", share=1.0, cell="cell-7")
    assert shown(three) == [("bins@2", "", "shadow", 0.5), ("bins@3", "cell-7", "shadow", 1.0)]
    assert start(three, third, kind="shadow", share=0.1)[1] == first  # one trial of a name in the same cells
    assert shown(three) == [("bins@3", "", "shadow", 0.1), ("bins@3", "cell-7", "shadow", 1.0)]
    stop(three, "bins")
    assert shown(three) == [("bins@3", "cell-7", "shadow", 1.0)]
    with pytest.raises(LinesideError, match="there is no trial of bins; running: bins@3 --cell cell-7"):
        stop(three, "bins")
    assert [e["what"] for e in three.events() if e["what"] in ("shadow", "stop")] == ["shadow"] * 3 + ["stop"]


def test_a_trial_ends_when_its_version_becomes_the_champion_and_does_not_come_back(three: Registry) -> None:
    second = three.version("bins@2")
    start(three, second, kind="shadow", share=0.5, cell="cell-7")
    start(three, second, kind="shadow", share=0.5, cell="cell-8")
    promote(three, three.version("bins@1"), cell="cell-8")  # that cell keeps a champion of its own
    promote(three, second, force="x")
    assert shown(three) == [("bins@2", "cell-8", "shadow", 0.5)]
    promote(three, three.version("bins@3"), force="x")
    assert shown(three) == [("bins@2", "cell-8", "shadow", 0.5)]
    roll_back(three, "bins", cell="cell-8")  # it follows bins@3 again, beside which the trial goes on
    roll_back(three, "bins")
    assert shown(three) == []


def test_the_same_trial_twice_is_one(three: Registry) -> None:
    second = three.version("bins@2")
    first, _ = start(three, second, kind="shadow", share=0.5)
    again, before = start(three, second, kind="shadow", share=0.5)
    assert before == first and three.trials() == [again]


def test_a_canary_needs_a_gate_that_has_not_refused_it(three: Registry) -> None:
    first, second = three.version("bins@1"), three.version("bins@2")
    with pytest.raises(LinesideError, match="the gate has not judged bins@2 against bins@1") as told:
        start(three, second, kind="canary", share=0.1, cell="cell-7")
    assert "`lineside gate bins@2 --cell cell-7` judges it" in str(told.value)
    assert told.value.exit_status == 2
    judged(three, second, first, "refused")
    with pytest.raises(CheckFailed, match="the gate has refused bins@2 against bins@1"):
        start(three, second, kind="canary", share=0.1)
    assert shown(three) == []
    start(three, second, kind="canary", share=0.1, force="line 3 alone")
    assert three.events()[-1]["reason"] == "10.0% of requests: line 3 alone"
    judged(three, second, first, "too little data")
    start(three, second, kind="canary", share=0.2)
    assert shown(three) == [("bins@2", "", "canary", 0.2)]


def test_what_cannot_be_tried_is_named(three: Registry) -> None:
    with pytest.raises(LinesideError, match="bins@1 is the champion there"):
        start(three, three.version("bins@1"), kind="shadow", share=0.5)
    for share in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(LinesideError, match="expected a share of the requests above 0 and at most 1"):
            start(three, three.version("bins@2"), kind="shadow", share=share)
    with pytest.raises(LinesideError, match=r"cell '\.\./x'"):
        start(three, three.version("bins@2"), kind="shadow", share=0.5, cell="../x")
    with pytest.raises(LinesideError, match="kits has no champion beside which it could run"):
        start(three, add(three, "kits", "k"), kind="shadow", share=0.5)
    with pytest.raises(LinesideError, match="--force keeps the reason in the history"):
        start(three, three.version("bins@2"), kind="canary", share=0.5, force=" ")
    file = three.files(three.item(three.version("bins@2").model)) / "model.safetensors"
    file.chmod(0o644)
    file.write_text("B")
    with pytest.raises(LinesideError, match="bins@2: its files are not whole"):
        start(three, three.version("bins@2"), kind="shadow", share=0.5)
    assert shown(three) == []


def test_nothing_is_started_or_stopped_on_read_only_storage_or_a_full_disk(three: Registry) -> None:
    start(three, three.version("bins@2"), kind="shadow", share=0.5)
    running, history = three.trials(), three.events()
    three._unwritable = sqlite3.OperationalError("database or disk is full")
    with pytest.raises(LinesideError, match="disk is full; nothing was changed"):
        start(three, three.version("bins@3"), kind="shadow", share=1.0)
    with pytest.raises(LinesideError, match="disk is full; nothing was changed"):
        stop(three, "bins")
    assert three.trials() == running and three.events() == history


def test_a_version_on_trial_is_not_deleted(three: Registry) -> None:
    start(three, three.version("bins@2"), kind="shadow", share=0.5)
    assert [version.label for version in clean(three, Policy(keep=0)).deleted] == ["bins@3"]
    stop(three, "bins")
    assert [version.label for version in clean(three, Policy(keep=0)).deleted] == ["bins@2"]
    with pytest.raises(LinesideError, match="bins@2: its files were deleted by `registry gc`"):
        start(three, three.version("bins@2"), kind="shadow", share=0.5)


def test_a_champion_that_changes_meanwhile_is_not_tried_beside_itself(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, real = three.version("bins@2"), Registry.check

    def slow(self: Registry, *args: object) -> object:
        found = real(self, *args)  # pyright: ignore[reportArgumentType]
        monkeypatch.undo()
        with Registry(three.folder) as other:
            promote(other, second, force="x")
        return found

    monkeypatch.setattr(Registry, "check", slow)
    with pytest.raises(LinesideError, match="bins@2 is the champion there"):
        start(three, second, kind="shadow", share=0.5)
    assert shown(three) == []


def test_a_trial_stands_beside_its_version_in_the_list(three: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in ("cell-3", "cell-7"):
        start(three, three.version("bins@2"), kind="shadow", share=0.2, cell=cell)
    tried = [[(one.cell, one.kind, one.share) for one in line.trials] for line in lines(three)]
    assert tried == [[], [("cell-3", "shadow", 0.2), ("cell-7", "shadow", 0.2)], []]
    list_models(three.folder, "bins@2")
    assert "shadow for 20.0% in cell-3, cell-7" in capsys.readouterr().out
    stop(three, "bins", cell="cell-3")
    history(three.folder, "bins")
    assert re.search(r"stop +bins@2 +cell-3", capsys.readouterr().out)
