"""The members of a list where things are counted: a multiset, "2 cartons, red can".

    multiset = "none" | member {"," member}        member = name | count [" "] ["x"] " " name        count = 1 to 999

"carton, carton, red can", "2 carton, red can" and "2 x cartons, red can" are the same. With a count of two or more the
plural is read too. A text that is a name as it stands is one of it: "3 mm screw" is one screw where such a name is
known. Names that could be read in two ways are refused (`ambiguous`), so that no answer is ever guessed at.
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
    """How many of each a text in normal form names; None where a member is empty. What is no name stays as it is.

    `names`: every name that is known, as written. The names of the result are in normal form.
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
    """The members that a text lists where no name is known beforehand, each as often as it counts."""
    if normalise(text) == NONE:
        return ()
    parts = [_counted(part.strip(" ")) for part in text.split(",")]
    return tuple(name for count, name in parts for _ in range(count))


def members_text(members: Iterable[str]) -> str:
    """A multiset as it is answered, in the order in which its names first stand: "2 red cans, ball", or "none"."""
    counts = Counter(members)
    return ", ".join(name if n == 1 else f"{n} {plural(name)}" for name, n in counts.items()) or NONE


def ambiguous(names: tuple[str, ...]) -> str:
    """What could be read in two ways, such as a name that is so many of another, in words; "" if there are none."""
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
    """("2", "cartons") of "2 x cartons"; (1, member) where no count stands before it."""
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
