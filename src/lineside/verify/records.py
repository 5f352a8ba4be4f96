"""Does a trace contradict its record? For traces that a teacher model wrote, where a record has the truth.

The tests compare words. They refuse only plain contradictions: a column's name with another number than the record has,
or a value that other records have in a column, while the record's own value is not mentioned. Statements that the
record does not cover are not judged. It returns for every string, in time linear in the capped length for each value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from lineside.verify.text import MAX_TRACE, normalise, words

MIN_VALUE = 3  # letters; shorter values, and the words below, occur in any sentence and prove nothing
_COMMON = frozenset(("yes", "no", "none", "true", "false", "unknown", "other", "and", "the", "not", "one", "all"))


def record_problem(trace: str, record: Mapping[str, Any], values: Mapping[str, Collection[str]]) -> str:
    """The first contradiction between trace and record, or "". `values`: all texts of each column over all records.

    Example: the record is {"count": 4, "state": "full"}, and states are full and empty. "count: 5; so 5" contradicts
    count, and "the bin is empty" contradicts state. "not empty, full to the rim" does not, because it also has the
    record's own value.
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
    """Whether the trace says "name is N" or "N name", and no such N is the truth."""
    column = re.escape(" ".join(words(name.replace("_", " "))))
    if not column.strip():
        return False
    found = re.findall(rf" {column} (?:is |are |of |at )?([0-9]{{1,12}}) ", said)
    found += re.findall(rf" ([0-9]{{1,12}}) {column} ", said)
    return bool(found) and truth == round(truth) and all(_plain(number) != str(round(truth)) for number in found)


def _other_value(said: str, truth: str, others: Collection[str]) -> bool:
    """Whether the trace has a value of another record and not the record's own. "half full" does not count as
    "full"."""
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
