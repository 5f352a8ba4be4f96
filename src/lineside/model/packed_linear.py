"""Weights laid out once for a whole decode, on a CPU.

A product of few rows with a bf16 matrix spends a third to a half of its time bringing the matrix into the blocks that
the processor multiplies; every decoding step does so anew. Laid out beforehand, 32 rows run 1.3 to 2 times as fast
(docs/experiments.md). Maps that take the same input (query, key and value; gate and up) are laid out as one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

ROWS = 32  # that a layout is made for; a product of any number of rows takes it, and gives each row the same numbers


class PackedLinear(NamedTuple):
    """A linear map whose weight is laid out for products of few rows, or as it was where the processor has no bf16."""

    weight: Tensor
    bias: Tensor | None
    out_features: int


def pack_linears(linears: list[nn.Linear]) -> PackedLinear:
    """Linear maps of one input as a single one, for products of few rows."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias, out = torch.cat(biases) if biases else None, weight.shape[0]
    if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return PackedLinear(weight, bias, out)


def product(input: Tensor, packed: PackedLinear) -> Tensor:
    """(..., D) -> (..., out_features). An operator of its own, so that compiled code calls it as it is."""
    return torch.ops.lineside.product(input, packed.weight, packed.bias, packed.out_features)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return nn.functional.linear(input, weight, bias)


_OPERATORS = torch.library.Library("lineside", "DEF")  # as long as it lives, so do its operators
_OPERATORS.define("product(Tensor input, Tensor weight, Tensor? bias, SymInt out_features) -> Tensor")
_OPERATORS.impl("product", _product, "CompositeExplicitAutograd")
torch.library.register_fake(
    "lineside::product", lambda x, weight, bias, out: x.new_empty(*x.shape[:-1], out), lib=_OPERATORS
)
