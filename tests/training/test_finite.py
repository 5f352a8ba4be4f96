"""Numbers that are not finite: the step is not taken, its samples are written down, and the run goes on from there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lineside.rlvr
import lineside.sft
import lineside.training.rollout
from lineside.data.mixture import Mixture, Part
from lineside.data.store import write_samples
from lineside.images import image_key
from lineside.model.features import FeatureStore
from lineside.recipe import Data, Evaluate, Rates, Recipe, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.sft import sft
from lineside.training.finite import FILE, FOLDER, NotFinite, check_rollouts, told
from lineside.training.finite import Scored as Row
from lineside.training.metrics import read_metrics
from lineside.training.optim import Optimizer
from lineside.training.preflight import data_problems
from lineside.training.runfolder import RunFolder
from lineside.training.state import State, load_state, save_state
from lineside.types import Group, Rollout
from tests.conftest import make_tiny_vlm, picture
from tests.small_run import by_length, frame_samples, logged, sample, weights

FAST = Rates(projector=1e-2, lm=1e-2)
SFT = Sft(epochs=1, step_tokens=150, pack_tokens=200, learning_rate=FAST, feature_dropout=0.1)
RLVR = Rlvr(epochs=1, prompts=4, group_size=4, max_new_tokens=12, overlong_cache=0, learning_rate=FAST)


class Poisoned(FeatureStore):
    """One picture's features hold a NaN."""

    bad = image_key(picture(5))

    def get(self, images: Any) -> list[torch.Tensor]:
        rows = super().get(images)
        spoilt = [torch.full_like(row, math.nan) if image_key(i.bytes) == self.bad else row for i, row in
                  zip(images, rows)]  # fmt: skip
        return spoilt


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    named = lambda one, frame: replace(one, images=(replace(one.images[0], path=f"bin-{frame}.png"),))  # noqa: E731
    rows = [named(s, frame) for frame in range(8) for s in frame_samples(frame)]
    write_samples(tmp_path / "samples", rows)
    return tmp_path / "samples"


def rows_of(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / FOLDER / FILE).read_text().splitlines()]


def test_a_poisoned_picture_stops_before_the_step_and_the_run_goes_on_without_it(samples: Path, tmp_path: Path) -> None:
    vlm, taken = make_tiny_vlm(), []

    def step(self: Optimizer, scale: float = 1.0) -> dict[str, float]:
        done = whole(self, scale)
        taken.append(weights(vlm))
        return done

    whole = Optimizer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "step", step)
        with pytest.raises(NotFinite) as stopped:
            sft(vlm, Poisoned(None, vlm), samples, tmp_path / "sft", SFT)
    good = len(taken)
    assert good > 0 and all(torch.equal(w, taken[-1][name]) for name, w in weights(vlm).items())
    state = load_state(tmp_path / "sft" / "state")
    assert state is not None and state.step == good
    assert len(read_metrics(tmp_path / "sft" / "metrics.jsonl")) == good

    found = rows_of(tmp_path / "sft")
    bad = [row for row in found if not row["finite"]]
    ids = sorted({row["sample"] for row in bad})
    assert ids == [f"f5-qa-{n}" for n in range(4)]
    assert found[: len(bad)] == bad  # those come first
    assert all(row["pictures"] == ["bin-5.png"] and row["loss"] is None and row["step"] == good + 1 for row in bad)
    assert all(0 < row["loss"] < 20 and row["sample"] not in ids for row in found[len(bad) :])
    assert {row["response"] for row in bad} >= {"no", "<think>left: 2 red can; right: 1 red can; so 3</think>3"}
    assert (tmp_path / "sft" / FOLDER / bad[0]["file"]).read_bytes() == picture(5)
    message = str(stopped.value)
    for said in (f"step {good + 1} is not taken", "its loss is nan", "f5-qa-0", str(tmp_path / "sft" / FOLDER / FILE),
                 'data.leave_out=["f5-qa-0", ', f"goes on after step {good}", "sft.learning_rate"):  # fmt: skip
        assert said in message

    again = make_tiny_vlm()
    with pytest.raises(NotFinite, match=f"step {good + 1} is not taken"):
        sft(again, Poisoned(None, again), samples, tmp_path / "sft", SFT)
    without = Mixture((Part(samples),), without=frozenset(ids))
    assert without.provenances("qa").total() == Mixture((Part(samples),)).provenances("qa").total() - len(ids)
    resumed, unbroken = make_tiny_vlm(), make_tiny_vlm()
    sft(resumed, Poisoned(None, resumed), without, tmp_path / "sft", SFT)
    sft(unbroken, FeatureStore(None, unbroken), without, tmp_path / "unbroken", SFT)
    assert all(torch.equal(w, weights(unbroken)[name]) for name, w in weights(resumed).items())
    assert logged(tmp_path / "sft") == logged(tmp_path / "unbroken")


def test_a_gradient_alone_stops_too(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lineside.sft.sft_loss

    def steep(logprobs: torch.Tensor, *given: Any, **more: Any) -> Any:
        loss, metrics = plain(logprobs, *given, **more)
        return loss + (logprobs.sum() * 0).sqrt(), metrics  # 0, with the gradient 0 / 0

    monkeypatch.setattr(lineside.sft, "sft_loss", steep)
    vlm = make_tiny_vlm()
    before = weights(vlm)
    with pytest.raises(
        NotFinite, match=r"step 1 is not taken: its loss is \d.*norm of its gradient nan.*diverged"
    ) as e:
        sft(vlm, FeatureStore(None, vlm), samples, tmp_path / "sft", SFT)
    assert "Run again with a lower sft.learning_rate" in str(e.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(vlm).items())
    assert load_state(tmp_path / "sft" / "state") is None  # nothing is trained: the recipe may still change
    assert all(not row["finite"] and row["loss"] > 0 for row in rows_of(tmp_path / "sft"))


def test_between_two_updates_the_state_of_their_rollouts_stays(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = lineside.rlvr.dapo_loss

    def spoilt(logprobs: torch.Tensor, *given: Any, **more: Any) -> Any:
        loss, metrics = plain(logprobs, *given, **more)
        calls.append(more["old_logprobs_T"] is not None)
        return (loss, metrics) if sum(calls) == 0 else (loss * math.nan, {**metrics, "loss": loss.detach() * math.nan})

    monkeypatch.setattr(lineside.rlvr, "dapo_loss", spoilt)
    monkeypatch.setattr(lineside.training.rollout, "judge", by_length)
    vlm = make_tiny_vlm()
    with pytest.raises(NotFinite, match="rlvr: step 2 is not taken") as stopped:
        rlvr(vlm, FeatureStore(None, vlm), samples, tmp_path / "rlvr", RLVR.model_copy(update={"updates": 2}))
    assert "is saved" not in str(stopped.value) and load_state(tmp_path / "rlvr" / "state") is None


@pytest.mark.parametrize("update", [1, 2])
def test_stage_three_finds_the_rollout(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """The advantage of one rollout is spoilt, after a first batch with one or two updates."""
    shown: list[Group] = []
    plain = lineside.rlvr.leaf_advantages

    def spoilt(groups: list[Group], *given: Any) -> torch.Tensor:
        advantages = plain(groups, *given)
        shown[:] = groups
        if len(seen) == 1:
            advantages[0] = math.nan
        seen.append(1)
        return advantages

    seen: list[int] = []
    monkeypatch.setattr(lineside.rlvr, "leaf_advantages", spoilt)
    monkeypatch.setattr(lineside.training.rollout, "judge", by_length)
    vlm = make_tiny_vlm()
    settings = RLVR.model_copy(update={"updates": update, "epochs": 4.0})
    with pytest.raises(NotFinite, match=f"rlvr: step {update + 1} is not taken"):
        rlvr(vlm, FeatureStore(None, vlm), samples, tmp_path / "rlvr", settings)
    bad = [row for row in rows_of(tmp_path / "rlvr") if not row["finite"]]
    assert [row["sample"] for row in bad] == [shown[0].sample.id] and bad[0]["loss"] is not None
    state = load_state(tmp_path / "rlvr" / "state")
    assert state is not None and state.step == update


def test_a_policy_whose_numbers_are_not_finite_is_not_sampled_for_ever(samples: Path, tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    with pytest.raises(NotFinite, match=r"rlvr: 4 of 32 rollouts .* f5-prompt-0\. Step 1 is not taken") as stopped:
        rlvr(vlm, Poisoned(None, vlm), samples, tmp_path / "rlvr", RLVR.model_copy(update={"prompts": 16}))
    assert str(tmp_path / "rlvr" / FOLDER / FILE) in str(stopped.value)
    rows = rows_of(tmp_path / "rlvr")
    bad = [row for row in rows if not row["finite"]]
    assert rows[:4] == bad and [row["sample"] for row in bad] == ["f5-prompt-0"] * 4
    assert all(row["step"] == 1 and row["loss"] is None and row["pictures"] == ["bin-5.png"] for row in bad)
    assert len(rows) == 32 and all(row["loss"] > 0 and row["tokens"] > 0 for row in rows[4:])
    assert (tmp_path / "rlvr" / FOLDER / bad[0]["file"]).read_bytes() == picture(5)
    fine = Group(sample("prompt", 0, 0, answer=None), (Rollout((1,), (-0.5,), "3", True),), ())
    check_rollouts("rlvr", [fine], tmp_path / "by hand")
    assert not (tmp_path / "by hand").exists()
    odd = replace(fine, rollouts=(Rollout((1, 2), (-0.5, -math.inf), "3", True),))
    with pytest.raises(NotFinite, match=r"1 of 2 rollouts .* f0-prompt-0"):
        check_rollouts("rlvr", [fine, odd], tmp_path / "by hand", 7)
    assert [(row["step"], row["response"], row["loss"]) for row in rows_of(tmp_path / "by hand")] == [
        (7, "3", None), (7, "3", 0.5),
    ]  # fmt: skip


def test_a_run_may_leave_samples_out_while_it_goes_on(samples: Path, tmp_path: Path) -> None:
    def recipe(*left_out: str) -> Recipe:
        data = Data(samples=samples, leave_out=left_out)
        return Recipe(name="r", runs=tmp_path, data=data, evaluate=Evaluate(splits=()))

    first, again = (RunFolder(recipe(*names), tmp_path / "r") for names in ((), ("f5-qa-0",)))
    save_state(tmp_path / "r" / "sft" / "state", State(3, {}))
    assert first.begun("sft") and first.fixed("data.augment") and not first.fixed("data.leave_out")
    frames = list(again.mixture("sft").stream("qa", seed=0, epoch=0))
    assert {s.id[:2] for frame in frames if len(frame) == 3 for s in frame} == {"f5"}
    assert again.mixture("sft").frame_count("qa") == first.mixture("sft").frame_count("qa")  # the cursor stays right
    assert list(data_problems(recipe("f5-qa-0"), samples, ("sft",))) == []
    (problem,) = data_problems(recipe("f5-qa-O"), samples, ("sft",))
    assert problem.startswith("data.leave_out: no training sample has the id 'f5-qa-O'; did you mean 'f5-qa-")


def test_what_the_message_advises() -> None:
    row = lambda name, finite: Row(name, (), "", 3, 1.0, finite)  # noqa: E731
    few = told("sft", "sft.learning_rate", 8, "wrong", [row("a", False), row("b", True), row("c", True)], Path("r"))
    assert (
        "of the samples a, whose" in few
        and "'data.leave_out=[\"a\"]' (and what you left out before) goes on after step 7 and leaves them out" in few
    )
    most = told("sft", "sft.learning_rate", 8, "wrong", [row("a", False), row("b", False), row("c", True)], Path("r"))
    assert "diverged" in most and "delete r and run again" in most and "leave_out" not in most
    assert "a lower sft.learning_rate: delete" in most
    none = told("sft", "sft.learning_rate", 1, "wrong", [row("a", True)], Path("r"))
    assert "Alone each of its responses is finite" in none and "state is saved" not in none
