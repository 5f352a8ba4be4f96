"""Prepacked products are the plain ones, and nothing of them is left behind."""

import pytest
import torch
from torch import nn

from lineside.model.prepack import can_prepack, prepacked

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no bf16 products",
)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_product_for_any_number_of_rows(bias: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96, bias=bias), nn.Linear(96, 16, bias=bias)).bfloat16()
    for rows in (32, 7, 1):
        x = torch.randn(1, rows, 48).bfloat16()
        with torch.no_grad():
            plain = model(x)
            with prepacked(model, 32, 32):
                assert "forward" in model[0].__dict__
                torch.testing.assert_close(model(x), plain, atol=0.02, rtol=0.02)
    assert "forward" not in model[0].__dict__


class Layer(nn.Module):
    """Query, key and value as transformers names them; the key may take another input (as across models)."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        for name, width in (("q_proj", 64), ("k_proj", 16), ("v_proj", 16)):
            self.add_module(name, nn.Linear(48, width, bias=bias))
        self.o_proj = nn.Linear(64, 48, bias=bias)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        q, k = self.q_proj(x), self.k_proj(x if other is None else other)
        return q, k, self.v_proj(x), self.o_proj(q)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_maps_of_one_input_are_one_product(bias: bool):
    torch.manual_seed(1)
    layer = Layer(bias).bfloat16()
    inputs = [torch.randn(1, 32, 48).bfloat16() for _ in range(3)]
    with torch.no_grad():
        plain = [layer(x) for x in inputs]
        crossed = layer(inputs[0], inputs[1])
        with prepacked(layer, 32, 32):
            for x, expected in zip(inputs, plain):
                for got, want in zip(layer(x), expected):
                    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)
            for got, want in zip(layer(inputs[0], inputs[1]), crossed):
                torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)
    assert not any("forward" in linear.__dict__ for linear in layer.children())


@needs_onednn
def test_weights_are_restored_when_decoding_fails():
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    with torch.no_grad(), pytest.raises(RuntimeError, match="torn"), prepacked(model, 32, 32):
        raise RuntimeError("torn")
    assert "forward" not in model[0].__dict__


def test_only_where_it_pays_and_nothing_is_differentiated():
    model = nn.Linear(8, 8).bfloat16()
    assert not can_prepack(model, 32, 32)  # gradients are on
    with torch.no_grad():
        assert not can_prepack(model, 1, 32)
        assert not can_prepack(model, 32, 1)
        assert not can_prepack(model.float(), 32, 32)
