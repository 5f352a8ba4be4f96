"""Does a trace say what the record says? For traces that another model wrote, where a record gives the truth.

Lexical, and leaning towards refusal only where a statement is plain: a column named with another number than the record
has, or a value that the column takes elsewhere, said where the record's own is not. What the record does not know is
not judged. Total on strings, linear in the capped length for each value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from lineside.verify.text import MAX_TRACE, normalise, words

MIN_VALUE = 3  # letters: shorter values and these words occur in any sentence
_COMMON = frozenset(("yes", "no", "none", "true", "false", "unknown", "other", "and", "the", "not", "one", "all"))


def record_problem(trace: str, record: Mapping[str, Any], values: Mapping[str, Collection[str]]) -> str:
    """What a trace states against the record, or "". `values`: the texts that each column takes over all records.

    Worked: with {"count": 4, "state": "full"} and states {full, empty}: "count: 5; so 5" is against count, "the bin is
    empty" against state; "not empty, full to the rim" is not, since the record's own value is said too.
    """
    said = f" {' '.join(words(trace[:MAX_TRACE]))} "
    for name, truth in record.items():
        if isinstance(truth, bool) or truth is None:
            continue
        if isinstance(truth, int | float) and _other_number(said, name, truth):
            return f"states another {name} than the record"
        if isinstance(truth, str) and _other_value(said, truth, values.get(name, ())):
            return f"states another {name} than the record"
    return ""


def _other_number(said: str, name: str, truth: float) -> bool:
    """Whether "name is N" or "N name" stands there with numbers of which none is the truth."""
    column = re.escape(" ".join(words(name.replace("_", " "))))
    if not column.strip():
        return False
    found = re.findall(rf" {column} (?:is |are |of |at )?([0-9]{{1,12}}) ", said)
    found += re.findall(rf" ([0-9]{{1,12}}) {column} ", said)
    return bool(found) and truth == round(truth) and all(_plain(number) != str(round(truth)) for number in found)


def _other_value(said: str, truth: str, others: Collection[str]) -> bool:
    """Whether a value of another record is said and the own one is not. "half full" is not "full"."""
    own, rest, other_said = _phrase(truth), said, False
    if not own.strip():
        return False
    for value in sorted({own, *map(_phrase, others)}, key=lambda value: (-len(value), value)):
        word = value.strip()
        if not word or value not in rest:
            continue
        if value == own:
            return False
        rest = rest.replace(value, " | ")
        other_said |= len(word) >= MIN_VALUE and word not in _COMMON and not word.isdigit()
    return other_said


def _phrase(value: str) -> str:
    return f" {' '.join(words(normalise(value)))} "


def _plain(digits: str) -> str:
    return digits.lstrip("0") or "0"
