"""The price of checkpointing is measured: layers are kept or not, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineside.recipe import Sft
from lineside.training.gradient_checkpointing import Price, price
from lineside.training.stage import Stage
from tests.conftest import make_tiny_vlm


def test_price_is_measured_and_leaves_nothing_behind() -> None:
    vlm = make_tiny_vlm()
    found = price(vlm, tokens=600)
    kept, again = found.bytes_a_token
    assert 0 < again < 0.75 * kept  # one layer of two is computed again, the head's logits are kept
    assert all(seconds > 0 for seconds in found.seconds)
    assert not vlm.checkpointing
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


def test_the_line() -> None:
    assert Price((2.0, 2.5), (2**20 / 10, 2**20 / 40)).line() == (
        "checkpointing: 25% more time, 25 MB for 1,000 tokens instead of 100"
    )


def test_a_stage_prints_it_and_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm = make_tiny_vlm()
    stage = Stage(vlm, tmp_path, Sft(checkpointing=True), {"lm": 1e-3}, label="sft", frame_count=1)
    assert vlm.checkpointing
    assert "sft: checkpointing: " in capsys.readouterr().err
    with stage:
        pass
    stage.finish()
    assert not vlm.checkpointing
