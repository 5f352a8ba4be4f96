"""registry serve, registry keys: the registry over HTTP for many machines, signed by its owner.

Machines ask it with `lineside serve --pull`. What they take is signed with Ed25519 (RFC 8032): every file by its
SHA-256, which version answers in which cell, and a serial that only grows. Left out: TLS (a proxy does that), and
distributing keys.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

from lineside.errors import LinesideError
from lineside.machine import lacking
from lineside.progress import say

MEGABYTE = 1 << 20


def make_keys(path: Path) -> None:
    """Write a private key and its public key, and say which is for whom. Raises LinesideError."""
    try:
        from lineside.fleet import signing
    except ModuleNotFoundError as error:
        raise lacking(error.name or "cryptography", "`lineside registry keys`") from None
    public = signing.make_keys(path)
    say(f"{path} signs, and stays at home: `lineside registry serve --key {path}`")
    say(f"{public} is for the machines: `lineside serve --pull URL --trust {public.name}`")
    print(public)


def serve_registry(
    folder: Path,
    *,
    key: Path,
    host: str = "127.0.0.1",
    port: int = 8001,
    keys: Path | None = None,
    outcomes: Path | None = None,
    outcome_days: float = 365.0,
    outcome_mb: int = 10_000,
    outcome_frames: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `key`: the private key. `keys`: a file with API keys of machines. `outcomes`: the
    file in which the answers of all machines are kept.

    Raises LinesideError for a registry or a key that cannot be used, a model that may not be sent, or a port that is
    taken.
    """
    try:
        import uvicorn

        from lineside.fleet.intake import Intake
        from lineside.fleet.server import Home
        from lineside.fleet.signing import key_id, read_private
    except ModuleNotFoundError as error:
        raise lacking(error.name or "uvicorn", "`lineside registry serve`") from None
    from lineside.serving.keys import read_keys
    from lineside.serving.protocol import address, bound, configured

    private = read_private(key)
    intake = None
    if outcomes is not None:
        most = outcome_mb * MEGABYTE
        intake = partial(Intake, outcomes, days=outcome_days, max_bytes=most, frames=outcome_frames)
    home = Home(folder, private, keys=tuple(read_keys(keys)) if keys is not None else (), intake=intake)
    state = home.states.now()
    if not state.champions:
        raise LinesideError(f"{folder}: no champion to serve; `lineside promote NAME@VERSION` makes one")
    listening = bound(host, port)
    labels = ", ".join(one.label for one in state.served)
    say(f"registry serve: state {state.serial} ({labels}), signed by the key {key_id(private.public_key())}")
    say("registry serve: end with Ctrl-C; machines take this address: `lineside serve --pull`")
    print(address(host, listening), flush=True)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        asyncio.run(uvicorn.Server(configured(home.app())).serve(sockets=[listening]))
    except KeyboardInterrupt:
        say("registry serve: ended")
    finally:
        listening.close()
        home.close()
