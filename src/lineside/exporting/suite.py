"""What an export costs in exact answers: the questions of a suite, asked of the checkpoint as judged and of the export.

Both answers go to the one judge. The difference is paired by question, and its interval is drawn by scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field

from lineside.data.checks import thinking_tasks
from lineside.data.regions import check_same_roi, roi_of_samples
from lineside.data.store import read_samples
from lineside.data.suite import suite
from lineside.errors import LinesideError
from lineside.exporting.engines import Engine
from lineside.images import decode
from lineside.judgement import stats
from lineside.judgement.answers import Answerer, answer_questions, thinks
from lineside.judgement.schema import MODES, Mode, Row
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.progress import track
from lineside.training.sampler import LocalSampler, answerer
from lineside.types import Rollout, Sample, Thinking

NEW_TOKENS = 96


class Lost(BaseModel):
    """Exact match of checkpoint and export on the same questions. Shares: 0.005 is half a point."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Mode
    split: str
    n: int
    scenes: int
    checkpoint: float = Field(description="share exact of the checkpoint, macro over tasks")
    export: float
    lost: float = Field(description="checkpoint less export")
    interval: tuple[float, float] = Field(description="95% interval of `lost`, bootstrapped by scene")
    same_answers: float = Field(description="share of questions with the same answer text")


class Judged(NamedTuple):
    """A suite with the checkpoint's rows, by mode."""

    questions: tuple[Sample, ...]
    rows: dict[Mode, list[Row]]
    thinking: Thinking  # which tasks think


def judge_checkpoint(vlm: VLM, data: Path, *, split: str, limit: int | None) -> Judged:
    """The checkpoint's answers in both modes. Raises LinesideError if the split has no question that can be judged."""
    check_same_roi(vlm.roi, roi_of_samples(data), data)
    if vlm.views:
        raise LinesideError(f"{data}: an export cannot be asked about a frame with further views: leave --suite out")
    thinking = vlm.thinking.over(thinking_tasks([data]))
    questions = suite(read_samples(data, kind="qa", split=split), split=split, limit=limit).questions
    if not questions:
        raise LinesideError(f"{data}: no question of split {split} can be judged: expected qa samples with a target")
    if any(image.label for sample in questions for image in sample.images):
        raise LinesideError(
            f"{data}: an export cannot be asked questions with views or reference pictures: leave --suite out"
        )
    sampler = LocalSampler(vlm, FeatureStore(None, vlm))
    rows: dict[Mode, list[Row]] = {}
    for mode in MODES:
        asked = partial(thinks, mode, thinking)
        answer = answerer(sampler, asked, max_new_tokens=NEW_TOKENS)
        rows[mode] = _rows(vlm, questions, answer, asked, label=f"checkpoint, {mode}", at_once=256)
    return Judged(questions, rows, thinking)


def lost(
    vlm: VLM,
    engine: Engine,
    judged: Judged,
    *,
    split: str,
    prepare: Callable[[PILImage.Image], PILImage.Image] | None,
    seed: int = 0,
) -> list[Lost]:
    """Exact match that `engine` loses against the checkpoint, for each mode."""

    def respond(sample: Sample, thinking: bool) -> Rollout:
        pictures = [decode(image.bytes) for image in sample.images]
        pictures = [prepare(picture) for picture in pictures] if prepare else pictures
        found = engine.respond(pictures, sample.question, thinking=thinking, max_new_tokens=NEW_TOKENS)
        said = tuple(float(row[token]) for row, token in zip(found.logprobs, found.tokens))
        finished = found.tokens[-1] == vlm.render.eos_id
        return Rollout(found.tokens, said, vlm.render.decode(found.tokens), finished=finished)

    def answer(thinking: Callable[[Sample], bool], questions: Sequence[Sample]) -> list[Rollout]:
        return [respond(sample, thinking(sample)) for sample in questions]

    out = []
    for mode, ours in judged.rows.items():
        thinking = partial(thinks, mode, judged.thinking)
        label = f"{engine.name}, {mode}"
        theirs = _rows(vlm, judged.questions, partial(answer, thinking), thinking, label=label, at_once=1)
        scenes, tasks = [row.scene for row in ours], [row.key for row in ours]
        exact = [[float(row.exact) for row in rows] for rows in (theirs, ours)]
        found = stats.paired(scenes, tasks, *exact, seed=seed).difference()
        same = sum(a.answer == b.answer for a, b in zip(ours, theirs)) / len(ours)
        out.append(
            Lost(
                mode=mode,
                split=split,
                n=found.n,
                scenes=found.scenes,
                checkpoint=found.second,
                export=found.first,
                lost=found.difference,
                interval=(found.interval.low, found.interval.high),
                same_answers=same,
            )
        )
    return out


def _rows(
    vlm: VLM,
    questions: Sequence[Sample],
    answer: Answerer,
    thinking: Callable[[Sample], bool],
    *,
    label: str,
    at_once: int,
) -> list[Row]:
    answered = answer_questions(
        questions,
        answer,
        thinking=thinking,
        think_close=vlm.render.think_close,
        at_once=at_once,
    )
    return list(track(answered, total=len(questions), unit="questions", label=label))
