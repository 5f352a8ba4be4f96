"""Which row's span of time holds a moment: one of them, none, or several. Times are int64 microseconds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Instants = npt.NDArray[np.int64]
Choice = Literal["refuse", "nearest", "first", "last"]

NONE, SEVERAL = -1, -2
FOREVER = 1 << 61  # the end of a span that is still open


def match(
    times: Instants, first: Instants, last: Instants, choice: Choice = "refuse", event: Instants | None = None
) -> Instants:
    """For each time the index of the row with first <= time <= last; NONE, or SEVERAL which `choice` cannot tell apart.

    `first` is sorted. `choice` "nearest" takes the row whose `event` is nearest, "first" and "last" by `first`.
    O((frames + rows) log rows), and the matching rows of each time that has several.
    """
    by_end = np.argsort(last, kind="stable")
    begun = np.searchsorted(first, times, "right")
    ended = np.searchsorted(last[by_end], times, "left")
    # All that have begun less all that have ended: of a single row the difference of the sums of indexes is its index.
    sums = np.concatenate([[0], np.cumsum(np.arange(len(first)))])
    sums_of_ended = np.concatenate([[0], np.cumsum(by_end)])
    count = begun - ended
    found = np.where(count == 1, sums[begun] - sums_of_ended[ended], np.where(count == 0, NONE, SEVERAL))
    if choice != "refuse":
        reached = np.maximum.accumulate(last)
        for place in np.flatnonzero(count > 1):
            time = times[place]
            rows = _holding(time, int(np.searchsorted(reached, time)), int(begun[place]), last)
            far = np.abs(event[rows] - time) if event is not None and choice == "nearest" else first[rows]
            best = rows[far == (far.max() if choice == "last" else far.min())]
            found[place] = best[0] if len(best) == 1 else SEVERAL
    return found


def holding(time: int, first: Instants, last: Instants) -> Instants:
    """The indexes of all rows with first <= time <= last. `first` is sorted."""
    return _holding(np.int64(time), 0, int(np.searchsorted(first, time, "right")), last)


def _holding(time: np.int64, begin: int, end: int, last: Instants) -> Instants:
    return begin + np.flatnonzero(last[begin:end] >= time)


def nearest_only(rows: Instants, distance: Instants) -> npt.NDArray[np.bool_]:
    """Of the frames that have the same row, which is the nearest one; none of them if two are equally near."""
    order = np.lexsort((distance, rows))
    ordered, far = rows[order], distance[order]
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(rows)]
    tied = np.append((ordered[1:] == ordered[:-1]) & (far[1:] == far[:-1]), False)[: len(rows)]
    kept = np.zeros(len(rows), bool)
    kept[order] = new & ~tied
    return kept
