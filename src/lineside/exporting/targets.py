"""The formats of `lineside export`: what each can carry, what is written, what checks it, what a user must know.

A table, so that a format is one entry. `problem` decides from config.json and tokenizer.json alone, before any weights
are read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from lineside.exporting.engines import Engine, Exported, Transformers, shown_as
from lineside.files import write_atomic
from lineside.judgement.calibration import FILE as CALIBRATION
from lineside.judgement.typed import FILE as TASKS
from lineside.model.checkpoint import save
from lineside.model.efficientnet import EfficientNetLiteConfig
from lineside.model.vlm import PROVEN_LMS, VLM
from lineside.runtime import DTYPES

To = Literal["gguf", "openvino", "onnx", "merged"]
Step = Callable[[str], None]
VLLM_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # of a head, in its CPU engine
FIXED_ROPES = ("default", "llama3", "linear", "yarn")  # others change their frequencies with the length of the text
SQUARE = (
    "send every picture resized to {side} x {side} pixels (bicubic, RGB), as training saw it: llama.cpp pads a picture "
    "that is not square instead, and its answers are then about other pixels"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A format: its number formats (the first is the default), the packages that write and check it."""

    weights: tuple[str, ...]
    writes: tuple[str, ...]
    checks: str
    write: Callable[[VLM, Path, Path, str, Step], None]
    """(model in float32, checkpoint, folder, number format, step)"""
    engine: Callable[[VLM, Path], contextlib.AbstractContextManager[Engine]]
    unchecked: bool = False  # whether it is also written where the package that checks it is not installed
    prepare: bool = False  # whether a user must resize pictures before they are sent (`check.prepared`)


def problem(to: To, config: dict[str, Any], tokenizer: dict[str, Any], *, serve: str | None = None) -> str:
    """Why a checkpoint with this config.json and tokenizer.json cannot be exported so, and what to use instead; "" if
    it can. `serve` "vllm": vLLM must be able to load it."""
    text = config.get("text_config") or {}
    if (family := config.get("model_type")) != "llava":
        return f"checkpoints of type {family!r} are already in their family's own format, which is not converted"
    if (lm := text.get("model_type")) not in PROVEN_LMS:
        return f"a language model of type {lm!r} is not known: expected one of {', '.join(PROVEN_LMS)}"
    rope = (text.get("rope_parameters") or text.get("rope_scaling") or {}).get("rope_type", "default")
    if to in ("openvino", "onnx") and rope not in FIXED_ROPES:
        return (
            f"rotary positions of type {rope!r} change with the length of the text, which a graph cannot: --to merged"
        )
    if to == "gguf":
        from lineside.exporting import gguf_files

        if found := gguf_files.problem(config, tokenizer):
            return f"{found}: use --to openvino, --to onnx or --to merged, or train with a SigLIP tower (recipe siglip)"
    return vllm_problem(config) if serve == "vllm" else ""


def vllm_problem(config: dict[str, Any]) -> str:
    """Why vLLM cannot load a merged export; "" if it can."""
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if vision.get("model_type") == EfficientNetLiteConfig.model_type:
        return "vLLM has no EfficientNet tower: use --to openvino or --to onnx, or train with a SigLIP tower"
    if width not in VLLM_WIDTHS:
        known = ", ".join(map(str, VLLM_WIDTHS))
        return f"vLLM has no kernel for heads of {width} numbers (expected {known}; 64 is tested): use --to openvino"
    return ""


def limits(to: To, config: dict[str, Any], weights: str, side: int) -> list[str]:
    """What a user of the export must know, in whole sentences."""
    found = []
    if config.get("roi"):
        found.append("the model was trained on regions of pictures: cut them first, as `roi` in config.json says")
    if config.get("references"):
        found.append("the model was trained with reference pictures, whose place in the prompt only lineside writes")
    if to == "gguf":
        found.append(SQUARE.format(side=side))
        found.append("start llama-server with --jinja, so that the file's own chat template writes the prompt")
    if to == "openvino":
        found.append(
            "use run.py or OpenVINO's plain runtime, not OpenVINO GenAI: its VLMPipeline puts a line end behind the "
            "picture, which training never saw, and reads SigLIP's picture size wrongly"
        )
    if to == "merged":
        if config["vision_config"].get("model_type") == EfficientNetLiteConfig.model_type:
            found.append("transformers needs `import lineside` before it loads this folder, for the EfficientNet tower")
        reason = vllm_problem(config)
        found.append(
            f"vLLM cannot load it: {reason}" if reason else "vLLM 0.32 loads such a model (tested with heads of 64)"
        )
        if weights == "bf16":
            found.append("bf16 has 8 bits of precision: judge it with `lineside evaluate` if the checkpoint was fp32")
    return found


def _write_gguf(vlm: VLM, checkpoint: Path, folder: Path, weights: str, step: Step) -> None:
    from lineside.exporting import gguf_files

    gguf_files.write(vlm, folder, weights, step)


def _write_openvino(vlm: VLM, checkpoint: Path, folder: Path, weights: str, step: Step) -> None:
    from lineside.exporting import openvino_files

    openvino_files.write(vlm, folder, weights, step)
    _write_pipeline(vlm, checkpoint, folder, "openvino", openvino_files.FILES, openvino_files.settings_of(weights))


def _write_onnx(vlm: VLM, checkpoint: Path, folder: Path, weights: str, step: Step) -> None:
    from lineside.exporting import onnx_files

    onnx_files.write(vlm, folder, step)
    _write_pipeline(vlm, checkpoint, folder, "onnx", onnx_files.FILES, {})


def _write_merged(vlm: VLM, checkpoint: Path, folder: Path, weights: str, step: Step) -> None:
    step("weights")
    vlm.model.to(DTYPES[weights])
    save(vlm, folder)
    for name in (TASKS, CALIBRATION):
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)


def _write_pipeline(
    vlm: VLM, checkpoint: Path, folder: Path, runtime: str, names: dict[str, str], settings: dict[str, str]
) -> None:
    """What run.py needs beside the graphs: tokenizer, prompt, preparation of pictures, and run.py itself."""
    processor: Any = vlm.image_processor
    size, crop = dict(processor.size), getattr(processor, "do_center_crop", False)
    shape = dict(processor.crop_size) if crop else size
    render = vlm.render
    facts = {
        "runtime": runtime,
        "files": names,
        "settings": settings,
        "picture": {
            "width": shape["width"],
            "height": shape["height"],
            "shortest_edge": size.get("shortest_edge"),
            "resample": int(getattr(processor, "resample", 3)),
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
        },
        "prompt": {
            "open": render.prefix(()),
            "close": render.question("", thinking=True),
            "think": (render.think_open, render.think_close),
            "image": render.image_id,
            "image_tokens": render.image_tokens(shown_as(1)[0]),
            "eos": render.eos_id,
            "control": sorted(vlm.tokenizer.added_tokens_decoder),
            "context": vlm.context,
        },
        "thinking": dict(vlm.thinking.tasks),
    }
    write_atomic(folder / "pipeline.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
    write_atomic(folder / "run.py", files("lineside.exporting").joinpath("runner.py").read_bytes())
    if (checkpoint / TASKS).exists():
        shutil.copyfile(checkpoint / TASKS, folder / TASKS)


def _llama_cpp(vlm: VLM, folder: Path) -> contextlib.AbstractContextManager[Engine]:
    from lineside.exporting.llama_cpp import running

    return running(vlm, folder)


TARGETS: dict[To, Target] = {
    "gguf": Target(
        ("bf16", "fp32", "q8_0"), ("gguf",), "xllamacpp", _write_gguf, _llama_cpp, unchecked=True, prepare=True,
    ),
    "openvino": Target(
        ("fp16", "fp32", "int8"), ("openvino",), "openvino", _write_openvino,
        lambda vlm, folder: contextlib.nullcontext(Exported(folder)),
    ),
    "onnx": Target(
        ("fp32",), ("onnx", "onnxscript"), "onnxruntime", _write_onnx,
        lambda vlm, folder: contextlib.nullcontext(Exported(folder)),
    ),
    "merged": Target(
        ("bf16", "fp32"), (), "transformers", _write_merged,
        lambda vlm, folder: contextlib.nullcontext(Transformers(folder)),
    ),
}  # fmt: skip
assert set(TARGETS) == set(get_args(To))


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
