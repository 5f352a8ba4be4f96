"""The generator: batched equals single, cached equals recomputed, sampling follows the distribution."""

from __future__ import annotations

import numpy as np
import torch

from lineside.backends.reference import choose
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, NONE, Node
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs

QUESTIONS = ["how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?", "empty?"]


def prompts(pictures: int = 3) -> list[Prompt]:
    images = [Image(picture(i)) for i in range(pictures)]
    return [Prompt((images[i % pictures],), QUESTIONS[i % 4], thinking=i % 2 == 0) for i in range(pictures * 3)] + [
        Prompt((images[0], images[1]), "compare", True), Prompt((), "no picture", False)
    ]  # fmt: skip


def ready(vlm=None):
    vlm = vlm or make_tiny_vlm()
    return vlm, FeatureStore(None, vlm, dtype=torch.float32)


def test_batched_equals_single_greedy() -> None:
    vlm, store = ready()
    asked = prompts()
    together = generate(vlm, store, asked, max_new_tokens=12)
    for prompt, (rollout,) in zip(asked, together):
        ((alone,),) = generate(vlm, store, [prompt], max_new_tokens=12)
        assert alone.tokens == rollout.tokens
        torch.testing.assert_close(
            torch.tensor(alone.sampler_logprobs), torch.tensor(rollout.sampler_logprobs), atol=1e-4, rtol=1e-4
        )


def test_sampled_rows_do_not_depend_on_their_neighbours() -> None:
    vlm, store = ready()
    asked = prompts()
    wide = generate(vlm, store, asked, samples=4, temperature=1.0, max_new_tokens=10, seed=3)
    narrow = generate(vlm, store, asked, samples=4, temperature=1.0, max_new_tokens=10, seed=3, rows=4)
    assert [[r.tokens for r in g] for g in wide] == [[r.tokens for r in g] for g in narrow]
    assert len({r.tokens for g in wide for r in g}) > 20  # it samples


def test_sampler_logprobs_are_the_models_own() -> None:
    """Feed each rollout back through the dense path: the same log-probability for every token."""
    vlm, store = ready()
    asked = prompts()
    for prompt, group in zip(asked, generate(vlm, store, asked, samples=3, temperature=1.0, max_new_tokens=9, seed=1)):
        head = Node(vlm.render.prefix([BLANK] * len(prompt.images)), images=tuple(range(len(prompt.images))))
        for rollout in group:
            leaf = Node(rollout.tokens, roles=(ANSWER,) * len(rollout.tokens), leaf=0)
            question = vlm.render.question(prompt.question, thinking=prompt.thinking)
            tree = Node(
                head.tokens,
                images=head.images,
                children=(Node(question, roles=(NONE,) * len(question), children=(leaf,)),),
            )
            (want,) = dense_logprobs(vlm, [tree], store.get(prompt.images) if prompt.images else None)
            torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), want.detach(), atol=1e-4, rtol=1e-4)


def test_rows_stop_at_eos_and_compaction_keeps_the_rest() -> None:
    vlm, store = ready()
    with torch.no_grad():  # make eos likely, so that rows end at different steps
        rows = vlm.model.get_input_embeddings().weight
        rows[vlm.render.eos_id] = rows.mean(0) + 0.5 * rows.std()
    timing = Timing()
    groups = generate(vlm, store, prompts(8), samples=4, temperature=1.0, max_new_tokens=40, seed=5, timing=timing)
    lengths = [len(r.tokens) for g in groups for r in g]
    assert len(set(lengths)) > 5
    for group in groups:
        for rollout in group:
            assert rollout.finished == (rollout.tokens[-1] == vlm.render.eos_id)
            assert vlm.render.eos_id not in rollout.tokens[:-1]
            assert vlm.render.image_id not in rollout.tokens
    assert timing.decode_tokens == sum(lengths)


def test_all_rows_may_end_at_once() -> None:
    vlm, store = ready()
    ((long,),) = generate(vlm, store, prompts()[:1], max_new_tokens=4)
    vlm.render.eos_id = long.tokens[0]
    ((first, second),) = generate(vlm, store, prompts()[:1], samples=2, max_new_tokens=4)
    assert first.tokens == second.tokens == long.tokens[:1] and first.finished and second.finished


def test_sampling_follows_the_distribution() -> None:
    """60,000 draws over 50 tokens: variation within twice that of noise, 0.5 sqrt(2 * 50 / (pi * 60000)) = 0.0115."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    uniform = torch.rand(60_000, generator=torch.Generator().manual_seed(1)).numpy()
    chosen, logprob = choose(logits.expand(60_000, -1), uniform, np.ones(60_000, np.float32))
    share = torch.bincount(torch.from_numpy(chosen), minlength=50) / 60_000
    assert 0.5 * (share - logits.softmax(0)).abs().sum() < 0.023
    torch.testing.assert_close(torch.from_numpy(logprob), logits.log_softmax(0)[chosen])
    late, greedy = np.array([0.999999], np.float32), np.zeros(1, np.float32)
    assert choose(logits[None], late, greedy)[0].item() == logits.argmax()
