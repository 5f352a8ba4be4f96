"""Small tokenizers of the kinds that language models come with. Each is trained here, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lineside.model.nano import train_tokenizer
from lineside.model.render import IMAGE, THINK_CLOSE, THINK_OPEN
from tests.conftest import TEXTS

# Text whose merges reach over the places where a turn meets a question.
TEXT = [*TEXTS, *["user\n\n\nHow many?\n\n", "USER: How many?\nASSISTANT: no.\n", " \n how", "assistant\n\n3"] * 20]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
HEADERS += [f"<|reserved_special_token_{number}|>" for number in range(50)]
WORDS = (  # how Llama 3 and Qwen cut text into words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(specials: Sequence[str], words: str = "", *, whole_words: bool = False) -> Tokenizer:
    """Byte-level BPE, cut into words as GPT-2 does or by a pattern."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)]
    if words:
        parts.insert(0, pre_tokenizers.Split(Regex(words), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """It puts `bos` before every text, as Llama's does."""
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _unigram(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """SentencePiece's kind: words begin with a mark, and control tokens are pieces of the model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    if normalizer is not None:
        tokenizer.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    return tokenizer


def _ready(tokenizer: Tokenizer, eos: str, bos: str | None = None, unk: str | None = None) -> PreTrainedTokenizerBase:
    ready = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        unk_token=unk,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
    ready.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    ready.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (THINK_OPEN, THINK_CLOSE)])
    return ready


def _loose() -> PreTrainedTokenizerBase:
    """Control tokens are looked for in lower-cased, normalised text, and `<|end|>` is one with the space around it."""
    tokenizer = byte_level(CHATML)
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.NFKC(), normalizers.Lowercase()]
    )
    loose = _ready(tokenizer, "<|im_end|>")
    loose.add_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, normalized=True), AddedToken("[x]")])
    return loose


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "nano": lambda: train_tokenizer(TEXT, 400),
    "chatml": lambda: _ready(byte_level(CHATML), "<|im_end|>", "<|im_start|>"),  # as SmolLM2's
    "chatml-words": lambda: _ready(byte_level(CHATML, WORDS), "<|im_end|>"),  # as Qwen's
    "chatml-bos": lambda: _ready(_with_bos(byte_level(CHATML, WORDS), "<|endoftext|>"), "<|im_end|>", "<|endoftext|>"),
    "headers": lambda: _ready(  # as Llama 3's
        _with_bos(byte_level(HEADERS, WORDS, whole_words=True), "<|begin_of_text|>"), "<|eot_id|>", "<|begin_of_text|>"
    ),
    "plain": lambda: _ready(byte_level(["</s>"]), "</s>"),
    "plain-words": lambda: _ready(byte_level(["<s>", "</s>"], WORDS), "</s>", "<s>"),
    "unigram": lambda: _ready(_unigram(), "</s>", "<s>", "<unk>"),
    "unigram-nfkc": lambda: _ready(_unigram(normalizers.NFKC()), "</s>", "<s>", "<unk>"),
    "loose": _loose,
}
