"""Is it right? One pure function `(text, target) -> Verdict(reward in [0, 1], exact, reason)` for every kind of target.

The whole answer must be what the question asks for; it is not enough that it contains it. Only case, white space and
one final full stop are ignored. Nothing around the answer is accepted, because the protocol gives the answer its own
place. So "A or B", a list of all options, a sentence around the right word, and a look-alike letter earn nothing. For
known attacks on such rewards see Visual-RFT #79 and #176. The functions return for every string. They do not evaluate
text or give it to `int` or `float`, and they limit its length first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import get_args

from lineside.types import Mask, Provenance, Target, Verdict
from lineside.verify.members import NONE, ambiguous, members_text, read_members
from lineside.verify.quantity import convert, number_text, read_quantity
from lineside.verify.text import MAX_ANSWER, normalise

POINT_REACH = 0.1  # share of the image's side; at this distance from the mask a point earns nothing
POINT_OUTSIDE = 0.5  # largest credit of a point outside the mask, so that a point inside always earns more
_SLACK = 1e-8  # share of a resolution step; with a few units in the last place it allows for rounding errors
_LARGEST = 1e12  # largest number target, in its unit and in steps of its resolution, so that doubles separate two steps
_LARGEST_SIDE = 65_536
MOST_WRONG = 100  # answers that a target of kind not may name
REPEATED = "an outcome said that this is wrong"

_POINT = re.compile(r"([0-9.]{1,12})(?: ?, ?| )([0-9.]{1,12})")


def verify(answer: str, target: Target) -> Verdict:
    """Compare an answer with its target. It returns for every string; a bad target gives reward 0 and says so.

    `reward` is partial credit for training. `exact` is all that an accuracy may count; it implies reward 1.
    """
    if len(answer) > MAX_ANSWER:
        return _no("too long")
    if problem := target_problem(target):
        return _no(f"bad target: {problem}")
    text = normalise(answer)
    return _VERIFIERS[target.kind](text, target) if text else _no("empty answer")


def answer_to(target: Target) -> str:
    """A right answer, written as labels write it; of several right ones the first. "" for an unsound target, and for
    one of kind `not`.

    It may be inexact for a point so close to the edge of its mask that two decimals leave it.
    """
    if target_problem(target) or target.kind == "not":
        return ""
    if target.kind == "number":
        number = number_text(target.value, target.resolution, target.period)
        return f"{number} {target.unit}" if target.unit else number
    if target.kind == "point":
        return f"{target.x:.2f}, {target.y:.2f}"
    if target.kind == "set":
        return members_text(target.accepted) if target.counted else ", ".join(target.accepted) or NONE
    return target.accepted[0]


def verify_exact(text: str, target: Target) -> Verdict:
    """1 if the answer is one of the accepted spellings, else 0 (exact match)."""
    return _yes() if text in _spellings(target.accepted) else _no("wrong")


def verify_choice(text: str, target: Target) -> Verdict:
    """1 if the answer is one right option, written as it was offered, else 0. Two right options together earn 0."""
    if text in _spellings(target.accepted):
        return _yes()
    return _no("wrong" if text in _spellings(target.options) else "not an option")


def verify_set(text: str, target: Target) -> Verdict:
    """Credit F1 = 2 hits / (|named| + |right|); exact if the sets are equal. The empty set is "none".

    Members are separated by commas, in any order. Counted targets are multisets, and a hit is a member of both:
    "carton" for two cartons has F1 2/3. A member that is named once too often is a wrong member. An answer that names
    every option earns nothing, because it needs no look at the picture, unless all options are right (with counts:
    unless only counts are wrong).
    """
    right, named = _members(text, target)
    if named is None:
        return _no("empty member")
    if named == right:
        return _yes()
    offered = _spellings(target.options)
    if len(offered) > 1 and offered <= named.keys() and not (target.counted and offered <= right.keys()):
        return _no("every option listed")
    return _part(2.0 * (named & right).total() / (named.total() + right.total()))


def credit_by_errors(answer: str, target: Target) -> float:
    """A stricter credit for sets, in [0, 1]: 1 - errors / |right|, at least 0. Other kinds have `verify`'s reward.

    An error is a missing member or a wrong one; in a multiset each one too few or too many is an error. With F1, naming
    a member pays if its probability is above F1/2, so an unsure model names too many (arXiv 1402.1892). Here a right
    member gains as much as a wrong one costs, so naming a member pays only if it is more likely right than wrong. This
    also makes the whole list right most often. An answer that earns 0 by `verify` earns 0 here.
    """
    verdict = verify(answer, target)
    if target.kind != "set" or verdict.exact or not verdict.reward:
        return verdict.reward
    right, named = _members(normalise(answer), target)
    assert named is not None
    errors = (right - named).total() + (named - right).total()
    return max(0.0, 1.0 - errors / right.total())


def _members(text: str, target: Target) -> tuple[Counter[str], Counter[str] | None]:
    """(how often each member is right, how often it is named); the second is None if a member is empty."""
    right = Counter(map(normalise, target.accepted))
    if target.counted:
        return right, read_members(text, target.accepted + target.options)
    if text == NONE and NONE not in right:
        return right, Counter()
    named = Counter(part.strip(" ") for part in text.split(","))
    return right, None if "" in named else named


def verify_number(text: str, target: Target) -> Verdict:
    """Credit max(0, 1 - |x - x*| / tolerance) in the target's unit; the distance is modulo the period (DESIGN 4).

    x* is the truth at the resolution of the question (rounded half up to a multiple of it), so the expected answer
    earns 1. Exact means equal to x*. The prediction is never rounded; only rounding errors of a unit conversion are
    allowed for. With a period, a number beyond two periods and a full turn from 0 is no answer: modulo 360, any string
    of digits is one.
    """
    quantity = read_quantity(text)
    if quantity is None:
        return _no("not a number")
    value = convert(*quantity, normalise(target.unit))
    if value is None:
        return _no("wrong unit")
    truth = math.floor(target.value / target.resolution + 0.5) * target.resolution
    distance = abs(value - truth)
    if target.period:
        turn = convert(360.0, "degrees", normalise(target.unit)) if target.unit else 360.0
        if abs(value) > max(2.0 * target.period, turn or 0.0):
            return _no("more than a turn away")
        distance = math.fmod(distance, target.period)
        distance = min(distance, target.period - distance)
    if distance <= _SLACK * target.resolution + 4.0 * math.ulp(truth):
        return _yes()
    return _part(1.0 - distance / target.tolerance if target.tolerance else 0.0)


def verify_point(text: str, target: Target) -> Verdict:
    """Exact inside the mask. Outside: half of max(0, 1 - d / reach), where d is the distance to the nearest mask pixel.

    The answer is "x, y" (or "x y", or either in one pair of round or square brackets), both in [0, 1] from the top left
    corner. d is in normalised coordinates, as a share of the side.
    """
    found = read_point(text)
    if found is None or target.mask is None:
        return _no("not a point")
    x, y = found
    if x > 1.0 or y > 1.0:
        return _no("outside the frame")
    distance = _distance_to_mask(x, y, target.mask)
    return _yes() if distance == 0.0 else _part(POINT_OUTSIDE * (1.0 - distance / POINT_REACH))


def read_point(text: str) -> tuple[float, float] | None:
    """(x, y) of a text in normal form, both at least 0; None if the text is not a point."""
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1].strip(" ")
    match = _POINT.fullmatch(text)
    x, y = (read_quantity(part) for part in match.groups()) if match else (None, None)
    return None if x is None or y is None else (x[0], y[0])


def verify_not(text: str, target: Target) -> Verdict:
    """0 for an answer that an outcome said to be wrong; any other answer is not scored, since nobody knows the truth.

    Whether it is the same answer is decided as for the truth: "3.0" repeats "3", "b, a" repeats "a, b".
    """
    if any(verify(text, wrong).exact for wrong in target.wrong):
        return _no(REPEATED)
    return Verdict(0.0, False, "not known: no outcome tells", scored=False)


_VERIFIERS: dict[str, Callable[[str, Target], Verdict]] = {
    "exact": verify_exact,
    "choice": verify_choice,
    "set": verify_set,
    "number": verify_number,
    "point": verify_point,
    "not": verify_not,
}


def target_problem(target: Target) -> str:
    """Why nobody can answer a target, or "". It returns for every target; a field of a wrong type is a problem too."""
    if not isinstance(target.kind, str) or target.kind not in _VERIFIERS:
        return f"kind {target.kind!r:.40} is none of {', '.join(_VERIFIERS)}"
    if target.provenance not in get_args(Provenance):
        return f"provenance {target.provenance!r:.40} is none of {', '.join(get_args(Provenance))}"
    if target.kind == "not":
        return _not_problem(target)
    if target.wrong or target.doubt:
        return "wrong and doubt belong to a target of kind not"
    if target.kind == "number":
        return _number_problem(target)
    if target.kind == "point":
        return _point_problem(target)
    for name in ("accepted", "options"):
        members = getattr(target, name)
        if not isinstance(members, tuple) or not all(isinstance(m, str) and len(m) <= MAX_ANSWER for m in members):
            return f"{name} must be a tuple of strings of at most {MAX_ANSWER} characters"
        if "" in _spellings(members):
            return f"{name} holds an empty string"
    right, offered = _spellings(target.accepted), _spellings(target.options)
    if not isinstance(target.counted, bool) or (target.counted and target.kind != "set"):
        return "counted is true or false, and belongs to a set"
    if target.kind == "set":
        if any("," in member for member in right):
            return "members of a set must hold no comma"
        if target.counted and (twice := ambiguous(target.accepted + target.options)):
            return f"members of a multiset must be told apart from counts of each other: {twice}"
        if not target.counted and len(right) < len(target.accepted):
            return "members of a set must differ from each other"
    elif not right:
        return "accepted is empty"
    if target.kind != "exact" and offered and not right <= offered:
        return "accepted holds something that is not among the options"
    return ""


def with_truth(target: Target, text: str) -> Target | None:
    """The target of the same question if `text` were the truth; None if `text` is not an answer to it.

    With it the verifier also decides whether an answer is the normal one. There is no such text for a point, nor for a
    target of kind `not`.
    """
    text = normalise(text)
    if not text or len(text) > MAX_ANSWER or target.kind in ("point", "not"):
        return None
    if target.kind == "number":
        quantity = read_quantity(text)
        value = convert(*quantity, normalise(target.unit)) if quantity else None
        changed = None if value is None else replace(target, value=value)
    elif target.kind == "set":
        members = () if text == NONE else tuple(part.strip(" ") for part in text.split(","))
        if target.counted:
            members = tuple((read_members(text, target.options) or Counter()).elements())
        changed = replace(target, accepted=members)
    else:
        changed = replace(target, accepted=(text,))
    return None if changed is None or target_problem(changed) or not verify(text, changed).exact else changed


def _number_problem(target: Target) -> str:
    for name in ("value", "resolution", "tolerance", "period"):
        number = getattr(target, name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not -_LARGEST <= number <= _LARGEST:
            return f"{name} must be a finite number of at most {_LARGEST:g}"
    if target.resolution < 1e-9 or target.tolerance < 0:
        return "resolution must be positive (at least 1e-9) and tolerance not negative"
    if abs(target.value) > _LARGEST * target.resolution:
        return "value is too large for its resolution"
    if target.period and target.period <= target.resolution:
        return "period must be 0 (none) or longer than a step of the resolution"
    return "" if isinstance(target.unit, str) and len(target.unit) <= 40 else "unit must be a short string"


def _not_problem(target: Target) -> str:
    if target.provenance != "outcome":
        return f"only an outcome proves an answer wrong; the provenance is {target.provenance!r}"
    if not isinstance(target.wrong, tuple) or not 0 < len(target.wrong) <= MOST_WRONG:
        return f"wrong must name the answer that is wrong, or at most {MOST_WRONG}"
    if isinstance(target.doubt, bool) or not isinstance(target.doubt, int | float) or not 0 <= target.doubt < 1:
        return "doubt must be at least 0 and below 1"
    for wrong in target.wrong:
        if not isinstance(wrong, Target) or wrong.kind == "not":
            return "wrong must hold targets, none of kind not"
        if problem := target_problem(wrong):
            return f"wrong: {problem}"
    return ""


def _point_problem(target: Target) -> str:
    mask = target.mask
    if not isinstance(mask, Mask) or not isinstance(mask.runs, tuple):
        return "a point needs a mask with a tuple of runs"
    if not all(type(n) is int and n >= 0 for n in (mask.height, mask.width, *mask.runs)):
        return "height, width and runs of a mask must be whole numbers, none negative"
    if max(mask.height, mask.width) > _LARGEST_SIDE:
        return f"a mask must not be larger than {_LARGEST_SIDE} pixels a side"
    if sum(mask.runs) != mask.height * mask.width or not any(mask.runs[1::2]):
        return "the runs of a mask must add up to height x width with some of it on"
    if not all(isinstance(v, int | float) and 0.0 <= v <= 1.0 for v in (target.x, target.y)):
        return "x and y must lie in [0, 1]"
    return "" if _distance_to_mask(target.x, target.y, mask) == 0.0 else "x, y does not lie in the mask"


def _distance_to_mask(x: float, y: float, mask: Mask) -> float:
    """Distance in normalised coordinates from (x, y) to the nearest pixel that is on; 0 inside such a pixel.

    The left and upper edge belong to a pixel; the right and lower edge of the frame belong to its last pixels.
    """
    width, height = mask.width, mask.height
    column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
    here, best, start = row * width + column, math.inf, 0
    for i, run in enumerate(mask.runs):
        if i % 2 and run:
            if start <= here < start + run:
                return 0.0
            best = min(best, _distance_to_run(x * width, y * height, start, start + run - 1, width, height))
        start += run
    return max(best, math.ulp(0.0))  # on an edge that does not belong to the pixel: near, not inside


def _distance_to_run(x: float, y: float, first: int, last: int, width: int, height: int) -> float:
    """The same for the pixels first..last (row-major), which are at most three boxes: a tail, full rows, a head."""
    (top, left), (bottom, right) = divmod(first, width), divmod(last, width)
    if top == bottom:
        boxes = [(left, right, top, bottom)]
    else:
        boxes = [(left, width - 1, top, top), (0, right, bottom, bottom)]
        if bottom - top > 1:
            boxes.append((0, width - 1, top + 1, bottom - 1))
    return min(
        math.hypot(max(x0 - x, 0.0, x - x1 - 1) / width, max(y0 - y, 0.0, y - y1 - 1) / height)
        for x0, x1, y0, y1 in boxes
    )


@lru_cache(maxsize=4096)  # the options of one task are the same tuple for every rollout
def _spellings(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(normalise, texts))


def _yes() -> Verdict:
    return Verdict(1.0, True, "exact")


def _no(reason: str) -> Verdict:
    return Verdict(0.0, False, reason)


def _part(credit: float) -> Verdict:
    """Partial credit; a credit that is not positive is wrong."""
    return Verdict(credit, False, "close") if credit > 0.0 else _no("wrong")
