"""The only renderer: text to tokens and loss roles, for training, rollouts, evaluation and serving (DESIGN 4).

Each segment is tokenised separately, so that no merge crosses a boundary: opening, image tokens, references, question,
think switch, tags, trace, answer. With thinking on, the model writes `<think>trace</think>answer<eos>`. With thinking
off, the prompt ends with a prefilled `<think></think>` and the model writes `answer<eos>`."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from lineside.errors import LinesideError
from lineside.families.base import Family
from lineside.model.tree import ANSWER, TRACE
from lineside.types import THINK_CLOSE, THINK_OPEN, Image, frame_images, references

IMAGE = "<image>"
TAGS = (THINK_OPEN, THINK_CLOSE)
BLANK = Image(b"")  # a picture of unknown size: it counts as the one that takes most tokens
CAPTION_PROMPT = "Describe the picture."
KEPT, SHORT = 1 << 16, 512  # size of the cache of tokenised texts, and the longest text (in characters) that it keeps
# Questions that test whether a tokenizer merges a question with the text before or after it: different first and last
# characters, without white space around the question and with it.
_EDGES = ("how many?", "Is it 7", "3 cans.", "(left)", "'s lid", "état é", "数える", "🙂", "a", "?", "-1", "#x:", "T!")
# What our own template states of its format: those of the fields of ChatFormat that it has.
_STATED = re.compile(r'^\{%- set (user_open|user_close|eos|between|after) = (".*") -%\}$', re.MULTILINE)
_TEXT = "how many?"  # shows where a chat template puts a text
_SPACED = tuple(space + "how many?" + space for space in (" ", "\n", "  ", "\n\n", "\t", " \n ", "\r\n", "\u3000"))


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The fixed text before and after a user's turn, between two pictures and after the last one, and `eos`, which ends
    the assistant's turn."""

    user_open: str
    user_close: str
    eos: str
    between: str = ""
    after: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, marker: str = IMAGE) -> ChatFormat:
        """That of the tokenizer's chat template, each picture as `marker`, if it is a finished model's own or ours.
        Else ChatML or Llama-3 headers if the vocabulary has their tokens, plain words otherwise. Raises LinesideError
        for a tokenizer with neither chat tokens nor an eos token."""
        if found := _of_template(tokenizer, marker):
            return found
        vocabulary = tokenizer.get_vocab()
        if "<|im_start|>" in vocabulary:
            return cls("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
        if "<|start_header_id|>" in vocabulary:
            head = "<|start_header_id|>{}<|end_header_id|>\n\n"
            return cls("<|begin_of_text|>" + head.format("user"), "<|eot_id|>" + head.format("assistant"), "<|eot_id|>")
        if "<|user|>" in vocabulary:  # the nano preset's own tokenizer
            return cls("<|user|>", "<|assistant|>", "<|end|>")
        if not tokenizer.eos_token:
            raise LinesideError(
                "the tokenizer has no chat tokens and no eos token: give it an eos_token so that answers can end"
            )
        return cls(f"{tokenizer.bos_token or ''}USER: ", "\nASSISTANT: ", str(tokenizer.eos_token))


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens, each with its role as a target."""

    tokens: tuple[int, ...]
    roles: tuple[int, ...]


def is_ours(template: object) -> bool:
    """Whether lineside wrote a chat template."""
    return isinstance(template, str) and "Written by lineside" in template


def _of_template(tokenizer: PreTrainedTokenizerBase, marker: str) -> ChatFormat | None:
    """The format in which a chat template renders pictures and a question; None if it shows no pictures."""
    if is_ours(tokenizer.chat_template):
        return ChatFormat(**{name: json.loads(value) for name, value in _STATED.findall(str(tokenizer.chat_template))})

    def rendered(pictures: int, *, replied: bool = False) -> str:
        parts = [{"type": "image"}] * pictures + [{"type": "text", "text": _TEXT}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        turns += [{"role": "assistant", "content": [{"type": "text", "text": _TEXT}]}] if replied else []
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not replied))

    try:
        opened, rest = rendered(1).split(marker)
        after, close = rest.split(_TEXT)
        between = rendered(2).split(marker)[1]
        *_, end = rendered(1, replied=True).split(_TEXT)
    except Exception:  # no template, or one of another kind: it raises what it likes
        return None
    first = tokenizer.encode(end, add_special_tokens=False)[:1] if end.strip() else []
    ends = [token for token in map(str, tokenizer.convert_ids_to_tokens(first)) if token in control_tokens(tokenizer)]
    eos = ends[0] if ends else str(tokenizer.eos_token)
    return ChatFormat(opened, close, eos, between, after)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Added and special tokens with their ids. Text from outside must never become one of them."""
    texts = [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]
    return {text: tokenizer.convert_tokens_to_ids(text) for text in texts}


def _keep_no_words(tokenizer: Tokenizer | None) -> None:
    """Turn off the cache of a BPE: each thread that encodes has one, of up to 10,000 words, and it stays when the
    tokenizer is gone (tokenizers 0.23). The renderer keeps whole texts itself."""
    if tokenizer is not None and isinstance(tokenizer.model, BPE):
        tokenizer.model._resize_cache(0)


class Renderer:
    """Text in, tokens and roles out. `placeholder` gives the tokens that stand for a picture, `shape` what else its
    place depends on, `image` is its token, and `marker` what stands for it in a chat template (families/)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        placeholder: Callable[[Image], tuple[int, ...]],
        shape: Callable[[Image], tuple[int, int]] = lambda image: (0, 0),
        image: str = IMAGE,
        marker: str = IMAGE,
    ) -> None:
        self.tokenizer = tokenizer
        _keep_no_words(self._backend)
        self.placeholder, self.shape, self.marker = placeholder, shape, marker
        self.format = ChatFormat.of(tokenizer, marker)
        self.switches = True  # whether prompts have the think switch: not those of a model that never learnt it
        self._control = control_tokens(tokenizer)
        self._control_ids = frozenset(self._control.values())
        # Every epoch renders the same texts again, and many questions and answers are the same.
        self._kept = functools.lru_cache(KEPT)(self._encode)
        self.image_id = self._single(image)
        self.think_open = self._single(THINK_OPEN)
        self.think_close = self._single(THINK_CLOSE)
        self.eos_id = self._single(self.format.eos)
        self._open = self.encode(self.format.user_open)
        self._close = self.encode(self.format.user_close)
        self._between, self._after = self.encode(self.format.between), self.encode(self.format.after)

    @classmethod
    def of(cls, family: Family) -> Renderer:
        """The renderer of a model of this family."""
        return cls(family.tokenizer, family.placeholder, family.shape, family.image_token, family.marker)

    def _single(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            raise LinesideError(
                f"{token!r} must be one token of the vocabulary; this tokenizer splits it into {len(ids)}"
            )
        return ids[0]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of our own, trusted text. Chat tokens and think tags in it become control tokens."""
        return self._kept(text) if len(text) <= SHORT else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_untrusted(self, text: str) -> tuple[int, ...]:
        """Token ids of text from outside: a question, a trace or an answer.

        It never gives an added or special token: `<image>` or `<|im_start|>` in the text is tokenised as plain
        characters. All other text gets the tokenizer's usual ids. Raises LinesideError for a character that the
        tokenizer can encode only as a control token.
        """
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, which no tokenizer accepts
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self.encode(text)
        return ids if self._control_ids.isdisjoint(ids) else self._spelt(text)

    def _spelt(self, text: str) -> tuple[int, ...]:
        """Token ids of the text if the tokenizer had no added tokens."""
        ids = tuple(self._bare(text))
        found = self._control_ids.intersection(ids)
        unk = str(self.tokenizer.unk_token)
        if not found or (found == {self._control.get(unk)} and unk not in text):  # an unknown character may become unk
            return ids
        if len(text) == 1:
            raise LinesideError(f"the tokenizer has only a control token for the character {text!r}: leave it out")
        middle = len(text) // 2  # the plain vocabulary may also hold the control token; cut in two, it cannot match
        return self._spelt(text[:middle]) + self._spelt(text[middle:])

    @property
    def _backend(self) -> Tokenizer | None:
        """The underlying tokenizer of the `tokenizers` library; None if the tokenizer is written in Python."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @functools.cached_property
    def _bare(self) -> Callable[[str], list[int]]:
        """The tokenizer without its added tokens."""
        whole = self._backend
        if whole is None:  # written in Python
            return functools.partial(self.tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        bare = Tokenizer.from_str(
            json.dumps({**json.loads(whole.to_str()), "added_tokens": [], "post_processor": None})
        )
        bare.no_truncation()
        bare.no_padding()
        _keep_no_words(bare)
        return lambda text: bare.encode(text, add_special_tokens=False).ids

    def prefix(self, images: Sequence[Image]) -> tuple[int, ...]:
        """Start of the user's turn and a frame's pictures: the prefix that all questions of a frame share."""
        return self._open + self._labelled(images)

    def image_tokens(self, image: Image) -> int:
        """Number of image tokens of a picture, which is that of its features."""
        return self.placeholder(image).count(self.image_id)

    def _shown(self, images: Iterable[Image]) -> tuple[int, ...]:
        tokens: tuple[int, ...] = ()
        for image in images:
            tokens += (self._between if tokens else ()) + self.placeholder(image)
        return tokens + (self._after if tokens else ())

    def references(self, images: Sequence[Image]) -> tuple[int, ...]:
        """The reference pictures of a question: for each SKU its label and its pictures. They stand between the frame's
        pictures and the words of the question."""
        return self._labelled(images)

    def _labelled(self, images: Sequence[Image]) -> tuple[int, ...]:
        """Pictures, those of one label together behind it."""
        tokens: tuple[int, ...] = ()
        for label, pictures in itertools.groupby(images, lambda image: image.label):
            # Behind a space, a name has the tokens that it has within a question.
            named = self.encode_untrusted(f" {label}") if label else ()
            tokens += named + self._shown(pictures)
        return tokens

    def head(self, images: Sequence[Image]) -> tuple[int, ...]:
        """All tokens before the question: those of the frame's pictures, then the references."""
        return self.prefix(frame_images(images)) + self.references(references(images))

    def question(self, text: str, *, thinking: bool) -> tuple[int, ...]:
        """The question, the end of the user's turn and the think switch."""
        switch = () if thinking or not self.switches else (self.think_open, self.think_close)
        return self.encode_untrusted(text) + self._close + switch

    def response(self, trace: str | None, answer: str) -> Segment:
        """The response that the model should write. Without a trace (thinking off) it is the answer alone. The caller
        must have checked that the trace is valid."""
        answer_ids = self.encode_untrusted(answer)
        if trace is None:
            return Segment((*answer_ids, self.eos_id), (ANSWER,) * (len(answer_ids) + 1))
        trace_ids = self.encode_untrusted(trace)
        tokens = (self.think_open, *trace_ids, self.think_close, *answer_ids, self.eos_id)
        roles = (ANSWER, *(TRACE,) * len(trace_ids), ANSWER, *(ANSWER,) * (len(answer_ids) + 1))
        return Segment(tokens, roles)

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        """Text of a response, without eos and special tokens but with the think tags."""
        kept = [t for t in tokens if t != self.eos_id]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def chat_template(self, *, thinking: bool = True, labels: bool = False) -> str:
        """The same format as a Jinja template, for other programs. It gives the renderer's tokens or raises.

        With `enable_thinking` false, the template prefills the empty think block. `thinking` is its default. With
        `labels`, a text part before a further picture is the label of a view or reference: "4711 (can of 330 ml):".
        Other programs tokenise the rendered text as one string, while the renderer tokenises segment by segment. Where
        this tokenizer would give other tokens for the one string, the template refuses the question.
        """
        heads = {"with": 1, "without": 0}  # number of pictures
        values = {
            "user_open": self.format.user_open,
            "user_close": self.format.user_close,
            "eos": self.format.eos,
            "image": self.marker,
            "between": self.format.between,
            "after": self.format.after,
            "thinks": thinking,
            "labels": labels,
            "control_tokens": sorted(self._control),
            "merging": [name for name, count in heads.items() if not self._joins(count, _EDGES)]
            + ([] if self._joins(1, _EDGES, "red can:") and self._joins(1, _EDGES, "4711 (0.5 l):") else ["beside"]),
            "merging_spaces": [name for name, count in heads.items() if not self._joins(count, _SPACED)],
        }
        body = files("lineside").joinpath("templates", "chat.jinja").read_text(encoding="utf-8")
        head = (f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in values.items())
        return "\n".join([*head, body])

    def _joins(self, images: int, questions: tuple[str, ...], label: str = "") -> bool:
        """Whether a prompt tokenised as one string gives the same tokens as its segments, for all these questions, and
        with a reference of this label."""
        added = self.tokenizer.added_tokens_decoder.values()
        if getattr(self._backend, "normalizer", None) is not None and any(token.normalized for token in added):
            return False  # the tokenizer would also find control tokens in text that only looks like them
        shown = (self.marker + self.format.after) * images
        head, tail = self.format.user_open + shown, self.format.user_close + THINK_OPEN + THINK_CLOSE
        placed = self.encode(self.marker) + self._after
        alone = self._open + placed * images
        if label:
            head = f"{head} {label}{self.marker}{self.format.after}"
            alone += self.encode(f" {label}") + placed
        return all(
            self._encode(head + text + tail) == alone + self.question(text, thinking=False) for text in questions
        )
