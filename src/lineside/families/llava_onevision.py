"""LLaVA-OneVision (arXiv 2408.03326): SigLIP tower, two-layer MLP, Qwen2; pictures in tiles of the best resolution.

The whole picture comes first, then the tiles as one grid: without the padding, scaled down if it is large, and with a
newline token after each row. Every picture is cut into tiles; the family's own processor does so only for a picture
that is alone. The newline's embedding stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionModel, PreTrainedModel
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from lineside.families.base import Tiled, size_of
from lineside.types import Image


class LlavaOneVision(Tiled):
    """See Family for the methods."""

    kind, tower = "llava_onevision", "model.vision_tower"
    projector, language_model = ("model.multi_modal_projector",), "model.language_model"

    def shape(self, image: Image) -> tuple[int, int]:
        """Height and width in pixels."""
        return size_of(image) or (0, 0)

    def placeholder(self, image: Image) -> tuple[int, ...]:
        """An image token a place."""
        return (self.config.image_token_id,) * self._count(*self.shape(image))

    @functools.cached_property
    def _count(self) -> Callable[[int, int], int]:
        return functools.cache(self._places)  # its own: what decorates a method keeps every family for ever

    def _places(self, height: int, width: int) -> int:
        """Places of a picture, as `_packed` has them; those of the largest if the size is 0."""
        vision, pinpoints = self.config.vision_config, self.config.image_grid_pinpoints
        side = vision.image_size // vision.patch_size
        if not height:
            # A grid of more than 1.21 times `anyres_max_N` tiles is scaled down to N.
            limit = int(1.21 * int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))) + 1
            grids = [(h // vision.image_size, w // vision.image_size) for h, w in pinpoints]
            return side**2 + max(min(rows * columns, limit) * side**2 + rows * side for rows, columns in grids)
        tiles = image_size_to_num_patches((height, width), pinpoints, vision.image_size)
        blank, newline = torch.empty(tiles, side**2, 1, device="meta"), torch.empty(1, device="meta")
        (packed,) = self._packed(SimpleNamespace(config=self.config, image_newline=newline), [blank], [(height, width)])
        return len(packed)

    def _packed(self, inner: Any, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(n, r, D) of each picture -> (P, D), by transformers' own function."""
        aspect = self.config.vision_aspect_ratio
        return LlavaOnevisionModel.pack_image_features(inner, features, sizes, inner.image_newline, aspect)[0]  # pyright: ignore

    @property
    def width(self) -> int:
        """See Family."""
        layers = self.config.vision_feature_layer
        return self.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    def encode(self, model: PreTrainedModel, tiles: Tensor) -> Tensor:
        """Hidden states of a layer, or of several side by side."""
        layers = self.config.vision_feature_layer
        hidden = model.get_submodule(self.tower)(tiles, output_hidden_states=True).hidden_states
        chosen = torch.cat([hidden[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen

    def embed(
        self, model: PreTrainedModel, features: Sequence[Tensor], shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The MLP, then the grids."""
        vision = self.config.vision_config
        (projected,) = super().embed(model, features, shapes)
        tiles = projected.unflatten(0, (-1, (vision.image_size // vision.patch_size) ** 2))
        pictures = tiles.split([len(one) // tiles.shape[1] for one in features])
        return [torch.cat(self._packed(model.get_submodule("model"), pictures, shapes))]

    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """See Family."""
        return [*super().fingerprint(dtype), self.config.vision_feature_layer]
