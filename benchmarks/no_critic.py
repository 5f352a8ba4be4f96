"""What no critic and no reward model saves: one step of stage 3 as GRPO, as PPO with a critic, and with a reward model.

    python benchmarks/no_critic.py [--tiny]

32 frames with 2 prompts of 24 tokens each under 49 image tokens, 8 rollouts of 48 tokens, the nano preset's language
model. All three take the same prompts, sample the same number of rollouts and train on the same tokens, once:

    GRPO             advantages from the group's rewards (arXiv 2402.03300)
    critic           PPO (arXiv 1707.06347): a copy of projector and language model with a value head trains too, and
                     advantages come from its values by GAE (arXiv 1506.02438)
    reward model     the same, and a third copy with a scalar head scores each rollout in place of the verifier

PPO gets everything that GRPO has: rollouts in trees, packs, fused kernels, hidden states only where a value is needed.
The three models share one frozen encoder. Each rollout is trained on once, so old log-probabilities and values need no
forward of their own. There is no reference model, which PPO for language models usually has too. Each way has its own
process, and they take steps by turns. Memory is the peak resident memory of the process (on a GPU: allocated), and
its part above the libraries. The script makes no claim.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import lineside.training.rollout
import ours
from common import Alternating, Lengths, Options, Work, memory, model_folder, options, record, sample_folder, samples
from lineside.data.store import read_samples
from lineside.machine import ENVIRONMENT
from lineside.model.features import features_of
from lineside.model.tree import Pack, rounded
from lineside.model.vlm import VLM
from lineside.training.advantages import group_advantages
from lineside.training.losses import dapo_loss
from lineside.training.optim import Optimizer, ParameterGroup
from lineside.training.packing import packs_of
from lineside.training.rollout import lay_out, sample_groups
from lineside.training.sampler import LocalSampler
from lineside.training.stage import trainable, warm_up
from lineside.types import Group, Sample
from loss_memory import standing
from race import ProcessSide, Score, Turn, agree

PARTS = ("projector", "lm")
PACK_TOKENS = 8192
QUESTIONS = 2  # of a frame
DISCOUNT, LAMBDA = 1.0, 0.95  # of GAE
CLIP = 0.2
MIB = 2**20


@dataclass(frozen=True)
class Way(Work):
    """One side: which models it has beside the policy, and the file for what it needed."""

    critic: bool = False
    reward_model: bool = False
    needed: Path = Path()


class Scorer(nn.Module):
    """A copy of projector and language model with one number a token: a critic, or a reward model."""

    def __init__(self, vlm: VLM) -> None:
        """The copy shares the frozen encoder."""
        super().__init__()
        model = copy.deepcopy(vlm.model, {id(vlm.tower): vlm.tower})
        self.vlm = VLM(model, vlm.tokenizer, vlm.image_processor)
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1).to(vlm.device, vlm.dtype)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, pack: Pack, features: Tensor | None, tokens: Tensor) -> Tensor:
        """(T,) float32: the number at each of these tokens (T,) of the pack."""
        rows, place = tokens.unique(return_inverse=True)  # siblings share the token before them
        padded = nn.functional.pad(rows, (0, rounded(len(rows), 64) - len(rows)))
        return self.head(self.vlm(pack, features, rows=padded).hidden).float()[place, 0]


def gae(values: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (L, T), of L rollouts of T tokens. Equation 16 of arXiv 1506.02438.

    values (L, T): of the state before each token. rewards (L,): given after the last token, where the episode ends.
    """
    length = values.shape[1]
    advantages = torch.zeros_like(values)
    following, value_after, reward = torch.zeros_like(rewards), torch.zeros_like(rewards), rewards
    for t in reversed(range(length)):
        error = reward + DISCOUNT * value_after - values[:, t]
        following = advantages[:, t] = error + DISCOUNT * LAMBDA * following
        value_after, reward = values[:, t], torch.zeros_like(rewards)
    return advantages, advantages + values


class Trainer:
    """The models of one way, and its step."""

    def __init__(self, work: Way) -> None:
        self.work = work
        self.policy, self.store = ours.ready(work)
        self.policy.render.eos_id = -1  # no token ends a response: all have the same length
        self.critic = Scorer(self.policy) if work.critic else None
        self.reward_model = Scorer(self.policy).requires_grad_(False) if work.reward_model else None
        self.optimizers = [optimizer(self.policy)]
        if self.critic:
            self.optimizers.append(optimizer(self.critic.vlm, self.critic.head))
        warm_up(self.policy)

    def sample(self, prompts: Sequence[Sample], seed: int) -> list[Group]:
        """Rollouts of the prompts, judged: rewards 1 and 0 by turns, so that all groups are live."""
        with patch.object(lineside.training.rollout, "judge", Alternating()):
            return sample_groups(
                LocalSampler(self.policy, self.store), prompts, group_size=self.work.group, temperature=1.0,
                max_new_tokens=self.work.new_tokens, seed=seed,
            )  # fmt: skip

    def step(self, prompts: Sequence[Sample], seed: int) -> int:
        """Sample, judge, and update each model that trains. Returns the number of tokens trained on."""
        groups = self.sample(prompts, seed)
        laid = lay_out(self.policy, groups)
        packs = [
            (pack.to(self.policy.device), features_of(self.store, images))
            for pack, images in packs_of(self.policy, laid.trees, PACK_TOKENS)
        ]
        count = sum(len(pack.target) for pack, _ in packs)
        rewards = torch.tensor([groups[g].judgements[which].reward for g, which in laid.order])
        if self.critic is None:
            by_group = rewards.view(-1, self.work.group)
            leaves = group_advantages(by_group).flatten().to(self.policy.device)
            advantages = [leaves[pack.leaf] for pack, _ in packs]
        else:
            advantages = self.criticise(self.critic, packs, rewards.to(self.policy.device), count)
        for (pack, features), advantage in zip(packs, advantages):
            logprobs = self.policy.logprobs(pack, features)
            dapo_loss(logprobs, advantage, count, eps_low=CLIP, eps_high=CLIP)[0].backward()
            self.optimizers[0].accumulate()
        for each in self.optimizers:
            each.step()
        return count

    def criticise(
        self, critic: Scorer, packs: Sequence[tuple[Pack, Sequence[Tensor] | None]], rewards: Tensor, count: int
    ) -> list[Tensor]:
        """For each pack the advantages of its tokens, whitened over the step; the critic's gradients are added up.

        One forward serves both: a rollout's values do not depend on those of other packs, so each pack goes backward at
        once. The loss is half the squared distance to the returns; with one update there is nothing to clip.
        """
        advantages: list[Tensor] = []
        for pack, features in packs:
            values = critic(pack, features, pack.source)
            ended = pack.leaf.view(-1, self.work.new_tokens)[:, -1]
            if self.reward_model is None:
                reward = rewards[ended]
            else:
                last = pack.source.view(-1, self.work.new_tokens)[:, -1] + 1  # the last token of each rollout
                with torch.no_grad():
                    reward = self.reward_model(pack, features, last)
            found, returns = gae(values.detach().view(-1, self.work.new_tokens), reward)
            (0.5 * (values - returns.flatten()).square().sum() / count).backward()
            self.optimizers[1].accumulate()
            advantages.append(found.flatten())
        together = torch.cat(advantages)
        return [(found - together.mean()) / (together.std() + 1e-8) for found in advantages]


def optimizer(vlm: VLM, head: nn.Module | None = None) -> Optimizer:
    """That of stage 3: AdamW on float32 masters."""
    groups = [ParameterGroup(part, named, ours.RATE) for part, named in trainable(vlm, PARTS)]
    if head is not None:
        groups.append(ParameterGroup("head", list(head.named_parameters()), ours.RATE))
    return Optimizer(groups)


def side(work: Way, turn: Turn) -> None:
    """Steps by turns; after each, what was needed is noted."""
    libraries = standing(work.device)
    trainer = Trainer(work)
    rollouts = [r for group in trainer.sample(next(steps(work)), -1) for r in group.rollouts]
    tokens, logprobs = (torch.tensor([getattr(r, name) for r in rollouts]) for name in ("tokens", "sampler_logprobs"))
    turn.scored(Score(tokens.flatten(), logprobs.flatten()))
    for seed, prompts in enumerate(steps(work)):
        trained = trainer.step(prompts, seed)
        needed = {"libraries": libraries, "peak": peak(work.device), "trained": trained}
        work.needed.write_text(json.dumps(needed))
        turn.done()


def steps(work: Way) -> Iterator[list[Sample]]:
    """The prompts of each step, two a frame; starts again at the end."""
    endless = cycle(read_samples(work.samples))
    while True:
        yield list(islice(endless, work.frames * QUESTIONS))


def peak(device: str) -> int:
    """Most bytes that this process has used at once."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return memory("VmHWM")


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny, nano=True)
    frames = 2 if settings.tiny else 32
    lengths = Lengths(question=24).shorter(settings.tiny)
    prompts = samples("prompt", frames * (settings.warmup + settings.repeats + 1), QUESTIONS, lengths)
    work = Way(
        model,
        sample_folder("no-critic", prompts, tiny=settings.tiny),
        settings.device,
        dtype=settings.dtype,
        frames=frames,
        new_tokens=6 if settings.tiny else 48,
        stored=True,
        seed=settings.seed,
    )
    ways = {
        "GRPO": work,
        "PPO, critic": replace(work, critic=True),
        "PPO, critic and reward model": replace(work, critic=True, reward_model=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: replace(way, needed=Path(folder) / f"{n}.json") for n, (name, way) in enumerate(ways.items())}
        sides = {name: ProcessSide(side, way, ENVIRONMENT) for name, way in ways.items()}
        try:
            scores = {name: one.score() for name, one in sides.items()}
            took: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(settings.warmup + settings.repeats):
                for name, one in sides.items():
                    seconds = one.step()
                    took[name] += [seconds] if number >= settings.warmup else []
        finally:
            for one in sides.values():
                one.close()
        needed = {name: json.loads(way.needed.read_text()) for name, way in ways.items()}
    ours_s, mine = statistics.median(took["GRPO"]), needed["GRPO"]
    for name in list(ways)[1:]:
        equal, words = agree(scores["GRPO"], scores[name])
        theirs, seconds = needed[name], statistics.median(took[name])
        above = [each["peak"] - each["libraries"] for each in (mine, theirs)]
        memory = (
            f"peak memory {mine['peak'] / MIB:.0f} MiB, peer {theirs['peak'] / MIB:.0f} MiB "
            f"({theirs['peak'] / mine['peak']:.2f}x); above the libraries {above[0] / MIB:.0f} and "
            f"{above[1] / MIB:.0f} MiB ({above[1] / above[0]:.2f}x)"
        )
        note = f"{source}, {settings.how}; {mine['trained']} tokens trained on in each step; {words}"
        row = {"work": f"stage 3 step, {frames * QUESTIONS} x {work.group} x {work.new_tokens}, GRPO", "peer": name}
        row |= {"ratio": seconds / ours_s, "at_least": None, "ours_s": ours_s, "peer_s": seconds}
        row |= {"equal": equal and mine["trained"] == theirs["trained"]}
        row |= {"memory_ratio": theirs["peak"] / mine["peak"], "memory_ratio_above_libraries": above[1] / above[0]}
        spread = ", ".join(f"{who} {min(took[who]):.3g} to {max(took[who]):.3g} s" for who in ("GRPO", name))
        record({**row, "details": f"{memory}; {note}; {settings.repeats} steps each by turns, {spread}"}, settings)


if __name__ == "__main__":
    main(options(__doc__))
