"""Near-duplicate pictures, found with limits that are calibrated for each fixed camera.

A fixed camera always sees one background, so comparisons of whole pictures (a 64-bit hash, a correlation) find most of
its frames alike. Here the distance of two frames is measured *where they differ most*: both are averaged to
SIDE x SIDE cells and normalised for exposure, and the distance is the root mean square of the colour difference over
the WORST cells with the largest difference. The shared background cancels; one missing part does not.

The limits are learnt, for each camera, from its own frames:

    same       the distance that re-encoding, a slight change of exposure or noise causes in its frames (QUANTILE)
    accident   the distance below which fewer than ACCIDENTS pairs of unrelated frames are expected among all of them,
               by the lower tail of the distances between unrelated frames

Two frames are near-duplicates if their distance is within `same`, and also within `accident` unless they are of one
scene or one minute. Where a scene recurs naturally (an empty bin under steady light) `accident` shrinks and its frames
stay. Memory: about 2 KB for each picture that is kept for comparison, at most MOST_KEPT of them.
"""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image

from lineside.data.readers import Rejected
from lineside.errors import LinesideError
from lineside.hashing import hash_uniform, stable_hash
from lineside.images import decode
from lineside.types import Frame, Meta, Sample

SIDE = 24  # cells
WORST = 9  # of SIDE * SIDE cells: 28 x 28 pixels of a 224-pixel picture
BLOCK = 6  # cells; a block has more than WORST cells, so its mean difference is a lower bound of the distance
SCALE = 24.0  # a signature's steps per standard deviation of the frame's light
FLAT = 2.0  # of 255
LARGEST = 0.8  # cap of `same`: a camera above it is too noisy to judge
QUANTILE = 0.99
ACCIDENTS = 0.1
TAIL = 0.01  # share of the pairs that the lower tail is fitted to
SAMPLED, DEGRADED = 192, 24  # frames of a camera from which `accident` and `same` are learnt
FEW_PAIRS = 45
RECURRING = 0.02  # of the sample: a picture with more look-alikes is a scene that recurs, not a copy
MINUTE = 60.0
MOST_KEPT = 50_000

NEAREST = 10_000  # pairs

T = TypeVar("T")
Signature = npt.NDArray[np.int8]  # (SIDE * SIDE, 3)


def signature(picture: PIL.Image.Image) -> Signature | None:
    """A picture as SIDE * SIDE cells, minus its mean light and divided by its spread, which cancels exposure.

    None for a picture of one tone (a covered lens), which has nothing to compare.
    """
    cells = np.asarray(picture.resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float32)
    light = cells.mean(2)
    if light.std() < FLAT:
        return None
    free = (cells - light.mean()) / light.std()
    return np.clip(np.rint(free * SCALE), -127, 127).astype(np.int8).reshape(SIDE * SIDE, 3)


def distances(one: Signature, many: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """(n,) distances of a signature to `many` (n, SIDE * SIDE, 3), in standard deviations of the light."""
    apart = (many.astype(np.float32) - one.astype(np.float32)) ** 2
    worst = np.partition(apart.sum(2), -WORST, axis=1)[:, -WORST:]
    return np.sqrt(worst.mean(1)) / SCALE


def blocks(sig: Signature) -> npt.NDArray[np.float32]:
    """(blocks, 3) means of a signature: no block's distance exceeds the distance of the two signatures."""
    grid = sig.astype(np.float32).reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK, 3)
    return grid.mean((1, 3)).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is compared of a picture: its origin and time, and its signature."""

    name: str
    camera: str
    scene: str  # "" if unknown
    seconds: float  # since 1970, nan where unknown
    sig: Signature

    @classmethod
    def of(cls, name: str, meta: Meta, sig: Signature) -> Seen:
        """`name` is the id of a frame or sample; a scene with the same name is the picture itself and is ignored."""
        own = name == meta.scene or name.startswith(f"{meta.scene}/")
        return cls(name, f"{meta.cell}/{meta.camera}", "" if own else meta.scene, _seconds(meta.time), sig)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one camera."""

    same: float
    accident: float

    def of(self, close: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The limit for each pair; `close` pairs are of one scene or one minute."""
        return np.where(close, self.same, min(self.same, self.accident))


@dataclass
class _Camera:
    """The frames of a camera from which its limits are learnt: those with the lowest hashes, in any order."""

    frames: int = 0
    sampled: list[tuple[int, int, Seen]] = field(default_factory=list)  # heap, highest hash first
    degraded: list[tuple[int, int, list[float]]] = field(default_factory=list)


class Calibration:
    """Learns the limits of every camera from a stream of pictures."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera] = {}

    def add(self, seen: Seen, picture: PIL.Image.Image) -> None:
        """Note one picture."""
        camera = self._cameras.setdefault(seen.camera, _Camera())
        camera.frames += 1
        rank = -stable_hash("near", seen.name)
        _keep(camera.sampled, SAMPLED, rank, camera.frames, lambda: seen)
        _keep(camera.degraded, DEGRADED, rank, camera.frames, lambda: _spread(picture, rank))

    @property
    def frames(self) -> dict[str, int]:
        """Pictures noted, by camera."""
        return {name: camera.frames for name, camera in self._cameras.items()}

    def limits(self) -> dict[str, Limits]:
        """The limits of each camera."""
        return {name: _limits(camera) for name, camera in self._cameras.items()}


class Index:
    """Pictures of one camera, kept for comparison: at most `size`; a new one replaces the oldest."""

    def __init__(self, size: int) -> None:
        self._size, self._count = max(1, size), 0
        self._names: list[str] = []
        rows = min(self._size, 64)
        self._sigs = np.zeros((rows, SIDE * SIDE, 3), np.int8)
        self._blocks = np.zeros((rows, (SIDE // BLOCK) ** 2, 3), np.float32)
        self._hashes = np.zeros(rows, np.uint64)
        self._seconds = np.full(rows, np.nan)

    def add(self, seen: Seen) -> None:
        """Keep one picture."""
        if self._count == len(self._sigs) < self._size:
            more = min(self._size, max(64, 2 * self._count))
            self._sigs, self._blocks = _grown(self._sigs, more), _grown(self._blocks, more)
            self._hashes, self._seconds = _grown(self._hashes, more), _grown(self._seconds, more)
        place = self._count % self._size
        if self._count < self._size:
            self._names.append("")
        self._names[place] = seen.name
        self._sigs[place], self._blocks[place] = seen.sig, blocks(seen.sig)
        self._hashes[place], self._seconds[place] = _scene_key(seen), seen.seconds
        self._count += 1

    def __len__(self) -> int:
        return len(self._names)

    def leave(self, wanted: Callable[[str], bool]) -> None:
        """Leave only the pictures of wanted names. There must be room for all that were added."""
        places = [place for place, name in enumerate(self._names) if wanted(name)]
        self._names, self._count = [self._names[place] for place in places], len(places)
        self._sigs, self._blocks = self._sigs[places], self._blocks[places]
        self._hashes, self._seconds = self._hashes[places], self._seconds[places]

    def nearest(self, seen: Seen, limits: Limits) -> tuple[float, str, bool] | None:
        """(distance, name, whether of one scene or minute) of the nearest picture within its limit, if there is one."""
        used = min(self._count, self._size)
        if not used:
            return None
        close = (self._hashes[:used] == _scene_key(seen)) & bool(seen.scene)
        with np.errstate(invalid="ignore"):
            close |= np.abs(self._seconds[:used] - seen.seconds) <= MINUTE
        limit = limits.of(close)
        apart = np.sqrt(((self._blocks[:used] - blocks(seen.sig)) ** 2).sum(2).max(1)) / SCALE
        (places,) = np.nonzero(apart <= limit + 1e-4)
        if not len(places):
            return None
        found = distances(seen.sig, self._sigs[places])
        found[found > limit[places]] = np.inf
        best = int(found.argmin())
        if not math.isfinite(found[best]):
            return None
        return float(found[best]), self._names[places[best]], bool(close[places[best]])


class Leaks:
    """Pictures of one split that are near-duplicates of another's, found in one pass over both.

    The limits are known only at the end, so the NEAREST candidate pairs are kept until then. Of suites with more than
    MOST_KEPT pictures, pictures are compared with a part drawn by hash (`share`).
    """

    def __init__(self) -> None:
        self._calibration = Calibration()
        self._suites: dict[tuple[str, str], Index] = {}  # by camera and split
        self.share = 1.0  # of the suites' pictures that are kept
        self._pairs: list[tuple[float, int, bool, str, Leak]] = []  # heap, farthest first
        self._count = 0

    def look(self, item: Frame | Sample, picture: PIL.Image.Image, place: tuple[str, int, str]) -> None:
        """Compare a picture with the suites seen so far; a suite's own picture is kept for later ones."""
        if (sig := signature(picture)) is None:
            return
        seen = Seen.of(item.id, item.meta, sig)
        self._calibration.add(seen, picture)
        for (camera, split), index in self._suites.items():
            if camera == seen.camera and split != item.split and (found := index.nearest(seen, _WIDE)):
                distance, other, close = found
                self._count += 1
                entry = (-distance, self._count, close, camera, Leak(place, item.split, other, split))
                (heapq.heappush if len(self._pairs) < NEAREST else heapq.heappushpop)(self._pairs, entry)
        if item.split != "train" and self._keeps(seen.name):
            self._suites.setdefault((seen.camera, item.split), Index(MOST_KEPT + 1)).add(seen)
            if sum(map(len, self._suites.values())) > MOST_KEPT:
                self.share /= 2
                for index in self._suites.values():
                    index.leave(self._keeps)

    def _keeps(self, name: str) -> bool:
        return hash_uniform("near", "kept", name) < self.share

    def found(self) -> Iterator[Leak]:
        """The leaks, in the order of the rows."""
        limits = self._calibration.limits()
        for distance, _, close, camera, leak in sorted(self._pairs, key=lambda entry: entry[1]):
            if -distance <= float(limits[camera].of(np.array([close]))[0]):
                yield leak


@dataclass(frozen=True, slots=True)
class Leak:
    """A picture (file, row, id) of `split` that looks the same as `other` of `other_split`."""

    place: tuple[str, int, str]
    split: str
    other: str
    other_split: str


def near_duplicates(first: Iterable[Frame | Rejected], second: Iterable[Frame | Rejected]) -> dict[int, Rejected]:
    """Positions of the frames that repeat an earlier one of their camera, with the reason.

    `first` and `second` are two readings of the same frames: the first to learn each camera's limits, the second to
    find duplicates. Rejected inputs and pictures that cannot be decoded are skipped.
    """
    calibration = Calibration()
    for _, seen, picture in _seen(first):
        calibration.add(seen, picture)
    limits, counts = calibration.limits(), calibration.frames
    room = min(1.0, MOST_KEPT / max(1, sum(counts.values())))
    kept = {camera: Index(math.ceil(count * room)) for camera, count in counts.items()}
    found: dict[int, Rejected] = {}
    for position, seen, _ in _seen(second):
        other = kept[seen.camera].nearest(seen, limits[seen.camera])
        if other is None:
            kept[seen.camera].add(seen)
        else:
            found[position] = Rejected(seen.name, f"near-duplicate: looks the same as {other[1]}")
    return found


_WIDE = Limits(LARGEST, LARGEST)


def _seen(items: Iterable[Frame | Rejected]) -> Iterator[tuple[int, Seen, PIL.Image.Image]]:
    for position, item in enumerate(items):
        if isinstance(item, Frame):
            try:
                picture = decode(item.image.bytes, least_side=8 * SIDE)
            except LinesideError:
                continue
            if (sig := signature(picture)) is not None:
                yield position, Seen.of(item.id, item.meta, sig), picture


def _keep(heap: list[tuple[int, int, T]], size: int, rank: int, number: int, value: Callable[[], T]) -> None:
    """Keep the `size` entries of the highest rank; `value` is called only for an entry that is kept. `number` breaks
    ties."""
    if len(heap) < size:
        heapq.heappush(heap, (rank, number, value()))
    elif (rank, number) > heap[0][:2]:
        heapq.heapreplace(heap, (rank, number, value()))


def _spread(picture: PIL.Image.Image, seed: int) -> list[float]:
    """Distances of a picture to copies of itself: re-encoded, a little darker, a little brighter, and with noise."""
    small = picture.copy()
    small.thumbnail((256, 256), PIL.Image.Resampling.BOX)
    pixels, own = np.asarray(small, np.float32), signature(small)
    noise = np.random.default_rng(abs(seed)).normal(0.0, 3.0, pixels.shape)
    spoilt = [(pixels, 70), (pixels * 0.94, 85), (pixels * 1.06, 85), (pixels + noise, 85)]
    seen = [signature(_encoded(p, quality)) for p, quality in spoilt]
    return [float(distances(own, sig[None])[0]) for sig in seen if sig is not None] if own is not None else []


def _encoded(pixels: npt.NDArray[np.floating], quality: int) -> PIL.Image.Image:
    out = io.BytesIO()
    PIL.Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return PIL.Image.open(out)


def _limits(camera: _Camera) -> Limits:
    spreads = [value for _, _, values in camera.degraded for value in values]
    same = min(LARGEST, float(np.quantile(spreads, QUANTILE))) if spreads else 0.0
    return Limits(same, _accident([seen for _, _, seen in camera.sampled], camera.frames, same))


def _accident(sample: list[Seen], frames: int, same: float) -> float:
    """The distance below which fewer than ACCIDENTS pairs of unrelated frames are expected among `frames`.

    The lower tail is modelled as F(d) = share (d / d_share)^k, with k by Hill's estimator, to extrapolate below the
    distances in a sample. Pairs of one scene or minute are related; pairs within `same` count as copies and are left
    out, unless one of the two has so many look-alikes that it must be a scene which recurs.
    """
    size = len(sample)
    if size < 2:
        return math.inf
    sigs = np.stack([seen.sig for seen in sample])
    apart = np.stack([distances(sig, sigs) for sig in sigs])
    keys = np.array([_scene_key(seen) for seen in sample], np.uint64)
    named = np.array([bool(seen.scene) for seen in sample])
    seconds = np.array([seen.seconds for seen in sample])
    related = (keys[:, None] == keys[None, :]) & named[:, None]
    with np.errstate(invalid="ignore"):
        related |= np.abs(seconds[:, None] - seconds[None, :]) <= MINUTE
    np.fill_diagonal(related, True)
    alike = ((apart <= same) & ~related).sum(1)
    recurs = alike > max(3, RECURRING * size)
    copies = (apart <= same) & ~(recurs[:, None] | recurs[None, :])
    pairs = np.sort(apart[np.triu(~related & ~copies, 1)])
    if len(pairs) < FEW_PAIRS:
        return math.inf
    lowest = max(10, int(TAIL * len(pairs)))
    edge, share = max(float(pairs[lowest - 1]), 1e-3), lowest / len(pairs)
    slope = 1.0 / max(float(np.log(edge / np.maximum(pairs[:lowest], 1e-3)).mean()), 1e-3)
    wanted = ACCIDENTS / (frames * (frames - 1) / 2)
    return edge * min(1.0, wanted / share) ** (1.0 / slope)


def _scene_key(seen: Seen) -> np.uint64:
    return np.uint64(stable_hash(seen.scene) if seen.scene else 0)


def _grown(array: npt.NDArray, rows: int) -> npt.NDArray:
    out = np.zeros((rows, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _seconds(text: str) -> float:
    """An ISO moment, or digits that are seconds since 1970, as a number; nan for anything else."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else math.nan
    except (ValueError, OverflowError, OSError):
        return math.nan
