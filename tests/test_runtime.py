"""A run follows the device it computes on: that a machine has a GPU as well changes nothing for a run on its CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lineside.backends.fused_ops import can_fuse
from lineside.runtime import DEFAULT, gpu_name, multiplies_bf16, random_state, set_random_state, wait_for
from lineside.training import dtype
from lineside.training.state import State, load_state, restore_rng, save_state

PACKAGE = Path(__file__).parents[1] / "src" / "lineside"


def test_one_place_asks_for_cuda() -> None:
    asks = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "torch.cuda" in path.read_text()}
    assert asks == {"runtime.py"}
    assert not re.search(r"is_available|device_count", (PACKAGE / "runtime.py").read_text())


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that nobody may touch."""

    def touched(*_: object) -> None:
        raise AssertionError("the GPU is not this run's")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("is_bf16_supported", "get_rng_state", "get_rng_state_all", "set_rng_state_all", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, touched)


@pytest.mark.usefixtures("beside_a_gpu")
def test_a_cpu_run_is_that_of_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "_seconds", lambda formats: [1.0, 1.1])  # bf16 hardly faster here
    dtype.compute_dtype.cache_clear()
    assert dtype.compute_dtype("auto", DEFAULT) == torch.float32
    dtype.compute_dtype.cache_clear()
    monkeypatch.setenv("LINESIDE_FUSE", "1")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not can_fuse(DEFAULT) and can_fuse(torch.device("cuda"))
    assert not multiplies_bf16(DEFAULT) and random_state(DEFAULT) is None and gpu_name(DEFAULT) is None
    wait_for(DEFAULT)
    save_state(tmp_path, State(1, {"w": torch.zeros(1)}))
    state = load_state(tmp_path)
    assert state is not None and state.rng["device"] is None
    torch.manual_seed(5)
    restore_rng(state)


def test_the_random_state_of_another_device_is_not_required(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_state(tmp_path, State(1, {"w": torch.zeros(1)}))
    want = torch.rand(3)
    state = load_state(tmp_path)
    assert state is not None
    for saved in ({"device": "00ff"}, {"cuda": ["00ff", "00ff"]}):  # by a GPU; by a version that kept those of all GPUs
        restore_rng(State(1, {}, rng={**state.rng, **saved}))
        assert torch.equal(torch.rand(3), want)
    set_random_state(DEFAULT, torch.zeros(4, dtype=torch.uint8))
