"""Where rollouts come from: prompts in, rollouts with their log-probabilities and the version of the policy out.

Stage 3, its controls, the probe and evaluation all ask through `Sampler`. `LocalSampler` is the trainer's own model;
stage 3 may ask vLLM in its place (vllm_sampler.py). Any other engine takes it by having the same four members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from lineside import ranks
from lineside.hashing import hash_uniform
from lineside.model.branches import by_frame
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.vlm import VLM
from lineside.training.packing import deal
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
    """The trainer's own model, whose new weights are there at once.

    Several ranks (those of the store's runtime) share out the prompts by frame; each gets all rollouts, and they are
    those that one process would sample."""

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
        """As `Sampler.sample`. Raises the errors of `model.generate`, and LeftOut if a rank was interrupted."""
        timing = timing or Timing()
        before = timing.prefill_tokens, timing.decode_tokens
        own = self._own(prompts)
        roll = partial(self._roll, prompts, own, samples, temperature, max_new_tokens, seed, timing)
        if self.store.runtime.world_size == 1:
            rolled = roll()
        else:
            with ranks.gathered(self.vlm):
                mine = ranks.alone(roll)
            rolled = self._everyones(None if mine is None else dict(zip(own, mine)), timing, before)
        return [tuple(replace(rollout, policy_version=self.version) for rollout in group) for group in rolled]

    def _roll(
        self, prompts: Sequence[Prompt], own: Sequence[int], samples: int, temperature: float, new: int, seed: int,
        timing: Timing,
    ) -> list[tuple[Rollout, ...]]:  # fmt: skip
        """The rollouts of the prompts with the numbers `own`."""
        return generate(
            self.vlm, self.store, prompts, only=own, samples=samples, temperature=temperature, max_new_tokens=new,
            seed=seed, timing=timing,
        )  # fmt: skip

    def _own(self, prompts: Sequence[Prompt]) -> list[int]:
        """The numbers of the prompts that this rank answers: whole frames, so that their pictures are read once."""
        runtime, frames = self.store.runtime, []
        for numbers in by_frame([prompt.images for prompt in prompts]):
            frames += [numbers] if prompts[numbers[0]].images else [[number] for number in numbers]
        dealt = deal([len(numbers) for numbers in frames], runtime.world_size)[runtime.rank]
        return sorted(number for frame in dealt for number in frames[frame])

    def _everyones(
        self, own: Mapping[int, tuple[Rollout, ...]] | None, timing: Timing, before: tuple[int, int]
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of all ranks in the order of the prompts. `timing` had counted `before` tokens (prefill, decode)
        and has counted this rank's; it then has those of all. `own`: None if this rank was interrupted."""
        mine = (own or {}).items()
        plain = {number: [[r.tokens, r.sampler_logprobs, r.text, r.finished] for r in rs] for number, rs in mine}
        counted = timing.prefill_tokens - before[0], timing.decode_tokens - before[1]
        told = self.store.runtime.exchange(None if own is None else [counted, plain])
        if None in told:
            raise ranks.LeftOut
        timing.prefill_tokens = before[0] + sum(prefill for (prefill, _), _ in told)
        timing.decode_tokens = before[1] + sum(decode for (_, decode), _ in told)
        found = {int(number): rollouts for _, theirs in told for number, rollouts in theirs.items()}
        return [
            tuple(Rollout(tuple(tokens), tuple(said), text, done) for tokens, said, text, done in found[number])
            for number in range(len(found))
        ]

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


def prompts_for(samples: Sequence[Sample], thinking: Thinking, *, no_think_share: float = 0.0) -> list[Prompt]:
    """The questions of samples as prompts, each with thinking on or off as `thinks` says."""
    return [Prompt(s.images, s.question, thinks(s, thinking, no_think_share)) for s in samples]


def thinks(sample: Sample, thinking: Thinking, no_think_share: float = 0.0) -> bool:
    """Whether a question is asked with thinking on: if its task thinks, but for a share of the questions. Which these
    are is decided by a hash of the id, so a question is asked in the same way each time that it comes."""
    return thinking.of(sample.family, sample.task) and hash_uniform("no think", sample.id) >= no_think_share
