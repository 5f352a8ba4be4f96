"""Many rows' decoding step by our own C++ is transformers' layers with `Decoding.attend`, whatever the rows share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lineside.backends import cpu_decoder
from lineside.backends.decoding import Decoding
from lineside.backends.fused_ops import can_fuse
from lineside.model.generate import generate
from tests.conftest import make_tiny_vlm
from tests.model.test_generate import prompts, ready

PREFIX, NEW = 37, 5
KEPT = [0, 2, 4, 9, 10, 11]  # of four groups of three rows


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINESIDE_FUSE", "1")
    if not can_fuse(torch.device("cpu")):
        pytest.skip("no C++ compiler here")


def decodings(
    vlm: Any, groups: int, rows: int, tail: int = 3, dtype: torch.dtype = torch.float32, new: int = NEW
) -> tuple[Decoding, cpu_decoder.CpuDecoding]:
    """Two of the same prefilled tokens: prefixes and tails of unequal length, random keys and values."""
    config = vlm.language_model.config
    tokens = groups * PREFIX + groups * rows * tail
    seeded = torch.Generator().manual_seed(0)
    shape = tokens, config.num_key_value_heads, config.head_dim
    kept = [
        tuple(torch.randn(shape, generator=seeded).to(dtype) for _ in "kv") for _ in vlm.language_model.layers
    ]  # fmt: skip
    shared = [list(range(g * PREFIX, (g + 1) * PREFIX - g % 3)) for g in range(groups)]
    first = groups * PREFIX
    tails = [
        [[first + (g * rows + r) * tail + t for t in range(max(0, tail - r % 2))] for r in range(rows)]
        for g in range(groups)
    ]
    return Decoding(kept, shared, tails, new), cpu_decoder.CpuDecoding(kept, shared, tails, new)


def steps(vlm: Any, reference: Decoding, ours: cpu_decoder.CpuDecoding, first: int, last: int) -> None:
    """Both take the same tokens and say the same of them."""
    forward = cpu_decoder.CpuDecoder(vlm)
    for number in range(first, last):
        embeds = torch.randn(len(reference.place), vlm.language_model.config.hidden_size)
        positions = torch.arange(len(embeds)) + PREFIX + number
        before = embeds.clone()
        want, got = vlm.decode(embeds, positions, reference), forward(embeds, positions, ours)
        assert torch.equal(embeds, before)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
        reference.advance()
        ours.advance()


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("groups", "rows", "tail"), [(4, 2, 3), (4, 2, 0), (1, 11, 20), (3, 1, 1), (1, 1, 15)])
@torch.no_grad()
def test_a_step_is_the_references(lm: str, groups: int, rows: int, tail: int) -> None:
    vlm = make_tiny_vlm(lm=lm)
    reference, ours = decodings(vlm, groups, rows, tail)
    steps(vlm, reference, ours, 0, NEW)


@torch.no_grad()
def test_what_is_kept_of_the_rows_goes_on_alike() -> None:
    vlm = make_tiny_vlm()
    reference, ours = decodings(vlm, 4, 3)
    steps(vlm, reference, ours, 0, 2)
    for rows in (KEPT, [1, 2, 4, 5], [3]):  # some of each group, with and without rebuilt buffers; the last one
        for plan in (reference, ours):
            plan.keep(torch.tensor(rows))
        steps(vlm, reference, ours, 2, 3)
        assert len(reference.place) == len(rows)
    assert reference.groups * reference.rows == 1


@torch.no_grad()
def test_room_that_grows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "ROOM", 7)
    vlm = make_tiny_vlm()
    reference, ours = decodings(vlm, 4, 3, new=40)
    buffers, _, tiles, *_ = ours.own[0][0].shape
    steps(vlm, reference, ours, 0, 18)  # grown twice, the second time by a tile
    assert ours.own[0][0].shape[2] > tiles
    for plan in (reference, ours):
        plan.keep(torch.tensor(KEPT))
    steps(vlm, reference, ours, 18, 40)
    assert ours.own[0][0].shape[0] == len(KEPT) < buffers  # where it grows, buffers of rows that ended are let go
    with pytest.raises(ValueError, match="no room is left"):
        cpu_decoder.CpuDecoder(vlm)(torch.zeros(6, vlm.language_model.config.hidden_size), torch.arange(6), ours)


@torch.no_grad()
def test_no_token_is_written_behind_the_buffers() -> None:
    vlm = make_tiny_vlm()
    reference, ours = decodings(vlm, 1, 2)
    steps(vlm, reference, ours, 0, NEW)
    with pytest.raises(ValueError, match="no room is left"):
        cpu_decoder.CpuDecoder(vlm)(torch.zeros(2, vlm.language_model.config.hidden_size), torch.tensor([9, 9]), ours)


@torch.no_grad()
def test_in_bfloat16_it_is_as_near_as_rounding() -> None:
    vlm = make_tiny_vlm()
    vlm.model.bfloat16()
    reference, ours = decodings(vlm, 4, 2, dtype=torch.bfloat16)
    embeds = torch.randn(8, vlm.language_model.config.hidden_size).bfloat16()
    positions = torch.arange(8) + PREFIX
    want, got = vlm.decode(embeds, positions, reference), cpu_decoder.CpuDecoder(vlm)(embeds, positions, ours)
    torch.testing.assert_close(got, want, atol=0.06, rtol=0.05)


@torch.no_grad()
def test_the_number_of_threads_changes_no_bit() -> None:
    vlm, results, before = make_tiny_vlm(), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            _, plan = decodings(vlm, 3, 9)
            heads, width = vlm.language_model.config.num_attention_heads, vlm.language_model.config.head_dim
            torch.manual_seed(0)
            q, k, v = (torch.randn(27, n, width) for n in (heads, *[vlm.language_model.config.num_key_value_heads] * 2))
            results.append(plan.attend(0, q, k, v, 0.3))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gradients_and_other_activations_go_to_the_reference() -> None:
    vlm = make_tiny_vlm()
    assert not cpu_decoder.use_cpu_decoder(vlm)  # gradients are on
    with torch.no_grad():
        assert cpu_decoder.use_cpu_decoder(vlm)
        vlm.language_model.config.hidden_act = "gelu"
        assert not cpu_decoder.use_cpu_decoder(vlm)


@torch.no_grad()
def test_laid_out_weights_are_kept_until_a_weight_changes() -> None:
    vlm = make_tiny_vlm()
    assert cpu_decoder.cpu_decoder_of(vlm) is not cpu_decoder.cpu_decoder_of(
        vlm
    )  # they could change at any time: they train
    vlm.model.requires_grad_(False)
    first = cpu_decoder.cpu_decoder_of(vlm)
    assert cpu_decoder.cpu_decoder_of(vlm) is first
    vlm.language_model.get_parameter("layers.1.mlp.up_proj.weight").add_(0.01)
    second = cpu_decoder.cpu_decoder_of(vlm)
    assert second is not first and cpu_decoder.cpu_decoder_of(vlm) is second
    vlm.model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    assert cpu_decoder.cpu_decoder_of(vlm) is not second


@pytest.mark.parametrize("samples", [1, 4])
def test_generating_is_the_references(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    vlm, store = ready()
    asked = prompts() * 6
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
