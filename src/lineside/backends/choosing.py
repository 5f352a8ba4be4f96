"""How a token is chosen from logits. It imports nothing of lineside: vLLM's Python runs it too (vllm_engine.py).

Shapes: A rows that are decoded, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def chosen(logits: Tensor, heat: Tensor, draw: Tensor, temperature: Any) -> Tensor:
    """(A, V) logits, (A, 1) temperatures and (A, 1) numbers in [0, 1) -> (A, 2) float64: a token for each row and its
    log-probability. `temperature`: the same temperatures as a NumPy array, so that nothing waits for the device.

    At temperature 0 it is the most likely token, the first if several are equal. Otherwise it is sampled: the inverse
    of the cumulative distribution at the number drawn.
    """
    wide, found = logits.float(), []
    if not temperature.all():
        shares = wide.log_softmax(-1)
        token = shares.argmax(-1, keepdim=True)
        found.append(torch.cat([token.double(), shares.gather(1, token).double()], dim=1))
    if temperature.any():
        shares = torch.softmax(wide / torch.where(heat == 0, 1.0, heat), dim=-1)
        total = shares.cumsum(dim=-1)
        token = torch.searchsorted(total, draw * total[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        found.append(torch.cat([token.double(), shares.gather(1, token).log().double()], dim=1))
    return torch.where(heat == 0, found[0], found[-1])


def of_the_model(logits: Tensor, token: int, top: int) -> tuple[float, int, list[tuple[int, float]]]:
    """Of (V,) logits, without temperature and form: the log-probability of a token, the most likely token, and `top`
    tokens with theirs."""
    every = logits.float().log_softmax(-1)
    best = every.topk(top)
    return float(every[token]), int(every.argmax()), list(zip(best.indices.tolist(), best.values.tolist()))
