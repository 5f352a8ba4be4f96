"""Evaluation answers as the server does: the same engine, the same allowed answers, the same cut, the same refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lineside.judgement.latency import LatencyModel
from lineside.judgement.typed import Form
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.serving.engine import LocalEngine
from lineside.serving.judging import REFUSED, as_served, deadline_limit, trace_limit
from lineside.serving.scheduler import Costs
from lineside.types import Image, Sample
from tests.conftest import picture
from tests.judgement.conftest import choice, question
from tests.serving.conftest import sharp

NEW = 12


def asked(count: int, task: str = "empty", **extra: Any) -> list[Sample]:
    return [
        question(f"q{i}", choice("no"), images=(Image(picture(i % 3)),), task=task, extra=extra) for i in range(count)
    ]


def test_a_trace_is_cut_where_its_answer_still_fits() -> None:
    """Reading takes 50 ms, a token 10, both are trusted with a margin of 1.25; </think> and 8 tokens must follow.

    Another token is written if 12.5 + 9 * 12.5 ms are left after it: until 175 of 300 ms have gone, so 14 tokens."""
    costs = Costs(read=50.0, picture=0.0, token=0.0, step=10.0, row=0.0)
    assert trace_limit(costs, 300.0, most=96) == 14
    assert trace_limit(costs, 312.5, most=96) == 15 and trace_limit(costs, 1e6, most=96) == 96
    assert trace_limit(costs, 149.0, most=96) is None  # 62.5 + 7 * 12.5 = 150: the answer alone takes longer
    assert trace_limit(costs, 150.0, most=96) == 1  # read with thinking off


def test_without_deadlines_the_tokens_are_those_of_generate() -> None:
    vlm = sharp()
    engine, samples = LocalEngine(vlm, prefix_bytes=0), asked(5)
    forms = {"picking/empty": Form(kind="choice", options=("yes", "no"))}
    prompts = [Prompt(sample.images, sample.question, thinking=i % 2 == 0) for i, sample in enumerate(samples)]
    wanted = [one for (one,) in generate(vlm, FeatureStore(None, vlm), prompts, max_new_tokens=NEW)]
    on = {sample.id: prompt.thinking for sample, prompt in zip(samples, prompts)}
    found = as_served(engine, forms, lambda sample: on[sample.id], max_new_tokens=NEW)(samples)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.finished for one in found] == [one.finished for one in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-4)


def test_a_budget_cuts_the_trace_and_a_short_one_is_refused() -> None:
    vlm = sharp()
    engine, opened = LocalEngine(vlm), vlm.render.think_open
    choose = engine._by.choose

    def always(logits: torch.Tensor, *rest: Any) -> Any:
        """A model that opens a trace and never closes it."""
        logits = logits.clone()
        logits[:, opened] = logits.max() + 1
        return choose(logits, *rest)

    engine._by.choose = always  # type: ignore[method-assign]
    latency = LatencyModel(base_ms=50.0, per_token_ms=10.0, measured=4, p50_ms=100.0)
    budgets = {"fast": 100.0, "short": 151.0, "long": 300.0}

    def budget(sample: Sample) -> float | None:
        return budgets.get(sample.task)

    limit = deadline_limit(latency, budget, most=20)
    tasks = ["fast", "short", "long", "free"]
    samples = [sample for task in tasks for sample in asked(1, task)]
    fast, short, long, free = as_served(engine, {}, lambda _: True, max_new_tokens=20, limit=limit)(samples)
    assert fast == REFUSED
    closed = vlm.render.think_close
    assert short.cut and short.tokens[:2] == (opened, closed)  # an empty trace: thinking is off
    assert long.cut and long.tokens[:14] == (opened,) * 14 and long.tokens[14] == closed
    assert not free.cut and free.tokens == (opened,) * 20


def test_the_same_questions_are_read_in_the_same_way_whatever_was_asked_before() -> None:
    """An evaluation that was killed goes on with a new engine: its last bits must be those of the unbroken run."""
    engine, samples, known = LocalEngine(sharp()), asked(4), list[int]()
    read = engine.read

    def watched(requests: Any) -> Any:
        trees = read(requests)
        known.extend(tree.known for tree in trees)
        return trees

    engine.read = watched
    answer = as_served(engine, {}, lambda _: True, max_new_tokens=NEW)
    first = answer(samples)
    assert len(engine.heads) == 3 and answer(samples) == first
    assert known == [0] * 8
