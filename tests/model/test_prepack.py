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
