"""Strict settings from YAML: a typed, frozen tree; unknown keys name their nearest; errors name file and line.

YAML as people write it: `1e-4` is a number (PyYAML takes it for text), a key given twice is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lineside.errors import LinesideError

S = TypeVar("S", bound="Settings")
SHOWN = 8  # errors reported at once


class Settings(BaseModel):
    """Base of every section: no unknown keys, no coercion, no change after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def load(kind: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read settings of the given kind from a YAML file, with "dotted.key=value" overrides on top.

    Raises LinesideError for a file that cannot be read, bad YAML, an unknown key, a missing one or a wrong type.
    """
    data, lines = _parse(path)
    origin = {(): str(path)} | {key: f"{path} line {line}" for key, line in lines.items()}
    for override in overrides:
        key = _override(data, override)
        origin[key] = f"override {override!r}"
    try:
        # By way of JSON: strict, and yet a string is a path and a list a tuple, as they must be in a file.
        return kind.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = [_explain(kind, dict(problem), origin) for problem in error.errors()]
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise LinesideError("\n".join(problems[:SHOWN] + more)) from None


def dump(settings: Settings) -> str:
    """All settings as YAML, defaults included, in the order of the fields."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def differing(before: Settings, after: Settings) -> list[str]:
    """One line for each setting whose value differs: "dotted.key: old -> new"."""
    old, new = (dict(_leaves(s.model_dump(mode="json"))) for s in (before, after))
    return [
        f"{'.'.join(key)}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


# --- YAML


class _Loader(yaml.SafeLoader):
    """Plain data only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base does, but a key given twice is an error: the first one would be lost without a word."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file's data, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise LinesideError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LinesideError(f"{path} is not a text file: expected YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise LinesideError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise LinesideError(f"{path}: expected settings as `key: value`, got a {type(data).__name__}")
    return data, dict(_lines(node, ()))


def _lines(node: yaml.Node | None, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, str(name.value)), name.start_mark.line + 1
            yield from _lines(value, (*key, str(name.value)))


def _override(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put "a.b=value" into `data` and return its key."""
    name, equals, value = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise LinesideError(f"override {override!r}: expected key=value, such as seed=1 or sft.epochs=2")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise LinesideError(f"override {override!r}: {value!r} is not valid YAML; quote it if it is text") from None
    here = data
    for part in key[:-1]:
        below = here.get(part)
        if below is None:
            below = here[part] = {}
        if not isinstance(below, dict):
            raise LinesideError(f"override {override!r}: {part} is a value, it has no settings below it")
        here = below
    here[key[-1]] = parsed
    return key


# --- errors


def _explain(kind: type[Settings], problem: Mapping[str, Any], origin: Mapping[tuple[str, ...], str]) -> str:
    key = tuple(str(part) for part in problem["loc"])
    where = next(origin[key[:n]] for n in range(len(key), -1, -1) if key[:n] in origin)
    name = ".".join(key)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown setting {name}. {_nearest(kind, key)}"
    if problem["type"] == "missing":
        return f"{where}: the setting {name} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {f'{name}: ' if name else ''}{message}"
    return f"{where}: {name}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"


def _nearest(kind: type[Settings], key: tuple[str, ...]) -> str:
    """The nearest key of the same section; else what the section has, and the same word in another section."""
    section = _section(kind, key[:-1])
    prefix = "".join(f"{part}." for part in key[:-1])
    if near := get_close_matches(key[-1], section.model_fields, n=1, cutoff=0.6):
        return f"Did you mean {prefix}{near[0]}?"
    names = {dotted: dotted.rpartition(".")[2] for dotted in _names(kind, "")}
    there = f"There are: {', '.join(prefix + name for name in section.model_fields)}"
    if near := get_close_matches(key[-1], names.values(), n=1, cutoff=0.8):
        return f"Did you mean {' or '.join(dotted for dotted, last in names.items() if last == near[0])}? {there}"
    return there


def _section(kind: type[Settings], key: tuple[str, ...]) -> type[Settings]:
    for part in key:
        kind = _settings_in(kind.model_fields[part].annotation) or kind
    return kind


def _names(kind: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        if below := _settings_in(field.annotation):
            yield from _names(below, f"{prefix}{name}.")


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The section behind an annotation `Section` or `Section | None`."""
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Settings)), None)


def _leaves(data: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, (*key, name))
    else:
        yield key, data
