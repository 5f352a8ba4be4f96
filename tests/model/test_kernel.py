"""The compiled attention of a tree computes what plain products do, in value and gradient, whatever the shapes."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lineside.model.attention import BucketPlan, KernelPlan, plan_of
from lineside.model.buckets import segments_of
from lineside.model.fuse import can_fuse
from lineside.model.kernel import attend
from lineside.model.tree import Node, Pack, pack
from lineside.model.vlm import dense_logprobs
from tests.conftest import make_tiny_vlm
from tests.model.test_tree import cases


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINESIDE_FUSE", "1")
    if not can_fuse():
        pytest.skip("no C++ compiler here")


def forest(seed: int) -> Pack:
    """Trees of all sorts: chains, single tokens, nodes without tokens, runs longer than a register is wide."""
    rng = random.Random(seed)

    def node(depth: int) -> Node:
        length = rng.choice([0, 1, 2, 7, 8, 9, 16, 33, 70]) if depth else rng.choice([1, 3, 49])
        below = rng.randint(0, 3) if depth < 4 else 0
        return Node((1,) * length, children=tuple(node(depth + 1) for _ in range(below)))

    return pack([node(0) for _ in range(6)], image_token=0)


def heads(pack: Pack, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """(1, count, N, width) with a token's heads side by side, as projections leave them."""
    return torch.randn(1, len(pack.tokens), count, width).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "keys", "width"), [(4, 4, 64), (9, 3, 64), (4, 2, 24), (2, 1, 5), (3, 1, 128)])
def test_kernel_equals_buckets(count: int, keys: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    trees = forest(count)
    read = [heads(trees, n, width, dtype) for n in (count, keys, keys)]
    given = torch.randn(len(trees.tokens), count, width).to(dtype)
    given[len(trees) :] = 0
    results = []
    for plan in (BucketPlan(trees), KernelPlan(trees)):
        out = plan.attend(0, *read, width**-0.5)
        results.append((out.detach()[: len(trees)], *torch.autograd.grad(out, read, given)))
        assert out.isfinite().all()  # padding too
    exact = dtype == torch.float32
    for want, got in zip(*results):
        torch.testing.assert_close(got, want, atol=2e-5 if exact else 0.06, rtol=1e-4 if exact else 0.05)


def test_the_number_of_threads_changes_no_bit() -> None:
    trees = forest(1)
    read = [heads(trees, n, 16, torch.float32) for n in (4, 2, 2)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = KernelPlan(trees).attend(0, *read, 0.25)
            results.append((out, *torch.autograd.grad(out.square().sum(), read)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


def test_large_scores_neither_overflow_nor_vanish() -> None:
    trees = pack([Node((1,) * 40)], image_token=0)
    q, k, v = (heads(trees, 1, 16, torch.float32) for _ in range(3))
    results = [plan.attend(0, q * 100, k * 100, v, 1.0) for plan in (BucketPlan(trees), KernelPlan(trees))]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_packed_by_the_kernel_equals_dense_in_logprobs_and_gradients(lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    vlm.model.model.language_model.requires_grad_(True)
    trees = cases(vlm)
    features = torch.randn(3, 16, 16)
    trained = [p for p in vlm.model.parameters() if p.requires_grad]
    assert isinstance(plan_of(vlm.pack(trees)), KernelPlan)
    results = []
    for logprobs in (vlm.logprobs(vlm.pack(trees), features), torch.cat(dense_logprobs(vlm, trees, features))):
        results.append((logprobs, *torch.autograd.grad(-logprobs.mean(), trained, allow_unused=True)))
    for got, want in zip(*results):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)


def test_what_does_not_fit_together_is_refused() -> None:
    q, end = torch.zeros(3, 2, 8), torch.arange(3)
    for key, value, ends in (
        (q.bfloat16(), q, end),
        (torch.zeros(3, 3, 8), torch.zeros(3, 3, 8), end),
        (q, q, end[:2]),
    ):
        with pytest.raises(ValueError, match="tree attention of"):
            attend(q, key, value, ends, 1.0)


def test_runs_by_hand() -> None:
    # Two trees: 0 1 above 2, above 3 4 (an only child of theirs hangs on at 5), and a chain 6 7.
    assert segments_of([5, 5, 2, 5, 5, 5, 7, 7]) == [
        ([], [0, 1]),
        ([0, 1], [2]),
        ([0, 1], [3, 4, 5]),
        ([], [6, 7]),
    ]
