"""The arms of `make headline` and `make ablations`: they fit the recipe, share what they may, and hide nothing."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.judgement import stats
from lineside.sim.backend import choose_backend
from lineside.training.preflight import checkpoint_of
from tests.judgement.conftest import row, wrong

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import arms  # noqa: E402
import headline  # noqa: E402
import headline_photographs as photographs  # noqa: E402
import headline_table  # noqa: E402

EVERY = [(table, arm) for table, listed in arms.TABLES.items() for arm in listed]
IDS = [f"{table}-{arm.name}" for table, arm in EVERY]


@pytest.fixture(params=[arms.Plan(), arms.Plan(scale=0.3), arms.Plan(tiny=True)], ids=["whole", "scaled", "tiny"])
def plan(request: pytest.FixtureRequest) -> Iterator[arms.Plan]:
    yield request.param


def plan_for(table: str, plan: arms.Plan) -> arms.Plan:
    """The same plan, of photographs if the table is."""
    return replace(plan, photographs=table if table in photographs.SETS else "")


@pytest.mark.parametrize(("table", "arm"), EVERY, ids=IDS)
def test_an_arm_is_a_valid_recipe_and_ends_with_its_stage(table: str, arm: Any, plan: arms.Plan) -> None:
    job = arms.resolve(arm, plan_for(table, plan), seed=1)
    recipe = job.recipe
    assert recipe.folder == job.folder and recipe.seed == 1
    assert set(recipe.evaluate.splits) == {split for split, _ in arms.suites(table)}
    assert arm.stage in recipe.stages or arm.stage in headline_table.CONTROLS
    assert all(getattr(recipe, stage).max_minutes is None for stage in recipe.stages)  # the seed fixes the length
    assert not any("{" in text and "}" in text and "run:" in text for text in job.overrides)
    by_name = {other.name: other for other in arms.TABLES[table]}
    assert arm.against in by_name and set(arm.needs) <= by_name.keys()
    assert all(arms.TABLES[table].index(by_name[name]) < arms.TABLES[table].index(arm) for name in arm.needs)


@pytest.mark.parametrize("table", list(arms.TABLES))
def test_runs_are_told_apart_and_stages_of_one_run_have_one_recipe(table: str, plan: arms.Plan) -> None:
    """Two arms of one run folder may differ only in what a run may change after it has begun."""
    from lineside.recipe import differences

    jobs = [arms.resolve(arm, plan_for(table, plan), 0) for arm in arms.TABLES[table]]
    assert len({(job.folder, job.arm.stage) for job in jobs}) == len(jobs)
    for one in jobs:
        for other in jobs:
            if one.folder == other.folder:
                assert not differences(one.recipe, other.recipe), f"{one.arm.name} and {other.arm.name}"


def test_the_perfect_teachers_run_is_the_same_in_both_tables() -> None:
    """So the ablations go on from the headline's stage 2, and train it once."""
    (one,) = [arms.resolve(arm, arms.Plan(), 0) for arm in arms.HEADLINE if arm.name == "perfect"]
    (two,) = [arms.resolve(arm, arms.Plan(), 0) for arm in arms.ABLATIONS if arm.name == "perfect-sft"]
    assert one.folder == two.folder
    assert (one.recipe.parts, one.recipe.align, one.recipe.sft) == (two.recipe.parts, two.recipe.align, two.recipe.sft)
    assert one.recipe.data == two.recipe.data


def test_arms_begin_where_an_earlier_arm_ends() -> None:
    """Every checkpoint and every folder of data that an arm takes is one that the arms before it make."""
    for table, listed in arms.TABLES.items():
        plan = plan_for(table, arms.Plan())
        shared = ("frames", "photographs", "samples", "samples/control", "parts", "align")
        made = {plan.folder(0, "") / name for name in shared}
        for arm in listed:
            job = arms.resolve(arm, plan, 0)
            data = job.recipe.data
            taken = [data.frames, data.table, data.samples, *(mixed.samples for mixed in data.mix)]
            taken += [checkpoint_of(path) for stage in job.recipe.stages if (path := getattr(job.recipe, stage).from_)]
            assert {path for path in taken if path is not None} <= made, arm.name
            made |= {job.folder / stage for stage in (*job.recipe.stages, arm.stage)}
            made |= {job.folder / "samples"} if data.frames else set()  # labelled anew


def test_the_scale_multiplies_every_length_and_nothing_else() -> None:
    from lineside.recipe import differences

    (arm,) = [arm for arm in arms.HEADLINE if arm.name == "rlvr"]
    whole, third = (arms.resolve(arm, arms.Plan(scale=scale), 0) for scale in (1.0, 0.25))
    changed = dict(line.split(": ") for line in differences(whole.recipe, third.recipe))
    assert changed == {
        "parts.nano.max_tokens": "1500000 -> 375000",
        "align.max_tokens": "1000000 -> 250000",
        "sft.max_tokens": "12000000 -> 3000000",
        "rlvr.max_steps": "420 -> 105",
    }
    assert whole.folder != third.folder
    assert third.minutes < whole.minutes / 3


def test_an_arm_brings_what_it_needs_in_the_order_of_the_table() -> None:
    assert [arm.name for arm in arms.with_needs(["perfect", "traced"], arms.HEADLINE)] == [
        "sft", "rlvr", "traced", "perfect",
    ]  # fmt: skip


def test_what_was_not_run_is_told_and_not_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for table, listed in arms.TABLES.items():
        plan = plan_for(table, arms.Plan(runs=tmp_path / "runs"))
        jobs = [arms.resolve(arm, plan, 0) for arm in listed]
        failed = {"perfect-0": "the disk is full"}
        assert headline_table.publish(table, jobs, plan, tmp_path / "out", failed) == 0
        told = capsys.readouterr().out
        name = f"headline-{table}" if plan.photographs else table
        records = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        shown = [r for r in records if "arm" in r]
        assert len(shown) == len(listed) * len(list(arms.suites(table)))
        assert all(r["value"] is None and r["holds"] is None and r["why"].startswith("not run") for r in shown)
        assert all(f"{arm.name}: not run" in told for arm in listed)
        assert "perfect: not run: the disk is full" in told
        assert all({"claim", "value", "holds", "n", "command"} <= r.keys() for r in records)


def test_a_failed_arm_stops_those_that_need_it_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lineside.train

    ran: list[str] = []

    def train(recipe: Any, *, last: str) -> None:
        ran.append(f"{recipe.name} {last}")
        if recipe.name.endswith("0") and last == "rlvr":
            raise LinesideError("no prompt is left")

    monkeypatch.setattr(lineside.train, "train", train)
    plan = arms.Plan(runs=tmp_path)
    jobs = [arms.resolve(arm, plan, 0) for arm in arms.HEADLINE]
    failed = headline.run(jobs)
    assert ran == ["headline-0 sft", "headline-0 rlvr", "headline-0-perfect sft"]
    assert failed["rlvr-0"] == "no prompt is left"
    assert "all that is left: about" in capsys.readouterr().err


# --- the gap recovered


def gap(base: list[int], better: list[int], ceiling: list[int]) -> stats.Mean | None:
    """One task, one question a scene."""
    scenes = [str(number) for number in range(len(base))]
    return stats.gap_recovered(
        scenes, ["a"] * len(base), base=base, better=better, ceiling=ceiling, seed=0, draws=2000
    )  # fmt: skip


def test_the_gap_recovered_by_hand() -> None:
    """Of 100 scenes sft has 50 right, the perfect teacher's sft 90, stage 3 70: (70 - 50) / (90 - 50) = 1/2."""
    right = lambda n: [1] * n + [0] * (100 - n)  # noqa: E731
    found = gap(right(50), right(70), right(90))
    assert found is not None and found.value == pytest.approx(0.5)
    assert 0.3 < found.interval.low < 0.5 < found.interval.high < 0.7
    full = gap(right(50), right(90), right(90))
    assert full is not None and full.value == full.interval.low == full.interval.high == pytest.approx(1.0)
    lost = gap(right(50), right(40), right(90))
    assert lost is not None and lost.value == pytest.approx(-0.25)


def test_the_gap_is_the_macro_mean_over_tasks() -> None:
    """Task a (100 questions) recovers 50 points of 50, task b (20) none of 100: (0.5 + 0) / (0.5 + 1) = 1/3. Counted by
    question it would be 50 / 70."""
    found = stats.gap_recovered(
        [str(i) for i in range(120)],
        ["a"] * 100 + ["b"] * 20,
        base=[0] * 120,
        better=[1] * 50 + [0] * 70,
        ceiling=[1] * 50 + [0] * 50 + [1] * 20,
        seed=0,
    )
    assert found is not None and found.value == pytest.approx(1 / 3)


def test_no_gap_no_share_of_it() -> None:
    right = lambda n: [1] * n + [0] * (100 - n)  # noqa: E731
    assert gap(right(50), right(70), right(50)) is None
    assert gap(right(50), right(70), right(40)) is None  # the perfect teacher's student is worse
    assert gap(right(50), right(70), right(51)) is None  # not clear of 0
    with pytest.raises(ValueError, match="differ in length"):
        stats.gap_recovered(["1"], ["a"], base=[1], better=[1], ceiling=[], seed=0)


# --- the tables and the page, from evaluations written by hand


def judged(job: Any, split: str, mode: str, right: int, of: int = 20) -> None:
    """An evaluation of `of` questions, one a scene, of which the first `right` are answered rightly."""
    from lineside.judgement.schema import Decoding, Provenance, write_evaluation
    from lineside.judgement.summary import summarise

    rows = [(row if n < right else wrong)(f"{split}-{n}") for n in range(of)]
    provenance = Provenance(
        date="2026-11-29T10:00:00", seed=job.seed, git="abcdef0123", version="0", machine="a machine", data="x",
        scenes=of, left_out=0,
    )  # fmt: skip
    evaluation = summarise(
        rows, stage=job.arm.stage, split=split, mode=mode, seed=job.seed, latency=None, captions=None,  # type: ignore
        decoding=Decoding(temperature=0.0, max_new_tokens=96), provenance=provenance,
    )  # fmt: skip
    write_evaluation(job.folder / "evaluation", evaluation, rows)


@pytest.fixture
def half_run(tmp_path: Path) -> tuple[arms.Plan, list[Any]]:
    """Two seeds of sft (10 of 20), rlvr (16 of 20) and, for seed 0 only, the perfect teacher's sft (20 of 20)."""
    plan = arms.Plan(runs=tmp_path / "runs")
    jobs = [arms.resolve(arm, plan, seed) for seed in (0, 1) for arm in arms.HEADLINE]
    for job in jobs:
        right = {"sft": 10, "rlvr": 16, "perfect": 20}.get(job.arm.name)
        if right is not None and not (job.arm.name == "perfect" and job.seed == 1):
            for split, mode in arms.suites("headline"):
                judged(job, split, mode, right)
    return plan, jobs


def test_seeds_are_pooled_and_paired_and_shown_one_by_one(half_run: Any, tmp_path: Path) -> None:
    plan, jobs = half_run
    assert headline_table.publish("headline", jobs, plan, tmp_path / "out", {}) == 0  # two seeds: nothing is claimed
    records = json.loads((tmp_path / "out" / "headline.json").read_text())
    by_arm = {r["arm"]: r for r in records if (r.get("split"), r.get("mode")) == ("heldout", "think")}
    rlvr = by_arm["rlvr"]
    assert (rlvr["n"], rlvr["seeds"], rlvr["value"]) == (40, [0, 1], 0.8)
    assert rlvr["less"]["all"][0] == pytest.approx(0.3) and rlvr["less"]["by_seed"] == pytest.approx([0.3, 0.3])
    assert rlvr["less"]["all"][1] > 0 and rlvr["commit"] == "abcdef0" and by_arm["sft"].get("less") is None
    perfect = by_arm["perfect"]
    assert (perfect["n"], perfect["seeds"]) == (20, [0])
    assert perfect["rlvr_less"]["all"][0] == pytest.approx(-0.2) and perfect["rlvr_less"]["seeds"] == [0]
    claims = {r["claim"]: r for r in records if "arm" not in r}
    gap = claims["performance gap recovered"]
    assert gap["value"] == pytest.approx((16 - 10) / (20 - 10)) and gap["n"] == 20
    assert gap["interval"][0] < 0.6 < gap["interval"][1] and gap["holds"] is None
    assert claims["rlvr less traced, each in its better mode: lower bound"]["why"] == "not run"


def test_claims_are_checked_at_full_length_with_all_seeds(tmp_path: Path) -> None:
    plan = arms.Plan(runs=tmp_path / "runs")
    jobs = [arms.resolve(arm, plan, seed) for seed in (0, 1, 2) for arm in arms.HEADLINE]
    for job in jobs:
        if job.arm.name in ("sft", "rlvr"):
            judged(job, "heldout", "think", {"sft": 12, "rlvr": 10}[job.arm.name])
    status = headline_table.publish("headline", jobs, plan, tmp_path / "out", {})
    claims = {r["claim"]: r for r in json.loads((tmp_path / "out" / "headline.json").read_text()) if "arm" not in r}
    assert claims["rlvr less sft, all: lower bound"]["holds"] is False and status == 1
    assert claims["valid traces after rlvr"]["holds"] is True
    short = arms.Plan(runs=tmp_path / "runs", scale=0.5)
    assert headline_table.publish("headline", jobs, short, tmp_path / "out", {}) == 0


def test_a_control_trained_for_one_mode_alone_is_compared_in_that_mode(tmp_path: Path) -> None:
    """rlvr is right in 16 of 20 with thinking on, answers in 18 of 20 with thinking off, and in none with it on."""
    plan = arms.Plan(runs=tmp_path / "runs")
    jobs = [arms.resolve(arm, plan, seed) for seed in (0, 1, 2) for arm in arms.HEADLINE]
    right = {"sft": (10, 9), "rlvr": (16, 8), "answers": (0, 18)}
    for job in jobs:
        for mode, count in zip(("think", "fast"), right.get(job.arm.name, ())):
            judged(job, "heldout", mode, count)
    (page := tmp_path / "page.md").write_text("<!-- headline -->\n<!-- end -->\n")
    assert headline_table.publish("headline", jobs, plan, tmp_path / "out", {}, page=page) == 1
    (claim,) = [c for c in json.loads((tmp_path / "out" / "headline.json").read_text()) if "less answers" in c["claim"]]
    assert claim["difference"][0] == pytest.approx(-0.1) and claim["holds"] is False
    assert claim["modes"] == ["fast", "think"] and "points, thinking off: the control |" in page.read_text()


def test_a_run_of_other_settings_is_told_and_claims_nothing(tmp_path: Path) -> None:
    from lineside.recipe import dump_recipe, load_recipe

    plan = arms.Plan(runs=tmp_path / "runs")
    jobs = [arms.resolve(arm, plan, seed) for seed in (0, 1, 2) for arm in arms.HEADLINE]
    for job in jobs:
        if job.arm.name in ("sft", "rlvr"):
            judged(job, "heldout", "think", {"sft": 12, "rlvr": 10}[job.arm.name])
            own = load_recipe(Path("headline"), [*job.overrides, "rlvr.max_steps=300", "device=cpu", "dtype=fp32"])
            (job.folder / "recipe.yaml").write_text(dump_recipe(own))
    (page := tmp_path / "page.md").write_text("<!-- headline -->\n<!-- end -->\n")
    assert headline_table.publish("headline", jobs, plan, tmp_path / "out", {}, page=page) == 0
    assert "**Other settings than the recipe's: rlvr.max_steps: 420 -> 300.**" in page.read_text()
    records = json.loads((tmp_path / "out" / "headline.json").read_text())
    assert all(r["holds"] is None for r in records if "arm" not in r)
    other = {r["arm"]: r["other"] for r in records if r.get("other") is not None}
    assert other == {"sft": [], "rlvr": ["rlvr.max_steps: 420 -> 300"]}  # stage 3 comes after sft


def test_the_page_keeps_what_is_written_by_hand(half_run: Any, tmp_path: Path) -> None:
    plan, jobs = half_run
    page = tmp_path / "page.md"
    page.write_text("# By hand\n\n<!-- headline -->\nold\n<!-- end -->\n\n<!-- ablations -->\n<!-- end -->\nend\n")
    every = [arms.resolve(arm, plan, 0) for arm in arms.ABLATIONS]
    for _ in range(2):  # again: the same page
        headline_table.publish("headline", jobs, plan, tmp_path / "out", {}, page=page)
        headline_table.publish("ablations", every, plan, tmp_path / "out", {}, page=page)
        text = page.read_text()
        assert text.startswith("# By hand\n") and text.endswith("<!-- end -->\nend\n") and "old" not in text
        assert text.count("| rlvr: then stage 3 on the records | 80.0%") == 4
        assert "+30.0 (" in text and "by seed: +30.0, +30.0" in text
        assert "commit abcdef0; a machine" in text
        assert text.count("not run") > len(arms.ABLATIONS)
        assert (tmp_path / "headline-arms.png").read_bytes().startswith(b"\x89PNG")
        assert not (tmp_path / "headline-teacher.png").exists()
    (tmp_path / "bare.md").write_text("no marks\n")
    with pytest.raises(LinesideError, match="expected a part between"):
        headline_table.publish("headline", jobs, plan, tmp_path / "out", {}, page=tmp_path / "bare.md")


def test_the_pages_own_marks_are_there() -> None:
    text = (BENCHMARKS.parent / "docs" / "headline.md").read_text()
    for table, listed in arms.TABLES.items():
        (part,) = re.findall(rf"<!-- {table} -->(.*?)<!-- end -->", text, re.DOTALL)
        assert all(f"| {arm.name}: {arm.about}" in part for arm in listed), "write the page anew: make headline"


def test_a_page_of_photographs_tells_tasks_apart(tmp_path: Path) -> None:
    plan = arms.Plan(runs=tmp_path / "runs", photographs="sorting")
    jobs = [arms.resolve(arm, plan, 0) for arm in arms.TABLES["sorting"]]
    for job in jobs:
        if job.arm.name in ("sft", "rlvr", "traced"):
            for mode in ("think", "fast"):
                judged(job, "heldout", mode, {"sft": 10, "rlvr": 18, "traced": 12}[job.arm.name])
    page = tmp_path / "page.md"
    page.write_text("<!-- sorting -->\n<!-- end -->\n")
    assert headline_table.publish("sorting", jobs, plan, tmp_path / "out", {}, page=page) == 0
    text = page.read_text()
    assert "Real photographs, one seed; " in text and "| material; chute; is_it |" in text
    assert "| rlvr: then stage 3 on the records | 90.0%" in text and "simulated" not in text.lower()
    assert (tmp_path / "headline-arms-sorting.png").exists()
    records = json.loads((tmp_path / "out" / "headline-sorting.json").read_text())
    claims = {r["claim"]: r["holds"] for r in records if "arm" not in r}
    assert claims == {
        "rlvr less sft, all: lower bound": True,
        "rlvr less traced, each in its better mode: lower bound": True,
        "rlvr less answers, each in its better mode: lower bound": None,
        "rlvr less rejection, each in its better mode: lower bound": None,
    }
    assert records[0]["command"] == "python benchmarks/headline.py --photographs sorting"


# --- photographs with a teacher that errs


def test_the_teacher_misreads_the_photographs_that_resemble_another_class() -> None:
    """By hand: on a circle, class a at 0, 2, 4 and 40 degrees, class b at 90, 92, 50 and 94. A quarter of eight is two:
    a's at 40 lies nearest to b, and b's at 50 nearest to a. The photograph alone in class c is never misread."""
    degrees = torch.tensor([0.0, 2, 4, 40, 90, 92, 50, 94])
    features = torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], 1)
    classes = list("aaaabbbb")
    assert photographs.misread(features, classes, exact=0.75) == {3: "b", 6: "a"}
    assert photographs.misread(features, classes, exact=1.0) == {}
    alone = torch.cat([features, torch.tensor([[0.9, 0.1]])])
    assert 8 not in photographs.misread(alone, [*classes, "c"], exact=0.0)
    assert photographs.misread(features, ["a"] * 8, exact=0.5) == {}


@pytest.mark.parametrize("name", sorted(photographs.SETS))
def test_what_the_teacher_saw_fills_captions_traces_and_answers_and_no_phrasing(name: str) -> None:
    from lineside.data.taskfile import TaskFile
    from lineside.strict import build, read_yaml

    spec = photographs.as_told(read_yaml(photographs.OWN_TASKS / f"{name}.yaml"))
    file = build(TaskFile, spec, name)
    own = read_yaml(photographs.OWN_TASKS / f"{name}.yaml")
    told = [t for c in file.captions for t in c.templates] + [task.trace or "" for task in file.tasks]
    assert all(text.count("{") == text.count("{said_") for text in told)
    assert all(task.answer.teacher_column in ("said", f"said_{task.answer.column}") for task in file.tasks)
    assert [list(task.phrasings) for task in file.tasks] == [task["phrasings"] for task in own["tasks"]]
    assert set(photographs.SETS[name].tasks) == {f"{task.family}/{task.name}" for task in file.tasks}


def test_a_planted_set_is_labelled_as_the_teacher_saw_it_and_judged_by_the_records(tmp_path: Path) -> None:
    """Three materials as three greys, and in each some of another grey: the teacher takes these for what they look
    like, in answer, chute, trace and caption alike. The suite keeps to the records."""
    from lineside.label import label
    from lineside.recipe import load_recipe
    from tests.data.test_table import jpeg

    data, out = tmp_path / "photos", tmp_path / "planted"
    data.mkdir()
    draw, lines = random.Random(0), ["photo,part,material,chute"]
    greys, chutes = {"glass": 40, "paper": 128, "metal": 215}, {"glass": "glass", "paper": "fibre", "metal": "metal"}
    for number in range(36):
        material = list(greys)[number % 3]
        looks = "paper" if number in (0, 3) else material  # two glasses that look like paper
        (data / f"{number}.jpg").write_bytes(jpeg(greys[looks] + draw.randrange(-5, 5)))
        lines.append(f"{number}.jpg,{'train' if number < 24 else 'test'},{material},{chutes[material]}")
    (data / "pieces.csv").write_text("\n".join(lines))
    photographs.plant("sorting", data, out, features=tmp_path / "features")
    rows = {row["photo"]: row for row in photographs.read_rows(out / "pieces.csv")}
    misread = {name for name, row in rows.items() if row["material"] != row["said_material"]}
    assert len(misread) == round(0.237 * 24) and {"0.jpg", "3.jpg"} <= misread
    assert all(row["said_chute"] == chutes[row["said_material"]] for row in rows.values())
    assert misread <= {f"{n}.jpg" for n in range(24)}  # the teacher is not asked about suites
    recipe = load_recipe(Path("sorting"), ["data.label.question_share=0.75", "data.label.prompt_share=0.25"])
    for file in (photographs.TEACHER, photographs.TRUTH):
        account = label(out, tmp_path / file, tasks=[out / file], settings=recipe.data.label)
    assert "audit" not in account
    taught, judged_by = (list(read_samples(tmp_path / file, kind="qa")) for file in (photographs.TEACHER, "truth.yaml"))
    said = {s.meta.scene: s for s in taught if s.split == "train" and s.task == "material"}
    assert len(said) == 18 and {s.answer for s in taught if s.meta.scene == "0.jpg" and s.task == "chute"} <= {"fibre"}
    assert all(s.answer == rows[scene]["said_material"] for scene, s in said.items())
    suite = [(s.id, s.question, s.target, s.answer) for s in taught if s.split == "heldout"]
    assert suite == [(s.id, s.question, s.target, s.answer) for s in judged_by if s.split == "heldout"] and suite
    before = (out / "pieces.csv").stat().st_mtime_ns
    photographs.plant("sorting", data, out, features=tmp_path / "features")  # once
    assert (out / "pieces.csv").stat().st_mtime_ns == before


# --- the runner as a process


@pytest.mark.slow
def test_a_killed_and_an_interrupted_runner_end_with_the_models_of_an_unbroken_one(tmp_path: Path) -> None:
    """kill -9 after stage 1, Ctrl-C within stage 2, then to the end; and nothing is trained twice."""
    try:
        choose_backend()
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")

    def start(runs: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(BENCHMARKS / "headline.py"), "--tiny", "--arms", "rlvr", "--seeds", "0",
                   "--runs", str(tmp_path / runs), "--out", str(tmp_path / "out")]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def until(process: subprocess.Popen[str], path: Path) -> None:
        while not path.exists():
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.02)

    whole = start("whole").communicate()[0]
    assert "2 of 2 arms to run" in whole and "written:" in whole
    run = tmp_path / "broken" / "headline-tiny-0"
    process = start("broken")
    until(process, run / "align" / "checkpoint")
    process.kill()
    process.communicate()
    process = start("broken")
    until(process, run / "sft" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    told = process.communicate()[0]
    assert process.returncode in (130, 0) and ("run the same command again" in told or process.returncode == 0)
    assert start("broken").communicate()[0].count("written:") == 1
    for stage in ("parts", "align", "sft", "rlvr"):
        one, two = (
            (tmp_path / runs / "headline-tiny-0" / stage / "checkpoint" / "model.safetensors").read_bytes()
            for runs in ("whole", "broken")
        )
        assert one == two, f"{stage} differs"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    assert "0 of 2 arms to run" in start("broken").communicate()[0]
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
