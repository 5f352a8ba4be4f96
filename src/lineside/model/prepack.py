"""Weights laid out once for a whole decode, on a CPU.

A product of few rows with a bf16 matrix spends a third to a half of its time bringing the matrix into the blocks that
the processor multiplies; every decoding step does so anew. Laid out beforehand, 32 rows run 1.3 to 2 times as fast
(docs/experiments.md). Maps that take the same input (query, key and value; gate and up) are laid out as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROWS = 8  # below, the memory's bandwidth is the limit, and laying out costs more than it saves
STEPS = 8
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # as Llama and its kin name them


class Packed(NamedTuple):
    """A linear map whose weight is laid out for products of few rows, or as it was where the processor has no bf16."""

    weight: Tensor
    bias: Tensor | None
    out_features: int


def laid_out(linears: list[nn.Linear], rows: int) -> Packed:
    """Linear maps of one input as a single one, for products of about `rows` rows."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias, out = torch.cat(biases) if biases else None, weight.shape[0]
    if weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return Packed(weight, bias, out)


def product(input: Tensor, packed: Packed) -> Tensor:
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


def can_prepack(model: nn.Module, rows: int, steps: int) -> bool:
    """Whether it pays: bf16 weights on a CPU with oneDNN, enough rows and steps, nothing to differentiate."""
    weight = next(model.parameters())
    fits = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and rows >= ROWS and steps >= STEPS
    return fits and torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()


@contextmanager
def prepacked(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Within it, the linear maps of `model` use laid-out copies of their weights, which must not change meanwhile."""
    changed: list[nn.Linear] = []
    try:
        for together in _siblings(model) if can_prepack(model, rows, steps) else []:
            packed = laid_out(together, rows)
            multiply = partial(product, packed=packed)
            shared = _Shared(multiply, [linear.out_features for linear in together])
            for place, linear in enumerate(together):
                linear.forward = multiply if len(together) == 1 else partial(shared, place)
                changed.append(linear)
        yield
    finally:
        for linear in changed:
            linear.__dict__.pop("forward", None)


def _siblings(model: nn.Module) -> Iterator[list[nn.Linear]]:
    """The linear maps of a model, those that take the same input together, in the order of their calls."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        for names in TOGETHER:
            maps = [getattr(module, name, None) for name in names]
            found = [linear for linear in maps if type(linear) is nn.Linear]
            if len(found) == len(names) and len({linear.bias is None for linear in found}) == 1:
                seen.update(found)
                yield found
    yield from ([m] for m in model.modules() if type(m) is nn.Linear and m not in seen)


class _Shared:
    """One product for several maps: made when the first is called, handed out in parts to the others."""

    def __init__(self, product: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
        self._product, self._sizes = product, sizes
        self._input: Tensor | None = None  # held, so that no other tensor can be taken for it
        self._parts: tuple[Tensor, ...] = ()

    def __call__(self, place: int, input: Tensor) -> Tensor:  # as nn.Linear names it
        if input is not self._input:
            self._input, self._parts = input, self._product(input).split(self._sizes, dim=-1)
        return self._parts[place]
