"""The nano preset's language model: a few-million-parameter Llama and its own tokenizer, made from text alone in a
minute.

Only the training split's text is seen. A document is a tree: a caption stands where the picture will stand, questions
with traces and answers and other captions of the frame hang below it, so the LM learns to answer from what precedes
before it has seen any picture; align then teaches the projector to write there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lineside.model.render import IMAGE, THINK_CLOSE, THINK_OPEN

# Of the induction circuit, for embeddings of the usual scale (0.02): how sharply the token before is attended to, how
# sharply an equal token, and how loud what a head finds is beside what a token says of itself.
SHARPNESS, MATCH, LOUDNESS = 16.0, 3.0, 0.06
BACK = 2  # pairs of heads
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
    """A fresh Llama with tied embeddings; the feed-forward is three times as wide as the residual stream.

    With two layers or more it begins with an induction circuit (`lay_induction`)."""
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
    """Let a fresh model look up from its first step: what followed this token when it stood here before?

    Minutes of training do not find this circuit, and without it a bill of materials or a policy in the prompt is not
    read (docs/experiments.md). Laid as it is found in trained models (Olsson et al. 2022, arXiv 2209.11895): a head of
    layer 0 attends to the token before and writes it into directions of its own; a head of layer 1 matches these with
    the token at hand, attends there and writes the token it finds. A second pair of heads does so with the tokens one
    further back. All other branches begin silent. Nothing is held: training changes all of it.
    """
    config = model.config
    width, side = config.hidden_size, config.hidden_size // config.num_attention_heads
    half = side // 2  # rotary dimension i turns with dimension i + half
    fast = half // 4 or 1  # dimensions whose turn by one place tells neighbours apart
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, side)])  # those that hardly turn
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
    # What every token has in common, so that a head can ask for a distance alone.
    model.get_parameter("model.embed_tokens.weight").add_(config.initializer_range)
    steps = model.get_buffer("model.rotary_emb.inv_freq")[:fast]
    word = subspace()
    streams = [word]  # where the stream says which token stands here, which one before, which two before
    for back in range(1, 1 + min(BACK, config.num_attention_heads)):
        head = slice((back - 1) * side, back * side)
        asks, answers = torch.zeros(2, side)
        asks[:fast] = SHARPNESS  # answered most strongly by what is turned `back` places less
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
