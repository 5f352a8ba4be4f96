"""The whole line on tiny parts by folder: every stage trained, judged and reported; run again it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import lineside
import lineside.train
from lineside.ask import ask
from lineside.data.store import read_samples, write_samples
from lineside.errors import CheckFailed, LinesideError
from lineside.label import CONTROL
from lineside.model.checkpoint import dtype_of
from lineside.model.nano import train_tokenizer
from lineside.recipe import Recipe, load_recipe
from lineside.simulate import simulate
from lineside.train import _Run, encode, train
from lineside.types import Image, Meta, Sample, Source, Target
from tests.conftest import TEXTS, picture

ASKED = "how many red cans are in the bin?"


def save_parts(folder: Path, encoder: str) -> None:
    """A vision tower and an LM that have never met, as folders on disk."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if encoder == "siglip":
        SiglipVisionModel(SiglipVisionConfig(**size, image_size=32, patch_size=8)).save_pretrained(folder / "encoder")
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "encoder")
    else:
        CLIPVisionModel(CLIPVisionConfig(**size, image_size=32, patch_size=8)).save_pretrained(folder / "encoder")
        square = {"height": 32, "width": 32}
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder / "encoder")
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.save_pretrained(folder / "lm")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "lm")


def rows(split: str, frames: range) -> list[Sample]:
    """Captions, questions and (in train) prompts of frames of noise; the answer is 3 or 5."""
    out = []
    for frame in frames:
        count = 3 if frame % 2 else 5
        target = Target(kind="number", provenance="sim", value=float(count), tolerance=2.0)
        base = Sample(
            id=f"{split}-{frame}", kind="qa", images=(Image(picture(frame)),), family="picking", task="count_all",
            question=ASKED, trace=f"left: 2 red can; right: {count - 2} red can; so {count}", answer=str(count),
            target=target, split=split, meta=Meta(scene=f"{split}{frame}"), source=Source("sim"),
        )  # fmt: skip
        wrong = Meta(scene=f"{split}{frame}", extra={"wrong": "the bin holds 9 red cans", "wrong_attribute": "count"})
        caption = f"the bin holds {count} red cans"
        out += [
            replace(
                base,
                id=base.id + "-c",
                kind="caption",
                question="",
                trace=None,
                answer=caption,
                target=None,
                meta=wrong,
            ),
            base,
        ]
        if split == "train":
            out.append(replace(base, id=base.id + "-p", kind="prompt", trace=None, answer=None))
    return out


def recipe(tmp_path: Path, **changes: object) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: tiny
runs: {tmp_path / "runs"}
data: {{samples: {tmp_path / "samples"}}}
parts: {{preset: siglip, encoder: {tmp_path / "encoder"}, lm: {tmp_path / "lm"}}}
dtype: fp32
align: {{epochs: 2, step_tokens: 400}}
sft: {{epochs: 40, step_tokens: 300, learning_rate: {{projector: 1e-2, lm: 1e-2}}}}
rlvr: {{epochs: 1, prompts: 4, group_size: 4, max_new_tokens: 32}}
evaluate: {{max_new_tokens: 32}}
""")
    return load_recipe(path, [f"{key}={value}" for key, value in changes.items()])


@pytest.mark.parametrize("encoder", ["siglip", "clip"])
def test_the_line_from_parts_to_a_judged_model(
    tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parts(tmp_path, encoder)
    train_rows = rows("train", range(12))
    write_samples(tmp_path / "samples", train_rows + rows("dev", range(20, 23)) + rows("heldout", range(30, 36)))
    twins = [replace(s, kind="qa", trace="left: 2 red can; so 3", answer="3") for s in train_rows if s.kind == "prompt"]
    write_samples(tmp_path / "samples" / CONTROL, twins)
    folder = train(recipe(tmp_path))

    schema = json.loads((Path(lineside.__file__).parent / "evaluation.schema.json").read_text())
    for stage in ("align", "sft", "rlvr", "control"):
        assert (folder / stage / "checkpoint" / "model.safetensors").exists()
        for mode in ("think", "fast") if stage != "align" else ("think",):
            found = json.loads((folder / "evaluation" / f"{stage}-heldout-{mode}.json").read_text())
            jsonschema.validate(found, schema)
            assert found["n"] == 6 and found["blind"] is not None and found["classifier"] is not None
    page = (folder / "report.html").read_text()
    assert "</html>" in page and "The data" in page
    card = json.loads((folder / "data.json").read_text())
    assert card["rows"] == {f"{kind}-train": 12 for kind in ("caption", "qa", "prompt")} | {
        f"{kind}-{split}": n for split, n in (("dev", 3), ("heldout", 6)) for kind in ("caption", "qa")
    }
    assert card["tasks"]["picking/count_all"]["commonest"] == [
        {"answer": "5", "share": 0.5},
        {"answer": "3", "share": 0.5},
    ]
    assert all(card["checks"][name]["ok"] for name in ("picture leak", "scene leak", "prompt leak", "targets"))
    told = capsys.readouterr()
    assert "ask it yourself" in told.err
    assert "too little data (scenes needed: all tasks +" in told.out  # six scenes

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    train(recipe(tmp_path))  # done: nothing is trained again
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    with pytest.raises(LinesideError, match="begun with another recipe: seed: 0 -> 1"):
        train(recipe(tmp_path, seed=1))

    ask(folder / "rlvr" / "checkpoint", folder / "example.jpg", ASKED)
    assert capsys.readouterr().out


def test_settings_of_a_stage_may_change_until_it_has_begun(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    folder = train(recipe(tmp_path, control="false"), last="align")
    changes: dict[str, object] = {"control": "false", "sft.epochs": 2, "rlvr.epochs": 0.5}
    train(recipe(tmp_path, **changes), last="sft")
    assert load_recipe(folder / "recipe.yaml").sft.epochs == 2
    with pytest.raises(LinesideError, match=r"another recipe: sft\.epochs: 2\.0 -> 3\.0\."):
        train(recipe(tmp_path, **changes | {"sft.epochs": 3}))
    with pytest.raises(LinesideError, match=r"another recipe: align\.epochs: 2\.0 -> 3\.0\."):
        train(recipe(tmp_path, **changes | {"align.epochs": 3}))


def test_a_run_keeps_the_number_format_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    monkeypatch.setattr(lineside.train, "compute_dtype", lambda choice: torch.bfloat16)
    folder = train(recipe(tmp_path, dtype="auto"), last="align")
    monkeypatch.setattr(lineside.train, "compute_dtype", lambda choice: torch.float32)  # a busy neighbour
    train(recipe(tmp_path, dtype="auto"), last="sft")
    assert dtype_of(folder / "sft" / "checkpoint") == torch.bfloat16


def test_a_first_look_is_taken_of_few_frames_and_costs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parts(tmp_path, "siglip")
    frames = {"families": ["returns"], "frames": {"train": 5, "dev": 1, "heldout": 2, "shifted": 0}, "size": 56}
    few = recipe(tmp_path, **{"data.samples": "null", "data.simulate": json.dumps(frames)})
    run = _Run(few, few.folder)
    rendered: list[int] = []
    monkeypatch.setattr(lineside.train, "simulate", lambda *a, **k: rendered.append(simulate(*a, **k)))
    monkeypatch.setattr(lineside.train, "LOOK", 2)
    run.begin()
    run.look()
    shown = "".join(capsys.readouterr())
    assert rendered == [5] and "at 2 of 5 training frames" in shown and "share exact" in shown
    assert not (run.folder / "look").exists() and not run.data.exists()

    vlm = run.assembled()[0]
    store, seen = run.store(vlm), len(run.store(vlm))
    run.frames()
    run.samples()
    assert rendered == [5, 3]
    for split in ("train", "heldout"):
        for sample in read_samples(run.data, kind="qa", split=split):
            store.get(sample.images)
    assert seen and len(store) - seen == store.encoder_calls <= 3  # those of the look lie in the store
    run.look()
    assert rendered == [5, 3]  # labelled frames were looked at
    monkeypatch.setattr(lineside.train, "LOOK", 3)  # nearly all: nothing to wait for
    _Run(few, tmp_path / "other").look()
    assert rendered == [5, 3]


def test_what_is_judged_may_not_be_trained_on(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(
        tmp_path / "samples", rows("train", range(8)) + rows("heldout", range(7, 12))
    )  # frame 7 on both sides
    with pytest.raises(CheckFailed, match="picture leak, prompt leak: what is judged would have been trained on"):
        train(recipe(tmp_path), last="align")
    assert not (tmp_path / "runs" / "tiny" / "parts").exists()
    train(recipe(tmp_path, **{"data.check": "false"}), last="align")


def test_what_is_mixed_in_is_trained_on_and_may_not_be_judged(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(8)) + rows("heldout", range(30, 34)))
    write_samples(tmp_path / "more", rows("train", range(40, 44)))
    folder = train(recipe(tmp_path, **{"data.mix": [{"samples": str(tmp_path / "more"), "weight": 0.5}]}), last="align")
    alone = train(recipe(tmp_path, name="alone"), last="align")
    assert sum(s["tokens"] for s in _rows(folder)) == pytest.approx(
        1.5 * sum(s["tokens"] for s in _rows(alone)), rel=0.1
    )

    write_samples(tmp_path / "leaky", rows("train", range(33, 36)))  # frame 33 is in the suite
    leaky = recipe(tmp_path, name="leaky", **{"data.mix": [{"samples": str(tmp_path / "leaky")}]})
    with pytest.raises(CheckFailed, match="is in the suite heldout of"):
        train(leaky, last="align")


def test_variants_of_the_pictures_are_encoded_before_the_stage_and_trained_on(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(8)) + rows("heldout", range(30, 34)))
    plain = train(recipe(tmp_path, name="plain"), last="align")
    (index,) = (tmp_path / "runs" / "features").glob("*/index.jsonl")
    before = _pictures_in(index)
    varied = recipe(tmp_path, name="varied", **{"data.augment": {"variants": 3, "crop": 0.4, "light": 0.2}})
    folder = train(varied, last="align")
    assert _pictures_in(index) - before == 2 * 8  # two more of each of the eight training pictures, none of the suite's
    assert [s["tokens"] for s in _rows(folder)] == [s["tokens"] for s in _rows(plain)]
    assert [s["loss"] for s in _rows(folder)] != [s["loss"] for s in _rows(plain)]


def test_shards_encode_what_one_process_does_and_training_encodes_nothing_more(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    with pytest.raises(LinesideError, match="no samples yet"):
        encode(recipe(tmp_path), shard=(0, 2))
    with pytest.raises(LinesideError, match="shard 2/2: expected"):
        encode(recipe(tmp_path), shard=(2, 2))
    write_samples(tmp_path / "samples", rows("train", range(8)) + rows("heldout", range(30, 35)))
    varied = {"data.augment": {"variants": 3, "light": 0.2}}
    alone, shared = (recipe(tmp_path, name=name, runs=tmp_path / name, **varied) for name in ("alone", "shared"))
    assert encode(alone) == 8 * 3 + 5
    assert [encode(shared, shard=(rank, 2)) for rank in (1, 0)] == [14, 15]
    assert encode(shared, shard=(1, 2)) == 14  # again: nothing is encoded twice
    found = []
    for settings in (alone, shared):
        (index,) = (settings.runs / "features").glob("*/index.jsonl")
        assert _pictures_in(index) == 29
        run = _Run(settings, settings.folder)
        store = run.store(run.assembled()[0])
        frames = run._pictures(8)
        pictures = [replace(image, variant=variant) for image in frames for variant in range(3)]
        found.append(store.get(pictures))
        assert store.encoder_calls == 0
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    train(shared, last="align")
    assert _pictures_in(index) == 29


def _pictures_in(index: Path) -> int:
    return sum(len(json.loads(line)["k"]) for line in index.read_text().splitlines())


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "align" / "metrics.jsonl").read_text().splitlines()]
