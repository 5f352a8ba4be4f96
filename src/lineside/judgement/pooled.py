"""A picture as a few hundred numbers: its frozen features pooled over the tokens, then their principal components.

Shapes: n pictures, P tokens, D_e encoder width, D = 2 D_e pooled numbers, I components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.images import decode
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.parts import bare_encoder
from lineside.runtime import Runtime, compute_dtype
from lineside.types import Image

Features = Callable[[Sequence[Image]], Sequence[Tensor]]  # pictures to their frozen features, (P, D_e) each

COMPONENTS = 384
MAX_PICTURES = 6000  # that the components are fitted on; more would be slower and not better
AT_ONCE = 64
CALIBRATION = 64  # pictures


def pool(features: Sequence[Tensor]) -> Tensor:
    """(P, D_e) of each of n pictures -> (n, D): mean and maximum over the picture's tokens."""
    wide = [row_PD.float() for row_PD in features]
    return torch.stack([torch.cat([row_PD.mean(0), row_PD.amax(0)]) for row_PD in wide])


@dataclass(frozen=True, slots=True)
class Projection:
    """Onto the principal components of a set of pictures, which then have unit variance over all of them together."""

    mean_D: Tensor
    components_DI: Tensor

    def __call__(self, pooled_nD: Tensor) -> Tensor:
        """(n, I)."""
        return (pooled_nD - self.mean_D) @ self.components_DI


def fit_projection(pooled_nD: Tensor, *, seed: int) -> Projection:
    """The components of n pooled pictures."""
    mean_D = pooled_nD.mean(0)
    rank = min(COMPONENTS, *pooled_nD.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, spread_I, components_DI = torch.svd_lowrank(pooled_nD - mean_D, q=rank, niter=2)
    # One scale for all components keeps their relative weight; whitening would amplify the noise of the last ones.
    scale = spread_I.square().mean().sqrt().clamp_min(1e-6) / len(pooled_nD) ** 0.5
    return Projection(mean_D, components_DI / scale)


def open_store(
    checkpoint: Path | None, features: Path | None, pictures: Callable[[], Iterator[Image]], runtime: Runtime
) -> FeatureStore:
    """The feature store of a checkpoint's encoder, or of the hub-free one.

    `features`: folder of a store to reuse and fill. `pictures`: some of those to describe; only the hub-free encoder
    reads them, for the constants of its features. Raises LinesideError for a checkpoint that cannot be loaded, and
    where there are no pictures.
    """
    if checkpoint is not None:
        vlm = load(checkpoint, dtype=runtime.dtype, device=runtime.device)
    else:
        some = list(islice(pictures(), CALIBRATION))
        if not some:
            raise LinesideError("there is no picture that can be read")
        vlm = bare_encoder(decode(image.bytes) for image in some)
        dtype = runtime.dtype or compute_dtype("auto", runtime.device)
        vlm.to(runtime.device, dtype)
    return FeatureStore(features, vlm, runtime=runtime, memory_rows=4 * AT_ONCE)


class Describer:
    """Describes a stream of pictures: `add` them in order, then `described`. Memory grows by I numbers for a picture.

    The components are those of the first `MAX_PICTURES`.
    """

    def __init__(self, features: Features, *, seed: int) -> None:
        self._features, self._seed = features, seed
        self._pooled: list[Tensor] = []  # until the components are fitted
        self._count = 0
        self._project: Projection | None = None
        self._described: list[Tensor] = []

    def add(self, images: Sequence[Image]) -> None:
        """Describe the next pictures, at best some `AT_ONCE` of them."""
        pooled_nD = pool(self._features(images))
        if self._project is not None:
            self._described.append(self._project(pooled_nD))
            return
        self._pooled.append(pooled_nD)
        self._count += len(images)
        if self._count >= MAX_PICTURES:
            self._fit()

    def described(self) -> Tensor:
        """(n, I) of all pictures so far. Raises ValueError if there is none."""
        if self._project is None:
            if not self._pooled:
                raise ValueError("no pictures to describe")
            self._fit()
        return torch.cat(self._described)

    def _fit(self) -> None:
        pooled_nD = torch.cat(self._pooled)
        self._pooled = []
        self._project = fit_projection(pooled_nD, seed=self._seed)
        self._described.append(self._project(pooled_nD))
