"""What a run will take, from its recipe and the shapes of its parts: tokens, seconds and bytes of each step.

Operations are counted as `operations.py` counts them. Seconds are operations over what a machine reaches: a share of
its rate of plain matrix products. Lengths of texts and the times of data are those of the quick start
(docs/results.md). A text of yours may be longer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lineside.recipe import Recipe
from lineside.stages import entry_of, is_asked, is_control
from lineside.training.skeleton import Skeleton

# Measured in the quick start, 2026-11-29, on two cores (tokens of texts by the tokenizer of nano).
CAPTION, PROMPT, RESPONSE, FAST, ROLLOUT = 26, 12, 37, 7, 28  # tokens
QUESTIONS = 5.5  # of a simulated frame, on average, at most questions_per_frame
LIVE = 0.8  # share of the groups that teach
UPDATE, DECODE, PREFILL = 0.37, 0.21, 0.4  # of the matrix rate
FRAMES, LABELLED, ENCODED = 30.0, 90.0, 50.0  # frames a second and core, frames a second, pictures a second (two cores)
COMPILE, BASELINES, REPORT, LOOK = 24.0, 14.0, 5.0, 45.0  # seconds
PREPARED = 105.0  # pictures a second that one thread resizes
LAYER = 0.36e-3  # seconds that a layer of a decoding step takes on a GPU at least: its kernels are called one by one
BANDWIDTH = 2e12  # bytes a second of a GPU's memory
PROCESS = 2.9e9  # bytes of a process on a CPU before any model: libraries, kernels, tables
ROWS = 512  # rows that are decoded together
PACKED = 2 + 4 + 4  # bytes of a logit kept for backward: bf16, float32 and its gradient
KEPT = 4  # bytes of master, moment, moment and sum of a parameter that trains: each
NODE = 8  # devices of one machine
ROWS_READ, LAID = 0.74e-3, 1.9e-3  # seconds of a core to read a frame's rows, and to lay out its tree (docs/scale.md)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes: `rate` operations a second of plain matrix products."""

    name: str
    rate: float
    memory: float
    count: int = 1
    cores: int = 1
    gpu: bool = False
    update: float = UPDATE  # share of the rate that training reaches
    source: str = ""  # where rate and share come from
    node: int = NODE  # devices of one machine

    @property
    def sharing(self) -> int:
        """Devices that share out the weights: those of one machine, as `ranks.mesh` has it."""
        return min(self.count, self.node)

    @property
    def alone(self) -> Machine:
        """One device of it. Rank 0 evaluates, pretrains and samples for controls while the others wait."""
        return replace(self, count=1)


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of the samples: `questions` of a frame to train on, and those of each suite by split (None: those
    that the simulator gives)."""

    questions: float = QUESTIONS
    suites: Mapping[str, int] | None = None


UNKNOWN = Held()


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a run. `tokens` through the LM, forward and backward; `memory` in bytes of one process or device."""

    name: str
    seconds: float
    tokens: int = 0
    steps: int = 0
    trained: int = 0  # parameters
    memory: float = 0.0
    note: str = ""


def forecast(
    recipe: Recipe, model: Skeleton, machine: Machine, *, frames: int | None, held: Held = UNKNOWN
) -> Iterator[Step]:
    """The steps of a run in order. `frames`: of the training split of the run's own data, all families; None: not
    known.

    A stage without a limit whose number of frames is not known has no seconds (nan)."""
    yield from _data(recipe, model, machine, frames)
    spent: dict[str, int] = {}
    for name in (*recipe.stages, *recipe.trained_controls):
        found = _stage(recipe, model, machine, name, frames, spent, held)
        spent[name] = found.tokens
        yield found
        yield Step(f"{name}: evaluated", _judged(recipe, model, machine.alone, name, held))


def _others(recipe: Recipe) -> int:
    """Simulated frames that are not trained on."""
    simulated = recipe.data.simulate
    counts = simulated.frames.model_dump() if simulated is not None else {}
    return len(simulated.families) * sum(n for split, n in counts.items() if split != "train") if simulated else 0


def pictures_of(recipe: Recipe, frames: int | None) -> int:
    """Pictures that are encoded, with the variants of those that are trained on."""
    return (frames or 0) * recipe.data.augment.variants + _others(recipe)


def _data(recipe: Recipe, model: Skeleton, machine: Machine, frames: int | None) -> Iterator[Step]:
    simulated, parts = recipe.data.simulate, recipe.parts
    count = (frames or 0) + _others(recipe)
    pictures = pictures_of(recipe, frames)
    if simulated is not None:
        yield Step("simulate", count / (FRAMES * machine.cores))
    if recipe.data.samples is None and count:
        yield Step("label", count / LABELLED)
    if pictures:
        seconds = encoding_seconds(recipe, model, machine, pictures)
        size = pictures * model.features * 2 / 1e9
        note = f"{pictures:,} pictures, {size:.2f} GB of features, mapped"
        if size > recipe.features_gb:
            note += f"; {recipe.features_gb:g} GB are kept (features_gb), the others are encoded again in every pass"
        yield Step("encode", seconds, note=note)
    if recipe.evaluate.splits and recipe.evaluate.baselines:
        yield Step("baselines", BASELINES)
    if simulated is not None and simulated.frames.train > 600:
        yield Step("first look", LOOK)
    yield Step("compile", COMPILE)
    nano = parts.nano
    if parts.makes_lm:
        tokens = nano.max_tokens or 0
        speed = _reached(machine.alone, machine.update) / operations(model, 1.0, 0.8, trained=1.0)
        seconds = tokens / speed if tokens else 60 * nano.max_minutes
        yield Step("pretrain", seconds, tokens=tokens or round(seconds * speed), trained=model.lm_parameters)


def encoding_seconds(recipe: Recipe, model: Skeleton, machine: Machine, pictures: float) -> float:
    """Seconds to encode so many pictures."""
    if model.encoding is not None:
        return max(pictures * model.encoding / _reached(machine, PREFILL), pictures / PREPARED / machine.count)
    scales = 1.25 if len(recipe.parts.scales) > 1 else 1.0  # a quarter more pixels
    return pictures / (ENCODED * machine.cores / 2 / scales)


def operations(
    model: Skeleton, tokens: float, targets: float, *, trained: float, context: float = 200, twice: bool = False
) -> float:
    """Operations of forward and backward of `tokens`, of which the share `targets` predicts. `trained`: the share of
    the LM's weights whose gradients are computed. `context`: tokens that a token sees, on average. `twice`: backward
    computes forward again (checkpointing)."""
    forward = (
        2.0 * (model.lm_weights + targets * model.head_weights) + 4.0 * model.layers * model.attention[0] * context
    )
    return tokens * (2.0 + trained + twice) * forward


def _stage(
    recipe: Recipe,
    model: Skeleton,
    machine: Machine,
    name: str,
    frames: int | None,
    spent: dict[str, int],
    held: Held,
) -> Step:
    settings: Any = recipe.sft if is_control(name) else recipe.section(name)
    parts = recipe.trained_parts(name)
    adapter = model.adapter(recipe.lora.rank, recipe.lora.targets) if "lora" in parts else 0
    lm = model.lm_parameters if "lm" in parts else adapter
    trained = lm + (model.projector_parameters if "projector" in parts else 0)
    share = 1.0 if "lm" in parts else adapter / model.lm_weights
    if frames is not None:  # of a pass, with those that are mixed in
        frames = round(
            frames * (1.0 + sum(mixed.weight for mixed in recipe.data.mix if entry_of(name).slot in mixed.stages))
        )
    if entry_of(name).kind == "prompt" and not is_control(name):
        tokens, seconds, steps, note = _rlvr(recipe, model, machine, share, frames, held)
    else:
        tokens, seconds, steps, note = _supervised(recipe, model, machine, name, settings, share, frames, spent, held)
    return Step(name, seconds, tokens, steps, trained, _memory(recipe, model, machine, settings, trained, name), note)


def _supervised(
    recipe: Recipe,
    model: Skeleton,
    machine: Machine,
    name: str,
    settings: Any,
    share: float,
    frames: int | None,
    spent: dict[str, int],
    held: Held,
) -> tuple[int, float, int, str]:
    captions, label = name == "align", recipe.data.label
    a_frame = frame_tokens(recipe, model, captions=captions, questions=held.questions)
    targets = (a_frame - model.picture) / a_frame
    cost = operations(model, 1.0, targets, trained=share, context=model.picture + 60, twice=settings.checkpointing)
    speed = _reached(machine, machine.update) / cost
    limit = ""
    if machine.gpu and (read := a_frame / reading_seconds(machine)) < speed:
        speed, limit = read, "; limited by reading: each process reads all rows"
    if is_control(name):
        tokens = recipe.section(name).max_tokens or spent.get(entry_of(name).slot, 0)
        seconds, note = tokens / speed, "as many tokens as stage 3"
        if name == "rejection" and frames is not None:
            sampled = min(_prompts(recipe, frames, held), recipe.rejection.max_prompts or math.inf)
            seconds += _sampling(model, machine.alone, sampled, recipe.rejection.group_size, _rollout_length(recipe))
            note += f"; before it {round(sampled):,} prompts are sampled"
        return tokens, seconds, round(tokens / settings.step_tokens), note + limit
    few = frames is not None
    used = (frames or 0) * (1.0 if captions or not recipe.data.simulate else label.question_share or 0.5)
    limits = [(used * a_frame * settings.epochs, f"{settings.epochs:g} epochs")] if few else []
    if settings.max_tokens:
        limits.append((settings.max_tokens, "max_tokens"))
    if settings.max_steps:
        limits.append((settings.max_steps * settings.step_tokens, "max_steps"))
    if settings.max_minutes and not settings.max_tokens and not settings.max_steps:
        limits.append((60 * settings.max_minutes * speed, f"{settings.max_minutes:g} minutes"))
    if not limits:
        return 0, float("nan"), 0, "the number of frames is not known"
    tokens, why = min(limits)
    return round(tokens), tokens / speed, max(1, round(tokens / settings.step_tokens)), why + limit


def reading_seconds(machine: Machine) -> float:
    """Seconds to read one of the frames that all processes train on: each reads the rows of all, and lays out its
    share. On a GPU a thread does so while the step before is computed; on a CPU it is in the share that is reached."""
    return ROWS_READ + LAID / machine.count


def frame_tokens(recipe: Recipe, model: Skeleton, *, captions: bool = False, questions: float = QUESTIONS) -> float:
    """Tokens of a frame's tree in stage 1, or in stage 2."""
    label, sft = recipe.data.label, recipe.sft
    if captions:
        return model.picture + PROMPT + (label.captions_per_frame or 4) * CAPTION
    asked = min(questions, label.questions_per_frame) if recipe.data.samples is None else questions
    copies = sft.no_think_share * 0.8 * FAST
    return model.picture + sft.caption_replay * CAPTION + asked * (PROMPT + RESPONSE + copies)


def _rlvr(
    recipe: Recipe, model: Skeleton, machine: Machine, share: float, frames: int | None, held: Held
) -> tuple[int, float, int, str]:
    settings, length, prefix = recipe.rlvr, _rollout_length(recipe, recipe.rlvr.no_think_share), _prefix(model)
    groups = settings.prompts / LIVE
    update = _update_tokens(recipe, model)
    targets = settings.prompts * settings.group_size * length / update
    seconds = (
        settings.updates
        * operations(model, update, targets, trained=share, context=prefix + length, twice=settings.checkpointing)
        / _reached(machine, machine.update)
    )
    seconds += _sampling(model, machine, groups, settings.group_size, length)
    prompts = _prompts(recipe, frames, held)
    each = groups * (4 if settings.prompt_choice == "live" else 1)  # frames are read for so many prompts a step
    limits = [(settings.epochs * prompts / each, f"{settings.epochs:g} epochs")] if frames else []
    if settings.max_steps:
        limits.append((float(settings.max_steps), "max_steps"))
    if settings.max_tokens:
        limits.append((settings.max_tokens / update, "max_tokens"))
    if settings.max_minutes and not settings.max_tokens and not settings.max_steps:
        limits.append((60 * settings.max_minutes / seconds, f"{settings.max_minutes:g} minutes"))
    if not limits:
        return 0, float("nan"), 0, "the number of frames is not known"
    steps, why = min(limits)
    return round(steps * update), steps * seconds, max(1, round(steps)), why


def _update_tokens(recipe: Recipe, model: Skeleton) -> float:
    """Tokens of an update of stage 3."""
    settings, length = recipe.rlvr, _rollout_length(recipe, recipe.rlvr.no_think_share)
    return settings.prompts * (_prefix(model) + settings.group_size * length)


def _prompts(recipe: Recipe, frames: int | None, held: Held) -> float:
    """Prompts of stage 3 in a pass."""
    label = recipe.data.label
    return (frames or 0) * min(held.questions, label.questions_per_frame) * (label.prompt_share or 0.25)


def _prefix(model: Skeleton) -> float:
    """Tokens before the rollouts of a prompt; some prompts share their picture."""
    return model.picture / 1.7 + PROMPT


def _rollout_length(recipe: Recipe, quick: float = 0.0) -> float:
    """Tokens of a rollout, where the share `quick` is asked with thinking off."""
    return min((1 - quick) * ROLLOUT + quick * FAST, recipe.rlvr.max_new_tokens)


def _sampling(model: Skeleton, machine: Machine, groups: float, size: int, length: float) -> float:
    """Seconds to sample so many groups of `size` rollouts."""
    prefill = groups * _prefix(model) * 2.0 * model.lm_weights / _reached(machine, PREFILL)
    return prefill + _decoded(model, machine, groups * size, length)


def _judged(recipe: Recipe, model: Skeleton, machine: Machine, name: str, held: Held) -> float:
    """Seconds of a stage's evaluation, of its calibration, and of a report."""
    settings, simulated = recipe.evaluate, recipe.data.simulate
    asked = is_asked(name)
    seconds = REPORT
    counts = simulated.frames.model_dump() if simulated is not None else {}
    families = len(simulated.families) if simulated is not None else 1
    for split in settings.splits:
        there, dev = (counts.get(s, other) * families * QUESTIONS for s, other in ((split, 400), ("dev", 0)))
        if held.suites is not None:
            there, dev = held.suites.get(split, 0), held.suites.get("dev", 0)
        questions = min(settings.limit or there, there)
        if asked and split == settings.splits[0]:  # calibrated once
            questions += min(settings.calibration, dev)
        for mode in settings.modes if asked else settings.modes[:1]:
            length = RESPONSE if mode == "think" else FAST
            prefill = questions * (model.picture / QUESTIONS + PROMPT) * 2.0 * model.lm_weights
            seconds += _decoded(model, machine, questions, length) + prefill / _reached(machine, PREFILL) + 1.0
    return seconds


def held_bytes(machine: Machine, parameters: float, trained: float, *, packs: float) -> float:
    """Bytes of weights, gradients and optimiser on a device, where a rank has so many packs a step.

    All weights in the format that computes (bf16); of those that train also float32 master, two moments and the step's
    gradient. One device has besides the gradient of a pack. Several share out (FSDP2) what is float32; a rank with
    several packs keeps the float32 gradient of all weights until its last one (`ranks.ends_step`)."""
    weights = 2.0 * parameters
    if machine.count == 1:
        return weights + trained * (2.0 + 4 * KEPT)
    return weights + trained * (4 * KEPT / machine.sharing + (KEPT if packs > 1 else 0))


def pack_bytes(model: Skeleton, tokens: float, *, checkpointing: bool) -> float:
    """Bytes that the layers of the LM keep of a pack until backward."""
    heads, keys = model.attention
    a_token = 2.0 * (4 * model.width + 3 * heads + 3 * keys + 3 * model.inner)
    return tokens * (a_token + 2.0 * model.width * model.layers if checkpointing else model.layers * a_token)


def _memory(recipe: Recipe, model: Skeleton, machine: Machine, settings: Any, trained: int, name: str) -> float:
    """Bytes at most in a stage."""
    step = _update_tokens(recipe, model) if name == "rlvr" else settings.step_tokens
    held = held_bytes(machine, model.parameters, trained, packs=step / machine.count / settings.pack_tokens)
    pack = pack_bytes(model, settings.pack_tokens, checkpointing=settings.checkpointing)
    targets = 1024 if machine.gpu else 0.8 * settings.pack_tokens  # a GPU computes logits in chunks
    pack += targets * model.vocabulary * PACKED
    pack += settings.pack_tokens / (model.picture + 200) * model.features * 2.0
    _, keys = model.attention
    rows = min(ROWS, recipe.rlvr.prompts * recipe.rlvr.group_size)
    longest = recipe.rlvr.max_new_tokens if name == "rlvr" else recipe.evaluate.max_new_tokens
    decode = rows * (longest + 64) * model.layers * 2 * keys * 2.0
    decode += rows / 8 * (model.picture + PROMPT) * model.layers * 2 * keys * 2.0 + rows * model.vocabulary * 6.0
    return (0.0 if machine.gpu else PROCESS) + held + max(pack, decode)


def _decoded(model: Skeleton, machine: Machine, rows: float, length: float) -> float:
    """Seconds to decode `rows` answers of about `length` tokens. A GPU's step takes what reading the weights takes, or
    calling the kernels of its layers; the longest answer of a batch counts."""
    weights = model.lm_weights + model.head_weights
    if not machine.gpu:
        return rows * length * 2.0 * weights / _reached(machine, DECODE)
    step = max(2.0 * weights / BANDWIDTH, model.layers * LAYER)
    return max(1.0, rows / ROWS / machine.count) * 2 * length * step


def _reached(machine: Machine, share: float) -> float:
    return machine.rate * machine.count * share
