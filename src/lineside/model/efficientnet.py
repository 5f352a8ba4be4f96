"""EfficientNet-Lite0 as a registered vision tower: three feature maps of a picture, at one scale or several, as tokens.

Sources: EfficientNet, arXiv 1905.11946; the Lite variant (ReLU6, no squeeze-and-excitation); several scales
concatenated in the same tokens, S2, arXiv 2403.13043. Batch norm is folded into the convolutions; this is possible
because no stage trains the tower. Its checkpoints need `import lineside`.

Pictures are enlarged to 448 pixels: in a picture of 224, a part of 20 pixels is smaller than anything the deep layers
learnt to recognise on ImageNet. Large objects do not gain from that, but they do gain from both sizes together
(docs/experiments.md has the numbers). The number of tokens is the same as for 224.

Shapes: B pictures, N = GRID ** 2 = 49 tokens, D = (112 + 192 + 320) * sum((scale / 224) ** 2) numbers a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
TAPS = (4, 5, 6)  # stages whose feature maps are used, each pooled to the resolution of the last one
STRIDE = 32  # pixels of the picture for one position of these maps
GRID = 7  # tokens a side; a token concatenates all positions of the map within it
SIDE = 448  # side of the picture in pixels


class EfficientNetLiteConfig(PretrainedConfig):
    """Geometry of the tower. `scales` are the sides, in pixels, at which a picture is seen. The input has the first
    one, and the others must divide it. From these follow `hidden_size`, which is D, and `patch_size`, the pixels of a
    token's side.

    Raises ValueError for a scale that is no multiple of 224 or does not divide the first one."""

    model_type = "lineside_efficientnet_lite"

    def __init__(self, scales: Sequence[int] = (SIDE,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not scales or any(scale % (STRIDE * GRID) or scales[0] % scale for scale in scales):
            raise ValueError(f"scales {list(scales)}: expected multiples of {STRIDE * GRID} that divide the first one")
        self.scales = list(scales)
        self.image_size = self.scales[0]
        self.patch_size = self.image_size // GRID
        places = sum((scale // (STRIDE * GRID)) ** 2 for scale in self.scales)
        self.hidden_size = sum(STAGES[stage][4] for stage in TAPS) * places


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: if the padding is odd, right and bottom get one pixel more."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[-2:]]
        if any(total % 2 for total in totals):  # conv2d itself can only pad both sides by the same amount
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
    """Pixels (B, 3, S, S), as (x - 127) / 128 -> tokens (B, N, D), standardised with constants that `calibrate`
    sets."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _SameConv(3, 32, 3, stride=2)
        blocks, channels = [], 32
        self._taps: set[int] = set()  # index of the last block of each stage in TAPS
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
        """Pixels (B, 3, S, S) -> features (B, P, D), standardised by channel with `feature_mean` and `feature_std`."""
        x = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        side = self.config.image_size
        seen = [self._see(x if scale == side else F.avg_pool2d(x, side // scale)) for scale in self.config.scales]
        hidden = (torch.cat(seen, dim=-1) - self.feature_mean) / self.feature_std
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))  # type: ignore[arg-type] # a plain tuple of tensors

    def _see(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) -> (B, N, C * (s / 224) ** 2): the maps at one scale, all positions of a token concatenated."""
        x = F.relu6(self.stem(x), inplace=True)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                maps.append(x)
        places = maps[-1].shape[-1]
        seen = torch.cat([F.adaptive_avg_pool2d(m, places) for m in maps], dim=1)  # (B, C, places, places)
        return F.pixel_unshuffle(seen, places // GRID).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def load_imagenet(self, state: Mapping[str, Tensor], eps: float = 1e-3) -> None:
        """Load the published weights, with each batch norm folded into its convolution."""

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
