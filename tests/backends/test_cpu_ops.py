"""Our own C++ computes what plain PyTorch does, whatever the shapes: a tree's attention in value and gradient, and the
pieces of a decoding step."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from lineside.backends import cpu_ops, fused_ops
from lineside.backends.cpu import CpuPlan
from lineside.backends.cpu_ops import attend
from lineside.backends.reference import TreePlan, choose
from lineside.model.tree import Node, pack
from lineside.runtime import CPU
from tests.backends.test_backends import forest, heads

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")


def test_the_number_of_threads_changes_no_bit() -> None:
    trees = forest(1)
    read = [heads(trees, n, 16, torch.float32) for n in (4, 2, 2)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = CpuPlan(trees.end).attend(0, *read, 0.25)
            results.append((out, *torch.autograd.grad(out.square().sum(), read)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


def test_large_scores_neither_overflow_nor_vanish() -> None:
    trees = pack([Node((1,) * 40)], image_token=0)
    q, k, v = (heads(trees, 1, 16, torch.float32) for _ in range(3))
    results = [
        plan.attend(0, q * 100, k * 100, v, 1.0) for plan in (TreePlan(trees.end, trees.size, CPU), CpuPlan(trees.end))
    ]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_together_is_refused() -> None:
    q, end = torch.zeros(3, 2, 8), torch.arange(3)
    for key, value, ends in (
        (q.bfloat16(), q, end),
        (torch.zeros(3, 3, 8), torch.zeros(3, 3, 8), end),
        (q, q, end[:2]),
    ):
        with pytest.raises(ValueError, match="tree attention of"):
            attend(q, key, value, ends, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 6, 16, 40, 66])
def test_the_pieces_of_a_step_are_the_plain_ones(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    both = torch.randn(7, 2 * width).to(dtype) * 3
    left, right = both.split(width, dim=1)  # rows of which are not next to each other
    weight = torch.randn(width).to(dtype)
    torch.testing.assert_close(cpu_ops.norm(left, weight, 1e-5), fused_ops.norm(left, weight, 1e-5), **close)
    torch.testing.assert_close(cpu_ops.gate(left, right), fused_ops.gate(left, right), **close)
    summed = left.contiguous()
    normed = cpu_ops.norm(summed, weight, 1e-5, right)
    assert torch.equal(summed, left + right)
    torch.testing.assert_close(normed, fused_ops.norm(left + right, weight, 1e-5), **close)
    heads = torch.randn(7, 5, width).to(dtype)
    cos, sin = torch.randn(2, 7, width).to(dtype)
    turned = fused_ops.rotate(heads[:, 1:4], cos[:, None], sin[:, None])
    torch.testing.assert_close(cpu_ops.rotate(heads[:, 1:4], cos, sin), turned, **close)


def test_the_gate_is_right_where_exp_would_overflow() -> None:
    x = torch.tensor([[-1e4, -200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0, 1e4]])
    torch.testing.assert_close(cpu_ops.gate(x, torch.ones_like(x)), torch.nn.functional.silu(x), atol=1e-30, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [5, 33, 1024, 5000])
def test_tokens_are_chosen_as_by_the_reference(vocabulary: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(300, vocabulary, generator=generator) * 4).to(dtype)
    logits[:, [0, vocabulary - 1]] = float("-inf")  # banned
    uniform = torch.rand(300, generator=generator).numpy()
    uniform[0], uniform[1] = 0.0, 0.9999
    alike = [np.full(300, temperature, np.float32) for temperature in (0.0, 0.7, 1.0)]
    for temperature in (*alike, np.resize(np.array([0, 0.7, 1], np.float32), 300)):
        got, want = (by(logits, uniform, temperature) for by in (cpu_ops.choose, choose))
        other = np.flatnonzero(got[0] != want[0])  # each processor sums in an order of its own
        for row in other:
            shares = torch.softmax(logits[row].double() / float(temperature[row]), dim=0).cumsum(0).numpy()
            first, last = sorted((got[0][row], want[0][row]))
            assert shares[first] == pytest.approx(uniform[row], abs=1e-5)  # where the one ends
            assert shares[last - 1] == pytest.approx(uniform[row], abs=1e-5)  # and the other begins
        assert len(other) <= 2
        np.testing.assert_allclose(np.delete(got[1], other), np.delete(want[1], other), atol=2e-5, rtol=1e-5)
        assert not set(got[0].tolist()) & {0, vocabulary - 1}


def test_the_likeliest_token_is_the_first_of_the_largest_and_a_row_without_numbers_gives_one_that_there_is() -> None:
    logits = torch.zeros(3, 33)
    logits[0, [4, 9]] = 99.0
    logits[1] = float("nan")
    logits[2, 7] = float("nan")
    for temperature in (0.0, 1.0):
        token, logprob = cpu_ops.choose(logits, np.full(3, 0.3, np.float32), np.full(3, temperature, np.float32))
        assert token[0] == 4 and ((token >= 0) & (token < 33)).all()
        assert np.isnan(logprob[1:]).all()
    # A column of a matrix has to be copied, and the copy must live while it is read.
    uniform = torch.rand(4096, 2, generator=torch.Generator().manual_seed(3)).numpy()
    heat, wide = np.ones(4096, np.float32), torch.zeros(4096, 50)
    for numbers in (uniform[:, 0], uniform[::-1, 0], uniform[:, 0].astype(np.float64)):
        token, _ = cpu_ops.choose(wide, numbers, heat)
        assert np.abs(token - numbers * 50).max() <= 1.001
    with pytest.raises(ValueError, match="3 rows of logits, 2 uniforms"):
        cpu_ops.choose(logits, np.zeros(2, np.float32), np.zeros(3, np.float32))
