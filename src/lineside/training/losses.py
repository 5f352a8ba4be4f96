"""The losses of the three stages: pure functions of per-token tensors, (loss, metrics) out.

Shapes: T target tokens, V vocabulary. A packed forward gives each target token's log-probability once, in any order, so
everything here is flat (T,): there are no rows, no padding and no label shift. Masks arrive final; nothing here decides
what is trained.

Every divisor is passed in, counted over the whole optimiser step and all ranks. So the parts of a step add up: the sum
of the losses (and of the gradients, and of the metrics) of any split of its tokens is that of the step in one piece.
Where a framework averages gradients over ranks (DDP, FSDP), multiply the loss by the number of ranks.

Left out on purpose: a KL term, a value function, an entropy bonus.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]  # detached scalars; those of the parts of a step add up to those of the step


def caption_loss(logprobs_T: Tensor, token_count: float) -> tuple[Tensor, Metrics]:
    """Stage 1: L = -(1/N) sum_t log p(y_t | image, prompt, y_<t), N = `token_count` caption tokens of the step.

    Raises ValueError if there are tokens to divide by a count of zero.
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

    `answer_T` marks A (answer, end of sequence and the two think tags), `trace_T` marks T (the words of valid traces);
    both boolean, disjoint. `trace_weight` is lambda. The two terms have counts of their own, so that long traces do not
    drown short answers. The form of the trace term is this project's own.

    Raises ValueError if a token is marked twice, or if a count is zero and its term has tokens.
    """
    answer_T, trace_T = answer_T.bool(), trace_T.bool()
    if bool((answer_T & trace_T).any()):
        raise ValueError("a token is marked as answer and as trace: the two spans must be disjoint")
    answer = -_over_count(logprobs_T[answer_T], answer_count, "answer tokens")
    trace = -_over_count(logprobs_T[trace_T], trace_count, "trace tokens")
    loss = answer + trace_weight * trace
    return loss, {"loss": loss.detach(), "loss/answer": answer.detach(), "loss/trace": trace.detach()}


def dapo_loss(
    logprobs_T: Tensor,
    advantages_T: Tensor,
    token_count: float,
    *,
    old_logprobs_T: Tensor | None = None,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
) -> tuple[Tensor, Metrics]:
    """Stage 3: L = -(1/sum_i |o_i|) sum_i sum_t min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) (arXiv 2503.14476).

    `advantages_T` holds the advantage of each token's rollout; `token_count` is the sum of |o_i| over the live groups
    of the step; rho = exp(logprobs - old_logprobs). Without `old_logprobs_T` (the first or only update of a rollout)
    the old policy is the present one: rho is 1 in value and the gradient is that of A log p. Equal eps: GRPO's clip.

    Metrics: `clip/low` and `clip/high`, shares of the step's tokens whose gradient the clip cut, and `ratio`, mean rho.
    Raises ValueError if the shapes differ or there are tokens to divide by a count of zero.
    """
    if advantages_T.shape != logprobs_T.shape:
        raise ValueError(f"one advantage a token: got {tuple(advantages_T.shape)} for {tuple(logprobs_T.shape)} tokens")
    old_T = logprobs_T.detach() if old_logprobs_T is None else old_logprobs_T.detach()
    if old_T.shape != logprobs_T.shape:
        raise ValueError(f"one old log-probability a token: got {tuple(old_T.shape)} for {tuple(logprobs_T.shape)}")
    ratio_T = torch.exp(logprobs_T - old_T)
    clipped_T = ratio_T.clamp(1.0 - eps_low, 1.0 + eps_high)
    objective_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
    loss = -_over_count(objective_T, token_count, "rollout tokens")
    with torch.no_grad():
        low_T = (ratio_T < 1.0 - eps_low) & (advantages_T < 0)
        high_T = (ratio_T > 1.0 + eps_high) & (advantages_T > 0)
        shares = {"clip/low": low_T, "clip/high": high_T, "ratio": ratio_T}
        metrics = {k: _over_count(x_T.to(ratio_T.dtype), token_count, "rollout tokens") for k, x_T in shares.items()}
    return loss, {"loss": loss.detach(), **metrics}


def _over_count(values_T: Tensor, count: float, what: str) -> Tensor:
    """Sum over the count; 0, still joined to the graph, where there is nothing to sum. Summed in at least float32."""
    if values_T.ndim != 1:
        raise ValueError(f"per-token values must be flat (T,), got shape {tuple(values_T.shape)}")
    if count <= 0 and values_T.numel():
        raise ValueError(f"{values_T.numel()} {what} but their count over the step is {count}")
    dtype = torch.promote_types(values_T.dtype, torch.float32)
    return values_T.sum(dtype=dtype) / max(count, 1)
