"""Arguments and options that several verbs take."""

from __future__ import annotations

import codecs
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineside.errors import LinesideError

if TYPE_CHECKING:
    from lineside.data.tabular import Form


class Mode(StrEnum):
    """How a question is asked."""

    think = "think"
    fast = "fast"


class NumberFormat(StrEnum):
    """Number formats."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(StrEnum):
    """What decodes."""

    local = "local"
    openvino = "openvino"
    vllm = "vllm"


class Decoded(StrEnum):
    """Weights as decoding reads them."""

    full = "full"
    int8 = "int8"


class AnyEngine(StrEnum):
    """What decodes, or the fastest of all."""

    auto = "auto"
    local = "local"
    openvino = "openvino"
    vllm = "vllm"


class AnyWeights(StrEnum):
    """Weights as decoding reads them, or the fastest of all."""

    auto = "auto"
    full = "full"
    int8 = "int8"


class Split(StrEnum):
    """Splits of the data. They are never mixed."""

    train = "train"
    dev = "dev"
    heldout = "heldout"
    shifted = "shifted"


Checkpoint = Annotated[Path, typer.Argument(help="Folder of a checkpoint.", show_default=False)]
Samples = Annotated[Path, typer.Argument(help="Folder of samples.", show_default=False)]
Frames = Annotated[Path, typer.Argument(help="Frames, or a folder or archive of pictures.", show_default=False)]
Features = Annotated[Path | None, typer.Option(help="Feature store to reuse.")]
Bits = Annotated[
    int | None,
    typer.Option(min=8, max=16, help="Bits that the camera uses in grey pictures of 16 bits.", show_default=False),
]
Encoding = Annotated[
    str | None, typer.Option(help="How tables are encoded, such as cp1252. None: as the file says, else UTF-8.")
]
Delimiter = Annotated[str | None, typer.Option(help="What separates the fields of tables. None: as they show.")]
Decimal = Annotated[
    str | None, typer.Option(metavar=", or .", help="The decimal sign of truths in tables. None: as they show.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices.")]
Dtype = Annotated[
    NumberFormat | None,
    typer.Option(help="Number format to compute in. By default the checkpoint's own, in which it was evaluated."),
]
Where = Annotated[Device, typer.Option(help="auto: a CUDA device if there is one, else the CPU.")]
DecodedBy = Annotated[
    Engine,
    typer.Option(
        help="What decodes. openvino: the export that `lineside export --to openvino` wrote; --weights full takes the "
        "one in fp32. vllm: vLLM, with --vllm-python."
    ),
]
VllmMemory = Annotated[
    float, typer.Option(min=0.01, max=0.99, help="Share of the device's memory that vLLM takes, beside this process.")
]
VllmPython = Annotated[
    Path | None,
    typer.Option(
        help="Python of an environment with vLLM 0.32 or newer, such as vllm/bin/python, for --engine vllm.",
        show_default=False,
    ),
]
DecodedFrom = Annotated[
    Decoded, typer.Option(help="full: in the number format of the computation. int8: quantised for decoding.")
]
Margin = Annotated[float, typer.Option(min=0, max=1, help="A loss up to this share is accepted: 0.03 is three points.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all networks.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")]
OUTCOMES = "Outcomes"
OutcomeDays = Annotated[float, typer.Option(min=0, rich_help_panel=OUTCOMES, help="Days for which an answer is kept.")]
OutcomeMb = Annotated[
    int, typer.Option(min=1, rich_help_panel=OUTCOMES, help="Largest size of the file; the oldest answers go first.")
]
OutcomeFrames = Annotated[
    bool, typer.Option("--outcome-frames", rich_help_panel=OUTCOMES, help="Keep the pictures too.")
]
RegistryFolder = Annotated[
    Path, typer.Option("--registry", envvar="LINESIDE_REGISTRY", help="Folder of the registry.", show_envvar=True)
]
Cell = Annotated[
    str, typer.Option(help="Only in this cell. None: in all cells without a champion of their own.", show_default=False)
]
NameAtVersion = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="Or digits of its hash.", show_default=False)
]
REGISTRY = Path("registry")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def written(encoding: str | None, delimiter: str | None, decimal: str | None) -> Form:
    """How tables are written, by the three options. Raises LinesideError for one that says nothing."""
    from lineside.data.tabular import Form

    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise LinesideError(f"--encoding {encoding}: expected a name such as utf-8 or cp1252") from None
    if delimiter is not None and len(delimiter) != 1:
        raise LinesideError(f"--delimiter {delimiter}: expected one character, such as ';'")
    if decimal not in (None, ",", "."):
        raise LinesideError(f"--decimal {decimal}: expected a comma or a point")
    return Form(encoding, delimiter, decimal, by_options=True)
