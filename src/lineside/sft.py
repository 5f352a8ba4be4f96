"""Stage 2, sft: projector and LM learn to answer, with a lighter touch on the traces than on the answers.

L = (1/N_A) sum_{t in A} CE_t + lambda (1/N_T) sum_{t in T} CE_t, counts over the whole step. A: answer, eos and the
two think tags; T: the words of valid traces. A sample without a valid trace is rendered with thinking off, so nothing
ever teaches skipping (reasoning-trace collapse, arXiv 2605.21127). The trace term's form is this project's own
(docs/decisions.md). All questions of a frame are branches of one tree; captions said again beside them (rehearsal.py)
count as traces, and a question with a trace may be answered at once on a further branch, with thinking off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lineside.data.checks import thinking_tasks
from lineside.data.mixture import Mixture
from lineside.data.splits import hash_uniform
from lineside.model.features import FeatureStore
from lineside.model.tree import ANSWER, TRACE
from lineside.model.vlm import VLM
from lineside.recipe import Sft
from lineside.training.losses import sft_loss
from lineside.training.rehearsal import Rehearsal
from lineside.training.stage import Stage
from lineside.training.trees import Counts, drop_channels, packs_of, steps_of, thinks
from lineside.types import Sample


def sft(
    vlm: VLM,
    store: FeatureStore,
    samples: Path | Mixture,
    folder: Path,
    settings: Sft,
    *,
    seed: int = 0,
    label: str = "sft",
) -> None:
    """Train projector and LM on the questions of the training split in `samples`; state, metrics, checkpoint go into
    `folder`."""
    mixture = Mixture.of(samples)
    vlm.thinking = thinking_tasks(part.folder for part in mixture.parts).over(vlm.thinking)
    rehearsal = Rehearsal(mixture, settings.caption_replay, seed)

    def stream(epoch: int, skip: int) -> Iterator[tuple[Sample, ...]]:
        for group in mixture.stream("qa", seed=seed, epoch=epoch, skip=skip):
            yield (*group, *at_once(group, settings.no_think_share, seed), *rehearsal.of(group, epoch)) if group else ()

    rates = {"projector": settings.learning_rate.projector, "lm": settings.learning_rate.lm}
    with Stage(
        vlm,
        folder,
        settings,
        rates,
        label=label,
        groups=mixture.groups("qa"),
        seed=seed,
        show=("loss", "loss/answer", "loss/trace"),
    ) as stage:
        for frames, cursor in steps_of(stage.frames(stream), settings.step_tokens):
            packs = packs_of(vlm, frames, settings.pack_tokens)
            counts = Counts.of(pack for pack, _ in packs)
            for pack, images in packs:
                features = drop_channels(stage.features(store, images), settings.feature_dropout)
                loss, metrics = sft_loss(
                    vlm.logprobs(pack, features),
                    pack.role == ANSWER,
                    pack.role == TRACE,
                    answer_count=counts.answer,
                    trace_count=counts.trace,
                    trace_weight=settings.trace_weight,
                )
                loss.backward()
                stage.optimizer.accumulate()
                stage.add(metrics)
            stage.step(cursor, (pack for pack, _ in packs))
    stage.finish()


def at_once(group: Sequence[Sample], share: float, seed: int) -> tuple[Sample, ...]:
    """A `share` of the samples with a valid trace, decided by their ids, without it: the same question with thinking
    off, for the few tokens of its answer."""
    return tuple(replace(s, trace=None) for s in group if hash_uniform("at once", seed, s.id) < share and thinks(s))
