"""Stage 2, sft: projector and LM learn to answer questions, with a lower weight on traces than on answers.

L = (1/N_A) sum_{t in A} CE_t + lambda (1/N_T) sum_{t in T} CE_t, with counts over the whole step. A: answer, eos and
the two think tags. T: the words of valid traces. A sample without a valid trace is rendered with thinking off, so no
signal teaches the model to skip the trace (reasoning-trace collapse, arXiv 2605.21127). The form of the trace term is
our own (docs/decisions.md). All questions of a frame are branches of one tree. Captions beside them (caption_replay.py)
are weighted as traces. A question with a trace can have a second branch with thinking off and only the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from lineside.data.checks import thinking_tasks
from lineside.data.mixture import Mixture
from lineside.hashing import hash_uniform
from lineside.model.features import FeatureStore
from lineside.model.tree import ANSWER, TRACE, Pack
from lineside.model.vlm import VLM, Features
from lineside.recipe import Sft
from lineside.runtime import ON_CPU, Runtime
from lineside.training.caption_replay import CaptionReplay
from lineside.training.losses import Metrics, sft_loss
from lineside.training.packing import Counts, drop_channels, kept_channels
from lineside.training.probe import Probe
from lineside.training.sampler import LocalSampler
from lineside.training.stage import Stage
from lineside.types import Sample, Thinking
from lineside.verify.traces import problem_of_trace


def sft(
    vlm: VLM,
    store: FeatureStore,
    samples: Path | Mixture,
    folder: Path,
    settings: Sft,
    *,
    runtime: Runtime = ON_CPU,
    label: str = "sft",
    keep_thinking: bool = False,
) -> None:
    """Train projector and LM on the questions of the training split in `samples`. State, metrics and checkpoint are
    written to `folder`.

    A task thinks if it has a valid trace here; with `keep_thinking`, if it did before. Raises LinesideError for an
    answer that comes from an outcome (DESIGN 3).
    """
    mixture = Mixture.of(samples)
    mixture.refuse_outcomes()
    every_trace = settings.untraced == "skip"
    found = thinking_tasks(part.folder for part in mixture.parts)
    found = Thinking(dict.fromkeys(found.tasks, True)) if every_trace else found
    vlm.thinking = vlm.thinking.over(found) if keep_thinking else found.over(vlm.thinking)
    probe = Probe(LocalSampler(vlm, store), mixture.parts[0].folder, settings.probe)
    seed = runtime.seed
    replay = CaptionReplay(mixture, settings.caption_replay, seed)

    def stream(epoch: int, skip: int) -> Iterator[tuple[Sample, ...]]:
        for questions in mixture.stream("qa", seed=seed, epoch=epoch, skip=skip):
            copies = no_think_copies(questions, settings.no_think_share, seed)
            yield (*questions, *copies, *replay.of(questions, epoch)) if questions else ()

    rates = settings.learning_rate.of(settings.train)
    with Stage(
        vlm,
        folder,
        settings,
        rates,
        label=label,
        frame_count=mixture.frame_count("qa"),
        runtime=runtime,
        show=("loss", "loss/answer", "loss/trace"),
    ) as stage:
        for packs, cursor in stage.steps_from(stream, settings.step_tokens, every_trace=every_trace):
            counts = stage.count(packs)
            loss = partial(_loss, vlm, counts, settings.trace_weight)
            kept = kept_channels(counts.pictures, vlm.family.width, settings.feature_dropout)
            for pack, images in stage.each(packs):
                features = drop_channels(stage.features(store, images), kept, pack.images, settings.feature_dropout)
                stage.learn(pack, features, loss)
            stage.step(cursor, (pack for pack, _ in packs), extra=probe.at(stage))
    stage.finish()


def _loss(
    vlm: VLM, counts: Counts, trace_weight: float | None, pack: Pack, features: Features, _: slice
) -> tuple[Tensor, Metrics]:
    """`trace_weight` None: every token weighs the same."""
    if trace_weight is None:
        counts, trace_weight = Counts(*(counts.answer + counts.trace,) * 2), 1.0
    return sft_loss(
        vlm.logprobs(pack, features),
        pack.role == ANSWER,
        pack.role == TRACE,
        answer_count=counts.answer,
        trace_count=counts.trace,
        trace_weight=trace_weight,
    )


def no_think_copies(samples: Sequence[Sample], share: float, seed: int) -> tuple[Sample, ...]:
    """Copies without trace of a `share` of the samples that have a valid one, chosen by hash of their ids. A copy has
    the same question with thinking off, and costs only the tokens of its answer."""
    chosen = (s for s in samples if hash_uniform("at once", seed, s.id) < share)
    return tuple(replace(s, trace=None) for s in chosen if not problem_of_trace(s))
