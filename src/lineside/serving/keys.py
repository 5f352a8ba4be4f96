"""API keys and rate limits: who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from lineside.errors import LinesideError

SHORTEST = 16
CLIENTS = 4096  # keys or addresses whose rate is remembered


def read_keys(path: Path) -> list[str]:
    """The keys of a file: one a line, `#` begins a comment. Raises LinesideError with file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read as keys ({error}); expected one key a line") from None
    keys = [(number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    for number, key in keys:
        if key and (len(key) < SHORTEST or not key.isascii() or len(key.split()) > 1):
            raise LinesideError(f"{path}:{number}: a key has at least {SHORTEST} ASCII characters and no space")
    if not (found := [key for _, key in keys if key]):
        raise LinesideError(f"{path}: no keys; expected one a line, such as `openssl rand -hex 24` prints")
    return found


class Keys:
    """Checks a key against all known ones in constant time. Without keys everyone may ask."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._hashes = [_hash(key) for key in keys]

    def who(self, authorization: str | None) -> str | None:
        """A short name of the key in an Authorization header; "" where no key is needed; None if it is not known."""
        if not self._hashes:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _hash(key.strip()), False
        for known in self._hashes:  # all of them, so that the time does not tell which one
            found |= hmac.compare_digest(given, known)
        return given.hex()[:12] if found and scheme.lower() == "bearer" else None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class Rate:
    """At most `per_minute` requests a minute for each client, in bursts of a tenth of that (a token bucket)."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60, clock
        self._most = max(1.0, per_minute / 10)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """0 if the client may ask now (which counts), else the seconds until it may."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        left, then = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        allowed = left >= 1
        self._left[client] = (left - 1 if allowed else left, now)
        while len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate
