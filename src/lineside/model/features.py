"""The feature store: the frozen encoder sees each picture once, for all stages, rollouts and evaluation.

It is content-addressed. The key of a picture is the hash of its bytes; for a variant, also of the settings that alter
it. The name of the folder is the hash of encoder weights, preprocessing and dtype. One process at a time appends to the
memory-mapped shards (a lock file), many read them. Pictures count only when their index line is written. A picture has
(P, D_e) numbers, in bf16 by default, with a P of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lineside.errors import LinesideError, disk_is_full
from lineside.files import drop_temporaries, flush, make_folder, write_atomic
from lineside.hashmap import HashMap
from lineside.model.augment import altered, variant_key
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.runtime import ON_CPU, Runtime
from lineside.settings import UNALTERED, Augment
from lineside.strict import read_record
from lineside.types import Image

BATCH = 16  # pictures that are encoded together
WRITE = 256  # pictures that are written and synced together
SHARD_ROWS = 512
MOST_TOKENS = 1 << 20  # of a picture


def encoder_key(vlm: VLM, dtype: torch.dtype) -> str:
    """Hash of all that features depend on besides the picture: encoder weights, feature layer, preprocessing, dtype."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(vlm.encoder_state.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(vlm.family.fingerprint(dtype), default=str).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Meta:
    """`width`: numbers of a token. Stores of before have `shape`: tokens of a picture, numbers of a token."""

    dtype: str
    width: Annotated[int, Field(ge=1)] | None = None
    shape: tuple[Annotated[int, Field(ge=1, le=MOST_TOKENS)], Annotated[int, Field(ge=1)]] = (1, 1)


def _whole(value: Any, least: int = 0) -> int:
    """A whole number of an index. Raises ValueError for anything else."""
    if type(value) is not int or value < least:
        raise ValueError("no whole number")
    return value


class _Places:
    """Key of a picture -> (shard, first token, tokens): some 50 bytes a picture."""

    def __init__(self) -> None:
        self._rows, self._rest = HashMap(), array("Q")  # 64 bits of a key -> row of the columns; its other bits
        self._columns = array("I"), array("I"), array("I")

    def __len__(self) -> int:
        return len(self._rest)

    def add(self, key: str, *place: int) -> None:
        """Note where a picture lies. Raises ValueError or OverflowError for what is no key or place."""
        high, low = divmod(int(key, 16), 1 << 64)
        for column, value in zip(self._columns, place):
            column.append(value)
        self._rest.append(low)
        self._rows[high] = len(self) - 1

    def __contains__(self, key: str) -> bool:
        return self._row(key) is not None

    def __getitem__(self, key: str) -> tuple[int, ...]:
        if (row := self._row(key)) is None:
            raise KeyError(key)
        return tuple(column[row] for column in self._columns)

    def _row(self, key: str) -> int | None:
        high, low = divmod(int(key, 16), 1 << 64)
        row = self._rows.get(high)
        return row if row is not None and self._rest[row] == low else None


class FeatureStore:
    """`get(images)` -> (P, D_e) of each, from memory, disk or the encoder, in that order.

    Without a `folder`, features are kept in memory only, at most `memory_rows` pictures. With one, `max_bytes` limits
    its size on disk: the first pictures are kept, which every pass then finds, and those beyond are encoded each time
    they are asked for. `augment` defines the variants of a picture. `runtime` says where the model computes; the
    features are given on the CPU. Raises LinesideError if any weight of the encoder is trainable, and ValueError if the
    model is not on the runtime's device."""

    def __init__(
        self,
        folder: Path | None,
        vlm: VLM,
        *,
        runtime: Runtime = ON_CPU,
        dtype: torch.dtype = torch.bfloat16,
        augment: Augment = UNALTERED,
        max_bytes: int = 40_000_000_000,
        memory_rows: int = 200_000,
    ) -> None:
        if any(weight.requires_grad for weight in vlm.encoder_state.values()):
            raise LinesideError(
                "the feature store needs a frozen encoder, and this one has weights that train: "
                "freeze it or turn the store off"
            )
        if vlm.device != runtime.device:
            raise ValueError(f"the model is on {vlm.device}, and the run computes on {runtime.device}")
        self.vlm = vlm
        self.runtime = runtime
        self.dtype = dtype
        self.augment = augment
        self.max_bytes = max_bytes
        self.memory_rows = memory_rows
        self.folder = folder / encoder_key(vlm, dtype) if folder is not None else None
        self.encoder_calls = 0  # pictures that went through the encoder
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._where = _Places()
        self._maps: dict[int, Tensor] = {}
        self._tokens = 0  # of the pictures in `_where`
        self._full = False  # whether there was no room for a picture
        self._ends: dict[int, int] = {}  # of each shard, the tokens that the index lists
        self._read = 0  # bytes of the index that have been read
        if self.folder is not None:
            make_folder(self.folder)
            self._refresh()

    def get(self, images: Sequence[Image]) -> list[Tensor]:
        """(P, D_e) of each picture in the store's dtype. Missing ones are encoded in batches and kept."""
        keys, passing = self._hold(images)
        return [passing[key] if key in passing else self._row(key) for key in keys]

    def warm(self, images: Iterable[Image]) -> Iterator[Image]:
        """Encode a stream of pictures in batches and yield the pictures, so that the caller can count progress.
        Nothing is encoded for which there is no room."""
        batch: list[Image] = []
        for image in images:
            batch.append(image)
            if len(batch) == WRITE:
                self._hold(batch if not self._full else ())
                yield from batch
                batch = []
        if batch:
            self._hold(batch if not self._full else ())
            yield from batch

    def __len__(self) -> int:
        return len(self._where) if self.folder is not None else len(self._memory)

    def _hold(self, images: Sequence[Image]) -> tuple[list[str], dict[str, Tensor]]:
        """Encode the pictures that are missing. Returns all keys, and the features for which there is no room."""
        keys = [variant_key(image, self.augment) for image in images]
        missing = {key: image for key, image in zip(keys, images) if not self._has(key)}
        return keys, self._encode(list(missing.items())) if missing else {}

    def _has(self, key: str) -> bool:
        return key in self._memory or key in self._where

    def _row(self, key: str) -> Tensor:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        shard, first, count = self._where[key]
        return self._map(shard)[first : first + count]

    def _encode(self, items: list[tuple[str, Image]]) -> dict[str, Tensor]:
        """Encode pictures and keep their features. Returns those for which there is no room."""
        passing: dict[str, Tensor] = {}
        if self.folder is not None:
            self._refresh()  # another process may have written them in the meantime
            items = [(key, image) for key, image in items if not self._has(key)]
        for start in range(0, len(items), WRITE):
            held = items[start : start + WRITE]
            parts = [held[i : i + BATCH] for i in range(0, len(held), BATCH)]
            encoded = [row.to(self.dtype) for pixels in self._pixels(parts) for row in self.vlm.features(pixels)]
            features = torch.cat(encoded).cpu().split([len(row) for row in encoded])
            self.encoder_calls += len(held)
            keys = [key for key, _ in held]
            if self.folder is not None:
                kept = self._append(keys, features)  # this syncs to disk, so it is done once for many pictures
                passing |= zip(keys[kept:], features[kept:])
            else:
                for key, row in zip(keys, features):
                    self._memory[key] = row.clone()
                while len(self._memory) > max(self.memory_rows, BATCH):
                    self._memory.popitem(last=False)
        return passing

    def _pixels(self, parts: Sequence[Sequence[tuple[str, Image]]]) -> Iterator[Any]:
        """The pictures of each part as the encoder takes them. The next part is prepared while the encoder works on
        this one. A GPU encodes faster than one core decodes, so for it all cores do."""

        def prepare(part: Sequence[tuple[str, Image]]) -> Any:
            resized = self.vlm.family.resizes
            return self.vlm.pixels([altered(image, self.augment, resized=resized) for _, image in part])

        threads = 1 if self.runtime.device.type == "cpu" else os.cpu_count() or 1
        todo = iter(parts)
        with ThreadPoolExecutor(threads) as pool:
            ahead = deque(pool.submit(prepare, part) for part in islice(todo, threads))
            while ahead:
                pixels = ahead.popleft().result()
                ahead.extend(pool.submit(prepare, part) for part in islice(todo, 1))
                yield pixels

    # On disk: shard-K.bin holds the tokens of pictures one after another; index.jsonl has one line for each batch,
    # {"k": [keys], "s": shard, "t": first token, "n": [tokens of each picture]}. Stores of before have "r", the first
    # picture, in place of "t" and "n", and the shape of a picture in meta.json.

    def _append(self, keys: list[str], features: Sequence[Tensor]) -> int:
        """Write the features of the first pictures, as many as there is room for; returns how many that are."""
        assert self.folder is not None
        token_bytes = features[0].shape[1] * self.dtype.itemsize
        with self._lock():
            self._refresh()
            new = [0 if key in self._where else len(row) for key, row in zip(keys, features)]
            held = sum(self._tokens + tokens <= self.max_bytes // token_bytes for tokens in accumulate(new))
            if held < len(keys):
                self._say_full()
            fresh = [(key, row) for key, row, tokens in zip(keys, features, new[:held]) if tokens]
            if not fresh:
                return held
            counts = [len(row) for _, row in fresh]
            shard = len(self._where) // SHARD_ROWS
            path = self._shard(shard, token_bytes)
            first, index = self._ends.get(shard, 0), self.folder / "index.jsonl"
            self._write_meta(features[0].shape[1])
            try:
                made = [each for each in (path, index) if not each.exists()]
                with open(path, "r+b" if path.exists() else "w+b") as f:
                    f.truncate(first * token_bytes)  # drop what a killed process wrote and did not list
                    f.seek(first * token_bytes)
                    f.write(b"".join(row.contiguous().view(torch.uint8).numpy().tobytes() for _, row in fresh))
                flush(path)
                if path in made:
                    flush(self.folder)  # the index must not name a file that a power cut has taken
                with open(index, "ab") as f:
                    f.truncate(self._read)  # drop a line that a killed process left unfinished
                    line = {"k": [key for key, _ in fresh], "s": shard, "t": first, "n": counts}
                    f.write(json.dumps(line).encode() + b"\n")
                flush(index)
                if index in made:
                    flush(self.folder)
            except OSError as error:
                reason = (
                    "the disk is full: make room and run it again" if disk_is_full(error) else error.strerror or error
                )
                raise LinesideError(
                    f"cannot write the feature store {self.folder}: {reason}; stored features are kept"
                ) from error
            self._refresh()
            return held

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            say(
                f"the feature store {self.folder} is full ({self.max_bytes / 1e9:,.3g} GB): further pictures are "
                "encoded each time they are needed; features_gb of the recipe sets its size"
            )

    def _write_meta(self, width: int) -> None:
        assert self.folder is not None
        path = self.folder / "meta.json"
        if not path.exists():
            drop_temporaries(self.folder)  # of a process that was killed here
            made = {"width": width, "dtype": str(self.dtype).removeprefix("torch.")}
            write_atomic(path, json.dumps(made))

    def _meta(self) -> _Meta:
        assert self.folder is not None
        path, advice = self.folder / "meta.json", f"delete {self.folder}, and the features are computed again"
        try:
            return read_record(_Meta, path, advice)
        except FileNotFoundError:
            raise LinesideError(f"{path}: no such file: {advice}") from None

    def _refresh(self) -> None:
        """Read the index lines that were added since the last call. An unfinished last line is left for later."""
        assert self.folder is not None
        path = self.folder / "index.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as f:
            f.seek(self._read)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                try:
                    entry = self._note(line)
                except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
                    raise LinesideError(
                        f"{path}: a line of it is damaged: delete {self.folder}, and the features are computed again"
                    ) from None
                self._maps.pop(entry["s"], None)

    def _note(self, line: bytes) -> dict[str, Any]:
        """Record where the features of an index line lie; returns it. Raises many types of error for what is none."""
        entry = json.loads(line)
        if "r" in entry:  # of before
            count = self._meta().shape[0]
            entry |= {"t": _whole(entry["r"]) * count, "n": [count] * len(entry["k"])}
        shard, first = _whole(entry["s"]), _whole(entry["t"])
        for key, count in zip(entry["k"], entry["n"], strict=True):
            self._where.add(key, shard, first, _whole(count, least=1))
            first, self._tokens = first + count, self._tokens + count
        self._ends[shard] = max(first, self._ends.get(shard, 0))
        return entry

    def _map(self, shard: int) -> Tensor:
        if shard not in self._maps:
            assert self.folder is not None
            meta = self._meta()
            width = meta.width or meta.shape[1]
            raw = np.memmap(self._shard(shard, width * self.dtype.itemsize), dtype=np.uint8, mode="c")
            tokens = len(raw) // (width * self.dtype.itemsize)
            flat = torch.from_numpy(raw[: tokens * width * self.dtype.itemsize]).view(self.dtype)
            self._maps[shard] = flat.view(tokens, width)
        return self._maps[shard]

    def _shard(self, shard: int, token_bytes: int) -> Path:
        """The file of a shard. Raises LinesideError if it lacks what the index lists."""
        assert self.folder is not None
        path = self.folder / f"shard-{shard:05d}.bin"
        size = path.stat().st_size if path.exists() else 0
        if size < self._ends.get(shard, 0) * token_bytes:
            raise LinesideError(
                f"{path}: shorter than index.jsonl says, as after a copy that broke off: copy it again, or delete "
                f"{self.folder}, and the features are computed again"
            )
        return path

    @contextmanager
    def _lock(self) -> Iterator[None]:
        assert self.folder is not None
        with open(self.folder / "lock", "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def features_of(store: FeatureStore, images: Sequence[Image]) -> list[Tensor] | None:
    """Features (P, D_e) of each picture in order; None without pictures."""
    return store.get(images) if images else None
