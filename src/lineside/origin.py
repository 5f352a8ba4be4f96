"""Provenance of a number: code version, machine, date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from lineside.runtime import Runtime


def git_commit() -> str | None:
    """Commit of this checkout, with `+` if files were changed; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def version() -> str:
    """Version of the installed package; "unknown" if it is not installed."""
    try:
        return metadata.version("lineside")
    except metadata.PackageNotFoundError:
        return "unknown"


def machine(runtime: Runtime, dtype: torch.dtype) -> str:
    """Processor, usable cores, device, number format and torch version, in one line."""
    name = runtime.device_name or _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} cores, {name_of(dtype)}, torch {torch.__version__}"


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` or `float32`."""
    return str(dtype).removeprefix("torch.")


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
