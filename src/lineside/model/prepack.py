"""Weights laid out once for a whole decode, on a CPU.

A product of few rows with a bf16 matrix spends a third to a half of its time bringing the matrix into the blocks that
the processor multiplies; every decoding step does so anew. Laid out beforehand, 32 rows run 1.3 to 2 times as fast
(LOG.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

ROWS = 8  # below, the memory's bandwidth is the limit, and laying out costs more than it saves
STEPS = 8


def can_prepack(model: nn.Module, rows: int, steps: int) -> bool:
    """Whether it pays: bf16 weights on a CPU with oneDNN, enough rows and steps, nothing to differentiate."""
    weight = next(model.parameters())
    fits = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and rows >= ROWS and steps >= STEPS
    return fits and torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()


@contextmanager
def prepacked(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Within it, the linear maps of `model` use laid-out copies of their weights, which must not change meanwhile."""
    linears = [m for m in model.modules() if type(m) is nn.Linear] if can_prepack(model, rows, steps) else []
    try:
        for linear in linears:
            packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
            linear.forward = partial(_product, packed, linear.bias)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)


def _product(packed: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:  # as nn.Linear names it
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
