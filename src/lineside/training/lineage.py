"""What a run was made from: its data, and the checkpoint that each stage began with. So a change is noticed.

<run>/inputs.json           stamps of the samples, of the samples mixed in, and of the task files
<run>/<stage>/parent.json   the checkpoint that the stage began with, and the stamps of its files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineside.data.job import CONTROL, task_file
from lineside.data.taskfile import said_by
from lineside.errors import LinesideError
from lineside.files import Stamp, changes, dump_stamps, load_stamps, stamps, write_atomic
from lineside.recipe import Recipe

INPUTS, PARENT = "inputs.json", "parent.json"
BESIDE = ("calibration.json", "tasks.json")  # written into a checkpoint later; no training depends on them
NAMED = 4  # changed files of one input that a message names

Inputs = Mapping[str, Mapping[str, Stamp]]  # name of the input in the recipe -> stamps of its files


def note_inputs(run: Path, recipe: Recipe, samples: Path) -> None:
    """Save the stamps of a run's data. Call it when all data are there."""
    found = {key: dump_stamps(files) for key, files in _inputs(recipe, samples, _noted(run)).items()}
    write_atomic(run / INPUTS, json.dumps(found, indent=1))


def changed_inputs(run: Path, recipe: Recipe, samples: Path) -> str:
    """Says which data have changed since `note_inputs`; "" if none. Contents are compared, so a copy is no change."""
    before = _noted(run)
    now = _inputs(recipe, samples, before)
    found = {key: changes(before[key], now[key]) for key in before if key in now}
    return "; ".join(f"{key}: {_some(what)}" for key, what in found.items() if what)


def forget_inputs(run: Path) -> None:
    """Delete what was saved, so that the data are checked and saved again."""
    for name in (INPUTS, "data.json"):
        (run / name).unlink(missing_ok=True)


def note_parent(stage: Path, checkpoint: Path) -> None:
    """Save which checkpoint a stage begins with."""
    files = dump_stamps(stamps(_weights(checkpoint), root=checkpoint))
    write_atomic(stage / PARENT, json.dumps({"checkpoint": str(checkpoint), "files": files}, indent=1))


def changed_parent(stage: Path, checkpoint: Path) -> str:
    """Says how `checkpoint` differs from the one that a stage began with; "" if it does not, or if none was saved."""
    path = stage / PARENT
    if not path.exists():
        return ""
    before = _stamps(path, _read(path).get("files", {}))
    before = {name: stamp for name, stamp in before.items() if name not in BESIDE}
    return _some(changes(before, stamps(_weights(checkpoint), before, root=checkpoint)))


def _inputs(recipe: Recipe, samples: Path, known: Inputs) -> dict[str, dict[str, Stamp]]:
    mix = {f"data.mix.{number}": mixed.samples for number, mixed in enumerate(recipe.data.mix)}
    found = {}
    for key, folder in {"samples": samples, **mix}.items():
        shards = [*folder.glob("*-*-[0-9]*.parquet"), *folder.glob(f"{CONTROL}/*-*-[0-9]*.parquet")]
        found[key] = stamps(sorted(shards), known.get(key, {}), root=folder)
    for path in map(task_file, recipe.data.tasks):
        said = hashlib.blake2b(said_by([path]).encode(), digest_size=16).hexdigest()
        found[f"data.tasks ({path.name}), by content"] = {path.name: Stamp(0, 0, said)}
    return found


def _weights(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint on which further training depends: weights, configuration, tokenizer."""
    files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")]
    return sorted(path for path in files if path.name not in BESIDE)


def _noted(run: Path) -> dict[str, dict[str, Stamp]]:
    path = run / INPUTS
    return {key: _stamps(path, files) for key, files in _read(path).items()} if path.exists() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LinesideError(f"{path}: cannot be read ({error}); delete it, and it is written again") from None
    if not isinstance(found, dict):
        raise LinesideError(f"{path}: expected a JSON object; delete it, and it is written again")
    return found


def _stamps(path: Path, plain: Any) -> dict[str, Stamp]:
    try:
        return load_stamps(plain)
    except (TypeError, AttributeError) as error:
        raise LinesideError(f"{path}: not the stamps of files ({error}); delete it, and it is written again") from None


def _some(what: list[str]) -> str:
    return ", ".join(what[:NAMED]) + (f" and {len(what) - NAMED} more" if len(what) > NAMED else "")
