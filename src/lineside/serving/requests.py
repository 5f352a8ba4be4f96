"""From a request's JSON to what an engine is asked: pictures decoded, questions with their tasks, the deadline."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lineside.data.template import fill, slots
from lineside.data.views import arranged
from lineside.errors import LinesideError
from lineside.serving.api import (
    MAX_IMAGES,
    MAX_TOKENS,
    ApiError,
    Chat,
    FrameQuestion,
    ImagePart,
    Questions,
    Reference,
    ResponseFormat,
    View,
)
from lineside.serving.models import Model, Models
from lineside.serving.outcomes import About
from lineside.serving.pictures import Decoder, Fetcher, data_url
from lineside.serving.replies import Question
from lineside.serving.worker import milliseconds
from lineside.types import Image, Region

MAX_SHOWN = 512 << 20  # bytes of a request's pictures as the engine gets them, the large ones as plain pixels
LOADING_SECONDS = 2  # after which a request to a model that still loads may be repeated
_LABEL = re.compile(r"(?P<name>.*?)(?: \((?P<text>.*)\))?:?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as the model is shown it. A view has a name too, and a reference also what is known of it."""

    data: bytes
    role: str
    name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class FormedQuestion:
    """One question and the form of its answer."""

    question: Question
    grammar: str | None


@dataclass(slots=True)
class ReadRequest:
    """A request, read and checked, ready for the engine."""

    model: Model
    prompts: list[FormedQuestion]
    frames: list[bytes]
    """The frame's pictures as they came."""
    pictures: list[Shown]
    at: float
    deadline_ms: float | None
    picture_ms: float
    options: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    cell: str = ""
    camera: str | None = None
    box: str | None = None
    skus: tuple[str, ...] = ()
    again: Again | None = None
    """The same for the version that answers in shadow, if one does."""

    def about(self, prompt: FormedQuestion) -> About:
        """What is kept of the request beside an answer to this prompt."""
        beside: list[Image] = []
        for shown in self.pictures:
            if shown.role in ("view", "reference"):
                role = "view" if shown.role == "view" else "reference"
                beside.append(Image(shown.data, role, name=shown.name, text=shown.text))
        return About(
            cell=self.cell, camera=self.camera, skus=self.skus, roi=self.model.roi, box=self.box,
            beside=tuple(beside), form=prompt.question.named.form,
        )  # fmt: skip

    def header(self, reply_ms: float) -> dict[str, Any]:
        """The message to the engine. `reply_ms`: what the front takes from the engine's answer to its own."""
        given = self.deadline_ms
        return {
            "prompts": [
                {
                    "question": one.question.text, "thinking": one.question.thinking,
                    "choices": one.question.named.choices, "grammar": one.grammar,
                }
                for one in self.prompts
            ],
            "tasks": [_kind(one) for one in self.prompts],
            "pictures": [{"role": one.role, "name": one.name, "text": one.text} for one in self.pictures],
            "deadline": None if given is None else self.at + given - reply_ms,
            "at": self.at,
            "stream": self.stream,
            "samples": 1, "temperature": 0.0, "seed": 0, "stop": [], "top": None,
            **self.options,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Again:
    """A request that another model is to answer too, when there is time. `bytes`: that it holds until then."""

    model: Model
    read: Callable[[], Awaitable[ReadRequest]]
    bytes: int


def _kind(prompt: FormedQuestion) -> str:
    """Answers of one kind have lengths that are alike: those of a task, in one form."""
    form = hashlib.sha256(prompt.grammar.encode()).hexdigest()[:16] if prompt.grammar else ""
    return f"{prompt.question.named.task or ''} {form}".strip()


class Reader:
    """Reads requests to these models."""

    def __init__(
        self, models: Models, decoder: Decoder, fetcher: Fetcher, draw: Callable[[], float] = random.random
    ) -> None:
        """`draw`: a number from 0 to below 1, by which a request is one of a trial's."""
        self._models, self._decoder, self._fetcher, self._draw = models, decoder, fetcher, draw

    def model(self, name: str, cell: str | None = None) -> Model:
        """A model by its name, that of a cell if it has one of its own. Raises ApiError: 404 for an unknown name, 503
        for one that still loads."""
        model = self._models.find(name, cell)
        if model is not None and model.engine.alive:
            return model
        if model is None and name not in self._models.names:
            told = f"no model {name[:80]!r}: this server has {', '.join(self._models.names)}"
            raise ApiError(404, told, code="model_not_found", param="model")
        failed = self._models.state(name) == "failed"
        told = "could not be loaded and is tried again (the server's log says why)" if failed else "is still loading"
        raise ApiError(
            503, f"{name} {told}: ask again, or wait until /readyz answers 200", code="model_loading",
            kind="server_error", headers={"retry-after": str(LOADING_SECONDS)},
        )  # fmt: skip

    def _pair(self, name: str, cell: str | None) -> tuple[Model, Model | None]:
        """The model that answers, and the one that answers the same in shadow. Raises ApiError as `model`.

        With a canary it is the challenger that answers a share of requests, and the champion is its shadow.
        """
        model = self.model(name, cell)
        found = self._models.trial(name, cell)
        if found is None or self._draw() >= found[0].share:
            return model, None
        trial, challenger = found
        if trial.kind == "shadow":
            return model, challenger
        challenger.use()
        return challenger, model

    async def chat(self, chat: Chat, at: float) -> ReadRequest:
        """A chat completion. Raises ApiError."""
        own = chat.lineside
        pair = self._pair(chat.model, own.cell)
        text, urls, beside = turn(chat)
        thinking = own.thinking
        if thinking is None and chat.chat_template_kwargs is not None:
            thinking = chat.chat_template_kwargs.enable_thinking
        asked = FrameQuestion(
            question=text or None, task=own.task, slots=own.slots, thinking=thinking,
            response_format=chat.response_format,
        )  # fmt: skip
        most = chat.max_completion_tokens or chat.max_tokens
        options = {
            "max_tokens": most or MAX_TOKENS,
            "clamp": most is None,
            "samples": chat.n or 1,
            "temperature": chat.temperature or 0.0,
            "seed": (chat.seed or 0) % 2**63,
            "stop": chat.stops,
            "top": (chat.top_logprobs or 0) if chat.logprobs else None,
        }

        async def read(model: Model, fetched: dict[str, bytes]) -> ReadRequest:
            known = model.engine.facts["views"]
            views = [View(image=one.image, name=one.name) for one in beside if one.name in known]
            references = [one for one in beside if one.name not in known]
            return await self._asked(
                model, fetched, urls, views, references, [asked], at, deadline_ms=own.deadline_ms, camera=own.camera,
                roi=own.roi, cell=own.cell, skus=own.skus, options=options, stream=bool(chat.stream),
            )  # fmt: skip

        return await _for_both(pair, read, [*urls, *(one.image for one in beside)])

    async def questions(self, asked: Questions, at: float) -> ReadRequest:
        """Questions about a frame. Raises ApiError."""
        urls, beside = asked.images or [asked.image or ""], [*asked.views, *asked.references]
        options = {"max_tokens": asked.max_tokens or MAX_TOKENS, "clamp": asked.max_tokens is None}

        async def read(model: Model, fetched: dict[str, bytes]) -> ReadRequest:
            return await self._asked(
                model, fetched, urls, asked.views, asked.references, asked.questions, at,
                deadline_ms=asked.deadline_ms, camera=asked.camera, roi=asked.roi, cell=asked.cell, skus=asked.skus,
                options=options,
            )  # fmt: skip

        return await _for_both(self._pair(asked.model, asked.cell), read, [*urls, *(one.image for one in beside)])

    async def _asked(
        self,
        model: Model,
        fetched: dict[str, bytes],
        urls: Sequence[str],
        views: Sequence[View],
        references: Sequence[Reference],
        questions: Sequence[FrameQuestion],
        at: float,
        *,
        deadline_ms: float | None,
        camera: str | None,
        roi: str | None,
        cell: str | None,
        skus: Sequence[str],
        options: dict[str, Any],
        stream: bool = False,
    ) -> ReadRequest:
        """`fetched`: pictures by their addresses, which are not fetched again."""
        prompts = _prompts(model, questions)
        frames = [await self._bytes(url, fetched) for url in urls]
        pictures, region = await self._frame(model, frames, camera, roi)
        given: list[Shown] = []
        for view in views:
            given.append(await self._beside(view, fetched))
            _check_bytes([*pictures, *given])
        try:
            pictures += arranged(given, model.engine.facts["views"])
        except LinesideError as error:
            raise ApiError(400, str(error), code="invalid_value", param="views") from None
        for reference in sorted(references, key=lambda one: one.name):  # those of one SKU together
            pictures.append(await self._beside(reference, fetched))
            _check_bytes(pictures)
        if len(urls) == 1:
            prompts = [FormedQuestion(one.question._replace(region=region), one.grammar) for one in prompts]
        named = [one.question.named for one, asked in zip(prompts, questions) if asked.task is not None]
        budgets = [one.form.budget_ms for one in named if one.form is not None and one.form.budget_ms is not None]
        deadline = deadline_ms if deadline_ms is not None else min(budgets, default=None)
        return ReadRequest(
            model, prompts, frames, pictures, at, deadline, milliseconds() - at, options, stream, cell or "", camera,
            roi, tuple(skus),
        )  # fmt: skip

    async def _bytes(self, url: str, fetched: dict[str, bytes]) -> bytes:
        if url[:5].lower() == "data:":
            return data_url(url)
        if url not in fetched:
            fetched[url] = await self._fetcher.get(url)
        return fetched[url]

    async def _frame(
        self, model: Model, frames: Sequence[bytes], camera: str | None, roi: str | None
    ) -> tuple[list[Shown], Region | None]:
        """What the model is shown of the frame's pictures, and the region of the last one."""
        shown: list[Shown] = []
        region = None
        for data in frames:
            parts, region = await self._decoder.show(data, roi=model.roi, camera=camera, box=roi)
            shown += [Shown(part, role) for part, role in parts]
            _check_bytes(shown)
        return shown, region

    async def _beside(self, given: View | Reference, fetched: dict[str, bytes]) -> Shown:
        """A view or reference, decoded."""
        role, text = ("reference", given.text.strip()) if isinstance(given, Reference) else ("view", "")
        if not given.name.strip():
            raise ApiError(400, f"the name of a {role} is empty", code="invalid_value", param=f"{role}s")
        try:
            (((data, _),), _) = await self._decoder.show(await self._bytes(given.image, fetched), roi=None)
        except ApiError as error:
            error.body["error"] |= {"param": f"{role}s", "message": f"{role} {given.name[:80]}: {error}"}
            raise
        return Shown(data, role, given.name.strip(), text)


def _check_bytes(pictures: Sequence[Shown]) -> None:
    """Raises ApiError (413) for pictures that take too much memory together."""
    if sum(len(one.data) for one in pictures) > MAX_SHOWN:
        raise ApiError(
            413, f"the pictures of the request take more than {MAX_SHOWN >> 20} MB when they are decoded: send fewer "
            "or smaller ones", code="pictures_too_large", param="image_url",
        )  # fmt: skip


async def _for_both(
    pair: tuple[Model, Model | None],
    read: Callable[[Model, dict[str, bytes]], Awaitable[ReadRequest]],
    images: Sequence[str],
) -> ReadRequest:
    """A request, read for the model that answers, and later for the one that answers in shadow, if there is one. Both
    see the same pictures, since a camera has another one by then. `images`: URLs of the request."""
    (model, other), fetched = pair, dict[str, bytes]()
    asked = await read(model, fetched)
    if other is not None:
        asked.again = Again(other, partial(read, other, fetched), sum(map(len, [*images, *fetched.values()])))
    return asked


def _prompts(model: Model, questions: Sequence[FrameQuestion]) -> list[FormedQuestion]:
    """The questions, each with the form of its answer. Raises ApiError, which says of several which one it is."""
    prompts: list[FormedQuestion] = []
    for number, asked in enumerate(questions):
        try:
            prompts.append(FormedQuestion(_question(model, asked), _grammar(asked.response_format)))
        except ApiError as error:
            if len(questions) > 1:
                told = {"message": f"questions.{number}: {error}", "param": f"questions.{number}"}
                error.body["error"] |= told
            raise
    return prompts


def _question(model: Model, asked: FrameQuestion) -> Question:
    """A question with its task. Raises ApiError where the task is not known or there is no text."""
    if asked.slots and asked.task is None:
        raise ApiError(400, "slots belong to a task: name it", code="invalid_value", param="lineside.slots")
    try:
        text = asked.question or phrased(model, asked)
        named = model.book.find(text, asked.task)
    except LinesideError as error:
        raise ApiError(400, str(error), code="unknown_task", param="lineside.task") from None
    if not text.strip():
        raise ApiError(400, "the question is empty", code="invalid_value", param="messages")
    thinking = model.book.thinks(named.task)[0] if asked.thinking is None else asked.thinking
    return Question(text, named, thinking, None)


def phrased(model: Model, asked: FrameQuestion) -> str:
    """The first phrasing of a task, with its slots filled. Raises LinesideError."""
    if asked.task is None:
        raise LinesideError(
            "there is no question behind the pictures (text between two pictures names a reference): write a text, or "
            "name a task and its slots"
        )
    form = model.book.find("", asked.task).form
    if form is None or not form.phrasings:
        raise LinesideError(f"the checkpoint does not say how {asked.task} is asked: write the question as a text")
    if lacking := [name for name in slots(form.phrasings[0]) if name not in asked.slots]:
        raise LinesideError(f"{asked.task} is asked as {form.phrasings[0]!r}: its slots lack {', '.join(lacking)}")
    return fill(form.phrasings[0], asked.slots, f"slots of {asked.task}") or ""


def turn(chat: Chat) -> tuple[str, list[str], list[Reference]]:
    """(question, URLs of the frame's pictures, views and references) of a conversation of one turn.

    As in the checkpoint's chat template, text between two pictures is the name of a view or reference, which the
    pictures behind it show. All other text is the question. Raises ApiError for any other conversation.
    """
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
        return content, [], []
    question: list[str] = []
    between: list[str] = []
    urls: list[str] = []
    references: list[Reference] = []
    for part in content:
        if not isinstance(part, ImagePart):
            (between if urls else question).append(part.text)
        elif between or references:
            name = "\n".join(between).strip() if between else None
            references.append(_reference(part.image_url.url, name, references))
            between = []
        else:
            urls.append(part.image_url.url)
    if len(urls) > MAX_IMAGES:
        raise ApiError(400, f"{len(urls)} pictures: at most {MAX_IMAGES}", code="invalid_value", param="messages")
    return "\n".join(question + between), urls, references


def _reference(url: str, label: str | None, before: Sequence[Reference]) -> Reference:
    """The reference of a picture. `label`: "4711:" or "4711 (can of 330 ml):"; None: as the picture before it."""
    if label is None:
        return before[-1].model_copy(update={"image": url})
    found = _LABEL.fullmatch(label)
    assert found is not None
    name, text = found["name"], found["text"] or ""
    try:
        return Reference(image=url, name=name, text=text)
    except ValueError:
        raise ApiError(
            400, "the text between two pictures names a reference, in 1 to 200 characters; the question stands behind "
            "the last picture", code="invalid_value", param="messages",
        ) from None  # fmt: skip


def _grammar(form: ResponseFormat | None) -> str | None:
    try:
        return None if form is None else form.grammar
    except LinesideError as error:
        raise ApiError(400, str(error), code="invalid_response_format", param="response_format") from None
