"""InternVL3 and 3.5 in transformers' form (arXiv 2504.10479): InternViT, pixel shuffle, an MLP, Qwen2 or Qwen3.

A picture is cut into tiles in the grid of the closest aspect ratio; the whole picture, as one more tile, comes last."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineside.families.base import Tiled, size_of
from lineside.types import Image


class InternVL(Tiled):
    """See Family for the methods."""

    kind, tower = "internvl", "model.vision_tower"
    projector, language_model = ("model.multi_modal_projector",), "model.language_model"
    marker = "<IMG_CONTEXT>"
    options = {"crop_to_patches": True}  # noqa: RUF012 - see Tiled

    def placeholder(self, image: Image) -> tuple[int, ...]:
        """All tiles in one run of image tokens."""
        size, processor = size_of(image), self.image_processor
        most = processor.max_patches + (processor.max_patches > 1)
        return self._placeholder(processor.get_number_of_image_patches(*size, self.options) if size else most)

    @functools.cached_property
    def _placeholder(self) -> Callable[[int], tuple[int, ...]]:
        return functools.cache(self._tokens)  # its own: what decorates a method keeps every family for ever

    def _tokens(self, tiles: int) -> tuple[int, ...]:
        side = self._patches * self.config.downsample_ratio
        shown = f"<img>{self.image_token * (tiles * int(side) ** 2)}</img>"
        return tuple(self.tokenizer.encode(shown, add_special_tokens=False))

    @property
    def _patches(self) -> int:
        """Patches on a side of a tile."""
        vision = self.config.vision_config
        return vision.image_size[0] // vision.patch_size[0]

    @property
    def width(self) -> int:
        """See Family."""
        return self.config.vision_config.hidden_size * int(1 / self.config.downsample_ratio) ** 2

    def encode(self, model: PreTrainedModel, tiles: Tensor) -> Tensor:
        """Hidden states of a layer, each square of patches as one row."""
        layer, inner = self.config.vision_feature_layer, model.get_submodule("model")
        out = model.get_submodule(self.tower)(pixel_values=tiles, output_hidden_states=layer != -1)
        hidden = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        hidden = hidden[:, 1:] if self.config.vision_feature_select_strategy == "default" else hidden
        squares = hidden.unflatten(1, (self._patches, self._patches))
        shuffled: Any = inner
        return shuffled.pixel_shuffle(squares, scale_factor=self.config.downsample_ratio).flatten(1, 2)

    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """See Family."""
        return [*super().fingerprint(dtype), self.config.vision_feature_layer]
