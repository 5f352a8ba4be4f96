"""Whether a task thinks is decided by its training samples, kept in the checkpoint and followed in stages 2 and 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lineside.training.sampler
from lineside.data.checks import thinking_tasks
from lineside.data.store import write_samples
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.tree import Node
from lineside.recipe import Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.sft import sft
from lineside.training.rollout import lay_out, sample_groups
from lineside.training.sampler import thinks
from lineside.types import Image, Rollout, Sample, Target, Thinking
from tests.conftest import FixedSampler, make_tiny_vlm, picture
from tests.judgement.conftest import choice, question

TRACE = "left: two red cans; right: one"


def asked(task: str, trace: str | None, frame: int = 0, **changes: Any) -> Sample:
    fields = {"task": task, "trace": trace, "images": (Image(picture(frame)),), "split": "train", "answer": "no"}
    return question(f"{task}-{frame}-{changes.get('kind', 'qa')}", choice("no"), **{**fields, **changes})


def test_a_task_thinks_if_one_of_its_training_questions_has_a_valid_trace(tmp_path: Path) -> None:
    rows = [
        *[asked("traced", TRACE if frame == 3 else None, frame) for frame in range(4)],
        asked("silicon", None),
        asked("empty", ""),
        asked("parrot", "Is the bin empty?"),  # the question said again is no trace
        asked("suite", None),
        asked("suite", TRACE, 1, split="heldout"),
        asked("prompt", None, kind="prompt", answer=None),
    ]
    write_samples(tmp_path / "one", rows)
    want = {"traced": True, "silicon": False, "empty": False, "parrot": False, "suite": False}
    assert thinking_tasks([tmp_path / "one"]).tasks == {f"picking/{task}": thinks for task, thinks in want.items()}
    write_samples(tmp_path / "two", [asked("silicon", TRACE)])
    assert thinking_tasks([tmp_path / "one", tmp_path / "two"]).of("picking", "silicon")


def test_what_is_not_listed() -> None:
    assert Thinking().of("any", "task")
    assert Thinking({"a/x": False, "a/y": True}).of("b", "z")
    assert not Thinking({"a/x": False}).of("b", "z")
    assert Thinking({"a/x": False}).over(Thinking({"a/x": True, "a/y": True})).tasks == {"a/x": False, "a/y": True}


@pytest.mark.parametrize("no_think_share", [0.0, 1.0])
def test_sft_writes_it_into_the_checkpoint_and_rlvr_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_think_share: float
) -> None:
    vlm = make_tiny_vlm()
    rows = [asked(task, trace, frame) for frame in range(2) for task, trace in (("count", TRACE), ("silicon", None))]
    prompts = [replace(row, id=f"p{row.id}", kind="prompt", trace=None, answer=None) for row in rows]
    write_samples(tmp_path / "samples", rows + prompts)
    sft(vlm, FeatureStore(None, vlm), tmp_path / "samples", tmp_path / "sft", Sft(epochs=1))
    want = {"picking/count": True, "picking/silicon": False}
    assert json.loads((tmp_path / "sft" / "checkpoint" / "config.json").read_text())["thinking_tasks"] == want
    vlm = load(tmp_path / "sft" / "checkpoint")
    assert vlm.thinking.tasks == want
    seen: list[Prompt] = []
    generate = lineside.training.sampler.generate

    def watched(vlm: Any, store: Any, prompts: list[Prompt], **options: Any) -> Any:
        seen.extend(prompts)
        return generate(vlm, store, prompts, **options)

    monkeypatch.setattr(lineside.training.sampler, "generate", watched)
    settings = Rlvr(
        epochs=1, prompts=2, group_size=2, max_new_tokens=4, overlong_cache=0, prompt_choice="uniform",
        no_think_share=no_think_share,
    )  # fmt: skip
    write_samples(tmp_path / "prompts", prompts)  # no questions beside them: the checkpoint says it
    rlvr(vlm, FeatureStore(None, vlm), tmp_path / "prompts", tmp_path / "rlvr", settings)
    assert {prompt.thinking for prompt in seen} == ({True, False} if no_think_share < 1 else {False})
    assert load(tmp_path / "rlvr" / "checkpoint").thinking.tasks == want


@pytest.mark.parametrize("thinks", [True, False])
def test_rewards_and_trees_follow_it(thinks: bool) -> None:
    """An answer alone is right: with thinking off it earns its reward, with thinking on the missing trace gates it."""
    vlm = make_tiny_vlm()
    vlm.thinking = Thinking({"picking/silicon": thinks})
    text = (*vlm.render.encode("no"), vlm.render.eos_id)
    rollout = Rollout(text, (0.0,) * len(text), "no", True)
    prompt = asked("silicon", None, kind="prompt", answer=None)
    options: Any = {"group_size": 2, "temperature": 1.0, "max_new_tokens": 4, "seed": 0}
    (group,) = sample_groups(FixedSampler((rollout, rollout), vlm.thinking), [prompt], **options)
    assert [j.reward for j in group.judgements] == [0.0 if thinks else 1.0] * 2
    (tree,) = lay_out(vlm, [group]).trees
    (child,) = tree.tree.children
    assert child.tokens == vlm.render.question(prompt.question, thinking=thinks)


def test_a_share_of_the_prompts_is_asked_without_thinking_and_lies_beside_the_others_in_the_tree() -> None:
    vlm = make_tiny_vlm()
    text = (*vlm.render.encode("no"), vlm.render.eos_id)
    rollout = Rollout(text, (0.0,) * len(text), "no", True)
    prompts = [
        replace(asked("count", None, kind="prompt", answer=None), id=f"p{n}", question=f"{n}?") for n in range(40)
    ]
    options: Any = {"group_size": 2, "temperature": 1.0, "max_new_tokens": 4, "seed": 0, "no_think_share": 0.25}
    groups = sample_groups(FixedSampler((rollout, rollout), Thinking()), prompts, **options)
    quick = [group for group in groups if not group.thinking]
    assert 4 <= len(quick) <= 16  # of a binomial with n = 40, p = 1/4
    assert [g.thinking for g in groups] == [thinks(p, Thinking(), 0.25) for p in prompts]
    for group in groups:
        assert [j.reward for j in group.judgements] == [float(not group.thinking)] * 2  # no trace: right if not asked
    (tree,) = lay_out(vlm, groups).trees
    want = {vlm.render.question(g.sample.question, thinking=g.thinking) for g in groups}
    assert set(paths(tree.tree)) == want


def paths(node: Node, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The tokens from below the root to each node that has rollouts as its children."""
    for child in node.children:
        if child.leaf < 0:
            yield from paths(child, before + child.tokens)
        else:
            yield before


@pytest.mark.parametrize("set_credit, expected", [("f1", 4 / 5), ("errors", 1 / 2)])
def test_the_credit_of_lists_reaches_the_reward_and_leaves_the_verdict(set_credit: Any, expected: float) -> None:
    texts = ("<think>1 full; 2 empty</think>2, 5, 6", "<think>1 full; 2 empty</think>")
    rollouts = tuple(Rollout((0,), (0.0,), text, True) for text in texts)
    bare = replace(rollouts[0], text="2, 5, 6")  # without a trace: nothing, with either credit
    slots = Target("set", "sim", accepted=("2", "5"), options=("1", "2", "3", "4", "5", "6"))
    prompt = replace(asked("silicon", None, kind="prompt", answer=None), target=slots)
    options: Any = {"group_size": 3, "temperature": 1.0, "max_new_tokens": 4, "seed": 0, "set_credit": set_credit}
    (group,) = sample_groups(FixedSampler((*rollouts, bare)), [prompt], **options)
    assert [j.reward for j in group.judgements] == pytest.approx([expected, 0.0, 0.0])
    assert [j.verdict.reward for j in group.judgements] == pytest.approx([4 / 5, 0.0, 4 / 5])
