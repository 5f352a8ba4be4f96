"""Rejection sampling keeps what is right with a valid trace, and goes on where it was killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lineside.data.checks import inspect
from lineside.data.mixture import Mixture, Part
from lineside.data.store import read_samples, write_samples
from lineside.model.features import FeatureStore
from lineside.recipe import Recipe, load_recipe
from lineside.training import rejection
from lineside.training.controls import BY_OUTCOME, JOURNAL, UNVOUCHED
from lineside.training.rejection import NEVER, NOT_SAMPLED, own_answers, sample_own
from lineside.types import Group, Image, Meta, Rollout, Sample, Source, Target
from lineside.verify.judge import judge
from lineside.verify.traces import problem_of_trace
from tests.conftest import make_tiny_vlm, picture

QUESTION = "how many red cans are in the bin?"
RIGHT = "<think>left: 2 red can; right: 1 red can; so 3</think>3"


def prompt(number: int, provenance: Any = "record") -> Sample:
    target = Target(kind="number", provenance=provenance, value=3.0, tolerance=2.0)
    return Sample(
        id=f"p{number}", kind="prompt", images=(Image(picture(number // 2)),), family="picking", task="count_all",
        question=QUESTION, trace=None, answer=None, target=target, split="train", meta=Meta(scene=f"s{number // 2}"),
        source=Source("table"),
    )  # fmt: skip


def group(sample: Sample, texts: Sequence[str], *, thinking: bool = True, finished: bool = True) -> Group:
    assert sample.target
    rollouts = tuple(Rollout((1,), (0.0,), text, finished) for text in texts)
    judged = tuple(judge(t, sample.target, thinking=thinking, finished=finished, question=QUESTION) for t in texts)
    return Group(sample, rollouts, judged)


EXACT_BUT = {
    "no trace": "3",
    "an empty trace": "<think></think>3",
    "a trivial trace": "<think>ok.</think>3",
    "a trace that restates": f"<think>{QUESTION}</think>3",
    "a trace that contradicts": "<think>left: 2 red can; right: 2 red can; so 4</think>3",
    "a trace in a loop": f"<think>{'a red can on the left side, ' * 12}so 3</think>3",
}


@pytest.mark.parametrize("text", EXACT_BUT.values(), ids=EXACT_BUT)
def test_an_exact_answer_without_a_valid_trace_is_not_kept(text: str) -> None:
    made = group(prompt(0), [text])
    assert made.judgements[0].verdict.exact  # the attack: the answer itself is right
    assert own_answers(made, 4) == []


def test_what_is_kept_is_exact_valid_different_and_at_most_so_many() -> None:
    other = "<think>top: 3 red can; so 3</think>3"
    texts = [
        "<think>left: 2 red can; right: 2 red can; so 4</think>4",  # wrong
        RIGHT,
        RIGHT.replace("left", "Left").replace(";", " ;").replace(" ;", ";"),  # the same in another case
        "<think>left: 3 red can",  # cut off
        other,
        "<think>bin: 1 red can, 1 red can, 1 red can; so 3</think>3.",
    ]
    kept = own_answers(group(prompt(0), texts), 2)
    assert [(s.id, s.trace, s.answer) for s in kept] == [
        ("p0/0", "left: 2 red can; right: 1 red can; so 3", "3"),
        ("p0/1", "top: 3 red can; so 3", "3"),
    ]
    assert all(s.kind == "qa" and s.source != Source("table") and not problem_of_trace(s) for s in kept)
    assert len(own_answers(group(prompt(0), texts), 9)) == 3
    assert own_answers(group(prompt(0), [RIGHT, other], finished=False), 9) == []
    at_once = own_answers(group(prompt(0), ["3", "4", "3."], thinking=False), 9)
    assert [(s.trace, s.answer) for s in at_once] == [(None, "3")]


def recipe(tmp_path: Path, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: tiny\ndata: {samples: x}\nrlvr: {max_new_tokens: 24}\nrejection: {group_size: 2}\n")
    return load_recipe(path, changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


VOUCHES = {7: "teacher", 8: "outcome"}  # neither becomes an answer of stage 2


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Samples without a trained model: what a prompt is answered depends on its id and the seed of its batch."""
    write_samples(tmp_path / "data", [prompt(n, VOUCHES.get(n, "record")) for n in range(24)])
    seeds: list[int] = []
    killed_at: set[int] = set()

    def sample_groups(sampler: object, prompts: Sequence[Sample], *, seed: int, **_: object) -> list[Group]:
        seeds.append(seed)
        if len(seeds) in killed_at:
            raise KeyboardInterrupt
        say = "<think>left: 2 red can; right: 1 red can; row {0}; so 3</think>3"
        return [group(p, ["4", say.format(seed) if int(p.id[1:]) % 3 else "5"]) for p in prompts]

    monkeypatch.setattr(rejection, "sample_groups", sample_groups)
    monkeypatch.setattr(rejection, "BATCH", 5)
    vlm = make_tiny_vlm()
    store = FeatureStore(tmp_path / "features", vlm)
    prompts = Mixture((Part(tmp_path / "data"),), vouched=True)

    def run(name: str, *changes: str) -> Any:
        return sample_own(prompts, [tmp_path / name], vlm=vlm, store=store, recipe=recipe(tmp_path, *changes))

    return run, seeds, killed_at


def test_killed_and_resumed_equals_unbroken(sampled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seeds, killed_at = sampled
    whole = run("whole")
    assert seeds == [0, 1, 2, 3] and (whole.prompts, whole.rollouts) == (24, 44)
    assert whole.samples == len([n for n in range(24) if n % 3 and n not in VOUCHES]) and whole.left_out == {
        BY_OUTCOME: 1,
        UNVOUCHED: 1,
        NEVER: 8,
    }
    assert len(files_of(tmp_path / "whole")) == 4
    kept = list(read_samples(tmp_path / "whole"))
    assert len({s.id for s in kept}) == len(kept) == whole.samples
    report = inspect(tmp_path / "whole")
    assert report.ok, report.counts
    assert run("whole") == whole and seeds == [0, 1, 2, 3]  # done

    killed_at |= {6}  # in the second batch
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    killed_at.clear()
    real, calls = rejection.write_atomic, [0]

    def dies(path: Path, content: str) -> None:  # after the shard of the third batch, before it is counted
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(rejection, "write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    monkeypatch.setattr(rejection, "write_atomic", real)
    assert (
        len(files_of(tmp_path / "broken")) == 3 and len((tmp_path / "broken" / JOURNAL).read_text().splitlines()) == 2
    )
    (tmp_path / "broken" / "qa-train-00007.parquet.tmp123").write_bytes(b"half a shard")
    assert replace(run("broken"), seconds={}, operations=0) == replace(whole, seconds={}, operations=0)
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert not list((tmp_path / "broken").glob("*.tmp*"))


def test_another_seed_samples_other_rollouts_and_max_prompts_ends_it(sampled: Any, tmp_path: Path) -> None:
    run, seeds, _ = sampled
    run("a")
    other = run("b", "seed=1")
    assert seeds[4:] == [1_000_003 + n for n in range(4)] and files_of(tmp_path / "a") != files_of(tmp_path / "b")
    few = run("c", "rejection.max_prompts=7")
    assert few.rollouts == 14 and few.left_out[NOT_SAMPLED] == 15 and few.prompts == other.prompts
    calls = len(seeds)
    assert run("c", "rejection.max_prompts=7").rollouts == 14 and len(seeds) == calls


def test_an_untrained_model_reaches_nothing_and_everything_is_counted(tmp_path: Path) -> None:
    """The real generator: deterministic by seed."""
    write_samples(tmp_path / "data", [prompt(n) for n in range(4)])
    vlm = make_tiny_vlm()
    prompts = Mixture((Part(tmp_path / "data"),), vouched=True)
    found = sample_own(
        prompts, [tmp_path / "own"], vlm=vlm, store=FeatureStore(tmp_path / "f", vlm), recipe=recipe(tmp_path)
    )
    assert (found.prompts, found.samples, found.rollouts, found.left_out) == (4, 0, 8, {NEVER: 4})
    assert found.operations > 0 and found.seconds["decode"] > 0
