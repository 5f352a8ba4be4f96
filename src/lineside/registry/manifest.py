"""The files of what the registry keeps, by name, size and SHA-256: copied, listed and checked.

The hash of a manifest is the hash of what it lists, so equal files give equal hashes on every machine. A folder is
whole if it holds exactly the files of its manifest. A manifest is all that a machine needs to fetch and check a model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from lineside.errors import LinesideError, disk_is_full
from lineside.files import flush_all, leads_out
from lineside.progress import track
from lineside.strict import Strict, Tuple

MANIFEST, FILES = "manifest.json", "files"  # of an item's folder: the list, and the folder of what it lists
BLOCK = 1 << 20
LONG = 512  # blocks from which a bar is shown: about a second

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Entry(Strict):
    """A file, by its path below the folder."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if (
            not path.parts
            or path.is_absolute()
            or ".." in path.parts
            or str(path) != name
            or "\\" in name
            or not name.isprintable()
        ):
            raise ValueError(f"expected a path below the folder, got {name!r}")
        return name


class Manifest(Strict):
    """The files of an item, ordered by name."""

    version: Literal[1] = 1
    files: Tuple[Entry]

    @field_validator("files")
    @classmethod
    def _once(cls, files: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if len({entry.name for entry in files}) < len(files):
            raise ValueError("a file is listed twice")
        return files

    @property
    def hash(self) -> str:
        """SHA-256 over names, sizes and hashes of the files."""
        lines = sorted(f"{entry.sha256} {entry.bytes} {entry.name}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)


def files_below(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path below it, without hidden ones. Raises LinesideError for a link out of it."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    shown = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}
    if out := next((path for path in shown.values() if leads_out(path, folder)), None):
        raise LinesideError(f"{out}: a link out of the folder: copy the file itself there")
    return {name.as_posix(): path for name, path in shown.items() if path.is_file()}


def copy(sources: Mapping[str, Path], folder: Path, label: str) -> Manifest:
    """Copy files to `folder`/files by their names, flush them to disk, and write the manifest beside them.

    The copies are read-only, and so are their folders. Raises LinesideError if a file cannot be read, changes
    meanwhile, or cannot be written.
    """
    before = {name: _state(path) for name, path in sources.items()}
    digests: dict[str, str] = {}
    try:
        blocks = sum(1 + size // BLOCK for size, _, _ in before.values())
        for _ in _shown(_copied(sources, folder / FILES, digests), blocks, label):
            pass
        entries = (Entry(name=name, bytes=before[name][0], sha256=digests[name]) for name in sorted(sources))
        manifest = Manifest(files=tuple(entries))
        seal(folder, manifest)
    except OSError as error:
        reason = "the disk is full: make room" if disk_is_full(error) else error.strerror or str(error)
        raise LinesideError(f"{error.filename or folder}: {reason}; nothing was registered") from error
    for name, path in sources.items():
        if _state(path) != before[name]:
            raise LinesideError(f"{path} changed while it was copied: register it when nothing writes to it any more")
    return manifest


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside `folder`/files, make everything there durable, and the folders of the files read-only.
    Raises OSError."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    flush_all(folder)
    for place in ((folder / FILES), *(path for path in (folder / FILES).rglob("*") if path.is_dir())):
        place.chmod(0o555)


def _copied(sources: Mapping[str, Path], folder: Path, digests: dict[str, str]) -> Iterator[None]:
    """Copies files block by block, and puts their hashes into `digests`."""
    for name, path in sources.items():
        target, digest = folder / name, hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, target.open("wb") as file:
            while block := source.read(BLOCK):
                digest.update(block)
                file.write(block)
                yield
            os.fchmod(file.fileno(), 0o444)
        digests[name] = digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an item's folder. Raises LinesideError if it is gone or damaged."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LinesideError(f"{path}: {error.strerror or error}") from None
    except ValidationError:
        raise LinesideError(f"{path}: not a list of files") from None


def problems(folder: Path, expected: str) -> list[str]:
    """What is wrong with an item's folder whose hash is `expected`: files that are gone, changed or new. Reads every
    file."""
    try:
        manifest = read_manifest(folder)
    except LinesideError as error:
        return [str(error)]
    if manifest.hash != expected:
        return [f"{folder / MANIFEST} lists other files than those that were registered"]
    try:
        listed, there = {entry.name: entry for entry in manifest.files}, files_below(folder / FILES)
    except LinesideError as error:
        return [str(error)]
    found = [f"{folder / FILES / name} is new" for name in sorted(there.keys() - listed.keys())]
    found += [f"{folder / FILES / name} is gone" for name in sorted(listed.keys() - there.keys())]
    both = {name: there[name] for name in sorted(listed.keys() & there.keys())}
    digests: dict[str, str] = {}
    try:
        sizes = {name: path.stat().st_size for name, path in both.items()}
        cut = [name for name in both if sizes[name] != listed[name].bytes]
        found += [f"{both[name]} has {sizes[name]:,} bytes instead of {listed[name].bytes:,}" for name in cut]
        whole = {name: path for name, path in both.items() if name not in cut}
        blocks = sum(1 + sizes[name] // BLOCK for name in whole)
        for _ in _shown(_hashed(whole, digests), blocks, "checking the files"):
            pass
    except OSError as error:
        return [*found, f"{error.filename or folder}: {error.strerror or error}"]
    return found + [f"{both[name]} has changed" for name in digests if digests[name] != listed[name].sha256]


def _hashed(paths: Mapping[str, Path], digests: dict[str, str]) -> Iterator[None]:
    """Reads files block by block, and puts their hashes into `digests`."""
    for name, path in paths.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                yield
        digests[name] = digest.hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    try:
        now = path.stat()
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror or error})") from error
    return now.st_size, now.st_mtime_ns, now.st_ino


def _shown(blocks: Iterator[None], total: int, label: str) -> Iterator[None]:
    return track(blocks, total=total, unit="MB", label=label) if total >= LONG else blocks
