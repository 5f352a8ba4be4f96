"""Rollouts of stage 3: sample groups, judge them, keep the live ones, and lay them out as trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lineside.model.branches import Branch, branches, by_frame, frame_tree
from lineside.model.features import FeatureStore, features_of
from lineside.model.generate import Timing
from lineside.model.tree import ANSWER, Node, Pack, share_prefixes
from lineside.model.vlm import VLM
from lineside.training.advantages import is_live
from lineside.training.packing import ImageTree, packs_of
from lineside.training.sampler import Sampler, prompts_for
from lineside.types import Group, Image, Judgement, Sample, Target
from lineside.verify.judge import judge
from lineside.verify.verifiers import credit_by_errors

SetCredit = Literal["f1", "errors"]
PACK_TOKENS = 8192


def sample_groups(
    sampler: Sampler,
    prompts: Sequence[Sample],
    *,
    group_size: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    set_credit: SetCredit = "f1",
    partial_credit: bool = True,
    no_think_share: float = 0.0,
    timing: Timing | None = None,
) -> list[Group]:
    """Sample G rollouts of each prompt and judge them.

    The prompts of a task that does not think, and `no_think_share` of the others, are asked with thinking off; their
    reward needs no trace. With `set_credit: errors` the
    reward of a list is `credit_by_errors`; without `partial_credit` only an exact answer has a reward. The verdict
    stays as it is. Raises ValueError for a prompt without a target.
    """
    asked = prompts_for(prompts, sampler.thinking, no_think_share=no_think_share)
    rolled = sampler.sample(
        asked, samples=group_size, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, timing=timing
    )
    groups = []
    for sample, prompt, rollouts in zip(prompts, asked, rolled):
        if sample.target is None:
            raise ValueError(f"prompt {sample.id} has no target to verify against")
        judgements = tuple(
            judge(r.text, sample.target, thinking=prompt.thinking, finished=r.finished, question=sample.question)
            for r in rollouts
        )
        if set_credit == "errors":
            judgements = tuple(_by_errors(judgement, sample.target) for judgement in judgements)
        if not partial_credit:
            judgements = tuple(replace(j, reward=j.reward if j.verdict.exact else 0.0) for j in judgements)
        groups.append(Group(sample, rollouts, judgements, prompt.thinking))
    return groups


def _by_errors(judgement: Judgement, target: Target) -> Judgement:
    """The judgement with the stricter credit, if it has any: an answer without a valid trace still has none."""
    answer = judgement.response.answer
    if answer is None or not judgement.reward:
        return judgement
    return replace(judgement, reward=credit_by_errors(answer, target))


def live(groups: Sequence[Group]) -> list[Group]:
    """The groups that have a gradient."""
    return [group for group in groups if is_live(group)]


@dataclass(frozen=True)
class Laid:
    """Groups as trees: a frame's pictures at the root, its questions below, their rollouts as leaves."""

    trees: list[ImageTree[Image]]
    order: list[tuple[int, int]]  # leaf number -> (group, rollout)


def lay_out(vlm: VLM, groups: Sequence[Group]) -> Laid:
    """Lay groups out as trees. Groups with the same frame, in the same variant, share one tree."""
    shown = [group.sample.images for group in groups]
    trees: list[ImageTree[Image]] = []
    order: list[tuple[int, int]] = []
    for numbers in by_frame(shown):
        below: list[tuple[Branch, tuple[Node, ...]]] = []
        for branch in branches(vlm.render, ((number, shown[number]) for number in numbers)):
            prompts: dict[tuple[int, ...], tuple[Node, ...]] = {}
            for number in branch.numbers:
                leaves, group = [], groups[number]
                for which, rollout in enumerate(group.rollouts):
                    roles = (ANSWER,) * len(rollout.tokens)
                    leaves.append(Node(rollout.tokens, roles=roles, leaf=len(order), name=group.sample.id))
                    order.append((number, which))
                question = vlm.render.question(group.sample.question, thinking=group.thinking)
                prompts[question] = prompts.get(question, ()) + tuple(leaves)
            below.append((branch, share_prefixes(prompts)))
        trees.append(ImageTree(*frame_tree(vlm.render, groups[numbers[0]].sample.frame_images, below)))
    return Laid(trees, order)


def sampler_logprobs(groups: Sequence[Group], laid: Laid) -> list[Tensor]:
    """The sampler's log-probabilities of the tokens of each rollout, by its leaf number."""
    return [torch.tensor(groups[group].rollouts[which].sampler_logprobs) for group, which in laid.order]


def logprobs_of(pack: Pack, by_leaf: Sequence[Tensor]) -> Tensor:
    """The log-probabilities of a pack's targets, in order. `by_leaf`: those of each rollout, by its leaf number."""
    return torch.cat([by_leaf[leaf] for leaf in pack.leaf.unique_consecutive().tolist()])


@torch.no_grad()
def sampler_gap(vlm: VLM, store: FeatureStore, groups: Sequence[Group], temperature: float) -> float:
    """The mean over all tokens of |log-probability of the sampler - that of the packed forward of training|.

    A gap that grows is a sampler with other weights, other numbers or another prompt than the trainer's. Stage 3 logs
    the same from its update (`rlvr._Objective`).
    """
    laid = lay_out(vlm, groups)
    sampled, total, tokens = sampler_logprobs(groups, laid), 0.0, 0
    for pack, images in packs_of(vlm, laid.trees, PACK_TOKENS):
        logprobs, _ = vlm.logprobs_and_entropy(pack, features_of(store, images), temperature=temperature)
        said = logprobs_of(pack, sampled)
        total += float((logprobs.cpu() - said).abs().sum())
        tokens += len(said)
    return total / tokens if tokens else 0.0
