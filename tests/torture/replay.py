"""What a power cut leaves: the log of preload.c replayed on a model of a disk that keeps only what was flushed.

A file keeps the content of its last fsync, a folder the names of its last fsync. What came later may be there or not,
each for itself: a rename without its content, a content without its name, half of a write. `left` gives one such disk.

Not modelled: writes through mmap (SQLite's -shm, which it makes anew), and a disk that lies about a flush.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Kept: TypeAlias = Literal["flushed", "names", "some"]  # nothing more; all names, no content; of each a part, by chance


class Change(NamedTuple):
    """A line of the log."""

    kind: str
    path: str
    other: str
    number: int  # of the file, as the kernel counts them
    offset: int
    data: bytes


@dataclass(eq=False)
class File:
    """`flushed`: the content of the last fsync. `since`: the changes after it."""

    now: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""
    since: list[Change] = field(default_factory=list)


@dataclass(eq=False)
class Folder:
    """`flushed`: the names of the last fsync."""

    now: dict[str, Node] = field(default_factory=dict)
    flushed: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = File | Folder


def read_log(path: Path) -> list[Change]:
    """The changes in the order they were made."""
    changes, data, at = [], path.read_bytes(), 0
    while at < len(data):
        end = data.index(b"\n", at)
        kind, one, other, number, offset, size = data[at:end].decode().split("\t")
        at = end + 1 + int(size)
        changes.append(Change(kind, one, other, int(number), int(offset), data[end + 1 : at]))
    return changes


class Disk:
    """A folder and all below it. What is there at the beginning is flushed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = _read(root)
        self._numbers: dict[int, tuple[Folder, str]] = {}  # where a file made in this log has its name

    def apply(self, change: Change) -> None:
        """Make one change."""
        if not self._below(change.path):
            return
        self._rename_unseen(change)
        folder, name = self._place(change.path)
        match change.kind:
            case "create":
                folder.now[name] = File()
                self._numbers[change.number] = folder, name
            case "mkdir":
                folder.now[name] = Folder()
            case "unlink":
                folder.now.pop(name, None)
                self._numbers.pop(change.number, None)
            case "rename" | "link":
                to, new = self._place(change.other)
                to.now[new] = folder.now[name]
                self._numbers[change.number] = to, new
                if change.kind == "rename":
                    del folder.now[name]
            case "fsync":
                node = self.node(change.path)
                if isinstance(node, Folder):
                    node.flushed = dict(node.now)
                elif node is not None:
                    node.flushed, node.since = bytes(node.now), []
            case "write" | "truncate":
                file = folder.now.get(name)
                if isinstance(file, File):
                    _write(file.now, change)
                    file.since.append(change)

    def left(self, place: Path, kept: Kept, chance: random.Random) -> None:
        """Write to `place` what is left after a power cut."""
        _leave(self._top, place, kept, chance)

    def now(self, place: Path) -> None:
        """Write to `place` what a process sees."""
        _leave(self._top, place, "now", random.Random())

    def _rename_unseen(self, change: Change) -> None:
        """A library's rename that preload.c does not see: the number of the file has another name now."""
        known = self._numbers.get(change.number)
        if known is None or change.kind in ("create", "mkdir") or self.node(change.path) is not None:
            return
        (old, name), (folder, new) = known, self._place(change.path)
        folder.now[new] = old.now.pop(name)
        self._numbers[change.number] = folder, new

    def _below(self, path: str) -> bool:
        return path.startswith(f"{self.root}/") or path == str(self.root)

    def node(self, path: str) -> Node | None:
        """What a process finds at a path."""
        node: Node | None = self._top
        for part in Path(path).relative_to(self.root).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        parent = self.node(str(Path(path).parent)) if path != str(self.root) else self._top
        assert isinstance(parent, Folder), path
        return parent, Path(path).name


class Promised:
    """What must outlast a power cut, as the log goes on: a file that was renamed to its place and whose folder was
    flushed after that, with the content that it then had, whether that was flushed or not."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, ...]] = {}  # path -> what it may hold: more than one after another rename
        self._named: dict[str, tuple[str, bytes]] = {}  # path -> the folder whose flush makes its name durable, content

    def apply(self, change: Change, disk: Disk) -> None:
        """`disk`: after the change."""
        match change.kind:
            case "rename" | "link":
                if change.kind == "rename":
                    self._forget(change.path)
                for path, content in _files(disk.node(change.other), change.other):
                    self._named[path] = str(Path(change.other).parent), content
                    if path in self.files:
                        self.files[path] += (content,)
            case "fsync":
                done = {path: content for path, (folder, content) in self._named.items() if folder == change.path}
                for path, content in done.items():
                    self.files[path] = (content,)
                    del self._named[path]
            case "unlink" | "write" | "truncate":
                self._forget(change.path)

    def lost(self) -> list[str]:
        """The files that are not as they must be."""
        held = {path: Path(path).read_bytes() if Path(path).is_file() else None for path in self.files}
        return [path for path, content in held.items() if content not in self.files[path]]

    def _forget(self, path: str) -> None:
        for known in (self.files, self._named):
            for gone in [one for one in known if one == path or one.startswith(f"{path}/")]:
                del known[gone]


def last_states(changes: list[Change]) -> dict[str, int]:
    """Of each folder of resumable states, the step of the newest one whose name is flushed, as long as a stage has not
    dropped it."""
    named: dict[str, int] = {}
    found: dict[str, int] = {}
    for change in changes:
        path = Path(change.other if change.kind == "rename" else change.path)
        folder, state = str(path.parent), re.fullmatch(r"step-(\d+)\.safetensors", path.name)
        if change.kind == "rename" and state:
            named[folder] = int(state[1])
        elif change.kind == "fsync" and change.path in named:
            found[change.path] = named.pop(change.path)
        elif change.kind == "unlink" and state and int(state[1]) >= found.get(folder, 0):
            found.pop(folder, None)
    return found


def flushed_lines(changes: list[Change]) -> dict[str, int]:
    """The lines of each ledger that are flushed."""
    written: dict[str, int] = {}
    found: dict[str, int] = {}
    for change in changes:
        if change.path.endswith(".ledger") and change.kind == "write":
            written[change.path] = written.get(change.path, 0) + change.data.count(b"\n")
        elif change.kind == "fsync" and change.path in written:
            found[change.path] = written[change.path]
    return found


def boundaries(changes: list[Change], root: Path) -> Iterator[int]:
    """After how many changes a flush has just ended, and the end."""
    last = len(changes)
    found = (n for n, change in enumerate(changes, 1) if change.kind == "fsync" and change.path.startswith(str(root)))
    yield from dict.fromkeys((*found, last))


def _files(node: Node | None, path: str) -> Iterator[tuple[str, bytes]]:
    """The files of a node, with their paths and what a process sees in them."""
    if isinstance(node, Folder):
        for name, below in node.now.items():
            yield from _files(below, f"{path}/{name}")
    elif node is not None:
        yield path, bytes(node.now)


def _write(content: bytearray, change: Change) -> None:
    end = change.offset + len(change.data)
    if change.kind == "truncate":
        del content[change.offset :]
    content.extend(bytes(max(0, end - len(content))))  # a hole is zeros
    content[change.offset : end] = change.data


def _read(path: Path) -> Folder:
    names: dict[str, Node] = {}
    for below in path.iterdir():
        if below.is_dir():
            names[below.name] = _read(below)
        else:
            data = below.read_bytes()
            names[below.name] = File(bytearray(data), data)
    return Folder(names, dict(names))


def _leave(folder: Folder, place: Path, kept: str, chance: random.Random) -> None:
    place.mkdir(exist_ok=True)
    names = folder.flushed
    if kept in ("now", "names"):
        names = folder.now
    elif kept == "some":
        names = {}
        for name in sorted({*folder.flushed, *folder.now}):
            here, before = folder.now.get(name), folder.flushed.get(name)
            node = here if here is before or chance.random() < 0.5 else before
            if node is not None:
                names[name] = node
    for name, node in names.items():
        if isinstance(node, Folder):
            _leave(node, place / name, kept, chance)
        elif not name.endswith("-shm"):
            (place / name).write_bytes(_content(node, kept, chance))


def _content(file: File, kept: str, chance: random.Random) -> bytes:
    if kept == "now":
        return bytes(file.now)
    if kept != "some" or not file.since:
        return file.flushed
    content, done = bytearray(file.flushed), chance.randrange(len(file.since) + 1)
    for change in file.since[:done]:
        _write(content, change)
    if done < len(file.since) and (torn := file.since[done]).kind == "write":  # nothing, half of it, its length alone
        part = chance.choice([b"", torn.data[: len(torn.data) // 2], bytes(len(torn.data))])
        _write(content, torn._replace(data=part))
    return bytes(content)
