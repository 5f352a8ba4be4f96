"""The audit pass of a labelling job: whoever teaches is asked what the records know, and held against them.

What is counted, and what follows from it, is in `lineside.judgement.audit`. An API is asked first and its answers are
journalled like all others, within the budget; what it said is then read from the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineside.data.asking import ask_for_audit
from lineside.data.dispatch import Budget, replay
from lineside.data.job import Api
from lineside.data.labelling import Labelling
from lineside.data.ledger import Ledger
from lineside.data.plan import FrameQuestion
from lineside.errors import LinesideError
from lineside.judgement.audit import Audit, lines, render, with_pictures
from lineside.judgement.files import write_atomic
from lineside.progress import say, track
from lineside.types import Frame

PAGE = "audit.html"


def is_audited(finished: Mapping[str, Any], limit: int | None) -> bool:
    """Whether a finished job has been audited on as many frames as are wanted."""
    done = finished.get("audit")
    return limit is None or (done is not None and (done["limit"] is None or done["limit"] >= limit))


def audit_teacher(job: Labelling, out: Path, ledger: Ledger | None = None, api: Api | None = None) -> dict[str, Any]:
    """Hold the teacher of a planned job against the records, tell what came of it and write its page into `out`.

    Returns the account; {} where none was wanted, and for one rank of several. Raises LinesideError where no record
    knows anything that could be asked or a file cannot be written, and as `ask_for_audit`.
    """
    if job.audited.limit == 0:
        return {}
    if not job.audited.frames and job.audited.limit is None:
        return {}
    if not job.audited.frames:
        raise LinesideError(
            "audit: no training frame has a record that answers a question of the task files, so there is nothing to "
            "hold the teacher against"
        )
    if ledger is not None and api is not None:
        ask_for_audit(job, ledger, api)
        if api.shard is not None and api.shard[1] > 1:
            return {}
    account = _held(job, out, ledger, api.operation.budget if api is not None else None)
    if account:
        for line in lines(account):
            say(f"label: {line}")
        write_atomic(out / PAGE, render(with_pictures(account, out), name=out.resolve().name))
        say(f"label: the confusions, with pictures, are in {out / PAGE}")
    return account


def _held(job: Labelling, out: Path, ledger: Ledger | None, prices: Budget | None) -> dict[str, Any]:
    """The account; {} where the teacher could not be heard."""
    found, usage, unread = Audit(), Counter[str](), 0
    frames = track(job.to_audit(), total=job.audited.frames, unit="frames", label="label: audit")
    for _, frame, asked in frames:
        said = _said(job, frame, asked, ledger, usage)
        if said is None:
            unread += 1
            continue
        for one in asked:
            found.add(
                frame=frame.id,
                scene=frame.meta.scene,
                task=f"{frame.family}/{one.task.name}",
                question=one.candidate.question,
                truth=one.candidate.answer,
                target=one.candidate.target,
                said=said.get(one.id),
                image=frame.image,
            )
    if not found.n:
        return {}
    about: dict[str, Any] = {"limit": job.audited.limit}
    if job.api_teacher is not None:
        about |= {"unread": unread, "cost": _cost(usage, prices)}
    return found.to_json(out, **about)


def _said(
    job: Labelling, frame: Frame, asked: Sequence[FrameQuestion], ledger: Ledger | None, usage: Counter[str]
) -> dict[str, str] | None:
    """The teacher's answers by question; None where it could not be heard. What they cost is added to `usage`."""
    if job.api_teacher is None or ledger is None:
        told = ((one.id, job.teacher.answered(frame, one.task, one.candidate)) for one in asked)
        return {name: candidate.answer for name, candidate in told if candidate is not None}
    return replay(job.api_teacher.audit(frame, asked), ledger, job.api_teacher.asking.attempts, usage)


def _cost(usage: Mapping[str, int], prices: Budget | None) -> dict[str, Any]:
    cost: dict[str, Any] = {name: usage[name] for name in ("answers", "prompt_tokens", "completion_tokens")}
    usd = prices.cost(usage["prompt_tokens"], usage["completion_tokens"]) if prices is not None else 0.0
    return {**cost, "usd": round(usd, 4)} if usd else cost
