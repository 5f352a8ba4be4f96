"""One generator for rollouts, evaluation, `ask` and the server.

A shared prefix is prefilled once for all its branches. Finished rows are dropped. Every sampled token has
its log-probability. Each row has its own random number for each step, so its tokens do not depend on the other rows.

Shapes: R rows of a batch, A of them alive, D width of the LM, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside.backends.lm import KVCapture, Plan
from lineside.backends.reference import Cache, Steps
from lineside.errors import LinesideError
from lineside.model.branches import branches, by_frame, frame_tree
from lineside.model.features import FeatureStore, features_of
from lineside.model.tree import Node
from lineside.model.vlm import VLM
from lineside.runtime import upload
from lineside.types import Image, Rollout, frame_images


@dataclass(frozen=True, slots=True)
class Prompt:
    """Pictures (the frame's, then the references), a question, and whether thinking is on."""

    images: tuple[Image, ...]
    question: str
    thinking: bool


@dataclass
class Timing:
    """Seconds and tokens by phase. If the caller passes one to `generate`, its numbers are added to it."""

    features: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prefill_tokens: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, with the names that the cost of a stage has for them."""
        return {"encode": self.features, "prefill": self.prefill, "decode": self.decode}


@torch.no_grad()
def generate(
    vlm: VLM,
    store: FeatureStore,
    prompts: Sequence[Prompt],
    *,
    only: Sequence[int] | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 96,
    seed: int = 0,
    rows: int | None = None,
    timing: Timing | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Rollout, ...]]:
    """Sample `samples` rollouts of every prompt; greedy at temperature 0. Returns one tuple for each prompt, in order.

    `only`: the numbers of the prompts to answer, if not all; each gets the rollouts that it would get among all.
    `rows`: most rows that are decoded together; by default as many as the backend says. `progress` is called with the
    number of prompts just finished. Raises LinesideError if a prompt and `max_new_tokens` exceed the model's context.
    """
    asked = range(len(prompts)) if only is None else only
    if not asked:
        return []
    timing = timing or Timing()
    uniforms = torch.rand(len(prompts), samples, max_new_tokens, generator=torch.Generator().manual_seed(seed))
    by_picture = [[asked[i] for i in numbers] for numbers in by_frame([prompts[i].images for i in asked])]
    out: dict[int, tuple[Rollout, ...]] = {}
    for batch in _batches(by_picture, max(1, (rows or vlm.backend.rows) // samples)):
        out |= _run(vlm, store, prompts, batch, uniforms, temperature, timing)
        if progress:
            progress(sum(map(len, batch)))
    return [out[i] for i in asked]


def _batches(by_picture: list[list[int]], budget: int) -> list[list[list[int]]]:
    """Batches of at most `budget` prompts, listed by picture. The prompts of a picture stay together unless there are
    more than `budget`."""
    batches: list[list[list[int]]] = [[]]
    for piece in (numbers[i : i + budget] for numbers in by_picture for i in range(0, len(numbers), budget)):
        if sum(map(len, batches[-1])) + len(piece) > budget:
            batches.append([])
        batches[-1].append(piece)
    return batches


class _Layout(NamedTuple):
    """How a batch is prefilled and decoded. Tokens are flat indices into the prefilled pack."""

    trees: list[Node]  # one for each frame
    images: list[Image]  # in the order of the trees' image tokens
    shared: list[list[int]]  # for each group of rows: the tokens that all its rows share
    tails: list[list[list[int]]]  # for each group, for each of its rows: the prompt tokens that only this row has
    row_of: list[tuple[int, int]]  # for each row: the prompt and the number of the sample


def _lay_out(vlm: VLM, prompts: Sequence[Prompt], batch: list[list[int]], samples: int, new: int) -> _Layout:
    """With several samples, a group is the rollouts of a question, and they share its whole prompt. With one sample, a
    group is the questions of a frame with the same references, and they share all pictures.

    Raises LinesideError if a prompt and `new` tokens exceed the context.
    """
    layout = _Layout([], [], [], [], [])
    start = 0
    for numbers in batch:
        own_images = frame_images(prompts[numbers[0]].images)
        below = [
            (branch, [vlm.render.question(prompts[i].question, thinking=prompts[i].thinking) for i in branch.numbers])
            for branch in branches(vlm.render, ((i, prompts[i].images) for i in numbers))
        ]
        tree, images = frame_tree(vlm.render, own_images, [(branch, [*map(Node, asked)]) for branch, asked in below])
        layout.trees.append(tree)
        layout.images.extend(images)
        frame = list(range(start, start + len(tree.tokens)))
        start += len(tree.tokens)
        for branch, asked in below:
            ends = list(accumulate(map(len, [branch.tokens, *asked]), initial=start))
            beside, *own = [list(range(begin, end)) for begin, end in pairwise(ends)]
            start, here = ends[-1], frame + beside
            longest = len(here) + max(map(len, own)) + new
            if longest > vlm.context:
                fewer = "give fewer reference pictures, " if branch.images else ""
                raise LinesideError(
                    f"a prompt with {new} new tokens takes {longest} tokens, and the model's context is {vlm.context}: "
                    f"{fewer}shorten the question or lower max_new_tokens"
                )
            if samples > 1:
                layout.shared.extend(here + question for question in own)
                layout.tails.extend([[]] * samples for _ in own)
            else:
                layout.shared.append(here)
                layout.tails.append(own)
            layout.row_of.extend((i, s) for i in branch.numbers for s in range(samples))
    return layout


def timed_features(store: FeatureStore, images: Sequence[Image], timing: Timing) -> list[Tensor] | None:
    """The features of the pictures, whose time is that of the encoder; None without any."""
    clock = time.perf_counter()
    features = features_of(store, images)
    timing.features += time.perf_counter() - clock
    return features


@torch.no_grad()
def embedded(
    vlm: VLM, store: FeatureStore, prompts: Sequence[Prompt], new: int, timing: Timing
) -> tuple[Tensor, list[list[int]]]:
    """What an engine elsewhere reads: (N, D) embeddings, the projected features among them, and for each prompt its
    rows of them, in order. Prompts of a frame share the rows of its pictures. Raises LinesideError as `prefill`."""
    batch = by_frame([prompt.images for prompt in prompts])
    trees, images, shared, tails, row_of = _lay_out(vlm, prompts, batch, 1, new)
    features = timed_features(store, images, timing)
    clock = time.perf_counter()
    rows, _ = vlm.embed(vlm.pack(trees).to(vlm.device), features)
    places = [group + row for group, below in zip(shared, tails) for row in below]
    in_order = sorted(zip(row_of, places), key=lambda pair: pair[0])
    timing.prefill += time.perf_counter() - clock
    timing.prefill_tokens += sum(map(len, places))
    return rows, [place for _, place in in_order]


class Prefilled(NamedTuple):
    """Rows whose prompts have been read, ready to decode."""

    plan: Cache
    hidden: Tensor  # (R, D) the hidden state that predicts each row's first token
    lengths: NDArray[np.int64]  # (R,) or (3, R) the position of each row's first token: its prompt's length
    row_of: list[tuple[int, int]]  # for each row: the prompt and the number of the sample
    steps: Steps


def steps_of(vlm: VLM) -> Steps:
    """How the model decodes one token a row."""
    return vlm.backend.steps(vlm.lm)


@torch.no_grad()
def prefill(
    vlm: VLM,
    store: FeatureStore,
    prompts: Sequence[Prompt],
    batch: list[list[int]],
    samples: int,
    new: int,
    timing: Timing,
) -> Prefilled:
    """Read the batch's pictures and questions as trees. `batch`: numbers of prompts, listed by picture. `new`: most
    tokens of a response. Raises LinesideError if a prompt and `new` tokens exceed the context."""
    trees, images, shared, tails, row_of = _lay_out(vlm, prompts, batch, samples, new)
    features = timed_features(store, images, timing)
    clock = time.perf_counter()
    packed, captured = vlm.pack(trees), []

    def capture(plan: Plan) -> Plan:
        captured.append(KVCapture(plan))
        return captured[0]

    ends = torch.tensor([(row or group)[-1] for group, rows in zip(shared, tails) for row in rows])
    last, place = ends.unique(return_inverse=True)  # all samples of a question start from the same hidden state
    hidden = vlm(packed, features, rows=last, capture=capture).hidden[upload(place, vlm.device)]
    steps = steps_of(vlm)
    plan = steps.cache(captured[0].kept, shared, tails, new)
    store.runtime.synchronise()  # else its time would be counted as that of decoding
    timing.prefill += time.perf_counter() - clock
    timing.prefill_tokens += len(packed)
    return Prefilled(plan, hidden, (packed.positions[..., ends] + 1).numpy(), row_of, steps)


def _run(
    vlm: VLM,
    store: FeatureStore,
    prompts: Sequence[Prompt],
    batch: list[list[int]],
    uniforms: Tensor,
    temperature: float,
    timing: Timing,
) -> dict[int, tuple[Rollout, ...]]:
    """Prefill the batch's pictures and questions as trees, then decode all rows together."""
    samples, new = uniforms.shape[1:]
    rows = prefill(vlm, store, prompts, batch, samples, new, timing)
    drawn = uniforms[[i for i, _ in rows.row_of], [s for _, s in rows.row_of]].numpy()
    clock = time.perf_counter()
    rolled = _decode(vlm, rows, drawn, temperature, timing)
    timing.decode += time.perf_counter() - clock
    grouped: dict[int, list[Rollout]] = {}
    for (i, _), rollout in zip(rows.row_of, rolled):
        grouped.setdefault(i, []).append(rollout)
    return {i: tuple(rollouts) for i, rollouts in grouped.items()}


def _decode(
    vlm: VLM, rows: Prefilled, uniforms: NDArray[np.float32], temperature: float, timing: Timing
) -> list[Rollout]:
    """The decoding loop: a token for each row, drop finished rows, one step forward for the others."""
    plan, steps = rows.plan, rows.steps
    count, new = uniforms.shape
    tokens, logprobs = np.zeros((count, new), np.int64), np.zeros((count, new), np.float32)
    used, alive, heat = np.zeros(count, np.int64), np.arange(count), np.full(count, temperature, np.float32)
    chosen, said = steps.choose(steps.head(rows.hidden), uniforms[:, 0], heat)
    for step in range(new):
        tokens[alive, step], logprobs[alive, step] = chosen, said
        used[alive] = step + 1
        timing.decode_tokens += len(alive)
        going = np.flatnonzero(chosen != vlm.render.eos_id)
        if not len(going) or step == new - 1:
            break
        if len(going) < len(alive):
            alive = alive[going]
            plan.keep(going)
        last, at, drawn = tokens[alive, step], rows.lengths[..., alive] + step, uniforms[alive, step + 1]
        chosen, said = steps.next(last, at, [plan], drawn, heat[: len(alive)]).chosen
        timing.decode_steps += 1
    said_by = [(row[:n].tolist(), said[:n].tolist()) for row, said, n in zip(tokens, logprobs, used.tolist())]
    return [
        Rollout(tuple(row), tuple(said), vlm.render.decode(row), finished=row[-1] == vlm.render.eos_id)
        for row, said in said_by
    ]
