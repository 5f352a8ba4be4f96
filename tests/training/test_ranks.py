"""Several processes train what one does, to rounding, and go on from each other's states.

They are forked from a process of their own (tests/forked.py)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.training.packing import deal

ROOT = Path(__file__).parents[2]


def scenario(name: str, folder: Path) -> dict[str, Any]:
    """What a scenario of tests/forked.py finds."""
    command = [sys.executable, "-m", "tests.forked", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 9))
def test_each_thing_is_dealt_once_and_no_hand_has_much_more(sizes: list[int], hands: int) -> None:
    dealt = deal(sizes, hands)
    assert len(dealt) == hands and sorted(itertools.chain(*dealt)) == list(range(len(sizes)))
    assert all(numbers == sorted(numbers) for numbers in dealt)
    held = [sum(sizes[number] for number in numbers) for numbers in dealt]
    assert max(held) - min(held) <= max(sizes, default=0)
    assert deal(sizes, 1) == [list(range(len(sizes)))]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    found = scenario("equal", tmp_path)
    assert found["status"] == [[0], [0, 0]] * 2
    assert found["blank"] > 0  # a rank had no tree in some step
    weights, curves = found["small"]
    assert weights < 1e-5 and curves < 1e-4
    weights, curves = found["muon"]  # its products are in bf16
    assert weights < 5e-3 and curves < 1e-2


@pytest.mark.slow
def test_they_do_so_over_fifty_steps_on_one_machine_and_on_two(tmp_path: Path) -> None:
    found = scenario("long", tmp_path)
    for stage in ("align", "sft", "rlvr"):
        assert found[f"{stage}-status"] == [[0], [0, 0], [0, 0]]
        for machines in (1, 2):
            weights, curves = found[f"{stage}-{machines}"]
            assert weights < 1e-3 and curves < 1e-2, (stage, machines, weights, curves)
    weights, curves = found["bf16"]
    assert weights < 0.05 and curves < 0.05


@pytest.mark.slow
def test_they_go_on_from_each_others_states_and_after_a_kill(tmp_path: Path) -> None:
    found = scenario("resumed", tmp_path)
    for stage in ("sft", "rlvr"):
        for before, after in ((2, 1), (1, 2)):
            stopped, states, ended, weights, curves = found[f"{stage}-{before}-{after}"]
            assert stopped == [130] * before and ended == [0] * after
            assert states == ["step-00000003.safetensors"]  # the step under way was finished by all, and saved
            assert weights < 1e-4 and curves < 1e-3, (stage, before, weights, curves)
        ended, states, again, weights, curves = found[f"{stage}-killed"]
        assert ended[1] == -9 and ended[0] == 1 and again == [0, 0]
        assert states == ["step-00000002.safetensors", "step-00000003.safetensors"]
        assert weights == 0 and curves == 0  # exactly what an unbroken run has
