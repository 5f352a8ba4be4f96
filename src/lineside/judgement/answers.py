"""From questions to rows: the suite is answered greedily by `model.generate` and judged by `verify.judge`.

Nothing here decides what is right. This file adds what else a cell needs to know: the time of the answer, the model's
confidence, and the baselines' answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lineside.data.columns import columns_of
from lineside.data.suite import reference_of, scene_of, target_of
from lineside.images import image_key
from lineside.judgement.calibration import Curve
from lineside.judgement.decisions import thresholds
from lineside.judgement.latency import LatencyModel
from lineside.judgement.schema import Mode, Row
from lineside.judgement.typed import Form, type_answer
from lineside.types import Judgement, Region, Rollout, Sample, Target, Thinking
from lineside.verify.judge import judge
from lineside.verify.stakes import costs_in
from lineside.verify.traces import fact_share
from lineside.verify.verifiers import verify

if TYPE_CHECKING:
    from lineside.judgement.baselines import Baselines

Answerer = Callable[[Sequence[Sample]], Sequence[Rollout]]
CUT = "the trace was cut at the deadline: calibrated are whole traces"


def budget_of(sample: Sample, budgets: Mapping[tuple[str, str], float]) -> float | None:
    """The task's time budget in milliseconds: `budgets` by (family, task), else the sample's own, else none."""
    budget = budgets.get((sample.family, sample.task), sample.meta.extra.get("budget_ms"))
    return _non_negative(budget)


def answer_tokens(rollout: Rollout, *, thinking: bool, think_close: int) -> tuple[float, ...]:
    """Log-probabilities of the answer's tokens, end token included; with thinking on, those after the trace.

    Empty when the trace was never closed, because the response then has no answer.
    """
    if not thinking:
        return rollout.sampler_logprobs
    if think_close not in rollout.tokens:
        return ()
    return rollout.sampler_logprobs[rollout.tokens.index(think_close) + 1 :]


def confidence(logprobs: Sequence[float]) -> float:
    """Probability of the answer as the product of its tokens'; 0 without an answer."""
    return min(1.0, math.exp(math.fsum(logprobs))) if logprobs else 0.0


def thinks(mode: Mode, thinking: Thinking, sample: Sample) -> bool:
    """Whether a question is asked with thinking on: in think mode, if its task thinks."""
    return mode == "think" and thinking.of(sample.family, sample.task)


def answer_questions(
    questions: Sequence[Sample],
    answerer: Answerer,
    *,
    thinking: Callable[[Sample], bool],
    think_close: int,
    latency: LatencyModel | None = None,
    budgets: Mapping[tuple[str, str], float] = {},
    baselines: Baselines | None = None,
    curves: Mapping[str, Curve] | None = None,
    trained_skus: Collection[str] = (),
    at_once: int = 128,
) -> Iterator[Row]:
    """Answers and judges the questions in order, `at_once` at a time. `answerer` gives one rollout for each question.

    `curves`: calibration by family/task. `thinking`: which questions `answerer` asks with thinking on. `trained_skus`:
    as in `columns_of`."""
    for start in range(0, len(questions), at_once):
        chunk = questions[start : start + at_once]
        guesses = baselines.predict(chunk) if baselines is not None else [None] * len(chunk)
        for sample, rollout, guess in zip(chunk, answerer(chunk), guesses, strict=True):
            judged = judge(
                rollout.text,
                target_of(sample),
                thinking=thinking(sample),
                finished=rollout.finished,
                question=sample.question,
            )
            logprobs = answer_tokens(rollout, thinking=thinking(sample), think_close=think_close)
            tokens = len(rollout.tokens)
            budget = budget_of(sample, budgets)
            row = _row(sample, rollout, judged, trained_skus)
            sure = 0.0 if judged.response.answer is None else confidence(logprobs)
            time = None if latency is None else latency.estimate(tokens)
            yield row.model_copy(
                update={
                    "thinking": thinking(sample),
                    "answer_tokens": len(logprobs),
                    "confidence": sure,
                    **_judged_confidence(row, sure, time, (curves or {}).get(row.key), _region(sample.meta.extra)),
                    "latency_ms": time,
                    "budget_ms": budget,
                    "within_budget": _in_time(row.exact, budget, latency, tokens),
                    **({} if guess is None else _judged_guess(sample, guess.blind, guess.classifier)),
                }
            )


def _in_time(exact: bool, budget: float | None, latency: LatencyModel | None, tokens: int) -> bool | None:
    """Whether the answer is exact, and within the budget with 95% probability; None where time was not measured."""
    if budget is None:
        return exact
    time = None if latency is None else latency.estimate_p95(tokens)
    return None if time is None else exact and time <= budget


def _judged_confidence(
    row: Row, sure: float, time: float | None, curve: Curve | None, region: Region | None
) -> dict[str, object]:
    """The calibrated confidence, whether a cell acts on the answer, and the typed answer."""
    calibrated = curve.apply(sure) if curve is not None and not row.cut else None
    target = Target.from_json(row.target)
    on = None
    if row.stakes is not None:
        on = thresholds(row.stakes, normal=row.normal is not None, binary=len(target.options) == 2)
    typed = type_answer(
        row.answer,
        task=row.key,
        form=Form.of(target),
        trace=row.trace,
        finished=row.finished,
        confidence=calibrated,
        note=CUT if row.cut else (curve.note if curve is not None else "") or "not calibrated, n = 0",
        on=on,
        normal=row.normal,
        ms=time,
        region=region,
    )
    known = calibrated is not None and on is not None
    return {"calibrated": calibrated, "decision": typed.decision if known else None, "typed": typed}


def _row(sample: Sample, rollout: Rollout, judged: Judgement, trained_skus: Collection[str]) -> Row:
    """Question, response and verdict; the caller adds time, confidence and baselines."""
    trace, facts = judged.response.trace, sample.meta.extra.get("facts")
    share = fact_share(trace, facts) if trace and facts else None
    return Row(
        id=sample.id,
        scene=scene_of(sample),
        family=sample.family,
        task=sample.task,
        question=sample.question,
        target=target_of(sample).to_json(),
        reference=reference_of(sample),
        images=[image_key(image.bytes) for image in sample.frame_images],
        reference_pictures=dict(Counter(image.name for image in sample.references)),
        text=rollout.text,
        trace=trace,
        answer=judged.response.answer,
        exact=judged.verdict.exact,
        reward=judged.reward,
        reason=judged.verdict.reason,
        trace_class=judged.response.trace_class,
        trace_problem=judged.response.reason,
        facts=share,
        tokens=len(rollout.tokens),
        answer_tokens=0,
        finished=rollout.finished,
        cut=rollout.cut,
        confidence=0.0,
        latency_ms=None,
        budget_ms=None,
        within_budget=None,
        normal=_normal(sample.meta.extra),
        stakes=costs_in(sample.meta.extra),
        columns=columns_of(sample, trained_skus),
        weight=_non_negative(sample.meta.extra.get("weight")),
        blind=None,
        blind_exact=None,
        classifier=None,
        classifier_exact=None,
    )


def _region(extra: Mapping[str, object]) -> Region | None:
    """The part of the picture that is shown, as `label` noted it; None: all of it."""
    region = extra.get("region")
    size, box = (region.get("size"), region.get("box")) if isinstance(region, Mapping) else ((), ())
    numbers = [*(size or ()), *(box or ())]
    if len(numbers) != 6 or not all(type(number) is int for number in numbers):
        return None
    width, height, left, top, right, bottom = numbers
    return Region((width, height), (left, top, right, bottom)) if left < right and top < bottom else None


def _normal(extra: Mapping[str, object]) -> str | None:
    normal = extra.get("normal")
    return normal if isinstance(normal, str) else None


def _judged_guess(sample: Sample, blind: str, classifier: str) -> dict[str, object]:
    """The baselines' answers under the same verifier."""
    target = target_of(sample)
    return {
        "blind": blind,
        "blind_exact": verify(blind, target).exact,
        "classifier": classifier,
        "classifier_exact": verify(classifier, target).exact,
    }


def _non_negative(value: object) -> float | None:
    """A number as `extra` may hold it, or None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    return None
