"""How long the save of a stage takes, by wall clock: random weights and moments of AdamW, of the shape of a published
language model, through `save_state`: checksum, file, flush and rename.

    python benchmarks/save_time.py [--models SmolLM2-135M-Instruct,SmolLM2-360M-Instruct] [--repeats 3] [--folder runs]

After SIGTERM a stage takes five seconds at most for its step, and then this. Needs 24 bytes of memory and of disk for
each parameter. Makes no claim.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lineside.training.skeleton import PUBLISHED
from lineside.training.state import State, save_state


def state_of(model: str) -> State:
    """The state of a stage that trains all of a language model; nothing is downloaded."""
    name = next(name for name in PUBLISHED if name.endswith(f"/{model}"))
    given = dict(PUBLISHED[name])
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device("meta"):
        shapes = {n: weight.shape for n, weight in AutoModelForCausalLM.from_config(config).named_parameters()}
    kinds = ("master", "exp_avg", "exp_avg_sq")
    return State(1, {f"lm.{n}/{kind}": torch.randn(shape) for n, shape in shapes.items() for kind in kinds})


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="SmolLM2-135M-Instruct,SmolLM2-360M-Instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; else where temporary files lie")
    given = parser.parse_args()
    for model in given.models.split(","):
        state, took = state_of(model), []
        size = sum(tensor.numel() for tensor in state.tensors.values())
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for _ in range(given.repeats):
                start, used = time.monotonic(), time.process_time()
                save_state(Path(folder), state, keep=1)
                took.append(f"{time.monotonic() - start:.1f} s ({time.process_time() - used:.1f} CPU s)")
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{model}: {size / 3e6:,.1f}M weights, {size * 4 / 1e9:.2f} GB: {', '.join(took)}; {load}", flush=True)
        del state


if __name__ == "__main__":
    main()
