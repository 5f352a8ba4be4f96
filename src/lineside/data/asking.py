"""A labelling job's conversations with the endpoint of its teacher: run, saved in the journal, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lineside.data.api_teacher import Wants
from lineside.data.dispatch import BudgetReached, Conversation, Dispatcher
from lineside.data.endpoint import Endpoint
from lineside.data.job import Api
from lineside.data.labelling import Labelling
from lineside.data.ledger import Ledger
from lineside.progress import say, track


def ask(job: Labelling, ledger: Ledger, api: Api) -> dict[str, Any]:
    """Ask the teacher about every frame that needs it; returns the usage of one rank. Raises as `_hold`."""
    assert job.api_teacher is not None
    rank, ranks = api.shard or (0, 1)
    conversations = (
        job.api_teacher.converse(frame, wants)
        for position, frame in job.good_frames()
        if position % ranks == rank and (wants := job.wants(frame)) != Wants()
    )
    done = _hold(conversations, ledger, api, total=job.to_ask // ranks, what="ask")
    if ranks > 1:
        say(f"label: rank {rank} of {ranks} is done; when all are, run label without a shard to write the samples")
    return {"asked": done, "requests": ledger.requests, "rank": rank, "ranks": ranks}


def ask_for_audit(job: Labelling, ledger: Ledger, api: Api) -> None:
    """Ask the teacher questions with recorded answers, about the frames of the audit. Raises as `_hold`."""
    assert job.api_teacher is not None
    rank, ranks = api.shard or (0, 1)
    conversations = (
        job.api_teacher.audit(frame, asked) for position, frame, asked in job.to_audit() if position % ranks == rank
    )
    _hold(conversations, ledger, api, total=job.audited.frames // ranks, what="audit: ask")


def _hold(conversations: Iterator[Conversation[Any]], ledger: Ledger, api: Api, *, total: int, what: str) -> int:
    """Run conversations, one for each frame. Replies in the ledger are not requested again. Returns their number.

    Raises BudgetReached or, if the endpoint does not work, LinesideError; finished work is kept in both cases.
    """

    def connect() -> Endpoint:
        return Endpoint(api.base_url, api.key_env, api.asking, timeout=api.operation.timeout)

    dispatcher = Dispatcher(connect, ledger, api.operation, retry_failed=api.retry_failed)
    before, done = ledger.requests, 0
    try:
        for _ in track(dispatcher.run(conversations), total=total, unit="frames", label=f"label: {what}"):
            done += 1
    except BudgetReached as error:
        raise BudgetReached(
            f"{error}: {done:,} of {total:,} frames are finished and kept: run again with a larger budget to continue"
        ) from None
    finally:
        tally = dispatcher.tally
        cost = api.operation.budget.cost(ledger.prompt_tokens, ledger.completion_tokens)
        say(
            f"label: {ledger.requests - before:,} requests in this run ({tally['error']:,} failed and "
            f"{tally['turned away']:,} met a busy endpoint); this folder has used {ledger.requests:,} requests, "
            f"{ledger.prompt_tokens:,} tokens in, {ledger.completion_tokens:,} out"
            + (f", {cost:.2f} $" if cost else "")
        )
    return done
