"""What the command sets for its process before torch is loaded, to compute as fast as the machine can.

docs/experiments.md has what each is worth.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re

from lineside.errors import LinesideError

ENVIRONMENT = {
    # OpenMP threads that spin for long slow a busy machine down severalfold, threads that sleep at once slow a quiet
    # one: a third of that library's own count costs little in either.
    "GOMP_SPINCOUNT": "100000",
    # Large tensors in pages of 2 MB, where the kernel leaves it to the process: a training step faults 700 times
    # instead of 3,100 (docs/experiments.md).
    "THP_MEM_ALLOC_ENABLE": "1",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare() -> None:
    """Set what the user has not set. Has its full effect only before torch is loaded."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    keep_memory()


def keep_memory() -> None:
    """Have glibc keep the memory of large tensors for the next ones: given back at once, every page of every tensor is
    cleared by the kernel again, a tenth of the time of decoding. Other C libraries are left alone."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        tune = ctypes.CDLL(None).mallopt
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            tune(setting, 2**31 - 1)


def give_back_memory() -> None:
    """Return what is kept and free to the kernel: between a stage and an evaluation, whose tensors have other sizes,
    it is gigabytes of pieces that neither would use again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def lacking(module: str, what: str) -> LinesideError:
    """The error for a package that is not installed: `what` needs it, and the extra of this one that brings it.

    The extras are read from this package's own metadata, where pyproject.toml put them.
    """
    extra = extra_of(module)
    bring = f"pip install 'lineside[{extra}]'" if extra else f"pip install {module}"
    optional = f" (the optional part {extra!r} of lineside)" if extra else ""
    return LinesideError(f"{what} needs the package {module}, which is not installed{optional}: {bring}")


def extra_of(module: str) -> str:
    """The extra that brings a module, "" if none does; of several the one that asks for least."""
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
