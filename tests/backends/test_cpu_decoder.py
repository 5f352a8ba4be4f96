"""Decoding by our own C++: buffers that grow and fill up, rounding, threads, laid-out weights."""

from __future__ import annotations

import shutil

import pytest
import torch

from lineside.backends import cpu_decoder
from lineside.backends.cpu import Cpu
from tests.backends.test_backends import NEW, decoders, steps
from tests.conftest import make_tiny_vlm

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")


@torch.no_grad()
def test_room_that_grows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "ROOM", 7)
    vlm = make_tiny_vlm()
    compared = decoders(vlm, 4, 3, new=40)[:2]
    (_, reference), (by, ours) = compared
    buffers, _, tiles, *_ = ours.own[0][0].shape
    steps(vlm, compared, range(18), 12)  # grown twice, the second time by a tile
    assert ours.own[0][0].shape[2] > tiles
    for cache in (reference, ours):
        cache.keep(torch.tensor([0, 2, 4, 9, 10, 11]))
    steps(vlm, compared, range(18, 40), 6)
    assert ours.own[0][0].shape[0] == 6 < buffers  # where it grows, buffers of rows that ended are let go
    with pytest.raises(ValueError, match="no room is left"):
        by.forward(torch.zeros(6, 32), torch.arange(6), ours)


@torch.no_grad()
def test_no_token_is_written_behind_the_buffers() -> None:
    vlm = make_tiny_vlm()
    compared = decoders(vlm, 1, 2)[:2]
    steps(vlm, compared, range(NEW), 2)
    by, ours = compared[1]
    with pytest.raises(ValueError, match="no room is left"):
        by.forward(torch.zeros(2, 32), torch.tensor([9, 9]), ours)


@torch.no_grad()
def test_the_number_of_threads_changes_no_bit() -> None:
    vlm, results, before = make_tiny_vlm(), [], torch.get_num_threads()
    config = vlm.language_model.config
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            _, (_, ours), _ = decoders(vlm, 3, 9)
            torch.manual_seed(0)
            q, k, v = (torch.randn(27, n, config.head_dim) for n in (4, 2, 2))
            results.append(ours.attend(0, q, k, v, 0.3))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@torch.no_grad()
def test_laid_out_weights_are_kept_until_a_weight_changes() -> None:
    vlm, backend = make_tiny_vlm(), Cpu()
    assert backend._weights(vlm.lm) is not backend._weights(vlm.lm)  # they could change at any time: they train
    vlm.requires_grad_(False)
    first = backend._weights(vlm.lm)
    assert backend._weights(vlm.lm) is first
    vlm.language_model.get_parameter("layers.1.mlp.up_proj.weight").add_(0.01)
    second = backend._weights(vlm.lm)
    assert second is not first and backend._weights(vlm.lm) is second
    vlm.to(torch.bfloat16)
    assert backend._weights(vlm.lm) is not second


@torch.no_grad()
def test_other_activations_go_to_the_reference() -> None:
    vlm = make_tiny_vlm()
    vlm.language_model.config.hidden_act = "gelu"
    _, (_, ours), _ = decoders(vlm, 1, 2)
    assert type(ours).__module__ == "lineside.backends.reference"
