"""A regression guard that counts work instead of time: what a small fixed run sends through encoder, LM and head.

Every number below follows from the data (a frame of 16 image tokens, texts of counted length); the comments say how.
A pack is rounded up to a round number of rows (`rounded`), by 1.5% at most.
A change that encodes a picture twice, runs a prefix once for every branch, or computes a logit nobody asked for, fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lineside.training.rollout
from lineside.align import align
from lineside.data.store import write_samples
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK, CAPTION_PROMPT
from lineside.model.tree import rounded
from lineside.model.vlm import VLM
from lineside.recipe import Align, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.sft import sft
from lineside.training.cost import read_cost
from lineside.types import Image, Judgement, Meta, Response, Sample, Source, Target, Verdict
from tests.conftest import make_tiny_vlm, picture

FRAMES, EPOCHS = 4, 2
QUESTIONS = ["how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?"]
TRACE = "left: 2 red can; right: 1 red can; so 3"
CAPTIONS = ["the bin holds a blue box", "condition: torn"]
GROUP, NEW = 4, 10


@dataclass
class Counted:
    """What went through the model."""

    encoded: int = 0  # pictures
    tokens: int = 0  # positions of the LM
    last: int = 0  # those that its last layer is finished for
    logits: int = 0  # rows of the head


@pytest.fixture
def counted() -> tuple[VLM, FeatureStore, Counted]:
    vlm, seen = make_tiny_vlm(), Counted()

    def encoded(module: Any, args: tuple[torch.Tensor, ...], out: Any) -> None:
        seen.encoded += len(args[0])

    def ran(module: Any, args: tuple[torch.Tensor, ...], out: Any) -> None:
        seen.tokens += args[0].shape[:2].numel()

    def finished(module: Any, args: tuple[torch.Tensor, ...], out: Any) -> None:
        seen.last += args[0].shape[:-1].numel()

    def headed(module: Any, args: Any, out: torch.Tensor) -> None:
        seen.logits += out.shape[:-1].numel()

    vlm.tower.register_forward_hook(encoded)
    layers: Any = vlm.language_model.layers
    layers[0].register_forward_hook(ran)
    layers[-1].mlp.register_forward_hook(finished)
    vlm.model.lm_head.register_forward_hook(headed)
    return vlm, FeatureStore(None, vlm), seen


def rows(kind: str, texts: list[str]) -> list[Sample]:
    """These questions or captions of each of four frames."""
    return [
        Sample(
            id=f"f{frame}-{number}",
            kind=kind,  # pyright: ignore[reportArgumentType]
            images=(Image(picture(frame)),),
            family="picking",
            task="count_all",
            question="" if kind == "caption" else text,
            trace=TRACE if kind == "qa" else None,
            answer={"caption": text, "qa": "3", "prompt": None}[kind],
            target=None if kind == "caption" else Target("number", "sim", value=3.0, tolerance=2.0),
            split="train",
            meta=Meta(scene=f"s{frame}"),
            source=Source("sim"),
        )
        for frame in range(FRAMES)
        for number, text in enumerate(texts)
    ]


def test_align_runs_image_and_prompt_once_for_all_captions(counted: Any, tmp_path: Path) -> None:
    vlm, store, seen = counted
    write_samples(tmp_path / "samples", rows("caption", CAPTIONS))
    align(vlm, store, tmp_path / "samples", tmp_path / "align", Align(epochs=EPOCHS))
    shared = len(vlm.render.prefix([BLANK])) + len(vlm.render.question(CAPTION_PROMPT, thinking=False))
    own = sum(len(vlm.render.encode(caption)) + 1 for caption in CAPTIONS)  # and eos
    assert seen.tokens == EPOCHS * rounded(FRAMES * (shared + own), 64)
    assert seen.logits == EPOCHS * rounded(FRAMES * own, 64)
    starts = 1 - len(CAPTIONS)  # all captions of a frame begin from one token
    assert seen.last == EPOCHS * rounded(FRAMES * (own + starts), 64)
    assert seen.encoded == FRAMES  # the second epoch finds them in the store


def test_sft_runs_the_image_once_for_all_questions(counted: Any, tmp_path: Path) -> None:
    vlm, store, seen = counted
    write_samples(tmp_path / "samples", rows("qa", QUESTIONS))
    sft(vlm, store, tmp_path / "samples", tmp_path / "sft", Sft(epochs=EPOCHS))
    asked = sum(len(vlm.render.question(question, thinking=True)) for question in QUESTIONS)
    response = len(vlm.render.encode(TRACE)) + 4  # two tags, "3", eos
    assert seen.tokens == EPOCHS * rounded(FRAMES * (len(vlm.render.prefix([BLANK])) + asked + 3 * response), 64)
    assert seen.logits == seen.last == EPOCHS * rounded(FRAMES * 3 * response, 64)
    cost = read_cost(tmp_path / "sft")
    assert cost is not None and cost.samples == EPOCHS * FRAMES * 3
    assert seen.encoded == FRAMES


def test_rlvr_runs_a_prompt_once_for_all_rollouts(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, store, seen = counted
    write_samples(tmp_path / "samples", rows("prompt", QUESTIONS[:1]))
    calls = iter(range(10**6))

    def alternating(*args: Any, **kwargs: Any) -> Judgement:
        right = next(calls) % 2 == 0  # so that every group is live
        return Judgement(Response("", "3", "valid", ""), Verdict(float(right), right, ""), float(right))

    monkeypatch.setattr(lineside.training.rollout, "judge", alternating)
    vlm.render.eos_id = -1  # no token ends a rollout: all take NEW tokens
    settings = Rlvr(
        epochs=1, prompts=FRAMES, group_size=GROUP, max_new_tokens=NEW, overlong_cache=0, prompt_choice="uniform"
    )
    rlvr(vlm, store, tmp_path / "samples", tmp_path / "rlvr", settings)
    prompt = len(vlm.render.prefix([BLANK])) + len(vlm.render.question(QUESTIONS[0], thinking=True))
    prefill, decoded = FRAMES * prompt, FRAMES * GROUP * (NEW - 1)  # the first token needs no step of its own
    trained = FRAMES * (prompt + GROUP * NEW)
    assert seen.tokens == rounded(prefill, 64) + decoded + rounded(trained, 64)
    first, rest = FRAMES * GROUP, FRAMES * GROUP * (NEW - 1)
    assert seen.logits == first + rest + rounded(FRAMES * GROUP * NEW, 64)
    assert seen.last == FRAMES + rest + rounded(FRAMES * (1 + GROUP * (NEW - 1)), 64)
    assert seen.encoded == FRAMES


def test_answering_prefills_a_picture_once_for_all_its_questions(counted: Any) -> None:
    vlm, store, seen = counted
    vlm.render.eos_id = -1
    asked = [Prompt((Image(picture(frame)),), text, True) for frame in range(FRAMES) for text in QUESTIONS]
    generate(vlm, store, asked, max_new_tokens=NEW)
    questions = sum(len(vlm.render.question(text, thinking=True)) for text in QUESTIONS)
    prefill = FRAMES * (len(vlm.render.prefix([BLANK])) + questions)
    assert seen.tokens == rounded(prefill, 64) + len(asked) * (NEW - 1)
    assert seen.logits == seen.last == len(asked) * NEW
    assert seen.encoded == FRAMES
