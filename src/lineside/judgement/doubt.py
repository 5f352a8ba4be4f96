"""How sure a model is of the answers that are not known yet, by confidence calibrated on dev."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from lineside.data.review_list import ReviewQuestion, Said
from lineside.data.sources import FrameSource
from lineside.data.unlabelled import OpenFrame
from lineside.judgement.answers import answer_tokens, confidence
from lineside.judgement.calibration import Calibration, read_calibration
from lineside.judgement.pooled import AT_ONCE
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.progress import say, track
from lineside.training.sampler import LocalSampler
from lineside.types import Frame, Image
from lineside.verify.parse import parse

ASKED = 96  # most tokens of a response


class Doubter:
    """Asks a checkpoint the open questions of frames."""

    def __init__(self, store: FeatureStore, checkpoint: Path) -> None:
        self._store, self._vlm = store, store.vlm
        self._curves, reason = read_calibration(checkpoint, store.vlm.form)
        self.uncalibrated: list[str] = []
        if self._curves is None:
            say(f"warning: {reason}: the model's doubt is not used. `lineside evaluate` calibrates it")

    def answers(self, source: FrameSource, found: Sequence[OpenFrame]) -> tuple[list[OpenFrame], list[float | None]]:
        """The frames with the model's answers to their questions, and the doubt about each: the largest of its
        questions', None without a calibrated one."""
        if self._curves is None:
            return list(found), [None] * len(found)
        images = {one.frame.id: place for place, one in enumerate(found)}
        told: list[OpenFrame] = list(found)
        doubts: list[float | None] = [None] * len(found)
        frames = (item for item in source.frames() if isinstance(item, Frame) and item.id in images)
        stream = track(frames, total=len(found), unit="frames", label="the model's answers")
        while chunk := list(islice(stream, AT_ONCE)):
            asked = [(images[frame.id], frame.images, q) for frame in chunk for q in found[images[frame.id]].questions]
            for (place, _, question), (said, sure) in zip(asked, self._ask(asked, self._curves)):
                kept = [said if q.id == question.id else q for q in told[place].questions]
                told[place] = replace(told[place], questions=tuple(kept))
                if sure is not None:
                    doubts[place] = max(doubts[place] or 0.0, 1.0 - sure)
        return told, doubts

    def _ask(
        self, asked: Sequence[tuple[int, tuple[Image, ...], ReviewQuestion]], curves: Calibration
    ) -> Iterator[tuple[ReviewQuestion, float | None]]:
        """Each question with the model's answer, and the calibrated confidence: 0 without an answer."""
        thinks = [self._vlm.thinking.of(question.family, question.task) for _, _, question in asked]
        prompts = [Prompt(pictures, question.question, on) for (_, pictures, question), on in zip(asked, thinks)]
        given = LocalSampler(self._vlm, self._store).sample(prompts, max_new_tokens=ASKED)
        for (_, _, question), thinking, (rollout,) in zip(asked, thinks, given):
            response = parse(rollout.text, thinking=thinking, finished=rollout.finished, question=question.question)
            logprobs = answer_tokens(rollout, thinking=thinking, think_close=self._vlm.render.think_close)
            curve = curves.curve(question.task_name, thinking=thinking)
            sure = curve.apply(0.0 if response.answer is None else confidence(logprobs)) if curve else None
            if sure is None and question.task_name not in self.uncalibrated:
                self.uncalibrated.append(question.task_name)
            if response.answer is not None:
                said = Said(by="model", answer=response.answer, confidence=sure)
                question = question.model_copy(update={"said": (said,)})
            yield question, sure
