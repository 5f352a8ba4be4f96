"""Operations in our own C++ for a CPU, compiled at first use and kept on disk.

tree_attention.cpp has the attention of packed trees, and cross_entropy.cpp the log-probabilities of given tokens, both
forward and backward. step.cpp has a whole decoding step (cpu_decoder.py), decoding.cpp operations that prefill calls
one by one. They are built as torch builds the code of its own compiler: with the same flags (and one more), cache and
threads as the compiled operations of fused_ops.py. docs/experiments.md has the time they save. Numbers are float32 or
bfloat16, sums float32.

Shapes: N tokens, H query heads, K key heads, E head width, D width, V vocabulary."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside.backends.reference import Chosen

FOLDER = Path(__file__).parent
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# torch forbids the compiler to contract a product and a sum into one instruction (FMA), so that its compiled code gives
# exactly the bits of its eager code. Our operations need not match eager code bit for bit, so FMA is allowed.
FLAGS = ("-ffp-contract=fast",)
TILE = 16  # number of tokens of a tile of keys; head widths are padded to a multiple of it. The same as in decoding.h

_A, _L, _F, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
FUNCTIONS = {  # name: (file, types of the arguments)
    "forward": ("tree_attention.cpp", [_A, _F, _A, _A, _A, _A, _A, _I]),
    "backward": ("tree_attention.cpp", [_A, _F, _A, _A, _A, _A, _A, _A, _I]),
    "logprobs": ("cross_entropy.cpp", [_A, _L, _L, _F, _L, _A, _A, _A, _A, _I]),
    "logits_gradient": ("cross_entropy.cpp", [_A, _L, _L, _F, _L, _A, _A, _A, _A, _I]),
    "norm": ("decoding.cpp", [_A, _A, _L, _L, _A, _F, _A, _I]),
    "rotate": ("decoding.cpp", [_A, _L, _L, _L, _L, _L, _A, _A, _A, _I]),
    "gate": ("decoding.cpp", [_A, _L, _A, _L, _L, _L, _A, _I]),
    "choose": ("decoding.cpp", [_A, _L, _L, _A, _A, _A, _A, _I]),
    "step": ("step.cpp", [_A, _A, _I]),
    "wide_step": ("step.cpp", [_A, _A, _I]),
    "quantise": ("step.cpp", [_A, _L, _L, _A, _A, _A, _I]),
    "int8_product": ("step.cpp", [_A, _L, _L, _L, *[_A] * 5, _I]),
}


@functools.cache
def _library(source: str) -> Any:
    from torch._inductor.codecache import CppCodeCache  # a second to import, and not always needed

    return CppCodeCache.load(text_of(source), extra_flags=FLAGS, needs_vec_isa=True)


def text_of(source: str) -> str:
    """The code of a file, with that of the headers of this folder which it includes, each once."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(r'#include "(\w+\.h)"\n', lambda found: read(found[1]), text)

    return read(source)


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    source, arguments = FUNCTIONS[name]
    function = getattr(_library(source), f"{name}_{FORMATS[dtype]}")
    function.argtypes, function.restype = arguments, ctypes.c_int32 if name.endswith("step") else None
    return function


def attend(query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float) -> Tensor:
    """(N, H, E), (N, K, E) twice, (N,) -> (N, H, E): token i attends to every j with j <= i <= end[j].

    Differentiable. `end` is an int64 tensor as a pack has it.
    """
    return _Attend.apply(query, key, value, end, scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float) -> Tensor:
        """The output. For backward, the arguments, the output and each row's log-sum-exp (N, H) are kept."""
        query, key, value = map(_dense, (query, key, value))
        out = torch.empty(query.shape, dtype=query.dtype)
        lse = torch.empty(query.shape[:2])
        _call("forward", [query, key, value], end, scale, out, lse)
        ctx.save_for_backward(query, key, value, end, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, end, out, lse = ctx.saved_tensors
        into = [torch.empty(t.shape, dtype=t.dtype) for t in (query, key, value)]
        _call("backward", [query, key, value, _dense(gradients[0])], end, ctx.scale, out, lse, into)
        return (*into, None, None)


def _dense(t: Tensor) -> Tensor:
    """The tensor, copied if the last dimension is not contiguous, as the C++ code needs it."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _call(
    name: str, read: list[Tensor], end: Tensor, scale: float, out: Tensor, lse: Tensor, into: list[Tensor] | None = None
) -> None:
    """Call the C++ function `name`. For the tensors of `read` the strides of tokens and heads are passed; all other
    tensors are contiguous. Raises ValueError for shapes or formats that do not fit together."""
    query, key, value, *_ = read
    fits = key.shape == value.shape == (len(end), key.shape[1], query.shape[2]) and len(end) == len(query)
    if not fits or query.shape[1] % key.shape[1] or len({t.dtype for t in (*read, out)}) != 1:
        raise ValueError(f"tree attention of {[(tuple(t.shape), t.dtype) for t in read]} and {len(end)} tokens")
    end = end.contiguous()
    _function(name, query.dtype)(
        _numbers([*query.shape[:2], *key.shape[1:]]),
        scale,
        end.data_ptr(),
        _addresses(read),
        _numbers([step for t in read for step in t.stride()[:2]]),
        out.data_ptr(),
        lse.data_ptr(),
        *([_addresses(into)] if into else []),
        torch.get_num_threads(),
    )


def _numbers(numbers: list[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _addresses(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def logprobs(logits: Tensor, target: Tensor, banned: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(M, V) logits, (M,) int64 -> log-probability of the targets and entropy of the rows, (M,) float32 each.

    Both at `temperature` and with the token `banned` excluded. Only the log-probability is differentiable. Raises
    ValueError for shapes that do not fit and for a target outside the vocabulary.
    """
    return _Logprobs.apply(logits, target, banned, temperature)


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, banned: int, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies. For backward, the arguments and each row's log-sum-exp are kept."""
        logits, target = logits.contiguous(), target.contiguous()
        rows, vocabulary = logits.shape
        if target.shape != (rows,) or target.dtype != torch.int64 or not 0 <= banned < vocabulary:
            raise ValueError(
                f"targets {tuple(target.shape)} {target.dtype}, banned {banned}: {tuple(logits.shape)} logits"
            )
        if rows and not 0 <= int(target.min()) <= int(target.max()) < vocabulary:
            raise ValueError(f"a target outside the {vocabulary} tokens of the vocabulary")
        logprob, lse, entropy = torch.empty(3, rows).unbind()
        ctx.arguments = logits.shape, 1 / temperature, banned
        read = logits.data_ptr(), *logits.shape, 1 / temperature, banned, target.data_ptr()
        into = (t.data_ptr() for t in (logprob, lse, entropy))
        _function("logprobs", logits.dtype)(*read, *into, torch.get_num_threads())
        ctx.save_for_backward(logits, target, lse)
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the logits."""
        logits, target, lse = ctx.saved_tensors
        shape, factor, banned = ctx.arguments
        given, into = gradients[0].contiguous(), torch.empty(shape, dtype=logits.dtype)
        read = logits.data_ptr(), *shape, factor, banned, target.data_ptr(), lse.data_ptr(), given.data_ptr()
        _function("logits_gradient", logits.dtype)(*read, into.data_ptr(), torch.get_num_threads())
        return into, None, None, None


# The operations below have no backward: they are for inference.


def norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    """`fused_ops.norm` of (N, D). If `delta` (N, D) is given, it is first added to `x` in place."""
    if delta is None:
        x = x.contiguous()
    elif not x.is_contiguous() or delta.shape != x.shape:
        raise ValueError(f"cannot add {tuple(delta.shape)} in place to {tuple(x.shape)} with strides {x.stride()}")
    else:
        delta = delta.contiguous()
    _alike(x, weight, *([] if delta is None else [delta]))
    out = torch.empty(x.shape, dtype=x.dtype)
    read = x.data_ptr(), None if delta is None else delta.data_ptr(), *x.shape, weight.data_ptr(), eps
    _function("norm", x.dtype)(*read, out.data_ptr(), torch.get_num_threads())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`fused_ops.rotate` of (N, H, E) with cos and sin (N, E)."""
    x, cos, sin = _dense(x), cos.contiguous(), sin.contiguous()
    _alike(x, cos, sin)
    out = torch.empty(x.shape, dtype=x.dtype)
    read = x.data_ptr(), *x.shape, *x.stride()[:2], cos.data_ptr(), sin.data_ptr()
    _function("rotate", x.dtype)(*read, out.data_ptr(), torch.get_num_threads())
    return out


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """`fused_ops.gate` of two (N, D)."""
    gate, up, out = _dense(gate), _dense(up), torch.empty(gate.shape, dtype=gate.dtype)
    _alike(gate, up)
    read = gate.data_ptr(), gate.stride(0), up.data_ptr(), up.stride(0), *gate.shape
    _function("gate", gate.dtype)(*read, out.data_ptr(), torch.get_num_threads())
    return out


def _alike(x: Tensor, *others: Tensor) -> None:
    """Raises ValueError if formats or widths differ: the C++ code would then read beyond the memory of a tensor."""
    if any(other.dtype != x.dtype or other.shape[-1] != x.shape[-1] for other in others):
        raise ValueError(f"{[(tuple(t.shape), t.dtype) for t in (x, *others)]} do not fit together")


def choose(logits: Tensor, uniform: NDArray[np.float32], temperature: NDArray[np.float32]) -> Chosen:
    """`reference.choose`."""
    logits, rows = logits.contiguous(), len(logits)
    if len(uniform) != rows or len(temperature) != rows:
        raise ValueError(f"{rows} rows of logits, {len(uniform)} uniforms and {len(temperature)} temperatures")
    token, logprob = np.empty(rows, np.int64), np.empty(rows, np.float32)
    # A list: of a generator the copies would be freed, and their memory used again, before the C++ code reads them.
    given = [np.ascontiguousarray(array, np.float32) for array in (temperature, uniform)]
    read = logits.data_ptr(), *logits.shape, *(array.ctypes.data for array in given)
    _function("choose", logits.dtype)(*read, token.ctypes.data, logprob.ctypes.data, torch.get_num_threads())
    return token, logprob


def lay_out_int8(weight: Tensor, into: Tensor, scale: Tensor, sums: Tensor) -> None:
    """A (out, in) float32 weight -> its int8 layout, scales and sums (packed_linear.Int8Linear has the shapes)."""
    addresses = (t.data_ptr() for t in (into, scale, sums))
    _function("quantise", torch.float32)(weight.data_ptr(), *weight.shape, *addresses, torch.get_num_threads())


def int8_product(x: Tensor, weight: Tensor, scale: Tensor, sums: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """(N, in) float32 times an int8 weight: (N, outputs)."""
    x, out = x.contiguous(), torch.empty(len(x), outputs)
    by = weight.data_ptr(), scale.data_ptr(), sums.data_ptr(), None if bias is None else bias.data_ptr()
    _function("int8_product", x.dtype)(x.data_ptr(), *x.shape, outputs, *by, out.data_ptr(), torch.get_num_threads())
    return out


def step(model: Any, given: Any, stored: torch.dtype, computed: torch.dtype) -> None:
    """One call of step.cpp with the structures of cpu_decoder.py. `stored`: the format of embeddings and KV cache;
    `computed`: that of all other numbers. Raises RuntimeError if a product of PyTorch fails."""
    run = _function("step" if stored == computed else "wide_step", stored)
    if error := run(ctypes.addressof(model), ctypes.addressof(given), torch.get_num_threads()):
        raise RuntimeError(f"a decoding step failed: a product of PyTorch ended with error {error}")
