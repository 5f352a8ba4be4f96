"""The small files of a checkpoint's folder: what it is, without its weights and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lineside.errors import LinesideError
from lineside.files import checkpoints_below, fingerprint, is_file
from lineside.strict import read_record

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
BASE = "base"  # in the header of the weights: fingerprint of the checkpoint that the adapter was trained on
STATED = ("float32", "bfloat16")  # the number formats that a checkpoint may state


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder; of an adapter from elsewhere that has none, that of its base. Raises
    LinesideError, with the checkpoints found below the folder, if there is none."""
    path = folder / "config.json"
    if not path.exists() and is_adapter(folder):
        path = base_of(folder) / "config.json"
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        if any(folder.glob("*.parquet")):
            raise LinesideError(f"no checkpoint at {folder}, but frames or samples: are two folders swapped?") from None
        below = checkpoints_below(folder)
        meant = f". Did you mean {' or '.join(map(str, below))}?" if below else ", such as runs/<name>/rlvr/checkpoint"
        raise LinesideError(
            f"no checkpoint at {folder}: expected a folder with config.json and *.safetensors{meant}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LinesideError for a file that is none, and FileNotFoundError or NotADirectoryError."""
    return read_record(dict[str, Any], path, "copy the whole checkpoint again")


def stated_dtype(config: dict[str, Any]) -> str | None:
    """The number format that a configuration states, by its name of today or of before; None for another one."""
    name = str(config.get("dtype") or config.get("torch_dtype"))
    return name if name in STATED else None


def saved_dtype(folder: Path) -> str:
    """The number format in which a checkpoint was saved: `bfloat16` or `float32`. Raises LinesideError as
    `read_config` does."""
    return stated_dtype(read_config(folder)) or "float32"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's format."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises LinesideError if it cannot be read."""
    path = folder / CONFIG
    found = read_record(dict[str, Any], path, "copy the adapter's whole folder again")
    if not isinstance(found.get("base_model_name_or_path"), str):
        raise LinesideError(f"{path}: expected peft's configuration of an adapter, with base_model_name_or_path")
    return found


def base_of(folder: Path) -> Path:
    """The checkpoint that an adapter belongs to: where its configuration says, or in the run beside it.

    Raises LinesideError if it is not there, or if it is another one than the adapter was trained on.
    """
    named = Path(read_adapter_config(folder)["base_model_name_or_path"])
    moved = folder.absolute().parent.parent / Path(*named.parts[-2:])  # a run that lies elsewhere now
    base = next((path for path in (named, moved) if is_file(path / "config.json")), None)
    if base is None:
        raise LinesideError(
            f"the adapter {folder} needs the checkpoint that it was trained on, and there is none at {named}: put it "
            f"there, or write its place into base_model_name_or_path in {folder / CONFIG}"
        )
    wanted = header(folder / WEIGHTS).get(BASE)
    if wanted is not None and wanted != fingerprint(base):
        raise LinesideError(
            f"the adapter {folder} was trained on other weights than those of {base}: give the checkpoint that it was "
            f"trained on as base_model_name_or_path in {folder / CONFIG}"
        )
    return base


def header(path: Path) -> dict[str, str]:
    """What the header of a file of weights says beside their shapes. Raises LinesideError if it is none."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise LinesideError(f"{path}: not readable as weights ({error})") from None
