"""A sham accelerator: its tensors say that they are on the device "sham", and hold numbers of the CPU.

It shows without a GPU what a GPU would refuse and where the CPU would wait for it. Operations on tensors of two devices
raise, as on CUDA. Each wait and each copy is recorded with the line of lineside that made it. A wait is what needs a
value from the device (item, tolist, nonzero, unique, a boolean index, a copy to the CPU) and a copy from memory that is
not pinned. It does not show streams, compiled code, memory, or kernels that CUDA lacks.

The device is torch's PrivateUse1. `Sham` is a wrapper subclass of Tensor; `Bus` is the dispatch mode that records.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.weak import WeakIdKeyDictionary

from lineside import backends
from lineside.backends.cuda import PlainCuda
from lineside.training import prefetch

aten = torch.ops.aten
NAME = "sham"
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.to.device, aten.to.dtype, aten.to.dtype_layout}
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
}


class Backend(PlainCuda):
    """The CUDA backend without FlexAttention and fused operations, which are compiled code: the sham cannot run it."""

    is_proven = True


class Mismatch(RuntimeError):
    """An operation on tensors of two devices."""


class _Module(backend_registration._DummyBackendModule):
    """What `torch.get_device_module` gives: the functions that a runtime calls."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None: ...

    def synchronize(self, device: object = None) -> None:
        _record("wait", "synchronise")

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self, device: object = None) -> None: ...

    def max_memory_allocated(self, device: object = None) -> int:
        return 0

    def get_device_name(self, device: object = None) -> str:
        return "a sham device"

    def is_bf16_supported(self) -> bool:
        return True


@cache
def device() -> torch.device:
    """The sham device, made known to torch at the first call."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    return torch.device(NAME, 0)


class Sham(Tensor):
    """A tensor of the sham device around one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Sham:
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=device(),
        )  # fmt: skip
        made.held = real
        return made

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_on_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_on_device(index), value)

    def tolist(self) -> Any:
        _record("wait", "tolist")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise Mismatch(f"numpy() of a device's tensor at {_line()}")

    def data_ptr(self) -> int:
        raise Mismatch(f"the address of a device's tensor at {_line()}")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Sham({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Bus(TorchDispatchMode):
    """While it is entered, the sham device exists and its waits and copies are counted by line of lineside."""

    current: Bus | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()  # (line, what): item, tolist, nonzero ...
        self.copies: Counter[tuple[str, str]] = Counter()  # (line, "pinned" or "pageable"): from the CPU to the device
        self.pinned = WeakIdKeyDictionary()
        self.device = device()

    def __enter__(self) -> Bus:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(list, device=...) is made on the CPU and then copied
        torch.__future__.set_swap_module_params_on_conversion(True)  # `to` keeps tied weights tied
        torch.autograd.set_multithreading_enabled(False)  # backward runs here, where the mode is
        Bus.current = self
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        Bus.current = None
        torch.autograd.set_multithreading_enabled(True)
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)

    def clear(self) -> None:
        """Count anew."""
        self.waits.clear()
        self.copies.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def sham_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """The sham device with the backend of a GPU, for the time of a test."""
    chosen = backends.choose
    monkeypatch.setattr(backends, "choose", lambda device: Backend() if device.type == NAME else chosen(device))
    monkeypatch.setattr(prefetch, "ThreadPoolExecutor", Pool)
    with Bus() as bus:
        yield bus


class Pool(ThreadPoolExecutor):
    """A pool whose threads know the sham device too: a dispatch mode is a thread's own."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        bus = Bus.current
        assert bus is not None

        def inside() -> Any:
            with TorchDispatchMode.__enter__(bus) and _left(bus):
                return fn(*args, **kwargs)

        return super().submit(inside)


@contextmanager
def _left(bus: Bus) -> Iterator[None]:
    try:
        yield
    finally:
        TorchDispatchMode.__exit__(bus, None, None, None)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU's numbers. Raises Mismatch where a GPU would refuse it."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    here = [a for a in flat if isinstance(a, Sham)]
    real, named = pytree.tree_unflatten([a.held if isinstance(a, Sham) else a for a in flat], spec)
    asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    if func is aten.is_pinned.default:
        return bool(Bus.current and args[0] in Bus.current.pinned)
    if func is aten._pin_memory.default:
        return _pin(args[0])
    if func in COPIES:
        return _copy(func, real, named, bool(here), asked, args[0])
    if func is aten.copy_.default:
        if isinstance(flat[0], Sham) != isinstance(flat[1], Sham):
            _crossed(flat[1], to_device=isinstance(flat[0], Sham), at_once=len(flat) < 3 or not flat[2])
        func(*real, **named)
        return flat[0]
    if asked is not None:
        named = {k: v for k, v in named.items() if k != "pin_memory"} | {"device": "cpu"}
        made = func(*real, **named)
        return _wrapped(made) if asked == NAME else made
    if not here:
        return func(*real, **named)
    _refuse_two_devices(func, args, flat)
    if func in WAITS:
        _record("wait", WAITS[func])
    if func in INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])):
        _record("wait", "boolean index")
    out = func(*real, **named)
    if not isinstance(out, Tensor | tuple | list):
        return out
    return return_and_correct_aliasing(func, args, kwargs, _wrapped(out))


def _copy(func: Any, real: Any, named: dict[str, Any], was_here: bool, asked: str | None, source: Tensor) -> Any:
    """A copy with another device or number format."""
    stays_here = was_here if asked is None else asked == NAME
    if was_here != stays_here:
        _crossed(source, to_device=stays_here, at_once=not named.get("non_blocking"))
    out = func(*real, **{**named, "device": torch.device("cpu")})
    out = out.clone() if out.data_ptr() == real[0].data_ptr() else out
    return Sham(out) if stays_here else out


def _crossed(source: Tensor, *, to_device: bool, at_once: bool) -> None:
    """Record a copy between CPU and device. One number of no dimension goes along with the kernel that needs it."""
    if not to_device:
        _record("wait", "copy to the CPU")
    elif source.dim() > 0:
        pinned = bool(Bus.current and source in Bus.current.pinned) and not at_once
        _record("copy", "pinned" if pinned else "pageable")
        if not pinned:
            _record("wait", "pageable copy")


def _pin(tensor: Tensor) -> Tensor:
    pinned = tensor.clone()
    if Bus.current is not None:
        Bus.current.pinned[pinned] = True
    return pinned


def _refuse_two_devices(func: Any, args: Any, flat: list[Any]) -> None:
    """CUDA takes single numbers of the CPU beside its own tensors, and indices; nothing else."""
    others = [a for a in flat if isinstance(a, Tensor) and not isinstance(a, Sham) and a.dim() > 0]
    if not others:
        return
    values = [args[0], *_tensors(args[2:])] if func in INDEXING else [*others]
    if any(not isinstance(value, Sham) and value.dim() > 0 for value in values):
        raise Mismatch(f"{func}: tensors {[tuple(t.shape) for t in others]} of the CPU and others at {_line()}")
    _record("copy", "pageable")
    _record("wait", "pageable index")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _wrapped(out: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t if isinstance(t, Sham) else Sham(t), out)


def _on_device(index: Any) -> Any:
    """A list as an index becomes a tensor of the device: a copy that waits."""

    def one(part: Any) -> Any:
        if not isinstance(part, list):
            return part
        _record("copy", "pageable")
        _record("wait", "list as an index")
        return Sham(torch.tensor(part))

    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


def _record(kind: str, what: str) -> None:
    if Bus.current is not None:
        (Bus.current.waits if kind == "wait" else Bus.current.copies)[_line(), what] += 1


def _line() -> str:
    """The innermost line of lineside that is not the runtime's own, as file:number; "?" without one."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, file = frame.f_code.co_filename.rpartition("/src/lineside/")
        if found and file != "runtime.py":
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
