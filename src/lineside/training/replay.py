"""How a retraining divides its budget: minutes over stages, and what it reads over new and old data. Counts alone.

A model that trains on new data alone forgets the old (catastrophic forgetting). Old data read beside the new prevent
most of it (experience replay: arXiv 1902.10486 for tiny memories, 2403.08763 for language models). New data are read a
few times at most: up to about four passes are worth as much as fresh data, after some sixteen nothing is gained
(arXiv 2305.16264). What the budget leaves beyond that goes to the old data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHARE = 0.5  # of the frames that are read, at least: as many old ones as new ones
MOST_PASSES = 8.0  # over the new frames
MOST_OLD_PASSES = 4.0  # over the old frames: the champion has read them before
MOST_OFTEN = 4.0  # times a folder's part of the old frames that it may give, for tasks that few frames have
PROMPTS_LEAST, PROMPTS_MOST = 0.2, 0.5  # stage 3's share of the time beside stage 2
STEPS, FEWEST_PROMPTS = 20, 8  # stage 3 makes its steps smaller, down to so many prompts, until it has so many


def replay_share(new: int, old: int) -> float:
    """Share of old frames among those that are read: half, but not more than their share of all frames."""
    return min(SHARE, old / (new + old)) if old else 0.0


def frames_read(budget: float, new: int, old: int, share: float | None = None) -> tuple[float, float]:
    """(new, old) frames that a stage reads, repeated ones counted again, if its time is enough for `budget` frames.

    `share`: of old frames, exactly; None: at least `replay_share`, and more where the new frames are used up.
    """
    least = replay_share(new, old) if share is None else share
    fresh = min(budget * (1.0 - least), MOST_PASSES * new)
    if share is not None:
        return fresh, fresh * share / (1.0 - share) if old else 0.0
    return fresh, min(budget - fresh, max(MOST_OLD_PASSES * old, fresh * least / (1.0 - least)))


def fair_parts(tasks: Sequence[Mapping[str, int]]) -> list[float]:
    """The part of the replay that each folder of old data gives, so that every task gets a like share of it.

    `tasks`: questions of each folder by task. A folder gives its part of each task's questions, averaged over the
    tasks. It gives at most MOST_OFTEN times its part of all questions, since few frames repeated often are learnt by
    heart. The parts sum to 1; all are 0 without questions.
    """
    names = {name for counts in tasks for name in counts}
    totals = {name: sum(counts.get(name, 0) for counts in tasks) for name in names}
    everything = sum(totals.values())
    if not everything:
        return [0.0] * len(tasks)
    fair = [
        min(
            sum(count / totals[name] for name, count in counts.items() if count) / len(names),
            MOST_OFTEN * sum(counts.values()) / everything,
        )
        for counts in tasks
    ]
    return [part / sum(fair) for part in fair]


def divide(minutes: float, questions: int, unanswered: int) -> dict[str, float]:
    """Minutes of the stages: sft for frames with questions and answers, rlvr for frames that have prompts alone.

    Stage 2 learns more in minutes than stage 3 where it has answers (docs/results.md), so stage 3 gets time only for
    frames that stage 2 cannot use, by their share of the new frames, between a fifth and a half.
    """
    if not questions or not unanswered:
        return {"sft": minutes} if questions else {"rlvr": minutes} if unanswered else {}
    share = min(max(unanswered / (questions + unanswered), PROMPTS_LEAST), PROMPTS_MOST)
    return {"sft": minutes * (1.0 - share), "rlvr": minutes * share}


def prompts_a_step(prompts: int, steps: float) -> int:
    """Live groups of a step of stage 3 that would make `steps` steps with `prompts`: halved until it makes STEPS."""
    while steps < STEPS and prompts // 2 >= FEWEST_PROMPTS:
        prompts, steps = prompts // 2, steps * 2
    return prompts
