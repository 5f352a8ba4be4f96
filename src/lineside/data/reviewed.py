"""Corrections by people in a table: the column `lineside_reviewed` overrides the record, with who and when.

`lineside review` writes the user's table again with this column. A cell is a JSON object by column of the record (or a
path into it, `slots.2.state`): `{"count": {"value": 5, "was": 4, "by": "anna", "at": "2026-01-02T10:00:00Z"}}`. `value`
null: nobody can tell, so the truth is unknown. The table's own cells stay as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lineside.data.tabular import read_json
from lineside.errors import LinesideError
from lineside.strict import Strict, build

COLUMN = "lineside_reviewed"
MARK = "review.json"  # in the folder of a review


class Reviewed(Strict):
    """What people say that a value of the record is."""

    value: Any
    was: Any = None
    by: str
    at: str


class Mark(Strict):
    """The file that marks the folder of a review. `frames`: the reviewed folder of frames, relative to it."""

    version: int = 1
    frames: str | None = None


def read_cell(cell: Any) -> dict[str, Reviewed]:
    """The corrections in a cell, by column; none in an empty one. Raises LinesideError for anything else."""
    if cell is None or cell == "":
        return {}
    try:
        data = read_json(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError) as error:
        raise LinesideError(f"column {COLUMN!r} is not JSON ({error})") from error
    if not isinstance(data, Mapping):
        raise LinesideError(f"column {COLUMN!r} holds {data!r:.40}: expected an object by column of the record")
    return {name: build(Reviewed, entry, f"column {COLUMN!r}, {name}") for name, entry in data.items()}


def cell_text(found: Mapping[str, Reviewed]) -> str:
    """The inverse of `read_cell`: ASCII only, so that every encoding of a table can hold it; "" for none."""
    return json.dumps({name: entry.model_dump() for name, entry in found.items()}) if found else ""


def corrected(record: dict[str, Any], found: Mapping[str, Reviewed]) -> dict[str, Any]:
    """The record with its corrections. Raises LinesideError for a path that does not lead into the record."""
    for name, entry in found.items():
        path = [name] if name in record or "." not in name else name.split(".")
        record = _with(record, path, entry.value, name)
    return record


def _with(here: Any, path: list[str], value: Any, name: str) -> Any:
    """A copy of `here` with `value` at `path`."""
    first, *rest = path
    if isinstance(here, list) and first.isdecimal() and int(first) < len(here):
        place, copy = int(first), list(here)
    elif isinstance(here, dict) and (first in here or not rest):
        place, copy = first, dict(here)
    else:
        raise LinesideError(f"column {COLUMN!r}: the record has no {name!r} to correct")
    copy[place] = _with(copy[place], rest, value, name) if rest else value  # pyright: ignore[reportArgumentType, reportCallIssue]
    return copy


def home_of(table: Path) -> Path:
    """The folder from which the names in a table start: its own, or for a review's records the reviewed folder.

    Raises LinesideError when the mark of the review cannot be read.
    """
    mark = table.parent / MARK
    if not mark.is_file():
        return table.parent
    found = read_mark(mark).frames
    return table.parent if found is None else (table.parent / found).resolve()


def read_mark(path: Path) -> Mark:
    """The mark of a review's folder. Raises LinesideError naming the file."""
    try:
        data = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LinesideError(f"{path}: not the mark of a review ({error})") from error
    return build(Mark, data if isinstance(data, dict) else {}, str(path))
