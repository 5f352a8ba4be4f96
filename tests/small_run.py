"""A run of the three stages that takes seconds: the tiny VLM, eight frames of noise, a few steps each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import lineside.training.rollout
import lineside.training.stage
from lineside.align import align
from lineside.data.store import write_samples
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.recipe import Align, ProjectorRate, Rates, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.runtime import Runtime
from lineside.sft import sft
from lineside.types import Image, Judgement, Meta, Sample, SampleKind, Source, Target
from lineside.verify.judge import judge
from tests.conftest import make_tiny_vlm, picture

NUMBER = Target(kind="number", provenance="sim", value=3.0, tolerance=2.0)
QUESTION = "how many red cans are in the bin?"
NOT_OF_THE_MODEL = ("time", "seconds")  # metrics that differ from run to run


def sample(
    kind: SampleKind, frame: int, number: int, *, question: str = "", trace: str | None = None, answer: str | None = "3"
) -> Sample:
    """One sample of a frame of noise."""
    return Sample(
        id=f"f{frame}-{kind}-{number}",
        kind=kind,
        images=(Image(picture(frame)),),
        family="picking",
        task="count_all",
        question=question,
        trace=trace,
        answer=answer,
        target=None if kind == "caption" else NUMBER,
        split="train",
        meta=Meta(scene=f"s{frame}"),
        source=Source("sim"),
    )


def frame_samples(frame: int) -> list[Sample]:
    """Two captions, four questions (two with a valid trace) and two prompts of a frame."""
    asked = [("left: 2 red can; right: 1 red can; so 3", "3"), ("left: 4 red can; right: 1 red can; so 5", "5")]
    return [
        *(sample("caption", frame, i, answer=f"the bin holds {i + 1} red cans") for i in range(2)),
        *(sample("qa", frame, i, question=QUESTION, trace=t, answer=a) for i, (t, a) in enumerate(asked)),
        sample("qa", frame, 2, question="is there a blue box?", answer="no"),
        sample("qa", frame, 3, question="which slots still need filling?", trace="ok.", answer="2"),
        *(sample("prompt", frame, i, question=QUESTION, answer=None) for i in range(2)),
    ]


def by_length(text: str, *args: Any, **options: Any) -> Judgement:
    """A judge by the length of the answer, so that the groups of an untrained model are live."""
    judged = judge(text, *args, **options)
    return Judgement(judged.response, judged.verdict, (len(text) % 3) / 2)


def tiny(runtime: Runtime) -> tuple[VLM, FeatureStore]:
    """The tiny VLM on a device, and its store."""
    vlm = make_tiny_vlm()
    vlm.to(runtime.device)
    return vlm, FeatureStore(None, vlm, runtime=runtime)


def run_stages(
    folder: Path, runtime: Runtime, *, vlm: VLM | None = None, store: FeatureStore | None = None
) -> tuple[VLM, dict[str, list[dict[str, float]]]]:
    """The three stages one after another, of the tiny VLM by default, and what each logged of every step, without
    times."""
    rows = [s for frame in range(8) for s in frame_samples(frame)]
    runtime.first(lambda: write_samples(folder / "samples", rows))
    if vlm is None or store is None:
        vlm, store = tiny(runtime)
    rates = Rates(projector=1e-2, lm=1e-2)
    first = Align(epochs=2, step_tokens=200, learning_rate=ProjectorRate(projector=1e-2))
    second = Sft(epochs=3, step_tokens=400, pack_tokens=250, learning_rate=rates, feature_dropout=0.1, caption_replay=1)
    third = Rlvr(
        epochs=1, prompts=4, group_size=4, max_new_tokens=12, overlong_cache=0, updates=2, pack_tokens=250,
        learning_rate=rates,
    )  # fmt: skip
    with (
        patch.object(lineside.training.rollout, "judge", by_length),
        patch.object(lineside.training.stage, "matrix_rate", lambda *_: 1e9),
    ):
        align(vlm, store, folder / "samples", folder / "align", first, runtime=runtime)
        sft(vlm, store, folder / "samples", folder / "sft", second, runtime=runtime)
        rlvr(vlm, store, folder / "samples", folder / "rlvr", third, runtime=runtime)
    return vlm, {stage: logged(folder / stage) for stage in ("align", "sft", "rlvr")}


def logged(folder: Path) -> list[dict[str, float]]:
    """The metrics of a stage that depend on recipe and seed alone."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(NOT_OF_THE_MODEL)} for row in rows]


def weights(vlm: VLM) -> dict[str, torch.Tensor]:
    """All weights, copied to the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in vlm.model.state_dict().items()}
