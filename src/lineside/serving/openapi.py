"""`GET /openapi.json`: the paths of the server and what they take, from the models that read the requests."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lineside.serving.api import Chat, Outcome, Questions

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_POSTS: dict[str, tuple[type[BaseModel], str, tuple[int, ...]]] = {
    "/v1/chat/completions": (Chat, "One question about pictures, as OpenAI's chat completions.", (404, 429, 503)),
    "/v1/frames/questions": (Questions, "Several questions about one frame.", (404, 429, 503)),
    "/v1/outcomes": (Outcome, "The truth about an answer.", (404, 429, 503)),
}
_GETS = {
    "/v1/models": "The models, with the tasks that they know.",
    "/v1/outcomes": "The last hundred answers that are kept.",
    "/v1/timeline": "The last day of each model: requests, latency, and how many answers of known truth are right.",
}
_OPEN = {"/healthz": "The front runs.", "/readyz": "Every model answers."}


def openapi() -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    kinds = [(kind, "validation") for kind, *_ in _POSTS.values()]
    _, schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # pyright: ignore
    paths: dict[str, Any] = {}
    for path, (kind, told, refused) in _POSTS.items():
        takes = {"required": True, "content": _json({"$ref": f"#/components/schemas/{kind.__name__}"})}
        replies = {
            code: _reply("Refused; the message says why.", _ERROR) for code in (400, 401, 408, 413, 415, *refused)
        }
        answer = _reply("The answer.", {"type": "object"})
        if kind is Chat:
            answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        paths[path] = {"post": {"summary": told, "requestBody": takes, "responses": _texts({200: answer, **replies})}}
    for path, told in {**_GETS, **_OPEN}.items():
        refused = {503: _reply("Not yet.", {"type": "object"})} if path == "/readyz" else {}
        refused |= {} if path in _OPEN else {code: _reply("Refused.", _ERROR) for code in (401, 404)}
        refused |= {503: _reply("The file cannot be read.", _ERROR)} if path == "/v1/outcomes" else {}
        answer = {200: _reply("It is so.", {"type": "object"}), **refused}
        security = {"security": []} if path in _OPEN else {}
        paths.setdefault(path, {})["get"] = {"summary": told, "responses": _texts(answer), **security}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lineside serve", "version": version("lineside")},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reply(told: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": told, "content": _json(schema)}


def _texts(replies: dict[int, Any]) -> dict[str, Any]:
    return {str(status): reply for status, reply in sorted(replies.items())}
