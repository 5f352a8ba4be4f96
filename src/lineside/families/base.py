"""What differs between checkpoint families, as one class to derive from.

A family knows pictures, placeholders, positions and masks. It is made of configuration, tokenizer and picture
preprocessing, so `validate` can use one without loading weights; what needs weights gets the model as an argument.

Shapes: T image tokens of all pictures, P of one picture, D_e width of a token's features, D width of the LM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lineside.model.tree import count_up
from lineside.types import Image


class Family(ABC):
    """A family, for one model. The methods with code are right for most families."""

    kind: ClassVar[str]  # `model_type` in config.json
    tower: ClassVar[str]  # path of the encoder in the model; no stage trains it
    projector: ClassVar[str]  # of what maps features to the LM's width; stage 1 trains only this
    language_model: ClassVar[str]  # of the decoder without its head
    resizes: ClassVar[bool] = False  # whether the number of tokens depends on a picture's size in pixels

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        self.config, self.tokenizer, self.image_processor = config, tokenizer, image_processor

    # --- files

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
        """The model of a checkpoint folder, and the names of weights that the folder lacks."""

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path, chat_template: str) -> None:
        """Write the checkpoint in the family's own format, as transformers reads it."""

    # --- text

    @abstractmethod
    def placeholder(self, image: Image) -> tuple[int, ...]:
        """The tokens that stand for a picture in the prompt. An image without bytes stands for the picture that takes
        the most."""

    def shape(self, image: Image) -> tuple[int, int]:
        """Rows and columns of a picture's tokens, where positions depend on them."""
        return (0, 0)

    def positions(self, tokens: Sequence[int], start: int, shapes: Sequence[tuple[int, int]]) -> tuple[list[Any], int]:
        """The positions of a run of tokens of which the first has position `start`, and the position after it: a number
        a token, or a triple (mRoPE). It holds whole placeholders, of pictures with these shapes."""
        return count_up(tokens, start, shapes)

    # --- pictures

    @property
    @abstractmethod
    def width(self) -> int:
        """D_e."""

    @abstractmethod
    def pixels(self, pictures: Sequence[PILImage.Image]) -> Any:
        """RGB pictures as the encoder takes them."""

    @abstractmethod
    def features(self, model: PreTrainedModel, pixels: Any) -> list[Tensor]:
        """(P, D_e) of each picture: what the frozen encoder gives for its image tokens, with P tokens of its own."""

    @abstractmethod
    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """All that features in a number format depend on besides picture and encoder weights: part of the key of the
        feature store."""

    # --- language model

    @abstractmethod
    def embed(self, model: PreTrainedModel, features: Tensor) -> list[Tensor]:
        """(T, D_e) -> (T, D) in place of the image tokens; then, for each of the first layers, (T, D) that is added to
        its output at the same places (DeepStack, arXiv 2406.04334)."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer the number of tokens back that it sees, itself included; None: all. (): all layers see all."""
        return ()
