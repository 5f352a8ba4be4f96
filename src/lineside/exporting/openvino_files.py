"""OpenVINO: three graphs converted from torch, the decoder with its keys and values as state.

The decoder has the inputs that OpenVINO's own language models have (`inputs_embeds`, `attention_mask`, `position_ids`,
`beam_idx`), and so the file names. int8 is symmetric, one scale an output channel, in the matrices of the language
model; encoder and projector stay fp16. Left out: int4, which changes a tenth of the answers (docs/experiments.md), and
nncf, whose per-channel int8 is the same arithmetic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lineside.exporting.graphs import INPUTS, Decoder, Embedding, Vision, past_names
from lineside.machine import without_telemetry
from lineside.model.vlm import VLM

without_telemetry()
FILES = {
    "vision": "openvino_vision_embeddings_model.xml",
    "embedding": "openvino_text_embeddings_model.xml",
    "decoder": "openvino_language_model.xml",
}
# What the plugin chooses by itself depends on the processor (bf16 where it has AMX) and stores keys and values in u8.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "PERFORMANCE_HINT": "LATENCY"}
DYNAMIC = "DYNAMIC_QUANTIZATION_GROUP_SIZE"  # activations of int8 matrices in int8, in groups of this many; 0: not


def settings_of(weights: str) -> dict[str, str]:
    """Properties of the CPU plugin in which an export is checked, and that `run.py` sets."""
    return SETTINGS | {DYNAMIC: "0" if weights != "int8" else "32"}


@torch.no_grad()
def write(vlm: VLM, folder: Path, weights: str, step: Callable[[str], None]) -> None:
    """Write the graphs. `vlm` is in float32. `step` is called with the name of each part before it is made."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    side = int(vlm.tower.config.image_size)
    step("encoder and projector")
    # torch.export, because a tracer takes the sizes in EfficientNet's padding for tensors
    rows = {0: torch.export.Dim.DYNAMIC}
    vision = ov.convert_model(
        torch.export.export(Vision(vlm).eval(), (torch.zeros(2, 3, side, side),), dynamic_shapes=(rows,))
    )
    _name(vision.inputs, ["pixel_values"])
    ov.save_model(vision, folder / FILES["vision"], compress_to_fp16=weights != "fp32")
    step("embeddings")
    embedding = _converted(Embedding(vlm), torch.zeros(1, 2, dtype=torch.long), input=[ov.PartialShape([-1, -1])])
    _name(embedding.inputs, ["input_ids"])
    ov.save_model(embedding, folder / FILES["embedding"], compress_to_fp16=weights != "fp32")
    step("language model")
    write_decoder(vlm, folder, weights)


def write_decoder(vlm: VLM, folder: Path, weights: str) -> None:
    """Write the graph of the language model alone."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    decoder = _decoder(vlm)
    if weights == "int8":
        for matmul in _linears(decoder):
            _compress(matmul)
    ov.save_model(decoder, folder / FILES["decoder"], compress_to_fp16=weights != "fp32")


def _converted(graph: torch.nn.Module, example: Any, **more: Any) -> Any:
    import openvino as ov  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        # What it warns of is constant in a graph.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        return ov.convert_model(graph.eval(), example_input=example, **more)


def _decoder(vlm: VLM) -> Any:
    """The decoder as a stateful model."""
    import openvino as ov  # pyright: ignore[reportMissingImports]
    from openvino.passes import MakeStateful, Manager  # pyright: ignore[reportMissingImports]

    graph = Decoder(vlm, reorder=True)
    past = graph.empty(2, 3)
    width = vlm.model.get_input_embeddings().weight.shape[1]
    example = (
        torch.zeros(2, 2, width),
        torch.ones(2, 5, dtype=torch.long),
        torch.tensor([[3, 4]] * 2),
        torch.tensor([0, 1], dtype=torch.int32),
        *past,
    )
    model = _converted(graph, example)
    heads, size = past[0].shape[1], past[0].shape[3]
    shapes = [[-1, -1, width], [-1, -1], [-1, -1], [-1], *([[-1, heads, -1, size]] * len(past))]
    kept, present = past_names(len(past))
    _name(model.inputs, [*INPUTS, "beam_idx", *kept])
    _name(model.outputs, ["logits", *present])
    for port, shape in zip(model.inputs, shapes, strict=True):
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    model.validate_nodes_and_infer_types()
    manager = Manager()
    manager.register_pass(MakeStateful(dict(zip(kept, present))))
    manager.run_passes(model)
    _begin_empty(model)
    return model


def _begin_empty(model: Any) -> None:
    """The state begins with no tokens and as many rows as the embeddings have; by default it would have no rows."""
    from openvino import opset13 as op  # pyright: ignore[reportMissingImports]

    embeds = model.input("inputs_embeds").get_node()
    rows = op.gather(op.shape_of(embeds, output_type="i64"), op.constant(np.array([0])), op.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            rest = [op.constant(np.array([n], np.int64)) for n in (heads.get_length(), 0, width.get_length())]
            zeros = op.broadcast(op.constant(np.float32(0)), op.concat([rows, *rest], axis=0))
            node.set_arguments([zeros])
    model.validate_nodes_and_infer_types()


def _name(ports: Any, names: list[str]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})


def _linears(model: Any) -> Iterator[Any]:
    """The products with a constant matrix."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant":
            yield node


def _compress(matmul: Any) -> None:
    """Put int8 numbers and a scale an output channel in place of a matrix. The plugin keeps this pattern as int8."""
    from openvino import opset13 as op  # pyright: ignore[reportMissingImports]

    matrix = matmul.input_value(1).get_node()
    whole, scale = quantised(matrix.data, axis=1 if matmul.get_attributes()["transpose_b"] else 0)
    numbers = op.convert(op.constant(whole), "f32")
    matmul.input(1).replace_source_output(op.multiply(numbers, op.constant(scale)).output(0))


def quantised(matrix: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix -> int8 numbers from -127 to 127, and their float32 scales along `axis`: matrix ~ numbers * scales."""
    scale = np.abs(matrix).max(axis=axis, keepdims=True).astype(np.float32) / 127
    scale[scale == 0] = 1
    return np.rint(matrix / scale).astype(np.int8), scale
