"""ask: answer one question about one picture with a checkpoint, and print trace, answer, confidence, decision and time.

It uses the same renderer, generator and parser as training, evaluation and the server. Left out: a verdict, because a
question from a person has no target.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.text import Text

from lineside.data.regions import shown_to_model
from lineside.data.views import arranged, missing_views
from lineside.errors import LinesideError
from lineside.images import decode, grey_bits, stored
from lineside.judgement.calibration import certainty
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.taskbook import UNUSED, TaskBook
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.runtime import ON_CPU, Runtime
from lineside.serving.engines import load_engine
from lineside.serving.pairs import PLAIN, EnginePair
from lineside.types import Image, Rollout, TraceClass

MAX_NEW_TOKENS = 128
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
    references: Sequence[str] = (),
    views: Sequence[str] = (),
    pair: EnginePair = PLAIN,
    runtime: Runtime = ON_CPU,
) -> AskResult:
    """Answers `question` about the picture at `image`, prints the answer and returns it.

    `task` ("family/task") decides what kind of value the answer is, and its calibration; None: the task of the
    checkpoint that asks so; if there is none, the answer is text. `thinking` None: as the model was trained for the
    task; without one, on if any task of the checkpoint thinks. `camera` and `roi`: which region the model is shown, if
    it was trained on regions (`shown_to_model`). `views`: further pictures of the scene, and `references`: pictures of
    what the question names (`_named`).
    `bits`: how many bits the camera uses in a grey picture of 16 bits. `pair`: the engine that decodes, and the weights
    that it reads. `runtime`: where to compute; without a dtype in the checkpoint's own.

    Raises LinesideError for a missing or bad picture, an empty question, or a checkpoint that cannot be loaded.
    """
    if not question.strip():
        raise LinesideError('the question is empty; expected one in quotes, such as "how many bins are in the image"')
    picture, shade = _picture(image, bits)
    shown = [_named(given, "view") for given in views]
    named_pictures = (_named(given, "reference") for given in references)
    beside = tuple(sorted(named_pictures, key=lambda one: one.name))  # those of one SKU together
    if pair.engine == "vllm":
        raise LinesideError("vLLM decodes for `evaluate`, `gate` and `serve`: ask with --engine local")
    vlm = load_engine(checkpoint, pair, dtype=runtime.dtype, device=runtime.device)
    pictures, region = shown_to_model(picture, vlm.roi, camera=camera, box=roi)
    pictures += arranged(shown, vlm.views)
    book = TaskBook.read(checkpoint, vlm.thinking, vlm.form)
    named = book.find(question, task)
    note = ""
    if thinking is None:
        thinking, note = book.thinks(named.task)
    rollout, spent = _rollout(vlm, runtime, Prompt(pictures + beside, question, thinking), max_new_tokens)
    close = vlm.render.think_close
    found = book.answer(rollout, question, named, thinking=thinking, think_close=close, ms=spent.total, region=region)
    asked = AskResult(
        typed=found.typed,
        thinking=thinking,
        trace_class=found.response.trace_class,
        problem=found.response.reason if thinking else "",
        confidence=found.confidence,
        region=region.box if region else None,
        tokens=len(rollout.tokens),
        finished=rollout.finished,
        milliseconds=spent,
    )
    if as_json:
        print(asked.typed.model_dump_json(indent=2))
    else:
        unused = UNUSED if beside and not vlm.references else ""
        Console().print(_shown(asked, note, shade, unused, missing_views(shown, vlm.views)))
    return asked


def _rollout(vlm: VLM, runtime: Runtime, prompt: Prompt, max_new_tokens: int) -> tuple[Rollout, Milliseconds]:
    """The response to one prompt, and its time without that of loading the kernels."""
    store, timing, start = FeatureStore(None, vlm, runtime=runtime), Timing(), time.monotonic()
    generate(vlm, store, [Prompt((), prompt.question, prompt.thinking)], max_new_tokens=2)  # loads the kernels
    if time.monotonic() - start > SLOW:
        say(f"compiled the kernels in {time.monotonic() - start:.0f} s; the next run reuses them")
    ((rollout,),) = generate(vlm, store, [prompt], max_new_tokens=max_new_tokens, timing=timing)
    spent = [1000 * seconds for seconds in (timing.features, timing.prefill, timing.decode)]
    return rollout, Milliseconds(features=spent[0], prefill=spent[1], decode=spent[2], total=sum(spent))


def _named(given: str, role: Literal["view", "reference"]) -> Image:
    """The view or reference of PICTURE=NAME, or of PICTURE alone: its name is then that of the file.

    Raises LinesideError for a picture that cannot be read, or an empty name.
    """
    file, name = given, Path(given).stem
    if "=" in given and not Path(given).exists():
        file, _, name = given.rpartition("=")
    if not name.strip():
        raise LinesideError(f"--{role} {given}: the name is empty; expected PICTURE=NAME, such as can.jpg=4711")
    try:
        picture, _ = _picture(Path(file), None)
    except LinesideError as error:
        raise LinesideError(f"--{role}: {error}") from None
    return replace(picture, role=role, name=name.strip())


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
