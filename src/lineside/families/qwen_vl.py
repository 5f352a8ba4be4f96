"""Qwen2.5-VL (arXiv 2502.13923), Qwen3-VL (arXiv 2511.21631): pictures of any size, positions in three dimensions.

A picture is resized to a multiple of a block of patches; each block is an image token. The tower's own mergers map
blocks to the LM's width, so they are the projector, and features are what they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lineside.errors import LinesideError
from lineside.families.base import Family, Planned, size_of
from lineside.runtime import upload
from lineside.types import Image


class Qwen25VL(Family):
    """See Family for the methods."""

    kind, tower = "qwen2_5_vl", "model.visual"
    projector, language_model = ("model.visual.merger",), "model.language_model"
    lms = ("qwen2_5_vl_text",)
    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    resizes = True

    @classmethod
    def planned(cls, config: Any, side: int) -> Planned:
        """A token for each block of patches; a small picture is enlarged to 65,536 pixels."""
        vision = config.vision_config
        across = max(1, round(max(side, 256) / (vision.patch_size * vision.spatial_merge_size)))
        patches = (across * vision.spatial_merge_size) ** 2
        mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        return Planned(across**2, patches, patches * vision.hidden_size * mergers)

    def shape(self, image: Image) -> tuple[int, int]:
        """Rows and columns of blocks. Raises LinesideError for a picture that is far too narrow."""
        processor, size = self.image_processor, size_of(image)
        block, limits = processor.patch_size * processor.merge_size, dict(processor.size)
        if size is None:
            most = limits["longest_edge"] // block**2
            return math.isqrt(most), math.ceil(most / math.isqrt(most))
        try:
            height, width = smart_resize(*size, block, limits["shortest_edge"], limits["longest_edge"])
        except ValueError as error:
            raise LinesideError(f"a picture of {size[1]}x{size[0]} pixels: {error}") from None
        return height // block, width // block

    def placeholder(self, image: Image) -> tuple[int, ...]:
        """An image token a block."""
        config, (rows, columns) = self.config, self.shape(image)
        return (config.vision_start_token_id, *(config.image_token_id,) * (rows * columns), config.vision_end_token_id)

    def positions(self, tokens: Sequence[int], start: int, shapes: Sequence[tuple[int, int]]) -> tuple[list[Any], int]:
        """Time, row and column (mRoPE, arXiv 2409.12191): a picture's blocks have one time; text goes on after the
        larger of its sides."""
        out: list[tuple[int, int, int]] = []
        pictures = iter(shapes)
        while len(out) < len(tokens):
            if tokens[len(out)] == self.config.image_token_id:
                rows, columns = next(pictures)
                out += [(start, start + r, start + c) for r in range(rows) for c in range(columns)]
                start += max(rows, columns)
            else:
                out.append((start, start, start))
                start += 1
        return out, start

    @property
    def width(self) -> int:
        """See Family. A block's patches side by side, once for each merger."""
        vision = self.config.vision_config
        return vision.hidden_size * vision.spatial_merge_size**2 * self.mergers

    @property
    def mergers(self) -> int:
        """Number of mergers, each of which takes the patches after another layer."""
        return 1

    def pixels(self, pictures: Sequence[PILImage.Image]) -> tuple[Tensor, Tensor]:
        """(patches, values) float32 of all pictures, and (I, 3) the grid of each, by transformers' own processor."""
        made = self.image_processor(images=list(pictures), return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def features(self, model: PreTrainedModel, pixels: tuple[Tensor, Tensor]) -> list[Tensor]:
        """What the mergers take, in the order in which the tower gives what they make. They compute nothing here: their
        weights may be shared out over ranks."""
        patches, grid = pixels
        visual, mergers = model.get_submodule(self.tower), self._mergers(model)
        weight, one = next(visual.parameters()), self.width // self.mergers
        for merger in mergers:
            vars(merger)["forward"] = lambda hidden: hidden.reshape(-1, one)
        try:
            out = visual(upload(patches, weight.device).to(weight.dtype), grid_thw=upload(grid, weight.device))
        finally:
            for merger in mergers:
                del vars(merger)["forward"]
        together = torch.cat([out.pooler_output, *(getattr(out, "deepstack_features", None) or ())], dim=-1)
        blocks = grid.prod(-1) // self.config.vision_config.spatial_merge_size**2
        return list(together.split(blocks.tolist()))

    def _mergers(self, model: PreTrainedModel) -> list[nn.Module]:
        return [model.get_submodule(self.projector[0])]

    def embed(
        self, model: PreTrainedModel, features: Sequence[Tensor], shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The mergers; all but the first give what is added after the first layers."""
        parts = torch.cat(tuple(features)).chunk(self.mergers, dim=-1)
        patch = self.config.vision_config.hidden_size
        return [merger(part.reshape(-1, patch)) for merger, part in zip(self._mergers(model), parts)]


class Qwen3VL(Qwen25VL):
    """With DeepStack (arXiv 2406.04334): more mergers, of earlier layers of the tower."""

    kind = "qwen3_vl"
    projector = ("model.visual.merger", "model.visual.deepstack_merger_list")
    lms = ("qwen3_vl_text",)

    @property
    def mergers(self) -> int:
        """See Qwen25VL."""
        return 1 + len(self.config.vision_config.deepstack_visual_indexes)

    def _mergers(self, model: PreTrainedModel) -> list[nn.Module]:
        more: Any = model.get_submodule(self.projector[1])
        return [*super()._mergers(model), *more]

    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """See Family."""
        return [*super().fingerprint(dtype), list(self.config.vision_config.deepstack_visual_indexes)]
