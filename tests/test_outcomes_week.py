"""A week of which nothing is labelled, from the server's log to a judged challenger: stage 3 alone, on what became of
answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lineside.data.store import read_samples, write_samples
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.score import score
from lineside.recipe import Rates, Sft
from lineside.runtime import ON_CPU
from lineside.sft import sft
from lineside.types import Image, Target
from tests.conftest import picture
from tests.retrained import call
from tests.serving.conftest import serving, turn, url
from tests.small_run import QUESTION, sample, tiny

TASK = "picking/count_all"
FIVE = Target(kind="number", provenance="sim", value=5.0, tolerance=2.0)
WEEK, HELD_OUT = range(20, 26), range(40, 44)  # frames


def champion_of(folder: Path) -> Path:
    """A champion that says 3 of every picture, and 5 somewhat less often. The truth of held-out frames is 5."""
    said = ["3", "3", "3", "5", "5"]
    rows = [sample("qa", frame, n, question=QUESTION, answer=text) for frame in range(8) for n, text in enumerate(said)]
    asked = [sample("qa", frame, 0, question=QUESTION, answer="5") for frame in HELD_OUT]
    write_samples(folder / "samples", rows + [replace(one, split="heldout", target=FIVE) for one in asked])
    vlm, store = tiny(ON_CPU)
    sft(vlm, store, folder / "samples", folder / "sft", Sft(
        epochs=100, max_steps=80, step_tokens=300, learning_rate=Rates(projector=1e-2, lm=1e-2)))  # fmt: skip
    return folder / "sft" / "checkpoint"


def exact(checkpoint: Path, folder: Path) -> float:
    """The share of right answers on the held-out frames."""
    status, told, said = call("evaluate", checkpoint, folder / "samples", "--mode", "fast", "--no-baselines",
                              "--max-new-tokens", 4, "--json", "--out", folder / "evaluation")  # fmt: skip
    assert status == 0, said
    return json.loads(told)["exact"]


def shares(checkpoint: Path) -> tuple[float, float]:
    """The mean log-probabilities of 3 and of 5 on the week's frames."""
    vlm = load(checkpoint)
    store = FeatureStore(None, vlm)
    prompts = [Prompt((Image(picture(frame)),), QUESTION, False) for frame in WEEK]
    three, five = (sum(float(one.sum()) for one in score(vlm, store, prompts, [a] * len(prompts))) for a in "35")
    return three / len(prompts), five / len(prompts)


@pytest.mark.slow
def test_a_week_with_outcomes_only_makes_the_model_better_by_stage_3_alone(tmp_path: Path) -> None:
    champion = champion_of(tmp_path)
    assert exact(champion, tmp_path) == 0.0
    (tmp_path / "keys").write_text("a-key-of-the-tests-0123456789\n")
    floor = tmp_path / "floor.sqlite"
    with (
        serving(champion, tmp_path / "keys", "--outcomes", str(floor), "--outcome-frames") as served,
        served.http() as client,
    ):
        about = {"lineside": {"task": TASK}}
        for frame in WEEK:
            body = {"model": "tiny", "max_tokens": 4, "messages": turn(QUESTION, url(frame)), **about}
            told = client.post("v1/chat/completions", json=body).json()["choices"][0]["lineside"]
            assert told["answer"]["text"] == "3"
            outcome = {"truth": "5"} if frame == WEEK[0] else {"verdict": "failed"}  # one was weighed; the others fell
            assert client.post("v1/outcomes", json={"id": told["outcome_id"], **outcome}).status_code == 200

    assert call("outcomes", "import", floor, "-o", tmp_path / "week")[0] == 0
    prompts = list(read_samples(tmp_path / "week"))
    targets = [one.target for one in prompts if one.kind == "prompt" and one.target is not None]
    assert sorted((target.provenance, target.kind) for target in targets) == [
        *[("outcome", "not")] * 5, ("outcome", "number")
    ]  # fmt: skip

    settings = {"max_steps": 12, "prompts": 6, "group_size": 8, "max_new_tokens": 4, "overlong_cache": 0,
                "learning_rate": "{projector: 3e-3, lm: 3e-3}"}  # fmt: skip
    changes = [word for key, value in settings.items() for word in ("--set", f"rlvr.{key}={value}")]
    status, told, said = call("retrain", champion, "--outcomes", tmp_path / "week", "--replay", 0, *changes,
                              "--out", tmp_path / "runs" / "challenger")  # fmt: skip
    assert status == 0, said
    challenger = tmp_path / "runs" / "challenger"
    assert "sft: left out: no new questions with answers" in told
    assert not (challenger / "sft").exists()
    steps = [json.loads(line) for line in (challenger / "rlvr" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["repeated"] > steps[-1]["repeated"]
    before, after = shares(champion), shares(challenger / "rlvr" / "checkpoint")
    assert after[0] < before[0] and after[1] > before[1]
    assert exact(challenger / "rlvr" / "checkpoint", tmp_path) == 1.0
