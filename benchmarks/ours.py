"""Our side of the comparisons: load, score given samples, run a verb as a user runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import lineside.align
import lineside.sft
from common import Work
from lineside.data.store import read_samples
from lineside.machine import keep_memory
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore, features_of
from lineside.model.tree import Pack
from lineside.model.vlm import VLM
from lineside.recipe import Align, ProjectorRate, Rates, Sft
from lineside.runtime import DTYPES, Runtime
from lineside.training.packing import image_tree, packs_of
from lineside.training.stage import trainable
from lineside.types import Image, Sample
from race import Score, Turn, gradients, in_float32, stepping

RATE = 1e-6
FOREVER = {"epochs": 1e6, "save_seconds": 1e9, "schedule": "constant"}


def ready(work: Work) -> tuple[VLM, FeatureStore]:
    """Model and a feature store in memory, filled beforehand if `work.stored`."""
    keep_memory()
    vlm = load(work.model, dtype=DTYPES[work.dtype], device=work.device)
    store = FeatureStore(None, vlm, runtime=Runtime(vlm.device))
    if work.stored:
        store.get(list(pictures(work.samples)))
    return vlm, store


def pictures(folder: Path) -> list[Image]:
    """One picture of every frame."""
    return list({sample.images[0].bytes: sample.images[0] for sample in read_samples(folder)}.values())


def first_frames(folder: Path, frames: int) -> list[tuple[Sample, ...]]:
    """The samples of the first frames, in the order written."""
    groups: dict[str, list[Sample]] = {}
    for sample in read_samples(folder):
        if sample.meta.scene not in groups and len(groups) == frames:
            break
        groups.setdefault(sample.meta.scene, []).append(sample)
    return [tuple(group) for group in groups.values()]


def by_leaf(pack: Pack, values: Tensor) -> Tensor:
    """Values of targets in the order of the responses' numbers."""
    return values[torch.argsort(pack.leaf, stable=True).to(values.device)]


def score_samples(vlm: VLM, groups: Sequence[tuple[Sample, ...]], parts: Sequence[str]) -> Score:
    """Log-probability of every response token of these frames, and the gradient of minus their mean, in float32."""
    trainable(vlm, parts)
    frames = [image_tree(vlm, group, first_leaf=i * len(group)) for i, group in enumerate(groups)]
    ((pack, images),) = packs_of(vlm, frames, 10**9)
    with in_float32(vlm.model):
        store = FeatureStore(None, vlm, runtime=Runtime(vlm.device), dtype=torch.float32)
        logprobs = vlm.logprobs(pack, features_of(store, images))
        (-logprobs.mean()).backward()
        return Score(by_leaf(pack, pack.target), by_leaf(pack, logprobs.detach()).cpu(), gradients(vlm.model))


def sft(work: Work, turn: Turn) -> None:
    """`lineside sft`; one step is `work.frames` frames with all their questions."""
    vlm, store = ready(work)
    groups = first_frames(work.samples, 1)
    turn.scored(score_samples(vlm, groups, ("projector", "lm")))
    tokens = work.frames * image_tree(vlm, groups[0]).tree.size()
    settings = Sft(step_tokens=tokens, learning_rate=Rates(projector=RATE, lm=RATE), **FOREVER)
    with tempfile.TemporaryDirectory() as folder, stepping(lineside.sft, turn):
        lineside.sft.sft(vlm, store, work.samples, Path(folder), settings, runtime=Runtime(vlm.device, seed=work.seed))


def align(work: Work, turn: Turn) -> None:
    """`lineside align`; one step is `work.frames` frames with all their captions."""
    vlm, store = ready(work)
    groups = first_frames(work.samples, 4)
    turn.scored(score_samples(vlm, groups, ("projector",)))
    tokens = work.frames * image_tree(vlm, groups[0]).tree.size()
    settings = Align(step_tokens=tokens, learning_rate=ProjectorRate(projector=RATE), **FOREVER)
    with tempfile.TemporaryDirectory() as folder, stepping(lineside.align, turn):
        lineside.align.align(
            vlm, store, work.samples, Path(folder), settings, runtime=Runtime(vlm.device, seed=work.seed)
        )
