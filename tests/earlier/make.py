"""Writes files as an earlier version of lineside wrote them, with the code of that version (tests/test_earlier.py).

    git archive b03e042 | tar -x -C OLD
    cd OLD && PYTHONPATH=src:. python .../tests/earlier/make.py .../tests/earlier/b03e042.tar.xz

b03e042 (2026-11-29) is the last commit before models got families, backends and one forward. The archive holds samples,
a run whose stage `sft` was stopped after four steps, the features of its pictures, and `expected.json`: what the code
of then read and computed from them, and how it ended the stage.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM, SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from lineside.data.store import read_samples, write_samples
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.nano import train_tokenizer
from lineside.model.score import score
from lineside.recipe import load_recipe
from lineside.train import train
from lineside.training.stage import Stage, Stopped
from lineside.types import Image, Meta, Sample, Source, Target
from tests.conftest import TEXTS, picture

STOPS_AFTER = 4  # steps of sft
QUESTION = "how many red cans are in the bin?"
RECIPE = """
name: tiny
runs: runs
data: {samples: samples}
parts: {preset: siglip, encoder: encoder, lm: lm}
dtype: fp32
controls: []
align: {epochs: 2, step_tokens: 200}
sft: {epochs: 4, step_tokens: 150, caption_replay: 1, no_think_share: 0.5}
evaluate: {max_new_tokens: 12}
"""


def save_parts() -> None:
    """An encoder and an LM, as small as they can be."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**size, image_size=32, patch_size=16)).save_pretrained("encoder")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained("encoder")
    tokenizer = train_tokenizer(TEXTS, 280)
    tokenizer.save_pretrained("lm")
    config = LlamaConfig(
        **size, vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("lm")


def samples(split: str, frames: range) -> list[Sample]:
    """A caption, a question and (in train) a prompt for each frame of noise."""
    found = []
    for frame in frames:
        count = 3 if frame % 2 else 5
        asked = Sample(
            id=f"{split}-{frame}", kind="qa", images=(Image(picture(frame, size=16)),), family="picking",
            task="count_all", question=QUESTION, trace=f"left: 2 red can; right: {count - 2} red can; so {count}",
            answer=str(count), target=Target(kind="number", provenance="sim", value=float(count), tolerance=2.0),
            split=split, meta=Meta(scene=f"{split}{frame}", cell="c1", extra={"note": "kept"}), source=Source("sim"),
        )  # fmt: skip
        caption = {"kind": "caption", "question": "", "trace": None, "answer": f"the bin holds {count} red cans"}
        found += [replace(asked, id=asked.id + "-c", target=None, **caption), asked]
        if split == "train":
            found.append(replace(asked, id=asked.id + "-p", kind="prompt", trace=None, answer=None))
    return found


def stopping(step):  # type: ignore[no-untyped-def]
    """`Stage.step`, after which sft is stopped as by Ctrl-C."""

    def stepped(self, *arguments, **options):  # type: ignore[no-untyped-def]
        step(self, *arguments, **options)
        if self.label == "sft" and self.steps == STOPS_AFTER:
            self._stop = True

    return stepped


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()]


def make() -> None:
    """Everything, in the working folder."""
    save_parts()
    write_samples(Path("samples"), [*samples("train", range(4)), *samples("heldout", range(10, 12))])
    Path("recipe.yaml").write_text(RECIPE)
    given = load_recipe(Path("recipe.yaml"))
    try:
        with patch.object(Stage, "step", stopping(Stage.step)):
            train(given, last="sft")
    except (Stopped, KeyboardInterrupt):
        pass
    assert list(Path("runs/tiny/sft/state").glob("*.safetensors"))
    shutil.copytree("runs", "begun")
    vlm = load("runs/tiny/align/checkpoint")
    asked = [s for s in read_samples(Path("samples")) if s.kind == "qa"]
    prompts = [Prompt(s.images, s.question, True) for s in asked]
    scored = score(vlm, FeatureStore(None, vlm), prompts, [f"<think>{s.trace}</think>{s.answer}" for s in asked])
    features = FeatureStore(Path("runs/features"), vlm)
    train(given, last="sft")
    expected = {
        "samples": [
            {**asdict(s), "target": s.target and s.target.to_json(), "images": [i.bytes.hex() for i in s.images]}
            for s in read_samples(Path("samples"))
        ],
        "logprobs": {s.id: values.tolist() for s, values in zip(asked, scored)},
        "pictures": len(features),
        "losses": {stage: losses(Path("runs/tiny") / stage) for stage in ("align", "sft")},
        "exact": json.loads(Path("begun/tiny/evaluation/align-heldout-think.json").read_text())["exact"],
    }
    Path("expected.json").write_text(json.dumps(expected, sort_keys=True, default=str))


if __name__ == "__main__":
    archive = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make()
        shutil.rmtree("runs")
        Path("begun").rename("runs")
        made = [Path("expected.json"), Path("recipe.yaml"), *Path("samples").rglob("*"), *Path("runs").rglob("*")]
        with tarfile.open(archive, "w:xz", preset=9) as packed:
            for path in sorted(path for path in made if path.is_file()):
                if not any(word in str(path) for word in ("tensorboard", "report.html", "example-")):
                    packed.add(path)
        print(f"{archive}: {archive.stat().st_size:,} bytes")
