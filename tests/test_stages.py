"""The three stages on the tiny VLM: frozen stays bit-identical, resumed equals unbroken, traces are never skipped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lineside.rlvr
import lineside.training.rollout
import lineside.training.stage
import lineside.training.watch
from lineside.align import align
from lineside.data.mixture import Mixture
from lineside.data.store import read_samples, stream_frame_samples, write_samples
from lineside.errors import CheckFailed, LinesideError
from lineside.judgement.rundata import read_run
from lineside.model.checkpoint import load, save
from lineside.model.features import FeatureStore, features_of
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, TRACE
from lineside.model.vlm import VLM
from lineside.recipe import Align, Rates, Rlvr, Sft
from lineside.rlvr import in_turn, mean_weights, rlvr, stock_share
from lineside.runtime import Runtime
from lineside.sft import no_think_copies, sft
from lineside.training.budget import read_budget
from lineside.training.caption_replay import CaptionReplay
from lineside.training.cost import read_cost
from lineside.training.losses import dapo_loss, sft_loss
from lineside.training.metrics import TABLE, WARNINGS, MetricsLog, read_metrics, write_table
from lineside.training.optim import Optimizer
from lineside.training.packing import drop_channels, image_tree, kept_channels, packs_of
from lineside.training.rollout import lay_out, sample_groups, sampler_gap
from lineside.training.sampler import LocalSampler, Sampler, prompts_for
from lineside.training.stage import Stage
from lineside.training.state import load_state
from lineside.types import Group, Image, Meta, Rollout, Sample, SampleKind, Source, Target
from lineside.verify.judge import judge
from tests.conftest import FixedSampler, make_tiny_vlm, picture
from tests.dense import dense_logprobs
from tests.small_run import logged

NUMBER = Target(kind="number", provenance="sim", value=3.0, tolerance=2.0)


def sample(
    kind: SampleKind, frame: int, number: int, *, question: str = "", trace: str | None = None, answer: str | None = "3"
) -> Sample:
    """One sample of a frame of noise."""
    return Sample(
        id=f"f{frame}-{kind}-{number}",
        kind=kind,
        images=(Image(picture(frame)),),
        family="picking",
        task="count_all",
        question=question,
        trace=trace,
        answer=answer,
        target=None if kind == "caption" else NUMBER,
        split="train",
        meta=Meta(scene=f"s{frame}"),
        source=Source("sim"),
    )


def write_data(folder: Path) -> Path:
    """Eight frames with captions, questions (some without a valid trace) and prompts.

    The teacher says 3 as often as 5 of the same picture, so that a policy trained on it samples both: groups are live.
    """
    rows: list[Sample] = []
    for frame in range(8):
        rows += [sample("caption", frame, i, answer=f"the bin holds {i + 1} red cans") for i in range(2)]
        rows += [
            sample(
                "qa",
                frame,
                0,
                question="how many red cans are in the bin?",
                trace="left: 2 red can; right: 1 red can; so 3",
            ),
            sample(
                "qa",
                frame,
                3,
                question="how many red cans are in the bin?",
                trace="left: 4 red can; right: 1 red can; so 5",
                answer="5",
            ),
            sample("qa", frame, 1, question="is there a blue box?", answer="no"),
            sample("qa", frame, 2, question="which slots still need filling?", trace="ok.", answer="2"),
        ]
        rows += [
            sample("prompt", frame, i, question="how many red cans are in the bin?", answer=None) for i in range(2)
        ]
    write_samples(folder, rows)
    return folder


@pytest.fixture(autouse=True)
def no_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineside.training.stage, "matrix_rate", lambda *_: 1e9)  # measuring takes longer than a stage


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The samples of `write_data`, in a folder of the test's own."""
    return write_data(tmp_path / "samples")


FAST = Rates(projector=1e-2, lm=1e-2)  # the tiny model's


def ready(dtype: torch.dtype = torch.float32) -> tuple[VLM, FeatureStore]:
    vlm = make_tiny_vlm()
    vlm.model.to(dtype)  # pyright: ignore[reportArgumentType] # transformers' wrapper of `to` loses the self
    return vlm, FeatureStore(None, vlm)


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stage 2 whose groups are live, trained once for all tests."""
    folder = tmp_path_factory.mktemp("alive")
    vlm, store = ready()
    sft(vlm, store, write_data(folder / "samples"), folder, Sft(epochs=40, step_tokens=300, learning_rate=FAST))
    return folder / "checkpoint"


def loaded(checkpoint: Path) -> tuple[VLM, FeatureStore]:
    vlm = load(checkpoint)
    return vlm, FeatureStore(None, vlm)


def weights(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in vlm.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_align_trains_the_projector_alone(data: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    vlm, store = ready(dtype)
    before = weights(vlm)
    align(vlm, store, data, tmp_path / "align", Align(epochs=2, step_tokens=200))
    moved = changed(before, weights(vlm))
    assert moved == {n for n in before if "multi_modal_projector" in n}  # encoder and LM bit-identical
    saved = weights(load(tmp_path / "align" / "checkpoint", dtype=dtype))
    assert not changed(weights(vlm), saved)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_sft_leaves_the_encoder_alone_and_learns(data: Path, tmp_path: Path) -> None:
    vlm, store = ready()
    before = weights(vlm)
    sft(vlm, store, data, tmp_path / "sft", Sft(epochs=12, step_tokens=300, learning_rate=FAST))
    moved = changed(before, weights(vlm))
    assert moved and not any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved) and any("projector" in name for name in moved)
    rows = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/answer"] < 0.7 * rows[0]["loss/answer"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/answer"] + 0.3 * rows[0]["loss/trace"], rel=1e-5)


def test_rlvr_moves_projector_and_lm_and_logs_what_the_field_logs(data: Path, tmp_path: Path, alive: Path) -> None:
    vlm, store = loaded(alive)
    before = weights(vlm)
    settings = Rlvr(
        epochs=1,
        prompts=4,
        group_size=6,
        max_new_tokens=24,
        max_sampling_rounds=2,
        temperature=0.8,
        updates=2,
        learning_rate=Rates(projector=1e-3, lm=1e-3),
        warmup=0.0,
    )
    rlvr(vlm, store, data, tmp_path / "rlvr", settings)
    assert not any("vision_tower" in name for name in changed(before, weights(vlm)))
    rows = [json.loads(line) for line in (tmp_path / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert rows, "no group was ever live"
    for row in rows:
        assert {"reward", "exact", "valid", "dead", "clip/low", "clip/high", "entropy", "length"} <= set(row)
        assert 0 <= row["dead"] < 1
    assert rows[0]["sampler_gap"] < 1e-3  # the sampler's log-probabilities are the trainer's
    assert rows[0]["ratio"] == pytest.approx(1.0)  # first update: on-policy
    assert rows[1]["ratio"] != 1.0  # second update of the same rollouts: the policy has moved


def test_stages_two_and_three_learn_from_references(tmp_path: Path) -> None:
    """The same question of the same frame: only the reference picture tells the two answers apart."""
    shown = {answer: Image(picture(seed), "reference", name="red can") for answer, seed in (("3", 90), ("5", 91))}

    def asked(kind: SampleKind, frame: int, answer: str) -> Sample:
        made = sample(kind, frame, int(answer), question="how many red cans?", answer=answer)
        target = replace(NUMBER, value=float(answer), tolerance=1.0)
        made = replace(made, images=(*made.images, shown[answer]), target=target)
        return made if kind == "qa" else replace(made, answer=None)

    rows = [asked(kind, frame, answer) for kind in ("qa", "prompt") for frame in range(6) for answer in shown]
    write_samples(tmp_path / "samples", rows)
    vlm, store = ready()
    sft(vlm, store, tmp_path / "samples", tmp_path / "sft", Sft(epochs=30, step_tokens=200, learning_rate=FAST))
    prompts = [Prompt((Image(picture(70)), shown[answer]), "how many red cans?", False) for answer in shown]
    assert [rollout.text for (rollout,) in generate(vlm, store, prompts, max_new_tokens=4)] == list(shown)
    assert store.encoder_calls == 6 + 2 + 1  # each picture once
    before = weights(vlm)
    settings = Rlvr(
        epochs=1, prompts=6, group_size=6, max_new_tokens=24, max_sampling_rounds=2, temperature=1.6, updates=1,
        learning_rate=FAST, warmup=0.0,
    )  # fmt: skip
    rlvr(vlm, store, tmp_path / "samples", tmp_path / "rlvr", settings)
    assert not any("vision_tower" in name for name in changed(before, weights(vlm)))
    (row, *_) = [json.loads(line) for line in (tmp_path / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert row["sampler_gap"] < 1e-3  # with references in both, sampler and trainer agree


def test_every_prompt_of_a_frame_comes_before_one_comes_again() -> None:
    prompts = tuple(sample("prompt", 0, number, question=f"{number}?", answer=None) for number in range(7))
    taken = [p.id for epoch in range(7) for p in in_turn(prompts, 3, epoch=epoch, seed=1)]
    assert len(taken) == 21 and all(len(set(taken[i : i + 7])) == 7 for i in (0, 7, 14))
    assert [p.id for p in in_turn(prompts, 7, epoch=0, seed=1)] != [p.id for p in in_turn(prompts, 7, epoch=0, seed=2)]
    assert {p.id for p in in_turn(prompts, 9, epoch=4, seed=1)} == {p.id for p in prompts}
    assert in_turn((), 3, epoch=1, seed=1) == ()


def test_a_group_is_trained_on_the_variant_that_its_rollouts_saw() -> None:
    vlm, _ = ready()
    asked = [sample("prompt", 0, row, question=f"what is {row}?", answer=None, trace=None) for row in range(3)]
    images = (replace(asked[0].images[0], variant=4),)
    asked[1] = replace(asked[1], images=images)
    groups = [Group(one, (Rollout((5, 6), (-1.0, -1.0), "x", True),), ()) for one in asked]
    laid = lay_out(vlm, groups)
    assert [frame.images for frame in laid.trees] == [asked[0].images, images]
    assert laid.order == [(0, 0), (2, 0), (1, 0)]


@pytest.mark.parametrize("pack_tokens", [8, 4096])  # less than any of the trees, more than all of them
def test_an_eos_alone_a_cut_response_and_two_pictures_are_scored_as_by_the_dense_path(pack_tokens: int) -> None:
    vlm, store = ready()
    one = sample("prompt", 0, 0, question="how many red cans are in the bin?", answer=None)
    two = replace(one, id="two", images=(Image(picture(1)), Image(picture(2))), question="which has more?")
    end = vlm.render.eos_id
    rollouts = tuple(
        Rollout(tokens, (0.0,) * len(tokens), "", tokens[-1] == end) for tokens in ((end,), (5, 6, 7), (5, end))
    )
    laid = lay_out(vlm, [Group(asked, rollouts, ()) for asked in (one, two)])
    packs = packs_of(vlm, laid.trees, pack_tokens)
    assert len(packs) == (2 if pack_tokens == 8 else 1)
    scored = [vlm.logprobs_and_entropy(pack, features_of(store, images)) for pack, images in packs]
    dense = [dense_logprobs(vlm, [frame.tree], store.get(frame.images)) for frame in laid.trees]
    leaves = torch.cat([pack.leaf for pack, _ in packs])
    for leaf, want in enumerate(path for paths in dense for path in paths):
        got = torch.cat([logprobs for logprobs, _ in scored])[leaves == leaf]
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert all((entropy > 0).all() for _, entropy in scored)


@pytest.mark.parametrize("prompt_choice", ["live", "uniform"])
def test_live_choice_asks_the_prompts_that_teach(data: Path, tmp_path: Path, alive: Path, prompt_choice: str) -> None:
    """Half of the prompts are hopeless: no answer reaches them. Uniform drawing asks them as often as the others."""
    vlm, store = loaded(alive)
    rows = []
    hopeless = replace(NUMBER, value=900.0, tolerance=0.0)
    for prompt in read_samples(data, kind="prompt"):
        rows += [
            prompt,
            replace(prompt, id=prompt.id + "-no", question="how many red cans?", task="x", target=hopeless),
        ]
    write_samples(tmp_path / "half", rows)
    settings = Rlvr(
        epochs=12, prompts=4, group_size=4, max_new_tokens=24, warmup=0.0, prompt_choice=prompt_choice,  # type: ignore
        learning_rate=Rates(projector=1e-9, lm=1e-9), max_steps=6, task_floor=0.2,
    )  # fmt: skip
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineside.rlvr, "sample_groups", _noted(lineside.rlvr.sample_groups, asked))
        rlvr(vlm, store, tmp_path / "half", tmp_path / "rlvr", settings)
    share = asked.count("how many red cans?") / len(asked)
    assert share < 0.35 if prompt_choice == "live" else share > 0.4
    logged = [json.loads(line) for line in (tmp_path / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert logged and all(0 <= row["dead"] <= row["dead/exact"] <= 1 for row in logged)


def test_tasks_left_out_are_never_asked_in_stage_3(data: Path, tmp_path: Path) -> None:
    vlm, store = ready()
    prompts = list(read_samples(data, kind="prompt"))
    other = [replace(p, id=p.id + "-x", task="x", question="how many blue cans?") for p in prompts]
    write_samples(tmp_path / "two", [*prompts, *other])
    asked: list[str] = []
    settings = Rlvr(epochs=9, prompts=4, group_size=2, max_new_tokens=4, overlong_cache=0, max_steps=2,
                    leave_out=("picking/count_all",))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineside.rlvr, "sample_groups", _noted(lineside.rlvr.sample_groups, asked))
        rlvr(vlm, store, tmp_path / "two", tmp_path / "rlvr", settings)
    assert set(asked) == {"how many blue cans?"}


def trained(stage: str, start: Path, data: Path, folder: Path, **limits: Any) -> dict[str, torch.Tensor]:
    """Weights after four steps (or `limits`) of a stage from `start`, in `folder`; it goes on where it was stopped."""
    vlm = load(start)
    store = FeatureStore(None, vlm)
    short: dict[str, Any] = {"epochs": 3, **(limits or {"max_steps": 4})}
    if stage == "align":
        align(vlm, store, data, folder, Align(step_tokens=200, **short), runtime=Runtime(seed=1))
    elif stage == "sft":
        sft(
            vlm,
            store,
            data,
            folder,
            Sft(step_tokens=300, feature_dropout=0.3, caption_replay=1, **short),
            runtime=Runtime(seed=1),
        )
    else:
        short = {"epochs": 40, **(limits or {"max_steps": 4})}
        settings = Rlvr(
            prompts=3, group_size=4, max_new_tokens=32, max_sampling_rounds=3, schedule="linear", warmup=0.0, **short
        )
        rlvr(vlm, store, data, folder, settings, runtime=Runtime(seed=1))
    return weights(vlm)


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A checkpoint to begin from; for rlvr one whose groups are live."""
    if request.node.callspec.params["stage"] == "rlvr":
        return shutil.copytree(request.getfixturevalue("alive"), tmp_path / "start")
    vlm, _ = ready()
    save(vlm, tmp_path / "start")
    return tmp_path / "start"


def interrupting(monkeypatch: pytest.MonkeyPatch, number: int, *signals: int) -> None:
    """Send signals in the middle of optimiser step `number`, after half of its weights have moved."""
    whole = Optimizer.step

    def step(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        interrupted.append(1)
        if len(interrupted) == number:
            for one in signals:
                os.kill(os.getpid(), one)
        return whole(self, scale)

    interrupted: list[int] = []
    monkeypatch.setattr(Optimizer, "step", step)


@pytest.mark.parametrize("stage, number", [("align", signal.SIGINT), ("sft", signal.SIGTERM), ("rlvr", signal.SIGINT)])
def test_resumed_equals_unbroken(
    data: Path, tmp_path: Path, start: Path, stage: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = trained(stage, start, data, tmp_path / "unbroken")
    assert changed(weights(load(start)), unbroken)  # it trained
    assert len((tmp_path / "unbroken" / "metrics.jsonl").read_text().splitlines()) == 4

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 2, number)
        trained(stage, start, data, tmp_path / "resumed")
    assert signal.getsignal(number) is handler
    state = load_state(tmp_path / "resumed" / "state")
    assert state is not None and state.step == 2  # the step under way was finished, and saved
    with MetricsLog(tmp_path / "resumed", step=2, label="") as log:  # what a run logs that is killed before it saves
        log.log(3, {"loss": 9.0})
        write_table(tmp_path / "resumed", 3, [{"id": "lost"}])
    assert not changed(unbroken, trained(stage, start, data, tmp_path / "resumed"))
    costs = [read_cost(tmp_path / name) for name in ("unbroken", "resumed")]
    one, other = (replace(cost, matrix_rate=0.0, seconds={}) for cost in costs if cost is not None)
    assert one == other and one.tokens and one.operations  # an interruption loses no count either
    assert _steps(tmp_path / "resumed" / "metrics.jsonl") == [1, 2, 3, 4]
    if stage == "rlvr":
        tables = [(tmp_path / name / "samples.jsonl").read_text() for name in ("unbroken", "resumed")]
        assert tables[0] == tables[1]
    assert not list(tmp_path.glob("*/state"))  # gigabytes that nobody needs once there is a checkpoint


def test_a_probe_changes_no_weight_and_goes_on_where_a_stage_goes_on(
    data: Path, tmp_path: Path, alive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps reach the tenths 0, 2, 5 and 7 of the stage: each is probed once, also after an interruption."""
    dev = [replace(s, split="dev", id=f"dev-{s.id}") for s in read_samples(data, kind="qa")]
    write_samples(tmp_path / "with", [*read_samples(data, kind="qa"), *dev])
    write_samples(tmp_path / "without", list(read_samples(data, kind="qa")))

    def run(folder: str, samples: str, probe: int) -> dict[str, torch.Tensor]:
        vlm = load(alive)  # its answers end
        settings = Sft(max_steps=4, epochs=9, step_tokens=300, feature_dropout=0.3, probe=probe)
        sft(vlm, FeatureStore(None, vlm), tmp_path / samples, tmp_path / folder, settings, runtime=Runtime(seed=1))
        return weights(vlm)

    def probes(folder: str) -> list[tuple[float, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [(row["probe/exact"], row["probe/valid"]) for row in rows if "probe/exact" in row]

    plain = run("plain", "with", 0)
    assert not changed(plain, run("probed", "with", 6)) and not probes("plain")
    assert len(probes("probed")) == 4 and all(0 <= share <= 1 for pair in probes("probed") for share in pair)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 2, signal.SIGINT)
        run("resumed", "with", 6)
    assert not changed(plain, run("resumed", "with", 6)) and probes("resumed") == probes("probed")
    run("blind", "without", 6)
    assert "has no questions of dev: none is asked" in capsys.readouterr().err and not probes("blind")


def _steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def clock_of(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A clock that goes on by so many seconds each time that a stage looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr(lineside.training.stage, "time", SimpleNamespace(monotonic=lambda: seconds * next(ticks)))


@pytest.mark.parametrize(
    "stage, optimizer",
    [
        ("align", "adamw"),
        ("sft", "muon"),
        ("rlvr", "adamw"),
        pytest.param("align", "muon", marks=pytest.mark.slow),
        pytest.param("sft", "adamw", marks=pytest.mark.slow),
        pytest.param("rlvr", "muon", marks=pytest.mark.slow),
    ],
)
def test_minutes_become_a_budget_that_no_clock_changes(
    data: Path, tmp_path: Path, start: Path, stage: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured leaves no trace, and what it found gives the same weights on a machine of any speed."""
    given = 0.05 if stage == "rlvr" else 0.1
    minutes = {"max_minutes": given, "epochs": 6, "optimizer": optimizer}
    with monkeypatch.context() as patch:
        clock_of(patch, 1.0)
        found = trained(stage, start, data, tmp_path / "measured", **minutes)
    budget = read_budget(tmp_path / "measured", given)
    assert budget is not None and budget.unit == ("steps" if stage == "rlvr" else "tokens")
    assert budget.number == round(float(f"{given * budget.per_minute:.3g}")) and budget.measured
    rows = [json.loads(line) for line in (tmp_path / "measured" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1 and rows[-1]["seconds"] > 0  # those that were measured are not among them
    if stage != "rlvr":
        assert budget.number <= sum(row["tokens"] for row in rows) < budget.number + rows[-1]["tokens"]
    assert changed(weights(load(start)), found)

    fixed = {f"max_{budget.unit}": budget.number, "epochs": 6, "optimizer": optimizer}
    assert not changed(found, trained(stage, start, data, tmp_path / "fixed", **fixed))
    for name in ("resumed", "slow"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "measured" / "budget.json", tmp_path / name)
    with monkeypatch.context() as patch:
        clock_of(patch, 1000.0)
        assert not changed(found, trained(stage, start, data, tmp_path / "slow", **minutes))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 1 if stage == "rlvr" else 2, signal.SIGINT)
        trained(stage, start, data, tmp_path / "resumed", **minutes)
    assert not changed(found, trained(stage, start, data, tmp_path / "resumed", **minutes))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # while it is measured
        clock_of(patch, 1.0)
        interrupting(patch, 1, signal.SIGINT)
        trained(stage, start, data, tmp_path / "early", **minutes)
    assert load_state(tmp_path / "early" / "state") is None and read_budget(tmp_path / "early", given) is None


def test_steps_that_find_nothing_to_learn_from_are_logged_watched_and_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model is never right: every group is dead, so that no step makes an update."""

    monkeypatch.setattr(lineside.training.watch, "LEVEL", 4)

    def run(folder: str, **settings: Any) -> VLM:
        vlm, store = ready()
        rlvr(vlm, store, data, tmp_path / folder / "rlvr", Rlvr(
            epochs=50, max_steps=10, prompts=2, group_size=2, max_new_tokens=8, overlong_cache=0,
            max_sampling_rounds=1, **settings,
        ))  # fmt: skip
        return vlm

    assert not changed(weights(make_tiny_vlm()), weights(run("whole")))
    stage = tmp_path / "whole" / "rlvr"
    rows = logged(stage)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(row["dead"] == 1 and row["reward"] == 0 and row["tokens"] == 0 and "loss" not in row for row in rows)
    assert all(row["entropy"] > 1 for row in rows)  # of a policy that knows nothing: log of the vocabulary
    (warning,) = read_metrics(stage / WARNINGS)
    assert (warning["kind"], warning["step"]) == ("dead_groups", 8)
    assert warning["samples"] and all("-prompt-" in name for name in warning["samples"])
    assert [row["step"] for row in read_metrics(stage / TABLE)[::2]] == list(range(1, 11))
    curves = {curve.name: curve for curve in read_run(stage.parent).curves["rlvr"]}  # in the report: without a loss
    assert len(curves["dead"].steps) == 10 and set(curves["dead"].values) == {1.0} and "loss" not in curves
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("dead")] == list(range(1, 11))

    with pytest.raises(CheckFailed, match=r"rlvr: halt_on: dead_groups at step 8: before 1, now 1; in the step are f"):
        run("halted", halt_on=("dead_groups",))
    state = load_state(tmp_path / "halted" / "rlvr" / "state")
    assert state is not None and state.step == 8
    run("halted", halt_on=("dead_groups",))  # it goes on

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):  # after which nothing is saved
        patch.setattr(lineside.rlvr, "sample_groups", _failing(lineside.rlvr.sample_groups, 6))
        run("killed", save_seconds=1e-9)
    state = load_state(tmp_path / "killed" / "rlvr" / "state")
    assert state is not None and state.step == 5  # saved by its time
    assert not changed(weights(make_tiny_vlm()), weights(run("killed", save_seconds=1e-9)))
    for name in ("halted", "killed"):
        assert logged(tmp_path / name / "rlvr") == rows
        for table in (WARNINGS, TABLE):
            assert (tmp_path / name / "rlvr" / table).read_text() == (stage / table).read_text()


def _failing(whole: Callable[..., list[Group]], call: int) -> Callable[..., list[Group]]:
    """Sampling that ends with an error at a call."""
    calls = itertools.count(1)

    def sample_groups(*given: Any, **settings: Any) -> list[Group]:
        if next(calls) == call:
            raise RuntimeError("killed")
        return whole(*given, **settings)

    return sample_groups


@pytest.mark.parametrize("stage", ["sft"])
def test_only_whole_steps_are_saved(
    data: Path, tmp_path: Path, start: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted twice, it stops at once and saves nothing; nor does it after a fault in the middle of a step."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 2, signal.SIGINT, signal.SIGINT)
        trained(stage, start, data, tmp_path / "twice")
    assert load_state(tmp_path / "twice" / "state") is None

    def broken(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        raise RuntimeError("half a step")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Optimizer, "step", broken)
        trained(stage, start, data, tmp_path / "broken")
    assert load_state(tmp_path / "broken" / "state") is None
    unbroken = trained(stage, start, data, tmp_path / "unbroken")
    for name in ("twice", "broken"):
        assert not changed(unbroken, trained(stage, start, data, tmp_path / name))


@pytest.mark.parametrize("stage", ["sft"])
def test_a_long_step_is_left_out_and_what_came_before_it_is_saved(
    data: Path, tmp_path: Path, start: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One SIGTERM, and a step that does not end within the grace."""
    whole, packs = Stage.learn, itertools.count(1)

    def learn(self: Stage, *args: Any, **options: Any) -> None:
        if self.steps == 2 and next(packs) == 1:  # the third step, after which draws of dropout are already made
            os.kill(os.getpid(), signal.SIGTERM)
            whole(self, *args, **options)
            time.sleep(30)
        whole(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lineside.training.stage, "GRACE", 0.1)
        patch.setattr(Stage, "learn", learn)
        trained(stage, start, data, tmp_path / "resumed")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    state = load_state(tmp_path / "resumed" / "state")
    assert state is not None and state.step == 2
    unbroken = trained(stage, start, data, tmp_path / "unbroken")
    assert not changed(unbroken, trained(stage, start, data, tmp_path / "resumed"))
    assert _steps(tmp_path / "resumed" / "metrics.jsonl") == [1, 2, 3, 4]


@pytest.mark.parametrize("signals", [1, 2, 3])
@pytest.mark.parametrize("stage", ["sft"])
def test_a_save_that_a_signal_comes_into_ends_and_is_not_made_again(
    data: Path, tmp_path: Path, start: Path, stage: str, signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves after every step; that of the second takes longer than the grace. Only a third signal breaks it off."""
    whole, saves = lineside.training.stage.save_state, []

    def save_state(folder: Path, state: Any, **given: Any) -> Path:
        saves.append(state.step)
        if len(saves) == 2:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        return whole(folder, state, **given)

    every = {"max_steps": 4, "save_seconds": 1e-9}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lineside.training.stage, "GRACE", 0.1)
        patch.setattr(lineside.training.stage, "save_state", save_state)
        trained(stage, start, data, tmp_path / "resumed", **every)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    state = load_state(tmp_path / "resumed" / "state")
    assert saves == [1, 2] and state is not None and state.step == (2 if signals < 3 else 1)
    unbroken = trained(stage, start, data, tmp_path / "unbroken")
    assert not changed(unbroken, trained(stage, start, data, tmp_path / "resumed", **every))


@pytest.mark.parametrize("when", ["in the last step", "in the last save"])
@pytest.mark.parametrize("stage", ["align"])
def test_a_signal_at_the_end_of_a_stage_is_not_forgotten(
    data: Path, tmp_path: Path, start: Path, stage: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes over the data are done, so nothing asks between two steps any more. What comes after the stage must
    not begin."""
    unbroken = trained(stage, start, data, tmp_path / "unbroken", epochs=1)
    last, whole = len(logged(tmp_path / "unbroken")), lineside.training.stage.save_state

    def save_state(folder: Path, state: Any, **given: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        return whole(folder, state, **given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if when == "in the last save":
            patch.setattr(lineside.training.stage, "GRACE", 0.1)
            patch.setattr(lineside.training.stage, "save_state", save_state)
        else:
            interrupting(patch, last, signal.SIGTERM)
        trained(stage, start, data, tmp_path / "resumed", epochs=1)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    state = load_state(tmp_path / "resumed" / "state")
    assert state is not None and state.step == last and not (tmp_path / "resumed" / "checkpoint").exists()
    assert not changed(unbroken, trained(stage, start, data, tmp_path / "resumed", epochs=1))


def test_a_target_that_only_a_teacher_vouches_for_gives_no_reward(
    data: Path, tmp_path: Path, alive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm, store = loaded(alive)
    prompts = list(read_samples(data, kind="prompt"))
    teacher = replace(NUMBER, provenance="teacher")
    mixed = [replace(s, target=teacher, question="what is left?") if s.id.endswith("-1") else s for s in prompts]
    write_samples(tmp_path / "mixed", mixed)
    write_samples(tmp_path / "told", [replace(s, target=teacher) for s in prompts])
    settings = Rlvr(epochs=1, prompts=4, group_size=4, max_new_tokens=24, warmup=0.0)

    def asked(name: str, folder: Path, settings: Rlvr = settings) -> set[str]:
        seen.clear()
        rlvr(vlm, store, folder, tmp_path / name, settings)
        return set(seen)

    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineside.rlvr, "sample_groups", _noted(lineside.rlvr.sample_groups, seen))
        assert asked("mixed", tmp_path / "mixed") == {prompts[0].question}
        assert "8 of 16 prompts have a target that only a teacher vouches for: they are left out" in (
            capsys.readouterr().err
        )
        uniform = settings.model_copy(update={"prompt_choice": "uniform"})
        assert asked("uniform", tmp_path / "mixed", uniform) == {prompts[0].question}
        with pytest.raises(LinesideError, match=r"16 of 16 prompts .* none is left .*rlvr\.teacher_targets=true"):
            asked("told", tmp_path / "told")
        trusting = settings.model_copy(update={"teacher_targets": True})
        assert asked("trusting", tmp_path / "mixed", trusting) == {prompts[0].question, "what is left?"}


def test_an_outcome_never_becomes_an_answer_of_stage_two(data: Path, tmp_path: Path) -> None:
    questions = list(read_samples(data, kind="qa"))
    told = replace(NUMBER, provenance="outcome")
    write_samples(tmp_path / "told", [*questions[:-1], replace(questions[-1], target=told)])
    with pytest.raises(LinesideError, match=rf"{questions[-1].id} comes from an outcome: .* never become answers"):
        sft(*ready(), tmp_path / "told", tmp_path / "sft", Sft(epochs=1, step_tokens=300))
    assert not (tmp_path / "sft").exists()


def _noted(sample_groups: Callable[..., list[Group]], seen: list[str]) -> Callable[..., list[Group]]:
    def noted(sampler: Sampler, prompts: Sequence[Sample], **settings: Any) -> list[Group]:
        seen.extend(prompt.question for prompt in prompts)
        return sample_groups(sampler, prompts, **settings)

    return noted


def test_no_sample_without_a_valid_trace_supervises_writing_or_skipping_one() -> None:
    vlm, _ = ready()
    render = vlm.render
    for trace in (None, "", "   ", "ok.", "3"):
        bare = sample("qa", 0, 0, question="how many red cans?", trace=trace)
        (pack, _), *_ = packs_of(vlm, [image_tree(vlm, [bare])], 4096)
        assert not (pack.role == TRACE).any()
        assert pack.target.tolist() == [*render.encode("3"), render.eos_id]  # the answer and its end, no tag
        before = pack.tokens.tolist()
        assert before[-len(pack.target) - 2 : -len(pack.target)] == [render.think_open, render.think_close]  # prefilled
    told = sample("qa", 0, 0, question="how many red cans?", trace="left: 2 red can; right: 1 red can; so 3")
    (pack, _), *_ = packs_of(vlm, [image_tree(vlm, [told])], 4096)
    words = render.encode("left: 2 red can; right: 1 red can; so 3")
    assert pack.target.tolist() == [render.think_open, *words, render.think_close, *render.encode("3"), render.eos_id]
    assert pack.role.tolist() == [ANSWER] + [TRACE] * len(words) + [ANSWER] * 3


def test_plain_fine_tuning_supervises_skipping_and_is_told_so(data: Path, tmp_path: Path) -> None:
    """For ablations: an empty trace is written with thinking on, and the model is asked to think from then on."""
    vlm, store = ready()
    render = vlm.render
    bare = sample("qa", 0, 0, question="how many red cans?", trace=None)
    (pack, _), *_ = packs_of(vlm, [image_tree(vlm, [bare], every_trace=True)], 4096)
    assert pack.target.tolist() == [render.think_open, render.think_close, *render.encode("3"), render.eos_id]
    assert set(pack.role.tolist()) == {ANSWER}
    caption = sample("caption", 0, 0, answer="the bin holds 3 red cans")
    one, two = (image_tree(vlm, [caption], every_trace=every).tree for every in (True, False))
    assert one == two
    write_samples(tmp_path / "bare", [replace(s, trace=None) for s in read_samples(data, kind="qa")])
    for untraced, thinks in (("off", False), ("skip", True)):
        vlm, store = ready()
        settings = Sft(max_steps=1, step_tokens=300, untraced=untraced, trace_weight=None)  # type: ignore[arg-type]
        sft(vlm, store, tmp_path / "bare", tmp_path / untraced, settings)
        assert load(tmp_path / untraced / "checkpoint").thinking.of("picking", "count_all") is thinks


def test_without_a_trace_weight_every_token_weighs_the_same() -> None:
    """Three answer tokens and one of a trace: L = -(1 + 2 + 3 + 6) / 4 = 3; with lambda 0.5 it is 2 + 0.5 * 6 = 5."""
    logprobs = -torch.tensor([1.0, 2.0, 3.0, 6.0])
    answer = torch.tensor([True, True, True, False])
    plain, _ = sft_loss(logprobs, answer, ~answer, answer_count=4, trace_count=4, trace_weight=1.0)
    light, _ = sft_loss(logprobs, answer, ~answer, answer_count=3, trace_count=1, trace_weight=0.5)
    assert float(plain) == pytest.approx(3.0) and float(light) == pytest.approx(5.0)


def test_the_mean_over_rollouts_weighs_long_and_short_ones_the_same() -> None:
    """Two rollouts of 1 and 3 tokens with advantages 1 and -1: -(1/2) (1 - 1) = 0; by token -(1 - 3) / 4 = 1/2."""
    rollouts = tuple(Rollout((1,) * n, (0.0,) * n, "", True) for n in (1, 3))
    group = Group(sample("prompt", 0, 0, question="?", answer=None), rollouts, ())
    weights_G = mean_weights(group, 4, [group])
    assert weights_G.tolist() == pytest.approx([2.0, 2 / 3])
    assert mean_weights(group, 8, [group, group]).tolist() == pytest.approx([2.0, 2 / 3])
    logprobs = torch.zeros(4)
    advantages = torch.tensor([1.0, -1.0, -1.0, -1.0])
    by_token, _ = dapo_loss(logprobs, advantages, 4)
    by_rollout, _ = dapo_loss(logprobs, advantages * torch.tensor([2.0] + [2 / 3] * 3), 4)
    assert float(by_token) == pytest.approx(0.5) and float(by_rollout) == pytest.approx(0.0, abs=1e-6)


def test_without_partial_credit_only_an_exact_answer_is_rewarded() -> None:
    """3 parts; 5 is within the tolerance of 4 and earns a half; without a valid trace nothing is earned."""
    trace = "<think>left: 2 red can; right: 1 red can; so it is told</think>"
    texts = (f"{trace}3", f"{trace}5", "<think></think>3", f"{trace}90")
    rollouts = tuple(Rollout((1, 2), (0.0, 0.0), text, True) for text in texts)
    prompt = sample("prompt", 0, 0, question="how many red cans?", answer=None)
    prompt = replace(prompt, target=replace(NUMBER, tolerance=4.0))
    options: dict[str, Any] = {"group_size": 4, "temperature": 1.0, "max_new_tokens": 32, "seed": 0}
    for partial, rewards in ((True, [1.0, 0.5, 0.0, 0.0]), (False, [1.0, 0.0, 0.0, 0.0])):
        (group,) = sample_groups(FixedSampler(rollouts), [prompt], partial_credit=partial, **options)
        assert [judgement.reward for judgement in group.judgements] == rewards
        assert [judgement.verdict.exact for judgement in group.judgements] == [True, False, True, False]


def test_answered_at_once_too_is_the_same_answer_with_thinking_off() -> None:
    vlm = make_tiny_vlm()
    told = sample("qa", 0, 0, question="how many red cans?", trace="left: 2 red can; right: 1 red can; so 3")
    group = (told, sample("qa", 0, 1, question="how many?", trace="ok"), sample("qa", 0, 2, question="how many?"))
    again = no_think_copies(group, 1.0, seed=0)
    assert again == (replace(told, trace=None),) and no_think_copies(group, 0.0, seed=0) == ()
    tree = image_tree(vlm, (told, *again)).tree
    off = vlm.render.question(told.question, thinking=False)
    (below,) = tree.children  # both share the question's words and part at the switch
    paths = [below.tokens + child.tokens for child in below.children]
    assert off in paths
    assert TRACE not in below.children[paths.index(off)].children[0].roles


def test_captions_beside_questions_weigh_as_traces_and_those_alone_see_no_picture() -> None:
    vlm, _ = ready()
    render = vlm.render
    asked = sample("qa", 0, 0, question="is there a blue box?", answer="no")
    caption = sample("caption", 0, 0, answer="2 red cans")
    words = [*render.encode("2 red cans"), render.eos_id]
    frame = image_tree(vlm, [asked, caption, replace(caption, images=())])
    (pack, images), *_ = packs_of(vlm, [frame], 4096)
    assert len(images) == 1 and pack.image_slots.numel() == render.image_tokens(BLANK)
    seen, alone = pack.leaf == 1, pack.leaf == 2
    for leaf in (seen, alone):
        assert pack.target[leaf].tolist() == words
        assert pack.role[leaf].tolist() == [TRACE] * (len(words) - 1) + [ANSWER]
    assert (pack.role[pack.leaf == 0] == ANSWER).all()
    (only, _), *_ = packs_of(vlm, [image_tree(vlm, [caption])], 4096)
    assert (only.role == ANSWER).all()  # as in stage 1
    features = torch.randn(1, render.image_tokens(BLANK), 16)
    logprobs = vlm.logprobs(pack, features)
    torch.testing.assert_close(logprobs[alone], vlm.logprobs(pack, features + 1)[alone])
    torch.testing.assert_close(logprobs[seen], vlm.logprobs(only, features), atol=2e-5, rtol=1e-5)


def test_caption_replay_takes_a_pictures_own_captions_in_turns(data: Path) -> None:
    groups = list(stream_frame_samples(data, kind="qa", split="train", seed=0, epoch=0))
    replay = CaptionReplay(Mixture.of(data), 1, seed=0)
    alone = 0
    for group in groups:
        own = {s.answer for s in read_samples(data, kind="caption") if s.images == group[0].images}
        seen = [[s for s in replay.of(group, epoch) if s.images] for epoch in range(2)]
        assert [len(said) for said in seen] == [1, 1] and {said[0].answer for said in seen} == own
        assert all(said[0].images == group[0].images for said in seen)
        assert replay.of(group, 0) == CaptionReplay(Mixture.of(data), 1, seed=0).of(group, 0)
        alone += sum(len(replay.of(group, epoch)) == 2 for epoch in range(50))
    assert alone == pytest.approx(0.2 * 50 * len(groups), abs=30)
    assert CaptionReplay(Mixture.of(data), 0, seed=0).of(groups[0], 0) == ()


def test_dropped_channels_are_gone_from_all_of_a_picture_and_the_mean_stays() -> None:
    features = list(torch.ones(400, 3, 50, dtype=torch.bfloat16))
    assert kept_channels(400, 50, 0.0) is None and drop_channels(features, None, range(400), 0.0) is features
    kept = kept_channels(400, 50, 0.2)
    assert drop_channels(None, kept, (), 0.2) is None
    rows = drop_channels(features, kept, range(400), 0.2)
    some = drop_channels(features[:2], kept, (7, 3), 0.2)
    assert rows is not None and some is not None
    assert torch.equal(some[0], rows[7]) and torch.equal(some[1], rows[3])  # by their number in the step
    dropped = torch.stack(list(rows))
    assert dropped.dtype == torch.bfloat16
    assert {round(float(value), 3) for value in dropped.unique()} == {0.0, 1.25}
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.015)
    assert len(dropped[:, 0].unique(dim=0)) == 400  # each picture loses others


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_how_a_step_is_packed_changes_neither_loss_nor_weights(data: Path, tmp_path: Path, dropout: float) -> None:
    out = []
    for pack_tokens in (60, 100_000):
        vlm, store = ready()
        settings = Sft(epochs=1, step_tokens=400, pack_tokens=pack_tokens, feature_dropout=dropout)
        sft(vlm, store, data, tmp_path / str(pack_tokens), settings)
        out.append(weights(vlm))
    for name in out[0]:
        torch.testing.assert_close(out[0][name], out[1][name], atol=2e-5, rtol=1e-4)


def test_a_question_cannot_smuggle_tags_or_pictures_in() -> None:
    vlm, _ = ready()
    tokens = vlm.render.question("<image></think><|end|>", thinking=True)
    assert not {vlm.render.image_id, vlm.render.think_close, vlm.render.eos_id} & set(tokens)


def test_the_policy_says_its_version_and_its_gap_is_that_of_the_update(data: Path, tmp_path: Path) -> None:
    """Weights that change behind a sampler are seen: its log-probabilities are no longer those of training."""
    vlm, store = ready()
    prompts = [p for group in Mixture.of(data).stream("prompt", seed=0, epoch=0) for p in group][:4]
    sampler: Sampler = LocalSampler(vlm, store)
    sampler.refresh(7)
    options: dict[str, Any] = {"group_size": 3, "temperature": 0.7, "max_new_tokens": 8, "seed": 5}
    groups = sample_groups(sampler, prompts, **options)
    assert {r.policy_version for g in groups for r in g.rollouts} == {7}
    asked = prompts_for(prompts, sampler.thinking)
    assert [g.rollouts for g in groups] == sampler.sample(asked, samples=3, temperature=0.7, max_new_tokens=8, seed=5)
    assert sampler_gap(vlm, store, groups, 0.7) < 1e-4 < 1e-2 < sampler_gap(vlm, store, groups, 1.0)
    with torch.no_grad():
        vlm.language_model.norm.weight.mul_(1.5)
    stale = sampler_gap(vlm, store, groups, 0.7)
    assert stale > 0.01 and sampler_gap(vlm, store, sample_groups(sampler, prompts, **options), 0.7) < 1e-4
    laid, by_hand, tokens = lay_out(vlm, groups), 0.0, 0
    for pack, images in packs_of(vlm, laid.trees, 10_000):
        said, _ = vlm.logprobs_and_entropy(pack, features_of(store, images), temperature=0.7)
        for leaf in pack.leaf.unique().tolist():
            group, which = laid.order[leaf]
            sampled = groups[group].rollouts[which].sampler_logprobs
            by_hand += sum(abs(a - b) for a, b in zip(said[pack.leaf == leaf].tolist(), sampled, strict=True))
            tokens += len(sampled)
    assert stale == pytest.approx(by_hand / tokens, rel=1e-4)
    settings = Rlvr(epochs=1, prompts=4, group_size=4, max_new_tokens=24, max_steps=2)
    rlvr(vlm, store, data, tmp_path / "rlvr", settings)
    rows = read_metrics(tmp_path / "rlvr" / "metrics.jsonl")
    assert all(row["sampler_gap"] < 1e-3 for row in rows if "sampler_gap" in row)


def test_a_trace_before_different_answers_to_a_question_is_stock() -> None:
    def group(number: int, question: str, *texts: str) -> Group:
        asked = sample("prompt", number, 0, question=question, answer=None)
        rolled = tuple(Rollout((1,), (-1.0,), text, True) for text in texts)
        return Group(asked, rolled, tuple(judge(t, NUMBER, thinking=True, finished=True) for t in texts))

    say = "<think>left: 2 red; right: none</think>"
    assert stock_share([]) == 0.0
    assert stock_share([group(0, "how many?", f"{say}2", f"{say}2."), group(1, "how many?", f"{say}2")]) == 0.0
    assert stock_share([group(0, "how many?", f"{say}2"), group(1, "of what?", f"{say}red")]) == 0.0  # two questions
    mixed = [
        group(0, "how many?", f"{say}2", "3", "<think>a box; a can; so 5</think>5"),
        group(1, "how many?", f"{say}3"),
    ]
    assert stock_share(mixed) == pytest.approx(2 / 3)  # of the three with a valid trace
