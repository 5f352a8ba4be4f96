"""Measure what gradient checkpointing costs in time and saves in memory, on this model and machine.

With it, backward computes the activations of each layer again instead of keeping them (arXiv 1604.06174). A stage that
uses it measures first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lineside.model.vlm import VLM
from lineside.runtime import Runtime
from lineside.training.packing import blank_pack

LENGTH = 30  # tokens of an answer
TOKENS = 2048  # tokens that are measured; without checkpointing, a whole pack may not fit into memory


@dataclass(frozen=True)
class Price:
    """Cost of a forward and backward pass, as (without checkpointing, with it)."""

    seconds: tuple[float, float]
    bytes_a_token: tuple[float, float]  # memory kept between forward and backward

    def line(self) -> str:
        """One line for the console."""
        more = 100 * (self.seconds[1] / self.seconds[0] - 1)
        kept, again = (1000 * size / 2**20 for size in self.bytes_a_token)
        return f"checkpointing: {more:.0f}% more time, {again:,.0f} MB for 1,000 tokens instead of {kept:,.0f}"


def price(vlm: VLM, tokens: int = TOKENS) -> Price:
    """Measure on about `tokens` tokens: blank pictures with two short answers each. No gradient is left afterwards."""
    pack, features = blank_pack(vlm, 1, LENGTH)
    if (count := tokens // len(pack)) > 1:
        pack, features = blank_pack(vlm, count, LENGTH)
    before, seconds, sizes = vlm.checkpointing, [], []
    for vlm.checkpointing in (False, True):
        took = []
        for _ in range(3):  # the first run compiles kernels and is not counted
            held: dict[int, int] = {}

            def hold(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
                return tensor

            start = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
                loss = -vlm.logprobs(pack, features).mean()
            for weight in vlm.model.parameters():  # the graph refers to weights too, but they need no extra memory
                held.pop(weight.untyped_storage().data_ptr(), None)
            loss.backward()
            Runtime(vlm.device).synchronise()
            took.append(time.perf_counter() - start)
            vlm.model.zero_grad(set_to_none=True)
        seconds.append(min(took[1:]))
        sizes.append(sum(held.values()) / len(pack))
    vlm.checkpointing = before
    return Price((seconds[0], seconds[1]), (sizes[0], sizes[1]))
