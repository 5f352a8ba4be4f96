"""Decoding by vLLM: it reads the prompts of all requests and computes the logits of their rows, a step at a time.

vLLM runs in a process of its own (vllm_process.py) and has the language model alone. Encoder, projector and renderer
stay here, and so does what the server promises: which token of the logits is taken, where a trace is cut and the answer
forced, the form of an answer. For that each row gets an order a step, and vLLM takes the token that the order leaves.
So a cut costs nothing, and a seed gives the tokens of our own decoding, but for rounding.

Left out: branches. An answer that the task allows is written token by token, not read with its question as a draft.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lineside.backends.lm import LanguageModel
from lineside.backends.reference import Elsewhere, Steps
from lineside.backends.vllm_process import (
    CONTEXT,
    Advice,
    Process,
    model_problem,
    model_settings,
    new_folder,
    write_language_model,
    write_prompts,
)
from lineside.errors import LinesideError
from lineside.model.vlm import VLM

START_SECONDS, STEP_SECONDS = 600.0, 60.0  # for which its start and a step are waited for
ADVICE = Advice(
    python="--vllm-python", memory="; --vllm-memory is its share of the device's memory; --engine local needs no vLLM"
)


@dataclass(frozen=True, slots=True)
class Order:
    """How the next token of a row is chosen. `forced`: this one is written. `allowed`: (V,) bool, the others are not
    written. `own`: the model's own opinion is asked too, with so many (`top`) of its tokens."""

    row: int
    uniform: float
    temperature: float
    forced: int | None = None
    allowed: Tensor | None = None
    own: bool = False
    top: int = 0

    def plain(self) -> dict[str, Any]:
        """As a message says it."""
        bits = None if self.allowed is None else np.packbits(self.allowed.cpu().numpy()).tobytes()
        return asdict(self) | {"allowed": base64.b64encode(bits).decode() if bits else None}


class Token(NamedTuple):
    """What a row has written. `known`: tokens of its prompt that vLLM knew. The last three are told where the order
    asks the model's own opinion: see `of_the_model`."""

    known: int
    token: int
    logprob: float
    own: float = 0.0
    best: int = -1
    tops: Sequence[tuple[int, float]] = ()


class Vllm(Elsewhere):
    """vLLM with the language model of `vlm`, whose backend computes the rest. Raises LinesideError, with what to do, if
    it does not start, and EngineEnded if it has ended."""

    name = "vllm"
    engine = "vllm"

    def __init__(self, vlm: VLM, python: Path, *, memory: float) -> None:
        """`python`: of vLLM's environment. `memory`: share of the device's that vLLM takes."""
        super().__init__(vlm.backend)
        if problem := model_problem(vlm):
            raise LinesideError(f"the engine {problem}: take --engine local")
        self.context = min(vlm.context, CONTEXT)
        self.numbers = count()  # of new rows: several engines may ask one process
        self.there: set[int] = set()  # the rows that vLLM has
        self._folder = new_folder(vlm)
        log, path = tempfile.mkstemp(prefix="lineside-vllm-", suffix=".log")  # a file that only this user can read
        os.close(log)
        self._log = Path(path)
        try:
            weights = self._folder / "weights"
            write_language_model(vlm, weights)
            self._process = Process(python, self._folder, vlm.device, self._log, patience=START_SECONDS, advice=ADVICE)
            settings = model_settings(vlm, weights, context=self.context, memory=memory)
            self._process.start({**settings, "steps": True})
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._process.patience = STEP_SECONDS

    def steps(self, lm: LanguageModel) -> Steps:
        """vLLM reads prompts by itself, so it has no steps for those that were read here."""
        raise LinesideError("vLLM decodes for `evaluate`, `gate` and `serve` alone: take --engine local")

    def step(self, orders: Sequence[Order], prompts: Sequence[Tensor]) -> dict[int, Token]:
        """A step for the rows of these orders; others leave vLLM. `prompts`: (P, D) embeddings of each row that it does
        not have (`there`), in the same order, with what such a row has written before. Returns the token of each row;
        one whose prompt is not read to its end has none yet."""
        path = None
        if prompts:
            ends = list(accumulate(map(len, prompts), initial=0))
            path = self._folder / "prompts.safetensors"
            write_prompts(path, torch.cat(list(prompts)), [range(*ends_of) for ends_of in pairwise(ends)])
        self.there = {order.row for order in orders}
        answer = self._process.ask({"rows": [one.plain() for one in orders], "prompts": str(path) if path else None})
        return {row: Token(*told) for row, *told in answer["rows"]}

    def forget(self) -> None:
        """Forget what was read: rows, and the keys and values of prompts."""
        self.there = set()
        self._process.ask({"forget": True})

    def check(self) -> None:
        """Raises EngineEnded if the process has ended."""
        self._process.check()

    def close(self) -> None:
        """End the process, and remove what was written for it. Its log stays if it ended by itself."""
        if self._process.stop():
            self._log.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
