"""Laid-out weights give the plain products, bit for bit, and each row the same numbers beside any others."""

import pytest
import torch
from torch import Tensor, nn

from lineside.backends.packed_linear import PackedLinear, pack_linears
from lineside.runtime import CPU, has_bf16

needs_onednn = pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bf16 products")


def product(x: Tensor, packed: PackedLinear) -> Tensor:
    """As step.cpp has it."""
    if packed.packed:
        return torch.ops.mkldnn._linear_pointwise(x, packed.weight, packed.bias, "none", [], "")
    weight = packed.weight
    if x.dtype == torch.float32:  # in blocks
        weight = weight.transpose(0, 1).flatten(1)[:, : packed.outputs]
    return x @ weight if packed.bias is None else torch.addmm(packed.bias, x, weight)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_row_is_the_same_beside_any_others(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(576, 200, bias=bias).bfloat16()
    packed, x = pack_linears([linear], torch.bfloat16), torch.randn(300, 576).bfloat16()
    whole = product(x, packed)
    assert torch.equal(whole, linear(x))
    for rows in (1, 2, 3, 31, 32, 33, 64):
        assert torch.equal(product(x[:rows], packed), whole[:rows])
        assert torch.equal(product(x[7 : 7 + rows].contiguous(), packed), whole[7 : 7 + rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_maps_of_one_input_are_one_product(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    maps = [nn.Linear(48, width, bias=bias).to(dtype) for width in (64, 16, 16)]
    x = torch.randn(5, 48).to(dtype)
    parts = product(x, pack_linears(maps, dtype)).split([64, 16, 16], dim=-1)
    for got, linear in zip(parts, maps):
        torch.testing.assert_close(got, linear(x), atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0.01)
