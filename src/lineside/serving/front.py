"""The front: HTTP in, requests to the engines, OpenAI's objects out. It holds no weights and never blocks."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lineside.data.template import fill
from lineside.errors import LinesideError
from lineside.progress import say
from lineside.serving import replies
from lineside.serving.api import (
    MAX_IMAGES,
    MAX_TOKENS,
    ApiError,
    Chat,
    FrameQuestion,
    ImagePart,
    Outcome,
    Questions,
    read,
)  # fmt: skip
from lineside.serving.keys import Keys, Rate
from lineside.serving.metrics import Metrics
from lineside.serving.models import Model, Models
from lineside.serving.outcomes import Outcomes, judge_truth
from lineside.serving.pictures import Decoder, Fetcher, data_url
from lineside.serving.replies import Question
from lineside.serving.scheduler import MARGIN, p95
from lineside.serving.worker import milliseconds
from lineside.types import Region

REPLY_MS = 3.0  # of a deadline that the front keeps for its reply, at least
REPLIES = 200  # times of replies that it remembers
BODY_SECONDS = 30.0  # for a whole body to arrive
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
_PAGE = {"/": ("serve.html", "text/html"), "/serve.css": ("serve.css", "text/css")}
_PAGE |= {"/serve.js": ("serve.js", "text/javascript")}
_PAGE_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server protects itself."""

    keys: tuple[str, ...] = ()
    per_minute: float = 0.0
    image_hosts: tuple[str, ...] = ()
    max_body: int = 32 << 20
    max_pixels: int = 32 << 20
    max_waiting: int = 256
    outcomes: Path | None = None
    outcome_days: float = 30.0
    outcome_bytes: int = 512 << 20
    outcome_frames: bool = False


@dataclass(slots=True)
class Asked:
    """A request, read and checked, ready for the engine."""

    model: Model
    questions: list[Question]
    frames: list[bytes]
    """The pictures as they came."""
    pictures: list[tuple[bytes, str]]
    """What the model is shown of them, with roles."""
    at: float
    deadline_ms: float | None
    picture_ms: float
    reply_ms: float
    """What the front takes from the engine's answer to its own."""
    options: dict[str, Any] = field(default_factory=dict)
    stream: bool = False

    @property
    def header(self) -> dict[str, Any]:
        """The message to the engine."""
        given = self.deadline_ms
        return {
            "prompts": [
                {"question": q.text, "thinking": q.thinking, "choices": q.named.choices} for q in self.questions
            ],
            "tasks": [q.named.task or "" for q in self.questions],
            "roles": [role for _, role in self.pictures],
            "deadline": None if given is None else self.at + given - self.reply_ms,
            "at": self.at,
            "stream": self.stream,
            "samples": 1, "temperature": 0.0, "seed": 0, "stop": [], "top": None,
            **self.options,
        }  # fmt: skip


class Front:
    """The handlers of one server."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.keys, self.rate = Keys(settings.keys), Rate(settings.per_minute)
        self.decoder = Decoder(max_pixels=settings.max_pixels)
        self.fetcher = Fetcher(settings.image_hosts, max_bytes=settings.max_body)
        self._replies: deque[float] = deque(maxlen=REPLIES)
        self.outcomes = None
        if settings.outcomes is not None:
            days, most, frames = settings.outcome_days, settings.outcome_bytes, settings.outcome_frames
            self.outcomes = Outcomes(settings.outcomes, days=days, max_bytes=most, frames=frames)

    def app(self) -> Starlette:
        """The application."""
        post: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/v1/chat/completions", self.chat),
            ("/v1/frames/questions", self.frame_questions),
            ("/v1/outcomes", self.tell_outcome),
        ]
        get: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/v1/models", self.list_models),
            ("/v1/models/{name:path}", self.one_model),
            ("/metrics", self.show_metrics),
            ("/v1/outcomes", self.last_outcomes),
        ]
        routes = [Route(path, self._guarded(handler), methods=["POST"]) for path, handler in post]
        routes += [Route(path, self._guarded(handler), methods=["GET"]) for path, handler in get]
        routes += [Route("/v1/outcomes/{name}", self._guarded(self.delete_outcome), methods=["DELETE"])]
        routes += [Route("/healthz", self.health), Route("/readyz", self.readiness)]
        routes += [Route(path, self.page, methods=["GET"]) for path in _PAGE]

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await self.models.close()
            self.decoder.close()
            if self.outcomes is not None:
                self.outcomes.close()

        return Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={HTTPException: self._unrouted, Exception: self._failed},
        )

    # --- guards

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A handler behind key and rate limit, whose errors become OpenAI's error objects."""

        async def guarded(request: Request) -> Response:
            request.state.at = milliseconds()
            try:
                self._admit(request)
                response = await handler(request)
            except ApiError as error:
                response = JSONResponse(error.body, error.status, error.headers)
            except ClientDisconnect:
                response = Response(status_code=499)
            self.metrics.http.labels(str(response.status_code)).inc()
            response.headers.update(HEADERS)
            return response

        return guarded

    def _admit(self, request: Request) -> None:
        who = self.keys.who(request.headers.get("authorization"))
        if who is None:
            raise ApiError(
                401, "no valid API key: send it as `Authorization: Bearer KEY`", code="invalid_api_key",
                kind="authentication_error",
            )  # fmt: skip
        client = who or (request.client.host if request.client else "")
        if request.method == "POST" and (seconds := self.rate.wait(client)):
            after = {"retry-after": str(int(seconds) + 1), "retry-after-ms": str(int(1000 * seconds) + 1)}
            raise ApiError(
                429, f"more than {self.settings.per_minute:g} requests a minute with this key",
                code="rate_limit_exceeded", kind="rate_limit_error", headers=after,
            )  # fmt: skip

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "expected a body of Content-Type: application/json", code="unsupported_media_type")
        most = self.settings.max_body
        too_large = ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s", code="body_timeout") from None
        return b"".join(chunks)

    @staticmethod
    async def _unrouted(request: Request, error: Any) -> Response:
        status = error.status_code
        told = {404: "no such path; see /v1/models", 405: "this path takes another method"}.get(status, "refused")
        return JSONResponse(ApiError(status, told, code="not_found").body, status, headers=HEADERS)

    @staticmethod
    async def _failed(request: Request, error: Exception) -> Response:
        say(f"serve: a bug in lineside, {type(error).__name__}, at {request.url.path}")  # nothing of the request
        body = ApiError(500, "the server failed on this request", code="internal_error", kind="server_error").body
        return JSONResponse(body, 500, headers=HEADERS)

    # --- reading a request

    def _model(self, name: str) -> Model:
        if (model := self.models.by_name.get(name)) is None:
            known = ", ".join(self.models.by_name)
            told = f"no model {name[:80]!r}: this server has {known}"
            raise ApiError(404, told, code="model_not_found", param="model")
        return model

    async def _picture(self, url: str) -> bytes:
        return data_url(url) if url[:5].lower() == "data:" else await self.fetcher.get(url)

    async def _pictures(
        self, model: Model, urls: Sequence[str], camera: str | None, roi: str | None
    ) -> tuple[list[bytes], list[tuple[bytes, str]], Region | None]:
        """The pictures, what the model is shown of them, and the region if there is one picture."""
        frames = [await self._picture(url) for url in urls]
        shown: list[tuple[bytes, str]] = []
        region = None
        for data in frames:
            parts, region = await self.decoder.show(data, roi=model.roi, camera=camera, box=roi)
            shown += parts
        return frames, shown, region if len(urls) == 1 else None

    def _question(self, model: Model, asked: FrameQuestion, region: Region | None) -> Question:
        """A question with its task. Raises ApiError where the task is not known or there is no text."""
        try:
            text = asked.question or self._phrased(model, asked)
            named = model.book.find(text, asked.task)
        except LinesideError as error:
            raise ApiError(400, str(error), code="unknown_task", param="lineside.task") from None
        if not text.strip():
            raise ApiError(400, "the question is empty", code="invalid_value", param="messages")
        thinking = model.book.thinks(named.task)[0] if asked.thinking is None else asked.thinking
        return Question(text, named, thinking, region)

    @staticmethod
    def _phrased(model: Model, asked: FrameQuestion) -> str:
        """The first phrasing of a task, with its slots filled. Raises LinesideError."""
        if asked.task is None:
            raise LinesideError("there is no question: write a text, or name a task and its slots")
        form = model.book.find("", asked.task).form
        if form is None or not form.phrasings:
            raise LinesideError(f"the checkpoint does not say how {asked.task} is asked: write the question as a text")
        return fill(form.phrasings[0], asked.slots, f"slots of {asked.task}") or ""

    @staticmethod
    def _deadline(given: float | None, questions: Sequence[Question], named: Sequence[str | None]) -> float | None:
        """The deadline in ms: the request's, else the shortest budget of the tasks that it names, else none."""
        if given is not None:
            return given
        forms = [question.named.form for question, name in zip(questions, named) if name is not None]
        budgets = [form.budget_ms for form in forms if form is not None and form.budget_ms is not None]
        return min(budgets) if budgets else None

    def _reply_ms(self) -> float:
        """The time that a reply takes after the engine's answer: the 95th percentile of the last ones, and a margin."""
        return max(REPLY_MS, MARGIN * p95(self._replies)) if self._replies else REPLY_MS

    # --- the paths

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        at = request.state.at
        chat = read(Chat, await self._body(request))
        model, own = self._model(chat.model), chat.lineside
        text, urls = _turn(chat)
        frames, shown, region = await self._pictures(model, urls, own.camera, own.roi)
        picture_ms = milliseconds() - at
        thinking = own.thinking
        if thinking is None and chat.chat_template_kwargs is not None:
            thinking = chat.chat_template_kwargs.enable_thinking
        asked = FrameQuestion(question=text or None, task=own.task, slots=own.slots, thinking=thinking)
        question = self._question(model, asked, region)
        most = chat.max_completion_tokens or chat.max_tokens
        ready = Asked(
            model, [question], frames, shown, at, self._deadline(own.deadline_ms, [question], [own.task]), picture_ms,
            self._reply_ms(),
            options={
                "max_tokens": most or MAX_TOKENS,
                "clamp": most is None,
                "samples": chat.n or 1,
                "temperature": chat.temperature or 0.0,
                "seed": (chat.seed or 0) % 2**63,
                "stop": chat.stops,
                "top": (chat.top_logprobs or 0) if chat.logprobs else None,
            },
            stream=bool(chat.stream),
        )  # fmt: skip
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if chat.stream:
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            return await self._streamed(ready, name, usage=usage)
        done = await self._answer(request, ready)
        choices, own_fields = self._choices(ready, done, name)
        kind = replies.envelope("chat.completion", name, model.name, model.version)
        return JSONResponse({**kind, "choices": choices, "usage": replies.usage(done), "lineside": own_fields})

    async def frame_questions(self, request: Request) -> Response:
        """`POST /v1/frames/questions`."""
        at = request.state.at
        asked = read(Questions, await self._body(request))
        model = self._model(asked.model)
        urls = asked.images or [asked.image or ""]
        frames, shown, region = await self._pictures(model, urls, asked.camera, asked.roi)
        picture_ms = milliseconds() - at
        questions = [self._question(model, one, region) for one in asked.questions]
        deadline = self._deadline(asked.deadline_ms, questions, [one.task for one in asked.questions])
        options = {"max_tokens": asked.max_tokens or MAX_TOKENS, "clamp": asked.max_tokens is None}
        ready = Asked(model, questions, frames, shown, at, deadline, picture_ms, self._reply_ms(), options=options)
        done = await self._answer(request, ready)
        name = f"frame-{uuid.uuid4().hex}"
        choices, own_fields = self._choices(ready, done, name)
        answers = [
            {"question": question.text, "content": choice["message"]["content"], **choice["lineside"]}
            for question, choice in zip(questions, choices)
        ]
        kind = replies.envelope("frame.answers", name, model.name, model.version)
        return JSONResponse({**kind, "answers": answers, "usage": replies.usage(done), "lineside": own_fields})

    # --- outcomes

    def _kept(self) -> Outcomes:
        if self.outcomes is None:
            raise ApiError(404, "outcomes are not kept: start the server with --outcomes FILE", code="outcomes_off")
        return self.outcomes

    async def tell_outcome(self, request: Request) -> Response:
        """`POST /v1/outcomes`: the truth about an answer, judged by the verifier that trained the model."""
        told, kept = read(Outcome, await self._body(request)), self._kept()
        if (answer := kept.find(told.id)) is None:
            raise ApiError(404, "no answer of this id is kept (any more)", code="unknown_outcome", param="id")
        typed, model = answer["answer"], self.models.by_name.get(answer["model"])
        form = model.book.forms.get(typed["task"] or "") if model is not None else None
        if (verdict := judge_truth(typed["text"], told.truth, form)) is None:
            expected = f"of the kind {form.value_kind}" if form is not None else "a short text"
            raise ApiError(400, f"this is no answer to the question: expected one {expected}", param="truth")
        if answer["verdict"] is None:
            self.metrics.verdicts.labels(answer["model"], typed["task"] or "", verdict).inc()
        kept.tell(told.id, told.truth, verdict)
        return JSONResponse({"id": told.id, "verdict": verdict, "answer": typed["text"], "truth": told.truth})

    async def last_outcomes(self, request: Request) -> Response:
        """`GET /v1/outcomes`: the last hundred answers that are kept, newest first."""
        return JSONResponse({"object": "list", "data": self._kept().last(100)})

    async def delete_outcome(self, request: Request) -> Response:
        """`DELETE /v1/outcomes/{id}`."""
        name = request.path_params["name"]
        if not self._kept().delete(name):
            raise ApiError(404, "no answer of this id is kept (any more)", code="unknown_outcome", param="id")
        return JSONResponse({"id": name, "deleted": True})

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [_described(m) for m in self.models.by_name.values()]})

    async def one_model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        return JSONResponse(_described(self._model(request.path_params["name"])))

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        states = {name: model.engine.state for name, model in self.models.by_name.items()}
        return Response(self.metrics.text(states), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: the front runs."""
        return JSONResponse({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        """`GET /readyz`: every model is warm and answers."""
        return JSONResponse({"ready": self.models.ready}, 200 if self.models.ready else 503)

    async def page(self, request: Request) -> Response:
        """The page and its files. They hold nothing of a model, so they need no key."""
        name, kind = _PAGE[request.url.path]
        data = resources.files("lineside").joinpath("templates", name).read_bytes()
        return Response(data, media_type=kind, headers=_PAGE_HEADERS)

    # --- asking the engine

    async def _answer(self, request: Request, asked: Asked) -> dict[str, Any]:
        """The engine's rows. A client that hangs up cancels its request. Raises ApiError."""
        gone = asyncio.create_task(_hung_up(request))
        rows = asyncio.create_task(self._rows(asked))
        try:
            await asyncio.wait({gone, rows}, return_when=asyncio.FIRST_COMPLETED)
            if rows.done():
                return rows.result()
            self.metrics.cancelled.labels(asked.model.name).inc()
            raise ClientDisconnect
        finally:
            for task in (gone, rows):
                task.cancel()
                with suppress(asyncio.CancelledError, ApiError):
                    await task

    async def _rows(self, asked: Asked) -> dict[str, Any]:
        async with aclosing(self._messages(asked)) as messages:
            async for message in messages:
                if message["kind"] == "done":
                    return message
        raise AssertionError("the messages about a request end with an answer or an error")

    async def _messages(self, asked: Asked) -> AsyncGenerator[dict[str, Any], None]:
        """What the engine says of a request. Raises ApiError where it has no answer."""
        name, engine = asked.model.name, asked.model.engine
        if asked.deadline_ms is None and engine.state["waiting"] >= self.settings.max_waiting:
            self.metrics.refused.labels(name, "queue").inc()
            raise ApiError(
                429, "too many requests without a deadline wait already", code="overloaded", kind="rate_limit_error",
                headers={"retry-after": "1"},
            )  # fmt: skip
        blobs = [data for data, _ in asked.pictures]
        async with aclosing(engine.ask(asked.header, blobs)) as messages:
            async for message in messages:
                if message["kind"] == "refused":
                    raise self._refused(asked, message)
                if message["kind"] == "failed" and message["bad"]:
                    raise ApiError(400, message["message"], code="context_length_exceeded")
                if message["kind"] in ("failed", "gone"):
                    raise ApiError(500, "the engine failed on this request", code="engine_error", kind="server_error")
                yield message

    def _refused(self, asked: Asked, message: Mapping[str, Any]) -> ApiError:
        self.metrics.refused.labels(asked.model.name, "deadline").inc()
        needs, retry = message["needs"], message["retry"]
        given = asked.deadline_ms or 0.0
        told = f"it cannot be answered within {given:.0f} ms: alone it takes about {needs + asked.picture_ms:.0f} ms"
        headers = {"x-should-retry": "false"}
        if retry is not None:
            told += f", and accepted requests come first; another could be accepted in about {retry:.0f} ms"
            headers["retry-after-ms"] = str(max(1, round(retry)))
        error = ApiError(503, told, code="deadline_unmet", kind="deadline_error", headers=headers)
        error.body["error"]["lineside"] = {"needs_ms": needs, "retry_after_ms": retry, "deadline_ms": given}
        return error

    def _choices(
        self, asked: Asked, done: Mapping[str, Any], reply: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """OpenAI's choices, each with its typed answer, and the fields of the whole answer. Counts the metrics, and
        keeps the answers if outcomes are kept."""
        model, total = asked.model, milliseconds() - asked.at
        metrics, name = self.metrics, model.name
        choices = []
        for index, row in enumerate(done["rows"]):
            question = asked.questions[row["prompt"]]
            one = replies.answered(
                row, question, model.book, think_close=model.engine.facts["think_close"], ms=total,
                temperature=asked.options.get("temperature", 0.0),
            )  # fmt: skip
            top, own = asked.options.get("top"), replies.own_fields(row, one)
            if self.outcomes is not None:
                own["outcome_id"] = f"{reply}-{index}"
                version = {"model": name, "version": model.version}
                self.outcomes.keep(own["outcome_id"], asked.frames, question.text, one.typed, **version)
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
        usage = replies.usage(done)
        metrics.prompt.labels(name).inc(usage["prompt_tokens"])
        metrics.prefix_queries.labels(name).inc(usage["prompt_tokens"])
        metrics.prefix_hits.labels(name).inc(usage["prompt_tokens_details"]["cached_tokens"])
        metrics.written.labels(name).inc(usage["completion_tokens"])
        metrics.latency.labels(name).observe(total / 1000)
        metrics.queue.labels(name).observe(ms["queue"] / 1000)
        if asked.deadline_ms is not None:
            met = total <= asked.deadline_ms and all(row["reason"] != "deadline" for row in done["rows"])
            metrics.deadline.labels(name, "met" if met else "missed").inc()
        return choices, {
            "ms": {phase: round(spent, 3) for phase, spent in ms.items()},
            "deadline_ms": asked.deadline_ms,
            "thinking": "cut" if "cut" in thoughts else "full" if "full" in thoughts else "off",
            "version": model.version,
        }

    async def _streamed(self, asked: Asked, name: str, *, usage: bool) -> Response:
        """Server-sent events. What is refused is refused with its status, before anything is sent."""
        messages = self._messages(asked)
        first = await anext(messages)  # that it is accepted; else an error
        kind = replies.envelope("chat.completion.chunk", name, asked.model.name, asked.model.version)

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
                    choices, own = self._choices(asked, message, name)
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
                    self.metrics.cancelled.labels(asked.model.name).inc()
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _turn(chat: Chat) -> tuple[str, list[str]]:
    """(question, URLs of the pictures) of a conversation of one turn. Raises ApiError for any other."""
    for number, message in enumerate(chat.messages):
        if message.role != "user" or number:
            raise ApiError(
                400,
                f"messages.{number}: the model answers one question about pictures: send one message of the user, with "
                "no system message and no earlier turns, which it was not trained on",
                code="unsupported_message",
                param=f"messages.{number}",
            )
    content = chat.messages[0].content
    if isinstance(content, str):
        return content, []
    texts = [part.text for part in content if not isinstance(part, ImagePart)]
    urls = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    if len(urls) > MAX_IMAGES:
        raise ApiError(400, f"{len(urls)} pictures: at most {MAX_IMAGES}", code="invalid_value", param="messages")
    return "\n".join(texts), urls


async def _hung_up(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _described(model: Model) -> dict[str, Any]:
    tasks = {
        name: {
            "kind": form.value_kind,
            "unit": form.unit or None,
            "options": list(form.options),
            "budget_ms": form.budget_ms,
            "phrasings": list(form.phrasings),
            "thinking": model.book.thinks(name)[0],
        }
        for name, form in sorted(model.book.forms.items())
    }
    return {
        "id": model.name,
        "object": "model",
        "created": int(_modified(model.engine.checkpoint)),
        "owned_by": "lineside",
        "max_model_len": model.engine.facts["context"],
        "lineside": {"version": model.version, "tasks": tasks, "roi": model.roi},
    }


def _modified(checkpoint: Path) -> float:
    with suppress(OSError):
        return (checkpoint / "config.json").stat().st_mtime
    return time.time()
