"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): SigLIP tower, pixel shuffle, one linear map, a Llama.

A picture is enlarged to a multiple of the tile's side and cut into rows and columns of tiles; the whole picture, as one
more tile, comes last. Each tile has its name before it and the same number of image tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from lineside.families.base import Planned, Tiled, size_of
from lineside.types import Image

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


class Idefics3(Tiled):
    """See Family for the methods."""

    kind, tower = "idefics3", "model.vision_model"
    projector, language_model = ("model.connector.modality_projection",), "model.text_model"

    @classmethod
    def planned(cls, config: Any, side: int) -> Planned:
        """A picture is enlarged to four tiles a side; the whole picture is one more tile."""
        vision = config.vision_config
        patches = 17 * (vision.image_size // vision.patch_size) ** 2
        return Planned(patches // config.scale_factor**2, patches, patches * vision.hidden_size)

    def placeholder(self, image: Image) -> tuple[int, ...]:
        """Rows of tiles, then the whole picture; a picture that fits into one tile has no rows."""
        return self._placeholder(*self._grid(size_of(image)))

    def _grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of tiles of a picture of this (height, width)."""
        processor = self.image_processor
        side, longest = (int(dict(value)["longest_edge"]) for value in (processor.max_image_size, processor.size))
        if not processor.do_image_splitting:
            return 0, 0
        if size is None:
            return math.ceil(longest / side), math.ceil(longest / side)
        sized = np.broadcast_to(np.uint8(0), (3, *size))  # only its shape is looked at
        height, width = get_resize_output_image_size(sized, longest) if processor.do_resize else size
        # As `resize_for_vision_encoder` does: the longer side is rounded up first, the other follows it.
        if width >= height:
            rounded = math.ceil(width / side) * side
            rows, columns = math.ceil(int(rounded / (width / height)) / side), rounded // side
        else:
            rounded = math.ceil(height / side) * side
            rows, columns = rounded // side, math.ceil(int(rounded * (width / height)) / side)
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)

    @functools.cached_property
    def _placeholder(self) -> Callable[[int, int], tuple[int, ...]]:
        return functools.cache(self._tokens)  # its own: what decorates a method keeps every family for ever

    def _tokens(self, rows: int, columns: int) -> tuple[int, ...]:
        vision = self.config.vision_config
        shown = self.image_token * ((vision.image_size // vision.patch_size) ** 2 // self.config.scale_factor**2)
        text = ""
        for row in range(rows):
            text += "".join(f"{AROUND}<row_{row + 1}_col_{column + 1}>{shown}" for column in range(columns)) + "\n"
        text += ("\n" if rows else "") + f"{AROUND}{WHOLE}{shown}{AROUND}"
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def width(self) -> int:
        """See Family."""
        return self.config.vision_config.hidden_size * self.config.scale_factor**2

    def encode(self, model: PreTrainedModel, tiles: Tensor) -> Tensor:
        """The last hidden states, each square of patches as one row."""
        side = tiles.shape[-1] // self.config.vision_config.patch_size
        mask = torch.ones(len(tiles), side, side, dtype=torch.bool, device=tiles.device)
        hidden = model.get_submodule(self.tower)(pixel_values=tiles, patch_attention_mask=mask).last_hidden_state
        connector: Any = model.get_submodule("model.connector")
        return connector.pixel_shuffle(hidden, self.config.scale_factor)


class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM2, of which pictures are read and no videos."""

    kind = "smolvlm"
