"""Is a checkpoint as large as its configuration says? Asked before anything is allocated.

A configuration of a few bytes can claim a billion layers. Layers are compared with the number of weights that are
stored, and the model is then built without memory (on torch's meta device) to compare its size with theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lineside.errors import LinesideError

SLACK = 2  # times as many parameters as are stored may be built: some checkpoints leave out what is tied or new
MOST_LAYERS = 10_000  # where no weights are at hand to compare with
_LAYERS = re.compile(r"(n|num)_(\w+_)?layers?|depth")


def check_sizes(folder: Path, config: dict[str, Any], build: Callable[[], nn.Module]) -> None:
    """Raises LinesideError if `config` claims more layers or parameters than the safetensors in `folder` hold, or if
    one of these cannot be read. `build` makes the model of the configuration."""
    shapes = stored_shapes(folder)
    check_layers(config, len(shapes), f"{folder / 'config.json'}: for {len(shapes):,} weights in the files")
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in build().parameters())
    stored = sum(map(math.prod, shapes.values()))
    if built > SLACK * stored:
        raise LinesideError(
            f"{folder / 'config.json'}: a model of {built:,} parameters, and the files hold {stored:,}: these are not "
            "of one model"
        )


def check_layers(config: dict[str, Any], most: int, where: str) -> None:
    """Raises LinesideError for a configuration that claims more than `most` layers in any part, or less than none."""
    for name, value in _numbers(config):
        if _LAYERS.fullmatch(name) and not 0 <= value <= most:
            raise LinesideError(f"{where}: {name} is {value:,}: expected at most {most:,}")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight in the safetensors of a folder; only the headers are read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LinesideError(f"{path}: not readable as weights ({error}). Expected a whole folder") from None
    return found


def _numbers(value: Any) -> Iterator[tuple[str, int]]:
    """(name, whole number) of a configuration, at every depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if type(inner) is int:
                yield name, inner
            yield from _numbers(inner)
