"""The engine: trees that join and leave between steps give the tokens of `generate`, one by one."""

from __future__ import annotations

import shutil

import pytest
import torch

from lineside.errors import LinesideError
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.vlm import VLM
from lineside.serving.engine import LocalEngine, Request, Tree, endless
from lineside.types import Image
from tests.backends.test_cpu_decoder import Operators
from tests.conftest import picture
from tests.serving.conftest import sharp

QUESTIONS = ["how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?", "empty?"]
NEW = 12


@pytest.fixture(params=["kernels", "layers"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """With our own kernels in bfloat16, as the product runs, and with transformers' layers in float32."""
    monkeypatch.setenv("LINESIDE_BACKEND", "" if request.param == "kernels" else "reference")
    if request.param == "kernels" and not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    return LocalEngine(sharp(torch.bfloat16 if request.param == "kernels" else torch.float32))


def asked(count: int = 7) -> list[Request]:
    """Requests of one and several questions, one and two pictures, thinking on and off, greedy and sampled."""
    images = [Image(picture(i)) for i in range(4)]
    found = []
    for i in range(count):
        shown = (images[i % 4], images[(i + 1) % 4]) if i % 3 == 2 else (images[i % 4],)
        prompts = tuple(Prompt(shown, QUESTIONS[(i + j) % 4], thinking=(i + j) % 2 == 0) for j in range(1 + i % 3))
        sampled = i == 4
        found.append(
            Request(prompts, max_tokens=NEW - i % 2, samples=3 if sampled else 1, temperature=0.8 * sampled, seed=i)
        )
    return found


def wanted(vlm: VLM, request: Request) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    groups = generate(
        vlm, FeatureStore(None, vlm), request.prompts, samples=request.samples, temperature=request.temperature,
        max_new_tokens=request.max_tokens, seed=request.seed,
    )  # fmt: skip
    return [(rollout.tokens, rollout.sampler_logprobs) for group in groups for rollout in group]


def going(trees: list[Tree]) -> list[Tree]:
    return [tree for tree in trees if any(row.reason is None for row in tree.rows)]


def check(engine: LocalEngine, trees: list[Tree]) -> None:
    exact = engine.vlm.dtype == torch.bfloat16
    for tree in trees:
        for row, (tokens, logprobs) in zip(tree.rows, wanted(engine.vlm, tree.request), strict=True):
            assert tuple(row.tokens) == tokens
            assert not exact or tuple(row.logprobs) == logprobs
            assert row.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert row.reason == ("stop" if tokens[-1] == engine.render.eos_id else "length")


def test_trees_that_join_and_leave_answer_as_generate_does(engine: LocalEngine) -> None:
    trees: list[Tree] = []
    for request in asked():  # each joins while the earlier ones write
        trees += engine.read([request])
        engine.step(going(trees)[::2])  # and some wait
        engine.step(going(trees))
    while going(trees):
        engine.step(going(trees))
    assert len({tuple(row.tokens) for tree in trees for row in tree.rows}) > 8  # they do not all say the same
    check(engine, trees)


def test_a_step_of_several_trees_calls_no_operator_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would give the interpreter's lock away, and wait for it beside a busy thread. (With full weights in bfloat16
    native code calls PyTorch's products, which this would count.)"""
    monkeypatch.setenv("LINESIDE_BACKEND", "")
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    vlm = sharp(torch.bfloat16)
    vlm.backend.weights = "int8"
    engine = LocalEngine(vlm)
    trees = [endless(tree) for tree in engine.read(asked(4))]
    engine.step(trees)  # makes the buffers
    with Operators() as operators:
        engine.step(trees)
    assert not operators.called


def test_a_cut_trace_is_closed_and_the_answer_follows(engine: LocalEngine) -> None:
    request = Request((Prompt((Image(picture(0)),), QUESTIONS[0], thinking=True),), max_tokens=NEW)
    (tree,) = engine.read([request])
    row = tree.rows[0]
    row.tokens[-1], row.part = engine.render.think_open, "trace"  # as a trained model begins
    assert row.left(answer=5) == 6
    engine.step([tree])
    engine.cut(tree)
    engine.cut(tree)  # once is enough
    engine.step([tree])
    assert row.tokens[0] == engine.render.think_open and row.tokens[2] == engine.render.think_close
    assert row.cut and row.part == "answer" and row.answer_from == 3 and row.left(answer=5) == 5
    while row.reason is None:
        engine.step([tree])
    assert engine.reasoning(row) and row.tokens.count(engine.render.think_close) >= 1


def test_thinking_that_is_cut_before_it_began_is_thinking_off(engine: LocalEngine) -> None:
    """The two tags of an empty trace are what a prompt without thinking ends with, so the answer is the same."""
    shown = (Image(picture(1)),)
    (tree,) = engine.read([Request((Prompt(shown, QUESTIONS[1], thinking=True),), max_tokens=NEW)])
    row = tree.rows[0]
    row.tokens, row.logprobs, row.part, row.reason = [], [], "open", None
    assert row.left(answer=5) == 7
    engine.cut(tree)
    assert row.forced == [engine.render.think_open, engine.render.think_close]
    off = Request((Prompt(shown, QUESTIONS[1], thinking=False),), max_tokens=NEW)
    tokens = wanted(engine.vlm, off)[0][0]
    prompt = engine.render.question(QUESTIONS[1], thinking=True)
    assert engine.render.question(QUESTIONS[1], thinking=False) == prompt + tuple(row.forced)
    assert tokens


def test_top_logprobs_are_of_the_models_own_distribution(engine: LocalEngine) -> None:
    prompt = Prompt((Image(picture(2)),), QUESTIONS[2], thinking=False)
    (tree,) = engine.read([Request((prompt,), max_tokens=6, top=3)])
    while going([tree]):
        engine.step([tree])
    row = tree.rows[0]
    for token, logprob, top in zip(row.tokens, row.logprobs, row.tops, strict=True):
        assert len(top) == 3 and top[0][1] == pytest.approx(logprob, abs=1e-2)  # of two equal ones either may be first
        assert token in {other for other, value in top if value == top[0][1]} or top[0][1] == top[2][1]
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)


def test_a_prompt_that_does_not_fit_is_refused(engine: LocalEngine) -> None:
    prompt = Prompt((Image(picture(0)),), QUESTIONS[0], thinking=False)
    with pytest.raises(LinesideError, match="the model's context is 512"):
        engine.cost(Request((prompt,), max_tokens=500))
    fits = Request((prompt,), max_tokens=engine.room([prompt]))
    assert engine.cost(fits).pictures == 1
    engine.read([Request((prompt,), max_tokens=2)])
    assert engine.cost(fits).pictures == 0  # the picture is in memory


def test_it_measures_itself(engine: LocalEngine) -> None:
    counted = engine.steps
    engine.render.eos_id = int(
        engine.read([asked()[0]])[0].rows[0].tokens[0]
    )  # answers end at once, as of a trained model
    costs = engine.warm()
    assert engine.steps - counted == 2 + 2 * 3  # each step of the measurement had rows to write
    assert min(costs.read, costs.step) > 0 and min(costs.picture, costs.token, costs.row) >= 0
