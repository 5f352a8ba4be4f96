"""What an export costs in exact answers: the questions of a suite, asked of the checkpoint as judged and of the export.

Both answers go to the one judge. The difference is paired by question, and its interval is drawn by scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from lineside.judgement.answers import answer_questions
from lineside.judgement.schema import MODES, Mode, Row
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.vlm import VLM
from lineside.progress import track
from lineside.types import Rollout, Sample

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
    thinks: Callable[[Mode, Sample], bool]


def judge_checkpoint(vlm: VLM, data: Path, *, split: str, limit: int | None) -> Judged:
    """The checkpoint's answers in both modes. Raises LinesideError if the split has no question that can be judged."""
    check_same_roi(vlm.roi, roi_of_samples(data), data)
    thinking = vlm.thinking.over(thinking_tasks([data]))
    questions = suite(read_samples(data, kind="qa", split=split), split=split, limit=limit).questions
    if not questions:
        raise LinesideError(f"{data}: no question of split {split} can be judged: expected qa samples with a target")
    if any(image.role == "reference" for sample in questions for image in sample.images):
        raise LinesideError(f"{data}: an export cannot be asked questions with reference pictures: leave --suite out")
    store = FeatureStore(None, vlm)

    def thinks(mode: Mode, sample: Sample) -> bool:
        return mode == "think" and thinking.of(sample.family, sample.task)

    def answerer(mode: Mode) -> Callable[[Sequence[Sample]], list[Rollout]]:
        def answer(asked: Sequence[Sample]) -> list[Rollout]:
            prompts = [Prompt(sample.images, sample.question, thinks(mode, sample)) for sample in asked]
            return [one for (one,) in generate(vlm, store, prompts, max_new_tokens=NEW_TOKENS)]

        return answer

    rows: dict[Mode, list[Row]] = {
        mode: _rows(vlm, questions, answerer(mode), mode, thinks, f"checkpoint, {mode}") for mode in MODES
    }
    return Judged(questions, rows, thinks)


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

    def respond(mode: Mode, sample: Sample) -> Rollout:
        pictures = [decode(image.bytes) for image in sample.images]
        pictures = [prepare(picture) for picture in pictures] if prepare else pictures
        found = engine.respond(
            pictures, sample.question, thinking=judged.thinks(mode, sample), max_new_tokens=NEW_TOKENS
        )
        said = tuple(float(row[token]) for row, token in zip(found.logprobs, found.tokens))
        finished = found.tokens[-1] == vlm.render.eos_id
        return Rollout(found.tokens, said, vlm.render.decode(found.tokens), finished=finished)

    out = []
    for mode, ours in judged.rows.items():
        label = f"{engine.name}, {mode}"
        theirs = _rows(
            vlm, judged.questions, lambda asked, m=mode: [respond(m, s) for s in asked], mode, judged.thinks, label
        )
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
    answerer: Callable[[Sequence[Sample]], list[Rollout]],
    mode: Mode,
    thinks: Callable[[Mode, Sample], bool],
    label: str,
) -> list[Row]:
    answered = answer_questions(
        questions,
        answerer,
        thinking=lambda sample: thinks(mode, sample),
        think_close=vlm.render.think_close,
        latency=None,
        budgets={},
        baselines=None,
        at_once=256 if label.startswith("checkpoint") else 1,
    )
    return list(track(answered, total=len(questions), unit="questions", label=label))
