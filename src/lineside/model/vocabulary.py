"""Tokens that a model lacks, with embeddings: `<image>` for parts that have never met, and the think tags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from lineside.model.render import IMAGE


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> int | None:
    """Add those of `tokens` that the tokenizer lacks. The think tags are not special tokens, because decoding would
    drop them from the text. Returns how many tokens it had before; None if it lacked none."""
    before = len(tokenizer)
    # A tokenizer looks for "normalized" tokens in the normalised text, so other text could turn into a control token.
    for token in list(tokenizer.added_tokens_decoder.values()):
        if token.normalized:
            token.normalized = False
            tokenizer.add_tokens([token], special_tokens=token.special)
    missing = [t for t in tokens if t not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(t, special=t == IMAGE, normalized=False) for t in missing])
    return before if missing else None


@torch.no_grad()
def add_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, before: int | None, generator: torch.Generator
) -> None:
    """Give the tokens from number `before` on (None: no tokens) embeddings: the mean of the known ones plus noise from
    `generator`. A table that has more rows than there are tokens keeps its size. A head with its own table gets rows
    too."""
    rows = _table(model.get_input_embeddings()).shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if before is None:
        return
    tables = map(_table, (model.get_input_embeddings(), model.get_output_embeddings()))
    for weight in {id(w): w for w in tables}.values():
        known = weight[: min(before, rows)].float()
        for row in range(min(before, rows), len(tokenizer)):
            noise = torch.randn(weight.shape[1], generator=generator) * known.std() * 0.5
            weight[row] = (known.mean(0) + noise).to(weight.dtype)


def _table(module: nn.Module | None) -> Tensor:
    """The weight (V, D) of an embedding or an LM head; transformers gives them no narrower type."""
    assert isinstance(module, nn.Embedding | nn.Linear)
    return module.weight
