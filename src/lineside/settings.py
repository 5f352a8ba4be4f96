"""Strict settings from YAML: a typed, frozen tree; errors name file and line; `key=value` overrides on top."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from lineside.errors import LinesideError
from lineside.strict import Loader, Strict, decoded, is_secret, parse_yaml, problem, read_yaml

S = TypeVar("S", bound="Settings")
Key = tuple[str, ...]


class Settings(Strict):
    """Base of every section: no unknown keys, no coercion, immutable. A field's docstring says what it is."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Augment(Settings):
    """Altered copies of the training pictures, so that the features of the frozen encoder vary more."""

    variants: Annotated[int, Field(ge=1)] = 1
    """Variants of each picture, the picture itself included; each pass over the data takes the next. 1: no copies."""
    mirror: bool = False
    """Mirror half of the variants. Not for tasks whose answers tell left from right."""
    crop: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Largest share of its area that a variant leaves out, with sides up to a quarter longer or shorter."""
    light: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Largest change of a variant in brightness, contrast and colours, as a share."""

    @property
    def moves(self) -> bool:
        """Whether things may lie in another place in a variant than in its picture."""
        return self.variants > 1 and (self.mirror or self.crop > 0)

    @model_validator(mode="after")
    def _alters(self) -> Augment:
        if self.variants > 1 and not (self.mirror or self.crop or self.light):
            raise ValueError("the variants would all be equal: set mirror, crop or light as well")
        return self


UNALTERED = Augment()


class Lora(Settings):
    """LoRA: low-rank maps beside the frozen weights of the language model (arXiv 2106.09685). The stages that name it
    in `train` train it, with the rows of the think tags, in place of the language model."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each map. Its parameters, and what they add to memory, grow with it."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """A map is multiplied by alpha / rank."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Linear layers of the language model that get a map, by the last part of their names. All of them by default."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a map's inputs that is set to 0 in training. In stage 2 only: in stage 3 rollouts and their
    probabilities must be those of one policy."""


def load(
    kind: type[S],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    renamed: Mapping[str, str] | None = None,
    old_values: Mapping[str, Mapping[Any, Any]] | None = None,
    take_old_names: bool = False,
) -> S:
    """Read settings of the given kind from a YAML file, with "dotted.key=value" overrides on top.

    `renamed` maps a key's old dotted name to its new name, `old_values` the values of such a key to those of the new
    one. A file with an old name is refused with the new one, or, with `take_old_names`, read as if it had it. Raises
    LinesideError for a file that cannot be read, bad YAML, an unknown key, a missing one or a wrong type.
    """
    data, renamed, old_values = read_yaml(path), renamed or {}, old_values or {}
    if take_old_names:
        _rename(data, renamed, old_values)
    changed = {key: f"override {_told(key, one)!r}" for one in overrides for key in (_override(data, one),)}
    try:
        # Through JSON: in strict mode JSON still turns a string into a path and a list into a tuple.
        return kind.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        origin = {(): str(path)} | {key: f"{path}, line {line}" for key, line in _lines(path)} | changed
        raise LinesideError(
            "\n".join(_explain(kind, mistake, origin, renamed, old_values) for mistake in error.errors())
        ) from None


def dump(settings: Settings, *, defaults: bool = True) -> str:
    """The settings as YAML, in the order of the fields: all, or without `defaults` those that differ from them."""
    plain = settings.model_dump(mode="json", by_alias=True, exclude_defaults=not defaults)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def differing(before: Settings, after: Settings) -> list[str]:
    """One line for each setting whose value differs: "dotted.key: old -> new"."""
    old, new = (dict(_leaves(s.model_dump(mode="json", by_alias=True))) for s in (before, after))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{'.'.join(key)}: {old.get(key)} -> {new.get(key)}" for key in changed]


def _rename(data: dict[str, Any], renamed: Mapping[str, str], values: Mapping[str, Mapping[Any, Any]]) -> None:
    """Give the keys of `data` that have an old name their new one, and their values the new form, in place."""
    for old, new in renamed.items():
        *sections, key = old.split(".")
        here: Any = data
        for section in sections:
            here = here.get(section) if isinstance(here, dict) else None
        if isinstance(here, dict) and key in here:
            here[new] = _new_value(here.pop(key), values.get(old, {}))


def _new_value(value: Any, values: Mapping[Any, Any]) -> Any:
    """The value of a renamed key in its new form."""
    return next((new for old, new in values.items() if old is value), value)


def _explain(
    kind: type[Settings],
    mistake: Any,
    origin: dict[Key, str],
    renamed: Mapping[str, str],
    old_values: Mapping[str, Mapping[Any, Any]],
) -> str:
    key = tuple(str(part) for part in mistake["loc"])
    where = next(origin[key[:n]] for n in range(len(key), -1, -1) if key[:n] in origin)
    if mistake["type"] == "extra_forbidden" and (new := renamed.get(".".join(key))):
        value = _new_value(given := mistake["input"], old_values.get(".".join(key), {}))
        changed = f", and {json.dumps(given)} is now {json.dumps(value)}" if value is not given else ""
        return f"{where}: key '{'.'.join(key)}' is now called '{'.'.join((*key[:-1], new))}'{changed}"
    return f"{where}: {problem(kind, mistake)}"


def _lines(path: Path) -> Iterator[tuple[Key, int]]:
    """The line of each key of a valid YAML file."""

    def walk(node: yaml.Node | None, key: Key) -> Iterator[tuple[Key, int]]:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield (*key, str(name.value)), name.start_mark.line + 1
                yield from walk(value, (*key, str(name.value)))

    return walk(yaml.compose(decoded(path.read_bytes()), Loader), ())


def _told(key: Key, override: str) -> str:
    """An override as a message shows it: without a value that may be a key."""
    return f"{'.'.join(key)}=..." if any(map(is_secret, key)) else override


def _override(data: dict[str, Any], override: str) -> Key:
    """Put "a.b=value" into `data` and return its key."""
    name, equals, value = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise LinesideError(f"override {override!r}: expected key=value, such as seed=1 or sft.epochs=2")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        told = _told(key, override)
        raise LinesideError(f"override {told!r}: the value is not valid YAML; quote it if it is text") from None
    here = data
    for part in key[:-1]:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise LinesideError(f"override {_told(key, override)!r}: {part} is a value and has no settings below it")
    here[key[-1]] = parsed
    return key


def _leaves(data: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, (*key, name))
    else:
        yield key, data
