"""Lists in which things are counted (multisets): "2 cartons, red can".

    multiset = "none" | member {"," member}        member = name | count [" "] ["x"] " " name        count = 1 to 999

"carton, carton, red can", "2 carton, red can" and "2 x cartons, red can" mean the same. After a count of two or more
the plural is accepted too. A text that is itself a known name counts once: "3 mm screw" is one screw if this name is
known. Names that can be read in two ways are refused (`ambiguous`), so no answer is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from lineside.verify.text import normalise

NONE = "none"  # how the empty set is written
_COUNTED = re.compile(r"([1-9][0-9]{0,2}) ?(?:[x\u00d7] )?(?<= )(.+)")


def plural(noun: str) -> str:
    """The plural of a noun phrase by its last word: "red box" -> "red boxes"."""
    end = noun[-2:].lower()
    if end.endswith(("s", "x")) or end in ("ch", "sh"):
        return noun + "es"
    if end.endswith("y") and end[:1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def read_members(text: str, names: tuple[str, ...]) -> Counter[str] | None:
    """How many of each thing a text in normal form names; None if a member is empty. Unknown names stay as they are.

    `names`: all known names, as written. The names of the result are in normal form.
    """
    known = _known(names)
    found: Counter[str] = Counter()
    if text == NONE and NONE not in known:
        return found
    for part in text.split(","):
        member = part.strip(" ")
        if not member:
            return None
        count, name = (1, member) if member in known else _counted(member)
        if count > 1 and name not in known:
            name = _plurals(names).get(name, name)
        if name in known:
            found[name] += count
        else:
            found[member] += 1
    return found


def guess_members(text: str) -> tuple[str, ...]:
    """The members that a text lists if no names are known, each as often as it is counted."""
    if normalise(text) == NONE:
        return ()
    parts = [_counted(part.strip(" ")) for part in text.split(",")]
    return tuple(name for count, name in parts for _ in range(count))


def members_text(members: Iterable[str]) -> str:
    """The answer for a multiset, in the order in which its names first occur: "2 red cans, ball", or "none"."""
    counts = Counter(members)
    return ", ".join(name if n == 1 else f"{n} {plural(name)}" for name, n in counts.items()) or NONE


def ambiguous(names: tuple[str, ...]) -> str:
    """The first name that can be read in two ways (a name that is also a count of another), in words; "" if none."""
    known, plurals = _known(names), _plurals(names)
    for name in sorted(known):
        if name.startswith(("x ", "\u00d7 ")):
            return f"{name!r} begins with the sign for times"
        count, rest = _counted(name)
        other = rest if rest in known else plurals.get(rest)
        if rest != name and other:
            return f"{name!r} could be {count} of {other!r}"
        if plurals.get(name, name) != name:
            return f"{name!r} could be several of {plurals[name]!r}"
    return ""


def _counted(member: str) -> tuple[int, str]:
    """(2, "cartons") for "2 x cartons"; (1, member) if there is no count before it."""
    match = _COUNTED.fullmatch(member)
    if match is None:
        return 1, member
    count = 0
    for digit in match[1]:
        count = count * 10 + ord(digit) - 48
    return count, match[2]


@lru_cache(maxsize=4096)
def _known(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(normalise, names))


@lru_cache(maxsize=4096)
def _plurals(names: tuple[str, ...]) -> Mapping[str, str]:
    return {plural(name): name for name in sorted(_known(names))}
