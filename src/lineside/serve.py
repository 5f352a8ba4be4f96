"""serve: checkpoints -> an OpenAI-compatible server that keeps deadlines, and a page to try it on.

The front (HTTP, pictures, keys) and the engine (weights, scheduler) are processes of their own. A request is accepted
only if it can be answered by its deadline; else it is refused at once. Answers are those of `lineside ask`. SIGTERM and
Ctrl-C let what was accepted finish; SIGHUP loads checkpoints and keys anew. With `outcomes` the answers are kept, and
their truth can be told. What was judged is what is served: an engine and weights that no evaluation of the checkpoint
names are refused, unless the user says otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lineside.errors import LinesideError
from lineside.files import checkpoints_below
from lineside.machine import lacking
from lineside.progress import say
from lineside.types import NO_VLLM, EngineName, VllmAt, Weights

if TYPE_CHECKING:
    from lineside.fleet.machine import Machine
    from lineside.serving.front import Front
    from lineside.serving.models import Models
    from lineside.serving.pictures import Decoder

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Pull:
    """Where the models come from: the address of `lineside registry serve`, and the public keys that are trusted.

    `cell`: the machine's own; "": it takes what answers in all cells. `cache`: the folder in which models are kept, of
    at most `max_bytes`. `seconds`: between two looks at home.
    """

    url: str
    trust: Sequence[Path]
    cell: str = ""
    cache: Path = Path("pulled")
    max_bytes: int = 20_000_000_000
    seconds: float = 10.0


def serve(
    checkpoints: Sequence[str] = (),
    *,
    registry: Path | None = None,
    pull: Pull | None = None,
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    keys: Path | None = None,
    per_minute: float = 0.0,
    image_hosts: Sequence[str] = (),
    max_body_mb: int = 32,
    max_megapixels: int = 32,
    engine: EngineName | None = None,
    weights: Weights | None = None,
    vllm: VllmAt = NO_VLLM,
    evaluations: Sequence[Path] = (),
    unjudged: bool = False,
    feature_mb: int = 512,
    prefix_mb: int = 256,
    margin: float = 1.25,
    outcomes: Path | None = None,
    outcome_days: float = 30.0,
    outcome_mb: int = 512,
    outcome_frames: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `checkpoints`: folders, or NAME=FOLDER. `registry`: follow its champions instead,
    of these `models` or of all names. `pull`: those of another machine's registry. `engine`, `weights`: None: the
    fastest that was judged. `vllm`: where vLLM is. `evaluations`: files to look at besides those of the
    checkpoints' runs.

    While a model loads, its requests are told so (503). Raises LinesideError for a checkpoint that cannot be served or
    was not judged, a device that is not there, keys that cannot be read, or a port that is taken.
    """
    try:
        import uvicorn  # noqa: F401 - told before any work
    except ModuleNotFoundError as error:
        raise lacking(error.name or "uvicorn", "`lineside serve`") from None
    from lineside.serving.follow import Champions
    from lineside.serving.front import Front, FrontSettings
    from lineside.serving.keys import read_keys
    from lineside.serving.models import Checkpoints, Models, Release
    from lineside.serving.pairs import EnginePair, allowed
    from lineside.serving.protocol import address, bound

    if [bool(checkpoints), registry is not None, pull is not None].count(True) != 1:
        raise LinesideError("give checkpoints, or the folder of a registry with --registry, or its address with --pull")
    if models and not (registry or pull):
        raise LinesideError("--model names models of a registry: give its folder with --registry")
    machine = _machine(pull, models, outcomes) if pull else None
    if machine is not None and pull is not None:
        machine.start()
        registry = pull.cache
    source = Champions(registry, models) if registry else Checkpoints(named_checkpoints(checkpoints))

    def choose(release: Release) -> list[EnginePair]:
        files = (*evaluations, *release.evaluations)
        return allowed(release.checkpoint, engine=engine, weights=weights, files=files, unjudged=unjudged, vllm=vllm)

    for release in source.wanted().values():
        choose(release)  # what cannot be served is told before anything is loaded
    settings = FrontSettings(
        keys=tuple(read_keys(keys)) if keys is not None else (),
        per_minute=per_minute,
        image_hosts=tuple(image_hosts),
        max_body=max_body_mb * MEGABYTE,
        max_pixels=max_megapixels * 1_000_000,
        outcomes=outcomes,
        outcome_days=outcome_days,
        outcome_bytes=outcome_mb * MEGABYTE,
        outcome_frames=outcome_frames,
    )
    options = {"feature_bytes": feature_mb * MEGABYTE, "prefix_bytes": prefix_mb * MEGABYTE, "margin": margin}
    if vllm.python is not None:
        options["vllm"] = str(vllm.python), vllm.memory
    home = (lambda: machine.status.plain) if machine else None
    served = Models(source, {**options, "device": device}, choose, shadows=outcomes is not None)
    front = Front(served, settings, home)
    listening = bound(host, port)
    try:
        asyncio.run(_run(front, listening, address(host, listening), keys))
    except KeyboardInterrupt:
        say("serve: ended; everything that was accepted is answered")
    finally:
        listening.close()
        if machine is not None:
            machine.stop()


def _machine(pull: Pull, names: Sequence[str], log: Path | None) -> Machine:
    """What keeps this machine and its home together. `log`: of answers, which go home.

    Raises LinesideError for an address or a key that is none.
    """
    try:
        from lineside.fleet.client import KEY_ENV, Home
        from lineside.fleet.machine import Machine
        from lineside.fleet.mirror import Mirror
        from lineside.fleet.outbox import Outbox
        from lineside.fleet.signing import read_public
        from lineside.registry.store import NAME
    except ModuleNotFoundError as error:
        raise lacking(error.name or "cryptography", "`lineside serve --pull`") from None

    if pull.cell and not NAME.fullmatch(pull.cell):
        raise LinesideError(f"--cell {pull.cell!r}: expected up to 64 letters, digits, _, . and -, such as cell-7")
    if not pull.trust:
        raise LinesideError("--pull needs --trust: the public key that `lineside registry keys` wrote at home")
    trusted = [read_public(path) for path in pull.trust]
    home = Home(pull.url, os.environ.get(KEY_ENV, ""))
    mirror = Mirror(pull.cache, cell=pull.cell, names=names, max_bytes=pull.max_bytes)
    name = pull.cell or socket.gethostname()[:64]
    outgoing = None if log is None else partial(Outbox, log, machine=name)
    return Machine(home, mirror, trusted, seconds=pull.seconds, outgoing=outgoing)


async def _run(front: Front, listening: socket.socket, address: str, keys: Path | None) -> None:
    """Serve until a signal ends it. `address`: printed once all models answer. `keys`: read again with a reload."""
    import uvicorn

    from lineside.serving.protocol import configured

    models, reloads = front.models, set[asyncio.Task[None]]()

    def reload() -> None:
        if keys is not None:
            front.guard.take_keys(keys)
        if not reloads and starting.done():
            reloads.add(task := asyncio.create_task(models.reload()))
            task.add_done_callback(reloads.discard)

    server = uvicorn.Server(configured(front.app()))
    starting = asyncio.create_task(_started(models, front.decoder))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    def started(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            server.should_exit = True
            return
        say("serve: end with Ctrl-C; open this address in a browser; OpenAI clients take it with v1 behind it:")
        print(address, flush=True)

    starting.add_done_callback(started)
    try:
        await server.serve(sockets=[listening])  # also while models load: requests are then told so
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        models.kill()
        front.decoder.close()


async def _started(models: Models, decoder: Decoder) -> None:
    """All models are loaded and warm, and pictures can be decoded."""
    await models.start()
    await decoder.warm()


def named_checkpoints(arguments: Sequence[str]) -> Mapping[str, Path]:
    """Names and folders of NAME=FOLDER or FOLDER, whose name is the folder's (of runs/NAME/rlvr/checkpoint, NAME).

    Raises LinesideError for a folder without a checkpoint and for a name that comes twice.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        path = Path(rest if equals else argument)
        if not (path / "config.json").is_file():
            below = checkpoints_below(path)
            meant = f"did you mean {' or '.join(map(str, below))}?" if below else "such as runs/NAME/rlvr/checkpoint"
            raise LinesideError(f"{path}: no checkpoint (config.json and *.safetensors); {meant}")
        folder = path.resolve()
        own = folder.parent.parent.name if folder.name == "checkpoint" else ""
        name = name if equals else own or folder.name or "model"
        if name in found:
            raise LinesideError(f"two checkpoints named {name!r}: give them names, as in champion={path}")
        found[name] = path
    return found
