"""ask: answer one question about one picture with a checkpoint, and print trace, answer, confidence, decision and time.

It uses the same renderer, generator and parser as training, evaluation and the server. Left out: a verdict, because a
question from a person has no target.
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.text import Text

from lineside.data.regions import cut
from lineside.data.strict import build
from lineside.data.taskfile import Roi
from lineside.data.values import read_number
from lineside.errors import LinesideError
from lineside.images import decode, grey_bits, stored
from lineside.judgement.answers import answer_tokens, confidence
from lineside.judgement.calibration import Curve, certainty, read_calibration
from lineside.judgement.origin import name_of
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form, read_forms, task_of, type_answer
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.types import Image, Region, Rollout, Thinking, TraceClass
from lineside.verify.parse import parse

MAX_NEW_TOKENS = 128
NO_FORM = "this checkpoint does not say what the task's answers are (`lineside evaluate` writes its tasks.json)"
SLOW = 5  # seconds: a longer wait is explained to the user


class Milliseconds(BaseModel):
    """Time of one answer, split by step, in milliseconds. Loading the checkpoint and the kernels is not included."""

    model_config = ConfigDict(frozen=True)
    features: float
    prefill: float
    decode: float
    total: float


class AskResult(BaseModel):
    """The result of `ask`: the typed answer, and how it came about."""

    model_config = ConfigDict(frozen=True)
    typed: TypedAnswer
    """What `--json` prints, by `answer.schema.json`."""
    thinking: bool
    trace_class: TraceClass
    problem: str
    confidence: float
    """The model's own probability of its answer."""
    region: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom of what the model was shown, in pixels of the picture; None: all of it."""
    tokens: int
    finished: bool
    milliseconds: Milliseconds


def ask(
    checkpoint: Path,
    image: Path,
    question: str,
    *,
    thinking: bool | None = None,
    task: str | None = None,
    as_json: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    bits: int | None = None,
    camera: str | None = None,
    roi: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> AskResult:
    """Answers `question` about the picture at `image`, prints the answer and returns it.

    `task` ("family/task") decides what kind of value the answer is, and its calibration; None: the task of the
    checkpoint that asks so; if there is none, the answer is text. `thinking` None: as the model was trained for the
    task; without one, on if any task of the checkpoint thinks. `camera` and `roi`: which region the model is shown, if
    it was trained on regions (`_shown_to`). `bits`: how many bits the camera uses in a grey picture of 16 bits.
    `dtype`: the number format to compute in; by default the checkpoint's own.

    Raises LinesideError for a missing or bad picture, an empty question, or a checkpoint that cannot be loaded.
    """
    if not question.strip():
        raise LinesideError('the question is empty; expected one in quotes, such as "how many bins are in the image"')
    picture, shade = _picture(image, bits)
    vlm = load(checkpoint, dtype=dtype, device=device)
    pictures, region = _shown_to(vlm, picture, camera, roi)
    task, form, why = _task(checkpoint, vlm, question, task)
    note = ""
    if thinking is None:
        thinking, note = _thinks(vlm.thinking, task)
    rollout, spent = _rollout(vlm, Prompt(pictures, question, thinking), max_new_tokens)
    response = parse(rollout.text, thinking=thinking, finished=rollout.finished, question=question)
    logprobs = answer_tokens(rollout, thinking=thinking, think_close=vlm.render.think_close)
    sure = 0.0 if response.answer is None else confidence(logprobs)
    curve, missing = _curve(checkpoint, vlm, thinking, task) if task is not None else (None, "")
    asked = AskResult(
        typed=type_answer(
            response.answer,
            task=task,
            form=form,
            trace=response.trace,
            finished=rollout.finished,
            confidence=curve.apply(sure) if curve else None,
            note=why or missing,
            on=curve.acts_from if curve else None,
            normal=curve.normal if curve else None,
            ms=spent.total,
            region=region,
        ),
        thinking=thinking,
        trace_class=response.trace_class,
        problem=response.reason if thinking else "",
        confidence=sure,
        region=region.box if region else None,
        tokens=len(rollout.tokens),
        finished=rollout.finished,
        milliseconds=spent,
    )
    if as_json:
        print(asked.typed.model_dump_json(indent=2))
    else:
        Console().print(_shown(asked, note, shade))
    return asked


def _task(checkpoint: Path, vlm: VLM, question: str, named: str | None) -> tuple[str | None, Form | None, str]:
    """(task, form of its answers, "" or why one of the two is not known). Raises LinesideError for an unknown name."""
    forms, thinking = read_forms(checkpoint), vlm.thinking.tasks
    if named is None:
        task, why = task_of(question, forms)
        return task, forms.get(task or ""), why
    if named not in forms and named not in thinking and (known := sorted({**thinking, **forms})):
        near = get_close_matches(named, known, n=1, cutoff=0.4)
        raise LinesideError(
            f"this checkpoint has no task {named!r}: expected one of {', '.join(known)}"
            f"{f'; did you mean {near[0]}?' if near else ''}"
        )
    return named, forms.get(named), "" if named in forms else f"{NO_FORM}, so the answer is text"


def _rollout(vlm: VLM, prompt: Prompt, max_new_tokens: int) -> tuple[Rollout, Milliseconds]:
    """The response to one prompt, and its time without that of loading the kernels."""
    store, timing, start = FeatureStore(None, vlm), Timing(), time.monotonic()
    generate(vlm, store, [Prompt((), prompt.question, prompt.thinking)], max_new_tokens=2)  # loads the kernels
    if time.monotonic() - start > SLOW:
        say(f"compiled the kernels in {time.monotonic() - start:.0f} s; the next run reuses them")
    ((rollout,),) = generate(vlm, store, [prompt], max_new_tokens=max_new_tokens, timing=timing)
    spent = [1000 * seconds for seconds in (timing.features, timing.prefill, timing.decode)]
    return rollout, Milliseconds(features=spent[0], prefill=spent[1], decode=spent[2], total=sum(spent))


def _thinks(thinking: Thinking, task: str | None) -> tuple[bool, str]:
    """Whether to ask with thinking on, and a note for the user about that choice."""
    if task is not None and task in thinking.tasks:
        return thinking.tasks[task], ""
    fast = [name for name, thinks in thinking.tasks.items() if not thinks]
    if not fast or not thinking.default:
        return thinking.default, ""
    return True, f"asked with thinking on; for a question of {', '.join(fast)} give --task, or --mode fast"


def _curve(checkpoint: Path, vlm: VLM, thinking: bool, task: str) -> tuple[Curve | None, str]:
    """The calibration of the task in this mode, and "" or the reason why it is missing."""
    calibration, why = read_calibration(checkpoint, name_of(vlm.dtype))
    if calibration is None:
        return None, why
    curve = calibration.curve(task, thinking=thinking)
    if curve is None:
        return None, f"not calibrated: {task} was not asked on dev in this mode"
    return curve, curve.note


def _shown_to(vlm: VLM, picture: Image, camera: str | None, roi: str | None) -> tuple[tuple[Image, ...], Region | None]:
    """What the model is shown of a picture: the region and the tiles that its checkpoint states, as in training.

    `roi`: "left,top,right,bottom" in pixels or shares, in place of the checkpoint's boxes; "whole" for a picture that
    is cut already. Raises LinesideError if the region is not clear or not in the picture.
    """
    if vlm.roi is None:
        if camera is not None or roi is not None:
            raise LinesideError("this checkpoint was trained on whole pictures: leave out --camera and --roi")
        return (picture,), None
    stated = build(Roi, vlm.roi, "the checkpoint's roi")
    boxes = f"--camera, one of {', '.join(stated.cameras)}" if stated.cameras else ""
    if roi is not None:
        box = [0.0, 0.0, 1.0, 1.0] if roi == "whole" else [read_number(part) for part in roi.split(",")]
        data = {"tiles": stated.tiles, "margin": 0.0 if roi == "whole" else stated.margin, "box": box}
        stated = build(Roi, data, f"--roi {roi}")
    elif stated.corners is not None:
        raise LinesideError(
            f"this checkpoint was trained on regions around {stated.corners}: give their bounding box with --roi "
            "left,top,right,bottom, or --roi whole for a picture that is cut already"
        )
    elif stated.cameras and camera is None:
        raise LinesideError(f"this checkpoint was trained on a region of each camera: give {boxes}, or --roi")
    try:
        cuts, region = cut(picture.bytes, stated, camera=camera or "")
    except ValueError as error:
        raise LinesideError(f"{picture.path}: {error}") from None
    return tuple(replace(picture, bytes=data, role="crop") for data in cuts), region


def _picture(path: Path, bits: int | None) -> tuple[Image, str]:
    """The picture at `path`, and a note on how it was read. It is decoded once to check that it can be read."""
    try:
        if path.exists() and not path.is_file():  # a device has no end
            raise OSError(errno.EINVAL, "a folder" if path.is_dir() else "not a file")
        data = path.read_bytes()
    except OSError as error:
        raise LinesideError(
            f"{path}: cannot be read ({error.strerror}); expected a picture file: lineside ask CHECKPOINT PICTURE "
            "QUESTION"
        ) from None
    note = ""
    if bits is None and (bits := grey_bits(data)) is not None:
        note = f"a grey picture of 16 bits, read as {bits} bits; state what the camera uses with --bits"
    try:
        data = stored(data, bits=bits)[0]
        decode(data)
    except LinesideError as error:
        raise LinesideError(f"{path}: {error}") from None
    return Image(data, path=path.name), note


def _shown(asked: AskResult, *notes: str) -> Text:
    """The answer as a few aligned lines. The model's text is printed as plain text, never as markup."""
    spent, typed = asked.milliseconds, asked.typed
    lines: list[tuple[str, str, str]] = []
    if typed.trace:
        lines.append(("trace", typed.trace, "dim"))
    lines.append(("answer", typed.text or "(none)", "bold"))
    if asked.region:
        lines.append(("region", ", ".join(map(str, asked.region)) + " (left, top, right, bottom)", ""))
    if typed.kind == "point" and isinstance(typed.value, tuple) and asked.region:
        lines.append(("point", f"{typed.value[0]:.3f}, {typed.value[1]:.3f} in the whole picture", ""))
    if asked.problem:
        lines.append(("note", f"the trace is not valid: {asked.problem}", "yellow"))
    if not asked.finished:
        lines.append(("note", f"cut off after {asked.tokens} tokens", "yellow"))
    lines += [("note", note, "yellow") for note in notes if note]
    if typed.task:
        unit = f", in {typed.unit}" if typed.unit else ""
        lines.append(("task", f"{typed.task}: {typed.kind}{unit}", ""))
    if typed.confidence is None:
        lines.append(("sure", f"{certainty(asked.confidence)}, the model's own probability: not calibrated", ""))
    else:
        lines.append(("sure", f"{certainty(typed.confidence)}, calibrated on dev", ""))
    style = "green" if typed.decision == "act" else "yellow"
    lines.append(("decision", f"{typed.decision}: {typed.because}", style))
    parts = f"encode {spent.features:.0f}, read {spent.prefill:.0f}, write {spent.decode:.0f}"
    lines.append(("time", f"{spent.total:.0f} ms ({parts}; {asked.tokens} tokens)", ""))
    text = Text()
    for number, (name, value, style) in enumerate(lines):
        text.append("\n" if number else "").append(f"{name:<10}", style="dim").append(value, style=style)
    return text
