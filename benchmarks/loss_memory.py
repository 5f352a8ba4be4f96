"""Memory of the loss: logits at targets only, against logits of every position.

    python benchmarks/loss_memory.py [--tiny]

Only the head and the loss, forward and backward, on random hidden states for the 32 examples of the sft step (rows of
104 tokens, 34 of them targets). Our side first selects the hidden states of the targets. The other side computes the
logits of all positions and masks them, like a model's own `labels` argument. On a CPU our side reads the logits as they
are (cpu_ops.py); the other side converts them to float32. Measured: the peak memory above the start, each side in its
own process. The time columns are seconds of one forward and backward; the ratio is that of memory.
"""

from __future__ import annotations

import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from common import Options, apart, options, record
from lineside.backends import cpu_ops
from lineside.runtime import DTYPES

ROWS, LENGTH, TARGETS = 32, 104, 34
BANNED = 0  # id in place of the image token


def peak(line: Connection, way: str, settings: Options) -> None:
    """Send (bytes, seconds, loss) of one forward and backward."""
    vocabulary, width = (2048, 48) if settings.tiny else (49152, 576)
    torch.manual_seed(settings.seed)
    hidden = torch.randn(ROWS, LENGTH, width).to(settings.device, DTYPES[settings.dtype]).requires_grad_()
    head = (torch.randn(vocabulary, width) * width**-0.5).to(settings.device, DTYPES[settings.dtype]).requires_grad_()
    labels = torch.randint(BANNED + 1, vocabulary, (ROWS, LENGTH)).to(settings.device)
    labels[:, : LENGTH - TARGETS] = -100
    loss_of(way, hidden[:1, -2:], head, labels[:1, -2:]).backward()  # loads libraries, allocates the gradients
    before, start = standing(settings.device), time.perf_counter()
    with Watch(settings.device) as watch:
        loss = loss_of(way, hidden, head, labels)
        loss.backward()
    line.send((watch.most - before, time.perf_counter() - start, float(loss.detach())))


def loss_of(way: str, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the targets; rows predict their next token."""
    hidden, labels = hidden[:, :-1], labels[:, 1:]
    if way == "targets":
        hidden, labels = hidden[labels != -100], labels[labels != -100]
        if hidden.device.type == "cpu":
            return -cpu_ops.logprobs(hidden @ head.T, labels, BANNED, 1.0)[0].mean()
    logits = (hidden.flatten(0, -2) @ head.T).float()
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100)


def standing(device: str) -> int:
    """Bytes in use now."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Watch:
    """Peak memory: sampled every millisecond on a CPU, counted on a GPU."""

    def __init__(self, device: str) -> None:
        self.device, self.most, self._over = device, 0, threading.Event()

    def __enter__(self) -> Watch:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.most = max(self.most, standing(self.device))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, standing(self.device))
        if self.device == "cuda":
            self.most = torch.cuda.max_memory_allocated()


def main(settings: Options) -> None:
    found = {way: apart(peak, way, settings) for way in ("targets", "everything")}
    (less, quick, loss), (more, slow, other) = found["targets"], found["everything"]
    row = {"work": "memory of the loss, 32 sft rows", "peer": "logits of every position"}
    row |= {"ratio": more / less, "at_least": None, "equal": abs(loss - other) < 0.01, "ours_s": quick, "peer_s": slow}
    record({**row, "details": f"{less / 2**20:.0f} MiB against {more / 2**20:.0f} MiB; loss {loss:.4f}"}, settings)


if __name__ == "__main__":
    main(options(__doc__))
