"""AdamW over float32 master weights, one global norm, and the learning-rate schedules.

Parameters may be bfloat16: the optimiser keeps a float32 master of each, steps that, and rounds it back. Without it a
step below some 1/512 of a weight would be rounded away. Parameters that are float32 already are their own masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.training.muon import Muon

Schedule = Literal["cosine", "linear", "constant"]
EMBEDDINGS = ("embed_tokens", "lm_head")  # tables, not maps: Muon does not suit them


def learning_rate_scale(
    progress: float, *, schedule: Schedule = "cosine", warmup: float = 0.03, min_lr_ratio: float = 0.1
) -> float:
    """The factor for all learning rates at `progress`, the share of the run in [0, 1] that this step completes.

    It rises from 0 to 1 over the first `warmup` of the run. Then it stays ("constant") or falls to `min_lr_ratio` at
    the end. It depends on the share only, so a resumed run continues the same curve.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if schedule == "constant" or warmup >= 1.0:
        return 1.0
    along = (progress - warmup) / (1.0 - warmup)
    fall = 0.5 * (1.0 + math.cos(math.pi * along)) if schedule == "cosine" else 1.0 - along
    return min_lr_ratio + (1.0 - min_lr_ratio) * fall


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate: `name` ("projector", "lm"), (full name, parameter) pairs, peak rate."""

    name: str
    parameters: Sequence[tuple[str, torch.nn.Parameter]]
    learning_rate: float


class Optimizer:
    """AdamW (arXiv 1711.05101) on float32 masters, with clipping by the global norm; optionally Muon for the matrices.

    With `muon`, hidden matrices take orthogonalised momentum steps (Muon, arXiv 2502.16982) whose size is matched to
    AdamW's, so that the same learning rate serves both; embeddings, norms and biases stay with AdamW.

    A step is: `backward()` and `accumulate()` for each part of the batch, then `step(scale)`. Weight decay acts on
    matrices only (embeddings and projections, not norms and biases).
    """

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        muon: bool = False,
    ) -> None:
        """Raises ValueError if a name occurs twice or nothing is trainable. A `max_grad_norm` of 0 does not clip."""
        self.max_grad_norm = max_grad_norm
        self._rates: list[tuple[str, float]] = []  # of each of torch's groups: our group's name and peak rate
        self._pairs: dict[str, tuple[torch.nn.Parameter, Tensor]] = {}  # name -> (parameter, its float32 master)
        torch_groups, muon_groups, muon_rates = [], [], []
        for group in groups:
            by_decay: dict[bool, list[Tensor]] = {True: [], False: []}
            hidden: list[Tensor] = []
            for name, parameter in group.parameters:
                if name in self._pairs:
                    raise ValueError(f"parameter {name} is in the optimiser twice")
                own_master = parameter.dtype == torch.float32
                master = parameter if own_master else parameter.detach().float().requires_grad_()
                self._pairs[name] = (parameter, master)
                if muon and parameter.ndim == 2 and not any(word in name for word in EMBEDDINGS):
                    hidden.append(master)
                else:
                    by_decay[parameter.ndim >= 2].append(master)
            for decays, masters in by_decay.items():
                if masters:
                    torch_groups.append({"params": masters, "weight_decay": weight_decay if decays else 0.0})
                    self._rates.append((group.name, group.learning_rate))
            if hidden:
                muon_groups.append({"params": hidden, "weight_decay": weight_decay})
                muon_rates.append((group.name, group.learning_rate))
        self._optimizers: list[tuple[torch.optim.Optimizer, list[tuple[str, float]]]] = []
        if torch_groups:
            adamw = torch.optim.AdamW(torch_groups, lr=0.0, betas=betas, eps=eps, fused=True)
            self._optimizers.append((adamw, self._rates))
        if muon_groups:
            steps = Muon(muon_groups)
            self._optimizers.append((steps, muon_rates))
        if not self._optimizers:
            raise ValueError("nothing to train: the parameter groups are empty")

    def accumulate(self) -> None:
        """Add the parameters' gradients to those of their masters in float32, and clear them.

        Called after each `backward()`, so that the parts of a step do not add up in bfloat16.
        """
        for parameter, master in self._pairs.values():
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, scale: float = 1.0) -> dict[str, float]:
        """One update at `scale` times each group's peak rate; clears the gradients.

        Returns {"gradient_norm": before clipping, "lr/<group>": rate used}.
        Raises LinesideError if a gradient is not finite, before anything has changed.
        """
        self.accumulate()
        masters = [master for _, master in self._pairs.values() if master.grad is not None]
        norm = float(
            torch.nn.utils.clip_grad_norm_(masters, self.max_grad_norm if self.max_grad_norm > 0 else math.inf)
        )
        if not math.isfinite(norm):
            raise LinesideError(
                f"the gradient's norm is {norm}: training has diverged and this step was not taken. "
                "Lower the learning rate or lengthen the warm-up, then run again from the last saved state."
            )
        rates = {}
        for optimizer, peaks in self._optimizers:
            for torch_group, (name, peak) in zip(optimizer.param_groups, peaks):
                torch_group["lr"] = rates[f"lr/{name}"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in self._pairs.values():
                if master is not parameter:
                    parameter.copy_(master)
        return {"gradient_norm": norm, **rates}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on, weights included: "<parameter>/master", "/exp_avg", "/exp_avg_sq", "/step",
        "/momentum_buffer", as far as its optimiser has them.

        The tensors are the optimiser's own, not copies. Before the first step there are masters only.
        """
        tensors = {}
        for name, (_, master) in self._pairs.items():
            tensors[f"{name}/master"] = master.detach()
            tensors |= {f"{name}/{key}": value for key, value in self._owner(master).state[master].items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved state and write its weights into the parameters, bit for bit.

        Raises LinesideError, before anything has changed, if the state belongs to other parameters.
        """
        saved = {key.rpartition("/")[0] for key in tensors}
        shapes = {name: tuple(tensors[f"{name}/master"].shape) for name in saved if f"{name}/master" in tensors}
        expected = {name: tuple(master.shape) for name, (_, master) in self._pairs.items()}
        if shapes != expected or saved != set(expected):
            odd = sorted({k for k in saved | set(expected) if shapes.get(k) != expected.get(k)})
            raise LinesideError(
                f"the saved optimiser state is of other parameters: {len(odd)} differ, the first is {odd[0]} "
                f"(saved {shapes.get(odd[0], 'not at all')}, here {expected.get(odd[0], 'not trained')}). "
                "Continue with the recipe that the run was started with, or start a new run."
            )
        with torch.no_grad():
            for name, (parameter, master) in self._pairs.items():
                master.copy_(tensors[f"{name}/master"])
                if master is not parameter:
                    parameter.copy_(master)
                self._owner(master).state[master] = {
                    key: tensors[f"{name}/{key}"].to(master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                    if f"{name}/{key}" in tensors
                }

    def _owner(self, master: Tensor) -> torch.optim.Optimizer:
        """The optimiser that steps this master."""
        for optimizer, _ in self._optimizers:
            if any(master is p for group in optimizer.param_groups for p in group["params"]):
                return optimizer
        raise AssertionError("every master belongs to an optimiser")
