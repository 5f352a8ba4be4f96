"""The local engine: one request is read, then every running row gets one token a step, whatever request it is of.

A request is a tree: its pictures, the questions about them, the rows of each question. Trees join and leave between
steps. The matrix products of a step take the rows of all trees together; attention goes to each tree's own cache. A row
gets the same numbers whatever runs beside it, so the answer is that of `lineside ask` (tests/serving/test_engine.py).
"""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from lineside.backends.reference import Cache
from lineside.errors import LinesideError
from lineside.images import seen_key
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, prefill, steps_of
from lineside.model.vlm import VLM
from lineside.serving.scheduler import FORCED, Costs
from lineside.types import Image

FEATURE_BYTES = 512 << 20  # features of pictures that are kept
Part = Literal["open", "trace", "answer"]
Reason = Literal["stop", "length", "deadline"]


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine answers: questions about the same pictures (one tree), and how to sample."""

    prompts: tuple[Prompt, ...]
    max_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top: int | None = None
    """Log-probabilities of so many other tokens at each place; None: of the written one alone, and of no others."""


@dataclass(slots=True, eq=False)
class Row:
    """One response while it is written. `part`: where it is: nothing written yet, in its trace, in its answer."""

    part: Part
    uniforms: Tensor
    prompt: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    answer_from: int = 0
    """The number of tokens before the answer."""
    reason: Reason | None = None
    """Why it has ended; None: it goes on."""
    cut: bool = False
    """Its trace was ended by the deadline."""

    def left(self, answer: int) -> int:
        """Tokens to write at least, if the trace is cut now and the answer takes `answer` tokens."""
        if self.part == "open":
            return FORCED + answer
        return 1 + answer if self.part == "trace" else max(1, answer - (len(self.tokens) - self.answer_from))


@dataclass(slots=True, eq=False)
class Tree:
    """The rows of a request on the engine. `alive`: the numbers of those that go on, in the order of the plan."""

    request: Request
    plan: Cache
    positions: Tensor  # (R,) or (3, R): of each row's first token
    rows: list[Row]
    alive: list[int]
    timing: Timing


class Engine(Protocol):
    """What answers requests: it reads one, and writes a token for each row of those it has read."""

    def cost(self, request: Request) -> tuple[int, int]:
        """(pictures that must be encoded, tokens of the prompt). Raises LinesideError if it does not fit the model."""
        ...

    def read(self, request: Request) -> Tree:
        """Read a request; the first token of each row is then written."""
        ...

    def step(self, trees: Sequence[Tree]) -> None:
        """Write one token for each row that goes on."""
        ...

    def warm(self) -> Costs:
        """Run everything once and measure it."""
        ...


class Joined:
    """The plans of several trees as one: the rows of the first, then those of the second, and so on."""

    def __init__(self, plans: Sequence[Any], counts: Sequence[int]) -> None:
        self._plans, self._counts = plans, list(counts)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of each tree's rows to its own cache; shapes as in the plans. Rows behind them are padding."""
        dim = 2 if query.ndim == 4 else 0  # a padded batch of transformers' layers, or the rows of our own kernels
        sizes = [*self._counts, query.shape[dim] - sum(self._counts)]
        parts = zip(*(t.split(sizes, dim=dim) for t in (query, key, value)))
        out = [plan.attend(layer, *part, scale) for plan, part in zip(self._plans, parts)]
        if sizes[-1]:
            out.append(out[0].new_zeros(sizes[-1], *out[0].shape[1:]))
        return torch.cat(out)


class LocalEngine:
    """`Engine` on this machine, by `lineside.model.generate`."""

    def __init__(self, vlm: VLM, *, feature_bytes: int = FEATURE_BYTES) -> None:
        self.vlm, self.render = vlm, vlm.render
        (probe,) = FeatureStore(None, vlm).get([_noise(0)])
        self._room = max(16, feature_bytes // (probe.numel() * probe.element_size()))
        self.store = FeatureStore(None, vlm, memory_rows=self._room)
        self._known: OrderedDict[str, None] = OrderedDict()  # the pictures in the store, least used first
        self.steps = 0
        with torch.no_grad():
            self._by = steps_of(vlm)

    def cost(self, request: Request) -> tuple[int, int]:
        """As in `Engine`."""
        images = request.prompts[0].images
        prefix = len(self.render.head(images))
        questions = [len(self.render.question(p.question, thinking=p.thinking)) for p in request.prompts]
        longest = prefix + max(questions) + FORCED + request.max_tokens
        if longest > self.vlm.context:
            raise LinesideError(
                f"the prompt and {request.max_tokens} new tokens take {longest} tokens, and the model's context is "
                f"{self.vlm.context}: shorten the question or lower max_tokens"
            )
        return len({seen_key(image) for image in images} - self._known.keys()), prefix + sum(questions)

    def room(self, prompts: Sequence[Prompt]) -> int:
        """Tokens that fit behind the longest of these prompts."""
        longest = max(len(self.render.question(p.question, thinking=p.thinking)) for p in prompts)
        return self.vlm.context - FORCED - len(self.render.head(prompts[0].images)) - longest

    @torch.no_grad()
    def read(self, request: Request) -> Tree:
        """As in `Engine`. Raises LinesideError for a picture that cannot be decoded."""
        count, samples, new = len(request.prompts), request.samples, request.max_tokens + FORCED
        timing = Timing()
        read = prefill(self.vlm, self.store, request.prompts, [list(range(count))], samples, new, timing)
        self._remember(request.prompts[0].images)
        # The same numbers as `generate` draws, so that a seed gives the same tokens.
        chance = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(count, samples, request.max_tokens, generator=chance)
        rows = [
            Row("open" if request.prompts[i].thinking else "answer", uniforms[i, s], prompt=i) for i, s in read.row_of
        ]
        tree = Tree(request, read.plan, read.lengths.cpu(), rows, list(range(len(rows))), timing)
        start = time.perf_counter()
        self._write([tree], self._by.head(read.hidden))
        timing.prefill += time.perf_counter() - start
        return tree

    @torch.no_grad()
    def step(self, trees: Sequence[Tree]) -> None:
        """As in `Engine`."""
        start = time.perf_counter()
        for tree in trees:
            self._drop_ended(tree)
        trees = [tree for tree in trees if tree.alive]
        if not trees:
            return
        self.steps += 1
        last = torch.tensor([tree.rows[i].tokens[-1] for tree in trees for i in tree.alive])
        written = torch.tensor([len(tree.rows[i].tokens) - 1 for tree in trees for i in tree.alive])
        positions = torch.cat([tree.positions[..., tree.alive] for tree in trees], dim=-1) + written
        plans = [tree.plan for tree in trees]
        plan = plans[0] if len(plans) == 1 else Joined(plans, [len(tree.alive) for tree in trees])
        device = self.vlm.device
        embeds = self.vlm.model.get_input_embeddings()(last.to(device))
        states = self._by.forward(embeds, positions.to(device), plan)
        for one in plans:
            one.advance()
        self._write(trees, self._by.head(states))
        spent = time.perf_counter() - start
        for tree in trees:
            tree.timing.decode += spent
            tree.timing.decode_steps += 1

    def cut(self, tree: Tree) -> None:
        """End the trace of every row that is in one: the next tokens close it."""
        for row in tree.rows:
            if row.reason is None and row.part != "answer" and not row.forced:
                tags = [self.render.think_open, self.render.think_close]
                row.forced = tags if row.part == "open" else tags[1:]
                row.cut = True

    def _write(self, trees: Sequence[Tree], logits: Tensor) -> None:
        """Choose the next token of each row that goes on, from (A, V) logits."""
        owners = [(tree.request, tree.rows[i]) for tree in trees for i in tree.alive]
        tokens, logprobs = torch.zeros(len(owners), dtype=torch.long), torch.zeros(len(owners))
        by_temperature: dict[float, list[int]] = {}
        for number, (request, _) in enumerate(owners):
            by_temperature.setdefault(request.temperature, []).append(number)
        for temperature, numbers in by_temperature.items():
            uniforms = torch.stack([_uniform(owners[number][1]) for number in numbers]).to(logits.device)
            mine = logits if len(numbers) == len(owners) else logits[numbers]
            chosen, logprob = self._by.choose(mine, uniforms, temperature)
            tokens[numbers], logprobs[numbers] = chosen.cpu(), logprob.cpu().float()
        for number, (request, row) in enumerate(owners):
            token, logprob = int(tokens[number]), float(logprobs[number])
            if row.forced:
                token, logprob = row.forced.pop(0), 0.0
            elif request.top is not None:
                every = logits[number].float().log_softmax(-1)
                logprob = float(every[token]) if request.temperature else logprob
                best = every.topk(request.top) if request.top else None
                row.tops.append([] if best is None else list(zip(best.indices.tolist(), best.values.tolist())))
            self._push(request, row, token, logprob)

    def _push(self, request: Request, row: Row, token: int, logprob: float) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if request.top is not None and len(row.tops) < len(row.tokens):
            row.tops.append([])
        if row.part == "open":
            row.part = "trace" if token == self.render.think_open else "answer"
        elif row.part == "trace" and token == self.render.think_close:
            row.part, row.answer_from = "answer", len(row.tokens)
        if token == self.render.eos_id:
            row.reason = "stop"
        elif len(row.tokens) >= request.max_tokens:
            row.reason = "length"
        elif request.stop and row.part == "answer" and any(s in self.content(row) for s in request.stop):
            row.reason = "stop"

    def content(self, row: Row) -> str:
        """The text of a row's answer so far."""
        return self.render.decode(row.tokens[row.answer_from :])

    def reasoning(self, row: Row) -> str:
        """The text of a row's trace so far."""
        end = row.answer_from - 1 if row.answer_from else len(row.tokens)
        traced = row.tokens[1:end] if row.tokens[:1] == [self.render.think_open] else []
        return self.render.decode(traced)

    def _drop_ended(self, tree: Tree) -> None:
        going = [place for place, i in enumerate(tree.alive) if tree.rows[i].reason is None]
        if len(going) < len(tree.alive):
            tree.alive = [tree.alive[place] for place in going]
            if going:
                tree.plan.keep(torch.tensor(going, device=self.vlm.device))

    def _remember(self, images: Sequence[Image]) -> None:
        for key in map(seen_key, images):
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._room:
            self._known.popitem(last=False)

    # --- measuring

    def warm(self) -> Costs:
        """As in `Engine`: encoding, reading one and eight questions, steps of one and of eight trees, medians of a few
        runs each. The first ones build kernels and are not counted."""
        size = min(8, max(2, self.room([Prompt((_noise(0),), "warm", False)]) - 1))

        def request(seed: int, questions: int = 1) -> Request:
            texts = [f"how many parts are there? {number}" for number in range(questions)]
            return Request(tuple(Prompt((_noise(seed),), text, thinking=False) for text in texts), max_tokens=size)

        def reading(one: Request) -> tuple[float, Tree]:
            start = time.perf_counter()
            tree = self.read(one)
            return 1000 * (time.perf_counter() - start), tree

        for questions in (1, 8):
            self.step([endless(reading(request(0, questions))[1])])
        one = median(reading(request(0))[0] for _ in range(5))
        many = median(reading(request(0, 8))[0] for _ in range(3))
        tokens = [self.cost(request(0, questions))[1] for questions in (1, 8)]
        token = max(0.0, (many - one) / max(1, tokens[1] - tokens[0]))
        fresh = median(reading(request(seed))[0] for seed in range(1, 6))
        trees = [reading(request(0))[1] for _ in range(8)]
        steps: dict[int, list[float]] = {1: [], 8: []}
        for count, times in steps.items():
            for _ in range(max(1, size // 2 - 1)):
                going = [endless(tree) for tree in trees[:count]]
                start = time.perf_counter()
                self.step(going)
                times.append(1000 * (time.perf_counter() - start))
        alone, together = median(steps[1]), median(steps[8])
        row = max(0.0, (together - alone) / 7)
        return Costs(
            read=max(0.1, one - token * tokens[0]),
            picture=max(0.0, fresh - one),
            token=token,
            step=max(0.05, alone - row),
            row=row,
        )


def endless(tree: Tree) -> Tree:
    """A tree whose rows go on, whatever they wrote: for measuring a step."""
    tree.request = replace(tree.request, max_tokens=1 << 30)
    for row in tree.rows:
        row.reason = None
    return tree


def _uniform(row: Row) -> Tensor:
    return row.uniforms[min(len(row.tokens), len(row.uniforms) - 1)]


def _noise(seed: int) -> Image:
    """A picture for measuring."""
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pil.fromarray(pixels).save(buffer, "BMP")
    return Image(buffer.getvalue())
