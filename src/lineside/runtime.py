"""Where a run computes: device, number format, seed, and its place among the processes that share the run.

A `Runtime` reaches stages, feature store and generator as an argument. No other module asks torch about CUDA. Every
choice follows the device of the run, so a run on the CPU of a machine with a GPU is that of a machine without one."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lineside.errors import LinesideError
from lineside.machine import launched

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by the names that recipes and flags use


@dataclass(frozen=True)
class Runtime:
    """Device, number format, seed and ranks of a run. By default: one process on the CPU."""

    device: torch.device = CPU
    dtype: torch.dtype | None = None  # the number format of the model; None: that of its checkpoint
    seed: int = 0
    group: ProcessGroup | None = None  # the processes that share the run; None: this one alone
    second: ProcessGroup | None = None  # the same processes, for a thread that reads ahead

    @classmethod
    def of(cls, device: str = "auto", dtype: str | None = None, *, seed: int = 0) -> Runtime:
        """From the names in a recipe or on the command line: `device` auto, cpu or cuda; `dtype` auto, fp32, bf16 or
        None. Raises LinesideError for a device that is not there."""
        found = find_device(device)
        return cls(found, compute_dtype(dtype, found), seed)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.group.rank() if self.group is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes that share the run."""
        return self.group.size() if self.group is not None else 1

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sum of each number over all processes; in a single process the numbers themselves."""
        if self.group is not None:
            self.group.allreduce([numbers]).wait()
        return numbers

    def exchange(self, value: Any) -> list[Any]:
        """The value of every rank, by rank: plain data, sent as JSON. All ranks must call it, and none goes on before
        all have."""
        if self.group is None:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world_size, dtype=torch.long)
        sizes[self.rank] = len(own)
        longest = int(self.all_reduce(sizes).max())
        told = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        self.group.allgather([told], [padded]).wait()
        return [json.loads(text[:size].numpy().tobytes()) for text, size in zip(told, sizes.tolist())]

    def said(self, value: Any) -> Any:
        """The value that rank 0 has."""
        return self.exchange(value)[0] if self.group is not None else value

    def first(self, do: Callable[[], Any]) -> None:
        """Rank 0 does it, and the others wait until it is done."""
        if self.rank == 0:
            do()
        self.exchange(None)

    @property
    def alone(self) -> Runtime:
        """The same device for what this process computes without the others."""
        return replace(self, group=None, second=None)

    @property
    def beside(self) -> Runtime:
        """The same for a thread beside the main one: what two threads send must not be mixed up."""
        return replace(self, group=self.second)

    def synchronise(self) -> None:
        """Wait until the device has finished its queued work. A CPU has no queue."""
        if self.device.type != "cpu":
            self._module.synchronize(self.device)

    def random_state(self) -> Tensor | None:
        """The state of the device's random generator; None for a CPU, which uses torch's global generator."""
        return self._module.get_rng_state(self.device) if self.device.type != "cpu" else None

    def set_random_state(self, state: Tensor | None) -> None:
        """Restore a state from `random_state`. On a CPU this does nothing."""
        if self.device.type != "cpu" and state is not None:
            self._module.set_rng_state(state, self.device)

    @property
    def device_name(self) -> str | None:
        """The name of a GPU; None for a CPU."""
        return self._module.get_device_name(self.device) if self.device.type != "cpu" else None

    def line(self) -> str:
        """Device and number format, for the console."""
        dtype = "" if self.dtype is None else " in " + str(self.dtype).removeprefix("torch.")
        return f"{self.device_name or self.device}{dtype}"

    def peak_memory(self) -> int:
        """Bytes that tensors held at most since `free_memory`; 0 for a CPU, where torch does not count them."""
        return self._module.max_memory_allocated(self.device) if self.device.type != "cpu" else 0

    def memory(self) -> int:
        """Bytes of memory of a GPU; 0 for a CPU."""
        return self._module.get_device_properties(self.device).total_memory if self.device.type != "cpu" else 0

    def free_memory(self) -> None:
        """Return the device's unused memory, and begin to count `peak_memory` anew."""
        if self.device.type != "cpu":
            self._module.empty_cache()
            self._module.reset_peak_memory_stats(self.device)

    @property
    def _module(self) -> Any:
        """What torch offers for this kind of device, such as torch.cuda."""
        return torch.get_device_module(self.device)


ON_CPU = Runtime()


def find_device(choice: str) -> torch.device:
    """The device for auto (a CUDA device if there is one, else the CPU), cpu or cuda. Raises LinesideError if there is
    none."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        why = (
            f"torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org)"
            if torch.version.cuda is None
            else "torch finds none: does `nvidia-smi` list one, and does CUDA_VISIBLE_DEVICES leave it visible?"
        )
        raise LinesideError(f"device cuda: there is no CUDA device here. {why}; device cpu computes without one")
    if launched().local >= torch.cuda.device_count():
        raise LinesideError(
            f"torchrun has started {launched().here} processes here, and there are {torch.cuda.device_count()} CUDA "
            f"devices: start --nproc-per-node {torch.cuda.device_count()}, or compute with device=cpu"
        )
    torch.backends.cudnn.allow_tf32 = False  # else convolutions in float32 are rounded to 10 bits, and products are not
    return torch.device("cuda", launched().local)


def only_visible(device: torch.device) -> dict[str, str]:
    """The environment in which another process sees this GPU alone; nothing for a CPU."""
    if device.type == "cpu":
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = device.index or 0
    return {"CUDA_VISIBLE_DEVICES": visible[number] if number < len(visible) else str(number)}


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. The copy to a GPU starts from pinned memory, so the CPU does not wait for it."""
    if device.type == "cpu" or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def compute_dtype(choice: str | None, device: torch.device) -> torch.dtype | None:
    """The number format for a recipe's or flag's `dtype`; None for None.

    `auto` is bf16 on a GPU that supports it, and on a CPU whose matrix products are at least 1.3 times as fast in it.
    """
    if choice is None or choice in DTYPES:
        return DTYPES[choice] if choice else None
    if device.type != "cpu":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return _faster()


def has_bf16(device: torch.device) -> bool:
    """Whether the device has products of bf16 matrices. A CPU needs AVX512 (or AVX-NE-CONVERT) for them; on others they
    take some fifty times as long as those of float32."""
    if device.type != "cpu":
        return torch.get_device_module(device).is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def dtype_name(dtype: torch.dtype | None) -> str:
    """The name of a number format of DTYPES in recipes and flags."""
    return next(name for name, known in DTYPES.items() if known == dtype)


@functools.cache
def _faster() -> torch.dtype:
    """The number format in which this CPU trains faster. Measured once in a process, where there is a choice."""
    if not has_bf16(CPU):
        return torch.float32
    narrow, wide = _seconds((torch.bfloat16, torch.float32))
    return torch.bfloat16 if narrow * 1.3 < wide else torch.float32


def _seconds(dtypes: Sequence[torch.dtype], size: int = 512, repeats: int = 40) -> list[float]:
    """Seconds of a matrix product in each format: the best of many, measured in turns, so that other load on the
    machine affects both alike."""
    best = [float("inf")] * len(dtypes)
    pairs = [(torch.randn(4 * size, size).to(dtype), torch.randn(size, size).to(dtype)) for dtype in dtypes]
    for _ in range(repeats):
        for place, (a, b) in enumerate(pairs):
            start = time.perf_counter()
            torch.mm(a, b)
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def graphed(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """`step`, captured as a CUDA graph: a call replays its kernels on the same memory, without the time of launching
    them one by one. On a CPU it is `step` itself. Not tried on a GPU yet."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # the first runs compile kernels and take workspaces, which a graph cannot
        for _ in range(2):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
