"""The front: HTTP in, requests to the engines, OpenAI's objects out. It holds no weights and never blocks."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lineside.judgement.outcomes import form_of, with_point
from lineside.judgement.typed import Form
from lineside.serving import replies
from lineside.serving.answering import Answerer
from lineside.serving.api import ApiError, Chat, Outcome, Questions, read
from lineside.serving.guard import HEADERS, Guard, Handler, failed, unrouted
from lineside.serving.metrics import Metrics
from lineside.serving.models import Model, Models
from lineside.serving.openapi import openapi
from lineside.serving.outcomes import Outcomes, Told, judge_truth
from lineside.serving.pictures import Decoder, Fetcher
from lineside.serving.requests import Reader

_PAGE = {"/": ("serve.html", "text/html"), "/serve.css": ("serve.css", "text/css")}
_PAGE |= {"/serve.js": ("serve.js", "text/javascript")}
_PAGE_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class FrontSettings:
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


class Front:
    """The handlers of one server."""

    def __init__(
        self, models: Models, settings: FrontSettings, home: Callable[[], Mapping[str, Any]] | None = None
    ) -> None:
        """`home`: how the machine stands with the home that its models come from."""
        self.models, self.metrics, self.home = models, Metrics(), home
        self.guard = Guard(settings.keys, settings.per_minute, settings.max_body, self.metrics)
        self.decoder = Decoder(max_pixels=settings.max_pixels)
        fetcher = Fetcher(settings.image_hosts, max_bytes=settings.max_body)
        self.reader = Reader(models, self.decoder, fetcher)
        self.outcomes = None
        if settings.outcomes is not None:
            days, most, frames = settings.outcome_days, settings.outcome_bytes, settings.outcome_frames
            self.outcomes = Outcomes(settings.outcomes, days=days, max_bytes=most, frames=frames)
        self.answerer = Answerer(self.metrics, self.outcomes, settings.max_waiting)

    def app(self) -> Starlette:
        """The application."""
        guarded: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/frames/questions": {"POST": self.frame_questions},
            "/v1/models": {"GET": self.list_models},
            "/v1/models/{name:path}": {"GET": self.one_model},
            "/v1/outcomes": {"POST": self.tell_outcome, "GET": self.last_outcomes},
            "/v1/outcomes/{name}": {"DELETE": self.delete_outcome},
            "/v1/timeline": {"GET": self.show_timeline},
            "/metrics": {"GET": self.show_metrics},
        }
        routes = [
            Route(path, self.guard(_by_method(handlers)), methods=list(handlers)) for path, handlers in guarded.items()
        ]
        routes += [Route("/healthz", self.health), Route("/readyz", self.readiness)]
        routes += [Route("/openapi.json", self.document, methods=["GET"])]
        routes += [Route(path, self.page, methods=["GET"]) for path in _PAGE]

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            if self.answerer.shadow is not None:
                await self.answerer.shadow.close()
            await self.models.close()
            self.decoder.close()
            if self.outcomes is not None:
                self.outcomes.close()

        return Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={HTTPException: unrouted, Exception: failed},
        )

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        chat = read(Chat, await self.guard.body(request))
        asked, name = await self.reader.chat(chat, request.state.at), f"chatcmpl-{uuid.uuid4().hex}"
        if asked.stream:
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            return await self.answerer.streamed(asked, name, usage=usage)
        done = await self.answerer.whole(request, asked)
        choices, own = self.answerer.choices(asked, done, name)
        kind = replies.envelope("chat.completion", name, asked.model.label, asked.model.version)
        return JSONResponse({**kind, "choices": choices, "usage": replies.usage(done), "lineside": own})

    async def frame_questions(self, request: Request) -> Response:
        """`POST /v1/frames/questions`."""
        asked = await self.reader.questions(read(Questions, await self.guard.body(request)), request.state.at)
        done, name = await self.answerer.whole(request, asked), f"frame-{uuid.uuid4().hex}"
        choices, own = self.answerer.choices(asked, done, name)
        answers = [
            {"question": one.question.text, "content": choice["message"]["content"], **choice["lineside"]}
            for one, choice in zip(asked.prompts, choices, strict=True)
        ]
        kind = replies.envelope("frame.answers", name, asked.model.label, asked.model.version)
        return JSONResponse({**kind, "answers": answers, "usage": replies.usage(done), "lineside": own})

    # --- outcomes

    def _kept(self) -> Outcomes:
        if self.outcomes is None:
            raise ApiError(404, "outcomes are not kept: start the server with --outcomes FILE", code="outcomes_off")
        return self.outcomes

    async def tell_outcome(self, request: Request) -> Response:
        """`POST /v1/outcomes`: the truth about an answer, judged by the verifier that trained the model, or a
        verdict."""
        told, kept = read(Outcome, await self.guard.body(request)), self._kept()
        with _usable():
            answer = kept.find(told.id)
        if answer is None:
            raise ApiError(404, "no answer of this id is kept (any more)", code="unknown_outcome", param="id")
        typed, form = answer["answer"], self._form(answer)
        truth, verdict = told.truth, told.verdict
        if truth is not None:
            truth, verdict = _judged(typed["text"], truth, form)
        assert verdict is not None
        with _usable():
            kept.tell(told.id, truth, verdict)
        if answer["verdict"] is None:
            self.metrics.judge(answer["model"], typed["task"] or "", verdict)
        return JSONResponse({"id": told.id, "verdict": verdict, "answer": typed["text"], "truth": truth})

    async def last_outcomes(self, request: Request) -> Response:
        """`GET /v1/outcomes`: the last hundred answers that are kept, newest first."""
        with _usable():
            return JSONResponse({"object": "list", "data": self._kept().last(100)})

    async def delete_outcome(self, request: Request) -> Response:
        """`DELETE /v1/outcomes/{id}`."""
        name = request.path_params["name"]
        with _usable():
            deleted = self._kept().delete(name)
        if not deleted:
            raise ApiError(404, "no answer of this id is kept (any more)", code="unknown_outcome", param="id")
        return JSONResponse({"id": name, "deleted": True})

    def _form(self, answer: Mapping[str, Any]) -> Form | None:
        """How a kept answer is compared: as its model did then; of a log of before, as the model of this name does."""
        with suppress(ValueError):
            if (form := form_of(answer["about"].get("form"))) is not None:
                return form
        model = self.models.by_name.get(answer["model"])
        return model.book.forms.get(answer["answer"]["task"] or "") if model is not None else None

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        own = {} if self.home is None else {"lineside": {"home": self.home()}}
        return JSONResponse({"object": "list", "data": [self._described(model) for model in self.models.all], **own})

    async def one_model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        return JSONResponse(self._described(self.reader.model(request.path_params["name"])))

    def _described(self, model: Model) -> dict[str, Any]:
        facts = model.engine.facts
        own = {"version": model.version, "tasks": _tasks(model), "roi": model.roi}
        own |= {name: facts[name] for name in ("references", "views")}
        return {
            "id": self.models.id_of(model),
            "object": "model",
            "created": int(_modified(model.engine.checkpoint)),
            "owned_by": "lineside",
            "max_model_len": facts["context"],
            "lineside": {**own, **self.models.facts(model)},
        }

    async def show_timeline(self, request: Request) -> Response:
        """`GET /v1/timeline`: the last day of each model, in at most 60 points."""
        days = {name: self.metrics.timeline.points(name) for name in self.models.names}
        return JSONResponse({name: {"minutes": minutes, "points": points} for name, (minutes, points) in days.items()})

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        states: dict[str, Counter[str]] = {}
        for model in self.models.all:  # those of single cells have the name of the others: they are added up
            states.setdefault(model.name, Counter()).update(model.engine.state)
        home = None if self.home is None else self.home()
        return Response(self.metrics.text(states, home), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: the front runs. It needs no key, so of home it tells no addresses and no folders."""
        if self.home is None:
            return JSONResponse({"status": "ok"})
        home = self.home()
        told = {name: home[name] for name in ("serial", "signed", "reached", "offline", "answers_waiting")}
        return JSONResponse({"status": "ok", "home": {**told, "well": not home["problem"]}})

    async def readiness(self, request: Request) -> Response:
        """`GET /readyz`: every model is warm and answers."""
        models = {name: self.models.state(name) for name in self.models.names}
        return JSONResponse({"ready": self.models.ready, "models": models}, 200 if self.models.ready else 503)

    async def document(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(openapi(), headers=HEADERS)

    async def page(self, request: Request) -> Response:
        """The page and its files. They hold nothing of a model, so they need no key."""
        name, kind = _PAGE[request.url.path]
        data = resources.files("lineside").joinpath("templates", name).read_bytes()
        return Response(data, media_type=kind, headers=_PAGE_HEADERS)


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    """One handler of a path, so that a method that it does not take is told all that it does."""

    async def handler(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return handler


def _judged(answer: str | None, truth: str, form: Form | None) -> tuple[str, Told]:
    """The truth as it is kept, and the verdict about an answer. Raises ApiError if it is none, or could be two."""
    try:
        truth = with_point(truth, form)
    except ValueError as error:
        raise ApiError(400, f"the truth {error}: write it without thousands, with a point", param="truth") from None
    if (verdict := judge_truth(answer, truth, form)) is None:
        expected = f"of the kind {form.value_kind}" if form is not None else "a short text"
        raise ApiError(400, f"this is no answer to the question: expected one {expected}", param="truth")
    return truth, verdict


@contextmanager
def _usable() -> Iterator[None]:
    """A file of outcomes that is full or busy is told so."""
    try:
        yield
    except sqlite3.Error:
        told = "the file of outcomes cannot be read or written at the moment: is its disk full?"
        raise ApiError(503, told, code="outcomes_unavailable", kind="server_error") from None


def _tasks(model: Model) -> dict[str, Any]:
    return {
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


def _modified(checkpoint: Path) -> float:
    with suppress(OSError):
        return (checkpoint / "config.json").stat().st_mtime
    return time.time()
