"""The simulator's teacher: writes from ground truth what a strong model behind an API would write.

    enrich          the record with the columns that the task files use
    look            the same frame and questions, with the record that a teacher of lower acuity sees
    captions        sentences that describe the picture, for stage 1
    wrong_caption   a caption with one attribute made false, for caption matching
    trace           the steps to an answer, and the facts that these steps may state, for stage 2
    spoil           the trace of a worse teacher: missing, trivial, or in correct form and false

Hashes decide everything, so labelling a second time gives the same text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from lineside.errors import LinesideError
from lineside.sim import phrases, traces_bins, traces_stations
from lineside.sim.captions_bins import PICKING
from lineside.sim.captions_stations import KITTING, RETURNS
from lineside.sim.perception import perceive
from lineside.sim.phrases import Builder, Caption
from lineside.sim.questions import Record, answer_as_seen, enrich
from lineside.sim.traces_bins import Working
from lineside.sim.traces_stations import DEGREES, FAULTS, SIGNS
from lineside.sim.words import COLUMNS, ROWS, VALUES, dice
from lineside.types import Frame

__all__ = ["captions", "enrich", "look", "spoil", "trace", "wrong_caption"]

_BUILDERS: dict[str, tuple[tuple[Builder, ...], ...]] = {"picking": PICKING, "kitting": KITTING, "returns": RETURNS}
_TRACES: dict[str, Callable[[Record, Mapping[str, Any]], Working]] = {
    "count_all": traces_bins.count_all,
    "count_described": traces_bins.count_described,
    "bins": traces_bins.bins,
    "is_empty": traces_bins.is_empty,
    "is_present": traces_bins.is_present,
    "top_free": traces_bins.top_free,
    "pick_point": traces_bins.pick_point,
    "fill_level": traces_bins.fill_level,
    "slots_to_fill": traces_stations.slots_to_fill,
    "slots_filled": traces_stations.slots_filled,
    "kit_complete": traces_stations.kit_complete,
    "wrong_item": traces_stations.wrong_item,
    "missing": traces_stations.missing,
    "condition": traces_stations.condition,
    "label_readable": traces_stations.label_readable,
    "matches_order": traces_stations.matches_order,
    "disposition": traces_stations.disposition,
}

TRIVIAL_TRACES = ("ok.", "let me look", "looking at the image", "let me think step by step", "the answer is {answer}")
FLAWS = ("missing", "trivial", "wrong")
# Words that can replace one another in a clause. The result is a clause in correct form.
_SWAPS = (
    VALUES["colour"],
    tuple(pattern for pattern in VALUES["pattern"] if pattern),
    tuple(kind for kind in VALUES["kind"] if " " not in kind),
    COLUMNS,
    (ROWS[0], ROWS[2]),
    ("empty", "full"),
    ("free", "blocked"),
    ("sharp", *FAULTS.values()),
    tuple(word for _, word in DEGREES),
    ("few", "many"),
    ("one", "nothing"),
    ("ok", "empty"),
    tuple(SIGNS.values()),
    ("no marks", "tape only a mark"),
    ("no label in sight", "label middle"),
    ("packing", "bare floor"),
)


class CandidateQuestion(Protocol):
    """The part of a candidate question that the teacher needs (`lineside.data.tasks.Candidate`)."""

    @property
    def element(self) -> Mapping[str, Any]: ...

    @property
    def answer(self) -> str: ...


def look(frame: Frame, acuity: float) -> Frame:
    """An enriched frame as a teacher of this acuity sees it, with its answers to the frame's questions."""
    seen = perceive(frame, acuity)
    return frame if seen is frame else answer_as_seen(frame, seen)


def captions(frame: Frame, count: int) -> list[str]:
    """Up to `count` different captions; fewer if there is little to say (an empty bin).

    A larger `count` only adds captions at the end. Raises LinesideError for a family that the simulator does not have.
    """
    return [phrases.render(caption) for caption in islice(_stream(frame), count)]


def wrong_caption(frame: Frame, caption: str) -> tuple[str, str] | None:
    """(the caption with one attribute changed so that it is false, the attribute); None for a caption that this teacher
    did not write.

    Both captions have the same number of words.
    """
    for ours in _stream(frame):
        if phrases.render(ours) == caption:
            return phrases.falsify(ours, dice(frame.id, caption, "wrong"))
    return None


def _stream(frame: Frame) -> Iterator[Caption]:
    builders = _BUILDERS.get(frame.family)
    if builders is None:
        known = ", ".join(_BUILDERS)
        raise LinesideError(f"frame {frame.id}: the simulator's teacher knows no family '{frame.family}', only {known}")
    return phrases.stream(frame, builders)


def trace(frame: Frame, task_name: str, candidate: CandidateQuestion) -> tuple[str, tuple[str, ...]]:
    """(trace, true clauses that a trace of this question may state) for a candidate of an enriched frame.

    Raises LinesideError for a task that the simulator does not have.
    """
    if task_name not in _TRACES:
        known = ", ".join(_TRACES)
        raise LinesideError(f"the simulator's teacher has no traces for the task '{task_name}', only for {known}")
    clauses, beside = _TRACES[task_name](frame.record, candidate.element)
    return "; ".join(clauses), tuple(dict.fromkeys([*clauses, *sorted(beside)]))


def spoil(
    trace: str, candidate: CandidateQuestion, *, shares: Mapping[str, float], key: str, facts: Sequence[str] = ()
) -> str | None:
    """The trace of a teacher with flaws: unchanged, None (missing), trivial, or wrong. The hash of `key` decides.

    `shares` gives the share of each flaw ("missing", "trivial", "wrong"); their sum is at most 1. A wrong trace has the
    correct form and the same conclusion, and one clause that is not among `facts`. Raises LinesideError for other
    shares.
    """
    unknown = sorted(set(shares) - set(FLAWS))
    if unknown or min(shares.values(), default=0.0) < 0.0 or sum(shares.values()) > 1.0:
        expected = f"shares of {', '.join(FLAWS)}, none negative, together at most 1"
        raise LinesideError(f"flawed traces: expected {expected}, not {dict(shares)}")
    chance = dice(key, "flaw")
    draw = chance.random()
    for flaw in FLAWS:
        draw -= shares.get(flaw, 0.0)
        if draw < 0.0:
            break
    else:
        return trace
    if flaw == "missing":
        return None
    if flaw == "trivial":
        return chance.choice(TRIVIAL_TRACES).replace("{answer}", candidate.answer)
    return _made_false(trace, facts, chance)


def _made_false(trace: str, facts: Sequence[str], chance: random.Random) -> str:
    """The trace with one clause before the conclusion made false; unchanged if no clause can be made false."""
    clauses = trace.split("; ")
    ways = [(i, other) for i, said in enumerate(clauses[:-1]) for other in _other_clauses(said) if other not in facts]
    if not ways:
        return trace
    index, other = chance.choice(ways)
    return "; ".join([*clauses[:index], other, *clauses[index + 1 :]])


def _other_clauses(clause: str) -> Iterator[str]:
    """The clause with one word or number replaced, in all ways."""
    for group in _SWAPS:
        for said in group:
            for other in group:
                if other != said and (changed := re.sub(rf"\b{said}\b", other, clause, count=1)) != clause:
                    yield changed
    for match in re.finditer(r"\d+", clause):
        for shift in (-1, 1):
            if (value := int(match[0]) + shift) >= 0:
                yield f"{clause[: match.start()]}{value}{clause[match.end() :]}"
