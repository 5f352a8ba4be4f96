"""EfficientNet-Lite0 as a registered vision tower: three feature maps of one picture in 7 x 7 tokens.

Sources: EfficientNet, arXiv 1905.11946; the Lite variant (ReLU6, no squeeze-and-excitation). Batch norm is folded into
the convolutions, which the tower may do since it is frozen in every stage. Its checkpoints need `import lineside`.

Pictures are enlarged to 448 pixels: a part of 20 pixels in a picture of 224 is smaller than anything ImageNet taught
the deep layers to tell apart (LOG.md has what that is worth). The number of tokens stays that of 224.

Shapes: B pictures, N = 49 tokens, D = 4 * (112 + 192 + 320) numbers a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

# (repeats, kernel, stride, expansion, channels out) of the seven stages
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAPS = (4, 5, 6)  # stages whose maps are seen, each at 14 x 14 places
FOLD = 2  # side of the square of places that one token holds side by side
SIDE = 448  # of the picture, in pixels


class EfficientNetLiteConfig(PretrainedConfig):
    """Geometry of the tower. `hidden_size` is D, `patch_size` the pixels a token spans."""

    model_type = "lineside_efficientnet_lite"

    def __init__(self, image_size: int = SIDE, patch_size: int = 64, hidden_size: int = 0, **kwargs: Any) -> None:
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size or sum(STAGES[stage][4] for stage in TAPS) * FOLD**2
        super().__init__(**kwargs)


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the odd pixel goes to the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[-2:]]
        if any(total % 2 for total in totals):  # the convolution itself pads only alike on both sides
            height, width = totals
            input = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
            totals = [0, 0]
        padding = (totals[0] // 2, totals[1] // 2)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, groups=self.groups)


class _Block(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise kxk, project 1x1, with a residual where the shape allows."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = _SameConv(channels_in, inner, 1) if expansion > 1 else None
        self.depthwise = _SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _SameConv(inner, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x), inplace=True) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):
    """Pixels (B, 3, S, S) in (x - 127) / 128 -> tokens (B, 49, D), standardised by constants fixed at assembly."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _SameConv(3, 32, 3, stride=2)
        blocks, channels = [], 32
        self._taps: set[int] = set()  # indices of the last blocks of the stages seen
        for stage, (repeats, kernel, stride, expansion, out) in enumerate(STAGES):
            for repeat in range(repeats):
                blocks.append(_Block(kernel, stride if repeat == 0 else 1, expansion, channels, out))
                channels = out
            if stage in TAPS:
                self._taps.add(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.feature_mean = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        self.feature_std = nn.Parameter(torch.ones(config.hidden_size), requires_grad=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        x = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                maps.append(x)
        places = maps[-1].shape[-2:]
        seen = torch.cat([F.adaptive_avg_pool2d(m, places) for m in maps], dim=1)  # (B, C, 14, 14)
        tokens = F.pixel_unshuffle(seen, FOLD).flatten(2).transpose(1, 2)  # (B, 49, C * 4)
        hidden = (tokens - self.feature_mean) / self.feature_std
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))  # type: ignore[arg-type] # a plain tuple of tensors

    @torch.no_grad()
    def load_imagenet(self, state: Mapping[str, Tensor], eps: float = 1e-3) -> None:
        """Fold the published weights (convolution + batch norm) into this module's convolutions."""

        def fold(conv: _SameConv, weight: str, norm: str) -> None:
            scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + eps)
            conv.weight.copy_(state[f"{weight}.weight"] * scale[:, None, None, None])
            assert conv.bias is not None
            conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

        fold(self.stem, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            name = f"_blocks.{index}"
            if block.expand is not None:
                fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
            fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
            fold(block.project, f"{name}._project_conv", f"{name}._bn2")


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
