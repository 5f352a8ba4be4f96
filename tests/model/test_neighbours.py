"""What a question is answered does not depend on what is asked beside it, as the product runs it: kernels on.

In bfloat16, the format that models are judged and served in, tokens and log-probabilities are the same to the bit. In
float32 a product of fewer than four rows adds its terms in another order: log-probabilities agree to 1e-4.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from lineside.backends.reference import Reference
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, Node
from lineside.model.vlm import VLM
from lineside.types import Image, Rollout, Weights
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs

COUNTS = (1, 2, 31, 32, 33, 64)
QUESTIONS = ["how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?", "empty?"]
NEW = 8


def prompts(count: int) -> list[Prompt]:
    """Of one, two and no pictures, thinking on and off, several questions of a picture and pictures asked once."""
    images = [Image(picture(seed)) for seed in range(7)]
    kinds: list[tuple[Image, ...]] = [(image,) for image in images] + [(images[0], images[1]), ()]
    return [
        Prompt(kinds[i * 5 % len(kinds)], f"{QUESTIONS[i % 4]} {'left ' * (i % 6)}{i}", thinking=i % 3 != 1)
        for i in range(count)
    ]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def vlm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VLM:
    monkeypatch.setenv("LINESIDE_BACKEND", "")
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    vlm = make_tiny_vlm()
    with torch.no_grad():  # far from uniform, as a trained model is, and led by what stands before, not by one token
        for name, weight in vlm.language_model.named_parameters():
            weight.mul_(20 if "proj" in name else 1)
    vlm.model.to(request.param).requires_grad_(False)  # pyright: ignore[reportArgumentType]
    return vlm


def check(got: Sequence[tuple[Rollout, ...]], want: Sequence[tuple[Rollout, ...]], *, exact: bool) -> None:
    for ours, theirs in zip(got, want, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens == other.tokens
            assert not exact or one.sampler_logprobs == other.sampler_logprobs
            assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-4)


@pytest.mark.parametrize(("samples", "weights"), [(1, "full"), (3, "full"), (1, "int8")])
def test_an_answer_does_not_depend_on_its_neighbours(vlm: VLM, samples: int, weights: Weights) -> None:
    vlm.backend.weights = weights
    store = FeatureStore(None, vlm)
    options = {"samples": samples, "temperature": float(samples > 1), "max_new_tokens": NEW, "seed": 4}
    answer = partial(generate, vlm, store, **options)
    asked = prompts(max(COUNTS))
    whole = answer(asked)
    assert len({rollout.tokens for group in whole for rollout in group}) > 20  # they do not all say the same
    for count in COUNTS:
        check(answer(asked[:count]), whole[:count], exact=vlm.dtype == torch.bfloat16)
    if samples == 1:
        alone = [answer([prompt])[0] for prompt in asked[:24]]
        check(alone, whole[:24], exact=vlm.dtype == torch.bfloat16)
        order = sorted(range(len(asked)), key=lambda i: i * 37 % 64)
        shuffled = answer([asked[i] for i in order])
        check(shuffled, [whole[i] for i in order], exact=vlm.dtype == torch.bfloat16)


def test_at_every_count_it_is_the_references_answer(vlm: VLM) -> None:
    """Fed back through the dense path, token by token: exact in float32, within rounding in bfloat16."""
    store = FeatureStore(None, vlm)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if vlm.dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    for count in (1, 33):
        asked = prompts(count)
        for prompt, (rollout,) in list(zip(asked, generate(vlm, store, asked, max_new_tokens=NEW)))[:6]:
            leaf = Node(rollout.tokens, roles=(ANSWER,) * len(rollout.tokens), leaf=0)
            question = Node(vlm.render.question(prompt.question, thinking=prompt.thinking), children=(leaf,))
            images = tuple(range(len(prompt.images)))
            tree = Node(vlm.render.prefix([BLANK] * len(images)), images=images, children=(question,))
            (want,) = dense_logprobs(vlm, [tree], store.get(prompt.images) if images else None)
            torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), want, **tolerance)


def test_the_reference_answers_alike_at_every_count(vlm: VLM) -> None:
    vlm.backend = Reference()
    store, asked = FeatureStore(None, vlm), prompts(33)
    whole = generate(vlm, store, asked, max_new_tokens=NEW)
    if vlm.dtype == torch.float32:
        for count in (1, 2, 31):
            check(generate(vlm, store, asked[:count], max_new_tokens=NEW), whole[:count], exact=False)
