"""Stage 3, rlvr: GRPO in DAPO's form on verifiable rewards, with no reward model, no critic and no KL.

After GRPO (arXiv 2402.03300), DAPO (2503.14476), Dr. GRPO (2503.20783, as `std=False`). A step: sample G rollouts of
each prompt, judge them, sample more until enough groups are live, compute advantages, and make one or more updates with
J = 1/(sum_i |o_i|) sum_i sum_t min(rho A_i, clip(rho, 1 - eps_low, 1 + eps_high) A_i). A whole group is in one tree.
Dead groups are dropped before tokens are counted. Prompts are chosen by the probability that their group is live, after
MoPPS (2507.04632; training/choice.py). Where an outcome only says that an answer was wrong, advantages.py has the
baseline (`not_advantages`). Left out: asynchronous rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lineside.data.checks import thinking_tasks
from lineside.data.mixture import ONLY_FAILURES, Mixture
from lineside.errors import LinesideError
from lineside.hashing import stable_hash
from lineside.model.features import FeatureStore, features_of
from lineside.model.generate import Timing
from lineside.model.tree import Pack
from lineside.model.vlm import VLM, Features
from lineside.progress import say
from lineside.recipe import Rlvr
from lineside.runtime import ON_CPU, Runtime, upload
from lineside.training.advantages import is_not, repeats, rollout_advantages
from lineside.training.choice import CANDIDATES, PassRates, choose, passes
from lineside.training.cost import Cost
from lineside.training.finite import check_rollouts
from lineside.training.losses import Metrics, dapo_loss
from lineside.training.metrics import write_table
from lineside.training.one_answer import Answers
from lineside.training.operations import sampling_operations
from lineside.training.packing import packs_of
from lineside.training.rollout import Laid, lay_out, live, logprobs_of, sample_groups, sampler_logprobs
from lineside.training.sampler import Sampler, thinks
from lineside.training.stage import Stage
from lineside.training.vllm_sampler import sampler_of
from lineside.training.watch import Alarm
from lineside.types import Group, Rollout, Sample, Thinking
from lineside.verify.text import normalise

# The most that rounding explains of the distance between two engines' log-probabilities, in nats a token. vLLM's were
# 0.032 away in bf16 (docs/results.md) and 0.00001 in fp32; with wrong weights 0.5 and more.
MAX_GAP = {torch.bfloat16: 0.1, torch.float32: 0.001}


def rlvr(
    vlm: VLM,
    store: FeatureStore,
    samples: Path | Mixture,
    folder: Path,
    settings: Rlvr,
    *,
    runtime: Runtime = ON_CPU,
    label: str = "rlvr",
) -> None:
    """Train projector and LM on the prompts of the training split. State, metrics, samples and checkpoint are written
    to `folder`.

    Without `teacher_targets`, prompts whose target only a teacher vouches for are left out. Raises LinesideError if no
    prompt is left.
    """
    seed = runtime.seed
    mixture = checked_prompts(Mixture.of(samples), settings)
    vlm.thinking = vlm.thinking.over(thinking_tasks(part.folder for part in mixture.parts))

    def stream(epoch: int, skip: int) -> Iterator[tuple[Sample, ...]]:
        for prompts in mixture.stream("prompt", seed=seed, epoch=epoch, skip=skip):
            uniform = settings.prompt_choice == "uniform"
            yield in_turn(prompts, settings.prompts_per_frame, epoch=epoch, seed=seed) if uniform else prompts

    show = ("reward", "exact", "valid", "dead", "length")
    rates = settings.learning_rate.of(settings.train)
    frames = mixture.frame_count("prompt")
    # Minutes are converted to steps, since a step is a fixed amount of sampling. With tokens, the schedule of the
    # learning rate would depend on the length of the policy's own answers.
    with (
        Stage(
            vlm, folder, settings, rates, label=label, frame_count=frames, runtime=runtime, show=show, unit="steps"
        ) as stage,
        sampler_of(vlm, store, settings, folder, stage.steps) as sampler,
    ):
        data = stage.cost.timed("read", stage.data(stream))
        while True:
            known = PassRates.of(stage.extra.get("pass_rates", {}))
            answers = Answers.of(stage.extra.get("answers", {}))
            collected = collect(
                vlm, sampler, data, settings, known, answers, seed=seed * 1_000_003 + stage.steps,
                live_share=float(stage.extra.get("live_share", 1.0)), cost=stage.cost,
                check=partial(check_rollouts, label, folder=folder, step=stage.steps + 1, runtime=runtime),
            )  # fmt: skip
            if collected is None:
                break
            groups, cursor, metrics = collected
            live_groups = live(groups)
            step = stage.steps + (settings.updates if live_groups else 1)
            alarms = answers.alarms(step)
            if stage.measuring is None:
                stage.extra |= {
                    "live_share": 1 - metrics["dead"], "pass_rates": vars(known), "answers": answers.state(),
                }  # fmt: skip
            if stage.measuring is None and runtime.rank == 0:  # before the state that says that the step is done
                write_table(folder, step, table_rows((live_groups or groups)[:2]))
            if not live_groups:
                rounds = f"rlvr.max_sampling_rounds={settings.max_sampling_rounds}"
                say(
                    f"rlvr: no live group within {rounds} (every prompt is always solved or never); "
                    "this step makes no update"
                )
                stage.pass_over(cursor, alarms=alarms, extra=metrics, samples=(group.sample.id for group in groups))
                continue
            update(vlm, store, live_groups, known, settings, stage, metrics, cursor, alarms)
            sampler.refresh(stage.steps)
    stage.finish()


def prompts_of(mixture: Mixture, settings: Rlvr) -> Mixture:
    """The mixture without the prompts that stage 3 and its controls do not train: those of tasks that are left out, and
    those whose target only a teacher vouches for, unless the settings allow them (DESIGN 3)."""
    return replace(mixture, vouched=not settings.teacher_targets, leave_out=settings.leave_out)


def checked_prompts(mixture: Mixture, settings: Rlvr) -> Mixture:
    """`prompts_of`, saying how many prompts only a teacher vouches for. Raises LinesideError if no prompt is left, or
    if all of them only say that an answer was wrong."""
    prompts = prompts_of(mixture, settings)
    if prompts.only_failures("prompt"):
        raise LinesideError(f"rlvr: {ONLY_FAILURES}")
    if not prompts.vouched:
        return prompts
    alone, total = prompts.teachers("prompt")
    if alone:
        left = f"{alone:,} of {total:,} prompts have a target that only a teacher vouches for"
        if alone == total:
            raise LinesideError(
                f"rlvr: {left}: none is left to train on. Label them from records (a table, a scan, an order "
                "line), leave stage 3 out, or trust the teacher with rlvr.teacher_targets=true"
            )
        say(f"rlvr: {left}: they are left out (rlvr.teacher_targets=true takes them)")
    return prompts


def in_turn(prompts: tuple[Sample, ...], number: int, *, epoch: int, seed: int) -> tuple[Sample, ...]:
    """`number` prompts of a frame. Each pass continues after those of the pass before.

    Always taking the first ones would leave out some tasks, because a frame's prompts are sorted by task.
    """
    if not prompts:
        return ()
    order = sorted(prompts, key=lambda sample: stable_hash("prompts", seed, sample.id))
    number = min(number, len(order))
    return tuple(order[(epoch * number + turn) % len(order)] for turn in range(number))


def next_prompts(
    data: Iterator[tuple[tuple[Sample, ...], dict[str, int]]],
    wanted: int,
    settings: Rlvr,
    rates: PassRates,
    thinking: Thinking,
    cursor: dict[str, int],
    *,
    seed: int,
) -> tuple[list[Sample], list[Sample], dict[str, int]]:
    """`wanted` prompts, or a few more, from the next frames: all their prompts, or those chosen by `prompt_choice`.
    Also returns all prompts that were read, and the cursor after these frames."""
    live = settings.prompt_choice == "live"
    read: list[Sample] = []
    while len(read) < wanted * (CANDIDATES if live else 1) and (item := next(data, None)) is not None:
        prompts, cursor = item
        read += prompts
    if not live:
        return read, read, cursor
    chosen = choose(
        read, wanted, rates, answers=settings.group_size, floor=settings.task_floor, stakes=settings.stakes, seed=seed,
        thinks=partial(thinks, thinking=thinking, no_think_share=settings.no_think_share),
    )  # fmt: skip
    return chosen, read, cursor


def collect(
    vlm: VLM,
    sampler: Sampler,
    data: Iterator[tuple[tuple[Sample, ...], dict[str, int]]],
    settings: Rlvr,
    rates: PassRates,
    answers: Answers,
    *,
    seed: int,
    check: Callable[[Sequence[Group]], None],
    live_share: float = 1.0,
    cost: Cost | None = None,
) -> tuple[list[Group], dict[str, int], dict[str, float]] | None:
    """Dynamic sampling: rounds of rollouts until about `prompts` groups are live or `max_sampling_rounds` times
    `prompts` are sampled. Returns all groups, the cursor and metrics; None without data. `rates` learns from each
    round, `answers` from all of them together.

    `live_share`: the expected share of live groups. The first round is larger by it, because every further round costs
    a decode of full length. `cost`: the time and operations of sampling are added to it. `check` may raise an error for
    the groups of a round.
    """
    kept: list[Group] = []
    seen: list[Group] = []
    read: list[Sample] = []
    cursor: dict[str, int] = {}
    timing, clock = Timing(), time.perf_counter()
    while len(seen) < settings.max_sampling_rounds * settings.prompts:
        wanted = round((settings.prompts - len(kept)) / max(live_share, 1 / settings.max_sampling_rounds))
        wanted = min(wanted, settings.max_sampling_rounds * settings.prompts - len(seen))
        round_seed = seed * 4096 + len(seen)
        prompts, others, cursor = next_prompts(data, wanted, settings, rates, sampler.thinking, cursor, seed=round_seed)
        if not others:
            break
        if not prompts:  # of these frames only failed answers are known
            continue
        groups = sample_groups(
            sampler, prompts, group_size=settings.group_size, temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens, seed=round_seed, set_credit=settings.set_credit,
            partial_credit=settings.partial_credit, no_think_share=settings.no_think_share, timing=timing,
        )  # fmt: skip
        check(groups)
        rates.learn(groups)
        seen += groups
        read += others
        kept += live(groups)
        if len(kept) >= 0.75 * settings.prompts:  # a further round would cost a full decode for only a few groups
            break
    if not seen:
        return None
    answers.see(seen, read)
    if cost is not None:
        for phase, seconds in timing.seconds.items():
            cost.spend(phase, seconds)
        cost.operations += sampling_operations(vlm, timing)
    took = {"rollout": time.perf_counter() - clock, "decode": timing.decode, "prefill": timing.prefill}
    metrics = sampling_metrics(seen, len(kept))
    return seen, cursor, metrics | {f"seconds/{phase}": number for phase, number in took.items()}


def sampling_metrics(seen: list[Group], live_count: int) -> dict[str, float]:
    """What a step logs of all the groups that it sampled, dead ones included. Reward and exact are of those whose
    truth is known, `exact/off` of those that were asked with thinking off where others think; `repeated` is the
    share of rollouts that give an answer again which an outcome said to be wrong. Without a live group no update
    measures the `entropy`, so it is estimated (`_entropy`)."""
    judged = [j for g in seen if not is_not(g.sample) for j in g.judgements]
    quick = [j for g in seen if not is_not(g.sample) and not g.thinking for j in g.judgements]
    failed = [j for g in seen if is_not(g.sample) for j in g.judgements]
    traced = [j for g in seen if g.thinking for j in g.judgements]
    rollouts = [r for g in seen for r in g.rollouts]
    share = lambda values: sum(values) / len(rollouts)  # noqa: E731
    return {
        **({"reward": sum(j.reward for j in judged) / len(judged)} if judged else {}),
        **({"exact": sum(j.verdict.exact for j in judged) / len(judged)} if judged else {}),
        **({"exact/off": sum(j.verdict.exact for j in quick) / len(quick)} if quick and traced else {}),
        **({"repeated": sum(map(repeats, failed)) / len(failed)} if failed else {}),
        **({"valid": sum(j.response.trace_class == "valid" for j in traced) / len(traced)} if traced else {}),
        **({"stock": stock_share(seen)} if traced else {}),
        "length": share(len(r.tokens) for r in rollouts),
        "unfinished": share(not r.finished for r in rollouts),
        "dead": 1 - live_count / len(seen),
        "dead/exact": 1 - sum(len(set(passes(g))) > 1 for g in seen) / len(seen),
        "groups": float(live_count),
        **({"entropy": _entropy(rollouts)} if not live_count else {}),
    }


def _entropy(rollouts: Sequence[Rollout]) -> float:
    """The mean of -log p of the tokens that were drawn."""
    drawn = [logprob for rollout in rollouts for logprob in rollout.sampler_logprobs]
    return -sum(drawn) / max(1, len(drawn))


def stock_share(groups: Sequence[Group]) -> float:
    """Of the rollouts with a valid trace, the share whose trace also stands, word for word, before another answer to
    the same question. Such a trace has not led to the answer: a policy that is paid for any valid trace learns one to
    say before all of them."""
    told = [
        ((group.sample.question, normalise(judgement.response.trace or "")), normalise(judgement.response.answer or ""))
        for group in groups for judgement in group.judgements if judgement.response.trace_class == "valid"
    ]  # fmt: skip
    answers: dict[tuple[str, str], set[str]] = {}
    for trace, answer in told:
        answers.setdefault(trace, set()).add(answer)
    return sum(len(answers[trace]) > 1 for trace, _ in told) / max(1, len(told))


def update(
    vlm: VLM,
    store: FeatureStore,
    groups: list[Group],
    rates: PassRates,
    settings: Rlvr,
    stage: Stage,
    metrics: dict[str, float],
    cursor: dict[str, int],
    alarms: Sequence[Alarm] = (),
) -> None:
    """`updates` optimiser steps on the live groups. With several, the old log-probabilities are those of the trainer's
    own packed forward in the first one. `rates` gives the baseline of a `not` target."""
    clock = time.perf_counter()
    laid = lay_out(vlm, groups)
    packs = packs_of(vlm, stage.dealt(laid.trees), stage.pack_tokens)
    counts = stage.count(packs)
    objective = _Objective(
        vlm, settings, counts.answer, leaf_advantages(groups, laid, settings, rates), sampler_logprobs(groups, laid),
        old_logprobs=torch.zeros(sum(len(pack.target) for pack, _ in packs), device=vlm.device),
    )  # fmt: skip
    for number in range(settings.updates):
        objective.first, last = number == 0, number == settings.updates - 1
        for pack, images in stage.each(packs):
            stage.learn(pack, features_of(store, images), objective)
        if objective.first and settings.sampler != "local":
            check_gap(stage.summed["sampler_gap"], stage.dtype, settings)
        stage.step(
            cursor if last else stage.cursor,
            (pack for pack, _ in packs),
            may_save=last,  # a state between two updates would lose the rollouts that the second one needs
            alarms=alarms if last else (),
            extra=metrics | {"seconds/update": time.perf_counter() - clock},
        )


def check_gap(gap: float, dtype: torch.dtype, settings: Rlvr) -> None:
    """Raises LinesideError if an engine's log-probabilities of its own rollouts are further from the trainer's, on
    average over the step's tokens, than rounding explains."""
    most = settings.vllm.max_gap or MAX_GAP[dtype]
    if not gap <= most:  # a NaN too
        raise LinesideError(
            f"rlvr: the log-probabilities of {settings.sampler} are {gap:.3g} nats a token away from the trainer's, "
            f"and rounding explains {most:g}: it does not sample from the weights or prompts that are trained. This "
            "step is not made, and the last saved state is kept. Another version of vLLM may be right; "
            "rlvr.sampler=local needs none; rlvr.vllm.max_gap allows more"
        )


@dataclass
class _Objective:
    """The loss of a pack. The old log-probabilities of the step's targets are kept by the first update."""

    vlm: VLM
    settings: Rlvr
    token_count: int  # targets of the step, over all ranks
    advantages: Tensor  # (leaves,) by leaf number, on the CPU
    sampled: list[Tensor]  # for each leaf: the sampler's log-probabilities of its tokens
    old_logprobs: Tensor  # (targets of the step,)
    first: bool = True  # whether this is the first update

    def __call__(self, pack: Pack, features: Features, place: slice) -> tuple[Tensor, Metrics]:
        device, settings = self.vlm.device, self.settings
        logprobs, entropy = self.vlm.logprobs_and_entropy(pack, features, temperature=settings.temperature)
        cap = settings.vllm.importance_cap if settings.sampler != "local" else None
        sampled = upload(logprobs_of(pack, self.sampled), device) if self.first or cap else None
        loss, metrics = dapo_loss(
            logprobs,
            upload(self.advantages[pack.leaf], device),
            self.token_count,
            old_logprobs_T=None if self.first else self.old_logprobs[place],
            sampled_logprobs_T=sampled,
            importance_cap=cap,
            eps_low=settings.eps_low,
            eps_high=settings.eps_high,
        )
        metrics["entropy"] = entropy.sum() / self.token_count
        if self.first and sampled is not None:
            gap = (logprobs.detach() - sampled).abs().sum()
            metrics["sampler_gap"] = gap / self.token_count
            self.old_logprobs[place] = logprobs.detach()
        return loss, metrics


def leaf_advantages(groups: list[Group], laid: Laid, settings: Rlvr, rates: PassRates) -> Tensor:
    """(leaves,) the advantage of each rollout, by its leaf number; with `mean: rollouts` times its weight."""
    of_groups = [
        rollout_advantages(
            group,
            max_length=settings.max_new_tokens,
            overlong_cache=settings.overlong_cache,
            std=settings.advantage == "std",
            pass_rate=rates.pass_rate(group.sample, thinking=group.thinking),
        )
        for group in groups
    ]
    if settings.mean == "rollouts":
        token_count = sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)
        of_groups = [a_G * mean_weights(g, token_count, groups) for g, a_G in zip(groups, of_groups)]
    return torch.stack([of_groups[group][which] for group, which in laid.order])


def mean_weights(group: Group, token_count: int, groups: Sequence[Group]) -> Tensor:
    """(G,) what a token of each rollout weighs if rollouts weigh the same: N / (R |o_i|), where the loss divides by N
    tokens, for R rollouts of all `groups`. So the loss is (1/R) sum_i (1/|o_i|) sum_t ..., as in GRPO (2402.03300)."""
    rollouts = sum(len(g.rollouts) for g in groups)
    return torch.tensor([token_count / (rollouts * max(1, len(r.tokens))) for r in group.rollouts])


def table_rows(groups: list[Group]) -> list[dict[str, object]]:
    """Rows for samples.jsonl, where a person reads them: question, target and all rollouts of a few groups."""
    return [
        {
            "id": g.sample.id,
            "task": g.sample.task,
            "question": g.sample.question,
            "target": g.sample.target.to_json() if g.sample.target and g.sample.target.kind != "point" else None,
            "rollouts": [
                {"text": r.text, "reward": j.reward, "exact": j.verdict.exact, "trace": j.response.trace_class}
                for r, j in zip(g.rollouts, g.judgements)
            ],
        }
        for g in groups
    ]
