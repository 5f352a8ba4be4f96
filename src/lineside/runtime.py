"""What a device is and can do. No other module asks torch about CUDA.

Every choice depends on the device that a run uses. So a run on the CPU of a machine with a GPU is the same as on a
machine without one."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT = torch.device("cpu")  # the device of a run


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a GPU multiplies bfloat16 matrices. For a CPU the speed is measured instead (training/dtype.py)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its queued work. A CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_state(device: torch.device) -> Tensor | None:
    """The state of a GPU's random generator; None for a CPU, which uses torch's global generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: Tensor | None) -> None:
    """Restore a state from `random_state`. On a CPU this does nothing."""
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(state, device)


def gpu_name(device: torch.device) -> str | None:
    """The name of a GPU; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
