"""One generator for rollouts, evaluation, `ask` and the server.

A prefix is prefilled once and shared by all its branches (decoding.py); finished rows are dropped; every sampled token
comes with its log-probability. One uniform number a row and step drives the sampling, so what a row says does not
depend on which rows run beside it.

Shapes: R row slots, D width of the LM, V vocabulary; the rest as in decoding.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.images import seen_key
from lineside.model import cpu_ops
from lineside.model.attention import KVCapture, plan_of
from lineside.model.cpu_decoder import CpuDecoding, cpu_decoder_of, use_cpu_decoder
from lineside.model.decoding import Decoding
from lineside.model.features import FeatureStore
from lineside.model.fused_ops import fuse
from lineside.model.tree import Node, Pack
from lineside.model.vlm import VLM
from lineside.types import Image, Rollout

T = TypeVar("T")

ROWS = 512  # row slots decoded together
COMPACT_AT = 0.6  # rebuild the buffers once fewer than this share of the slots is alive


@dataclass(frozen=True, slots=True)
class Prompt:
    """Pictures, a question and the think switch."""

    images: tuple[Image, ...]
    question: str
    thinking: bool


@dataclass
class Timing:
    """Seconds by phase, and what was computed; filled by `generate` when it is handed one."""

    features: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prefill_tokens: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0


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
    """`samples` rollouts of every prompt, greedy at temperature 0. Returns one tuple a prompt, in order.

    `progress` is called with the number of prompts just finished. Raises LinesideError for a prompt that with
    `max_new_tokens` does not fit the model's context.
    """
    if not prompts:
        return []
    timing = timing or Timing()
    uniforms = torch.rand(len(prompts), samples, max_new_tokens, generator=torch.Generator().manual_seed(seed))
    by_picture: dict[tuple[str, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_picture.setdefault(tuple(map(seen_key, prompt.images)), []).append(i)
    out: dict[int, tuple[Rollout, ...]] = {}
    for batch in _batches(list(by_picture.values()), max(1, rows // samples)):
        out |= _run(vlm, store, prompts, batch, uniforms, temperature, timing)
        if progress:
            progress(sum(len(group) for group in batch))
    return [out[i] for i in range(len(prompts))]


def _batches(groups: list[list[int]], budget: int) -> list[list[list[int]]]:
    """Pictures' prompts, at most `budget` prompts together; a picture with more of them is cut."""
    batches: list[list[list[int]]] = [[]]
    for piece in (group[i : i + budget] for group in groups for i in range(0, len(group), budget)):
        if sum(map(len, batches[-1])) + len(piece) > budget:
            batches.append([])
        batches[-1].append(piece)
    return batches


class _Layout(NamedTuple):
    """How a batch is prefilled and decoded: a tree a picture; by group, the prefill's tokens that its rows share and
    those of each row's own; and whose rows they are, as (prompt, sample)."""

    trees: list[Node]
    shared: list[list[int]]
    tails: list[list[list[int]]]
    row_of: list[tuple[int, int]]


def _lay_out(vlm: VLM, prompts: Sequence[Prompt], batch: list[list[int]], samples: int, new: int) -> _Layout:
    """All rollouts of a question share its whole prompt; asked once, all questions of a picture share the picture.

    Raises LinesideError for a prompt that with `new` tokens does not fit the context.
    """
    layout = _Layout([], [], [], [])
    start = 0
    for group in batch:
        pictures = len(prompts[group[0]].images)
        prefix = vlm.render.prefix(pictures)
        questions = [vlm.render.question(prompts[i].question, thinking=prompts[i].thinking) for i in group]
        longest = len(prefix) + max(map(len, questions)) + new
        if longest > vlm.context:
            raise LinesideError(
                f"a prompt with {new} new tokens takes {longest} tokens, and the model's context is {vlm.context}: "
                "shorten the question or lower max_new_tokens"
            )
        layout.trees.append(Node(prefix, images=tuple(range(pictures)), children=tuple(map(Node, questions))))
        ends = list(accumulate(map(len, [prefix, *questions]), initial=start))
        here, *own = [list(range(begin, end)) for begin, end in pairwise(ends)]
        start = ends[-1]
        if samples > 1:
            layout.shared.extend(here + question for question in own)
            layout.tails.extend([[]] * samples for _ in own)
        else:
            layout.shared.append(here)
            layout.tails.append(own)
        layout.row_of.extend((i, s) for i in group for s in range(samples))
    width = _width([len(rows) for rows in layout.tails])
    shared = [prefix for prefix, rows in zip(layout.shared, layout.tails) for _ in range(0, len(rows), width)]
    return layout._replace(shared=shared, tails=_cut(layout.tails, width))


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
    clock = time.perf_counter()
    trees, shared, tails, row_of = _lay_out(vlm, prompts, batch, samples, new)
    pictures = [image for group in batch for image in prompts[group[0]].images]
    features = store.get(pictures) if pictures else None
    timing.features += time.perf_counter() - clock
    clock = time.perf_counter()
    packed: Pack = vlm.pack(trees).to(vlm.device)
    plan = KVCapture(plan_of(packed))
    ends = torch.tensor([(row or group)[-1] for group, rows in zip(shared, tails) for row in rows])
    asked, place = ends.unique(return_inverse=True)  # the samples of a question begin from one state
    fused = use_cpu_decoder(vlm)
    if fused:
        fuse(vlm.language_model)
    hidden = vlm.hidden(packed, features, plan, rows=asked)[place.to(vlm.device)]
    decoding = (CpuDecoding if fused else Decoding)(plan.kept, shared, tails, new)
    timing.prefill += time.perf_counter() - clock
    timing.prefill_tokens += len(packed)
    # Slots hold rows group by group; where a group is short, its padding slots repeat nothing and are never read.
    lengths = [len(group) + len(row) for group, rows in zip(shared, tails) for row in rows]
    slots = [[g * decoding.rows + j for j in range(len(rows))] for g, rows in enumerate(tails)]
    uniforms = uniforms[[i for i, _ in row_of], [s for _, s in row_of]]
    clock = time.perf_counter()
    decoder = cpu_decoder_of(vlm) if fused else None
    forward, head = (decoder, decoder.logits) if decoder else (vlm.decode, vlm.narrow_logits)
    rolled = _decode(vlm, forward, head, decoding, hidden, lengths, slots, uniforms, temperature, timing)
    timing.decode += time.perf_counter() - clock
    grouped: dict[int, list[Rollout]] = {}
    for (i, _), rollout in zip(row_of, rolled):
        grouped.setdefault(i, []).append(rollout)
    return {i: tuple(rollouts) for i, rollouts in grouped.items()}


def _decode(
    vlm: VLM,
    forward: Callable[..., Tensor],
    head: Callable[[Tensor], Tensor],
    plan: Decoding | CpuDecoding,
    hidden: Tensor,
    lengths: list[int],
    slots: list[list[int]],
    uniforms: Tensor,
    temperature: float,
    timing: Timing,
) -> list[Rollout]:
    """The loop: logits by `head`, choose, stop the finished, feed the rest through `forward`.

    `hidden` (R, D): the state each row begins from. `slots[g]`: the buffer slots of group g's rows, row by row.
    """
    count, new = uniforms.shape
    device = hidden.device
    tokens = torch.zeros(count, new, dtype=torch.long)
    logprobs = torch.zeros(count, new)
    used = [new] * count
    finished = [False] * count
    place = [slot for rows in slots for slot in rows]  # buffer slot of each row
    row_at = dict(zip(place, range(count)))
    alive = list(range(count))
    positions = torch.tensor(lengths)
    logits = head(hidden)
    uniforms = uniforms.to(device)
    pick = cpu_ops.choose if isinstance(plan, CpuDecoding) else choose
    for step in range(new):
        chosen, logprob = pick(logits, uniforms[alive, step], temperature)
        tokens[alive, step], logprobs[alive, step] = chosen.cpu(), logprob.cpu()
        timing.decode_tokens += len(alive)
        for row, token in zip(list(alive), chosen.tolist()):
            if token == vlm.render.eos_id:
                used[row], finished[row] = step + 1, True
        alive = [row for row in alive if not finished[row]]
        if not alive or step == new - 1:
            break
        if len(alive) < COMPACT_AT * plan.groups * plan.rows:
            kept: list[list[int]] = [[] for _ in range(plan.groups)]
            for row in alive:
                kept[place[row] // plan.rows].append(place[row])
            kept = [group for group in kept if group]
            kept = _cut(kept, _width([len(group) for group in kept]))
            plan.select(kept)
            row_at = {g * plan.rows + j: row_at[slot] for g, group in enumerate(kept) for j, slot in enumerate(group)}
            for slot, row in row_at.items():
                place[row] = slot
        feed = torch.zeros(plan.groups * plan.rows, dtype=torch.long)
        where = torch.zeros(plan.groups * plan.rows, dtype=torch.long)
        index = torch.tensor([place[row] for row in alive])
        feed[index] = tokens[alive, step]
        where[index] = positions[alive] + step
        states = forward(vlm.model.get_input_embeddings()(feed.to(device)), where.to(device), plan)
        plan.advance()
        timing.decode_steps += 1
        logits = head(states[index.to(device)])
    return [
        Rollout(
            tokens=tuple(tokens[r, : used[r]].tolist()),
            sampler_logprobs=tuple(logprobs[r, : used[r]].tolist()),
            text=vlm.render.decode(tokens[r, : used[r]].tolist()),
            finished=finished[r],
        )
        for r in range(count)
    ]


def _width(sizes: list[int]) -> int:
    """Rows of a group at which groups of these sizes cost least when wider ones are cut: too wide a group pads all
    others, too narrow ones hold their prefix several times, each of which costs about what a row does."""
    return min(range(1, max(sizes) + 1), key=lambda width: sum(-(-size // width) for size in sizes) * (width + 1))


def _cut(groups: list[list[T]], width: int) -> list[list[T]]:
    """The groups in pieces of at most `width`."""
    return [group[i : i + width] for group in groups for i in range(0, len(group), width)]


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(n, V), (n,) -> token (n,), its float32 log-probability (n,): the first of the likeliest, or the inverse of the
    distribution function at `uniform`. The reference of `cpu_ops.choose`."""
    if temperature == 0:
        shares = logits.float().log_softmax(-1)
        chosen = shares.argmax(-1, keepdim=True)
        return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1)
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    total = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(1), shares.gather(1, chosen).squeeze(1).log()
