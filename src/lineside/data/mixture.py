"""Several folders of samples as one stream, each as often as its weight says: deterministic, resumable, streamed.

Each folder is read in epochs of its own (`store.stream_groups`), shuffled anew in each; one that is short is met more
often than one that is long. The folder whose next group is due first gives it, so that the shares hold at every moment
and not only in the long run. No recipe asks for a mixture yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lineside.data import store
from lineside.data.splits import unit
from lineside.errors import LinesideError
from lineside.types import Sample


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of samples and its weight: groups of it beside those of the others."""

    folder: Path
    weight: float = 1.0


def turns(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Which part is next, for ever. The k-th group of a part of share w is due at (k + u) / w, u a draw of the part.

    After n groups a part has given n w to within half the number of parts; equal dues go to the first part.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    starts = [unit("mixture", seed, place) for place in range(len(shares))]
    given = [0] * len(shares)
    while True:
        place = min(range(len(shares)), key=lambda p: (given[p] + starts[p]) / shares[p])
        given[place] += 1
        yield place


def stream_mixture(
    parts: Sequence[Part], *, kind: str, split: str, seed: int, skip: int = 0
) -> Iterator[tuple[Sample, ...]]:
    """Groups of samples (those of one frame) without end; `skip` groups are passed over without reading a picture.

    The stream with `skip=n` is the unbroken one from its n-th group on. Raises LinesideError when there are no parts, a
    weight is not positive, or a folder has no such samples.
    """
    for part in parts:
        if not 0 < part.weight < float("inf"):
            raise LinesideError(f"{part.folder}: weight {part.weight}: expected a number above 0; leave the folder out")
    if not parts:
        raise LinesideError("a mixture of nothing: name at least one folder of samples")
    sizes = [store.count_groups(part.folder, kind=kind, split=split) for part in parts]
    for part, size in zip(parts, sizes):
        if not size:
            raise LinesideError(f"{part.folder}: no {kind} samples of split {split} to mix in")
    order = turns([part.weight for part in parts], seed)
    passed = [0] * len(parts)
    for _ in range(skip):
        passed[next(order)] += 1
    streams = [
        _for_ever(part.folder, size, kind, split, seed + place, gone)
        for place, (part, size, gone) in enumerate(zip(parts, sizes, passed))
    ]
    for place in order:
        yield next(streams[place])


def _for_ever(folder: Path, size: int, kind: str, split: str, seed: int, skip: int) -> Iterator[tuple[Sample, ...]]:
    epoch, skip = divmod(skip, size)
    while True:
        yield from store.stream_groups(folder, kind=kind, split=split, seed=seed, epoch=epoch, skip=skip)
        epoch, skip = epoch + 1, 0
