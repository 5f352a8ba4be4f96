"""The backend of a CPU with a C++ compiler: our own kernels (cpu_ops.py) and fused operations (fused_ops.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lineside.backends import cpu_ops
from lineside.backends.adapters import Rows, is_map
from lineside.backends.cpu_decoder import FUNCTIONS, CpuSteps, torch_functions
from lineside.backends.fused_ops import fuse
from lineside.backends.lm import PLAIN_LMS, LanguageModel, Plan
from lineside.backends.reference import Reference, Steps
from lineside.progress import say


class Cpu(Reference):
    """Our own C++ for attention, log-probabilities and decoding. The rest runs through the LM's modules."""

    name = "cpu"
    compiles = True

    def __init__(self) -> None:
        self._laid_out: tuple[Any, CpuSteps] | None = None  # the weights as decoding reads them, and what they are of
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
        """See Reference. Laid-out weights need linear maps, with LoRA or without; others run through their modules.
        They are kept until a weight changes, which its version counter tells."""
        if reason := why_not_laid_out(lm):
            self.only_full(reason)
            if not self._told:
                say(f"decoding runs through the model's own modules, which is slower: {reason}")
            self._told = True
            return super().steps(lm)
        parameters = (*lm.decoder.parameters(), *lm.embed.parameters(), *lm.head.parameters())
        state = self.weights, *((parameter.data_ptr(), parameter._version) for parameter in parameters)
        if self._laid_out is None or self._laid_out[0] != state:
            self._laid_out = None  # let the old ones go first
            self._laid_out = state, CpuSteps(lm, self.weights)
        return self._laid_out[1]


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
    """Why the weights alone do not say what the LM computes; "" if they do. An unknown adapter is a module of another
    type, a hook or a forward of its own, and its `weight` may be the one below it."""
    config = lm.decoder.config
    if config.model_type not in PLAIN_LMS or config.hidden_act != "silu":
        return f"the language model is a {config.model_type} with {config.hidden_act} gates"
    if getattr(lm.decoder.rotary_emb, "rope_type", "default") in ("dynamic", "longrope"):
        return "its rotary positions depend on the length of the text"
    if missing := FUNCTIONS.keys() - torch_functions().keys():
        return f"this build of PyTorch lacks {', '.join(FUNCTIONS[name] for name in sorted(missing))}"
    modules: dict[str, nn.Module] = {**dict(lm.decoder.named_modules()), "head": lm.head, "embeddings": lm.embed}
    for name, module in modules.items():
        forward = vars(module).get("forward")  # ours is a partial of a function in this package
        if forward is not None and not getattr(forward, "func", forward).__module__.startswith(__package__ or ""):
            return f"{name} has a forward of its own"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the decoder'} has hooks"
    maps = [f"layers.{number}.{name}" for number in range(len(lm.decoder.layers)) for name in LINEARS]
    for name in (*maps, "head"):
        if not is_map(modules.get(name)):
            return f"{name} is no plain linear map"
    if type(lm.embed) not in (nn.Embedding, Rows):
        return "its embeddings are no plain table"
    for name, module in modules.items():
        if name.endswith("norm") and not type(module).__name__.endswith("RMSNorm"):
            return f"{name} is no plain norm"
    return ""
