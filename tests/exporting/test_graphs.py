"""The graphs that are exported compute what the model computes, whole or token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lineside.exporting import onnx_files
from lineside.exporting.graphs import Decoder, Vision
from lineside.exporting.openvino_files import quantised
from tests.exporting.conftest import lively


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_the_decoder_continues_a_shared_prefix_by_rows(lm: str) -> None:
    vlm = lively(lm)
    graph = Decoder(vlm, reorder=True).eval()
    ids = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[:, :4] = ids[0, :4]  # a prefix that all rows share
    embeds = vlm.model.get_input_embeddings()(ids)
    dense = vlm.model.lm_head(vlm.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    logits, *past = graph(
        embeds[:1, :4], torch.ones(1, 4).long(), torch.arange(4)[None], torch.tensor([0]), *graph.empty(1, 0)
    )
    torch.testing.assert_close(logits[0, 0], dense[0, 3], atol=1e-5, rtol=1e-5)
    rows = torch.tensor([0, 0, 0])  # one row becomes three
    for start, end in ((4, 6), (6, 7), (7, 9)):
        logits, *past = graph(
            embeds[:, start:end], torch.ones(3, end).long(), torch.arange(start, end).expand(3, -1), rows, *past
        )
        torch.testing.assert_close(logits[:, 0], dense[:, end - 1], atol=1e-5, rtol=1e-5)
        rows = torch.arange(3)


@torch.no_grad()
def test_the_onnx_file_of_a_decoder_computes_it_at_any_number_of_rows_and_tokens(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    vlm = lively()
    del vlm.language_model.layers[1:]
    vlm.language_model.config.num_hidden_layers = 1
    onnx_files.write_decoder(vlm, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / onnx_files.FILES["decoder"])
    graph, generator = Decoder(vlm, reorder=False).eval(), torch.Generator().manual_seed(0)
    for rows, past, new in ((1, 0, 5), (3, 4, 1)):
        kept = [torch.randn(part.shape, generator=generator) for part in graph.empty(rows, past)]
        places = torch.arange(past, past + new).expand(rows, -1)
        given = torch.randn(rows, new, 32, generator=generator), torch.ones(rows, past + new).long(), places, *kept
        names = [one.name for one in session.get_inputs()]
        found = session.run(None, {name: one.numpy() for name, one in zip(names, given, strict=True)})
        for one, want in zip(found, graph(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_vision_graph_is_encoder_and_projector() -> None:
    vlm = lively()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Vision(vlm).eval()(pixels), vlm.projector(torch.stack(vlm.features(pixels))))


def test_int8_has_a_scale_for_each_output_channel() -> None:
    matrix = np.array([[1.27, -0.635], [0.0, 0.0], [-100.0, 50.0]], np.float32)
    whole, scale = quantised(matrix, axis=1)
    assert whole.tolist() == [[127, -64], [0, 0], [-127, 64]]  # 63.5 and 63.5 round to even
    np.testing.assert_allclose(scale, [[0.01], [1.0], [100 / 127]], rtol=1e-6)
    random = np.random.default_rng(0).normal(size=(8, 33)).astype(np.float32)
    whole, scale = quantised(random, axis=1)
    assert np.abs(whole * scale - random).max() <= scale.max() / 2 + 1e-7
