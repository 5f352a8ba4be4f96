"""One input to one reader, watched: what it raises, how long it computes or waits, what it touches, what it tells.

A find is an exception that is not the house's own, more than a second of processor time a megabyte (at least one
second; what the kernel computes for it counts), waiting for WAITS seconds without computing, memory beyond the bound,
more than WRITTEN bytes a megabyte in files, a write outside the folder of the input, a read of a file that lies beside
it, a connection, a process, a pickle, or the token of the environment in a message, in what is printed or in a file.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes that a reader may take beyond what the process has at its start
SECONDS = 1.0  # of processor time, for every megabyte begun
WAITS = 20.0  # seconds in which a reader neither computes nor waits for a core
WRITTEN = 64 << 20  # bytes of the files that a reader writes, for every megabyte begun
TOKEN = "tk-5Rw8Jz2NqY7cHs4LvB9d"  # what no reader may tell; it stands in the environment under TOKENS
TOKENS = ("HF_TOKEN", "LINESIDE_KEY", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY", "SOME_KEY", "WANDB_API_KEY")
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


class Wait(Hang):
    """It waits for too long, and computes nothing."""


class Flood(Hang):
    """It writes a file that is too long."""


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
    """What the block touches and must not. `place`: where it may write, besides what begins with one of `free`. A
    module that it imports is compiled, but not kept beside its source: that would be a write elsewhere."""
    global _watch
    own, kept_none = _Watch(Path(os.path.realpath(place)), ("/dev/", "/proc/", *free)), sys.dont_write_bytecode
    _watch, sys.dont_write_bytecode = own, True
    try:
        yield own.broken
    finally:
        _watch, sys.dont_write_bytecode = None, kept_none


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
    megabytes, before, said = 1 + size // (1 << 20), _files(place), io.StringIO()
    try:
        bound = bounded(slack * SECONDS * megabytes, WRITTEN * megabytes)
        with watched(place) as broken, redirect_stdout(said), redirect_stderr(said), bound:
            read()
    except refuses as error:
        told: BaseException | None = error
        while told is not None:  # what it was made of is shown by a stack trace
            said.write(f"\n{told} {getattr(told, '__notes__', '')}")
            told = told.__cause__ or told.__context__
    except (Exception, Hang, SystemExit) as error:
        return Find(f"{type(error).__name__} {_where(error)}", "".join(traceback.format_exception(error))[-4000:])
    if not broken:
        broken = list(_harm(said.getvalue(), before, _files(place), WRITTEN * megabytes))
    return Find(broken[0].split("/")[0][:80], broken[0]) if broken else None


AGAIN = 0.5  # seconds after which a Hang comes again: one that is raised in a finaliser is lost


@contextmanager
def bounded(seconds: float, size: int) -> Iterator[None]:
    """Stop the block with a Hang after `seconds` of processor time, with a Wait if it waits, and with a Flood if one
    file gets longer than `size` bytes."""
    begun = time.monotonic() - _busy()

    def computes(number: int, frame: Any) -> None:
        raise Hang

    def waits(number: int, frame: Any) -> None:
        idle = time.monotonic() - _busy() - begun
        if idle >= WAITS:
            raise Wait
        signal.setitimer(signal.ITIMER_REAL, max(0.05, WAITS - idle))  # it computes, or others hold the cores

    def floods(number: int, frame: Any) -> None:
        raise Flood

    acts = {signal.SIGPROF: computes, signal.SIGALRM: waits, signal.SIGXFSZ: floods}
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    _, hard = limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        signal.setitimer(signal.ITIMER_REAL, WAITS)
        signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        for number, act in before.items():
            signal.signal(number, act)


def _busy() -> float:
    """Seconds that this process has computed, or has waited for a core."""
    queued = 0
    with suppress(OSError, IndexError):
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1])  # nanoseconds of this thread
    return time.process_time() + queued / 1e9


def _files(place: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and number of each file below a folder."""
    found = {}
    for folder, _, names in os.walk(place):
        for path in (os.path.join(folder, name) for name in names):
            with suppress(OSError):
                at = os.lstat(path)
                found[path] = (at.st_size, at.st_mtime_ns, at.st_ino)
    return found


def _harm(said: str, before: dict[str, Any], after: dict[str, tuple[int, int, int]], most: int) -> Iterator[str]:
    """What is wrong with what a reader has told and with the files that it has written."""
    written = [path for path, at in after.items() if before.get(path) != at]
    if (size := sum(after[path][0] for path in written)) > most:
        yield f"flood: {size:,} bytes in {len(written)} files"
    if TOKEN in said:
        yield f"token told: {said[max(0, said.index(TOKEN) - 200) :][:400]}"
    for path in written:
        with suppress(OSError):
            if TOKEN.encode() in Path(path).read_bytes():
                yield f"token written: {path}"


def _where(error: BaseException) -> str:
    """The innermost line of ours that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(SOURCE))]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"
