"""Muon (arXiv 2502.16982): momentum steps for matrices, orthogonalised by Newton and Schulz's iteration.

torch's own always iterates in bf16, which a processor without products of that format does not bear, and knows no
shared matrices. For a matrix that is shared out over ranks, momentum and weights stay in parts. Only the update is
gathered: one rank orthogonalises it and sends it to the others, and the matrices fall to the ranks in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import _muon as plain

from lineside import ranks
from lineside.runtime import has_bf16

SCALE = "match_rms_adamw"  # at AdamW's rates: steps are scaled by 0.2 sqrt(max side), the root mean square of its own


def orthogonalised(matrix: Tensor, *, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float) -> Tensor:
    """(A, B) -> (A, B): the same directions, with singular values near 1 (Newton and Schulz's iteration of degree 5, as
    in arXiv 2502.16982). In bf16, or in float32 on a device without products of bf16 matrices."""
    a, b, c = ns_coefficients
    x = matrix.to(torch.bfloat16 if has_bf16(matrix.device) else torch.float32)
    tall = len(matrix) > matrix.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(plain.Muon):
    """torch's Muon for parameter groups of torch: of whole matrices, or of this rank's parts of them."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.0, adjust_lr_fn=SCALE)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step; of shared matrices on all ranks together."""
        for group in self.param_groups:
            settings = {name: group[name] for name in ("ns_coefficients", "ns_steps", "eps")}
            orthogonal = partial(orthogonalised, **settings)
            for number, matrix in enumerate(group["params"]):
                gradient, state = matrix.grad, self.state[matrix]
                if gradient is None:
                    continue
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
                momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                ahead = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = ranks.by_owner(orthogonal, ahead, number) if ranks.is_sharded(matrix) else orthogonal(ahead)
                rate = plain._adjust_lr(group["lr"], group["adjust_lr_fn"], matrix.shape)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-rate)
