"""The pictures of logged answers, as the model was shown them: from a server's log, from frames, or from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lineside.data.regions import shown_to_model
from lineside.data.sources import own_shards
from lineside.data.store import read_frames
from lineside.errors import LinesideError
from lineside.files import is_file
from lineside.images import decode, image_key, stored
from lineside.judgement.outcomes import Logged, told_time
from lineside.progress import track
from lineside.types import Frame, Image, Meta

Log = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Shown:
    """The pictures of a question as the model is shown them, and what is known of the frame."""

    images: tuple[Image, ...]
    meta: Meta
    split: str = "train"


class Pictures:
    """The pictures of logged answers: in a server's log, in `frames`, or beside the table that names them."""

    def __init__(self, frames: Path | None, logs: Mapping[Path, Log], roi: dict[str, Any] | None) -> None:
        """`logs`: what gives a picture of a server's log by its key. Raises LinesideError for a folder that is not
        there."""
        self._frames, self._logs, self._roi = frames, logs, roi
        if frames is not None and not frames.is_dir():
            raise LinesideError(f"{frames}: no such folder of pictures")
        self.sharded = frames is not None and own_shards(frames)

    def shown(self, answer: Logged, frame: Frame | None = None) -> Shown | None:
        """What was shown with an answer; None if a picture is missing. Raises LinesideError for one that cannot be
        shown."""
        meta = Meta(
            scene=answer.scene, cell=answer.cell, camera=answer.camera, time=told_time(answer.time), week=answer.week,
            skus=answer.skus,
        )  # fmt: skip
        beside = self._beside(answer)
        if beside is None:
            return None
        if frame is not None:
            known = frame.meta
            meta = replace(
                known, cell=known.cell or meta.cell, camera=known.camera or meta.camera, time=known.time or meta.time,
                week=known.week or meta.week, skus=known.skus or meta.skus, scene=known.scene or meta.scene,
            )  # fmt: skip
            beside = tuple(image for image in beside if image.role == "reference" or not frame.views)
            return Shown((*frame.images, *beside), meta, frame.split)
        raw = [self._raw(answer, name) for name in self._names(answer)]
        if not raw or None in raw:
            return None
        roi = answer.about.get("roi", self._roi)
        parts: list[Image] = []
        for data in raw:
            assert data is not None
            decode(data)
            image = Image(stored(data)[0], path=answer.frame)
            camera, box = (answer.camera or None, answer.about.get("box")) if roi else (None, None)
            parts += shown_to_model(image, roi, camera=camera, box=box)[0]
        scene = meta.scene or ",".join(image_key(data) for data in raw if data)
        return Shown((*parts, *beside), replace(meta, scene=scene))

    def known_by(self, answer: Logged) -> str:
        """What the picture of an answer is known by: a key or a name in `frames`, else its path."""
        name = answer.frame
        if not name or _is_key(name.partition(",")[0]) or self.sharded:
            return name
        if self._frames is not None and is_file(self._frames / name):
            return name
        return str(answer.home.parent / name)

    def _names(self, answer: Logged) -> list[str]:
        keys = answer.frame.split(",")
        return keys if all(map(_is_key, keys)) else [answer.frame] if answer.frame else []

    def _raw(self, answer: Logged, name: str) -> bytes | None:
        for log in (self._logs.get(answer.home), *self._logs.values()) if _is_key(name) else ():
            if log is not None and (data := log(name)) is not None:
                return data
        folders = [folder for folder in (self._frames, answer.home.parent) if folder is not None]
        for path in (folder / name for folder in folders):
            with suppress(OSError, ValueError):  # a name that no file can have
                if path.is_file() and any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
                    return path.read_bytes()
        return None

    def _beside(self, answer: Logged) -> tuple[Image, ...] | None:
        found: list[Image] = []
        for one in answer.about.get("beside") or ():
            if (data := self._raw(answer, str(one.get("key")))) is None:
                return None
            role = "view" if one.get("role") == "view" else "reference"
            found.append(Image(stored(data)[0], role, name=str(one.get("name")), text=str(one.get("text", ""))))
        return tuple(found)

    def in_shards(self, wanted: set[str]) -> Iterator[tuple[set[str], Frame]]:
        """The frames of the shards that have one of these names: their id, or the key of their picture."""
        if self._frames is None or not self.sharded or not wanted:
            return
        for frame in track(read_frames(self._frames), total=None, unit="frames", label="outcomes: look for frames"):
            if names := wanted & {frame.id, image_key(frame.image.bytes)}:
                yield names, frame


def _is_key(name: str) -> bool:
    return len(name) == 32 and not name.strip("0123456789abcdef")
