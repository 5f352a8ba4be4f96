"""Floating-point operations of an update or of sampling, and how many a machine does in a second.

Only the necessary operations count: products with weights, and those of attention with keys and values. Padding, norms
and repeated computations do not count. So a wasteful program does not look well utilised.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lineside.model.generate import Timing
from lineside.model.tree import Pack
from lineside.model.vlm import VLM
from lineside.runtime import Runtime


def update_operations(vlm: VLM, pack: Pack) -> float:
    """Floating-point operations of forward and backward of a pack, for the parameters that require gradients now."""
    lm: Any = vlm.language_model
    config = lm.config
    tokens, predicting = len(pack), len(pack.source.unique())
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    seen = pack.end.cpu() - torch.arange(len(pack.end)) + 1  # each token, by itself and its descendants
    pairs = int(seen[:tokens].sum())
    forward = 2.0 * (_weights(lm) * tokens - _last(lm) * (tokens - predicting))
    forward += 4.0 * config.num_attention_heads * head_width * config.num_hidden_layers * pairs
    forward += 2.0 * _weights(vlm.model.lm_head) * len(pack.target)
    projector = 2.0 * _weights(vlm.projector) * len(pack.image_slots)
    # In the LM, gradients of activations cost as much as forward, and those of the weights that train (all, none, or an
    # adapter's) as much again. Of the projector, forward and the gradients of its weights count.
    trained = _weights(lm, trained=True) / _weights(lm)
    return (2.0 + trained) * forward + 2.0 * projector


def sampling_operations(vlm: VLM, timing: Timing) -> float:
    """Floating-point operations of what `generate` did, without those of attention."""
    lm = vlm.language_model
    tokens = timing.prefill_tokens + timing.decode_tokens
    weights = _weights(lm) * tokens - _last(lm) * timing.prefill_tokens
    return 2.0 * (weights + _weights(vlm.model.lm_head) * timing.decode_tokens)


def _last(lm: Any) -> int:
    """Weights of the last layer after its attention: only tokens that predict a target need them."""
    return _weights(lm.layers[-1].self_attn.o_proj) + _weights(lm.layers[-1].mlp)


def _weights(module: nn.Module, *, trained: bool = False) -> int:
    """Number of weights in a module's linear layers; with `trained` of those that require gradients now."""
    linears = (m.weight for m in module.modules() if isinstance(m, nn.Linear))
    return sum(weight.numel() for weight in linears if weight.requires_grad or not trained)


ENOUGH = 1e11  # operations a second: a processor below this is measured with small matrices


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """`measure_matrix_rate`, measured once in a process; it takes half a second to two."""
    return measure_matrix_rate(device, dtype)


def measure_matrix_rate(
    device: torch.device,
    dtype: torch.dtype,
    size: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating-point operations a second of plain matrix products: the best of three shapes, each the median of four
    runs. `size` scales the shapes; the default is large enough for the device.

    A slow processor reaches its rate with small matrices. Large ones would take one without bf16 products 20 seconds.
    """
    if size is None and device.type == "cpu":
        rate = measure_matrix_rate(device, dtype, 512, clock)
        if rate < ENOUGH:
            return rate
    size = size or (2048 if device.type == "cpu" else 8192)
    rates = []
    for n, k, m in ((2 * size, 576, 1536), (2 * size, 1536, 576), (size, size, size)):
        a, b = torch.ones(n, k, device=device, dtype=dtype), torch.ones(m, k, device=device, dtype=dtype)
        took = []
        for _ in range(5):
            start = clock()
            nn.functional.linear(a, b)
            Runtime(device).synchronise()
            took.append(clock() - start)
        rates.append(2.0 * n * k * m / statistics.median(took[1:]))  # the first run fills the caches
    return max(rates)
