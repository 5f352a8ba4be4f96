"""What the controls train on: which of stage 3's prompts they use, and with which settings."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lineside.data.mixture import Mixture, Part
from lineside.data.store import read_samples, write_samples
from lineside.errors import LinesideError
from lineside.label import CONTROL
from lineside.recipe import Recipe, load_recipe
from lineside.training.controls import (
    BY_OUTCOME,
    NO_ANSWER,
    NO_TEACHER,
    RATE,
    UNVOUCHED,
    Account,
    answers,
    count_sampling,
    prepare,
    read_account,
    settings_of,
    traced,
)
from lineside.training.cost import Cost, read_cost, write_cost
from lineside.types import Image, Mask, Meta, Sample, Source, Target
from lineside.verify.verifiers import verify
from tests.conftest import picture


def prompt(number: int, target: Target) -> Sample:
    return Sample(
        id=f"p{number}", kind="prompt", images=(Image(picture(number // 2)),), family="picking", task="count_all",
        question="how many red cans?", trace=None, answer=None, target=target, split="train",
        meta=Meta(scene=f"s{number}"), source=Source("sim"),
    )  # fmt: skip


COUNT = Target(kind="number", provenance="record", value=3.0, tolerance=2.0)
TARGETS = {
    "a count": (COUNT, "3"),
    "to the nearest 10": (
        Target(kind="number", provenance="record", value=37.0, resolution=10.0, tolerance=20.0, unit="percent"),
        "40 percent",
    ),
    "an angle": (Target(kind="number", provenance="record", value=359.0, resolution=5.0, period=180.0), "0"),
    "a state": (Target(kind="choice", provenance="sim", accepted=("torn",), options=("torn", "open")), "torn"),
    "an empty set": (Target(kind="set", provenance="record"), "none"),
    "slots": (Target(kind="set", provenance="record", accepted=("2", "5"), options=("2", "5", "6")), "2, 5"),
    "parts": (Target(kind="set", provenance="record", accepted=("can", "box", "can"), counted=True), "2 cans, box"),
    "a point": (
        Target(kind="point", provenance="sim", x=0.5, y=0.25, mask=Mask(4, 4, (0, 16))),
        "0.50, 0.25",
    ),
}
EDGE = Target(kind="point", provenance="sim", x=0.2496, y=0.1, mask=Mask(4, 4, (0, 1, 15)))  # 0.25 is outside it
TOLD = replace(COUNT, provenance="teacher")
SEEN, FAILED = replace(COUNT, provenance="outcome"), Target("not", "outcome", wrong=(COUNT,))


def recipe(tmp_path: Path, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: tiny\ndata: {samples: x}\nsft: {max_steps: 5, learning_rate: {projector: 1e-2, lm: 1e-3}}\n")
    return load_recipe(path, changes)


def test_answers_are_written_from_the_targets_and_are_right(tmp_path: Path) -> None:
    targets = [*TARGETS.values(), (EDGE, None), (TOLD, None), (SEEN, None), (FAILED, None)]
    write_samples(tmp_path / "data", [prompt(n, target) for n, (target, _) in enumerate(targets)])
    prompts = Mixture((Part(tmp_path / "data"),), vouched=True)
    mixture = prepare("answers", prompts, tmp_path / "answers", answers)
    (part,) = mixture.parts
    made = list(read_samples(part.folder))
    assert [s.answer for s in made] == [answer for _, answer in TARGETS.values()]
    for sample in made:
        assert sample.kind == "qa" and sample.trace is None and sample.split == "train"
        assert sample.target and sample.answer and verify(sample.answer, sample.target).exact
    account = read_account(tmp_path / "answers")
    assert account and (account.prompts, account.samples) == (12, 8)
    assert account.left_out == {NO_ANSWER: 1, UNVOUCHED: 1, BY_OUTCOME: 2}

    before = {path: path.stat().st_mtime_ns for path in part.folder.iterdir()}
    assert prepare("answers", prompts, tmp_path / "answers", answers) == mixture  # made once
    assert before == {path: path.stat().st_mtime_ns for path in part.folder.iterdir()}
    trusted = prepare("answers", replace(prompts, vouched=False), tmp_path / "trusted", answers)
    assert len(list(read_samples(trusted.parts[0].folder))) == 9


def test_samples_of_a_process_that_was_killed_are_made_again(tmp_path: Path) -> None:
    write_samples(tmp_path / "data", [prompt(n, COUNT) for n in range(4)])
    write_samples(tmp_path / "answers" / "samples", [replace(prompt(9, COUNT), kind="qa", answer="3")])  # no account
    (part,) = prepare("answers", Mixture((Part(tmp_path / "data"),)), tmp_path / "answers", answers).parts
    assert [s.id for s in read_samples(part.folder)] == ["p0", "p1", "p2", "p3"]


def test_the_teachers_answers_are_counted_and_mixed_in_ones_keep_their_weight(tmp_path: Path) -> None:
    for name, twins in (("data", range(3)), ("more", range(2)), ("bare", range(0))):
        write_samples(tmp_path / name, [prompt(n, COUNT) for n in range(4)] + [prompt(4, TOLD)])
        answered = [replace(prompt(n, COUNT), kind="qa", trace="2 left; 1 right; so 3", answer="3") for n in twins]
        write_samples(tmp_path / name / CONTROL, answered)
    parts = (Part(tmp_path / "data"), Part(tmp_path / "more", 0.5), Part(tmp_path / "bare"))
    mixture = prepare("traced", Mixture(parts, vouched=True), tmp_path / "traced", traced)
    assert mixture.parts == (Part(tmp_path / "data" / CONTROL), Part(tmp_path / "more" / CONTROL, 0.5))
    account = read_account(tmp_path / "traced")
    assert account and (account.prompts, account.samples) == (15, 5)
    assert account.left_out == {UNVOUCHED: 3, NO_TEACHER: 7}


def test_a_control_that_no_prompt_can_serve_is_refused_with_the_numbers(tmp_path: Path) -> None:
    write_samples(tmp_path / "data", [prompt(n, EDGE) for n in range(3)])
    with pytest.raises(LinesideError, match=r"answers: nothing to train on: 0 samples from 3 prompts .*left out 3: .*"):
        prepare("answers", Mixture((Part(tmp_path / "data"),), vouched=True), tmp_path / "answers", answers)
    assert read_account(tmp_path / "answers") is None


def test_a_control_has_the_settings_of_sft_and_the_tokens_of_stage_3(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "rlvr").mkdir(parents=True)
    rows = [{"step": n, "tokens": 1000.0} for n in (1, 2, 3)]
    (run / "rlvr" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = settings_of(recipe(tmp_path), run, "traced")
    assert (found.max_tokens, found.max_minutes, found.max_steps) == (3000, None, None)
    assert found.learning_rate.projector == RATE * 1e-2 and found.learning_rate.lm == RATE * 1e-3
    assert found.epochs > 1e5 and found.trace_weight == recipe(tmp_path).sft.trace_weight

    tuned = recipe(tmp_path, "answers.learning_rate.lm=5e-4", "answers.max_tokens=77")
    found = settings_of(tuned, run, "answers")
    assert (found.learning_rate.lm, found.learning_rate.projector, found.max_tokens) == (5e-4, RATE * 1e-2, 77)

    as_long = recipe(tmp_path, "traced.equal=minutes")
    with pytest.raises(LinesideError, match=r"give traced\.max_tokens"):
        settings_of(as_long, run, "traced")
    write_cost(run / "rlvr", Cost(seconds={"decode": 60.0, "update": 120.0, "evaluate": 500.0}))
    found = settings_of(as_long, run, "traced")
    assert (found.max_minutes, found.max_tokens) == (3.0, None)


def test_sampling_counts_in_the_minutes_and_once(tmp_path: Path) -> None:
    by_minutes = recipe(tmp_path, "rejection.equal=minutes")
    (tmp_path / "rlvr").mkdir()
    write_cost(tmp_path / "rlvr", Cost(seconds={"update": 180.0}))
    own = tmp_path / "rejection"
    own.mkdir()
    account = Account(9, 4, rollouts=72, seconds={"decode": 60.0, "prefill": 0.0}, operations=7.0)
    (own / "samples.json").write_text(json.dumps(asdict(account)))
    assert settings_of(by_minutes, tmp_path, "rejection").max_minutes == 2.0
    write_cost(own, Cost(tokens=5, seconds={"update": 30.0}))
    for _ in range(2):
        count_sampling(own)
        found = read_cost(own)
        assert found and found.trained == 90.0 and found.operations == 7.0
    (own / "samples.json").write_text(json.dumps(asdict(replace(account, seconds={"decode": 181.0}))))
    with pytest.raises(LinesideError, match=r"its sampling took 3\.0 minutes, and stage 3 only 3\.0"):
        settings_of(by_minutes, tmp_path, "rejection")


def test_tasks_that_stage_3_leaves_out_are_left_out_of_its_controls(tmp_path: Path) -> None:
    other = [replace(prompt(n, COUNT), id=f"x{n}", task="x") for n in range(3)]
    prompts = [*(prompt(n, COUNT) for n in range(4)), *other]
    write_samples(tmp_path / "data", prompts)
    write_samples(tmp_path / "data" / CONTROL, [replace(p, kind="qa", trace="so 3", answer="3") for p in prompts])
    mixture = Mixture((Part(tmp_path / "data"),), vouched=True, leave_out=("picking/x",))
    for name, make in (("traced", traced), ("answers", answers)):
        made = prepare(name, mixture, tmp_path / name, make)
        account = read_account(tmp_path / name)
        assert account is not None and (account.prompts, account.samples) == (4, 4)
        seen = [s for group in made.stream("qa", seed=0, epoch=0) for s in group]
        assert len(seen) == 4 and {s.task for s in seen} == {"count_all"}
