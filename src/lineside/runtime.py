"""What a device is and can do. Nothing else in lineside asks torch for CUDA.

Every choice follows the device that a run computes on. So a run on the CPU of a machine with a GPU is the same as on a
machine without one."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT = torch.device("cpu")  # where a run computes


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a GPU has bfloat16 products. A CPU's speed in them is measured, not asked (training/dtype.py)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was given. A CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_state(device: torch.device) -> Tensor | None:
    """The state of the device's own generator; None for a CPU, whose generator is torch's."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: Tensor | None) -> None:
    """Put it back. A state of another kind of device is passed over."""
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(state, device)


def gpu_name(device: torch.device) -> str | None:
    """Of a GPU; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
