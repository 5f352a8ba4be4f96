"""Sampling and answering, shared by the comparisons with transformers and vLLM.

Nothing trains here, so these scores are compared before timing: our decoder samples responses and reports the
log-probability of each token; the peer's own forward scores the same tokens. eos is suppressed on both sides, so all
responses have the same length.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import ours
from common import Work
from lineside.data.store import read_samples
from lineside.files import write_atomic
from lineside.images import decode
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.runtime import DTYPES, Runtime
from lineside.types import Rollout, Sample
from race import Score, Turn, in_float32

BATCHES = (8, 16, 32, 64, 128)  # numbers of rows at once that the peer tries
GIVEN = "given.json"  # beside the samples: tokens that our decoder sampled, for the peer to score


@dataclass(frozen=True)
class Answering(Work):
    """Rollouts of prompts (samples > 1, temperature 1) or greedy answers to a suite's questions."""

    questions: int = 1  # about each frame
    samples_each: int = 1
    temperature: float = 0.0


def steps(work: Answering) -> Iterator[list[Sample]]:
    """The samples of each step, `work.frames` frames with all their questions; starts again at the end."""
    endless = cycle(read_samples(work.samples))
    while True:
        yield list(islice(endless, work.frames * work.questions))


def our_side(work: Answering, turn: Turn) -> None:
    """`lineside.model.generate.generate`, which rollouts, evaluation and the server share; frames are new each step."""
    vlm, store = ours.ready(work)
    vlm.render.eos_id = -1

    def answer(samples: Sequence[Sample], seed: int, store: FeatureStore = store) -> list[tuple[Rollout, ...]]:
        return generate(
            vlm,
            store,
            [Prompt(sample.images, sample.question, True) for sample in samples],
            samples=work.samples_each,
            temperature=work.temperature,
            max_new_tokens=work.new_tokens,
            seed=seed,
        )

    with in_float32(vlm.model):
        exact = FeatureStore(None, vlm, runtime=Runtime(vlm.device), dtype=torch.float32)
        rolled = [rollout for group in answer(first(work), -1, exact) for rollout in group]
    write_given(work, [list(rollout.tokens) for rollout in rolled])
    tokens = torch.tensor([rollout.tokens for rollout in rolled]).flatten()
    turn.scored(Score(tokens, torch.tensor([rollout.sampler_logprobs for rollout in rolled]).flatten()))
    for seed, samples in enumerate(steps(work)):
        answer(samples, seed)
        turn.done()


def first(work: Answering) -> list[Sample]:
    """The samples whose responses are compared: those of at most four frames."""
    return next(steps(work))[: 4 * work.questions]


def write_given(work: Answering, tokens: list[list[int]]) -> None:
    """Write atomically: the peer waits for the file while it loads."""
    path = work.samples / GIVEN
    write_atomic(path, json.dumps(tokens))


def read_given(folder: Path) -> list[list[int]]:
    """Wait for our side's responses."""
    for _ in range(6000):
        if (folder / GIVEN).exists():
            return json.loads((folder / GIVEN).read_text())
        time.sleep(0.1)
    raise TimeoutError("our side did not write its responses within ten minutes")


@torch.no_grad()
def transformers_side(work: Answering, turn: Turn) -> None:
    """transformers' generate on the same prompts, at the fastest batch size here."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(work.model, dtype=DTYPES[work.dtype])
    model = model.to(work.device).eval()
    processor: Any = AutoProcessor.from_pretrained(work.model)

    def inputs(samples: Sequence[Sample]) -> Any:
        content = [[{"type": "image"}, {"type": "text", "text": sample.question}] for sample in samples]
        return processor(
            text=processor.apply_chat_template(
                [[{"role": "user", "content": c}] for c in content], add_generation_prompt=True
            ),
            images=[[decode(sample.images[0].bytes)] for sample in samples],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device, DTYPES[work.dtype])

    def answer(samples: Sequence[Sample]) -> None:
        sampling = {"do_sample": True, "temperature": work.temperature, "top_k": 0, "top_p": 1.0}
        model.generate(
            **inputs(samples),
            **(sampling if work.temperature else {"do_sample": False}),
            num_return_sequences=work.samples_each,
            min_new_tokens=work.new_tokens,
            max_new_tokens=work.new_tokens,
            suppress_tokens=[model.config.image_token_id],
        )

    given = torch.tensor(read_given(work.samples), device=model.device)
    repeated = [sample for sample in first(work) for _ in range(work.samples_each)]
    with in_float32(model):
        score = _score(model, inputs(repeated), given)
    turn.scored(score)
    batch = 0
    for samples in steps(work):
        if not batch:  # in the first step, which does not count
            batch = _best_batch(answer, samples, work.samples_each)
        for start in range(0, len(samples), batch):
            answer(samples[start : start + batch])
        turn.done()


def _best_batch(answer: Any, samples: Sequence[Sample], each: int) -> int:
    """Prompts at once with the least time for each row."""
    if len(samples) * each <= 32:
        return len(samples)
    pace = {}
    for rows in BATCHES:
        some = samples[: max(1, rows // each)]
        if len(some) * each < rows:
            break
        answer(some[:1])
        start = time.perf_counter()
        answer(some)
        pace[len(some)] = (time.perf_counter() - start) / len(some)
    best = min(pace, key=lambda size: pace[size])
    print(f"transformers: {best * each} rows at once is best of {[size * each for size in pace]}", flush=True)
    return best


def _score(model: Any, inputs: Any, given: torch.Tensor) -> Score:
    """A plain forward over prompt and response, 8 rows at a time, with our sampler's ban on image tokens."""
    ids = torch.cat([inputs["input_ids"], given], dim=1)
    attention = torch.cat([inputs["attention_mask"], torch.ones_like(given)], dim=1)
    out = []
    for rows in torch.arange(len(ids), device=ids.device).split(8):
        logits = model(
            input_ids=ids[rows],
            attention_mask=attention[rows],
            pixel_values=inputs["pixel_values"][rows].to(model.dtype),
            logits_to_keep=given.shape[1] + 1,
        ).logits[:, :-1]
        logits = logits.float()
        logits[..., model.config.image_token_id] = float("-inf")
        out.append(logits.log_softmax(-1).gather(-1, given[rows, :, None])[..., 0])
    return Score(given.flatten().cpu(), torch.cat(out).flatten().cpu())
