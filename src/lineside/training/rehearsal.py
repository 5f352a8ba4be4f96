"""Captions said again in stage 2, so that a model that learns to answer does not forget how to describe.

Without them caption matching falls back to chance while accuracy rises (docs/experiments.md). A frame's captions are
further branches below its picture. Now and then they stand below no picture as well: how likely a caption is by itself
is what caption matching takes off, and a model that has never met one alone can only guess it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from lineside.data.mixture import Mixture
from lineside.data.splits import hash_uniform, stable_hash
from lineside.data.store import read_samples
from lineside.images import image_key
from lineside.types import Image, Sample

UNSEEN = 0.2  # of the frames, whose captions stand below no picture as well


class Rehearsal:
    """The training captions of a mixture's folders by picture, their texts held in memory; `count` a frame and pass, in
    turns."""

    def __init__(self, mixture: Mixture, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._captions: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
        for part in mixture.parts if count else ():
            for sample in read_samples(part.folder, kind="caption", split="train"):
                self._captions[_key(sample.images)].append(replace(sample, images=()))

    def of(self, group: Sequence[Sample], epoch: int) -> tuple[Sample, ...]:
        """Those to be said beside a frame's questions in a pass, decided by seed, pass and picture alone."""
        images = group[0].images
        captions = self._captions.get(_key(images), []) if self._captions else []
        if not captions:
            return ()
        start = stable_hash("rehearsal", self._seed, captions[0].id) + epoch * self._count
        chosen = [captions[(start + i) % len(captions)] for i in range(min(self._count, len(captions)))]
        alone = hash_uniform("unseen", self._seed, epoch, captions[0].id) < UNSEEN
        return (*(replace(caption, images=images) for caption in chosen), *(chosen if alone else ()))


def _key(images: Sequence[Image]) -> tuple[str, ...]:
    return tuple(image_key(image.bytes) for image in images)
