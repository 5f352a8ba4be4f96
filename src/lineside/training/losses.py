"""The losses of the three stages: pure functions of per-token tensors that return (loss, metrics).

Shapes: T target tokens. A packed forward gives the log-probability of each target token once, in any order. So all
tensors are flat (T,): there are no rows, no padding and no label shift. Masks are final; nothing here decides which
tokens are trained.

Every divisor is passed in, counted over the whole optimiser step and all ranks. So the parts of a step add up: for any
split of its tokens, losses, gradients and metrics sum to those of the step in one piece. If a framework averages
gradients over ranks (DDP, FSDP), multiply the loss by the number of ranks.

Left out on purpose: a KL term, a value function, an entropy bonus.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lineside.runtime import upload

Metrics = dict[str, Tensor]  # detached scalars; the metrics of the parts of a step add up to those of the step


def caption_loss(logprobs_T: Tensor, token_count: float) -> tuple[Tensor, Metrics]:
    """Stage 1: L = -(1/N) sum_t log p(y_t | image, prompt, y_<t), N = `token_count` caption tokens of the step.

    Raises ValueError if there are tokens but `token_count` is 0.
    """
    loss = -_over_count(logprobs_T, token_count, "caption tokens")
    return loss, {"loss": loss.detach()}


def sft_loss(
    logprobs_T: Tensor,
    answer_T: Tensor,
    trace_T: Tensor,
    *,
    answer_count: float,
    trace_count: float,
    trace_weight: float = 0.3,
) -> tuple[Tensor, Metrics]:
    """Stage 2: L = (1/N_A) sum_{t in A} CE_t + lambda (1/N_T) sum_{t in T} CE_t; a term with no tokens is 0.

    `answer_T` marks A (answer, eos and the two think tags), `trace_T` marks T (the words of valid traces). Both are
    boolean, disjoint and on the CPU. `trace_weight` is lambda. Each term has its own count, so that long traces do not
    outweigh short answers. The form of the trace term is our own.

    Raises ValueError if a token is marked twice, or if a term has tokens but its count is 0.
    """
    answer_T, trace_T = answer_T.bool(), trace_T.bool()
    if bool((answer_T & trace_T).any()):
        raise ValueError("a token is marked as answer and as trace: the two spans must be disjoint")
    # A boolean mask on the CPU, as an index of values on a device, would wait for the device; places do not.
    answer_t, trace_t = (upload(mask_T.nonzero().flatten(), logprobs_T.device) for mask_T in (answer_T, trace_T))
    answer = -_over_count(logprobs_T[answer_t], answer_count, "answer tokens")
    trace = -_over_count(logprobs_T[trace_t], trace_count, "trace tokens")
    loss = answer + trace_weight * trace
    return loss, {"loss": loss.detach(), "loss/answer": answer.detach(), "loss/trace": trace.detach()}


def dapo_loss(
    logprobs_T: Tensor,
    advantages_T: Tensor,
    token_count: float,
    *,
    old_logprobs_T: Tensor | None = None,
    sampled_logprobs_T: Tensor | None = None,
    importance_cap: float | None = None,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
) -> tuple[Tensor, Metrics]:
    """Stage 3: L = -(1/sum_i |o_i|) sum_i sum_t min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) (arXiv 2503.14476).

    `advantages_T` holds the advantage of each token's rollout; `token_count` is the sum of |o_i| over the live groups
    of the step; rho = exp(logprobs - old_logprobs). Without `old_logprobs_T` (in the first or only update of a rollout)
    the old policy is the current one: the value of rho is 1 and the gradient is that of A log p. With eps_low =
    eps_high this is GRPO's clip.

    Where another engine has sampled, its numbers are not those of the old policy. With `importance_cap` C and the
    engine's `sampled_logprobs_T`, each token's term is weighed by min(exp(old - sampled), C), which has no gradient:
    truncated importance sampling (Ionides, 2008), as for rollouts by another engine in "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training" (Yao et al., 2025, https://fengyao.notion.site/off-policy-rl). Its
    metrics are `importance`, the mean weight, and `importance/capped`, the share of tokens above C.

    Metrics: `clip/low` and `clip/high`, shares of the step's tokens whose gradient is clipped to 0, and `ratio`, the
    mean of rho. Raises ValueError if the shapes differ, or if there are tokens but `token_count` is 0.
    """
    if advantages_T.shape != logprobs_T.shape:
        shapes = f"{tuple(advantages_T.shape)} for {tuple(logprobs_T.shape)} tokens"
        raise ValueError(f"expected one advantage a token, got {shapes}")
    old_T = logprobs_T.detach() if old_logprobs_T is None else old_logprobs_T.detach()
    if old_T.shape != logprobs_T.shape:
        shapes = f"{tuple(old_T.shape)} for {tuple(logprobs_T.shape)} tokens"
        raise ValueError(f"expected one old log-probability a token, got {shapes}")
    ratio_T = torch.exp(logprobs_T - old_T)
    clipped_T = ratio_T.clamp(1.0 - eps_low, 1.0 + eps_high)
    objective_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
    more_T: dict[str, Tensor] = {}
    if importance_cap is not None and sampled_logprobs_T is not None:
        weight_T = torch.exp(old_T - sampled_logprobs_T.detach())
        more_T = {"importance": weight_T.clamp(max=importance_cap), "importance/capped": weight_T > importance_cap}
        objective_T = objective_T * more_T["importance"]
    loss = -_over_count(objective_T, token_count, "rollout tokens")
    with torch.no_grad():
        low_T = (ratio_T < 1.0 - eps_low) & (advantages_T < 0)
        high_T = (ratio_T > 1.0 + eps_high) & (advantages_T > 0)
        shares = {"clip/low": low_T, "clip/high": high_T, "ratio": ratio_T, **more_T}
        metrics = {k: _over_count(x_T.to(ratio_T.dtype), token_count, "rollout tokens") for k, x_T in shares.items()}
    return loss, {"loss": loss.detach(), **metrics}


def _over_count(values_T: Tensor, count: float, what: str) -> Tensor:
    """The sum divided by the count, summed in at least float32. Without values it is 0, still connected to the
    graph."""
    if values_T.ndim != 1:
        raise ValueError(f"per-token values must be flat (T,), got shape {tuple(values_T.shape)}")
    if count <= 0 and values_T.numel():
        raise ValueError(f"{values_T.numel()} {what} but their count over the step is {count}")
    dtype = torch.promote_types(values_T.dtype, torch.float32)
    return values_T.sum(dtype=dtype) / max(count, 1)
