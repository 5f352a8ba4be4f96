"""The account of a join: how many frames have a row, and what to look at. `task check` and `label` print it before
anything is labelled; label.json and the data card keep it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lineside.data.clocks import Jump, Offset
from lineside.data.times import told_seconds

EXAMPLES = 3  # of each outcome

# Why a frame has no row.
NO_TIME, NO_KEY = "have no time that can be used", "have no value in `on`"
TWICE = "have a time that the clock shows twice, as daylight saving ends"
NO_PARTNER, NO_ROW = "have a value in `on` that no row has", "have no row at their time"
SEVERAL_ROWS, UNCLEAR = "have several rows, of which none is taken", "have a row with a time that the clock shows twice"
NO_END = "have no end, though later rows of the same `on` start (`several: last` takes the one that started last)"
TAKEN = "have a row that belongs to a nearer frame"


@dataclass
class JoinReport:
    """`outcomes`: frames without a row, by reason; `unread`: rows of the further table that are not used, or are in
    doubt, by reason; `examples` of each. `offsets` and `applied` (seconds) by clock, "" for the only one."""

    file: str
    how: str
    frames: int = 0
    matched: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    shared: int = 0  # events that several frames have
    offsets: dict[str, Offset] = field(default_factory=dict)
    applied: dict[str, float] = field(default_factory=dict)
    jump: Jump | None = None
    frames_jump: Jump | None = None  # in the times of the frames, by their order; its `row` is the input's number
    hidden: list[str] = field(default_factory=list)  # columns that an earlier table has too

    def without(self, outcome: str, example: str) -> None:
        """Count a frame without a row."""
        self._count(self.outcomes, outcome, example)

    def unused(self, reason: str, example: str) -> None:
        """Count a row of the further table."""
        self._count(self.unread, reason, example)

    def _count(self, counts: Counter[str], what: str, example: str) -> None:
        counts[what] += 1
        if len(self.examples[what]) < EXAMPLES:
            self.examples[what].append(example)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "file": self.file,
            "how": self.how,
            "frames": self.frames,
            "matched": self.matched,
            "rows": self.rows,
            "without": dict(self.outcomes.most_common()),
            "unread": dict(self.unread.most_common()),
            "examples": dict(self.examples),
            "shared": self.shared,
            "clocks": {
                name: {**offset.to_json(), "applied": self.applied.get(name, 0.0)}
                for name, offset in self.offsets.items()
            },
            "jump": asdict(self.jump) if self.jump else None,
            "frames_jump": asdict(self.frames_jump) if self.frames_jump else None,
            "hidden": self.hidden,
            "lines": list(self.lines()),
        }

    def lines(self) -> Iterator[str]:
        """In words: how many frames have a row, then a line for each thing to look at."""
        join = f"join {self.file}"
        yield f"{join} ({self.how}): {self.matched:,} of {self.frames:,} frames have a row"
        for counts, what in ((self.outcomes, "frames"), (self.unread, "of its rows")):
            for reason, count in counts.most_common():
                yield f"{join}: {count:,} {what} {reason}: {'; '.join(self.examples[reason])}"
        if self.shared:
            yield f"{join}: {self.shared:,} rows are taken by several frames (`once: true`: by the nearest one only)"
        for name, offset in self.offsets.items():
            yield f"{join}: clock{f' {name!r}' if name else ''}: {offset.told()}{self._correction(name, offset)}"
        if self.jump:
            yield f"{join}: {self.jump.told()}"
        if self.frames_jump:
            yield f"{join}: the frames' clock: {self.frames_jump.told()}"
        if self.hidden:
            yield (
                f"{join}: columns that are not taken, as an earlier table has them too: {', '.join(self.hidden)} "
                "(`name` keeps both)"
            )

    def _correction(self, name: str, offset: Offset) -> str:
        if self.applied.get(name):
            return f"; taken off: {told_seconds(self.applied[name])}" + (" and the drift" if offset.drift else "")
        return "; nothing is taken off (see `offset`)" if abs(offset.seconds or 0.0) >= 0.001 else ""
