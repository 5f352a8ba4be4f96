"""Stage 3, a whole GRPO step (rollouts, rewards, loss, optimiser) against TRL's GRPOTrainer (loss_type dapo).

    python benchmarks/grpo_step.py [--tiny]

4 prompts of 24 tokens under 49 image tokens, 8 rollouts of 32 new tokens each; then 196 image tokens with 8 and 16
rollouts. Sampling is at temperature 1, eos is suppressed on both sides so that all lengths are equal, rewards alternate
so that every group is live. Our side is `lineside.rlvr.rlvr` with new frames (encoded within the step), judge, logs and
sample table included. The peer generates with transformers, its path without a server. Before timing, both score the
same random responses and compute the gradient of the same DAPO loss.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import lineside.rlvr
import lineside.training.rollout
import ours
import trl_side
from common import (
    Alternating,
    Lengths,
    Options,
    Work,
    given_tokens,
    model_folder,
    options,
    sample_folder,
    samples,
    vocabulary,
)
from lineside.data.store import read_samples
from lineside.images import decode
from lineside.model.features import FeatureStore, features_of
from lineside.model.vlm import VLM
from lineside.recipe import Rates, Rlvr
from lineside.runtime import Runtime
from lineside.training.losses import dapo_loss
from lineside.training.packing import packs_of
from lineside.training.rollout import lay_out
from lineside.training.stage import trainable
from lineside.types import Group, Rollout
from race import Score, Turn, gradients, in_float32, race, stepping

PROMPTS = 4
SCORED = 4  # rollouts of each prompt that both sides score before timing: limits the peer's memory
CASES = ((49, 8, 4.0), (196, 8, 5.0), (196, 16, 7.0))  # image tokens, rollouts of a prompt, claim


def main(settings: Options) -> None:
    lengths = Lengths(question=24).shorter(settings.tiny)
    new_tokens = 6 if settings.tiny else 32
    for image_tokens, group, at_least in CASES[:1] if settings.tiny else CASES:
        model, source = model_folder(image_tokens, tiny=settings.tiny)
        steps = settings.warmup + settings.repeats + 2
        work = Work(
            model,
            sample_folder(
                "grpo", samples("prompt", PROMPTS * steps, 1, lengths, seed=settings.seed), tiny=settings.tiny
            ),
            settings.device,
            dtype=settings.dtype,
            frames=PROMPTS,
            group=group,
            new_tokens=new_tokens,
            peer_rows=32 if settings.device == "cpu" and image_tokens < 100 else 16,
            vocabulary=vocabulary(settings.tiny),
            seed=settings.seed,
        )
        race(
            f"GRPO step, {image_tokens} image tokens, {PROMPTS} x {group} x {new_tokens}",
            "TRL GRPOTrainer",
            our_side,
            trl,
            work,
            settings,
            at_least=at_least,
            note=f"{source}, {settings.how}",
        )


def our_side(work: Work, turn: Turn) -> None:
    """`lineside rlvr`."""
    vlm, store = ours.ready(work)
    with in_float32(vlm.model):
        score = our_score(vlm, FeatureStore(None, vlm, runtime=Runtime(vlm.device), dtype=torch.float32), work)
    turn.scored(score)
    vlm.render.eos_id = -1  # no token ends a response: all have the same length
    settings = Rlvr(
        prompt_choice="uniform",  # both sides answer the same prompts
        prompts=work.frames,
        prompts_per_frame=1,
        group_size=work.group,
        max_new_tokens=work.new_tokens,
        overlong_cache=0,
        max_sampling_rounds=1,
        learning_rate=Rates(projector=ours.RATE, lm=ours.RATE),
        **ours.FOREVER,
    )
    judged = patch.object(lineside.training.rollout, "judge", Alternating())
    with tempfile.TemporaryDirectory() as folder, stepping(lineside.rlvr, turn), judged:
        lineside.rlvr.rlvr(
            vlm, store, work.samples, Path(folder), settings, runtime=Runtime(vlm.device, seed=work.seed)
        )


def our_score(vlm: VLM, store: FeatureStore, work: Work) -> Score:
    """The verb's own forward and loss on given responses."""
    trainable(vlm, ("projector", "lm"))
    each = min(work.group, SCORED)
    given = given_tokens(work, work.frames * each)
    prompts = islice(read_samples(work.samples), work.frames)
    rollouts = [Rollout(tokens, (0.0,) * len(tokens), "", False) for tokens in given]
    groups = [Group(prompt, tuple(rollouts[i * each : (i + 1) * each]), ()) for i, prompt in enumerate(prompts)]
    laid = lay_out(vlm, groups)
    ((pack, images),) = packs_of(vlm, laid.trees, 10**9)
    logprobs = vlm.logprobs(pack, features_of(store, images))
    advantages = torch.tensor([1.0 if leaf % 2 == 0 else -1.0 for leaf in pack.leaf.tolist()])
    loss, _ = dapo_loss(logprobs, advantages.to(logprobs.device), len(pack.target))
    loss.backward()
    tokens = ours.by_leaf(pack, pack.target)
    return Score(tokens, ours.by_leaf(pack, logprobs.detach()).cpu(), gradients(vlm.model))


def trl(work: Work, turn: Turn) -> None:
    """GRPOTrainer on the same prompts and pictures."""
    model, processor = trl_side.ready(work)
    features = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "image": ImageFeature()})
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": sample.question}],
                "image": {"bytes": sample.images[0].bytes, "path": None},
            }
            for sample in read_samples(work.samples)
        ],
        features=features,
    )
    step_rows = work.frames * work.group
    micro = min(work.peer_rows, step_rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=alternating,
            args=GRPOConfig(
                output_dir=folder,
                loss_type="dapo",
                epsilon=0.2,
                epsilon_high=0.28,
                beta=0.0,
                temperature=1.0,
                num_generations=work.group,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=step_rows // micro,
                max_completion_length=work.new_tokens,
                generation_kwargs={"min_new_tokens": work.new_tokens},
                use_cpu=work.device == "cpu",
                **trl_side.PLAIN,
            ),
            train_dataset=data,
            processing_class=processor,
            callbacks=[trl_side.Stepper(turn)],
        )
        with in_float32(model):
            score = trl_score(trainer, processor, work)
        turn.scored(score)
        trainer.train()


def alternating(completions: list[Any], **_: Any) -> list[float | None]:
    """Every group is live."""
    return [float((i + 1) % 2) for i in range(len(completions))]


def trl_score(trainer: GRPOTrainer, processor: Any, work: Work) -> Score:
    """The trainer's own log-probabilities and loss on the same responses."""
    model: Any = trainer.model
    each = min(work.group, SCORED)
    prompts = [s for s in islice(read_samples(work.samples), work.frames) for _ in range(each)]
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": s.question}]}] for s in prompts
    ]
    inputs = processor(
        text=processor.apply_chat_template(messages, add_generation_prompt=True),
        images=[[decode(s.images[0].bytes)] for s in prompts],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    completion = torch.tensor(given_tokens(work, len(prompts)), device=model.device)
    batch = {
        "prompt_ids": inputs["input_ids"],
        "prompt_mask": inputs["attention_mask"],
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "advantages": torch.tensor([1.0 if i % 2 == 0 else -1.0 for i in range(len(prompts))], device=model.device),
        "num_items_in_batch": torch.tensor(completion.numel(), device=model.device),
        "pixel_values": inputs["pixel_values"].to(model.dtype),
        "num_images": [1] * len(prompts),
    }
    arguments: Any = trainer.args
    trainer.current_gradient_accumulation_steps = arguments.steps_per_generation  # the loss is then of one batch
    kept: list[torch.Tensor] = []
    inner = trainer._get_per_token_logps_and_entropies

    def listening(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        kept.append(out[0].detach().float().cpu().flatten())
        return out

    with patch.object(trainer, "_get_per_token_logps_and_entropies", listening):
        trainer._compute_loss(model.train(), batch).backward()
    trainer._metrics["train"].clear()
    return Score(completion.flatten().cpu(), torch.cat(kept), gradients(model))


if __name__ == "__main__":
    main(options(__doc__))
