"""One generator for rollouts, evaluation, `ask` and the server.

A shared prefix is prefilled once for all its branches (decoding.py). Finished rows are dropped. Every sampled token has
its log-probability. Each row has its own random number for each step, so its tokens do not depend on the other rows.

Shapes: R rows of a batch, A of them alive, D width of the LM, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lineside.backends import cpu_ops
from lineside.backends.attention import KVCapture, plan_of
from lineside.backends.cpu_decoder import CpuDecoding, cpu_decoder_of, use_cpu_decoder
from lineside.backends.decoding import Decoding
from lineside.backends.fused_ops import fuse
from lineside.errors import LinesideError
from lineside.model.branches import branches, by_frame, frame_tree
from lineside.model.features import FeatureStore
from lineside.model.tree import Node, Pack
from lineside.model.vlm import VLM
from lineside.types import Image, Rollout, frame_images

ROWS = 512  # rows decoded together


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
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 96,
    seed: int = 0,
    rows: int = ROWS,
    timing: Timing | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Rollout, ...]]:
    """Sample `samples` rollouts of every prompt; greedy at temperature 0. Returns one tuple for each prompt, in order.

    `progress` is called with the number of prompts just finished. Raises LinesideError if a prompt and
    `max_new_tokens` exceed the model's context.
    """
    if not prompts:
        return []
    timing = timing or Timing()
    uniforms = torch.rand(len(prompts), samples, max_new_tokens, generator=torch.Generator().manual_seed(seed))
    by_picture = by_frame([prompt.images for prompt in prompts])
    out: dict[int, tuple[Rollout, ...]] = {}
    for batch in _batches(by_picture, max(1, rows // samples)):
        out |= _run(vlm, store, prompts, batch, uniforms, temperature, timing)
        if progress:
            progress(sum(map(len, batch)))
    return [out[i] for i in range(len(prompts))]


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


class Prefilled(NamedTuple):
    """Rows whose prompts have been read, ready to decode."""

    plan: Decoding | CpuDecoding
    hidden: Tensor  # (R, D) the hidden state that predicts each row's first token
    lengths: Tensor  # (R,) tokens of each row's prompt
    row_of: list[tuple[int, int]]  # for each row: the prompt and the number of the sample


class Steps(NamedTuple):
    """How a model decodes one token a row on its device."""

    forward: Callable[..., Tensor]  # (A, D) embeddings, (A,) positions, plan -> (A, D) hidden states
    head: Callable[[Tensor], Tensor]  # (A, D) -> (A, V) logits
    choose: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def steps_of(vlm: VLM) -> Steps:
    """The decoding step of a model: our own kernels where they can run, else its layers."""
    if use_cpu_decoder(vlm):
        decoder = cpu_decoder_of(vlm)
        return Steps(decoder, decoder.logits, cpu_ops.choose)
    return Steps(vlm.decode, vlm.narrow_logits, choose)


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
    clock = time.perf_counter()
    trees, pictures, shared, tails, row_of = _lay_out(vlm, prompts, batch, samples, new)
    features = store.get(pictures) if pictures else None
    timing.features += time.perf_counter() - clock
    clock = time.perf_counter()
    packed: Pack = vlm.pack(trees).to(vlm.device)
    plan = KVCapture(plan_of(packed))
    ends = torch.tensor([(row or group)[-1] for group, rows in zip(shared, tails) for row in rows])
    last, place = ends.unique(return_inverse=True)  # all samples of a question start from the same hidden state
    fused = use_cpu_decoder(vlm)
    if fused:
        fuse(vlm.language_model)
    hidden = vlm.hidden(packed, features, plan, rows=last)[place.to(vlm.device)]
    decoding = (CpuDecoding if fused else Decoding)(plan.kept, shared, tails, new)
    timing.prefill += time.perf_counter() - clock
    timing.prefill_tokens += len(packed)
    lengths = [len(group) + len(row) for group, rows in zip(shared, tails) for row in rows]
    return Prefilled(decoding, hidden, torch.tensor(lengths), row_of)


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
    uniforms = uniforms[[i for i, _ in rows.row_of], [s for _, s in rows.row_of]]
    clock = time.perf_counter()
    rolled = _decode(vlm, steps_of(vlm), rows, uniforms, temperature, timing)
    timing.decode += time.perf_counter() - clock
    grouped: dict[int, list[Rollout]] = {}
    for (i, _), rollout in zip(rows.row_of, rolled):
        grouped.setdefault(i, []).append(rollout)
    return {i: tuple(rollouts) for i, rollouts in grouped.items()}


def _decode(
    vlm: VLM, by: Steps, rows: Prefilled, uniforms: Tensor, temperature: float, timing: Timing
) -> list[Rollout]:
    """The decoding loop: logits, choose a token, drop finished rows, one step forward for the others."""
    plan, lengths = rows.plan, rows.lengths
    count, new = uniforms.shape
    tokens, logprobs = torch.zeros(count, new, dtype=torch.long), torch.zeros(count, new)
    used = torch.zeros(count, dtype=torch.long)
    alive = torch.arange(count)
    logits, uniforms = by.head(rows.hidden), uniforms.to(rows.hidden.device)
    embed = vlm.model.get_input_embeddings()
    for step in range(new):
        chosen, logprob = (t.cpu() for t in by.choose(logits, uniforms[alive, step], temperature))
        tokens[alive, step], logprobs[alive, step] = chosen, logprob
        used[alive] = step + 1
        timing.decode_tokens += len(alive)
        going = (chosen != vlm.render.eos_id).nonzero().flatten()
        alive = alive[going]
        if not len(alive) or step == new - 1:
            break
        if len(going) < len(chosen):
            plan.keep(going)
        last, places = tokens[alive, step], lengths[alive] + step
        states = by.forward(embed(last.to(uniforms.device)), places.to(uniforms.device), plan)
        plan.advance()
        timing.decode_steps += 1
        logits = by.head(states)
    written = [(row[:n].tolist(), said[:n].tolist()) for row, said, n in zip(tokens, logprobs, used.tolist())]
    return [
        Rollout(tuple(row), tuple(said), vlm.render.decode(row), finished=row[-1] == vlm.render.eos_id)
        for row, said in written
    ]


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(n, V), (n,) -> token (n,) and its float32 log-probability (n,). The reference for `cpu_ops.choose`.

    At temperature 0 it is the most likely token, the first if several are equal. Otherwise it is sampled: the inverse
    of the cumulative distribution at `uniform`, which lies in [0, 1).
    """
    if temperature == 0:
        shares = logits.float().log_softmax(-1)
        chosen = shares.argmax(-1, keepdim=True)
        return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1)
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    total = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1).log()
