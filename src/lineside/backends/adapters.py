"""What a backend knows of adapters: how to read a linear map with one, and rows of a table that train alone.

Shapes: V rows of a table, D width, n rows that train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows(nn.Module):
    """An embedding or a head of which only the rows of some tokens train: they take the place of the table's.

    peft's layer for the same (TrainableTokens) writes the rows into a copy of the table in every forward, and its
    backward computes the gradient of all V rows. Here nothing has the size of the table.
    """

    def __init__(self, base_layer: nn.Module, tokens: Sequence[int], rows: nn.Parameter) -> None:
        super().__init__()
        if type(base_layer) not in (nn.Embedding, nn.Linear):
            raise ValueError(f"rows of a {type(base_layer).__name__} cannot train alone: expected a plain table")
        self.base_layer, self.rows = base_layer, rows  # rows: (n, D), of the `tokens` in order
        self.tokens: Tensor
        self.register_buffer("tokens", torch.tensor(tokens, device=rows.device), persistent=False)

    def table(self) -> Tensor:
        """(V, D), the rows in their places, in a copy."""
        table: Any = self.base_layer
        return table.weight.detach().index_copy(0, self.tokens, self.rows.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (...) -> embeddings (..., D), or hidden states (..., D) -> logits (..., V)."""
        table: Any = self.base_layer
        tokens, out = self.tokens, table(x)
        if isinstance(table, nn.Embedding):
            own = x[..., None] == tokens
            return torch.where(own.any(-1, keepdim=True), own.to(out.dtype) @ self.rows, out)
        bias = None if table.bias is None else table.bias[tokens]
        return out.index_copy(-1, tokens, F.linear(x, self.rows, bias))


def is_lora(module: Any) -> bool:
    """Whether a module is a linear map with one LoRA of peft that is added to it, and nothing else."""
    kind = type(module)
    if (kind.__module__, kind.__name__) != ("peft.tuners.lora.layer", "Linear") or "forward" in vars(module):
        return False
    if not _is_linear(module.base_layer) or module.disable_adapters or module.merged or len(module.active_adapters) > 1:
        return False
    (name,) = module.active_adapters
    drops = getattr(module.lora_dropout[name], "p", 0.0) > 0 and module.lora_dropout[name].training
    return not (drops or name in module.lora_variant or module.lora_bias[name])


def is_map(module: Any) -> bool:
    """Whether the weights of a module alone say what it computes: a plain linear map, one with a LoRA, a head."""
    return _is_linear(module) or is_lora(module) or (type(module) is Rows and _is_linear(module.base_layer))


def _is_linear(module: Any) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module)


def weight_of(module: Any) -> Tensor:
    """The weight (out, in) of a linear map (`is_map`).

    A LoRA is added in float32. In bfloat16 a number that is less than half of a weight's last digit would be lost, and
    with it most of what a young adapter does."""
    if type(module) is Rows:
        return module.table()
    if not is_lora(module):
        return module.weight.detach()
    (name,) = module.active_adapters
    down, up = (maps[name].weight.detach().float() for maps in (module.lora_A, module.lora_B))
    return module.base_layer.weight.detach().float() + module.scaling[name] * (up @ down)


def bias_of(module: Any) -> Tensor | None:
    """The bias (out,) of a linear map (`is_map`); None if it has none."""
    bias = getattr(module, "base_layer", module).bias
    return None if bias is None else bias.detach()


def table_of(module: Any) -> Tensor:
    """The embeddings (V, D) of a plain table, or of one of which some rows train."""
    return module.table() if type(module) is Rows else module.weight.detach()
