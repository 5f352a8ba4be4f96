"""Linear layers whose weights are packed once for many decoding steps on a CPU.

To multiply a few rows by a bf16 matrix, the processor first rearranges the matrix into blocks. That takes a third to a
half of the time, and a plain linear layer repeats it at every decoding step. With weights packed beforehand, 32 rows
run 1.3 to 2 times as fast (docs/experiments.md). Layers with the same input (query, key and value; gate and up) are
packed as one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

ROWS = 32  # the layout is optimal for this many rows; it works for any number and gives each row the same result


class PackedLinear(NamedTuple):
    """A linear layer with a packed weight. In float32, or without oneDNN, the weight is an ordinary tensor."""

    weight: Tensor
    bias: Tensor | None
    out_features: int


def pack_linears(linears: list[nn.Linear]) -> PackedLinear:
    """Linear layers with the same input as a single one, whose output is theirs, concatenated."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias, out = torch.cat(biases) if biases else None, weight.shape[0]
    if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return PackedLinear(weight, bias, out)


def product(input: Tensor, packed: PackedLinear) -> Tensor:
    """(..., D) -> (..., out_features). Registered as a torch operator, so that torch.compile does not trace into it."""
    return torch.ops.lineside.product(input, packed.weight, packed.bias, packed.out_features)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return nn.functional.linear(input, weight, bias)


_OPERATORS = torch.library.Library("lineside", "DEF")  # a module variable: its operators exist as long as it does
_OPERATORS.define("product(Tensor input, Tensor weight, Tensor? bias, SymInt out_features) -> Tensor")
_OPERATORS.impl("product", _product, "CompositeExplicitAutograd")
torch.library.register_fake(
    "lineside::product", lambda x, weight, bias, out: x.new_empty(*x.shape[:-1], out), lib=_OPERATORS
)
