"""Fused pieces of the decoder, compiled once: RMS norm, rotary positions, the gated activation.

Eager PyTorch writes each of them as half a dozen passes over memory, a third of a small model's step on a CPU. `fuse`
swaps them for compiled ones where a C++ compiler is at hand (a GPU brings Triton); the arithmetic is the
same, in the same order. LINESIDE_FUSE=0 leaves them eager."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def can_fuse() -> bool:
    """Whether compiled kernels can be built here and are wanted."""
    compiler = torch.cuda.is_available() or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return bool(compiler) and os.environ.get("LINESIDE_FUSE", "1") != "0"


@functools.cache
def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled at first use, for any lengths; shared by all layers and models of a process."""
    allow_recompiling()
    return torch.compile(plain, dynamic=True)


def allow_recompiling() -> None:
    """Each kind of call (format, width, with gradients or without, one row) is a compilation of its own; beyond
    Dynamo's default of eight it would silently go back to eager."""
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
    """Rotary positions (arXiv 2104.09864), halves rotated against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) -> the likeliest token of each row, the first of equals, and its float32 log-probability, (n,) each.

    Compiled, the least number among the largest is found in half the time of `argmax`. Where nothing equals the
    largest, as in a row with a NaN, the token is the last: one that there is.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    numbers = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    token = torch.where(logits == top, numbers, logits.shape[-1] - 1).amin(-1)
    return token.long(), -torch.exp(logits - top).sum(-1).log()


PLAIN: dict[str, Callable[..., Tensor]] = {"norm": norm, "gate": gate, "rotate": rotate}
FEW = 1 << 18  # numbers; on fewer, as when decoding, calling a compiled kernel on a CPU costs more than it saves


def _kernel(name: str, x: Tensor) -> Callable[..., Tensor]:
    few = x.device.type == "cpu" and x.numel() < FEW and not torch.is_grad_enabled()
    return PLAIN[name] if few else compiled(PLAIN[name])


def fuse(language_model: nn.Module) -> None:
    """Swap the pieces of a Llama- or Qwen-type decoder, in place. Does nothing where they cannot be compiled."""
    if not can_fuse():
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


def _norm(module: nn.Module, hidden_states: Tensor) -> Tensor:
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    return _kernel("norm", rows)(rows, module.weight, module.variance_epsilon).view_as(hidden_states)


def _mlp(module: nn.Module, x: Tensor) -> Tensor:
    return module.down_proj(_kernel("gate", x)(module.gate_proj(x), module.up_proj(x)))  # pyright: ignore[reportCallIssue]


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    kernel = _kernel("rotate", q)
    return kernel(q, cos, sin), kernel(k, cos, sin)
