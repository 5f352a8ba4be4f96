"""GGUF files: what is refused, the names and orders in the files, and llama.cpp's own answers where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lineside.errors import LinesideError
from lineside.exporting import check as checking
from lineside.exporting import gguf_files
from lineside.exporting.engines import Ours
from lineside.exporting.targets import problem
from lineside.model.config import read_config
from tests.exporting.conftest import lively
from tests.model.tokenizers import KINDS

gguf = pytest.importorskip("gguf", reason="the extra 'export' is not installed")

SIGLIP = {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}
NANO = {
    "model": {"type": "BPE"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}],
    },
}


def test_rows_are_interleaved_as_llama_cpp_turns_them() -> None:
    # Two heads of width 4: transformers turns (0, 2) and (1, 3) together, llama.cpp neighbours.
    found = gguf_files.interleaved(torch.arange(8.0)[:, None], heads=2).flatten().tolist()
    assert found == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"vision_config": {"model_type": "lineside_efficientnet_lite"}},
            "EfficientNet has no form .*use --to openvino",
        ),
        ({"vision_config": {"model_type": "dinov2"}}, "encoder of type 'dinov2'"),
        ({"text_config": {"model_type": "gemma3"}}, "type 'gemma3' is not known: expected one of llama, qwen2, qwen3"),
        ({"text_config": {"model_type": "llama", "hidden_act": "gelu"}}, "with silu, this language model has 'gelu'"),
        (
            {"text_config": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}}},
            "positions of type 'yarn'",
        ),
        (
            {"vision_config": {"model_type": "clip_vision_model"}, "vision_feature_select_strategy": "full"},
            "class token of CLIP",
        ),
    ],
)
def test_what_gguf_cannot_carry_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = {**SIGLIP, "text_config": {"model_type": "llama"}}
    assert problem("gguf", config, NANO) == ""
    found = problem("gguf", config | change, NANO)
    with pytest.raises(LinesideError, match=message):
        raise LinesideError(found)


def test_vllm_needs_a_head_width_that_it_has() -> None:
    text = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8}
    config = {**SIGLIP, "text_config": text}
    assert "vLLM has no kernel for heads of 8 numbers" in problem("merged", config, NANO, serve="vllm")
    assert problem("merged", config, NANO) == ""
    assert problem("merged", {**SIGLIP, "text_config": text | {"head_dim": 64}}, NANO, serve="vllm") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_each_tokenizer_is_named_or_refused(kind: str) -> None:
    stated = json.loads(KINDS[kind]().backend_tokenizer.to_str())  # pyright: ignore[reportAttributeAccessIssue]
    found = problem("gguf", {**SIGLIP, "text_config": {"model_type": "llama"}}, stated)
    known = {"nano": "smollm", "chatml": "gpt-2", "plain": "gpt-2", "headers": "llama-bpe", "chatml-words": "llama-bpe"}
    if kind in known:
        assert found == "" and gguf_files.PRE_TOKENIZERS[gguf_files.pre_tokenizer(stated)] == known[kind]
    elif kind in ("unigram", "unigram-nfkc", "loose"):
        assert "is not written: only byte-level BPE is" in found


def test_the_files_hold_the_weights(tmp_path: Path) -> None:
    vlm = lively("qwen2")
    gguf_files.write(vlm, tmp_path, "fp32", lambda part: None)
    text = {t.name: t for t in gguf.GGUFReader(tmp_path / gguf_files.TEXT).tensors}
    state = vlm.language_model.state_dict()
    np.testing.assert_array_equal(text["blk.1.attn_q.bias"].data, state["layers.1.self_attn.q_proj.bias"].numpy())
    np.testing.assert_array_equal(text["token_embd.weight"].data, state["embed_tokens.weight"].numpy())
    assert "output.weight" not in text  # tied to the embeddings
    fields = gguf.GGUFReader(tmp_path / gguf_files.PICTURES).fields
    assert fields["clip.vision.block_count"].contents() == 2  # one before feature layer -2, and one that never runs
    assert fields["clip.vision.image_mean"].contents() == list(vlm.image_processor.image_mean)


@pytest.mark.parametrize(
    "lm, weights, kind",
    [
        pytest.param("llama", "fp32", "nano", marks=pytest.mark.slow),  # as in test_export.py
        ("llama", "q8_0", "chatml"),
        ("qwen2", "bf16", "nano"),
        ("qwen3", "fp32", "headers"),
    ],
)
def test_llama_cpp_answers_as_we_do(tmp_path: Path, lm: str, weights: str, kind: str) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'export' is not installed")
    from lineside.exporting.llama_cpp import running

    vlm = lively(lm, tokenizer=KINDS[kind]())
    gguf_files.write(vlm, tmp_path, weights, lambda part: None)
    asked = checking.questions(vlm)
    ours = checking.answers(Ours(vlm), asked, "ours")
    with running(vlm, tmp_path) as engine:
        found = checking.compare(vlm, ours, engine, asked, weights=weights, prepare=True)
    assert found.other_prompts == [] and found.overall is not None
    assert found.overall.max_difference < {"fp32": 5e-3, "bf16": 0.3, "q8_0": 0.5}[weights]
    assert found.overall.steps >= 90
    if weights == "fp32" and kind == "nano":  # with others a random model begins with a token that ends an answer
        assert found.overall.greedy_same == 8
        # The trap: a picture that is not square is padded by llama.cpp, and the answer is about other pixels.
        assert found.unprepared["square"].max_difference < 0.01 < found.unprepared["wide"].max_difference
        assert found.unprepared["tall"].max_difference > 0.01


def test_files_that_llama_cpp_cannot_load_are_named(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'export' is not installed")
    from lineside.exporting.llama_cpp import running

    for name in (gguf_files.TEXT, gguf_files.PICTURES):
        (tmp_path / name).write_bytes(b"GGUF but not really")
    with pytest.raises(LinesideError, match="cannot load the files"), running(lively(), tmp_path):
        pass


def test_read_config_has_what_problem_reads(checkpoint: Path) -> None:
    stated = json.loads((checkpoint / "tokenizer.json").read_text())
    assert problem("gguf", read_config(checkpoint), stated) == ""


def test_an_end_is_counted_once() -> None:
    from lineside.exporting.llama_cpp import LlamaCpp

    engine = LlamaCpp.__new__(LlamaCpp)
    engine.image, engine.eos, engine.vocabulary, engine.mark = 0, 2, 3, "<mark>"

    def answers(*tokens: int, stop: str = "eos") -> tuple[int, ...]:
        step = [{"id": 1, "logprob": -0.5}, {"id": 2, "logprob": -1.0}]
        told = [{"id": token, "top_logprobs": step} for token in tokens]
        engine._post = lambda path, body: {"prompt": "", "stop_type": stop, "completion_probabilities": told}
        return engine.respond([], "how many?", thinking=True, max_new_tokens=4).tokens

    assert answers(1, 1, 2) == (1, 1, 2)
    assert answers() == (2,)
    assert answers(1, 1, stop="limit") == (1, 1)
