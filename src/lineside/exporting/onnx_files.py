"""ONNX: three graphs written by torch's exporter, in float32. Keys and values go in and come out of the decoder.

The names of inputs and outputs are those that ONNX Runtime's tools use for language models. Left out: fp16 and int8,
which ONNX Runtime's own tools make of these files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.export import Dim

from lineside.exporting.graphs import INPUTS, Decoder, Embedding, Vision, past_names
from lineside.model.vlm import VLM

FILES = {"vision": "vision_embeddings.onnx", "embedding": "text_embeddings.onnx", "decoder": "language_model.onnx"}


@torch.no_grad()
def write(vlm: VLM, folder: Path, step: Callable[[str], None]) -> None:
    """Write the graphs. `vlm` is in float32. `step` is called with the name of each part before it is made."""
    side = int(vlm.tower.config.image_size)
    rows = Dim.DYNAMIC
    step("encoder and projector")
    _export(
        Vision(vlm), (torch.zeros(2, 3, side, side),), folder / FILES["vision"],
        ["pixel_values"], ["embeddings"], ({0: rows},),
    )  # fmt: skip
    step("embeddings")
    _export(
        Embedding(vlm), (torch.zeros(2, 3, dtype=torch.long),), folder / FILES["embedding"],
        ["input_ids"], ["embeddings"], ({0: rows, 1: rows},),
    )  # fmt: skip
    step("language model")
    write_decoder(vlm, folder)


@torch.no_grad()
def write_decoder(vlm: VLM, folder: Path) -> None:
    """Write the graph of the language model alone."""
    rows = Dim.DYNAMIC
    graph = Decoder(vlm, reorder=False)
    past = graph.empty(2, 3)
    width = vlm.model.get_input_embeddings().weight.shape[1]
    kept, present = past_names(len(past))
    given = (torch.zeros(2, 4, width), torch.ones(2, 7, dtype=torch.long), torch.tensor([[3, 4, 5, 6]] * 2), *past)
    moving = {0: rows, 1: rows}
    _export(
        graph, given, folder / FILES["decoder"],
        [*INPUTS, *kept], ["logits", *present],
        (moving, moving, moving, tuple({0: rows, 2: rows} for _ in past)),
    )  # fmt: skip


def _export(
    graph: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    dynamic: tuple[object, ...],
) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval(), example, str(path),
            input_names=inputs, output_names=outputs, dynamic_shapes=dynamic, dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
