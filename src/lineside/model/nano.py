"""The language model of the nano preset: a Llama of a few million parameters and its own tokenizer, trained on text
alone in a minute.

It sees only text of the training split. A document is a tree: a caption takes the place of the picture, and below it
are questions with traces and answers, and other captions of the frame. So the LM learns to answer from its context
before it has seen any picture. Align then trains the projector to give it the picture in the same place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineside.model.render import IMAGE
from lineside.types import THINK_CLOSE, THINK_OPEN

# Scales of the induction circuit, for embeddings of the usual scale (0.02): SHARPNESS of the attention to the previous
# token, MATCH of the attention to an equal token, LOUDNESS of the vectors that the heads add to the residual stream,
# relative to the token embeddings in it.
SHARPNESS, MATCH, LOUDNESS = 16.0, 3.0, 0.06
BACK = 2  # number of head pairs: the k-th one looks k tokens back
SPECIALS = ["<pad>", "<|user|>", "<|assistant|>", "<|end|>", IMAGE]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each digit is a token. Byte-level: every string can be encoded, no token is unknown."""
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
    """A new Llama with tied embeddings; its feed-forward is three times as wide as its residual stream.

    With two layers or more it starts with an induction circuit (`lay_induction`)."""
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
    model = LlamaForCausalLM(config)
    if layers > 1:
        lay_induction(model, seed=seed)
    return model


@torch.no_grad()
def lay_induction(model: LlamaForCausalLM, *, seed: int = 0) -> None:
    """Initialise an induction circuit: it looks for an earlier occurrence of the current token and copies the token
    that followed there.

    A few minutes of training do not find this circuit, and without it the model does not read a bill of materials or a
    policy in the prompt (docs/experiments.md). It is the circuit of trained models (Olsson et al. 2022, arXiv
    2209.11895): a head of layer 0 attends to the previous token and writes it into a subspace of its own. A head of
    layer 1 attends to positions where this subspace equals the current token, and copies the token found there. A
    second pair of heads does the same with the tokens one further back. All other outputs of attention and feed-forward
    start at zero. Training may change all of these weights.
    """
    config = model.config
    width, side = config.hidden_size, config.hidden_size // config.num_attention_heads
    half = side // 2  # dimensions i and i + half are rotated as a pair
    fast = half // 4 or 1  # the first dimensions rotate fast: they tell neighbouring positions apart
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, side)])  # these hardly rotate
    generator = torch.Generator().manual_seed(seed)
    constant = torch.full((width,), width**-0.5)

    def subspace() -> Tensor:
        """(side, width) orthonormal rows, orthogonal to the constant direction."""
        basis = torch.randn(width, side, generator=generator)
        return torch.linalg.qr(basis - torch.outer(constant, constant @ basis))[0].T[:side]

    def weight(layer: int, name: str) -> Tensor:
        return model.get_parameter(f"model.layers.{layer}.{name}.weight")

    for layer in range(config.num_hidden_layers):
        weight(layer, "self_attn.o_proj").zero_()
        weight(layer, "mlp.down_proj").zero_()
    # A constant that all embeddings share: with it a head can attend by distance alone, whatever the tokens are.
    model.get_parameter("model.embed_tokens.weight").add_(config.initializer_range)
    steps = model.get_buffer("model.rotary_emb.inv_freq")[:fast]
    word = subspace()
    streams = [word]  # subspaces of the residual stream for the current token, the previous one, the one before that
    for back in range(1, 1 + min(BACK, config.num_attention_heads)):
        head = slice((back - 1) * side, back * side)
        asks, answers = torch.zeros(2, side)
        asks[:fast] = SHARPNESS  # the product with `answers` is largest at the position `back` tokens before
        answers[:fast], answers[half : half + fast] = SHARPNESS * (back * steps).cos(), SHARPNESS * (back * steps).sin()
        weight(0, "self_attn.q_proj")[head] = torch.outer(asks, constant) / width**0.5
        weight(0, "self_attn.k_proj")[head] = torch.outer(answers, constant) / width**0.5
        streams.append(subspace())
        weight(0, "self_attn.v_proj")[head], weight(0, "self_attn.o_proj")[:, head] = word, LOUDNESS * streams[back].T
        query, key = torch.zeros(2, side, width)
        query[slow], key[slow] = MATCH * streams[back - 1][: len(slow)], MATCH * streams[back][: len(slow)]
        weight(1, "self_attn.q_proj")[head], weight(1, "self_attn.k_proj")[head] = query, key
        found = subspace()
        weight(1, "self_attn.v_proj")[head], weight(1, "self_attn.o_proj")[:, head] = found, LOUDNESS * found.T
