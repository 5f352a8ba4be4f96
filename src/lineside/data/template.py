"""Sentences with slots: `{column}` is filled from a record, `{a column}` with its article. Nothing is evaluated.

`scan.code` reads a key of the nested record `scan`, unless a column has that very name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from lineside.data.values import decimal_text
from lineside.errors import LinesideError
from lineside.strict import nearest
from lineside.verify.text import normalise

_SLOT = re.compile(r"\{(a )?([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)\}")


def slots(template: str) -> tuple[str, ...]:
    """Columns that a template names, in order, each once. Raises ValueError for braces that are not a slot."""
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


def fits(template: str, text: str) -> int | None:
    """How many characters of the text are the template's own, if the text can be the template with its slots filled;
    else None. Case, white space and what stands at the end (? . !) do not matter. Takes linear time."""
    said = _plain(text)
    parts = _plain(_SLOT.sub("\0", template)).split("\0")
    if len(parts) == 1:
        return len(said) if said == parts[0] else None
    first, *middle, last = parts
    if not said.startswith(first):
        return None
    at = len(first)
    for part in middle:
        if (found := said.find(part, at + 1)) < 0:
            return None
        at = found + len(part)
    return sum(map(len, parts)) if said.endswith(last) and len(said) - len(last) > at else None


def _plain(text: str) -> str:
    return normalise(text).rstrip("?!. ")


def column(values: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column; inside null everything is null. Raises LinesideError naming the known columns."""
    if name in values:
        return values[name]
    here: Any = values
    for depth, part in enumerate(parts := name.split(".")):
        if here is None:
            return None
        if not isinstance(here, Mapping) or part not in here:
            above = ".".join(parts[:depth])
            known = [f"{above}.{key}" if above else str(key) for key in here] if isinstance(here, Mapping) else []
            inside = f"{above} holds {here!r:.40}, no record" if not isinstance(here, Mapping) else ""
            raise LinesideError(
                f"{where}: the records have no column {name!r}{nearest(name, known)}; "
                + (inside or f"they have {', '.join(known)}")
            )
        here = here[part]
    return here


def known(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The columns among `names` that exist, with their values."""
    found: dict[str, Any] = {}
    for name in names:
        with suppress(LinesideError):
            found[name] = column(values, name, "")
    return found


def value_text(value: Any) -> str | None:
    """A value as text in a sentence: true as yes, lists with commas ("none" when empty), null as None.

    A nested record (a line of a bill of materials) becomes its values: {"count": 2, "item": "red can"} is "2 red can";
    records in a list are separated by semicolons.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return decimal_text(value)
    if isinstance(value, Mapping):
        return " ".join(text for text in map(value_text, value.values()) if text)
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return "; ".join(value_text(item) or "" for item in value)
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) or "" for item in value) or "none"
    return str(value)


def article(text: str) -> str:
    """ "an" before a vowel, else "a"."""
    return "an" if text[:1].lower() in tuple("aeiou") else "a"
