"""Checkpoints are standard folders: transformers alone computes the same numbers; a killed save loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
)

from lineside.errors import LinesideError
from lineside.families import PROVEN_LMS
from lineside.images import decode
from lineside.model.checkpoint import load, save
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK
from lineside.model.vlm import check_language_model
from lineside.recipe import Parts
from lineside.training.skeleton import skeleton
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = make_tiny_vlm()
    save(vlm, tmp_path / "checkpoint")
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}

    def full(folder: Path, *_args: object, **_options: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(vlm.model, "save_pretrained", full)
    with pytest.raises(LinesideError, match=r"cannot write the checkpoint .*: the disk is full.*is kept"):
        save(vlm, tmp_path / "checkpoint")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]  # half a checkpoint would keep the disk full


@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_transformers_alone_gives_the_same_logits(tmp_path: Path, lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    save(vlm, tmp_path / "checkpoint")
    ours = load(tmp_path / "checkpoint")
    data = picture(3)
    prompt = ours.render.prefix([BLANK]) + ours.render.question("how many red cans?", thinking=True)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([prompt]), pixel_values=ours.pixels([decode(data)])).logits[0, -1]
    logits[ours.render.image_id] = float("-inf")
    ((rollout,),) = generate(
        ours,
        FeatureStore(None, ours, dtype=torch.float32),
        [Prompt((Image(data),), "how many red cans?", True)],
        max_new_tokens=1,
    )
    assert rollout.tokens[0] == int(logits.argmax())
    torch.testing.assert_close(
        torch.tensor(rollout.sampler_logprobs[0]), logits.log_softmax(-1).max(), atol=1e-4, rtol=1e-4
    )


def test_weights_have_the_names_of_published_llava_folders(tmp_path: Path) -> None:
    save(make_tiny_vlm(), tmp_path / "first")
    save(load(tmp_path / "first"), tmp_path / "second")
    for folder in ("first", "second"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert {
            "vision_tower.vision_model.embeddings.patch_embedding.weight",
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "multi_modal_projector.linear_1.weight",
            "language_model.model.embed_tokens.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight",
        } <= names
        assert {name.split(".")[0] for name in names} <= {"vision_tower", "multi_modal_projector", "language_model"}


@pytest.mark.parametrize("thinking", [True, False])
def test_the_saved_processor_writes_our_prompt(tmp_path: Path, thinking: bool) -> None:
    vlm = make_tiny_vlm()
    save(vlm, tmp_path / "checkpoint")
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint", backend="pil")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a blue box?"}]}]
    text = processor.apply_chat_template(messages, enable_thinking=thinking, add_generation_prompt=True)
    rgb = PILImage.fromarray(__import__("numpy").zeros((40, 40, 3), "uint8"))
    ids = processor(text=text, images=[rgb], return_tensors="pt")["input_ids"][0].tolist()
    assert tuple(ids) == vlm.render.prefix([BLANK]) + vlm.render.question("is there a blue box?", thinking=thinking)


@pytest.mark.parametrize(
    "processor",
    [
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    ],
)
def test_pixels_are_those_of_the_transformers_processor(processor: object) -> None:
    vlm = make_tiny_vlm()
    vlm.family.image_processor = processor
    pictures = [decode(picture(seed, size)) for seed, size in ((0, 48), (1, 32), (2, 75))]
    theirs = processor(images=pictures, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    torch.testing.assert_close(vlm.pixels(pictures), theirs, atol=1e-5, rtol=1e-5)


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path: Path) -> None:
    """A server, in a container too, is another user than the one that trained."""
    save(make_tiny_vlm(), tmp_path / "checkpoint")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "checkpoint").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_saving_twice_and_a_save_killed_between_renames(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    folder, name = tmp_path / "checkpoint", "linear_1.weight"
    save(vlm, folder)
    with torch.no_grad():
        vlm.projector.get_parameter(name).add_(1.0)
    save(vlm, folder)
    assert torch.equal(load(folder).projector.get_parameter(name), vlm.projector.get_parameter(name))
    folder.rename(folder.with_name("checkpoint.old"))  # what a kill between the two renames leaves
    assert torch.equal(load(folder).projector.get_parameter(name), vlm.projector.get_parameter(name))
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="no checkpoint at"):
        load(tmp_path / "nothing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(LinesideError, match=r"type .llama.: this family is not supported; supported: llava"):
        load(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text("{")
    with pytest.raises(LinesideError, match="cannot be read as JSON"):
        load(tmp_path / "text")


def test_it_is_loaded_in_the_format_it_was_judged_in(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    save(vlm, tmp_path / "wide")
    vlm.model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    save(vlm, tmp_path / "narrow")
    assert (load(tmp_path / "wide").dtype, load(tmp_path / "narrow").dtype) == (torch.float32, torch.bfloat16)
    assert load(tmp_path / "narrow", dtype=torch.float32).dtype == torch.float32
    assert not any(weight.requires_grad for weight in load(tmp_path / "narrow").model.parameters())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        save(make_tiny_vlm(), tmp_path / name / "sft" / "checkpoint")
        return tmp_path / name / "sft" / "checkpoint"

    whole = saved("run")
    for above in whole.parents[:2]:  # the stage's folder, the run's folder
        with pytest.raises(LinesideError, match=rf"no checkpoint at {above}: .* Did you mean {whole}\?"):
            load(above)
    with pytest.raises(LinesideError, match="no checkpoint at"):
        load(whole / "config.json")
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        folder = saved(f"no-{name}")
        (folder / name).unlink()
        with pytest.raises(LinesideError, match="Expected a whole folder"):
            load(folder)
        folder = saved(f"torn-{name}")
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
        with pytest.raises(LinesideError, match="Expected a whole folder"):
            load(folder)
    weights = load_file(whole / "model.safetensors")
    del weights["multi_modal_projector.linear_2.weight"]
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LinesideError, match=r"lacks 1 of its weights, such as .*linear_2.weight"):
        load(whole)
    (whole / "config.json").write_text("[1]")
    with pytest.raises(LinesideError, match=r"config\.json cannot be read .*should be an object"):
        load(whole)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("gemma3_text", {"num_hidden_layers": 6}, "has sliding-window layers"),
        ("mistral", {"sliding_window": 128}, "has a sliding window"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "has sliding-window layers"),
        ("qwen3_next", {}, "has linear-attention layers"),
        ("minimax", {}, "has linear-attention layers"),
        ("lfm2", {"num_hidden_layers": 4, "full_attn_idxs": [2]}, "has convolution layers"),
        ("mamba", {}, "has state-space layers"),
        ("mamba2", {}, "has state-space layers"),
        ("falcon_h1", {}, "has state-space layers"),
        ("jamba", {}, "has state-space layers"),
        ("granitemoehybrid", {}, "has state-space layers"),
        ("recurrent_gemma", {}, "has linear-attention and sliding-window layers"),
        ("llama4_text", {}, "has chunked-attention layers"),
        ("mistral", {"sliding_window": None}, "its packed path is not proven"),
        ("rwkv", {}, "its packed path is not proven"),
    ],
)
def test_language_models_without_a_proven_path_are_refused(
    kind: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, **settings)
    with pytest.raises(LinesideError, match=f"type '{kind}': (it )?{why}"):
        check_language_model(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(LinesideError, match=why):  # before anything is loaded
        skeleton(Parts(preset="siglip", encoder="google/siglip2-base-patch16-224", lm=str(tmp_path)))


def test_proven_language_models_are_not_refused() -> None:
    for kind in PROVEN_LMS:
        check_language_model(AutoConfig.for_model(kind))
