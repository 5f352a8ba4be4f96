"""From a champion, new samples, old ones and a number of minutes to a recipe that trains a challenger.

The recipe is the champion's own with other data, lower rates and a budget, so `lineside train` runs it. What it takes
is forecast as `lineside plan` does (forecast.py); how the budget is divided stands in replay.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lineside.data.contents import Contents
from lineside.data.mixture import ONLY_FAILURES
from lineside.errors import LinesideError
from lineside.machine import lacking
from lineside.recipe import Data, Mixed, Rates, Recipe
from lineside.stages import LINE, entry_of
from lineside.training.budget import SECONDS, SHARE
from lineside.training.forecast import Held, Machine, encoding_seconds, forecast, frame_tokens
from lineside.training.replay import MOST_PASSES, divide, fair_parts, frames_read, prompts_a_step, replay_share
from lineside.training.skeleton import Skeleton
from lineside.types import SUITES

STAGES = ("sft", "rlvr")
RATE = 0.3  # of the peak rates by which the champion learnt stage 2, as in the controls of stage 3
WARMUP = 0.1  # the optimiser begins without moments, and a short stage has few steps
PASSES = 50.0  # of stage 3 at most: rollouts of a prompt differ from pass to pass
START = 20.0  # seconds to load libraries and model, and to check the data
STATES = 2 * 3 * 4.0  # bytes of a parameter: a float32 master and two moments, in the old state and the new one
LONG = 1000.0  # minutes of a stage off which its cost a minute is read


@dataclass(frozen=True, slots=True)
class Given:
    """What a retraining begins with. `label`: of the champion. `recipe`: of its run, or one with defaults; steps or
    tokens of a stage that it states are kept, and `minutes` divided over the others. `rates`:
    those of its first stage 2. `known`: tasks that it says it knows. `old`: what it was trained on; `encoded`: whether
    the pictures of that are. `share` (of old frames among those that are read), `stages`, `lora`: None: chosen by
    `plan_retraining`."""

    label: str
    checkpoint: Path
    recipe: Recipe
    rates: Rates
    new: tuple[Contents, ...]
    old: tuple[Contents, ...]
    minutes: float
    known: frozenset[str] = frozenset()
    encoded: bool = False
    share: float | None = None
    stages: tuple[str, ...] | None = None
    lora: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A stage of the plan. `minutes`: its limit; it `takes` less if its passes end first. `read`: frames that it reads
    of each folder, repeated ones counted again; `new`, `old`: of all new and old folders. `epochs`: most passes over
    the first folder with samples for the stage."""

    name: str
    minutes: float
    takes: float
    steps: int
    new: float
    old: float
    read: Mapping[Path, float]
    epochs: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The recipe, and why it is so. `seconds`: of all that is no training. `bytes`: of what it writes. `left_out`:
    stages, with the reason."""

    recipe: Recipe
    parts: tuple[Part, ...]
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]
    machine: Machine
    bytes: float


def frames_of(folders: Sequence[Contents], stage: str) -> int:
    """Frames with training samples for a stage."""
    return sum(
        each.frames[entry_of(stage).kind] for each in folders if any(each.questions[entry_of(stage).kind].values())
    )


def plan_retraining(given: Given, model: Skeleton, machine: Machine, out: Path) -> Plan:
    """The recipe of a retraining whose run is the folder `out`, and what it will do.

    Raises LinesideError if there is nothing new to train on, if the minutes are not enough for one step, or if the
    memory is not.
    """
    left_out = _why_not(given)
    names = [name for name in STAGES if name not in left_out]
    home = _home(given)
    held = _held(given, home)
    recipe = _settings(given, names, home, out)
    costs = _Costs.of(recipe, model, machine, held)
    if given.lora is None and costs.memory > machine.memory and find_spec("peft"):
        recipe = _with_lora(recipe)
        costs = _Costs.of(recipe, model, machine, held)
    if costs.memory > machine.memory:
        raise LinesideError(
            f"training needs some {costs.memory / 1e9:.1f} GB, and {machine.name} has {machine.memory / 1e9:.1f}: take "
            f"smaller packs (--set {names[0]}.pack_tokens=2048), or an adapter (--lora)"
        )
    pictures = sum(each.trained for each in given.new) + sum((held.suites or {}).values())
    if not given.encoded:
        pictures += min(frames_of(given.old, names[0]), given.minutes * costs.frames[names[0]])
    seconds = {
        "start": START + costs.compile,
        "encode": encoding_seconds(recipe, model, machine, pictures),
        "evaluate": sum(costs.evaluate[name] for name in names),
    }
    left = 60 * given.minutes - sum(seconds.values())
    seconds["measure"] = max(0.0, min(left * SHARE / (1 + SHARE), SECONDS * len(names)))  # the speed, before a stage
    left -= seconds["measure"]
    stated = {name: minutes for name in names if (minutes := costs.stated(recipe, name)) is not None}
    if set(stated) < set(names):
        _check_enough(given.minutes, left, sum(costs.step[name] for name in names))
    minutes = divide(left / 60, *_to_learn(given, names)) | stated
    if given.stages is None and len(minutes) > 1 and 60 * minutes["rlvr"] < costs.step["rlvr"]:
        left_out["rlvr"] = f"one step takes {costs.step['rlvr']:.0f} s, more than its share of the time"
        minutes = {"sft": left / 60} | {name: number for name, number in stated.items() if name == "sft"}
    parts = tuple(_part(given, name, share, costs, home) for name, share in minutes.items())
    written = pictures * model.features * 2.0 + len(parts) * 2.0 * model.parameters + STATES * model.lm_parameters
    return Plan(_with_parts(recipe, given, home, parts), parts, seconds, left_out, machine, written)


@dataclass(frozen=True, slots=True)
class _Costs:
    """What the stages of a recipe take: seconds of a step and of the evaluation, tokens and frames a minute."""

    step: Mapping[str, float]
    evaluate: Mapping[str, float]
    tokens: Mapping[str, float]
    frames: Mapping[str, float]
    compile: float
    memory: float

    @classmethod
    def of(cls, recipe: Recipe, model: Skeleton, machine: Machine, held: Held) -> _Costs:
        for name in recipe.stages:
            recipe = _changed(recipe, name, max_minutes=LONG, max_steps=None, max_tokens=None)
        steps = {step.name: step for step in forecast(recipe, model, machine, frames=None, held=held)}
        names = recipe.stages
        a_frame = frame_tokens(recipe, model, questions=held.questions)
        return cls(
            step={name: 60 * LONG / steps[name].steps for name in names},
            evaluate={name: steps[f"{name}: evaluated"].seconds for name in names},
            tokens={name: steps[name].tokens / LONG for name in names},
            frames={name: steps[name].tokens / LONG / a_frame for name in names},
            compile=steps["compile"].seconds,
            memory=max(steps[name].memory for name in names),
        )

    def stated(self, recipe: Recipe, name: str) -> float | None:
        """Minutes of the steps or tokens that a recipe states for a stage; None if it states none."""
        settings = recipe.section(name)
        limits = [settings.max_steps and settings.max_steps * self.step[name] / 60]
        limits.append(settings.max_tokens and settings.max_tokens / self.tokens[name])
        return min((limit for limit in limits if limit), default=None)


def _why_not(given: Given) -> dict[str, str]:
    """The stages that are left out, with the reason. Raises LinesideError if none is left."""
    missing = {
        "sft": "no new questions with answers",
        "rlvr": "no new prompts whose answer a record, a simulator or an outcome vouches for",
    }
    missing = {name: why for name, why in missing.items() if not frames_of(given.new, name)}
    if len(missing) == len(STAGES) or set(given.stages or STAGES) <= set(missing):
        folders = ", ".join(str(each.folder) for each in given.new) or "no folder"
        raise LinesideError(
            f"nothing new to train on in {folders}: {' and '.join(missing.values())} in the split train. Label new "
            "frames with `lineside label`, or import outcomes"
        )
    if "rlvr" in (given.stages or STAGES) and "rlvr" not in missing and _only_failures(given):
        raise LinesideError(f"stage 3: {ONLY_FAILURES} (--replay above 0, and --old FOLDER for another one)")
    if given.stages is not None:
        if wrong := [name for name in given.stages if name in missing]:
            raise LinesideError(f"--stages {wrong[0]}: {missing[wrong[0]]} in the split train")
        return {name: "not asked for" for name in STAGES if name not in given.stages}
    if "rlvr" not in missing and "sft" not in missing and not sum(each.unanswered for each in given.new):
        missing["rlvr"] = "all new prompts are of frames with answers, from which stage 2 learns more in minutes"
    return missing


def _only_failures(given: Given) -> bool:
    """Whether a wrong answer is all that is known of the prompts that stage 3 would read."""
    replayed = given.old if given.share != 0.0 else ()
    prompts = [(each, task) for each in (*given.new, *replayed) for task in each.questions["prompt"]]
    return all(each.forms[task] == {"not"} for each, task in prompts)


def _to_learn(given: Given, names: Sequence[str]) -> tuple[int, int]:
    """New frames with answers, and those with prompts alone, as far as the stages to train use them."""
    alone = max(1, sum(each.unanswered for each in given.new))
    return frames_of(given.new, "sft") * ("sft" in names), alone * ("rlvr" in names)


def _home(given: Given) -> Contents:
    """The folder that the run is judged on: the first new one with a suite, else the first old one that is replayed."""
    replayed = () if given.share == 0.0 else given.old
    judged = (each for each in (*given.new, *replayed) if any(each.suites[split] for split in SUITES if split != "dev"))
    return next(judged, given.new[0])


def _held(given: Given, home: Contents) -> Held:
    """Questions of a frame, and those that are evaluated. Confidence is calibrated on dev of all folders."""
    frames, asked = (sum(count(each) for each in given.new) for count in (
        lambda each: each.frames["qa"] or each.frames["prompt"],
        lambda each: sum(each.questions["qa" if each.frames["qa"] else "prompt"].values()),
    ))  # fmt: skip
    dev = sum(each.suites["dev"] for each in (*given.new, *given.old))
    return Held(asked / frames if frames else Held().questions, {**home.suites, "dev": dev})


def _settings(given: Given, names: Sequence[str], home: Contents, out: Path) -> Recipe:
    """The champion's recipe with the stages to train, from the champion, with its rates. Budgets come later."""
    lora = given.lora if given.lora is not None else "lora" in given.recipe.sft.train
    if lora and find_spec("peft") is None:
        raise lacking("peft", "--lora")
    recipe = given.recipe.model_copy(
        update={
            "name": out.name,
            "runs": out.parent,
            "data": Data(
                samples=home.folder,
                augment=given.recipe.data.augment,
                leave_out=given.recipe.data.leave_out if given.old else (),
            ),
            "stages": tuple(names),
            "controls": (),
            "evaluate": given.recipe.evaluate.model_copy(
                update={
                    "splits": tuple(split for split in given.recipe.evaluate.splits if home.suites[split]),
                }
            ),
        }
    )
    rates = Rates(**{part: _rounded(RATE * rate) for part, rate in given.rates.model_dump().items()})
    for name in names:
        train = (*(part for part in recipe.section(name).train if part not in ("lm", "lora")), "lora" if lora else "lm")
        recipe = _changed(recipe, name, train=train, warmup=WARMUP)
    for name in LINE:
        recipe = _changed(recipe, name, from_=given.checkpoint if name == names[0] else None)
    return _changed(recipe, "sft", learning_rate=rates) if "sft" in names else recipe


def _with_lora(recipe: Recipe) -> Recipe:
    for name in recipe.stages:
        train = tuple("lora" if part == "lm" else part for part in recipe.section(name).train)
        recipe = _changed(recipe, name, train=train)
    return recipe


def _check_enough(minutes: float, left: float, step: float) -> None:
    if left >= step:
        return
    rest = 60 * minutes - left
    raise LinesideError(
        f"--minutes {minutes:g} are not enough for one step: loading, encoding and evaluation take {rest / 60:.1f} "
        f"minutes, a step {step:.1f} s. At least --minutes {math.ceil((rest + step) / 60)} are needed, better "
        f"{math.ceil((rest + 20 * step) / 60)}; --set evaluate.limit=200 evaluates fewer questions"
    )


def _part(given: Given, name: str, minutes: float, costs: _Costs, home: Contents) -> Part:
    kind = entry_of(name).kind
    everything, earlier = frames_of(given.new, name), frames_of(given.old, name)
    share = given.share
    if name == "rlvr" and share is None:  # it reads what its choice of prompts asks for
        share = replay_share(everything, earlier)
    fresh, old = frames_read(minutes * costs.frames[name], everything, earlier, share)
    read = {each.folder: fresh * frames_of([each], name) / everything for each in given.new}
    parts = fair_parts([each.questions[kind] for each in given.old])
    read |= {each.folder: old * part for each, part in zip(given.old, parts)}
    first = next(each for each in _in_order(given, home) if read[each.folder])
    passes = MOST_PASSES if name == "sft" else PASSES
    epochs = passes * everything / fresh * read[first.folder] / frames_of([first], name)
    takes = min(minutes, (fresh + old) / costs.frames[name]) if name == "sft" else minutes
    return Part(name, minutes, takes, max(1, round(60 * takes / costs.step[name])), fresh, old, read, epochs)


def _in_order(given: Given, home: Contents) -> list[Contents]:
    """All folders, the one that the run is judged on first."""
    return [home, *(each for each in (*given.new, *given.old) if each is not home)]


def _with_parts(recipe: Recipe, given: Given, home: Contents, parts: Sequence[Part]) -> Recipe:
    """The recipe with its data and budgets."""
    mix: list[Mixed] = []
    for part in parts:
        unit = part.read[home.folder] or max(part.read.values())
        for each in _in_order(given, home)[1:]:
            if part.read[each.folder]:
                weight = _rounded(part.read[each.folder] / unit)
                mix.append(Mixed(samples=each.folder, weight=weight, even=each in given.old, stages=(part.name,)))
        recipe = _changed(recipe, part.name, max_minutes=_rounded(part.minutes), epochs=_rounded(part.epochs))
        if part.name == "rlvr":
            prompts = prompts_a_step(recipe.rlvr.prompts, part.steps)
            recipe = _changed(recipe, "rlvr", prompts=prompts)
    data = recipe.data.model_copy(update={"mix": tuple(mix)})
    return recipe.model_copy(update={"data": data, "stages": tuple(part.name for part in parts)})


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def _changed(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return recipe.model_copy(update={name: recipe.section(name).model_copy(update=changes)})
