"""How often each frame is read in a pass in which all tasks are to have like shares."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

MOST_OFTEN = 4.0  # times in a pass: few frames repeated often are learnt by heart


def how_often(tasks: Sequence[frozenset[str]]) -> list[float]:
    """Times that each frame is read in a pass, by its tasks; once on average.

    A frame is needed by each of its tasks as one of the frames of that task. So frames of rare tasks are read more
    often, at most MOST_OFTEN times, and those of common ones less often than once.
    """
    frames = Counter(itertools.chain.from_iterable(tasks))
    needs = [sum(1.0 / frames[task] for task in each) or 1.0 / len(tasks) for each in tasks]
    most, often = 0, [0.0] * len(tasks)
    while True:  # what frames at the limit do not take is for the others
        scale = (len(tasks) - MOST_OFTEN * most) / (
            sum(need for need, number in zip(needs, often) if number < MOST_OFTEN) or 1.0
        )
        often = [
            number if number >= MOST_OFTEN else min(MOST_OFTEN, scale * need) for need, number in zip(needs, often)
        ]
        if (reached := sum(number >= MOST_OFTEN for number in often)) == most:
            return often
        most = reached


def whole_times(often: Sequence[float], start: float) -> list[int]:
    """Whole numbers with the same sum, which is one: each is its number rounded down or up (systematic sampling).
    `start` in [0, 1) decides which way, and differs from pass to pass."""
    last = round(sum(often))
    places = [0, *(min(last, int(number + start)) for number in itertools.accumulate(often))]
    places[-1] = last  # whatever the rounding of the sum
    return [after - before for before, after in itertools.pairwise(places)]


def shares(frames: Mapping[frozenset[str], int], *, even: bool) -> dict[str, float]:
    """Share of the frames of a pass that show each task. `frames`: how many there are with exactly these tasks."""
    kinds, count = list(frames), sum(frames.values())
    listed = [tasks for tasks in kinds for _ in range(frames[tasks])]
    often = dict(zip(listed, how_often(listed))) if even else dict.fromkeys(kinds, 1.0)
    found: dict[str, float] = defaultdict(float)
    for tasks in kinds:
        for task in tasks:
            found[task] += often[tasks] * frames[tasks] / count
    return dict(found)
