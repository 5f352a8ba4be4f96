"""A model's shape from its configuration alone: parameters by part, tokens a picture, and what a token costs.

Nothing is downloaded, and no weight is loaded: the model is made on torch's meta device, where tensors have a shape and
no numbers. A configuration comes from a folder, from what was downloaded before, or from the table below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig, SiglipVisionConfig

from lineside.errors import LinesideError
from lineside.families import family_named
from lineside.families.llava import new_config
from lineside.model.efficientnet import EfficientNetLiteConfig
from lineside.model.parts import TOWERS
from lineside.model.sizes import MOST_LAYERS, check_layers
from lineside.model.vlm import check_language_model
from lineside.recipe import Parts
from lineside.strict import nearest

NEW_TOKENS = 3  # <image>, <think>, </think>

_SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
_QWEN3 = {
    "vocab_size": 151936, "tie_word_embeddings": True, "num_key_value_heads": 8, "head_dim": 128,
    "num_attention_heads": 16,
}  # fmt: skip
_SIGLIP = {"model_type": "siglip_vision_model"}
# Numbers of published config.json files, so that their recipes can be planned without a download. Where they were read:
# SmolLM2-135M in its wheel; SmolVLM2-500M (its text model is SmolLM2-360M) and Qwen3-VL-2B in tests of public ports
# that quote them; SigLIP in transformers' conversion scripts and in LLaVA configurations; Qwen3-1.7B in Levanter's
# table, Qwen3-4B in its model card.
PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        **_SMOLLM2, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "HuggingFaceTB/SmolLM2-360M-Instruct": {
        **_SMOLLM2, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3", **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    },
    "Qwen/Qwen3-4B": {
        "model_type": "qwen3", **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "google/siglip2-base-patch16-224": {
        **_SIGLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16,
    },
    "google/siglip2-so400m-patch14-384": {
        **_SIGLIP, "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    },
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "model_type": "smolvlm", "scale_factor": 4, "tie_word_embeddings": False,
        "text_config": {
            **_SMOLLM2, "vocab_size": 49280, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "tie_word_embeddings": False,
        },
        "vision_config": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16,
        },
    },
    "Qwen/Qwen3-VL-2B-Instruct": {
        "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text", **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
            "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without its weights."""

    encoder: str
    lm: str
    encoder_parameters: int
    projector_parameters: int
    lm_parameters: int  # with the head, if it has weights of its own
    lm_weights: int  # of the linear layers below the head
    head_weights: int
    layers: int
    width: int  # D
    attention: tuple[int, int]  # widths of all query heads and of all key heads
    inner: int  # width of the feed-forward layers
    vocabulary: int
    linears: tuple[tuple[str, int, int], ...]  # last part of the name, inputs, outputs: of each linear layer
    picture: int  # tokens of a picture
    features: int  # numbers of a picture that the store keeps
    encoding: float | None  # operations to encode a picture; None: not by linear layers

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return self.encoder_parameters + self.projector_parameters + self.lm_parameters

    def adapter(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of a LoRA with its two rows of embeddings. Raises LinesideError for a target that is no layer."""
        names = sorted({name for name, _, _ in self.linears})
        for target in targets:
            if target not in names:
                raise LinesideError(
                    f"lora.targets: the language model has no linear layer {target}{nearest(target, names)}; it has "
                    f"{', '.join(names)}"
                )
        rows = 2 * self.width * (1 if self.lm_parameters < self.lm_weights + 2 * self.head_weights else 2)
        return sum(rank * (inputs + outputs) for name, inputs, outputs in self.linears if name in targets) + rows


def skeleton(parts: Parts, *, side: int = 224) -> Skeleton:
    """The shape of the model that a recipe's parts give, for pictures of `side` x `side` pixels.

    Raises LinesideError for an unknown configuration, with what is needed, and for parts that do not fit.
    """
    if parts.vlm is not None:
        return _measured(config_of("parts.vlm", parts.vlm), parts.vlm, parts.vlm, side)
    if parts.preset == "siglip":
        vision, text = config_of("parts.encoder", str(parts.encoder)), config_of("parts.lm", str(parts.lm))
        vision = getattr(vision, "vision_config", vision)
    else:
        vision = EfficientNetLiteConfig(parts.scales)
        text = _nano(parts) if parts.preset == "nano" else config_of("parts.lm", "HuggingFaceTB/SmolLM2-135M-Instruct")
    if vision.model_type not in TOWERS:
        raise LinesideError(
            f"parts.encoder: a vision tower of type {vision.model_type!r} is not supported: expected one of "
            f"{', '.join(TOWERS)}"
        )
    check_language_model(text)
    if parts.preset != "nano" and text.vocab_size == 49152:  # SmolLM2 has no spare rows
        text.vocab_size += NEW_TOKENS
    layer, strategy = TOWERS[vision.model_type]
    config = new_config(vision, text, image_token_id=0, feature_layer=layer, strategy=strategy)
    encoder = str(parts.encoder or "efficientnet-lite0")
    lm = str(parts.lm or {"nano": "a new Llama", "smollm2": "SmolLM2-135M-Instruct"}[parts.preset])
    return _measured(config, encoder, lm, side)


def _nano(parts: Parts) -> LlamaConfig:
    """As `new_llama` makes it."""
    nano = parts.nano
    return LlamaConfig(
        vocab_size=nano.vocabulary, hidden_size=nano.hidden, intermediate_size=3 * nano.hidden,
        num_hidden_layers=nano.layers, num_attention_heads=nano.heads, num_key_value_heads=nano.heads,
        max_position_embeddings=nano.context, tie_word_embeddings=True,
    )  # fmt: skip


def _measured(config: Any, encoder: str, lm: str, side: int) -> Skeleton:
    family = family_named(config.model_type, lm)
    check_layers(config.to_dict(), MOST_LAYERS, lm)
    picture = family.planned(config, side)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    projectors = [model.get_submodule(path) for path in family.projector]
    decoder, tower, head = model.get_submodule(family.language_model), model.get_submodule(family.tower), model.lm_head
    text = config.get_text_config()
    projector = sum(map(_parameters, projectors))
    inside = sum(_parameters(p) for p in projectors if any(p is m for m in tower.modules()))
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tied = bool(text.tie_word_embeddings if hasattr(text, "tie_word_embeddings") else config.tie_word_embeddings)
    linears = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]
    encoding = 2.0 * picture.patches * sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear))
    return Skeleton(
        encoder=encoder,
        lm=lm,
        encoder_parameters=_parameters(tower) - inside,
        projector_parameters=projector,
        lm_parameters=_parameters(decoder) + (0 if tied else _parameters(head)),
        lm_weights=sum(m.weight.numel() for _, m in linears),
        head_weights=head.weight.numel(),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        attention=(text.num_attention_heads * width, text.num_key_value_heads * width),
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        linears=tuple((n.rpartition(".")[2], m.in_features, m.out_features) for n, m in linears),
        picture=picture.tokens,
        features=picture.features,
        encoding=encoding or None,
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def config_of(key: str, name: str) -> Any:
    """A configuration by folder, from the table, or from what was downloaded before.

    Raises LinesideError that says what is needed, for one that is not at hand.
    """
    try:
        if Path(name).is_dir() or name not in PUBLISHED:
            return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many types, as in `checkpoint.loading`
        if Path(name).is_dir():
            raise LinesideError(f"{key}: {name}: no config.json that transformers reads ({error})") from None
        raise LinesideError(
            f"{key}: {name}: its configuration is not at hand, and a plan downloads nothing{nearest(name, PUBLISHED)}. "
            f"Give a folder with its config.json (hf download {name} config.json --local-dir FOLDER), or one of "
            f"{', '.join(PUBLISHED)}"
        ) from None
    numbers = dict(PUBLISHED[name])
    if numbers["model_type"] == "siglip_vision_model":
        return SiglipVisionConfig(**{k: v for k, v in numbers.items() if k != "model_type"})
    return AutoConfig.for_model(numbers.pop("model_type"), **numbers)
