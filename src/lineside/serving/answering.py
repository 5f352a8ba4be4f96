"""From an engine's rows to the reply, whole or as a stream: OpenAI's objects, typed answers, metrics, outcomes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, nullcontext, suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from lineside.data.views import missing_views
from lineside.judgement.taskbook import UNUSED
from lineside.serving import replies
from lineside.serving.api import ApiError
from lineside.serving.metrics import Metrics
from lineside.serving.outcomes import Outcomes
from lineside.serving.requests import ReadRequest
from lineside.serving.scheduler import MARGIN, p95
from lineside.serving.shadow import Shadow
from lineside.serving.worker import milliseconds

REPLY_MS = 3.0  # of a deadline that the front keeps for its reply, at least
REPLIES = 200  # times of replies that it remembers
# The code and the field of a request that an engine refuses.
_BLAME = {"form": ("invalid_response_format", "response_format"), "context": ("context_length_exceeded", "messages")}


class Answerer:
    """Asks the engines, and makes replies of what they say."""

    def __init__(self, metrics: Metrics, outcomes: Outcomes | None, max_waiting: int) -> None:
        self._metrics, self._outcomes, self._max_waiting = metrics, outcomes, max_waiting
        self.shadow = Shadow(metrics, outcomes) if outcomes is not None else None
        self._replies: deque[float] = deque(maxlen=REPLIES)

    def _reply_ms(self) -> float:
        """The time that a reply takes after the engine's answer: the 95th percentile of the last ones, and a margin."""
        return max(REPLY_MS, MARGIN * p95(self._replies)) if self._replies else REPLY_MS

    async def whole(self, request: Request, asked: ReadRequest) -> dict[str, Any]:
        """The engine's rows. A client that hangs up cancels its request. Raises ApiError."""
        gone = asyncio.create_task(_hung_up(request))
        rows = asyncio.create_task(self._rows(asked))
        try:
            await asyncio.wait({gone, rows}, return_when=asyncio.FIRST_COMPLETED)
            if rows.done():
                return rows.result()
            self._metrics.cancelled.labels(asked.model.name).inc()
            raise ClientDisconnect
        finally:
            for task in (gone, rows):
                task.cancel()
                with suppress(asyncio.CancelledError, ApiError):
                    await task

    async def _rows(self, asked: ReadRequest) -> dict[str, Any]:
        async with aclosing(self._messages(asked)) as messages:
            async for message in messages:
                if message["kind"] == "done":
                    return message
        raise AssertionError("the messages about a request end with an answer or an error")

    async def _messages(self, asked: ReadRequest) -> AsyncGenerator[dict[str, Any], None]:
        """What the engine says of a request, to which all shadows give way. Raises ApiError where it has no answer."""
        name, engine = asked.model.name, asked.model.engine
        if asked.deadline_ms is None and engine.pending >= self._max_waiting:
            self._metrics.refuse(name, "queue")
            raise ApiError(
                429, "too many requests without a deadline wait already", code="overloaded", kind="rate_limit_error",
                headers={"retry-after": "1"},
            )  # fmt: skip
        blobs = [picture.data for picture in asked.pictures]
        with self.shadow.giving_way() if self.shadow is not None else nullcontext():
            async with aclosing(engine.ask(asked.header(self._reply_ms()), blobs)) as messages:
                async for message in messages:
                    if (error := self._error(asked, message)) is not None:
                        raise error
                    yield message

    def _error(self, asked: ReadRequest, message: Mapping[str, Any]) -> ApiError | None:
        """What a message says that ends a request without an answer."""
        if message["kind"] == "refused":
            return self._refused(asked, message)
        if message["kind"] == "failed" and message["bad"]:
            code, param = _BLAME["form" if message["form"] else "context"]
            return ApiError(400, message["message"], code=code, param=param)
        if message["kind"] in ("failed", "gone"):
            return ApiError(500, "the engine failed on this request", code="engine_error", kind="server_error")
        return None

    def _refused(self, asked: ReadRequest, message: Mapping[str, Any]) -> ApiError:
        self._metrics.refuse(asked.model.name, "deadline")
        needs, retry = message["needs"], message["retry"]
        given = asked.deadline_ms or 0.0
        told = f"it cannot be answered within {given:g} ms: alone it takes about {needs + asked.picture_ms:.0f} ms"
        headers = {"x-should-retry": "false"}
        if retry is not None:
            told += f", and accepted requests come first; another could be accepted in about {retry:.0f} ms"
            headers["retry-after-ms"] = str(max(1, round(retry)))
        error = ApiError(503, told, code="deadline_unmet", kind="deadline_error", headers=headers)
        error.body["error"]["lineside"] = {"needs_ms": needs, "retry_after_ms": retry, "deadline_ms": given}
        return error

    def choices(
        self, asked: ReadRequest, done: Mapping[str, Any], reply: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """OpenAI's choices, each with its typed answer, and the fields of the whole answer. Counts the metrics, and
        keeps the answers if outcomes are kept."""
        model, total = asked.model, milliseconds() - asked.at
        metrics, name = self._metrics, model.name
        choices = []
        for index, row in enumerate(done["rows"]):
            question = asked.prompts[row["prompt"]].question
            one = replies.answered(
                row, question, model.book, think_close=model.engine.facts["think_close"], ms=total,
                temperature=asked.options.get("temperature", 0.0),
            )  # fmt: skip
            top, own = asked.options.get("top"), replies.own_fields(row, one)
            if self._outcomes is not None:
                about, outcome = asked.about(asked.prompts[row["prompt"]]), f"{reply}-{index}"
                if self._outcomes.keep(
                    outcome, asked.frames, question.text, one.typed, model=name, version=model.version, about=about
                ):
                    own["outcome_id"] = outcome
                else:
                    metrics.lost.labels(name).inc()
            choices.append(
                {
                    "index": index,
                    "message": replies.message(row),
                    "finish_reason": replies.FINISH[row["reason"]],
                    "logprobs": None if top is None else replies.logprobs(row, done["texts"]),
                    "lineside": own,
                }
            )
            metrics.success.labels(name, row["reason"]).inc()
            metrics.thinking.labels(name, one.thought).inc()
            metrics.decision.labels(name, question.named.task or "", one.typed.decision).inc()
        self._replies.append(milliseconds() - done["ended"])
        ms = {"picture": asked.picture_ms, **done["ms"], "total": total}
        ms["queue"] = max(0.0, ms["queue"] - asked.picture_ms)
        thoughts = {choice["lineside"]["thinking"] for choice in choices}
        met = None
        if asked.deadline_ms is not None:
            met = total <= asked.deadline_ms and all(row["reason"] != "deadline" for row in done["rows"])
        metrics.count(name, replies.usage(done), ms, met=met)
        if self.shadow is not None and "cut" not in thoughts:  # another one would have more time to think
            self.shadow.offer(asked, [choice["lineside"].get("outcome_id", "") for choice in choices])
        unused = any(one.role == "reference" for one in asked.pictures) and not model.engine.facts["references"]
        views = [one for one in asked.pictures if one.role == "view"]
        notes = [UNUSED] * unused + [missing_views(views, model.engine.facts["views"])]
        return choices, {
            "ms": {phase: round(spent, 3) for phase, spent in ms.items()},
            "deadline_ms": asked.deadline_ms,
            "thinking": "cut" if "cut" in thoughts else "full" if "full" in thoughts else "off",
            "version": model.version,
            **({"note": "; ".join(filter(None, notes))} if any(notes) else {}),
        }

    async def streamed(self, asked: ReadRequest, name: str, *, usage: bool) -> Response:
        """Server-sent events. What is refused is refused with its status, before anything is sent."""
        messages = self._messages(asked)
        first = await anext(messages)  # that it is accepted; else an error
        kind = replies.envelope("chat.completion.chunk", name, asked.model.label, asked.model.version)

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps({**kind, 'choices': choices, **more})}\n\n"

        def delta(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
            return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **more}

        async def events() -> AsyncIterator[str]:
            assert first["kind"] == "accepted"
            complete = False
            try:
                for index in range(asked.options["samples"]):
                    yield event([delta(index, {"role": "assistant", "content": ""})])
                async for message in messages:
                    if message["kind"] == "delta":
                        if "content" in message:
                            yield event([delta(message["row"], {"content": message["content"]})])
                        else:
                            text = message["reasoning"]
                            yield event([delta(message["row"], {"reasoning": text, "reasoning_content": text})])
                        continue
                    choices, own = self.choices(asked, message, name)
                    for choice in choices:
                        last = {"finish_reason": choice["finish_reason"], "logprobs": choice["logprobs"]}
                        yield event([delta(choice["index"], {}, **last, lineside=choice["lineside"])], lineside=own)
                    if usage:
                        yield event([], usage=replies.usage(message))
                complete = True
            except ApiError as error:
                yield f"data: {json.dumps(error.body)}\n\n"
                complete = True
            finally:
                await messages.aclose()
                if not complete:
                    self._metrics.cancelled.labels(asked.model.name).inc()
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _hung_up(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
