"""compare: verdicts, exit statuses and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.compare import compare
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.judgement.console import points
from lineside.judgement.paired import Comparison, compare_rows, comparison_schema
from lineside.judgement.schema import Decoding, Row, write_evaluation
from lineside.judgement.summary import summarise
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, summary_arguments: dict[str, Any]) -> Write:  # noqa: F811
    """Writes an evaluation of these rows under a stage's name, in a folder of its own."""

    def write(rows: list[Row], stage: str, **changes: Any) -> Path:
        evaluation = summarise(rows, **{**summary_arguments, "stage": stage, **changes})
        return write_evaluation(tmp_path / str(len(list(tmp_path.iterdir()))), evaluation, rows)

    return write


def answers(right: int, count: int, **changes: Any) -> list[Row]:
    """`count` questions of a scene each, the first `right` of them answered rightly."""
    family = changes.get("family", "picking")
    return [(row if i < right else wrong)(f"{family}{i}", scene=f"{family}{i}", **changes) for i in range(count)]


KITTING: dict[str, Any] = {"family": "kitting", "task": "complete"}


def test_difference_by_hand(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    # picking/empty: 80 of 160 right, then 120; kitting/complete: 60 of 130 right both times, all the same answers.
    found = compare(
        write([*answers(80, 160), *answers(60, 130, **KITTING)], "sft"),
        write([*answers(120, 160), *answers(60, 130, **KITTING)], "rlvr"),
    )
    assert (found.first, found.second) == ("sft-heldout-think", "rlvr-heldout-think")
    assert found.tasks["picking/empty"].difference == pytest.approx(0.25)
    assert found.families["kitting"].difference == 0.0
    assert found.overall.difference == pytest.approx(0.125)  # macro over the two tasks, not 40/290
    assert (found.overall.n, found.overall.scenes, found.overall.differing_scenes) == (290, 290, 40)
    assert found.overall.verdict == found.verdict == "better"
    assert found.families["kitting"].verdict == "not worse"  # alike in 130 scenes: at most 3 points lost, see below
    assert found.families["kitting"].interval == pytest.approx((-0.028, 0.028), abs=0.002)  # 1 - 0.025 ** (1 / 130)
    printed = capsys.readouterr().out
    assert "+12.5" in printed and "rlvr-heldout-think against sft-heldout-think: better" in printed


def test_evaluations_of_the_same_name_are_told_by_their_paths(write: Write) -> None:
    first, second = write(answers(300, 300), "sft"), write(answers(200, 300), "sft")
    with pytest.raises(CheckFailed) as refused:
        compare(first, second)
    assert f"{second} is worse than {first}:" in str(refused.value)


def test_five_scenes_that_all_went_wrong_do_not_pass(write: Write) -> None:
    with pytest.raises(CheckFailed, match=r"(?s)sft-.* is worse than align-.*picking/empty: -100\.0 points.* p 0\.031"):
        compare(write(answers(5, 5), "align"), write(answers(0, 5), "sft"))
    # Four are lost by chance once in sixteen times: that is no proof, and no pass either.
    with pytest.raises(TooLittleData, match=r"(?s)all tasks: -100\.0 points .*4 scenes.*more scenes needed"):
        compare(write(answers(4, 4), "align"), write(answers(0, 4), "sft"))


def test_a_loss_of_a_sixth_with_few_scenes_does_not_pass(write: Write) -> None:
    with pytest.raises(TooLittleData, match=r"all tasks: -16\.7 points"):
        compare(write(answers(12, 12), "sft"), write(answers(10, 12), "rlvr"))


def test_equal_answers_in_few_scenes_are_too_little_data(write: Write) -> None:
    # All alike in S scenes: up to 1 - 0.025 ** (1 / S) of all scenes may be lost; at 121.1 that is 3%.
    few, enough = write(answers(60, 100), "sft"), write(answers(60, 130), "rlvr")
    with pytest.raises(TooLittleData, match=r"about 2[0-6] more scenes needed") as refused:
        compare(few, few)
    assert refused.value.exit_status == 3
    assert compare(enough, enough).verdict == "not worse"


def test_one_scene_says_nothing_about_others() -> None:
    rows = {f"q{i}": row(f"q{i}", scene="one") for i in range(500)}
    found = compare_rows(rows, rows)
    assert (found.verdict, found.overall.scenes) == ("too little data", 1)
    assert found.overall.interval == pytest.approx((-0.975, 0.975), abs=0.01)


def test_a_family_that_lost_fails_the_gate_though_the_whole_gained(write: Write) -> None:
    before = write([*answers(200, 400), *answers(200, 200, **KITTING)], "sft")
    after = write([*answers(400, 400), *answers(150, 200, **KITTING)], "rlvr")
    with pytest.raises(CheckFailed, match=r"kitting: -25\.0 points") as refused:
        compare(before, after)
    assert "all tasks:" not in str(refused.value)


def test_a_task_that_lost_fails_the_gate_though_its_family_gained(write: Write) -> None:
    count = {"task": "count"}
    moved = [(row if i < 120 else wrong)(f"c{i}", scene=f"picking{i}", **count) for i in range(300)]
    still = [row(f"c{i}", scene=f"picking{i}", **count) for i in range(150)]
    lost = [wrong(f"c{i}", scene=f"picking{i}", **count) for i in range(150, 300)]
    before, after = write([*answers(0, 300), *still, *lost], "sft"), write([*answers(300, 300), *moved], "rlvr")
    with pytest.raises(CheckFailed, match=r"picking/count: -10\.0 points .*one-sided p .*Holm") as refused:
        compare(before, after)
    assert "all tasks:" not in str(refused.value) and "picking:" not in str(refused.value)


def test_an_undecided_family_names_its_scenes(write: Write) -> None:
    before = write([*answers(300, 400), *answers(10, 20, **KITTING)], "sft")
    after = write([*answers(300, 400), *answers(10, 20, **KITTING)], "rlvr")
    with pytest.raises(TooLittleData) as refused:
        compare(before, after)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["kitting"]
    assert "103 more scenes" in lines[1]  # 123 in all
    assert "80%" in lines[-1] and "equally good" in lines[-1]


def test_margin_and_expectation(write: Write) -> None:
    # 10 of 400 scenes lost: -2.5 points, certainly a loss and certainly none of six points.
    before, after = write(answers(400, 400), "sft"), write(answers(390, 400), "rlvr")
    assert compare(before, after, margin=0.06).verdict == "not worse"
    with pytest.raises(CheckFailed, match=r"is worse than"):
        compare(before, after)
    with pytest.raises(CheckFailed, match=r"not worse than .*, but not shown to be better"):
        compare(before, after, margin=0.06, expect="better")
    assert compare(after, write(answers(400, 400), "control"), expect="better").verdict == "better"
    with pytest.raises(TooLittleData, match="With margin 0"):
        compare(before, before, margin=0)
    with pytest.raises(LinesideError, match=r"margin 2: expected a share"):
        compare(before, after, margin=2)


def test_exit_statuses_and_help() -> None:
    assert [error.exit_status for error in (LinesideError, CheckFailed, TooLittleData)] == [2, 1, 3]
    told = " ".join(CliRunner().invoke(cli.app, ["compare", "--help"], env={"COLUMNS": "200"}).output.split())
    for words in ("Exit status 0: overall and every family", "1: a part is worse", "3: too little data", "0.03"):
        assert words in told, words


def test_the_command_ends_with_the_status_of_the_verdict(write: Write) -> None:
    first, lost = write(answers(5, 5), "sft"), write(answers(0, 5), "rlvr")
    pairs = {1: (first, lost), 2: (first, lost.parent / "none.json"), 3: (first, first)}
    for status, paths in pairs.items():
        done = CliRunner().invoke(cli.app, ["compare", *map(str, paths)])
        assert done.exit_code == status and "lineside compare: " in done.stderr, done.output


def test_json_is_the_finding_and_has_the_published_form(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(answers(3, 5), "sft")
    with pytest.raises(TooLittleData):
        compare(path, path, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "too little data" and printed["overall"]["scenes_needed"] == 118  # 123 in all
    assert Comparison.model_validate(printed).model_dump(mode="json") == printed
    published = json.loads(resources.files("lineside").joinpath("comparison.schema.json").read_text())
    jsonschema.validate(printed, published, cls=jsonschema.Draft202012Validator)
    # After a change json.dumps(comparison_schema(), indent=2) and a newline go into src/lineside/comparison.schema.json
    assert published == comparison_schema()


def test_questions_that_one_side_lacks_are_refused_unless_asked_for(write: Write) -> None:
    rows = answers(150, 300)
    whole, part, other = write(rows, "sft"), write(rows[:200], "rlvr"), write(rows[100:], "control")
    with pytest.raises(
        LinesideError, match=r"rlvr-heldout-think lacks 100 of 300 questions \(picking200, .*only"
    ) as no:
        compare(whole, part)
    assert no.value.exit_status == 2
    with pytest.raises(LinesideError, match=r"rlvr-.* lacks 100 of 200 .*; control-.* lacks 100 of 200 "):
        compare(part, other, common_only=False)
    found = compare(whole, part, common_only=True)
    assert (found.overall.n, found.only_first, found.only_second) == (200, 100, 0)


def test_refuses_what_cannot_be_paired(write: Write) -> None:
    a = write([row("a"), row("b")], "sft")
    with pytest.raises(LinesideError, match="share no question"):
        compare(a, write([row("c")], "align"), common_only=True)
    with pytest.raises(LinesideError, match=r"control-heldout-think.*rows\.jsonl: question a occurs twice"):
        compare(a, write([row("a"), row("a")], "control"))
    with pytest.raises(LinesideError, match=r"sft-heldout-think is of the split heldout, sft-shifted-think of shifted"):
        compare(a, write([row("a"), row("b")], "sft", split="shifted"), common_only=True)
    fast = write([row("a"), row("b")], "sft", mode="fast")
    with pytest.raises(LinesideError, match=r"in the mode think, sft-heldout-fast in fast: .*--across-modes"):
        compare(a, fast)
    with pytest.raises(TooLittleData):
        compare(a, fast, across_modes=True)
    with pytest.raises(LinesideError, match="no such file"):
        compare(a, a.parent / "none.json")
    with pytest.raises(LinesideError, match=r"a folder; expected an evaluation.*it holds .*sft-heldout-think\.json"):
        compare(a, a.parent)
    rows = a.with_name("sft-heldout-think.rows.jsonl")
    with pytest.raises(LinesideError, match=r"these are its rows: give the \.json beside them"):
        compare(rows, a)
    rows.write_text(rows.read_text().splitlines()[0] + "\n")
    with pytest.raises(LinesideError, match=r"rows\.jsonl: 1 questions, but its evaluation counts 2"):
        compare(a, a)
    rows.unlink()
    with pytest.raises(LinesideError, match=r"rows\.jsonl: no such file"):
        compare(a, a)


def test_a_limit_that_cut_off_answers_is_no_fair_comparison(write: Write) -> None:
    whole, cut = answers(130, 130), [row("picking0", scene="picking0", finished=False), *answers(130, 130)[1:]]
    long, short = Decoding(temperature=0.0, max_new_tokens=96), Decoding(temperature=0.0, max_new_tokens=32)
    refused = r"rlvr-.* with max_new_tokens 32, which cut off 0\.8% of its responses; sft-heldout-think with 96"
    with pytest.raises(LinesideError, match=refused):
        compare(write(whole, "sft", decoding=long), write(cut, "rlvr", decoding=short))
    with pytest.raises(LinesideError, match=refused):
        compare(write(cut, "rlvr", decoding=short), write(whole, "sft", decoding=long))
    compare(write(cut, "sft", decoding=long), write(whole, "rlvr", decoding=short))  # the shorter one cut nothing
    compare(write(cut, "sft", decoding=short), write(cut, "rlvr", decoding=short))  # the same for both


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"question": "Is the tote empty?"}, "text"),
        ({"target": {"kind": "choice", "provenance": "sim", "accepted": ["yes"], "options": ["yes", "no"]}}, "target"),
        ({"images": ["another"]}, "pictures"),
        ({"task": "full"}, "task"),
        ({"scene": "elsewhere"}, "scene"),
    ],
)
def test_a_question_that_differs_is_refused_by_what_differs(write: Write, change: dict[str, Any], named: str) -> None:
    first, second = write([row("a"), row("b")], "sft"), write([row("a", **change), row("b")], "rlvr")
    with pytest.raises(LinesideError, match=f"question a differs between sft-.* and rlvr-.* in its {named}:"):
        compare(first, second)


def suites(seed: int, questions: int, loss: float) -> tuple[dict[str, Row], dict[str, Row]]:
    """Two models that differ in 10% of the questions, the second worse by `loss`; three families of three tasks, and
    scenes of about four questions."""
    generator = np.random.default_rng(seed)
    first, second, scene, left = {}, {}, 0, 0
    for i in range(questions):
        if not left:
            scene, left = scene + 1, 1 + int(generator.poisson(3))
        left -= 1
        place = {"family": f"f{scene % 3}", "task": f"t{generator.integers(3)}", "scene": f"s{scene}"}
        kind = generator.choice(3, p=[0.9, 0.05 + loss / 2, 0.05 - loss / 2])
        exact = kind == 1 or (kind == 0 and generator.random() < 0.8)
        first[str(i)] = ROW.model_copy(update={"id": str(i), "exact": exact, **place})
        second[str(i)] = first[str(i)].model_copy(update={"exact": exact if kind == 0 else not exact})
    return first, second


ROW = row("a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("questions", "loss", "passes", "worse"),
    [
        (300, 0.0, (0.0, 0.05), (0.0, 0.1)),  # 25 scenes a family say too little
        (4000, 0.0, (0.4, 0.8), (0.0, 0.1)),
        (4000, 0.03, (0.0, 0.05), (0.9, 1.0)),
        (1000, 0.06, (0.0, 0.0), (0.9, 1.0)),
    ],
)
def test_how_often_the_gate_passes(
    questions: int, loss: float, passes: tuple[float, float], worse: tuple[float, float]
) -> None:
    verdicts = [compare_rows(*suites(seed, questions, loss), seed=seed).verdict for seed in range(60)]
    passed = sum(verdict in ("better", "not worse") for verdict in verdicts) / len(verdicts)
    assert passes[0] <= passed <= passes[1]
    assert worse[0] <= verdicts.count("worse") / len(verdicts) <= worse[1]


@pytest.mark.parametrize(
    ("difference", "written"),
    [(0.123, "+12.3"), (0.0, "+0.0"), (0.0003, "+0.03"), (-0.0003, "-0.03"), (0.0005, "+0.1"), (-0.00001, "-0.0")],
)
def test_a_bound_that_is_clear_of_zero_is_not_written_as_zero(difference: float, written: str) -> None:
    assert points(difference, sign=True) == written
