"""The local engine: requests are read, then every running row gets one token a step, whatever request it is of.

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
from functools import cached_property
from statistics import median
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pil
from torch import Tensor

from lineside.backends.choosing import of_the_model
from lineside.backends.reference import Cache, Chosen, Steps
from lineside.errors import LinesideError
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, steps_of
from lineside.model.vlm import VLM
from lineside.runtime import Runtime
from lineside.serving import reading
from lineside.serving.grammar import FormError, Grammars, Matcher
from lineside.serving.reading import DraftedPrompt, Heads, Pictures, Place
from lineside.serving.scheduler import FORCED, Costs
from lineside.types import Image

FEATURE_BYTES = 512 << 20  # features of pictures that are kept
PREFIX_BYTES = 256 << 20  # keys and values of frames that are kept
DRAFT_TOKENS = 64  # of all answers that a task allows: with more, reading them takes longer than writing one
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
    choices: tuple[tuple[str, ...], ...] = ()
    """The answers that each prompt's task allows; (): not known, or sampled, so that reading cannot draft them."""
    grammars: tuple[str | None, ...] = ()
    """The form of each prompt's answers; (): all are free."""
    top: int | None = None
    """Log-probabilities of so many other tokens at each place; None: of the written one alone, and of no others."""
    shown: Pictures = field(default=Pictures(), compare=False)
    """The pictures of the prompts; found from them."""

    def __post_init__(self) -> None:
        if not self.shown.images:
            object.__setattr__(self, "shown", Pictures.of(self.prompts[0].images))
        if self.samples > 1 or self.temperature:
            object.__setattr__(self, "choices", ())


@dataclass(slots=True, eq=False)
class Row:
    """One response while it is written. `part`: where it is: nothing written yet, in its trace, in its answer."""

    part: Part
    uniforms: list[float]
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
    matcher: Matcher | None = None
    bent: bool = False
    """The form of the answer forbade what the model would have written."""

    def left(self, answer: int) -> int:
        """Tokens to write at least, if the trace is cut now and the answer takes `answer` tokens."""
        if self.part == "open":
            return FORCED + answer
        return 1 + answer if self.part == "trace" else max(1, answer - (len(self.tokens) - self.answer_from))


@dataclass(slots=True, eq=False)
class Tree:
    """The rows of a request on the engine. `alive`: the numbers of those that go on, in the order of the plan."""

    request: Request
    plan: Cache | None
    """None if all rows ended with the reading."""
    positions: NDArray[np.int64]  # (R,) or (3, R): of each row's first token
    rows: list[Row]
    alive: list[int]
    timing: Timing
    known: int = 0
    """Tokens of the prompt that were not read, since they were known."""
    problem: str = ""
    """Why it cannot go on, for who asked."""


class Work(NamedTuple):
    """What reading a request takes. Its head is what its questions share (reading.py)."""

    head: str
    """What its head is known by; "": nothing is kept of it."""
    pictures: int
    """Pictures that must be encoded."""
    shared: int
    """Tokens of the head that must be read."""
    own: int
    """Tokens of the questions and of the answers that are read with them."""
    prompt: int
    """Tokens of the whole prompt, known or not."""


class Engine(Protocol):
    """What answers requests: it reads some, and writes a token for each row of those it has read."""

    def cost(self, request: Request) -> Work:
        """What it takes to read a request. Raises LinesideError if it does not fit the model."""
        ...

    def read(self, requests: Sequence[Request]) -> list[Tree]:
        """Read requests together; the first token of each row is then written, or more."""
        ...

    def step(self, trees: Sequence[Tree]) -> None:
        """Write one token for each row that goes on."""
        ...

    def warm(self) -> Costs:
        """Run everything once and measure it."""
        ...


class LocalEngine:
    """`Engine` on this machine, by `lineside.model.generate`."""

    look_seconds: float | None = None
    """Between two calls of `check` while nothing is asked; None: it cannot end by itself."""

    def __init__(
        self,
        vlm: VLM,
        *,
        store: FeatureStore | None = None,
        feature_bytes: int = FEATURE_BYTES,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        """`store`: the features of pictures; None: one in memory, of `feature_bytes`. `prefix_bytes`: of the keys and
        values of frames that are kept."""
        self.vlm, self.render = vlm, vlm.render
        runtime = Runtime(vlm.device)
        (probe,) = FeatureStore(None, vlm, runtime=runtime).get([_noise(0)])
        self._room = max(16, feature_bytes // (probe.numel() * probe.element_size()))
        if store is None:  # a store that is given may be empty
            store = FeatureStore(None, vlm, runtime=runtime, memory_rows=self._room)
        self.store = store
        self._known: OrderedDict[str, None] = OrderedDict()  # the pictures in the store, least used first
        self.heads = Heads(prefix_bytes)
        self.steps = 0

    @cached_property
    def _by(self) -> Steps:
        """What decodes; its weights are laid out at the first use."""
        with torch.no_grad():
            return steps_of(self.vlm)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its response."""
        return self.vlm.context

    @cached_property
    def grammars(self) -> Grammars:
        """What compiles the forms of answers. Raises FormError for a tokenizer that it cannot read."""
        embed: Any = self.vlm.model.get_input_embeddings()
        return Grammars(self.render, int(embed.num_embeddings))

    def cost(self, request: Request) -> Work:
        """As in `Engine`. Raises FormError for a form of answers that is refused."""
        for grammar in filter(None, request.grammars):
            self.grammars.matcher(grammar)
        shown = request.shown
        head = len(self.render.head(shown.images))
        questions = [len(self.render.question(p.question, thinking=p.thinking)) for p in request.prompts]
        longest = head + max(questions) + FORCED + request.max_tokens
        if longest > self.context:
            raise LinesideError(
                f"the prompt and {request.max_tokens} new tokens take {longest} tokens, and the model's context is "
                f"{self.context}: shorten the question, give fewer pictures, or lower max_tokens"
            )
        seen, kept = self.heads.longest(shown)
        missing = set(shown.keys[seen:]) - self._known.keys()
        drafts = sum(len(draft) for asked in self._asked(request) for draft in asked.drafts)
        return Work(
            head=shown.head if self.heads.max_bytes else "",
            pictures=len(missing),
            shared=head - (len(kept[0][0]) if kept else 0),
            own=sum(questions) + drafts,
            prompt=head + sum(questions),
        )

    def room(self, prompts: Sequence[Prompt]) -> int:
        """Tokens that fit behind the longest of these prompts."""
        longest = max(len(self.render.question(p.question, thinking=p.thinking)) for p in prompts)
        return self.context - FORCED - len(self.render.head(prompts[0].images)) - longest

    def _asked(self, request: Request) -> list[DraftedPrompt]:
        """The prompts of a request with their drafts."""
        choices = request.choices or [()] * len(request.prompts)
        return [
            DraftedPrompt(one, self._drafts(one, allowed))
            for one, allowed in zip(request.prompts, choices, strict=True)
        ]

    def _drafts(self, prompt: Prompt, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        drafts = tuple(dict.fromkeys(map(self.render.encode_untrusted, choices))) if not prompt.thinking else ()
        return drafts if sum(map(len, drafts)) <= DRAFT_TOKENS else ()

    @torch.no_grad()
    def read(self, requests: Sequence[Request]) -> list[Tree]:
        """As in `Engine`. Raises LinesideError for a picture that cannot be decoded."""
        timing = Timing()
        asked = [(request.shown, self._asked(request)) for request in requests]
        found = reading.read(self.vlm, self.store, self.heads, asked, timing)
        start = time.perf_counter()
        logits = self._by.head(found.hidden)
        trees = [self._begun(request, found, number, logits) for number, request in enumerate(requests)]
        timing.prefill += time.perf_counter() - start
        for tree in trees:
            self._remember(tree.request.shown.keys)
            tree.timing = timing if len(trees) == 1 else replace(timing)
        return trees

    def _begun(self, request: Request, found: reading.Reading, number: int, logits: Tensor) -> Tree:
        """The tree of a request that has been read, with the tokens that its rows write without a step."""
        places, rows = found.places[number], self._rows(request)
        ends = [places[row.prompt].question[-1] for row in rows]
        positions = (found.positions[..., ends] + 1).numpy()
        tree = Tree(request, None, positions, rows, list(range(len(rows))), Timing(), known=found.known[number])
        self._write([tree], logits[[found.row_of[end] for end in ends]])
        if request.choices:
            while drafted := {i: at for i, row in enumerate(rows) if (at := _drafted(row, places)) is not None}:
                tree.alive = list(drafted)
                self._write([tree], logits[[found.row_of[at] for at in drafted.values()]])
            tree.alive = [i for i, row in enumerate(rows) if row.reason is None]
        if tree.alive:
            tree.plan = self._cache(found, number, [rows[i] for i in tree.alive], request)
        return tree

    def _rows(self, request: Request) -> list[Row]:
        """The rows of a request, in which nothing is written."""
        # The same numbers as `generate` draws, so that a seed gives the same tokens.
        chance = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(len(request.prompts), request.samples, request.max_tokens, generator=chance).tolist()
        rows = [
            Row("open" if prompt.thinking else "answer", uniforms[i][s], prompt=i)
            for i, prompt in enumerate(request.prompts)
            for s in range(request.samples)
        ]
        for row in rows if request.grammars else ():
            if (grammar := request.grammars[row.prompt]) is not None:
                row.matcher = self.grammars.matcher(grammar)
        return rows

    def _cache(self, found: reading.Reading, number: int, rows: Sequence[Row], request: Request) -> Cache:
        """The keys and values of the rows that go on: the prompt's, and those of what they have written but for the
        last token. With several samples, the rows of a question share its whole prompt."""
        head, places = found.heads[number], found.places[number]
        new = request.max_tokens + FORCED
        if request.samples == 1:
            tails = [
                places[row.prompt].question
                + [places[row.prompt].after[tuple(row.tokens[:n])] for n in range(1, len(row.tokens))]
                for row in rows
            ]
            return self._by.cache(found.kept, [head], [tails], new)
        groups = [[row for row in rows if row.prompt == i] for i in range(len(places))]
        shared = [head + place.question for place, group in zip(places, groups) if group]
        return self._by.cache(found.kept, shared, [[[]] * len(group) for group in groups if group], new)

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
        rows = [tree.rows[i] for tree in trees for i in tree.alive]
        at = np.array([len(row.tokens) - 1 for row in rows])
        positions = np.concatenate([tree.positions[..., tree.alive] for tree in trees], axis=-1) + at
        last, plans = np.array([row.tokens[-1] for row in rows]), [tree.plan for tree in trees]
        written = self._by.next(last, positions, plans, *sampling(trees))
        self._write(trees, written.logits, written.chosen)
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

    def _write(self, trees: Sequence[Tree], logits: Tensor, chosen: Chosen | None = None) -> None:
        """Add the token that was chosen from (A, V) logits to each row that goes on, or the one that it must write."""
        owners = [(tree.request, tree.rows[i]) for tree in trees for i in tree.alive]
        allowed = self._allowed(trees, logits)
        if chosen is None or allowed is not logits:
            chosen = self._by.choose(allowed, *sampling(trees))
        tokens, logprobs = chosen
        for number, (request, row) in enumerate(owners):
            token, logprob = int(tokens[number]), float(logprobs[number])
            if row.forced:
                token, logprob = row.forced.pop(0), 0.0
            elif asks_the_model(request, row):
                seen = of_the_model(logits[number], token, request.top or 0)
                logprob = self._compared(request, row, token, logprob, *seen)
            self._push(request, row, token, logprob)

    def _compared(
        self, request: Request, row: Row, token: int, logprob: float, own: float, best: int, tops: Any
    ) -> float:
        """The log-probability of a token to tell. `own`, `best`, `tops`: of the model, without temperature and form."""
        row.bent |= row.matcher is not None and token != best
        row.tops.append([(int(other), said) for other, said in tops])
        return own if request.temperature or row.matcher else logprob

    def _push(self, request: Request, row: Row, token: int, logprob: float) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if request.top is not None and len(row.tops) < len(row.tokens):
            row.tops.append([])
        if row.part == "open" and token == self.render.think_open:
            row.part = "trace"
        elif row.part == "trace":
            if token == self.render.think_close:
                row.part, row.answer_from = "answer", len(row.tokens)
        else:
            row.part = "answer"
            if row.matcher is not None:
                row.matcher.take(token)
        if token == self.render.eos_id:
            row.reason = "stop"
        elif len(row.tokens) >= request.max_tokens:
            row.reason = "length"
        elif request.stop and row.part == "answer" and any(s in self.content(row) for s in request.stop):
            row.reason = "stop"

    def _allowed(self, trees: Sequence[Tree], logits: Tensor) -> Tensor:
        """(A, V) logits: -inf where the form of a row's answer forbids a token."""
        if not any(tree.request.grammars for tree in trees):
            return logits
        allowed, number = logits.clone(), 0
        for tree in trees:
            for row in (tree.rows[i] for i in tree.alive):
                if (may := self._form(tree, row)) is not None:
                    allowed[number].masked_fill_(~may.to(logits.device), -torch.inf)
                number += 1
        return allowed

    def _form(self, tree: Tree, row: Row) -> Tensor | None:
        """(V,) bool: what the form of its answer lets a row write; None: all. A form that fails stops the tree."""
        if row.matcher is None or row.forced:
            return None
        try:
            return self._may_follow(row, row.matcher)
        except FormError as error:
            tree.problem = str(error)
            return None

    def _may_follow(self, row: Row, matcher: Matcher) -> Tensor:
        """(V,) bool. The form holds for the answer. A trace is free, but it does not end the response."""
        if row.part == "trace":
            may = torch.ones(self.grammars.vocabulary, dtype=torch.bool)
            may[self.render.eos_id] = False
            return may
        may = matcher.allowed()
        if row.part == "open":
            may[self.render.think_open] = True
        return may

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
            if going and tree.plan is not None:
                tree.plan.keep(np.array(going))

    def _remember(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._room:
            self._known.popitem(last=False)

    def check(self) -> None:
        """Raises EngineEnded if what decodes has ended."""

    def close(self) -> None:
        """End what decodes, if it is another process."""
        self.vlm.backend.close()

    # --- measuring

    def forget(self) -> None:
        """Forget the frames that were read."""
        self.heads.clear()

    def warm(self) -> Costs:
        """As in `Engine`: encoding, reading one and eight questions, steps of one and of eight trees, medians of a few
        runs each. The first ones build kernels and are not counted."""
        size = min(8, max(2, self.room([Prompt((_noise(0),), "warm", False)]) - 1))

        def request(seed: int, questions: int = 1) -> Request:
            texts = [f"how many parts are there? {number}" for number in range(questions)]
            return Request(tuple(Prompt((_noise(seed),), text, thinking=False) for text in texts), max_tokens=size)

        def timed(one: Request) -> tuple[float, Tree]:
            start = time.perf_counter()
            (tree,) = self.read([one])
            return 1000 * (time.perf_counter() - start), tree

        for questions in (1, 8):
            self.step([endless(timed(request(0, questions))[1])])
        work = [self.cost(request(0, questions)) for questions in (1, 8)]
        one = median(timed(request(0))[0] for _ in range(5))
        many = median(timed(request(0, 8))[0] for _ in range(3))
        token = max(0.0, (many - one) / max(1, work[1].own - work[0].own))
        fresh = median(timed(request(seed))[0] for seed in range(1, 6))
        head = work[0].prompt - work[0].own - work[0].shared  # tokens that only a fresh frame has
        trees = self.read([request(0)] * 8)
        steps: dict[int, list[float]] = {1: [], 8: []}
        for count, times in steps.items():
            for _ in range(max(1, size // 2 - 1)):
                going = [endless(tree) for tree in trees[:count]]
                start = time.perf_counter()
                self.step(going)
                times.append(1000 * (time.perf_counter() - start))
        alone, together = median(steps[1]), median(steps[8])
        row = max(0.0, (together - alone) / 7)
        self.forget()
        return Costs(
            read=max(0.1, one - token * (work[0].own + work[0].shared)),
            picture=max(0.0, fresh - one - token * head),
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


def _drafted(row: Row, places: Sequence[Place]) -> int | None:
    """Where the reading has computed what follows the tokens of a row; None if nowhere, or if nothing follows."""
    return places[row.prompt].after.get(tuple(row.tokens)) if row.reason is None else None


def asks_the_model(request: Request, row: Row) -> bool:
    """Whether more is told of a row's next token than the log-probability by which it was chosen."""
    return request.top is not None or row.matcher is not None


def sampling(trees: Sequence[Tree]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The random number and the temperature of each row's next token."""
    owners = [(tree.rows[i], tree.request.temperature) for tree in trees for i in tree.alive]
    uniforms = [row.uniforms[min(len(row.tokens), len(row.uniforms) - 1)] for row, _ in owners]
    return np.array(uniforms, np.float32), np.array([temperature for _, temperature in owners], np.float32)


def _noise(seed: int) -> Image:
    """A picture for measuring."""
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pil.fromarray(pixels).save(buffer, "BMP")
    return Image(buffer.getvalue())
