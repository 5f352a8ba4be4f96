"""Checkpoint families: loading and saving, pixels, placeholders, positions, masks. Nothing else knows how many tokens a
picture takes. CONTRIBUTING.md says how to add one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineside.errors import LinesideError
from lineside.families.base import PROVEN_LMS, Family
from lineside.families.idefics3 import Idefics3, SmolVLM
from lineside.families.internvl import InternVL
from lineside.families.llava import Llava
from lineside.families.llava_onevision import LlavaOneVision
from lineside.families.qwen_vl import Qwen3VL, Qwen25VL

__all__ = ["FAMILIES", "PROVEN_LMS", "Family", "family_named"]

_ALL: tuple[type[Family], ...] = (Llava, SmolVLM, Idefics3, InternVL, Qwen25VL, Qwen3VL, LlavaOneVision)
FAMILIES = {family.kind: family for family in _ALL}
_BOTH_WAYS = "the tokens of its pictures see each other in both directions, and packed trees are causal"
LEFT_OUT = dict.fromkeys(("gemma3", "paligemma"), _BOTH_WAYS)  # families, and why


def family_named(kind: Any, folder: Path | str = "this", about: str = "") -> type[Family]:
    """The family of a `model_type`; `about` says more of it. Raises LinesideError, with the known ones, if there is
    none."""
    if kind not in FAMILIES:
        why = f" ({LEFT_OUT[kind]})" if kind in LEFT_OUT else ""
        raise LinesideError(
            f"{folder} holds a model of type {kind!r}{about}: this family is not supported{why}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]
