"""AdamW with float32 master weights, clipping by the global norm, and the learning-rate schedules.

Parameters may be bfloat16. The optimiser keeps a float32 master of each, updates the master and rounds it to the
parameter. Without masters, an update smaller than about 1/512 of a weight would be rounded to nothing. Float32
parameters are their own masters. With several ranks each has a part of every parameter, its gradient and its state
(ranks.py): AdamW is the same for each part, and Muon gathers a matrix to orthogonalise it (muon.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lineside import ranks
from lineside.errors import LinesideError
from lineside.training.muon import Muon

Schedule = Literal["cosine", "linear", "constant"]
EMBEDDINGS = ("embed_tokens", "lm_head")  # tables of vectors and not linear maps, so Muon does not fit them


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
    """Parameters with one learning rate: `name` ("projector", "lm"), (full name, parameter) pairs, peak rate."""

    name: str
    parameters: Sequence[tuple[str, torch.nn.Parameter]]
    learning_rate: float


class Optimizer:
    """AdamW (arXiv 1711.05101) on float32 masters, with clipping by the global norm, and optionally Muon for matrices.

    With `muon`, hidden matrices get orthogonalised momentum steps (Muon, arXiv 2502.16982) of the size of AdamW's
    steps, so both use the same learning rate. Embeddings, norms and biases stay with AdamW.

    A step is: `backward()` and `accumulate()` for each part of the batch, then `step(scale)`. Weight decay applies to
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
        """A `max_grad_norm` of 0 does not clip. Raises ValueError if a name occurs twice or there are no parameters."""
        self.max_grad_norm = max_grad_norm
        self._rates: list[tuple[str, float]] = []  # for each parameter group of torch: our group's name and peak rate
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
        self._sums: dict[str, Tensor] = {}  # name -> float32 gradient of the parts of the step so far
        self._norm: float | None = None  # of the step's gradient, once it is complete
        self._optimizers: list[tuple[torch.optim.Optimizer, list[tuple[str, float]]]] = []
        if torch_groups:
            adamw = torch.optim.AdamW(torch_groups, lr=0.0, betas=betas, eps=eps, fused=True)
            self._optimizers.append((adamw, self._rates))
        if muon_groups:
            self._optimizers.append((Muon(muon_groups), muon_rates))
        if not self._optimizers:
            raise ValueError("nothing to train: the parameter groups are empty")

    def accumulate(self) -> None:
        """Add the gradients of the parameters to the sums of the step in float32, then clear them.

        Call it after each `backward()`, so that the gradients of the parts of a step are not summed in bfloat16.
        """
        for name, (parameter, _) in self._pairs.items():
            if parameter.grad is not None:
                gradient, known = parameter.grad.float(), self._sums.get(name)
                self._sums[name] = gradient if known is None else known.add_(gradient)
        self.forget()

    def forget(self) -> None:
        """Clear the gradients that are not accumulated yet: those of a backward pass that did not come to its end."""
        for parameter, _ in self._pairs.values():
            parameter.grad = None

    def norm(self) -> float:
        """The norm of the step's whole gradient, over all ranks, which is then clipped. Call it after the last
        `backward()` of the step. It is finite if and only if the gradient is, unless it overflows float32."""
        if self._norm is None:
            self.accumulate()
            for name, (_, master) in self._pairs.items():
                master.grad = self._sums.pop(name, None)
            masters = [master for _, master in self._pairs.values() if master.grad is not None]
            most = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
            self._norm = float(ranks.whole(torch.nn.utils.clip_grad_norm_(masters, most)))
        return self._norm

    def drop(self) -> None:
        """Clear the whole gradient of the step, which is then not taken."""
        self.forget()
        self._sums.clear()
        self._norm = None
        for _, master in self._pairs.values():
            master.grad = None

    def step(self, scale: float = 1.0) -> dict[str, float]:
        """One update with `scale` times the peak rate of each group; it clears the gradients.

        Returns {"gradient_norm": norm before clipping, "lr/<group>": learning rate}. Raises LinesideError, before
        anything is changed, if the gradient is not finite.
        """
        norm, self._norm = self.norm(), None
        masters = [master for _, master in self._pairs.values() if master.grad is not None]
        if not math.isfinite(norm):
            self.drop()
            raise LinesideError(
                f"the norm of the gradient is {norm}: training has diverged, and this step is not taken"
            )
        rates = {}
        for optimizer, peaks in self._optimizers:
            for torch_group, (name, peak) in zip(optimizer.param_groups, peaks):
                torch_group["lr"] = rates[f"lr/{name}"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.graph.increment_version(masters)  # fused steps do not; decoding lays out weights that changed
        with torch.no_grad():
            for parameter, master in self._pairs.values():
                if master is not parameter:
                    parameter.copy_(master)
        return {"gradient_norm": norm, **rates}

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors needed to resume, weights included: "<parameter>/master", and of "/exp_avg", "/exp_avg_sq",
        "/step", "/momentum_buffer" those that the parameter's optimiser has.

        They are the optimiser's own tensors, not copies, and each rank's own parts. Before the first step there are
        only masters.
        """
        tensors = {}
        for name, (_, master) in self._pairs.items():
            tensors[f"{name}/master"] = master.detach()
            tensors |= {f"{name}/{key}": value for key, value in self._owner(master).state[master].items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a saved state, with every tensor in full, and copy its weights to the parameters, bit for bit.

        Raises LinesideError, before anything is changed, if the state is of other parameters.
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
                master.copy_(self._part(tensors[f"{name}/master"], master))
                if master is not parameter:
                    parameter.copy_(master)
                self._owner(master).state[master] = {
                    key: self._part(tensors[f"{name}/{key}"].to(master.device, copy=True), master)
                    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                    if f"{name}/{key}" in tensors
                }

    @staticmethod
    def _part(saved: Tensor, master: Tensor) -> Tensor:
        """What this rank keeps of a saved tensor: of one that is like the master, its part."""
        return ranks.share(saved.to(master.device), master) if saved.shape == master.shape else saved

    def _owner(self, master: Tensor) -> torch.optim.Optimizer:
        """The optimiser that updates this master."""
        for optimizer, _ in self._optimizers:
            if any(master is p for group in optimizer.param_groups for p in group["params"]):
                return optimizer
        raise AssertionError("every master belongs to an optimiser")
