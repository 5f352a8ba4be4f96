"""Our own C++ computes what plain PyTorch does, whatever the shapes: a tree's attention in value and gradient, and the
pieces of a decoding step."""

from __future__ import annotations

import shutil

import pytest
import torch

from lineside.backends import cpu_ops, fused_ops
from lineside.backends.cpu import CpuPlan
from lineside.backends.cpu_ops import attend
from lineside.backends.reference import TreePlan, choose, entropy_of
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
    uniform = torch.rand(300, generator=generator)
    uniform[0], uniform[1] = 0.0, 0.9999
    for temperature in (0.0, 0.7, 1.0):
        got, want = (by(logits, uniform, temperature) for by in (cpu_ops.choose, choose))
        torch.testing.assert_close(got[1], want[1], atol=2e-5, rtol=1e-5)
        assert torch.equal(got[0], want[0])
        assert not set(got[0].tolist()) & {0, vocabulary - 1}


def test_the_likeliest_token_is_the_first_of_the_largest_and_a_row_without_numbers_gives_one_that_there_is() -> None:
    logits = torch.zeros(3, 33)
    logits[0, [4, 9]] = 99.0
    logits[1] = float("nan")
    logits[2, 7] = float("nan")
    for temperature in (0.0, 1.0):
        token, logprob = cpu_ops.choose(logits, torch.full((3,), 0.3), temperature)
        assert token[0] == 4 and ((token >= 0) & (token < 33)).all()
        assert logprob[1:].isnan().all()


def test_what_does_not_fit_a_decoding_step_is_refused() -> None:
    q, k, lengths = torch.zeros(4, 2, 16), torch.zeros(4, 1, 16), torch.zeros(4, dtype=torch.long)
    prefix = torch.zeros(2, 1, 1, 16, 16), torch.zeros(2, 1, 16, 16), lengths[:2]
    own = torch.zeros(4, 1, 1, 16, 16), torch.zeros(4, 1, 16, 16), lengths
    group, slot = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    cpu_ops.attend_one(q, k, k, 1.0, prefix, own, group, slot)
    for query, key in ((q.bfloat16(), k), (q[:3], k[:3]), (q, k.repeat(1, 3, 1))):
        with pytest.raises(ValueError, match="attention of"):
            cpu_ops.attend_one(query, key, key, 1.0, prefix, own, group, slot)
    for groups, slots in ((group, slot + 1), (group - 1, slot), (group + 1, slot), (group[:3], slot)):
        with pytest.raises(ValueError, match="attention of"):
            cpu_ops.attend_one(q, k, k, 1.0, prefix, own, groups, slots)


def test_rows_of_a_decoding_step_find_their_buffers_and_the_rest_is_padding() -> None:
    """Rows 0 to 2 of four use buffers 3, 0, 4 and prefixes 1, 1, 0. Buffers 1 and 2 belong to rows that ended."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    q, k, v = random(4, 2, 16), random(4, 1, 16), random(4, 1, 16)
    prefix = random(2, 1, 16, 16), random(2, 1, 16, 16), torch.tensor([16, 9])
    own = random(5, 1, 16, 16), random(5, 1, 16, 16), torch.tensor([3, 0, 1, 5, 0])
    tiled = lambda keys: keys.unflatten(2, (-1, 16)).transpose(-1, -2).contiguous()  # noqa: E731
    before = own[1].clone()
    group, slot = torch.tensor([1, 1, 0]), torch.tensor([3, 0, 4])
    out = cpu_ops.attend_one(q, k, v, 0.5, (tiled(prefix[0]), *prefix[1:]), (tiled(own[0]), *own[1:]), group, slot)
    for row, (g, at) in enumerate(zip(group.tolist(), slot.tolist())):
        p, n = int(prefix[2][g]), int(own[2][at])
        keys = torch.cat([prefix[0][g, 0, :p], own[0][at, 0, :n], k[row]])
        values = torch.cat([prefix[1][g, 0, :p], before[at, 0, :n], v[row]])
        torch.testing.assert_close(out[row], torch.softmax(0.5 * q[row] @ keys.T, -1) @ values, atol=1e-5, rtol=1e-5)
        assert torch.equal(own[1][at, 0, n], v[row, 0])  # the new value is appended
    assert not out[3].any() and torch.equal(own[1][[1, 2]], before[[1, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [3, 16, 33, 5000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_targets_are_those_of_cross_entropy(
    vocabulary: int, dtype: torch.dtype, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(70, vocabulary, generator=generator) * 6).to(dtype).requires_grad_()
    target = torch.randint(1, vocabulary, (70,), generator=generator)
    target[:2] = vocabulary - 1
    given = torch.randn(70, generator=generator)
    wide = logits.float().index_fill(1, torch.tensor([0]), float("-inf")) / temperature
    want = -torch.nn.functional.cross_entropy(wide, target, reduction="none")
    got, entropy = cpu_ops.logprobs(logits, target, 0, temperature)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, entropy_of(wide), atol=2e-5, rtol=1e-4)
    (wanted,) = torch.autograd.grad(want, logits, given, retain_graph=True)
    (found,) = torch.autograd.grad(got, logits, given, retain_graph=True)
    close = {"atol": 5e-6, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-5, "rtol": 1e-2}
    torch.testing.assert_close(found, wanted, **close)
    assert not found[:, 0].any() and not entropy.requires_grad


def test_pieces_that_do_not_fit_are_refused() -> None:
    x, weight = torch.zeros(4, 6), torch.ones(6)
    for call in (
        lambda: cpu_ops.norm(x, weight.bfloat16(), 1e-5),
        lambda: cpu_ops.norm(x, weight[:5], 1e-5),
        lambda: cpu_ops.norm(x, weight, 1e-5, x[:3]),
        lambda: cpu_ops.norm(torch.zeros(6, 4).T, weight, 1e-5, x),
        lambda: cpu_ops.gate(x, x[:, :4]),
        lambda: cpu_ops.rotate(x[:, None], x.bfloat16(), x),
    ):
        with pytest.raises(ValueError, match=r"fit together|add .* in place"):
            call()


def test_log_probabilities_of_nothing_and_of_what_is_not_there() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    got, _ = cpu_ops.logprobs(logits[:0], torch.zeros(0, dtype=torch.long), 0, 1.0)
    got.sum().backward()
    assert got.shape == (0,) and not logits.grad.any()
    for target in (torch.tensor([1, 5]), torch.tensor([-100, 1]), torch.tensor([1]), torch.tensor([1, 1]).int()):
        with pytest.raises(ValueError, match="target"):
            cpu_ops.logprobs(logits, target, 0, 1.0)
