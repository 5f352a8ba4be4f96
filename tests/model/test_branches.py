"""References beside a frame: they lie in the branch of their question, and no other question sees or pays for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lineside.errors import LinesideError
from lineside.model.features import FeatureStore, features_of
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.render import BLANK
from lineside.model.score import score
from lineside.model.tree import Node
from lineside.training.packing import image_tree, packs_of
from lineside.training.rollout import lay_out, sample_groups
from lineside.training.sampler import LocalSampler
from lineside.types import Image, Meta, Sample, Source, Target
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs

FRAME = Image(picture(0))
RED, BLUE = (Image(picture(n), "reference", name=name) for n, name in ((1, "red can"), (2, "blue box")))
RED_TOO = Image(picture(3), "reference", name="red can")
SETS = [(), (RED, RED_TOO), (), (BLUE,), (RED, RED_TOO), (RED, RED_TOO, BLUE)]
QUESTIONS = ["how many bins?", "how many red cans?", "is it empty?", "is there a blue box?", "where?", "which slots?"]


def asked(kind: str = "qa") -> list[Sample]:
    """Questions of one frame, with no references, the same ones, and overlapping ones."""
    base = Sample(
        "s", "qa", (), "picking", "count", "", "2 red can; so 2", "2", Target("exact", "sim", accepted=("2",)),
        "train", Meta(scene="one"), Source(),
    )  # fmt: skip
    made = [
        replace(base, id=f"s{i}", images=(FRAME, *beside), question=question, trace=None if i % 2 else base.trace)
        for i, (beside, question) in enumerate(zip(SETS, QUESTIONS))
    ]
    return [replace(s, kind="prompt", trace=None, answer=None) for s in made] if kind == "prompt" else made


@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_a_frame_with_references_is_trained_as_if_each_sample_stood_alone(lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    vlm.model.model.language_model.requires_grad_(True)
    store, samples = FeatureStore(None, vlm, dtype=torch.float32), asked()
    trained = [p for p in vlm.model.parameters() if p.requires_grad]

    ((pack, images),) = packs_of(vlm, [image_tree(vlm, samples)], 10_000)
    assert images == (FRAME, RED, RED_TOO, BLUE, RED, RED_TOO, BLUE)  # two questions share the first two references
    logprobs = vlm.logprobs(pack, features_of(store, images))
    gradients = torch.autograd.grad(-logprobs.mean(), trained, allow_unused=True)
    assert store.encoder_calls == 4  # each picture once

    alone: list[torch.Tensor] = []
    for sample in samples:
        tokens = vlm.render.head(sample.images)
        full = vlm.render.question(sample.question, thinking=sample.trace is not None)
        response = vlm.render.response(sample.trace, sample.answer or "")
        row = Node(tokens, images=tuple(range(len(sample.images))), children=(
            Node(full, children=(Node(response.tokens, roles=response.roles, leaf=0),)),))  # fmt: skip
        alone += dense_logprobs(vlm, [row], store.get(sample.images))
    expected = torch.autograd.grad(-torch.cat(alone).mean(), trained, allow_unused=True)
    for leaf, want in enumerate(alone):
        torch.testing.assert_close(logprobs[pack.leaf == leaf], want, atol=2e-5, rtol=1e-5)
    for got, want in zip(gradients, expected):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)


def test_questions_without_references_pay_nothing_for_them() -> None:
    vlm = make_tiny_vlm()
    samples = asked()
    plain = image_tree(vlm, [s for s in samples if not s.references])
    every = image_tree(vlm, samples)
    assert plain.tree.size() == sum(map(len, [vlm.render.prefix([BLANK])])) + sum(
        child.size() for child in every.tree.children if not child.images
    )
    red = vlm.render.references([RED, RED_TOO])
    held = [child.tokens for child in every.tree.children if child.images]
    assert [tokens == red for tokens in held] == [True, False, False]  # once for both questions about red cans
    assert red == vlm.render.encode(" red can:") + (vlm.render.image_id,) * 32


@pytest.mark.parametrize("samples", [1, 3])
def test_generation_equals_generation_of_each_prompt_alone(samples: int) -> None:
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm, dtype=torch.float32)
    prompts = [Prompt(s.images, s.question, s.trace is not None) for s in asked()]
    other = [replace(p, images=(Image(picture(9)), *p.images[1:])) for p in prompts]  # a second frame
    together = generate(vlm, store, [*prompts, *other], samples=samples, max_new_tokens=12, temperature=0)
    for prompt, rollouts in zip([*prompts, *other], together):
        (alone,) = generate(vlm, store, [prompt], samples=samples, max_new_tokens=12, temperature=0)
        assert [r.tokens for r in rollouts] == [r.tokens for r in alone]
        for got, want in zip(rollouts, alone):
            torch.testing.assert_close(
                torch.tensor(got.sampler_logprobs), torch.tensor(want.sampler_logprobs), atol=1e-4, rtol=1e-4
            )


def test_the_answer_depends_on_the_reference_and_on_no_neighbour() -> None:
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm, dtype=torch.float32)
    prompts = [Prompt(s.images, s.question, False) for s in asked()]
    plain = score(vlm, store, prompts, ["2"] * len(prompts))
    changed = [
        replace(p, images=tuple(replace(i, bytes=picture(7)) if i is BLUE else i for i in p.images)) for p in prompts
    ]
    again = score(vlm, store, changed, ["2"] * len(prompts))
    differs = [not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again)]
    assert differs == [BLUE in beside for beside in SETS]


def test_prefill_counts_references_once_for_the_questions_that_share_them() -> None:
    vlm = make_tiny_vlm()
    timing = Timing()
    prompts = [Prompt(s.images, s.question, False) for s in asked()]
    generate(vlm, FeatureStore(None, vlm), prompts, max_new_tokens=1, timing=timing)
    beside = sum(len(vlm.render.references(images)) for images in {s.references for s in asked()})
    own = sum(len(vlm.render.question(q, thinking=False)) for q in QUESTIONS)
    assert timing.prefill_tokens == len(vlm.render.prefix([BLANK])) + beside + own


def test_rollouts_are_laid_out_with_their_references() -> None:
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm, dtype=torch.float32)
    groups = sample_groups(
        LocalSampler(vlm, store), asked("prompt"), group_size=2, temperature=1.0, max_new_tokens=8, seed=3
    )
    laid = lay_out(vlm, groups)
    (tree,) = laid.trees
    pack = vlm.pack([tree.tree])
    logprobs = vlm.logprobs(pack, features_of(store, tree.images))
    for leaf, (number, which) in enumerate(laid.order):
        said = groups[number].rollouts[which]
        torch.testing.assert_close(
            logprobs[pack.leaf == leaf], torch.tensor(said.sampler_logprobs), atol=1e-4, rtol=1e-4
        )


def test_too_many_references_are_refused_with_the_number_of_tokens() -> None:
    vlm = make_tiny_vlm()  # context 512, 16 tokens a picture
    many = tuple(Image(picture(n), "reference", name=f"can {n}") for n in range(40))
    with pytest.raises(LinesideError, match="fewer reference pictures"):
        generate(vlm, FeatureStore(None, vlm), [Prompt((FRAME, *many), "which?", False)], max_new_tokens=4)
    with pytest.raises(LinesideError, match="context is 512"):
        image_tree(vlm, [replace(asked()[0], images=(FRAME, *many))])
