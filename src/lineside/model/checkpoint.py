"""Checkpoints: a standard LLaVA folder in safetensors that transformers and vLLM load without our code."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

from lineside.errors import LinesideError, disk_is_full
from lineside.model import efficientnet  # noqa: F401 # registers the tower
from lineside.model.render import IMAGE
from lineside.model.vlm import VLM
from lineside.progress import say

Strategy = Literal["default", "full"]  # which tokens of the tower are used: all but the class token, or all

STATED = {"float32": torch.float32, "bfloat16": torch.bfloat16}

logging.disable_progress_bar()  # the one that transformers shows while it loads


def save(vlm: VLM, folder: Path) -> None:
    """Write the checkpoint to a temporary folder, then rename it to `folder`. A killed run leaves the whole old
    checkpoint or the whole new one. Raises LinesideError if it cannot be written; the old one is then kept."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # Use the weight names of published LLaVA folders. For a CLIP or SigLIP tower that was assembled here, transformers
    # would leave out the prefix `vision_model.`, which vLLM and llama.cpp expect.
    vlm.model._weight_conversions = get_model_conversion_mapping(vlm.model, add_legacy=False)  # pyright: ignore
    _add_nothing(vlm.tokenizer)
    template = vlm.render.chat_template(thinking=vlm.thinking.default, references=vlm.references)
    vlm.tokenizer.chat_template = template
    try:
        temporary.mkdir(parents=True)
        vlm.model.save_pretrained(temporary)
        config, vision = vlm.model.config, vlm.tower.config
        LlavaProcessor(
            image_processor=vlm.image_processor,
            tokenizer=vlm.tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=IMAGE,
            num_additional_image_tokens=1 if vision.model_type == "clip_vision_model" else 0,
            chat_template=template,
        ).save_pretrained(temporary)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # an unfinished checkpoint only fills the disk
        reason = "the disk is full" if disk_is_full(error) else str(error)
        raise LinesideError(
            f"cannot write the checkpoint {folder}: {reason}. The previous one, if any, is kept; "
            "make room and run the same command again."
        ) from error
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _add_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop the tokenizer from adding bos or eos tokens to a text: the chat template already writes all tokens."""
    if tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False):
        return
    for key in ("add_bos_token", "add_eos_token"):
        tokenizer.init_kwargs[key] = False
        if hasattr(tokenizer, key):
            setattr(tokenizer, key, False)
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B")


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> VLM:
    """Load a checkpoint folder as a VLM with all weights frozen, in the number format that it was judged in.

    That is the format stated in its config.json, in which it was saved; `dtype` overrides it. Raises LinesideError if
    there is no checkpoint, if a part of it is missing or damaged, or if it is no LLaVA model with a supported LM.
    """
    folder = Path(path)
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        folder.with_name(folder.name + ".old").rename(folder)  # a process was killed between the two renames of `save`
    config = read_config(folder)
    if config.get("model_type") != "llava":
        raise LinesideError(
            f"{folder} holds a model of type {config.get('model_type')!r}; "
            "expected a LLaVA checkpoint as lineside writes it"
        )
    if config.get("dtype") not in STATED and dtype is None:
        say(f"warning: {folder} does not state its number format as {' or '.join(STATED)}; computing in float32")
    kind: Any = LlavaForConditionalGeneration
    try:
        model, found = kind.from_pretrained(
            folder, dtype=dtype or dtype_of(folder), use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        image_processor = load_image_processor(folder)
    except Exception as error:  # three libraries raise many types of error for damaged or missing files
        reason = " ".join(str(error).split())[:300]
        raise LinesideError(
            f"cannot load the checkpoint {folder}: {reason}. Expected a whole folder as lineside writes it: "
            "config.json, *.safetensors, tokenizer.json, processor_config.json"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise LinesideError(
            f"the checkpoint {folder} lacks {len(missing)} of its weights, such as {missing[0]}: copy the whole folder"
        )
    return VLM(model.requires_grad_(False).eval().to(device), tokenizer, image_processor)


def weights_of(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """The weights of a checkpoint by name, each read when it is called. Raises LinesideError if there are none, or if a
    file is damaged."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LinesideError(f"{folder} holds no weights (*.safetensors): expected a checkpoint")
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
            found |= {name: functools.partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LinesideError(f"{path}: not readable as weights ({error})") from None
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises LinesideError, with the checkpoints found below the folder, if there
    is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if any(folder.glob("*.parquet")):
            raise LinesideError(f"no checkpoint at {folder}, but frames or samples: are two folders swapped?") from None
        below = sorted(folder.glob("checkpoint")) + sorted(folder.glob("*/checkpoint"))
        meant = f". Did you mean {' or '.join(map(str, below))}?" if below else ", such as runs/<name>/rlvr/checkpoint"
        raise LinesideError(
            f"no checkpoint at {folder}: expected a folder with config.json and *.safetensors{meant}"
        ) from None
    except (OSError, ValueError) as error:
        raise LinesideError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise LinesideError(f"{path} is not a model's configuration: expected a JSON object")
    return config


def dtype_of(folder: Path) -> torch.dtype:
    """The number format in which a checkpoint was saved. Raises LinesideError as `read_config` does."""
    return STATED.get(read_config(folder).get("dtype", ""), torch.float32)


def load_image_processor(folder: str | Path, *, only_local: bool = True) -> object:
    """The settings of the picture preprocessing, with the PIL backend, which needs no torchvision. `folder` may be a
    hub id unless `only_local`."""
    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=only_local)


def freeze_tower(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Freeze the encoder: no stage trains it."""
    model.model.vision_tower.requires_grad_(False)
    return model


def new_config(vision: Any, text: Any, *, image_token_id: int, feature_layer: int, strategy: Strategy) -> LlavaConfig:
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
