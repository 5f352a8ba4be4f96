"""Which number format to compute in: bf16 where this machine multiplies it faster, fp32 otherwise."""

from __future__ import annotations

import time
from typing import Literal

import torch


def compute_dtype(choice: Literal["auto", "fp32", "bf16"]) -> torch.dtype:
    """`auto` takes bf16 on a GPU that has it, and on a CPU where a matrix product in it is measured 1.3 times as
    fast."""
    if choice != "auto":
        return torch.float32 if choice == "fp32" else torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _seconds(torch.bfloat16) * 1.3 < _seconds(torch.float32) else torch.float32


def _seconds(dtype: torch.dtype, size: int = 512, repeats: int = 7) -> float:
    """Best of a few products, so that a busy neighbour does not decide."""
    a = torch.randn(4 * size, size).to(dtype)
    b = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
