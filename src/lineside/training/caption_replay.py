"""Captions that stage 2 trains beside the questions, so that the model does not forget how to describe a picture.

Without them, caption matching falls back to chance while accuracy rises (docs/experiments.md). A frame's captions are
further branches below its picture. For some frames they are also trained without the picture. Caption matching
subtracts the log-probability of a caption without its picture, and the model can only estimate that if it has seen such
text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from lineside.data.mixture import Mixture
from lineside.data.store import read_samples
from lineside.hashing import hash_uniform, stable_hash
from lineside.images import image_key
from lineside.types import Image, Sample

UNSEEN = 0.2  # share of the frames whose captions are also trained without the picture


class CaptionReplay:
    """The training captions of a mixture's folders, by picture, with their texts in memory. In each pass, a frame gets
    `count` of its captions, in turns."""

    def __init__(self, mixture: Mixture, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._captions: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
        for part in mixture.parts if count else ():
            for sample in read_samples(part.folder, kind="caption", split="train"):
                self._captions[_key(sample.frame_images)].append(replace(sample, images=()))

    def of(self, questions: Sequence[Sample], epoch: int) -> tuple[Sample, ...]:
        """The captions to train beside a frame's questions. They depend only on seed, pass and picture."""
        images = questions[0].frame_images
        captions = self._captions.get(_key(images), []) if self._captions else []
        if not captions:
            return ()
        start = stable_hash("rehearsal", self._seed, captions[0].id) + epoch * self._count
        chosen = [captions[(start + i) % len(captions)] for i in range(min(self._count, len(captions)))]
        alone = hash_uniform("unseen", self._seed, epoch, captions[0].id) < UNSEEN
        return (*(replace(caption, images=images) for caption in chosen), *(chosen if alone else ()))


def _key(images: Sequence[Image]) -> tuple[str, ...]:
    return tuple(image_key(image.bytes) for image in images)
