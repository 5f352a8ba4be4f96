"""Engines: how what decodes a checkpoint (a pair, see pairs.py) is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lineside.errors import LinesideError
from lineside.model.checkpoint import load
from lineside.model.vlm import VLM
from lineside.serving.engine import LocalEngine
from lineside.serving.pairs import EnginePair, export_folder, why_not
from lineside.types import NO_VLLM, VllmAt


def load_engine(
    checkpoint: Path,
    pair: EnginePair,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    vllm: VllmAt = NO_VLLM,
) -> VLM:
    """The model of a checkpoint, decoded by a pair. Raises LinesideError as `load` does, and if this machine or this
    checkpoint lacks what the pair needs."""
    if why := why_not(checkpoint, pair, vllm):
        raise LinesideError(f"{checkpoint} cannot be decoded by {pair}: {why}")
    vlm = load(checkpoint, dtype=dtype, device=device)
    _copied(vlm)
    if pair.engine == "vllm" and vllm.python is not None:
        from lineside.backends.vllm import Vllm

        vlm.use(Vllm(vlm, vllm.python, memory=vllm.memory))
        return vlm
    if pair.engine == "openvino":
        if vlm.device.type != "cpu":
            raise LinesideError(f"the engine openvino computes on the CPU, and this is {vlm.device}: give --device cpu")
        from lineside.backends.openvino import OpenVino

        vlm.use(OpenVino(vlm.backend, export_folder(checkpoint, pair.weights), pair.weights))
        return vlm
    vlm.backend.weights = pair.weights
    vlm.backend.steps(vlm.lm)  # refuses weights that it does not know
    return vlm


def _copied(vlm: VLM) -> None:
    """Hold the weights in memory of our own. They may be the mapped file, and whoever writes over it would change the
    answers of a model that runs."""
    for weight in (*vlm.parameters(), *vlm.buffers()):
        weight.data = weight.data.clone()


def engine_of(vlm: VLM, **options: Any) -> LocalEngine:
    """What answers requests with a model that `load_engine` has loaded. `options`: as of LocalEngine."""
    if vlm.backend.engine != "vllm":
        return LocalEngine(vlm, **options)
    from lineside.serving.vllm import VllmEngine

    return VllmEngine(vlm, **options)
