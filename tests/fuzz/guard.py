"""One input to one reader, watched: what it raises, how long it computes, what it touches.

A find is an exception that is not the house's own, more than a second of processor time a megabyte (at least one
second), memory beyond the bound, a write outside the folder of the input, a read of a file that lies beside it, a
connection, a process, or a pickle.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes that a reader may take beyond what the process has at its start
SECONDS = 1.0  # of processor time, for every megabyte begun
CANARY = "canary"  # part of the name of files that no input may reach
SOURCE = Path(__file__).parents[2] / "src" / "lineside"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOVES = {  # events of Python with paths in their first arguments
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.link": 2,
    "os.chmod": 1,
    "os.truncate": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
    "os.chown": 1,
    "os.utime": 1,
}
_NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "ctypes.dlopen",
)


class Hang(BaseException):
    """The reader computes for too long. Not an Exception, so that no reader catches it."""


@dataclass
class Find:
    """What a reader did wrong with an input. `key` is the same for finds of one kind."""

    key: str
    told: str


@dataclass
class _Watch:
    place: Path
    free: tuple[str, ...]
    broken: list[str] = field(default_factory=list)


_watch: _Watch | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int):
            return
        writes = bool(flags & _WRITES) if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
        _check("written" if writes else "read", path, writes)
    elif event in _MOVES:
        for path in arguments[: _MOVES[event]]:
            _check(event, path, True)
    elif event in _NEVER:
        _watch.broken.append(f"{event} {arguments!r:.200}")


def _check(what: str, path: Any, writes: bool) -> None:
    global _watch
    watch, _watch = _watch, None  # what is called here is not watched
    try:
        if watch is None or isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        inside = real.startswith(f"{watch.place}/") or real == str(watch.place)
        if (writes and not inside and not real.startswith(watch.free)) or CANARY in real:
            watch.broken.append(f"outside: {what} {real}")
    except (TypeError, ValueError):
        return
    finally:
        _watch = watch


sys.addaudithook(_hook)


@contextmanager
def watched(place: Path, free: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """What the block touches and must not. `place`: where it may write, besides what begins with one of `free`."""
    global _watch
    own = _Watch(Path(os.path.realpath(place)), ("/dev/", "/proc/", *free))
    _watch = own
    try:
        yield own.broken
    finally:
        _watch = None


def limit_memory(beyond: int = MEMORY) -> None:
    """Bound the address space of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + beyond
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def find(
    read: Callable[[], object], place: Path, size: int, refuses: tuple[type[BaseException], ...], slack: float = 1.0
) -> Find | None:
    """What `read` does wrong with an input of `size` bytes; None if nothing. `slack`: how many times as long it may
    take, where the code is traced."""

    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        with watched(place) as broken:
            signal.setitimer(signal.ITIMER_VIRTUAL, slack * SECONDS * (1 + size // (1 << 20)))
            try:
                read()
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except refuses:
        pass
    except (Exception, Hang, SystemExit) as error:
        return Find(f"{type(error).__name__} {_where(error)}", "".join(traceback.format_exception(error))[-4000:])
    finally:
        signal.signal(signal.SIGVTALRM, before)
    return Find(broken[0].split("/")[0][:80], broken[0]) if broken else None


def _where(error: BaseException) -> str:
    """The innermost line of ours that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(SOURCE))]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"
