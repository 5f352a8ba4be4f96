"""The backend of a CPU with a C++ compiler: our own kernels (cpu_ops.py) and fused operations (fused_ops.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lineside.backends import cpu_ops
from lineside.backends.cpu_decoder import CpuDecoding, Weights
from lineside.backends.fused_ops import fuse
from lineside.backends.lm import PLAIN_LMS, LanguageModel, Plan
from lineside.backends.reference import Reference, Steps
from lineside.progress import say


class Cpu(Reference):
    """Our own C++ for attention, log-probabilities and decoding. The rest runs through the LM's modules."""

    name = "cpu"
    compiles = True

    def __init__(self) -> None:
        self._held: tuple[Any, Weights] | None = None  # the weights as decoding reads them, and what they came from
        self._told = False

    def prepare(self, decoder: nn.Module) -> None:
        """Fuse norms, gates and rotations."""
        fuse(decoder, cpu_ops)

    def plan(self, end: Tensor, size: int, device: torch.device, windows: Sequence[int | None] = ()) -> Plan:
        """Our kernel; it knows no windows."""
        return super().plan(end, size, device, windows) if any(windows) else CpuPlan(end)

    def logprobs(
        self, head: nn.Module, hidden: Tensor, target: Tensor, banned: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See Reference."""
        return cpu_ops.logprobs(head(hidden), target, banned, temperature)

    def steps(self, lm: LanguageModel) -> Steps:
        """See Reference. Laid-out weights need plain linear maps: any others (adapters) run through their modules."""
        if reason := why_not_laid_out(lm):
            if not self._told:
                say(f"decoding runs through the model's own modules, which is slower: {reason}")
            self._told = True
            return super().steps(lm)
        weights = self._weights(lm)
        return Steps(CpuDecoding, weights.hidden, weights.logits, cpu_ops.choose)

    def _weights(self, lm: LanguageModel) -> Weights:
        """The laid-out weights. They are kept until a weight changes. If any trains, they are made anew each time."""
        parameters = [*lm.decoder.parameters(), *lm.head.parameters()]
        if any(parameter.requires_grad for parameter in parameters):
            return Weights(lm)
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        if self._held is None or self._held[0] != state:
            self._held = state, Weights(lm)
        return self._held[1]


class CpuPlan:
    """Attention of a pack by our own kernel."""

    def __init__(self, end: Tensor) -> None:
        self._end = end

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        return cpu_ops.attend(q, k, v, self._end, scale)


LINEARS = [*(f"self_attn.{c}_proj" for c in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


def why_not_laid_out(lm: LanguageModel) -> str:
    """Why the weights alone do not say what the LM computes; "" if they do. An adapter is a module of another type, a
    hook or a forward of its own, and its `weight` may be the one below it."""
    config = lm.decoder.config
    if config.model_type not in PLAIN_LMS or config.hidden_act != "silu":
        return f"the language model is a {config.model_type} with {config.hidden_act} gates"
    modules: dict[str, nn.Module] = {**dict(lm.decoder.named_modules()), "head": lm.head}
    for name, module in modules.items():
        forward = vars(module).get("forward")  # ours is a partial of a function in this package
        if forward is not None and not getattr(forward, "func", forward).__module__.startswith(__package__ or ""):
            return f"{name} has a forward of its own"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the decoder'} has hooks"
    maps = [f"layers.{number}.{name}" for number in range(len(lm.decoder.layers)) for name in LINEARS]
    for name in (*maps, "head"):
        if type(modules.get(name)) is not nn.Linear or "forward" in vars(modules[name]):
            return f"{name} is no plain linear map"
    for name, module in modules.items():
        if name.endswith("norm") and not type(module).__name__.endswith("RMSNorm"):
            return f"{name} is no plain norm"
    return ""
