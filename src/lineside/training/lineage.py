"""What a run and its models were made from: data, and the checkpoint that each stage began with.

<run>/inputs.json           stamps of the samples, of the samples mixed in, and of the task files: a change is noticed
<run>/<stage>/parent.json   the checkpoint that the stage began with, and the stamps of its files
<checkpoint>/lineage.json   what the model came from: stage, settings, seed, data, code, and the lineage of its parent

The lineage goes with a checkpoint that is copied elsewhere. Checkpoints of before 2026-11-30 have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lineside import origin
from lineside.data.job import CONTROL, task_file
from lineside.data.taskfile import said_by
from lineside.errors import LinesideError
from lineside.files import Stamp, changes, dump_stamps, stamps, write_atomic
from lineside.recipe import Recipe
from lineside.stages import entry_of
from lineside.strict import read_record

INPUTS, PARENT, LINEAGE = "inputs.json", "parent.json", "lineage.json"
VERSION = 1  # of lineage.json
BESIDE = ("tasks.json", LINEAGE)  # written into a checkpoint later, as calibrations are; no training depends on them
NAMED = 4  # changed files of one input that a message names

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parent:
    """Where a stage's first checkpoint lay, the stamps of its files, and the code that trained the stage last. `code`:
    None in runs of before."""

    checkpoint: str = ""
    files: Mapping[str, Stamp] = field(default_factory=dict)
    code: Mapping[str, str | None] | None = None


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
    """Save which checkpoint a stage begins with, and the code that trains it."""
    _write_parent(stage, Parent(str(checkpoint), stamps(_weights(checkpoint), root=checkpoint)))


def note_code(stage: Path) -> None:
    """Save the code that goes on with a stage. Before it trains: a process that is killed right behind the checkpoint
    leaves a stage that no later process has trained."""
    if (stage / PARENT).exists():
        _write_parent(stage, _read(Parent, stage / PARENT))


def _write_parent(stage: Path, parent: Parent) -> None:
    code = {"version": origin.version(), "git": origin.git_commit()}
    write_atomic(stage / PARENT, json.dumps(asdict(replace(parent, code=code)), indent=1))


def changed_parent(stage: Path, checkpoint: Path) -> str:
    """Says how `checkpoint` differs from the one that a stage began with; "" if it does not, or if none was saved."""
    path = stage / PARENT
    if not path.exists():
        return ""
    before = {name: stamp for name, stamp in _read(Parent, path).files.items() if not _is_beside(name)}
    return _some(changes(before, stamps(_weights(checkpoint), before, root=checkpoint)))


def write_lineage(run: Path, name: str, recipe: Recipe) -> None:
    """Write what the checkpoint of a stage came from beside it, if its parent is noted."""
    stage = run / name
    if not (stage / PARENT).exists():
        return
    noted = _read(Parent, stage / PARENT)
    parent = Path(noted.checkpoint)
    lineage = {
        "version": VERSION,
        "stage": name,
        "settings": {key: recipe.section(key).model_dump(mode="json") for key in entry_of(name).sections},
        "seed": recipe.seed,
        "parts": recipe.parts.model_dump(mode="json"),
        "data": {key: _digest(files) for key, files in _noted(run).items()},
        "code": noted.code,
        "date": origin.now(),
        "parent": {
            "checkpoint": str(parent),
            "weights": _digest(noted.files),
            "lineage": read_lineage(parent),
        },
    }
    write_atomic(stage / "checkpoint" / LINEAGE, json.dumps(lineage, indent=1) + "\n")


def read_lineage(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint came from; None if nothing is written beside it. Raises LinesideError for a file of a newer
    version, or one that cannot be read."""
    path = checkpoint / LINEAGE
    if not path.exists():
        return None
    found = _read(dict[str, Any], path)
    if found.get("version") != VERSION:
        raise LinesideError(
            f"{path}: version {found.get('version')!r}, and this lineside knows {VERSION}: install a newer one, or "
            "delete the file: the model works without it"
        )
    return found


def keeps_captions(checkpoint: Path) -> bool:
    """Whether the last stage 2 in a checkpoint's lineage trained captions beside its questions; True if nothing says
    otherwise. Raises as `read_lineage`."""
    stages = ancestry(read_lineage(checkpoint))
    try:
        return next((one["settings"]["sft"]["caption_replay"] > 0 for one in stages if one["stage"] == "sft"), True)
    except (KeyError, TypeError):
        return True


def ancestry(lineage: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A lineage and those before it, the newest first. Raises KeyError or TypeError for one that is not sound."""
    while lineage is not None:
        yield lineage
        lineage = lineage["parent"]["lineage"]


def samples_digest(folder: Path) -> str:
    """The fingerprint of a folder of samples, as the lineage of what was trained on it states it."""
    return _digest(stamps(_shards(folder), root=folder))


def weights_digest(checkpoint: Path) -> str:
    """The fingerprint of a checkpoint, by which the lineage of what was trained from it names it."""
    return _digest(stamps(_weights(checkpoint), root=checkpoint))


def _digest(files: Mapping[str, Stamp]) -> str:
    text = "\n".join(f"{name} {stamp.hash}" for name, stamp in sorted(files.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _inputs(recipe: Recipe, samples: Path, known: Inputs) -> dict[str, dict[str, Stamp]]:
    mix = {f"data.mix.{number}": mixed.samples for number, mixed in enumerate(recipe.data.mix)}
    found: dict[str, dict[str, Stamp]] = {}
    read: dict[Path, dict[str, Stamp]] = {}  # a folder may be mixed in once for each stage
    for key, folder in {"samples": samples, **mix}.items():
        found[key] = read[folder] = stamps(_shards(folder), {**known.get(key, {}), **read.get(folder, {})}, root=folder)
    for path in map(task_file, recipe.data.tasks):
        said = hashlib.blake2b(said_by([path]).encode(), digest_size=16).hexdigest()
        found[f"data.tasks ({path.name}), by content"] = {path.name: Stamp(0, 0, said)}
    return found


def _shards(samples: Path) -> list[Path]:
    return sorted([*samples.glob("*-*-[0-9]*.parquet"), *samples.glob(f"{CONTROL}/*-*-[0-9]*.parquet")])


def _weights(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint on which further training depends: weights, configuration, tokenizer."""
    files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")]
    return sorted(path for path in files if not _is_beside(path.name))


def is_calibration(name: str) -> bool:
    """Whether a file of a checkpoint is a calibration: each engine, with its weights, has one."""
    return name.startswith("calibration")


def _is_beside(name: str) -> bool:
    """Whether a file was written into a checkpoint later."""
    return name in BESIDE or is_calibration(name)


def _noted(run: Path) -> dict[str, dict[str, Stamp]]:
    path = run / INPUTS
    return _read(dict[str, dict[str, Stamp]], path) if path.exists() else {}


def _read(kind: type[T], path: Path) -> T:
    return read_record(kind, path, "delete it, and it is written again")


def _some(what: list[str]) -> str:
    return ", ".join(what[:NAMED]) + (f" and {len(what) - NAMED} more" if len(what) > NAMED else "")
