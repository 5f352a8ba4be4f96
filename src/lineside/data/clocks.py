"""How far one clock is ahead of another, estimated from what both recorded; and logs whose clock jumps.

A row of a log holds for a span of time: an event with the tolerance around it, an order line from start to end. If the
log's clock is `d` ahead, a frame at time `t` matches a row of the span [first, last] where first - d <= t <= last - d,
so for the offsets `d` in [first - t, last - t]. The number of frames with a row, as a function of `d`, is a sum of
such intervals, and its highest place is the offset. (For events it is the peak of the cross-correlation of two point
processes.) It is refused where a second place is as high: a cell with a fixed cycle fits as well one cycle later.

Times are int64 microseconds, and arrays of them are sorted unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lineside.data.spans import FOREVER, Instants
from lineside.data.times import SECOND, told_seconds

REACHES = (600 * SECOND, 15 * 3600 * SECOND)  # offsets are searched within the first, else within the second
FEWEST = 8  # frames from which an offset is estimated
MOST_FRAMES, MOST_PAIRS = 2000, 400_000  # frames, and pairs of a frame and a row, that are compared
MOST_KEYS = 1000  # keys that are compared
EQUAL = "several offsets are equally good"
NONE_NEAR = "no row lies within"
CHUNKS, CHUNK = 8, 40  # most parts of the time in which the offset is estimated again, and frames of one at least
DAY = 86400
SURE = 4.0  # standard errors from which a change of the offset is told


@dataclass(frozen=True)
class Rows:
    """Frames and rows of one key: `first` is sorted and `last` is not; `event` holds the times of events, else None."""

    frames: Instants
    first: Instants
    last: Instants
    event: Instants | None = None


@dataclass(frozen=True)
class Offset:
    """An estimate. `seconds`: how far the log's clock is ahead; None: not known, and `reason` says why.

    Offsets from `low` to `high` match about as many frames. `spread`: half of the differences lie within this of
    their median (of `pairs` events). `drift`: change of the offset in seconds a day, 0 if none is seen; `middle` is the
    instant at which `seconds` holds then, `when` the same in words. `between`: the instants before and after a step.
    """

    seconds: float | None
    frames: int
    reason: str = ""
    low: float = 0.0
    high: float = 0.0
    spread: float | None = None
    pairs: int = 0
    drift: float = 0.0
    middle: int = 0
    when: str = ""
    step: str = ""  # a sudden change, in words
    between: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {k: v for k, v in asdict(self).items() if k not in ("middle", "between")}

    def dated(self, clock: Callable[[int], str]) -> Offset:
        """The same with its instants in words, as `clock` tells them."""
        step = f"{self.step}, between {' and '.join(map(clock, self.between))}" if self.between else self.step
        return replace(self, when=clock(self.middle) if self.drift else "", step=step)

    def told(self) -> str:
        """The estimate in words."""
        if self.seconds is None:
            return f"its offset is not known: {self.reason}" + (f"; {self.step}" if self.step else "")
        if self.spread is not None:
            text = f"{_ahead(self.seconds)} (half of {self.pairs:,} differences within {told_seconds(self.spread)})"
        elif self.seconds:
            text = f"{_ahead(self.seconds)} ({self._range()})"
        else:
            text = f"it agrees with that of the frames ({self._range()})"
        when = f" (the offset is that of {self.when})" if self.when else ""
        drift = f"; it drifts by {told_seconds(self.drift)} a day{when}" if self.drift else ""
        return text + drift + (f"; {self.step}" if self.step else "")

    def _range(self) -> str:
        return f"offsets from {told_seconds(self.low)} to {told_seconds(self.high)} match as many frames"


def _ahead(seconds: float) -> str:
    zone = ", a whole number of hours: is a `time_zone` missing?" if _hours(seconds) else ""
    return f"{told_seconds(abs(seconds))} {'behind' if seconds < 0 else 'ahead of'} the frames{zone}"


def _hours(seconds: float) -> int:
    """The whole hours that a difference is, within a minute and a half; 0 if it is not."""
    hours = round(seconds / 3600)
    return hours if abs(seconds - hours * 3600) < 90 else 0


def estimate(groups: Sequence[Rows]) -> Offset:
    """How far the clock of the rows is ahead of that of the frames; `groups` by key."""
    if len(groups) > MOST_KEYS:
        groups = [groups[place] for place in np.random.default_rng(0).choice(len(groups), MOST_KEYS, replace=False)]
    whole = _estimate(groups)
    frames = np.sort(np.concatenate([g.frames for g in groups] or [np.empty(0, np.int64)]))
    parts = min(CHUNKS, len(frames) // CHUNK)
    if parts < 3 or (whole.seconds is None and not whole.frames):
        return whole
    bounds = frames[np.linspace(0, len(frames) - 1, parts + 1).astype(int)]
    found: list[tuple[int, Offset]] = []
    for begin, end in pairwise(bounds):
        cut = [replace(g, frames=g.frames[(g.frames >= begin) & (g.frames <= end)]) for g in groups]
        part = _estimate(cut, share=CHUNKS)
        if part.seconds is not None:
            found.append((_when(cut, part), part))
    return _with_changes(groups, whole, found) if len(found) >= 3 else whole


def _when(groups: Sequence[Rows], offset: Offset) -> int:
    """The median time of the frames that have a row at an offset: what it was estimated from. The frames of a part of
    the time may span a weekend, or days that the log does not cover."""
    moved = round(_centre(offset) * SECOND)
    having: list[Instants] = []
    for rows in groups:
        reached = np.concatenate([[-FOREVER], np.maximum.accumulate(rows.last)])
        until = reached[np.searchsorted(rows.first, rows.frames + moved, "right")]
        having.append(rows.frames[until >= rows.frames + moved])
    return int(np.median(np.concatenate(having)))


def _with_changes(groups: Sequence[Rows], whole: Offset, parts: list[tuple[int, Offset]]) -> Offset:
    """The estimate, with the drift or the step that the estimates of parts of the time show."""
    at = np.array([middle for middle, _ in parts], np.float64) / (DAY * SECOND)
    offsets = np.array([_centre(part) for _, part in parts])
    spreads = [part.spread for _, part in parts if part.spread is not None]
    blur = max(SURE * max(_error(part) for _, part in parts), 3 * float(np.median(spreads)) if spreads else 0.0)
    shared = max(part.low for _, part in parts) <= min(part.high for _, part in parts)
    if shared if not spreads else np.abs(offsets - np.median(offsets)).max() <= blur:
        return whole
    pairs = [(i, j) for j in range(len(at)) for i in range(j) if at[i] < at[j]]
    drift = float(np.median([(offsets[j] - offsets[i]) / (at[j] - at[i]) for i, j in pairs] or [0.0]))  # Theil-Sen
    level = float(np.median(offsets - drift * at))
    from_line = float(np.abs(offsets - level - drift * at).max())
    cut = int(np.argmax(np.abs(np.diff(offsets)))) + 1
    sides = offsets[:cut], offsets[cut:]
    from_step = max(float(np.abs(side - np.median(side)).max()) for side in sides)
    if from_step <= from_line:
        before, after = (float(np.median(side)) for side in sides)
        why = "one of the clocks was set" + (
            ", perhaps by daylight saving (`time_zone`)" if _hours(after - before) else ""
        )
        step = f"it changes from {told_seconds(before)} to {told_seconds(after)}: {why}"
        return replace(whole, step=step, between=(parts[cut - 1][0], parts[cut][0]))
    if from_line > max(blur, abs(drift) * float(at[-1] - at[0]) / 4):
        least, most = told_seconds(float(offsets.min())), told_seconds(float(offsets.max()))
        return replace(whole, step=f"it varies between {least} and {most}")
    middle = int(np.mean([middle for middle, _ in parts]))
    seconds = level + drift * middle / (DAY * SECOND)
    left = _estimate([_without(rows, seconds, drift, middle) for rows in groups])
    if left.seconds is None:
        return whole
    low, high = left.low + seconds, left.high + seconds
    return replace(left, seconds=_centre(left) + seconds, low=low, high=high, drift=drift, middle=middle)


def _without(rows: Rows, seconds: float, drift: float, middle: int) -> Rows:
    """The rows with their times corrected by an offset with drift."""
    first, last = (corrected(times, seconds, drift, middle) for times in (rows.first, rows.last))
    event = None if rows.event is None else corrected(rows.event, seconds, drift, middle)
    return Rows(rows.frames, first, last, event)


def corrected(times: Instants, seconds: float, drift: float, middle: int) -> Instants:
    """Times of a clock that is `seconds` ahead at the instant `middle`, and `drift` seconds more each day after it; an
    end that is still open stays open."""
    moved = seconds * SECOND + drift / DAY * (times - middle)
    return np.where(times < FOREVER // 2, times - np.round(moved).astype(np.int64), times)


def _centre(offset: Offset) -> float:
    return offset.seconds or 0.0 if offset.spread is not None else (offset.low + offset.high) / 2


def _error(offset: Offset) -> float:
    """The standard error: of a median (1.25 standard deviations / sqrt n, 1.35 quartile ranges are two). A range that
    matches as well nearly always holds the offset: two are surely apart where their ranges do not touch."""
    if offset.spread is not None:
        return 1.25 * 1.48 * offset.spread / np.sqrt(max(1, offset.pairs)) + 0.001
    return (offset.high - offset.low) / SURE


def _estimate(groups: Sequence[Rows], share: int = 1) -> Offset:
    groups = [g for g in map(_closed, groups) if len(g.frames) and len(g.first)]
    gap = _gap(groups)
    narrowed = [_narrowed(g, gap) for g in groups]
    thin = [replace(g, frames=_thinned(g.frames, gap // 2)) for g in narrowed]
    frames = sum(len(g.frames) for g in thin)
    if frames < FEWEST:
        return Offset(None, frames, f"only {frames} frames can be compared")
    near = _within(thin, REACHES[0], share)
    found = near if near.seconds is not None else _within(thin, REACHES[1], share)
    if found.seconds is None:
        return near if near.reason.startswith(EQUAL) else found
    return _refined(narrowed, found)


def _closed(rows: Rows) -> Rows:
    """Without rows that have no end: they match every later frame, whatever the offset."""
    closed = rows.last < FOREVER // 2
    return rows if closed.all() else Rows(rows.frames, rows.first[closed], rows.last[closed])


def _gap(groups: Sequence[Rows]) -> int:
    """The median time between two rows of a key."""
    gaps = np.concatenate([np.diff(g.first) for g in groups] or [np.empty(0, np.int64)])
    gaps = gaps[gaps > 0]
    return int(np.median(gaps)) if len(gaps) else 0


def _narrowed(rows: Rows, gap: int) -> Rows:
    """Events with a tolerance of at most half the time between two of them: a wider one matches at every offset."""
    if rows.event is None or not len(rows.event) or not gap:
        return rows
    before, after = int(rows.event[0] - rows.first[0]), int(rows.last[0] - rows.event[0])
    scale = min(1.0, gap / 2 / max(1, before + after))
    return replace(rows, first=rows.event - int(before * scale), last=rows.event + int(after * scale))


def _thinned(times: Instants, spacing: int) -> Instants:
    """Times at least `spacing` apart: the frames of one burst say the same."""
    kept, last = list[int](), None
    for time in times.tolist():
        if last is None or time - last >= spacing:
            kept.append(time)
            last = time
    return np.array(kept, np.int64)


def _within(groups: Sequence[Rows], reach: int, share: int) -> Offset:
    """The offset within `reach` that matches the most frames."""
    pairs = [(group, time) for group in groups for time in group.frames.tolist()]
    rows = sum(
        int((np.searchsorted(g.first, g.frames + reach) - np.searchsorted(g.first, g.frames - reach)).sum())
        for g in groups
    )
    most = min(MOST_FRAMES, max(FEWEST, int(MOST_PAIRS / share / max(1.0, rows / len(pairs)))))
    if len(pairs) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(pairs), most, replace=False))
        pairs = [pairs[place] for place in chosen]
    begins, ends = _matching_offsets(pairs, reach)
    if not len(begins):
        return Offset(None, len(pairs), f"{NONE_NEAR} {told_seconds(reach / SECOND)} of a frame with its key")
    return _highest(begins, ends, reach, len(pairs))


def _matching_offsets(pairs: Sequence[tuple[Rows, int]], reach: int) -> tuple[Instants, Instants]:
    """(begins, ends) of the offsets at which each frame has a row: the union of the intervals of its rows."""
    begins, ends = list[Instants](), list[Instants]()
    reached: dict[int, Instants] = {}
    for rows, time in pairs:
        if id(rows) not in reached:
            reached[id(rows)] = np.maximum.accumulate(rows.last)
        low = int(np.searchsorted(reached[id(rows)], time - reach))
        high = int(np.searchsorted(rows.first, time + reach, "right"))
        if low >= high:
            continue
        first, last = rows.first[low:high] - time, np.maximum.accumulate(rows.last[low:high]) - time
        apart = np.flatnonzero(first[1:] > last[:-1])
        begins.append(np.maximum(first[np.concatenate([[0], apart + 1])], -reach))
        ends.append(np.minimum(last[np.concatenate([apart, [len(last) - 1]])], reach))
    if not begins:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(begins), np.concatenate(ends)


def _highest(begins: Instants, ends: Instants, reach: int, frames: int) -> Offset:
    """The highest place of the number of matching frames, if nothing else is as high."""
    at = np.concatenate([begins, ends + 1])
    change = np.concatenate([np.ones(len(begins), np.int64), -np.ones(len(ends), np.int64)])
    order = np.argsort(at, kind="stable")
    at, score = at[order], np.cumsum(change[order])
    settled = np.append(at[1:] > at[:-1], True)
    at, score = at[settled], score[settled]
    until = np.append(at[1:], reach + 1)
    best = int(score.max())
    chance = float((score * (until - at)).sum()) / (2 * reach + 1)
    peak = int(np.argmax(score))
    low, high = _around(score, peak, (best + chance) / 2)
    left, right = at[low], until[high]
    guard = (right - left) // 2
    outside = (until <= left - guard) | (at >= right + guard)
    second = int(score[outside].max()) if outside.any() else 0
    margin = 2 * np.sqrt(best + second)
    if best - second <= margin:
        if second - chance <= 2 * margin:
            return Offset(None, frames, f"no offset stands out among {frames:,} frames")
        other = int(np.flatnonzero(outside)[np.argmax(score[outside])])
        both = sorted(float(at[place] + until[place]) / 2 / SECOND for place in (peak, other))
        return Offset(None, frames, f"{EQUAL}, such as {told_seconds(both[0])} and {told_seconds(both[1])}")
    low, high = _around(score, peak, best - max(1.0, float(np.sqrt(best))))
    low, high = float(at[low]) / SECOND, float(until[high]) / SECOND
    return Offset(0.0 if low <= 0 <= high else (low + high) / 2, frames, low=low, high=high)


def _around(score: Instants, peak: int, level: float) -> tuple[int, int]:
    """(first, last) place of the stretch around the peak in which the score is at least `level`."""
    below = np.flatnonzero(score < level)
    left, right = below[below < peak], below[below > peak]
    return (int(left[-1]) + 1 if len(left) else 0), (int(right[0]) - 1 if len(right) else len(score) - 1)


def _refined(groups: Sequence[Rows], found: Offset) -> Offset:
    """For events on both sides of a frame: the median of the differences, instead of the range that matches."""
    wide = [g for g in groups if g.event is not None]
    if not wide or any((g.event - g.first != g.last - g.event).any() for g in wide if g.event is not None):
        return found
    centre = int((found.low + found.high) / 2 * SECOND)
    differences = np.empty(0, np.int64)
    for _ in range(3):
        nearest = [_nearest(g.frames, g.event, centre) for g in wide if g.event is not None]
        reach = max(int(g.last[0] - g.first[0]) for g in wide)
        differences = np.concatenate(nearest)
        differences = differences[np.abs(differences - centre) <= reach]
        centre = int(np.median(differences))
    spread = float(np.median(np.abs(differences - centre))) / SECOND
    return replace(found, seconds=centre / SECOND, spread=spread, pairs=len(differences))


def _nearest(frames: Instants, events: Instants, offset: int) -> Instants:
    """For each frame the difference event - frame that is nearest to `offset`."""
    after = np.clip(np.searchsorted(events, frames + offset), 0, len(events) - 1)
    before = np.clip(after - 1, 0, len(events) - 1)
    later, earlier = events[after] - frames, events[before] - frames
    return np.where(np.abs(later - offset) < np.abs(earlier - offset), later, earlier)


@dataclass(frozen=True)
class Jump:
    """Times that go backwards in a log: how often, and the largest with its row and its size in seconds."""

    count: int
    row: int
    seconds: float

    def told(self) -> str:
        """In words."""
        hour = " (an hour: the end of daylight saving? Set `time_zone`)" if round(self.seconds) == 3600 else ""
        size = told_seconds(self.seconds)
        often = "once, by" if self.count == 1 else f"{self.count:,} times, at most by"
        return f"its time goes backwards {often} {size}{hour} at row {self.row}"


def jumps(keys: npt.NDArray[np.integer[Any]], times: Instants, rows: npt.NDArray[np.integer[Any]]) -> Jump | None:
    """Where the time of a log goes backwards, key by key in the order of its rows; None if it does not.

    A log may also be written newest first; and where the rows are in no order of time, nothing can be said.
    """
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    steps, at = np.diff(times[order])[same], rows[order][1:][same]
    if (steps < 0).sum() > (steps > 0).sum():
        steps = -steps
    back, forth = int((steps < 0).sum()), int((steps > 0).sum())
    if not back or back > max(2, (back + forth) // 10) or back >= forth:
        return None
    worst = int(np.argmin(steps))
    return Jump(back, int(at[worst]), -float(steps[worst]) / SECOND)
