"""Linear layers laid out once for many decoding steps on a CPU.

To multiply a few rows by a bf16 matrix, the processor first rearranges the matrix into blocks. That takes a third to a
half of the time, and a plain linear layer repeats it at every decoding step. With weights laid out beforehand, 32 rows
run 1.3 to 2 times as fast (docs/experiments.md). Layers with the same input (query, key and value; gate and up) are
laid out as one. With int8 weights a step reads half as many bytes once more (`Int8Linear`, and products.h)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lineside.backends import cpu_ops
from lineside.backends.adapters import bias_of, weight_of
from lineside.runtime import CPU, has_bf16

ROWS = 32  # the layout is optimal for this many rows; it works for any number and gives each row the same result
BLOCK, GROUP = 64, 4  # output channels and inputs that products.h stores together
WIDEST = 1 << 16  # inputs of an int8 layer: sums of more could exceed 32 bits


class PackedLinear(NamedTuple):
    """A linear layer in the number format of the computation. In float32 the weight is (out / 64, in, 64), rounded up.
    In bfloat16 it is (out, in), laid out by oneDNN (`packed`), or where that cannot be, transposed, (in, out)."""

    weight: Tensor
    bias: Tensor | None
    packed: bool
    inputs: int
    outputs: int


class Int8Linear(NamedTuple):
    """A linear layer with int8 weights (out / 64, in / 4, 64, 4), rounded up, the scale of each output channel, the sum
    of its weights, and a float32 bias."""

    weight: Tensor
    scale: Tensor
    sums: Tensor
    bias: Tensor | None
    inputs: int
    outputs: int


def pack_linears(linears: list[nn.Linear], dtype: torch.dtype) -> PackedLinear:
    """Linear layers with the same input as a single one in this number format, whose output is theirs, concatenated."""
    weight, bias = _joined(linears, dtype)
    outputs, inputs = weight.shape
    if weight.dtype == torch.float32:
        blocks = F.pad(weight, (0, 0, 0, -outputs % BLOCK)).unflatten(0, (-1, BLOCK))
        return PackedLinear(blocks.transpose(1, 2).contiguous(), bias, False, inputs, outputs)
    packed = has_bf16(CPU)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if packed else weight.t()
    return PackedLinear(laid_out, bias, packed, inputs, outputs)


def quantise_linears(linears: list[nn.Linear]) -> Int8Linear:
    """The same with int8 weights. Raises ValueError for more than 65,536 inputs."""
    weight, bias = _joined(linears, torch.float32)
    outputs, inputs = weight.shape
    if inputs > WIDEST:
        raise ValueError(f"a layer with {inputs} inputs: int8 sums hold {WIDEST}")
    laid_out = torch.empty(-(-outputs // BLOCK), -(-inputs // GROUP), BLOCK, GROUP, dtype=torch.int8)
    scale, sums = torch.empty(outputs), torch.empty(outputs, dtype=torch.int32)
    cpu_ops.lay_out_int8(weight.contiguous(), laid_out, scale, sums)
    return Int8Linear(laid_out, scale, sums, bias, inputs, outputs)


def _joined(linears: list[nn.Linear], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([weight_of(linear).to(dtype) for linear in linears])
    biases = [bias.to(dtype) for linear in linears if (bias := bias_of(linear)) is not None]
    return weight, torch.cat(biases) if biases else None
