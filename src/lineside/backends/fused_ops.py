"""Fused operations of the decoder: RMS norm, rotary positions, the gated activation.

Eager PyTorch needs about six passes over memory for each of them. On a CPU that is a third of a small model's step.
`fuse` replaces them where they can be compiled (by a C++ compiler on a CPU, by Triton on a GPU): by torch.compile with
gradients or on a GPU, by our own C++ (cpu_ops.py) on a CPU without gradients. LINESIDE_FUSE=0 keeps the eager ones."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lineside.backends import cpu_ops


def can_fuse(device: torch.device) -> bool:
    """Whether kernels for this device can be compiled and LINESIDE_FUSE allows them. A GPU needs only Triton, which is
    installed with torch; a CPU needs a C++ compiler."""
    compiler = device.type == "cuda" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return compiler and os.environ.get("LINESIDE_FUSE", "1") != "0"


@functools.cache
def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call for any lengths. All layers and models of a process share it."""
    allow_recompiling()
    return torch.compile(plain, dynamic=True)


def allow_recompiling() -> None:
    """Raise the limit on compilations of one function. Each kind of call (number format, width, with or without
    gradients, one row) is compiled separately, and after eight of them Dynamo silently falls back to eager code."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm of the last dimension, in float32 (arXiv 1910.07467)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """The gated activation (arXiv 2002.05202)."""
    return nn.functional.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864): dimension i and dimension i + E/2 are rotated as a pair."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def fuse(language_model: nn.Module) -> None:
    """Replace the operations of a Llama- or Qwen-type decoder, in place. Does nothing where they cannot be compiled."""
    if not can_fuse(next(language_model.parameters()).device):
        return
    for module in language_model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = functools.partial(_norm, module)
        elif name.endswith("MLP") and getattr(module.config, "hidden_act", "") == "silu":
            module.forward = functools.partial(_mlp, module)
    family = sys.modules[type(language_model).__module__]
    if hasattr(family, "apply_rotary_pos_emb"):
        family.apply_rotary_pos_emb = _rotary  # pyright: ignore[reportAttributeAccessIssue] # the layers look it up there


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    by = cpu_ops.norm if cpu_ops.can_run_inference(rows) else compiled(norm)
    return by(rows, module.weight, module.variance_epsilon).view_as(hidden_states)


def _mlp(module: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    by = cpu_ops.gate if cpu_ops.can_run_inference(rows) else compiled(gate)
    return module.down_proj(by(module.gate_proj(rows), module.up_proj(rows))).view(*x.shape[:-1], -1)


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    if cpu_ops.can_run_inference(q) and len(q) == 1:
        q, k = (cpu_ops.rotate(x[0].transpose(0, 1), cos[0], sin[0]).transpose(0, 1)[None] for x in (q, k))
        return q, k
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return compiled(rotate)(q, cos, sin), compiled(rotate)(k, cos, sin)
