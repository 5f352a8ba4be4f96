"""Questions answered as the server answers them, for `evaluate`.

The engine that serves answers them, with the answers that a task allows read beside its question. With deadlines, each
question gets what it would get alone on an idle server, with its task's budget as the deadline: a full trace, one that
is cut, or none; or it is refused, and then it has no answer. The times are those that the evaluation has measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from lineside.judgement.answers import Answerer
from lineside.judgement.latency import LatencyModel
from lineside.judgement.typed import Form
from lineside.model.generate import Prompt
from lineside.serving.engine import LocalEngine, Request, Tree
from lineside.serving.scheduler import Costs, Job, Read, Scheduler, Step
from lineside.serving.worker import FIRST_ANSWER, MAX_ROWS
from lineside.types import Rollout, Sample

Limit = Callable[[Sample], int | None]


def as_served(
    engine: LocalEngine,
    forms: Mapping[str, Form],
    thinking: Callable[[Sample], bool],
    *,
    max_new_tokens: int,
    limit: Limit = lambda _: 1 << 30,
) -> Answerer:
    """What gives one greedy rollout for each question. `forms`: those of the checkpoint's tasks, by family/task.
    `thinking`: which questions are asked with thinking on. `limit`: after how many tokens a trace is cut; None: the
    question is refused. The same questions get the same rollouts, whatever was asked before."""

    def answer(questions: Sequence[Sample]) -> list[Rollout]:
        engine.forget()  # a frame that is known is read in other products, whose last bits may differ
        return [
            one for start in range(0, len(questions), MAX_ROWS) for one in some(questions[start : start + MAX_ROWS])
        ]

    def some(questions: Sequence[Sample]) -> list[Rollout]:
        limits = [limit(sample) for sample in questions]
        asked = [sample for sample, most in zip(questions, limits) if most is not None]
        requests = [request(sample) for sample in asked]
        for one in requests:
            engine.cost(one)  # refuses what is longer than the context
        trees = iter(written(requests, [most for most in limits if most is not None]) if requests else ())
        return [REFUSED if most is None else rollout_of(engine, next(trees)) for most in limits]

    def request(sample: Sample) -> Request:
        form = forms.get(sample.key)
        allowed = form.options if form is not None and form.kind == "choice" else ()
        prompt = Prompt(sample.images, sample.question, thinking(sample))
        return Request((prompt,), max_tokens=max_new_tokens, choices=(allowed,))

    def written(requests: Sequence[Request], limits: Sequence[int]) -> list[Tree]:
        trees = engine.read(requests)
        while going := [i for i, tree in enumerate(trees) if tree.rows[0].reason is None]:
            for i in going:
                if len(trees[i].rows[0].tokens) >= limits[i]:
                    engine.cut(trees[i])
            engine.step([trees[i] for i in going])
        return trees

    return answer


REFUSED = Rollout((), (), "", finished=False, cut=True)


def rollout_of(engine: LocalEngine, tree: Tree) -> Rollout:
    """The response of a tree of one row."""
    (row,) = tree.rows
    text, finished = engine.render.decode(row.tokens), row.tokens[-1] == engine.render.eos_id
    return Rollout(tuple(row.tokens), tuple(row.logprobs), text, finished=finished, cut=row.cut)


def deadline_limit(latency: LatencyModel, budget: Callable[[Sample], float | None], most: int) -> Limit:
    """The limit of a question with its task's budget as the deadline; a task without one has none."""
    # A question alone with a fresh frame: all that does not depend on its answer is a part of the first token's time.
    costs = Costs(read=latency.base_ms, picture=0.0, token=0.0, step=latency.per_token_ms, row=0.0)

    @cache
    def of(milliseconds: float) -> int | None:
        return trace_limit(costs, milliseconds, most)

    def limit(sample: Sample) -> int | None:
        milliseconds = budget(sample)
        return most if milliseconds is None else of(milliseconds)

    return limit


def trace_limit(costs: Costs, budget: float, most: int) -> int | None:
    """After how many tokens the scheduler cuts the trace of a question that comes alone; None if it refuses it."""
    scheduler = Scheduler(costs)
    job = Job("alone", budget, pictures=0, tokens=0, rows=1, answer=FIRST_ANSWER, thinks=True)
    if scheduler.offer(job, 0.0) is not None:
        return None
    action, now, tokens = scheduler.next(0.0), costs.reading(0, 0), 1
    thinking = isinstance(action, Read) and job in action.thinking
    scheduler.begin(job, thinking)
    job.left = 1 + FIRST_ANSWER  # </think> and the answer
    while thinking and tokens < most:
        action = scheduler.next(now)
        if not isinstance(action, Step) or job in action.cut:
            break
        now, tokens = now + costs.stepping(1), tokens + 1
    return tokens
