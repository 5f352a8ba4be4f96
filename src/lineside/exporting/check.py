"""The check of an export: the engine that loads it answers the same questions as the checkpoint, and both are compared.

Each question is answered greedily by both. As long as the answers are the same, each step's distribution has the same
context in both, so the first differing step is the last that is compared. The reference computes in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field

from lineside.exporting.engines import Engine, Ours, PromptRefused, Response
from lineside.model.vlm import VLM
from lineside.progress import track

LIKELY = 1e-5  # log-probabilities are compared of tokens at least as likely in the checkpoint
NEW_TOKENS = 24
QUESTIONS = ("How many parts are in the bin?", "Is the label readable? Answer yes or no.")
# The largest difference of log-probabilities that counts as rounding: several times the largest that was seen. A small
# fault can hide below that of int8 and q8_0, but not below that of fp32, which is written by the same code.
BOUNDS = {"fp32": 0.05, "fp16": 0.5, "bf16": 1.0, "int8": 2.0, "q8_0": 2.0}
# Texts whose tokens an engine's tokenizer and chat template must give as training did.
TEXTS = (
    *QUESTIONS,
    "12 cans, 3.5 kg",
    "  two  spaces ",
    "Teil é 数える 🙂?",
    "it's 'left'\nor right\n",
    "#4-b_x: (top)",
    "I'LL",
)


class CheckQuestion(NamedTuple):
    """One question of the check."""

    picture: PILImage.Image
    shape: str  # what is special about the picture
    question: str
    thinking: bool


class Agreement(BaseModel):
    """How far an engine agrees with the checkpoint on some questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    questions: int
    steps: int = Field(description="tokens whose distributions are compared")
    max_difference: float = Field(description="largest |difference of log-probabilities|, nats")
    mean_difference: float
    greedy_same: int = Field(description="questions whose whole greedy answer is the same")


class Check(BaseModel):
    """The result of a check: it holds if the tokens are training's and the difference is within the bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    made: bool
    why_not: str = ""
    bound: float | None = None
    overall: Agreement | None = None
    by_picture: dict[str, Agreement] = {}
    unprepared: dict[str, Agreement] = Field(default={}, description="pictures sent as they are, against the advice")
    prompts: int = Field(default=0, description="prompts whose tokens are compared with training's")
    other_prompts: list[str] = Field(default=[], description="those with other tokens")

    @property
    def wrong(self) -> str:
        """Why the export must not be used; "" if nothing was found."""
        if self.overall is None or self.bound is None:
            return ""
        if self.other_prompts:
            return (
                f"{len(self.other_prompts)} prompts have other tokens than in training, such as {self.other_prompts[0]}"
            )
        if not self.overall.steps:
            return "no step could be compared: every answer is empty"
        if not self.overall.max_difference <= self.bound:  # also if it is not a number
            return f"log-probabilities differ by {self.overall.max_difference:.3g}, at most {self.bound:g} is rounding"
        return ""


def questions(vlm: VLM) -> list[CheckQuestion]:
    """Square and non-square pictures, each with thinking on and off."""
    side = int(vlm.tower.config.image_size)
    shapes = {"encoder's size": (side, side), "square": (side * 3 // 2,) * 2}
    shapes |= {"wide": (side * 2, side * 3 // 2), "tall": (side, side * 3)}
    pictures = {name: scene(number, size) for number, (name, size) in enumerate(shapes.items())}
    return [
        CheckQuestion(picture, name, QUESTIONS[not thinking], thinking)
        for name, picture in pictures.items()
        for thinking in (True, False)
    ]


def scene(seed: int, size: tuple[int, int]) -> PILImage.Image:
    """A seeded picture (width, height): coloured blocks of all sizes on a shaded ground, and noise."""
    random = np.random.default_rng(seed)
    width, height = size
    pixels = np.linspace(60, 200, width)[None, :, None] * np.ones((height, 1, 3))
    for _ in range(12):
        left, top = random.integers(0, width), random.integers(0, height)
        wide, high = random.integers(1, width // 2 + 2), random.integers(1, height // 2 + 2)
        pixels[top : top + high, left : left + wide] = random.integers(0, 256, 3)
    pixels += random.normal(0, 8, pixels.shape)
    return PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


def prepared(vlm: VLM, picture: PILImage.Image) -> PILImage.Image:
    """The picture as the encoder sees it, (S, S): resized and cropped as in training, before it is normalised."""
    processor = vlm.image_processor
    mean, std = (np.array(getattr(processor, key), np.float32) for key in ("image_mean", "image_std"))
    pixels = vlm.pixels([picture.convert("RGB")])[0].numpy().transpose(1, 2, 0)
    return PILImage.fromarray(np.rint((pixels * std + mean) * 255).clip(0, 255).astype(np.uint8))


def compare_prompts(vlm: VLM, engine: Engine) -> tuple[int, list[str]]:
    """How many of the texts' prompts the engine writes, with a picture and without one, thinking on and off; and those
    that have other tokens than training's. A prompt may be refused: the chat template does so where a program that
    tokenises it as one string would merge a question with the text around it."""
    ours, compared, other = Ours(vlm), 0, []
    for text, pictures, thinking in itertools.product(TEXTS, (1, 0), (True, False)):
        try:
            found = engine.prompt(pictures, text, thinking=thinking)
        except PromptRefused:
            continue
        compared += 1
        if found != ours.prompt(pictures, text, thinking=thinking):
            other.append(f"{text!r} with {pictures} pictures, thinking {'on' if thinking else 'off'}")
    return compared, other


def answers(engine: Engine, asked: Sequence[CheckQuestion], label: str) -> list[Response]:
    """The engine's answers, with progress."""
    return [
        engine.respond([one.picture], one.question, thinking=one.thinking, max_new_tokens=NEW_TOKENS)
        for one in track(asked, total=len(asked), unit="questions", label=label)
    ]


def agreement(ours: Sequence[Response], theirs: Sequence[Response]) -> Agreement:
    """Compare answers to the same questions, step by step."""
    found = [difference for pair in zip(ours, theirs, strict=True) for difference in _differences(*pair)]
    return Agreement(
        questions=len(ours),
        steps=len(found),
        max_difference=max((float(step.max()) for step in found), default=0.0),
        mean_difference=float(np.concatenate(found).mean()) if found else 0.0,
        greedy_same=sum(a.tokens == b.tokens for a, b in zip(ours, theirs)),
    )


def _differences(ours: Response, theirs: Response) -> Iterator[np.ndarray]:
    """|difference of log-probabilities| of the likely tokens, for each step up to the first other token.

    A token that the engine does not tell of is at most as likely as the least likely one that it does."""
    for step, (a, b) in enumerate(zip(ours.logprobs, theirs.logprobs)):
        likely, told = a >= np.log(LIKELY), np.isfinite(b)
        least = b[told].min()
        told, untold = likely & told, likely & ~told
        yield np.concatenate([np.abs(a[told] - b[told]), np.maximum(a[untold] - least, 0)])
        if ours.tokens[step] != theirs.tokens[step]:
            return


def compare(
    vlm: VLM, ours: Sequence[Response], engine: Engine, asked: Sequence[CheckQuestion], *, weights: str, prepare: bool
) -> Check:
    """The check of `engine` against our answers. With `prepare`, pictures are prepared before they are sent, and also
    sent as they are, so that the difference is on record."""
    sent = [one._replace(picture=prepared(vlm, one.picture)) for one in asked] if prepare else list(asked)
    theirs = answers(engine, sent, f"check with {engine.name}")
    shapes = list(dict.fromkeys(one.shape for one in asked))

    def part(shape: str, replies: Sequence[Response]) -> Agreement:
        places = [i for i, one in enumerate(asked) if one.shape == shape]
        return agreement([ours[i] for i in places], [replies[i] for i in places])

    prompts, other = compare_prompts(vlm, engine)
    unprepared = {}
    if prepare:
        raw = answers(engine, asked, "pictures as they are")
        unprepared = {shape: part(shape, raw) for shape in shapes}
    return Check(
        made=True,
        bound=BOUNDS[weights],
        overall=agreement(ours, theirs),
        by_picture={shape: part(shape, theirs) for shape in shapes},
        unprepared=unprepared,
        prompts=prompts,
        other_prompts=other,
    )
