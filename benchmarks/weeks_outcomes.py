"""A week of which nothing is labelled: what became of the champion's answers is all that is told.

The champion answers every question about the week's training frames, as it would on the floor. The simulator knows the
truth and plays scale and gripper; a tenth of the right answers fail all the same, which is the gripper's fault. Then
`lineside outcomes import` and `lineside retrain` with these outcomes and no label of the week: stage 3 alone, which
replays prompts of the weeks that the champion has learnt, as it does for anyone. Three arms are told different things,
and nothing else differs:

    verdicts   of every answer whether the pick succeeded or failed
    failures   only the picks that failed
    truths     the right answer of every question: what a scale or a scanner would add
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lineside.files import write_atomic
from lineside.hashing import hash_uniform
from lineside.judgement.paired import rows_by_id
from lineside.judgement.schema import Row
from weeks_data import suite_name

if TYPE_CHECKING:
    from weeks_arms import Plan

TOLD = ("verdicts", "failures", "truths")
FALSE_FAILURES = 0.1  # share of the right answers whose pick fails
PROMPTS = 32  # live groups of a step
STEPS_A_MINUTE = 36.0  # `make demo` makes 18.6 steps of 64 prompts a minute on two quiet cores


def outcomes_of(rows: Iterable[Row], told: str, *, seed: int) -> Iterator[dict[str, str]]:
    """What the floor tells of the champion's answers: rows of the table that `lineside outcomes import` reads."""
    for row in rows:
        if row.answer is None:
            continue
        known = {"id": row.id, "frame": row.images[0], "question": row.question, "task": row.key,
                 "answer": row.answer, "scene": row.scene}  # fmt: skip
        failed = not row.exact or hash_uniform("gripper", seed, row.id) < FALSE_FAILURES
        if told == "truths":
            yield {**known, "truth": row.reference}
        elif failed or told == "verdicts":
            yield {**known, "verdict": "failed" if failed else "succeeded"}


def asked(plan: Plan, week: int, champion: Path) -> Path:
    """The evaluation of a checkpoint on every question about the training frames of a week; made once."""
    from lineside.data.store import read_samples
    from lineside.evaluate import evaluate
    from lineside.label import label
    from lineside.model.checkpoint import load
    from lineside.model.features import FeatureStore

    plan.samples(week)  # and so its frames
    samples = plan.folder / "samples" / f"{suite_name(week)}-asked"
    path = plan.folder / "asked" / suite_name(week) / "asked-train-think.json"
    if not path.exists():
        settings = plan.preset.data.label.model_copy(update={"question_share": 0.0, "prompt_share": 1.0})
        label(frames_of(plan, week), samples, settings=settings, seed=plan.seed)
        vlm = load(champion)
        evaluate(
            vlm,
            FeatureStore(plan.features, vlm),
            read_samples(samples, kind="prompt", split="train"),
            stage="asked",
            split="train",
            limit=40 if plan.tiny else None,
            max_new_tokens=plan.preset.evaluate.max_new_tokens,
            time_questions=False,
            out=path.parent,
        )
    return path


def frames_of(plan: Plan, week: int) -> Path:
    """The frames of a week."""
    return plan.folder / "frames" / suite_name(week)


def outcomes_folder(plan: Plan, week: int, told: str) -> Path:
    """Where the samples of a week's outcomes lie."""
    return plan.folder / "outcomes" / f"{suite_name(week)}-{told}"


def used(plan: Plan, week: int, told: str) -> dict[str, int]:
    """How many outcomes became targets, by kind."""
    from lineside.outcomes import FILE

    return json.loads((outcomes_folder(plan, week, told) / FILE).read_text())["used"]


def imported(plan: Plan, week: int, told: str, champion: Path) -> Path:
    """The samples that the outcomes of a week give."""
    from lineside.judgement.outcomes import Noise
    from lineside.outcomes import import_outcomes
    from lineside.serving.outcome_sources import Sources

    folder = outcomes_folder(plan, week, told)
    rows = outcomes_of(rows_by_id(asked(plan, week, champion)).values(), told, seed=plan.seed)
    write_atomic(table := folder.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    import_outcomes(Sources((table,), like=champion, frames=frames_of(plan, week)), folder, noise=Noise(FALSE_FAILURES))
    return folder


def retrained(plan: Plan, week: int, told: str, champion: Path, learnt: int, out: Path) -> None:
    """Stage 3 on the outcomes of a week, from the champion, which has learnt the weeks to `learnt`: a run in `out`."""
    from lineside.retrain import Request, retrain

    request = Request(
        model=str(champion),
        new=(),
        outcomes=(imported(plan, week, told, champion),),
        minutes=max(10.0, 2 * plan.minutes),  # of the plan; the length is stated
        old=tuple(plan.samples(earlier) for earlier in range(learnt + 1)),
        changes=(f"runs={plan.folder}", f"seed={plan.seed}", f"rlvr.prompts={PROMPTS}",
                 f"rlvr.max_steps={steps(plan)}", "evaluate.splits=[]", "evaluate.baselines=false"),
    )  # fmt: skip
    retrain(request, out=out)


def steps(plan: Plan) -> int:
    """Steps of stage 3: `--minutes` on two quiet cores."""
    return 2 if plan.tiny else max(2, round(plan.minutes * STEPS_A_MINUTE))
