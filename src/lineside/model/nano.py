"""The nano preset's language model: a few-million-parameter Llama and its own tokenizer, made from text alone in a
minute.

Only the training split's text is seen. A document is a tree: a caption stands where the picture will stand, questions
with traces and answers and other captions of the frame hang below it, so the LM learns to answer from what precedes
before it has seen any picture; align then teaches the projector to write there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineside.model.render import IMAGE, THINK_CLOSE, THINK_OPEN

SPECIALS = ["<pad>", "<|user|>", "<|assistant|>", "<|end|>", IMAGE]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits apart. Byte-level: any string can be written, and none becomes unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (THINK_OPEN, THINK_CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<pad>",
        bos_token=None,
        clean_up_tokenization_spaces=False,
    )


def new_llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, heads: int, context: int = 1024, seed: int = 0
) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings; the feed-forward is three times as wide as the residual stream."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary["<|end|>"],
        pad_token_id=vocabulary["<pad>"],
    )
    return LlamaForCausalLM(config)
