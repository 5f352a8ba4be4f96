"""Where rollouts come from: prompts in, rollouts with their log-probabilities and the version of the policy out.

Stage 3, its controls, the probe and evaluation all ask through `Sampler`. `LocalSampler` is the trainer's own model; an
engine that runs elsewhere takes its place by having the same four members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.vlm import VLM
from lineside.types import Rollout, Sample, Thinking


class Sampler(Protocol):
    """A policy that answers prompts."""

    @property
    def thinking(self) -> Thinking:
        """Which tasks the policy answers with thinking on."""
        ...

    @property
    def version(self) -> int:
        """Optimiser steps of the weights from which it samples; 0 for those that it began with."""
        ...

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        seed: int = 0,
        timing: Timing | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """`samples` rollouts of every prompt, in order; greedy at temperature 0. There is no top-k and no top-p.

        Each token has the log-probability with which it was drawn, each rollout the version of the policy. The same
        seed and weights give the same rollouts. `timing`: the time and tokens of sampling are added to it.
        """
        ...

    def refresh(self, version: int) -> None:
        """Sample from the trainer's weights as they are now, after `version` optimiser steps."""
        ...


@dataclass
class LocalSampler:
    """The trainer's own model, whose new weights are there at once."""

    vlm: VLM
    store: FeatureStore
    version: int = 0

    @property
    def thinking(self) -> Thinking:
        """As the model has it now."""
        return self.vlm.thinking

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        seed: int = 0,
        timing: Timing | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """As `Sampler.sample`, with `model.generate`, whose errors it raises."""
        rolled = generate(
            self.vlm, self.store, prompts, samples=samples, temperature=temperature, max_new_tokens=max_new_tokens,
            seed=seed, timing=timing,
        )  # fmt: skip
        return [tuple(replace(rollout, policy_version=self.version) for rollout in group) for group in rolled]

    def refresh(self, version: int) -> None:
        """Only the number changes."""
        self.version = version


def answerer(
    sampler: Sampler, thinking: Callable[[Sample], bool], *, max_new_tokens: int, seed: int = 0
) -> Callable[[Sequence[Sample]], list[Rollout]]:
    """What gives one greedy rollout for each question. `thinking`: which questions are asked with thinking on."""

    def answer(questions: Sequence[Sample]) -> list[Rollout]:
        prompts = [Prompt(sample.images, sample.question, thinking(sample)) for sample in questions]
        return [one for (one,) in sampler.sample(prompts, max_new_tokens=max_new_tokens, seed=seed)]

    return answer


def prompts_for(samples: Sequence[Sample], thinking: Thinking) -> list[Prompt]:
    """The questions of samples as prompts; a task that does not think is asked with thinking off."""
    return [Prompt(s.images, s.question, thinking.of(s.family, s.task)) for s in samples]
