"""YAML files read strictly: an unknown key, a wrong type or a repeated key is an error that names the place.

`yes` and `no` stay text (YAML 1.1 makes them booleans, but here they are answers).
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from lineside.errors import LinesideError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
MAX_BYTES = 256 << 10  # a second of PyYAML's
MAX_VALUES = 500_000
MAX_DEPTH = 64
_BRACKETS = re.compile(r"[\[\]{}]")
SHOWN = 8  # most mistakes reported at once


class Strict(BaseModel):
    """A frozen record that refuses unknown keys and converts no types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Tuple = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]  # a YAML list


class Loader(yaml.SafeLoader):
    """YAML in which only true, false, null and decimal numbers are not text; no key twice.

    PyYAML follows YAML 1.1, in which `no` is false, `010` is 8, `6:00` is 360 and `2026-01-02` a date. In a task file
    these are answers, codes, times and days, so here they stay text. (libyaml is ten times as fast, but takes `[a: b]`,
    mostly a forgotten quote, for keys and values.)
    """


_ELSEWHERE = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _ELSEWHERE]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        same = str(key) if isinstance(key, int | str) else key  # 1 and "1" are the same key
        if not isinstance(key, str | int | float | None):
            raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
        if same in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} occurs twice here", key_node.start_mark
            )
        seen.add(same)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, ValueError or RecursionError.

    References (`*name`) are counted as what they stand for: ten lines of them can mean a billion values. Brackets are
    counted first, wherever they stand, because PyYAML's time grows with the square of their depth.
    """
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} brackets are open")
    loader = Loader(text)
    try:
        if (node := loader.get_single_node()) is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_VALUES:,} values", node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values below a node, each reference counted with all that it stands for."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.constructor.ConstructorError(None, None, "a value that holds itself", node.start_mark)
        return known[id(node)]
    known[id(node)], inner = 0, []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises LinesideError naming file and line for a missing file or invalid YAML."""
    try:
        if path.is_dir():
            raise LinesideError(f"{path}: a folder; expected a YAML file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)  # a device has no end
        if len(content) > MAX_BYTES:
            raise LinesideError(f"{path}: too large to be settings (at most {MAX_BYTES:,} bytes)")
        text = decoded(content)
        data = parse_yaml(text)
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeError as error:
        raise LinesideError(f"{path}: cannot be read ({error}); expected UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or error
        if "'\\t'" in str(what):
            advice = "; indent with spaces, not with tabs"
        elif "occurs twice" in str(what):
            advice = ""
        else:
            advice = "; put a text with ': ', '#', brackets or commas in quotes"
        raise LinesideError(f"{path}{line}: not valid YAML ({what}){advice}") from error
    if not isinstance(data, dict):
        raise LinesideError(f"{path}: expected keys and values at the top, found {type(data).__name__}")
    return data


def decoded(data: bytes, encoding: str | None = None) -> str:
    """Text of a file by its byte-order mark, else as UTF-8, or in the given `encoding`.

    Raises UnicodeError for bytes of another encoding, LookupError for an unknown encoding.
    """
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    by_mark = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    return data.decode(encoding or by_mark)


def build(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """The record, or LinesideError with `where` and, for each mistake, the key, what is wrong and the nearest key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [f"{where}: {problem(model, mistake)}" for mistake in error.errors()]
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise LinesideError("\n".join(problems[:SHOWN] + more)) from error


def read_record(kind: type[T], path: Path, advice: str) -> T:
    """A JSON file as `kind`: a dataclass, a record, or a type such as `dict[str, Any]`; all types are checked.

    Raises FileNotFoundError or NotADirectoryError where there is no file, and LinesideError with the path, the first
    mistake and `advice` for one that cannot be read, is no JSON, is nested too deep or holds anything else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), extra="forbid")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a mistake in it, or a null byte in the path
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part)[:60] for part in first["loc"])
            reason = f"{place}: {first['msg']}" if place else first["msg"]
        else:
            reason = getattr(error, "strerror", None) or str(error)
        raise LinesideError(f"{path} cannot be read as JSON of this kind ({reason}): {advice}") from None


_SECRET = re.compile(r"(?i)(.*[-_])?(api)?key(_env)?|authorization|(.*[-_])?(secret|password|token)|base_url|body")


def is_secret(name: str) -> bool:
    """Whether the value under a name may be a key, or hold one: it is then not told, and not written down."""
    return _SECRET.fullmatch(name) is not None


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the closest of `names`, or nothing."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close else ""


def closest(name: str, names: Iterable[str]) -> str:
    """The closest of `names`, case ignored; "" if none is close."""
    by_case = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=0.6)
    return by_case[close[0]] if close else ""


def problem(model: type[BaseModel], mistake: Any) -> str:
    """The message for one of pydantic's errors: the key, what is wrong with it, and the nearest known key."""
    place = ".".join(str(part) for part in mistake["loc"] if part != "[key]" and not str(part).startswith("function-"))
    if mistake["type"] == "extra_forbidden":
        key, keys = str(mistake["loc"][-1]), _keys_at(model, mistake["loc"][:-1])
        return f"unknown key '{place}'{nearest(key, keys)} (keys here: {', '.join(keys)})"
    if mistake["type"] == "missing":
        return f"key '{place}' is missing"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return f"{place}: {message}" if place else message
    if expected := _EXPECTED.get(mistake["type"]):
        message = "expected " + expected.format(**mistake.get("ctx", {}))
    if mistake["type"] == "string_pattern_mismatch":  # of a name, or of a separator
        name = "A-Za-z" in mistake["ctx"]["pattern"]
        message = f"expected {'letters, digits, _ and -, without spaces' if name else 'one character'}"
    if is_secret(place.rpartition(".")[2]):
        return f"{place}: {message}"
    return f"{place}: {message}, got {_told(mistake['input'])}"


_EXPECTED = {  # for pydantic's types of error
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "finite_number"), "a number"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list: [...]"),
    **dict.fromkeys(("dict_type", "model_type"), "keys and values below it"),
    "bool_type": "true or false",
    "string_type": "text",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of at least {min_length}",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
}


def _told(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)[:80]


def _keys_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Names of the keys allowed at `place`, through nested records, lists and unions."""
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
