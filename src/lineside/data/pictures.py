"""Pictures as rows name them: a path, a file URL, a data URL, base64, bytes, or a record that holds one of these."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from lineside.data.folders import read_file
from lineside.errors import LinesideError
from lineside.files import is_file
from lineside.images import decode, grey_bits, image_key, stored
from lineside.strict import nearest
from lineside.types import Image

# Keys of a record that hold a picture; the first that is not empty counts, so bytes win over a path.
_HOLDERS = ("bytes", "base64", "b64_json", "data", "image", "image_url", "source", "url", "path", "file_name", "file")
# Starts of base64 of JPEG, PNG, WebP, BMP, TIFF and GIF. Base64 has no full stop, a picture's file name has one.
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "Qk", "SUkq", "TU0A", "R0lGOD")
LISTED = 2000  # most names that a missing one is compared with
LEAST_BASE64 = 64  # characters
_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a row: its path, and its bytes if the row holds them. Its name then comes from its content."""

    path: str
    data: bytes | None = None


def picture_of(value: Any) -> Picture:
    """Raises LinesideError if the value names no picture, or one that is neither in a file nor in the row."""
    if isinstance(value, Mapping):
        held = next((value[key] for key in _HOLDERS if value.get(key)), None)
        if held is None:
            raise LinesideError(
                f"a picture with the keys {', '.join(map(str, value)) or 'none'}: expected bytes or path"
            )
        return picture_of(held)
    if isinstance(value, bytes) and value:
        suffix = "jpg" if value[:2] == b"\xff\xd8" else "webp" if value[8:12] == b"WEBP" else "png"
        return Picture(f"images/{image_key(value)}.{suffix}", value)
    if not isinstance(value, str) or not value.strip():
        raise LinesideError(f"a picture named {value!r:.60}: expected a path")
    if value[:5].lower() == "data:":
        head, _, text = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise LinesideError(f"the picture {value[:60]!r} is a data URL without base64")
        return picture_of(_decoded(text))
    if value.startswith(_BASE64) and "." not in value and len(value) >= LEAST_BASE64:
        return picture_of(_decoded(value))
    return Picture(value)


def without_bytes(value: Any) -> Any:
    """A row with the names of its pictures in place of their bytes, to write it as JSON."""
    if isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)):
        return picture_of(value).path
    if isinstance(value, Mapping):
        return {key: without_bytes(inner) for key, inner in value.items()}
    return [without_bytes(inner) for inner in value] if isinstance(value, list | tuple) else value


def safe_name(name: str, folder: Path | None = None) -> PurePosixPath:
    """A picture's path relative to the data set in `folder`.

    Backslashes separate folders, as on Windows. An absolute path or file URL is accepted if it is inside `folder`.
    Raises LinesideError for other paths.
    """
    path = unquote(name.removeprefix("file://").removeprefix("localhost")) if name.startswith("file://") else name
    path = path.replace("\\", "/")
    if "://" in path:
        raise LinesideError(f"the picture {name[:80]!r} is not in a file: download it first and name the file")
    pure = PurePosixPath(path)
    if folder is not None and pure.is_absolute() and pure.is_relative_to(folder.resolve()):
        pure = pure.relative_to(folder.resolve())
    if pure.is_absolute() or ".." in pure.parts or _DRIVE.match(path) or "\0" in path:
        raise LinesideError(
            f"the picture {name[:80]!r} must lie inside the folder of pictures"
            + (f", {folder}: give its folder with --images, and the path from there in the row" if folder else "")
        )
    return pure


class Loader:
    """Reads the pictures that rows name; the last one is kept, because neighbouring rows often share it."""

    def __init__(self, folder: Path, *, bits: int | None = None) -> None:
        """`bits`: how many bits the camera uses in grey pictures of 16 bits."""
        self._folder, self._bits = folder, bits
        self._last: tuple[Picture, Image] | None = None
        self._hinted = False

    def __call__(self, picture: Picture) -> Image:
        """The picture, decoded once as a check. Raises LinesideError when it cannot be read."""
        if self._last is None or self._last[0] != picture:
            path, data = picture.path, picture.data
            if data is None:
                path = str(safe_name(path, self._folder))
                data = read_file(self._file(path))
            if self._bits is None and grey_bits(data) is not None:
                raise LinesideError(
                    f"{path}: a grey picture of 16 bits, of which cameras use 10, 12, 14 or all: say how many with "
                    "--bits, such as --bits 12"
                )
            data = stored(data, bits=self._bits)[0]
            decode(data)
            self._last = picture, Image(data, "frame", path)
        return self._last[1]

    def _file(self, path: str) -> Path:
        forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
        if found := next((self._folder / form for form in forms if is_file(self._folder / form)), None):
            return found
        hint = ""
        if not self._hinted:  # only once: there may be a million rows
            self._hinted = True
            hint = self._hint(path)
        raise LinesideError(f"no picture {path!r:.120} in {self._folder}{hint}")

    def _hint(self, path: str) -> str:
        """A hint where a missing picture may be."""
        near = [d for folder in (self._folder, self._folder.parent) for d in sorted(folder.glob("*/"))]
        if found := next((inner for inner in near if is_file(inner / path)), None):
            return f"; it is in {found}: give the folder of the pictures with --images"
        parts = PurePosixPath(path).parts
        tails = (str(PurePosixPath(*parts[start:])) for start in range(1, len(parts)))
        if tail := next((tail for tail in tails if is_file(self._folder / tail)), None):
            return f"; it holds {tail!r}: give the folder above with --images, or take {path.removesuffix(tail)!r} off"
        names = [name for name in _names((self._folder / path).parent) if name != PurePosixPath(path).name]
        alike = nearest(PurePosixPath(path).name, names)
        return f"{alike}: give the folder of the pictures with --images"


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in islice(folder.iterdir(), LISTED)]
    except (OSError, ValueError):
        return []


def _decoded(text: str) -> bytes:
    try:
        text = "".join(text.split())
        text = text.replace("-", "+").replace("_", "/")  # the URL form of base64
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise LinesideError(f"a picture of base64 that cannot be decoded ({error}): {text[:40]!r} ...") from error
