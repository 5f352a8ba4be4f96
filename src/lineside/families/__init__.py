"""Checkpoint families: loading and saving, pixels, placeholders, positions, masks. Nothing else knows how many tokens a
picture takes. CONTRIBUTING.md says how to add one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineside.errors import LinesideError
from lineside.families.base import Family
from lineside.families.llava import Llava

__all__ = ["FAMILIES", "Family", "family_named"]

FAMILIES: dict[str, type[Family]] = {family.kind: family for family in (Llava,)}


def family_named(kind: Any, folder: Path | str = "this") -> type[Family]:
    """The family of a `model_type`. Raises LinesideError, with the known ones, if there is none."""
    if kind not in FAMILIES:
        raise LinesideError(
            f"{folder} holds a model of type {kind!r}; expected a checkpoint of type {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]
