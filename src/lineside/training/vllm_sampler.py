"""Rollouts by vLLM, which runs in a process of its own (backends/vllm_process.py).

Features of pictures are those of the store, and the rows that prompts share are sent once. Before each step's rollouts
vLLM gets the weights as they are now. On a CPU it does not take new weights, though it says that it does: there the
engine is started anew on them.

The engine's numbers are not the trainer's: other kernels, other rounding. Stage 3 weighs each token for it, watches the
distance of the log-probabilities, and stops if it is larger than rounding (rlvr.py). A rollout has a seed of its own,
but its rounding depends on what is computed beside it: two runs may differ in a token. Tried with vLLM 0.32 on a CPU;
on a GPU not tried yet.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
from lineside.hashing import stable_hash
from lineside.machine import vllm_problem
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, embedded
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.recipe import Rlvr, Vllm
from lineside.training.sampler import LocalSampler
from lineside.types import Rollout

ADVICE = Advice(
    python="rlvr.vllm.python",
    memory="; with too little memory lower rlvr.vllm.memory or rlvr.vllm.context, or set rlvr.sampler=local",
    ended="; run the same command again: it goes on from the last saved state. rlvr.sampler=local needs no vLLM",
    slow="; if it only needs longer, raise rlvr.vllm.patience",
)


@contextmanager
def sampler_of(vlm: VLM, store: FeatureStore, settings: Rlvr, folder: Path, version: int) -> Iterator[LocalSampler]:
    """The sampler of stage 3, for the length of the stage. vLLM writes its own output to a log in `folder`."""
    if settings.sampler == "local":
        yield LocalSampler(vlm, store, version)
        return
    if problem := vllm_problem(settings.vllm.python, ADVICE.python):
        raise LinesideError(problem)
    if problem := model_problem(vlm):
        raise LinesideError(f"rlvr.sampler: {problem}: set rlvr.sampler=local")
    rank = store.runtime.rank
    sampler = VllmSampler(
        vlm, store, version, settings=settings.vllm, log=folder / f"vllm{f'-{rank}' if rank else ''}.log"
    )
    try:
        yield sampler
    finally:
        sampler.close()


@dataclass
class VllmSampler(LocalSampler):
    """vLLM in place of the trainer's own decoding. Ranks share out prompts as in LocalSampler, each with an engine on
    its device. Raises LinesideError, with what to do, if the engine does not start, ends, or does not answer."""

    settings: Vllm = field(default_factory=Vllm)
    log: Path = Path("vllm.log")
    _engine: Process | None = None
    _folder: Path | None = None  # of weights and prompts
    _handed: int | None = None  # version of the weights that the engine has

    def _roll(
        self, prompts: Sequence[Prompt], own: Sequence[int], samples: int, temperature: float, new: int, seed: int,
        timing: Timing,
    ) -> list[tuple[Rollout, ...]]:  # fmt: skip
        """The rollouts of the prompts with the numbers `own`."""
        if not own:
            return []
        rows, places = embedded(self.vlm, self.store, [prompts[number] for number in own], new, timing)
        longest = max(map(len, places)) + new
        if longest > self.context:
            raise LinesideError(
                f"a prompt with {new} new tokens takes {longest} tokens, and vLLM is started for {self.context}: set "
                f"rlvr.vllm.context={longest} or more"
            )
        engine, clock = self._with_weights(), time.perf_counter()
        assert self._folder is not None
        path = self._folder / "prompts.safetensors"
        write_prompts(path, rows, places)
        answer = engine.ask(
            {
                "prompts": str(path),
                "samples": samples,
                "temperature": temperature,
                "max_new_tokens": new,
                "seeds": [stable_hash("vllm", seed, number) & (2**62 - 1) for number in own],
            }
        )
        rolled = [tuple(self._rollout(*one) for one in group) for group in answer["rollouts"]]
        timing.decode += time.perf_counter() - clock
        timing.decode_tokens += sum(len(one.tokens) for group in rolled for one in group)
        return rolled

    def _rollout(self, tokens: list[int], logprobs: list[float]) -> Rollout:
        render = self.vlm.render
        return Rollout(tuple(tokens), tuple(logprobs), render.decode(tokens), finished=tokens[-1] == render.eos_id)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its rollout."""
        return min(self.vlm.context, self.settings.context or CONTEXT)

    def _with_weights(self) -> Process:
        """The engine with the weights of this version."""
        if self._engine is not None and self._handed == self.version:
            return self._engine
        if self._folder is None:
            self._folder = new_folder(self.vlm)
        weights = self._folder / f"weights-{self.version}"
        write_language_model(self.vlm, weights)
        if self._engine is not None and self._engine.reloads:
            self._engine.ask({"weights": str(weights)})
        else:
            self._stop()
            self._engine = self._started(weights)
        for path in self._folder.glob("weights-*"):
            if path != weights:
                shutil.rmtree(path, ignore_errors=True)
        self._handed = self.version
        return self._engine

    def _started(self, weights: Path) -> Process:
        first = self._handed is None
        settings, folder = self.settings, self._folder
        assert settings.python is not None and folder is not None
        engine = Process(settings.python, folder, self.vlm.device, self.log, patience=settings.patience, advice=ADVICE)
        engine.start(model_settings(self.vlm, weights, context=self.context, memory=settings.memory))
        if first:
            say(f"rlvr: rollouts by vLLM {engine.version}, whose output is in {self.log}")
            if not engine.reloads:
                say("rlvr: vLLM on a CPU does not take new weights: it is started anew for each step, which takes long")
        return engine

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.stop()
            self._engine = None

    def close(self) -> None:
        """End the engine, and remove what was written for it."""
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
