"""YAML files read strictly: an unknown key, a wrong type or a key written twice is an error that names the place.

`yes` and `no` stay words (YAML 1.1 would make them booleans, and here they are answers).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lineside.errors import LinesideError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
MAX_BYTES = 4 << 20
SHOWN = 8  # mistakes told at once


class Strict(BaseModel):
    """A frozen record that refuses unknown keys and converts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Tuple = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]  # a YAML list


class Loader(yaml.SafeLoader):
    """YAML with the booleans and the floats of YAML 1.2 (`1e-4` is a number), and no key twice."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _word in ("true", "false"):
    Loader.yaml_implicit_resolvers.setdefault(_word[0], []).append(("tag:yaml.org,2002:bool", re.compile(f"^{_word}$")))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises LinesideError naming file and line for what is missing or no YAML."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LinesideError(
                f"{path}: {path.stat().st_size} bytes is too large to be settings (at most {MAX_BYTES})"
            )
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read ({error})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise LinesideError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error}); sentences belong in quotes"
        ) from error
    if not isinstance(data, dict):
        raise LinesideError(f"{path}: expected keys and values at the top, found {type(data).__name__}")
    return data


def build(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """The record, or LinesideError saying `where` and, for each mistake, the key, what is wrong, the nearest key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [f"{where}: {problem(model, mistake)}" for mistake in error.errors()]
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise LinesideError("\n".join(problems[:SHOWN] + more)) from error


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the closest of `names`, or nothing."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close else ""


def closest(name: str, names: Iterable[str]) -> str:
    """The closest of `names`, upper and lower case being the same; "" where none is close."""
    by_case = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=0.6)
    return by_case[close[0]] if close else ""


def problem(model: type[BaseModel], mistake: Any) -> str:
    """One of pydantic's mistakes in words: the key, what was wrong with it, and the nearest key there is."""
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        key, keys = str(mistake["loc"][-1]), _keys_at(model, mistake["loc"][:-1])
        return f"unknown key '{place}'{nearest(key, keys)} (keys here: {', '.join(keys)})"
    if mistake["type"] == "missing":
        return f"key '{place}' is missing"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, got {str(mistake['input'])[:80]!r}"


def _keys_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Names of the keys allowed where `place` leads, following nested records through lists and unions."""
    here: type[BaseModel] | None = model
    for part in place:
        if here is None:
            return []
        if isinstance(part, str) and part in here.model_fields:
            here = _record_in(here.model_fields[part].annotation)
    return [field.alias or name for name, field in here.model_fields.items()] if here else []


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if found := _record_in(inner):
            return found
    return None
