"""The prompts of the API teacher: text files that a user can read and replace; `$name` is a slot.

captions.md     stage 1: captions
traces.md       stage 2 with recorded answers: their traces
questions.md    stage 2 without records: questions, traces, answers
prompts.md      stage 3 without records: questions and how to check their answers
answers.md      answers to given questions, to measure whether the teacher agrees with itself
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import lineside
from lineside.errors import LinesideError

OWN_PROMPTS = Path(lineside.__file__).parent / "prompts"
MAX_BYTES = 64 << 10
# The slots of each file. Those in the second place are required, because the request needs them.
SLOTS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "captions": (frozenset({"count", "record", "family"}), frozenset()),
    "traces": (frozenset({"questions", "record", "family"}), frozenset({"questions"})),
    "questions": (frozenset({"count", "record", "family"}), frozenset()),
    "prompts": (frozenset({"count", "record", "family"}), frozenset()),
    "answers": (frozenset({"questions", "record", "family"}), frozenset({"questions"})),
}


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One prompt: its name, its text, and the hash that samples record."""

    name: str
    text: str
    hash: str

    def fill(self, **values: object) -> str:
        """The text with its slots filled."""
        blanks = dict.fromkeys(SLOTS[self.name][0], "")
        return Template(self.text).substitute({**blanks, **values})


def load_prompts(folder: Path | None = None) -> dict[str, PromptFile]:
    """All prompts by name: those in `folder`, and the package's own for the others.

    Raises LinesideError for a folder without prompts, a file that cannot be read, and an unknown slot.
    """
    if folder is not None and not any((folder / f"{name}.md").is_file() for name in SLOTS):
        raise LinesideError(f"{folder}: no prompts in it; expected some of {', '.join(f'{n}.md' for n in SLOTS)}")
    found: dict[str, PromptFile] = {}
    for name in SLOTS:
        path = folder / f"{name}.md" if folder is not None and (folder / f"{name}.md").is_file() else None
        found[name] = _load(name, path or OWN_PROMPTS / f"{name}.md")
    return found


def _load(name: str, path: Path) -> PromptFile:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LinesideError(f"{path}: {path.stat().st_size} bytes is too large for a prompt (at most {MAX_BYTES})")
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read ({error})") from error
    if not text:
        raise LinesideError(f"{path}: empty; expected the prompt's text")
    template, (known, needed) = Template(text), SLOTS[name]
    if not template.is_valid():
        raise LinesideError(f"{path}: a $ that starts no slot; write $$ for the sign, slots are {_list(known)}")
    there = set(template.get_identifiers())
    if unknown := sorted(there - known):
        raise LinesideError(f"{path}: unknown slot ${unknown[0]}; this prompt has {_list(known)}")
    if lacking := sorted(needed - there):
        raise LinesideError(f"{path}: the slot ${lacking[0]} is missing, and the request needs it")
    return PromptFile(name, text, hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


def _list(slots: frozenset[str]) -> str:
    return ", ".join(f"${slot}" for slot in sorted(slots))
