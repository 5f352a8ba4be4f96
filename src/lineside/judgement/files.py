"""Atomic writes, and the small pictures beside an evaluation."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lineside.errors import LinesideError, disk_is_full
from lineside.images import decode, image_key
from lineside.types import Image

THUMBNAIL_SIDE = 320  # pixels; about the width of a card on a laptop


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a temporary file, flushes it to disk, then renames it to `path`. Raises LinesideError if it cannot."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # its folder may not be one
            temporary.unlink()
        reason = "the disk is full: make room and run the same command again" if disk_is_full(error) else error.strerror
        raise LinesideError(f"{path}: cannot be written ({reason or error}); earlier content is kept") from error


def keep_pictures(folder: Path, images: Iterable[Image]) -> None:
    """Writes a thumbnail of each picture as `<key>.jpg`, unless it exists."""
    for image in images:
        key = image_key(image.bytes)
        path = folder / f"{key}.jpg"
        if not path.exists():
            write_atomic(path, thumbnail(image.bytes, name=image.path or key))


def thumbnail(data: bytes, *, name: str, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG at most `side` pixels wide and high, without metadata. Raises LinesideError as `decode`, with `name`."""
    try:
        picture = decode(data)
    except LinesideError as error:
        raise LinesideError(f"{name}: {error}") from error
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
