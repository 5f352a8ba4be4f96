"""compare: verdicts, exit statuses and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lineside.compare import compare
from lineside.errors import CheckFailed, LinesideError
from lineside.judgement.console import points
from lineside.judgement.schema import Row, write_evaluation
from lineside.judgement.summary import summarise
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401


def written(folder: Path, arguments: dict[str, Any], rows: list[Row], stage: str) -> Path:
    return write_evaluation(folder, summarise(rows, **{**arguments, "stage": stage}), rows)


@pytest.fixture
def pair(tmp_path: Path, summary_arguments: dict[str, Any]) -> tuple[Path, Path]:  # noqa: F811
    """sft: 20 of 40 picking/empty and 10 of 20 kitting/complete right; rlvr: 30 and 10 of the same."""

    def rows(right: int) -> list[Row]:
        picking = [row(f"p{i}") if i < right else wrong(f"p{i}") for i in range(40)]
        kitting = [
            (row if i < 10 else wrong)(f"k{i}", family="kitting", task="complete", scene=f"kit{i}") for i in range(20)
        ]
        return picking + kitting

    return (
        written(tmp_path, summary_arguments, rows(20), "sft"),
        written(tmp_path, summary_arguments, [*rows(30), row("extra")], "rlvr"),
    )


def test_difference_by_hand(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(*pair)
    assert (found.first, found.second) == ("sft-heldout-think", "rlvr-heldout-think")
    assert found.tasks["picking/empty"].difference == pytest.approx(0.25)
    assert found.families["kitting"].difference == 0.0
    assert found.overall.difference == pytest.approx(0.125)  # macro over the two tasks, not 10/60
    assert (found.overall.n, found.only_first, found.only_second) == (60, 0, 1)
    assert found.overall.verdict == "better"
    assert found.families["kitting"].verdict == "no difference"
    printed = capsys.readouterr().out
    assert "+12.5" in printed and "better" in printed and "only in the second" in printed


def test_exit_statuses(pair: tuple[Path, Path]) -> None:
    sft, rlvr = pair
    compare(sft, rlvr, expect="better")
    compare(rlvr, sft, margin=0.2)  # worse by 12.5 points, no more than 20
    with pytest.raises(
        CheckFailed, match=r"sft-heldout-think is worse than rlvr-heldout-think by 12\.5 points"
    ) as failed:
        compare(rlvr, sft, margin=0.01)
    assert failed.value.exit_status == 1
    with pytest.raises(CheckFailed, match="not shown to be better"):
        compare(sft, sft, expect="better")
    with pytest.raises(LinesideError, match=r"margin 2: expected a share"):
        compare(sft, rlvr, margin=2)


def test_json_is_the_finding(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(*pair, as_json=True)
    assert json.loads(capsys.readouterr().out) == found.model_dump(mode="json")


def test_refuses_what_cannot_be_paired(tmp_path: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    a = written(tmp_path, summary_arguments, [row("a"), row("b")], "sft")
    elsewhere = written(tmp_path, summary_arguments, [row("c")], "align")
    with pytest.raises(LinesideError, match="share no question"):
        compare(a, elsewhere)
    changed = written(tmp_path, summary_arguments, [row("a", question="Is the tote empty?"), row("b")], "rlvr")
    with pytest.raises(LinesideError, match="question a differs between"):
        compare(a, changed)
    twice = written(tmp_path, summary_arguments, [row("a"), row("a")], "control")
    with pytest.raises(LinesideError, match=r"control-heldout-think\.rows\.jsonl: question a stands there twice"):
        compare(a, twice)
    with pytest.raises(LinesideError, match="no such file"):
        compare(a, tmp_path / "none.json")
    (tmp_path / "sft-heldout-think.rows.jsonl").unlink()
    with pytest.raises(LinesideError, match=r"rows\.jsonl: no such file"):
        compare(a, a)


@pytest.mark.parametrize(
    ("difference", "written"),
    [(0.123, "+12.3"), (0.0, "+0.0"), (0.0003, "+0.03"), (-0.0003, "-0.03"), (0.0005, "+0.1"), (-0.00001, "-0.0")],
)
def test_a_bound_that_is_clear_of_zero_is_not_written_as_zero(difference: float, written: str) -> None:
    assert points(difference, sign=True) == written
