"""Verbs that take a checkpoint out of the house: export, serve."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import verb
from lineside.cli.options import (
    OUTCOMES,
    AnyEngine,
    AnyWeights,
    AsJson,
    Checkpoint,
    Device,
    Host,
    OutcomeDays,
    OutcomeFrames,
    OutcomeMb,
    Port,
    Split,
    VllmMemory,
    VllmPython,
    Where,
)
from lineside.errors import LinesideError
from lineside.types import NO_VLLM, VllmAt


class ExportFormat(StrEnum):
    """Formats of other engines."""

    gguf = "gguf"
    openvino = "openvino"
    onnx = "onnx"
    merged = "merged"


class Weights(StrEnum):
    """Number formats of exported matrices."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    q8_0 = "q8_0"


class Server(StrEnum):
    """Servers that must be able to load an export."""

    vllm = "vllm"


@verb
def export(
    checkpoint: Checkpoint,
    to: Annotated[
        ExportFormat,
        typer.Option(
            help="gguf: llama.cpp (text model and mmproj). openvino, onnx: graphs and run.py, which asks them without "
            "torch. merged: a folder of safetensors for transformers and vLLM.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="gguf: bf16, fp32, q8_0. openvino: fp16, fp32, int8. onnx: fp32. merged: bf16, fp32. Default: the "
            "first.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: export/<format>-<weights> beside the checkpoint.")
    ] = None,
    serve: Annotated[
        Server | None, typer.Option("--for", help="With --to merged: refuse what this server cannot load.")
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="SAMPLES", help="Also measure how much exact match the export loses on these samples."),
    ] = None,
    split: Annotated[Split, typer.Option(help="With --suite: which part of the samples.")] = Split.heldout,
    limit: Annotated[int | None, typer.Option(min=1, help="With --suite: at most this many questions.")] = None,
    as_json: AsJson = False,
) -> None:
    """A checkpoint -> GGUF, OpenVINO, ONNX or merged safetensors, each checked against the checkpoint's logits.

    What the format cannot carry is refused before any work. The engine that loads the files answers the same questions
    as the checkpoint, on square and other pictures, with thinking on and off. Printed, and written to export.json: the
    largest difference of log-probabilities, and how many greedy answers are the same. Exit status 1: the difference
    is larger than rounding; the files then lie in FOLDER.failed, and an earlier export is kept.
    """
    if serve is not None and to is not ExportFormat.merged:
        raise LinesideError("--for says who loads a merged folder: give --to merged")
    if limit is not None and suite is None:
        raise LinesideError("--limit is for the questions of a suite: give --suite SAMPLES")
    from lineside.export import export as run

    run(
        checkpoint,
        to=to.value,
        weights=weights.value if weights else None,
        out=out,
        serve=serve.value if serve else None,
        samples=suite,
        split=split.value,
        limit=limit,
        as_json=as_json,
    )


SAFETY, HOME = "Safety", "Models from another machine"


@verb
def serve(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Folder of a checkpoint, or NAME=FOLDER; several models are told apart by their names.",
            show_default=False,
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            help="In place of checkpoints: follow the champions of a registry. None: LINESIDE_REGISTRY, if it is set "
            "and no checkpoint is given."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="With --registry: serve this name; repeat for several. None: all that have a champion."),
    ] = None,
    pull: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel=HOME,
            help="In place of checkpoints: fetch the champions from `lineside registry serve`. Without a connection "
            "the last good ones answer on. LINESIDE_HOME_KEY is the key that it asks for, if it does.",
        ),
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=HOME,
            help="Public key of home (`lineside registry keys` wrote it); repeat it while keys change.",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(rich_help_panel=HOME, help="This machine's cell. None: it takes what answers in all cells."),
    ] = None,
    cache: Annotated[
        Path, typer.Option(rich_help_panel=HOME, help="Folder for the models: a registry of this machine.")
    ] = Path("pulled"),
    cache_gb: Annotated[
        float, typer.Option(min=0, rich_help_panel=HOME, help="Most that the folder may take, in GB.")
    ] = 20.0,
    pull_seconds: Annotated[
        float, typer.Option(min=0.1, rich_help_panel=HOME, help="Seconds between two looks at home.")
    ] = 10.0,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: Where = Device.auto,
    keys: Annotated[
        Path | None,
        typer.Option(rich_help_panel=SAFETY, help="File with API keys, one a line. None: everyone may ask."),
    ] = None,
    per_minute: Annotated[
        float, typer.Option(min=0, rich_help_panel=SAFETY, help="Requests a minute for each key; 0: no limit.")
    ] = 0.0,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=SAFETY,
            help="Host from which pictures are fetched by URL; repeat for several. None: data URLs only.",
        ),
    ] = None,
    max_body_mb: Annotated[int, typer.Option(min=1, rich_help_panel=SAFETY, help="Largest body, in MB.")] = 32,
    max_megapixels: Annotated[int, typer.Option(min=1, rich_help_panel=SAFETY, help="Largest picture.")] = 32,
    engine: Annotated[
        AnyEngine,
        typer.Option(
            help="What decodes. auto: the fastest that was judged, as measured at start. openvino: an export, see "
            "`lineside export`. vllm: vLLM, with --vllm-python."
        ),
    ] = AnyEngine.auto,
    weights: Annotated[
        AnyWeights, typer.Option(help="As of `evaluate`. auto: the fastest that was judged.")
    ] = AnyWeights.auto,
    vllm_python: VllmPython = None,
    vllm_memory: VllmMemory = NO_VLLM.memory,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Evaluation of the checkpoint, if it does not lie in the run's folder; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    unjudged: Annotated[bool, typer.Option("--unjudged", help="Serve also what no evaluation has judged.")] = False,
    feature_mb: Annotated[int, typer.Option(min=1, help="Memory for features of recent pictures, in MB.")] = 512,
    prefix_mb: Annotated[
        int, typer.Option(min=0, help="Memory for keys and values of recent frames, in MB; 0: none are kept.")
    ] = 256,
    margin: Annotated[
        float, typer.Option(min=1, help="Factor on predicted times: larger refuses more and is late less often.")
    ] = 1.25,
    outcomes: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTCOMES, help="File in which answers are kept, so that their truth can be told."),
    ] = None,
    outcome_days: OutcomeDays = 30.0,
    outcome_mb: OutcomeMb = 512,
    outcome_frames: OutcomeFrames = False,
) -> None:
    """Checkpoints -> an OpenAI-compatible server that answers by a deadline or refuses at once.

    With --registry it serves the champions, and follows every promotion and rollback without dropping a request. With
    --pull they come signed from another machine.

    A request with a deadline is accepted only if it can be answered in time; otherwise it is refused at once. A task's
    time budget is its default deadline. Only an engine and weights that `lineside evaluate` has judged are served, of
    several the fastest. Ctrl-C answers what was accepted and ends; SIGHUP loads checkpoints and keys anew. Examples are
    in docs/serve.md.
    """
    from lineside.serve import Pull
    from lineside.serve import serve as run

    if pull is None and (trust or cell is not None):
        raise LinesideError("--trust and --cell say how models are fetched: give the address of home with --pull")
    source = None
    if pull is not None:
        source = Pull(pull, trust or (), cell or "", cache, int(cache_gb * 1e9), pull_seconds)
    if not checkpoints and registry is None and pull is None and (place := os.environ.get("LINESIDE_REGISTRY")):
        registry = Path(place)
    run(
        checkpoints or (),
        registry=registry,
        pull=source,
        models=model or (),
        host=host,
        port=port,
        device=device,
        keys=keys,
        per_minute=per_minute,
        image_hosts=image_host or (),
        engine=None if engine == AnyEngine.auto else engine.value,
        weights=None if weights == AnyWeights.auto else weights.value,
        vllm=VllmAt(vllm_python, vllm_memory),
        evaluations=evaluation or (),
        unjudged=unjudged,
        max_body_mb=max_body_mb,
        max_megapixels=max_megapixels,
        feature_mb=feature_mb,
        prefix_mb=prefix_mb,
        margin=margin,
        outcomes=outcomes,
        outcome_days=outcome_days,
        outcome_mb=outcome_mb,
        outcome_frames=outcome_frames,
    )
