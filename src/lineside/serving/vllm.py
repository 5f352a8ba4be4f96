"""The engine vLLM: pictures are encoded here, and vLLM reads all prompts and writes a token a step for every row.

vLLM computes for all rows that it has: while it reads a request, the running rows get a token too. A request that waits
for others leaves vLLM, and is read again with what it has written when it goes on, as vLLM does with those that it
preempts. So does one whose client has gone, for good.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lineside.backends.vllm import Order, Token, Vllm
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, embedded
from lineside.model.vlm import VLM
from lineside.serving.engine import FEATURE_BYTES, LocalEngine, Request, Row, Tree, asks_the_model, sampling


@dataclass(slots=True, eq=False)
class Held(Tree):
    """A tree whose rows are requests of vLLM."""

    numbers: list[int] = field(default_factory=list)
    """Of each row, there."""
    prompts: list[Tensor] = field(default_factory=list)
    """(P, D) embeddings of each prompt of the request."""


class VllmEngine(LocalEngine):
    """`Engine` by vLLM, for a model that `load_engine` has loaded with it."""

    look_seconds = 1.0

    def __init__(
        self,
        vlm: VLM,
        *,
        store: FeatureStore | None = None,
        feature_bytes: int = FEATURE_BYTES,
        prefix_bytes: int = 0,
    ) -> None:
        """As LocalEngine. `prefix_bytes` has no effect: vLLM keeps the keys and values of prompts as it sees fit."""
        super().__init__(vlm, store=store, feature_bytes=feature_bytes, prefix_bytes=0)
        assert isinstance(vlm.backend, Vllm)
        self._vllm = vlm.backend
        self._going: list[Held] = []  # the trees of the last step

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its response, for which vLLM was started."""
        return self._vllm.context

    def _drafts(self, prompt: Prompt, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return ()

    @torch.no_grad()
    def read(self, requests: Sequence[Request]) -> list[Tree]:
        """As in `Engine`. The rows that run get a token too, or several if vLLM reads in several steps."""
        timing = Timing()
        prompts = [prompt for request in requests for prompt in request.prompts]
        rows, places = embedded(self.vlm, self.store, prompts, 1, timing)
        start, parts = time.perf_counter(), iter(places)
        trees = [self._held(request, [rows[next(parts)] for _ in request.prompts]) for request in requests]
        going = [*self._going, *trees]
        while any(not row.tokens for tree in trees for row in tree.rows):
            self._advance(going)
        timing.prefill += time.perf_counter() - start
        for tree in trees:
            self._remember(tree.request.shown.keys)
            tree.timing = timing if len(trees) == 1 else replace(timing)
        return list(trees)

    def _held(self, request: Request, prompts: list[Tensor]) -> Held:
        rows = self._rows(request)
        numbers = [next(self._vllm.numbers) for _ in rows]
        return Held(
            request, None, np.zeros(len(rows), np.int64), rows, list(range(len(rows))), Timing(),
            numbers=numbers, prompts=prompts,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, trees: Sequence[Tree]) -> None:
        """As in `Engine`."""
        start = time.perf_counter()
        self._advance([tree for tree in trees if isinstance(tree, Held)])
        spent = time.perf_counter() - start
        for tree in self._going:
            tree.timing.decode += spent
            tree.timing.decode_steps += 1

    def _advance(self, trees: Sequence[Held]) -> None:
        """A step of vLLM for the rows of these trees that go on."""
        for tree in trees:
            self._drop_ended(tree)
        self._going = [tree for tree in trees if tree.alive]
        if not self._going:
            return
        self.steps += 1
        rows = [(tree, i) for tree in self._going for i in tree.alive]
        drawn = zip(*(part.tolist() for part in sampling(self._going)))
        orders = [self._order(tree, i, *one) for (tree, i), one in zip(rows, drawn)]
        new = [self._prompt(*row) for row, order in zip(rows, orders) if order.row not in self._vllm.there]
        written = self._vllm.step(orders, new)
        for (tree, i), order in zip(rows, orders):
            if (token := written.get(order.row)) is not None:
                self._take(tree, tree.rows[i], token)

    def _order(self, tree: Held, i: int, uniform: float, temperature: float) -> Order:
        row, request = tree.rows[i], tree.request
        return Order(
            tree.numbers[i], uniform, temperature, forced=row.forced[0] if row.forced else None,
            allowed=self._form(tree, row), own=asks_the_model(request, row), top=request.top or 0,
        )  # fmt: skip

    def _prompt(self, tree: Held, i: int) -> Tensor:
        """(P, D) the prompt of a row, with what it has written."""
        row = tree.rows[i]
        prompt = tree.prompts[row.prompt]
        written = self.vlm.lm.embed(torch.tensor(row.tokens, dtype=torch.long, device=prompt.device))
        return torch.cat([prompt, written.to(prompt.dtype)])

    def _take(self, tree: Held, row: Row, written: Token) -> None:
        """Add what vLLM has written to a row."""
        if not row.tokens:
            tree.known = max(tree.known, written.known)
        token, logprob = written.token, written.logprob
        if row.forced:
            token, logprob = row.forced.pop(0), 0.0
        elif asks_the_model(tree.request, row):
            logprob = self._compared(tree.request, row, token, logprob, written.own, written.best, written.tops)
        self._push(tree.request, row, token, logprob)

    def check(self) -> None:
        """Raises EngineEnded if vLLM has ended."""
        self._vllm.check()

    def forget(self) -> None:
        """Forget all that was read. Rows that go on are read again."""
        self._going = []
        self._vllm.forget()
