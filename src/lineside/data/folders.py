"""Picture files in folders: every file below a folder once, and the file that a table's row names.

A table is often written on another machine: with backslashes, without a suffix, in another Unicode form. A name that
matches exactly one file is accepted; else the row is refused, with the nearest file.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lineside.data.reviewed import MARK
from lineside.errors import LinesideError
from lineside.files import is_file
from lineside.images import MAX_BYTES, OTHER_PICTURES, PICTURES
from lineside.stages import LINE

_ELSEWHERE = re.compile(r"/|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]+:/")  # absolute, on a drive, an address
_COMPARED = 2000  # most files that a name is compared with to find the nearest
_MISSES = 50  # names for which the nearest file is searched


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that did not become a frame: its name, and why."""

    name: str
    reason: str


def read_file(path: Path) -> bytes:
    """The bytes of a picture file. Raises LinesideError when it is too large, not a file, or cannot be read."""
    try:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(2, "a link that leads nowhere")
        if not path.is_file():
            raise FileNotFoundError(2, "not a file" if path.exists() else "No such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise LinesideError(f"image of {size} bytes: at most {MAX_BYTES} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise LinesideError(f"image cannot be read: {getattr(error, 'strerror', None) or error}") from error


def walk(folder: Path) -> Iterator[str | Rejected]:
    """Files below a folder by relative name, in order. Hidden ones and folders that lineside wrote are left out.

    A link is followed, but nothing is read twice: a link to a file or folder that is read anyway, or to a folder above,
    is rejected by name. Raises LinesideError for a folder that cannot be listed.
    """
    yield from _walk(folder, "", Path(os.path.realpath(folder)), set())


def _walk(folder: Path, inside: str, root: Path, followed: set[Path]) -> Iterator[str | Rejected]:
    """`followed`: folders and files outside the root that were reached through links."""
    try:
        entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
    except OSError as error:
        raise LinesideError(f"{folder / inside}: cannot be listed ({error.strerror})") from error
    if inside and _ours({entry.name for entry in entries}):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{inside}/{entry.name}" if inside else entry.name
        link, directory = entry.is_symlink(), _is_dir(entry)
        if link or followed:
            real = Path(os.path.realpath(entry.path))
            if link and real != root and real.exists() and real.is_relative_to(root) and not _hidden(real, root):
                yield Rejected(name, f"a link to a {'folder' if directory else 'file'} that is read in its own place")
                continue
            if directory and (root.is_relative_to(real) or real in followed):
                yield Rejected(name, "a link to a folder above it, or to one that is read already")
                continue
            if not directory and (real in followed or (link and not followed.isdisjoint(real.parents))):
                yield Rejected(name, "a link to a file that is read under another name")
                continue
            if directory or link:
                followed.add(real)
        if directory:
            yield from _walk(folder, name, root, followed)
        else:
            yield name


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to each other
        return False


def _ours(names: set[str]) -> bool:
    """Whether lineside wrote a folder (samples, a review or a training run), by the files that mark it."""
    return bool(names & {"label.json", "label.started", MARK}) or ("recipe.yaml" in names and bool(names & {*LINE}))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture, readable or not."""
    return name.lower().endswith(PICTURES + OTHER_PICTURES)


class PictureFolder:
    """Finds the files of a folder that rows name."""

    def __init__(self, folder: Path) -> None:
        """Raises LinesideError when there is no such folder."""
        if not folder.is_dir():
            beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            there = f"; beside it: {', '.join(beside[:8])}" if beside else ""
            raise LinesideError(f"{folder}: no such folder of pictures{there}")
        self.folder = folder
        self._by_key: dict[str, list[str]] | None = None  # built when a name does not match exactly
        self._misses = 0

    def find(self, named: Any) -> str:
        """The file's name relative to the folder. Raises LinesideError with the reason and the nearest name."""
        name = str(named or "").strip()
        if not name or "\0" in name:
            raise LinesideError("no picture is named")
        plain = PurePosixPath(name)
        if not plain.is_absolute() and ".." not in plain.parts and is_file(self.folder / plain):
            return plain.as_posix()
        plain = PurePosixPath(name.replace("\\", "/"))
        root = Path(os.path.realpath(self.folder))
        if plain.is_absolute() and Path(plain).is_relative_to(root):
            plain = PurePosixPath(Path(plain).relative_to(root).as_posix())
        if ".." in plain.parts or _ELSEWHERE.match(str(plain)):
            raise LinesideError(f"the picture must lie inside the folder{self._nearest(plain)}")
        found = self._like(plain)
        if len(found) > 1:
            raise LinesideError(f"image cannot be read: the name could mean {' or '.join(found[:3])}")
        if not found:
            raise LinesideError(f"image cannot be read: No such file{self._nearest(plain)}")
        return found[0]

    def _like(self, name: PurePosixPath) -> list[str]:
        """Files of that name in another Unicode form or case; else pictures of that name with a suffix."""
        index = self._index()
        key = _key(name.as_posix())
        return index.get(key) or index.get(f"{key}\0", [])

    def _nearest(self, name: PurePosixPath) -> str:
        """A hint which file may be right, "" if none is near."""
        self._misses += 1
        if self._misses > _MISSES:
            return ""
        files = [file for key, found in self._index().items() if not key.endswith("\0") for file in found]
        same = [file for file in files if _key(file).rpartition("/")[2] == _key(name.name)]
        if len(same) == 1:
            folder = same[0].rpartition("/")[0]
            where = f" (set `pictures: {folder}` if it is this one)" if folder and "/" not in name.as_posix() else ""
            return f"; {same[0]} exists{where}"
        close = difflib.get_close_matches(name.as_posix(), files[:_COMPARED], n=1, cutoff=0.6)
        return f"; did you mean {close[0]!r}?" if close else ""

    def _index(self) -> dict[str, list[str]]:
        if self._by_key is None:
            self._by_key = {}
            for file in walk(self.folder):
                if isinstance(file, str) and is_picture(file):
                    self._by_key.setdefault(_key(file), []).append(file)
                    self._by_key.setdefault(_key(file.rpartition(".")[0]) + "\0", []).append(file)
        return self._by_key


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
