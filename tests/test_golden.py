"""A recipe and a seed give a model again: bit for bit on one machine, and the same curves on every processor.

The curves were made in float32 by the reference path, because bf16 and our C++ kernels round by the processor's
instructions. The tolerance is 1e-4. What other instructions change is far less (docs/experiments.md, "Tests and
faults"): there is room for other processors, and a change of the algorithm exceeds it.

    python -m tests.test_golden --compare    says how far this machine is from golden_curves.json
    python -m tests.test_golden              writes it anew, after a change that is meant to change numbers
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lineside.backends.cpu import Cpu
from lineside.runtime import ON_CPU, Runtime
from tests.small_run import run_stages, weights

CURVES = Path(__file__).with_name("golden_curves.json")
SHOWN = {
    "align": ("loss", "gradient_norm"),
    "sft": ("loss", "loss/answer", "loss/trace", "gradient_norm"),
    "rlvr": ("loss", "reward", "length", "entropy", "ratio", "gradient_norm"),
}
Curves = dict[str, dict[str, list[float]]]


def curves(logged: dict[str, list[dict[str, float]]]) -> Curves:
    """{stage: {metric: its value at each step}}"""
    return {stage: {name: [row[name] for row in logged[stage]] for name in names} for stage, names in SHOWN.items()}


def test_recipe_and_seed_give_the_model_again_and_the_golden_curves(tmp_path: Path) -> None:
    first, second = (run_stages(tmp_path / name, ON_CPU) for name in "ab")
    assert first[1] == second[1]
    ours, again = weights(first[0]), weights(second[0])
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    golden: Curves = json.loads(CURVES.read_text())
    found = curves(first[1])
    for stage, lines in golden.items():
        assert lines.keys() == found[stage].keys()
        for name, values in lines.items():
            assert found[stage][name] == pytest.approx(values, rel=1e-4, abs=1e-6), f"{stage}: {name}"


@pytest.mark.slow  # compiling takes a minute
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_machines_own_kernels_take_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The first steps of stages 1 and 2 have the reference's losses; in stage 3 the rollouts may differ."""
    monkeypatch.delenv("LINESIDE_BACKEND", raising=False)
    vlm, logged = run_stages(tmp_path, Runtime.of("cpu", dtype))
    if not isinstance(vlm.backend, Cpu):
        pytest.skip("no C++ compiler on this machine")
    golden: Curves = json.loads(CURVES.read_text())
    for stage in ("align", "sft"):
        near = pytest.approx(golden[stage]["loss"][0], rel=1e-4 if dtype == "fp32" else 2e-2)
        assert logged[stage][0]["loss"] == near
    assert {stage: len(rows) for stage, rows in logged.items()} == {s: len(golden[s]["loss"]) for s in golden}
    for rows in logged.values():
        assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_curves_show_learning() -> None:
    golden: Curves = json.loads(CURVES.read_text())
    for stage, name in (("align", "loss"), ("sft", "loss"), ("sft", "loss/answer"), ("sft", "loss/trace")):
        assert golden[stage][name][-1] < golden[stage][name][0] - 0.02
    assert all(reward > 0 for reward in golden["rlvr"]["reward"])


def largest_difference(found: Curves, golden: Curves) -> float:
    """The largest difference of two numbers of the curves, as a share of the golden one."""
    pairs = [
        (a, b)
        for stage, lines in golden.items()
        for name, values in lines.items()
        for a, b in zip(found[stage][name], values, strict=True)
    ]
    return max(abs(a - b) / abs(b) for a, b in pairs if b)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ours = curves(run_stages(Path(folder), ON_CPU)[1])
    if sys.argv[1:] == ["--compare"]:
        print(f"{largest_difference(ours, json.loads(CURVES.read_text())):.1e}")
    else:
        CURVES.write_text(json.dumps(ours, indent=1) + "\n")
