"""Muon (arXiv 2502.16982): momentum steps for matrices, orthogonalised by Newton and Schulz's iteration.

For a matrix that is shared out over ranks, momentum and weights stay in parts. Only the update is gathered: one rank
orthogonalises it and sends it to the others, and the matrices fall to the ranks in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import _muon as plain

from lineside import ranks

SCALE = "match_rms_adamw"  # at AdamW's rates: steps are scaled by 0.2 sqrt(max side), the root mean square of its own


def muon_of(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser for these parameter groups of torch: of whole matrices, or of this rank's parts of them."""
    kind = SharedMuon if any(ranks.is_sharded(matrix) for group in groups for matrix in group["params"]) else plain.Muon
    return kind(groups, lr=0.0, adjust_lr_fn=SCALE)


class SharedMuon(plain.Muon):
    """torch's Muon for matrices that are shared out over ranks."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step, on all ranks together."""
        for group in self.param_groups:
            settings = {name: group[name] for name in ("ns_coefficients", "ns_steps", "eps")}
            orthogonal = partial(plain._zeropower_via_newtonschulz, **settings)
            for number, matrix in enumerate(group["params"]):
                gradient, state = matrix.grad, self.state[matrix]
                if gradient is None:
                    continue
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
                momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                ahead = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = ranks.by_owner(orthogonal, ahead, number)
                rate = plain._adjust_lr(group["lr"], group["adjust_lr_fn"], matrix.shape)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-rate)
