"""A tiny checkpoint whose answers depend on the picture, on every weight and on biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lineside.model.checkpoint import save
from tests.conftest import make_tiny_vlm


def lively(lm: str = "llama", *, seed: int = 1, tokenizer: Any = None) -> Any:
    """A tiny VLM with larger weights than a new one, and norms and biases that are not 1 and 0."""
    import torch

    vlm = make_tiny_vlm(seed, lm, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*vlm.language_model.named_parameters(), *vlm.tower.named_parameters()]:
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(0.1 * noise) if weight.ndim == 1 else weight.mul_(4 if "tower" not in name else 1)
        for weight in vlm.projector.parameters():
            weight.mul_(3)
        vlm.model.get_input_embeddings().weight[vlm.render.eos_id] = 0  # answers do not end at once
    return vlm


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    save(lively(), folder)
    return folder
