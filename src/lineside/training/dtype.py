"""The number format to compute in: bf16 if the device of the run multiplies it faster, else fp32."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Literal

import torch

from lineside.runtime import multiplies_bf16


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The number format for a name that flags and recipes use: fp32 or bf16. None for None."""
    return None if name is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


@functools.cache
def compute_dtype(choice: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """The number format for a recipe's `dtype`. `auto` is bf16 on a GPU that supports it, and on a CPU whose matrix
    products are at least 1.3 times as fast in it. That is measured once in a process."""
    if choice != "auto":
        return torch.float32 if choice == "fp32" else torch.bfloat16
    if device.type != "cpu":
        return torch.bfloat16 if multiplies_bf16(device) else torch.float32
    narrow, wide = _seconds((torch.bfloat16, torch.float32))
    return torch.bfloat16 if narrow * 1.3 < wide else torch.float32


def _seconds(dtypes: Sequence[torch.dtype], size: int = 512, repeats: int = 40) -> list[float]:
    """Seconds of a matrix product in each format: the best of many, measured in turns, so that other load on the
    machine affects both alike."""
    best = [float("inf")] * len(dtypes)
    pairs = [(torch.randn(4 * size, size).to(dtype), torch.randn(size, size).to(dtype)) for dtype in dtypes]
    for _ in range(repeats):
        for place, (a, b) in enumerate(pairs):
            start = time.perf_counter()
            torch.mm(a, b)
            best[place] = min(best[place], time.perf_counter() - start)
    return best
