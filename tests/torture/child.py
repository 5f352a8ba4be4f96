"""Children of this process that run a verb, with preload.c below them: killed, starved, with a full disk, or watched.

This process imports all that verbs import, once, and computes nothing itself; a child is a fork of it, so a verb of a
tiny model takes a second. `LD_PRELOAD` must name the library: `preloaded` starts a program in that way.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Arm = Mapping[str, tuple[object, ...]]  # functions of preload.c, with their arguments
SOURCE = Path(__file__).with_name("preload.c")
ROOT = SOURCE.parents[2]
SECONDS = 600.0  # for a verb of a tiny model on a very busy machine
USED = (
    "align", "cli", "evaluate", "label", "registry.promotion", "rlvr", "sft", "simulate", "train", "report",
    "judgement.closing", "training.rejection", "model.parts", "data.api_teacher", "retrain",
)  # fmt: skip


def preloaded(folder: Path, words: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run this Python with the library, which is compiled to `folder`, preloaded."""
    library = folder / "preload.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], env=environment, text=True, **options)  # type: ignore[call-overload]


def library() -> ctypes.CDLL:
    """The functions of preload.c. Raises AttributeError if it is not preloaded."""
    found = ctypes.CDLL(None)
    found.time_out.argtypes = [ctypes.c_double]
    for name in ("fill", "starve"):
        getattr(found, name).argtypes = [ctypes.c_long]
    found.arm.argtypes = [ctypes.c_long, ctypes.c_int]
    found.seen.restype = found.allocated.restype = ctypes.c_long
    return found


def import_all() -> None:
    """Import what the verbs import, without computing anything: torch's threads would not survive a fork."""
    for name in USED:
        try:
            importlib.import_module(f"lineside.{name}")
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("lineside"):
                raise
    importlib.import_module("tensorboard.summary.writer.record_writer")
    importlib.import_module("matplotlib.pyplot")
    importlib.import_module("openai")
    from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: F401 # lazy: names import modules


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit status (negative: the signal), what it said, its CPU seconds, how many changes of
    files and large allocations it made (0 when it was killed)."""

    status: int
    said: str
    seconds: float
    calls: int = 0
    allocations: int = 0
    told: bool = False  # whether SIGTERM was sent
    left_after: float = 0.0  # CPU seconds from then to the end

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def run(do: Callable[[], object], watched: Path, arm: Arm | None = None, *, after: float | None = None) -> Ended:
    """Run `do` in a child. `arm`: what to call in it first. `after`: SIGTERM after so many CPU seconds, as soon as the
    child has a handler for it."""
    said, counts = watched.with_name(watched.name + ".said"), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(counts[0])
        _child(do, watched, said, arm or {}, counts[1])
    os.close(counts[1])
    status, used, at_term = _wait(child, after)
    told = os.read(counts[0], 100).split()
    os.close(counts[0])
    calls, allocations = map(int, told) if told else (0, 0)
    told = at_term is not None
    return Ended(status, said.read_text(errors="replace"), used, calls, allocations, told, used - (at_term or used))


def verb(*words: str | Path) -> Callable[[], object]:
    """`lineside WORDS`, as the command line runs it."""

    def do() -> None:
        from lineside.cli import main

        sys.argv = ["lineside", *map(str, words)]
        try:
            main()
        finally:  # the verb has ended: what a trial does after it, as ending its server, hears no signal
            for number in (signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)

    return do


def _child(do: Callable[[], object], watched: Path, said: Path, arm: Arm, out: int) -> None:
    status = 1
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(file, stream)
        there = library()
        there.watch(str(watched).encode())
        for name, values in arm.items():
            getattr(there, name)(*values)
        try:
            do()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        calls, allocations = there.seen(), there.allocated()
        for name, values in {"arm": (0, 0), "fill": (0,), "starve": (0,)}.items():
            getattr(there, name)(*values)
        os.write(out, f"{calls} {allocations}".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait(child: int, after: float | None) -> tuple[int, float, float | None]:
    """(exit status, CPU seconds, those when SIGTERM was sent: after `after` of them, or None)."""
    start, at_term = time.monotonic(), None
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, at_term
        if after is not None and at_term is None and (spent := _spent(child)) >= after and _catches(child):
            os.kill(child, signal.SIGTERM)
            at_term = spent
        if time.monotonic() - start > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            raise AssertionError(f"a child did not end within {SECONDS:.0f} seconds")
        time.sleep(0.005)


def _catches(child: int) -> bool:
    """Whether a child has a handler for SIGTERM: a verb has from its first line to its last."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{child}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _spent(child: int) -> float:
    """CPU seconds of a child so far."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
