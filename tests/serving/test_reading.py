"""Reading: what is known is not read again, choices come with the reading, and no answer changes by that."""

from __future__ import annotations

import shutil

import pytest
import torch

from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.serving.engine import LocalEngine, Request, Tree
from lineside.serving.reading import Heads
from lineside.types import Image
from tests.conftest import picture
from tests.serving.conftest import sharp

NEW = 8
FRAME, OTHER = Image(picture(0)), Image(picture(1))
REFERENCE = Image(picture(2), role="reference", name="red can")


@pytest.fixture(scope="module", params=["kernels", "layers"])
def engine(request: pytest.FixtureRequest) -> LocalEngine:
    """With our own kernels in bfloat16, and with transformers' layers in float32."""
    if request.param == "kernels" and not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINESIDE_BACKEND", "" if request.param == "kernels" else "reference")
        return LocalEngine(sharp(torch.bfloat16 if request.param == "kernels" else torch.float32))


def ask(question: str, *images: Image, thinking: bool = False, samples: int = 1) -> Request:
    prompt = Prompt(images or (FRAME,), question, thinking)
    return Request((prompt,), max_tokens=NEW, samples=samples, temperature=0.8 * (samples > 1), seed=3)


def finish(engine: LocalEngine, trees: list[Tree]) -> list[Tree]:
    while going := [tree for tree in trees if any(row.reason is None for row in tree.rows)]:
        engine.step(going)
    return trees


def check(engine: LocalEngine, trees: list[Tree]) -> None:
    """They say what `generate` says of each request alone."""
    for tree in trees:
        request = tree.request
        groups = generate(
            engine.vlm, FeatureStore(None, engine.vlm), request.prompts, samples=request.samples,
            temperature=request.temperature, max_new_tokens=request.max_tokens, seed=request.seed,
        )  # fmt: skip
        rollouts = [rollout for group in groups for rollout in group]
        for row, rollout in zip(tree.rows, rollouts, strict=True):
            assert tuple(row.tokens) == rollout.tokens
            near = 1e-4 if engine.vlm.dtype == torch.float32 else 0.02
            assert row.logprobs == pytest.approx(rollout.sampler_logprobs, abs=near)


def test_a_further_question_about_a_frame_is_read_alone(engine: LocalEngine) -> None:
    engine.heads.clear()
    first = ask("how many red cans are in the bin?")
    cost = engine.cost(first)
    head = len(engine.render.head((FRAME,)))
    assert (cost.shared, cost.own + head) == (head, cost.prompt)
    trees = engine.read([first])
    assert trees[0].known == 0 and len(engine.heads) == 1
    for further in (ask("is there a blue box?"), ask("empty?", thinking=True), ask("which slot?", samples=3)):
        cost = engine.cost(further)
        assert (cost.pictures, cost.shared) == (0, 0)
        found = engine.read([further])
        assert found[0].known == head and found[0].timing.prefill_tokens == cost.own
        trees += found
    assert engine.cost(ask("empty?", OTHER)).shared > 0 == engine.cost(ask("empty?", FRAME, FRAME)).pictures
    check(engine, finish(engine, trees))


def test_requests_that_are_read_together_answer_as_alone(engine: LocalEngine) -> None:
    """Of two frames, one of them known, and of one that two requests share."""
    engine.heads.clear()
    engine.read([ask("what is it?", OTHER)])
    together = [ask("how many?"), ask("empty?", OTHER), ask("is it red?", thinking=True), ask("top?", samples=2)]
    trees = engine.read(together)
    head = len(engine.render.head((FRAME,)))
    assert [tree.known for tree in trees] == [0, head, 0, 0]
    assert trees[0].timing.prefill_tokens == head + sum(engine.cost(one).own for one in together)
    check(engine, finish(engine, trees))


def test_a_frame_is_known_below_other_references(engine: LocalEngine) -> None:
    engine.heads.clear()
    trees = engine.read([ask("is it there?", FRAME, REFERENCE)])
    frame, both = len(engine.render.head((FRAME,))), len(engine.render.head((FRAME, REFERENCE)))
    trees += engine.read([ask("how many?")])
    other = Image(picture(4), role="reference", name="blue box")
    assert engine.cost(ask("is it there?", FRAME, other)).shared == len(engine.render.references((other,)))
    trees += engine.read([ask("is it there?", FRAME, other), ask("how many of it?", FRAME, REFERENCE)])
    assert [tree.known for tree in trees] == [0, frame, frame, both]
    labelled = Image(REFERENCE.bytes, role="reference", name="can")  # the same picture is another reference
    assert engine.cost(ask("?", FRAME, labelled)).shared == len(engine.render.references((labelled,)))
    check(engine, finish(engine, trees))


def test_an_answer_of_a_closed_set_comes_with_the_reading(engine: LocalEngine) -> None:
    """What the model says anyway is given as a choice: its tokens come without a step. Others change nothing."""
    plain = ask("is there a blue box?")
    (tree,) = finish(engine, engine.read([plain]))
    said = tree.rows[0].tokens
    render = engine.render
    for written in range(1, len(said)):
        draft = tuple(said[:written])
        drafts = (render.encode_untrusted("nothing of it"), draft)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_drafts", lambda prompt, choices, drafts=drafts: drafts)
            (begun,) = engine.read([Request(plain.prompts, max_tokens=NEW, choices=(("x",),))])
        assert begun.rows[0].tokens == said[: written + 1]
        finish(engine, [begun])
        check(engine, [begun])
    patch = pytest.MonkeyPatch()
    patch.setattr(render, "eos_id", said[2])  # as if the answer were of two tokens
    patch.setattr(engine, "_drafts", lambda prompt, choices: (tuple(said[:2]),))
    steps = engine.steps
    (begun,) = engine.read([Request(plain.prompts, max_tokens=NEW, choices=(("x",),))])
    patch.undo()
    assert begun.rows[0].reason == "stop" and begun.plan is None and engine.steps == steps


def test_choices_are_drafts_only_where_the_answer_is_greedy_and_follows_at_once(engine: LocalEngine) -> None:
    choices = (("yes", "no", "yes"),)
    prompt = Prompt((FRAME,), "empty?", thinking=False)
    own = engine.cost(Request((prompt,), max_tokens=NEW)).own
    yes, no = (len(engine.render.encode_untrusted(text)) for text in ("yes", "no"))
    assert engine.cost(Request((prompt,), max_tokens=NEW, choices=choices)).own == own + yes + no
    thinking = Prompt((FRAME,), "empty?", thinking=True)
    assert engine.cost(Request((thinking,), max_tokens=NEW, choices=choices)).own == own - 2
    sampled = Request((prompt,), max_tokens=NEW, samples=2, temperature=1.0, choices=choices)
    many = Request((prompt,), max_tokens=NEW, choices=(tuple(f"slot number {i}" for i in range(64)),))
    assert engine.cost(sampled).own == engine.cost(many).own == own


def test_heads_are_bounded_in_bytes() -> None:
    def kept(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(tokens, 2, 8), torch.zeros(tokens, 2, 8))] * 3  # 384 bytes a token

    heads = Heads(4000)
    for key in "abc":
        heads.put(key, kept(3))
    assert heads.bytes == 3456 and heads.get("a") is not None
    heads.put("d", kept(3))
    assert [key in heads for key in "abcd"] == [True, False, True, True] and heads.bytes == 3456  # b was used least
    heads.put("large", kept(11))
    assert "large" not in heads and len(heads) == 3
    heads.clear()
    assert heads.bytes == len(heads) == 0


def test_without_room_nothing_is_kept() -> None:
    engine = LocalEngine(sharp(), prefix_bytes=0)
    engine.read([ask("how many?")])
    cost = engine.cost(ask("empty?"))
    assert cost.shared > 0 and cost.head == "" and cost.pictures == 0 and engine.heads.bytes == 0
