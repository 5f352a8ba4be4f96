"""The tree's attention on a CPU as one kernel (tree_attention.cpp), compiled at first use and kept on disk.

torch's own way of building what its compiler generates builds it: the same flags, cache and threads as for the fused
pieces of fuse.py. Three times as fast as batched products, forward and backward, on packs of a small model (LOG.md).

Shapes: N tokens, H query heads, K key heads, E head width."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("tree_attention.cpp")
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# torch's own flags leave products and sums apart, so that compiled equals eager bit for bit; here nothing is to equal.
FLAGS = ("-ffp-contract=fast",)


@functools.cache
def _library() -> Any:
    from torch._inductor.codecache import CppCodeCache  # a second to import, and not always needed

    return CppCodeCache.load(SOURCE.read_text(encoding="utf-8"), extra_flags=FLAGS, needs_vec_isa=True)


def attend(query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float) -> Tensor:
    """(N, H, E), (N, K, E) twice, (N,) -> (N, H, E): token i attends to every j with j <= i <= end[j].

    Differentiable. On a CPU, in float32 or bfloat16 with sums in float32; `end` is an int64 tensor as a pack has it.
    """
    return _Attend.apply(query, key, value, end, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float) -> Tensor:
        """The output; kept for backward besides the arguments: the output and each row's log-sum-exp, (N, H)."""
        query, key, value = map(_dense, (query, key, value))
        out = torch.empty(query.shape, dtype=query.dtype)
        lse = torch.empty(query.shape[:2])
        _call("forward", [query, key, value], end, scale, out, lse)
        ctx.save_for_backward(query, key, value, end, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of query, key and value."""
        query, key, value, end, out, lse = ctx.saved_tensors
        into = [torch.empty(t.shape, dtype=t.dtype) for t in (query, key, value)]
        _call("backward", [query, key, value, _dense(gradients[0])], end, ctx.scale, out, lse, into)
        return (*into, None, None)


def _dense(t: Tensor) -> Tensor:
    """The same with the numbers of a head side by side, as the kernel reads them."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _call(
    name: str, read: list[Tensor], end: Tensor, scale: float, out: Tensor, lse: Tensor, into: list[Tensor] | None = None
) -> None:
    """Of `read`, the distances between tokens and between heads are handed over; the rest lies dense."""
    query, key, value, *_ = read
    fits = key.shape == value.shape == (len(end), key.shape[1], query.shape[2]) and len(end) == len(query)
    if not fits or query.shape[1] % key.shape[1] or len({t.dtype for t in (*read, out)}) != 1:
        raise ValueError(f"tree attention of {[(tuple(t.shape), t.dtype) for t in read]} and {len(end)} tokens")
    end = end.contiguous()
    function = getattr(_library(), f"{name}_{FORMATS[query.dtype]}")
    function(
        _numbers([*query.shape[:2], *key.shape[1:]]),
        ctypes.c_float(scale),
        ctypes.c_void_p(end.data_ptr()),
        _addresses(read),
        _numbers([step for t in read for step in t.stride()[:2]]),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_void_p(lse.data_ptr()),
        *([_addresses(into)] if into else []),
        torch.get_num_threads(),
    )


def _numbers(numbers: list[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _addresses(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
