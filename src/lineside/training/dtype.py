"""Which number format to compute in: bf16 where this machine multiplies it faster, fp32 otherwise."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Literal

import torch


@functools.cache
def compute_dtype(choice: Literal["auto", "fp32", "bf16"]) -> torch.dtype:
    """`auto` takes bf16 on a GPU that has it, and on a CPU where a matrix product in it is 1.3 times as fast, which
    is measured once a process."""
    if choice != "auto":
        return torch.float32 if choice == "fp32" else torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    narrow, wide = _seconds((torch.bfloat16, torch.float32))
    return torch.bfloat16 if narrow * 1.3 < wide else torch.float32


def _seconds(dtypes: Sequence[torch.dtype], size: int = 512, repeats: int = 40) -> list[float]:
    """Of a product in each format: the best of many by turns, so that a busy neighbour does not decide."""
    best = [float("inf")] * len(dtypes)
    pairs = [(torch.randn(4 * size, size).to(dtype), torch.randn(size, size).to(dtype)) for dtype in dtypes]
    for _ in range(repeats):
        for place, (a, b) in enumerate(pairs):
            start = time.perf_counter()
            torch.mm(a, b)
            best[place] = min(best[place], time.perf_counter() - start)
    return best
