"""What gradient checkpointing costs and saves on this model and machine, measured before a stage that asks for it.

Each layer's activations are computed again in the backward pass instead of being kept (arXiv 1604.06174).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lineside.model.vlm import VLM
from lineside.runtime import wait_for
from lineside.training.trees import blank

LENGTH = 30  # of an answer
TOKENS = 2048  # measured on so many: without checkpointing a whole pack may not fit


@dataclass(frozen=True)
class Price:
    """Of a forward and backward pass, (kept, checkpointed)."""

    seconds: tuple[float, float]
    bytes_a_token: tuple[float, float]  # held between forward and backward

    def line(self) -> str:
        """For the console."""
        more = 100 * (self.seconds[1] / self.seconds[0] - 1)
        kept, again = (1000 * size / 2**20 for size in self.bytes_a_token)
        return f"checkpointing: {more:.0f}% more time, {again:,.0f} MB for 1,000 tokens instead of {kept:,.0f}"


def price(vlm: VLM, tokens: int = TOKENS) -> Price:
    """Measured on pictures with two short answers each, as many as make `tokens` tokens. Leaves no gradient behind."""
    pack, features = blank(vlm, 1, LENGTH)
    if (count := tokens // len(pack)) > 1:
        pack, features = blank(vlm, count, LENGTH)
    before, seconds, sizes = vlm.checkpointing, [], []
    for vlm.checkpointing in (False, True):
        took = []
        for _ in range(3):  # the first brings kernels
            held: dict[int, int] = {}

            def hold(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
                return tensor

            start = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
                loss = -vlm.logprobs(pack, features).mean()
            for weight in vlm.model.parameters():  # saved as well, but there in any case
                held.pop(weight.untyped_storage().data_ptr(), None)
            loss.backward()
            wait_for(vlm.device)
            took.append(time.perf_counter() - start)
            vlm.model.zero_grad(set_to_none=True)
        seconds.append(min(took[1:]))
        sizes.append(sum(held.values()) / len(pack))
    vlm.checkpointing = before
    return Price((seconds[0], seconds[1]), (sizes[0], sizes[1]))
