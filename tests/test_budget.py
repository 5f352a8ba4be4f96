"""benchmarks/budget.py: which model answers most within a budget."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import lineside.evaluate
from lineside.data.store import write_samples
from lineside.judgement.latency import LatencyModel
from lineside.model.checkpoint import save
from tests.conftest import make_tiny_vlm
from tests.judgement.conftest import row
from tests.test_evaluate import asked

TIMED = LatencyModel(base_ms=50.0, per_token_ms=1.0, measured=44, p50_ms=60.0, p95_ms=70.0, slow=1.0)


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script as a module that writes into a folder of its own."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    found = importlib.import_module("budget")
    monkeypatch.setattr(found, "OUT", tmp_path / "out")
    return found


def test_each_model_is_asked_once_for_each_budget_and_what_is_missing_is_told(
    budget: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed: list[tuple[LatencyModel | None, str]] = []

    def idle(*_: Any, **__: Any) -> tuple[LatencyModel | None, str]:
        timed.append((TIMED, "") if len(timed) != 1 else (None, "not measured: busy machine: others had 40%"))
        return timed[-1]

    monkeypatch.setattr(lineside.evaluate, "measure_if_idle", idle)
    write_samples(tmp_path / "data", asked(4, "heldout"))
    save(make_tiny_vlm(), tmp_path / "model")
    command = ["budget.py", str(tmp_path / "data"), "--model", f"tiny={tmp_path / 'model'}"]
    command += ["--model", f"gone={tmp_path / 'nothing'}", "--budgets", "1000", "20"]
    monkeypatch.setattr(sys, "argv", command)

    assert budget.main() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "heldout, n 8" in told and "100.0% refused" in told  # 20 ms are less than the first token takes
    assert f"gone: not run: no such folder: {tmp_path / 'nothing'}" in told
    assert "tiny: not measured: deadlines need the time of an answer, which was not measured: busy machine" in told
    written = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert [(one["budget_ms"], one["exact"], one["refused"], one["p50_ms"]) for one in written["cells"]] == [
        (20.0, 0.0, 1.0, None)
    ]

    assert budget.main() == 0  # goes on with the cell that is missing, and with no other
    cells = json.loads((tmp_path / "out" / "budget.json").read_text())["cells"]
    assert len(timed) == 3 and [one["budget_ms"] for one in cells] == [20.0, 1000.0]
    assert cells[1]["refused"] == 0.0 and cells[1]["n"] == 8 and cells[1]["scenes"] == 4
    assert 50.0 <= cells[1]["p50_ms"] <= cells[1]["p95_ms"] <= 145.0  # 50 ms and 1 for each of up to 95 further tokens
    assert (tmp_path / "out" / "budget.png").stat().st_size > 0

    assert budget.main() == 0 and len(timed) == 3
    save(make_tiny_vlm(1), tmp_path / "model")  # other weights: nothing that was measured counts
    assert budget.main() == 0 and len(timed) == 5


def test_a_model_wins_if_it_is_better_than_every_other_beyond_chance(budget: Any) -> None:
    """Worked: of 20 scenes with one question each, a answers all in time, b 10, c 19."""

    def rows(right: int) -> dict[str, Any]:
        return {str(i): row(str(i), scene=f"s{i}", exact=True, within_budget=i < right) for i in range(20)}

    of = {"a": rows(20), "b": rows(10), "c": rows(19)}
    cells = {name: budget.cell(name, 300.0, some, 0) for name, some in of.items()}
    assert [cells[name].exact for name in "abc"] == [1.0, 0.5, 0.95]
    alone = budget.winner([cells["a"], cells["b"]], of, 0)
    assert (alone.best, alone.closest, alone.difference, alone.wins) == ("a", "b", 0.5, True)
    assert alone.interval.low > 0.1
    close = budget.winner(list(cells.values()), of, 0)
    assert (close.best, close.closest, close.wins) == ("a", "c", False)
    assert close.difference == pytest.approx(0.05) and close.interval.low < 0
    assert budget.winner([cells["a"]], of, 0) is None
    late = rows(20) | {"0": row("0", scene="s0", within_budget=None)}
    assert budget.cell("a", 300.0, late, 0).startswith("not measured: too few questions were timed")


@pytest.mark.parametrize("words", [["folder"], ["a-b=folder"], ["a="], ["a=folder", "int8"], ["a=x", "vllm9", "int8"]])
def test_a_model_is_named_in_full(budget: Any, words: list[str]) -> None:
    with pytest.raises(budget.LinesideError, match="expected NAME=FOLDER, with a name"):
        budget.Model.of(words)
    assert budget.Model.of(["a.b_1=folder", "local", "int8"]).pair == ("local", "int8")
