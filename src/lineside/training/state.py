"""Resumable state of a stage: one safetensors file for each save, written atomically; the newest valid one is loaded.

    <stage>/state/step-00000120.safetensors

The file has the optimiser's tensors (weights included). Its header has, as JSON, the step, the data cursor, the random
states and a checksum. It is written to a temporary file, flushed to disk and renamed, so a killed process leaves the
old states, with or without the new one. There is no pickle: reading a state runs no code.

The cursor says which data have been trained on, not how far a loader has read ahead.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineside.errors import LinesideError, disk_is_full
from lineside.files import make_folder, replacing
from lineside.progress import say
from lineside.runtime import ON_CPU, Runtime

FORMAT = "lineside-state-1"
_FORMATS = r"lineside-state-\d+"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class State:
    """The state of a stage: optimiser steps taken, the data they were trained on, and all that is needed to resume."""

    step: int
    tensors: Mapping[str, Tensor]  # the optimiser's
    cursor: Mapping[str, int] = field(default_factory=dict)  # {"epoch": 1, "groups": 640}: frames trained in this epoch
    extra: Mapping[str, Any] = field(default_factory=dict)  # JSON: seconds trained, cost, ...
    rng: Mapping[str, Any] = field(default_factory=dict)  # of `random_states`; none: those of the moment of saving


def save_state(folder: Path, state: State, *, keep: int = 2) -> Path:
    """Save `state`, then delete all but the `keep` newest.

    Raises LinesideError if it cannot be written (a full disk); the earlier states are then kept.
    """
    make_folder(folder)
    _drop_unfinished(folder)
    path = folder / f"step-{state.step:08d}.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    header = {
        "format": FORMAT,
        "step": state.step,
        "cursor": dict(state.cursor),
        "extra": dict(state.extra),
        "rng": _plain(state.rng or random_states()),
        "checksum": _checksum(tensors),
    }
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        _drop_unfinished(folder)
        reason = "the disk is full" if disk_is_full(error) else str(error)
        raise LinesideError(
            f"cannot save the training state to {path}: {reason}. Earlier states are kept; "
            "make room and run the same command again to continue from the last one."
        ) from error
    for old in _states(folder)[keep:]:
        old.unlink()
    return path


def load_state(folder: Path) -> State | None:
    """The newest valid state; None if none was saved. A damaged one is skipped with a warning.

    Raises LinesideError if there are states but none of them can be read, and for one of another version.
    """
    paths = _states(folder)
    for path in paths:
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
            say(f"warning: the training state {path} is damaged ({error}); trying the one before it")
    if paths:
        raise LinesideError(
            f"none of the {len(paths)} training states in {folder} can be read. "
            "Delete that folder to start the stage again from its beginning."
        )
    return None


def drop_states(folder: Path) -> None:
    """Delete the states of a finished stage; only its checkpoint is needed from now on."""
    _drop_unfinished(folder)
    for path in _states(folder):
        path.unlink()
    with contextlib.suppress(OSError):  # the folder also has files of the user
        folder.rmdir()


def _drop_unfinished(folder: Path) -> None:
    """Remove what a killed process has left of a state: our temporary file, and the one that safetensors writes first.
    A folder of states has one writer."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):
        path.unlink(missing_ok=True)


def restore_rng(state: State, runtime: Runtime = ON_CPU) -> None:
    """Restore the random states of torch, numpy, Python and the device of the run that were saved in `state`. A saved
    state of another kind of device is ignored."""
    runtime.set_random_state(_from_hex(state.rng["device"]) if state.rng.get("device") else None)
    _restore(state.rng, torch.default_generator, np.random.mtrand._rand, random)  # pyright: ignore[reportAttributeAccessIssue]


def _restore(rng: Mapping[str, Any], of_torch: torch.Generator, of_numpy: Any, of_python: Any) -> None:
    """Give three generators the saved states. Raises many types of error for what is none."""
    of_torch.set_state(_from_hex(rng["torch"]))
    name, keys, *rest = rng["numpy"]
    of_numpy.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, keys, gauss = rng["python"]
    of_python.setstate((version, tuple(keys), gauss))


def random_states(runtime: Runtime = ON_CPU) -> dict[str, Any]:
    """Copies of the random states of torch, numpy, Python and the device of the run. It takes microseconds."""
    return {
        "torch": torch.get_rng_state(),
        "device": runtime.random_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _plain(states: Mapping[str, Any]) -> dict[str, Any]:
    """The random states as JSON can hold them."""
    name, keys, *rest = states["numpy"]
    version, internal, gauss = states["python"]
    return {
        "torch": _to_hex(states["torch"]),
        "device": None if states["device"] is None else _to_hex(states["device"]),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(internal), gauss],
    }


def _read(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["state"])
        if (written := header["format"]) != FORMAT:
            if re.fullmatch(_FORMATS, written):
                raise LinesideError(
                    f"{path}: another version of lineside wrote this training state ({written}; this one reads "
                    f"{FORMAT}). Go on with that version, or delete the folder to start the stage again."
                )
            raise ValueError(f"its format is {written!r}, this version reads {FORMAT!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if _checksum(tensors) != header["checksum"]:
        raise ValueError("its checksum does not match its contents")
    if type(header["step"]) is not int or not all(isinstance(header[key], dict) for key in ("cursor", "extra", "rng")):
        raise ValueError("its header has values of other types")
    _restore(header["rng"], torch.Generator(), np.random.RandomState(), random.Random())  # raises, before it counts
    return State(header["step"], tensors, header["cursor"], header["extra"], header["rng"])


def _states(folder: Path) -> list[Path]:
    """The files of all states, the newest first: by step, because copying a run changes the times of files."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and bytes. It finds truncated files and flipped bits; it does not protect against an attacker."""
    crc = 0
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(data.data, zlib.crc32(name.encode(), crc))
    return crc


def _to_hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
