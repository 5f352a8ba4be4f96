"""The nano preset's language model: what it can do before its first step of training."""

from __future__ import annotations

import pytest
import torch

from lineside.model.nano import new_llama, train_tokenizer

WORDS = [f"{colour} {kind}" for colour in ("red", "blue", "green", "grey") for kind in ("can", "box", "ball", "tube")]


def llama(hidden: int, layers: int, heads: int, seed: int = 0):
    tokenizer = train_tokenizer([f"Kit: {', '.join(WORDS)}."] * 4, 320)
    model = new_llama(tokenizer, hidden=hidden, layers=layers, heads=heads, seed=seed).eval()
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fresh_model_attends_to_what_followed_a_token_before(seed: int) -> None:
    model = llama(256, 4, 4, seed)
    once = torch.randperm(model.config.vocab_size - 10, generator=torch.Generator().manual_seed(seed))[:60] + 5
    with torch.no_grad():
        seen = model(torch.cat([once, once])[None], output_attentions=True)
    for back in (1, 2):
        before, after = seen.attentions[0][0, back - 1], seen.attentions[1][0, back - 1]
        assert before.diagonal(-back).mean() > 0.9  # the token before, two before
        found = torch.stack([after[at, at - 59] for at in range(62, 120)])  # what followed these tokens the first time
        assert found.mean() > 0.4  # chance: 0.01
    follows = seen.logits[0, 61:119]
    chance = follows.softmax(-1).mean()
    assert follows.softmax(-1).gather(1, once[2:, None]).mean() > 2 * chance


@pytest.mark.parametrize(("hidden", "layers", "heads"), [(32, 1, 2), (32, 2, 2), (16, 3, 4), (24, 2, 1)])
def test_any_size_begins_finite_and_is_repeatable(hidden: int, layers: int, heads: int) -> None:
    one, two = llama(hidden, layers, heads), llama(hidden, layers, heads)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]) and value.isfinite().all(), name
    assert one(torch.arange(20)[None]).logits.isfinite().all()
