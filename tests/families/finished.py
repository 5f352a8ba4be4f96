"""Tiny finished models of each family with random weights, as folders like those on the model hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers as T
from PIL import Image as PILImage
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.model.tokenizers import WORDS, byte_level

Inputs = dict[str, Any]  # what a model's own forward takes beside token ids
Settings = dict[str, Any]  # a JSON file of a checkpoint
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A family: how a tiny model of it is made, and how its own forward is given pictures."""

    specials: tuple[str, ...]  # the control tokens of its tokenizer
    template: str  # its chat template, as published
    image: str  # its image token
    eos: str
    model: Callable[[PreTrainedTokenizerBase, bool], Any]  # with tied embeddings or not
    processor: Callable[[], Any]
    expand: Callable[[Any, PreTrainedTokenizerBase, Inputs, int], str]  # its own processor's text for a picture
    call: Callable[[Any, Sequence[PILImage.Image]], Inputs]  # its own processor's call
    older: Callable[[Settings, Settings], Settings]  # what its config.json, and that of pictures, had on the hub
    inputs: Callable[[Inputs, Tensor], Inputs] = lambda made, tokens: made
    flat: Callable[[Any], Tensor] = torch.cat  # our pixels as one tensor
    mark: str = ""  # what its template writes for a picture, if more than the image token

    def placeholder(self, processor: Any, made: Inputs, number: int) -> str:
        """The text that its own processor has in place of a picture of the template."""
        return (self.mark or self.image).replace(self.image, self.expand(processor, self.tokenizer(), made, number))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE, cut into words as Llama 3 and Qwen do."""
        specials = ["<|endoftext|>", *self.specials]
        made = PreTrainedTokenizerFast(
            tokenizer_object=byte_level(specials, WORDS), eos_token=self.eos, pad_token="<|endoftext|>",
            clean_up_tokenization_spaces=False,
        )  # fmt: skip
        made.chat_template = self.template
        return made

    def build(self, folder: Path, *, tied: bool = True, spare: int = 0, shards: int = 1) -> Path:
        """Write the folder. `spare`: embeddings beyond the tokenizer's tokens, as Qwen has them."""
        torch.manual_seed(0)
        tokenizer = self.tokenizer()
        model = self.model(tokenizer, tied)
        if spare:
            model.resize_token_embeddings(len(tokenizer) + spare, mean_resizing=False)
        for weight in model.parameters():
            if not weight.any():  # a norm's or projector's zeros would hide what lies before it
                torch.nn.init.normal_(weight, std=0.1)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(folder, max_shard_size=size // shards + 1000 if shards > 1 else "5GB")
        tokenizer.save_pretrained(folder)
        self.processor().save_pretrained(folder)
        (folder / "video_preprocessor_config.json").write_text(json.dumps({"video_processor_type": "Tiny"}))
        return folder

    def publish(self, folder: Path) -> Path:
        """Rewrite the settings of a built folder in the form in which transformers 4 wrote the published ones."""
        files = [folder / name for name in ("config.json", "preprocessor_config.json")]
        config, pictures = (json.loads(file.read_text()) for file in files)
        pictures["image_processor_type"] = pictures["image_processor_type"].removesuffix("Pil")
        config = self.older(_by_old_keys(config), pictures)
        for file, settings in zip(files, (config, pictures)):
            file.write_text(json.dumps({**settings, "transformers_version": "4.49.0"}))
        return folder

    def prompt(self, processor: Any, pictures: Sequence[PILImage.Image], question: str) -> list[int]:
        """The ids that the family's own template and processor give."""
        tokenizer = self.tokenizer()
        parts = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
        turns = [{"role": "user", "content": parts}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        made = self.call(processor, pictures)
        head, *rest = text.split(self.image)
        for number, piece in enumerate(rest):
            head += self.expand(processor, tokenizer, made, number) + piece
        return tokenizer.encode(head, add_special_tokens=False)


def text_config(kind: type, tokenizer: PreTrainedTokenizerBase, tied: bool, **more: Any) -> Any:
    eos = tokenizer.eos_token_id
    return kind(**{**TEXT, **more}, vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=eos)


def _by_old_keys(config: Settings) -> Settings:
    """A configuration as transformers 4 wrote it: its number format, and a rotation in two parts."""
    old = {key: _by_old_keys(value) if isinstance(value, dict) else value for key, value in config.items()
           if key not in ("layer_types", "rope_parameters")}  # fmt: skip
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    if rope := config.get("rope_parameters"):
        old["rope_theta"] = rope["rope_theta"]
        more = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
        old["rope_scaling"] = {"rope_type": "default", **more} if more else None
    return old


_NO_WINDOW = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 2}  # a Qwen's: it is not used


# --- SmolVLM2 and Idefics3


def _older_smolvlm(config: Settings, pictures: Settings) -> Settings:
    """With what its training code had."""
    text = {"is_llama_config": True, "qk_layer_norms": False, "rope_interleaved": False, "use_resampler": False}
    sizes = {"max_image_size": pictures["max_image_size"], "size": pictures["size"], "use_base_siglip": False}
    config["text_config"] |= {**text, "pixel_shuffle_factor": 2}
    config["vision_config"] |= {**sizes, "tie_word_embeddings": False}
    return {**config, "use_reentrant_checkpointing": False}


def _smolvlm(
    tokenizer: PreTrainedTokenizerBase, tied: bool, config: type = T.SmolVLMConfig,
    model: type = T.SmolVLMForConditionalGeneration,
) -> Any:  # fmt: skip
    made = config(
        text_config=text_config(T.LlamaConfig, tokenizer, tied), vision_config=VISION, scale_factor=2,
        image_token_id=tokenizer.get_vocab()["<image>"], tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    return model(made).eval()


def _expand_idefics(processor: Any, tokenizer: PreTrainedTokenizerBase, made: Inputs, number: int) -> str:
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    rows, columns = made["rows"][0][number], made["cols"][0][number]
    return get_image_prompt_string(rows, columns, 4, "<fake_token_around_image>", "<image>", "<global-img>")


SMOLVLM = Kind(
    specials=(
        "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    ),
    template=(
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] "
        "== 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == "
        "'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    image="<image>",
    eos="<end_of_utterance>",
    model=_smolvlm,
    processor=lambda: T.SmolVLMImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}),
    expand=_expand_idefics,
    call=lambda processor, pictures: processor(images=[pictures], return_row_col_info=True, return_tensors="pt"),
    inputs=lambda made, tokens: {key: made[key] for key in ("pixel_values", "pixel_attention_mask")},
    older=_older_smolvlm,
)  # fmt: skip

IDEFICS3 = replace(
    SMOLVLM,
    model=lambda tokenizer, tied: _smolvlm(tokenizer, tied, T.Idefics3Config, T.Idefics3ForConditionalGeneration),
    processor=lambda: T.Idefics3ImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}),
)


# --- InternVL3 and 3.5


def _internvl(tokenizer: PreTrainedTokenizerBase, tied: bool, text: type = T.Qwen2Config) -> Any:
    vision = {**VISION, "image_size": (32, 32), "patch_size": (8, 8)}
    config = T.InternVLConfig(
        text_config=text_config(text, tokenizer, tied), vision_config=T.InternVLVisionConfig(**vision),
        image_token_id=tokenizer.get_vocab()["<IMG_CONTEXT>"], downsample_ratio=0.5, tie_word_embeddings=tied,
    )  # fmt: skip
    return T.InternVLForConditionalGeneration(config).eval()


def _older_internvl(config: Settings, pictures: Settings) -> Settings:
    """Whether embeddings are tied stood with the text alone; the picture processor wrote all that it does not set."""
    unset = dict.fromkeys(("crop_size", "device", "do_center_crop", "input_data_format", "return_tensors"))
    pictures |= {**unset, "image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False}
    config["text_config"] |= {**_NO_WINDOW, "tie_word_embeddings": config.pop("tie_word_embeddings")}
    return config


INTERNVL = Kind(
    specials=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    template=(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
        "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == "
        "'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
    ),
    image="<IMG_CONTEXT>",
    eos="<|im_end|>",
    model=_internvl,
    processor=lambda: T.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, min_patches=1, max_patches=6),
    expand=lambda processor, tokenizer, made, number: T.InternVLProcessor.replace_image_token(
        SimpleNamespace(
            image_seq_length=4, start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>"
        ), made, number,
    ),
    call=lambda processor, pictures: processor(images=pictures, crop_to_patches=True, return_tensors="pt"),
    inputs=lambda made, tokens: {"pixel_values": made["pixel_values"]},
    older=_older_internvl,
)  # fmt: skip

INTERNVL35 = replace(INTERNVL, model=lambda tokenizer, tied: _internvl(tokenizer, tied, T.Qwen3Config))


# --- Qwen2.5-VL and Qwen3-VL

_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_TURNS = (
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    + _QWEN_MARK
    + "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 32,
}  # fmt: skip


def _qwen(
    config: type, model: type, text: type, tokenizer: PreTrainedTokenizerBase, tied: bool, sections: list[int],
    vision: dict[str, Any],
) -> Any:  # fmt: skip
    ids = tokenizer.get_vocab()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    made = config(
        text_config=text_config(text, tokenizer, tied, rope_parameters=rope).to_dict(),
        vision_config={**_QWEN_VISION, **vision}, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=tied,
    )  # fmt: skip
    return model(made).eval()


def _older_qwen25(config: Settings, pictures: Settings) -> Settings:
    """One level: what is of the text stood beside the rest. The tower had the type of the whole."""
    pictures |= {"min_pixels": pictures["size"]["shortest_edge"], "max_pixels": pictures.pop("size")["longest_edge"]}
    text = config.pop("text_config")
    scaling = text["rope_scaling"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": scaling["mrope_section"]}
    config["vision_config"] = {"in_chans": 3, **config["vision_config"], "model_type": "qwen2_5_vl"}
    return {**text, **_NO_WINDOW, **config}


def _older_qwen3(config: Settings, pictures: Settings) -> Settings:
    pictures["image_processor_type"] = "Qwen2VLImageProcessorFast"
    config["text_config"]["rope_scaling"]["mrope_interleaved"] = True
    config["vision_config"]["model_type"] = "qwen3_vl"
    return config


def _qwen_kind(
    model: Callable[[PreTrainedTokenizerBase, bool], Any], head: str, older: Callable[[Settings, Settings], Settings]
) -> Kind:
    return Kind(
        specials=_QWEN_SPECIALS,
        template=head + _QWEN_TURNS,
        image="<|image_pad|>",
        eos="<|im_end|>",
        model=model,
        processor=lambda: T.Qwen2VLImageProcessorPil(
            patch_size=4, size={"shortest_edge": 4 * 64, "longest_edge": 40 * 64}
        ),
        mark=_QWEN_MARK,
        expand=lambda processor, tokenizer, made, number: T.Qwen2_5_VLProcessor.replace_image_token(
            SimpleNamespace(image_processor=processor, image_token="<|image_pad|>"), made, number
        ),
        call=lambda processor, pictures: processor(images=pictures, return_tensors="pt"),
        inputs=lambda made, tokens: {**made, "mm_token_type_ids": (tokens == _IMAGE_PAD)[None].int()},
        flat=lambda pixels: pixels[0],
        older=older,
    )


_IMAGE_PAD = 1 + _QWEN_SPECIALS.index("<|image_pad|>")  # its id in the tiny tokenizer
QWEN25 = _qwen_kind(
    lambda tokenizer, tied: _qwen(
        T.Qwen2_5_VLConfig, T.Qwen2_5_VLForConditionalGeneration, T.Qwen2_5_VLTextConfig, tokenizer, tied, [1, 1, 2],
        {"depth": 2, "fullatt_block_indexes": [1], "window_size": 16},
    ),
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}",
    _older_qwen25,
)  # fmt: skip
QWEN3 = _qwen_kind(
    lambda tokenizer, tied: _qwen(
        T.Qwen3VLConfig, T.Qwen3VLForConditionalGeneration, T.Qwen3VLTextConfig, tokenizer, tied, [2, 1, 1],
        {"depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
    ),
    "{% for message in messages %}",
    _older_qwen3,
)  # fmt: skip


# --- LLaVA-OneVision


_PINPOINTS = [[32 * rows, 32 * columns] for rows in range(1, 4) for columns in range(1, 4)]


def _onevision(tokenizer: PreTrainedTokenizerBase, tied: bool) -> Any:
    config = T.LlavaOnevisionConfig(
        vision_config=T.SiglipVisionConfig(**VISION), text_config=text_config(T.Qwen2Config, tokenizer, tied),
        image_token_id=tokenizer.get_vocab()["<image>"], video_token_id=tokenizer.get_vocab()["<video>"],
        image_grid_pinpoints=_PINPOINTS, vision_feature_layer=-1, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4", tie_word_embeddings=tied,
    )  # fmt: skip
    return T.LlavaOnevisionForConditionalGeneration(config).eval()


class _OneVisionText(T.LlavaOnevisionProcessor):
    """The part of the processor that counts image tokens; the rest needs torchvision."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor, self.num_image_tokens, self.image_token = image_processor, 16, "<image>"
        self.vision_feature_select_strategy, self.vision_aspect_ratio = "full", "anyres_max_4"


def _older_onevision(config: Settings, pictures: Settings) -> Settings:
    """Whether embeddings are tied stood with the text alone."""
    config["text_config"] |= {**_NO_WINDOW, "tie_word_embeddings": config.pop("tie_word_embeddings")}
    return {**config, "tie_word_embeddings": False, "use_image_newline_parameter": True}


ONEVISION = Kind(
    specials=("<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    template=(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    image="<image>",
    eos="<|im_end|>",
    model=_onevision,
    processor=lambda: T.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=_PINPOINTS
    ),
    expand=lambda processor, tokenizer, made, number: _OneVisionText(processor).replace_image_token(made, number),
    call=lambda processor, pictures: processor(images=pictures, return_tensors="pt"),
    inputs=lambda made, tokens: {key: made[key] for key in ("pixel_values", "image_sizes")},
    flat=lambda pixels: torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True),
    older=_older_onevision,
)  # fmt: skip

KINDS = {
    "smolvlm": SMOLVLM, "idefics3": IDEFICS3, "internvl": INTERNVL, "internvl3_5": INTERNVL35, "qwen2_5_vl": QWEN25,
    "qwen3_vl": QWEN3, "llava_onevision": ONEVISION,
}  # fmt: skip
