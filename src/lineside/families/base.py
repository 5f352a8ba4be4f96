"""What differs between checkpoint families, as one class to derive from.

A family knows pictures, placeholders, positions and masks. It is made of configuration, tokenizer and picture
preprocessing, so `validate` can use one without loading weights; what needs weights gets the model as an argument.

Shapes: T image tokens of all pictures, P of one picture, R rows of a picture's features, D_e width of a row, D width of
the LM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from lineside.images import picture_size
from lineside.model.tree import count_up
from lineside.runtime import upload
from lineside.types import Image

TILES = 32  # tiles that are encoded together
PROVEN_LMS = ("llama", "qwen2", "qwen3")  # the packed path is tested against the dense one for these


class Planned(NamedTuple):
    """What a picture takes, as far as a configuration tells, without markers around it."""

    tokens: int
    patches: int  # that the encoder computes
    features: int  # numbers that the feature store keeps


class Family(ABC):
    """A family, for one model. The methods with code are right for most families."""

    kind: ClassVar[str]  # `model_type` in config.json
    tower: ClassVar[str]  # path of the encoder in the model; no stage trains it
    projector: ClassVar[tuple[str, ...]]  # of what maps features to the LM's width; it may lie in the tower
    language_model: ClassVar[str]  # of the decoder without its head
    lms: ClassVar[tuple[str, ...]] = PROVEN_LMS  # types of decoders that are proven
    marker: ClassVar[str] = "<image>"  # what stands for a picture in the text of a chat template
    resizes: ClassVar[bool] = False  # whether the number of tokens depends on a picture's size in pixels

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        self.config, self.tokenizer, self.image_processor = config, tokenizer, image_processor
        self.files: dict[str, bytes] = {}  # of a finished model: its own, which a checkpoint repeats, by name
        self.shards: dict[str, str] = {}  # and the file of each of its weights

    @classmethod
    def planned(cls, config: Any, side: int) -> Planned:
        """What a picture of `side` x `side` pixels takes. Mostly a token for each patch of the encoder's own size."""
        vision = config.vision_config
        tokens = (_first(vision.image_size) // _first(vision.patch_size)) ** 2
        return Planned(tokens, tokens, tokens * vision.hidden_size)

    # --- files

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
        """The model of a checkpoint folder, and the names of weights that the folder lacks."""
        kind: Any = AutoModelForImageTextToText
        model, found = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            # Older files say so of the text alone. transformers then loads the head, and loses it with the next resize.
            model.config.tie_word_embeddings = False
        return model, sorted(found["missing_keys"])

    @classmethod
    def build(cls, folder: Path) -> nn.Module:
        """The model of a checkpoint folder without its weights, as large as its configuration says."""
        kind: Any = AutoModelForImageTextToText
        return kind.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False)

    def save(self, model: PreTrainedModel, folder: Path, chat_template: str) -> None:
        """Write the checkpoint in the family's own format, as transformers reads it. The tokenizer has the template."""
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if not self.files:
            self.image_processor.save_pretrained(folder)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    # --- text

    @property
    def image_token(self) -> str:
        """The token that stands for one place of a picture."""
        return str(self.tokenizer.convert_ids_to_tokens(self.config.image_token_id))

    @abstractmethod
    def placeholder(self, image: Image) -> tuple[int, ...]:
        """The tokens that stand for a picture in the prompt. An image without bytes stands for the picture that takes
        the most."""

    def shape(self, image: Image) -> tuple[int, int]:
        """What `positions` and `embed` must know of a picture: rows and columns of its tokens, or its size."""
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
        """(R, D_e) of each picture: what the frozen encoder gives for it, with R rows of its own; mostly R = P."""

    def fingerprint(self, dtype: torch.dtype) -> list[Any]:
        """All that features in a number format depend on besides picture and encoder weights: part of the key of the
        feature store."""
        return [self.kind, self.width, str(dtype), self.image_processor.to_json_string()]

    # --- language model

    def embed(
        self, model: PreTrainedModel, features: Sequence[Tensor], shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """(R, D_e) of each picture, and the pictures' shapes -> (T, D) in place of the image tokens; then, for each of
        the first layers, (T, D) that is added to its output at the same places (DeepStack, arXiv 2406.04334). Mostly
        the projector alone."""
        return [model.get_submodule(self.projector[0])(torch.cat(tuple(features)))]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer the number of tokens back that it sees, itself included; None: all. (): all layers see all."""
        return ()


class Tiled(Family):
    """A family that cuts a picture into tiles by its size, and encodes each tile alone.

    Shapes: n tiles of a picture, S side of a tile, r rows of features that a tile gives."""

    resizes = True
    options: ClassVar[dict[str, Any]] = {}  # of the image processor, as the family's own processor sets them

    @abstractmethod
    def encode(self, model: PreTrainedModel, tiles: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, r, D_e), by the frozen encoder."""

    def pixels(self, pictures: Sequence[PILImage.Image]) -> list[Tensor]:
        """(n, 3, S, S) float32 of each picture, by transformers' own image processor."""
        parts = (self.image_processor(images=[p], return_tensors="pt", **self.options) for p in pictures)
        return [part["pixel_values"].flatten(0, -4) for part in parts]

    def features(self, model: PreTrainedModel, pixels: list[Tensor]) -> list[Tensor]:
        """The features of a picture's tiles, one after another."""
        weight = next(model.get_submodule(self.tower).parameters())
        some = torch.cat(pixels).split(TILES)
        encoded = torch.cat([self.encode(model, upload(tiles, weight.device).to(weight.dtype)) for tiles in some])
        return [tiles.flatten(0, 1) for tiles in encoded.split([len(tiles) for tiles in pixels])]


def _first(size: Any) -> int:
    return size[0] if isinstance(size, list | tuple) else size


def size_of(image: Image) -> tuple[int, int] | None:
    """Height and width of a picture in pixels; None for an image without bytes."""
    return picture_size(image.bytes) if image.bytes else None
