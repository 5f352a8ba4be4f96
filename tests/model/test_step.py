"""The compiled decoding step is transformers' layers with `Decoding.attend`, whatever the rows share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lineside.model import step
from lineside.model.decoding import Decoding
from lineside.model.generate import generate
from tests.conftest import make_tiny_vlm
from tests.model.test_generate import prompts, ready

PREFIX, NEW = 6, 4


def decodings(vlm: Any, groups: int, rows: int, tail: int = 3) -> tuple[Decoding, Decoding]:
    """Two of the same prefilled tokens: prefixes and tails of unequal length, random keys and values."""
    config = vlm.language_model.config
    tokens = groups * PREFIX + groups * rows * tail
    seeded = torch.Generator().manual_seed(0)
    shape = tokens, config.num_key_value_heads, config.head_dim
    kept = [
        (torch.randn(shape, generator=seeded), torch.randn(shape, generator=seeded)) for _ in vlm.language_model.layers
    ]
    shared = [list(range(g * PREFIX, (g + 1) * PREFIX - g % 3)) for g in range(groups)]
    first = groups * PREFIX
    tails = [
        [[first + (g * rows + r) * tail + t for t in range(max(0, tail - r % 2))] for r in range(rows)]
        for g in range(groups)
    ]
    return Decoding(kept, shared, tails, NEW), Decoding(kept, shared, tails, NEW, compiled=True)


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("groups", "rows", "tail"), [(4, 2, 3), (4, 2, 0), (1, 3, 3), (3, 1, 1)])
@torch.no_grad()
def test_a_step_is_the_references(monkeypatch: pytest.MonkeyPatch, lm: str, groups: int, rows: int, tail: int) -> None:
    monkeypatch.setattr(step, "_compiled", lambda: step.layer_step)  # the arithmetic; compiled it is in the slow test
    monkeypatch.setattr(step, "_pays", lambda plan: True)
    vlm = make_tiny_vlm(lm=lm)
    reference, ours = decodings(vlm, groups, rows, tail)
    forward = step.CompiledStep(vlm, groups * rows)
    for number in range(NEW):
        embeds = torch.randn(groups * rows, vlm.language_model.config.hidden_size)
        positions = torch.arange(groups * rows) + PREFIX + number
        want, got = vlm.decode(embeds, positions, reference), forward(embeds, positions, ours)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
        reference.column += 1
        ours.column += 1
    for kept, other in zip(reference.own_keys + reference.own_values, ours.own_keys + ours.own_values):
        torch.testing.assert_close(kept, other[:, :, -kept.shape[2] :], atol=2e-5, rtol=1e-5)


def test_what_does_not_pay_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: Tensor) -> None:
        raise AssertionError("compiled for a few rows")

    monkeypatch.setattr(step, "_compiled", lambda: torn)
    vlm = make_tiny_vlm()
    with torch.no_grad():
        for groups, rows in ((2, 3), (1, 8), (8, 1)):
            _, plan = decodings(vlm, groups, rows)
            embeds = torch.randn(groups * rows, vlm.language_model.config.hidden_size)
            step.CompiledStep(vlm, 32)(embeds, torch.full((groups * rows,), 9), plan)
        monkeypatch.setattr(step, "can_fuse", lambda: True)
        assert step.can_compile(vlm, step.MANY)
        assert not step.can_compile(vlm, step.MANY - 1)
        vlm.language_model.config.hidden_act = "gelu"
        assert not step.can_compile(vlm, step.MANY)
    vlm.language_model.config.hidden_act = "silu"
    assert not step.can_compile(vlm, step.MANY)  # gradients are on


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4])
def test_many_rows_decoded_compiled_say_the_same(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    vlm, store = ready()
    asked = prompts() * 6
    assert len(asked) >= step.MANY
    results = []
    for wanted in ("0", "1"):
        monkeypatch.setenv("LINESIDE_FUSE", wanted)
        groups = generate(vlm, store, asked, samples=samples, temperature=float(samples > 1), max_new_tokens=12, seed=2)
        results.append([rollout for group in groups for rollout in group])
    for eager, compiled in zip(*results):
        assert eager.tokens == compiled.tokens
        torch.testing.assert_close(
            torch.tensor(eager.sampler_logprobs), torch.tensor(compiled.sampler_logprobs), atol=1e-4, rtol=1e-4
        )
