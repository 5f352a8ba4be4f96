"""Every formula of DESIGN 4 against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.backends.reference import entropy_of as token_entropy
from lineside.training.advantages import group_advantages, is_dead_group
from lineside.training.losses import caption_loss, dapo_loss, sft_loss

LN2 = math.log(2.0)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_()


def close(value, expected):
    assert float(torch.as_tensor(value).detach()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


# --- stage 1


def test_caption_loss_is_the_mean_over_the_count_of_the_step():
    lp = logs(0.5, 0.25)  # -(ln 1/2 + ln 1/4) = 3 ln 2
    loss, metrics = caption_loss(lp, token_count=6)  # four more tokens lie in other parts of the step
    close(loss, 0.5 * LN2)
    close(metrics["loss"], 0.5 * LN2)
    loss.backward()
    assert lp.grad.tolist() == pytest.approx([-1 / 6, -1 / 6])


def test_no_tokens_is_zero_and_can_go_backward():
    lp = torch.empty(0, requires_grad=True)
    loss, _ = caption_loss(lp, token_count=0)
    loss.backward()
    assert loss.item() == 0.0


def test_tokens_without_a_count_are_refused():
    with pytest.raises(ValueError, match="2 caption tokens but their count over the step is 0"):
        caption_loss(logs(0.5, 0.5), token_count=0)


# --- stage 2


def test_sft_loss_weighs_the_two_spans_by_their_own_counts():
    lp = logs(0.5, 0.5, 0.25, 0.25, 0.25, 0.9)  # two answer tokens, three of the trace, one that is only context
    answer = torch.tensor([1, 1, 0, 0, 0, 0])
    trace = torch.tensor([0, 0, 1, 1, 1, 0])
    loss, metrics = sft_loss(lp, answer, trace, answer_count=2, trace_count=3)
    close(loss, LN2 + 0.3 * 2 * LN2)  # 1.6 ln 2
    close(metrics["loss/answer"], LN2)
    close(metrics["loss/trace"], 2 * LN2)
    loss.backward()
    assert lp.grad.tolist() == pytest.approx([-1 / 2, -1 / 2, -0.1, -0.1, -0.1, 0.0])


def test_a_long_trace_does_not_drown_a_short_answer():
    short = sft_loss(logs(0.5, 0.25), torch.tensor([1, 0]), torch.tensor([0, 1]), answer_count=1, trace_count=1)[0]
    spans = torch.tensor([1] + [0] * 50)
    long = sft_loss(logs(0.5, *[0.25] * 50), spans, 1 - spans, answer_count=1, trace_count=50)[0]
    close(short, long.item())


@pytest.mark.parametrize("answers, traces, expected", [(2, 0, LN2), (0, 2, 0.3 * LN2), (0, 0, 0.0)])
def test_a_term_with_no_tokens_is_zero(answers, traces, expected):
    lp = logs(*[0.5] * 3)
    answer, trace = torch.arange(3) < answers, torch.arange(3) < traces
    loss, _ = sft_loss(lp, answer, trace, answer_count=answers, trace_count=traces)
    loss.backward()
    close(loss, expected)
    assert torch.isfinite(lp.grad).all()


def test_spans_that_overlap_are_refused():
    with pytest.raises(ValueError, match="disjoint"):
        sft_loss(logs(0.5), torch.ones(1), torch.ones(1), answer_count=1, trace_count=1)


# --- stage 3


def test_first_update_has_ratio_one_and_the_policy_gradient():
    lp = logs(0.5, 0.1, 0.9)
    loss, metrics = dapo_loss(lp, torch.tensor([2.0, 2.0, -1.0]), token_count=3)
    close(loss, -(2 + 2 - 1) / 3)
    loss.backward()
    assert lp.grad.tolist() == pytest.approx([-2 / 3, -2 / 3, 1 / 3])  # -A/N: that of A log p
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
        {"loss": -1.0, "clip/low": 0, "clip/high": 0, "ratio": 1}
    )


def test_each_side_of_the_clip():
    """rho = p / 0.5; the clip acts only where it lowers the objective, at 0.8 below and at 1.28 above."""
    table = [  # p, A, objective, d(-objective)/dlp
        (0.62, +1, 1.24, -1.24),  # 1.2 < rho < 1.28: free, though GRPO's symmetric clip would cut it
        (0.65, +1, 1.28, 0.0),  # above 1.28: cut
        (0.65, -1, -1.30, +1.30),  # the wrong way up: never cut
        (0.39, -1, -0.80, 0.0),  # below 0.8: cut
        (0.39, +1, 0.78, -0.78),  # the wrong way down: never cut
        (0.41, -1, -0.82, +0.82),  # 0.8 < rho: free, though a lower bound of 0.28 would matter below 0.72 only
    ]
    lp = logs(*[row[0] for row in table])
    old = torch.full((6,), 0.5, dtype=torch.float64).log()
    advantages = torch.tensor([row[1] for row in table], dtype=torch.float64)
    loss, metrics = dapo_loss(lp, advantages, 6, old_logprobs_T=old)
    close(loss, -(1.24 + 1.28 - 1.30 - 0.80 + 0.78 - 0.82) / 6)
    loss.backward()
    assert lp.grad.tolist() == pytest.approx([row[3] / 6 for row in table])
    close(metrics["clip/low"], 1 / 6)
    close(metrics["clip/high"], 1 / 6)
    close(metrics["ratio"], (1.24 + 1.3 + 1.3 + 0.78 + 0.78 + 0.82) / 6)


@pytest.mark.parametrize("direction", [+1, -1])
def test_two_updates_a_rollout(direction):
    """A coin with p(heads) = sigmoid(z), z = 0. One head and one tail are sampled, one of them the better answer."""
    z = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def policy():
        return torch.stack(
            [torch.nn.functional.logsigmoid(direction * z), torch.nn.functional.logsigmoid(-direction * z)]
        )

    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    old = policy().detach()
    first, clips = dapo_loss(policy(), advantages, 2, old_logprobs_T=old)
    (grad,) = torch.autograd.grad(first, z)
    close(grad, -direction * 0.5)  # (1/2)(0.5 + 0.5)
    assert float(clips["clip/low"]) == float(clips["clip/high"]) == 0.0

    z.data -= 1.0 * grad  # z = +-0.5: p(better) = 0.62246, rho 1.2449; p(worse) = 0.37754, rho 0.7551
    second, clips = dapo_loss(policy(), advantages, 2, old_logprobs_T=old)
    (grad,) = torch.autograd.grad(second, z)
    close(second, -(1.2449187 - 0.8) / 2)
    close(grad, -direction * 0.5 * 1.2449187 * 0.3775407)  # the better one still rises; the worse one is cut at 0.8
    close(clips["clip/low"], 0.5)
    close(clips["clip/high"], 0.0)
    (symmetric,) = torch.autograd.grad(dapo_loss(policy(), advantages, 2, old_logprobs_T=old, eps_high=0.2)[0], z)
    assert float(symmetric) == 0.0  # GRPO's clip would have stopped both

    z.data += direction * 0.1  # z = +-0.6: rho of the better one 1.2913, past 1.28
    third, clips = dapo_loss(policy(), advantages, 2, old_logprobs_T=old)
    (grad,) = torch.autograd.grad(third, z)
    assert float(grad) == 0.0
    close(clips["clip/high"], 0.5)


def test_aggregation_is_by_token_not_by_rollout():
    """Two tokens of +1 and eight of -1: a mean of the rollouts' means is 0, by token it is -0.6."""
    advantages = torch.tensor([1.0] * 2 + [-1.0] * 8)
    loss, _ = dapo_loss(torch.full((10,), -1.0, requires_grad=True), advantages, 10)
    close(loss, 0.6)


def test_dead_groups_leave_the_denominator():
    groups = [([1.0, 0.0], [2, 3]), ([1.0, 1.0], [4, 4]), ([0.52, 0.5], [1, 1])]  # rewards, lengths
    live = [(r, n) for r, n in groups if not is_dead_group(r)]
    advantages = torch.cat([group_advantages(r).repeat_interleave(torch.tensor(n)) for r, n in live])
    token_count = sum(sum(n) for _, n in live)
    loss, _ = dapo_loss(torch.full((token_count,), -1.0), advantages, token_count)
    a = 0.5 / (0.5**0.5 + 1e-4)  # unbiased std of (1, 0) is sqrt(1/2)
    assert token_count == 5
    close(loss, -(2 * a - 3 * a) / 5)  # divided by 5; the 13 or 15 of all groups would give a third of it


def test_mismatched_tensors_are_refused():
    with pytest.raises(ValueError, match="one advantage a token"):
        dapo_loss(torch.zeros(4), torch.zeros(2), 4)
    with pytest.raises(ValueError, match="one old log-probability a token"):
        dapo_loss(torch.zeros(4), torch.zeros(4), 4, old_logprobs_T=torch.zeros(3))
    with pytest.raises(ValueError, match="flat"):
        dapo_loss(torch.zeros(2, 2), torch.zeros(2, 2), 4)


# --- all stages


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(2, 30), parts=st.integers(2, 5))
def test_splitting_a_step_changes_neither_loss_nor_gradient(seed, tokens, parts):
    """The parts' losses, gradients and metrics add up to the whole's, also where a part has no tokens at all."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(tokens, 3, generator=rng, dtype=torch.float64)
    old = -torch.rand(tokens, generator=rng, dtype=torch.float64)
    advantages = torch.randn(tokens, generator=rng, dtype=torch.float64)
    span = torch.randint(0, 3, (tokens,), generator=rng)
    part = torch.randint(0, parts, (tokens,), generator=rng)
    n_answer, n_trace = int((span == 0).sum()), int((span == 1).sum())
    losses = [
        lambda lp, rows: caption_loss(lp, tokens),
        lambda lp, rows: sft_loss(
            lp, span[rows] == 0, span[rows] == 1, answer_count=n_answer, trace_count=n_trace, trace_weight=0.3
        ),
        lambda lp, rows: dapo_loss(lp, advantages[rows], tokens, old_logprobs_T=old[rows]),
    ]
    for loss_of in losses:

        def run(rows, loss_of=loss_of):
            weight = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
            loss, metrics = loss_of(-torch.nn.functional.softplus(features[rows] @ weight), rows)
            loss.backward()
            return torch.cat([weight.grad, torch.stack(list(metrics.values()))])

        whole = run(torch.arange(tokens))
        pieces = sum(run((part == p).nonzero().flatten()) for p in range(parts))
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def test_sums_are_taken_in_float32():
    """4,096 bf16 terms of -1/4 must not stall at 64, where bf16 steps by half."""
    loss, _ = caption_loss(torch.full((4096,), -0.25, dtype=torch.bfloat16), 4096)
    assert loss.dtype == torch.float32
    close(loss, 0.25)


def test_entropy_of_uniform_and_banned_logits():
    logits = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, -math.inf], [0, -math.inf, -math.inf, -math.inf]])
    assert token_entropy(logits).tolist() == pytest.approx([math.log(4), math.log(3), 0.0])
