"""Alarms over a stage's curves: what a person would stop at who looked at them, told once, with step and numbers.

Each of these is a pure function of the values so far, oldest first, that returns the numbers behind it or None. They
depend on metrics.jsonl alone, so a run that is resumed warns as one that was never stopped. docs/experiments.md has how
often each is raised by noise and by real curves.

    loss_spike, gradient_spike   the last value beside median and spread (MAD) of those before it
    entropy_collapse             entropy of the policy, beside the first steps
    length_drift                 tokens of a rollout, beside the first steps
    dead_groups                  share of groups without a difference in reward, beside the first steps; or all of them
    stock_traces                 share of traces that stand before different answers to a question
    reward_hacking               reward rises while the share exact, or with a valid trace, falls

one_answer.py has the alarm that no curve shows: a task of stage 3 that becomes one answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple, get_args

from lineside.recipe import AlarmKind

Numbers = dict[str, float]
History = Mapping[str, Sequence[float]]  # of each metric, its values so far

WINDOW, FEWEST = 64, 24  # values that a spike is compared with
SPIKE = 10.0  # spreads above the median
LEVEL = 12  # values whose mean or median is the level of a curve
BLOCK = 16  # values of each mean that reward hacking compares
LAGS = (1, 2, 4, 8)  # blocks between these means, so that a slow course is seen too
SURE = 4.0  # standard errors
QUIET = 50  # steps that a curve must be without an alarm before the same one is told again


def spike(values: Sequence[float], *, least: float, floor: float = 0.0, burst: int = 1) -> Numbers | None:
    """The last values, if `burst` of the last 2 `burst` - 1 lie SPIKE spreads above the median of the WINDOW before
    them, and above `least` medians.

    The spread is 1.4826 times the median absolute deviation, which for a normal distribution is its standard deviation;
    at least a fiftieth of the median, and `floor`."""
    width = 2 * burst - 1
    before = values[-WINDOW - width : -width]
    if len(before) < FEWEST:
        return None
    middle, last = median(before), sorted(values[-width:])[-burst]
    spread = max(1.4826 * median(abs(value - middle) for value in before), 0.02 * abs(middle), floor)
    if last > middle + SPIKE * spread and last > least * middle > 0:
        return {"value": last, "median": middle, "spread": spread}
    return None


def loss_spike(history: History) -> Numbers | None:
    """Of a stage that learns from texts, by at least 0.1 nats. The loss of stage 3 is no measure: its advantages sum to
    about 0."""
    return spike(history["loss"], least=1.5, floor=0.01) if "reward" not in history else None


def gradient_spike(history: History) -> Numbers | None:
    """Two steps of three: a single one is clipped, and harmless."""
    return spike(history["gradient_norm"], least=5.0, burst=2)


def levels(values: Sequence[float]) -> tuple[float, float] | None:
    """(median of the first LEVEL values, median of the last); None as long as they are the same values."""
    return (median(values[:LEVEL]), median(values[-LEVEL:])) if len(values) >= 2 * LEVEL else None


def entropy_collapse(history: History) -> Numbers | None:
    """Entropy has fallen below a quarter: the rollouts of a group become alike, and nothing is left to learn from."""
    found = levels(history["entropy"])
    return {"before": found[0], "now": found[1]} if found and found[1] < 0.25 * found[0] else None


def length_drift(history: History) -> Numbers | None:
    """Rollouts have become twice as long or half as long."""
    found = levels(history["length"])
    return {"before": found[0], "now": found[1]} if found and not 0.5 < found[1] / max(found[0], 1e-9) < 2.0 else None


def risen(values: Sequence[float]) -> Numbers | None:
    """A share that has risen by 0.25, to more than half."""
    found = levels(values)
    return {"before": found[0], "now": found[1]} if found and found[1] > max(0.5, found[0] + 0.25) else None


def dead_groups(history: History) -> Numbers | None:
    """Of the groups, those whose rewards are all alike. All of them, in more than half of the last steps, is too
    many from the first step on."""
    found = levels(history["dead"])
    return {"before": found[0], "now": 1.0} if found and found[1] >= 1.0 else risen(history["dead"])


def stock_traces(history: History) -> Numbers | None:
    """Of the valid traces, those that have not led to their answer."""
    return risen(history["stock"])


def shift(values: Sequence[float], lag: int) -> tuple[float, float, float]:
    """(mean of BLOCK values `lag` blocks ago, mean of the last BLOCK, their difference in standard errors).

    Neighbouring steps are alike, so the error is that of independent values times sqrt((1 + r) / (1 - r)), where r is
    the correlation of neighbours (Bartlett 1935), at least 0."""
    blocks = values[-BLOCK * (lag + 1) : len(values) - BLOCK * lag], values[-BLOCK:]
    was, now = map(fmean, blocks)
    apart = [[value - mean for value in block] for block, mean in zip(blocks, (was, now))]
    squares = sum(one * one for block in apart for one in block)
    beside = sum(one * other for block in apart for one, other in pairwise(block))
    alike = min(max(beside / squares, 0.0), 0.95) if squares else 0.0
    error = math.sqrt(squares / (BLOCK - 1) / BLOCK * (1 + alike) / (1 - alike))
    return was, now, (now - was) / max(error, 1e-6)


def reward_hacking(history: History) -> Numbers | None:
    """The reward has risen by 0.02 and more than SURE standard errors, and the share exact, or that of valid traces,
    has fallen by as much."""
    for lag in LAGS:
        for name in ("exact", "valid"):
            if name not in history or len(history[name]) < BLOCK * (lag + 1):
                continue
            was, reward, up = shift(history["reward"], lag)
            before, now, down = shift(history[name], lag)
            if min(up, -down) > SURE and min(reward - was, before - now) > 0.02:
                return {"reward before": was, "reward": reward, f"{name} before": before, name: now}
    return None


class Watched(NamedTuple):
    """The metric without which an alarm is silent, and its function."""

    metric: str
    find: Callable[[History], Numbers | None]


CURVES: dict[AlarmKind, Watched] = {
    "loss_spike": Watched("loss", loss_spike),
    "gradient_spike": Watched("gradient_norm", gradient_spike),
    "entropy_collapse": Watched("entropy", entropy_collapse),
    "length_drift": Watched("length", length_drift),
    "dead_groups": Watched("dead", dead_groups),
    "stock_traces": Watched("stock", stock_traces),
    "reward_hacking": Watched("reward", reward_hacking),
}
ADVICE: dict[AlarmKind, str] = {
    "loss_spike": "Look at these samples; if it comes again, lower the learning rate",
    "gradient_spike": "Look at these samples; if the loss rises too, lower the learning rate",
    "entropy_collapse": "The policy repeats itself: lower the learning rate, or stop the stage earlier",
    "length_drift": "Look at the rollouts in samples.jsonl: what do they say now, or leave out?",
    "dead_groups": "Its prompts are always solved or never: more steps teach little, other prompts may",
    "stock_traces": "Its traces no longer lead to its answers: look at the rollouts in samples.jsonl",
    "reward_hacking": "It earns more by being right less often: look at the rollouts in samples.jsonl; "
    "rlvr.partial_credit=false and rlvr.set_credit=errors pay less for what is nearly right",
    "one_answer": "Its answer hardly depends on the picture any more, and more steps rarely bring that back: start the "
    "stage over with a lower learning rate, or without the task (rlvr.leave_out)",
}
# Of rollouts: the same for all updates on them.
SAMPLED = ("reward", "exact", "valid", "stock", "length", "dead", "seconds/rollout")
WATCHED = ("loss", "gradient_norm", "entropy", *SAMPLED)
assert set(ADVICE) == {*CURVES, "one_answer"} == set(get_args(AlarmKind))


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is told at a step. `about`: of what, if not of the whole stage. `samples`: those that it is about, if known;
    else the step's are named."""

    kind: AlarmKind
    step: int
    numbers: Numbers
    about: str = ""
    samples: Sequence[str] = ()

    def line(self, samples: Sequence[str]) -> str:
        """For people."""
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in self.numbers.items())
        of = f"{self.about}: " if self.about else ""
        names = f"; in the step are {', '.join(samples)}" if samples else ""
        return f"{self.kind} at step {self.step:,}: {of}{numbers}{names}. {ADVICE[self.kind]}"

    def row(self, samples: Sequence[str]) -> dict[str, Any]:
        """For warnings.jsonl."""
        return {"kind": self.kind, "numbers": self.numbers, "samples": list(samples), "line": self.line(samples)}


@dataclass
class Watch:
    """The curves of a stage so far, and when each alarm last held."""

    history: dict[str, list[float]] = field(default_factory=dict)
    held: dict[AlarmKind, int] = field(default_factory=dict)

    def see(self, row: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that a new row of metrics.jsonl raises. One that held within the last QUIET steps is not told.

        A further update on the same rollouts has their numbers again, which do not count twice. Those of a policy that
        has collapsed are alike from step to step, but for the time that they took."""
        again = "reward" in row and all(self.history.get(n, (None,))[-1] == row[n] for n in SAMPLED if n in row)
        for name in WATCHED:
            value = row.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):  # metrics.jsonl has null for it
                continue
            if not (again and name in SAMPLED):
                self.history.setdefault(name, []).append(value)
        alarms = []
        for kind, watched in CURVES.items():
            if watched.metric not in self.history or (again and watched.metric in SAMPLED):
                continue
            if (numbers := watched.find(self.history)) is None:
                continue
            if row["step"] - self.held.get(kind, -QUIET - 1) > QUIET:
                alarms.append(Alarm(kind, row["step"], numbers))
            self.held[kind] = row["step"]
        return alarms
