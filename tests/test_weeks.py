"""benchmarks/weeks.py: what each arm is given, what counts, what is claimed, and the page, from made-up results."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from lineside.errors import LinesideError
from lineside.judgement.schema import write_evaluation
from lineside.judgement.summary import summarise
from lineside.training.cost import Cost, write_cost
from lineside.types import Frame, Image, Meta
from tests.conftest import picture
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import weeks
import weeks_arms
import weeks_data
import weeks_outcomes
import weeks_table
from weeks_arms import Plan, Unit, champion_before, finished, turns, units

SCENES = 30


@pytest.fixture
def plan(tmp_path: Path, summary_arguments: dict[str, Any]) -> Plan:  # noqa: F811
    """Two weeks that are run: what the answers below say."""
    made = Plan(runs=tmp_path, weeks=2)
    right = {  # of 30 scenes, by run and suite
        ("base", 0): 20, ("base", 1): 15, ("base", 2): 12,
        ("ours-1", 0): 20, ("ours-1", 1): 21, ("ours-1", 2): 15,
        ("ours-2", 0): 10, ("ours-2", 1): 10, ("ours-2", 2): 22,
        ("scratch-1", 0): 20, ("scratch-1", 1): 21,
        ("scratch-2", 0): 20, ("scratch-2", 1): 20, ("scratch-2", 2): 23,
        ("plain-1", 0): 9, ("plain-1", 1): 21,
        ("plain-2", 0): 5, ("plain-2", 1): 6, ("plain-2", 2): 21,
    }  # fmt: skip
    for (run, week), count in right.items():
        rows = [(row if n < count else wrong)(f"w{week}-{n}", scene=f"w{week}-{n}") for n in range(SCENES)]
        evaluation = summarise(rows, **{**summary_arguments, "stage": "sft", "split": "heldout", "mode": "think"})
        write_evaluation(made.folder / "answers" / run / f"week-{week}", evaluation, rows)
    for run, tokens in (("base", 1000), ("ours-1", 90), ("ours-2", 90), ("scratch-1", 1200), ("scratch-2", 1500)):
        (made.folder / run / "sft").mkdir(parents=True)
        write_cost(made.folder / run / "sft", Cost(tokens=tokens, operations=10.0 * tokens, seconds={"update": 60.0}))
    verdict(made, 1, "passed")
    verdict(made, 2, "refused", "exact match is worse: week 0")
    return made


def verdict(plan: Plan, week: int, outcome: str, *because: str, planted: str = "") -> None:
    path = plan.verdict(week, planted)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"outcome": outcome, "because": list(because), "n": 60, "scenes": 60}
    path.write_text(json.dumps(told))


def test_a_refused_challenger_does_not_serve_and_its_week_is_learnt_again(plan: Plan) -> None:
    assert champion_before(plan, 1) == ("base", 0)
    assert champion_before(plan, 2) == champion_before(plan, 3) == ("ours-1", 1)
    found = {(r["arm"], r["week"]): r for r in weeks_table.records_of(plan, units(plan)) if not r["planted"]}
    ours = found["ours", 2]
    assert ours["serves"] == "ours-1" and ours["gate"] == "refused"
    assert ours["new"]["value"] == 15 / 30 and ours["old"]["value"] == 41 / 60
    assert ours["challenger"]["new"]["value"] == 22 / 30  # what it would have been


def test_differences_and_costs_are_those_of_the_answers(plan: Plan) -> None:
    found = {(r["arm"], r["week"]): r for r in weeks_table.records_of(plan, units(plan)) if not r["planted"]}
    assert found["ours", 1]["less_scratch"]["new"]["difference"] == 0
    assert found["plain", 2]["less_scratch"]["old"]["difference"] == pytest.approx(-29 / 60)
    assert found["plain", 2]["less_scratch"]["old"]["n"] == 60
    assert found["ours", 2]["share"] == pytest.approx(0.06) and found["ours", 2]["cost"]["minutes"] == 1
    assert found["none", 1]["cost"] is None and "share" not in found["none", 1]
    assert found["none", 0]["old"] is None


def test_what_is_not_run_is_named_and_nothing_is_claimed_of_it(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    left = [unit for unit in units(plan) if not finished(plan, unit)]
    others = [Unit(arm, 1) for arm in weeks_outcomes.TOLD]
    assert left == [Unit("ours", 1, planted) for planted in weeks_data.PLANTED] + others
    assert weeks_table.publish(plan, units(plan), plan.runs) == 0
    assert "not run: 6 of 15 arms and weeks" in capsys.readouterr().out
    rows = json.loads((plan.runs / "weeks.json").read_text())
    made = [r for r in rows if "claim" in r]
    assert {c["holds"] for c in made} == {None} and all({"value", "n", "command", "why"} <= c.keys() for c in made)


def test_what_costs_most_is_run_last_and_the_last_week_first_of_it(plan: Plan) -> None:
    order = turns(plan)
    assert sorted(order, key=str) == sorted(units(plan), key=str)
    assert order[-2:] == [Unit("scratch", 2), Unit("scratch", 1)]
    assert [u for u in order if u.arm != "scratch"] == [u for u in units(plan) if u.arm != "scratch"]


def test_claims_hold_and_fail_by_their_numbers(plan: Plan) -> None:
    whole = replace(plan, weeks=2, photographs="sorting")  # whose full length is two weeks, without planted ones
    (plan.runs / whole.folder.name).symlink_to(plan.folder)
    made = {c["claim"]: c for c in weeks_table.claims(whole, weeks_table.records_of(whole, units(whole)))}
    assert len(made) == 4
    share = made["ours: largest share of scratch's operations"]
    assert share["holds"] and share["value"] == pytest.approx(0.075)
    forgot = made["plain less ours on all weeks before, at the end: upper bound"]
    assert forgot["holds"] and forgot["value"] < 0 and forgot["n"] == 60
    assert made["ours less scratch on all weeks before, at the end: lower bound"]["holds"] is False


@pytest.mark.parametrize(
    ("because", "holds"),
    [("camera: cell c14", True), ("records: everywhere", False)],
)
def test_a_planted_week_must_be_refused_for_its_own_reason(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, because: str, holds: bool
) -> None:
    for planted in weeks_data.PLANTED:
        source = plan.folder / "answers" / "ours-1"
        (plan.folder / "answers" / f"ours-1-{planted}").mkdir()
        for week in ("week-0", "week-1"):
            (
                plan.folder / "answers" / f"ours-1-{planted}" / (week if week == "week-0" else f"{week}-{planted}")
            ).symlink_to(source / week)
        verdict(plan, 1, "passed" if planted == "noise" else "refused", because, planted=planted)
    made = {c["claim"]: c for c in weeks_table.claims(plan, weeks_table.records_of(plan, units(plan)))}
    assert made["planted camera: refused, and 'camera' named"]["holds"] is holds
    assert made["planted labels: refused, and 'records' named"]["holds"] is not holds
    assert made["planted noise: passed"]["holds"]


def test_the_page_is_written_from_the_results_and_nothing_else_changes(plan: Plan, tmp_path: Path) -> None:
    page = tmp_path / "weeks.md"
    page.write_text("before\n<!-- weeks -->\nold\n<!-- end -->\nafter\n<!-- sorting -->\nx\n<!-- end -->\n")
    weeks_table.publish(plan, units(plan), plan.runs, page=page)
    text = page.read_text()
    assert text.startswith("before\n") and "old" not in text and text.endswith("<!-- sorting -->\nx\n<!-- end -->\n")
    # ours-1 serves in both weeks: 21 + 15 of 60 on the new weeks, 20 + 21 on weeks 0 and 1
    less = {
        row.split(" | ")[0].strip("| "): row for row in text.split("| ours less |")[1].split("\n\n")[0].splitlines()
    }
    for arm, new, old in (("plain", "-10.0", "+50.0"), ("scratch", "-13.3", "+1.7")):
        cells = less[arm].split(" | ")
        assert cells[1].startswith(new) and cells[2].startswith(old) and cells[3].startswith("60; 60")
    assert "| 2 | ours | 50.0%" in text and "Not run: 6 arms and weeks." in text and "![" in text
    words = {e.text.strip() for e in ElementTree.parse(tmp_path / "weeks.svg").iter() if e.text and e.text.strip()}
    assert {
        "never retrained",
        "retrained weekly",
        "trained anew on everything",
        "fine-tuned on the week alone",
    } <= words
    first = (tmp_path / "weeks.svg").read_bytes()
    weeks_table.publish(plan, units(plan), plan.runs, page=page)
    assert (tmp_path / "weeks.svg").read_bytes() == first and page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(LinesideError, match="expected a part between"):
        weeks_table.publish(plan, units(plan), plan.runs, page=page)


def test_nothing_run_says_so(tmp_path: Path) -> None:
    plan, page = Plan(runs=tmp_path), tmp_path / "weeks.md"
    page.write_text("<!-- weeks -->\n<!-- end -->\n")
    assert weeks_table.publish(plan, units(plan), tmp_path, page=page) == 0
    assert "Not run." in page.read_text() and not (tmp_path / "weeks.svg").exists()


@pytest.mark.parametrize("option", ["--frames 50", "--questions 500"])
def test_fewer_frames_or_questions_are_another_plan_of_which_nothing_is_claimed(plan: Plan, option: str) -> None:
    given = ["--runs", str(plan.runs), "--photographs", "sorting", "--data", "."]
    whole, part = (weeks.plan_of(weeks.options([*given, *more])) for more in ([], option.split()))
    assert part.folder != whole.folder and option in part.command and option.split()[0] not in whole.command
    for one, checked in ((whole, True), (part, False)):
        one.folder.symlink_to(plan.folder)
        made = weeks_table.claims(one, weeks_table.records_of(one, units(one)))
        assert any(c["holds"] is not None for c in made) is checked


# --- resuming


def test_what_is_there_is_not_done_again(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Unit] = []
    monkeypatch.setattr(weeks_arms, "run_unit", lambda plan, unit: done.append(unit))
    weeks_arms.run(plan)
    assert [unit.run for unit in done] == [
        *(f"ours-1-{planted}" for planted in weeks_data.PLANTED), *(f"{told}-1" for told in weeks_outcomes.TOLD)
    ]  # fmt: skip
    plan.verdict(2).unlink()
    done.clear()
    weeks_arms.run(plan)
    assert Unit("ours", 2) in done and len(done) == 7


def test_plain_takes_the_tokens_and_rates_of_ours_and_nothing_but_its_week(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lineside.recipe import dump_recipe

    recipes: list[Any] = []
    monkeypatch.setattr(weeks_arms, "trained", lambda recipe: recipes.append(recipe) or Path())
    monkeypatch.setattr(Plan, "samples", lambda self, week, planted="": Path(f"samples/week-{week}"))
    ours = plan.recipe(
        "ours-2", "data.samples=x", "sft.max_tokens=4321", "sft.learning_rate={projector: 0.5, lm: 0.25}"
    )
    (plan.folder / "ours-2" / "recipe.yaml").write_text(dump_recipe(ours))
    weeks_arms.plain(plan, 2)
    (recipe,) = recipes
    assert recipe.stages == ("sft",) and recipe.data.mix == () and recipe.data.samples == Path("samples/week-2")
    assert recipe.sft.max_tokens == 4321 and recipe.sft.learning_rate == ours.sft.learning_rate
    assert recipe.sft.from_ == plan.folder / "plain-1" / "sft"


def test_scratch_sees_all_weeks_by_their_size_and_as_often(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    import lineside.data.store as store

    recipes: list[Any] = []
    sizes = {"week-0": 600, "week-1": 100, "week-2": 200}
    monkeypatch.setattr(weeks_arms, "trained", lambda recipe: recipes.append(recipe) or Path())
    monkeypatch.setattr(Plan, "samples", lambda self, week, planted="": Path(f"samples/week-{week}"))
    monkeypatch.setattr(store, "count_frames_with", lambda folder, **_: sizes[folder.name])
    weeks_arms.scratch(plan, 2)
    (recipe,) = recipes
    assert [(m.samples.name, round(m.weight, 3)) for m in recipe.data.mix] == [("week-1", 0.167), ("week-2", 0.333)]
    assert recipe.sft.max_tokens == plan.tokens("sft", 1.5) == round(1.5 * 9.5 * 460_000)


# --- the data of the planted weeks


def frames(count: int = 40) -> list[Frame]:
    return [
        Frame(
            id=f"f{n}", image=Image(picture(n)), family="picking", record={"count": n}, meta=Meta(scene=f"s{n}"),
            split="train" if n % 2 else "heldout",
        )
        for n in range(count)
    ]  # fmt: skip


def test_a_fifth_of_the_records_of_each_split_are_anothers_of_the_same_split() -> None:
    before = frames()
    after = {f.id: f for f in weeks_data.mixed_up(before, seed=0)}
    assert len(after) == 40 and all(after[f.id].image == f.image for f in before)
    for split in ("train", "heldout"):
        here = [f for f in before if f.split == split]
        changed = [f for f in here if after[f.id].record != f.record]
        assert len(changed) == 4
        assert sorted(after[f.id].record["count"] for f in here) == sorted(f.record["count"] for f in here)
    assert {f.id: f.record for f in weeks_data.mixed_up(before, seed=0)} == {i: f.record for i, f in after.items()}


def test_harmless_noise_changes_the_picture_a_little_and_no_record() -> None:
    (frame,) = frames(1)
    after = weeks_data.noisy(frame)
    assert after.record == frame.record and after == weeks_data.noisy(frame)
    one, two = (np.asarray(Pil.open(io.BytesIO(f.image.bytes)).convert("L"), float) for f in (frame, after))
    assert 0 < np.abs(one.mean() - two.mean()) < 3


def test_photographs_of_a_class_come_no_earlier_than_their_week() -> None:
    from tests.judgement.conftest import choice, question

    arrival = {"metal": 1, "plastic": 2}
    dealt: dict[str, list[int]] = {}
    for name in ("metal", "plastic", "glass"):
        samples = [
            question(f"{name}{n}", choice("yes"), scene=f"{name}{n}", extra={"material": name}) for n in range(300)
        ]
        dealt[name] = [weeks_data.week_of(s, "material", arrival, 2) for s in samples]
    assert min(dealt["metal"]) == 1 and set(dealt["metal"]) == {1, 2} and set(dealt["plastic"]) == {2}
    share = dealt["glass"].count(0) / 300
    assert set(dealt["glass"]) == {0, 1, 2} and abs(share - 0.6) < 0.1


# --- a week with outcomes only


def test_a_tenth_of_the_right_picks_fail_and_every_wrong_one(plan: Plan) -> None:
    rows = [(row if n < 2000 else wrong)(f"q{n}", scene=f"s{n}", images=["a" * 32]) for n in range(3000)]
    told = {arm: list(weeks_outcomes.outcomes_of(rows, arm, seed=0)) for arm in weeks_outcomes.TOLD}
    assert len(told["verdicts"]) == len(told["truths"]) == 3000
    failed = [one for one in told["verdicts"] if one["verdict"] == "failed"]
    assert told["failures"] == failed and all("truth" not in one for one in failed)
    right = sum(int(one["id"][1:]) < 2000 for one in failed)
    assert len(failed) == 1000 + right and abs(right - 200) < 40
    assert {one["truth"] for one in told["truths"]} == {rows[0].reference}
    assert not any("verdict" in one for one in told["truths"])
    silent = row("q", scene="s", images=["a" * 32]).model_copy(update={"answer": None})
    assert list(weeks_outcomes.outcomes_of([silent], "truths", seed=0)) == []


def test_what_outcomes_gain_is_measured_against_the_champion_before(
    plan: Plan,
    summary_arguments: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unit = Unit("verdicts", 1)
    assert unit not in [one for one in units(plan) if finished(plan, one)]
    for week, count in ((0, 19), (1, 21)):
        rows = [(row if n < count else wrong)(f"w{week}-{n}", scene=f"w{week}-{n}") for n in range(SCENES)]
        given = {**summary_arguments, "stage": "rlvr", "split": "heldout", "mode": "think"}
        write_evaluation(plan.folder / "answers" / "verdicts-1" / f"week-{week}", summarise(rows, **given), rows)
    account = weeks_outcomes.outcomes_folder(plan, 1, "verdicts") / "outcomes.json"
    account.parent.mkdir(parents=True)
    account.write_text(json.dumps({"used": {"success": 9, "failure": 21}}))
    (found,) = [r for r in weeks_table.records_of(plan, units(plan)) if r["arm"] == "verdicts"]
    assert found["champion"]["new"]["value"] == 15 / 30 and found["new"]["value"] == 21 / 30
    assert found["gain"]["new"]["difference"] == pytest.approx(6 / 30) and found["gain"]["new"]["n"] == 30
    assert found["gain"]["old"]["difference"] == pytest.approx(-1 / 30)
    (cells,) = weeks_table.outcome_rows([found])
    assert cells[:2] == ("week 1, verdicts", "9 by success, 21 by failure") and cells[-1] == "30; 30"
    page = tmp_path / "weeks.md"
    page.write_text("<!-- weeks -->\n<!-- end -->\n")
    weeks_table.publish(plan, units(plan), plan.runs, page=page)
    assert "stage 3 alone, on what became of answers" in capsys.readouterr().out
    assert f"| {' | '.join(cells)} |" in page.read_text() and "| 1 | outcomes only: verdicts |" in page.read_text()


def test_a_run_that_is_there_is_the_base(tmp_path: Path) -> None:
    run = tmp_path / "quickstart"
    given = ["--runs", str(tmp_path), "--base", str(run), "--weeks", "1", "--arms", "none", "verdicts"]
    with pytest.raises(LinesideError, match="no run with an evaluated stage 2"):
        weeks.plan_of(weeks.options(given))
    (run / "evaluation").mkdir(parents=True)
    (run / "evaluation" / "sft-heldout-think.json").write_text("{}")
    made = weeks.plan_of(weeks.options(given))
    assert [(unit.arm, unit.week) for unit in units(made)] == [("none", 0), ("none", 1), ("verdicts", 1)]
    assert finished(made, units(made)[0])  # its run has asked its own suite
    assert made.samples(0) == run / "samples" and weeks_arms.checkpoint(made, "base") == run / "sft" / "checkpoint"
    assert weeks_arms.checkpoint(made, "verdicts-1") == made.folder / "verdicts-1" / "rlvr" / "checkpoint"
    assert "--base" in made.command and "--arms none verdicts" in made.command


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--minutes", "0"], "--minutes 0: expected"),
        (["--weeks", "0"], "--weeks 0: expected 1 or more"),
        (["--photographs", "sorting", "--weeks", "3", "--data", "."], "--weeks 3: expected 1 to 2"),
        (["--photographs", "grocery", "--data", "nowhere"], "nowhere: no such folder"),
        (["--frames", "0"], "--frames 0"),
        (["--arms", "none", "plain"], "--arms plain: it takes as many tokens as ours"),
        (["--base", "x", "--photographs", "grocery", "--data", "."], "--base: a run of simulated frames"),
    ],
)
def test_a_wrong_option_is_named(given: list[str], problem: str) -> None:
    with pytest.raises(LinesideError, match=problem):
        weeks.plan_of(weeks.options(given))
