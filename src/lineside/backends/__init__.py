"""How attention, log-probabilities and decoding are computed: one backend a device, chosen once when a model is loaded.

`reference.py` is the definition, in plain PyTorch; `cpu.py` and `cuda.py` compute the same faster. A backend is held by
its model and may keep state of it (laid-out weights, captured graphs). Nothing here knows trees, text or pictures."""

from __future__ import annotations

import os
import shutil

import torch

from lineside.backends.reference import Reference

FAILED: set[str] = set()  # names of the backends that a stage found wrong, or could not build, in this process


def choose(device: torch.device) -> Reference:
    """The backend for a device. LINESIDE_BACKEND=reference gives the reference everywhere: compiling the others takes
    longer than a small test runs. A CPU without a C++ compiler gets it too, and any device that has no backend. Instead
    of one that has failed there is its `fallback`."""
    if os.environ.get("LINESIDE_BACKEND") == "reference":
        return Reference()
    if device.type == "cpu" and any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        from lineside.backends.cpu import Cpu

        return Cpu()
    backend = Reference()
    if device.type == "cuda":
        from lineside.backends.cuda import Cuda

        backend = Cuda()
    while backend.name in FAILED:
        backend = backend.fallback()
    return backend
