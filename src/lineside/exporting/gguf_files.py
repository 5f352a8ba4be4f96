"""GGUF: a text model and an mmproj file for llama.cpp, written with the package `gguf` alone.

Names and keys are those that llama.cpp's own converter writes for LLaVA 1.5 with a SigLIP or CLIP tower (projector
`mlp`). What the format cannot carry is refused by `problem` before anything is loaded or written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lineside.model.efficientnet import EfficientNetLiteConfig
from lineside.model.vlm import VLM

TEXT, PICTURES = "model.gguf", "mmproj.gguf"
TOWERS = ("siglip_vision_model", "clip_vision_model")
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # type of the LM -> architecture in GGUF
ROPES = ("default", "llama3")
WEIGHTS = {"fp32": "F32", "bf16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's LLAMA_FTYPE_*
BLOCK = 32  # numbers that share a scale in Q8_0

# How llama.cpp names the ways to cut text into words: by the steps of the tokenizer, each a pattern or a type.
_GPT2 = "ByteLevel"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS = {
    (_GPT2,): "gpt-2",  # the smollm2 preset, whose tokenizer comes from a GGUF file
    ("Digits", _GPT2): "smollm",  # nano, and SmolLM2 from the hub
    (_QWEN2, "bytes"): "qwen2",
    (_LLAMA3, "bytes"): "llama-bpe",
}

_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOWER_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def problem(config: dict[str, Any], tokenizer: dict[str, Any]) -> str:
    """Why llama.cpp cannot take a checkpoint with this config.json and tokenizer.json; "" if it can."""
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    rope = (text.get("rope_parameters") or text.get("rope_scaling") or {}).get("rope_type", "default")
    model, normal = tokenizer.get("model") or {}, (tokenizer.get("normalizer") or {"type": "NFC"})["type"]
    if (tower := vision.get("model_type")) not in TOWERS:
        named = "EfficientNet" if tower == EfficientNetLiteConfig.model_type else f"an encoder of type {tower!r}"
        return f"{named} has no form in an mmproj file, only SigLIP and CLIP have"
    if tower == "clip_vision_model" and config.get("vision_feature_select_strategy") == "full":
        return "llama.cpp drops the class token of CLIP, which this checkpoint keeps"
    if (lm := text.get("model_type")) not in ARCHITECTURES:
        return f"a language model of type {lm!r} has no architecture here: expected one of {', '.join(ARCHITECTURES)}"
    if rope not in ROPES:
        return f"rotary positions of type {rope!r} are not written: expected one of {', '.join(ROPES)}"
    if (act := text.get("hidden_act", "silu")) != "silu":
        return f"llama.cpp computes {lm} with silu, this language model has {act!r}"
    if model.get("type") != "BPE" or model.get("byte_fallback") or normal != "NFC":
        named = f"a tokenizer of type {model.get('type')!r} with normalizer {normal!r}"
        return f"{named} is not written: only byte-level BPE is"
    if (steps := pre_tokenizer(tokenizer)) not in PRE_TOKENIZERS:
        return f"llama.cpp has no name for how this tokenizer cuts words: {' then '.join(steps) or 'not at all'}"
    return ""


def pre_tokenizer(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The steps by which a tokenizer.json cuts text into words, as keys of `PRE_TOKENIZERS`."""
    stated = tokenizer.get("pre_tokenizer") or {}
    steps = stated.get("pretokenizers", [stated] if stated else [])
    return tuple(_step(step) for step in steps)


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "Digits":
        return kind if step.get("individual_digits") else "groups of digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str((step.get("pattern") or {}).get("Regex"))
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return _GPT2 if step.get("use_regex", True) else "bytes"
    return f"{kind} {json.dumps({k: v for k, v in step.items() if k != 'type'})}"


class _Kind(NamedTuple):
    """Number format of matrices; vectors are always float32."""

    name: str

    def add(self, writer: Any, name: str, value: Tensor) -> None:
        import gguf

        array = np.ascontiguousarray(value.detach().float().numpy())
        if array.ndim == 1 or self.name == "F32":
            writer.add_tensor(name, array)
            return
        kind = gguf.GGMLQuantizationType[self.name]
        if self.name == "Q8_0" and array.shape[-1] % BLOCK:
            kind = gguf.GGMLQuantizationType.F16  # such a matrix cannot be cut into blocks
        if kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)


def write(vlm: VLM, folder: Path, weights: str, step: Callable[[str], None]) -> None:
    """Write both files. `vlm` is in float32. `step` is called with the name of each part before it is made."""
    step("language model")
    _write_text(vlm, folder / TEXT, _Kind(WEIGHTS[weights]))
    step("encoder and projector")
    _write_pictures(vlm, folder / PICTURES, _Kind("F32" if weights == "fp32" else "F16"))


def _write_text(vlm: VLM, path: Path, kind: _Kind) -> None:
    import gguf

    config, lm = vlm.language_model.config, vlm.language_model
    architecture = ARCHITECTURES[config.model_type]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("lineside")
    writer.add_file_type(FILE_TYPES[kind.name])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(vlm, writer)
    state = lm.state_dict()
    kind.add(writer, "token_embd.weight", state["embed_tokens.weight"])
    kind.add(writer, "output_norm.weight", state["norm.weight"])
    if vlm.model.lm_head.weight.data_ptr() != state["embed_tokens.weight"].data_ptr():
        kind.add(writer, "output.weight", vlm.model.lm_head.weight)
    if (factors := _rope_factors(lm, width)) is not None:
        _Kind("F32").add(writer, "rope_freqs.weight", factors)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for number, name, part, value in _layers(state, "layers", _LAYER):
        if architecture == "llama" and name in heads:
            value = interleaved(value, heads[name])
        kind.add(writer, f"blk.{number}.{name}.{part}", value)
    _close(writer)


def _layers(state: dict[str, Tensor], prefix: str, names: dict[str, str]) -> Iterator[tuple[int, str, str, Tensor]]:
    """The tensors of all layers: number, name in GGUF, weight or bias, value. Raises ValueError for an unknown one."""
    for key, value in state.items():
        if key.startswith(f"{prefix}."):
            number, _, rest = key.removeprefix(f"{prefix}.").partition(".")
            inner, _, part = rest.rpartition(".")
            if inner not in names:
                raise ValueError(f"{key} has no name in GGUF")
            yield int(number), names[inner], part, value


def interleaved(value: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix (H d, ...) in the order of llama.cpp's `llama`, which turns neighbours (0, 1),
    (2, 3) ... where transformers turns halves (0, d/2), (1, d/2 + 1) .... Its qwen2 and qwen3 turn halves too."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _rope_factors(lm: Any, width: int) -> Tensor | None:
    """(d / 2,) by which each rotary frequency is divided, for Llama 3; None where they are the usual ones."""
    found = lm.rotary_emb.inv_freq.float()
    base = float(lm.config.rope_parameters["rope_theta"])
    usual = 1 / base ** (torch.arange(0, width, 2).float() / width)
    factors = usual / found.cpu()
    return None if torch.allclose(factors, torch.ones_like(factors)) else factors


def _write_tokenizer(vlm: VLM, writer: Any) -> None:
    """Vocabulary, merges, pre-tokenizer and chat template. A program adds no token by itself."""
    import gguf

    tokenizer: Any = vlm.tokenizer
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in stated["added_tokens"]}
    words = {number: word for word, number in stated["model"]["vocab"].items()}
    tokens, types = [], []
    for number in range(vlm.language_model.config.vocab_size):
        if number in added:
            tokens.append(added[number]["content"])
            # Control tokens vanish from decoded text; the think tags must stay in it.
            types.append(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(words.get(number, f"[PAD{number}]"))
            types.append(gguf.TokenType.NORMAL if number in words else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[pre_tokenizer(stated)])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = stated["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(vlm.render.eos_id)
    bos = vlm.tokenizer.bos_token_id
    writer.add_bos_token_id(vlm.render.eos_id if bos is None else bos)  # else llama.cpp takes GPT-2's number
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(vlm.render.chat_template(thinking=vlm.thinking.default))


def _write_pictures(vlm: VLM, path: Path, kind: _Kind) -> None:
    import gguf

    config, vision, processor = vlm.model.config, vlm.tower.config, vlm.image_processor
    layers = vision.num_hidden_layers
    layer = config.vision_feature_layer
    used = layer + layers + 1 if layer < 0 else layer  # layers before the features
    blocks = used + 1  # llama.cpp runs all but the last block: one more is written, which never runs
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("lineside")
    writer.add_file_type(FILE_TYPES[kind.name])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(vlm.language_model.config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(blocks)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_image_mean([float(x) for x in processor.image_mean])  # pyright: ignore[reportAttributeAccessIssue]
    writer.add_vision_image_std([float(x) for x in processor.image_std])  # pyright: ignore[reportAttributeAccessIssue]
    if vision.hidden_act.startswith("gelu"):
        writer.add_vision_use_gelu(True)  # else quick_gelu, which is CLIP's
    exact = _Kind("F32")
    state = {key.removeprefix("vision_model."): value for key, value in vlm.tower.state_dict().items()}
    names = {
        "embeddings.class_embedding": ("v.class_embd", exact),
        "embeddings.patch_embedding.weight": ("v.patch_embd.weight", kind),
        "embeddings.patch_embedding.bias": ("v.patch_embd.bias", exact),
        "embeddings.position_embedding.weight": ("v.position_embd.weight", exact),
        "pre_layrnorm.weight": ("v.pre_ln.weight", exact),  # transformers' spelling
        "pre_layrnorm.bias": ("v.pre_ln.bias", exact),
    }
    for key, (name, written) in names.items():
        if key in state:
            written.add(writer, name, state[key])
    tensors = list(_layers(state, "encoder.layers", _TOWER_LAYER))
    for block in range(blocks):
        for number, name, part, value in tensors:
            if number == min(block, layers - 1):
                kind.add(writer, f"v.blk.{block}.{name}.{part}", value)
    for key, value in vlm.projector.state_dict().items():
        kind.add(writer, key.replace("linear_1", "mm.0").replace("linear_2", "mm.2"), value)
    _close(writer)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
