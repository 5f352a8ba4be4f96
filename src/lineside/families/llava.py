"""LLaVA: SigLIP or CLIP tower at one of its layers, two-layer GELU projector, decoder LM (arXiv 2304.08485).

Every picture is resized to the same square and takes the same number of tokens.

Shapes: B pictures, S side of the square, P tokens a picture, D_e width of the tower."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from lineside.families.base import Family
from lineside.runtime import upload
from lineside.types import Image

Strategy = Literal["default", "full"]  # which tokens of the tower are used: all but the class token, or all
SETTINGS = ("size", "resample", "image_mean", "image_std", "do_center_crop", "crop_size")  # of the preprocessing


class Llava(Family):
    """See Family for the methods."""

    kind, tower = "llava", "model.vision_tower"
    projector, language_model = ("model.multi_modal_projector",), "model.language_model"

    def save(self, model: PreTrainedModel, folder: Path, chat_template: str) -> None:
        """A LLaVA folder that transformers and vLLM load."""
        # Use the weight names of published LLaVA folders. For a CLIP or SigLIP tower that was assembled here,
        # transformers would leave out the prefix `vision_model.`, which vLLM and llama.cpp expect.
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)  # pyright: ignore
        model.save_pretrained(folder)
        vision = self.config.vision_config
        LlavaProcessor(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_token=self.image_token,
            num_additional_image_tokens=1 if vision.model_type == "clip_vision_model" else 0,
            chat_template=chat_template,
        ).save_pretrained(folder)

    def placeholder(self, image: Image) -> tuple[int, ...]:
        """One image token a patch, and one for the class token if the strategy keeps it."""
        return self._placeholder

    @functools.cached_property
    def _placeholder(self) -> tuple[int, ...]:
        vision = self.config.vision_config
        has_class = vision.model_type == "clip_vision_model" and self.config.vision_feature_select_strategy == "full"
        return (self.config.image_token_index,) * ((vision.image_size // vision.patch_size) ** 2 + has_class)

    @property
    def width(self) -> int:
        """See Family."""
        return self.config.vision_config.hidden_size

    def pixels(self, pictures: Sequence[PILImage.Image]) -> Tensor:
        """(B, 3, S, S) float32, resized and normalised as the encoder expects. The memory format is channels last, like
        that of the pictures."""
        processor = self.image_processor
        mean, std = (torch.tensor(getattr(processor, key)).view(3, 1, 1) for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(np.stack([_resized(picture, processor) for picture in pictures]))
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)

    def features(self, model: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
        """Hidden states of the tower at its feature layer, without post-norm."""
        tower = model.get_submodule(self.tower)
        weight = next(tower.parameters())
        out = tower(upload(pixels, weight.device).to(weight.dtype), output_hidden_states=True)
        hidden = out.hidden_states[self.config.vision_feature_layer]
        return list(hidden[:, 1:] if self.config.vision_feature_select_strategy == "default" else hidden)

    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """Feature layer, strategy, number format, and the settings of the image processor."""
        chosen = [self.config.vision_feature_layer, self.config.vision_feature_select_strategy, str(dtype)]
        return chosen + [str(getattr(self.image_processor, key, None)) for key in SETTINGS]


def new_config(
    vision: Any, text: PretrainedConfig, *, image_token_id: int, feature_layer: int, strategy: Strategy
) -> LlavaConfig:
    """A LLaVA configuration. It names the architecture of the LM, which vLLM and llama.cpp's converters need."""
    if not text.architectures:
        text.architectures = [
            {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[text.model_type]
        ]
    side = vision.image_size // vision.patch_size
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=side * side,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _resized(picture: PILImage.Image, processor: Any) -> np.ndarray:
    """RGB picture -> (S, S, 3) bytes by the settings of a transformers image processor (resize, crop)."""
    size = dict(processor.size)
    resample = PILImage.Resampling(int(getattr(processor, "resample", 3)))
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(picture.size)
        target = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    else:
        target = (int(size["width"]), int(size["height"]))
    if picture.size != target:
        picture = picture.resize(target, resample)
    if getattr(processor, "do_center_crop", False):
        crop = dict(processor.crop_size)
        left, top = (picture.width - crop["width"]) // 2, (picture.height - crop["height"]) // 2
        picture = picture.crop((left, top, left + crop["width"], top + crop["height"]))
    return np.asarray(picture)
