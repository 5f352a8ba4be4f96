"""The audit of a labelling job: the teacher answers questions with recorded answers, and is compared with the records.

`lineside.judgement.audit` counts and gives advice. An API is asked first; its answers go into the journal like all
others, within the budget, and are then read from the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineside.data.asking import ask
from lineside.data.dispatch import cost, replay
from lineside.data.labelling import Labelling
from lineside.data.ledger import Ledger
from lineside.data.plan import FrameQuestion
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement.audit import Audit, lines, render, with_pictures
from lineside.progress import say, track
from lineside.recipe import Label
from lineside.types import Frame

PAGE = "audit.html"


def is_audited(finished: Mapping[str, Any], limit: int | None) -> bool:
    """Whether a finished job has been audited on at least the requested number of frames."""
    done = finished.get("audit")
    return limit is None or (done is not None and (done["limit"] is None or done["limit"] >= limit))


def audit_teacher(
    job: Labelling, out: Path, ledger: Ledger | None = None, shard: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Compare the teacher of a planned job with the records, print the result and write its page into `out`.

    Returns the account; {} if no audit is requested, and for one rank of several. Raises LinesideError if no record
    answers any question or a file cannot be written, and as `ask`.
    """
    if job.audited.limit == 0 or (not job.audited.frames and job.audited.limit is None):
        return {}
    if not job.audited.frames:
        raise LinesideError(
            "audit: no training frame has a record that answers a question of the task files, so the teacher cannot be "
            "compared with anything"
        )
    if ledger is not None:
        ask(job, ledger, shard, audit=True)
        if shard is not None and shard[1] > 1:
            return {}
    account = _held(job, out, ledger)
    if account:
        for line in lines(account):
            say(f"label: {line}")
        write_atomic(out / PAGE, render(with_pictures(account, out), name=out.resolve().name))
        say(f"label: the confusions, with pictures, are in {out / PAGE}")
    return account


def _held(job: Labelling, out: Path, ledger: Ledger | None) -> dict[str, Any]:
    """The account; {} if the teacher gave no answers."""
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
        about |= {"unread": unread, "cost": _cost(usage, job.settings)}
    return found.to_json(out, **about)


def _said(
    job: Labelling, frame: Frame, asked: Sequence[FrameQuestion], ledger: Ledger | None, usage: Counter[str]
) -> dict[str, str] | None:
    """The teacher's answers by question; None if it gave none. Their cost is added to `usage`."""
    if job.api_teacher is None or ledger is None:
        told = ((one.id, job.teacher.answered(frame, one.task, one.candidate)) for one in asked)
        return {name: candidate.answer for name, candidate in told if candidate is not None}
    return replay(job.api_teacher.audit(frame, asked), ledger, job.settings.attempts, usage)


def _cost(usage: Mapping[str, int], prices: Label) -> dict[str, Any]:
    told: dict[str, Any] = {name: usage[name] for name in ("answers", "prompt_tokens", "completion_tokens")}
    usd = cost(prices, usage["prompt_tokens"], usage["completion_tokens"])
    return {**told, "usd": round(usd, 4)} if usd else told
