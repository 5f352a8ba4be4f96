"""Fused pieces compute what the eager ones do, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from lineside.backends import fused_ops
from tests.conftest import make_tiny_vlm
from tests.model.test_tree import cases


@pytest.mark.slow
@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_fused_equals_eager(monkeypatch: pytest.MonkeyPatch, lm: str) -> None:
    features = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for wanted in ("0", "1"):
        monkeypatch.setenv("LINESIDE_FUSE", wanted)
        vlm = make_tiny_vlm(lm=lm)
        vlm.language_model.requires_grad_(True)
        fused_ops.fuse(vlm.language_model)
        logprobs = vlm.logprobs(vlm.pack(cases(vlm)), features)
        logprobs.sum().backward()
        results.append((logprobs.detach(), [p.grad for p in vlm.language_model.parameters()]))
    (eager, eager_gradients), (fused, fused_gradients) = results
    torch.testing.assert_close(fused, eager, atol=2e-5, rtol=1e-5)
    for got, want in zip(fused_gradients, eager_gradients):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


def test_without_a_compiler_nothing_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINESIDE_FUSE", "1")
    monkeypatch.setattr(fused_ops.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the model is on the CPU: this changes nothing
    vlm = make_tiny_vlm()
    fused_ops.fuse(vlm.language_model)
    assert not any("forward" in vars(module) for module in vlm.language_model.modules())
