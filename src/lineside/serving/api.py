"""What a request may hold: OpenAI's chat completions, and questions about a frame. Strict: a number is a number, and an
unknown field is refused by its name, with the nearest known one."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lineside.serving.grammar import json_grammar, regex_grammar

MAX_DEPTH = 32
MAX_VALUES = 100_000  # of a body; it may be large, since it holds pictures
MAX_QUESTIONS = 64
MAX_IMAGES = 8
MAX_REFERENCES = 64
MAX_TEXT = 8192  # characters of a question
MAX_TOKENS = 128  # of an answer, by default: as `lineside ask`
_TOO_DEEP = f"JSON of more than {MAX_DEPTH} levels"

M = TypeVar("M", bound=BaseModel)


class ApiError(Exception):
    """An answer other than 200, as OpenAI's clients read it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Strict(BaseModel):
    """What all bodies have in common: unknown fields and numbers as text are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ImageUrl(Strict):
    """A picture: a data URL, or an http(s) URL of an allowed host."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class Message(Strict):
    """A turn. The model was trained on one turn of a user: pictures and a question."""

    role: Literal["user", "system", "developer", "assistant", "tool"]
    type: Literal["text", "message"] | None = None
    """What some clients add; it says nothing."""
    content: Annotated[str, Field(max_length=MAX_TEXT)] | list[TextPart | ImagePart]
    name: str | None = None


Skus = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)]


class Lineside(Strict):
    """What only this server knows: the task of a question, its slots, its deadline, and how a picture is cut."""

    task: str | None = None
    slots: dict[str, str | int | float | bool] = {}
    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    thinking: bool | None = None
    camera: str | None = None
    roi: str | None = None
    cell: Annotated[str, Field(max_length=64)] | None = None
    skus: Skus = []


class StreamOptions(Strict):
    """What a stream ends with. `include_obfuscation` has no effect."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A form of answers. `name` and `description` are for people; every schema is strict here."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
    name: Annotated[str, Field(max_length=64)] = ""
    description: str | None = None
    form: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of an answer: any text, any JSON object, JSON of a schema, or text that a regular expression matches."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    regex: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        for kind, value in (("json_schema", self.json_schema), ("regex", self.regex)):
            if (self.type == kind) != (value is not None):
                raise ValueError(f"response_format of type {self.type!r}: expected `{kind}` with type {kind!r} only")
        return self

    @property
    def grammar(self) -> str | None:
        """The grammar of llguidance; None: any text. Raises LinesideError for a form that is too large."""
        if self.type == "text":
            return None
        if self.regex is not None:
            return regex_grammar(self.regex)
        return json_grammar({"type": "object"} if self.json_schema is None else self.json_schema.form)


class Reference(Strict):
    """A picture of what a question names, beside the frame. `name`: as the question says it. `text`: what is known."""

    image: str
    name: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(max_length=1000)] = ""


class View(Strict):
    """A further picture of the same scene. `name`: as the model's training called it."""

    image: str
    name: Annotated[str, Field(min_length=1, max_length=200)]


class TemplateArguments(Strict):
    """`enable_thinking`: as `lineside.thinking`, for clients that know this name."""

    enable_thinking: bool | None = None


class Chat(Strict):
    """`POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_QUESTIONS)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    user: str | None = None
    lineside: Lineside = Lineside()

    @model_validator(mode="after")
    def _supported(self) -> Chat:
        """Refuse options that the server cannot follow: an answer that ignores them would be wrong."""
        if self.top_p not in (None, 1, 1.0):
            raise ValueError("top_p: only 1 is supported; use temperature")
        if self.frequency_penalty or self.presence_penalty or self.logit_bias:
            raise ValueError("frequency_penalty, presence_penalty and logit_bias are not supported: leave them out")
        if self.response_format is not None and self.response_format.type != "text" and self.stops:
            raise ValueError("stop: the form of the answer (response_format) says where it ends; leave stop out")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if any(not text for text in self.stops):
            raise ValueError("stop: expected strings that are not empty")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class FrameQuestion(Strict):
    """One question of several about a frame; without a text it is the task's first phrasing with the slots filled."""

    question: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    task: str | None = None
    slots: dict[str, str | int | float | bool] = {}
    thinking: bool | None = None
    response_format: ResponseFormat | None = None


class Questions(Strict):
    """`POST /v1/frames/questions`: one frame (one picture, or several that belong together), a list of questions."""

    model: str
    image: str | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] | None = None
    questions: Annotated[list[FrameQuestion], Field(min_length=1, max_length=MAX_QUESTIONS)]
    views: Annotated[list[View], Field(max_length=MAX_IMAGES)] = []
    references: Annotated[list[Reference], Field(max_length=MAX_REFERENCES)] = []
    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    camera: str | None = None
    roi: str | None = None
    cell: Annotated[str, Field(max_length=64)] | None = None
    skus: Skus = []

    @model_validator(mode="after")
    def _one(self) -> Questions:
        if (self.image is None) == (self.images is None):
            raise ValueError("expected `image` (one URL) or `images` (a list), not both")
        return self


class Outcome(Strict):
    """`POST /v1/outcomes`: the truth about an answer, or only whether acting on it succeeded."""

    id: Annotated[str, Field(max_length=100)]
    truth: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    verdict: Literal["succeeded", "failed"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Outcome:
        if (self.truth is None) == (self.verdict is None):
            raise ValueError("expected `truth` (the right answer) or `verdict` (succeeded, failed), not both")
        return self


_LATER = ("tools", "tool_choice", "functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort")
_FORMS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar")


def read(kind: type[M], body: bytes) -> M:
    """A request from its JSON. Raises ApiError (400) that names the field and what was expected."""
    try:
        data = load_json(body)
        return kind.model_validate(data)
    except ValidationError as error:
        raise _named(kind, error) from None
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_json") from None


def load_json(body: bytes) -> Any:
    """JSON from outside. Raises ValueError for text that has too many values or levels, is not UTF-8, or not JSON."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # before every value but the first stands one of these
        raise ValueError(f"JSON of more than {MAX_VALUES} values")

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):  # others may read the other value
            raise ValueError("a key stands twice in an object")
        return found

    try:
        data = json.loads(body.decode("utf-8"), parse_constant=refuse, object_pairs_hook=whole)
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    except RecursionError:  # some hundred levels
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {str(error)[:100]}") from None
    level, depth = [data], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return data


def _named(kind: type[BaseModel], error: ValidationError) -> ApiError:
    """The first problem, as a sentence that names the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kinds = ("function-", "list[", "constrained")  # of a field that may be one of several kinds
    where = ".".join(str(part)[:60] for part in first["loc"] if not str(part).startswith(kinds))
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:60]
        if name in _LATER:
            return ApiError(400, f"`{name}` is not supported by this server", code="unsupported_parameter", param=where)
        if name in _FORMS:
            told = f"`{name}` is not known here: state the form of the answer as `response_format`"
            return ApiError(400, told, code="unsupported_parameter", param=where)
        near = get_close_matches(name, kind.model_fields, n=1) if len(first["loc"]) == 1 else []
        if not near and name in Lineside.model_fields and "lineside" in kind.model_fields:
            near = [f"lineside.{name}"]
        return ApiError(
            400, f"unknown field `{where}`{f'; did you mean `{near[0]}`?' if near else ''}",
            code="unknown_parameter", param=where,
        )  # fmt: skip
    told = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {told}" if where else told, code="invalid_value", param=where or None)
