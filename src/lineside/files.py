"""Durable writes, locks for folders that several processes use, fingerprints of files, and where checkpoints lie."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lineside.errors import LinesideError, disk_is_full
from lineside.progress import say

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from some network file systems
_NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems that cannot flush a folder
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
_BLOCK = 1 << 20
_SLICE = 1 << 20  # bytes at the start, middle and end of a weights file that enter its fingerprint


def is_file(path: Path) -> bool:
    """Whether there is a file of a name from outside, which may be too long or hold a null byte."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file as `replacing` does. Raises LinesideError if it cannot be written; earlier content is then kept."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(data)
    except OSError as error:
        reason = "the disk is full: make room and run the same command again" if disk_is_full(error) else error.strerror
        raise LinesideError(f"{path}: cannot be written ({reason or error}); earlier content is kept") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, to write a file to. After the `with` block the file lies at `path` and survives a power cut: it
    is flushed, renamed, and its folder flushed. After an error it is removed, and what lay at `path` is kept. A
    read-only folder is an error for root too."""
    temporary = temporary_of(path)
    try:
        make_folder(path.parent)
        if not path.parent.stat().st_mode & 0o222:  # root could write there, and would change what a registry keeps
            raise PermissionError(errno.EACCES, "its folder is read-only")
        yield temporary
        settle(temporary, path)
    except BaseException:
        with suppress(OSError):  # its folder may not be one
            temporary.unlink()
        raise


def settle(new: Path, path: Path) -> None:
    """Give a written file its name `path`, durably: its content first, then its name."""
    flush(new)
    rename(new, path)


def rename(path: Path, to: Path) -> None:
    """Give a file or a folder another name, durably: the one place that renames. What it holds must be flushed before:
    a power cut may keep the name alone. A file at `to` is replaced; a folder there must be empty."""
    os.replace(path, to)
    flush(to.parent)
    if path.parent != to.parent:
        flush(path.parent)


def temporary_of(path: Path) -> Path:
    """Where this process writes a file that then takes the name of `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def drop_temporaries(folder: Path) -> None:
    """Remove what killed processes of this machine have left of half-written files, in the folder and those below."""
    for path in folder.rglob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _is_alive(int(found[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a killed process had this number before
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def flush(path: Path) -> None:
    """Make a file durable, or the names in a folder: without that, a power failure may undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(handle)


def flush_all(folder: Path) -> None:
    """Make a folder durable with all that is in it."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(place, name))
        flush(Path(place))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they exist, and make their names durable."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush(path.parent)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a link leads out of a folder. The model hub's cache keeps files in `blobs`, beside its `snapshots`."""
    if not path.is_symlink():
        return False
    homes = [folder.resolve(), *([folder.resolve().parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    return not any(path.resolve().is_relative_to(home) for home in homes)


def checkpoints_below(folder: Path) -> list[Path]:
    """The checkpoints of a run or of a stage: what may be meant by a folder that holds none itself."""
    return sorted(folder.glob("checkpoint")) + sorted(folder.glob("*/checkpoint"))


def replace_folder(new: Path, place: Path) -> None:
    """Rename the folder `new` to `place`, durably; a folder that was there is removed. A process killed between the two
    renames leaves the earlier one beside it, with the ending .old."""
    flush_all(new)
    old = place.with_name(place.name + ".old")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        rename(place, old)
    rename(new, place)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def hold(folder: Path, *, name: str = LOCK, shared: bool = False) -> Iterator[None]:
    """Keep other processes out of `folder` while the `with` block runs. The folder is created if it is missing.

    The lock is the kernel's (`flock`) on the file `name`. It ends with its process, so a file left by a killed
    process locks nobody out. `shared`: several holders at once, as long as none of them holds it alone.
    Raises LinesideError that names the process which holds the lock.
    """
    made = not folder.exists()
    file = _lock(folder, folder / name, shared)
    try:
        if not shared:
            drop_temporaries(folder)
        yield
    finally:
        if not shared:  # with a shared lock other processes may wait on the same file
            (folder / name).unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()


def _lock(folder: Path, path: Path, shared: bool) -> IO[str]:
    while True:
        try:
            make_folder(folder)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open while the lock is held
        except OSError as error:
            raise LinesideError(f"{folder}: cannot be written to: {error.strerror or error}") from error
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            what = folder if path.name == LOCK else folder / path.stem.removeprefix(".")
            raise LinesideError(
                f"{what} is in use by another process{holder}. Two at once damage each other's work: wait until "
                "it ends, or stop it and run this again"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"warning: {folder} cannot be locked ({error.strerror}): make sure that no second process writes to it")
            return file
        if _same_file(file, path):
            break
        file.close()  # the holder removed the file after we opened it
    if not shared:
        file.truncate(0)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # a full disk: the lock works without the text
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}))
        file.write("\n")
        file.flush()
    return file


def _holder(file: IO[str]) -> str:
    """The last holder's description of itself, as text; "" if there is none."""
    try:
        file.seek(0)
        told = json.loads(file.read().splitlines()[-1])
        return f": {told['command']} (process {told['pid']} on {told['host']}, since {told['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Stamp:
    """State of a file: its size, the time of its last change (ns), and the hash of its bytes."""

    size: int
    time: int
    hash: str


def stamps(files: Iterable[Path], known: Mapping[str, Stamp] = {}, *, root: Path | None = None) -> dict[str, Stamp]:
    """The stamp of each file that exists, by its path (below `root`, if given).

    A file whose size and time equal those in `known` is not read again.
    """
    found: dict[str, Stamp] = {}
    for path in files:
        name = str(path.relative_to(root)) if root else str(path)
        try:
            now, before = path.stat(), known.get(name)
            same = before is not None and (before.size, before.time) == (now.st_size, now.st_mtime_ns)
            found[name] = before if before and same else Stamp(now.st_size, now.st_mtime_ns, _hash(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LinesideError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found


def changes(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> list[str]:
    """The differences in content, one text for each file."""
    gone = [f"{name} is gone" for name in before if name not in now]
    new = [f"{name} is new" for name in now if name not in before]
    other = [f"{name} has changed" for name in before if name in now and before[name].hash != now[name].hash]
    return sorted([*gone, *new, *other])


def dump_stamps(found: Mapping[str, Stamp]) -> dict[str, Any]:
    """The stamps as plain data, for JSON."""
    return {name: asdict(stamp) for name, stamp in found.items()}


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file of any size, a piece at a time."""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def fingerprint(checkpoint: Path) -> str:
    """Fingerprint of a checkpoint's weights: names, sizes and three slices of each file. Training changes all parts."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in (0, max(0, size // 2 - _SLICE // 2), max(0, size - _SLICE)):
                file.seek(start)
                digest.update(file.read(_SLICE))
    return digest.hexdigest()
