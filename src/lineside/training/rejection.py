"""Rejection sampling: the model's own answers that are right, with their traces, as samples to train on.

After STaR (arXiv 2203.14465) and RFT (2308.01825). Rollouts of each prompt of stage 3 are sampled and judged as stage 3
does it. Of those that are exact with a valid trace, at most `keep` different ones are kept for a prompt. Left out:
STaR's repetitions with the model that was trained on its own answers, and its hints (rationalisation).

The prompts are sampled in batches. After each batch its samples are a shard, and a line in rollouts.jsonl counts it. A
process that is killed in between leaves a shard that is not counted, and the next one samples that batch again. The
random numbers of a batch depend only on the seed and its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lineside.data.mixture import Mixture
from lineside.data.store import sample_shards, write_samples
from lineside.files import write_atomic
from lineside.model.features import FeatureStore
from lineside.model.generate import Timing
from lineside.model.vlm import VLM
from lineside.progress import track
from lineside.recipe import Recipe
from lineside.settings import UNALTERED
from lineside.training.controls import BY_OUTCOME, JOURNAL, UNVOUCHED, Account, counted
from lineside.training.metrics import read_metrics
from lineside.training.operations import sampling_operations
from lineside.training.packing import prompt_and_response
from lineside.training.rollout import sample_groups, sampler_gap
from lineside.training.sampler import LocalSampler
from lineside.types import Group, Sample, Source
from lineside.verify.text import normalise

GAP_GROUPS = 2  # of a batch, whose log-probabilities are compared with those of the packed forward
BATCH = 256  # prompts, or a few more: a batch ends with a frame
NEVER = "no rollout was exact with a valid trace"
NOT_SAMPLED = "over rejection.max_prompts"
SOURCE = Source("rejection sampling")
Batch = dict[str, Any]  # a line of the journal


def sample_own(prompts: Mixture, made: list[Path], *, vlm: VLM, store: FeatureStore, recipe: Recipe) -> Account:
    """Sample answers to the prompts of each folder of the mixture; the kept ones are written to `made`."""
    batches: list[Batch] = []
    for part, out in zip(prompts.parts, made):
        own = replace(prompts, parts=(replace(part, weight=1.0),), augment=UNALTERED, outcomes=False)
        if own.teachers("prompt")[1]:
            batches += _sample_folder(LocalSampler(vlm, store), recipe, own, out)

    def total(name: str) -> Any:
        return sum(batch[name] for batch in batches)

    found = prompts.provenances("prompt")
    count, outcomes, alone = found.total(), found["outcome"], found["teacher"] if prompts.vouched else 0
    over = count - outcomes - alone - total("prompts")
    left = counted({BY_OUTCOME: outcomes, UNVOUCHED: alone, NEVER: total("never"), NOT_SAMPLED: over})
    timing = Timing(**{name: total(name) for name in asdict(Timing())})
    return Account(count, total("kept"), left, total("rollouts"), timing.seconds, sampling_operations(vlm, timing))


def _sample_folder(sampler: LocalSampler, recipe: Recipe, prompts: Mixture, out: Path) -> list[Batch]:
    """Sample the prompts of one folder, from where a killed process stopped. Returns all batches."""
    settings, seed = recipe.rejection, recipe.seed
    done = _resume(out)
    skip, sampled = (sum(batch[name] for batch in done) for name in ("frames", "prompts"))
    frames = prompts.stream("prompt", seed=seed, epoch=0, skip=skip)
    shown = track(frames, total=prompts.frame_count("prompt") - skip, unit="frames", label="rejection: sample")
    for batch, frame_count in _batches(shown, settings.max_prompts, sampled):
        timing = Timing()
        groups = sample_groups(
            sampler, batch, group_size=settings.group_size, temperature=settings.temperature,
            max_new_tokens=recipe.rlvr.max_new_tokens, seed=seed * 1_000_003 + len(done), timing=timing,
        )  # fmt: skip
        kept = [[s for s in own_answers(group, settings.keep) if _fits(sampler.vlm, s)] for group in groups]
        write_samples(out, (sample for samples in kept for sample in samples))
        row: dict[str, float] = {
            "step": len(done),
            "frames": frame_count,
            "prompts": len(batch),
            "never": sum(not k for k in kept),
        }
        row |= {"rollouts": len(batch) * settings.group_size, "kept": sum(map(len, kept)), **asdict(timing)}
        row["sampler_gap"] = sampler_gap(sampler.vlm, sampler.store, groups[:GAP_GROUPS], settings.temperature)
        done.append(row | {"shards": len(_shards(out))})
        write_atomic(out / JOURNAL, "".join(json.dumps(row) + "\n" for row in done))
    return done


def _resume(out: Path) -> list[Batch]:
    """The counted batches. What a killed process left beside them is deleted."""
    journal = out / JOURNAL
    done = read_metrics(journal) if journal.exists() else []
    for path in _shards(out)[done[-1]["shards"] if done else 0 :]:
        path.unlink()
    for path in out.glob("*.tmp*"):
        path.unlink()
    return done


def _shards(out: Path) -> list[Path]:
    return sample_shards(out, kind="qa", split="train") if out.is_dir() else []


def _batches(frames: Iterable[tuple[Sample, ...]], most: int | None, done: int) -> Iterator[tuple[list[Sample], int]]:
    """(prompts, number of frames) of each batch, until `most` prompts with the `done` earlier ones."""
    batch: list[Sample] = []
    count = 0
    for prompts in frames if most is None or done < most else ():
        batch += prompts
        count += 1
        if most is not None and done + len(batch) >= most:
            yield batch[: most - done], count
            return
        if len(batch) >= BATCH:
            yield batch, count
            done, batch, count = done + len(batch), [], 0
    if count:
        yield batch, count


def own_answers(group: Group, keep: int) -> list[Sample]:
    """The right answers of a group's rollouts as samples, at most `keep`, all different in trace or answer. With
    thinking on, their traces are valid; those of a task that does not think have none."""
    found: dict[tuple[str, str], Sample] = {}
    for judgement in group.judgements:
        response = judgement.response
        if not judgement.verdict.exact or judgement.reward == 0.0:  # the reward needs a valid trace
            continue
        key = normalise(response.trace or ""), normalise(response.answer or "")
        name = f"{group.sample.id}/{len(found)}"
        made = replace(group.sample, id=name, kind="qa", trace=response.trace, answer=response.answer, source=SOURCE)
        found.setdefault(key, made)
    return list(found.values())[:keep]


def _fits(vlm: VLM, sample: Sample) -> bool:
    """Whether a sample fits the model's context. Its words may take more tokens than the rollout they come from."""
    prompt, response = prompt_and_response(vlm.render, sample)
    return len(vlm.render.head(sample.images)) + len(prompt) + len(response.tokens) <= vlm.context
