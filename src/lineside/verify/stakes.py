"""The outcome of an answer and its cost: right, a false pass, a false stop, or wrong in another way.

A task with a normal answer (kit complete: yes) has two kinds of mistake. A false pass gives the normal answer where it
is wrong, and the cell goes on. A false stop gives another answer where the normal one is right, and the cell waits. A
missing answer never passes: it is a false stop if the normal answer is right, else wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lineside.types import Costs, Target
from lineside.verify.verifiers import verify, with_truth

Outcome = Literal["right", "false pass", "false stop", "wrong"]


def outcome(answer: str | None, target: Target, normal: str | None) -> Outcome:
    """The outcome of an answer in a task with the normal answer `normal`; None: the task has none.

    Worked: with the truth "no" and normal "yes" the answer "yes" is a false pass; with the truth "yes" the answer "no"
    is a false stop; "dented" for "torn" with normal "intact" is wrong.
    """
    if answer is not None and verify(answer, target).exact:
        return "right"
    if normal is None:
        return "wrong"
    if verify(normal, target).exact:
        return "false stop"
    return "false pass" if passes(answer, target, normal) else "wrong"


def passes(answer: str | None, target: Target, normal: str | None) -> bool:
    """Whether an answer is the normal one, right or wrong."""
    passing = with_truth(target, normal) if normal is not None else None
    return bool(answer and passing and verify(answer, passing).exact)


def cost(found: Outcome, costs: Costs) -> float:
    """What an outcome costs; a right answer costs nothing."""
    return {"right": 0.0, "false pass": costs.false_pass, "false stop": costs.false_stop, "wrong": costs.wrong}[found]


def costs_in(extra: Mapping[str, Any]) -> Costs | None:
    """The stakes in a sample, or None. Older samples have `false_alarm` for a false stop."""
    stakes = extra.get("stakes")
    if not isinstance(stakes, Mapping):
        return None
    known = {key: float(v) for key, v in stakes.items() if type(v) in (int, float) and 0 <= v < float("inf")}
    return Costs.of(
        known.get("wrong", 1.0),
        false_pass=known.get("false_pass"),
        false_stop=known.get("false_stop", known.get("false_alarm")),
        refusal=known.get("refusal"),
    )
