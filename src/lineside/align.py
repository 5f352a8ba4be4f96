"""Stage 1, align: train only the projector, so that the frozen LM can read the features of the frozen encoder.

After LLaVA (arXiv 2304.08485): L = -(1/N) sum_t log p(y_t | image, prompt, y_<t) over caption tokens, where N is
counted over the whole optimiser step. All captions of a frame are leaves of one tree. Encoder and LM stay
bit-identical. Left out: training the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from lineside.data.mixture import Mixture
from lineside.model.features import FeatureStore
from lineside.model.tree import Pack
from lineside.model.vlm import VLM, Features
from lineside.recipe import Align
from lineside.runtime import ON_CPU, Runtime
from lineside.training.losses import Metrics, caption_loss
from lineside.training.stage import Stage
from lineside.types import Sample


def align(
    vlm: VLM,
    store: FeatureStore,
    samples: Path | Mixture,
    folder: Path,
    settings: Align,
    *,
    runtime: Runtime = ON_CPU,
    label: str = "align",
) -> None:
    """Train `vlm.projector` on the captions of the training split. State, metrics and checkpoint are written to
    `folder`."""
    mixture = Mixture.of(samples)

    def stream(epoch: int, skip: int) -> Iterator[tuple[Sample, ...]]:
        return mixture.stream("caption", seed=runtime.seed, epoch=epoch, skip=skip)

    with Stage(
        vlm,
        folder,
        settings,
        {"projector": settings.learning_rate.projector},
        label=label,
        frame_count=mixture.frame_count("caption"),
        runtime=runtime,
    ) as stage:
        for packs, cursor in stage.steps_from(stream, settings.step_tokens):
            loss = partial(_loss, vlm, stage.count(packs).answer)
            for pack, images in stage.each(packs):
                stage.learn(pack, stage.features(store, images), loss)
            stage.step(cursor, (pack for pack, _ in packs))
    stage.finish()


def _loss(vlm: VLM, count: int, pack: Pack, features: Features, _: slice) -> tuple[Tensor, Metrics]:
    return caption_loss(vlm.logprobs(pack, features), count)
