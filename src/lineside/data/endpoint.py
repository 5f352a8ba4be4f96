"""One attempt at one request, over HTTP, to any endpoint with OpenAI's chat completions and pictures.

This file sends requests itself (with httpx2, which transformers installs) and does not use the `openai` package:
retries, counts, waits and limits are lineside's own, a request takes less processor time (docs/experiments.md), and a
server's text is cleaned before it enters a message. The key is read from the environment when the endpoint is opened,
is sent in one header, and is removed from every text that comes back.
"""

from __future__ import annotations

import asyncio
import email.utils
import html
import json
import math
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lineside.data.ledger import Attempt
from lineside.errors import LinesideError
from lineside.images import image_type
from lineside.machine import lacking
from lineside.recipe import Label
from lineside.types import Image

MAX_TOKENS = ("max_tokens", "max_completion_tokens")  # most servers take the first, newer models the second
MAX_RESPONSE = 8 << 20  # bytes
MAX_TOLD = 200  # characters of a server's text in an error
SECRET = 16  # characters from which a key is one
LONGEST_WAIT = 300.0  # seconds; a longer Retry-After is cut to this
# Texts which show that the account is the problem, so that waiting does not help.
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `key` is the hash of everything that decides the reply, `schema` the form of the reply."""

    key: str
    text: str
    image: Image
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Busy:
    """The endpoint could not take the request now. This does not count as an attempt.

    `wait`: seconds that the endpoint asked for. All requests wait.
    """

    reason: str
    wait: float | None


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt was made. `wait`: seconds to wait before the next, if the endpoint asked for it."""

    attempt: Attempt
    wait: float | None = None


class Endpoint:
    """Connections to one endpoint, one for each request in flight. Use it within one event loop, and close it."""

    def __init__(self, settings: Label) -> None:
        """Raises LinesideError as `ready`."""
        self._key = ready(settings)
        import httpx2

        self._http, self.settings = httpx2, settings
        self._limit = MAX_TOKENS[0]  # the endpoint's name for the length of a reply; its first answer may correct it
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json", "User-Agent": "lineside"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._headers, self._tls = headers, httpx2.create_ssl_context()
        # One client for each connection: a client with many searches through all of them for every request
        # (docs/experiments.md).
        self._clients: list[httpx2.AsyncClient] = []
        self._idle: list[httpx2.AsyncClient] = []

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _client(self) -> Any:
        if self._idle:
            return self._idle.pop()
        # No timeout in the client: `settings.timeout` covers the whole attempt.
        client = self._http.AsyncClient(headers=self._headers, verify=self._tls, timeout=None)
        self._clients.append(client)
        return client

    async def ask(self, request: Request, number: int) -> Busy | Tried:
        """Attempt `number` at a request.

        Raises LinesideError if no request can succeed: a wrong key, no such model, no credit.
        """
        sent = self._limit
        met = await self._post(request, f"{request.key}-{number}")
        if isinstance(met, Tried) and (other := other_limit(met.attempt, sent)) and sent not in self.settings.body:
            self._limit = other
            met = await self._post(request, f"{request.key}-{number}-{other}")  # another body needs another key
        return met

    async def _post(self, request: Request, idempotency_key: str) -> Busy | Tried:
        http, client = self._http, self._client()
        body = json.dumps(self._body(request)).encode()
        try:
            async with asyncio.timeout(self.settings.timeout):
                # A server that knows this header does not run or charge the same attempt twice after a kill.
                idempotency = {"Idempotency-Key": idempotency_key}
                async with client.stream("POST", self.url, content=body, headers=idempotency) as response:
                    content = await _bounded(response)
        except TimeoutError:
            return Tried(Attempt("error", f"no answer within {self.settings.timeout:g} s"))
        except (http.ConnectError, http.ProxyError) as error:
            return Busy(self.clean(f"cannot connect to {self.url}: {error}"), None)
        except http.HTTPError as error:
            return Tried(Attempt("error", self.clean(f"connection lost: {type(error).__name__}")))
        except (http.InvalidURL, UnicodeError) as error:
            raise LinesideError(self.clean(f"{self.url}: not a usable address ({error})")) from None
        finally:
            self._idle.append(client)
        return self._judge(response.status_code, response.headers, content)

    def hide(self, text: str) -> str:
        """A text from outside without the key, as it is or as an address or a page writes it. A shorter key (EMPTY,
        none) opens nothing, and may be an answer."""
        for form in (self._key, quote(self._key, safe=""), html.escape(self._key)) if len(self._key) >= SECRET else ():
            text = text.replace(form, "***")
        return text

    def clean(self, text: str) -> str:
        """A text from outside as one short line, without control characters and without the key."""
        text = self.hide(text).replace(self._key or "\0", "***")
        text = re.sub(r"\b(sk|key|Bearer)[-_ ][A-Za-z0-9_\-]{8,}", "***", text)  # servers repeat keys in errors
        return " ".join(re.sub(r"[^\x20-\x7e\u00a1-\uffff]", " ", text).split())[:MAX_TOLD]

    def _body(self, request: Request) -> dict[str, Any]:
        picture = f"data:{image_type(request.image.bytes)};base64,{b64encode(request.image.bytes).decode()}"
        content = [{"type": "text", "text": request.text}, {"type": "image_url", "image_url": {"url": picture}}]
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
        }
        if not set(MAX_TOKENS) & set(self.settings.body):  # else the user has set it
            body[self._limit] = self.settings.max_tokens
        if self.settings.structured == "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": request.schema}
        elif self.settings.structured == "object":
            body["response_format"] = {"type": "json_object"}
        body |= self.settings.body
        return {name: value for name, value in body.items() if value is not None}

    def _judge(self, status: int, headers: Mapping[str, str], content: bytes) -> Busy | Tried:
        wait = retry_after(headers.get("retry-after", ""), now=time.time())
        if status == 200:
            return Tried(read_completion(content, self.clean, self.hide))
        said = self.clean(_message(content))
        if status == 429:
            if any(sign in said for sign in _SPENT):
                raise LinesideError(f"{self.url}: {said or 'the account is empty'}: finished work is kept; run again")
            return Busy(f"HTTP 429 {said}", wait)
        if status in (401, 403, 404) or 300 <= status < 400:
            raise LinesideError(
                f"{self.url} answered HTTP {status}: {said or 'without a message'}; check the address, the model "
                "and the key. Finished work is kept"
            )
        told = f"HTTP {status}" + (f": {said}" if said else "")
        retried = status >= 500 or status in (408, 409, 425)
        return Tried(Attempt("error" if retried else "refused", told), wait)


def other_limit(attempt: Attempt, sent: str) -> str | None:
    """The other name for the length of a reply, if an endpoint refused the one that was sent; else None.

    OpenAI's newer models: "Unsupported parameter: 'max_tokens' is not supported with this model. Use
    'max_completion_tokens' instead." Older servers do not know the newer name.
    """
    told, (other,) = attempt.text, set(MAX_TOKENS) - {sent}
    if attempt.status != "refused" or not re.search(rf"\b{sent}\b", told):
        return None
    named = re.search(rf"\b{other}\b", told)
    unknown = re.search(r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|not permitted|forbidden|unexpected", told)
    return other if named or unknown else None


def ready(settings: Label) -> str:
    """The key of the endpoint, "" if it needs none. Raises LinesideError for an unset variable, and if a package is
    missing."""
    try:
        import httpx2  # noqa: F401
    except ImportError:
        raise lacking("httpx2", "a teacher behind an API") from None
    return read_key(settings.key_env)


def read_key(name: str) -> str:
    """The key that an environment variable holds; "" for no name. Raises LinesideError without ever showing it."""
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise LinesideError(
            f"the environment variable {name} is not set: put the endpoint's key into it, or give --key-env '' if the "
            "endpoint needs no key"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise LinesideError(f"the environment variable {name} holds no key: it has spaces or characters beyond ASCII")
    return key


def retry_after(value: str, *, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, a number or a date (RFC 9110); None if it has neither."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        return min(float(value), LONGEST_WAIT)
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now), LONGEST_WAIT)
    except (ValueError, TypeError, OverflowError):
        return None


async def _bounded(response: Any) -> bytes:
    """The body of a response, unpacked; of one that is too long, so much that this is seen."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_RESPONSE:
            break
    return bytes(content)


def read_completion(content: bytes, clean: Callable[[str], str] = str, hide: Callable[[str], str] = str) -> Attempt:
    """The text and the usage of a chat completion. A bad response is an error like a lost connection. Never raises.

    `hide` takes the key out of the text, which goes into samples, `clean` also shortens.
    """
    if len(content) > MAX_RESPONSE:
        return Attempt("error", f"a response of {len(content)} bytes: at most {MAX_RESPONSE} are read")
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage = data.get("usage") or {}
        tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Attempt("error", "the response is not a chat completion")
    if refusal or finish == "content_filter":
        return Attempt("refused", clean(f"the teacher refuses: {refusal or 'content filter'}"), "", *tokens)
    if not isinstance(text, str):
        return Attempt("error", "the response holds no text", "", *tokens)
    return Attempt("answer", hide(text), finish if isinstance(finish, str) else "", *tokens)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def _message(content: bytes) -> str:
    """The message of an error response: its message and code if it is JSON like OpenAI's, else its text."""
    try:
        error = json.loads(content[:65_536])["error"]
        if isinstance(error, str):
            return error
        return " ".join(str(error[name]) for name in ("message", "code") if error.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content.decode("utf-8", "replace")  # cut only when the key is out of it


def backoff(number: int, base: float, chance: float) -> float:
    """Seconds before attempt `number` + 1: `base` doubled each time, at most a minute, less up to half by `chance`."""
    return min(base * math.pow(2.0, min(number, 16)), 60.0) * (1.0 - 0.5 * chance)
