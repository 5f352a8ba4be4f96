"""Every key of a task file, from the classes that read the file: what it does, its default, an example."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lineside.data.taskfile import (
    Answer,
    Captions,
    Column,
    Distractors,
    Join,
    References,
    Roi,
    Section,
    Splits,
    Stakes,
    Table,
    Task,
)
from lineside.data.taskfile import TaskFile as File
from lineside.errors import LinesideError
from lineside.strict import nearest

# Each section with its place in the file, in reading order.
SECTIONS: dict[type[Section], str] = {
    File: "",
    Task: "tasks",
    Answer: "tasks.answer",
    Stakes: "tasks.stakes",
    Captions: "captions",
    Table: "table",
    Roi: "table.roi",
    References: "table.references",
    Column: "table.columns",
    Splits: "table.split",
    Join: "table.join",
    Distractors: "table.distractors",
}
_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a section. `example` is YAML for a task file."""

    section: str
    name: str
    type: str
    default: str  # "required" if there is none
    text: str
    example: str
    model: type[Section]

    @property
    def place(self) -> str:
        """The section's place and the key's name."""
        return f"{self.section}.{self.name}" if self.section else self.name


def keys(words: tuple[str, ...] = ()) -> list[Key]:
    """The keys of a task file; with `words` those of that name or of that section.

    Raises LinesideError for a word that is neither, with the nearest.
    """
    found = [
        _key(section, place, name, field)
        for section, place in SECTIONS.items()
        for name, field in section.model_fields.items()
    ]
    known = {key.name for key in found} | {key.place for key in found} | {_last(place) for place in SECTIONS.values()}
    for word in words:
        if word not in known:
            raise LinesideError(
                f"a task file has no key and no section {word!r}{nearest(word, known)} `lineside task keys` "
                "lists all of them"
            )
    return [key for key in found if not words or {key.name, key.place, key.section, _last(key.section)} & set(words)]


def about(section: type[Section]) -> str:
    """The description of a section, on one line."""
    return " ".join((inspect.getdoc(section) or "").split())


def _last(place: str) -> str:
    return place.rpartition(".")[2]


def _key(section: type[Section], place: str, name: str, field: FieldInfo) -> Key:
    text, _, example = (field.description or "").partition("\nExample: ")
    default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
    return Key(
        place, name, _type(field.annotation), default, " ".join(text.split()), " ".join(example.split()), section
    )


def _value(default: Any) -> str:
    """A default as it is written in a file; "" if it is left out."""
    if default is None or default in ((), {}, "") or isinstance(default, BaseModel):
        return ""
    if isinstance(default, bool):
        return "true" if default else "false"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _type(annotation: Any) -> str:
    """A type in words."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        return f"list: {_type(parts[0])}" if _type(parts[0]) != "section" else "list of sections"
    if origin is dict:
        return "names and values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = dict.fromkeys(_type(part) for part in parts if part is not NoneType)
    return " or ".join(words) or "text"
