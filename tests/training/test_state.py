"""Resumed equals unbroken, bit for bit; nothing that kills or damages a save loses the run."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lineside.errors import LinesideError
from lineside.training.optim import Optimizer, ParameterGroup, learning_rate_scale
from lineside.training.state import State, load_state, restore_rng, save_state


class Run:
    """A small training run whose every step draws on all three random number generators."""

    def __init__(self, dtype: torch.dtype):
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)).to(dtype)
        self.dtype = dtype
        groups = [ParameterGroup("lm", list(self.model.named_parameters()), 0.05)]
        self.optimiser = Optimizer(groups, weight_decay=0.1)
        self.step = 0
        self.losses: list[float] = []

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            for _ in range(2):
                x = torch.randn(5, 6) + random.random() + torch.from_numpy(np.random.randn(5, 6)).float()
                loss = self.model(x.to(self.dtype)).float().square().mean() / 2
                loss.backward()
                self.optimiser.accumulate()
            self.losses.append(loss.item())
            self.optimiser.step(learning_rate_scale(self.step / 20, warmup=0.2))

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def seed_all() -> None:
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interrupted_at", [0, 7])
def test_resumed_equals_unbroken(tmp_path, dtype, interrupted_at):
    seed_all()
    unbroken = Run(dtype)
    unbroken.train(20)

    seed_all()
    first = Run(dtype)
    first.train(interrupted_at)
    state = State(first.step, first.optimiser.state_dict(), {"epoch": 0, "groups": 2 * first.step}, {"seconds": 1.5})
    save_state(tmp_path, state)
    first.train(3)  # done, but never saved: lost

    torch.manual_seed(999), np.random.seed(999), random.seed(999)
    second = Run(dtype)
    for parameter in second.model.parameters():
        parameter.data.normal_()
    loaded = load_state(tmp_path)
    assert loaded is not None and (loaded.step, loaded.extra) == (interrupted_at, {"seconds": 1.5})
    assert loaded.cursor == {"epoch": 0, "groups": 2 * interrupted_at}
    second.step = loaded.step
    second.optimiser.load_state_dict(loaded.tensors)
    restore_rng(loaded)
    second.train(20 - interrupted_at)

    assert second.losses == unbroken.losses[interrupted_at:]
    for a, b in zip(second.weights(), unbroken.weights()):
        assert torch.equal(a, b)
    ours, theirs = second.optimiser.state_dict(), unbroken.optimiser.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def small(step: int) -> State:
    return State(step, {"w/master": torch.full((1000,), float(step))})


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "not there") is None


def test_only_the_newest_are_kept_and_saving_a_step_again_replaces_it(tmp_path):
    for step in (5, 90, 100, 100_000_000):
        save_state(tmp_path, small(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100.safetensors", "step-100000000.safetensors"]
    save_state(tmp_path, State(100_000_000, {"w/master": torch.zeros(1)}))
    loaded = load_state(tmp_path)
    assert loaded is not None and loaded.tensors["w/master"].tolist() == [0.0]


def damage_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, lambda _: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_newest_state_falls_back_with_a_warning(tmp_path, capsys, damage):
    save_state(tmp_path, small(1))
    newest = save_state(tmp_path, small(2))
    newest.write_bytes(damage(newest.read_bytes()))
    loaded = load_state(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert torch.equal(loaded.tensors["w/master"], torch.ones(1000))
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_all_states_damaged_is_an_error_and_not_a_silent_new_start(tmp_path):
    save_state(tmp_path, small(1)).write_bytes(b"x")
    with pytest.raises(LinesideError, match="none of the 1 training states"):
        load_state(tmp_path)


def test_a_save_that_fails_keeps_the_earlier_state(tmp_path, monkeypatch):
    save_state(tmp_path, small(1))

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lineside.training.state.save_file", full)
    with pytest.raises(LinesideError, match="disk is full"):
        save_state(tmp_path, small(2))
    loaded = load_state(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def save_for_ever(folder: Path) -> None:
    """States one after another; each tensor of one holds its step."""
    last = load_state(folder)
    step = last.step if last else 0
    while True:
        step += 1
        save_state(folder, State(step, {f"w{i}/master": torch.full((1 << 20,), float(step)) for i in range(4)}))


def test_killed_in_mid_save(tmp_path):
    """Three processes killed (SIGKILL) while the file beside its place grows: each time the newest state is whole."""
    reached = 0
    for _ in range(3):
        saver = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path,))
        saver.start()
        while saver.is_alive():
            # Past its first save, so that there is something to lose, and in the middle of a later one.
            saved = [int(path.stem.removeprefix("step-")) for path in tmp_path.glob("step-*")]
            if max(saved, default=0) > reached and any(tmp_path.glob(".*.tmp")):
                break
            if max(saved, default=0) > reached + 1000:
                saver.kill()
                pytest.fail("no file was seen beside its place")
            time.sleep(0.001)
        saver.kill()
        saver.join()
        assert saver.exitcode == -signal.SIGKILL
        state = load_state(tmp_path)
        assert state is not None and state.step > reached
        assert all(bool((tensor == state.step).all()) for tensor in state.tensors.values())
        reached = state.step
