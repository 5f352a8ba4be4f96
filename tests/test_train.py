"""The whole line on tiny parts by folder: every stage trained, judged and reported; run again it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
import lineside.evaluate
import lineside.runtime
import lineside.train
from lineside.ask import ask
from lineside.data.checks import inspect
from lineside.data.store import read_samples, write_samples
from lineside.errors import CheckFailed, LinesideError
from lineside.judgement.closing import examples
from lineside.judgement.paired import rows_by_id
from lineside.label import CONTROL
from lineside.model.checkpoint import dtype_of, load
from lineside.model.nano import train_tokenizer
from lineside.recipe import Recipe, load_recipe
from lineside.serving.pairs import PLAIN, allowed
from lineside.simulate import simulate
from lineside.train import _Run, encode, train
from lineside.training.cost import read_cost
from lineside.training.lineage import note_inputs, read_lineage
from lineside.training.preflight import data_problems
from lineside.types import Image, Meta, Sample, Source, Target
from lineside.verify.traces import problem_of_trace
from lineside.verify.verifiers import verify
from tests.conftest import TEXTS, picture
from tests.test_files import holder

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


@pytest.mark.parametrize("encoder", ["siglip", pytest.param("clip", marks=pytest.mark.slow)])
def test_the_line_from_parts_to_a_judged_model(
    tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parts(tmp_path, encoder)
    train_rows = rows("train", range(12))
    write_samples(tmp_path / "samples", train_rows + rows("dev", range(20, 23)) + rows("heldout", range(30, 36)))
    twins = [replace(s, kind="qa", trace="left: 2 red can; so 3", answer="3") for s in train_rows if s.kind == "prompt"]
    write_samples(tmp_path / "samples" / CONTROL, twins)
    controls = ("traced", "answers", "rejection") if encoder == "siglip" else ("traced",)
    changes: dict[str, object] = {"controls": f"[{', '.join(controls)}]"}
    folder = train(recipe(tmp_path, **changes))

    schema = json.loads((Path(lineside.__file__).parent / "evaluation.schema.json").read_text())
    for stage in ("align", "sft", "rlvr", *controls):
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
    assert "ask it yourself" in told.err and "lineside serve" in told.err
    assert "too little data (scenes needed: all tasks +" in told.out  # six scenes

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    train(recipe(tmp_path, **changes))  # done: nothing is trained again
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    with pytest.raises(LinesideError, match="began with another recipe: seed: 0 -> 1"):
        train(recipe(tmp_path, seed=1, **changes))
    learnt = sum(row["tokens"] for row in _rows(folder, "rlvr"))
    for control in controls:
        *rest, last = [row["tokens"] for row in _rows(folder, control)]
        assert sum(rest) < learnt <= sum(rest) + last  # as many tokens, to the step
        thinking = load(folder / control / "checkpoint").thinking
        assert thinking.tasks == {"picking/count_all": True}  # though answers alone were trained
        assert (f"rlvr less {control}" in told.out and f"{control}: 12 samples" in told.err) or control == "rejection"
        came = read_lineage(folder / control / "checkpoint")
        assert came and came["parent"]["lineage"] == read_lineage(folder / "sft" / "checkpoint")
    assert "stage 3 and what could stand in its place" in told.out and "what could stand in its place" in page
    if "rejection" in controls:
        own = folder / "rejection" / "samples"
        for sample in read_samples(own):
            assert sample.target and verify(sample.answer or "", sample.target).exact and not problem_of_trace(sample)
        assert inspect(own).ok  # as `lineside validate`
        cost = read_cost(folder / "rejection")
        assert cost and cost.seconds["decode"] > 0 and cost.trained > cost.seconds["decode"] + cost.seconds["update"]

    assert allowed(folder / "rlvr" / "checkpoint") == [PLAIN]  # so the command that it prints at its end serves
    judged = rows_by_id(folder / "evaluation" / "rlvr-heldout-think.json")
    for kind, row, image in examples(tmp_path / "samples", "heldout", judged):  # what is judged is what is served
        assert row.exact == (kind == "right") and (folder / f"example-{kind}.jpg").read_bytes() == image.bytes
        said = ask(
            folder / "rlvr" / "checkpoint", folder / f"example-{kind}.jpg", ASKED, task=row.key, max_new_tokens=32
        )
        assert (said.typed.trace, said.typed.text) == (row.trace, row.answer)
        assert row.typed is not None and said.typed == row.typed.model_copy(update={"ms": said.typed.ms})
        assert said.typed.kind == "number" and "not calibrated, n = 3" in said.typed.because
        assert ask(folder / "rlvr" / "checkpoint", folder / f"example-{kind}.jpg", ASKED).typed.task == row.key


def test_settings_of_a_stage_may_change_until_it_has_begun(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    unjudged: dict[str, object] = {"controls": "[]", "evaluate.splits": "[]"}
    folder = train(recipe(tmp_path, **unjudged), last="align")
    changes = {**unjudged, "sft.epochs": 2, "rlvr.epochs": 0.5}
    written = folder / "recipe.yaml"  # as if an earlier version had written it, with old names of keys
    written.write_text(
        written.read_text().replace("  min_lr_ratio:", "  floor:").replace("  no_think_share:", "  fast:", 1)
    )
    train(recipe(tmp_path, **changes), last="sft")
    assert load_recipe(written).sft.epochs == 2  # it has the new names now
    with pytest.raises(LinesideError, match=r"another recipe: sft\.epochs: 2\.0 -> 3\.0\."):
        train(recipe(tmp_path, **changes | {"sft.epochs": 3}))
    with pytest.raises(LinesideError, match=r"another recipe: align\.epochs: 2\.0 -> 3\.0\."):
        train(recipe(tmp_path, **changes | {"align.epochs": 3}))


def test_a_run_that_is_interrupted_while_it_is_judged_asks_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    few, answer = recipe(tmp_path, controls="[]", **{"evaluate.baselines": "false"}), lineside.evaluate.answerer
    asked = list[int]()

    def answerer(*given: Any, **options: Any) -> Any:
        def some(questions: Sequence[Sample]) -> Any:
            if sum(asked) == 2:
                asked.clear()
                raise KeyboardInterrupt
            asked.append(len(questions))
            return answer(*given, **options)(questions)

        return some

    monkeypatch.setattr(lineside.evaluate, "AT_ONCE", 1)
    monkeypatch.setattr(lineside.evaluate, "answerer", answerer)
    with pytest.raises(KeyboardInterrupt):
        train(few, last="align")
    kept = few.folder / "evaluation" / ".align-heldout-think.answers"
    assert len(list(kept.glob("*.rollouts"))) == 2
    capsys.readouterr()
    train(few, last="align")
    assert asked == [1] and "align heldout think: goes on: 2 of 3 answered" in capsys.readouterr().err
    assert not kept.exists()
    kept.mkdir()  # killed right behind the evaluation
    train(few, last="align")
    assert not kept.exists() and asked == [1]


def test_a_run_keeps_the_number_format_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    monkeypatch.setattr(lineside.runtime, "_faster", lambda: torch.bfloat16)
    auto = recipe(tmp_path, dtype="auto", **{"evaluate.splits": "[]", "sft.epochs": 2})
    folder = train(auto, last="align")
    monkeypatch.setattr(lineside.runtime, "_faster", lambda: torch.float32)  # a busy neighbour
    train(auto, last="sft")
    assert dtype_of(folder / "sft" / "checkpoint") == torch.bfloat16
    recorded = load_recipe(folder / "recipe.yaml")  # what auto stood for
    assert recorded.device in ("cpu", "cuda") and recorded.dtype == "bf16"


def test_a_first_look_is_taken_of_few_frames_and_costs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parts(tmp_path, "siglip")
    frames = {"families": ["returns"], "frames": {"train": 5, "dev": 1, "heldout": 2, "shifted": 0}, "size": 56}
    few = recipe(tmp_path, workers=1, **{"data.samples": "null", "data.simulate": json.dumps(frames)})
    run = _Run(few, few.folder)
    rendered: list[int] = []
    monkeypatch.setattr(lineside.train, "simulate", lambda *a, **k: rendered.append(simulate(*a, **k)))
    monkeypatch.setattr(lineside.train, "LOOK", 2)
    run.begin()
    run.look()
    shown = "".join(capsys.readouterr())
    assert rendered == [5] and "2 of 5 training frames" in shown and "share exact" in shown
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
    with pytest.raises(CheckFailed, match="picture leak, prompt leak: the model would be trained on data of a suite"):
        train(recipe(tmp_path), last="align")
    assert not (tmp_path / "runs" / "tiny" / "parts").exists()
    train(recipe(tmp_path, **{"data.check": "false"}), last="align")


def test_what_is_mixed_in_is_trained_on_and_may_not_be_judged(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(8)) + rows("heldout", range(30, 34)))
    write_samples(tmp_path / "more", rows("train", range(40, 44)))
    unjudged: dict[str, object] = {"evaluate.splits": "[]"}
    mixed = {"data.mix": [{"samples": str(tmp_path / "more"), "weight": 0.5}]}
    folder = train(recipe(tmp_path, **unjudged, **mixed), last="align")
    alone = train(recipe(tmp_path, name="alone", **unjudged), last="align")
    assert sum(s["tokens"] for s in _rows(folder)) == pytest.approx(
        1.5 * sum(s["tokens"] for s in _rows(alone)), rel=0.1
    )

    write_samples(tmp_path / "leaky", rows("train", range(33, 36)))  # frame 33 is in the suite
    leaky = recipe(tmp_path, name="leaky", **{"data.mix": [{"samples": str(tmp_path / "leaky")}]})
    with pytest.raises(CheckFailed, match="is also in the suite heldout of"):
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


def test_all_that_is_wrong_is_told_at_once_and_the_name_stays_free(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    wrong = {"data.samples": tmp_path / "sampels", "parts.encoder": tmp_path / "encodr", "rlvr.from": tmp_path / "gone"}
    mixed = {"data.mix": json.dumps([{"samples": str(tmp_path / "more")}]), "data.tasks": "[grocry.yaml]"}
    with pytest.raises(LinesideError) as error:
        train(recipe(tmp_path, **wrong, **mixed))
    message = str(error.value)
    assert message.startswith("5 things to put right before anything is trained:") and len(message.splitlines()) == 6
    for words in (
        f"data.samples: {tmp_path / 'sampels'}: no such folder; did you mean '{tmp_path / 'samples'}'?",
        f"data.mix.0.samples: {tmp_path / 'more'}: no such folder",
        "data.tasks: grocry.yaml: no such task file",
        f"parts.encoder: {tmp_path / 'encodr'}: neither a folder nor a hub id",
        f"rlvr.from: no checkpoint at {tmp_path / 'gone'}",
    ):
        assert words in message
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
    with pytest.raises(LinesideError) as error:  # what is wrong with the data is told beside a path
        train(recipe(tmp_path, **{"data.mix": mixed["data.mix"], "evaluate.splits": "[heldout, dev]"}))
    for words in ("3 things", "data.mix.0.samples", "traced: nothing to train on", "no question of the split dev in"):
        assert words in str(error.value)
    train(recipe(tmp_path, controls="[]", seed=3), last="align")
    (tmp_path / "encoder").rename(tmp_path / "away")  # it is in the run's own checkpoint by now
    train(recipe(tmp_path, controls="[]", seed=3), last="align")


def test_parts_that_are_swapped_are_found_before_anything_is_loaded(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    swapped = {"parts.encoder": tmp_path / "lm", "parts.lm": tmp_path / "encoder"}
    mixed = {"data.mix": json.dumps([{"samples": str(tmp_path / "more")}])}
    with pytest.raises(LinesideError) as error:
        train(recipe(tmp_path, controls="[]", **swapped, **mixed))
    for words in (
        "3 things to put right",
        f"parts.encoder: {tmp_path / 'lm'}: a language model ('llama'): expected a vision encoder",
        f"parts.lm: {tmp_path / 'encoder'}: a model of type 'siglip_vision_model', which is no language model",
        f"data.mix.0.samples: {tmp_path / 'more'}: no such folder",
    ):
        assert words in str(error.value)


def test_what_no_stage_can_use_is_found_before_the_first_is_trained(tmp_path: Path) -> None:
    """Converted rows have neither prompts nor suites: each stage says what it lacks and how to do without it."""
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", [s for s in rows("train", range(6)) if s.kind != "prompt"])
    with pytest.raises(LinesideError) as error:
        train(recipe(tmp_path))
    message = str(error.value)
    for words in (
        "2 things to put right",
        "rlvr: nothing to train on, no prompt samples of the split train",
        "leave the stage out with stages=[align, sft]",
        "evaluate: no question of the split heldout",
        "judge nothing with evaluate.splits=[]",
    ):
        assert words in message
    assert "traced" not in message  # goes with rlvr
    write_samples(tmp_path / "prompts", rows("train", range(6)) + rows("heldout", range(30, 33)))
    with pytest.raises(LinesideError, match=r"traced: .* teacher's answers to stage 3's prompts .* controls=\[\]"):
        train(recipe(tmp_path, name="prompts", **{"data.samples": tmp_path / "prompts"}))
    without: dict[str, object] = {"stages": "[align, sft]", "evaluate.splits": "[]", "sft.epochs": 1}
    folder = train(recipe(tmp_path, **without))
    assert (folder / "sft" / "checkpoint").exists() and not (folder / "rlvr").exists()

    teacher = Target(kind="number", provenance="teacher", value=3.0)
    said = [replace(s, target=teacher) if s.kind != "caption" else s for s in rows("heldout", range(30, 33))]
    bare = [replace(s, target=None) if s.kind == "prompt" else s for s in rows("train", range(6))]
    write_samples(tmp_path / "told", said + bare)
    with pytest.raises(LinesideError) as error:
        train(recipe(tmp_path, name="told", controls="[]", **{"data.samples": tmp_path / "told"}))
    assert "rlvr: 6 prompts without a target, such as train-0-p" in str(error.value)
    assert "no question of the split heldout" in str(error.value)


def test_overlong_samples_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    base = rows("train", range(6))
    long = [replace(base[1], id="long-q", question="how many red cans? " * 60)]
    long += [replace(base[0], id="long-c", answer="a red can, " * 60)]
    long += [replace(base[2], id="long-p", question="how many red cans are there? " * 30)]
    suite = [replace(rows("heldout", range(40, 41))[1], id="long-h", question="which ? " * 200)]
    write_samples(tmp_path / "samples", base + long + rows("heldout", range(30, 33)) + suite)
    with pytest.raises(LinesideError) as error:
        train(recipe(tmp_path, controls="[]"))
    message = str(error.value)
    assert message.startswith("4 things to put right")
    for stage, name in (("align", "long-c"), ("sft", "long-q"), ("rlvr", "long-p"), ("evaluate", "long-h")):
        (line,) = [line for line in message.splitlines() if line.startswith(f"- {stage}: longer than")]
        assert f": 1 of the samples in {tmp_path / 'samples'}" in line and f", {name} (" in line
        assert "context of 256 tokens" in line
    assert not (tmp_path / "runs" / "tiny" / "parts").exists()


def test_data_that_change_under_a_run_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_parts(tmp_path, "siglip")
    good = rows("train", range(6)) + rows("heldout", range(30, 33))
    leak = [replace(s, id=f"leak-{s.id}", split="train") for s in rows("heldout", range(30, 31))]
    write_samples(tmp_path / "samples", good)
    changes: dict[str, object] = {"controls": "[]", "evaluate.baselines": "false"}
    few = recipe(tmp_path, **changes)
    run = _Run(few, few.folder)
    run.begin()
    run.samples()
    note_inputs(run.folder, few, run.data)  # killed here
    again(tmp_path / "samples", good + leak)
    with pytest.raises(CheckFailed, match="picture leak"):  # nothing is trained yet: checked again
        train(few, last="align")
    assert "have changed, and nothing is trained yet" in capsys.readouterr().err

    again(tmp_path / "samples", good)
    train(few, last="align")
    shutil.copytree(tmp_path / "samples", tmp_path / "copy")  # the same data in another place
    train(recipe(tmp_path, **changes, **{"data.samples": tmp_path / "copy"}), last="align")
    again(tmp_path / "samples", good + leak)
    with pytest.raises(
        LinesideError, match=r"its data have changed since it began: samples: caption-train-0.* changed"
    ):
        train(few, last="sft")
    assert not (few.folder / "sft").exists()


def again(folder: Path, samples: list[Sample]) -> None:
    shutil.rmtree(folder)
    write_samples(folder, samples)


def test_a_stage_goes_on_only_from_the_checkpoint_it_began_with(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    changes: dict[str, object] = {"controls": "[]", "evaluate.splits": "[]", "sft.epochs": 1}
    folder = train(recipe(tmp_path, **changes), last="sft")
    other = train(recipe(tmp_path, name="other", seed=1, **changes), last="align")
    (folder / "align" / "checkpoint").rename(tmp_path / "kept")
    shutil.copytree(other / "align" / "checkpoint", folder / "align" / "checkpoint")
    with pytest.raises(
        LinesideError, match=r"sft was trained from .*align/checkpoint, which has changed.*safetensors has changed"
    ):
        train(recipe(tmp_path, **changes), last="sft")
    shutil.rmtree(folder / "align" / "checkpoint")
    (tmp_path / "kept").rename(folder / "align" / "checkpoint")
    for name in ("calibration.json", "calibration-local-int8.json"):  # evaluated since: the same weights
        (folder / "align" / "checkpoint" / name).write_text("{}")
    train(recipe(tmp_path, **changes), last="sft")


def test_a_stage_begins_with_any_checkpoint(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    changes: dict[str, object] = {"controls": "[]", "evaluate.splits": "[]", "sft.epochs": 1}
    first = train(recipe(tmp_path, **changes), last="sft")
    begun = {**changes, "stages": "[sft]", "sft.from": first / "align"}
    second = train(recipe(tmp_path, name="second", **begun))
    assert not (second / "parts").exists() and not (second / "align").exists()
    weights = [(run / "sft" / "checkpoint" / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    parent = json.loads((second / "sft" / "parent.json").read_text())
    assert parent["checkpoint"] == str(first / "align" / "checkpoint") and "model.safetensors" in parent["files"]
    assert load_recipe(second / "recipe.yaml").sft.from_ == first / "align"


def test_controls_alone_are_trained_from_any_checkpoint(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    first = train(recipe(tmp_path, **{"evaluate.splits": "[]", "stages": "[align, sft]", "sft.epochs": 1}))
    assert not (first / "traced").exists()  # it goes with rlvr
    alone: dict[str, object] = {
        "name": "alone", "evaluate.splits": "[]", "stages": "[]", "rlvr.from": first / "sft", "controls": "[answers]",
        "answers.max_tokens": 900,
    }  # fmt: skip
    folder = train(recipe(tmp_path, **alone))
    assert not (folder / "parts").exists() and not (folder / "rlvr").exists()
    *rest, last = [row["tokens"] for row in _rows(folder, "answers")]
    assert sum(rest) < 900 <= sum(rest) + last
    assert json.loads((folder / "answers" / "parent.json").read_text())["checkpoint"] == str(first / "sft/checkpoint")
    with pytest.raises(LinesideError, match=r"another recipe: answers\.max_tokens: 900 -> 901\."):
        train(recipe(tmp_path, **alone | {"answers.max_tokens": 901}))
    with pytest.raises(LinesideError, match=r"another recipe: rlvr\.teacher_targets: False -> True\."):
        train(recipe(tmp_path, **alone, **{"rlvr.teacher_targets": "true"}))


def test_a_run_that_has_made_nothing_takes_another_recipe_and_what_changes_no_number_is_none(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    mistyped = recipe(tmp_path, seed=7, controls="[]", **{"sft.epochs": 1})
    run = _Run(mistyped, mistyped.folder)
    run.begin()
    run.samples()  # and is stopped: the card of the user's own samples is all there is
    folder = train(recipe(tmp_path, controls="[]"), last="align")
    assert load_recipe(folder / "recipe.yaml").seed == 0
    free: dict[str, object] = {
        "workers": 3, "runs": f"{tmp_path}/./runs", "align.save_seconds": 5, "align.pack_tokens": 4096,
        "evaluate.modes": "[think]", "controls": "[traced]", "data.check": "false",
    }  # fmt: skip
    write_samples(tmp_path / "samples" / CONTROL, [s for s in rows("train", range(2)) if s.kind == "qa"])
    (folder / "inputs.json").unlink()
    train(recipe(tmp_path, **free), last="align")
    with pytest.raises(LinesideError, match=r"another recipe: dtype: fp32 -> bf16; evaluate\.limit: None -> 2\."):
        train(recipe(tmp_path, dtype="bf16", **{"evaluate.limit": 2}), last="align")


def test_the_recipe_as_run_and_its_seed_give_the_model_again(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    minutes: dict[str, object] = {
        "evaluate.splits": "[]", "stages": "[align, sft]", "sft.epochs": 200, "align.epochs": 200,
        "align.max_minutes": 0.002, "sft.max_minutes": 0.003,
    }  # fmt: skip
    folder = train(recipe(tmp_path, **minutes))
    text = (folder / "recipe.yaml").read_text()
    assert text.startswith("# align: 0.002 minutes are ") and "# sft: 0.003 minutes are " in text
    ran = load_recipe(folder / "recipe.yaml")
    assert (
        ran.align.max_tokens and ran.sft.max_tokens and (ran.align.max_minutes, ran.sft.max_minutes) == (0.002, 0.003)
    )
    train(recipe(tmp_path, **minutes))  # goes on, whichever of the two it is given
    train(ran)
    other = train(load_recipe(folder / "recipe.yaml", ["name=again"]))
    assert not (other / "sft" / "budget.json").exists()
    weights = [(run / "sft" / "checkpoint" / "model.safetensors").read_bytes() for run in (folder, other)]
    assert weights[0] == weights[1]
    with pytest.raises(LinesideError, match=r"another recipe: sft\.max_minutes: 0\.003 -> 0\.004"):
        train(recipe(tmp_path, **minutes | {"sft.max_minutes": 0.004}))


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    write_samples(tmp_path / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    one = recipe(tmp_path, controls="[]")
    with holder(one.folder) as process:
        for verb in (train, encode):
            with pytest.raises(LinesideError, match=f"in use by another process.*process {process.pid} on"):
                verb(one)
        assert encode(one, shard=(0, 2)) == 5  # shards write features alone, and work side by side
    assert not (one.folder / "recipe.yaml").exists()


def _pictures_in(index: Path) -> int:
    return sum(len(json.loads(line)["k"]) for line in index.read_text().splitlines())


def _rows(run: Path, stage: str = "align") -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def test_a_task_left_out_of_stage_3_must_have_prompts_and_another_must_be_left(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples", rows("train", range(4)) + rows("heldout", range(30, 33)))

    def told(left_out: str) -> str:
        settings = recipe(tmp_path, **{"rlvr.leave_out": left_out})
        return "\n".join(data_problems(settings, tmp_path / "samples", ["rlvr"]))

    assert "no prompt of the task 'picking/count_al'; did you mean 'picking/count_all'?" in told("[picking/count_al]")
    assert "names every task that has prompts" in told("[picking/count_all]")
    assert not told("[]")
