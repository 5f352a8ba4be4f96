"""Several pictures of one scene in a question: their order and names, computed once for all questions of the frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lineside.model.branches import by_frame
from lineside.model.features import FeatureStore, features_of
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.tree import Node
from lineside.serving.reading import Pictures
from lineside.training.packing import image_tree, packs_of
from lineside.training.rollout import lay_out, sample_groups
from lineside.training.sampler import LocalSampler
from lineside.types import Image, Meta, Sample, Source, Target
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs

WHOLE, CROP = Image(picture(0)), Image(picture(1), "crop")
SIDE, TOP = (Image(picture(n), "view", name=name) for n, name in ((2, "side"), (3, "top")))
CAN = Image(picture(4), "reference", name="red can")
FRAME = (WHOLE, CROP, SIDE, TOP)
QUESTIONS = ["how many bins?", "how many red cans?", "is it empty?"]


def asked(kind: str = "qa") -> list[Sample]:
    """Three questions of one frame, the second beside a reference."""
    base = Sample(
        "s", "qa", FRAME, "picking", "count", "", "2 red can; so 2", "2", Target("exact", "sim", accepted=("2",)),
        "train", Meta(scene="one"), Source(),
    )  # fmt: skip
    made = [replace(base, id=q, question=q) for q in QUESTIONS]
    made[1] = replace(made[1], images=(*FRAME, CAN), trace=None)
    return [replace(s, kind="prompt", trace=None, answer=None) for s in made] if kind == "prompt" else made


def test_views_are_trained_as_if_each_sample_stood_alone_and_computed_once() -> None:
    vlm = make_tiny_vlm()
    vlm.model.model.language_model.requires_grad_(True)
    vlm.projector.requires_grad_(True)
    store, samples = FeatureStore(None, vlm, dtype=torch.float32), asked()
    trained = [p for p in vlm.model.parameters() if p.requires_grad]
    tree = image_tree(vlm, samples)
    ((pack, images),) = packs_of(vlm, [tree], 10_000)
    assert images == (*FRAME, CAN)
    assert int((pack.tokens == vlm.render.image_id).sum()) == 16 * len(images)  # 16 tokens a picture, each once
    logprobs = vlm.logprobs(pack, features_of(store, images))
    gradients = torch.autograd.grad(-logprobs.mean(), trained)
    alone: list[torch.Tensor] = []
    for sample in samples:
        head, response = vlm.render.head(sample.images), vlm.render.response(sample.trace, sample.answer or "")
        question = Node(vlm.render.question(sample.question, thinking=sample.trace is not None),
                        children=(Node(response.tokens, roles=response.roles, leaf=0),))  # fmt: skip
        row = Node(head, images=tuple(range(len(sample.images))), children=(question,))
        alone += dense_logprobs(vlm, [row], store.get(sample.images))
    for leaf, want in enumerate(alone):
        torch.testing.assert_close(logprobs[pack.leaf == leaf], want, atol=2e-5, rtol=1e-5)
    for got, want in zip(gradients, torch.autograd.grad(-torch.cat(alone).mean(), trained)):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)


def test_a_view_stands_behind_the_frames_pictures_under_its_name() -> None:
    render = make_tiny_vlm().render
    one = (render.image_id,) * 16
    named = {name: render.encode(f" {name}:") for name in ("side", "top", "red can")}
    opened = render.encode(render.format.user_open)
    assert render.prefix(FRAME) == opened + one * 2 + named["side"] + one + named["top"] + one
    assert render.head((CAN, *FRAME)) == render.prefix(FRAME) + named["red can"] + one  # references come last
    unnamed = replace(SIDE, name="")
    assert render.prefix((WHOLE, unnamed)) == opened + one * 2


@pytest.mark.parametrize("samples", [1, 3])
def test_generation_equals_generation_of_each_prompt_alone(samples: int) -> None:
    """Frames with all views, with one of them, with the same pictures in another order and under another name."""
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm, dtype=torch.float32)
    frames = [FRAME, (WHOLE, CROP, SIDE), (WHOLE, CROP, TOP, SIDE), (WHOLE, CROP, replace(SIDE, name="back"))]
    prompts = [Prompt(frame, question, False) for question in QUESTIONS[::2] for frame in frames]
    assert by_frame([p.images for p in prompts]) == [[n, n + 4] for n in range(4)]
    timing = Timing()
    together = generate(vlm, store, prompts, samples=samples, max_new_tokens=8, timing=timing)
    heads = sum(len(vlm.render.prefix(frame)) for frame in frames)
    asked = 4 * sum(len(vlm.render.question(q, thinking=False)) for q in QUESTIONS[::2])
    assert timing.prefill_tokens == heads + asked
    for prompt, rollouts in zip(prompts, together):
        (alone,) = generate(vlm, store, [prompt], samples=samples, max_new_tokens=8)
        assert [r.tokens for r in rollouts] == [r.tokens for r in alone]
        for got, want in zip(rollouts, alone):
            assert got.sampler_logprobs == pytest.approx(want.sampler_logprobs, abs=1e-4)
    assert len({row[0].sampler_logprobs for row in together}) == len(prompts)  # order and name are seen


def test_rollouts_are_laid_out_with_their_views() -> None:
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm, dtype=torch.float32)
    options = {"group_size": 2, "temperature": 1.0, "max_new_tokens": 6, "seed": 3}
    groups = sample_groups(LocalSampler(vlm, store), asked("prompt"), **options)
    laid = lay_out(vlm, groups)
    (tree,) = laid.trees
    pack = vlm.pack([tree.tree])
    logprobs = vlm.logprobs(pack, features_of(store, tree.images))
    for leaf, (number, which) in enumerate(laid.order):
        said = groups[number].rollouts[which].sampler_logprobs
        assert logprobs[pack.leaf == leaf].tolist() == pytest.approx(said, abs=1e-4)


def test_the_server_knows_heads_apart_by_the_names_of_their_views() -> None:
    shown = Pictures.of((CAN, *FRAME))
    assert shown.images == (*FRAME, CAN) and shown.frame.images == FRAME
    other = Pictures.of((WHOLE, CROP, replace(SIDE, name="back"), TOP, CAN))
    assert shown.head != other.head and shown.frame.head != other.frame.head
