"""How two registered models differ: recipe, data, parts, files, and their answers to the same questions.

Evaluations are compared in pairs, as `lineside compare` does, where split, mode and suite are the same. Elsewhere both
numbers stand side by side, and no difference is claimed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lineside.errors import LinesideError
from lineside.judgement.paired import Comparison, check_same_suite, compare_rows, rows_by_id
from lineside.judgement.schema import read_evaluation
from lineside.recipe import MARGIN, differences, load_run_recipe
from lineside.registry.listing import OWN, RECIPE, newest_evaluations, runs_of_suites
from lineside.registry.manifest import read_manifest
from lineside.registry.store import Item, Registry, Version

MISSING = "\N{EN DASH}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unpaired(_Frozen):
    """Evaluations in the same way that are not of the same questions, or that only one model has."""

    name: str = Field(description="split and mode, and what decoded if not the model itself")
    first: float | None = Field(description="share exact; null: not evaluated")
    second: float | None
    why: str


class Difference(_Frozen):
    """The output of `diff --json`. Lists of changes are lines `key: first -> second`."""

    first: str
    second: str
    recipe: list[str] | None = Field(description="null: one of them was registered without its run")
    data: list[str] | None = Field(description="null: one of them has no lineage")
    parts: list[str] | None = Field(description="null: nothing that both say of them is kept")
    files: list[str] | None = Field(description="null: those of one were deleted")
    compared: dict[str, Comparison] = Field(description="by split and mode, and what decoded if not the model itself")
    unpaired: list[Unpaired]


def diff(registry: Registry, first: Version, second: Version, *, margin: float = MARGIN, seed: int = 0) -> Difference:
    """The difference of two versions. Raises LinesideError if a kept evaluation or recipe is damaged."""
    a, b = registry.item(first.model), registry.item(second.model)
    compared, unpaired = _evaluations(registry, first, second, margin=margin, seed=seed)
    return Difference(
        first=first.label,
        second=second.label,
        recipe=_recipe(registry, a, b),
        data=_changes(a.about["data"], b.about["data"]) if a.about["trained"] and b.about["trained"] else None,
        parts=_parts(registry, a, b),
        files=_files(registry, a, b),
        compared=compared,
        unpaired=unpaired,
    )


def _evaluations(
    registry: Registry, first: Version, second: Version, *, margin: float, seed: int
) -> tuple[dict[str, Comparison], list[Unpaired]]:
    ours, theirs = (newest_evaluations(registry, version.model) for version in (first, second))
    compared: dict[str, Comparison] = {}
    unpaired: list[Unpaired] = []
    runs = runs_of_suites(registry)
    for way in sorted({key[:3] for key in (*ours, *theirs)}):
        name = " ".join(way[:2] if way[2] == OWN else way)
        one, other = ({key[3]: item for key, item in found.items() if key[:3] == way} for found in (ours, theirs))
        common = [digest for digest in one if digest in other]
        for digest in common:
            named = name if len(common) == 1 else f"{name} of {runs.get(digest, 'a suite')} {digest[:6]}"
            pair = one[digest], other[digest]
            try:
                compared[named] = _compare(registry, *pair, (first.label, second.label), margin, seed)
            except _NotComparable as error:
                unpaired.append(_unpaired(named, *pair, str(error)))
        if not common:
            last, its = (list(found.values())[-1] if found else None for found in (one, other))
            lacking = [version.label for version, item in ((first, last), (second, its)) if item is None]
            changed = "the suite has changed: other questions, pictures or truths"
            unpaired.append(_unpaired(name, last, its, f"{lacking[0]} was not evaluated so" if lacking else changed))
    return compared, unpaired


def _unpaired(name: str, one: Item | None, other: Item | None, why: str) -> Unpaired:
    exact = [None if item is None else float(item.about["exact"]) for item in (one, other)]
    return Unpaired(name=name, first=exact[0], second=exact[1], why=why)


class _NotComparable(Exception):
    """The evaluations were made in ways that cannot be compared."""


def _compare(
    registry: Registry, one: Item, other: Item, names: tuple[str, str], margin: float, seed: int
) -> Comparison:
    files = [
        registry.check(item, f"evaluation {item.about['name']}") / f"{item.about['name']}.json" for item in (one, other)
    ]
    evaluations = [read_evaluation(path) for path in files]
    try:
        check_same_suite(*evaluations)
    except LinesideError as error:
        raise _NotComparable(str(error)) from None
    rows = [rows_by_id(path) for path in files]
    return compare_rows(*rows, names=names, margin=margin, seed=seed)


def _recipe(registry: Registry, a: Item, b: Item) -> list[str] | None:
    found = [[hash for role, hash in registry.sources(item.hash) if role == "recipe"] for item in (a, b)]
    if not all(found):
        return None
    items = [registry.item(hashes[-1]) for hashes in found]
    paths = [registry.check(item, f"the recipe of {item.about['name']}") / RECIPE for item in items]
    return differences(*map(load_run_recipe, paths))


def _parts(registry: Registry, a: Item, b: Item) -> list[str] | None:
    """What differs in the settings of the parts and in the model's configuration, as far as it is kept."""
    plain = [{**_flat("parts", item.about["parts"]), **_flat("model", _config(registry, item))} for item in (a, b)]
    known = [{kind for kind in ("parts", "model") if any(key.startswith(kind) for key in one)} for one in plain]
    if not (both := known[0] & known[1]):
        return None
    return _changes(*({key: value for key, value in one.items() if key.split(".")[0] in both} for one in plain))


def _config(registry: Registry, item: Item) -> Any:
    try:
        return json.loads((registry.files(item) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # deleted: what stays is the record
        return None


def _files(registry: Registry, a: Item, b: Item) -> list[str] | None:
    if not (a.kept and b.kept):
        return None
    listed = [
        {e.name: f"{e.bytes:,} bytes {e.sha256[:12]}" for e in read_manifest(registry.path(i)).files} for i in (a, b)
    ]
    return _changes(*listed)


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    keys = sorted(first.keys() | second.keys())
    return [
        f"{key}: {first.get(key, MISSING)} -> {second.get(key, MISSING)}"
        for key in keys
        if first.get(key, MISSING) != second.get(key, MISSING)
    ]


def _flat(name: str, data: Any) -> dict[str, Any]:
    """The values of nested mappings by their dotted names."""
    return dict(_leaves(name, data)) if data is not None else {}


def _leaves(name: str, data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(f"{name}.{key}", value)
    else:
        yield name, data
