"""The cost line: operations counted by hand, seconds by phase, and nothing lost over an interruption."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

import lineside.training.cost
from lineside.model.generate import Timing
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, Node
from lineside.training import operations
from lineside.training.cost import Cost, read_cost, write_cost
from lineside.training.operations import measure_matrix_rate, sampling_operations, update_operations
from lineside.training.stage import trainable
from tests.conftest import make_tiny_vlm

# The tiny LM: width 32, four query heads and two key heads of width 8, feed-forward 64, two layers.
QUERY, KEYS, MIXED, FEED = 32 * 32, 2 * 32 * 16, 32 * 32, 3 * 32 * 64
LAYER = QUERY + KEYS + MIXED + FEED


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
def test_operations_of_an_update_by_hand(lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    vocabulary = vlm.model.lm_head.weight.shape[0]
    leaves = tuple(Node((5, 6), roles=(ANSWER, ANSWER), leaf=leaf) for leaf in range(2))
    pack = vlm.pack([Node((7, 8, 9), children=leaves)])
    pairs = 1 + 2 + 3 + 2 * (4 + 5)  # each token with its ancestors and itself
    predicting = 3  # the prompt's last token, which predicts both leaves' first, and each leaf's first
    forward = 2 * (LAYER * 7 + (QUERY + KEYS) * 7 + (MIXED + FEED) * predicting)
    forward += (
        2 * 2 * 2 * 32 * pairs + 2 * vocabulary * 32 * 4
    )  # two products over width 32, in two layers; four targets
    trainable(vlm, ("projector", "lm"))
    assert update_operations(vlm, pack) == 3 * forward
    trainable(vlm, ("projector",))
    assert update_operations(vlm, pack) == 2 * forward  # no gradient of the LM's weights

    picture = vlm.pack([Node(vlm.render.prefix([BLANK]), images=(0,), children=leaves)])
    blank = vlm.pack([Node((7,) * len(vlm.render.prefix([BLANK])), children=leaves)])
    projector = 2 * 2 * (16 * 32 + 32 * 32) * 16  # forward and the weights' gradient, 16 image tokens
    assert update_operations(vlm, picture) - update_operations(vlm, blank) == projector


def test_operations_of_sampling_by_hand() -> None:
    vlm = make_tiny_vlm()
    head = vlm.model.lm_head.weight.numel()
    done = Timing(prefill_tokens=30, decode_tokens=12)
    assert sampling_operations(vlm, done) == 2 * (2 * LAYER * 42 - (MIXED + FEED) * 30 + head * 12)


def test_seconds_go_to_their_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(lineside.training.cost.time, "perf_counter", lambda: float(next(ticks)))
    cost = Cost()
    assert list(cost.timed("read", "abc")) == ["a", "b", "c"]
    with pytest.raises(ValueError), cost.clock("encode"):
        raise ValueError
    assert cost.seconds == {"read": 4.0, "encode": 1.0}  # the end of the items takes a second to come too


def test_rates_leave_evaluation_out_and_the_line_says_all(tmp_path: Path) -> None:
    cost = Cost(matrix_rate=4e9)
    cost.add(tokens=2_000_000, dense_tokens=9_000_000, samples=500, operations=1e11)
    for phase, seconds in (("read", 5.0), ("update", 45.0), ("evaluate", 50.0)):
        cost.spend(phase, seconds)
    assert (cost.trained, cost.share, cost.saved) == (50.0, 0.5, 4.5)
    assert cost.line() == (
        "2.00M tokens computed, 9.00M as padded rows (4.5x); 40,000 tokens/s, 10.0 samples/s; "
        "2 GFLOP/s, 50% of this machine's matrix rate; seconds: read 5, update 45, evaluate 50"
    )
    write_cost(tmp_path, cost)
    assert read_cost(tmp_path) == cost
    (tmp_path / "cost.json").write_text('{"tokens": 1, "unknown": 2}')
    assert read_cost(tmp_path) is None
    assert Cost().line().endswith("seconds: 0")  # a stage without a step


@pytest.mark.parametrize(("seconds", "large"), [(1e-3, True), (1.0, False)])
def test_a_slow_processor_is_measured_with_small_matrices(
    seconds: float, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`seconds`: what each product takes. The rate is the best of the products of the last size."""
    work: list[int] = []
    monkeypatch.setattr(operations.nn.functional, "linear", lambda a, b: work.append(2 * a.numel() * len(b)))
    ticks = count()
    rate = measure_matrix_rate(torch.device("cpu"), torch.float32, clock=lambda: next(ticks) * seconds)
    assert (len(work), max(work)) == ((30, 2 * 2048**3) if large else (15, 2 * 1024 * 576 * 1536))
    assert rate == pytest.approx(max(work) / seconds)
