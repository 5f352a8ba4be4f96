"""Fused pieces compute what the eager ones do, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from lineside.model import fuse
from lineside.model.generate import _attend_own, generate
from tests.conftest import make_tiny_vlm
from tests.model.test_generate import prompts, ready
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
        fuse.fuse(vlm.language_model)
        logprobs = vlm.logprobs(vlm.pack(cases(vlm)), features)
        logprobs.sum().backward()
        results.append((logprobs.detach(), [p.grad for p in vlm.language_model.parameters()]))
    (eager, eager_gradients), (fused, fused_gradients) = results
    torch.testing.assert_close(fused, eager, atol=2e-5, rtol=1e-5)
    for got, want in zip(fused_gradients, eager_gradients):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


def own_case() -> tuple[torch.Tensor, ...]:
    """5 rows, 3 key heads of 2 queries, 7 own columns of which some rows have fewer, a prefix of 4 partly masked."""
    seeded = torch.Generator().manual_seed(0)
    q, keys, values, prefix = (
        torch.randn(5, 3, *shape, generator=seeded) for shape in ((2, 8), (7, 8), (7, 8), (2, 4))
    )
    bias = torch.zeros(5, 7)
    bias[1, :3] = bias[4, :6] = float("-inf")
    prefix[2, :, :, 2:] = float("-inf")
    return q, keys, values, bias, prefix


@pytest.mark.parametrize("attend", [fuse.attend_own, _attend_own])
def test_own_keys_and_prefix_share_one_softmax(attend) -> None:
    q, keys, values, bias, prefix = own_case()
    mine, shared = attend(q, keys, values, bias, prefix)
    for row in range(5):
        for head in range(3):
            for query in range(2):
                own = [float(q[row, head, query] @ keys[row, head, t] + bias[row, t]) for t in range(7)]
                weights = torch.tensor(prefix[row, head, query].tolist() + own, dtype=torch.float64).softmax(0).float()
                torch.testing.assert_close(shared[row, head, query], weights[:4], atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(
                    mine[row, head, query], weights[4:] @ values[row, head], atol=1e-5, rtol=1e-5
                )


def test_likeliest_is_the_largest_of_the_log_softmax() -> None:
    logits = torch.randn(6, 33, generator=torch.Generator().manual_seed(1)) * 20
    logits[2, 5] = float("-inf")
    torch.testing.assert_close(fuse.likeliest(logits), logits.log_softmax(-1).amax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_many_rows_decoded_with_compiled_kernels_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, store = ready()
    asked = prompts() * 6
    assert len(asked) >= fuse.MANY
    results = []
    for wanted in ("0", "1"):
        monkeypatch.setenv("LINESIDE_FUSE", wanted)
        results.append([r for (r,) in generate(vlm, store, asked, max_new_tokens=12)])
    for eager, fused in zip(*results):
        assert eager.tokens == fused.tokens
        torch.testing.assert_close(
            torch.tensor(eager.sampler_logprobs), torch.tensor(fused.sampler_logprobs), atol=1e-4, rtol=1e-4
        )


def test_without_a_compiler_nothing_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINESIDE_FUSE", "1")
    monkeypatch.setattr(fuse.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    vlm = make_tiny_vlm()
    fuse.fuse(vlm.language_model)
    assert not any("forward" in vars(module) for module in vlm.language_model.modules())
