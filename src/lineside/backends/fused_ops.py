"""Fused operations of the decoder: RMS norm, rotary positions, the gated activation.

Eager PyTorch needs about six passes over memory for each of them. On a CPU that is a third of a small model's step.
`fuse` replaces them: by torch.compile with gradients or on a GPU, by our own C++ (cpu_ops.py) on a CPU without."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@functools.cache
def compiled(plain: Callable[..., Any], dynamic: bool = True) -> Callable[..., Any]:
    """The function, compiled at its first call, for any lengths if `dynamic`. All models of a process share it."""
    allow_recompiling()
    return torch.compile(plain, dynamic=dynamic)


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


def fuse(decoder: nn.Module, kernels: Any = None) -> None:
    """Replace these operations in a Llama- or Qwen-type decoder, on its own modules: transformers stays as it is.

    `kernels`: a module with functions of the same names to use without gradients (cpu_ops.py).
    """

    def run(plain: Callable[..., Tensor], *args: Any) -> Tensor:
        by_torch = kernels is None or torch.is_grad_enabled()
        return (compiled(plain) if by_torch else getattr(kernels, plain.__name__))(*args)

    def normed(module: Any, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return run(norm, rows, module.weight, module.variance_epsilon).view_as(hidden_states)

    def mlp(module: Any, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gated = run(gate, module.gate_proj(rows), module.up_proj(rows))
        return module.down_proj(gated).view(*x.shape[:-1], -1)

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if kernels is not None and not torch.is_grad_enabled() and len(q) == 1:
            q, k = (kernels.rotate(x[0].transpose(0, 1), cos[0], sin[0]).transpose(0, 1)[None] for x in (q, k))
            return q, k
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return compiled(rotate)(q, cos, sin), compiled(rotate)(k, cos, sin)

    rotating: dict[type, Callable[..., Any]] = {}
    for module in decoder.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm"):
            module.forward = functools.partial(normed, module)
        elif kind.__name__.endswith("MLP") and getattr(module.config, "hidden_act", "") == "silu":
            module.forward = functools.partial(mlp, module)
        elif "apply_rotary_pos_emb" in getattr(kind.forward, "__globals__", {}) and hasattr(module, "o_proj"):
            rotating.setdefault(kind, _with(kind.forward, apply_rotary_pos_emb=rotary))
            module.forward = functools.partial(rotating[kind], module)


def restore(decoder: nn.Module) -> None:
    """Undo `fuse`."""
    for module in decoder.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, functools.partial) and forward.func.__module__ == __name__:
            del module.forward


def _with(function: Any, **names: Any) -> Callable[..., Any]:
    """A copy of a function that finds these names in place of those of its module."""
    copy = types.FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__module__ = function.__kwdefaults__, __name__
    return copy
