"""Sentences with slots: `{column}` is filled from a record, `{a column}` with its article. Nothing is evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lineside.data.strict import nearest
from lineside.errors import LinesideError

_SLOT = re.compile(r"\{(a )?([A-Za-z_][A-Za-z0-9_]*)\}")


def slots(template: str) -> tuple[str, ...]:
    """Columns that a template names, in order, each once. Raises ValueError for a brace that is no slot."""
    if any(brace in _SLOT.sub("", template) for brace in "{}"):
        raise ValueError(f"{template!r}: a slot is written {{column}} or {{a column}}; other braces are not allowed")
    return tuple(dict.fromkeys(match.group(2) for match in _SLOT.finditer(template)))


def fill(template: str, values: Mapping[str, Any], where: str) -> str | None:
    """The sentence; None if a value it needs is unknown (null). Raises LinesideError where a column does not exist."""
    needed = {name: value_text(column(values, name, where)) for name in slots(template)}
    if any(text is None for text in needed.values()):
        return None

    def replace(match: re.Match[str]) -> str:
        text = needed[match.group(2)] or ""
        return f"{article(text)} {text}" if match.group(1) else text

    return _SLOT.sub(replace, template)


def column(values: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column, or LinesideError naming the columns that there are."""
    if name not in values:
        raise LinesideError(
            f"{where}: the records have no column {name!r}{nearest(name, values)}; they have {', '.join(values)}"
        )
    return values[name]


def value_text(value: Any) -> str | None:
    """How a value is written in a sentence: true as yes, lists with commas ("none" when empty), null as None."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) or "" for item in value) or "none"
    return str(value)


def article(text: str) -> str:
    """ "an" before a vowel, else "a"."""
    return "an" if text[:1].lower() in tuple("aeiou") else "a"
