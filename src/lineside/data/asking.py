"""A labelling job's conversations with the endpoint of its teacher: run, saved in the journal, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lineside.data.api_teacher import Wants
from lineside.data.dispatch import BudgetReached, Conversation, Dispatcher, cost
from lineside.data.endpoint import Endpoint
from lineside.data.labelling import Labelling
from lineside.data.ledger import Ledger
from lineside.progress import say, track


def ask(job: Labelling, ledger: Ledger, shard: tuple[int, int] | None = None, *, audit: bool = False) -> int:
    """Ask the teacher about every frame that needs it; returns the number of frames. Replies in the ledger are not
    requested again.

    `shard` (rank, ranks): a share of the frames. `audit`: questions with recorded answers, about the frames of the
    audit. Raises BudgetReached or, if the endpoint does not work, LinesideError; finished work is kept in both cases.
    """
    teacher, settings, (rank, ranks) = job.api_teacher, job.settings, shard or (0, 1)
    assert teacher is not None
    talks: Iterator[Conversation[Any]]
    if audit:
        talks = (teacher.audit(frame, asked) for place, frame, asked in job.to_audit() if place % ranks == rank)
    else:
        mine = (frame for place, frame in job.good_frames() if place % ranks == rank)
        talks = (teacher.converse(frame, wants) for frame in mine if (wants := job.wants(frame)) != Wants())
    total, what = (job.audited.frames, "audit: ask") if audit else (job.to_ask, "ask")
    total //= ranks
    dispatcher = Dispatcher(lambda: Endpoint(settings), ledger, settings)
    before, done = ledger.requests, 0
    try:
        for _ in track(dispatcher.run(talks), total=total, unit="frames", label=f"label: {what}"):
            done += 1
    except BudgetReached as error:
        raise BudgetReached(
            f"{error}: {done:,} of {total:,} frames are finished and kept: run again with a larger budget to continue"
        ) from None
    finally:
        tally, usd = dispatcher.tally, cost(settings, ledger.prompt_tokens, ledger.completion_tokens)
        say(
            f"label: {ledger.requests - before:,} requests in this run ({tally['error']:,} failed and "
            f"{tally['turned away']:,} met a busy endpoint); this folder has used {ledger.requests:,} requests, "
            f"{ledger.prompt_tokens:,} tokens in, {ledger.completion_tokens:,} out" + (f", {usd:.2f} $" if usd else "")
        )
    return done
