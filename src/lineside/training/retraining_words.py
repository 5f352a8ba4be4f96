"""The plan of a retraining in words: what is new, what is read and replayed and why, how long it takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from lineside.data.contents import Contents
from lineside.data.evenly import shares
from lineside.recipe import Recipe
from lineside.stages import entry_of
from lineside.training.replay import MOST_PASSES
from lineside.training.retraining import RATE, Given, Part, Plan, frames_of

NAMED = 5  # new answers of a task that are named


def in_words(given: Given, plan: Plan) -> Iterator[str]:
    """What will be done, how long it takes and why."""
    recipe = plan.recipe
    yield f"retrain {given.label} in {given.minutes:g} minutes -> {recipe.folder}"
    for each in given.new:
        yield f"new: {each.folder}: {_counted(each)}"
    for each in given.old:
        yield f"old: {each.folder}: {_counted(each)}"
    yield from _strange(given)
    for part in plan.parts:
        early = "" if part.takes > 0.95 * part.minutes else f" (of {part.minutes:.1f}: more passes teach little)"
        yield f"{part.name}: {part.takes:.1f} minutes{early}, some {part.steps:,} steps"
        yield f"  trains {_trained(recipe, part.name)}"
        yield from (f"  {line}" for line in _read(given, part, recipe.data.samples))
    for name, why in plan.left_out.items():
        yield f"{name}: left out: {why}"
    rest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())
    yield f"else: {rest}; judged on {' and '.join(recipe.evaluate.splits) or 'nothing: no folder has a suite'}"
    all_of_it = sum(plan.seconds.values()) / 60 + sum(part.takes for part in plan.parts)
    yield f"all: {all_of_it:.1f} minutes; speed: {plan.machine.source}; measured again before each stage begins"


def _counted(each: Contents) -> str:
    frames = max(each.frames["qa"], each.frames["prompt"])
    asked, prompts = (sum(each.questions[kind].values()) for kind in ("qa", "prompt"))
    tasks = {task for counts in each.questions.values() for task in counts}
    return f"{frames:,} frames to train on, {asked:,} questions and {prompts:,} prompts of {len(tasks)} tasks"


def _trained(recipe: Recipe, stage: str) -> str:
    rates = recipe.section(stage).learning_rate
    told = " and ".join(f"{part} (rate {getattr(rates, part):.2g})" for part in recipe.trained_parts(stage))
    return told + (f", {RATE:g} of the rate of its first training" if stage == "sft" else "")


def _read(given: Given, part: Part, home: Path | None) -> Iterator[str]:
    """What a stage reads, with the task that is replayed least. `home`: the folder that the run is judged on."""
    new, old, kind = frames_of(given.new, part.name), frames_of(given.old, part.name), entry_of(part.name).kind
    times = f" {part.new / new:.1f} times" if part.name == "sft" else ""
    once = f"; to read each once takes {part.takes * new / part.new:.1f} minutes" if part.new < new else ""
    yield f"reads the {new:,} new frames{times}{once if part.name == 'sft' else ''}"
    if part.name == "rlvr":
        yield "prefers prompts of which some rollouts are right and some wrong: it learns nothing from the others"
    if not part.old:
        why = "as asked for" if given.share == 0.0 else "there are no old samples for it"
        yield f"replays nothing ({why}): what it is not trained on it may forget"
        return
    expected: dict[str, float] = defaultdict(float)
    for each in (each for each in given.old if each.tasks[kind]):
        for task, share in shares(each.tasks[kind], even=each.folder != home).items():
            expected[task] += share * part.read[each.folder]
    share, (task, fewest) = part.old / (part.old + part.new), min(expected.items(), key=lambda pair: pair[1])
    if given.share is not None:
        why = "as asked for"
    elif part.name == "sft" and part.new > 0.99 * MOST_PASSES * new:
        why = f"what {MOST_PASSES:g} passes over the new ones leave"
    else:
        why = "half, or the old frames' share of all if that is less"
    yield f"replays old frames, {share:.0%} of all ({why}), their {len(expected)} tasks in like shares"
    if part.name == "sft":
        times = part.old / old
        yield f"the {old:,} old frames come {times:.1f} times on average; fewest show {task}: {fewest:,.0f}"


def _strange(given: Given) -> Iterator[str]:
    """What the champion has not met: tasks, answers, sizes of pictures."""
    known = {task for each in given.old for task in each.forms} | given.known
    names: dict[str, set[str]] = defaultdict(set)
    for each in given.old:
        for task, answers in each.names.items():
            names[task] |= answers
    for each in given.new:
        if tasks := sorted(set(each.forms) - known):
            yield f"new to the model: the tasks {', '.join(tasks)}"
        for task in sorted(set(each.names) & set(names)):
            if fresh := sorted(each.names[task] - names[task]):
                more = f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else ""
                yield f"new to the model: answers of {task}: {', '.join(fresh[:NAMED])}{more}"
    before = sum((Counter(each.sizes) for each in given.old), Counter[tuple[int, int]]())
    for each in given.new:
        for size, _ in Counter(each.sizes).most_common(1):
            if before and size not in before:
                (usual, _), *_ = before.most_common(1)
                told = f"pictures of {size[1]}x{size[0]} pixels, before mostly {usual[1]}x{usual[0]}"
                yield f"new to the model: {told}: has a camera changed?"
